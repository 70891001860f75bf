//! A pull: the manifest, then the layers, fetched some at a time and taken into the store in order.

use std::io::Write;
use std::sync::Arc;
use std::time::Duration;

use reqwest::StatusCode;
use store::{Blob, ChainId, Digest, ImageConfig, Reference, Store};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};

use super::manifest::{Descriptor, Document, Manifest, choose};
use super::{RegistryError, Session};

/// Layers that are fetched at a time, as Docker does.
const AT_A_TIME: usize = 3;
/// Tries at one layer whose transfer breaks, and the wait before the second; it doubles each time.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);

/// How a pull goes on. A layer is named by the digest of its blob.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Event {
    Waiting(Digest),
    Exists(Digest),
    Downloading { layer: Digest, done: u64, total: u64 },
    Downloaded(Digest),
    Extracting(Digest),
    Complete(Digest),
}

/// An image that was pulled.
#[derive(Debug)]
pub(crate) struct Pulled {
    /// Digest of the manifest or index that was asked for.
    pub(crate) digest: Digest,
    /// Whether anything changed here.
    pub(crate) changed: bool,
}

/// An image whose manifest is known; its layers are not fetched yet.
pub(crate) struct Pull {
    session: Arc<Session>,
    manifest: Manifest,
    digest: Digest,
    config: ImageConfig,
    raw_config: Vec<u8>,
}

type Events = mpsc::Sender<Event>;

impl Pull {
    /// Finds out what the image is made of.
    pub(crate) async fn begin(session: Session) -> Result<Self, RegistryError> {
        let reference = session.reference();
        let wanted = match (reference.digest(), reference.tag()) {
            (Some(digest), _) => digest.to_string(),
            (None, tag) => tag.unwrap_or("latest").to_owned(),
        };
        let (bytes, digest) = session.manifest(&wanted).await?;
        let damaged = |reason| session.damaged("manifest", reason);
        let manifest = match Document::parse(&bytes).map_err(damaged)? {
            Document::Image(manifest) => manifest,
            Document::Index(list) => {
                let chosen = choose(&list).ok_or_else(|| RegistryError::NoPlatform(reference.clone()))?;
                let (bytes, _) = session.manifest(&chosen.digest.to_string()).await?;
                match Document::parse(&bytes).map_err(damaged)? {
                    Document::Image(manifest) => manifest,
                    Document::Index(_) => return Err(damaged("the index leads to another index".to_owned())),
                }
            }
        };
        let raw_config = session.small_blob(&manifest.config.digest).await?;
        let config = ImageConfig::parse(&raw_config)?;
        let (layers, promised) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != promised {
            return Err(damaged(format!("it has {layers} layers and its config {promised}")));
        }
        Ok(Self { session: Arc::new(session), manifest, digest, config, raw_config })
    }

    /// Fetches what the store lacks and names the image.
    pub(crate) async fn run(self, store: Arc<Store>, events: Events) -> Result<Pulled, RegistryError> {
        // Layers of the image are safe from collection until it is there.
        let _hold = store.hold();
        let chains = ChainId::chain(&self.config.rootfs.diff_ids);
        let room = Arc::new(Semaphore::new(AT_A_TIME));
        let mut fetches = Fetches::default();
        for (descriptor, chain) in self.manifest.layers.iter().zip(&chains) {
            if store.has_layer(chain) {
                let _ = events.send(Event::Exists(descriptor.digest)).await;
                fetches.0.push(None);
                continue;
            }
            let _ = events.send(Event::Waiting(descriptor.digest)).await;
            let (session, store, events) = (self.session.clone(), store.clone(), events.clone());
            let (descriptor, room) = (descriptor.clone(), room.clone());
            fetches.0.push(Some(tokio::spawn(async move {
                let _place = room.acquire().await;
                fetch(&session, &store, &descriptor, &events).await
            })));
        }
        let mut parent: Option<ChainId> = None;
        let mut changed = false;
        for (index, chain) in chains.iter().enumerate() {
            if let Some(fetch) = fetches.0.get_mut(index).and_then(Option::take) {
                changed = true;
                let blob = fetch.await??;
                self.ingest(&store, index, parent, blob, &events).await?;
            }
            parent = Some(*chain);
        }
        self.name(&store, changed).await
    }

    async fn ingest(
        &self,
        store: &Arc<Store>,
        index: usize,
        parent: Option<ChainId>,
        blob: Blob,
        events: &Events,
    ) -> Result<(), RegistryError> {
        let (Some(layer), Some(diff_id)) = (self.manifest.layers.get(index), self.config.rootfs.diff_ids.get(index))
        else {
            return Ok(());
        };
        let _ = events.send(Event::Extracting(layer.digest)).await;
        let (store, diff_id) = (store.clone(), *diff_id);
        spawn_blocking(move || store.ingest_layer(parent.as_ref(), &diff_id, blob.reader())).await??;
        let _ = events.send(Event::Complete(layer.digest)).await;
        Ok(())
    }

    async fn name(self, store: &Arc<Store>, fetched: bool) -> Result<Pulled, RegistryError> {
        let reference: Reference = self.session.reference().clone();
        let (store, digest, raw) = (store.clone(), self.digest, self.raw_config);
        let known = spawn_blocking(move || -> store::Result<bool> {
            let id = store::ImageId(Digest::of(&raw));
            let known = store.image(&id).is_some_and(|image| {
                reference.digest().is_some() || image.references.contains(&reference)
            });
            let tag = Some(&reference).filter(|reference| reference.digest().is_none());
            let image = store.add_image(&raw, tag)?;
            store.tag(&image.id, &reference.with_digest(digest))?;
            Ok(known)
        })
        .await??;
        Ok(Pulled { digest: self.digest, changed: fetched || !known })
    }
}

/// Downloads that end when the pull does.
#[derive(Default)]
struct Fetches(Vec<Option<JoinHandle<Result<Blob, RegistryError>>>>);

impl Drop for Fetches {
    fn drop(&mut self) {
        self.0.iter().flatten().for_each(JoinHandle::abort);
    }
}

/// Fetches one layer; a transfer that breaks goes on where it was.
async fn fetch(
    session: &Session,
    store: &Arc<Store>,
    layer: &Descriptor,
    events: &Events,
) -> Result<Blob, RegistryError> {
    let mut writer = store.blob_writer()?;
    let (mut done, mut wait, mut tries) = (0, FIRST_WAIT, 1);
    loop {
        let reached = done;
        let outcome = transfer(session, store, layer, &mut writer, &mut done, events).await;
        match outcome {
            Ok(()) => break,
            Err(error) if tries < TRIES && is_transient(&error) => {
                // Progress earns new patience.
                tries = if done > reached { 1 } else { tries + 1 };
                tokio::time::sleep(wait).await;
                wait *= 2;
            }
            Err(error) => return Err(error),
        }
    }
    let digest = layer.digest;
    let blob = spawn_blocking(move || writer.finish(&digest)).await??;
    let _ = events.send(Event::Downloaded(digest)).await;
    Ok(blob)
}

fn is_transient(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable { .. } => true,
        RegistryError::Status { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}

async fn transfer(
    session: &Session,
    store: &Arc<Store>,
    layer: &Descriptor,
    writer: &mut store::BlobWriter,
    done: &mut u64,
    events: &Events,
) -> Result<(), RegistryError> {
    let mut response = session.blob(&layer.digest, *done).await?;
    if *done > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        *writer = store.blob_writer()?;
        *done = 0;
    }
    let registry = session.reference().registry();
    let broken = |reason: String| RegistryError::Unreachable { registry: registry.to_owned(), reason };
    loop {
        let chunk = response.chunk().await.map_err(|error| broken(format!("the transfer broke ({error})")))?;
        let Some(chunk) = chunk else { break };
        *done += chunk.len() as u64;
        if layer.size > 0 && *done > layer.size {
            return Err(session.damaged("layer", format!("{} is longer than its {} bytes", layer.digest, layer.size)));
        }
        // Some 16 KiB into the page cache; the pool's disk is not waited for.
        writer.write_all(&chunk).map_err(|error| store_error(&error))?;
        let _ = events.try_send(Event::Downloading { layer: layer.digest, done: *done, total: layer.size });
    }
    if *done < layer.size {
        return Err(broken(format!("the transfer ended after {done} of {} bytes", layer.size)));
    }
    Ok(())
}

fn store_error(error: &std::io::Error) -> RegistryError {
    let what = "keep a layer that is being fetched".to_owned();
    RegistryError::Store(if error.kind() == std::io::ErrorKind::StorageFull {
        store::Error::Full { what }
    } else {
        store::Error::Io { what, reason: std::io::Error::new(error.kind(), error.to_string()) }
    })
}
