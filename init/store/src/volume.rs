//! Volumes: subvolumes of the pool that outlive the zones that use them, and the node's own tree.
//!
//! ```text
//! volumes/NAME   one subvolume a volume
//! host/          one subvolume: what binds call the node's tree
//! ```
//! What is in them bears the ids of images, as layers do. A volume is durable at the file system's next
//! commit; one that a power cut has taken is made anew, as a zone's root is: nothing in it had been
//! flushed.

use std::fs::File;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::PoisonError;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, ResolveFlags, StatxAttributes, StatxFlags, openat2, renameat,
    statat, statx,
};
use rustix::io::Errno;
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, UnmountFlags, fsconfig_create, fsconfig_set_string, fsmount,
    fsopen, unmount,
};
use sys::btrfs;
use sys::mounts::{Change, change};
use sys::program::MountAttributes;

use crate::copy;
use crate::digest::ImageId;
use crate::error::{During, Error, Result};
use crate::folder;
use crate::pool;
use crate::quota::{Held, Quotas};
use crate::snapshot::Of;
use crate::state::check_name;
use crate::store::Store;
use crate::tree::Place;

/// Folder of the volumes in the pool.
pub(crate) const VOLUMES: &str = "volumes";
/// The node's own tree in the pool.
pub(crate) const HOST: &str = "host";
/// Inode number of every subvolume's root (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_ROOT: u64 = 256;

impl Store {
    /// Makes an empty volume, owned by the image's root, that may hold `limit` bytes; one that is there is
    /// left as it is.
    pub fn create_volume(&self, name: &str, limit: Option<u64>) -> Result<()> {
        check_name(name)?;
        self.quotas.check(limit)?;
        let what = || format!("create volume {name}");
        let _turn = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        let volumes = self.volumes()?;
        match statat(&volumes, name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(_) => return Ok(()),
            Err(Errno::NOENT) => {}
            Err(reason) => return Err(Error::io(what(), reason)),
        }
        let draft = self.serial_name("volume");
        let mode = Mode::from_raw_mode(0o755);
        let made = self.quotas.create_volume(&self.tmp, &draft, limit);
        let placed = made.and_then(|()| {
            rustix::fs::chmodat(&self.tmp, &draft, mode, AtFlags::empty())?;
            Ok(renameat(&self.tmp, &draft, &volumes, name)?)
        });
        if let Err(reason) = placed {
            // What cannot be removed now is collected when the store is opened.
            let _ = btrfs::destroy_subvolume(&self.tmp, &draft);
            return Err(Error::io(what(), reason));
        }
        Ok(())
    }

    /// Removes a volume with all that it holds and its snapshots; the caller knows that nothing uses it.
    /// Removing what is not there succeeds.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let what = || format!("remove volume {name}");
        self.uncover_volume(name)?;
        let volumes = self.volumes()?;
        self.delete_snapshots(Of::Volume(name))?;
        match self.remove_whole(&volumes, name) {
            Err(reason) if reason.kind() == std::io::ErrorKind::NotFound => Ok(()),
            other => other.during(what()),
        }
    }

    /// Removes a subvolume with those that zones have made in it.
    pub(crate) fn remove_whole(&self, dir: &OwnedFd, name: &str) -> std::io::Result<()> {
        match self.quotas.remove(dir, name) {
            // The kernel wants the others gone first.
            Err(reason) if reason.raw_os_error() == Some(Errno::NOTEMPTY.raw_os_error()) => {}
            other => return other,
        }
        let subvolume = folder::open(dir, name)?;
        self.quotas.unbind(&subvolume)?;
        btrfs::set_read_only(&subvolume, false)?;
        self.remove_subvolumes(&subvolume, 0)?;
        self.quotas.remove(dir, name)
    }

    /// Where a volume is in the pool.
    pub fn volume_path(&self, name: &str) -> PathBuf {
        self.path().join(VOLUMES).join(name)
    }

    /// Bytes of disk that a volume's files take, shared ones counted as the volume's own.
    pub fn volume_usage(&self, name: &str) -> Result<u64> {
        check_name(name)?;
        let what = || format!("measure volume {name}");
        let volume = folder::open(self.volumes()?, name).during(what())?;
        folder::sum(&volume, folder::space).during(what())
    }

    /// Bytes of file content in a volume.
    ///
    /// # Errors
    /// There is no such volume, or it cannot be read.
    pub fn volume_size(&self, name: &str) -> Result<u64> {
        let what = || format!("measure volume {name}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(self.volume_path(name), flags, Mode::empty()).during(what())?;
        folder::sum(&folder, folder::content).during(what())
    }

    /// What a volume holds by the file system's own count, and its limit; none without quotas.
    ///
    /// # Errors
    /// There is no such volume.
    pub fn volume_held(&self, name: &str) -> Result<Option<Held>> {
        check_name(name)?;
        let what = || format!("measure volume {name}");
        let volume = folder::open(self.volumes()?, name).during(what())?;
        self.quotas.held(&volume).during(what())
    }

    /// Copies the folder `path` of an image into a place that is still empty, with its owners and modes.
    /// Nothing is done where the image has no such folder, or the place holds something.
    ///
    /// # Errors
    /// [`Error::NotAFolder`] where the image has a file there, [`Error::NoSuchPlace`] where there is no
    /// such place, beside what the kernel says.
    pub fn fill(&self, place: Place<'_>, image: &ImageId, path: &str) -> Result<()> {
        let what = || format!("copy {path} of the image into a volume");
        let layer = {
            let index = self.index();
            let record = index.images.get(image).ok_or_else(|| Error::NoSuchImage {
                name: image.to_string(),
            })?;
            record.layers.last().copied()
        };
        let Some(layer) = layer else { return Ok(()) };
        let tree = folder::open(&self.layers, layer.hex()).during(what())?;
        let in_image = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let from = match openat2(&tree, path, flags, Mode::empty(), in_image) {
            Ok(from) => from,
            Err(Errno::NOENT) => return Ok(()),
            Err(Errno::NOTDIR) => {
                return Err(Error::NotAFolder {
                    path: path.to_owned(),
                });
            }
            Err(reason) => return Err(Error::io(what(), reason)),
        };
        // Two zones that are made at once with one new volume: one of them fills it.
        let _turn = self.filling.lock().unwrap_or_else(PoisonError::into_inner);
        let to = self.open_place(place, flags)?;
        if !copy::is_empty(&to).during(what())? {
            return Ok(());
        }
        copy::copy_folder(&from, &to).during(what())?;
        // The zone that is made now is recorded durably, and with it goes that its volume is filled.
        rustix::fs::syncfs(&to).during(what())
    }

    /// Puts an empty tmpfs over a volume, unless there is one: what zones write goes with it.
    pub fn cover_volume(
        &self,
        name: &str,
        options: &[(String, String)],
        attributes: MountAttributes,
    ) -> Result<()> {
        check_name(name)?;
        let what = || format!("mount a tmpfs for volume {name}");
        let path = self.volume_path(name);
        let _turn = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        if is_mount(&path).during(what())? {
            return Ok(());
        }
        let context = fsopen("tmpfs", FsOpenFlags::FSOPEN_CLOEXEC).during(what())?;
        for (key, value) in options {
            fsconfig_set_string(context.as_fd(), key.as_str(), value.as_str()).during(what())?;
        }
        fsconfig_create(context.as_fd()).during(what())?;
        let none = MountAttrFlags::empty();
        let mount = fsmount(context.as_fd(), FsMountFlags::FSMOUNT_CLOEXEC, none).during(what())?;
        let wanted = Change {
            set: attributes,
            ..Change::default()
        };
        change(&mount, wanted, false).during(what())?;
        pool::attach(mount.as_fd(), &path).during(what())
    }

    /// Takes the tmpfs away; zones that have it keep it.
    pub fn uncover_volume(&self, name: &str) -> Result<()> {
        check_name(name)?;
        let what = || format!("unmount the tmpfs of volume {name}");
        let path = self.volume_path(name);
        let _turn = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        match is_mount(&path) {
            Ok(true) => unmount(&path, UnmountFlags::DETACH).during(what()),
            Ok(false) | Err(Errno::NOENT) => Ok(()),
            Err(reason) => Err(Error::io(what(), reason)),
        }
    }

    /// Removes the subvolumes below a folder, the deepest first.
    pub(crate) fn remove_subvolumes(&self, dir: &OwnedFd, depth: usize) -> std::io::Result<()> {
        if depth > folder::MAX_DEPTH {
            return Err(Errno::NAMETOOLONG.into());
        }
        for name in folder::names(dir)? {
            let stat = statat(dir, name.as_slice(), AtFlags::SYMLINK_NOFOLLOW)?;
            if FileType::from_raw_mode(stat.st_mode) != FileType::Directory {
                continue;
            }
            let folder = folder::open(dir, name.as_slice())?;
            if stat.st_ino == SUBVOLUME_ROOT {
                self.quotas.unbind(&folder)?;
                btrfs::set_read_only(&folder, false)?;
            }
            self.remove_subvolumes(&folder, depth + 1)?;
            if stat.st_ino == SUBVOLUME_ROOT {
                // Under a name of ours: its own may be no text.
                let draft = self.serial_name("removed");
                renameat(dir, name.as_slice(), &self.tmp, &draft)?;
                btrfs::destroy_subvolume(&self.tmp, &draft)?;
            }
        }
        Ok(())
    }

    pub(crate) fn volumes(&self) -> Result<OwnedFd> {
        let path = self.path().join(VOLUMES);
        std::fs::create_dir_all(&path).during(format!("create {}", path.display()))?;
        Ok(File::open(&path)
            .during(format!("open {}", path.display()))?
            .into())
    }
}

/// Whether something is mounted at a path.
pub(crate) fn is_mount(path: &Path) -> rustix::io::Result<bool> {
    let stat = statx(CWD, path, AtFlags::SYMLINK_NOFOLLOW, StatxFlags::empty())?;
    Ok(stat.stx_attributes.contains(StatxAttributes::MOUNT_ROOT))
}

/// Makes the subvolume that is the node's own tree, where it is missing.
pub(crate) fn make_host_tree(root: &OwnedFd, quotas: &Quotas) -> Result<()> {
    let what = "create the node's own tree in the pool";
    match statat(root, HOST, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(_) => return Ok(()),
        Err(Errno::NOENT) => {}
        Err(reason) => return Err(Error::io(what, reason)),
    }
    quotas.create(root, HOST, None).during(what)?;
    rustix::fs::chmodat(root, HOST, Mode::from_raw_mode(0o755), AtFlags::empty()).during(what)
}
