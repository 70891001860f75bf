//! btrfs subvolumes by ioctl (`linux/btrfs.h`).
//!
//! Folders and subvolumes are given as open descriptors plus one name, never as paths, so that
//! nothing in between can be a link.

use std::ffi::c_char;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};

/// `BTRFS_SUBVOL_NAME_MAX` of the v2 arguments, and the v1 path field.
const VOL_NAME_MAX: usize = 255;
const PATH_NAME_MAX: usize = 4087;
const SUBVOL_NAME_MAX: usize = 4039;

const SUBVOL_RDONLY: u64 = 1 << 1;

/// `struct btrfs_ioctl_vol_args`.
#[repr(C)]
pub(crate) struct VolArgs {
    fd: i64,
    name: [c_char; PATH_NAME_MAX + 1],
}

/// `struct btrfs_ioctl_vol_args_v2`.
#[repr(C)]
struct VolArgsV2 {
    fd: i64,
    transid: u64,
    flags: u64,
    unused: [u64; 4],
    name: [c_char; SUBVOL_NAME_MAX + 1],
}

const _: () = assert!(size_of::<VolArgs>() == 4096 && size_of::<VolArgsV2>() == 4096);

/// `_IOW(0x94, number, size)`.
pub(crate) const fn write_request(number: u64, size: usize) -> libc::c_ulong {
    (1 << 30) | ((size as u64) << 16) | (0x94 << 8) | number
}

/// `_IOR(0x94, number, size)`.
pub(crate) const fn read_request(number: u64, size: usize) -> libc::c_ulong {
    (2 << 30) | ((size as u64) << 16) | (0x94 << 8) | number
}

/// `_IOWR(0x94, number, size)`.
pub(crate) const fn both_request(number: u64, size: usize) -> libc::c_ulong {
    write_request(number, size) | read_request(number, size)
}

/// `_IO(0x94, 8)`.
const SYNC: libc::c_ulong = 0x9408;
const SUBVOL_CREATE: libc::c_ulong = write_request(14, size_of::<VolArgs>());
const SNAP_DESTROY: libc::c_ulong = write_request(15, size_of::<VolArgs>());
const SNAP_CREATE_V2: libc::c_ulong = write_request(23, size_of::<VolArgsV2>());
const SUBVOL_GETFLAGS: libc::c_ulong = read_request(25, size_of::<u64>());
const SUBVOL_SETFLAGS: libc::c_ulong = write_request(26, size_of::<u64>());

/// Creates an empty subvolume `name` in `dir`.
pub fn create_subvolume(dir: impl AsFd, name: &str) -> io::Result<()> {
    vol_args(dir.as_fd(), SUBVOL_CREATE, name)
}

/// Removes the subvolume `name` in `dir` with all that it holds; the kernel frees the space later.
pub fn destroy_subvolume(dir: impl AsFd, name: &str) -> io::Result<()> {
    vol_args(dir.as_fd(), SNAP_DESTROY, name)
}

/// Makes a writable snapshot `name` in `dir` of the subvolume whose root is open as `source`.
/// The kernel commits its transaction for it.
pub fn snapshot(source: impl AsFd, dir: impl AsFd, name: &str) -> io::Result<()> {
    snapshot_with(source.as_fd(), dir.as_fd(), name, 0)
}

/// The same, of which nothing can be changed.
pub fn snapshot_read_only(source: impl AsFd, dir: impl AsFd, name: &str) -> io::Result<()> {
    snapshot_with(source.as_fd(), dir.as_fd(), name, SUBVOL_RDONLY)
}

fn snapshot_with(source: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &str, flags: u64) -> io::Result<()> {
    let mut args = VolArgsV2 {
        fd: i64::from(source.as_raw_fd()),
        transid: 0,
        flags,
        unused: [0; 4],
        name: [0; SUBVOL_NAME_MAX + 1],
    };
    copy_name(name, &mut args.name)?;
    // SAFETY: the request takes a `btrfs_ioctl_vol_args_v2`, which `args` is (size asserted above);
    // the kernel reads it during the call only, and both descriptors are open.
    let result = unsafe { libc::ioctl(dir.as_raw_fd(), SNAP_CREATE_V2, &raw mut args) };
    check(result)
}

/// Commits the filesystem of `any` and makes the kernel begin to free removed subvolumes.
pub fn sync(any: impl AsFd) -> io::Result<()> {
    // SAFETY: the request has no argument; the descriptor is open.
    let result = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), SYNC) };
    check(result)
}

/// True where the subvolume whose root is open as `subvolume` is read-only.
pub fn is_read_only(subvolume: impl AsFd) -> io::Result<bool> {
    let mut flags = 0u64;
    // SAFETY: the request writes one u64 to the pointer, which lives through the call.
    let result = unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SUBVOL_GETFLAGS, &raw mut flags) };
    check(result)?;
    Ok(flags & SUBVOL_RDONLY != 0)
}

/// Makes the subvolume whose root is open as `subvolume` read-only or writable.
pub fn set_read_only(subvolume: impl AsFd, read_only: bool) -> io::Result<()> {
    let mut flags = if read_only { SUBVOL_RDONLY } else { 0 };
    // SAFETY: the request reads one u64 from the pointer, which lives through the call.
    let result = unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SUBVOL_SETFLAGS, &raw mut flags) };
    check(result)
}

fn vol_args(dir: BorrowedFd<'_>, request: libc::c_ulong, name: &str) -> io::Result<()> {
    by_name(dir, request, component(name)?)
}

/// A request whose argument is a `btrfs_ioctl_vol_args` with a name or path in it.
pub(crate) fn by_name(any: impl AsFd, request: libc::c_ulong, name: &[u8]) -> io::Result<()> {
    let mut args = VolArgs {
        fd: 0,
        name: [0; PATH_NAME_MAX + 1],
    };
    fill(&mut args.name, name)?;
    // SAFETY: the requests passed here take a `btrfs_ioctl_vol_args`, which `args` is (size asserted
    // above); the kernel reads it during the call only, and the descriptor is open.
    let result = unsafe { libc::ioctl(any.as_fd().as_raw_fd(), request, &raw mut args) };
    check(result)
}

/// Checks that a name is one path component.
fn component(name: &str) -> io::Result<&[u8]> {
    if name.is_empty() || name.len() > VOL_NAME_MAX || name.contains('/') {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    Ok(name.as_bytes())
}

/// One path component, NUL-terminated.
fn copy_name(name: &str, into: &mut [c_char]) -> io::Result<()> {
    fill(into, component(name)?)
}

/// Copies a name into a zeroed field, which must hold a null after it.
fn fill(field: &mut [c_char], name: &[u8]) -> io::Result<()> {
    if name.len() >= field.len() || name.contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    for (to, from) in field.iter_mut().zip(name) {
        *to = *from as c_char;
    }
    Ok(())
}

pub(crate) fn check(result: libc::c_int) -> io::Result<()> {
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernel_header() {
        assert_eq!(SUBVOL_CREATE, 0x5000_940e);
        assert_eq!(SNAP_DESTROY, 0x5000_940f);
        assert_eq!(SNAP_CREATE_V2, 0x5000_9417);
        assert_eq!(SUBVOL_GETFLAGS, 0x8008_9419);
        assert_eq!(SUBVOL_SETFLAGS, 0x4008_941a);
    }

    #[test]
    fn a_name_is_one_component() {
        let mut field = [0; 256];
        for name in ["", "a/b", "a\0b"] {
            assert!(copy_name(name, &mut field).is_err());
        }
        assert!(copy_name("layer", &mut field).is_ok());
    }
}
