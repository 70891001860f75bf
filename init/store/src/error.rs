//! What can go wrong in the store, as sentences for the person who asked.

use std::io;

use crate::digest::{ChainId, Digest, ImageId};

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Every message is whole: a cause that the kernel gave is part of it, so `source` is not repeated.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("Cannot {what}: {reason}.")]
    Io { what: String, reason: io::Error },
    #[error(
        "The pool is full: cannot {what}. Remove images or containers that are no longer needed, or use a larger disk."
    )]
    Full { what: String },
    #[error(
        "No room is left: cannot {what}. Remove files, images or containers that are no longer needed, or allow a larger size."
    )]
    Bounded { what: String },
    #[error("{why} Leave the size out.")]
    NoQuotas { why: String },
    #[error(
        "A size of {limit} bytes is too small; nothing fits in less than {}.",
        crate::quota::LEAST_LIMIT
    )]
    LimitTooSmall { limit: u64 },
    #[error("`{text}` is not a digest; expected `sha256:` and 64 hexadecimal digits.")]
    InvalidDigest { text: String },
    #[error("`{text}` is not an image name: {reason}.")]
    InvalidReference { text: String, reason: &'static str },
    #[error("No such image: {name}. `docker images` lists those that are here.")]
    NoSuchImage { name: String },
    #[error("`{prefix}` is the beginning of more than one image id; give more of its digits.")]
    AmbiguousId { prefix: String },
    #[error("Image {id} is used by zone {zone}; remove the zone first, or force the removal.")]
    ImageInUse { id: ImageId, zone: String },
    #[error("Image {id} has {count} names; remove them one at a time, or force the removal of all of them.")]
    ImageHasNames { id: ImageId, count: usize },
    #[error("Layer {chain} is not in the store; load or pull its image again.")]
    MissingLayer { chain: ChainId },
    #[error("Layer entry `{entry}` is refused: {reason}. Rebuild the image without it.")]
    BadEntry { entry: String, reason: String },
    #[error("The archive is not usable: {reason}. Make it again and load it anew.")]
    BadArchive { reason: String },
    #[error("The snapshot that was sent is not usable: {reason}.")]
    BadStream { reason: String },
    #[error("The image config is not usable: {reason}. Rebuild the image.")]
    BadConfig { reason: String },
    #[error("Content has digest {found} where {expected} was promised; it is corrupt, fetch it again.")]
    WrongDigest { expected: Digest, found: Digest },
    #[error("Zone {zone} has no root in the store.")]
    NoSuchRoot { zone: String },
    #[error("There is no {path} in the container.")]
    NoSuchPath { path: String },
    #[error("{path} in the container is not a directory.")]
    NotADirectory { path: String },
    #[error("Zone {zone} has a root already.")]
    RootExists { zone: String },
    #[error("There is no {path} to mount.")]
    NoSuchPlace { path: String },
    #[error("cannot mount volume over existing file, file exists {path}")]
    NotAFolder { path: String },
    #[error("`{name}` cannot name an object; use letters, digits, `.`, `_` and `-`.")]
    BadName { name: String },
    #[error("There is no snapshot `{name}`; `monobloc snapshot list` shows those that are there.")]
    NoSuchSnapshot { name: String },
    #[error("There is a snapshot `{name}` already; choose another name, or delete that one.")]
    SnapshotExists { name: String },
    #[error("No {kind} object is called `{name}`.")]
    NoSuchObject { kind: String, name: String },
    #[error("State of {kind} `{name}` cannot be understood: {reason}.")]
    BadState {
        kind: String,
        name: String,
        reason: String,
    },
    #[error("{path} has {size} bytes; a pool needs at least {minimum}.")]
    TooSmall { path: String, size: u64, minimum: u64 },
    #[error("{path} is not a pool of this system: {reason}. Format a disk for it.")]
    NotAPool { path: String, reason: String },
    /// What contradicts the present state, as a whole sentence.
    #[error("{0}")]
    Refused(String),
    #[error("{path} bears {content}; it was not written to.")]
    NotBlank { path: String, content: String },
}

impl Error {
    /// Wraps what the kernel said; a full disk gets the sentence that tells what to do about it.
    pub(crate) fn io(what: impl Into<String>, reason: impl Into<io::Error>) -> Error {
        let (what, reason) = (what.into(), reason.into());
        match reason.kind() {
            io::ErrorKind::StorageFull => Error::Full { what },
            io::ErrorKind::QuotaExceeded => Error::Bounded { what },
            _ => Error::Io { what, reason },
        }
    }

    /// True where the thing asked for does not exist (HTTP's 404).
    pub fn is_not_found(&self) -> bool {
        matches!(
            self,
            Error::NoSuchImage { .. }
                | Error::NoSuchRoot { .. }
                | Error::NoSuchObject { .. }
                | Error::NoSuchPath { .. }
                | Error::NoSuchSnapshot { .. }
        )
    }

    /// True where the request contradicts the present state (HTTP's 409).
    pub fn is_conflict(&self) -> bool {
        matches!(
            self,
            Error::ImageInUse { .. }
                | Error::ImageHasNames { .. }
                | Error::RootExists { .. }
                | Error::SnapshotExists { .. }
                | Error::AmbiguousId { .. }
                | Error::Refused(_)
                | Error::TooSmall { .. }
                | Error::NotBlank { .. }
        )
    }

    /// True where what the caller sent is at fault (HTTP's 400).
    pub fn is_bad_input(&self) -> bool {
        matches!(
            self,
            Error::InvalidDigest { .. }
                | Error::InvalidReference { .. }
                | Error::BadEntry { .. }
                | Error::BadArchive { .. }
                | Error::BadConfig { .. }
                | Error::BadStream { .. }
                | Error::BadName { .. }
                | Error::NotAFolder { .. }
                | Error::NotADirectory { .. }
                | Error::WrongDigest { .. }
                | Error::MissingLayer { .. }
                | Error::NoQuotas { .. }
                | Error::LimitTooSmall { .. }
        )
    }
}

/// `.during("open the layer folder")?` on anything that the kernel answered.
pub(crate) trait During<T> {
    fn during(self, what: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<io::Error>> During<T> for std::result::Result<T, E> {
    fn during(self, what: impl Into<String>) -> Result<T> {
        self.map_err(|reason| Error::io(what, reason))
    }
}
