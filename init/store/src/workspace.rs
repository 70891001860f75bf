//! Trees for work on the way to an image: the files that a client sends for a build, and the trees of
//! images, to copy from; and layers of such files.

use std::io::Read;

use rustix::fs::{Mode, OFlags, openat};
use sys::btrfs;

use crate::digest::{ChainId, ImageId};
use crate::error::{During, Error, Result};
use crate::files::{Unpacking, ZoneFiles};
use crate::folder;
use crate::layer::Layer;
use crate::mkfs;
use crate::store::Store;

/// An empty tree of its own; gone when dropped.
pub struct Workspace {
    store: std::sync::Arc<Store>,
    name: String,
    files: ZoneFiles,
}

impl Drop for Workspace {
    fn drop(&mut self) {
        // What cannot be removed now is collected when the store is opened.
        let _ = btrfs::destroy_subvolume(&self.store.tmp, &self.name);
    }
}

impl Workspace {
    /// # Errors
    /// The pool is full.
    pub fn new(store: &std::sync::Arc<Store>) -> Result<Self> {
        let what = "make a folder for a build";
        let name = store.serial_name("workspace");
        store.quotas.create(&store.tmp, &name, None).during(what)?;
        let root = folder::open(&store.tmp, &*name).during(what)?;
        Ok(Self {
            store: store.clone(),
            name,
            files: ZoneFiles::new(root, 0),
        })
    }

    pub fn files(&self) -> &ZoneFiles {
        &self.files
    }

    /// Unpacks a tar (plain, gzip or zstd) into it; everything becomes root's.
    ///
    /// # Errors
    /// The tar is refused, or the pool is full.
    pub fn unpack(&self, tar: impl Read + Send) -> Result<()> {
        let how = Unpacking {
            owner: Some((0, 0)),
            keep_kinds: false,
        };
        self.files.unpack("/", tar, how)
    }

    /// Puts one file into it, of root's and readable by all.
    ///
    /// # Errors
    /// The name is none, or the pool is full.
    pub fn put(&self, name: &str, content: &[u8]) -> Result<()> {
        crate::state::check_name(name)?;
        let what = || format!("write {name}");
        let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::TRUNC | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(self.files.root(), name, flags, Mode::from_raw_mode(0o644)).during(what())?;
        std::io::Write::write_all(&mut std::fs::File::from(file), content).during(what())
    }
}

impl Store {
    /// The tree of an image, to read from.
    ///
    /// # Errors
    /// There is no such image.
    pub fn image_files(&self, image: &ImageId) -> Result<ZoneFiles> {
        let found = self.image(image).ok_or_else(|| Error::NoSuchImage {
            name: image.to_string(),
        })?;
        let what = "open an image's tree";
        let tree = match found.layers.last() {
            Some(chain) => folder::open(&self.layers, chain.hex()),
            None => folder::open(&self.root, mkfs::TEMPLATE),
        };
        Ok(ZoneFiles::new(tree.during(what)?, 0))
    }

    /// Makes a layer of a tar on another one, or on nothing. The caller holds the store, and names the
    /// layer in an image before he lets go.
    ///
    /// # Errors
    /// The tar is refused, or the pool is full.
    pub fn add_layer(&self, parent: Option<&ChainId>, tar: impl Read) -> Result<Layer> {
        self.make_layer(parent, None, tar)
    }
}
