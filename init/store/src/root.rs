//! Root trees of zones.

use std::os::fd::{BorrowedFd, OwnedFd};

use crate::digest::ImageId;
use crate::error::Result;
use crate::store::{Store, unfinished};

impl Store {
    /// Makes the root of zone `zone` from `image`. Costs the same for every image. The root is
    /// durable at the filesystem's next commit (30 s at most); a caller who finds
    /// [`Error::NoSuchRoot`](crate::Error::NoSuchRoot) after a power cut makes it anew: a zone that
    /// had flushed nothing has lost nothing.
    pub fn create_root(&self, _zone: &str, _image: &ImageId) -> Result<()> {
        Err(unfinished("create a root"))
    }

    /// A detached overlay mount, with the ids of the image shown as those of `userns`. The mount is
    /// `nodev`. Each root may be mounted once at a time.
    pub fn mount_root(&self, _zone: &str, _userns: BorrowedFd<'_>) -> Result<OwnedFd> {
        Err(unfinished("mount a root"))
    }

    /// Removes the root of `zone` and what only it had used. Removing what is not there succeeds.
    pub fn remove_root(&self, _zone: &str) -> Result<()> {
        Err(unfinished("remove a root"))
    }

    /// Zones that have a root, with the images of these.
    pub fn roots(&self) -> Vec<(String, ImageId)> {
        Vec::new()
    }
}
