//! Reads a log: as entries, or as the pieces that the process said.

use std::io;
use std::path::Path;

use super::cursor::{Backward, Cursor, Place, Step};
use super::format::{Kind, Record, entry_end};
use super::{Entry, Piece, Selection, Stream};

/// Bytes of entries or pieces that are given at a time, at least, if there are as many.
const BATCH: usize = 64 << 10;

impl Selection {
    fn takes(&self, stream: Stream) -> bool {
        match stream {
            Stream::Stdout => self.stdout,
            Stream::Stderr => self.stderr,
        }
    }

    fn is_in_time(&self, time: i64) -> bool {
        let time = i128::from(time);
        self.since.is_none_or(|since| time >= since) && self.until.is_none_or(|until| time <= until)
    }

    /// Entries of a record that are wanted.
    fn count(&self, record: &Record, open_before: [u16; 2]) -> usize {
        if !self.is_in_time(record.time) {
            return 0;
        }
        match record.kind {
            Kind::Said(stream) if self.takes(stream) => record.entries as usize,
            Kind::End => {
                let open = Stream::BOTH.map(|stream| open_before[stream as usize] > 0 && self.takes(stream));
                open.into_iter().filter(|open| *open).count()
            }
            Kind::Said(_) | Kind::Begin { .. } => 0,
        }
    }
}

/// An entry that has not ended.
#[derive(Debug, Default)]
struct Unfinished {
    bytes: Vec<u8>,
    /// Bytes before these that are not to be had: rotated away. Such an entry is left out.
    missing: usize,
}

impl Unfinished {
    fn len(&self) -> usize {
        self.missing + self.bytes.len()
    }
}

/// Reads a log's entries from a place on.
#[derive(Debug)]
pub struct Reader {
    cursor: Cursor,
    selection: Selection,
    unfinished: [Unfinished; 2],
    /// Wanted entries that come before those of the tail.
    skip: usize,
    /// One later than `until` was met.
    done: bool,
}

impl Reader {
    /// A log that is not there yet is empty. Blocks, as all of this.
    pub fn open(dir: &Path, selection: Selection) -> io::Result<Self> {
        let mut reader = Self {
            cursor: Cursor::first(dir),
            selection,
            unfinished: Default::default(),
            skip: 0,
            done: false,
        };
        if let Some(tail) = selection.tail {
            // Rotation may take away what was just found.
            let (cursor, open, skip) = loop {
                let (place, skip) = tail_start(dir, tail, &selection)?;
                if let Some((cursor, open)) = Cursor::at(dir, place)? {
                    break (cursor, open, skip);
                }
            };
            reader.cursor = cursor;
            reader.skip = skip;
            reader.miss(open);
        }
        Ok(reader)
    }

    fn miss(&mut self, open: [u16; 2]) {
        self.unfinished = open.map(|open| Unfinished {
            bytes: Vec::new(),
            missing: usize::from(open),
        });
    }

    /// The next entries, some at a time; none if there are no more for now.
    pub fn entries(&mut self) -> io::Result<Vec<Entry>> {
        let mut entries = Vec::new();
        let mut bytes = 0;
        while bytes < BATCH && !self.done {
            let Some(step) = self.cursor.step()? else { break };
            let mut sieve = Sieve {
                selection: &self.selection,
                skip: &mut self.skip,
                done: &mut self.done,
                entries: &mut entries,
                bytes: &mut bytes,
            };
            match step {
                Step::Said { stream, time, bytes } => {
                    if self.selection.takes(stream) {
                        sieve.cut(&mut self.unfinished[stream as usize], stream, time, bytes);
                    }
                }
                Step::End { time } => {
                    for (stream, unfinished) in Stream::BOTH.into_iter().zip(&mut self.unfinished) {
                        if unfinished.len() > 0 {
                            sieve.pass(unfinished, stream, time);
                        }
                    }
                }
                Step::Gap { open } => self.miss(open),
            }
        }
        Ok(entries)
    }

    /// Whether nothing can come any more, however long one follows.
    pub fn is_done(&self) -> bool {
        self.done
    }
}

/// Lets those entries through that are wanted.
struct Sieve<'a> {
    selection: &'a Selection,
    skip: &'a mut usize,
    done: &'a mut bool,
    entries: &'a mut Vec<Entry>,
    bytes: &'a mut usize,
}

impl Sieve<'_> {
    fn cut(&mut self, unfinished: &mut Unfinished, stream: Stream, time: i64, bytes: &[u8]) {
        let mut rest = bytes;
        while let Some(end) = entry_end(unfinished.len(), rest) {
            let (entry, later) = rest.split_at(end);
            unfinished.bytes.extend_from_slice(entry);
            rest = later;
            self.pass(unfinished, stream, time);
        }
        unfinished.bytes.extend_from_slice(rest);
    }

    /// The entry has ended.
    fn pass(&mut self, unfinished: &mut Unfinished, stream: Stream, time: i64) {
        let Unfinished { bytes, missing } = std::mem::take(unfinished);
        if self.selection.until.is_some_and(|until| i128::from(time) > until) {
            *self.done = true;
            return;
        }
        if *self.done || !self.selection.takes(stream) || !self.selection.is_in_time(time) {
            return;
        }
        if *self.skip > 0 {
            *self.skip -= 1;
        } else if missing == 0 {
            *self.bytes += bytes.len();
            self.entries.push(Entry { stream, time, bytes });
        }
    }
}

/// Where to begin for the last `tail` wanted entries, and how many wanted ones come there before them.
fn tail_start(dir: &Path, tail: usize, selection: &Selection) -> io::Result<(Place, usize)> {
    let mut back = Backward::new(dir)?;
    let (mut place, mut open) = back.end()?;
    let mut count: usize = 0;
    // Once there are enough: bytes of the entry that is open there, which begins further back.
    let mut needed: Option<[u64; 2]> = None;
    loop {
        if needed.is_none() && count >= tail {
            let wanted = |stream: Stream| {
                let open = open[stream as usize];
                u64::from(if selection.takes(stream) { open } else { 0 })
            };
            needed = Some(Stream::BOTH.map(wanted));
        }
        if needed == Some([0, 0]) {
            return Ok((place, count - tail));
        }
        let Some(met) = back.next()? else {
            return Ok((Place::default(), count.saturating_sub(tail)));
        };
        count += selection.count(&met.record, met.open_before);
        if let (Some(needed), Kind::Said(stream)) = (&mut needed, met.record.kind) {
            let needed = &mut needed[stream as usize];
            *needed = needed.saturating_sub(met.length);
        }
        (place, open) = (met.place, met.open_before);
    }
}

/// Reads what the process said as it said it, for clients that are attached.
#[derive(Debug)]
pub struct Listener {
    cursor: Cursor,
    /// Ends of lives before this place belong to the past.
    present: Place,
    state: Hearing,
}

/// How far a [`Listener`] is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Hearing {
    /// More may come.
    On,
    /// The life of the process that was heard has ended.
    Ended,
    /// What came next was rotated away before it was read.
    Lost,
}

impl Listener {
    /// One that hears what is said from now on. Blocks, as all of this.
    pub fn from_now(dir: &Path) -> io::Result<Self> {
        let (present, _) = Backward::new(dir)?.end()?;
        let cursor = Cursor::at(dir, present)?;
        Ok(Self {
            cursor: cursor.map_or_else(|| Cursor::first(dir), |(cursor, _)| cursor),
            present,
            state: Hearing::On,
        })
    }

    /// One that hears all that is in the log before.
    pub fn from_first(dir: &Path) -> io::Result<Self> {
        let (present, _) = Backward::new(dir)?.end()?;
        Ok(Self {
            cursor: Cursor::first(dir),
            present,
            state: Hearing::On,
        })
    }

    /// The last segment that it has opened, and holds open; zero before the first.
    pub fn segment(&self) -> u64 {
        self.cursor.reached()
    }

    pub fn state(&self) -> Hearing {
        self.state
    }

    /// The next pieces, some at a time; none if there are no more for now.
    pub fn pieces(&mut self) -> io::Result<Vec<Piece>> {
        let mut pieces: Vec<Piece> = Vec::new();
        let mut total = 0;
        let mut begun = self.cursor.place() != Place::default();
        while total < BATCH && self.state == Hearing::On {
            let Some(step) = self.cursor.step()? else { break };
            match step {
                Step::Said { stream, bytes, .. } => {
                    total += bytes.len();
                    match pieces.last_mut() {
                        Some(last) if last.stream == stream => last.bytes.extend_from_slice(bytes),
                        _ => pieces.push(Piece {
                            stream,
                            bytes: bytes.to_vec(),
                        }),
                    }
                }
                Step::End { .. } => {
                    if self.cursor.place() > self.present {
                        self.state = Hearing::Ended;
                    }
                }
                // At the beginning there is nothing that could have been missed.
                Step::Gap { .. } if begun => self.state = Hearing::Lost,
                Step::Gap { .. } => {}
            }
            begun = true;
        }
        Ok(pieces)
    }
}
