//! Goes through a log, piece by piece, across its segments.

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use super::Stream;
use super::format::{Kind, RECORD, Record};
use super::segment::{self, data_path, index_path, record_at};

/// Records read at a time.
const RECORDS: usize = 128;
/// Bytes of data read at a time.
const BLOCK: u64 = 64 << 10;

/// A place between two records: of the segment of this number, before the record of this number.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Place {
    pub(super) segment: u64,
    pub(super) record: u64,
}

/// What is met on the way.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// A part of what the process said.
    Said {
        stream: Stream,
        time: i64,
        bytes: &'a [u8],
    },
    /// The end of a life.
    End { time: i64 },
    /// What was between has been rotated away; so many bytes of an entry, by stream, are among it.
    Gap { open: [u16; 2] },
}

#[derive(Debug)]
struct Open {
    number: u64,
    data: File,
    index: File,
    /// The record that is read next.
    record: u64,
    /// Read by now, of those from `record` on, the last first.
    ahead: Vec<Record>,
    /// What is yet to be told of the record before.
    piece: Option<(Stream, i64, u64)>,
    /// Where in the data the cursor is.
    at: u64,
}

/// A place in a log, and what is needed to go on from it.
#[derive(Debug)]
pub(super) struct Cursor {
    dir: PathBuf,
    open: Option<Open>,
    /// The last segment that was opened; zero before the first.
    reached: u64,
    block: Vec<u8>,
    block_at: u64,
    blank: bool,
}

impl Cursor {
    /// Before the first record. The log need not be there yet.
    pub(super) fn first(dir: &Path) -> Self {
        Self {
            dir: dir.to_owned(),
            open: None,
            reached: 0,
            block: Vec::new(),
            block_at: 0,
            blank: true,
        }
    }

    /// At a place that [`Backward`] told of; what is open there, by stream, is beyond it. None if the
    /// segment is gone meanwhile.
    pub(super) fn at(dir: &Path, place: Place) -> io::Result<Option<(Self, [u16; 2])>> {
        let mut cursor = Self::first(dir);
        if place.segment == 0 {
            return Ok(Some((cursor, [0, 0])));
        }
        let Some(mut open) = cursor.open_segment(place.segment)? else {
            return Ok(None);
        };
        let mut left = [0, 0];
        if let Some(before) = place.record.checked_sub(1) {
            let Some(record) = record_at(&open.index, before)? else {
                return Ok(None);
            };
            open.at = record.end;
            open.record = place.record;
            left = record.open;
        }
        cursor.reached = place.segment;
        cursor.blank = false;
        cursor.open = Some(open);
        Ok(Some((cursor, left)))
    }

    pub(super) fn reached(&self) -> u64 {
        self.reached
    }

    pub(super) fn place(&self) -> Place {
        self.open.as_ref().map_or_else(Place::default, |open| Place {
            segment: open.number,
            record: open.record,
        })
    }

    fn open_segment(&self, number: u64) -> io::Result<Option<Open>> {
        let opened = |path: PathBuf| match File::open(path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            opened => opened.map(Some),
        };
        let index = opened(index_path(&self.dir, number))?;
        let data = opened(data_path(&self.dir, number))?;
        Ok(index.zip(data).map(|(index, data)| Open {
            number,
            data,
            index,
            record: 0,
            ahead: Vec::new(),
            piece: None,
            at: 0,
        }))
    }

    /// The next step; none if there is no more for now.
    pub(super) fn step(&mut self) -> io::Result<Option<Step<'_>>> {
        loop {
            if let Some((stream, time, end)) = self.open.as_mut().and_then(|open| open.piece.take()) {
                return self.said(stream, time, end).map(Some);
            }
            let Some(record) = self.next_record()? else {
                return Ok(None);
            };
            let Some(open) = &mut self.open else {
                return Ok(None);
            };
            match record.kind {
                Kind::Said(stream) => open.piece = Some((stream, record.time, record.end)),
                Kind::End => return Ok(Some(Step::End { time: record.time })),
                Kind::Begin { .. } => {
                    let was_blank = std::mem::replace(&mut self.blank, false);
                    // Nothing is missing where the segment before was read to its end.
                    if was_blank {
                        return Ok(Some(Step::Gap { open: record.open }));
                    }
                }
            }
        }
    }

    /// The bytes at the cursor that belong to a record that ends at `end`, as many as were read.
    fn said(&mut self, stream: Stream, time: i64, end: u64) -> io::Result<Step<'_>> {
        let Some(open) = &mut self.open else {
            return Err(io::ErrorKind::NotFound.into());
        };
        let at = open.at;
        let held = self.block_at + self.block.len() as u64;
        if !(self.block_at..held).contains(&at) {
            self.block.resize(BLOCK as usize, 0);
            self.block_at = at;
            let count = open.data.read_at(&mut self.block, at)?;
            self.block.truncate(count);
            if count == 0 {
                // Data that a crash of the machine has taken, before the log was repaired.
                return Err(io::ErrorKind::UnexpectedEof.into());
            }
        }
        let from = (at - self.block_at) as usize;
        let to = (end.min(self.block_at + self.block.len() as u64) - self.block_at) as usize;
        open.at = self.block_at + to as u64;
        if open.at < end {
            open.piece = Some((stream, time, end));
        }
        let bytes = self.block.get(from..to).unwrap_or_default();
        Ok(Step::Said { stream, time, bytes })
    }

    fn next_record(&mut self) -> io::Result<Option<Record>> {
        loop {
            if let Some(open) = &mut self.open
                && let Some(record) = open.next_record()?
            {
                return Ok(Some(record));
            }
            let Some(next) = segment::list(&self.dir)?
                .into_iter()
                .find(|number| *number > self.reached)
            else {
                return Ok(None);
            };
            // The writer has gone on; it may have written here until just before.
            if let Some(open) = &mut self.open
                && let Some(record) = open.next_record()?
            {
                return Ok(Some(record));
            }
            let Some(open) = self.open_segment(next)? else {
                // Removed just now.
                self.blank |= true;
                self.reached = next;
                continue;
            };
            self.blank |= next != self.reached + 1;
            self.reached = next;
            self.open = Some(open);
            self.block.clear();
        }
    }
}

impl Open {
    fn next_record(&mut self) -> io::Result<Option<Record>> {
        if self.ahead.is_empty() {
            self.ahead = records(&self.index, self.record, RECORDS)?;
            self.ahead.reverse();
        }
        let record = self.ahead.pop();
        self.record += u64::from(record.is_some());
        Ok(record)
    }
}

/// Records from a number on, as many as there are of those asked for; up to the first that is none.
fn records(index: &File, first: u64, most: usize) -> io::Result<Vec<Record>> {
    let mut bytes = vec![0; most * RECORD];
    let count = index.read_at(&mut bytes, first * RECORD as u64)?;
    bytes.truncate(count);
    let (whole, _) = bytes.as_chunks::<RECORD>();
    Ok(whole.iter().map_while(Record::from_bytes).collect())
}

/// Goes through the records of a log from its end to its beginning.
pub(super) struct Backward {
    dir: PathBuf,
    /// Those before the one that is open, the newest last.
    segments: Vec<u64>,
    index: Option<(u64, File)>,
    /// Read, and not told of yet: the last is told of next; the number of the first.
    held: Vec<Record>,
    held_at: u64,
}

/// A record, met on the way back.
#[derive(Debug, Clone, Copy)]
pub(super) struct Met {
    /// Before the record.
    pub(super) place: Place,
    pub(super) record: Record,
    /// Bytes that it tells of.
    pub(super) length: u64,
    /// What was open before it.
    pub(super) open_before: [u16; 2],
}

impl Backward {
    pub(super) fn new(dir: &Path) -> io::Result<Self> {
        Ok(Self {
            dir: dir.to_owned(),
            segments: segment::list(dir)?,
            index: None,
            held: Vec::new(),
            held_at: 0,
        })
    }

    /// The end of the log, and what is open there.
    pub(super) fn end(&mut self) -> io::Result<(Place, [u16; 2])> {
        while self.fill()? {
            if let (Some((segment, _)), Some(last)) = (&self.index, self.held.last()) {
                let record = self.held_at + self.held.len() as u64;
                let segment = *segment;
                return Ok((Place { segment, record }, last.open));
            }
        }
        Ok((Place::default(), [0, 0]))
    }

    /// The record before; begins of segments are not told of.
    pub(super) fn next(&mut self) -> io::Result<Option<Met>> {
        while self.fill()? {
            let (Some((segment, _)), [.., before, record]) = (&self.index, self.held.as_slice()) else {
                // The begin of a segment.
                self.held.clear();
                self.index = None;
                continue;
            };
            let met = Met {
                place: Place {
                    segment: *segment,
                    record: self.held_at + self.held.len() as u64 - 1,
                },
                record: *record,
                length: record.end.saturating_sub(before.end),
                open_before: before.open,
            };
            self.held.pop();
            return Ok(Some(met));
        }
        Ok(None)
    }

    /// Sees to it that two records are held, or the first of a segment. False at the very beginning.
    fn fill(&mut self) -> io::Result<bool> {
        loop {
            if self.held.len() >= 2 || (self.index.is_some() && self.held_at == 0 && !self.held.is_empty()) {
                return Ok(true);
            }
            if let Some((_, index)) = &self.index
                && self.held_at > 0
            {
                let first = self.held_at.saturating_sub(RECORDS as u64);
                let mut more = records(index, first, (self.held_at - first) as usize)?;
                more.append(&mut self.held);
                self.held = more;
                self.held_at = first;
                continue;
            }
            let Some(number) = self.segments.pop() else {
                return Ok(false);
            };
            self.held.clear();
            self.index = None;
            if let Ok(index) = File::open(index_path(&self.dir, number)) {
                self.held_at = index.metadata()?.len() / RECORD as u64;
                self.index = Some((number, index));
            }
        }
    }
}
