//! The writer of OCI archives: a tar file with an image layout in it
//! (<https://github.com/opencontainers/image-spec>, `image-layout.md`).

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::Path;

use anyhow::Context;
use serde_json::{Value, json};

use super::Parts;
use crate::image::cache::{Hashing, sha256};
use crate::recipe::Reference;

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const INDEX: &str = "application/vnd.oci.image.index.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// Uncompressed.
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// Writes an image and returns the archive's SHA-256.
pub(super) fn write(path: &Path, reference: &Reference, parts: &Parts) -> anyhow::Result<String> {
    let layers: Vec<Value> = parts
        .layers
        .iter()
        .map(|layer| json!({"mediaType": LAYER, "digest": format!("sha256:{}", layer.digest), "size": layer.size}))
        .collect();
    let manifest = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": {
            "mediaType": CONFIG,
            "digest": format!("sha256:{}", parts.config_digest()),
            "size": parts.config.len(),
        },
        "layers": layers,
    }))?;
    let index = serde_json::to_vec(&json!({
        "schemaVersion": 2,
        "mediaType": INDEX,
        "manifests": [{
            "mediaType": MANIFEST,
            "digest": format!("sha256:{}", sha256(&manifest)),
            "size": manifest.len(),
            "platform": {"architecture": "amd64", "os": "linux"},
            "annotations": {
                "io.containerd.image.name": reference.to_string(),
                "org.opencontainers.image.ref.name": reference.tag(),
            },
        }],
    }))?;
    let file = File::create_new(path).with_context(|| format!("Cannot write {}", path.display()))?;
    let mut tar = tar::Builder::new(Hashing::new(BufWriter::new(file)));
    append(
        &mut tar,
        "oci-layout",
        br#"{"imageLayoutVersion":"1.0.0"}"#.as_slice(),
        30,
    )?;
    append(&mut tar, "index.json", index.as_slice(), index.len() as u64)?;
    append_blob(
        &mut tar,
        &sha256(&manifest),
        manifest.as_slice(),
        manifest.len() as u64,
    )?;
    append_blob(
        &mut tar,
        &parts.config_digest(),
        parts.config.as_slice(),
        parts.config.len() as u64,
    )?;
    let mut written = BTreeSet::new();
    for layer in &parts.layers {
        if written.insert(&layer.digest) {
            let file = File::open(&layer.path)?;
            append_blob(&mut tar, &layer.digest, file, layer.size)?;
        }
    }
    let (mut file, digest, _) = tar.into_inner()?.finish();
    file.flush()?;
    Ok(digest)
}

fn append_blob<W: Write>(
    tar: &mut tar::Builder<W>,
    digest: &str,
    content: impl Read,
    size: u64,
) -> anyhow::Result<()> {
    append(tar, &format!("blobs/sha256/{digest}"), content, size)
}

fn append<W: Write>(
    tar: &mut tar::Builder<W>,
    name: &str,
    content: impl Read,
    size: u64,
) -> anyhow::Result<()> {
    let mut header = tar::Header::new_ustar();
    header.set_entry_type(tar::EntryType::Regular);
    header.set_mode(0o644);
    header.set_size(size);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    tar.append_data(&mut header, name, content)?;
    Ok(())
}
