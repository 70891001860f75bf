//! Layers: read-only subvolumes, each a snapshot of its parent plus its own diff.

use std::io::{BufReader, Read};
use std::os::fd::OwnedFd;

use rustix::fs::{AtFlags, Mode, OFlags, fstat, futimens, openat, renameat, unlinkat};
use serde::{Deserialize, Serialize};
use sys::btrfs;

use crate::copy;
use crate::digest::{ChainId, Digest, DigestReader};
use crate::error::{During, Error, Result};
use crate::extract::{Extractor, Placing};
use crate::mkfs;
use crate::store::Store;
use crate::tarball::Tarball;

const GZIP: [u8; 2] = [0x1f, 0x8b];
const ZSTD: [u8; 4] = [0x28, 0xb5, 0x2f, 0xfd];
const XZ: [u8; 6] = [0xfd, b'7', b'z', b'X', b'Z', 0];
const BZIP2: [u8; 3] = *b"BZh";

/// A layer in the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Layer {
    pub chain_id: ChainId,
    pub diff_id: Digest,
    pub parent: Option<ChainId>,
    /// Bytes of file content that this layer adds.
    pub size: u64,
}

/// The plain bytes of a stream that may be compressed; told by its first bytes.
pub(crate) fn decompress<'a>(stream: impl Read + 'a) -> Result<Box<dyn Read + 'a>> {
    let refuse = |reason: String| Error::BadArchive { reason };
    let mut stream = stream;
    let mut start = Vec::new();
    (&mut stream)
        .take(XZ.len() as u64)
        .read_to_end(&mut start)
        .map_err(|reason| refuse(format!("it cannot be read ({reason})")))?;
    let kind = start.clone();
    let whole = BufReader::with_capacity(64 << 10, std::io::Cursor::new(start).chain(stream));
    if kind.starts_with(&GZIP) {
        return Ok(Box::new(flate2::bufread::MultiGzDecoder::new(whole)));
    }
    if kind.starts_with(&ZSTD) {
        let decoder = zstd::Decoder::with_buffer(whole)
            .map_err(|reason| refuse(format!("its compression cannot be undone ({reason})")))?;
        return Ok(Box::new(decoder));
    }
    if kind.starts_with(&XZ) || kind.starts_with(&BZIP2) {
        return Err(refuse(
            "it is compressed by xz or bzip2; plain, gzip and zstd are understood".to_owned(),
        ));
    }
    Ok(Box::new(whole))
}

/// A subvolume under construction; removed unless it is kept.
struct Draft<'a> {
    store: &'a Store,
    name: String,
    kept: bool,
}

impl Drop for Draft<'_> {
    fn drop(&mut self) {
        if !self.kept {
            // What cannot be removed now is collected when the store is opened.
            let _ = btrfs::destroy_subvolume(&self.store.tmp, &self.name);
            self.store.drop_recipe(&self.name);
            // Makes the kernel begin to free the space now instead of at its next commit.
            let _ = btrfs::sync(&self.store.tmp);
        }
    }
}

impl Store {
    /// Makes the layer on `parent` whose tar is `tar`; without `expected` the diff id is what comes out.
    pub(crate) fn make_layer(
        &self,
        parent: Option<&ChainId>,
        expected: Option<&Digest>,
        tar: impl Read,
    ) -> Result<Layer> {
        if let Some(layer) = expected.and_then(|diff_id| self.layer(&ChainId::of(parent, diff_id))) {
            return Ok(layer);
        }
        let mut draft = Draft {
            store: self,
            name: self.serial_name("layer"),
            kept: false,
        };
        let root = self.start_layer(parent, &draft.name)?;
        let what = "use the new layer's folder";
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let same = openat(&root, ".", flags, Mode::empty()).during(what)?;
        let recipe = self.start_recipe(&draft.name)?;
        let mut tarball = Tarball::recorded(DigestReader::new(decompress(tar)?), recipe);
        let size = Extractor::new(same, Placing::Layer).run(&mut tarball)?;
        let (read, recipe) = tarball.drain()?;
        let (diff_id, _) = read.finish();
        if let Some(expected) = expected.filter(|expected| **expected != diff_id) {
            return Err(Error::WrongDigest {
                expected: *expected,
                found: diff_id,
            });
        }
        // The mark is no part of the image, and its going is no change of it.
        let about = fstat(&root).during(what)?;
        match unlinkat(&root, mkfs::INODE_MARK, AtFlags::empty()) {
            Ok(()) => futimens(&root, &copy::times(&about)).during(what)?,
            Err(rustix::io::Errno::NOENT) => {}
            Err(reason) => return Err(Error::io(what, reason)),
        }
        let layer = Layer {
            chain_id: ChainId::of(parent, &diff_id),
            diff_id,
            parent: parent.copied(),
            size,
        };
        if let Some(recipe) = recipe {
            self.keep_recipe(recipe, &draft.name, &layer.chain_id)?;
        }
        draft.kept = self.keep_layer(&draft.name, &root, &layer)?;
        Ok(layer)
    }

    fn start_layer(&self, parent: Option<&ChainId>, name: &str) -> Result<OwnedFd> {
        let what = "start a layer";
        let open = |dir: &OwnedFd, name: &str| {
            openat(
                dir,
                name,
                OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )
        };
        let template = open(&self.root, mkfs::TEMPLATE).during("open the template of layers")?;
        let source = match parent {
            None => template,
            Some(chain) => {
                let found = open(&self.layers, &chain.hex());
                let tree = found.map_err(|_| Error::MissingLayer { chain: *chain })?;
                // A tree with nothing in it has lost the high inode numbers of the template.
                let mut entries = rustix::fs::Dir::read_from(&tree).during(what)?;
                let empty = !entries.any(|entry| {
                    entry.is_ok_and(|entry| !matches!(entry.file_name().to_bytes(), b"." | b".."))
                });
                if empty { template } else { tree }
            }
        };
        btrfs::snapshot(&source, &self.tmp, name).during(what)?;
        open(&self.tmp, name).during(what)
    }

    /// Puts a finished tree in its place; false where another thread has made the same layer.
    fn keep_layer(&self, name: &str, root: &OwnedFd, layer: &Layer) -> Result<bool> {
        let what = "keep a layer";
        let mut index = self.index();
        if index.layers.contains_key(&layer.chain_id) {
            return Ok(false);
        }
        let place = layer.chain_id.hex();
        let mut placed = renameat(&self.tmp, name, &self.layers, &place);
        if let Err(rustix::io::Errno::NOTEMPTY | rustix::io::Errno::EXIST) = placed {
            // The tree of one whose record was damaged, which nobody uses.
            btrfs::destroy_subvolume(&self.layers, &place).during(what)?;
            placed = renameat(&self.tmp, name, &self.layers, &place);
        }
        placed.during(what)?;
        if let Err(reason) = btrfs::set_read_only(root, true) {
            let _ = btrfs::destroy_subvolume(&self.layers, &place);
            return Err(Error::io(what, reason));
        }
        index.add_layer(layer.clone(), false);
        Ok(true)
    }
}
