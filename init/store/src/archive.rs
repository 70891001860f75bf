//! Whole images from archives: `docker save` (old and new form), OCI archives, and bare root trees.

use std::io::Read;

use crate::digest::ImageId;
use crate::error::Result;
use crate::image::Image;
use crate::oci::ImageConfig;
use crate::reference::Reference;
use crate::store::{Store, unfinished};

/// Progress of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadEvent {
    /// So many bytes of the archive were read.
    Read { bytes: u64 },
    /// Layer `index` of `total` of an image is in the store; `present`: it was there before.
    Layer {
        index: usize,
        total: usize,
        present: bool,
    },
}

/// An image that an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: ImageId,
    /// Names that the archive gave it; empty where none.
    pub references: Vec<Reference>,
}

impl Store {
    /// Loads every image of an archive, compressed or not.
    pub fn load(&self, _archive: impl Read, _progress: &mut dyn FnMut(LoadEvent)) -> Result<Vec<Loaded>> {
        Err(unfinished("load an archive"))
    }

    /// Makes an image of one layer from a tar of a root tree. `config`'s `rootfs` is filled in.
    pub fn import(
        &self,
        _tar: impl Read,
        _config: ImageConfig,
        _reference: Option<&Reference>,
    ) -> Result<Image> {
        Err(unfinished("import a root tree"))
    }
}
