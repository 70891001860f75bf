//! Places the entries of a tar in a tree: a layer's, or what is copied into a zone.
//!
//! Whatever an entry says, nothing outside the tree is touched: paths are opened relative to the
//! tree's root by `openat2` without following links, and a link on the way is resolved here, as the
//! image's own root would see it. Names that are absolute or hold `..` are refused.

pub(crate) mod copying;

use std::collections::{HashSet, VecDeque};
use std::ffi::OsStr;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, ResolveFlags, Timespec, Timestamps, XattrFlags, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, makedev, mkdirat, mknodat, openat, openat2, readlinkat, statat, symlinkat,
    unlinkat, utimensat,
};
use rustix::io::Errno;
use rustix::process::{Gid, Uid};

use crate::error::{Error, Result};
use crate::folder;
use crate::recipe::Writer;
use crate::tarball::{Entry, Kind, Map, Tarball};
use copying::{CAPABILITY, Copying};

pub(crate) const WHITEOUT: &[u8] = b".wh.";
pub(crate) const OPAQUE: &[u8] = b".wh..wh..opq";
/// Bookkeeping of aufs that some archives still carry.
const AUFS: &[u8] = b".wh..wh.";
/// `MAXSYMLINKS` of the kernel.
const MAX_LINKS: usize = 40;
/// Deeper trees cannot be named by a path.
const MAX_DEPTH: usize = 2048;

/// What the entries of a tar are.
#[derive(Debug, Clone)]
pub(crate) enum Placing {
    /// A layer: ids are meant as they are, and whiteouts hide what is below.
    Layer,
    /// Files for a folder of a zone's tree, which is seen with the host's ids.
    Copy(Copying),
}

/// One placing into the tree open as `root`.
pub(crate) struct Extractor {
    root: OwnedFd,
    placing: Placing,
    /// Bytes of file content so far.
    size: u64,
    /// What this layer has placed, by resolved path: whiteouts hide only what is below the layer.
    placed: HashSet<Vec<u8>>,
    /// Links to an absolute path that this layer has placed.
    absolute_links: HashSet<Vec<u8>>,
    /// Folders get their times last, after what is placed in them.
    folder_times: Vec<(Vec<u8>, (i64, u32))>,
    /// The last entry's folder: entries of one folder stand together.
    parent: Option<(Vec<u8>, Place)>,
    buffer: Vec<u8>,
}

/// A folder of the tree: its descriptor and its path without links.
struct Place {
    fd: OwnedFd,
    path: Vec<u8>,
}

/// What went wrong with one entry.
enum Refusal {
    Kernel(io::Error),
    Reason(String),
    Archive(io::Error),
}

impl<E: Into<io::Error>> From<E> for Refusal {
    fn from(error: E) -> Refusal {
        Refusal::Kernel(error.into())
    }
}

type Outcome<T> = std::result::Result<T, Refusal>;

fn refuse<T>(reason: impl Into<String>) -> Outcome<T> {
    Err(Refusal::Reason(reason.into()))
}

impl Extractor {
    pub(crate) fn new(root: OwnedFd, placing: Placing) -> Extractor {
        Extractor {
            root,
            placing,
            size: 0,
            placed: HashSet::new(),
            absolute_links: HashSet::new(),
            folder_times: Vec::new(),
            parent: None,
            buffer: vec![0; 128 << 10],
        }
    }

    /// Places all entries; returns the bytes of file content.
    pub(crate) fn run<R: Read>(mut self, tarball: &mut Tarball<R>) -> Result<u64> {
        while let Some(entry) = tarball.next()? {
            let placed = match &self.placing {
                Placing::Layer => self.place(&entry, tarball),
                Placing::Copy(copying) => copying
                    .rebase(&entry)
                    .and_then(|entry| self.place(&entry, tarball)),
            };
            placed.map_err(|refusal| match refusal {
                Refusal::Reason(reason) => Error::BadEntry {
                    entry: entry.name(),
                    reason,
                },
                Refusal::Archive(reason) => Error::BadArchive {
                    reason: format!("entry `{}` cannot be read: {reason}", entry.name()),
                },
                Refusal::Kernel(reason) => match reason.kind() {
                    io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::Full {
                        what: format!("write `{}`", entry.name()),
                    },
                    _ => Error::BadEntry {
                        entry: entry.name(),
                        reason: format!("it cannot be placed ({reason})"),
                    },
                },
            })?;
        }
        self.finish_folders()?;
        Ok(self.size)
    }

    fn place<R: Read>(&mut self, entry: &Entry, content: &mut Tarball<R>) -> Outcome<()> {
        let components = components(&entry.path)?;
        let Some((name, folders)) = components.split_last() else {
            // The tree's own root.
            return self.place_root(entry);
        };
        let folder = folders.join(&b'/');
        let place = match self.parent.take() {
            Some((known, place)) if known == folder => place,
            _ => self.open_folder(folders)?,
        };
        let is_whiteout = matches!(self.placing, Placing::Layer) && name.starts_with(WHITEOUT);
        let outcome = if is_whiteout {
            self.whiteout(&place, name)
        } else {
            self.place_in(&place, name, entry, content)
        };
        // A folder may have been replaced where something other than a file was placed.
        if entry.kind == Kind::File && !is_whiteout {
            self.parent = Some((folder, place));
        }
        outcome
    }

    fn place_root(&mut self, entry: &Entry) -> Outcome<()> {
        if entry.kind != Kind::Dir {
            return refuse("it would replace the root folder");
        }
        let root = openat(
            &self.root,
            ".",
            OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
            Mode::empty(),
        )?;
        set_metadata(&root, entry)?;
        self.folder_times.push((Vec::new(), entry.mtime));
        Ok(())
    }

    fn place_in<R: Read>(
        &mut self,
        place: &Place,
        name: &[u8],
        entry: &Entry,
        content: &mut Tarball<R>,
    ) -> Outcome<()> {
        let dir = place.fd.as_fd();
        let path = join(&place.path, name);
        // A link to itself would be removed before it is made.
        let target = match entry.kind {
            Kind::HardLink => Some(self.link_target(&entry.link, &path)?),
            _ => None,
        };
        let existing = statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok();
        let is_dir = existing.is_some_and(|s| FileType::from_raw_mode(s.st_mode) == FileType::Directory);
        if existing.is_some() && !(is_dir && entry.kind == Kind::Dir) {
            if let Placing::Copy(Copying { keep_kinds: true, .. }) = self.placing
                && is_dir != (entry.kind == Kind::Dir)
            {
                return refuse(if is_dir {
                    "it would overwrite a directory with a non-directory"
                } else {
                    "it would overwrite a non-directory with a directory"
                });
            }
            remove(dir, name, 0)?;
            self.absolute_links.remove(&path);
            if self.placed.contains(&path) || is_dir && self.has_placed_below(&path) {
                content.recipe().map(Writer::spoil);
            }
        }
        let mode = Mode::from_raw_mode(entry.mode);
        match entry.kind {
            Kind::Dir => {
                if !is_dir {
                    mkdirat(dir, name, Mode::RWXU)?;
                }
                set_metadata(&folder::open(dir, name)?, entry)?;
                self.folder_times.push((path.clone(), entry.mtime));
            }
            Kind::File => {
                let flags =
                    OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let file = openat(dir, name, flags, Mode::RUSR | Mode::WUSR)?;
                self.size += match &entry.holes {
                    None => {
                        begin_file(content, &path, 0);
                        copy(content, &file, &mut self.buffer)?
                    }
                    Some(map) => copy_pieces(content, &file, &path, map, &mut self.buffer)?,
                };
                set_metadata(&file, entry)?;
                futimens(&file, &times(entry.mtime))?;
            }
            Kind::HardLink => {
                if let Some((from, from_name)) = target {
                    linkat(&from.fd, from_name.as_slice(), dir, name, AtFlags::empty())?;
                }
            }
            Kind::Symlink => {
                symlinkat(OsStr::from_bytes(&entry.link), dir, name)?;
                if entry.link.starts_with(b"/") {
                    self.absolute_links.insert(path.clone());
                }
                self.own(dir, name, entry)?;
            }
            Kind::Fifo | Kind::Char { .. } | Kind::Block { .. } => {
                let (kind, device) = match entry.kind {
                    Kind::Char { major, minor } => (FileType::CharacterDevice, makedev(major, minor)),
                    Kind::Block { major, minor } => (FileType::BlockDevice, makedev(major, minor)),
                    _ => (FileType::Fifo, 0),
                };
                mknodat(dir, name, kind, mode, device)?;
                self.own(dir, name, entry)?;
                rustix::fs::chmodat(dir, name, mode, AtFlags::empty())?;
            }
        }
        self.placed.insert(path);
        Ok(())
    }

    fn own(&self, dir: impl AsFd, name: &[u8], entry: &Entry) -> Outcome<()> {
        let (uid, gid) = owner(entry);
        chownat(&dir, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
        utimensat(&dir, name, &times(entry.mtime), AtFlags::SYMLINK_NOFOLLOW)?;
        Ok(())
    }

    /// Folder and name of what a hard link points to; it must exist.
    fn link_target(&self, link: &[u8], own_path: &[u8]) -> Outcome<(Place, Vec<u8>)> {
        let shown = String::from_utf8_lossy(link).into_owned();
        let parts = match components(link) {
            Ok(parts) => parts,
            Err(Refusal::Reason(reason)) => {
                return refuse(format!("it is a hard link to `{shown}`, and of that {reason}"));
            }
            Err(other) => return Err(other),
        };
        let Some((name, folders)) = parts.split_last() else {
            return refuse("it is a hard link to the root folder");
        };
        let missing = || format!("it is a hard link to `{shown}`, which is not in the image");
        let path = self.resolve(folders)?;
        let Some(fd) = self.open_resolved(&path)? else {
            return refuse(missing());
        };
        let place = Place { fd, path };
        if join(&place.path, name) == own_path {
            return refuse("it is a hard link to itself");
        }
        match statat(&place.fd, *name, AtFlags::SYMLINK_NOFOLLOW) {
            Err(Errno::NOENT) => refuse(missing()),
            Err(reason) => Err(reason.into()),
            Ok(stat) if FileType::from_raw_mode(stat.st_mode) == FileType::Directory => {
                refuse(format!("it is a hard link to the folder `{shown}`"))
            }
            Ok(_) => Ok((place, name.to_vec())),
        }
    }

    fn whiteout(&mut self, place: &Place, name: &[u8]) -> Outcome<()> {
        if name == OPAQUE {
            for child in folder::names(&place.fd)? {
                if !self.has_placed_below(&join(&place.path, &child)) {
                    remove(&place.fd, &child, 0)?;
                }
            }
            return Ok(());
        }
        if name.starts_with(AUFS) {
            return Ok(());
        }
        let hidden = name.get(WHITEOUT.len()..).unwrap_or_default();
        if matches!(hidden, b"" | b"." | b"..") {
            return refuse("it is a whiteout of nothing");
        }
        if self.placed.contains(&join(&place.path, hidden)) {
            return Ok(());
        }
        match remove(&place.fd, hidden, 0) {
            Err(Refusal::Kernel(reason)) if reason.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other,
        }
    }

    fn has_placed_below(&self, path: &[u8]) -> bool {
        let below = |other: &Vec<u8>| {
            other
                .strip_prefix(path)
                .is_some_and(|rest| rest.is_empty() || rest.starts_with(b"/"))
        };
        self.placed.contains(path) || self.placed.iter().any(below)
    }

    /// Opens the folder, making what is missing of it.
    fn open_folder(&mut self, folders: &[&[u8]]) -> Outcome<Place> {
        let plain = folders.join(&b'/');
        let path = match self.open_resolved(&plain) {
            Ok(Some(fd)) => return Ok(Place { fd, path: plain }),
            Ok(None) | Err(Refusal::Kernel(_)) => self.resolve(folders)?,
            Err(other) => return Err(other),
        };
        if let Some(fd) = self.open_resolved(&path)? {
            return Ok(Place { fd, path });
        }
        let mut made = Vec::new();
        for part in path.split(|byte| *byte == b'/') {
            let Some(fd) = self.open_resolved(&made)? else {
                return refuse("its folder cannot be made");
            };
            match mkdirat(&fd, part, Mode::from_raw_mode(0o755)) {
                Ok(()) | Err(Errno::EXIST) => made = join(&made, part),
                Err(reason) => return Err(reason.into()),
            }
        }
        match self.open_resolved(&path)? {
            Some(fd) => Ok(Place { fd, path }),
            None => refuse("its folder cannot be made"),
        }
    }

    /// Opens a folder by a path that holds no links; `None` where it does not exist.
    fn open_resolved(&self, path: &[u8]) -> Outcome<Option<OwnedFd>> {
        let path = if path.is_empty() { b".".as_slice() } else { path };
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let mut resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_SYMLINKS;
        // A zone's volumes belong to its tree; a layer has nothing mounted in it.
        resolve.set(ResolveFlags::NO_XDEV, matches!(self.placing, Placing::Layer));
        match openat2(&self.root, path, flags, Mode::empty(), resolve) {
            Ok(fd) => Ok(Some(fd)),
            Err(Errno::NOENT) => Ok(None),
            Err(Errno::NOTDIR) => Err(Refusal::Kernel(Errno::NOTDIR.into())),
            Err(reason) => Err(reason.into()),
        }
    }

    /// The path that `folders` means inside the image, with the links on the way followed.
    fn resolve(&self, folders: &[&[u8]]) -> Outcome<Vec<u8>> {
        let mut pending: VecDeque<Vec<u8>> = folders.iter().map(|part| part.to_vec()).collect();
        let mut path: Vec<u8> = Vec::new();
        let mut links = 0;
        while let Some(part) = pending.pop_front() {
            if part == b".." {
                // A zone's own root is above itself; an image has no business there.
                if path.is_empty() && matches!(self.placing, Placing::Layer) {
                    return refuse("its path leads out of the image through a link");
                }
                let end = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
                path.truncate(end);
                continue;
            }
            let next = join(&path, &part);
            let Some(target) = self.read_link(&path, &part)? else {
                path = next;
                continue;
            };
            links += 1;
            if links > MAX_LINKS {
                return refuse("its path leads through a loop of links");
            }
            if target.starts_with(b"/") {
                if self.absolute_links.contains(&next) {
                    return refuse(format!(
                        "its path leads through the link `{}` of the same layer to `{}`",
                        String::from_utf8_lossy(&next),
                        String::from_utf8_lossy(&target)
                    ));
                }
                path.clear();
            }
            let parts = target
                .split(|byte| *byte == b'/')
                .filter(|part| !matches!(*part, b"" | b"."));
            for part in parts.rev() {
                pending.push_front(part.to_vec());
            }
        }
        Ok(path)
    }

    /// The target where `name` in the folder `path` is a link.
    fn read_link(&self, path: &[u8], name: &[u8]) -> Outcome<Option<Vec<u8>>> {
        let Some(dir) = self.open_resolved(path)? else {
            return Ok(None);
        };
        match readlinkat(&dir, name, Vec::new()) {
            Ok(target) => Ok(Some(target.into_bytes())),
            Err(Errno::INVAL | Errno::NOENT) => Ok(None),
            Err(reason) => Err(reason.into()),
        }
    }

    fn finish_folders(&self) -> Result<()> {
        for (path, mtime) in self.folder_times.iter().rev() {
            // A later entry may have removed or replaced the folder.
            if let Ok(Some(dir)) = self.open_resolved(path) {
                futimens(&dir, &times(*mtime)).map_err(|reason| {
                    Error::io(
                        format!("set the time of `{}`", String::from_utf8_lossy(path)),
                        reason,
                    )
                })?;
            }
        }
        Ok(())
    }
}

/// The parts of an entry's name, without `.` and empty ones.
fn components(path: &[u8]) -> Outcome<Vec<&[u8]>> {
    if path.starts_with(b"/") {
        return refuse("its path is absolute");
    }
    if path.contains(&0) {
        return refuse("its path holds a zero byte");
    }
    let parts: Vec<&[u8]> = path
        .split(|byte| *byte == b'/')
        .filter(|part| !matches!(*part, b"" | b"."))
        .collect();
    if parts.iter().any(|part| *part == b"..") {
        return refuse("its path holds `..`");
    }
    Ok(parts)
}

fn join(path: &[u8], name: &[u8]) -> Vec<u8> {
    if path.is_empty() {
        name.to_vec()
    } else {
        [path, name].join(&b'/')
    }
}

fn times((seconds, nanoseconds): (i64, u32)) -> Timestamps {
    let time = Timespec {
        tv_sec: seconds,
        tv_nsec: nanoseconds.into(),
    };
    Timestamps {
        last_access: time,
        last_modification: time,
    }
}

fn owner(entry: &Entry) -> (Uid, Gid) {
    (Uid::from_raw(entry.uid), Gid::from_raw(entry.gid))
}

/// Owner first: changing it clears the set-id bits and the capability.
fn set_metadata(fd: impl AsFd, entry: &Entry) -> Outcome<()> {
    if entry.uid == u32::MAX || entry.gid == u32::MAX {
        return refuse("its owner is no valid id");
    }
    let (uid, gid) = owner(entry);
    fchown(&fd, Some(uid), Some(gid))?;
    fchmod(&fd, Mode::from_raw_mode(entry.mode))?;
    for (name, value) in &entry.xattrs {
        // `trusted.` is overlayfs' own and host labels mean nothing here: neither is taken over.
        let taken =
            name == CAPABILITY || name.starts_with(b"user.") || name.starts_with(b"system.posix_acl_");
        if taken {
            fsetxattr(&fd, name.as_slice(), value, XattrFlags::empty())?;
        }
    }
    Ok(())
}

fn copy(from: &mut dyn Read, to: impl AsFd, buffer: &mut [u8]) -> Outcome<u64> {
    let mut total = 0;
    loop {
        let count = match from.read(buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(reason) if reason.kind() == io::ErrorKind::Interrupted => continue,
            Err(reason) => return Err(Refusal::Archive(reason)),
        };
        let mut rest = buffer.get(..count).unwrap_or_default();
        while !rest.is_empty() {
            let written = rustix::io::retry_on_intr(|| rustix::io::write(&to, rest))?;
            rest = rest.get(written..).unwrap_or_default();
        }
        total += count as u64;
    }
}

/// The same for a file with holes, each piece to its place.
fn copy_pieces<R: Read>(
    from: &mut Tarball<R>,
    to: impl AsFd,
    path: &[u8],
    map: &Map,
    buffer: &mut [u8],
) -> Outcome<u64> {
    let mut total = 0;
    for (offset, length) in &map.pieces {
        begin_file(from, path, *offset);
        rustix::fs::seek(&to, rustix::fs::SeekFrom::Start(*offset))?;
        total += copy(&mut (&mut *from).take(*length), &to, buffer)?;
    }
    rustix::fs::ftruncate(&to, map.size)?;
    Ok(total)
}

/// Has the recipe, if there is one, find the content that follows in the file at `path`.
fn begin_file<R: Read>(content: &mut Tarball<R>, path: &[u8], offset: u64) {
    if let Some(recipe) = content.recipe() {
        recipe.begin_file(path, offset);
    }
}

/// Removes a file, link or whole folder.
fn remove(dir: impl AsFd, name: &[u8], depth: usize) -> Outcome<()> {
    if depth > MAX_DEPTH {
        return refuse("what it replaces is nested too deeply");
    }
    match unlinkat(&dir, name, AtFlags::empty()) {
        Err(Errno::ISDIR) => {}
        other => return Ok(other?),
    }
    let folder = folder::open(&dir, name)?;
    for child in folder::names(&folder)? {
        remove(&folder, &child, depth + 1)?;
    }
    Ok(unlinkat(&dir, name, AtFlags::REMOVEDIR)?)
}
