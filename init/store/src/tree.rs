//! Detached mounts of volumes, of the node's own tree and of device nodes, for zones to attach.
//!
//! Each is a copy of the pool's mount with the ids of one zone, so that two zones that share a volume
//! agree on who owns what in it. A path is resolved below the volume or the node's tree, whatever links
//! lie there.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::PoisonError;

use rustix::fs::{
    AtFlags, CWD, FileType, Mode, OFlags, RenameFlags, ResolveFlags, chmodat, chownat, fstat, mkdirat,
    mknodat, open, openat, openat2, renameat_with, unlinkat,
};
use rustix::io::Errno;
use rustix::mount::{OpenTreeFlags, open_tree};
use rustix::process::{Gid, Uid};
use sys::mounts::{Change, Propagation, change};
use sys::program::MountAttributes;

use crate::error::{During, Error, Result};
use crate::pool;
use crate::state::check_name;
use crate::store::Store;
use crate::volume::{HOST, is_mount};

/// What a mount is of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Place<'a> {
    /// An absolute path in the node's own tree.
    Host(&'a str),
    /// A path in a volume; empty for the whole of it.
    Volume { name: &'a str, path: &'a str },
}

/// What may not be written through a mount.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum ReadOnly {
    #[default]
    Nothing,
    /// The mount itself, not those below it.
    Itself,
    /// With all that is mounted below it.
    Everything,
}

impl Place<'_> {
    fn text(&self) -> String {
        match self {
            Self::Host(path) => format!("{path} of the node's tree"),
            Self::Volume { name, .. } => format!("volume {name}"),
        }
    }
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TreeOptions {
    pub read_only: ReadOnly,
    /// What is mounted below the place comes along.
    pub recursive: bool,
    pub propagation: Propagation,
    /// The propagation is also that of what is mounted below.
    pub propagation_recursive: bool,
}

/// A detached mount, with the zone's ids.
#[derive(Debug)]
pub struct Tree {
    pub mount: OwnedFd,
    /// It is no folder, so it is attached to a file.
    pub is_file: bool,
}

/// A device node to make: whose it is is said in the zone's ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct NodeSpec {
    pub block: bool,
    pub major: u32,
    pub minor: u32,
    /// Permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
}

const LOOK: OFlags = OFlags::PATH.union(OFlags::CLOEXEC);
const WITHIN: ResolveFlags = ResolveFlags::IN_ROOT.union(ResolveFlags::NO_MAGICLINKS);

/// Opens a path below `base`. A rename elsewhere may disturb the kernel's look at `..`; it wants to be
/// asked again then (openat2(2), `EAGAIN`).
fn look(base: &OwnedFd, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
    const ATTEMPTS: usize = 100;
    let mut found = Err(Errno::AGAIN);
    for _ in 0..ATTEMPTS {
        found = openat2(base, path, flags, Mode::empty(), WITHIN);
        if !matches!(found, Err(Errno::AGAIN)) {
            break;
        }
    }
    found
}

impl Store {
    /// Whether the node's own tree has something at `path`.
    pub fn host_has(&self, path: &str) -> Result<bool> {
        match look(&self.host()?, path, LOOK) {
            Ok(_) => Ok(true),
            Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => Ok(false),
            Err(reason) => Err(Error::io(format!("look for {path} in the node's tree"), reason)),
        }
    }

    /// Makes the folders of `path` in the node's own tree that are missing.
    pub fn make_host_folder(&self, path: &str) -> Result<()> {
        let what = || format!("make the folder {path} in the node's tree");
        let host = self.host()?;
        let mut above = openat(&host, ".", LOOK, Mode::empty()).during(what())?;
        let ends = path
            .match_indices('/')
            .map(|(at, _)| at)
            .filter(|at| *at > 0)
            .chain([path.len()]);
        let mut begin = 0;
        for end in ends {
            let name = path.get(begin..end).unwrap_or_default().trim_matches('/');
            begin = end;
            if name.is_empty() {
                continue;
            }
            // Each prefix from the tree's root, so that a link on the way is followed within the tree.
            let prefix = path.get(..end).unwrap_or_default();
            let found = match look(&host, prefix, LOOK) {
                Err(Errno::NOENT) => {
                    match mkdirat(&above, name, Mode::from_raw_mode(0o755)) {
                        Ok(()) | Err(Errno::EXIST) => {}
                        Err(reason) => return Err(Error::io(what(), reason)),
                    }
                    look(&host, prefix, LOOK)
                }
                found => found,
            };
            above = found.during(what())?;
        }
        Ok(())
    }

    /// A mount of `place` with the ids of `userns`: no device in it can be opened.
    ///
    /// # Errors
    /// [`Error::NoSuchPlace`] where there is nothing, beside what the kernel says.
    pub fn tree(&self, place: Place<'_>, options: TreeOptions, userns: BorrowedFd<'_>) -> Result<Tree> {
        let what = format!("mount {}", place.text());
        if options.propagation != Propagation::Private {
            self.share_host()?;
        }
        let found = self.open_place(place, LOOK)?;
        let is_file = FileType::from_raw_mode(fstat(&found).during(&what)?.st_mode) != FileType::Directory;
        let mut flags =
            OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
        if options.recursive {
            flags |= OpenTreeFlags::AT_RECURSIVE;
        }
        let mount = open_tree(&found, "", flags).during(&what)?;
        // What is mounted below has ids of its own.
        sys::block::map_ids(&mount, userns).during(&what)?;
        let own = Change {
            set: MountAttributes::NO_DEV,
            clear: MountAttributes::NO_SUID,
            propagation: Some(options.propagation),
        };
        change(&mount, own, false).during(&what)?;
        if options.propagation_recursive {
            let below = Change {
                propagation: Some(options.propagation),
                ..Change::default()
            };
            change(&mount, below, true).during(&what)?;
        }
        if options.read_only != ReadOnly::Nothing {
            let closed = Change {
                set: MountAttributes::READ_ONLY,
                ..Change::default()
            };
            change(&mount, closed, options.read_only == ReadOnly::Everything).during(&what)?;
        }
        Ok(Tree { mount, is_file })
    }

    /// Opens what is at a place.
    pub(crate) fn open_place(&self, place: Place<'_>, flags: OFlags) -> Result<OwnedFd> {
        let what = || format!("open {}", place.text());
        let (base, path) = match place {
            Place::Host(path) => (self.host()?, path),
            Place::Volume { name, path } => {
                check_name(name)?;
                let volume = openat(self.volumes()?, name, LOOK | OFlags::NOFOLLOW, Mode::empty());
                (volume.during(what())?, if path.is_empty() { "." } else { path })
            }
        };
        match look(&base, path, flags) {
            Err(Errno::NOENT | Errno::NOTDIR) => Err(Error::NoSuchPlace {
                path: path.to_owned(),
            }),
            found => found.during(what()),
        }
    }

    /// A mount of a node of the store's own for a device, which can be opened through it alone. Nodes are
    /// kept: the kernel attaches no mount of what has no name.
    pub fn device_node(&self, node: NodeSpec, userns: BorrowedFd<'_>) -> Result<OwnedFd> {
        let NodeSpec {
            block,
            major,
            minor,
            mode,
            uid,
            gid,
        } = node;
        let what = || format!("make a node of device {major}:{minor}");
        let letter = if block { 'b' } else { 'c' };
        let name = format!("{letter}-{major}-{minor}-{mode:o}-{uid}-{gid}");
        let devices = self.path().join("store/devices");
        std::fs::create_dir_all(&devices).during(what())?;
        let place = devices.join(name);
        if !place.exists() {
            let draft = self.serial_name("device");
            let kind = if block {
                FileType::BlockDevice
            } else {
                FileType::CharacterDevice
            };
            let device = rustix::fs::makedev(major, minor);
            mknodat(&self.tmp, &draft, kind, Mode::empty(), device).during(what())?;
            let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
            let mode = Mode::from_raw_mode(mode);
            chownat(&self.tmp, &draft, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .and_then(|()| chmodat(&self.tmp, &draft, mode, AtFlags::empty()))
                .and_then(
                    |()| match renameat_with(&self.tmp, &draft, CWD, &place, RenameFlags::NOREPLACE) {
                        // Somebody else was faster.
                        Err(Errno::EXIST) => unlinkat(&self.tmp, &draft, AtFlags::empty()),
                        renamed => renamed,
                    },
                )
                .during(what())?;
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, &place, flags).during(what())?;
        sys::block::map_ids(&mount, userns).during(what())?;
        let own = Change {
            set: MountAttributes::NO_SUID.with(MountAttributes::NO_EXEC),
            clear: MountAttributes::NO_DEV,
            propagation: Some(Propagation::Private),
        };
        change(&mount, own, false).during(what())?;
        Ok(mount)
    }

    /// The root of the node's own tree, as it is mounted now.
    fn host(&self) -> Result<OwnedFd> {
        let path = self.path().join(HOST);
        open(&path, LOOK | OFlags::DIRECTORY, Mode::empty()).during(format!("open {}", path.display()))
    }

    /// Makes the node's tree a mount that hands on what is mounted below it; it stays so.
    fn share_host(&self) -> Result<()> {
        let path = self.path().join(HOST);
        let what = || format!("share the mount {}", path.display());
        let _turn = self.mounting.lock().unwrap_or_else(PoisonError::into_inner);
        if is_mount(&path).during(what())? {
            return Ok(());
        }
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let mount = open_tree(CWD, &path, flags).during(what())?;
        let shared = Change {
            propagation: Some(Propagation::Shared),
            ..Change::default()
        };
        change(&mount, shared, false).during(what())?;
        pool::attach(mount.as_fd(), &path).during(what())
    }
}
