//! What is in an image, read from the image itself.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context, ensure};
use handover::{BOOT_CONFIG_PATH, BootConfig, MODULES_DIR, ModuleIndex};
use serde::Serialize;

use crate::image::cache::sha256;
use crate::image::{INITRD, VMLINUZ};
use crate::initramfs::read::{decompress, entries};
use crate::manifest::{File, INPUTS_PATH, Inputs};
use crate::{init_binary, uki};

/// What an image consists of.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Inspection {
    /// `uki` for an `.efi` file, `direct` for a folder with `vmlinuz` and `initrd`.
    pub kind: &'static str,
    /// `uname -r`, where the image says it.
    pub release: Option<String>,
    pub command_line: Option<String>,
    pub kernel: File,
    pub initrd: File,
    /// Bytes of the initramfs when decompressed.
    pub initrd_unpacked: u64,
    pub init: Init,
    /// What the builder wrote down when it made the image.
    pub inputs: Option<Inputs>,
    pub boot: BootConfig,
    pub modules: ModuleIndex,
    /// Bytes of each preloaded archive.
    pub images: BTreeMap<String, u64>,
}

/// The image's `/init`.
#[derive(Debug, Clone, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Init {
    #[serde(flatten)]
    pub file: File,
    /// Whether it needs neither interpreter nor libraries.
    pub is_static: bool,
}

/// Looks into an `.efi` file, or a folder with `vmlinuz` and `initrd`.
///
/// # Errors
/// It is neither, or it is damaged.
pub fn inspect(path: &Path) -> anyhow::Result<Inspection> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("Cannot read {}", path.display()));
    if path.is_dir() {
        let kernel = read(&path.join(VMLINUZ))?;
        let initrd = read(&path.join(INITRD))?;
        return of_parts("direct", &kernel, &initrd)
            .with_context(|| format!("{} holds no image of Monobloc", path.display()));
    }
    let image = read(path)?;
    of_uki(&image).with_context(|| format!("{} is no image of Monobloc", path.display()))
}

/// The bytes of `/init`: those of the file itself if it is a program, else those in the image that it is
/// (an `.efi` file, a folder with `initrd`, or an `initrd` alone).
///
/// # Errors
/// It is none of these, or it is damaged.
pub fn init_program(path: &Path) -> anyhow::Result<Vec<u8>> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("Cannot read {}", path.display()));
    let bytes = read(&if path.is_dir() {
        path.join(INITRD)
    } else {
        path.to_owned()
    })?;
    if bytes.starts_with(b"\x7fELF") {
        return Ok(bytes);
    }
    let within = if bytes.starts_with(b"MZ") {
        let sections = uki::read::sections(&bytes)?;
        sections.get(".initrd").map(|section| section.to_vec())
    } else {
        Some(bytes)
    };
    let initrd = within.context("It has no section .initrd")?;
    entries(&decompress(&initrd)?)
        .and_then(|mut entries| entries.remove("init").context("It has no /init"))
        .with_context(|| format!("{} is neither a program nor an image of Monobloc", path.display()))
}

fn of_uki(image: &[u8]) -> anyhow::Result<Inspection> {
    let sections = uki::read::sections(image)?;
    let section = |name: &str| {
        sections
            .get(name)
            .copied()
            .with_context(|| format!("It has no section {name}"))
    };
    let text = |name: &str| section(name).map(|bytes| String::from_utf8_lossy(bytes).into_owned());
    let inspection = of_parts("uki", section(".linux")?, section(".initrd")?)?;
    Ok(Inspection {
        release: Some(text(".uname")?),
        command_line: Some(text(".cmdline")?),
        ..inspection
    })
}

fn of_parts(kind: &'static str, kernel: &[u8], initrd: &[u8]) -> anyhow::Result<Inspection> {
    let unpacked = decompress(initrd)?;
    let entries = entries(&unpacked)?;
    let entry = |path: &str| {
        entries
            .get(path.trim_start_matches('/'))
            .with_context(|| format!("Its initramfs has no {path}"))
    };
    let init = entry("/init")?;
    let boot = serde_json::from_slice(entry(BOOT_CONFIG_PATH)?)
        .with_context(|| format!("{BOOT_CONFIG_PATH} is of another version of Monobloc"))?;
    let modules = serde_json::from_slice(entry(&format!("{MODULES_DIR}/index.json"))?)
        .context("The index of its modules is of another version of Monobloc")?;
    let inputs: Option<Inputs> = match entries.get(INPUTS_PATH.trim_start_matches('/')) {
        Some(bytes) => Some(serde_json::from_slice(bytes).context("Its manifest is of another version")?),
        None => None,
    };
    let prefix = format!("{}/", handover::IMAGES_DIR.trim_start_matches('/'));
    let images = entries
        .iter()
        .filter_map(|(path, bytes)| Some((path.strip_prefix(&prefix)?.to_owned(), bytes.len() as u64)))
        .collect();
    ensure!(!init.is_empty(), "Its /init is empty");
    Ok(Inspection {
        kind,
        release: inputs.as_ref().map(|inputs| inputs.kernel.release.clone()),
        command_line: inputs.as_ref().map(|inputs| inputs.command_line.clone()),
        kernel: file(kernel),
        initrd: file(initrd),
        initrd_unpacked: unpacked.len() as u64,
        init: Init {
            file: file(init),
            is_static: init_binary::prove_static(init).is_ok(),
        },
        inputs,
        boot,
        modules,
        images,
    })
}

fn file(bytes: &[u8]) -> File {
    File {
        size: bytes.len() as u64,
        sha256: sha256(bytes),
    }
}
