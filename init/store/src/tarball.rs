//! Reads tar streams, entry by entry, trusting none of them.
//!
//! The headers are decoded by the `tar` crate. The stream around them is read here, because the
//! metadata that an entry may bring (long names, PAX records) must be bounded, and because the values
//! of PAX records are binary (a file capability may hold a newline).
//!
//! Formats: ustar (POSIX.1-1988), PAX (POSIX.1-2001), GNU long names and sparse files.

mod sparse;

use std::io::{self, Read};

use tar::{EntryType, Header};

use crate::error::{Error, Result};
use crate::recipe::Writer;

pub(crate) use sparse::Map;

const BLOCK: usize = 512;
/// Bytes of one long name or set of PAX records.
const MAX_METADATA: u64 = 1 << 20;
/// `PATH_MAX`.
const MAX_PATH: usize = 4096;
const SPARSE_PREFIX: &[u8] = b"GNU.sparse.";
const XATTR_PREFIX: &[u8] = b"SCHILY.xattr.";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    File,
    Dir,
    Symlink,
    HardLink,
    Fifo,
    Char { major: u32, minor: u32 },
    Block { major: u32, minor: u32 },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) path: Vec<u8>,
    pub(crate) kind: Kind,
    /// Target of a link; empty otherwise.
    pub(crate) link: Vec<u8>,
    pub(crate) mode: u32,
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    /// Seconds since 1970 and nanoseconds.
    pub(crate) mtime: (i64, u32),
    /// Bytes of content in the archive.
    pub(crate) size: u64,
    /// Where they belong in a file that has holes.
    pub(crate) holes: Option<Map>,
    pub(crate) xattrs: Vec<(Vec<u8>, Vec<u8>)>,
}

impl Entry {
    /// For messages.
    pub(crate) fn name(&self) -> String {
        String::from_utf8_lossy(&self.path).into_owned()
    }
}

/// A tar stream. After [`Tarball::next`] has given a file, its content is read from the tarball.
pub(crate) struct Tarball<R> {
    inner: R,
    /// Bytes of content that are still to come, and of padding after it.
    left: u64,
    padding: u64,
    /// Where all that is read is kept, so that it can be made again.
    recipe: Option<Writer>,
}

#[derive(Default)]
struct Extension {
    path: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<(i64, u32)>,
    xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    sparse: Option<sparse::Records>,
}

fn bad(reason: impl Into<String>) -> Error {
    Error::BadArchive {
        reason: reason.into(),
    }
}

fn truncated() -> Error {
    bad("it is truncated")
}

/// Any failure to read is the archive's: a decoder that met damage, or a stream that broke off.
fn unreadable(reason: &io::Error) -> Error {
    match reason.kind() {
        io::ErrorKind::UnexpectedEof => truncated(),
        _ => bad(format!("it cannot be read ({reason})")),
    }
}

impl<R: Read> Tarball<R> {
    pub(crate) fn new(inner: R) -> Tarball<R> {
        Tarball {
            inner,
            left: 0,
            padding: 0,
            recipe: None,
        }
    }

    /// The same, with a recipe of what is read.
    pub(crate) fn recorded(inner: R, recipe: Writer) -> Tarball<R> {
        Tarball {
            recipe: Some(recipe),
            ..Tarball::new(inner)
        }
    }

    /// The recipe, if there is one.
    pub(crate) fn recipe(&mut self) -> Option<&mut Writer> {
        self.recipe.as_mut()
    }

    /// The next entry; `None` at the end of the archive.
    pub(crate) fn next(&mut self) -> Result<Option<Entry>> {
        let mut extension = Extension::default();
        loop {
            self.skip()?;
            let Some(block) = self.header()? else {
                return Ok(None);
            };
            let header = Header::from_byte_slice(&block);
            let size = header
                .entry_size()
                .map_err(|_| bad("a header's size is not a number"))?;
            let kind = header.entry_type();
            match kind {
                EntryType::GNULongName => extension.path = Some(trimmed(self.metadata(size)?)),
                EntryType::GNULongLink => extension.link = Some(trimmed(self.metadata(size)?)),
                EntryType::XHeader => pax(&self.metadata(size)?, &mut extension)?,
                // Applies to all entries; in layers these are comments of git and the like.
                EntryType::XGlobalHeader => drop(self.metadata(size)?),
                _ => return self.entry(header, size, extension).map(Some),
            }
        }
    }

    /// Reads what follows the end of the archive, so that a digest covers the whole stream.
    pub(crate) fn drain(mut self) -> Result<(R, Option<Writer>)> {
        self.pass(u64::MAX)?;
        Ok((self.inner, self.recipe))
    }

    /// Reads so many bytes and has no use for them; gives how many there were.
    fn pass(&mut self, count: u64) -> Result<u64> {
        let passed = (&mut self.inner).take(count);
        let passed = match &mut self.recipe {
            Some(recipe) => {
                recipe.end_file();
                io::copy(&mut { passed }, &mut Recorded(recipe))
            }
            None => io::copy(&mut { passed }, &mut io::sink()),
        };
        passed.map_err(|reason| unreadable(&reason))
    }

    fn entry(&mut self, header: &Header, size: u64, mut extension: Extension) -> Result<Entry> {
        let mut records = extension.sparse.take();
        let real_name = records.as_mut().and_then(|records| records.name.take());
        let path = real_name
            .or(extension.path)
            .unwrap_or_else(|| header.path_bytes().into_owned());
        let name = String::from_utf8_lossy(&path).into_owned();
        let old = header.as_old();
        let refuse = |reason: &str| Error::BadEntry {
            entry: name.clone(),
            reason: reason.to_owned(),
        };
        let number = || refuse("its header holds what is not a number");
        if path.len() > MAX_PATH {
            return Err(Error::BadEntry {
                entry: name.chars().take(64).collect::<String>() + "…",
                reason: format!("its name has more than {MAX_PATH} bytes"),
            });
        }
        // Old writers leave a field empty for 0.
        let field = |bytes: &[u8], value: io::Result<u64>| match value {
            Err(_) if bytes.iter().all(|byte| matches!(byte, 0 | b' ')) => Ok(0),
            other => other.map_err(|_| number()),
        };
        let device = || -> Result<(u32, u32)> {
            let major = header.device_major().map_err(|_| number())?.unwrap_or(0);
            let minor = header.device_minor().map_err(|_| number())?.unwrap_or(0);
            Ok((major, minor))
        };
        let kind = match header.entry_type() {
            EntryType::Regular | EntryType::Continuous if path.ends_with(b"/") => Kind::Dir,
            EntryType::Regular | EntryType::Continuous => Kind::File,
            EntryType::Directory => Kind::Dir,
            EntryType::Symlink => Kind::Symlink,
            EntryType::Link => Kind::HardLink,
            EntryType::Fifo => Kind::Fifo,
            EntryType::Char => device().map(|(major, minor)| Kind::Char { major, minor })?,
            EntryType::Block => device().map(|(major, minor)| Kind::Block { major, minor })?,
            EntryType::GNUSparse => Kind::File,
            _ => return Err(refuse("it is of an unknown kind")),
        };
        let id = |value: u64| {
            u32::try_from(value).map_err(|_| refuse("its owner is outside the 32 bits that ids have"))
        };
        let mut size = extension.size.unwrap_or(size);
        let mut holes = None;
        if header.entry_type() == EntryType::GNUSparse {
            holes = Some(sparse::of_header(header, size, || {
                self.block()?.ok_or_else(truncated)
            })?);
        }
        self.left = size;
        self.padding = padding(size);
        if let Some(records) = records.filter(|_| kind == Kind::File) {
            let (map, taken) = records.map(size, self)?;
            size -= taken;
            holes = Some(map);
        }
        let link = match extension.link {
            Some(link) => link,
            None => header
                .link_name_bytes()
                .map(|link| link.into_owned())
                .unwrap_or_default(),
        };
        let header_mtime = || {
            header
                .mtime()
                .ok()
                .and_then(|seconds| i64::try_from(seconds).ok())
                .unwrap_or(0)
        };
        let header_mtime = || before_1970(&old.mtime).unwrap_or_else(header_mtime);
        Ok(Entry {
            kind,
            link,
            mode: (field(&old.mode, header.mode().map(u64::from))? & 0o7777) as u32,
            uid: id(match extension.uid {
                Some(uid) => uid,
                None => field(&old.uid, header.uid())?,
            })?,
            gid: id(match extension.gid {
                Some(gid) => gid,
                None => field(&old.gid, header.gid())?,
            })?,
            mtime: extension.mtime.unwrap_or_else(|| (header_mtime(), 0)),
            size: if kind == Kind::File { size } else { 0 },
            holes,
            xattrs: extension.xattrs,
            path,
        })
    }

    /// The next block; `None` at the end of the stream.
    fn block(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let mut block = [0; BLOCK];
        let mut filled = 0;
        while let Some(rest) = block.get_mut(filled..).filter(|rest| !rest.is_empty()) {
            match self.inner.read(rest) {
                Ok(0) if filled == 0 => return Ok(None),
                Ok(0) => return Err(truncated()),
                Ok(count) => filled += count,
                Err(reason) if reason.kind() == io::ErrorKind::Interrupted => {}
                Err(reason) => return Err(unreadable(&reason)),
            }
        }
        if let Some(recipe) = &mut self.recipe {
            recipe.end_file();
            recipe.take(&block);
        }
        Ok(Some(block))
    }

    /// The next header block; `None` at the end mark or the end of the stream.
    fn header(&mut self) -> Result<Option<[u8; BLOCK]>> {
        let Some(block) = self.block()? else {
            return Ok(None);
        };
        if block.iter().all(|byte| *byte == 0) {
            return Ok(None);
        }
        // The sum counts its own field (148..156) as blanks.
        let sum = block.iter().enumerate().fold(0u32, |sum, (index, byte)| {
            sum + if (148..156).contains(&index) {
                u32::from(b' ')
            } else {
                u32::from(*byte)
            }
        });
        match Header::from_byte_slice(&block).cksum() {
            // A fuzzer would not get past it.
            Ok(expected) if expected == sum || cfg!(fuzzing) => Ok(Some(block)),
            _ => Err(bad(
                "it is not a tar archive, or is damaged: a header's checksum is wrong",
            )),
        }
    }

    fn metadata(&mut self, size: u64) -> Result<Vec<u8>> {
        if size > MAX_METADATA {
            return Err(bad(format!(
                "the metadata of an entry has {size} bytes, more than {MAX_METADATA}"
            )));
        }
        self.left = size;
        self.padding = padding(size);
        let mut content = Vec::new();
        self.read_to_end(&mut content)
            .map_err(|reason| unreadable(&reason))?;
        Ok(content)
    }

    fn skip(&mut self) -> Result<()> {
        let count = self.left.saturating_add(self.padding);
        if self.pass(count)? < count {
            return Err(truncated());
        }
        (self.left, self.padding) = (0, 0);
        Ok(())
    }
}

/// Content of the present entry. A stream that ends too early is an error.
impl<R: Read> Read for Tarball<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let wanted = usize::try_from(self.left).unwrap_or(usize::MAX).min(buffer.len());
        if wanted == 0 {
            return Ok(0);
        }
        let count = self.inner.read(buffer.get_mut(..wanted).unwrap_or_default())?;
        if count == 0 {
            return Err(io::Error::new(io::ErrorKind::UnexpectedEof, "it is truncated"));
        }
        self.left -= count as u64;
        if let Some(recipe) = &mut self.recipe {
            recipe.take(buffer.get(..count).unwrap_or_default());
        }
        Ok(count)
    }
}

/// Takes what is passed over.
struct Recorded<'a>(&'a mut Writer);

impl io::Write for Recorded<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.take(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn padding(size: u64) -> u64 {
    size.wrapping_neg() % BLOCK as u64
}

fn trimmed(mut name: Vec<u8>) -> Vec<u8> {
    let end = name.iter().position(|byte| *byte == 0).unwrap_or(name.len());
    name.truncate(end);
    name
}

/// PAX records: `LENGTH KEY=VALUE\n`, the length counting the whole record.
fn pax(mut records: &[u8], extension: &mut Extension) -> Result<()> {
    let wrong = || bad("a PAX record is malformed");
    while !records.is_empty() {
        let blank = records.iter().position(|byte| *byte == b' ').ok_or_else(wrong)?;
        let length: usize = text(records.get(..blank))
            .and_then(|t| t.parse().ok())
            .ok_or_else(wrong)?;
        let record = records.get(blank + 1..length).ok_or_else(wrong)?;
        let record = record.strip_suffix(b"\n").ok_or_else(wrong)?;
        let equals = record.iter().position(|byte| *byte == b'=').ok_or_else(wrong)?;
        let (key, value) = (
            record.get(..equals).ok_or_else(wrong)?,
            record.get(equals + 1..).ok_or_else(wrong)?,
        );
        let number = || text(Some(value)).and_then(|t| t.parse().ok()).ok_or_else(wrong);
        match key {
            b"path" => extension.path = Some(value.to_vec()),
            b"linkpath" => extension.link = Some(value.to_vec()),
            b"size" => extension.size = Some(number()?),
            b"uid" => extension.uid = Some(number()?),
            b"gid" => extension.gid = Some(number()?),
            b"mtime" => extension.mtime = text(Some(value)).and_then(decimal_time),
            _ => {
                if let Some(name) = key.strip_prefix(XATTR_PREFIX) {
                    extension.xattrs.push((name.to_vec(), value.to_vec()));
                } else if let Some(rest) = key.strip_prefix(SPARSE_PREFIX) {
                    extension.sparse.get_or_insert_default().take(rest, value)?;
                }
            }
        }
        records = records.get(length..).unwrap_or_default();
    }
    Ok(())
}

fn text(bytes: Option<&[u8]>) -> Option<&str> {
    std::str::from_utf8(bytes?).ok()
}

/// `1700000000.25`; nanoseconds count upwards also before 1970.
fn decimal_time(text: &str) -> Option<(i64, u32)> {
    let (whole, fraction) = text.split_once('.').unwrap_or((text, ""));
    let seconds: i64 = whole.parse().ok()?;
    let digits: String = fraction.chars().chain(std::iter::repeat('0')).take(9).collect();
    let nanoseconds: u32 = digits.parse().ok()?;
    match (whole.starts_with('-'), nanoseconds) {
        (true, 1..) => Some((seconds.checked_sub(1)?, 1_000_000_000 - nanoseconds)),
        _ => Some((seconds, nanoseconds)),
    }
}

/// A negative number of GNU tar: two's complement, the most significant byte first, and all of that one set.
fn before_1970(field: &[u8; 12]) -> Option<i64> {
    const NEGATIVE: u8 = 0xff;
    let number = field.last_chunk().map(|number| i64::from_be_bytes(*number));
    number.filter(|_| field.first() == Some(&NEGATIVE))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(entries: &[(EntryType, &str, &[u8])]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for (kind, name, content) in entries {
            let mut header = Header::new_gnu();
            header.set_entry_type(*kind);
            header.set_size(content.len() as u64);
            header.set_mode(0o644);
            builder.append_data(&mut header, name, *content).unwrap();
        }
        builder.into_inner().unwrap()
    }

    #[test]
    fn entries_come_with_their_content() {
        let long = "d/".repeat(100) + "file";
        let bytes = archive(&[
            (EntryType::Regular, "a", b"one"),
            (EntryType::Regular, &long, &[7; 1000]),
        ]);
        let mut tarball = Tarball::new(bytes.as_slice());
        assert_eq!(tarball.next().unwrap().unwrap().path, b"a");
        let mut content = Vec::new();
        tarball.read_to_end(&mut content).unwrap();
        assert_eq!(content, b"one");
        let entry = tarball.next().unwrap().unwrap();
        assert_eq!((entry.path.as_slice(), entry.size), (long.as_bytes(), 1000));
        assert!(tarball.next().unwrap().is_none());
    }

    #[test]
    fn pax_values_may_hold_anything() {
        let mut extension = Extension::default();
        let xattr = b"SCHILY.xattr.security.capability=\x01\n\n\0\x02\n";
        let mut records = format!("{} ", xattr.len() + 3).into_bytes();
        records.extend_from_slice(xattr);
        records.extend_from_slice(b"17 mtime=1700.25\n");
        pax(&records, &mut extension).unwrap();
        assert_eq!(
            extension.xattrs,
            [(b"security.capability".to_vec(), b"\x01\n\n\0\x02".to_vec())]
        );
        assert_eq!(extension.mtime, Some((1700, 250_000_000)));
    }

    #[test]
    fn malformed_pax_records_are_refused() {
        for records in [
            &b"x"[..],
            b"5 a=b",
            b"99 a=b\n",
            b"6 a=bc",
            b"0 a=b\n",
            b"3 a\n",
            b"1 \n",
        ] {
            assert!(
                pax(records, &mut Extension::default()).is_err(),
                "{records:?} was accepted"
            );
        }
    }

    #[test]
    fn an_archive_cut_at_any_byte_of_an_entry_is_refused() {
        let bytes = archive(&[(EntryType::Regular, "a", &[7; 700])]);
        for end in [1, 100, 511, 513, 600, 512 + 700, 512 + 1023] {
            let mut tarball = Tarball::new(&bytes[..end]);
            let outcome = tarball.next().and_then(|_| tarball.next());
            assert!(
                outcome.unwrap_err().to_string().contains("truncated"),
                "cut at {end}"
            );
        }
    }

    #[test]
    fn what_is_no_tar_is_refused() {
        assert!(Tarball::new([1u8; 1024].as_slice()).next().is_err());
    }

    #[test]
    fn metadata_beyond_all_measure_is_refused_unread() {
        let mut header = Header::new_gnu();
        header.set_entry_type(EntryType::GNULongName);
        header.set_size(1 << 33);
        header.set_cksum();
        let endless = header.as_bytes().chain(io::repeat(b'a'));
        assert!(
            Tarball::new(endless)
                .next()
                .unwrap_err()
                .to_string()
                .contains("metadata")
        );
    }
}
