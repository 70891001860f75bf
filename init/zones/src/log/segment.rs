//! The files of a log: pairs of data and index, numbered, and their repair.

use std::fs::{self, File, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt};
use std::path::{Path, PathBuf};

use super::Stream;
use super::format::{Kind, MAX_ENTRY, RECORD, Record, count_entries};

/// The property by which btrfs compresses a file, and how; see btrfs-property(8).
const COMPRESSION: (&str, &[u8]) = ("btrfs.compression", b"zstd");

/// Numbers of the segments that are there, the oldest first. A folder that is not there has none.
pub(super) fn list(dir: &Path) -> io::Result<Vec<u64>> {
    let entries = match fs::read_dir(dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        entries => entries?,
    };
    let mut numbers = Vec::new();
    for entry in entries {
        let name = entry?.file_name();
        let number = name.to_str().and_then(|name| name.strip_suffix(".index"));
        numbers.extend(number.and_then(|number| number.parse::<u64>().ok()));
    }
    numbers.sort_unstable();
    Ok(numbers)
}

pub(super) fn data_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.data"))
}

pub(super) fn index_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number}.index"))
}

/// Removes a segment; what is gone already is no error.
pub(super) fn remove(dir: &Path, number: u64) -> io::Result<()> {
    for path in [index_path(dir, number), data_path(dir, number)] {
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
    }
    Ok(())
}

/// The segment that is written.
#[derive(Debug)]
pub(super) struct Segment {
    pub(super) number: u64,
    pub(super) data: File,
    pub(super) index: File,
    /// Bytes of data; more than the last record tells of until that is indexed.
    pub(super) size: u64,
    /// Records in the index.
    pub(super) records: u64,
    pub(super) last: Record,
    pub(super) taking: Stream,
}

impl Segment {
    /// Makes a segment; the data file first, as it is the index that makes it count.
    pub(super) fn create(dir: &Path, number: u64, open: [u16; 2], compress: bool) -> io::Result<Self> {
        let fresh = || {
            let mut options = OpenOptions::new();
            options.read(true).write(true).create(true).truncate(true);
            options
        };
        let data = fresh().open(data_path(dir, number))?;
        if compress {
            let (property, method) = COMPRESSION;
            rustix::fs::fsetxattr(&data, property, method, rustix::fs::XattrFlags::empty())?;
        }
        let index = fresh().open(index_path(dir, number))?;
        let mut segment = Self {
            number,
            data,
            index,
            size: 0,
            records: 0,
            last: begin(open),
            taking: Stream::Stdout,
        };
        segment.append(segment.last)?;
        Ok(segment)
    }

    /// Opens a segment that is there and makes its two files agree. `open` is what the segment before
    /// left open; it is asked for only where this segment's own note of it is lost.
    pub(super) fn open(dir: &Path, number: u64, open: impl FnOnce() -> [u16; 2]) -> io::Result<Self> {
        let mut options = OpenOptions::new();
        options.read(true).write(true).create(true).truncate(false);
        let data = options.open(data_path(dir, number))?;
        let index = options.open(index_path(dir, number))?;
        let size = data.metadata()?.len();
        let mut found = last_that_agrees(&index, size)?;
        if found.records == 0 {
            found.last = begin(open());
        }
        let mut segment = Self {
            number,
            data,
            index,
            size,
            records: found.records,
            last: found.last,
            taking: found.taking,
        };
        segment.index.set_len(segment.records * RECORD as u64)?;
        if segment.records == 0 {
            segment.append(segment.last)?;
        }
        // What was taken and not noted: the file's time is that of its last piece.
        let metadata = segment.data.metadata()?;
        let written = metadata
            .mtime()
            .saturating_mul(1_000_000_000)
            .saturating_add(metadata.mtime_nsec());
        let (stream, time) = found.cut.unwrap_or((segment.taking, written));
        segment.note(stream, time)?;
        Ok(segment)
    }

    /// Notes what the data file has beyond the last record as one piece.
    pub(super) fn note(&mut self, stream: Stream, time: i64) -> io::Result<()> {
        let mut record = Record {
            kind: Kind::Said(stream),
            time,
            entries: 0,
            ..self.last
        };
        let mut piece = [0; MAX_ENTRY];
        while record.end < self.size {
            let wanted = (self.size - record.end).min(MAX_ENTRY as u64) as usize;
            let piece = piece.get_mut(..wanted).unwrap_or_default();
            self.data.read_exact_at(piece, record.end)?;
            let open = match stream {
                Stream::Stdout => &mut record.open[0],
                Stream::Stderr => &mut record.open[1],
            };
            record.entries = record.entries.saturating_add(count_entries(open, piece));
            record.end += wanted as u64;
        }
        if record.end == self.last.end {
            return Ok(());
        }
        self.append(record)
    }

    /// Whether the last life has its end, or there was none yet.
    fn is_ended(&self) -> bool {
        match self.last.kind {
            Kind::End => true,
            Kind::Begin { .. } => self.last.open == [0, 0] && self.number == super::FIRST_SEGMENT,
            Kind::Said(_) => false,
        }
    }

    /// Notes the end of the process's life, unless it is noted.
    pub(super) fn end_life(&mut self, time: i64) -> io::Result<()> {
        if self.is_ended() {
            return Ok(());
        }
        self.append(Record {
            kind: Kind::End,
            time,
            entries: 0,
            open: [0, 0],
            ..self.last
        })
    }

    fn append(&mut self, record: Record) -> io::Result<()> {
        self.index
            .write_all_at(&record.to_bytes(), self.records * RECORD as u64)?;
        self.records += 1;
        self.last = record;
        Ok(())
    }

    /// Bytes of both files.
    pub(super) fn weight(&self) -> u64 {
        self.size + self.records * RECORD as u64
    }
}

fn begin(open: [u16; 2]) -> Record {
    Record {
        kind: Kind::Begin {
            taking: Stream::Stdout,
        },
        end: 0,
        time: 0,
        entries: 0,
        open,
    }
}

struct Found {
    records: u64,
    last: Record,
    taking: Stream,
    /// Stream and time of a record whose piece the data file has only in part.
    cut: Option<(Stream, i64)>,
}

/// The last record of an index that agrees with `size` bytes of data. After a crash of the machine
/// either file may be behind the other.
fn last_that_agrees(index: &File, size: u64) -> io::Result<Found> {
    let mut found = Found {
        records: 0,
        last: begin([0, 0]),
        taking: Stream::Stdout,
        cut: None,
    };
    if let Some(Record {
        kind: Kind::Begin { taking },
        ..
    }) = record_at(index, 0)?
    {
        found.taking = taking;
    } else {
        return Ok(found);
    }
    for number in (0..index.metadata()?.len() / RECORD as u64).rev() {
        match record_at(index, number)? {
            Some(record) if record.end <= size => {
                found.records = number + 1;
                found.last = record;
                // Only the one that follows is in part there; those after it are not at all.
                if record.end == size {
                    found.cut = None;
                }
                return Ok(found);
            }
            Some(Record {
                kind: Kind::Said(stream),
                time,
                ..
            }) => found.cut = Some((stream, time)),
            _ => {}
        }
    }
    Ok(found)
}

/// None beyond the end, and for what is no record.
pub(super) fn record_at(index: &File, number: u64) -> io::Result<Option<Record>> {
    let mut bytes = [0; RECORD];
    match index.read_exact_at(&mut bytes, number * RECORD as u64) {
        Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Ok(None),
        Err(error) => Err(error),
        Ok(()) => Ok(Record::from_bytes(&bytes)),
    }
}
