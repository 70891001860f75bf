//! The machine's disks, and what is on them.
//!
//! A disk is blank only when nothing speaks against it: no partition, no user in the kernel, and
//! zeros everywhere that is looked at, which is the whole first and last mebibyte (boot records, both
//! GPTs, RAID and LVM labels lie there), the places of btrfs' superblock copies, and samples spread
//! over the disk. A disk that cannot be read is not blank.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use crate::error::{During, Result};
use crate::mkfs;
use crate::pool::LABEL;

const SYS_BLOCK: &str = "/sys/block";
/// Unit of `/sys/block/*/size`.
const SYS_SECTOR: u64 = 512;
const EDGE: u64 = 1 << 20;
const SAMPLE: usize = 4096;
const SAMPLES: u64 = 64;
/// Further places that filesystems keep copies of their superblocks at: btrfs, ext4, XFS' second group.
const COPIES: [u64; 4] = [64 << 20, 128 << 20, 256 << 30, 32 << 20];

/// A whole disk of real hardware.
#[derive(Debug, Clone)]
pub struct Disk {
    /// `/dev/vda`
    pub path: PathBuf,
    /// `vda`
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub model: String,
    pub serial: String,
    pub read_only: bool,
    pub removable: bool,
    pub content: Content,
}

/// What a disk bears. Anything in doubt is [`Content::Foreign`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Blank,
    Pool {
        uuid: String,
        label: String,
    },
    /// What it is, as far as it can be told: `an ext2, ext3 or ext4 filesystem`.
    Foreign(String),
}

/// All disks that stand for hardware (no loop devices, RAM disks, optical drives), by name.
pub fn list() -> Result<Vec<Disk>> {
    list_in(Path::new(SYS_BLOCK), Path::new("/dev"))
}

fn list_in(sys_block: &Path, dev: &Path) -> Result<Vec<Disk>> {
    let what = || format!("list the disks in {}", sys_block.display());
    let entries = match fs::read_dir(sys_block) {
        Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during(what())?,
    };
    let mut disks = Vec::new();
    for entry in entries {
        let entry = entry.during(what())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let optical = name.starts_with("sr") || name.starts_with("fd");
        // Only hardware has a `device`; loop, RAM and device-mapper disks have none.
        if optical || !entry.path().join("device").exists() {
            continue;
        }
        disks.push(read_disk(&entry.path(), dev, name));
    }
    disks.sort_by(|a, b| a.name.cmp(&b.name));
    Ok(disks)
}

fn read_disk(sysfs: &Path, dev: &Path, name: String) -> Disk {
    let text = |file: &str| {
        fs::read_to_string(sysfs.join(file))
            .map(|text| text.trim().to_owned())
            .unwrap_or_default()
    };
    let first = |files: &[&str]| {
        files
            .iter()
            .map(|file| text(file))
            .find(|t| !t.is_empty())
            .unwrap_or_default()
    };
    let path = dev.join(&name);
    let size = text("size").parse::<u64>().unwrap_or(0) * SYS_SECTOR;
    let content = match in_use(sysfs) {
        Some(use_) => Content::Foreign(use_),
        None => match open_alone(&path) {
            Ok(file) => inspect(&file, size),
            Err(reason) if reason.kind() == io::ErrorKind::ResourceBusy => {
                Content::Foreign("data in use".to_owned())
            }
            Err(reason) => Content::Foreign(format!("something that cannot be read ({reason})")),
        },
    };
    Disk {
        size,
        model: first(&["device/model"]),
        serial: first(&["serial", "device/serial"]),
        read_only: text("ro") != "0",
        removable: text("removable") != "0",
        content,
        path,
        name,
    }
}

/// Opens a disk for reading as its only user, which fails while it is mounted or swapped to.
fn open_alone(path: &Path) -> io::Result<File> {
    File::options()
        .read(true)
        .custom_flags(rustix::fs::OFlags::EXCL.bits() as i32)
        .open(path)
}

/// What the kernel already does with the disk or a part of it.
fn in_use(sysfs: &Path) -> Option<String> {
    let entries = |dir: &Path| -> Vec<String> {
        let names = fs::read_dir(dir).into_iter().flatten().flatten();
        names
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    if let Some(holder) = entries(&sysfs.join("holders")).first() {
        return Some(format!("a part of {holder}"));
    }
    if entries(sysfs)
        .iter()
        .any(|entry| sysfs.join(entry).join("partition").exists())
    {
        return Some("partitions".to_owned());
    }
    None
}

/// What `file`, a disk or an image of one, bears in its `size` bytes.
pub fn inspect(file: &File, size: u64) -> Content {
    match look(file, size) {
        Ok(content) => content,
        Err(reason) => Content::Foreign(format!("something that cannot be read ({reason})")),
    }
}

fn look(file: &File, size: u64) -> io::Result<Content> {
    if size < 2 * EDGE {
        return Ok(Content::Foreign("less than 2 MiB of space".to_owned()));
    }
    let edge = |offset: u64| -> io::Result<Vec<u8>> {
        let mut bytes = vec![0; EDGE as usize];
        file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    };
    let begin = edge(0)?;
    let superblock = begin
        .get(mkfs::SUPER_OFFSET as usize..)
        .and_then(|rest| rest.get(..mkfs::SUPER_BYTES));
    if let Some((uuid, label)) = superblock.and_then(mkfs::recognise) {
        return Ok(if label == LABEL || label.starts_with(&format!("{LABEL}-")) {
            Content::Pool { uuid, label }
        } else {
            Content::Foreign("a btrfs filesystem".to_owned())
        });
    }
    let end = edge(size - EDGE)?;
    if let Some(known) = known_content(&begin, &end) {
        return Ok(Content::Foreign(known.to_owned()));
    }
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if !zero(&begin) || !zero(&end) {
        return Ok(Content::Foreign("unknown data".to_owned()));
    }
    let last = size - SAMPLE as u64;
    let spread = (1..SAMPLES).map(|part| size / SAMPLES * part / SAMPLE as u64 * SAMPLE as u64);
    let mut sample = [0; SAMPLE];
    for offset in COPIES.into_iter().chain(spread).filter(|offset| *offset <= last) {
        file.read_exact_at(&mut sample, offset)?;
        if !zero(&sample) {
            return Ok(Content::Foreign(format!("unknown data at byte {offset}")));
        }
    }
    Ok(Content::Blank)
}

/// Names what is found, for the person who wonders why a disk was passed over.
fn known_content(begin: &[u8], end: &[u8]) -> Option<&'static str> {
    let has = |bytes: &[u8], offset: usize, magic: &[u8]| {
        bytes.get(offset..).is_some_and(|rest| rest.starts_with(magic))
    };
    let table: [(usize, &[u8], &str); 14] = [
        (512, b"EFI PART", "a GPT partition table"),
        (4096, b"EFI PART", "a GPT partition table"),
        (1080, &[0x53, 0xef], "an ext2, ext3 or ext4 filesystem"),
        (0, b"XFSB", "an XFS filesystem"),
        (0, b"LUKS", "LUKS encrypted data"),
        (512, b"LABELONE", "an LVM volume"),
        (32_769, b"CD001", "an ISO 9660 filesystem"),
        (0, b"hsqs", "a squashfs filesystem"),
        (3, b"NTFS", "an NTFS filesystem"),
        (3, b"EXFAT", "an exFAT filesystem"),
        (82, b"FAT32", "a FAT filesystem"),
        (4086, b"SWAPSPACE2", "swap space"),
        (4096, &[0xfc, 0x4e, 0x2b, 0xa9], "a part of a RAID"),
        (0, &[0xfc, 0x4e, 0x2b, 0xa9], "a part of a RAID"),
    ];
    if let Some((_, _, name)) = table.iter().find(|(offset, magic, _)| has(begin, *offset, magic)) {
        return Some(name);
    }
    let backup = |sector: usize| has(end, end.len().saturating_sub(sector), b"EFI PART");
    if backup(512) || backup(4096) {
        return Some("the backup of a GPT partition table");
    }
    has(begin, 510, &[0x55, 0xaa]).then_some("a boot record")
}

#[cfg(test)]
mod tests {
    use super::*;

    const SIZE: u64 = 256 << 20;

    fn image(at: &[(u64, &[u8])]) -> File {
        let file = tempfile::tempfile().unwrap();
        file.set_len(SIZE).unwrap();
        for (offset, bytes) in at {
            file.write_all_at(bytes, *offset).unwrap();
        }
        file
    }

    #[test]
    fn a_disk_of_zeros_is_blank() {
        assert_eq!(inspect(&image(&[]), SIZE), Content::Blank);
    }

    #[test]
    fn a_single_byte_at_either_end_makes_a_disk_foreign() {
        for offset in [0, 1, 511, EDGE - 1, SIZE - EDGE, SIZE - 1, 64 << 20, SIZE / 2] {
            let content = inspect(&image(&[(offset, &[1])]), SIZE);
            assert!(
                matches!(content, Content::Foreign(_)),
                "byte {offset} was overlooked"
            );
        }
    }

    #[test]
    fn known_content_is_named() {
        let table: [(u64, &[u8], &str); 6] = [
            (512, b"EFI PART", "GPT"),
            (SIZE - 512, b"EFI PART", "backup of a GPT"),
            (1080, &[0x53, 0xef], "ext4"),
            (0, b"XFSB", "XFS"),
            (0, b"LUKS\xba\xbe", "LUKS"),
            (510, &[0x55, 0xaa], "boot record"),
        ];
        for (offset, magic, name) in table {
            match inspect(&image(&[(offset, magic)]), SIZE) {
                Content::Foreign(text) => assert!(text.contains(name), "{text} for {name}"),
                other => panic!("{name} was taken for {other:?}"),
            }
        }
    }

    #[test]
    fn a_pool_is_told_from_another_btrfs() {
        for (label, ours) in [
            ("monobloc", true),
            ("monobloc-2", true),
            ("data", false),
            ("", false),
            ("monoblock", false),
        ] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            File::create(&path).unwrap().set_len(SIZE).unwrap();
            mkfs::write(&path, label).unwrap();
            let content = inspect(&File::open(&path).unwrap(), SIZE);
            assert_eq!(matches!(content, Content::Pool { .. }), ours, "label `{label}`");
            assert_eq!(matches!(content, Content::Foreign(_)), !ours, "label `{label}`");
        }
    }

    #[test]
    fn a_disk_that_cannot_be_read_is_not_blank() {
        assert!(matches!(inspect(&image(&[]), SIZE + 1), Content::Foreign(_)));
    }

    #[test]
    fn disks_are_read_from_sysfs_with_their_users() {
        let dir = tempfile::tempdir().unwrap();
        let (sys, dev) = (dir.path().join("block"), dir.path().join("dev"));
        fs::create_dir_all(&dev).unwrap();
        for name in ["tda", "tdb", "tdc", "loop0", "sr0"] {
            let folder = sys.join(name);
            fs::create_dir_all(folder.join("holders")).unwrap();
            if name != "loop0" {
                fs::create_dir_all(folder.join("device")).unwrap();
            }
            for (file, text) in [("size", "524288\n"), ("ro", "0\n"), ("removable", "0\n")] {
                fs::write(folder.join(file), text).unwrap();
            }
            File::create(dev.join(name)).unwrap().set_len(SIZE).unwrap();
        }
        fs::create_dir_all(sys.join("tdb/tdb1")).unwrap();
        fs::write(sys.join("tdb/tdb1/partition"), "1\n").unwrap();
        fs::write(sys.join("tdc/holders/dm-0"), "").unwrap();
        let disks = list_in(&sys, &dev).unwrap();
        let contents: Vec<(&str, &Content)> = disks
            .iter()
            .map(|disk| (disk.name.as_str(), &disk.content))
            .collect();
        assert_eq!(disks[0].size, SIZE);
        assert_eq!(
            contents,
            [
                ("tda", &Content::Blank),
                ("tdb", &Content::Foreign("partitions".to_owned())),
                ("tdc", &Content::Foreign("a part of dm-0".to_owned())),
            ]
        );
    }
}
