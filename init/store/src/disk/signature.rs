//! What bytes on a disk belong to: partition tables, filesystems and the labels of those who use disks
//! without any.
//!
//! A table of magic numbers (offset, bytes, name), as libblkid's sources and the formats' documents
//! give them, and a few formats that need more than that. Nothing that is read is trusted: a number
//! that leads out of the disk leads nowhere.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

/// A disk or a partition of one, open for reading.
#[derive(Debug, Clone, Copy)]
pub(super) struct Extent<'a> {
    pub(super) file: &'a File,
    /// Byte of the file at which it begins.
    pub(super) start: u64,
    /// Bytes.
    pub(super) size: u64,
}

/// A mark that tells by itself what is there.
struct Mark {
    offset: u64,
    magic: &'static [u8],
    name: &'static str,
    /// Offset and length of the name that its owner gave it; length 0 where there is none.
    label: (u64, usize),
}

const fn mark(offset: u64, magic: &'static [u8], name: &'static str) -> Mark {
    labelled(offset, magic, name, (0, 0))
}

const fn labelled(offset: u64, magic: &'static [u8], name: &'static str, label: (u64, usize)) -> Mark {
    Mark {
        offset,
        magic,
        name,
        label,
    }
}

const LUKS: &str = "LUKS encrypted data";
const SWAP: &str = "swap space";
const BCACHEFS: &[u8] = b"\xc6\x85\x73\xf6\x66\xce\x90\xa9\xd9\x6a\x60\xcf\x80\x3d\xf7\xef";
const BCACHE: &[u8] = b"\xc6\x85\x73\xf6\x4e\x1a\x45\xca\x82\x65\xf5\x7f\x48\xba\x6d\x81";
/// Where LUKS2 may keep its second header (its on-disk format, section 2).
const SECOND_HEADERS: [u64; 9] = [
    0x4000, 0x8000, 0x1_0000, 0x2_0000, 0x4_0000, 0x8_0000, 0x10_0000, 0x20_0000, 0x40_0000,
];

const MARKS: &[Mark] = &[
    labelled(0, b"LUKS\xba\xbe\x00\x02", "LUKS 2 encrypted data", (24, 48)),
    mark(0, b"LUKS\xba\xbe\x00\x01", "LUKS 1 encrypted data"),
    mark(3, b"-FVE-FS-", "BitLocker encrypted data"),
    mark(4096 + 24, BCACHE, "a part of a bcache"),
    mark(4096 + 24, BCACHEFS, "a part of a bcachefs filesystem"),
    mark(0, b"dmvdo001", "a VDO volume"),
    mark(512, b"!Stra0tis\x86\xff\x02^\x41rh", "a part of a Stratis pool"),
    mark(0, b"bluestore block device", "a part of a Ceph cluster"),
    labelled(0, b"XFSB", "an XFS filesystem", (108, 12)),
    labelled(0x1_0040, b"_BHRfS_M", "a btrfs filesystem", (0x1_0000 + 299, 256)),
    labelled(0x1_0034, b"ReIsEr", "a ReiserFS filesystem", (0x1_0000 + 100, 16)),
    mark(0x1_0000, b"\x01\x16\x19\x70", "a GFS2 filesystem"),
    mark(0x8000, b"JFS1", "a JFS filesystem"),
    mark(1024, b"\x10\x20\xf5\xf2", "an F2FS filesystem"),
    mark(1024, b"\xe2\xe1\xf5\xe0", "an EROFS filesystem"),
    mark(1030, b"\x34\x34", "a NILFS2 filesystem"),
    mark(1024, b"H+\x00\x04", "an HFS+ filesystem"),
    mark(32, b"NXSB", "an APFS filesystem"),
    mark(0, b"hsqs", "a squashfs filesystem"),
    labelled(0x8001, b"CD001", "an ISO 9660 filesystem", (0x8028, 32)),
    mark(0x8001, b"BEA01", "a UDF filesystem"),
    mark(3, b"NTFS    ", "an NTFS filesystem"),
    mark(3, b"EXFAT   ", "an exFAT filesystem"),
    labelled(82, b"FAT32   ", "a FAT filesystem", (71, 11)),
    labelled(54, b"FAT16   ", "a FAT filesystem", (43, 11)),
    labelled(54, b"FAT12   ", "a FAT filesystem", (43, 11)),
];

/// Sizes of pages that swap was made for.
const PAGES: [u64; 5] = [4096, 8192, 16_384, 32_768, 65_536];
const SWAPS: [&[u8]; 3] = [b"SWAPSPACE2", b"SWAP-SPACE", b"S1SUSPEND\0"];
const SECTOR: u64 = 512;
const MAX_PARTITIONS: u64 = 128;
/// More than these are counted and not looked at.
const LOOKED_AT: usize = 16;

impl Extent<'_> {
    /// `len` bytes; none where they are not all within.
    pub(super) fn read(&self, offset: u64, len: usize) -> io::Result<Option<Vec<u8>>> {
        let end = offset.checked_add(len as u64);
        let at = self.start.checked_add(offset);
        let (Some(at), true) = (at, end.is_some_and(|end| end <= self.size)) else {
            return Ok(None);
        };
        let mut bytes = vec![0; len];
        self.file.read_exact_at(&mut bytes, at)?;
        Ok(Some(bytes))
    }

    fn has(&self, offset: u64, magic: &[u8]) -> io::Result<bool> {
        Ok(self
            .read(offset, magic.len())?
            .is_some_and(|bytes| bytes == magic))
    }

    fn part(&self, partition: &Partition) -> Option<Self> {
        let end = partition.start.checked_add(partition.size)?;
        (end <= self.size).then_some(Self {
            start: self.start.checked_add(partition.start)?,
            size: partition.size,
            ..*self
        })
    }
}

/// Everything that is recognised, in words; empty where nothing is.
pub(super) fn names(extent: &Extent<'_>) -> io::Result<Vec<String>> {
    let mut found = contents(extent)?;
    if let Some(table) = gpt(extent)? {
        let kind = if table.backup {
            "the backup of a GPT partition table"
        } else {
            "a GPT partition table"
        };
        found.insert(0, described(extent, kind, &table.partitions)?);
    } else if found.iter().all(|name| name.starts_with("an ISO 9660")) {
        let partitions = mbr(extent)?;
        if !partitions.is_empty() {
            found.insert(0, described(extent, "an MBR partition table", &partitions)?);
        } else if found.is_empty() && extent.has(510, &[0x55, 0xaa])? {
            found.push("a boot record".to_owned());
        }
    }
    Ok(found)
}

/// The ids of the partitions of a GPT, as firmware and loaders name them.
pub(super) fn partition_ids(extent: &Extent<'_>) -> io::Result<Vec<String>> {
    let table = gpt(extent)?.map(|table| table.partitions).unwrap_or_default();
    Ok(table.into_iter().map(|partition| partition.id).collect())
}

/// All but partition tables.
fn contents(extent: &Extent<'_>) -> io::Result<Vec<String>> {
    let mut found = Vec::new();
    for mark in MARKS {
        if extent.has(mark.offset, mark.magic)? {
            found.push(with_label(extent, mark.name, mark.label)?);
        }
    }
    if let Some(name) = ext(extent)? {
        found.push(name);
    }
    for (name, there) in [
        (LUKS, found.is_empty() && second_luks_header(extent)?),
        ("an LVM physical volume", lvm(extent)?),
        ("a part of a RAID", raid(extent)?),
        ("a part of a ZFS pool", zfs(extent)?),
    ] {
        if there {
            found.push(name.to_owned());
        }
    }
    for page in PAGES {
        for magic in SWAPS {
            if extent.has(page - 10, magic)? {
                found.push(with_label(extent, SWAP, (1052, 16))?);
            }
        }
    }
    Ok(found)
}

fn with_label(extent: &Extent<'_>, name: &str, (offset, len): (u64, usize)) -> io::Result<String> {
    let bytes = extent.read(offset, len)?.unwrap_or_default();
    let label: String = bytes
        .iter()
        .take_while(|byte| (0x20..0x7f).contains(*byte))
        .map(|byte| char::from(*byte))
        .collect();
    let label = label.trim();
    Ok(match label {
        "" | "NO NAME" => name.to_owned(),
        label => format!("{name} called `{label}`"),
    })
}

/// ext2 to ext4 (kernel, `Documentation/filesystems/ext4/super.rst`).
fn ext(extent: &Extent<'_>) -> io::Result<Option<String>> {
    const SUPER: u64 = 1024;
    const HAS_JOURNAL: u32 = 0x4;
    const JOURNAL_DEVICE: u32 = 0x8;
    /// Features that ext3 does not have.
    const INCOMPAT_EXT4: u32 = 0x40 | 0x80 | 0x200 | 0x400 | 0x1000 | 0x2000 | 0x4000 | 0x8000 | 0x1_0000;
    const RO_COMPAT_EXT4: u32 = 0x8 | 0x10 | 0x20 | 0x40 | 0x400;
    if !extent.has(SUPER + 56, &[0x53, 0xef])? {
        return Ok(None);
    }
    let word = |offset| -> io::Result<u32> {
        let bytes = extent.read(SUPER + offset, 4)?;
        Ok(bytes.map_or(0, |bytes| u32_at(&bytes, 0)))
    };
    let (compat, incompat, ro_compat) = (word(92)?, word(96)?, word(100)?);
    let name = if incompat & JOURNAL_DEVICE != 0 {
        "the journal of an ext4 filesystem"
    } else if incompat & INCOMPAT_EXT4 != 0 || ro_compat & RO_COMPAT_EXT4 != 0 {
        "an ext4 filesystem"
    } else if compat & HAS_JOURNAL != 0 {
        "an ext3 filesystem"
    } else {
        "an ext2 filesystem"
    };
    with_label(extent, name, (SUPER + 120, 16)).map(Some)
}

fn second_luks_header(extent: &Extent<'_>) -> io::Result<bool> {
    any(SECOND_HEADERS, |offset| extent.has(offset, b"SKUL\xba\xbe"))
}

/// LVM2 keeps its label in one of the first four sectors.
fn lvm(extent: &Extent<'_>) -> io::Result<bool> {
    any(0..4, |sector| {
        Ok(extent.has(sector * SECTOR, b"LABELONE")? && extent.has(sector * SECTOR + 24, b"LVM2 001")?)
    })
}

/// Linux RAID in all versions of its superblock (md(4)), and what firmware makes.
fn raid(extent: &Extent<'_>) -> io::Result<bool> {
    const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    const SWAPPED: [u8; 4] = [0xa9, 0x2b, 0x4e, 0xfc];
    const RESERVED: u64 = 64 << 10;
    let sectors = extent.size / SECTOR;
    let version_1_0 = (sectors.saturating_sub(16) & !7) * SECTOR;
    let version_0_90 = (extent.size & !(RESERVED - 1)).saturating_sub(RESERVED);
    let md = any([0, 4096, version_1_0, version_0_90], |offset| {
        Ok(extent.has(offset, &MAGIC)? || (offset == version_0_90 && extent.has(offset, &SWAPPED)?))
    })?;
    let from_end = |bytes: u64| extent.size.saturating_sub(bytes);
    Ok(md
        || extent.has(from_end(SECTOR), &[0xde, 0x11, 0xde, 0x11])?
        || extent.has(from_end(2 * SECTOR), b"Intel Raid ISM Cfg Sig. ")?)
}

/// Four labels of 256 KiB, two at each end; the second half of each is a ring of uberblocks.
fn zfs(extent: &Extent<'_>) -> io::Result<bool> {
    const LABEL: u64 = 256 << 10;
    const RING: u64 = 128 << 10;
    const STEP: usize = 1024;
    const MAGIC: u64 = 0x00ba_b10c;
    let end = extent.size & !(LABEL - 1);
    any(
        [0, LABEL, end.saturating_sub(2 * LABEL), end.saturating_sub(LABEL)],
        |label| {
            let ring = extent.read(label + RING, RING as usize)?.unwrap_or_default();
            Ok(ring.chunks(STEP).any(|block| {
                block
                    .get(..8)
                    .is_some_and(|word| word == MAGIC.to_le_bytes() || word == MAGIC.to_be_bytes())
            }))
        },
    )
}

fn any<T>(of: impl IntoIterator<Item = T>, mut is: impl FnMut(T) -> io::Result<bool>) -> io::Result<bool> {
    for one in of {
        if is(one)? {
            return Ok(true);
        }
    }
    Ok(false)
}

struct Partition {
    /// Lower case, with hyphens; empty in an MBR.
    id: String,
    /// Bytes.
    start: u64,
    size: u64,
}

struct Gpt {
    /// Only the copy at the disk's end is there.
    backup: bool,
    partitions: Vec<Partition>,
}

/// A GPT (UEFI specification, section 5.3), for sectors of either size.
fn gpt(extent: &Extent<'_>) -> io::Result<Option<Gpt>> {
    for sector in [512, 4096] {
        for (backup, at) in [(false, sector), (true, extent.size.saturating_sub(sector))] {
            let header = extent.read(at, 92)?.unwrap_or_default();
            if header.starts_with(b"EFI PART") {
                let partitions = gpt_entries(extent, sector, &header)?;
                return Ok(Some(Gpt { backup, partitions }));
            }
        }
    }
    Ok(None)
}

fn gpt_entries(extent: &Extent<'_>, sector: u64, header: &[u8]) -> io::Result<Vec<Partition>> {
    let (first, count, size) = (u64_at(header, 72), u32_at(header, 80), u32_at(header, 84));
    if !(128..=4096).contains(&size) {
        return Ok(Vec::new());
    }
    let mut partitions = Vec::new();
    for index in 0..u64::from(count).min(MAX_PARTITIONS) {
        let at = first
            .saturating_mul(sector)
            .saturating_add(index * u64::from(size));
        let Some(entry) = extent.read(at, 128)? else { break };
        if entry.iter().take(16).all(|byte| *byte == 0) {
            continue;
        }
        let (from, to) = (u64_at(&entry, 32), u64_at(&entry, 40));
        partitions.push(Partition {
            id: guid(entry.get(16..32).unwrap_or_default()),
            start: from.saturating_mul(sector),
            size: to.saturating_sub(from).saturating_add(1).saturating_mul(sector),
        });
    }
    Ok(partitions)
}

/// The first three fields are little-endian (UEFI specification, appendix A).
fn guid(bytes: &[u8]) -> String {
    const ORDER: [usize; 16] = [3, 2, 1, 0, 5, 4, 7, 6, 8, 9, 10, 11, 12, 13, 14, 15];
    let mut text = String::new();
    for (index, from) in ORDER.into_iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{:02x}", bytes.get(from).copied().unwrap_or(0)));
    }
    text
}

/// The partitions of an MBR; none where it is not one, or protects a GPT.
fn mbr(extent: &Extent<'_>) -> io::Result<Vec<Partition>> {
    const PROTECTIVE: u8 = 0xee;
    let block = extent.read(0, 512)?.unwrap_or_default();
    if !block.ends_with(&[0x55, 0xaa]) {
        return Ok(Vec::new());
    }
    let entries = block.get(446..510).unwrap_or_default().chunks(16);
    if entries
        .clone()
        .any(|entry| !matches!(entry.first(), Some(0 | 0x80)))
    {
        return Ok(Vec::new());
    }
    Ok(entries
        .filter(|entry| !matches!(entry.get(4), Some(0 | &PROTECTIVE)))
        .map(|entry| Partition {
            id: String::new(),
            start: u64::from(u32_at(entry, 8)) * SECTOR,
            size: u64::from(u32_at(entry, 12)) * SECTOR,
        })
        .filter(|partition| partition.size > 0)
        .collect())
}

/// A partition table with what its partitions bear.
fn described(extent: &Extent<'_>, kind: &str, partitions: &[Partition]) -> io::Result<String> {
    if partitions.is_empty() {
        return Ok(format!("{kind} without partitions"));
    }
    let mut within = Vec::new();
    for part in partitions
        .iter()
        .take(LOOKED_AT)
        .filter_map(|one| extent.part(one))
    {
        within.extend(contents(&part)?);
    }
    let count = partitions.len();
    let plural = if count == 1 { "" } else { "s" };
    let within = match within.as_slice() {
        [] => String::new(),
        names => format!(" ({})", names.join(", ")),
    };
    Ok(format!("{kind} with {count} partition{plural}{within}"))
}

fn u32_at(bytes: &[u8], at: usize) -> u32 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u32::from_le_bytes(*field))
}

fn u64_at(bytes: &[u8], at: usize) -> u64 {
    let field = bytes.get(at..).and_then(|rest| rest.first_chunk());
    field.map_or(0, |field| u64::from_le_bytes(*field))
}
