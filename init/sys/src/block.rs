//! Questions to block devices (`linux/fs.h`), and mounts whose ids are mapped.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};

const BLKRRPART: libc::c_ulong = 0x125f;
const BLKROGET: libc::c_ulong = 0x125e;
const BLKGETSIZE64: libc::c_ulong = 0x8008_1272;

/// Bytes of the block device `device`.
pub fn size(device: &File) -> io::Result<u64> {
    let mut bytes = 0u64;
    // SAFETY: the request writes one u64 to the pointer, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKGETSIZE64, &raw mut bytes) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(bytes)
    }
}

/// Has the kernel read the partition table of `device` anew.
pub fn reread_partitions(device: &File) -> io::Result<()> {
    // SAFETY: the request has no argument; the descriptor is open.
    if unsafe { libc::ioctl(device.as_raw_fd(), BLKRRPART) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// True where the block device `device` takes no writes.
pub fn is_read_only(device: &File) -> io::Result<bool> {
    let mut flag: libc::c_int = 0;
    // SAFETY: the request writes one int to the pointer, which lives through the call.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), BLKROGET, &raw mut flag) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(flag != 0)
    }
}

/// Shows the ids of the detached mount `mount` as those of the user namespace `userns`:
/// what is 0 on disk is seen as the id that `userns` maps 0 to.
pub fn map_ids(mount: impl AsFd, userns: impl AsFd) -> io::Result<()> {
    let userns = u64::try_from(userns.as_fd().as_raw_fd())
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let attributes = libc::mount_attr {
        attr_set: libc::MOUNT_ATTR_IDMAP,
        attr_clr: 0,
        propagation: 0,
        userns_fd: userns,
    };
    crate::mounts::set_attributes(mount, &attributes, false)
}

/// Sets the filesystem user and group id of the calling thread alone, without giving up capabilities
/// it would have to be asked for again: the caller raises them anew.
pub fn set_thread_filesystem_ids(uid: u32, gid: u32) -> io::Result<()> {
    // SAFETY: setfsgid(2) and setfsuid(2) take an integer; as raw system calls they change this thread
    // only. They report nothing, so the value is read back with an id that cannot be set.
    let (set_gid, set_uid) = unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
        (
            libc::syscall(libc::SYS_setfsgid, -1),
            libc::syscall(libc::SYS_setfsuid, -1),
        )
    };
    if set_gid == libc::c_long::from(gid) && set_uid == libc::c_long::from(uid) {
        Ok(())
    } else {
        Err(io::Error::from_raw_os_error(libc::EPERM))
    }
}
