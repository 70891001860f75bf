//! Makes of a transfer that has arrived a snapshot, and of that a root or a volume.
//!
//! The steps are done in a draft that nobody sees. Each path is opened below it without following a link,
//! and each name is one component, so that no stream reaches anything else.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt as _;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RenameFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, chmodat,
    chownat, copy_file_range, fstat, ftruncate, futimens, linkat, lremovexattr, lsetxattr, makedev, mkdirat,
    mknodat, openat, openat2, renameat, renameat_with, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};
use sys::btrfs;
use sys::btrfs_snapshots::{self, Uuid};

use super::incoming::Arrived;
use super::send::identity;
use super::stream::{Moment, Step, Steps};
use super::{Sort, bad, hex, invalid};
use crate::copy as copying;
use crate::error::{During, Error, Result};
use crate::folder;
use crate::root::Root;
use crate::snapshot::Of;
use crate::store::Store;

const WITHIN: ResolveFlags = ResolveFlags::BENEATH
    .union(ResolveFlags::NO_SYMLINKS)
    .union(ResolveFlags::NO_MAGICLINKS)
    .union(ResolveFlags::NO_XDEV);
/// What overlayfs notes in a zone's upper tree when mounted as roots are here.
const OF_OVERLAY: [&[u8]; 4] = [
    b"trusted.overlay.opaque",
    b"trusted.overlay.impure",
    b"trusted.overlay.origin",
    b"trusted.overlay.uuid",
];

impl Store {
    /// The snapshot of a zone or volume that is the one with `uuid`, here or where it came from.
    pub fn snapshot_with(&self, of: Of<'_>, uuid: &str) -> Result<Option<String>> {
        for snapshot in self.snapshots(of)? {
            if identity(&self.open_snapshot(of, &snapshot.name)?)? == uuid {
                return Ok(Some(snapshot.name));
            }
        }
        Ok(None)
    }

    /// Makes of a whole transfer a zone's root or a volume that is not there yet, with the snapshot that was
    /// sent; what it holds counts for `limit`. Or, of the difference to a snapshot that is there, one more
    /// snapshot of a zone or volume, which itself is left as it is. All of it or nothing can be seen.
    ///
    /// # Errors
    /// What it needs is not there (the image, the snapshot that it is the difference to), or is there
    /// already; the stream is damaged; the pool is full.
    pub fn take_in(
        &self,
        arrived: &Arrived,
        of: Of<'_>,
        limit: Option<u64>,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let label = &arrived.label;
        let what = || format!("take in snapshot {} of {}", label.snapshot, of.name());
        let fits = matches!(
            (of, &label.kind),
            (Of::Zone(_), Sort::Zone) | (Of::Volume(_), Sort::Volume)
        );
        if !fits {
            return Err(bad("it is not of what it should become"));
        }
        self.quotas.check(limit)?;
        let parent = match &label.from {
            None => None,
            Some(from) => Some(self.snapshot_with(of, from)?.ok_or_else(|| {
                Error::Refused(format!(
                    "{} has no snapshot that this is the difference to; send an earlier one first, or the whole.",
                    of.name()
                ))
            })?),
        };
        let parent = parent.map(|name| self.open_snapshot(of, &name)).transpose()?;
        let draft = self.serial_name("received");
        match &parent {
            None => self.quotas.create(&self.tmp, &draft, None).during(what())?,
            Some(parent) => btrfs::snapshot(parent, &self.tmp, &draft).during(what())?,
        }
        let placed = self
            .apply(arrived, &draft, parent.as_ref(), tell)
            .and_then(|()| match parent {
                None => self.place_new(&draft, of, &label.snapshot, limit),
                Some(_) => self.place_more(&draft, of, &label.snapshot),
            });
        placed.inspect_err(|_| {
            // What cannot be removed now is collected when the store is opened.
            let _ = btrfs::destroy_subvolume(&self.tmp, &draft);
        })
    }

    /// The draft becomes the root or the volume, and the snapshot is made of it.
    fn place_new(&self, draft: &str, of: Of<'_>, snapshot: &str, limit: Option<u64>) -> Result<()> {
        let what = || format!("place {}", of.name());
        let subvolume = folder::open(&self.tmp, draft).during(what())?;
        let root = match of {
            Of::Zone(_) => Some(self.known_root(draft)?),
            Of::Volume(_) => None,
        };
        match (of, limit) {
            (_, None) => {}
            (Of::Zone(_), Some(limit)) => self.quotas.limit_root(&subvolume, limit, false).during(what())?,
            (Of::Volume(_), Some(_)) => self.quotas.bind(&subvolume, limit).during(what())?,
        }
        self.snapshot_of(&subvolume, of, snapshot)?;
        // What is changed from here on is not what was received: later snapshots are not to say so.
        btrfs_snapshots::set_received(&subvolume, Uuid::default()).during(what())?;
        let place = self.place(of)?;
        let rename = || match renameat_with(&self.tmp, draft, &place, of.name(), RenameFlags::NOREPLACE) {
            Err(Errno::EXIST) => Err(Error::Refused(format!("There is a {} already.", of.name()))),
            renamed => renamed.during(what()),
        };
        let (Of::Zone(zone), Some(root)) = (of, root) else {
            rename()?;
            return self.flush();
        };
        // Under the lock: nobody collects the image's layers in between.
        let mut index = self.index();
        if root.layer.is_some_and(|layer| !index.layers.contains_key(&layer)) {
            return Err(bad("its image is not here"));
        }
        rename()?;
        index.roots.insert(zone.to_owned(), root);
        drop(index);
        self.know_snapshot(of, snapshot);
        self.flush()
    }

    /// A snapshot is made of the draft.
    fn place_more(&self, draft: &str, of: Of<'_>, snapshot: &str) -> Result<()> {
        let what = || format!("place snapshot {snapshot} of {}", of.name());
        let subvolume = folder::open(&self.tmp, draft).during(what())?;
        if let Of::Zone(_) = of {
            self.known_root(draft)?;
        }
        let origin = self.origin(of)?;
        self.quotas.join(&subvolume, &origin).during(what())?;
        self.snapshot_of(&subvolume, of, snapshot)?;
        drop(subvolume);
        self.destroy_whole(draft).during(what())
    }

    /// What the draft of a root is of, whose image must be here.
    fn known_root(&self, draft: &str) -> Result<Root> {
        let root = Root::read(&self.tmp_path().join(draft)).ok_or_else(|| bad("it is no zone's root"))?;
        let index = self.index();
        let image = index.images.get(&root.image).ok_or_else(|| Error::NoSuchImage {
            name: root.image.to_string(),
        })?;
        if image.layers.last().copied() != root.layer {
            return Err(bad("its image is not what it says"));
        }
        Ok(root)
    }

    fn apply(
        &self,
        arrived: &Arrived,
        draft: &str,
        parent: Option<&OwnedFd>,
        tell: &mut dyn FnMut(u64, u64),
    ) -> Result<()> {
        let what = || format!("unpack snapshot {}", arrived.label.snapshot);
        let root = folder::open(&self.tmp, draft).during(what())?;
        let told = |error: io::Error| match error.kind() {
            io::ErrorKind::InvalidData => bad(error.to_string()),
            io::ErrorKind::UnexpectedEof => bad("its stream is cut off"),
            _ => Error::io(what(), error),
        };
        let mut steps = Steps::begin(arrived.reader()?).map_err(told)?;
        let uuid = match steps.next().map_err(told)? {
            Step::Begin { uuid, from } => {
                let same =
                    hex(&uuid) == arrived.label.uuid && from.map(|from| hex(&from)) == arrived.label.from;
                if !same {
                    return Err(bad("its content is another's"));
                }
                uuid
            }
            _ => return Err(bad("its stream has no beginning")),
        };
        // The kernel's stream passes files through the top folder, and says nothing of its times then.
        let mut times = copying::times(&fstat(&root).during(what())?);
        let mut tree = Tree {
            own: uuid,
            root: &root,
            parent,
            parent_uuid: arrived.label.from.as_deref(),
            open: None,
        };
        let (begin, end) = arrived.content;
        loop {
            let step = steps.next().map_err(told)?;
            if step == Step::End {
                break;
            }
            if let Step::Times {
                path: b"",
                accessed,
                modified,
            } = step
            {
                times.last_access = time(accessed);
                times.last_modification = time(modified);
            }
            tree.take(&step).map_err(told)?;
            tell(steps.done, end - begin);
        }
        if !steps.nothing_follows().map_err(told)? {
            return Err(bad("something comes after its stream"));
        }
        futimens(&root, &times).during(what())?;
        btrfs_snapshots::set_received(&root, uuid).during(what())
    }
}

/// The tree that is made.
struct Tree<'a> {
    own: Uuid,
    root: &'a OwnedFd,
    parent: Option<&'a OwnedFd>,
    parent_uuid: Option<&'a str>,
    /// The file that was written to last.
    open: Option<(Vec<u8>, File)>,
}

impl Tree<'_> {
    fn take(&mut self, step: &Step<'_>) -> io::Result<()> {
        if let Step::Write { path, .. } | Step::Clone { path, .. } | Step::Truncate { path, .. } = step {
            if self.open.as_ref().is_none_or(|(known, _)| known != path) {
                self.open = Some((path.to_vec(), self.file(path)?));
            }
            let Some((_, file)) = &self.open else {
                return Ok(());
            };
            return self.content(file, step);
        }
        // A path may be another file's from here on.
        self.open = None;
        self.change(step)
    }

    fn content(&self, file: &File, step: &Step<'_>) -> io::Result<()> {
        match *step {
            Step::Write { offset, data, .. } => file.write_all_at(data, offset),
            Step::Truncate { size, .. } => Ok(ftruncate(file, size)?),
            Step::Clone {
                offset,
                length,
                source,
                from,
                from_offset,
                ..
            } => {
                let source = if source == self.own {
                    open_file(self.root, from)?
                } else {
                    let parent = self.parent.filter(|_| self.parent_uuid == Some(&hex(&source)));
                    open_file(
                        parent.ok_or_else(|| invalid("it clones from a snapshot that is not here"))?,
                        from,
                    )?
                };
                copy(&source, from_offset, file, offset, length)
            }
            _ => Ok(()),
        }
    }

    fn change(&self, step: &Step<'_>) -> io::Result<()> {
        let make = |path, kind, mode: u32, device| -> io::Result<()> {
            let (dir, name) = self.place(path)?;
            Ok(mknodat(&dir, name, kind, Mode::from_raw_mode(mode), device)?)
        };
        match *step {
            Step::File(path) => make(path, FileType::RegularFile, 0o600, 0),
            Step::Fifo(path) => make(path, FileType::Fifo, 0o600, 0),
            Step::Socket(path) => make(path, FileType::Socket, 0o600, 0),
            Step::Node { path, mode, device } => {
                let kind = FileType::from_raw_mode(mode);
                if !matches!(kind, FileType::CharacterDevice | FileType::BlockDevice) {
                    return Err(invalid("a node of it is no device"));
                }
                make(path, kind, mode & 0o7777, makedev(device.0, device.1))
            }
            Step::Folder(path) => {
                let (dir, name) = self.place(path)?;
                Ok(mkdirat(&dir, name, Mode::RWXU)?)
            }
            Step::Symlink { path, target } => {
                let (dir, name) = self.place(path)?;
                Ok(symlinkat(target, &dir, name)?)
            }
            Step::Rename { path, to } => {
                let ((dir, name), (to, to_name)) = (self.place(path)?, self.place(to)?);
                Ok(renameat(&dir, name, &to, to_name)?)
            }
            Step::Link { path, target } => {
                let ((dir, name), (from, from_name)) = (self.place(path)?, self.place(target)?);
                Ok(linkat(&from, from_name, &dir, name, AtFlags::empty())?)
            }
            Step::Unlink(path) => {
                let (dir, name) = self.place(path)?;
                Ok(unlinkat(&dir, name, AtFlags::empty())?)
            }
            Step::RemoveFolder(path) => {
                let (dir, name) = self.place(path)?;
                Ok(unlinkat(&dir, name, AtFlags::REMOVEDIR)?)
            }
            _ => self.note(step),
        }
    }

    /// What is said of what is there.
    fn note(&self, step: &Step<'_>) -> io::Result<()> {
        match *step {
            Step::SetXattr { path, name, value } if is_taken(name)? => {
                let path = self.named(path)?;
                Ok(lsetxattr(path.1, name, value, XattrFlags::empty())?)
            }
            Step::RemoveXattr { path, name } if is_taken(name)? => {
                let path = self.named(path)?;
                Ok(lremovexattr(path.1, name)?)
            }
            Step::Mode { path, mode } => {
                let (dir, name) = self.target(path)?;
                // Nobody else is here who could put a link in its place.
                if FileType::from_raw_mode(statat(&dir, name, AtFlags::SYMLINK_NOFOLLOW)?.st_mode)
                    == FileType::Symlink
                {
                    return Err(invalid("it gives a link a mode"));
                }
                Ok(chmodat(
                    &dir,
                    name,
                    Mode::from_raw_mode(mode & 0o7777),
                    AtFlags::empty(),
                )?)
            }
            Step::Owner { path, uid, gid } => {
                if uid == u32::MAX || gid == u32::MAX {
                    return Err(invalid("an owner in it is no valid id"));
                }
                let (dir, name) = self.target(path)?;
                let (uid, gid) = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
                Ok(chownat(&dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Step::Times {
                path,
                accessed,
                modified,
            } => {
                let (dir, name) = self.target(path)?;
                let times = Timestamps {
                    last_access: time(accessed),
                    last_modification: time(modified),
                };
                Ok(utimensat(&dir, name, &times, AtFlags::SYMLINK_NOFOLLOW)?)
            }
            Step::Begin { .. } => Err(invalid("its stream begins twice")),
            _ => Ok(()),
        }
    }

    /// The folder that something is in, and its name there.
    fn place<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        let at = path.iter().rposition(|byte| *byte == b'/');
        let (dir, name) = match at {
            None => (&b"."[..], path),
            Some(at) => {
                let (dir, name) = path.split_at(at);
                (dir, name.get(1..).unwrap_or_default())
            }
        };
        if matches!(name, b"" | b"." | b"..") {
            return Err(invalid("a path in it names nothing"));
        }
        Ok((
            openat2(self.root, dir, folder::FLAGS, Mode::empty(), WITHIN)?,
            name,
        ))
    }

    /// The same, where the root itself can be meant.
    fn target<'p>(&self, path: &'p [u8]) -> io::Result<(OwnedFd, &'p [u8])> {
        if path.is_empty() {
            return Ok((self.root.try_clone()?, b"."));
        }
        self.place(path)
    }

    /// A path by which the kernel's calls without a folder reach it, as long as the folder is open.
    fn named(&self, path: &[u8]) -> io::Result<(OwnedFd, Vec<u8>)> {
        use std::os::fd::AsRawFd as _;
        let (dir, name) = self.target(path)?;
        let path = [format!("/proc/self/fd/{}/", dir.as_raw_fd()).as_bytes(), name].concat();
        Ok((dir, path))
    }

    fn file(&self, path: &[u8]) -> io::Result<File> {
        let (dir, name) = self.place(path)?;
        let flags = OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
        only_file(openat(&dir, name, flags, Mode::empty())?)
    }
}

/// Opens a file below a tree to read it.
fn open_file(root: &OwnedFd, path: &[u8]) -> io::Result<File> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    only_file(openat2(root, path, flags, Mode::empty(), WITHIN)?)
}

fn only_file(fd: OwnedFd) -> io::Result<File> {
    let file = File::from(fd);
    if file.metadata()?.is_file() {
        Ok(file)
    } else {
        Err(invalid("it writes to what is no file"))
    }
}

/// By reference where the file system can.
fn copy(from: &File, mut from_offset: u64, to: &File, mut offset: u64, mut length: u64) -> io::Result<()> {
    while length > 0 {
        let part = usize::try_from(length).unwrap_or(usize::MAX);
        let (from, to) = (from.as_fd(), to.as_fd());
        let count = copy_file_range(from, Some(&mut from_offset), to, Some(&mut offset), part)?;
        if count == 0 {
            return Err(invalid("it clones what is not there"));
        }
        length -= count as u64;
    }
    Ok(())
}

/// Whether an extended attribute is taken over. Host labels mean nothing here.
fn is_taken(name: &[u8]) -> io::Result<bool> {
    if name == b"security.capability" || OF_OVERLAY.contains(&name) {
        return Ok(true);
    }
    if name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_") {
        return Ok(true);
    }
    if name.starts_with(b"security.") {
        return Ok(false);
    }
    Err(invalid(format!(
        "it has the attribute {}",
        String::from_utf8_lossy(name)
    )))
}

fn time((seconds, nanoseconds): Moment) -> Timespec {
    Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.clamp(0, 999_999_999),
    }
}
