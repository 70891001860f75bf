//! `docker save`: images as an archive that is an OCI layout and, for older engines, what `docker save` has
//! always written. Configurations and layers are the very bytes that the images came with.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{self, Write};
use std::sync::Arc;

use serde_json::{Value, json};
use store::{ChainId, Digest, Image, Reference, Store};

use super::find;
use crate::engine::Engine;
use crate::http::{ApiError, Response, Result, blocking, stream_tar};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";

/// `GET /images/get` and `GET /images/{name}/get`
pub(super) async fn save(engine: &Arc<Engine>, names: &[&str]) -> Result<Response> {
    if names.is_empty() {
        return Err(ApiError::bad_request("Name the images to be saved in `names`."));
    }
    let store = engine.store().await?;
    let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
    let prepared = {
        let store = store.clone();
        blocking(move || Contents::of(&store, &names)).await?
    };
    for wanted in prepared.images.values() {
        let id = wanted.image.id.to_string();
        super::tell(engine, "save", &id, &id);
    }
    Ok(stream_tar(move |to| {
        // Removed images leave their layers as long as this is at work.
        let _hold = store.hold();
        prepared.write(&store, to)
    }))
}

/// An image with the names that it is saved under.
struct Wanted {
    image: Image,
    names: BTreeSet<Reference>,
}

/// What an archive holds.
struct Contents {
    images: BTreeMap<Digest, Wanted>,
    /// Each layer's archive by its digest: the layer, and how many bytes.
    layers: BTreeMap<Digest, (ChainId, u64)>,
}

impl Contents {
    fn of(store: &Store, names: &[String]) -> Result<Contents> {
        let mut contents = Contents {
            images: BTreeMap::new(),
            layers: BTreeMap::new(),
        };
        for name in names {
            contents.add(store, name)?;
        }
        for wanted in contents.images.values() {
            let digests = &wanted.image.config.rootfs.diff_ids;
            for (digest, chain) in digests.iter().zip(&wanted.image.layers) {
                if !contents.layers.contains_key(digest) {
                    let bytes = store.layer_tar_bytes(chain)?;
                    contents.layers.insert(*digest, (*chain, bytes));
                }
            }
        }
        Ok(contents)
    }

    /// Takes what a name means: an image by its id has no names then, a repository all of its tags.
    fn add(&mut self, store: &Store, name: &str) -> Result<()> {
        let reference = name.parse::<Reference>().ok();
        let mut named: Vec<(Image, Reference)> = Vec::new();
        if let Some(reference) = reference.filter(|reference| reference.digest().is_none()) {
            let meant = |known: &Reference| match reference.tag() {
                Some(_) => *known == reference,
                None => known.same_repository(&reference),
            };
            for image in store.images() {
                let names = image.references.iter().filter(|known| meant(known));
                named.extend(names.map(|known| (image.clone(), known.clone())));
            }
        }
        if named.is_empty() {
            let image = find(store, name)?;
            self.wanted(image);
        }
        for (image, name) in named {
            self.wanted(image).names.insert(name);
        }
        Ok(())
    }

    fn wanted(&mut self, image: Image) -> &mut Wanted {
        self.images.entry(image.id.0).or_insert_with(|| Wanted {
            image,
            names: BTreeSet::new(),
        })
    }

    fn write(&self, store: &Store, to: &mut dyn Write) -> store::Result<()> {
        let cannot = |reason: io::Error| store::Error::Io {
            what: "write an archive of images".to_owned(),
            reason,
        };
        let mut archive = Archive(to);
        for folder in ["blobs/", "blobs/sha256/"] {
            archive.folder(folder).map_err(cannot)?;
        }
        for (digest, (chain, bytes)) in &self.layers {
            archive.begin(&blob(digest), *bytes).map_err(cannot)?;
            store.pack_layer(chain, &mut archive.0)?;
            archive.end(*bytes).map_err(cannot)?;
        }
        self.documents(&mut archive).map_err(cannot)
    }

    fn documents(&self, archive: &mut Archive<'_>) -> io::Result<()> {
        let (mut descriptors, mut legacy) = (Vec::new(), Vec::new());
        let mut repositories: BTreeMap<String, BTreeMap<String, String>> = BTreeMap::new();
        for wanted in self.images.values() {
            let manifest = self.manifest(&wanted.image).to_string().into_bytes();
            let digest = Digest::of(&manifest);
            archive.file(&blob(&wanted.image.id.0), &wanted.image.raw_config)?;
            archive.file(&blob(&digest), &manifest)?;
            let descriptor = descriptor(MANIFEST, &digest, manifest.len() as u64);
            if wanted.names.is_empty() {
                descriptors.push(descriptor.clone());
            }
            let diff_ids = &wanted.image.config.rootfs.diff_ids;
            for name in &wanted.names {
                let mut named = descriptor.clone();
                let tag = name.tag().unwrap_or("latest");
                named["annotations"] = json!({
                    "io.containerd.image.name": format!("{}/{}:{tag}", name.registry(), name.path()),
                    "org.opencontainers.image.ref.name": tag,
                });
                descriptors.push(named);
                let top = diff_ids.last().map(Digest::hex).unwrap_or_default();
                let tags = repositories.entry(name.familiar_name()).or_default();
                tags.insert(tag.to_owned(), top);
            }
            let names: Vec<String> = wanted.names.iter().map(ToString::to_string).collect();
            legacy.push(json!({
                "Config": blob(&wanted.image.id.0),
                "RepoTags": if names.is_empty() { Value::Null } else { json!(names) },
                "Layers": diff_ids.iter().map(blob).collect::<Vec<_>>(),
            }));
        }
        let index = json!({"schemaVersion": 2, "mediaType": INDEX, "manifests": descriptors});
        archive.file("index.json", index.to_string().as_bytes())?;
        archive.file("manifest.json", json!(legacy).to_string().as_bytes())?;
        archive.file("oci-layout", br#"{"imageLayoutVersion":"1.0.0"}"#)?;
        if !repositories.is_empty() {
            archive.file("repositories", json!(repositories).to_string().as_bytes())?;
        }
        // Two blocks of zeros end a tar.
        archive.0.write_all(&[0; 2 * BLOCK])
    }

    fn manifest(&self, image: &Image) -> Value {
        let layers = image.config.rootfs.diff_ids.iter().map(|digest| {
            let bytes = self.layers.get(digest).map_or(0, |(_, bytes)| *bytes);
            descriptor(LAYER, digest, bytes)
        });
        json!({
            "schemaVersion": 2, "mediaType": MANIFEST,
            "config": descriptor(CONFIG, &image.id.0, image.raw_config.len() as u64),
            "layers": layers.collect::<Vec<_>>(),
        })
    }
}

fn blob(digest: &Digest) -> String {
    format!("blobs/sha256/{}", digest.hex())
}

fn descriptor(media_type: &str, digest: &Digest, size: u64) -> Value {
    json!({"mediaType": media_type, "digest": digest, "size": size})
}

const BLOCK: usize = 512;

/// A tar on its way out.
struct Archive<'a>(&'a mut dyn Write);

impl Archive<'_> {
    fn file(&mut self, name: &str, content: &[u8]) -> io::Result<()> {
        self.begin(name, content.len() as u64)?;
        self.0.write_all(content)?;
        self.end(content.len() as u64)
    }

    fn folder(&mut self, name: &str) -> io::Result<()> {
        self.header(name, tar::EntryType::Directory, 0o755, 0)
    }

    fn begin(&mut self, name: &str, size: u64) -> io::Result<()> {
        self.header(name, tar::EntryType::Regular, 0o644, size)
    }

    /// Fills the last block of a file.
    fn end(&mut self, size: u64) -> io::Result<()> {
        let rest = size.wrapping_neg() % BLOCK as u64;
        self.0
            .write_all([0; BLOCK].get(..rest as usize).unwrap_or_default())
    }

    fn header(&mut self, name: &str, kind: tar::EntryType, mode: u32, size: u64) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_path(name)?;
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_size(size);
        header.set_mtime(0);
        header.set_uid(0);
        header.set_gid(0);
        header.set_cksum();
        self.0.write_all(header.as_bytes())
    }
}
