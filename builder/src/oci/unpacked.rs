//! Finished images: OCI layouts (in a folder or a tar file) and what `docker save` writes.
//!
//! Everything is checked by its digest, so a truncated or damaged archive is found at build time.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::{self, BufRead, BufReader, BufWriter, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail, ensure};
use serde::Deserialize;

use super::{Layer, Parts};
use crate::image::cache::{Hashing, sha256};
use crate::recipe::Reference;

/// A document (index, manifest, config) larger than this is no such document.
const MAX_DOCUMENT: u64 = 16 << 20;
/// An index may name indexes; no real image nests deeper.
const MAX_DEPTH: usize = 4;

/// Where the named parts of an image lie.
enum Files {
    Folder(PathBuf),
    /// A plain tar file and the place and length of each of its members.
    Tar {
        path: PathBuf,
        members: BTreeMap<String, (u64, u64)>,
    },
}

/// Reads an OCI layout folder.
pub(super) fn layout(dir: &Path, reference: &Reference, scratch: &Path) -> anyhow::Result<Parts> {
    ensure!(
        dir.is_dir(),
        "{} is no folder; `source.oci-layout` names one with an `index.json`",
        dir.display()
    );
    from_oci(&Files::Folder(dir.to_owned()), reference, scratch)
        .with_context(|| format!("{} is no usable OCI layout", dir.display()))
}

/// Reads an archive of either kind.
pub(super) fn archive(path: &Path, reference: &Reference, scratch: &Path) -> anyhow::Result<Parts> {
    let read = || {
        let plain = scratch.join("archive.tar");
        let is_compressed = compression(&mut BufReader::new(File::open(path)?))? != Packing::None;
        let path = if is_compressed {
            plain_layer(path, &plain)?;
            plain
        } else {
            path.to_owned()
        };
        let files = Files::of_tar(&path)?;
        if files.contains("index.json") {
            from_oci(&files, reference, scratch)
        } else if files.contains("manifest.json") {
            from_docker(&files, reference, scratch)
        } else {
            bail!("It has neither index.json nor manifest.json")
        }
    };
    read().with_context(|| {
        format!(
            "{} is no whole image archive; make it again (`docker save`, `skopeo copy`)",
            path.display()
        )
    })
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Descriptor {
    #[serde(default)]
    media_type: String,
    digest: String,
    size: u64,
    #[serde(default)]
    platform: Option<Platform>,
    #[serde(default)]
    annotations: BTreeMap<String, String>,
}

#[derive(Deserialize)]
struct Platform {
    architecture: String,
    os: String,
}

#[derive(Deserialize)]
struct Index {
    manifests: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Manifest {
    config: Descriptor,
    layers: Vec<Descriptor>,
}

#[derive(Deserialize)]
struct Config {
    rootfs: RootFs,
}

#[derive(Deserialize)]
struct RootFs {
    diff_ids: Vec<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

fn from_oci(files: &Files, reference: &Reference, scratch: &Path) -> anyhow::Result<Parts> {
    let mut index: Index =
        serde_json::from_slice(&files.document("index.json")?).context("index.json is damaged")?;
    for _ in 0..MAX_DEPTH {
        let descriptor = pick(index, reference)?;
        let bytes = files.blob_document(&descriptor)?;
        if descriptor.media_type.ends_with("index.v1+json") || descriptor.media_type.ends_with("list.v2+json")
        {
            index = serde_json::from_slice(&bytes).context("An index is damaged")?;
            continue;
        }
        let manifest: Manifest = serde_json::from_slice(&bytes).context("The manifest is damaged")?;
        let config = files.blob_document(&manifest.config)?;
        let names: Vec<String> = manifest.layers.iter().map(blob_name).collect::<Result<_, _>>()?;
        return parts(files, config, &names, scratch);
    }
    bail!("Its indexes are nested more than {MAX_DEPTH} deep")
}

/// The manifest for this machine: by platform, then by the name that the recipe gives it.
fn pick(index: Index, reference: &Reference) -> anyhow::Result<Descriptor> {
    let suits = |descriptor: &Descriptor| {
        let platform = descriptor.platform.as_ref();
        platform.is_none_or(|platform| platform.os == "linux" && platform.architecture == "amd64")
    };
    let mut found: Vec<Descriptor> = index.manifests.into_iter().filter(suits).collect();
    ensure!(!found.is_empty(), "It has no image for linux/amd64");
    if found.len() > 1 {
        let name = |descriptor: &Descriptor| {
            descriptor
                .annotations
                .get("org.opencontainers.image.ref.name")
                .cloned()
                .unwrap_or_default()
        };
        let names: Vec<String> = found.iter().map(name).collect();
        let wanted = [reference.as_str(), reference.tag()];
        found.retain(|descriptor| wanted.contains(&name(descriptor).as_str()));
        ensure!(
            found.len() == 1,
            "It has several images ({}); name one of them in `reference`",
            names.join(", ")
        );
    }
    found.pop().context("It has no image")
}

fn from_docker(files: &Files, reference: &Reference, scratch: &Path) -> anyhow::Result<Parts> {
    let mut saved: Vec<Saved> =
        serde_json::from_slice(&files.document("manifest.json")?).context("manifest.json is damaged")?;
    if saved.len() > 1 {
        let tags = |one: &Saved| one.repo_tags.clone().unwrap_or_default();
        let names: Vec<String> = saved.iter().flat_map(tags).collect();
        saved.retain(|one| tags(one).iter().any(|tag| tag == reference.as_str()));
        ensure!(
            saved.len() == 1,
            "It has several images ({}); name one of them in `reference`",
            names.join(", ")
        );
    }
    let image = saved.pop().context("It has no image")?;
    let config = files.document(&image.config)?;
    parts(files, config, &image.layers, scratch)
}

/// Takes the layers out, uncompressed, and compares them with the config.
fn parts(files: &Files, config: Vec<u8>, names: &[String], scratch: &Path) -> anyhow::Result<Parts> {
    let parsed: Config = serde_json::from_slice(&config).context("The image's config is damaged")?;
    let diff_ids = parsed.rootfs.diff_ids;
    ensure!(
        diff_ids.len() == names.len(),
        "Its config has {} layers and its manifest {}",
        diff_ids.len(),
        names.len()
    );
    let mut layers = Vec::new();
    for (number, (name, diff_id)) in names.iter().zip(&diff_ids).enumerate() {
        let target = scratch.join(format!("layer-{number}.tar"));
        let (content, _) = files.open(name)?;
        let layer =
            write_plain(content, &target).with_context(|| format!("Cannot unpack its layer {name}"))?;
        ensure!(
            *diff_id == format!("sha256:{}", layer.digest),
            "Its layer {name} is damaged: it has not the digest that the config says"
        );
        layers.push(layer);
    }
    Ok(Parts { config, layers })
}

fn blob_name(descriptor: &Descriptor) -> anyhow::Result<String> {
    let valid = |hex: &&str| hex.len() == 64 && hex.bytes().all(|byte| byte.is_ascii_hexdigit());
    let hex = descriptor.digest.strip_prefix("sha256:").filter(valid);
    Ok(format!(
        "blobs/sha256/{}",
        hex.with_context(|| format!("{:?} is no SHA-256 digest", descriptor.digest))?
    ))
}

impl Files {
    fn of_tar(path: &Path) -> anyhow::Result<Self> {
        let length = fs::metadata(path)?.len();
        let mut tar = tar::Archive::new(BufReader::new(File::open(path)?));
        let mut members = BTreeMap::new();
        for entry in tar.entries_with_seek()? {
            let entry = entry?;
            let name = entry
                .path()?
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            let (at, size) = (entry.raw_file_position(), entry.size());
            ensure!(
                at.saturating_add(size) <= length,
                "It ends in the middle of {name}"
            );
            match entry.header().entry_type() {
                tar::EntryType::Regular => drop(members.insert(name, (at, size))),
                // `docker save` of old links a layer that two images share.
                tar::EntryType::Symlink | tar::EntryType::Link => {
                    let target = entry.link_name()?.unwrap_or_default();
                    if let Some(place) = members.get(&link_within(&name, &target)).copied() {
                        members.insert(name, place);
                    }
                }
                _ => {}
            }
        }
        Ok(Self::Tar {
            path: path.to_owned(),
            members,
        })
    }

    fn contains(&self, name: &str) -> bool {
        match self {
            Self::Folder(dir) => dir.join(name).is_file(),
            Self::Tar { members, .. } => members.contains_key(name),
        }
    }

    fn open(&self, name: &str) -> anyhow::Result<(Box<dyn Read>, u64)> {
        match self {
            Self::Folder(dir) => {
                let file = File::open(dir.join(name)).with_context(|| format!("It has no {name}"))?;
                let size = file.metadata()?.len();
                Ok((Box::new(file), size))
            }
            Self::Tar { path, members } => {
                let (at, size) = *members.get(name).with_context(|| format!("It has no {name}"))?;
                let mut file = File::open(path)?;
                file.seek(SeekFrom::Start(at))?;
                Ok((Box::new(file.take(size)), size))
            }
        }
    }

    fn document(&self, name: &str) -> anyhow::Result<Vec<u8>> {
        let (mut content, size) = self.open(name)?;
        ensure!(
            size <= MAX_DOCUMENT,
            "Its {name} is larger than any such document"
        );
        let mut bytes = Vec::new();
        content.read_to_end(&mut bytes)?;
        Ok(bytes)
    }

    fn blob_document(&self, descriptor: &Descriptor) -> anyhow::Result<Vec<u8>> {
        let name = blob_name(descriptor)?;
        let bytes = self.document(&name)?;
        ensure!(
            bytes.len() as u64 == descriptor.size
                && descriptor.digest == format!("sha256:{}", sha256(&bytes)),
            "Its {name} is damaged: it has another digest"
        );
        Ok(bytes)
    }
}

/// The target of a link as a member's name.
fn link_within(name: &str, target: &Path) -> String {
    let mut parts: Vec<&str> = name.split('/').collect();
    parts.pop();
    let target = target.to_string_lossy();
    for part in target.split('/') {
        match part {
            ".." => drop(parts.pop()),
            "." | "" => {}
            part => parts.push(part),
        }
    }
    parts.join("/")
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Packing {
    None,
    Gzip,
    Zstd,
    Xz,
}

/// By the first bytes (RFC 1952, RFC 8878, the xz file format).
fn compression(reader: &mut impl BufRead) -> io::Result<Packing> {
    let start = reader.fill_buf()?;
    Ok(match start {
        [0x1f, 0x8b, ..] => Packing::Gzip,
        [0x28, 0xb5, 0x2f, 0xfd, ..] => Packing::Zstd,
        [0xfd, b'7', b'z', b'X', b'Z', 0, ..] => Packing::Xz,
        _ => Packing::None,
    })
}

/// Writes a file that may be compressed as it is uncompressed.
pub(super) fn plain_layer(path: &Path, target: &Path) -> anyhow::Result<Layer> {
    let file = File::open(path).with_context(|| format!("Cannot read {}", path.display()))?;
    write_plain(file, target).with_context(|| format!("{} is not whole; make it again", path.display()))
}

fn write_plain(content: impl Read, target: &Path) -> anyhow::Result<Layer> {
    let mut content = BufReader::with_capacity(1 << 16, content);
    let mut plain: Box<dyn Read + '_> = match compression(&mut content)? {
        Packing::None => Box::new(content),
        Packing::Gzip => Box::new(flate2::bufread::MultiGzDecoder::new(content)),
        Packing::Zstd => Box::new(zstd::stream::read::Decoder::with_buffer(content)?),
        Packing::Xz => Box::new(liblzma::bufread::XzDecoder::new_multi_decoder(content)),
    };
    let mut file = Hashing::new(BufWriter::new(File::create(target)?));
    io::copy(&mut plain, &mut file)?;
    file.flush()?;
    let (_, digest, size) = file.finish();
    Ok(Layer {
        path: target.to_owned(),
        digest,
        size,
    })
}
