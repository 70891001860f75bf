//! Image records: which image has which names.

use crate::digest::{ChainId, ImageId};
use crate::oci::ImageConfig;
use crate::reference::Reference;

/// An image in the store; a copy of the record at the time of asking.
#[derive(Debug, Clone)]
pub struct Image {
    pub id: ImageId,
    /// Names with a tag, sorted.
    pub references: Vec<Reference>,
    /// Names with a digest (`repository@sha256:…`), sorted.
    pub digests: Vec<Reference>,
    pub config: ImageConfig,
    /// The config's exact bytes; `id` is their digest.
    pub raw_config: Vec<u8>,
    /// Bytes of file content in all layers together.
    pub size: u64,
    /// Bottom first.
    pub layers: Vec<ChainId>,
    /// RFC 3339, as the config says; empty where it does not.
    pub created: String,
}
