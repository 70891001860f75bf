//! Images made of zones: what a zone has changed becomes a layer on its image.

use std::io;
use std::os::fd::AsFd;

use sys::btrfs;

use crate::digest::Digest;
use crate::error::{During, Error, Result};
use crate::folder;
use crate::image::Image;
use crate::oci::{History, ImageConfig};
use crate::pack::Packer;
use crate::reference::Reference;
use crate::root::UPPER;
use crate::store::Store;

/// A moment of a zone's own tree; gone when dropped.
pub struct Moment<'a> {
    store: &'a Store,
    name: String,
    zone: String,
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        // What cannot be removed now is collected when the store is opened.
        let _ = btrfs::destroy_subvolume(&self.store.tmp, &self.name);
    }
}

impl Store {
    /// Keeps the zone's tree as it is now, at once and whatever its size (a snapshot).
    ///
    /// # Errors
    /// There is no such zone, or the pool is full.
    pub fn moment(&self, zone: &str) -> Result<Moment<'_>> {
        let what = || format!("take a snapshot of zone {zone}");
        if !self.index().roots.contains_key(zone) {
            return Err(Error::NoSuchRoot {
                zone: zone.to_owned(),
            });
        }
        let name = self.serial_name("moment");
        let source = folder::open(&self.roots, zone).during(what())?;
        btrfs::snapshot(&source, &self.tmp, &name).during(what())?;
        Ok(Moment {
            store: self,
            name,
            zone: zone.to_owned(),
        })
    }
}

impl Moment<'_> {
    /// Makes an image of it: the zone's image with one layer more. `config`'s `rootfs` and `history`
    /// are filled in, the latter with `made`. Empty places at the paths of `without` (of mounts that
    /// are no part of the tree) stay out.
    ///
    /// # Errors
    /// The zone's image is gone, or the pool is full.
    pub fn commit(
        &self,
        mut config: ImageConfig,
        made: History,
        without: &'static [&'static str],
        reference: Option<&Reference>,
    ) -> Result<Image> {
        let store = self.store;
        let _hold = store.hold();
        let (base, parent) = {
            let index = store.index();
            let root = index.roots.get(&self.zone).copied();
            let root = root.ok_or_else(|| Error::NoSuchRoot {
                zone: self.zone.clone(),
            })?;
            (root.image, root.layer)
        };
        let base = store.image(&base).ok_or_else(|| Error::NoSuchImage {
            name: base.to_string(),
        })?;
        let upper = folder::open(&store.tmp, format!("{}/{UPPER}", self.name));
        let upper = upper.during("open the snapshot of a zone")?;
        let (reader, writer) = io::pipe().during("make a pipe")?;
        let layer = std::thread::scope(|scope| {
            let packing = scope.spawn(move || {
                let packer = Packer::of_upper(io::BufWriter::new(writer), without);
                packer.add(upper.as_fd(), b".", b"")
            });
            let made = store.make_layer(parent.as_ref(), None, reader);
            let panicked = |_| Err(io::Error::other("a thread of it panicked"));
            let packed = packing.join().unwrap_or_else(panicked);
            // A layer of half a tree is none; the archive breaks off, so that it is not taken for one.
            made.and_then(|layer| packed.during("read the zone's tree").map(|()| layer))
        })?;
        let diff_ids: Vec<Digest> = base
            .config
            .rootfs
            .diff_ids
            .iter()
            .copied()
            .chain([layer.diff_id])
            .collect();
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids = diff_ids;
        config.history = base.config.history.iter().cloned().chain([made]).collect();
        let raw = serde_json::to_vec(&config).map_err(|error| Error::BadConfig {
            reason: error.to_string(),
        })?;
        store.add_image(&raw, reference)
    }
}
