//! What crosses the boot: the data that the builder writes and the appliance reads.
//!
//! Two documents do. [`BootConfig`] is part of the image (`/etc/monobloc/boot.json` in the
//! initramfs) and says what the machine is for; it holds no secret, so that the same inputs give the
//! same image. [`NodeBundle`] is one node's name and TLS identity; it reaches the machine beside the
//! image (QEMU: the fw_cfg file [`FW_CFG_BUNDLE`]) and never lies in it.

#![forbid(unsafe_code)]

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

/// Where the initramfs holds [`BootConfig`] as JSON.
pub const BOOT_CONFIG_PATH: &str = "/etc/monobloc/boot.json";
/// Folder of the initramfs that holds [`ModuleIndex`] (`index.json`) and the modules, uncompressed.
pub const MODULES_DIR: &str = "/lib/modules";
/// Folder of the initramfs that holds the preloaded images as OCI or docker archives (`*.tar`).
pub const IMAGES_DIR: &str = "/images";
/// QEMU fw_cfg name under which a [`NodeBundle`] is handed over as JSON
/// (`-fw_cfg name=…,file=…`; the kernel shows it under `/sys/firmware/qemu_fw_cfg/by_name/…/raw`).
pub const FW_CFG_BUNDLE: &str = "opt/org.monobloc/bundle";
/// TCP port of the Docker API inside the appliance.
pub const API_PORT: u16 = 2376;

/// What the image is for; made from the recipe.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootConfig {
    /// The recipe's name and the builder's version, for `docker info` and the console.
    pub name: String,
    pub version: String,
    /// Modules that are loaded whether a device asks for them or not, in this order.
    pub load_modules: Vec<String>,
    pub pool: PoolPolicy,
    /// How the disks that are claimed are encrypted, if they are.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_encryption: Option<PoolEncryption>,
    /// Preloaded archives, file names within [`IMAGES_DIR`].
    pub images: Vec<PreloadedImage>,
    /// Zones that start at boot.
    pub zones: Vec<BootZone>,
    /// Whether zones may have the machine's own namespaces and so its powers.
    #[serde(default)]
    pub allow_host_privilege: bool,
    pub registry: RegistryConfig,
}

/// What may become the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolPolicy {
    /// Only a disk that is a pool already; otherwise the pool is in memory.
    #[default]
    Existing,
    /// As `Existing`, and else all disks that are wholly blank are claimed together.
    ClaimBlank,
    /// Always in memory.
    Memory,
}

/// Where the key of encrypted disks is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum PoolEncryption {
    /// In the node's bundle.
    Bundle,
    /// In the machine's TPM.
    Tpm,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PreloadedImage {
    /// Name and tag, such as `busybox:latest`.
    pub reference: String,
    /// File name within [`IMAGES_DIR`].
    pub file: String,
    /// Image id: digest of the config, `sha256:…`. With it in the store already, nothing is loaded.
    pub id: String,
}

/// One zone that starts at boot; the fields are those of `docker run`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BootZone {
    pub name: String,
    pub image: String,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    #[serde(default)]
    pub ports: Vec<PublishedPort>,
    /// Memory limit in bytes.
    #[serde(default)]
    pub memory: Option<u64>,
    /// CPU limit in billionths of a CPU, as Docker's `NanoCpus`.
    #[serde(default)]
    pub nano_cpus: Option<u64>,
    #[serde(default)]
    pub pids: Option<u64>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PublishedPort {
    pub host: u16,
    pub zone: u16,
    pub protocol: Protocol,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct RegistryConfig {
    /// Registries (`host` or `host:port`) that may be spoken to over plain HTTP.
    #[serde(default)]
    pub insecure: Vec<String>,
}

/// The modules of an image, by name (with `_`, never `-`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct ModuleIndex {
    pub modules: BTreeMap<String, ModuleEntry>,
}

#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ModuleEntry {
    /// File name within [`MODULES_DIR`].
    pub file: String,
    /// Names of the modules that must be loaded before it (direct ones; `.modinfo` `depends=`).
    pub depends: Vec<String>,
    /// Names of modules that it uses if they are there (`softdep=`): loaded before it where possible,
    /// and no reason to fail where not.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub soft: Vec<String>,
    /// Shell patterns (`fnmatch(3)`: `*`, `?`, `[…]`) over modaliases (`.modinfo` `alias=`).
    pub aliases: Vec<String>,
}

/// One node's name and identity.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct NodeBundle {
    /// Host name of the node.
    pub name: String,
    /// The site's CA certificate; a client must show a certificate of it. PEM.
    pub ca: String,
    /// The node's certificate for the API. PEM.
    pub certificate: String,
    /// The certificate's private key. PEM, PKCS#8.
    pub key: String,
    /// What encrypted disks of the node can be opened with, as text.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pool_key: Option<String>,
}
