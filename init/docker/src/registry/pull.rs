//! A pull: the manifest, then the layers, fetched some at a time and taken into the store in order.

use std::io::Write;
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use reqwest::StatusCode;
use store::{Blob, BlobWriter, ChainId, Digest, ImageConfig, ImageId, Reference, Store};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::{JoinHandle, spawn_blocking};

use super::manifest::{Descriptor, Document, Manifest, choose};
use super::session::innermost;
use super::{RegistryError, Session};

/// Layers that are fetched at a time, as Docker does.
const AT_A_TIME: usize = 3;
/// Tries at what breaks on its way, and the wait before the second; it doubles each time.
const TRIES: u32 = 5;
const FIRST_WAIT: Duration = Duration::from_millis(250);
/// So much is gathered before it is written.
const WRITE_AT_ONCE: usize = 512 << 10;
/// Time between two words on one layer's progress.
const TELL_EVERY: Duration = Duration::from_millis(100);

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
        let (bytes, digest) = patiently(|| session.manifest(&wanted)).await?;
        let damaged = |reason| session.damaged("manifest", reason);
        let manifest = match Document::parse(&bytes).map_err(damaged)? {
            Document::Image(manifest) => manifest,
            Document::Index(list) => {
                let chosen = choose(&list).ok_or_else(|| RegistryError::NoPlatform(reference.clone()))?;
                let chosen = chosen.digest.to_string();
                let (bytes, _) = patiently(|| session.manifest(&chosen)).await?;
                match Document::parse(&bytes).map_err(damaged)? {
                    Document::Image(manifest) => manifest,
                    Document::Index(_) => return Err(damaged("the index leads to another index".to_owned())),
                }
            }
        };
        let raw_config = patiently(|| session.small_blob(&manifest.config.digest)).await?;
        let config = ImageConfig::parse(&raw_config)?;
        let (layers, promised) = (manifest.layers.len(), config.rootfs.diff_ids.len());
        if layers != promised {
            return Err(damaged(format!(
                "it has {layers} layers and its config {promised}"
            )));
        }
        Ok(Self {
            session: Arc::new(session),
            manifest,
            digest,
            config,
            raw_config,
        })
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
        let (Some(layer), Some(diff_id)) = (
            self.manifest.layers.get(index),
            self.config.rootfs.diff_ids.get(index),
        ) else {
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
        let id = ImageId(Digest::of(&raw));
        let known = spawn_blocking(move || -> store::Result<bool> {
            let known = store
                .image(&id)
                .is_some_and(|image| reference.digest().is_some() || image.references.contains(&reference));
            let tag = Some(&reference).filter(|reference| reference.digest().is_none());
            let image = store.add_image(&raw, tag)?;
            store.tag(&image.id, &reference.with_digest(digest))?;
            Ok(known)
        })
        .await??;
        Ok(Pulled {
            digest: self.digest,
            changed: fetched || !known,
        })
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

/// A blob on its way to the pool. Its file is written where blocking is allowed.
struct Spool {
    store: Arc<Store>,
    writer: Option<BlobWriter>,
    /// What has come and is not written yet.
    waiting: Vec<Bytes>,
    waiting_bytes: usize,
    /// Bytes that have come.
    done: u64,
}

impl Spool {
    fn new(store: &Arc<Store>) -> Result<Self, RegistryError> {
        let writer = Some(store.blob_writer()?);
        Ok(Self {
            store: store.clone(),
            writer,
            waiting: Vec::new(),
            waiting_bytes: 0,
            done: 0,
        })
    }

    async fn push(&mut self, chunk: Bytes) -> Result<(), RegistryError> {
        self.done += chunk.len() as u64;
        self.waiting_bytes += chunk.len();
        self.waiting.push(chunk);
        if self.waiting_bytes >= WRITE_AT_ONCE {
            self.write().await
        } else {
            Ok(())
        }
    }

    async fn write(&mut self) -> Result<(), RegistryError> {
        let mut writer = match self.writer.take() {
            Some(writer) => writer,
            None => self.store.blob_writer()?,
        };
        let chunks = std::mem::take(&mut self.waiting);
        self.waiting_bytes = 0;
        let written = spawn_blocking(move || {
            chunks
                .iter()
                .try_for_each(|chunk| writer.write_all(chunk))
                .map(|()| writer)
        });
        self.writer = Some(written.await?.map_err(|error| store_error(&error))?);
        Ok(())
    }

    async fn finish(mut self, digest: Digest) -> Result<Blob, RegistryError> {
        self.write().await?;
        let Some(writer) = self.writer else {
            return Err(store_error(&std::io::ErrorKind::BrokenPipe.into()));
        };
        Ok(spawn_blocking(move || writer.finish(&digest)).await??)
    }
}

/// Fetches one layer; a transfer that breaks goes on where it was.
async fn fetch(
    session: &Session,
    store: &Arc<Store>,
    layer: &Descriptor,
    events: &Events,
) -> Result<Blob, RegistryError> {
    let mut spool = Spool::new(store)?;
    let (mut patience, mut furthest) = (Patience::new(), 0);
    while let Err(error) = transfer(session, layer, &mut spool, events).await {
        if !is_transient(&error) {
            return Err(error);
        }
        // Progress earns new patience; the same bytes once more, from a registry that always begins
        // at the front, are none.
        if spool.done > furthest {
            furthest = spool.done;
            patience = Patience::new();
        }
        patience.wait(error).await?;
    }
    let blob = spool.finish(layer.digest).await?;
    let _ = events.send(Event::Downloaded(layer.digest)).await;
    Ok(blob)
}

/// Tries that are left, and the wait before the next.
struct Patience {
    tries: u32,
    wait: Duration,
}

impl Patience {
    fn new() -> Self {
        Self {
            tries: TRIES,
            wait: FIRST_WAIT,
        }
    }

    /// Returns when it is time to try again, or gives up with the error.
    async fn wait(&mut self, error: RegistryError) -> Result<(), RegistryError> {
        self.tries -= 1;
        if self.tries == 0 {
            return Err(error);
        }
        tokio::time::sleep(self.wait).await;
        self.wait *= 2;
        Ok(())
    }
}

/// Fetches a document again while its transfer breaks. A registry that is not there is told at once.
async fn patiently<T, F>(fetch: impl Fn() -> F) -> Result<T, RegistryError>
where
    F: Future<Output = Result<T, RegistryError>>,
{
    let mut patience = Patience::new();
    loop {
        match fetch().await {
            Err(error) if is_transient(&error) && !matches!(error, RegistryError::Unreachable { .. }) => {
                patience.wait(error).await?;
            }
            outcome => return outcome,
        }
    }
}

fn is_transient(error: &RegistryError) -> bool {
    match error {
        RegistryError::Unreachable { .. } | RegistryError::Broken { .. } => true,
        RegistryError::Status { status, .. } => *status >= 500 || *status == 429,
        _ => false,
    }
}

async fn transfer(
    session: &Session,
    layer: &Descriptor,
    spool: &mut Spool,
    events: &Events,
) -> Result<(), RegistryError> {
    if layer.size > 0 && spool.done == layer.size {
        return Ok(());
    }
    let mut response = session.blob(&layer.digest, spool.done).await?;
    if spool.done > 0 && response.status() != StatusCode::PARTIAL_CONTENT {
        *spool = Spool::new(&spool.store)?;
    }
    let mut told: Option<Instant> = None;
    loop {
        let chunk = response
            .chunk()
            .await
            .map_err(|error| session.broken(innermost(&error)))?;
        let Some(chunk) = chunk else { break };
        spool.push(chunk).await?;
        if layer.size > 0 && spool.done > layer.size {
            return Err(session.damaged(
                "layer",
                format!("{} is longer than its {} bytes", layer.digest, layer.size),
            ));
        }
        if told.is_none_or(|told| told.elapsed() >= TELL_EVERY) {
            let _ = events.try_send(Event::Downloading {
                layer: layer.digest,
                done: spool.done,
                total: layer.size,
            });
            told = Some(Instant::now());
        }
    }
    if spool.done < layer.size {
        return Err(session.broken(format!("it ended after {} of {} bytes", spool.done, layer.size)));
    }
    Ok(())
}

fn store_error(error: &std::io::Error) -> RegistryError {
    let what = "keep a layer that is being fetched".to_owned();
    let full = [std::io::ErrorKind::StorageFull, std::io::ErrorKind::QuotaExceeded];
    RegistryError::Store(if full.contains(&error.kind()) {
        store::Error::Full { what }
    } else {
        store::Error::Io {
            what,
            reason: std::io::Error::new(error.kind(), error.to_string()),
        }
    })
}
