//! The machine's disks, and what is on them.
//!
//! A disk is blank only when nothing speaks against it: no partition, no user in the kernel, and
//! zeros everywhere that is looked at, which is the whole first and last mebibyte (boot records, both
//! GPTs, RAID and LVM labels lie there), the places of btrfs' superblock copies, and samples spread
//! over the disk. A disk that cannot be read is not blank.

mod identity;
#[cfg(test)]
mod kinds;
mod signature;
mod superblock;
#[cfg(test)]
mod tests;

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Instant;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, netlink, socket_with};

use crate::encryption::Mapping;
use crate::error::{During, Result};
use crate::luks::Header;
use crate::mkfs;
use crate::pool::LABEL;
use signature::Extent;
pub use superblock::Membership;

pub(crate) const SYS_BLOCK: &str = "/sys/block";
/// Unit of `/sys/block/*/size`.
const SYS_SECTOR: u64 = 512;
const EDGE: u64 = 1 << 20;
const SAMPLE: usize = 4096;
const SAMPLES: u64 = 64;
/// Where btrfs keeps the first copy of its superblock, and by what it is known.
const SECOND_SUPERBLOCK: u64 = 64 << 20;
const MAGIC_AT: u64 = 64;
const MAGIC: &[u8] = b"_BHRfS_M";
const LOST_SUPERBLOCK: &str =
    "a btrfs filesystem whose first superblock is damaged (`btrfs rescue super-recover` makes it again)";
/// Further places that superblocks and headers have copies at: btrfs, ext4, XFS' second group, LUKS 2.
const COPIES: [u64; 6] = [64 << 20, 128 << 20, 256 << 30, 32 << 20, 2 << 20, 4 << 20];

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
    /// Empty where the disk has none.
    pub serial: String,
    /// How it is attached: `virtio`, `NVMe`, `SATA`, `SCSI`, `USB`, `MMC`.
    pub bus: String,
    pub read_only: bool,
    pub removable: bool,
    /// The machine was started from it.
    pub boot: bool,
    /// What the kernel does with it or a part of it.
    pub user: Option<String>,
    /// What it bears; of an encrypted disk that is open, what is behind the encryption.
    pub content: Content,
    /// The device that shows what is behind the encryption of the disk, if that is open: `/dev/dm-0`
    pub mapping: Option<PathBuf>,
}

impl Disk {
    /// The device that has the disk's data.
    pub fn data(&self) -> &Path {
        self.mapping.as_deref().unwrap_or(&self.path)
    }
}

/// What a disk bears. Anything in doubt is [`Content::Foreign`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Blank,
    /// A disk of a pool of this system, not necessarily the one in use.
    Pool(Membership),
    /// The same, as far as can be told while it is closed.
    Encrypted,
    /// What it is, as far as it can be told: `an ext4 filesystem`.
    Foreign(String),
}

/// All disks that stand for hardware (no loop devices, RAM disks, optical drives), by name.
pub fn list() -> Result<Vec<Disk>> {
    list_in(Path::new(SYS_BLOCK), Path::new("/dev"))
}

/// The names of all disks that stand for hardware, sorted; none of them is read.
pub fn names() -> Result<Vec<String>> {
    let mut names = names_in(Path::new(SYS_BLOCK))?;
    names.sort();
    Ok(names)
}

/// The serial number of the disk of a name such as `vda`; empty where it has none.
pub(crate) fn serial(name: &str) -> String {
    identity::serial(&Path::new(SYS_BLOCK).join(name))
}

fn list_in(sys_block: &Path, dev: &Path) -> Result<Vec<Disk>> {
    let mut names = names_in(sys_block)?;
    names.sort();
    let disks = names.into_iter();
    Ok(disks
        .map(|name| read_disk(&sys_block.join(&name), dev, name))
        .collect())
}

fn names_in(sys_block: &Path) -> Result<Vec<String>> {
    let what = || format!("list the disks in {}", sys_block.display());
    let entries = match fs::read_dir(sys_block) {
        Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.during(what())?,
    };
    let mut names = Vec::new();
    for entry in entries {
        let entry = entry.during(what())?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let optical = name.starts_with("sr") || name.starts_with("fd");
        // Only hardware has a `device`; loop, RAM and device-mapper disks have none.
        if !optical && entry.path().join("device").exists() {
            names.push(name);
        }
    }
    Ok(names)
}

fn read_disk(sysfs: &Path, dev: &Path, name: String) -> Disk {
    let path = dev.join(&name);
    let size = identity::text(sysfs, "size").parse::<u64>().unwrap_or(0) * SYS_SECTOR;
    let mapping = Mapping::of(&name).map(|mapping| mapping.path);
    let mut user = match &mapping {
        Some(mapping) => busy(mapping),
        None => in_use(sysfs).or_else(|| busy(&path)),
    };
    let mut boot = false;
    let content = match File::open(&path) {
        Ok(file) => {
            boot = identity::is_boot_medium(&file, size);
            match &mapping {
                Some(mapping) => inspect_opened(mapping),
                None => inspect(&file, size),
            }
        }
        Err(reason) => Content::Foreign(format!("something that cannot be read ({reason})")),
    };
    let content = match (content, &user, has_partitions(sysfs)) {
        (Content::Blank, Some(user), _) => Content::Foreign(user.clone()),
        (Content::Blank, None, true) => Content::Foreign("partitions".to_owned()),
        (content, _, _) => content,
    };
    if boot {
        user.get_or_insert_with(|| "what this machine was started from".to_owned());
    }
    Disk {
        size,
        model: identity::model(sysfs),
        serial: identity::serial(sysfs),
        bus: identity::bus(sysfs).to_owned(),
        read_only: identity::text(sysfs, "ro") != "0",
        removable: identity::text(sysfs, "removable") != "0",
        boot,
        user,
        content,
        mapping,
        path,
        name,
    }
}

fn inspect_opened(mapping: &Path) -> Content {
    let looked = File::open(mapping).and_then(|file| look(&file, sys::block::size(&file)?));
    looked.unwrap_or_else(|reason| Content::Foreign(format!("something that cannot be read ({reason})")))
}

/// Opens a disk as its only user, which fails while it or a part of it is mounted or swapped to.
pub(crate) fn open_alone(path: &Path, write: bool) -> io::Result<File> {
    File::options()
        .read(true)
        .write(write)
        .custom_flags(rustix::fs::OFlags::EXCL.bits() as i32)
        .open(path)
}

fn busy(path: &Path) -> Option<String> {
    let reason = open_alone(path, false).err()?;
    (reason.kind() == io::ErrorKind::ResourceBusy).then(|| "data in use".to_owned())
}

pub(crate) fn entries(dir: &Path) -> Vec<String> {
    let names = fs::read_dir(dir).into_iter().flatten().flatten();
    names
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

/// What the kernel already does with the disk or a part of it.
fn in_use(sysfs: &Path) -> Option<String> {
    let holders = entries(&sysfs.join("holders"));
    holders.first().map(|holder| format!("a part of {holder}"))
}

fn has_partitions(sysfs: &Path) -> bool {
    let is_partition = |entry: &String| sysfs.join(entry).join("partition").exists();
    entries(sysfs).iter().any(is_partition)
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
    let extent = Extent { file, start: 0, size };
    let read = |offset: u64, len: usize| -> io::Result<Vec<u8>> {
        let beyond = || io::Error::from(io::ErrorKind::UnexpectedEof);
        extent.read(offset, len)?.ok_or_else(beyond)
    };
    let edge = |offset: u64| read(offset, EDGE as usize);
    let begin = edge(0)?;
    let superblock = begin
        .get(mkfs::SUPER_OFFSET as usize..)
        .and_then(|rest| rest.get(..mkfs::SUPER_BYTES));
    let ours = |label: &str| label == LABEL || label.starts_with(&format!("{LABEL}-"));
    if let Some(member) = superblock
        .and_then(superblock::read)
        .filter(|member| ours(&member.label))
    {
        return Ok(Content::Pool(member));
    }
    if Header::read(file)?.is_some_and(|header| !header.locks().is_empty()) {
        return Ok(Content::Encrypted);
    }
    let known = signature::names(&extent)?;
    if !known.is_empty() {
        return Ok(Content::Foreign(known.join(" and ")));
    }
    if size > SECOND_SUPERBLOCK + EDGE && read(SECOND_SUPERBLOCK + MAGIC_AT, MAGIC.len())? == MAGIC {
        return Ok(Content::Foreign(LOST_SUPERBLOCK.to_owned()));
    }
    let end = edge(size - EDGE)?;
    let zero = |bytes: &[u8]| bytes.iter().all(|byte| *byte == 0);
    if !zero(&begin) || !zero(&end) {
        return Ok(Content::Foreign("unknown data".to_owned()));
    }
    let last = size - SAMPLE as u64;
    let spread = (1..SAMPLES).map(|part| size / SAMPLES * part / SAMPLE as u64 * SAMPLE as u64);
    for offset in COPIES.into_iter().chain(spread).filter(|offset| *offset <= last) {
        if !zero(&read(offset, SAMPLE)?) {
            return Ok(Content::Foreign(format!("unknown data at byte {offset}")));
        }
    }
    Ok(Content::Blank)
}

/// Takes notice of devices that come or go after it was made (`kobject_uevent` over netlink(7)). The
/// kernel tells of a disk when all that it shows of it is there, which a new name in `/dev` does not mean.
#[derive(Debug)]
pub struct Changes(OwnedFd);

impl Changes {
    pub fn watch() -> Result<Changes> {
        /// The kernel's own group; the other one is of udev, which is not here.
        const KERNEL: u32 = 1;
        let what = "listen for devices";
        let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
        let kind = SocketType::DGRAM;
        let protocol = Some(netlink::KOBJECT_UEVENT);
        let socket = socket_with(AddressFamily::NETLINK, kind, flags, protocol).during(what)?;
        bind(&socket, &netlink::SocketAddrNetlink::new(0, KERNEL)).during(what)?;
        Ok(Changes(socket))
    }

    /// Waits until a disk, or a part of one, has come, gone or changed; false when that was not so before
    /// the deadline, if there is one.
    pub fn wait(&self, deadline: Option<Instant>) -> Result<bool> {
        loop {
            match self.next(deadline)? {
                Some(false) => {}
                found => return Ok(found.is_some()),
            }
        }
    }

    /// The same of devices of any kind: while the kernel finds controllers, hubs and ports, disks may come.
    pub(crate) fn wait_for_any(&self, deadline: Instant) -> Result<bool> {
        Ok(self.next(Some(deadline))?.is_some())
    }

    /// Whether there was a disk among what has changed; none where nothing has before the deadline.
    fn next(&self, deadline: Option<Instant>) -> Result<Option<bool>> {
        let what = "wait for devices";
        let limit = match deadline {
            None => None,
            Some(deadline) => {
                let limit = deadline.saturating_duration_since(Instant::now());
                Some(Timespec::try_from(limit).map_err(io::Error::other).during(what)?)
            }
        };
        let mut asked = [PollFd::new(&self.0, PollFlags::IN)];
        match poll(&mut asked, limit.as_ref()) {
            Err(rustix::io::Errno::INTR) => return Ok(Some(true)),
            Ok(0) => return Ok(None),
            other => drop(other.during(what)?),
        }
        let mut disks = false;
        let mut buffer = [0; 4096];
        loop {
            match rustix::io::read(&self.0, &mut buffer) {
                Ok(length) => disks |= is_of_disk(buffer.get(..length).unwrap_or_default()),
                Err(rustix::io::Errno::AGAIN) => return Ok(Some(disks)),
                Err(rustix::io::Errno::INTR) => {}
                // There was more than the kernel keeps.
                Err(rustix::io::Errno::NOBUFS) => disks = true,
                Err(reason) => return Err(crate::Error::io(what, reason)),
            }
        }
    }
}

/// Whether a message of the kernel, which is of words that end with a null, tells of a disk or a partition.
fn is_of_disk(message: &[u8]) -> bool {
    message
        .split(|byte| *byte == 0)
        .any(|word| word == b"SUBSYSTEM=block")
}

/// Makes a disk blank where labels and tables lie, so that nothing of what it bore is found again.
///
/// # Errors
/// The disk is in use, or cannot be written.
pub(crate) fn wipe(disk: &Disk) -> Result<()> {
    let what = || format!("erase {}", disk.path.display());
    if let Some(mapping) = Mapping::of(&disk.name) {
        mapping.close()?;
    }
    let file = open_alone(&disk.path, true).during(what())?;
    let zeros = vec![0; EDGE as usize];
    let last = disk.size.saturating_sub(EDGE);
    for offset in COPIES
        .into_iter()
        .chain([0, last])
        .filter(|offset| *offset <= last)
    {
        let part = if matches!(offset, 0) || offset == last {
            EDGE as usize
        } else {
            SAMPLE
        };
        file.write_all_at(zeros.get(..part).unwrap_or_default(), offset)
            .during(what())?;
    }
    file.sync_all().during(what())?;
    // Where there were none this may fail, and nothing is lost by it.
    let _ = sys::block::reread_partitions(&file);
    Ok(())
}
