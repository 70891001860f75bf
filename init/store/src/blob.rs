//! Spool files for blobs on their way into the store.
//!
//! A spool has no name in the filesystem (`O_TMPFILE`), so nothing is left of it when its owner
//! goes away, whatever the reason.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::AsFd;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};

use crate::digest::{Digest, Hasher};
use crate::error::{During, Error, Result};

/// Takes a blob's bytes; dropping it discards them.
pub struct BlobWriter {
    file: File,
    hash: Hasher,
}

impl BlobWriter {
    pub(crate) fn create(dir: &Path) -> Result<BlobWriter> {
        Ok(BlobWriter {
            file: unnamed_file(dir)?,
            hash: Hasher::default(),
        })
    }

    /// What was written, whatever it is, and its digest.
    pub fn close(self) -> (Blob, Digest) {
        let (digest, size) = self.hash.finish();
        let file = Arc::new(self.file);
        (Blob { file, size }, digest)
    }

    /// # Errors
    /// [`Error::WrongDigest`] where the bytes are not those that `expected` names.
    pub fn finish(self, expected: &Digest) -> Result<Blob> {
        let (found, size) = self.hash.finish();
        if found != *expected {
            return Err(Error::WrongDigest {
                expected: *expected,
                found,
            });
        }
        Ok(Blob {
            file: Arc::new(self.file),
            size,
        })
    }
}

impl Write for BlobWriter {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.hash.update(buffer.get(..count).unwrap_or_default());
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// A verified blob; gone from the pool when the last clone and reader is dropped.
#[derive(Clone)]
pub struct Blob {
    file: Arc<File>,
    size: u64,
}

impl Blob {
    pub fn size(&self) -> u64 {
        self.size
    }

    /// Readers are independent of each other.
    pub fn reader(&self) -> BlobReader {
        self.reader_at(0)
    }

    /// Reads from an offset on.
    pub fn reader_at(&self, offset: u64) -> BlobReader {
        BlobReader {
            file: Arc::clone(&self.file),
            offset,
            end: self.size,
        }
    }
}

/// Reads a part of a spool file.
pub struct BlobReader {
    file: Arc<File>,
    offset: u64,
    end: u64,
}

impl BlobReader {
    pub(crate) fn part(file: Arc<File>, offset: u64, length: u64) -> BlobReader {
        BlobReader {
            file,
            offset,
            end: offset.saturating_add(length),
        }
    }
}

impl Read for BlobReader {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.offset)).unwrap_or(usize::MAX);
        let wanted = left.min(buffer.len());
        let count = self
            .file
            .read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.offset)?;
        self.offset += count as u64;
        Ok(count)
    }
}

pub(crate) fn unnamed_file(dir: &Path) -> Result<File> {
    let what = "open a spool file in the pool";
    let dir = File::open(dir).during(what)?;
    let flags = OFlags::TMPFILE | OFlags::RDWR | OFlags::CLOEXEC;
    let fd = rustix::fs::openat(dir.as_fd(), ".", flags, Mode::RUSR | Mode::WUSR).during(what)?;
    Ok(File::from(fd))
}

/// `io::copy` with the store's own words for a full pool.
pub(crate) fn copy(from: &mut dyn Read, to: &mut dyn Write, what: &str) -> Result<u64> {
    let mut buffer = vec![0; 128 << 10];
    let mut total = 0;
    loop {
        let count = match from.read(&mut buffer) {
            Ok(0) => return Ok(total),
            Ok(count) => count,
            Err(reason) if reason.kind() == io::ErrorKind::Interrupted => continue,
            Err(reason) => {
                return Err(Error::BadArchive {
                    reason: reason.to_string(),
                });
            }
        };
        to.write_all(buffer.get(..count).unwrap_or_default())
            .during(what)?;
        total += count as u64;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_blob_with_the_promised_digest_is_read_back() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = BlobWriter::create(dir.path()).unwrap();
        writer.write_all(b"content").unwrap();
        let blob = writer.finish(&Digest::of(b"content")).unwrap();
        let mut text = String::new();
        blob.reader().read_to_string(&mut text).unwrap();
        assert_eq!((text.as_str(), blob.size()), ("content", 7));
        assert_eq!(
            std::fs::read_dir(dir.path()).unwrap().count(),
            0,
            "a spool has a name"
        );
    }

    #[test]
    fn a_blob_with_another_digest_is_refused() {
        let dir = tempfile::tempdir().unwrap();
        let mut writer = BlobWriter::create(dir.path()).unwrap();
        writer.write_all(b"content").unwrap();
        assert!(matches!(
            writer.finish(&Digest::of(b"else")),
            Err(Error::WrongDigest { .. })
        ));
    }
}
