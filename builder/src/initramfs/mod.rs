//! The initramfs: a `newc` cpio archive (the kernel's `Documentation/driver-api/early-userspace/
//! buffer-format.rst`), compressed as a whole.
//!
//! Entries are sorted by name, owned by root and dated to the epoch, so that the same content gives
//! the same bytes.

pub(crate) mod read;

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use anyhow::Context;
use cpio::newc;

use crate::recipe::Compression;

/// Decompression costs a guest the same at every level; 19 packs a seventh smaller and takes ten times
/// as long, which the first boot would wait for.
const ZSTD_LEVEL: u32 = 12;
const GZIP_LEVEL: u32 = 9;

/// File type bits of `st_mode` (inode(7)).
const FOLDER: u32 = 0o040_000;
const REGULAR: u32 = 0o100_000;
const CHARACTER: u32 = 0o020_000;

/// One entry's content.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Content {
    Folder,
    Bytes(Vec<u8>),
    /// A file of this machine.
    File(PathBuf),
    /// A character device.
    Device {
        major: u32,
        minor: u32,
    },
}

/// What goes into an initramfs, by clean relative path.
#[derive(Debug, Default)]
pub(crate) struct Initramfs {
    entries: BTreeMap<String, (Content, u32)>,
}

impl Initramfs {
    /// Adds an entry with its permissions, and the folders above it.
    pub(crate) fn add(&mut self, path: &str, content: Content, permissions: u32) {
        let path = path.trim_start_matches('/');
        for (at, _) in path.match_indices('/') {
            let above = path.get(..at).unwrap_or_default().to_owned();
            self.entries.entry(above).or_insert((Content::Folder, 0o755));
        }
        self.entries.insert(path.to_owned(), (content, permissions));
    }

    /// Writes the archive. `written` is told the number of bytes as they go in.
    pub(crate) fn write(
        &self,
        path: &Path,
        compression: Compression,
        level: Option<u32>,
        written: &dyn Fn(u64),
    ) -> anyhow::Result<()> {
        let file = File::create_new(path).with_context(|| format!("Cannot write {}", path.display()))?;
        let mut out = BufWriter::with_capacity(1 << 20, file);
        match compression {
            Compression::Zstd => {
                let level = i32::try_from(level.unwrap_or(ZSTD_LEVEL))?;
                let mut encoder = zstd::stream::Encoder::new(&mut out, level)?;
                self.write_cpio(&mut encoder, written)?;
                encoder.finish()?;
            }
            Compression::Gzip => {
                let level = flate2::Compression::new(level.unwrap_or(GZIP_LEVEL));
                // The header of flate2 has neither time nor name.
                let mut encoder = flate2::write::GzEncoder::new(&mut out, level);
                self.write_cpio(&mut encoder, written)?;
                encoder.finish()?;
            }
            Compression::None => self.write_cpio(&mut out, written)?,
        }
        out.flush()
            .with_context(|| format!("Cannot write {}", path.display()))
    }

    /// How many bytes of content there are.
    pub(crate) fn size(&self) -> u64 {
        let size = |content: &Content| match content {
            Content::Bytes(bytes) => bytes.len() as u64,
            Content::File(path) => path.metadata().map_or(0, |metadata| metadata.len()),
            Content::Folder | Content::Device { .. } => 0,
        };
        self.entries.values().map(|(content, _)| size(content)).sum()
    }

    fn write_cpio(&self, out: &mut dyn Write, written: &dyn Fn(u64)) -> anyhow::Result<()> {
        for (number, (path, (content, permissions))) in (1..).zip(&self.entries) {
            let entry = newc::Builder::new(path).ino(number).uid(0).gid(0).mtime(0);
            let (kind, nlink) = match content {
                Content::Folder => (FOLDER, 2),
                Content::Device { .. } => (CHARACTER, 1),
                Content::Bytes(_) | Content::File(_) => (REGULAR, 1),
            };
            let entry = entry.mode(kind | permissions).nlink(nlink);
            let told = match content {
                Content::Folder => copy(entry, out, io::empty(), 0),
                Content::Device { major, minor } => {
                    copy(entry.rdev_major(*major).rdev_minor(*minor), out, io::empty(), 0)
                }
                Content::Bytes(bytes) => copy(entry, out, bytes.as_slice(), bytes.len() as u64),
                Content::File(file) => {
                    let file = File::open(file).with_context(|| format!("Cannot read {}", file.display()))?;
                    let size = file.metadata()?.len();
                    copy(entry, out, file, size)
                }
            };
            written(told.with_context(|| format!("Cannot put /{path} into the initramfs"))?);
        }
        newc::trailer(out)?;
        Ok(())
    }
}

fn copy(entry: newc::Builder, out: &mut dyn Write, content: impl Read, size: u64) -> anyhow::Result<u64> {
    let length = u32::try_from(size).context("A file in an initramfs must be smaller than 4 GiB")?;
    let mut writer = entry.write(out, length);
    // One byte more than announced is asked for, so that a file that grows is found out.
    let copied = io::copy(&mut content.take(size + 1), &mut writer)?;
    anyhow::ensure!(copied == size, "It changed while it was read");
    writer.finish()?;
    Ok(size)
}

#[cfg(test)]
mod tests {
    use std::process::{Command, Stdio};

    use super::*;

    fn sample() -> Initramfs {
        let mut initramfs = Initramfs::default();
        initramfs.add("init", Content::Bytes(b"#!static".to_vec()), 0o755);
        initramfs.add("/etc/monobloc/boot.json", Content::Bytes(b"{}".to_vec()), 0o644);
        initramfs.add("dev/console", Content::Device { major: 5, minor: 1 }, 0o600);
        initramfs
    }

    fn written(compression: Compression) -> Vec<u8> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("initrd");
        sample().write(&path, compression, None, &|_| {}).unwrap();
        std::fs::read(path).unwrap()
    }

    #[test]
    fn cpio_lists_what_was_written_sorted_and_owned_by_root() {
        tools::need(&["cpio"]);
        let mut child = Command::new("cpio")
            .args(["--list", "--verbose", "--numeric-uid-gid", "--quiet"])
            .env("TZ", "UTC")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .expect("this test needs the program cpio (Debian package cpio)");
        child
            .stdin
            .take()
            .unwrap()
            .write_all(&written(Compression::None))
            .unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success());
        let text = String::from_utf8(output.stdout).unwrap();
        let names: Vec<_> = text
            .lines()
            .map(|line| line.rsplit(' ').next().unwrap())
            .collect();
        assert_eq!(
            names,
            [
                "dev",
                "dev/console",
                "etc",
                "etc/monobloc",
                "etc/monobloc/boot.json",
                "init"
            ]
        );
        assert!(
            text.contains("crw-------   1 0        0          5,   1 Jan  1  1970 dev/console"),
            "{text}"
        );
        assert!(
            text.lines()
                .all(|line| line.contains(" 0        0 ") && line.contains("Jan  1  1970")),
            "{text}"
        );
        assert!(
            text.contains("-rwxr-xr-x   1 0        0               8"),
            "{text}"
        );
    }

    #[test]
    fn each_compression_is_read_back_to_the_same_archive() {
        let plain = written(Compression::None);
        for compression in [Compression::Zstd, Compression::Gzip] {
            let packed = written(compression);
            assert_eq!(
                packed,
                written(compression),
                "the same content gives the same bytes"
            );
            assert_eq!(read::decompress(&packed).unwrap(), plain);
        }
    }

    #[test]
    fn entries_are_read_back() {
        let entries = read::entries(&read::decompress(&written(Compression::Zstd)).unwrap()).unwrap();
        assert_eq!(entries["init"], b"#!static");
        assert_eq!(entries["etc/monobloc/boot.json"], b"{}");
    }

    #[test]
    fn a_truncated_archive_is_an_error() {
        let packed = written(Compression::Zstd);
        assert!(read::decompress(&packed[..packed.len() / 2]).is_err());
        let plain = written(Compression::None);
        assert!(read::entries(&plain[..plain.len() / 3]).is_err());
    }
}
