//! Pushes: layers packed again as they came, compressed, and sent with their image's configuration and a
//! manifest (OCI distribution specification, "Push").

use std::io::{Read as _, Write as _};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use flate2::Compression;
use flate2::write::GzEncoder;
use reqwest::header::{CONTENT_RANGE, CONTENT_TYPE, LOCATION, RANGE};
use reqwest::{Method, Response, StatusCode, Url};
use serde_json::json;
use store::{Blob, ChainId, Digest, Image, Store};
use tokio::sync::mpsc;

use super::{RegistryError, Session};

const MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
const CONFIG: &str = "application/vnd.docker.container.image.v1+json";
const LAYER: &str = "application/vnd.docker.image.rootfs.diff.tar.gzip";
/// Sent at once; what is sent again after a failure is at most this.
const PIECE: usize = 8 << 20;
/// How often a transfer that breaks is gone on with, and after how long.
const ATTEMPTS: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);

/// What becomes of a layer, named by its diff id.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Step {
    Preparing(Digest),
    Sending { layer: Digest, done: u64, total: u64 },
    Exists(Digest),
    Mounted { layer: Digest, from: String },
    Pushed(Digest),
}

/// A manifest as the registry has it now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Pushed {
    pub(crate) digest: Digest,
    pub(crate) size: usize,
}

/// Where a blob was sent to, and how much of it is there.
struct Upload {
    location: Url,
    at: u64,
}

/// How a blob comes to a repository without being sent.
enum Found {
    Exists,
    Mounted(String),
    No(Upload),
}

/// Sends an image under a tag; `steps` tells how far it is and may be full.
///
/// # Errors
/// The registry refuses, or a layer's archive cannot be made again.
pub(crate) async fn push(
    session: &Session,
    store: &Arc<Store>,
    image: &Image,
    tag: &str,
    steps: &mpsc::Sender<Step>,
) -> Result<Pushed, RegistryError> {
    let layers: Vec<(Digest, ChainId)> = {
        let diff_ids = image.config.rootfs.diff_ids.iter().copied();
        diff_ids.zip(image.layers.iter().copied()).collect()
    };
    for (layer, _) in &layers {
        let _ = steps.send(Step::Preparing(*layer)).await;
    }
    // Other repositories of this registry that the image is known in.
    let names = image.references.iter().chain(&image.digests);
    let own = session.reference();
    let mut elsewhere: Vec<&str> = names
        .filter(|name| name.registry() == own.registry() && name.path() != own.path())
        .map(|name| name.path())
        .collect();
    elsewhere.dedup();
    let mut descriptors = Vec::new();
    for (layer, chain) in layers {
        let (blob, digest) = packed(store.clone(), chain).await?;
        let size = blob.size();
        let step = match session.find_blob(&digest, &elsewhere).await? {
            Found::Exists => Step::Exists(layer),
            Found::Mounted(from) => Step::Mounted { layer, from },
            Found::No(upload) => {
                let tell = |done: u64| {
                    let _ = steps.try_send(Step::Sending {
                        layer,
                        done,
                        total: size,
                    });
                };
                session.upload(upload, &blob, &digest, &tell).await?;
                Step::Pushed(layer)
            }
        };
        let _ = steps.send(step).await;
        descriptors.push(json!({"mediaType": LAYER, "size": size, "digest": digest}));
    }
    let config = blob_of(store, image.raw_config.clone()).await?;
    if let Found::No(upload) = session.find_blob(&image.id.0, &elsewhere).await? {
        session.upload(upload, &config, &image.id.0, &|_| {}).await?;
    }
    let manifest = json!({
        "schemaVersion": 2, "mediaType": MANIFEST,
        "config": {"mediaType": CONFIG, "size": image.raw_config.len(), "digest": image.id.0},
        "layers": descriptors,
    });
    let manifest = Bytes::from(manifest.to_string());
    let pushed = Pushed {
        digest: Digest::of(&manifest),
        size: manifest.len(),
    };
    session.put_manifest(tag, manifest).await?;
    Ok(pushed)
}

/// A layer's archive, compressed; the same bytes each time.
async fn packed(store: Arc<Store>, chain: ChainId) -> Result<(Blob, Digest), RegistryError> {
    tokio::task::spawn_blocking(move || {
        let _hold = store.hold();
        let mut encoder = GzEncoder::new(store.blob_writer()?, Compression::default());
        store.pack_layer(&chain, &mut encoder)?;
        let writer = encoder.finish().map_err(|reason| store::Error::Io {
            what: "compress a layer".to_owned(),
            reason,
        })?;
        Ok(writer.close())
    })
    .await?
}

async fn blob_of(store: &Arc<Store>, bytes: Vec<u8>) -> Result<Blob, RegistryError> {
    let store = store.clone();
    tokio::task::spawn_blocking(move || {
        let mut writer = store.blob_writer()?;
        writer.write_all(&bytes).map_err(|reason| store::Error::Io {
            what: "spool a configuration".to_owned(),
            reason,
        })?;
        Ok(writer.close().0)
    })
    .await?
}

impl Session {
    /// Looks whether the repository has a blob, or has it from another one of the registry; begins to send
    /// it otherwise.
    async fn find_blob(&self, digest: &Digest, elsewhere: &[&str]) -> Result<Found, RegistryError> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self.send(|http| http.request(Method::HEAD, &url)).await?;
        if response.status() == StatusCode::OK {
            return Ok(Found::Exists);
        }
        let plain = self.url("blobs/uploads/");
        for from in elsewhere {
            let url = format!("{plain}?mount={digest}&from={from}");
            let response = self.send(|http| http.request(Method::POST, &url)).await?;
            match response.status() {
                StatusCode::CREATED => return Ok(Found::Mounted((*from).to_owned())),
                StatusCode::ACCEPTED => return self.begun(&response).map(Found::No),
                _ => {}
            }
        }
        let response = self.send(|http| http.request(Method::POST, &plain)).await?;
        let response = self.expect(response, "the beginning of an upload").await?;
        self.begun(&response).map(Found::No)
    }

    fn begun(&self, response: &Response) -> Result<Upload, RegistryError> {
        let location = self.location(response)?;
        Ok(Upload { location, at: 0 })
    }

    /// Sends what the registry does not have of a blob, piece by piece, again where that fails.
    async fn upload(
        &self,
        mut upload: Upload,
        blob: &Blob,
        digest: &Digest,
        tell: &(dyn Fn(u64) + Sync),
    ) -> Result<(), RegistryError> {
        let mut failures = 0;
        while upload.at < blob.size() {
            let piece = piece(blob.clone(), upload.at).await?;
            match self.send_piece(&upload, &piece).await {
                Ok(location) => {
                    upload.at += piece.len() as u64;
                    upload.location = location;
                    failures = 0;
                    tell(upload.at);
                }
                Err(error) => {
                    failures += 1;
                    if failures >= ATTEMPTS || matches!(error, RegistryError::Denied { .. }) {
                        return Err(error);
                    }
                    tokio::time::sleep(PAUSE).await;
                    self.ask_how_far(&mut upload).await;
                }
            }
        }
        let mut url = upload.location;
        url.query_pairs_mut().append_pair("digest", &digest.to_string());
        let response = self.send(|http| http.request(Method::PUT, url.clone())).await?;
        self.expect(response, "the end of an upload").await.map(drop)
    }

    async fn send_piece(&self, upload: &Upload, piece: &Bytes) -> Result<Url, RegistryError> {
        let range = format!("{}-{}", upload.at, upload.at + piece.len() as u64 - 1);
        let response = self
            .send(|http| {
                http.request(Method::PATCH, upload.location.clone())
                    .header(CONTENT_TYPE, "application/octet-stream")
                    .header(CONTENT_RANGE, &range)
                    .body(piece.clone())
            })
            .await?;
        let response = self.expect(response, "a part of a blob").await?;
        self.location(&response)
    }

    /// After a failure: what has arrived. A registry that does not say is sent the same piece again.
    async fn ask_how_far(&self, upload: &mut Upload) {
        let asked = self
            .send(|http| http.request(Method::GET, upload.location.clone()))
            .await;
        let Ok(response) = asked else { return };
        if !response.status().is_success() {
            return;
        }
        // `0-1023`: the last byte that it has.
        let range = response
            .headers()
            .get(RANGE)
            .and_then(|range| range.to_str().ok());
        let last = range.and_then(|range| range.rsplit_once('-')?.1.parse::<u64>().ok());
        if let (Some(last), Ok(location)) = (last, self.location(&response)) {
            upload.at = if last == 0 { 0 } else { last + 1 };
            upload.location = location;
        }
    }

    /// Where an upload goes on, which must be at the same registry: it gets the credentials.
    fn location(&self, response: &Response) -> Result<Url, RegistryError> {
        let bad = || self.damaged("place of an upload", "it leads elsewhere".to_owned());
        let told = response
            .headers()
            .get(LOCATION)
            .and_then(|told| told.to_str().ok());
        let base = Url::parse(&self.url("")).map_err(|_| bad())?;
        let location = told.and_then(|told| base.join(told).ok()).ok_or_else(bad)?;
        if location.origin() != base.origin() {
            return Err(bad());
        }
        Ok(location)
    }

    async fn put_manifest(&self, tag: &str, manifest: Bytes) -> Result<(), RegistryError> {
        let url = self.url(&format!("manifests/{tag}"));
        let response = self
            .send(|http| {
                http.request(Method::PUT, &url)
                    .header(CONTENT_TYPE, MANIFEST)
                    .body(manifest.clone())
            })
            .await?;
        self.expect(response, "a manifest that is sent").await.map(drop)
    }
}

async fn piece(blob: Blob, at: u64) -> Result<Bytes, RegistryError> {
    tokio::task::spawn_blocking(move || {
        let mut bytes = Vec::new();
        let read = blob.reader_at(at).take(PIECE as u64).read_to_end(&mut bytes);
        read.map_err(|reason| store::Error::Io {
            what: "read a blob that is sent".to_owned(),
            reason,
        })?;
        Ok(Bytes::from(bytes))
    })
    .await?
}
