//! The store itself: its layout in the pool and its records in memory.

use std::io::Read;
use std::path::{Path, PathBuf};

use crate::blob::BlobWriter;
use crate::digest::{ChainId, Digest, ImageId};
use crate::error::{Error, Result};
use crate::image::Image;
use crate::layer::Layer;
use crate::reference::Reference;
use crate::state::StateDir;

/// Space of the pool in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub total: u64,
    pub free: u64,
}

/// Images, layers and roots in one pool. Share it by `Arc`.
#[derive(Debug)]
pub struct Store {
    path: PathBuf,
}

/// While one lives, layers that no image uses are kept: hold it from the first
/// [`Store::has_layer`] of a pull to its [`Store::add_image`].
#[derive(Debug)]
pub struct Hold<'a> {
    _store: &'a Store,
}

pub(crate) fn unfinished(what: &str) -> Error {
    Error::io(what, std::io::Error::from(std::io::ErrorKind::Unsupported))
}

impl Store {
    /// Opens the store in the pool mounted at `root`: creates what is missing, collects what
    /// interrupted work has left.
    pub fn open(_root: &Path) -> Result<Store> {
        Err(unfinished("open the store"))
    }

    /// The pool's mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place on the pool for files of the caller's own, such as logs (`<pool>/<name>`, created).
    pub fn directory(&self, _name: &str) -> Result<PathBuf> {
        Err(unfinished("create a folder"))
    }

    pub fn usage(&self) -> Result<Usage> {
        Err(unfinished("ask for the pool's free space"))
    }

    pub fn hold(&self) -> Hold<'_> {
        Hold { _store: self }
    }

    /// Makes the layer `diff_id` on `parent` from its tar (plain, gzip or zstd: told by its first
    /// bytes). A layer that is there already is not made again and `tar` is not read.
    pub fn ingest_layer(
        &self,
        _parent: Option<&ChainId>,
        _diff_id: &Digest,
        _tar: impl Read,
    ) -> Result<Layer> {
        Err(unfinished("ingest a layer"))
    }

    pub fn has_layer(&self, _chain: &ChainId) -> bool {
        false
    }

    pub fn layer(&self, _chain: &ChainId) -> Option<Layer> {
        None
    }

    /// A spool file for a blob that is fetched.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        Err(unfinished("open a spool file"))
    }

    /// Records an image whose layers are all there, and names it `reference` (a tag moves from the
    /// image that had it; a digest is added). Returns when image and layers would survive a power cut.
    pub fn add_image(&self, _config: &[u8], _reference: Option<&Reference>) -> Result<Image> {
        Err(unfinished("add an image"))
    }

    pub fn images(&self) -> Vec<Image> {
        Vec::new()
    }

    pub fn image(&self, _id: &ImageId) -> Option<Image> {
        None
    }

    /// Finds an image by id (with or without `sha256:`), unambiguous beginning of an id, `name`,
    /// `name:tag` or `name@sha256:…`. A name goes before the beginning of an id.
    pub fn resolve(&self, _name: &str) -> Result<Image> {
        Err(unfinished("find an image"))
    }

    /// Gives `id` the name `reference` (tag, or digest; `latest` where neither is said).
    pub fn tag(&self, _id: &ImageId, _reference: &Reference) -> Result<()> {
        Err(unfinished("tag an image"))
    }

    /// Takes a name away; the image itself stays. Returns the image that had it.
    pub fn untag(&self, _reference: &Reference) -> Result<Image> {
        Err(unfinished("untag an image"))
    }

    /// Removes an image with all its names, and each layer that nothing else uses (these are
    /// returned). Refuses while a root is of it or it has several names, unless `force`: then roots
    /// keep their tree.
    pub fn remove_image(&self, _id: &ImageId, _force: bool) -> Result<Vec<ChainId>> {
        Err(unfinished("remove an image"))
    }

    /// The state of one kind of the caller's objects.
    pub fn objects(&self, kind: &str) -> Result<StateDir> {
        StateDir::open(&self.path.join("state"), kind)
    }
}
