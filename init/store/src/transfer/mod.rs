//! Snapshots on their way to another pool.
//!
//! ```text
//! "MONOBLOC SEND 1\n"   16 bytes
//! u32 (little-endian)   length of what follows
//! label                 JSON: what it is of, see [`Label`]
//! stream                btrfs-send(8), which is made by the kernel
//! "MONOBLOC SENT 1\n"   16 bytes
//! digest                SHA-256 of everything before these 16 bytes, 32 bytes
//! ```
//! The kernel's own stream knows exactly what two snapshots differ in (renames, hard links, holes, shared
//! extents), whatever their size, which no walk of the trees does; [`apply`] is all that it takes elsewhere.
//! The same snapshot gives the same bytes each time, so that what was cut off goes on at any byte. What
//! comes is kept as it comes, and not looked into before it is whole and its digest is right
//! ([`incoming`]).

mod apply;
pub(crate) mod incoming;
pub(crate) mod send;
mod stream;

use std::io::{self, Read};

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

const BEGIN: &[u8; 16] = b"MONOBLOC SEND 1\n";
const END: &[u8; 16] = b"MONOBLOC SENT 1\n";
const DIGEST: usize = 32;
const MAX_LABEL: u32 = 1 << 20;

/// What a stream is of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Sort {
    Zone,
    Volume,
}

/// What a stream says of itself before its content.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Label {
    pub kind: Sort,
    /// Of the zone or volume, where it was sent from.
    pub name: String,
    pub snapshot: String,
    /// The snapshot among all of the world; the same on each machine that has it. Hexadecimal.
    pub uuid: String,
    /// The snapshot that this is the difference to.
    pub from: Option<String>,
    /// What the caller wants to be known of it.
    pub about: serde_json::Value,
}

impl Label {
    /// # Errors
    /// It is no label.
    pub fn parse(bytes: &[u8]) -> Result<Label> {
        serde_json::from_slice(bytes)
            .map_err(|error| bad(format!("its label cannot be understood ({error})")))
    }
}

/// The label's bytes, which a stream begins with, and how long the beginning is.
///
/// # Errors
/// It is no stream of this kind.
pub(crate) fn read_beginning(from: &mut impl Read) -> Result<(Vec<u8>, u64)> {
    let no = |_| bad("it is no snapshot that was sent");
    let mut mark = [0; BEGIN.len()];
    from.read_exact(&mut mark).map_err(no)?;
    let mut length = [0; 4];
    from.read_exact(&mut length).map_err(no)?;
    let length = u32::from_le_bytes(length);
    if mark != *BEGIN || length > MAX_LABEL {
        return Err(bad("it is no snapshot that was sent"));
    }
    let mut label = vec![0; length as usize];
    from.read_exact(&mut label).map_err(no)?;
    Ok((label, (BEGIN.len() + 4) as u64 + u64::from(length)))
}

fn beginning(label: &Label) -> Result<Vec<u8>> {
    let label =
        serde_json::to_vec(label).map_err(|error| bad(format!("its label cannot be written ({error})")))?;
    let length = u32::try_from(label.len())
        .ok()
        .filter(|length| *length <= MAX_LABEL);
    let length = length.ok_or_else(|| bad("its label is too long"))?;
    Ok([BEGIN.as_slice(), &length.to_le_bytes(), &label].concat())
}

/// What a transfer is known by: the digest of its label.
pub fn transfer_id(label: &[u8]) -> String {
    Digest::of(label).hex()
}

fn bad(reason: impl Into<String>) -> Error {
    Error::BadStream {
        reason: reason.into(),
    }
}

fn hex(uuid: &[u8]) -> String {
    uuid.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn invalid(reason: impl Into<String>) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, reason.into())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_stream_begins_with_its_label() {
        let label = Label {
            kind: Sort::Volume,
            name: "data".to_owned(),
            snapshot: "monday".to_owned(),
            uuid: "0".repeat(32),
            from: None,
            about: serde_json::json!({"a": 1}),
        };
        let mut bytes = beginning(&label).unwrap();
        bytes.extend_from_slice(b"and more");
        let (found, length) = read_beginning(&mut bytes.as_slice()).unwrap();
        assert_eq!(Label::parse(&found).unwrap(), label);
        assert_eq!(bytes.get(length as usize..), Some(&b"and more"[..]));
        for cut in [0, 15, 19, 30] {
            assert!(read_beginning(&mut &bytes[..cut]).is_err(), "{cut}");
        }
        let other = [b"MONOBLOC SEND 2\n".as_slice(), &bytes[16..]].concat();
        assert!(read_beginning(&mut other.as_slice()).is_err());
        let long = [BEGIN.as_slice(), &[255; 4], &bytes].concat();
        assert!(read_beginning(&mut long.as_slice()).is_err());
    }
}
