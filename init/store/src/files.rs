//! A zone's tree as the host sees it: what is copied out of it and into it.
//!
//! The tree is a mount of a root that nobody uses, or the root folder of a running zone; the zone's
//! ids are those of the host from a first one on. Paths are those of the zone: every link in them is
//! followed as the zone would (`openat2(2)` with `RESOLVE_IN_ROOT`), so none leads out.

use std::io::{Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::fs::{AtFlags, FileType, Mode, OFlags, ResolveFlags, Stat, openat2, readlinkat, statat};
use rustix::io::Errno;

use crate::digest::{Digest, Hasher};
use crate::error::{During, Error, Result};
use crate::extract::copying::Copying;
use crate::extract::{Extractor, Placing};
use crate::folder;
use crate::layer::decompress;
use crate::pack::{Packer, Part, Shape};
use crate::root::as_owner;
use crate::tarball::Tarball;

pub struct ZoneFiles {
    root: OwnedFd,
    first_id: u32,
}

/// What is at a path.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PathInfo {
    /// The last part of the path; `/` for the root.
    pub name: String,
    pub size: u64,
    /// `st_mode`.
    pub mode: u32,
    /// Seconds since 1970 and nanoseconds.
    pub mtime: (i64, u32),
    /// Where a symbolic link points to, from the tree's root on; empty for what is none.
    pub link: String,
}

/// How a tar is unpacked.
#[derive(Debug, Clone, Copy, Default)]
pub struct Unpacking {
    /// Owner and group within the zone of everything, instead of what the tar says.
    pub owner: Option<(u32, u32)>,
    /// Refuses to replace a folder by what is none, and the other way round.
    pub keep_kinds: bool,
}

/// A path, cleaned of `.`, `..` and empty parts without looking at the tree.
struct Clean {
    parts: Vec<String>,
    /// It ended with a slash or a dot: the folder behind a link is meant, not the link.
    folder: bool,
}

impl Clean {
    fn of(path: &str) -> Self {
        let mut parts: Vec<String> = Vec::new();
        for part in path.split('/') {
            match part {
                "" | "." => {}
                ".." => drop(parts.pop()),
                name => parts.push(name.to_owned()),
            }
        }
        let folder = parts.is_empty() || path.ends_with('/') || path.ends_with("/.");
        Self { parts, folder }
    }

    fn text(&self) -> String {
        self.parts.join("/")
    }

    fn name(&self) -> &str {
        self.parts.last().map_or("/", String::as_str)
    }
}

/// A folder, and a name in it that is not followed if it is a link.
struct Located {
    folder: OwnedFd,
    name: String,
}

impl ZoneFiles {
    /// `root` is the tree's root, `first_id` the host's id of the zone's.
    pub fn new(root: OwnedFd, first_id: u32) -> Self {
        Self { root, first_id }
    }

    pub fn root(&self) -> BorrowedFd<'_> {
        self.root.as_fd()
    }

    /// What is at a path.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], or what the kernel says.
    pub fn stat(&self, path: &str) -> Result<PathInfo> {
        let clean = Clean::of(path);
        let at = self.locate(&clean, path)?;
        let stat = stat_of(&at, path)?;
        let link = match FileType::from_raw_mode(stat.st_mode) {
            FileType::Symlink => self.link(&clean, &at, path)?,
            _ => String::new(),
        };
        Ok(PathInfo {
            name: clean.name().to_owned(),
            size: u64::try_from(stat.st_size).unwrap_or(0),
            mode: stat.st_mode,
            mtime: (stat.st_mtime, stat.st_mtime_nsec as u32),
            link,
        })
    }

    /// Writes what is at a path as a tar whose entries begin with the path's last part.
    ///
    /// # Errors
    /// As [`Self::stat`], and when it cannot be read or written.
    pub fn pack(&self, path: &str, to: impl Write) -> Result<()> {
        let clean = Clean::of(path);
        let at = self.locate(&clean, path)?;
        let name = clean.parts.last().map_or("", String::as_str);
        Packer::new(to, self.first_id)
            .add(at.folder.as_fd(), at.name.as_bytes(), name.as_bytes())
            .during(format!("copy {path} out of the container"))
    }

    /// Writes the whole tree as a tar, without what is mounted in it.
    ///
    /// # Errors
    /// It cannot be read or written.
    pub fn export(&self, to: impl Write) -> Result<()> {
        let what = "export the container's files";
        let device = rustix::fs::fstat(&self.root).during(what)?.st_dev;
        Packer::new(to, self.first_id)
            .only(device)
            .add(self.root.as_fd(), b".", b"")
            .during(what)
    }

    /// Names in a folder, sorted.
    ///
    /// # Errors
    /// As [`Self::stat`].
    pub fn list(&self, folder: &str) -> Result<Vec<String>> {
        let opened = self.open_folder(&Clean::of(folder).text(), folder)?;
        let names = folder::names(&opened).during(format!("read the folder {folder}"))?;
        Ok(names
            .iter()
            .map(|name| String::from_utf8_lossy(name).into_owned())
            .collect())
    }

    /// Whether a path, with links followed, is a folder.
    pub fn is_folder(&self, path: &str) -> bool {
        self.open_folder(&Clean::of(path).text(), path).is_ok()
    }

    /// The first bytes of a file, with links followed: at most so many.
    ///
    /// # Errors
    /// As [`Self::stat`].
    pub fn beginning(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        let mut content = Vec::new();
        let read = self.open_file(path)?.take(most).read_to_end(&mut content);
        read.during(format!("read {path}"))?;
        Ok(content)
    }

    fn open_file(&self, path: &str) -> Result<std::fs::File> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
        let file = self.open(&Clean::of(path).text(), flags);
        Ok(file.map_err(|reason| failed(reason, path))?.into())
    }

    /// A file's content as a stream, with links followed; one of more than `most` bytes is refused.
    ///
    /// # Errors
    /// As [`Self::read`].
    pub fn stream(&self, path: &str, most: u64) -> Result<impl Read + Send + use<>> {
        let file = self.open_file(path)?;
        let size = file.metadata().during(format!("read {path}"))?.len();
        refuse_beyond(most, size, path)?;
        Ok(file)
    }

    /// A small file's content, with links followed; what is beyond `most` bytes is refused.
    ///
    /// # Errors
    /// As [`Self::stat`], and [`Error::BadArchive`] for a file that is too large.
    pub fn read(&self, path: &str, most: u64) -> Result<Vec<u8>> {
        let content = self.beginning(path, most + 1)?;
        refuse_beyond(most, content.len() as u64, path)?;
        Ok(content)
    }

    /// Unpacks a tar (plain, gzip or zstd) into a folder that is there.
    ///
    /// # Errors
    /// [`Error::NoSuchPath`], [`Error::NotADirectory`], or an entry that is refused; those before it
    /// have been unpacked.
    pub fn unpack(&self, folder: &str, tar: impl Read + Send, how: Unpacking) -> Result<()> {
        let clean = Clean::of(folder);
        drop(self.open_folder(&clean.text(), folder)?);
        let what = || format!("copy into {folder} of the container");
        let root = self.open_folder("", folder)?;
        let placing = Placing::Copy(Copying {
            folder: clean.text().into_bytes(),
            first_id: self.first_id,
            owner: how.owner,
            keep_kinds: how.keep_kinds,
        });
        // Through a mount with mapped ids only whom it knows can make files.
        std::thread::scope(|scope| {
            let placed = scope.spawn(move || {
                as_owner(self.first_id, self.first_id)?;
                let unpack = || Extractor::new(root, placing).run(&mut Tarball::new(decompress(tar)?));
                Ok::<_, std::io::Error>(unpack())
            });
            let panicked = |_| Err(std::io::Error::other("a thread of it panicked"));
            placed.join().unwrap_or_else(panicked)
        })
        .during(what())?
        .map(drop)
    }

    fn open_folder(&self, path: &str, asked: &str) -> Result<OwnedFd> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        self.open(path, flags).map_err(|reason| failed(reason, asked))
    }

    fn open(&self, path: &str, flags: OFlags) -> rustix::io::Result<OwnedFd> {
        let path = if path.is_empty() { "." } else { path };
        let resolve = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
        openat2(&self.root, path, flags, Mode::empty(), resolve)
    }

    fn locate(&self, clean: &Clean, asked: &str) -> Result<Located> {
        let (above, name) = match clean.parts.split_last() {
            Some((name, above)) if !clean.folder => (above.join("/"), name.clone()),
            _ => (clean.text(), ".".to_owned()),
        };
        Ok(Located {
            folder: self.open_folder(&above, asked)?,
            name,
        })
    }

    fn link(&self, clean: &Clean, at: &Located, asked: &str) -> Result<String> {
        let target = readlinkat(&at.folder, at.name.as_str(), Vec::new());
        let target = target.map_err(|reason| failed(reason, asked))?;
        let target = target.to_string_lossy();
        let above = clean
            .parts
            .split_last()
            .map_or(String::new(), |(_, above)| above.join("/"));
        let whole = if target.starts_with('/') {
            target.into_owned()
        } else {
            format!("{above}/{target}")
        };
        Ok(format!("/{}", Clean::of(&whole).text()))
    }
}

/// Parts of one tree, for a tar that is put together of several.
pub struct Group<'a> {
    pub files: &'a ZoneFiles,
    pub parts: &'a [Part],
    pub shape: Shape,
}

/// Writes parts of trees as one tar.
///
/// # Errors
/// [`Error::NoSuchPath`] before anything is written; or what cannot be read or written.
pub fn pack_groups(groups: &[Group<'_>], to: impl Write) -> Result<()> {
    let mut found = Vec::new();
    for group in groups {
        for part in group.parts {
            let clean = Clean::of(&part.from);
            let at = group.files.locate(&clean, &part.from)?;
            let stat = stat_of(&at, &part.from)?;
            let is_folder = FileType::from_raw_mode(stat.st_mode) == FileType::Directory;
            found.push((at, is_folder, part.to.trim_matches('/').as_bytes(), group.shape));
        }
    }
    Packer::new(to, 0)
        .whole(|packer| {
            for (at, is_folder, to, shape) in &found {
                packer.shape = *shape;
                if *is_folder {
                    let folder = folder::open(&at.folder, at.name.as_str())?;
                    packer.add_within(&folder, to)?;
                } else {
                    packer.add_at(at.folder.as_fd(), at.name.as_bytes(), to, 0)?;
                }
            }
            Ok(())
        })
        .during("pack files")
}

/// A digest of the same parts: names, owners, permissions and contents, but no times.
///
/// # Errors
/// As [`pack_groups`].
pub fn digest_groups(groups: &[Group<'_>]) -> Result<Digest> {
    struct Sum(Hasher);
    impl Write for Sum {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.update(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut sum = Sum(Hasher::default());
    let timeless: Vec<Group<'_>> = groups
        .iter()
        .map(|group| Group {
            shape: Shape {
                timeless: true,
                ..group.shape
            },
            ..*group
        })
        .collect();
    pack_groups(&timeless, &mut sum)?;
    Ok(sum.0.finish().0)
}

fn refuse_beyond(most: u64, size: u64, path: &str) -> Result<()> {
    if size <= most {
        return Ok(());
    }
    Err(Error::BadArchive {
        reason: format!("{path} has more than {most} bytes"),
    })
}

fn stat_of(at: &Located, asked: &str) -> Result<Stat> {
    statat(&at.folder, at.name.as_str(), AtFlags::SYMLINK_NOFOLLOW).map_err(|reason| failed(reason, asked))
}

fn failed(reason: Errno, asked: &str) -> Error {
    let path = asked.to_owned();
    match reason {
        Errno::NOENT => Error::NoSuchPath { path },
        Errno::NOTDIR => Error::NotADirectory { path },
        other => Error::io(format!("open {asked}"), other),
    }
}

#[cfg(test)]
mod tests {
    use super::Clean;

    #[test]
    fn paths_are_cleaned_without_leaving_the_root() {
        let clean = |path| {
            let clean = Clean::of(path);
            (clean.text(), clean.folder)
        };
        assert_eq!(clean("/a//b/./c"), ("a/b/c".to_owned(), false));
        assert_eq!(clean("../../etc/../x/"), ("x".to_owned(), true));
        assert_eq!(clean("/a/."), ("a".to_owned(), true));
        assert_eq!(clean("/"), (String::new(), true));
    }
}
