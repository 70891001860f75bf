//! What a zone has changed of its image: its upper tree is just that, so nothing else is walked
//! (kernel, `Documentation/filesystems/overlayfs.rst`: whiteouts, opaque directories).

use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, fgetxattr, openat, statat};

use crate::error::{During, Error, Result};
use crate::root::UPPER;
use crate::store::Store;

const OPAQUE: &str = "trusted.overlay.opaque";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ChangeKind {
    Modified,
    Added,
    Deleted,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Change {
    /// From the root on, with a slash before it.
    pub path: String,
    pub kind: ChangeKind,
}

impl Store {
    /// What zone `zone` has changed, in the order of the paths; a folder stands before what is in it.
    ///
    /// # Errors
    /// There is no such zone, or its tree cannot be read.
    pub fn changes(&self, zone: &str) -> Result<Vec<Change>> {
        let root = self.index().roots.get(zone).copied();
        let root = root.ok_or_else(|| Error::NoSuchRoot {
            zone: zone.to_owned(),
        })?;
        let what = || format!("read what zone {zone} has changed");
        let upper = open(&self.roots, format!("{zone}/{UPPER}").as_bytes()).during(what())?;
        let lower = open(&self.root, root.tree().as_bytes()).during(what())?;
        let mut changes = Vec::new();
        compare(&upper, Some(&lower), "", &mut changes).during(what())?;
        Ok(changes)
    }
}

impl Store {
    /// Bytes of file content that zone `zone` has of its own.
    ///
    /// # Errors
    /// There is no such zone, or its tree cannot be read.
    pub fn root_size(&self, zone: &str) -> Result<u64> {
        let what = || format!("measure the files of zone {zone}");
        if !self.index().roots.contains_key(zone) {
            return Err(Error::NoSuchRoot {
                zone: zone.to_owned(),
            });
        }
        let upper = open(&self.roots, format!("{zone}/{UPPER}").as_bytes()).during(what())?;
        size_below(&upper).during(what())
    }

    /// Bytes of file content in a volume.
    ///
    /// # Errors
    /// There is no such volume, or it cannot be read.
    pub fn volume_size(&self, name: &str) -> Result<u64> {
        let what = || format!("measure volume {name}");
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = rustix::fs::open(self.volume_path(name), flags, Mode::empty()).during(what())?;
        size_below(&folder).during(what())
    }
}

fn size_below(folder: &OwnedFd) -> rustix::io::Result<u64> {
    let mut total = 0;
    for name in names(folder)? {
        // What is gone meanwhile has no size.
        let Some(stat) = stat(folder, &name) else { continue };
        total += match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => size_below(&open(folder, &name)?)?,
            FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
            _ => 0,
        };
    }
    Ok(total)
}

fn open(folder: &OwnedFd, name: &[u8]) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    openat(folder, name, flags, Mode::empty())
}

fn compare(
    upper: &OwnedFd,
    lower: Option<&OwnedFd>,
    path: &str,
    changes: &mut Vec<Change>,
) -> rustix::io::Result<()> {
    let mut names = names(upper)?;
    if is_opaque(upper)
        && let Some(lower) = lower
    {
        let hidden = self::names(lower)?;
        names.extend(hidden);
        names.sort_unstable();
        names.dedup();
    }
    for name in names {
        let below = lower.and_then(|lower| stat(lower, &name));
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        let above = stat(upper, &name).filter(|stat| !is_whiteout(stat));
        let kind = match (&above, &below) {
            (Some(_), Some(_)) => ChangeKind::Modified,
            (Some(_), None) => ChangeKind::Added,
            (None, Some(_)) => ChangeKind::Deleted,
            (None, None) => continue,
        };
        changes.push(Change {
            path: path.clone(),
            kind,
        });
        if above.as_ref().is_some_and(is_folder) {
            let lower = match (lower, below.as_ref().is_some_and(is_folder)) {
                (Some(lower), true) => Some(open(lower, &name)?),
                _ => None,
            };
            compare(&open(upper, &name)?, lower.as_ref(), &path, changes)?;
        }
    }
    Ok(())
}

/// Names in a folder, sorted.
pub(crate) fn names(folder: &OwnedFd) -> rustix::io::Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(folder)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if name != b"." && name != b".." {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

fn stat(folder: &OwnedFd, name: &[u8]) -> Option<Stat> {
    statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).ok()
}

fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn is_opaque(folder: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    fgetxattr(folder, OPAQUE, &mut value[..]).is_ok() && value == *b"y"
}
