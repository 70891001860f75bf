//! Key slots: the volume key, spread over an area of the disk so that losing a part of it loses all, and
//! encrypted with what a secret gives (sections 3.2 and 4 of the specification).

use std::num::NonZeroU32;

use aes::Aes256;
use aes::cipher::KeyInit as _;
use argon2::{Algorithm, Argon2, Params, Version};
use ring::pbkdf2;
use serde::{Deserialize, Serialize};
use serde_json::Value;
use sha2::{Digest as _, Sha256};
use xts_mode::{Xts128, get_tweak_default};
use zeroize::Zeroizing;

use super::{CIPHER, DATA_OFFSET, KEY_BYTES, Key, Secret, base64, binary, random, unbase64, unusable};
use crate::error::Result;

/// How often the key is spread.
const STRIPES: usize = 4000;
const MATERIAL: usize = STRIPES * KEY_BYTES;
/// The sector of a key slot's area.
const SECTOR: usize = 512;
/// Of a slot's area in the file: what the material needs, in whole pages.
const AREA: u64 = (MATERIAL as u64).next_multiple_of(4096);
/// Iterations for what cannot be guessed: `cryptsetup`'s least.
const ITERATIONS: u32 = 1000;
/// RFC 9106, section 4, the second recommended option: 64 MiB, three passes, four lanes.
const MEMORY_KIB: u32 = 64 << 10;
const PASSES: u32 = 3;
const LANES: u32 = 4;
/// More than this a header may not ask of the machine.
const MOST_MEMORY_KIB: u32 = 2 << 20;
const MOST_PASSES: u32 = 100;
const MOST_ITERATIONS: u32 = 100_000_000;
const SALT: usize = 32;
const HASH: &str = "sha256";

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Slot {
    #[serde(rename = "type")]
    kind: String,
    key_size: usize,
    af: AntiForensic,
    area: Area,
    kdf: Kdf,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct AntiForensic {
    #[serde(rename = "type")]
    kind: String,
    stripes: usize,
    hash: String,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Area {
    #[serde(rename = "type")]
    kind: String,
    offset: String,
    size: String,
    encryption: String,
    key_size: usize,
}

/// How a secret becomes a key.
#[derive(Debug, Clone, Serialize, Deserialize)]
#[serde(tag = "type", rename_all = "lowercase")]
enum Kdf {
    Pbkdf2 {
        hash: String,
        iterations: u32,
        salt: String,
    },
    Argon2id {
        time: u32,
        /// KiB.
        memory: u32,
        cpus: u32,
        salt: String,
    },
}

/// By which the right volume key is known.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Digest {
    #[serde(rename = "type")]
    kind: String,
    keyslots: Vec<String>,
    segments: Vec<String>,
    hash: String,
    iterations: u32,
    salt: String,
    digest: String,
}

impl Slot {
    /// The slot of a number and the content of its area.
    pub(super) fn new(number: usize, key: &Key, secret: &Secret, by_heart: bool) -> Result<(Slot, Vec<u8>)> {
        let offset = binary::KEYSLOTS + number as u64 * AREA;
        if offset + AREA > DATA_OFFSET {
            return Err(unusable("it has no room for another key slot"));
        }
        let slot = Slot {
            kind: "luks2".to_owned(),
            key_size: KEY_BYTES,
            af: AntiForensic {
                kind: "luks1".to_owned(),
                stripes: STRIPES,
                hash: HASH.to_owned(),
            },
            area: Area {
                kind: "raw".to_owned(),
                offset: offset.to_string(),
                size: AREA.to_string(),
                encryption: CIPHER.to_owned(),
                key_size: KEY_BYTES,
            },
            kdf: Kdf::new(by_heart)?,
        };
        let mut material = split(key)?;
        let Some(area_key) = slot.kdf.derive(secret) else {
            return Err(unusable("no key can be derived"));
        };
        xts(&area_key).encrypt_area(&mut material, SECTOR, 0, get_tweak_default);
        Ok((slot, material))
    }

    /// A slot of a header, where it is of a kind that is known here and lies where it may.
    pub(super) fn known(slot: &Value) -> Option<Slot> {
        let slot = Slot::deserialize(slot).ok()?;
        let offset: u64 = slot.area.offset.parse().ok()?;
        let known = slot.kind == "luks2"
            && slot.key_size == KEY_BYTES
            && slot.af.kind == "luks1"
            && slot.af.stripes == STRIPES
            && slot.af.hash == HASH
            && slot.area.kind == "raw"
            && slot.area.encryption == CIPHER
            && slot.area.key_size == KEY_BYTES
            && slot.kdf.bearable()
            && (binary::KEYSLOTS..=DATA_OFFSET - AREA).contains(&offset);
        known.then_some(slot)
    }

    /// Where its area begins, in bytes of the disk.
    pub(super) fn offset(&self) -> u64 {
        self.area.offset.parse().unwrap_or(binary::KEYSLOTS)
    }

    pub(super) fn area_bytes(&self) -> usize {
        MATERIAL
    }

    /// What a secret makes of the area: the volume key, if it is the right one.
    pub(super) fn open(&self, secret: &Secret, area: &[u8]) -> Option<Key> {
        let area_key = self.kdf.derive(secret)?;
        let mut material = Zeroizing::new(area.to_vec());
        xts(&area_key).decrypt_area(&mut material, SECTOR, 0, get_tweak_default);
        merge(&material)
    }
}

impl Kdf {
    fn new(by_heart: bool) -> Result<Kdf> {
        let mut salt = [0; SALT];
        random(&mut salt)?;
        let salt = base64(&salt);
        Ok(if by_heart {
            Kdf::Argon2id {
                time: PASSES,
                memory: MEMORY_KIB,
                cpus: LANES,
                salt,
            }
        } else {
            Kdf::Pbkdf2 {
                hash: HASH.to_owned(),
                iterations: ITERATIONS,
                salt,
            }
        })
    }

    fn bearable(&self) -> bool {
        match self {
            Kdf::Pbkdf2 { hash, iterations, .. } => hash == HASH && *iterations <= MOST_ITERATIONS,
            Kdf::Argon2id {
                time, memory, cpus, ..
            } => *time <= MOST_PASSES && *memory <= MOST_MEMORY_KIB && *cpus <= LANES,
        }
    }

    fn derive(&self, secret: &Secret) -> Option<Key> {
        let mut key = Key(Zeroizing::new([0; KEY_BYTES]));
        match self {
            Kdf::Pbkdf2 { iterations, salt, .. } => {
                pbkdf2_sha256(
                    *iterations,
                    &unbase64(salt)?,
                    secret.bytes(),
                    key.0.as_mut_slice(),
                )?;
            }
            Kdf::Argon2id {
                time,
                memory,
                cpus,
                salt,
            } => {
                let parameters = Params::new(*memory, *time, *cpus, Some(KEY_BYTES)).ok()?;
                Argon2::new(Algorithm::Argon2id, Version::V0x13, parameters)
                    .hash_password_into(secret.bytes(), &unbase64(salt)?, key.0.as_mut_slice())
                    .ok()?;
            }
        }
        Some(key)
    }
}

impl Digest {
    pub(super) fn new(key: &Key, keyslots: Vec<String>) -> Result<Digest> {
        let mut salt = [0; SALT];
        random(&mut salt)?;
        let digest = digest_of(key, ITERATIONS, &salt).ok_or_else(|| unusable("its key has no digest"))?;
        Ok(Digest {
            kind: "pbkdf2".to_owned(),
            keyslots,
            segments: vec!["0".to_owned()],
            hash: HASH.to_owned(),
            iterations: ITERATIONS,
            salt: base64(&salt),
            digest: base64(&digest),
        })
    }

    pub(super) fn is_of(&self, key: &Key) -> bool {
        let known = self.kind == "pbkdf2" && self.hash == HASH && self.iterations <= MOST_ITERATIONS;
        let right = || {
            let digest = digest_of(key, self.iterations, &unbase64(&self.salt)?)?;
            Some(unbase64(&self.digest)? == digest)
        };
        known && right() == Some(true)
    }
}

fn digest_of(key: &Key, iterations: u32, salt: &[u8]) -> Option<[u8; 32]> {
    let mut digest = [0; 32];
    pbkdf2_sha256(iterations, salt, key.0.as_slice(), &mut digest)?;
    Some(digest)
}

fn pbkdf2_sha256(iterations: u32, salt: &[u8], secret: &[u8], out: &mut [u8]) -> Option<()> {
    let iterations = NonZeroU32::new(iterations)?;
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, iterations, salt, secret, out);
    Some(())
}

fn xts(key: &Key) -> Xts128<Aes256> {
    let (data, tweak) = key.0.split_at(KEY_BYTES / 2);
    let cipher = |key: &[u8]| Aes256::new_from_slice(key).unwrap_or_else(|_| unreachable!("32 bytes"));
    Xts128::new(cipher(data), cipher(tweak))
}

/// Spreads a key: all stripes but the last are random, the last completes them.
fn split(key: &Key) -> Result<Vec<u8>> {
    let mut material = vec![0; MATERIAL];
    let last = MATERIAL - KEY_BYTES;
    random(&mut material[..last])?;
    let sum = diffused(&material[..last]);
    let stripe = material[last..].iter_mut();
    for ((byte, sum), key) in stripe.zip(sum.iter()).zip(key.0.iter()) {
        *byte = sum ^ key;
    }
    Ok(material)
}

fn merge(material: &[u8]) -> Option<Key> {
    let last = material.len().checked_sub(KEY_BYTES)?;
    let mut key = Key(diffused(&material[..last]));
    for (byte, stripe) in key.0.iter_mut().zip(&material[last..]) {
        *byte ^= stripe;
    }
    Some(key)
}

/// All stripes, one after the other, exclusive-or'ed and hashed.
fn diffused(stripes: &[u8]) -> Zeroizing<[u8; KEY_BYTES]> {
    let mut sum = Zeroizing::new([0; KEY_BYTES]);
    for stripe in stripes.chunks_exact(KEY_BYTES) {
        for (byte, stripe) in sum.iter_mut().zip(stripe) {
            *byte ^= stripe;
        }
        for (number, block) in (0u32..).zip(sum.chunks_exact_mut(32)) {
            let hash = Sha256::new()
                .chain_update(number.to_be_bytes())
                .chain_update(&*block);
            block.copy_from_slice(&hash.finalize());
        }
    }
    sum
}
