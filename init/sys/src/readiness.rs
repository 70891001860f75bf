//! Waiting in tokio for a descriptor to become ready.

use std::io;
use std::os::fd::OwnedFd;

pub use tokio::io::Interest;
pub use tokio::io::unix::AsyncFd;

/// Registers a descriptor with the runtime that the caller runs in.
pub fn watch(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` is open for as long as it lives, and always gives the same descriptor.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}
