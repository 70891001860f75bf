//! Root trees of zones.
//!
//! A root is a subvolume with `upper` (what the zone has changed), `work` (overlayfs' own) and the
//! link [`OF`], whose text names image and layer. Everything in it is made by metadata operations
//! of one filesystem transaction after the other, so a power cut leaves either a usable root or none.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::Path;
use std::sync::PoisonError;

use rustix::fs::{
    AtFlags, CWD, Mode, OFlags, StatVfsMountFlags, chownat, fstatvfs, mkdirat, openat, renameat, statat,
    symlinkat,
};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, OpenTreeFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_string, fsmount, fsopen, open_tree, unmount,
};
use rustix::thread::{CapabilitySets, capabilities, set_capabilities};
use sys::btrfs;

use crate::digest::{ChainId, Digest, ImageId};
use crate::error::{During, Error, Result};
use crate::folder;
use crate::mkfs;
use crate::pool;
use crate::quota::Held;
use crate::snapshot::Of;
use crate::state::check_name;
use crate::store::Store;

const OF: &str = "of";
pub(crate) const UPPER: &str = "upper";
const WORK: &str = "work";
const NO_LAYER: &str = "-";

/// What a root is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Root {
    pub(crate) image: ImageId,
    /// `None` for an image without layers.
    pub(crate) layer: Option<ChainId>,
}

impl Root {
    pub(crate) fn read(path: &Path) -> Option<Root> {
        let target = std::fs::read_link(path.join(OF)).ok()?;
        let (image, layer) = target.to_str()?.split_once('/')?;
        let layer = match layer {
            NO_LAYER => None,
            hex => Some(ChainId(Digest::from_hex(hex)?)),
        };
        Some(Root {
            image: ImageId(Digest::from_hex(image)?),
            layer,
        })
    }

    fn text(&self) -> String {
        let layer = self
            .layer
            .map_or_else(|| NO_LAYER.to_owned(), |chain| chain.hex());
        format!("{}/{layer}", self.image.hex())
    }

    /// Path of the image's tree within the pool.
    pub(crate) fn tree(&self) -> String {
        match self.layer {
            Some(chain) => format!("store/layers/{}", chain.hex()),
            None => mkfs::TEMPLATE.to_owned(),
        }
    }
}

impl Store {
    /// Makes the root of zone `zone` from `image`. Costs the same for every image. The root is
    /// durable at the filesystem's next commit (30 s at most); a caller who finds
    /// [`Error::NoSuchRoot`] after a power cut makes it anew: a zone that had flushed nothing has
    /// lost nothing. What the zone changes may take `limit` bytes, with the file system's own records
    /// of it.
    ///
    /// # Errors
    /// [`Error::NoQuotas`] and [`Error::LimitTooSmall`] where such a limit cannot be, beside what the
    /// kernel says.
    pub fn create_root(&self, zone: &str, image: &ImageId, limit: Option<u64>) -> Result<()> {
        check_name(zone)?;
        self.quotas.check(limit)?;
        let what = || format!("create the root of zone {zone}");
        let mut index = self.index();
        if index.roots.contains_key(zone) {
            return Err(Error::RootExists {
                zone: zone.to_owned(),
            });
        }
        let record = index.images.get(image).ok_or_else(|| Error::NoSuchImage {
            name: image.to_string(),
        })?;
        let root = Root {
            image: *image,
            layer: record.layers.last().copied(),
        };
        let draft = self.serial_name("root");
        self.quotas.create(&self.tmp, &draft, limit).during(what())?;
        let filled = self
            .fill_root(&draft, &root)
            .and_then(|()| renameat(&self.tmp, &draft, &self.roots, zone));
        if let Err(reason) = filled {
            // What cannot be removed now is collected when the store is opened.
            let _ = btrfs::destroy_subvolume(&self.tmp, &draft);
            return Err(Error::io(what(), reason));
        }
        index.roots.insert(zone.to_owned(), root);
        Ok(())
    }

    /// The upper folder becomes the zone's `/`, so it takes over what the image's `/` is.
    fn fill_root(&self, draft: &str, root: &Root) -> rustix::io::Result<()> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let dir = openat(&self.tmp, draft, flags, Mode::empty())?;
        let tree = statat(&self.root, root.tree(), AtFlags::SYMLINK_NOFOLLOW)?;
        mkdirat(&dir, UPPER, Mode::RWXU)?;
        mkdirat(&dir, WORK, Mode::RWXU)?;
        let (uid, gid) = (
            rustix::fs::Uid::from_raw(tree.st_uid),
            rustix::fs::Gid::from_raw(tree.st_gid),
        );
        chownat(&dir, UPPER, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        rustix::fs::chmodat(
            &dir,
            UPPER,
            Mode::from_raw_mode(tree.st_mode & 0o7777),
            AtFlags::empty(),
        )?;
        symlinkat(root.text(), &dir, OF)
    }

    /// A detached overlay mount, with the ids of the image shown as those of `userns`. The mount is
    /// `nodev`. Each root may be mounted once at a time.
    pub fn mount_root(&self, zone: &str, userns: BorrowedFd<'_>) -> Result<OwnedFd> {
        let root = self.index().roots.get(zone).copied();
        let root = root.ok_or_else(|| Error::NoSuchRoot {
            zone: zone.to_owned(),
        })?;
        let what = || format!("mount the root of zone {zone}");
        let place = self.path().join("store/mount");
        // overlayfs (before Linux 6.15) takes only layers that are attached in this mount namespace,
        // and only while it is made.
        let _turn = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let pool = open_tree(CWD, self.path(), flags).during(what())?;
        sys::block::map_ids(&pool, userns).during(what())?;
        pool::attach(pool.as_fd(), &place).during(what())?;
        let make = || {
            let made = std::thread::scope(|scope| {
                scope
                    .spawn(|| overlay(&place, &root, zone))
                    .join()
                    .unwrap_or_else(|_| Err(rustix::io::Errno::CANCELED.into()))
            });
            made.during(what())
        };
        let mounted = make().and_then(|mounted| self.writable(mounted, zone, make));
        let detached = unmount(&place, UnmountFlags::DETACH);
        let mounted = mounted?;
        detached.during(what())?;
        Ok(mounted)
    }

    /// An overlay whose folder for work finds no room is read-only, and says nothing: it is made again with
    /// more.
    fn writable(
        &self,
        mounted: OwnedFd,
        zone: &str,
        make: impl FnOnce() -> Result<OwnedFd>,
    ) -> Result<OwnedFd> {
        let what = || format!("mount the root of zone {zone}");
        let read_only = |mounted: &OwnedFd| -> Result<bool> {
            let flags = fstatvfs(mounted).during(what())?.f_flag;
            Ok(flags.contains(StatVfsMountFlags::RDONLY))
        };
        if !read_only(&mounted)? {
            return Ok(mounted);
        }
        drop(mounted);
        let home = folder::open(&self.roots, zone).during(what())?;
        let mounted = self.quotas.with_slack(&home, make)?;
        if read_only(&mounted)? {
            return Err(Error::Full { what: what() });
        }
        Ok(mounted)
    }

    /// Removes the root of `zone`, its snapshots, and what only they had used. Removing what is not there
    /// succeeds.
    pub fn remove_root(&self, zone: &str) -> Result<()> {
        check_name(zone)?;
        let mut index = self.index();
        if index.roots.contains_key(zone) {
            let removed = self.quotas.remove(&self.roots, zone);
            removed.during(format!("remove the root of zone {zone}"))?;
            index.roots.remove(zone);
        }
        drop(index);
        // After the root: a zone without one is known to be half-removed.
        self.delete_snapshots(Of::Zone(zone))?;
        self.collect_layers(&mut self.index())?;
        Ok(())
    }

    /// Bounds what a zone's root may hold, which has a limit; `room` has it hold a little more, for what
    /// the zone's start needs however full it is.
    pub fn limit_root(&self, zone: &str, limit: u64, room: bool) -> Result<()> {
        check_name(zone)?;
        let what = || format!("set the limit of the root of zone {zone}");
        let root = folder::open(&self.roots, zone).during(what())?;
        self.quotas.limit_root(&root, limit, room).during(what())
    }

    /// What a zone's root holds by the file system's own count, and its limit; none without quotas.
    ///
    /// # Errors
    /// There is no such root.
    pub fn root_held(&self, zone: &str) -> Result<Option<Held>> {
        check_name(zone)?;
        let what = || format!("measure the root of zone {zone}");
        let root = folder::open(&self.roots, zone).during(what())?;
        self.quotas.held(&root).during(what())
    }

    pub fn has_root(&self, zone: &str) -> bool {
        self.index().roots.contains_key(zone)
    }

    /// Zones that have a root, with the images of these.
    pub fn roots(&self) -> Vec<(String, ImageId)> {
        self.index()
            .roots
            .iter()
            .map(|(zone, root)| (zone.clone(), root.image))
            .collect()
    }
}

/// Makes the overlay over the layers below `pool`, a mount of the pool with mapped ids.
///
/// overlayfs does its own work (folders in `work`, copies of files) as whoever has made it. An id
/// that the mapped mount does not know could create nothing there, so this thread, which ends
/// afterwards, takes the id that the zone's root has on the host, and keeps its capabilities.
fn overlay(pool: &Path, root: &Root, zone: &str) -> std::io::Result<OwnedFd> {
    let home = pool.join("store/roots").join(zone);
    let owner = statat(CWD, home.join(WORK), AtFlags::SYMLINK_NOFOLLOW)?;
    as_owner(owner.st_uid, owner.st_gid)?;
    let context = fsopen("overlay", FsOpenFlags::FSOPEN_CLOEXEC)?;
    let fs = context.as_fd();
    fsconfig_set_string(fs, "source", "overlay")?;
    fsconfig_set_string(fs, "lowerdir", pool.join(root.tree()))?;
    fsconfig_set_string(fs, "upperdir", home.join(UPPER))?;
    fsconfig_set_string(fs, "workdir", home.join(WORK))?;
    // The upper tree alone is the zone's diff: no references to other layers in it.
    for option in ["redirect_dir", "metacopy", "index"] {
        fsconfig_set_string(fs, option, "off")?;
    }
    fsconfig_create(fs)?;
    let attributes = MountAttrFlags::MOUNT_ATTR_NODEV;
    Ok(fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes)?)
}

/// Makes files as this owner from here on, with all capabilities that the process has. For a thread
/// that ends afterwards.
pub(crate) fn as_owner(uid: u32, gid: u32) -> std::io::Result<()> {
    let held = capabilities(None)?;
    sys::block::set_thread_filesystem_ids(uid, gid)?;
    // Another owner than root has lost them.
    let sets = CapabilitySets {
        effective: held.permitted,
        ..held
    };
    Ok(set_capabilities(None, sets)?)
}
