//! The store itself: its layout in the pool and its records in memory.
//!
//! ```text
//! template/          where layers start from (made with the filesystem)
//! store/layers/HEX   one read-only subvolume a layer, named by chain id
//! store/roots/ZONE   one subvolume a zone
//! store/snapshots/   see `snapshot.rs`
//! store/incoming/    see `transfer/incoming.rs`
//! store/devices/    nodes of devices that zones are given
//! store/recipes/HEX  how a layer's archive is made again
//! store/tmp/         what is half-made; emptied by `open`
//! store/mount/       where layers are attached for the moment in which an overlay is made
//! volumes/, host/    see `volume.rs`
//! state/KIND/*.json  one file an object
//! ```
//! A layer counts once its record is written, which happens after its content has been flushed.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::btrfs;

use crate::ImageId;
use crate::blob::BlobWriter;
use crate::digest::{ChainId, Digest};
use crate::error::{During, Error, Result};
use crate::image::Record;
use crate::layer::Layer;
use crate::mkfs;
use crate::quota::Quotas;
use crate::root::Root;
use crate::state::{StateDir, check_name, collect_leftovers};
use crate::volume::{HOST, VOLUMES, make_host_tree};

const LAYERS: &str = "layers";
const IMAGES: &str = "images";

/// Space of the pool in bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Usage {
    pub total: u64,
    pub free: u64,
}

/// Images, layers and roots in one pool. Share it by `Arc`.
#[derive(Debug)]
pub struct Store {
    notes: Vec<String>,
    path: PathBuf,
    pub(crate) root: OwnedFd,
    pub(crate) layers: OwnedFd,
    pub(crate) roots: OwnedFd,
    pub(crate) tmp: OwnedFd,
    pub(crate) quotas: Quotas,
    pub(crate) layer_state: StateDir,
    pub(crate) image_state: StateDir,
    index: Mutex<Index>,
    /// Held while something is attached at the store's one mount place.
    pub(crate) mounting: Mutex<()>,
    /// Held while an image's content is copied into a volume.
    pub(crate) filling: Mutex<()>,
    /// Transfers that somebody goes on with or looks at.
    pub(crate) receiving: Arc<Mutex<BTreeSet<String>>>,
    serial: AtomicU64,
}

/// What is in the store.
#[derive(Debug, Default)]
pub(crate) struct Index {
    pub(crate) layers: BTreeMap<ChainId, Layer>,
    /// Layers whose record is not written yet.
    unrecorded: BTreeSet<ChainId>,
    pub(crate) images: BTreeMap<ImageId, Record>,
    pub(crate) roots: BTreeMap<String, Root>,
    /// By zone and name.
    pub(crate) snapshots: BTreeMap<(String, String), Root>,
    holds: usize,
}

impl Index {
    pub(crate) fn add_layer(&mut self, layer: Layer, recorded: bool) {
        if !recorded {
            self.unrecorded.insert(layer.chain_id);
        }
        self.layers.insert(layer.chain_id, layer);
    }

    fn unused_layers(&self) -> Vec<ChainId> {
        let of_images = self
            .images
            .values()
            .flat_map(|record| record.layers.iter().copied());
        let roots = self.roots.values().chain(self.snapshots.values());
        let of_roots = roots.filter_map(|root| root.layer);
        let used: BTreeSet<ChainId> = of_images.chain(of_roots).collect();
        self.layers
            .keys()
            .filter(|chain| !used.contains(chain))
            .copied()
            .collect()
    }
}

/// While one lives, layers that no image uses are kept: hold it from the first
/// [`Store::has_layer`] of a pull to its [`Store::add_image`].
#[derive(Debug)]
pub struct Hold<'a> {
    store: &'a Store,
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        let mut index = self.store.index();
        index.holds = index.holds.saturating_sub(1);
        // What cannot be removed now stays unused and is tried again at the next occasion.
        let _ = self.store.collect_layers(&mut index);
    }
}

impl Store {
    /// Opens the store in the pool mounted at `root`: creates what is missing, collects what
    /// interrupted work has left.
    pub fn open(root: &Path) -> Result<Store> {
        let home = root.join("store");
        let folder = |name: &str| -> Result<OwnedFd> {
            let path = home.join(name);
            fs::create_dir_all(&path).during(format!("create {}", path.display()))?;
            Ok(File::open(&path)
                .during(format!("open {}", path.display()))?
                .into())
        };
        if !root.join(mkfs::TEMPLATE).is_dir() {
            return Err(Error::NotAPool {
                path: root.display().to_string(),
                reason: format!("its `{}` is absent", mkfs::TEMPLATE),
            });
        }
        let top: OwnedFd = File::open(root)
            .during(format!("open {}", root.display()))?
            .into();
        let quotas = Quotas::open(&top)?;
        make_host_tree(&top, &quotas)?;
        let tmp = folder("tmp")?;
        folder("mount")?;
        let state = root.join("state");
        collect_leftovers(&state)?;
        let mut store = Store {
            notes: Vec::new(),
            path: root.to_owned(),
            root: top,
            layers: folder("layers")?,
            roots: folder("roots")?,
            tmp,
            quotas,
            layer_state: StateDir::open(&state, LAYERS)?,
            image_state: StateDir::open(&state, IMAGES)?,
            index: Mutex::default(),
            mounting: Mutex::default(),
            filling: Mutex::default(),
            receiving: Arc::default(),
            serial: AtomicU64::new(0),
        };
        store.empty_tmp()?;
        store.collect_transfers()?;
        let notes;
        {
            let mut index = store.index();
            let damage = store.read(&mut index)?;
            store.read_snapshots(&mut index)?;
            store.collect_layers(&mut index)?;
            store
                .collect_recipes(|chain| index.layers.contains_key(chain) || damage.layers.contains(chain))?;
            notes = damage.notes;
        }
        store.quotas.sweep()?;
        store.notes = notes;
        Ok(store)
    }

    /// What was damaged when it was opened, and what became of it; sentences.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// The pool's mount point.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// A place on the pool for files of the caller's own, such as logs (`<pool>/<name>`, created).
    pub fn directory(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        if matches!(name, "store" | "state" | mkfs::TEMPLATE | HOST | VOLUMES) {
            return Err(Error::BadName {
                name: name.to_owned(),
            });
        }
        let path = self.path.join(name);
        fs::create_dir_all(&path).during(format!("create {}", path.display()))?;
        Ok(path)
    }

    /// The sentence that says why nothing can have a limit, where that is so.
    pub fn no_quotas(&self) -> Option<&str> {
        self.quotas.missing()
    }

    pub fn usage(&self) -> Result<Usage> {
        let stat = rustix::fs::fstatvfs(&self.root).during("ask for the pool's free space")?;
        Ok(Usage {
            total: stat.f_blocks * stat.f_frsize,
            free: stat.f_bavail * stat.f_frsize,
        })
    }

    /// Writes to the disk what is on its way there.
    pub fn flush(&self) -> Result<()> {
        rustix::fs::syncfs(&self.root).during("flush the pool")
    }

    pub fn hold(&self) -> Hold<'_> {
        self.index().holds += 1;
        Hold { store: self }
    }

    /// Makes the layer `diff_id` on `parent` from its tar (plain, gzip or zstd: told by its first
    /// bytes). A layer that is there already is not made again and `tar` is not read.
    ///
    /// # Errors
    /// The parent is missing, the tar is damaged or holds what is refused, its digest is another,
    /// or the pool is full. Nothing of the layer is left then.
    pub fn ingest_layer(&self, parent: Option<&ChainId>, diff_id: &Digest, tar: impl Read) -> Result<Layer> {
        self.make_layer(parent, Some(diff_id), tar)
    }

    pub fn has_layer(&self, chain: &ChainId) -> bool {
        self.index().layers.contains_key(chain)
    }

    pub fn layer(&self, chain: &ChainId) -> Option<Layer> {
        self.index().layers.get(chain).cloned()
    }

    /// A spool file for a blob that is fetched.
    pub fn blob_writer(&self) -> Result<BlobWriter> {
        BlobWriter::create(&self.tmp_path())
    }

    /// The state of one kind of the caller's objects.
    pub fn objects(&self, kind: &str) -> Result<StateDir> {
        if matches!(kind, LAYERS | IMAGES) {
            return Err(Error::BadName {
                name: kind.to_owned(),
            });
        }
        StateDir::open(&self.path.join("state"), kind)
    }

    pub(crate) fn index(&self) -> MutexGuard<'_, Index> {
        // Every change of the index is a single insertion or removal, so a panic leaves it whole.
        self.index.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn tmp_path(&self) -> PathBuf {
        self.path.join("store/tmp")
    }

    pub(crate) fn serial_name(&self, kind: &str) -> String {
        format!("{kind}-{}", self.serial.fetch_add(1, Ordering::Relaxed))
    }

    /// Makes `layers` survive a power cut: flushes their content, then writes their records.
    pub(crate) fn record_layers(&self, layers: &[ChainId]) -> Result<()> {
        let pending: Vec<Layer> = {
            let index = self.index();
            let pending = layers.iter().filter(|chain| index.unrecorded.contains(chain));
            pending
                .filter_map(|chain| index.layers.get(chain).cloned())
                .collect()
        };
        if pending.is_empty() {
            return Ok(());
        }
        rustix::fs::syncfs(&self.root).during("flush the layers of an image")?;
        for layer in pending {
            self.layer_state.write(&layer.chain_id.hex(), &layer)?;
            self.index().unrecorded.remove(&layer.chain_id);
        }
        Ok(())
    }

    /// Removes the layers that neither an image nor a root uses, unless somebody holds them.
    pub(crate) fn collect_layers(&self, index: &mut Index) -> Result<Vec<ChainId>> {
        if index.holds > 0 {
            return Ok(Vec::new());
        }
        let unused = index.unused_layers();
        for chain in &unused {
            // The record first: a layer without one is collected, one without a tree would be missed.
            self.layer_state.remove(&chain.hex())?;
            btrfs::destroy_subvolume(&self.layers, &chain.hex()).during(format!("remove layer {chain}"))?;
            self.remove_recipe(chain)?;
            index.layers.remove(chain);
            index.unrecorded.remove(chain);
        }
        Ok(unused)
    }

    fn empty_tmp(&self) -> Result<()> {
        for name in names(&self.tmp_path())? {
            let path = self.tmp_path().join(&name);
            let what = || format!("remove the leftover {}", path.display());
            if self.destroy_whole(&name).is_ok() {
                continue;
            }
            let is_dir = fs::symlink_metadata(&path).during(what())?.is_dir();
            if is_dir {
                fs::remove_dir_all(&path)
            } else {
                fs::remove_file(&path)
            }
            .during(what())?;
        }
        Ok(())
    }
}

pub(crate) fn names(dir: &Path) -> Result<Vec<String>> {
    let what = || format!("list {}", dir.display());
    let mut names = Vec::new();
    for entry in fs::read_dir(dir).during(what())? {
        names.push(entry.during(what())?.file_name().to_string_lossy().into_owned());
    }
    Ok(names)
}
