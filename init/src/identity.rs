//! The node bundle: the machine's name and its TLS identity, which reach it beside the image.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use handover::{BOOT_CONFIG_PATH, BootConfig, FW_CFG_BUNDLE, NodeBundle};

use crate::modules::Loader;

/// Host name of a machine without a bundle.
const NAMELESS: &str = "monobloc";

/// Reads what the image is for.
pub(crate) fn boot_config() -> anyhow::Result<BootConfig> {
    let bytes = fs::read(BOOT_CONFIG_PATH)
        .with_context(|| format!("Cannot read {BOOT_CONFIG_PATH}; build the image again"))?;
    serde_json::from_slice(&bytes)
        .with_context(|| format!("{BOOT_CONFIG_PATH} is damaged; build the image again"))
}

/// Reads the node bundle, if the machine was given one.
pub(crate) fn node_bundle(modules: &Loader) -> anyhow::Result<Option<NodeBundle>> {
    // On a machine that is not QEMU's the module finds no device and refuses.
    let _ = modules.load("qemu_fw_cfg");
    let path: PathBuf = Path::new("/sys/firmware/qemu_fw_cfg/by_name")
        .join(FW_CFG_BUNDLE)
        .join("raw");
    match fs::read(&path) {
        Ok(bytes) => serde_json::from_slice(&bytes).map(Some).with_context(
            || "The node bundle in QEMU's fw_cfg is damaged; make it again with the site's builder",
        ),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).context(format!("Cannot read the node bundle at {}", path.display())),
    }
}

/// Names the machine, in the kernel and in the files that zones and libraries read.
pub(crate) fn name_machine(bundle: Option<&NodeBundle>) -> anyhow::Result<String> {
    let name = bundle.map_or(NAMELESS, |bundle| bundle.name.as_str());
    rustix::system::sethostname(name.as_bytes())
        .with_context(|| format!("Cannot set the host name to {name:?}"))?;
    fs::write("/etc/hostname", format!("{name}\n"))?;
    fs::write(
        "/etc/hosts",
        format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n127.0.1.1\t{name}\n"),
    )?;
    Ok(name.to_owned())
}
