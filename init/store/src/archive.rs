//! Whole images from archives: `docker save` (old and new form), OCI archives, and bare root trees.
//!
//! The parts of an archive come in any order and are needed in another, so all are first written to
//! one spool file. Nothing is believed: a manifest's, config's and layer's digest is computed anew.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read};
use std::sync::Arc;

use crate::blob::{BlobReader, unnamed_file};
use crate::digest::{ChainId, Digest, DigestReader, ImageId};
use crate::error::{During, Error, Result};
use crate::image::Image;
use crate::layer::decompress;
use crate::oci::{Descriptor, ImageConfig, MAX_DOCUMENT, Manifest, SavedImage};
use crate::reference::Reference;
use crate::store::Store;
use crate::tarball::{Kind, Tarball};

const SAVED_MANIFEST: &str = "manifest.json";
const OCI_INDEX: &str = "index.json";
/// Names that tools give an image in an OCI index, best first.
const NAME_ANNOTATIONS: [&str; 2] = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
/// What this machine runs, in the words of image manifests.
const ARCHITECTURE: &str = "amd64";
/// Parts of one archive; each layer is three at most.
const MAX_PARTS: usize = 16 << 10;
const MAX_LINKS: usize = 8;
/// An index may point to an index, as tools write them, but not for ever.
const MAX_INDEX_DEPTH: usize = 4;

/// Progress of a load.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum LoadEvent {
    /// So many bytes of the (uncompressed) archive were read.
    Read { bytes: u64 },
    /// A layer is being unpacked; `done` and `total` are bytes of it as they lie in the archive.
    Unpacking { diff_id: Digest, done: u64, total: u64 },
    /// Layer `index` of `total` of an image is in the store; `present`: it was there before.
    Layer {
        index: usize,
        total: usize,
        present: bool,
    },
}

/// An image that an archive held.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Loaded {
    pub id: ImageId,
    /// Names that the archive gave it; empty where none.
    pub references: Vec<Reference>,
}

fn bad(reason: impl Into<String>) -> Error {
    Error::BadArchive {
        reason: reason.into(),
    }
}

impl Store {
    /// Loads every image of an archive, compressed or not.
    ///
    /// # Errors
    /// The archive is damaged, lacks a part, holds what is refused, or the pool is full. Images that
    /// came before the fault in the archive are loaded, nothing of the faulty one is left.
    pub fn load(&self, archive: impl Read, progress: &mut dyn FnMut(LoadEvent)) -> Result<Vec<Loaded>> {
        let parts = Parts::spool(self, archive, progress)?;
        let _hold = self.hold();
        let wanted = match parts.get(SAVED_MANIFEST)? {
            Some(_) => saved_images(&parts)?,
            None => oci_images(&parts)?,
        };
        if wanted.is_empty() {
            return Err(bad("it holds no image"));
        }
        wanted
            .into_iter()
            .map(|image| self.load_one(&parts, image, progress))
            .collect()
    }

    fn load_one(&self, parts: &Parts, wanted: Wanted, progress: &mut dyn FnMut(LoadEvent)) -> Result<Loaded> {
        let config = ImageConfig::parse(&wanted.config)?;
        let diff_ids = &config.rootfs.diff_ids;
        let total = diff_ids.len();
        if total != wanted.layers.len() {
            return Err(bad(format!(
                "an image has {} layers where its config lists {total}",
                wanted.layers.len()
            )));
        }
        let mut parent: Option<ChainId> = None;
        for (index, (diff_id, layer)) in diff_ids.iter().zip(&wanted.layers).enumerate() {
            let chain = ChainId::of(parent.as_ref(), diff_id);
            let present = self.has_layer(&chain);
            if !present {
                if let Some(digest) = layer.digest {
                    parts.verify(&layer.name, &digest)?;
                }
                let told = Told {
                    part: parts.open(&layer.name)?,
                    diff_id: *diff_id,
                    total: parts.find(&layer.name).map_or(0, |(_, length)| length),
                    done: 0,
                    said: 0,
                    progress: &mut *progress,
                };
                self.ingest_layer(parent.as_ref(), diff_id, told)?;
            }
            parent = Some(chain);
            progress(LoadEvent::Layer {
                index,
                total,
                present,
            });
        }
        let image = self.add_image(&wanted.config, None)?;
        for reference in &wanted.references {
            self.tag(&image.id, reference)?;
        }
        Ok(Loaded {
            id: image.id,
            references: wanted.references,
        })
    }

    /// Makes an image of one layer from a tar of a root tree. `config`'s `rootfs` is filled in.
    pub fn import(
        &self,
        tar: impl Read,
        mut config: ImageConfig,
        reference: Option<&Reference>,
    ) -> Result<Image> {
        let _hold = self.hold();
        let layer = self.make_layer(None, None, tar)?;
        config.rootfs.kind = "layers".to_owned();
        config.rootfs.diff_ids = vec![layer.diff_id];
        if config.os.is_empty() {
            config.os = "linux".to_owned();
        }
        if config.architecture.is_empty() {
            config.architecture = ARCHITECTURE.to_owned();
        }
        let raw = serde_json::to_vec(&config).map_err(|e| Error::BadConfig {
            reason: e.to_string(),
        })?;
        self.add_image(&raw, reference)
    }
}

/// One image to take from an archive.
struct Wanted {
    config: Vec<u8>,
    layers: Vec<LayerPart>,
    references: Vec<Reference>,
}

struct LayerPart {
    name: String,
    /// Of the part as it lies in the archive; `docker save` states none.
    digest: Option<Digest>,
}

/// Bytes between two words on a layer's progress.
const TELL_EVERY: u64 = 512 << 10;

/// A layer's bytes, which tells how far it was read.
struct Told<'a> {
    part: BlobReader,
    diff_id: Digest,
    total: u64,
    done: u64,
    /// What was told last.
    said: u64,
    progress: &'a mut dyn FnMut(LoadEvent),
}

impl Read for Told<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.part.read(buffer)?;
        self.done += count as u64;
        if self.done > self.said && (self.done == self.total || self.done - self.said >= TELL_EVERY) {
            self.said = self.done;
            (self.progress)(LoadEvent::Unpacking {
                diff_id: self.diff_id,
                done: self.done,
                total: self.total,
            });
        }
        Ok(count)
    }
}

/// The files of an archive.
struct Parts {
    spool: Arc<File>,
    files: BTreeMap<String, (u64, u64)>,
    links: BTreeMap<String, String>,
}

impl Parts {
    fn spool(store: &Store, archive: impl Read, progress: &mut dyn FnMut(LoadEvent)) -> Result<Parts> {
        let spool = unnamed_file(&store.tmp_path())?;
        let mut tarball = Tarball::new(decompress(archive)?);
        let (mut files, mut links, mut offset) = (BTreeMap::new(), BTreeMap::new(), 0);
        while let Some(entry) = tarball.next()? {
            if files.len() + links.len() >= MAX_PARTS {
                return Err(bad(format!("it has more than {MAX_PARTS} parts")));
            }
            let name = normal(&entry.name(), "");
            match entry.kind {
                Kind::File if entry.holes.is_some() => {
                    return Err(bad(format!("its part `{name}` is a sparse file")));
                }
                Kind::File => {
                    let what = "spool an image archive";
                    let count = crate::blob::copy(&mut tarball, &mut &spool, what)?;
                    files.insert(name, (offset, count));
                    offset += count;
                    progress(LoadEvent::Read { bytes: offset });
                }
                // Old archives hold a layer once and link to it.
                Kind::Symlink | Kind::HardLink => {
                    let base = match entry.kind {
                        Kind::Symlink => name.rsplit_once('/').map_or("", |(base, _)| base),
                        _ => "",
                    };
                    let target = normal(&String::from_utf8_lossy(&entry.link), base);
                    links.insert(name, target);
                }
                _ => {}
            }
        }
        Ok(Parts {
            spool: Arc::new(spool),
            files,
            links,
        })
    }

    fn find(&self, name: &str) -> Option<(u64, u64)> {
        let mut name = normal(name, "");
        for _ in 0..MAX_LINKS {
            match self.links.get(&name) {
                Some(target) if !self.files.contains_key(&name) => name.clone_from(target),
                _ => break,
            }
        }
        self.files.get(&name).copied()
    }

    fn open(&self, name: &str) -> Result<BlobReader> {
        let (offset, length) = self
            .find(name)
            .ok_or_else(|| bad(format!("its part `{name}` is missing")))?;
        Ok(BlobReader::part(Arc::clone(&self.spool), offset, length))
    }

    /// A document's bytes; `None` where there is none of that name.
    fn get(&self, name: &str) -> Result<Option<Vec<u8>>> {
        let Some((_, length)) = self.find(name) else {
            return Ok(None);
        };
        if length > MAX_DOCUMENT {
            return Err(bad(format!(
                "its part `{name}` has {length} bytes, more than {MAX_DOCUMENT}"
            )));
        }
        let mut content = Vec::new();
        self.open(name)?
            .read_to_end(&mut content)
            .during("read a spool file")?;
        Ok(Some(content))
    }

    fn document(&self, name: &str) -> Result<Vec<u8>> {
        self.get(name)?
            .ok_or_else(|| bad(format!("its part `{name}` is missing")))
    }

    fn verify(&self, name: &str, expected: &Digest) -> Result<()> {
        let mut reader = DigestReader::new(self.open(name)?);
        io::copy(&mut reader, &mut io::sink()).during("read a spool file")?;
        let (found, _) = reader.finish();
        if found == *expected {
            Ok(())
        } else {
            Err(Error::WrongDigest {
                expected: *expected,
                found,
            })
        }
    }

    /// A document of an OCI archive, where each is named by its digest.
    fn blob(&self, digest: &Digest) -> Result<Vec<u8>> {
        let content = self.document(&blob_name(digest))?;
        let found = Digest::of(&content);
        if found == *digest {
            Ok(content)
        } else {
            Err(Error::WrongDigest {
                expected: *digest,
                found,
            })
        }
    }
}

/// A part's name without `.`, `..` and doubled slashes; only ever a key, never a path.
fn normal(name: &str, base: &str) -> String {
    let mut parts: Vec<&str> = base.split('/').filter(|part| !part.is_empty()).collect();
    for part in name.split('/') {
        match part {
            "" | "." => {}
            ".." => drop(parts.pop()),
            other => parts.push(other),
        }
    }
    parts.join("/")
}

fn blob_name(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn json<T: serde::de::DeserializeOwned>(content: &[u8], name: &str) -> Result<T> {
    serde_json::from_slice(content)
        .map_err(|reason| bad(format!("its part `{name}` is not understood ({reason})")))
}

fn saved_images(parts: &Parts) -> Result<Vec<Wanted>> {
    let images: Vec<SavedImage> = json(&parts.document(SAVED_MANIFEST)?, SAVED_MANIFEST)?;
    let wanted = |saved: SavedImage| -> Result<Wanted> {
        let config = parts.document(&saved.config)?;
        // Both forms name the config by its digest.
        let named = saved.config.rsplit('/').next().unwrap_or_default();
        if let Some(expected) = Digest::from_hex(named.strip_suffix(".json").unwrap_or(named)) {
            let found = Digest::of(&config);
            if found != expected {
                return Err(Error::WrongDigest { expected, found });
            }
        }
        Ok(Wanted {
            config,
            layers: saved
                .layers
                .into_iter()
                .map(|name| LayerPart { name, digest: None })
                .collect(),
            references: saved
                .repo_tags
                .iter()
                .map(|tag| tag.parse())
                .collect::<Result<_>>()?,
        })
    };
    images.into_iter().map(wanted).collect()
}

fn oci_images(parts: &Parts) -> Result<Vec<Wanted>> {
    let Some(content) = parts.get(OCI_INDEX)? else {
        return Err(bad(format!(
            "it has neither `{SAVED_MANIFEST}` nor `{OCI_INDEX}`, so it is no image archive"
        )));
    };
    let index: Manifest = json(&content, OCI_INDEX)?;
    let mut wanted = Vec::new();
    for descriptor in index.manifests {
        let references = NAME_ANNOTATIONS
            .iter()
            .find_map(|key| descriptor.annotations.get(*key))
            // A bare tag is no name: `latest` would become an image called so.
            .filter(|name| name.contains([':', '/']))
            .and_then(|name| name.parse::<Reference>().ok())
            .map(Reference::or_latest);
        if let Some(mut image) = oci_image(parts, &descriptor, 0)? {
            image.references.extend(references);
            wanted.push(image);
        }
    }
    Ok(wanted)
}

/// The image behind a descriptor; `None` where it is for another machine.
fn oci_image(parts: &Parts, descriptor: &Descriptor, depth: usize) -> Result<Option<Wanted>> {
    let foreign = |platform: &crate::oci::Platform| {
        !matches!(platform.os.as_str(), "" | "linux")
            || !matches!(platform.architecture.as_str(), "" | ARCHITECTURE)
    };
    if descriptor.platform.as_ref().is_some_and(foreign) {
        return Ok(None);
    }
    if depth > MAX_INDEX_DEPTH {
        return Err(bad("its index points to itself"));
    }
    let manifest: Manifest = json(&parts.blob(&descriptor.digest)?, &blob_name(&descriptor.digest))?;
    let Some(config) = manifest.config else {
        for inner in &manifest.manifests {
            // Archives may hold the index of all platforms and the content of one.
            if parts.find(&blob_name(&inner.digest)).is_none() {
                continue;
            }
            if let Some(image) = oci_image(parts, inner, depth + 1)? {
                return Ok(Some(image));
            }
        }
        return Ok(None);
    };
    let layers = manifest.layers.iter();
    Ok(Some(Wanted {
        config: parts.blob(&config.digest)?,
        layers: layers
            .map(|layer| LayerPart {
                name: blob_name(&layer.digest),
                digest: Some(layer.digest),
            })
            .collect(),
        references: Vec::new(),
    }))
}
