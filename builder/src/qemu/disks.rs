//! Disks that come and go while the machine runs: those of [`Qemu::more_disks`](super::Qemu::more_disks).

use std::path::Path;

use serde_json::json;

use super::CONTROLLER;
use super::qmp::{QmpError, execute_with};

/// Id of the disk with a serial number.
pub(super) fn id(serial: &str) -> String {
    format!("disk-{serial}")
}

/// Pulls a disk out.
///
/// # Errors
/// QEMU refuses: there is none of that serial number.
pub fn unplug(monitor: &Path, serial: &str) -> Result<(), QmpError> {
    execute_with(monitor, "device_del", &json!({ "id": id(serial) })).map(drop)
}

/// Plugs a raw image in as a disk, in a machine that was started with one at least.
///
/// # Errors
/// QEMU refuses.
pub fn plug(monitor: &Path, serial: &str, image: &Path) -> Result<(), QmpError> {
    let file = json!({"driver": "file", "filename": image});
    let node = format!("node-{serial}");
    let drive = json!({"node-name": node, "driver": "raw", "file": file});
    execute_with(monitor, "blockdev-add", &drive)?;
    let device = json!({"driver": "scsi-hd", "id": id(serial), "drive": node, "serial": serial,
        "bus": format!("{CONTROLLER}.0")});
    execute_with(monitor, "device_add", &device).map(drop)
}
