//! Who a disk is, as sysfs tells it: model, serial number, bus, and whether the machine was started
//! from it.

use std::fs::{self, File};
use std::path::Path;

use super::signature::{self, Extent};

/// The partition that a UEFI boot stub was started from: four bytes of attributes, then its id in
/// UTF-16 (systemd's Boot Loader Interface).
const LOADER_PARTITION: &str =
    "/sys/firmware/efi/efivars/LoaderDevicePartUUID-4a67b082-0a4c-41cf-b6c7-442b29bb8c4f";

/// A file of sysfs without the blanks around it; empty where it is not there.
pub(super) fn text(sysfs: &Path, file: &str) -> String {
    let bytes = fs::read(sysfs.join(file)).unwrap_or_default();
    printable(&bytes)
}

fn printable(bytes: &[u8]) -> String {
    let text: String = String::from_utf8_lossy(bytes)
        .chars()
        .filter(|c| !c.is_control())
        .collect();
    text.trim().to_owned()
}

pub(super) fn model(sysfs: &Path) -> String {
    let vendor = text(sysfs, "device/vendor");
    let model = text(sysfs, "device/model");
    // ATA disks have no vendor, virtio disks a number in its place.
    match vendor.as_str() {
        "" | "ATA" => model,
        number if number.starts_with("0x") => model,
        vendor => format!("{vendor} {model}").trim().to_owned(),
    }
}

pub(super) fn serial(sysfs: &Path) -> String {
    /// Page code and length (SPC-4, section 7.8.15).
    const PAGE_HEADER: usize = 4;
    let named = ["serial", "device/serial"].map(|file| text(sysfs, file));
    let page = fs::read(sysfs.join("device/vpd_pg80")).unwrap_or_default();
    let page = printable(page.get(PAGE_HEADER..).unwrap_or_default());
    named
        .into_iter()
        .chain([page])
        .find(|serial| !serial.is_empty())
        .unwrap_or_default()
}

pub(super) fn bus(sysfs: &Path) -> &'static str {
    let path = fs::canonicalize(sysfs.join("device")).unwrap_or_default();
    let path = path.to_string_lossy();
    // The nearest bus comes last in the path, and a disk behind USB is also a SCSI disk.
    [
        ("/usb", "USB"),
        ("/nvme", "NVMe"),
        ("/mmc", "MMC"),
        ("/ata", "SATA"),
        ("/host", "SCSI"),
        ("/virtio", "virtio"),
        ("/vbd-", "Xen"),
    ]
    .into_iter()
    .find_map(|(part, name)| path.contains(part).then_some(name))
    .unwrap_or("unknown")
}

/// Whether one of the disk's partitions is the one that the firmware started the image from.
pub(super) fn is_boot_medium(file: &File, size: u64) -> bool {
    let Some(id) = fs::read(LOADER_PARTITION)
        .ok()
        .and_then(|bytes| partition_id(&bytes))
    else {
        return false;
    };
    let ids = signature::partition_ids(&Extent { file, start: 0, size });
    ids.unwrap_or_default().contains(&id)
}

fn partition_id(variable: &[u8]) -> Option<String> {
    let units: Vec<u16> = variable
        .get(4..)?
        .chunks_exact(2)
        .filter_map(|pair| pair.first_chunk().map(|pair| u16::from_le_bytes(*pair)))
        .take_while(|unit| *unit != 0)
        .collect();
    Some(String::from_utf16_lossy(&units).to_lowercase())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_known_by_what_sysfs_tells() {
        let dir = tempfile::tempdir().unwrap();
        let disk = |place: &str, files: &[(&str, &[u8])]| {
            let device = dir.path().join(place);
            fs::create_dir_all(&device).unwrap();
            let block = device.join("block");
            fs::create_dir_all(&block).unwrap();
            std::os::unix::fs::symlink(&device, block.join("device")).unwrap();
            for (name, content) in files {
                fs::write(block.join(name), content).unwrap();
            }
            (model(&block), serial(&block), bus(&block))
        };
        let told = |model: &str, serial: &str, bus| (model.to_owned(), serial.to_owned(), bus);
        assert_eq!(
            disk(
                "pci0/virtio3",
                &[("serial", b"left\n"), ("device/vendor", b"0x1af4\n")]
            ),
            told("", "left", "virtio")
        );
        let page: &[u8] = b"\x00\x80\x00\x05right";
        assert_eq!(
            disk(
                "pci0/virtio2/host0/target0:0:0",
                &[
                    ("device/vpd_pg80", page),
                    ("device/vendor", b"QEMU    \n"),
                    ("device/model", b"QEMU HARDDISK   \n")
                ]
            ),
            told("QEMU QEMU HARDDISK", "right", "SCSI")
        );
        assert_eq!(
            disk(
                "pci0/nvme/nvme0",
                &[("device/serial", b"S4 \n"), ("device/model", b"Fast\n")]
            ),
            told("Fast", "S4", "NVMe")
        );
        assert_eq!(disk("pci0/usb1/1-1/host4/target4", &[]).2, "USB");
    }

    #[test]
    fn the_loaders_partition_is_read_from_its_variable() {
        let mut variable = vec![6, 0, 0, 0];
        variable.extend("4A67-B0\0".encode_utf16().flat_map(u16::to_le_bytes));
        assert_eq!(partition_id(&variable).as_deref(), Some("4a67-b0"));
        assert_eq!(partition_id(b"abc"), None);
    }
}
