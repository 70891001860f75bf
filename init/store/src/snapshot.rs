//! Snapshots of zones and volumes: read-only subvolumes that share with their origin what neither has
//! changed since, so that each is made in the same time whatever there is in it.
//!
//! ```text
//! store/snapshots/zones/ZONE/NAME      of a zone's root, with overlayfs' own folder and the link to the image
//! store/snapshots/volumes/VOLUME/NAME  of a volume, without the subvolumes that zones have made in it
//! ```
//! The kernel makes one whole or not at all, and commits its transaction for it: there is no record beside
//! it. One is of the state that a power cut at that moment would have left, with all that had been written.
//! What only a snapshot still has counts for the limit of its zone or volume.

use std::os::fd::OwnedFd;

use std::sync::PoisonError;

use rustix::fs::{AtFlags, RenameFlags, renameat, renameat_with, unlinkat};
use rustix::io::Errno;
use sys::{btrfs, btrfs_snapshots};

use crate::error::{During, Error, Result};
use crate::folder;
use crate::root::Root;
use crate::state::check_name;
use crate::store::{Index, Store, names};

/// Folder of the snapshots within the store's own.
pub(crate) const SNAPSHOTS: &str = "snapshots";
const KINDS: [&str; 2] = ["zones", "volumes"];
const MAX_NAME: usize = 64;

/// What snapshots are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Of<'a> {
    /// The root of a zone.
    Zone(&'a str),
    Volume(&'a str),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    pub name: String,
    /// Seconds since 1970.
    pub created: u64,
    /// Of its subvolume: of two made within a second the later one's is higher.
    id: u64,
}

impl<'a> Of<'a> {
    pub(crate) fn name(self) -> &'a str {
        match self {
            Self::Zone(name) | Self::Volume(name) => name,
        }
    }

    fn text(self) -> String {
        match self {
            Self::Zone(name) => format!("zone {name}"),
            Self::Volume(name) => format!("volume {name}"),
        }
    }

    fn kind(self) -> &'static str {
        let [zones, volumes] = KINDS;
        match self {
            Self::Zone(_) => zones,
            Self::Volume(_) => volumes,
        }
    }

    /// Path of its snapshots within the pool.
    fn home(self) -> Result<String> {
        check_name(self.name())?;
        Ok(format!("store/{SNAPSHOTS}/{}/{}", self.kind(), self.name()))
    }
}

fn check_snapshot_name(name: &str) -> Result<()> {
    check_name(name)?;
    if name.len() > MAX_NAME {
        return Err(Error::BadName {
            name: name.to_owned(),
        });
    }
    Ok(())
}

impl Store {
    /// Keeps a zone's root or a volume as it is now. It is durable when this returns.
    ///
    /// # Errors
    /// There is none of this name, it has a snapshot of that name, or the pool is full.
    pub fn create_snapshot(&self, of: Of<'_>, name: &str) -> Result<Snapshot> {
        check_snapshot_name(name)?;
        let source = self.origin(of)?;
        self.snapshot_of(&source, of, name)
    }

    /// Makes a snapshot of a subvolume that is, or holds a later state of, a zone's root or a volume.
    pub(crate) fn snapshot_of(&self, source: &OwnedFd, of: Of<'_>, name: &str) -> Result<Snapshot> {
        check_snapshot_name(name)?;
        let what = || format!("make a snapshot of {}", of.text());
        let home = self.path().join(of.home()?);
        std::fs::create_dir_all(&home).during(what())?;
        let home: OwnedFd = std::fs::File::open(&home).during(what())?.into();
        match btrfs::snapshot_read_only(source, &home, name) {
            Err(reason) if reason.raw_os_error() == Some(Errno::EXIST.raw_os_error()) => {
                return Err(Error::SnapshotExists {
                    name: name.to_owned(),
                });
            }
            made => made.during(what())?,
        }
        self.know_snapshot(of, name);
        self.snapshot(of, name)
    }

    /// One of the snapshots.
    ///
    /// # Errors
    /// There is none of that name.
    pub fn snapshot(&self, of: Of<'_>, name: &str) -> Result<Snapshot> {
        let info = btrfs_snapshots::info(self.open_snapshot(of, name)?);
        let info = info.during(format!("look at snapshot {name}"))?;
        Ok(Snapshot {
            name: name.to_owned(),
            created: info.made,
            id: info.id,
        })
    }

    /// Snapshots of a zone or volume, the oldest first; none where there is no such.
    pub fn snapshots(&self, of: Of<'_>) -> Result<Vec<Snapshot>> {
        let home = self.path().join(of.home()?);
        if !home.is_dir() {
            return Ok(Vec::new());
        }
        let mut snapshots = Vec::new();
        for name in names(&home)? {
            match self.snapshot(of, &name) {
                Err(error) if error.is_not_found() => {}
                other => snapshots.push(other?),
            }
        }
        snapshots.sort_by_key(|snapshot| snapshot.id);
        Ok(snapshots)
    }

    /// Zones, and volumes, that have snapshots.
    pub fn with_snapshots(&self) -> Result<(Vec<String>, Vec<String>)> {
        let [zones, volumes] = KINDS.map(|kind| names(&self.path().join("store").join(SNAPSHOTS).join(kind)));
        Ok((zones?, volumes?))
    }

    /// # Errors
    /// There is none of that name.
    pub fn delete_snapshot(&self, of: Of<'_>, name: &str) -> Result<()> {
        let what = || format!("delete snapshot {name} of {}", of.text());
        drop(self.open_snapshot(of, name)?);
        let home = folder::open(&self.root, of.home()?).during(what())?;
        match btrfs::destroy_subvolume(&home, name) {
            // The kernel's word for one that it reads.
            Err(reason) if reason.kind() == std::io::ErrorKind::PermissionDenied => {
                return Err(Error::Refused(format!(
                    "Snapshot {name} is being sent; delete it afterwards."
                )));
            }
            other => other.during(what())?,
        }
        // Who was told that it is gone does not see it again after a power cut.
        rustix::fs::syncfs(&self.root).during(what())?;
        let mut index = self.index();
        index.snapshots.remove(&(of.name().to_owned(), name.to_owned()));
        self.leave_home(of)?;
        self.collect_layers(&mut index)?;
        Ok(())
    }

    /// Deletes all snapshots of a zone or volume.
    pub fn delete_snapshots(&self, of: Of<'_>) -> Result<()> {
        let what = || format!("delete the snapshots of {}", of.text());
        let home = match folder::open(&self.root, of.home()?) {
            Err(Errno::NOENT) => return Ok(()),
            other => other.during(what())?,
        };
        for name in folder::names(&home).during(what())? {
            let name = String::from_utf8_lossy(&name);
            btrfs::destroy_subvolume(&home, &name).during(what())?;
        }
        if let Of::Zone(zone) = of {
            self.index().snapshots.retain(|(owner, _), _| owner != zone);
        }
        self.leave_home(of)
    }

    /// Makes a zone's root, or a volume, what it was when the snapshot was made. The caller knows that
    /// nothing uses it. Its limit stays, and all that it or a snapshot of it holds counts.
    ///
    /// # Errors
    /// There is no such snapshot, or the pool is full.
    pub fn roll_back(&self, of: Of<'_>, name: &str) -> Result<()> {
        let snapshot = self.open_snapshot(of, name)?;
        self.replace(of, &snapshot)
    }

    /// Makes the root of zone `zone` from that of another: as it was when a snapshot was made, or as it is
    /// now. What it has of the other counts for the other's limit, as the image does for nobody's.
    ///
    /// # Errors
    /// As [`Store::create_root`]; the other, or the snapshot, is not there.
    pub fn clone_root(
        &self,
        from: &str,
        snapshot: Option<&str>,
        zone: &str,
        limit: Option<u64>,
    ) -> Result<()> {
        check_name(zone)?;
        self.quotas.check(limit)?;
        let what = || format!("create the root of zone {zone}");
        let source = self.source(Of::Zone(from), snapshot)?;
        if self.has_root(zone) {
            return Err(Error::RootExists {
                zone: zone.to_owned(),
            });
        }
        let draft = self.draft(&source).during(what())?;
        let placed = (|| -> std::io::Result<()> {
            let root = folder::open(&self.tmp, &*draft)?;
            if let Some(limit) = limit {
                self.quotas.limit_root(&root, limit, false)?;
            }
            Ok(renameat(&self.tmp, &*draft, &self.roots, zone)?)
        })();
        self.settle(&draft, placed).during(what())?;
        let root = Root::read(&self.path().join("store/roots").join(zone));
        let root = root.ok_or_else(|| Error::NoSuchRoot {
            zone: zone.to_owned(),
        })?;
        self.index().roots.insert(zone.to_owned(), root);
        Ok(())
    }

    /// Makes a volume from another, as [`Store::clone_root`] does a root. One that is there is replaced.
    ///
    /// # Errors
    /// As [`Store::create_volume`]; the other, or the snapshot, is not there.
    pub fn clone_volume(
        &self,
        from: &str,
        snapshot: Option<&str>,
        name: &str,
        limit: Option<u64>,
    ) -> Result<()> {
        self.quotas.check(limit)?;
        let source = self.source(Of::Volume(from), snapshot)?;
        self.create_volume(name, limit)?;
        self.replace(Of::Volume(name), &source)
    }

    /// Puts a writable copy of `source` in the place of a zone's root or of a volume, in one step.
    fn replace(&self, of: Of<'_>, source: &OwnedFd) -> Result<()> {
        let what = || format!("replace {}", of.text());
        let old = self.origin(of)?;
        let place = self.place(of)?;
        let draft = self.draft(source).during(what())?;
        let placed = (|| -> std::io::Result<()> {
            let new = folder::open(&self.tmp, &*draft)?;
            self.quotas.join(&new, &old)?;
            let _turn = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
            renameat_with(&self.tmp, &*draft, &place, of.name(), RenameFlags::EXCHANGE)?;
            Ok(())
        })();
        drop(old);
        self.settle(&draft, placed).during(what())?;
        rustix::fs::syncfs(&self.root).during(what())?;
        // It counts for the limit as long as a snapshot has something of it.
        self.destroy_whole(&draft).during(what())
    }

    /// A writable copy of a subvolume, under a name of its own in the folder for drafts.
    fn draft(&self, source: &OwnedFd) -> std::io::Result<String> {
        let draft = self.serial_name("copy");
        btrfs::snapshot(source, &self.tmp, &draft)?;
        Ok(draft)
    }

    /// Removes a draft that could not be placed.
    fn settle(&self, draft: &str, placed: std::io::Result<()>) -> std::io::Result<()> {
        placed.inspect_err(|_| {
            // What cannot be removed now is collected when the store is opened.
            let _ = btrfs::destroy_subvolume(&self.tmp, draft);
        })
    }

    pub(crate) fn place(&self, of: Of<'_>) -> Result<OwnedFd> {
        match of {
            Of::Zone(_) => self.roots.try_clone().during("open the folder of roots"),
            Of::Volume(_) => self.volumes(),
        }
    }

    /// The subvolume that snapshots are made of.
    pub(crate) fn origin(&self, of: Of<'_>) -> Result<OwnedFd> {
        check_name(of.name())?;
        let place = self.place(of)?;
        match (folder::open(&place, of.name()), of) {
            (Err(Errno::NOENT), Of::Zone(zone)) => Err(Error::NoSuchRoot {
                zone: zone.to_owned(),
            }),
            (Err(Errno::NOENT), Of::Volume(name)) => Err(Error::NoSuchObject {
                kind: "volumes".to_owned(),
                name: name.to_owned(),
            }),
            (opened, _) => opened.during(format!("open {}", of.text())),
        }
    }

    fn source(&self, of: Of<'_>, snapshot: Option<&str>) -> Result<OwnedFd> {
        match snapshot {
            Some(name) => self.open_snapshot(of, name),
            None => self.origin(of),
        }
    }

    pub(crate) fn open_snapshot(&self, of: Of<'_>, name: &str) -> Result<OwnedFd> {
        check_snapshot_name(name)?;
        match folder::open(&self.root, format!("{}/{name}", of.home()?)) {
            Err(Errno::NOENT) => Err(Error::NoSuchSnapshot {
                name: name.to_owned(),
            }),
            opened => opened.during(format!("open snapshot {name} of {}", of.text())),
        }
    }

    /// Removes the folder of the snapshots of what has none any more.
    fn leave_home(&self, of: Of<'_>) -> Result<()> {
        match unlinkat(&self.root, of.home()?, AtFlags::REMOVEDIR) {
            Ok(()) | Err(Errno::NOENT | Errno::NOTEMPTY) => Ok(()),
            Err(reason) => Err(Error::io(format!("tidy up after {}", of.text()), reason)),
        }
    }

    /// The image of a zone's snapshot is kept as that of its root is.
    pub(crate) fn know_snapshot(&self, of: Of<'_>, name: &str) {
        let Of::Zone(zone) = of else { return };
        let mut index = self.index();
        if let Some(root) = index.roots.get(zone).copied() {
            index.snapshots.insert((zone.to_owned(), name.to_owned()), root);
        }
    }

    /// Finds the snapshots of zones when the store is opened.
    pub(crate) fn read_snapshots(&self, index: &mut Index) -> Result<()> {
        let top = self.path().join("store").join(SNAPSHOTS);
        for kind in KINDS {
            std::fs::create_dir_all(top.join(kind)).during("make the folders of snapshots")?;
            for owner in names(&top.join(kind))? {
                // Of what has none: a snapshot or a removal was cut short.
                let _ = std::fs::remove_dir(top.join(kind).join(owner));
            }
        }
        let [zones, _] = KINDS.map(|kind| top.join(kind));
        for zone in names(&zones)? {
            for name in names(&zones.join(&zone))? {
                if let Some(root) = Root::read(&zones.join(&zone).join(&name)) {
                    index.snapshots.insert((zone.clone(), name), root);
                }
            }
        }
        Ok(())
    }

    /// Removes a subvolume of the folder for drafts, with those that zones have made in it.
    pub(crate) fn destroy_whole(&self, name: &str) -> std::io::Result<()> {
        match btrfs::destroy_subvolume(&self.tmp, name) {
            Err(reason) if reason.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error()) => {}
            other => return other,
        }
        let subvolume = folder::open(&self.tmp, name)?;
        btrfs::set_read_only(&subvolume, false)?;
        self.remove_subvolumes(&subvolume, 0)?;
        btrfs::destroy_subvolume(&self.tmp, name)
    }
}
