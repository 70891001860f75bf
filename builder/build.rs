//! Gives the builder a digest of the part of itself that decides how an image comes out.
//!
//! It is part of every key in the cache: an image made by another version of these sources is
//! another image, and nobody has to remember to count something up.

use std::fs;
use std::path::{Path, PathBuf};

const SOURCES: &[&str] = &[
    "src/debian",
    "src/image",
    "src/initramfs",
    "src/kernel",
    "src/oci",
    "src/recipe",
    "src/uki",
    "src/manifest.rs",
];

fn main() {
    let mut files = Vec::new();
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
        collect(Path::new(source), &mut files);
    }
    files.sort();
    let digest = files.iter().fold(FNV_OFFSET, |digest, file| {
        let bytes = fs::read(file).unwrap_or_default();
        fnv(fnv(digest, file.to_string_lossy().as_bytes()), &bytes)
    });
    println!("cargo::rustc-env=MONOBLOC_BUILDER_DIGEST={digest:016x}");
}

fn collect(path: &Path, files: &mut Vec<PathBuf>) {
    let Ok(entries) = fs::read_dir(path) else {
        files.push(path.to_owned());
        return;
    };
    for entry in entries.flatten().filter(|entry| entry.file_name() != "tests.rs") {
        collect(&entry.path(), files);
    }
}

/// FNV-1a of 64 bits: it tells versions apart and needs no dependency; nothing trusts it.
const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0100_0000_01b3;

fn fnv(digest: u64, bytes: &[u8]) -> u64 {
    bytes.iter().fold(digest, |digest, byte| {
        (digest ^ u64::from(*byte)).wrapping_mul(FNV_PRIME)
    })
}
