//! The manifest: what an image was made from, beside the image and in it.
//!
//! It holds neither times nor places of the machine that built, so it is as reproducible as the
//! image.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::debian::Package;
use crate::oci::Prepared;

/// Where the initramfs holds [`Inputs`], for `inspect`.
pub const INPUTS_PATH: &str = "/etc/monobloc/manifest.json";

/// Everything about an image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Manifest {
    pub inputs: Inputs,
    /// SHA-256 and size of each file of the image.
    pub outputs: BTreeMap<String, File>,
}

/// What went into the image.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inputs {
    /// The recipe's name.
    pub name: String,
    /// The builder's version.
    pub builder: String,
    /// SHA-256 of the recipe's settings (not of its text: a comment changes nothing).
    pub recipe: String,
    pub command_line: String,
    pub kernel: Kernel,
    pub init: File,
    /// The package of the UEFI stub, where there is an `.efi`.
    pub stub: Option<Package>,
    /// Names of the modules in the image.
    pub modules: Vec<String>,
    pub images: Vec<Prepared>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kernel {
    /// `uname -r`
    pub release: String,
    pub package: Package,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct File {
    pub size: u64,
    pub sha256: String,
}
