//! The devices of a mounted btrfs by ioctl (`linux/btrfs.h`): which there are, how they fare, and
//! their coming and going.
//!
//! `any` is always some open file or folder of the filesystem. What takes long (removal, replacement,
//! balance, scrub) returns when it is done; how far it is, another thread asks meanwhile.

use std::ffi::CStr;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use crate::btrfs::{VolArgs, both_request, by_name, check, read_request, write_request};

const CONTROL: &str = "/dev/btrfs-control";
const DEVICE_PATH_NAME_MAX: usize = 1024;
const LABEL_SIZE: usize = 256;
/// `BTRFS_DEVICE_SPEC_BY_ID`.
const SPEC_BY_ID: u64 = 1 << 3;
const STATS: usize = 5;
const REPLACE_START: u64 = 0;
const REPLACE_STATUS: u64 = 1;
/// `BTRFS_IOCTL_DEV_REPLACE_RESULT_NO_ERROR`.
const REPLACE_DONE: u64 = 0;
const BALANCE_DATA: u64 = 1;
const BALANCE_SYSTEM: u64 = 1 << 1;
const BALANCE_METADATA: u64 = 1 << 2;
const BALANCE_FORCE: u64 = 1 << 3;
const ARGS_CONVERT: u64 = 1 << 8;
const ARGS_SOFT: u64 = 1 << 9;
/// More kinds of space than these no filesystem has.
const MAX_SPACES: usize = 32;

/// Bits of a block group's type.
pub mod group {
    pub const DATA: u64 = 1;
    pub const SYSTEM: u64 = 1 << 1;
    pub const METADATA: u64 = 1 << 2;
    pub const RAID1: u64 = 1 << 4;
    pub const DUP: u64 = 1 << 5;
    pub const RAID1C3: u64 = 1 << 9;
    /// All bits that say how often and where a block is kept.
    pub const PROFILES: u64 = 0x7f8;
    /// `single` where a bit is needed for it (the target of a conversion).
    pub const SINGLE: u64 = 1 << 48;
    /// `GlobalReserve`, which is accounted and is no space of its own.
    pub const RESERVE: u64 = 1 << 49;
}

#[repr(C)]
struct FsInfoArgs {
    max_id: u64,
    num_devices: u64,
    fsid: [u8; 16],
    rest: [u8; 992],
}

#[repr(C)]
struct DevInfoArgs {
    devid: u64,
    uuid: [u8; 16],
    bytes_used: u64,
    total_bytes: u64,
    unused: [u64; 379],
    path: [u8; DEVICE_PATH_NAME_MAX],
}

#[repr(C)]
struct DevStatsArgs {
    devid: u64,
    items: u64,
    flags: u64,
    values: [u64; STATS],
    unused: [u64; 121],
}

#[repr(C)]
struct VolArgsV2ById {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    devid: u64,
    rest: [u8; 4032],
}

#[repr(C)]
struct ReplaceArgs {
    cmd: u64,
    result: u64,
    /// A union; the start's parameters, or in its first words the status.
    words: [u64; 2],
    names: [u8; 2 * (DEVICE_PATH_NAME_MAX + 1) + 6],
    spare: [u64; 64],
}

/// `struct btrfs_balance_args`, packed in the header; its natural layout is the same.
#[repr(C)]
#[derive(Clone, Copy)]
struct BalanceFilter {
    before: [u64; 7],
    target: u64,
    flags: u64,
    rest: [u64; 8],
}

#[repr(C)]
struct BalanceArgs {
    flags: u64,
    state: u64,
    data: BalanceFilter,
    metadata: BalanceFilter,
    system: BalanceFilter,
    expected: u64,
    considered: u64,
    completed: u64,
    unused: [u64; 72],
}

#[repr(C)]
struct ScrubArgs {
    devid: u64,
    start: u64,
    end: u64,
    flags: u64,
    progress: [u64; 15],
    unused: [u64; 109],
}

#[repr(C)]
struct SpaceArgs {
    slots: u64,
    total: u64,
    spaces: [[u64; 3]; MAX_SPACES],
}

const _: () = assert!(size_of::<FsInfoArgs>() == 1024 && size_of::<DevInfoArgs>() == 4096);
const _: () = assert!(size_of::<DevStatsArgs>() == 1032 && size_of::<VolArgsV2ById>() == 4096);
const _: () = assert!(size_of::<ReplaceArgs>() == 2600 && size_of::<BalanceArgs>() == 1024);
const _: () = assert!(size_of::<BalanceFilter>() == 136 && size_of::<ScrubArgs>() == 1024);

const SCAN_DEV: libc::c_ulong = write_request(4, size_of::<VolArgs>());
const RESIZE: libc::c_ulong = write_request(3, size_of::<VolArgs>());
const ADD_DEV: libc::c_ulong = write_request(10, size_of::<VolArgs>());
const SPACE_INFO: libc::c_ulong = both_request(20, 16);
const SCRUB: libc::c_ulong = both_request(27, size_of::<ScrubArgs>());
const SCRUB_PROGRESS: libc::c_ulong = both_request(29, size_of::<ScrubArgs>());
const DEV_INFO: libc::c_ulong = both_request(30, size_of::<DevInfoArgs>());
const FS_INFO: libc::c_ulong = read_request(31, size_of::<FsInfoArgs>());
const BALANCE_V2: libc::c_ulong = both_request(32, size_of::<BalanceArgs>());
const BALANCE_PROGRESS: libc::c_ulong = read_request(34, size_of::<BalanceArgs>());
const SET_FSLABEL: libc::c_ulong = write_request(50, LABEL_SIZE);
const GET_DEV_STATS: libc::c_ulong = both_request(52, size_of::<DevStatsArgs>());
const DEV_REPLACE: libc::c_ulong = both_request(53, size_of::<ReplaceArgs>());
const RM_DEV_V2: libc::c_ulong = write_request(58, size_of::<VolArgsV2ById>());

/// A filesystem as a whole.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Filesystem {
    pub fsid: [u8; 16],
    /// The highest id of a device.
    pub max_id: u64,
    /// Devices that belong to it, missing ones too.
    pub devices: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    pub id: u64,
    /// None where the device was missing when the filesystem was mounted.
    pub path: Option<PathBuf>,
    /// Bytes.
    pub size: u64,
    /// Bytes that are given to block groups.
    pub used: u64,
}

/// What has gone wrong on a device since it joined (or since the counters were reset).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Errors {
    pub write: u64,
    pub read: u64,
    pub flush: u64,
    /// Blocks whose checksum was wrong.
    pub corruption: u64,
    /// Blocks of an older generation than they should be.
    pub generation: u64,
}

/// One kind of space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// Bits of [`group`].
    pub kind: u64,
    pub total: u64,
    pub used: u64,
}

/// How far a scrub of one device is, and what it has found.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Scrubbed {
    /// Bytes that were read.
    pub bytes: u64,
    pub read_errors: u64,
    /// Blocks with a wrong checksum or a wrong header.
    pub damaged: u64,
    pub corrected: u64,
    pub uncorrectable: u64,
    pub superblock_errors: u64,
}

/// Tells the kernel of a device with a btrfs, so that a mount finds all devices of it.
pub fn scan(device: &Path) -> io::Result<()> {
    let control = File::options().read(true).write(true).open(CONTROL)?;
    by_name(&control, SCAN_DEV, device.as_os_str().as_bytes())
}

/// Makes `device` a part of the filesystem; the kernel overwrites what it bears.
pub fn add(any: impl AsFd, device: &Path) -> io::Result<()> {
    by_name(any, ADD_DEV, device.as_os_str().as_bytes())
}

/// Lets the filesystem use the whole of a device.
pub fn use_whole(any: impl AsFd, id: u64) -> io::Result<()> {
    by_name(any, RESIZE, format!("{id}:max").as_bytes())
}

/// Moves what lies on a device to the others and lets it go; it may be missing.
pub fn remove(any: impl AsFd, id: u64) -> io::Result<()> {
    let mut args = VolArgsV2ById {
        fd: 0,
        transid: 0,
        flags: SPEC_BY_ID,
        unused: [0; 4],
        devid: id,
        rest: [0; 4032],
    };
    // SAFETY: the request takes a `btrfs_ioctl_vol_args_v2`, which `args` is with the id in its union
    // (size asserted above); the kernel reads it during the call only.
    let result = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), RM_DEV_V2, &raw mut args) };
    if result > 0 {
        // The kernel's `enum btrfs_err_code`: too few devices for what the profiles promise.
        return Err(io::Error::other(format!(
            "the profiles need more devices (btrfs code {result})"
        )));
    }
    check(result)
}

/// Puts `target` in the place of a device, which may be missing. With `avoid_source` the device is read
/// only where no other has the data.
pub fn replace(any: impl AsFd, id: u64, target: &Path, avoid_source: bool) -> io::Result<()> {
    let mut args = replace_args(REPLACE_START);
    args.words = [id, u64::from(avoid_source)];
    let name = target.as_os_str().as_bytes();
    if name.len() > DEVICE_PATH_NAME_MAX || name.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let at = args.names.iter_mut().skip(DEVICE_PATH_NAME_MAX + 1);
    for (to, from) in at.zip(name) {
        *to = *from;
    }
    // SAFETY: the request takes a `btrfs_ioctl_dev_replace_args`, which `args` is (size asserted above)
    // and which lives through the call.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), DEV_REPLACE, &raw mut args) })?;
    match args.result {
        REPLACE_DONE => Ok(()),
        code => Err(io::Error::other(format!(
            "another operation is under way (btrfs code {code})"
        ))),
    }
}

/// How far the replacement is, in thousandths.
pub fn replace_progress(any: impl AsFd) -> io::Result<u64> {
    let mut args = replace_args(REPLACE_STATUS);
    // SAFETY: as in `replace`.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), DEV_REPLACE, &raw mut args) })?;
    let [_, thousandths] = args.words;
    Ok(thousandths)
}

fn replace_args(cmd: u64) -> ReplaceArgs {
    ReplaceArgs {
        cmd,
        result: 0,
        words: [0; 2],
        names: [0; 2 * (DEVICE_PATH_NAME_MAX + 1) + 6],
        spare: [0; 64],
    }
}

/// Asks for the filesystem itself.
pub fn filesystem(any: impl AsFd) -> io::Result<Filesystem> {
    let mut args = FsInfoArgs {
        max_id: 0,
        num_devices: 0,
        fsid: [0; 16],
        rest: [0; 992],
    };
    // SAFETY: the request writes a `btrfs_ioctl_fs_info_args`, which `args` is (size asserted above).
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), FS_INFO, &raw mut args) })?;
    Ok(Filesystem {
        fsid: args.fsid,
        max_id: args.max_id,
        devices: args.num_devices,
    })
}

/// The device with an id; none where there is no such.
pub fn device(any: impl AsFd, id: u64) -> io::Result<Option<Device>> {
    let mut args = DevInfoArgs {
        devid: id,
        uuid: [0; 16],
        bytes_used: 0,
        total_bytes: 0,
        unused: [0; 379],
        path: [0; DEVICE_PATH_NAME_MAX],
    };
    // SAFETY: the request reads and writes a `btrfs_ioctl_dev_info_args`, which `args` is (size asserted
    // above).
    match check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), DEV_INFO, &raw mut args) }) {
        Err(reason) if reason.raw_os_error() == Some(libc::ENODEV) => return Ok(None),
        other => other?,
    }
    let name = CStr::from_bytes_until_nul(&args.path).unwrap_or_default();
    let name = Path::new(std::ffi::OsStr::from_bytes(name.to_bytes()));
    Ok(Some(Device {
        id,
        // A device that was missing at the mount has no name, or one that says so.
        path: Some(name.to_owned()).filter(|name| name.is_absolute()),
        size: args.total_bytes,
        used: args.bytes_used,
    }))
}

/// The counters of a device.
pub fn errors(any: impl AsFd, id: u64) -> io::Result<Errors> {
    let mut args = DevStatsArgs {
        devid: id,
        items: STATS as u64,
        flags: 0,
        values: [0; STATS],
        unused: [0; 121],
    };
    // SAFETY: the request reads and writes a `btrfs_ioctl_get_dev_stats`, which `args` is (size asserted
    // above).
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), GET_DEV_STATS, &raw mut args) })?;
    let [write, read, flush, corruption, generation] = args.values;
    Ok(Errors {
        write,
        read,
        flush,
        corruption,
        generation,
    })
}

/// The kinds of space that the filesystem has.
pub fn spaces(any: impl AsFd) -> io::Result<Vec<Space>> {
    let mut args = SpaceArgs {
        slots: MAX_SPACES as u64,
        total: 0,
        spaces: [[0; 3]; MAX_SPACES],
    };
    // SAFETY: the request takes a `btrfs_ioctl_space_args`, whose head of two words says how many
    // entries of three words follow; `args` has that many.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), SPACE_INFO, &raw mut args) })?;
    let count = usize::try_from(args.total).unwrap_or(0);
    let spaces = args.spaces.into_iter().take(count);
    Ok(spaces
        .map(|[kind, total, used]| Space { kind, total, used })
        .filter(|space| space.kind & group::RESERVE == 0)
        .collect())
}

/// Rewrites every block group whose profile is not the one given (bits of [`group`], with
/// [`group::SINGLE`] for none). Redundancy may become less.
pub fn convert(any: impl AsFd, data: u64, metadata: u64) -> io::Result<()> {
    let filter = |target| BalanceFilter {
        before: [0; 7],
        target,
        flags: ARGS_CONVERT | ARGS_SOFT,
        rest: [0; 8],
    };
    let mut args = balance_args();
    args.flags = BALANCE_DATA | BALANCE_METADATA | BALANCE_SYSTEM | BALANCE_FORCE;
    args.data = filter(data);
    args.metadata = filter(metadata);
    args.system = filter(metadata);
    // SAFETY: the request reads and writes a `btrfs_ioctl_balance_args`, which `args` is (size asserted
    // above).
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), BALANCE_V2, &raw mut args) })
}

/// Block groups that the running balance has looked at, and how many it expects; none where none runs.
pub fn balance_progress(any: impl AsFd) -> io::Result<Option<(u64, u64)>> {
    let mut args = balance_args();
    // SAFETY: as in `convert`.
    let asked = check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), BALANCE_PROGRESS, &raw mut args) });
    match asked {
        Err(reason) if reason.raw_os_error() == Some(libc::ENOTCONN) => Ok(None),
        other => other.map(|()| Some((args.considered, args.expected))),
    }
}

fn balance_args() -> BalanceArgs {
    let filter = BalanceFilter {
        before: [0; 7],
        target: 0,
        flags: 0,
        rest: [0; 8],
    };
    BalanceArgs {
        flags: 0,
        state: 0,
        data: filter,
        metadata: filter,
        system: filter,
        expected: 0,
        considered: 0,
        completed: 0,
        unused: [0; 72],
    }
}

/// Reads all that lies on a device, and repairs what is damaged from another copy.
pub fn scrub(any: impl AsFd, id: u64) -> io::Result<Scrubbed> {
    scrub_call(any, SCRUB, id)
}

/// How far the scrub of a device is; none where none runs.
pub fn scrub_progress(any: impl AsFd, id: u64) -> io::Result<Option<Scrubbed>> {
    match scrub_call(any, SCRUB_PROGRESS, id) {
        Err(reason) if matches!(reason.raw_os_error(), Some(libc::ENOTCONN | libc::ENODEV)) => Ok(None),
        other => other.map(Some),
    }
}

fn scrub_call(any: impl AsFd, request: libc::c_ulong, id: u64) -> io::Result<Scrubbed> {
    let mut args = ScrubArgs {
        devid: id,
        start: 0,
        end: u64::MAX,
        flags: 0,
        progress: [0; 15],
        unused: [0; 109],
    };
    // SAFETY: both requests read and write a `btrfs_ioctl_scrub_args`, which `args` is (size asserted
    // above).
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), request, &raw mut args) })?;
    let [
        _,
        _,
        data,
        tree,
        read_errors,
        wrong_sums,
        wrong_headers,
        _,
        _,
        superblock_errors,
        _,
        uncorrectable,
        corrected,
        ..,
    ] = args.progress;
    Ok(Scrubbed {
        bytes: data.saturating_add(tree),
        read_errors,
        damaged: wrong_sums.saturating_add(wrong_headers),
        corrected,
        uncorrectable,
        superblock_errors,
    })
}

/// Sets the label of the mounted filesystem, of 255 bytes at most.
pub fn set_label(any: impl AsFd, label: &str) -> io::Result<()> {
    let mut field = [0u8; LABEL_SIZE];
    if label.len() >= LABEL_SIZE || label.contains('\0') {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in field.iter_mut().zip(label.bytes()) {
        *to = from;
    }
    // SAFETY: the request reads 256 bytes, which `field` has, during the call only.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), SET_FSLABEL, field.as_ptr()) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernel_header() {
        for (request, number) in [
            (SCAN_DEV, 0x5000_9404),
            (RESIZE, 0x5000_9403),
            (ADD_DEV, 0x5000_940a),
            (SPACE_INFO, 0xc010_9414),
            (SCRUB, 0xc400_941b),
            (SCRUB_PROGRESS, 0xc400_941d),
            (DEV_INFO, 0xd000_941e),
            (FS_INFO, 0x8400_941f),
            (BALANCE_V2, 0xc400_9420),
            (BALANCE_PROGRESS, 0x8400_9422),
            (SET_FSLABEL, 0x4100_9432),
            (GET_DEV_STATS, 0xc408_9434),
            (DEV_REPLACE, 0xca28_9435),
            (RM_DEV_V2, 0x5000_943a),
        ] {
            assert_eq!(request, number);
        }
    }
}
