//! What a zone has changed of its image: its upper tree is just that, so nothing else is walked
//! (kernel, `Documentation/filesystems/overlayfs.rst`: whiteouts, opaque directories).

use std::os::fd::OwnedFd;

use rustix::fs::{FileType, Mode, OFlags, Stat, fgetxattr, openat};
use rustix::io::Errno;

use crate::error::{During, Error, Result};
use crate::folder;
use crate::root::UPPER;
use crate::store::Store;

const CAPABILITY: &str = "security.capability";
/// Bytes of the longest form, `struct vfs_ns_cap_data` of linux/capability.h.
const CAPABILITY_LEN: usize = 24;
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
    /// False for a folder that has only become another by what is in it.
    pub of_itself: bool,
}

impl Store {
    /// What zone `zone` has changed, in the order of the paths; a folder stands before what is in it. What
    /// was copied up and left as it was is no change, as with Docker's comparison of two trees.
    ///
    /// # Errors
    /// There is no such zone, or its tree cannot be read.
    pub fn changes(&self, zone: &str) -> Result<Vec<Change>> {
        let root = self.index().roots.get(zone).copied();
        let root = root.ok_or_else(|| Error::NoSuchRoot {
            zone: zone.to_owned(),
        })?;
        let what = || format!("read what zone {zone} has changed");
        let upper = folder::open(&self.roots, format!("{zone}/{UPPER}")).during(what())?;
        let lower = folder::open(&self.root, root.tree()).during(what())?;
        let mut changes = Vec::new();
        compare(&upper, Some(&lower), "", 0, &mut changes).during(what())?;
        Ok(changes)
    }

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
        let upper = folder::open(&self.roots, format!("{zone}/{UPPER}")).during(what())?;
        folder::sum(&upper, folder::content).during(what())
    }
}

fn compare(
    upper: &OwnedFd,
    lower: Option<&OwnedFd>,
    path: &str,
    depth: usize,
    changes: &mut Vec<Change>,
) -> rustix::io::Result<()> {
    if depth > folder::MAX_DEPTH {
        return Err(Errno::NAMETOOLONG);
    }
    let mut names = folder::names(upper)?;
    if is_opaque(upper)
        && let Some(lower) = lower
    {
        names.extend(folder::names(lower)?);
        names.sort_unstable();
        names.dedup();
    }
    for name in names {
        let below = lower.and_then(|lower| folder::stat(lower, name.as_slice()));
        let path = format!("{path}/{}", String::from_utf8_lossy(&name));
        let above = folder::stat(upper, name.as_slice()).filter(|stat| !is_whiteout(stat));
        let kind = match (&above, &below) {
            (Some(_), Some(_)) => ChangeKind::Modified,
            (Some(_), None) => ChangeKind::Added,
            (None, Some(_)) => ChangeKind::Deleted,
            (None, None) => continue,
        };
        let of_itself = match (&above, &below) {
            (Some(above), Some(below)) if is_other(above, below) => true,
            (Some(above), Some(_)) if is_file(above) => {
                capability(upper, &name) != lower.and_then(|lower| capability(lower, &name))
            }
            (Some(_), Some(_)) => false,
            _ => true,
        };
        let at = changes.len();
        if above.as_ref().is_some_and(folder::is_folder) {
            let lower = match (lower, below.as_ref().is_some_and(folder::is_folder)) {
                (Some(lower), true) => Some(folder::open(lower, name.as_slice())?),
                _ => None,
            };
            let upper = folder::open(upper, name.as_slice())?;
            compare(&upper, lower.as_ref(), &path, depth + 1, changes)?;
        }
        if of_itself || changes.len() > at {
            changes.insert(
                at,
                Change {
                    path,
                    kind,
                    of_itself,
                },
            );
        }
    }
    Ok(())
}

/// As Docker compares: the size and time of a folder tell nothing, and those of a file tell of its content.
fn is_other(one: &Stat, other: &Stat) -> bool {
    let of_all = |stat: &Stat| (stat.st_mode, stat.st_uid, stat.st_gid, stat.st_rdev);
    let of_file = |stat: &Stat| (stat.st_size, stat.st_mtime, stat.st_mtime_nsec);
    of_all(one) != of_all(other) || !folder::is_folder(one) && of_file(one) != of_file(other)
}

fn is_file(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::RegularFile
}

/// The capabilities that a file gives to what runs it.
fn capability(dir: &OwnedFd, name: &[u8]) -> Option<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let file = openat(dir, name, flags, Mode::empty()).ok()?;
    let mut value = [0u8; CAPABILITY_LEN];
    let length = fgetxattr(&file, CAPABILITY, &mut value[..]).ok()?;
    value.get(..length).map(<[u8]>::to_vec)
}

pub(crate) fn is_whiteout(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::CharacterDevice && stat.st_rdev == 0
}

pub(crate) fn is_opaque(folder: &OwnedFd) -> bool {
    let mut value = [0u8; 1];
    fgetxattr(folder, OPAQUE, &mut value[..]).is_ok() && value == *b"y"
}
