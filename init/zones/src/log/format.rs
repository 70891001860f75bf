//! The index of a log: what its records are, as bytes; and where entries end. No I/O here.
//!
//! An index is a row of records of 32 bytes, integers little-endian:
//!
//! | bytes | what |
//! | --- | --- |
//! | 0–7 | where in the data file the piece ends; it begins where the one before ends |
//! | 8–15 | when it was taken, nanoseconds since the epoch, signed |
//! | 16–19 | entries that end in it |
//! | 20–21, 22–23 | bytes of the entry that is not ended after it: of stdout, of stderr |
//! | 24 | kind: 1 begin, 2 stdout, 3 stderr, 4 end of a life |
//! | 25 | of a begin: the stream that is being taken, 0 or 1; written in place |
//! | 26–27 | zero |
//! | 28–31 | `mlog` |

use super::Stream;

/// Bytes of a record.
pub(super) const RECORD: usize = 32;
/// Where in an index the stream that is being taken is noted.
pub(super) const TAKING: u64 = 25;
/// An entry ends at a line's end, or when it has so many bytes, as with Docker.
pub(super) const MAX_ENTRY: usize = 16 << 10;

const MAGIC: &[u8; 4] = b"mlog";

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    /// The first record of each index: what the segment before left open.
    Begin { taking: Stream },
    /// A piece that the process said.
    Said(Stream),
    /// The process has ended: what was open is an entry.
    End,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Record {
    pub(super) kind: Kind,
    pub(super) end: u64,
    pub(super) time: i64,
    pub(super) entries: u32,
    /// By stream; below [`MAX_ENTRY`].
    pub(super) open: [u16; 2],
}

impl Record {
    pub(super) fn to_bytes(self) -> [u8; RECORD] {
        let (kind, taking) = match self.kind {
            Kind::Begin { taking } => (1, taking as u8),
            Kind::Said(Stream::Stdout) => (2, 0),
            Kind::Said(Stream::Stderr) => (3, 0),
            Kind::End => (4, 0),
        };
        let mut bytes = [0; RECORD];
        let parts: [&[u8]; 7] = [
            &self.end.to_le_bytes(),
            &self.time.to_le_bytes(),
            &self.entries.to_le_bytes(),
            &self.open[0].to_le_bytes(),
            &self.open[1].to_le_bytes(),
            &[kind, taking, 0, 0],
            MAGIC,
        ];
        let all = parts.into_iter().flatten();
        bytes.iter_mut().zip(all).for_each(|(to, from)| *to = *from);
        bytes
    }

    /// None for what is no record: the file system lost it.
    pub(super) fn from_bytes(bytes: &[u8; RECORD]) -> Option<Self> {
        let (end, rest) = bytes.split_first_chunk()?;
        let (time, rest) = rest.split_first_chunk()?;
        let (entries, rest) = rest.split_first_chunk()?;
        let (stdout, rest) = rest.split_first_chunk()?;
        let (stderr, rest) = rest.split_first_chunk()?;
        let [kind, taking, 0, 0, magic @ ..] = rest else {
            return None;
        };
        let kind = match (kind, taking) {
            (1, 0) => Kind::Begin {
                taking: Stream::Stdout,
            },
            (1, 1) => Kind::Begin {
                taking: Stream::Stderr,
            },
            (2, 0) => Kind::Said(Stream::Stdout),
            (3, 0) => Kind::Said(Stream::Stderr),
            (4, 0) => Kind::End,
            _ => return None,
        };
        let record = Self {
            kind,
            end: u64::from_le_bytes(*end),
            time: i64::from_le_bytes(*time),
            entries: u32::from_le_bytes(*entries),
            open: [u16::from_le_bytes(*stdout), u16::from_le_bytes(*stderr)],
        };
        let open_is_sane = record.open.iter().all(|open| usize::from(*open) < MAX_ENTRY);
        (magic == MAGIC && open_is_sane).then_some(record)
    }
}

/// How many of `bytes` end an entry that had `open` bytes before; none if it goes on after them.
pub(super) fn entry_end(open: usize, bytes: &[u8]) -> Option<usize> {
    let room = MAX_ENTRY.saturating_sub(open).max(1);
    let window = bytes.get(..room).unwrap_or(bytes);
    let newline = window.iter().position(|byte| *byte == b'\n').map(|at| at + 1);
    newline.or((window.len() == room).then_some(room))
}

/// Counts the entries that end in `bytes`, of [`MAX_ENTRY`] at most, where `open` bytes of one came
/// before; notes how much is open after them.
pub(super) fn count_entries(open: &mut u16, bytes: &[u8]) -> u32 {
    debug_assert!(bytes.len() <= MAX_ENTRY);
    let before = usize::from(*open);
    let mut rest = bytes;
    let mut entries = 0;
    // Once a line's end is met, no later entry of so few bytes can grow too long: lines are counted.
    let first = entry_end(before, bytes).filter(|end| bytes.get(end - 1) == Some(&b'\n'));
    if first.is_some() {
        entries = bytes.iter().filter(|byte| **byte == b'\n').count() as u32;
        let last = bytes.iter().rposition(|byte| *byte == b'\n');
        *open = last.map_or(0, |last| bytes.len() - last - 1) as u16;
        return entries;
    }
    let mut held = before;
    while let Some(end) = entry_end(held, rest) {
        entries += 1;
        held = 0;
        rest = rest.get(end..).unwrap_or_default();
    }
    *open = (held + rest.len()) as u16;
    entries
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_comes_back_as_it_was_and_nonsense_does_not() {
        let kinds = [
            Kind::Begin {
                taking: Stream::Stderr,
            },
            Kind::Said(Stream::Stdout),
            Kind::Said(Stream::Stderr),
            Kind::End,
        ];
        for kind in kinds {
            let record = Record {
                kind,
                end: 1 << 40,
                time: -5,
                entries: 7,
                open: [1, 16_383],
            };
            assert_eq!(Record::from_bytes(&record.to_bytes()), Some(record));
        }
        assert_eq!(Record::from_bytes(&[0; RECORD]), None);
        assert_eq!(Record::from_bytes(&[0xff; RECORD]), None);
    }

    #[test]
    fn entries_are_counted_as_they_are_cut() {
        let long = vec![b'x'; MAX_ENTRY];
        let cases: &[(u16, &[u8], u32, u16)] = &[
            (0, b"", 0, 0),
            (3, b"a\nb\nc", 2, 1),
            (0, b"abc", 0, 3),
            (0, &long, 1, 0),
            (10, &long, 1, 10),
            ((MAX_ENTRY - 1) as u16, b"\n\n", 2, 0),
            ((MAX_ENTRY - 1) as u16, b"x\n", 2, 0),
        ];
        for (before, bytes, entries, after) in cases {
            let mut open = *before;
            assert_eq!(count_entries(&mut open, bytes), *entries);
            assert_eq!(open, *after, "{before} {}", bytes.len());
        }
        let mut mixed = vec![b'x'; 9000];
        mixed[8000] = b'\n';
        let mut open = 9000;
        // The first entry grows too long before the line's end comes.
        assert_eq!(count_entries(&mut open, &mixed), 2);
        assert_eq!(open, 999);
    }
}
