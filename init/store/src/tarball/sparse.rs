//! Files with holes, of which a tar holds only the rest (GNU tar's manual, "Storing Sparse Files"): the
//! old form, whose map is in the headers, and the forms 0.0, 0.1 and 1.0 of PAX records.

use std::io::{self, Read};

use tar::{GnuExtSparseHeader, GnuSparseHeader, Header};

use super::{BLOCK, MAX_METADATA, bad};
use crate::error::Result;

/// More pieces than these no map has.
const MAX_PIECES: usize = 1 << 16;
/// The largest file of Linux.
const MAX_SIZE: u64 = i64::MAX as u64;

/// Where the content of a file lies that has holes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Map {
    /// Bytes of the file with its holes.
    pub(crate) size: u64,
    /// Offset and length of each piece, ascending.
    pub(crate) pieces: Vec<(u64, u64)>,
}

/// What PAX records say of a sparse file.
#[derive(Debug, Default)]
pub(super) struct Records {
    /// 1 where the map stands before the content.
    major: u64,
    size: Option<u64>,
    pub(super) name: Option<Vec<u8>>,
    /// Offsets and lengths in turn.
    numbers: Vec<u64>,
}

impl Map {
    /// Refuses what no file could be, or does not fit the `stored` bytes of the archive.
    fn checked(self, stored: u64) -> Result<Map> {
        let mut end = 0;
        let mut content = 0u64;
        for (offset, length) in &self.pieces {
            if *offset < end {
                return Err(bad("the pieces of a sparse file overlap"));
            }
            end = offset.checked_add(*length).ok_or_else(beyond)?;
            content = content.saturating_add(*length);
        }
        if end > self.size || self.size > MAX_SIZE {
            return Err(beyond());
        }
        if content != stored {
            return Err(bad("a sparse file has another length than its pieces"));
        }
        Ok(self)
    }
}

fn beyond() -> crate::Error {
    bad("a sparse file is larger than it says")
}

fn wrong() -> crate::Error {
    bad("the map of a sparse file is malformed")
}

/// The map of the old form; `next` gives the blocks that follow the header.
pub(super) fn of_header(
    header: &Header,
    stored: u64,
    mut next: impl FnMut() -> Result<[u8; BLOCK]>,
) -> Result<Map> {
    let gnu = header.as_gnu().ok_or_else(wrong)?;
    let mut pieces = Vec::new();
    let mut extended = gnu.is_extended();
    take(&gnu.sparse, &mut pieces)?;
    while extended {
        let block = next()?;
        let mut more = GnuExtSparseHeader::new();
        more.as_mut_bytes().copy_from_slice(&block);
        take(&more.sparse, &mut pieces)?;
        extended = more.is_extended();
    }
    let size = gnu.real_size().map_err(|_| wrong())?;
    Map { size, pieces }.checked(stored)
}

fn take(fields: &[GnuSparseHeader], pieces: &mut Vec<(u64, u64)>) -> Result<()> {
    for field in fields.iter().filter(|field| !field.is_empty()) {
        let offset = field.offset().map_err(|_| wrong())?;
        let length = field.length().map_err(|_| wrong())?;
        if pieces.len() >= MAX_PIECES {
            return Err(bad(format!("a sparse file has more than {MAX_PIECES} pieces")));
        }
        pieces.push((offset, length));
    }
    Ok(())
}

impl Records {
    /// Takes a record whose key begins with `GNU.sparse.`, by the rest of the key.
    pub(super) fn take(&mut self, key: &[u8], value: &[u8]) -> Result<()> {
        let number = |value: &[u8]| {
            let text = std::str::from_utf8(value).ok();
            text.and_then(|text| text.parse::<u64>().ok()).ok_or_else(wrong)
        };
        match key {
            b"major" => self.major = number(value)?,
            b"minor" | b"numblocks" => drop(number(value)?),
            b"size" | b"realsize" => self.size = Some(number(value)?),
            b"name" => self.name = Some(value.to_vec()),
            b"offset" | b"numbytes" => self.numbers.push(number(value)?),
            b"map" => {
                let numbers: Result<Vec<u64>> = value.split(|byte| *byte == b',').map(number).collect();
                self.numbers = numbers?;
            }
            _ => return Err(bad("a sparse file is in a form that is not known")),
        }
        if self.numbers.len() > 2 * MAX_PIECES {
            return Err(bad(format!("a sparse file has more than {MAX_PIECES} pieces")));
        }
        Ok(())
    }

    /// The map, and how many of the `stored` bytes it takes where it stands before the content.
    pub(super) fn map(self, stored: u64, content: &mut dyn Read) -> Result<(Map, u64)> {
        let (numbers, taken) = match self.major {
            0 => (self.numbers, 0),
            1 => before_content(content)?,
            _ => return Err(bad("a sparse file is in a form that is not known")),
        };
        if !numbers.len().is_multiple_of(2) {
            return Err(wrong());
        }
        let pieces = numbers.chunks_exact(2).map(|pair| (pair[0], pair[1])).collect();
        let size = self.size.ok_or_else(wrong)?;
        let stored = stored.checked_sub(taken).ok_or_else(wrong)?;
        Ok((Map { size, pieces }.checked(stored)?, taken))
    }
}

/// Reads the numbers of a map, decimal and one a line, the first of which counts the pieces, in whole blocks.
fn before_content(content: &mut dyn Read) -> Result<(Vec<u64>, u64)> {
    let mut text = Vec::new();
    let mut numbers: Vec<u64> = Vec::new();
    let mut taken = 0;
    loop {
        let mut block = [0; BLOCK];
        content
            .read_exact(&mut block)
            .map_err(|reason: io::Error| super::unreadable(&reason))?;
        taken += BLOCK as u64;
        if taken > MAX_METADATA {
            return Err(bad(format!(
                "the map of a sparse file has more than {MAX_METADATA} bytes"
            )));
        }
        for byte in block {
            if byte != b'\n' {
                text.push(byte);
                continue;
            }
            let number = std::str::from_utf8(&text).ok().and_then(|text| text.parse().ok());
            numbers.push(number.ok_or_else(wrong)?);
            text.clear();
            let wanted = usize::try_from(numbers[0])
                .ok()
                .filter(|count| *count <= MAX_PIECES);
            let wanted = wanted.ok_or_else(wrong)?;
            if numbers.len() == 1 + 2 * wanted {
                numbers.remove(0);
                return Ok((numbers, taken));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(size: u64, pieces: &[(u64, u64)]) -> Map {
        Map {
            size,
            pieces: pieces.to_vec(),
        }
    }

    #[test]
    fn pieces_that_overlap_or_lie_beyond_the_end_are_refused() {
        assert!(map(10, &[(0, 2), (5, 3)]).checked(5).is_ok());
        assert!(map(10, &[(0, 0), (10, 0)]).checked(0).is_ok());
        for (bad, stored) in [
            (map(10, &[(0, 6), (5, 3)]), 9),
            (map(10, &[(5, 3), (0, 2)]), 5),
            (map(10, &[(8, 3)]), 3),
            (map(10, &[(0, 2)]), 3),
            (map(u64::MAX, &[(u64::MAX, 2)]), 2),
            (map(u64::MAX, &[]), 0),
        ] {
            assert!(bad.clone().checked(stored).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn a_map_before_the_content_ends_in_whole_blocks() {
        let mut bytes = b"2\n0\n4\n1000\n4\n".to_vec();
        bytes.resize(BLOCK, 0);
        bytes.extend_from_slice(b"contents");
        let records = || Records {
            major: 1,
            size: Some(2000),
            ..Records::default()
        };
        let (found, taken) = records().map(520, &mut bytes.as_slice()).unwrap();
        assert_eq!((found, taken), (map(2000, &[(0, 4), (1000, 4)]), 512));
        for bad in [&b"2\n0\n4\n"[..], b"x\n", b"99999999999\n", b"-1\n", &[b'1'; 600]] {
            let mut bytes = bad.to_vec();
            bytes.resize(BLOCK, 0);
            assert!(records().map(520, &mut bytes.as_slice()).is_err(), "{bad:?}");
        }
    }

    #[test]
    fn records_that_make_no_map_are_refused() {
        let of = |records: &[(&str, &str)]| {
            let mut taken = Records::default();
            for (key, value) in records {
                taken.take(key.as_bytes(), value.as_bytes())?;
            }
            taken.map(8, &mut io::empty())
        };
        assert!(of(&[("size", "100"), ("map", "0,4,50,4")]).is_ok());
        assert!(
            of(&[
                ("size", "100"),
                ("offset", "0"),
                ("numbytes", "4"),
                ("offset", "9"),
                ("numbytes", "4")
            ])
            .is_ok()
        );
        for bad in [
            &[("map", "0,4,50,4")][..],
            &[("size", "100"), ("map", "0,4,50")],
            &[("size", "100"), ("map", "0,x")],
            &[("size", "100"), ("map", "0,4")],
            &[("size", "100"), ("map", "0,8"), ("major", "2")],
            &[("size", "100"), ("map", "0,8"), ("shape", "round")],
        ] {
            assert!(of(bad).is_err(), "{bad:?}");
        }
    }
}
