//! Mounts that nobody else sees yet: copied from another process's, changed by `mount_setattr(2)`.

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

use crate::program::MountAttributes;

/// Whether mounts that are made below one mount appear below its other copies, `mount_namespaces(7)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum Propagation {
    #[default]
    Private,
    /// They come from the others, and none goes to them.
    Slave,
    Shared,
}

/// What [`change`] is to change; the default changes nothing.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Change {
    pub set: MountAttributes,
    pub clear: MountAttributes,
    pub propagation: Option<Propagation>,
}

/// A detached copy (`open_tree(2)`) of the mount at a path, as the process of a pidfd sees it. Nobody but
/// that process and those who share its mounts decide what is there. Blocks.
pub fn clone_from(pidfd: impl AsFd, path: &CStr) -> io::Result<OwnedFd> {
    /// `OPEN_TREE_CLONE` (`linux/mount.h`).
    const CLONE: libc::c_uint = 1;
    let pidfd = pidfd.as_fd().as_raw_fd();
    let in_there = || -> io::Result<OwnedFd> {
        let checked = |result: libc::c_long| match result {
            -1 => Err(io::Error::last_os_error()),
            result => Ok(result),
        };
        // SAFETY: plain numbers and a string that lives through the call; only this thread changes its
        // mount namespace, which needs a current folder that no other thread shares.
        unsafe {
            checked(libc::c_long::from(libc::unshare(libc::CLONE_FS)))?;
            checked(libc::c_long::from(libc::setns(pidfd, libc::CLONE_NEWNS)))?;
            let flags = CLONE | libc::O_CLOEXEC as libc::c_uint | libc::AT_SYMLINK_NOFOLLOW as libc::c_uint;
            let tree = checked(libc::syscall(
                libc::SYS_open_tree,
                libc::AT_FDCWD,
                path.as_ptr(),
                flags,
            ))?;
            Ok(OwnedFd::from_raw_fd(tree as libc::c_int))
        }
    };
    // A thread of its own, which ends in that namespace.
    let done = std::thread::scope(|scope| scope.spawn(in_there).join());
    done.unwrap_or_else(|_| Err(io::Error::other("The thread that copies a mount has ended")))
}

/// Changes the mount open as `mount`, and with `recursive` those below it too.
pub fn change(mount: impl AsFd, change: Change, recursive: bool) -> io::Result<()> {
    let attributes = libc::mount_attr {
        attr_set: change.set.0,
        attr_clr: change.clear.0,
        propagation: match change.propagation {
            None => 0,
            Some(Propagation::Private) => libc::MS_PRIVATE,
            Some(Propagation::Slave) => libc::MS_SLAVE,
            Some(Propagation::Shared) => libc::MS_SHARED,
        },
        userns_fd: 0,
    };
    set_attributes(mount, &attributes, recursive)
}

pub(crate) fn set_attributes(
    mount: impl AsFd,
    attributes: &libc::mount_attr,
    recursive: bool,
) -> io::Result<()> {
    let below = if recursive { libc::AT_RECURSIVE } else { 0 };
    // SAFETY: mount_setattr(2) with AT_EMPTY_PATH takes an empty string and a `mount_attr` of the size
    // given, all of which live through the call; the descriptor is open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_fd().as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | below,
            std::ptr::from_ref(attributes),
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}
