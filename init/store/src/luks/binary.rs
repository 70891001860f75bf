//! The binary part of a header, with the JSON behind it (section 2 of the specification).

use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use sha2::{Digest as _, Sha256};

/// Bytes of a header with its JSON; the second copy follows the first.
pub(super) const HEADER_BYTES: u64 = 16 << 10;
const BINARY_BYTES: usize = 4096;
/// Bytes that the JSON may have.
pub(super) const JSON_BYTES: usize = HEADER_BYTES as usize - BINARY_BYTES;
/// Where the key slots' areas begin.
pub(super) const KEYSLOTS: u64 = 2 * HEADER_BYTES;

const MAGIC: [&[u8; 6]; 2] = [b"LUKS\xba\xbe", b"SKUL\xba\xbe"];
const VERSION: u16 = 2;
const CHECKSUM: &str = "sha256";

/// Places of the fields, all numbers big-endian.
const AT_VERSION: usize = 6;
const AT_SIZE: usize = 8;
const AT_SEQUENCE: usize = 16;
const AT_LABEL: usize = 24;
const AT_ALGORITHM: usize = 72;
const AT_SALT: usize = 104;
const AT_UUID: usize = 168;
const AT_SUBSYSTEM: usize = 208;
const AT_PLACE: usize = 256;
const AT_CHECKSUM: usize = 448;
const CHECKSUM_FIELD: usize = 64;

/// One copy of a header.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Binary {
    pub(super) label: String,
    pub(super) uuid: String,
    pub(super) sequence: u64,
    pub(super) json: Vec<u8>,
}

impl Binary {
    /// Reads the copy at `place`; none where there is none that is whole.
    pub(super) fn read(disk: &File, place: u64) -> io::Result<Option<Binary>> {
        let mut bytes = vec![0; HEADER_BYTES as usize];
        disk.read_exact_at(&mut bytes, place)?;
        Ok(Binary::parse(&mut bytes, place))
    }

    pub(super) fn parse(bytes: &mut [u8], place: u64) -> Option<Binary> {
        let field = |at: usize, len: usize| bytes.get(at..at.checked_add(len)?);
        let number = |at: usize| Some(u64::from_be_bytes(*bytes.get(at..)?.first_chunk()?));
        let text = |at: usize, len: usize| -> Option<String> {
            let field = field(at, len)?;
            let end = field.iter().position(|byte| *byte == 0).unwrap_or(len);
            String::from_utf8(field[..end].to_vec()).ok()
        };
        let magic = MAGIC[usize::from(place != 0)];
        let known = field(0, magic.len())? == magic
            && *bytes.get(AT_VERSION..)?.first_chunk()? == VERSION.to_be_bytes()
            && number(AT_SIZE)? == HEADER_BYTES
            && number(AT_PLACE)? == place
            && text(AT_ALGORITHM, 32)? == CHECKSUM;
        if !known {
            return None;
        }
        let (label, uuid) = (text(AT_LABEL, 48)?, text(AT_UUID, 40)?);
        let sequence = number(AT_SEQUENCE)?;
        let sum = field(AT_CHECKSUM, CHECKSUM_FIELD)?.to_vec();
        bytes.get_mut(AT_CHECKSUM..AT_CHECKSUM + CHECKSUM_FIELD)?.fill(0);
        let right: [u8; 32] = Sha256::digest(&*bytes).into();
        if sum.get(..right.len())? != right {
            return None;
        }
        let json = bytes.get(BINARY_BYTES..)?;
        let end = json.iter().position(|byte| *byte == 0).unwrap_or(json.len());
        Some(Binary {
            label,
            uuid,
            sequence,
            json: json[..end].to_vec(),
        })
    }

    /// The copy for `place`.
    pub(super) fn bytes(&self, place: u64, salt: &[u8; 64]) -> io::Result<Vec<u8>> {
        // One null at the end at least.
        if self.json.len() >= JSON_BYTES {
            return Err(io::Error::other("the header's JSON is too long"));
        }
        let mut bytes = vec![0; HEADER_BYTES as usize];
        let mut put = |at: usize, field: &[u8]| bytes[at..at + field.len()].copy_from_slice(field);
        put(0, MAGIC[usize::from(place != 0)]);
        put(AT_VERSION, &VERSION.to_be_bytes());
        put(AT_SIZE, &HEADER_BYTES.to_be_bytes());
        put(AT_SEQUENCE, &self.sequence.to_be_bytes());
        put(AT_LABEL, self.label.as_bytes());
        put(AT_ALGORITHM, CHECKSUM.as_bytes());
        put(AT_SALT, salt);
        put(AT_UUID, self.uuid.as_bytes());
        put(AT_SUBSYSTEM, self.label.as_bytes());
        put(AT_PLACE, &place.to_be_bytes());
        put(BINARY_BYTES, &self.json);
        let sum: [u8; 32] = Sha256::digest(&bytes).into();
        bytes[AT_CHECKSUM..AT_CHECKSUM + sum.len()].copy_from_slice(&sum);
        Ok(bytes)
    }
}
