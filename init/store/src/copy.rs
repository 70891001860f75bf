//! Copies a folder of an image into a volume: content by reference (`ioctl_ficlone(2)`), with owners,
//! modes, times, extended attributes and hard links.
//!
//! Everything is named by an open folder and one name, and no link is followed: what a zone puts into
//! the volume meanwhile cannot lead the copy elsewhere. Device nodes and sockets are left out.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{
    AtFlags, FileType, Mode, OFlags, RawMode, ResolveFlags, Stat, Timespec, Timestamps, XattrFlags, chownat,
    fchmod, fchown, fgetxattr, flistxattr, fsetxattr, fstat, futimens, ioctl_ficlone, linkat, mkdirat,
    mknodat, openat, openat2, readlinkat, statat, symlinkat, utimensat,
};
use rustix::io::{Errno, Result};
use rustix::process::{Gid, Uid};

use crate::folder;

/// Longest list of names and longest value that the kernel knows (`XATTR_LIST_MAX`).
const MAX_XATTR: usize = 1 << 16;

/// Whether a folder holds nothing.
pub(crate) fn is_empty(dir: impl AsFd) -> Result<bool> {
    Ok(folder::names(dir)?.is_empty())
}

/// Copies what is in the folder `from` into the folder `to`, and `from`'s own owner, mode and times.
pub(crate) fn copy_folder(from: &OwnedFd, to: &OwnedFd) -> Result<()> {
    Copier {
        links: HashMap::new(),
        buffer: vec![0; MAX_XATTR],
        top: to,
    }
    .folder(from, to, 0)
}

struct Copier<'a> {
    /// Files with several names, by inode number: where the first is, from the top.
    links: HashMap<u64, Vec<u8>>,
    buffer: Vec<u8>,
    top: &'a OwnedFd,
}

impl Copier<'_> {
    fn folder(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize) -> Result<()> {
        self.children(from, to, depth, b"")?;
        self.metadata(from, to)
    }

    fn children(&mut self, from: &OwnedFd, to: &OwnedFd, depth: usize, path: &[u8]) -> Result<()> {
        if depth > folder::MAX_DEPTH {
            return Err(Errno::NAMETOOLONG);
        }
        for name in folder::names(from)? {
            let below = [path, b"/", &name].concat();
            self.child(from, to, &name, depth, &below)?;
        }
        Ok(())
    }

    fn child(&mut self, from: &OwnedFd, to: &OwnedFd, name: &[u8], depth: usize, path: &[u8]) -> Result<()> {
        let stat = statat(from, name, AtFlags::SYMLINK_NOFOLLOW)?;
        match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => {
                mkdirat(to, name, Mode::RWXU)?;
                let (from, to) = (folder::open(from, name)?, folder::open(to, name)?);
                self.children(&from, &to, depth + 1, path)?;
                self.metadata(&from, &to)
            }
            FileType::RegularFile if stat.st_nlink > 1 && self.links.contains_key(&stat.st_ino) => {
                self.link(stat.st_ino, to, name)
            }
            FileType::RegularFile => {
                let read = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                let make = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::CLOEXEC;
                let (from, to) = (
                    openat(from, name, read, Mode::empty())?,
                    openat(to, name, make, Mode::RUSR | Mode::WUSR)?,
                );
                if stat.st_size > 0 {
                    ioctl_ficlone(&to, &from)?;
                }
                if stat.st_nlink > 1 {
                    self.links.insert(stat.st_ino, path.to_vec());
                }
                self.metadata(&from, &to)
            }
            FileType::Symlink => {
                let target = readlinkat(from, name, Vec::new())?;
                symlinkat(&target, to, name)?;
                named_metadata(to, name, &stat)
            }
            FileType::Fifo => {
                let mode = Mode::from_raw_mode(stat.st_mode & 0o7777);
                mknodat(to, name, FileType::Fifo, mode, 0)?;
                named_metadata(to, name, &stat)
            }
            _ => Ok(()),
        }
    }

    /// One more name of a file that has been copied already.
    fn link(&self, file: u64, to: &OwnedFd, name: &[u8]) -> Result<()> {
        let first = self.links.get(&file).map_or(&b""[..], Vec::as_slice);
        let at = first.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let (parent, first) = first.split_at(at);
        let parent = [b".", parent].concat();
        let within = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS;
        let parent = openat2(self.top, parent, folder::FLAGS, Mode::empty(), within)?;
        linkat(
            &parent,
            first.strip_prefix(b"/").unwrap_or(first),
            to,
            name,
            AtFlags::empty(),
        )
    }

    /// Owner first: changing it clears the set-id bits and the capability.
    fn metadata(&mut self, from: &OwnedFd, to: &OwnedFd) -> Result<()> {
        let stat = fstat(from)?;
        let (uid, gid) = owner(&stat);
        fchown(to, uid, gid)?;
        fchmod(to, Mode::from_raw_mode(stat.st_mode & 0o7777))?;
        let length = flistxattr(from, self.buffer.as_mut_slice())?;
        let list = self.buffer.get(..length).unwrap_or_default().to_vec();
        for name in list.split(|byte| *byte == 0).filter(|name| !name.is_empty()) {
            let length = fgetxattr(from, name, self.buffer.as_mut_slice())?;
            let value = self.buffer.get(..length).unwrap_or_default();
            fsetxattr(to, name, value, XattrFlags::empty())?;
        }
        futimens(to, &times(&stat))
    }
}

fn named_metadata(dir: &OwnedFd, name: &[u8], stat: &Stat) -> Result<()> {
    let (uid, gid) = owner(stat);
    chownat(dir, name, uid, gid, AtFlags::SYMLINK_NOFOLLOW)?;
    if FileType::from_raw_mode(stat.st_mode) != FileType::Symlink {
        let mode: RawMode = stat.st_mode & 0o7777;
        rustix::fs::chmodat(dir, name, Mode::from_raw_mode(mode), AtFlags::empty())?;
    }
    utimensat(dir, name, &times(stat), AtFlags::SYMLINK_NOFOLLOW)
}

fn owner(stat: &Stat) -> (Option<Uid>, Option<Gid>) {
    (Some(Uid::from_raw(stat.st_uid)), Some(Gid::from_raw(stat.st_gid)))
}

pub(crate) fn times(stat: &Stat) -> Timestamps {
    let time = |seconds, nanoseconds: u64| Timespec {
        tv_sec: seconds,
        tv_nsec: i64::try_from(nanoseconds).unwrap_or(0),
    };
    Timestamps {
        last_access: time(stat.st_atime, stat.st_atime_nsec),
        last_modification: time(stat.st_mtime, stat.st_mtime_nsec),
    }
}
