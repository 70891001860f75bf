//! Changes of a mount that nobody else sees yet: `mount_setattr(2)`.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

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
