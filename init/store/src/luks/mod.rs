//! LUKS 2: the header of an encrypted disk, and the key behind it (the LUKS2 On-Disk Format
//! Specification, version 1.1). What is written here `cryptsetup` opens, and what it has added to such a
//! header, another passphrase for instance, is kept.
//!
//! All disks of a pool have one volume key and the same key slots, so that a disk joins by a copy of
//! another's header and no secret is asked for. Each counts its sectors from a number of its own (the
//! tweak of XTS), so equal blocks of two disks do not look equal.
//!
//! Which secret opens a slot is said by a token (`"type": "monobloc"`) with a [`Lock`].

mod binary;
mod slot;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::os::unix::fs::FileExt;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use zeroize::Zeroizing;

use crate::error::{During, Error, Result};
use binary::Binary;
use slot::{Digest, Slot};

/// Where the data of a disk begin, in bytes: `cryptsetup`'s own default.
pub const DATA_OFFSET: u64 = 16 << 20;
/// Label and subsystem of the headers that are written here.
const OURS: &str = "monobloc";
const CIPHER: &str = "aes-xts-plain64";
/// Of `aes-xts` with AES-256.
const KEY_BYTES: usize = 64;
/// The sector that is encrypted as one, where the disk's size is a multiple of it.
const SECTOR: u64 = 4096;
/// The sector of the device mapper, and of a disk whose size is no multiple of a larger one.
const SMALL_SECTOR: u64 = 512;

/// What the sectors of a pool's disks are encrypted with.
#[derive(Clone)]
pub struct Key(Zeroizing<[u8; KEY_BYTES]>);

/// What opens a key slot.
#[derive(Clone)]
pub struct Secret(Zeroizing<Vec<u8>>);

/// Where the secret of a key slot is to be had.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "by", rename_all = "kebab-case")]
pub enum Lock {
    /// A person knows it.
    Passphrase,
    /// It is in the node's bundle.
    Bundle,
    /// The machine's TPM unseals it, while the registers say what they said.
    Tpm(Sealed),
}

/// An object that only one TPM can open: its two parts as `TPM2_Create` gives them, base64, and the
/// registers that its policy names.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sealed {
    pub private: String,
    pub public: String,
    pub pcrs: Vec<u8>,
}

/// The header of one disk, and its key slots' material.
#[derive(Debug, Clone)]
pub struct Header {
    /// Which disk; no other has it.
    pub uuid: String,
    sequence: u64,
    metadata: Metadata,
    /// The key slots' areas: where, and what is there.
    areas: Vec<(u64, Vec<u8>)>,
}

/// The header's JSON; parts that are not understood here are kept as they are.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Metadata {
    keyslots: BTreeMap<String, Value>,
    tokens: BTreeMap<String, Value>,
    segments: BTreeMap<String, Segment>,
    digests: BTreeMap<String, Digest>,
    config: Value,
}

/// What of the disk is encrypted, and how.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Segment {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    iv_tweak: String,
    encryption: String,
    sector_size: u64,
}

#[derive(Debug, Deserialize)]
struct Token {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    lock: Lock,
}

/// How the sectors of a disk are read and written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Layout {
    /// Bytes.
    pub sector: u64,
    /// Number of the first sector of 512 bytes.
    pub tweak: u64,
}

impl Secret {
    pub fn new(bytes: Vec<u8>) -> Secret {
        Secret(Zeroizing::new(bytes))
    }

    /// 256 random bits as a word of hexadecimal digits, which a person can type where he must.
    ///
    /// # Errors
    /// The kernel has no random bytes yet.
    pub fn random() -> Result<Secret> {
        let mut bytes = Zeroizing::new([0; 32]);
        random(bytes.as_mut_slice())?;
        Ok(Secret::new(hex(bytes.as_slice()).into_bytes()))
    }

    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl std::fmt::Debug for Secret {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Secret")
    }
}

impl std::fmt::Debug for Key {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Key")
    }
}

impl Key {
    fn random() -> Result<Key> {
        let mut key = Key(Zeroizing::new([0; KEY_BYTES]));
        random(key.0.as_mut_slice())?;
        Ok(key)
    }

    /// As the device mapper writes keys.
    pub(crate) fn from_hex(text: &str) -> Option<Key> {
        let mut key = Key(Zeroizing::new([0; KEY_BYTES]));
        if text.len() != 2 * KEY_BYTES {
            return None;
        }
        for (at, byte) in key.0.iter_mut().enumerate() {
            *byte = u8::from_str_radix(text.get(2 * at..2 * at + 2)?, 16).ok()?;
        }
        Some(key)
    }

    pub(crate) fn hex(&self) -> Zeroizing<String> {
        Zeroizing::new(hex(self.0.as_slice()))
    }
}

impl Lock {
    /// Whether the secret may be one that can be guessed.
    fn by_heart(&self) -> bool {
        *self == Lock::Passphrase
    }
}

impl Header {
    /// A new header for a disk of `size` bytes, with a new volume key that each of the secrets opens.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn new(size: u64, locks: &[(Lock, Secret)]) -> Result<(Header, Key)> {
        let key = Key::random()?;
        let mut metadata = Metadata {
            keyslots: BTreeMap::new(),
            tokens: BTreeMap::new(),
            segments: BTreeMap::new(),
            digests: BTreeMap::new(),
            config: json!({
                "json_size": binary::JSON_BYTES.to_string(),
                "keyslots_size": (DATA_OFFSET - binary::KEYSLOTS).to_string(),
            }),
        };
        let mut areas = Vec::new();
        for (number, (lock, secret)) in locks.iter().enumerate() {
            let (slot, area) = Slot::new(number, &key, secret, lock.by_heart())?;
            let token = json!({"type": OURS, "keyslots": [number.to_string()], "lock": lock});
            metadata.tokens.insert(number.to_string(), token);
            let value = serde_json::to_value(&slot).map_err(io::Error::other);
            metadata
                .keyslots
                .insert(number.to_string(), value.during("write a key slot")?);
            areas.push((slot.offset(), area));
        }
        let slots = metadata.keyslots.keys().cloned().collect();
        metadata.digests.insert("0".to_owned(), Digest::new(&key, slots)?);
        let header = Header {
            uuid: String::new(),
            sequence: 1,
            metadata,
            areas,
        };
        Ok((header.for_disk(size)?, key))
    }

    /// The header for another disk of the same pool, of `size` bytes.
    ///
    /// # Errors
    /// The kernel has no random bytes.
    pub fn for_disk(&self, size: u64) -> Result<Header> {
        let mut number = [0; 8];
        random(&mut number)?;
        // Far from all others: no disk has 2^40 sectors. A multiple of the larger sector, too.
        let tweak = (u64::from_le_bytes(number) >> 41) << 40;
        let sector = if size.is_multiple_of(SECTOR) {
            SECTOR
        } else {
            SMALL_SECTOR
        };
        let segment = Segment {
            kind: "crypt".to_owned(),
            offset: DATA_OFFSET.to_string(),
            size: "dynamic".to_owned(),
            iv_tweak: tweak.to_string(),
            encryption: CIPHER.to_owned(),
            sector_size: sector,
        };
        let mut header = self.clone();
        header.uuid = new_uuid()?;
        header.metadata.segments = BTreeMap::from([("0".to_owned(), segment)]);
        Ok(header)
    }

    /// The header of a disk, where it bears one of this system; the second copy where the first is damaged.
    ///
    /// # Errors
    /// The disk cannot be read.
    pub fn read(disk: &File) -> io::Result<Option<Header>> {
        let mut copies: Vec<Binary> = Vec::new();
        for place in [0, binary::HEADER_BYTES] {
            copies.extend(Binary::read(disk, place)?.filter(|copy| copy.label == OURS));
        }
        copies.sort_by_key(|copy| std::cmp::Reverse(copy.sequence));
        for copy in copies {
            let Ok(metadata) = serde_json::from_slice::<Metadata>(&copy.json) else {
                continue;
            };
            let mut areas = Vec::new();
            for slot in metadata.slots().values() {
                let mut area = vec![0; slot.area_bytes()];
                disk.read_exact_at(&mut area, slot.offset())?;
                areas.push((slot.offset(), area));
            }
            return Ok(Some(Header {
                uuid: copy.uuid,
                sequence: copy.sequence,
                metadata,
                areas,
            }));
        }
        Ok(None)
    }

    /// Writes the header to a disk, the part last by which it is known.
    ///
    /// # Errors
    /// The disk cannot be written.
    pub fn write(&self, disk: &File) -> Result<()> {
        let what = "write the header of an encrypted disk";
        let json = serde_json::to_vec(&self.metadata)
            .map_err(io::Error::other)
            .during(what)?;
        for (offset, area) in &self.areas {
            disk.write_all_at(area, *offset).during(what)?;
        }
        disk.sync_all().during(what)?;
        for place in [binary::HEADER_BYTES, 0] {
            let copy = Binary {
                label: OURS.to_owned(),
                uuid: self.uuid.clone(),
                sequence: self.sequence,
                json: json.clone(),
            };
            let mut salt = [0; 64];
            random(&mut salt)?;
            disk.write_all_at(&copy.bytes(place, &salt).during(what)?, place)
                .during(what)?;
            disk.sync_all().during(what)?;
        }
        Ok(())
    }

    /// Where secrets for this disk are to be had, in the order in which they should be tried.
    pub fn locks(&self) -> Vec<Lock> {
        self.tokens().into_iter().map(|token| token.lock).collect()
    }

    /// The volume key, if `secret` opens a slot of `lock`. A passphrase is also tried at the slots that
    /// something else than this system has made.
    pub fn unlock(&self, lock: &Lock, secret: &Secret) -> Option<Key> {
        let tokens = self.tokens();
        let named: Vec<&String> = tokens
            .iter()
            .filter(|token| token.lock == *lock)
            .flat_map(|token| &token.keyslots)
            .collect();
        let foreign =
            |number: &String| lock.by_heart() && !tokens.iter().any(|token| token.keyslots.contains(number));
        let slots = self.metadata.slots();
        let tried = slots
            .iter()
            .filter(|(number, _)| named.contains(number) || foreign(number));
        tried
            .filter_map(|(_, slot)| {
                let (_, area) = self.areas.iter().find(|(offset, _)| *offset == slot.offset())?;
                slot.open(secret, area)
            })
            .find(|key| self.opens(key))
    }

    /// Whether `key` is the volume key of this disk.
    pub fn opens(&self, key: &Key) -> bool {
        self.metadata.digests.values().any(|digest| digest.is_of(key))
    }

    /// How the disk is to be read; none where it is in a way that is not known here.
    pub fn layout(&self) -> Option<Layout> {
        let segment = self.metadata.segments.get("0")?;
        let known = segment.kind == "crypt"
            && segment.encryption == CIPHER
            && segment.offset == DATA_OFFSET.to_string()
            && segment.size == "dynamic"
            && [SECTOR, SMALL_SECTOR].contains(&segment.sector_size)
            && self.metadata.segments.len() == 1;
        Some(Layout {
            sector: segment.sector_size,
            tweak: segment.iv_tweak.parse().ok()?,
        })
        .filter(|_| known)
    }

    fn tokens(&self) -> Vec<Token> {
        let tokens = self.metadata.tokens.values();
        tokens
            .filter_map(|token| Token::deserialize(token).ok())
            .filter(|token| token.kind == OURS)
            .collect()
    }
}

impl Metadata {
    /// The key slots that are of a kind that is known here.
    fn slots(&self) -> BTreeMap<String, Slot> {
        let known = self
            .keyslots
            .iter()
            .filter_map(|(number, slot)| Some((number.clone(), Slot::known(slot)?)));
        known.collect()
    }
}

fn random(bytes: &mut [u8]) -> Result<()> {
    let what = "ask for random bytes";
    let mut filled = 0;
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        filled += rustix::rand::getrandom(rest, rustix::rand::GetRandomFlags::empty()).during(what)?;
    }
    Ok(())
}

fn new_uuid() -> Result<String> {
    let mut bytes = [0; 16];
    random(&mut bytes)?;
    // RFC 9562, version 4.
    bytes[6] = bytes[6] & 0x0f | 0x40;
    bytes[8] = bytes[8] & 0x3f | 0x80;
    Ok(crate::mkfs::uuid_text(&bytes))
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

fn unbase64(text: &str) -> Option<Vec<u8>> {
    BASE64_STANDARD.decode(text).ok()
}

fn base64(bytes: &[u8]) -> String {
    BASE64_STANDARD.encode(bytes)
}

/// A header that cannot be used.
fn unusable(why: &str) -> Error {
    Error::Refused(format!("The header of the encrypted disk is not usable: {why}."))
}
