//! Writes files of a tree as a tar: PAX where a field does not fit, GNU long names, hard links within
//! what is packed, and a file's capabilities and own attributes as `SCHILY.xattr` records.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use rustix::fs::{AtFlags, FileType, Mode, OFlags, Stat, major, minor, openat, readlinkat, statat};
use tar::{Builder, EntryType, Header};

use crate::changes;
use crate::extract::copying::{CAPABILITY, capability_of_image};
use crate::extract::{OPAQUE, WHITEOUT};
use crate::folder;

const XATTR: &str = "SCHILY.xattr.";
/// File systems whose files are the kernel's own words (`linux/magic.h`): proc, sysfs, cgroup2, devpts, mqueue.
const PSEUDO: &[u64] = &[0x9fa0, 0x6265_6572, 0x6367_7270, 0x1cd1, 0x1980_0202];

pub(crate) struct Packer<W: Write> {
    builder: Builder<Breakable<W>>,
    first_id: u32,
    /// Names of files that have more than one, by device and inode.
    linked: HashMap<(u64, u64), Vec<u8>>,
    device: Option<u64>,
    /// An upper tree of overlayfs, whose marks of what is gone become those of a layer; with the
    /// paths that stay out of it.
    upper: Option<&'static [&'static str]>,
    pub(crate) shape: Shape,
}

/// What every entry is, whatever the file says.
#[derive(Debug, Clone, Copy, Default)]
pub struct Shape {
    pub owner: Option<(u32, u32)>,
    /// Permissions of files and folders.
    pub mode: Option<u32>,
    /// All times are 1970's, so that equal content gives equal bytes.
    pub timeless: bool,
}

/// One part of a tar that is put together of several.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Part {
    /// A path in the tree.
    pub from: String,
    /// Its name in the tar; of a folder only what is in it is packed, below this name.
    pub to: String,
}

/// What takes nothing any more when it is broken: the builder ends every archive when it is dropped,
/// also one that is not whole.
struct Breakable<W> {
    to: W,
    broken: bool,
}

impl<W: Write> Write for Breakable<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.broken {
            Ok(bytes.len())
        } else {
            self.to.write(bytes)
        }
    }

    fn flush(&mut self) -> io::Result<()> {
        self.to.flush()
    }
}

impl<W: Write> Packer<W> {
    /// `first_id` is the host's id of what is 0 in the tar.
    pub(crate) fn new(to: W, first_id: u32) -> Self {
        Self {
            builder: Builder::new(Breakable { to, broken: false }),
            first_id,
            linked: HashMap::new(),
            device: None,
            upper: None,
            shape: Shape::default(),
        }
    }

    /// For an upper tree: its whiteouts become those of a layer (OCI image spec, `layer.md`). Empty
    /// folders and files at the paths of `without` stay out.
    pub(crate) fn of_upper(to: W, without: &'static [&'static str]) -> Self {
        Self {
            upper: Some(without),
            ..Self::new(to, 0)
        }
    }

    /// Leaves out what lies on other devices.
    pub(crate) fn only(self, device: u64) -> Self {
        Self {
            device: Some(device),
            ..self
        }
    }

    /// Writes `name` in `folder`, with all that is below it, as `path`; an empty path is the tar's root.
    /// The end of the archive is written only after the whole of it.
    pub(crate) fn add(self, folder: BorrowedFd<'_>, name: &[u8], path: &[u8]) -> io::Result<()> {
        self.whole(|packer| packer.add_at(folder, name, path, 0))
    }

    /// Writes what `fill` adds, and the end of the archive if it does not fail.
    pub(crate) fn whole(mut self, fill: impl FnOnce(&mut Self) -> io::Result<()>) -> io::Result<()> {
        let added = fill(&mut self);
        self.builder.get_mut().broken = added.is_err();
        let ended = self.builder.finish();
        added.and(ended)?;
        self.builder.into_inner()?.to.flush()
    }

    /// Adds what is in a folder, but not the folder itself.
    pub(crate) fn add_within(&mut self, folder: &OwnedFd, path: &[u8]) -> io::Result<()> {
        self.add_children(folder, path, 0)
    }

    pub(crate) fn add_at(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        depth: usize,
    ) -> io::Result<()> {
        let stat = statat(folder, name, AtFlags::SYMLINK_NOFOLLOW)?;
        if self.device.is_some_and(|device| device != stat.st_dev) {
            return Ok(());
        }
        // Left out without a word it would be missing in a copy that is taken for whole.
        if depth > folder::MAX_DEPTH {
            return Err(rustix::io::Errno::NAMETOOLONG.into());
        }
        let kind = FileType::from_raw_mode(stat.st_mode);
        let mut header = self.header(&stat);
        if let Some(without) = self.upper {
            if changes::is_whiteout(&stat) {
                return self.mark(WHITEOUT, path);
            }
            if without.iter().any(|out| out.as_bytes() == path) && is_empty(folder, name, &stat)? {
                return Ok(());
            }
        }
        match kind {
            FileType::Directory => self.add_folder(folder, name, path, depth, header),
            FileType::RegularFile => self.add_file(folder, name, path, &stat, header),
            FileType::Symlink => {
                header.set_entry_type(EntryType::Symlink);
                let target = readlinkat(folder, name, Vec::new())?;
                self.builder
                    .append_link(&mut header, as_path(path), as_path(target.as_bytes()))
            }
            FileType::Fifo => {
                header.set_entry_type(EntryType::Fifo);
                self.builder.append_data(&mut header, as_path(path), io::empty())
            }
            FileType::CharacterDevice | FileType::BlockDevice => {
                header.set_entry_type(match kind {
                    FileType::CharacterDevice => EntryType::Char,
                    _ => EntryType::Block,
                });
                header.set_device_major(major(stat.st_rdev))?;
                header.set_device_minor(minor(stat.st_rdev))?;
                self.builder.append_data(&mut header, as_path(path), io::empty())
            }
            // A socket is nothing without its process.
            _ => Ok(()),
        }
    }

    fn add_folder(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        depth: usize,
        mut header: Header,
    ) -> io::Result<()> {
        let dir = folder::open(folder, name)?;
        if PSEUDO.contains(&(rustix::fs::fstatfs(&dir)?.f_type as u64)) {
            return Ok(());
        }
        header.set_entry_type(EntryType::Directory);
        self.attributes(&dir)?;
        let shown = if path.is_empty() {
            b"./".to_vec()
        } else {
            [path, b"/"].concat()
        };
        self.builder
            .append_data(&mut header, as_path(&shown), io::empty())?;
        if self.upper.is_some() && changes::is_opaque(&dir) {
            self.mark(OPAQUE, path)?;
        }
        self.add_children(&dir, path, depth)
    }

    fn add_children(&mut self, dir: &OwnedFd, path: &[u8], depth: usize) -> io::Result<()> {
        for name in folder::names(dir)? {
            let below = if path.is_empty() {
                name.clone()
            } else {
                [path, &name].join(&b'/')
            };
            match self.add_at(dir.as_fd(), &name, &below, depth + 1) {
                // Gone since the folder was read.
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                other => other?,
            }
        }
        Ok(())
    }

    fn add_file(
        &mut self,
        folder: BorrowedFd<'_>,
        name: &[u8],
        path: &[u8],
        stat: &Stat,
        mut header: Header,
    ) -> io::Result<()> {
        if stat.st_nlink > 1 {
            let inode = (stat.st_dev, stat.st_ino);
            if let Some(first) = self.linked.get(&inode) {
                header.set_entry_type(EntryType::Link);
                let first = first.clone();
                return self
                    .builder
                    .append_link(&mut header, as_path(path), as_path(&first));
            }
            self.linked.insert(inode, path.to_vec());
        }
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = openat(folder, name, flags, Mode::empty())?;
        self.attributes(&file)?;
        header.set_entry_type(EntryType::Regular);
        let size = u64::try_from(stat.st_size).unwrap_or(0);
        header.set_size(size);
        // A file that shrinks meanwhile is filled up with zeros: its size is written already.
        let content = File::from(file).chain(io::repeat(0)).take(size);
        self.builder.append_data(&mut header, as_path(path), content)
    }

    /// A whiteout of `path`, or the mark that hides all that a lower layer has in it.
    fn mark(&mut self, mark: &[u8], path: &[u8]) -> io::Result<()> {
        let folder_end = path.iter().rposition(|byte| *byte == b'/').map_or(0, |at| at + 1);
        let marked = match path.split_at_checked(folder_end) {
            Some((folder, name)) if mark == WHITEOUT => [folder, mark, name].concat(),
            _ if path.is_empty() => mark.to_vec(),
            _ => [path, b"/", mark].concat(),
        };
        let mut header = Header::new_ustar();
        header.set_mode(0);
        header.set_size(0);
        self.builder
            .append_data(&mut header, as_path(&marked), io::empty())
    }

    fn header(&self, stat: &Stat) -> Header {
        let mut header = Header::new_ustar();
        let is_link = FileType::from_raw_mode(stat.st_mode) == FileType::Symlink;
        header.set_mode(match self.shape.mode {
            Some(mode) if !is_link => mode,
            _ => stat.st_mode & 0o7777,
        });
        // What is not of the zone is nobody's in it.
        let own = |id: u32| id.checked_sub(self.first_id).unwrap_or(65_534);
        let (uid, gid) = self.shape.owner.unwrap_or((own(stat.st_uid), own(stat.st_gid)));
        header.set_uid(uid.into());
        header.set_gid(gid.into());
        let mtime = if self.shape.timeless { 0 } else { stat.st_mtime };
        header.set_mtime(u64::try_from(mtime).unwrap_or(0));
        header.set_size(0);
        header
    }

    /// Writes the records of a file's attributes, which stand before the file.
    fn attributes(&mut self, file: &OwnedFd) -> io::Result<()> {
        let mut records = Vec::new();
        for name in attribute_names(file)? {
            let Ok(text) = std::str::from_utf8(&name) else {
                continue;
            };
            if name != CAPABILITY && !text.starts_with("user.") {
                continue;
            }
            let mut value = Vec::with_capacity(64 << 10);
            rustix::fs::fgetxattr(file, text, rustix::buffer::spare_capacity(&mut value))?;
            if name == CAPABILITY {
                value = capability_of_image(value, self.first_id);
            }
            records.push((format!("{XATTR}{text}"), value));
        }
        if records.is_empty() {
            return Ok(());
        }
        let records = records
            .iter()
            .map(|(key, value)| (key.as_str(), value.as_slice()));
        self.builder.append_pax_extensions(records)
    }
}

fn is_empty(folder: BorrowedFd<'_>, name: &[u8], stat: &Stat) -> io::Result<bool> {
    Ok(match FileType::from_raw_mode(stat.st_mode) {
        FileType::Directory => folder::names(folder::open(folder, name)?)?.is_empty(),
        _ => stat.st_size == 0,
    })
}

fn attribute_names(file: &OwnedFd) -> io::Result<Vec<Vec<u8>>> {
    let mut list = Vec::with_capacity(64 << 10);
    match rustix::fs::flistxattr(file, rustix::buffer::spare_capacity(&mut list)) {
        Ok(_) => {}
        Err(rustix::io::Errno::OPNOTSUPP) => return Ok(Vec::new()),
        Err(error) => return Err(error.into()),
    }
    let names = list.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.map(<[u8]>::to_vec).collect())
}

fn as_path(bytes: &[u8]) -> &Path {
    Path::new(OsStr::from_bytes(bytes))
}
