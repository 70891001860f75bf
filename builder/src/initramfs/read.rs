//! The reader of an initramfs, for `inspect` and for tests.

use std::collections::BTreeMap;
use std::io::Read;

use anyhow::{Context, ensure};
use cpio::newc;

/// No initramfs that the builder makes decompresses to more.
const MAX: u64 = 4 << 30;

/// Decompresses zstd and gzip; what is neither is returned as it is.
pub(crate) fn decompress(bytes: &[u8]) -> anyhow::Result<Vec<u8>> {
    let mut plain = Vec::new();
    match bytes {
        [0x28, 0xb5, 0x2f, 0xfd, ..] => zstd::stream::read::Decoder::with_buffer(bytes)?
            .take(MAX + 1)
            .read_to_end(&mut plain),
        [0x1f, 0x8b, ..] => flate2::bufread::MultiGzDecoder::new(bytes)
            .take(MAX + 1)
            .read_to_end(&mut plain),
        _ => return Ok(bytes.to_vec()),
    }
    .context("The initramfs is damaged: it does not decompress")?;
    ensure!(plain.len() as u64 <= MAX, "The initramfs is larger than 4 GiB");
    Ok(plain)
}

/// The content of each entry by name; folders and devices have none.
pub(crate) fn entries(mut bytes: &[u8]) -> anyhow::Result<BTreeMap<String, Vec<u8>>> {
    let mut found = BTreeMap::new();
    loop {
        let mut reader =
            newc::Reader::new(bytes).context("The initramfs is damaged: it is no cpio archive")?;
        if reader.entry().is_trailer() {
            return Ok(found);
        }
        let name = reader.entry().name().to_owned();
        let size = u64::from(reader.entry().file_size());
        ensure!(
            size <= bytes.len() as u64,
            "The initramfs is damaged: it ends in the middle of {name}"
        );
        let mut content = Vec::new();
        reader
            .read_to_end(&mut content)
            .with_context(|| format!("The initramfs is damaged at {name}"))?;
        bytes = reader
            .finish()
            .with_context(|| format!("The initramfs is damaged at {name}"))?;
        found.insert(name, content);
    }
}
