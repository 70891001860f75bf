//! The engine: what the handlers share.
//!
//! It is there before the pool and the network are; a handler that needs one of them waits for it
//! ([`Engine::store`], [`Engine::network`]) until it comes or is known not to.

use std::collections::HashMap;
use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use handover::BootZone;
use network::Networks;
use store::Store;
use store::luks::Secret;
use tokio::sync::{Semaphore, watch};
use zones::{Survivor, Zones};

use crate::containers::{self, Container, Containers};
use crate::events::Events;
use crate::exec::Execs;
use crate::http::{ApiError, Result};
use crate::memo::{self, Memo};
use crate::volumes::Volumes;

/// Name under which process 1 keeps the mark that the machine was brought up.
const BROUGHT_UP: &str = "brought up";

/// How the machine is to end, or what of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Off,
    Reboot,
    /// Only the supervisor, at once, as if it had crashed: the zones go on and a successor takes over.
    Supervisor,
}

/// What the engine is told when it is made.
pub struct EngineConfig {
    /// The node's name.
    pub name: String,
    pub version: String,
    /// Which build of the supervisor runs, if not the one that was booted.
    pub build: Option<String>,
    /// Why the booted one runs although another was wanted.
    pub fell_back: Option<String>,
    pub registry: handover::RegistryConfig,
    /// Whether containers may have the machine's own namespaces.
    pub allow_host_privilege: bool,
    /// The file that runs as a container's init: see [`zones::ZoneSpec::init`].
    pub zone_init: Option<String>,
    /// Ends the machine; called after the answer was given.
    pub power: Box<dyn Fn(Power) + Send + Sync>,
    /// The secrets of encrypted disks.
    pub keys: Arc<dyn store::Keys>,
    /// Gives a passphrase to the pool that waits for one, and waits for what comes of it: whether it was
    /// the right one, or a sentence.
    pub unlock: Box<dyn Fn(Secret) -> std::result::Result<bool, String> + Send + Sync>,
    /// What lies under the store: `disk` or `memory`, for `info` and the status.
    pub pool_kind: Box<dyn Fn() -> String + Send + Sync>,
}

/// Something that comes later, or not at all.
enum Later<T> {
    Awaited,
    Here(Arc<T>),
    Never(String),
}

struct Cell<T>(watch::Sender<Later<T>>);

impl<T> Cell<T> {
    fn new() -> Self {
        Self(watch::channel(Later::Awaited).0)
    }

    async fn get(&self) -> Result<Arc<T>> {
        let mut watching = self.0.subscribe();
        let settled = watching.wait_for(|later| !matches!(later, Later::Awaited)).await;
        match settled.as_deref() {
            Ok(Later::Here(value)) => Ok(value.clone()),
            Ok(Later::Never(reason)) => Err(ApiError::unavailable(reason.clone())),
            _ => Err(ApiError::unavailable("The engine is ending.")),
        }
    }

    fn now(&self) -> Option<Arc<T>> {
        match &*self.0.borrow() {
            Later::Here(value) => Some(value.clone()),
            _ => None,
        }
    }
}

pub struct Engine {
    pub config: EngineConfig,
    pub events: Events,
    pub(crate) zones: Zones,
    pub(crate) containers: Containers,
    pub(crate) execs: Execs,
    pub(crate) volumes: Volumes,
    pub(crate) networks: crate::networks::Table,
    pub(crate) names: crate::networks::Inherited,
    pub(crate) memo: Memo,
    pub(crate) started: Instant,
    ending: AtomicBool,
    /// What a predecessor left, until the store tells which containers it belongs to.
    inherited: Mutex<Vec<Survivor>>,
    /// A predecessor has brought the machine up: what does not run is not to be started as at a boot.
    successor: bool,
    /// What is being done to the pool's disks.
    pub(crate) pool_work: crate::disks::Work,
    /// Of processes that wait for their start.
    pub(crate) places: Arc<Semaphore>,
    store: Cell<Store>,
    network: Cell<Networks>,
}

impl Engine {
    /// Takes over the zones that a predecessor started, as soon as the store is there.
    pub fn new(
        zones: Zones,
        survivors: Vec<Survivor>,
        mut kept: HashMap<String, OwnedFd>,
        config: EngineConfig,
    ) -> Arc<Self> {
        // What else is kept lies with its process.
        let successor = kept.contains_key(BROUGHT_UP);
        Arc::new(Self {
            config,
            events: Events::default(),
            zones,
            containers: Containers::default(),
            execs: Execs::default(),
            volumes: Volumes::default(),
            networks: crate::networks::Table::default(),
            names: crate::networks::Inherited::of(&mut kept),
            memo: Memo::restore(kept.remove(memo::KEPT)),
            started: Instant::now(),
            ending: AtomicBool::new(false),
            inherited: Mutex::new(survivors),
            successor,
            pool_work: crate::disks::Work::default(),
            places: Arc::new(Semaphore::new(containers::MOST_READY)),
            store: Cell::new(),
            network: Cell::new(),
        })
    }

    /// Whether a predecessor has brought the machine up since it booted.
    pub fn is_successor(&self) -> bool {
        self.successor
    }

    /// Tells process 1 that clients are answered, as soon as the containers are known.
    ///
    /// # Errors
    /// Process 1 is gone.
    pub async fn serves(&self) -> Result<(), zones::Error> {
        if self.store_now().is_some() {
            self.containers.loaded().await;
        }
        self.zones.keeper().serves().await
    }

    /// Everything runs that a boot starts: those who come after this supervisor start nothing of it.
    ///
    /// # Errors
    /// Process 1 is gone.
    pub async fn brought_up(&self) -> Result<()> {
        let mark = std::fs::File::open("/dev/null")
            .map_err(|error| ApiError::internal(format!("Cannot open /dev/null: {error}.")))?;
        Ok(self.zones.keeper().keep(BROUGHT_UP, mark.as_fd()).await?)
    }

    /// The store is open: its containers are read, and those that run are taken over. Must be called
    /// in a tokio runtime.
    pub fn set_store(self: &Arc<Self>, store: Arc<Store>) {
        self.store.0.send_replace(Later::Here(store.clone()));
        let mut inherited = self.inherited.lock().unwrap_or_else(PoisonError::into_inner);
        let survivors = std::mem::take(&mut *inherited);
        crate::disks::watch_over(self.clone(), store.clone());
        tokio::spawn(containers::adopt_all(self.clone(), store, survivors));
    }

    /// There will be no store; who waits for it is told why.
    pub fn no_store(&self, reason: impl Into<String>) {
        self.store.0.send_replace(Later::Never(reason.into()));
    }

    pub fn set_network(&self, network: Arc<Networks>) {
        self.network.0.send_replace(Later::Here(network));
    }

    pub fn no_network(&self, reason: impl Into<String>) {
        self.network.0.send_replace(Later::Never(reason.into()));
    }

    /// The store, when it is open.
    ///
    /// # Errors
    /// 503 if the pool could not be opened.
    pub async fn store(&self) -> Result<Arc<Store>> {
        self.store.get().await
    }

    pub async fn network(&self) -> Result<Arc<Networks>> {
        self.network.get().await
    }

    /// The store if it is open by now.
    pub fn store_now(&self) -> Option<Arc<Store>> {
        self.store.now()
    }

    pub(crate) fn network_now(&self) -> Option<Arc<Networks>> {
        self.network.now()
    }

    /// The containers, when they have been read from the store.
    pub(crate) async fn containers(&self) -> Result<&Containers> {
        self.store().await?;
        self.containers.loaded().await;
        Ok(&self.containers)
    }

    /// Ids and image ids of all containers, for those who ask what uses an image.
    pub async fn containers_of_images(&self) -> Result<Vec<(String, String)>> {
        let all = self.containers().await?.all();
        Ok(all
            .iter()
            .map(|container| (container.id.clone(), container.record().image))
            .collect())
    }

    /// Whether the machine is going down: nothing is started any more.
    pub(crate) fn ending(&self) -> bool {
        self.ending.load(Ordering::Relaxed)
    }

    /// Ends all zones, kindly for `limit`, then by force. None is started any more.
    pub async fn stop_all_zones(self: &Arc<Self>, limit: Duration) {
        self.ending.store(true, Ordering::Relaxed);
        containers::stop_all(self, limit).await;
    }

    /// Makes and starts the zones that the recipe names. One that is there already is started if it
    /// does not run; one whose recipe has changed is made anew. What fails is told on the console.
    pub async fn start_boot_zones(self: &Arc<Self>, zones: &[BootZone]) {
        let starting: Vec<_> = zones
            .iter()
            .map(|zone| {
                let (engine, zone) = (self.clone(), zone.clone());
                tokio::spawn(async move {
                    if let Err(error) = containers::start_boot_zone(&engine, &zone).await {
                        eprintln!("zone {}: cannot start: {error}", zone.name);
                    }
                })
            })
            .collect();
        for task in starting {
            let _ = task.await;
        }
    }

    pub(crate) fn tell(&self, kind: &'static str, action: &str, container: &Container) {
        self.events
            .tell(kind, action, &container.id, container.record().attributes());
    }

    /// As [`tell`](Self::tell) of a container, with attributes beside the container's own.
    pub(crate) fn tell_more(
        &self,
        action: &str,
        container: &Container,
        more: impl IntoIterator<Item = (&'static str, String)>,
    ) {
        let mut attributes = container.record().attributes();
        attributes.extend(more.into_iter().map(|(key, value)| (key.to_owned(), value)));
        self.events.tell("container", action, &container.id, attributes);
    }
}
