//! Folders of trees that nobody trusts: each is opened by the folder that it is in and one name, and no
//! link is followed.

use std::os::fd::{AsFd, OwnedFd};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat, openat, statat};
use rustix::io::Result;
use rustix::path::Arg;

/// Levels of folders that a walk goes down: each takes a descriptor or two and a part of the stack. A
/// zone can make deeper trees than any path can name.
pub(crate) const MAX_DEPTH: usize = 256;

pub(crate) const FLAGS: OFlags = OFlags::RDONLY
    .union(OFlags::DIRECTORY)
    .union(OFlags::NOFOLLOW)
    .union(OFlags::CLOEXEC);

pub(crate) fn open(dir: impl AsFd, name: impl Arg) -> Result<OwnedFd> {
    openat(dir, name, FLAGS, Mode::empty())
}

/// Names in a folder, sorted.
pub(crate) fn names(dir: impl AsFd) -> Result<Vec<Vec<u8>>> {
    let mut names = Vec::new();
    for entry in Dir::read_from(dir)? {
        let name = entry?.file_name().to_bytes().to_vec();
        if !matches!(name.as_slice(), b"." | b"..") {
            names.push(name);
        }
    }
    names.sort_unstable();
    Ok(names)
}

/// What is at a name; none where nothing is.
pub(crate) fn stat(dir: impl AsFd, name: impl Arg) -> Option<Stat> {
    statat(dir, name, AtFlags::SYMLINK_NOFOLLOW).ok()
}

pub(crate) fn is_folder(stat: &Stat) -> bool {
    FileType::from_raw_mode(stat.st_mode) == FileType::Directory
}

/// The sum of a measure of all that is below a folder. What goes meanwhile does not count.
pub(crate) fn sum(dir: &OwnedFd, measure: fn(&Stat) -> u64) -> Result<u64> {
    sum_at(dir, measure, 0)
}

fn sum_at(dir: &OwnedFd, measure: fn(&Stat) -> u64, depth: usize) -> Result<u64> {
    let mut total = 0;
    for name in names(dir)? {
        let Some(stat) = stat(dir, name.as_slice()) else {
            continue;
        };
        total += measure(&stat);
        if is_folder(&stat) && depth < MAX_DEPTH {
            total += sum_at(&open(dir, name.as_slice())?, measure, depth + 1)?;
        }
    }
    Ok(total)
}

/// Bytes of content.
pub(crate) fn content(stat: &Stat) -> u64 {
    match FileType::from_raw_mode(stat.st_mode) {
        FileType::RegularFile => u64::try_from(stat.st_size).unwrap_or(0),
        _ => 0,
    }
}

/// Bytes of the disk.
pub(crate) fn space(stat: &Stat) -> u64 {
    /// Unit of `st_blocks`, stat(3type).
    const BLOCK: u64 = 512;
    u64::try_from(stat.st_blocks).unwrap_or(0) * BLOCK
}
