//! The engine: what the handlers share.
//!
//! It is there before the pool and the network are; a handler that needs one of them waits for it
//! ([`Engine::store`], [`Engine::network`]) until it comes or is known not to.

use std::collections::HashMap;
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Instant;

use network::Network;
use store::Store;
use tokio::sync::watch;
use zones::{Survivor, Zones};

use crate::events::Events;
use crate::http::{ApiError, Result};

/// How the machine is to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Power {
    Off,
    Reboot,
}

/// What the engine is told when it is made.
pub struct EngineConfig {
    /// The node's name.
    pub name: String,
    pub version: String,
    pub registry: handover::RegistryConfig,
    /// Ends the machine; called after the answer was given.
    pub power: Box<dyn Fn(Power) + Send + Sync>,
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
    pub(crate) started: Instant,
    store: Cell<Store>,
    network: Cell<Network>,
}

impl Engine {
    /// Takes over the zones that a predecessor started. Must be called in a tokio runtime.
    pub fn new(
        zones: Zones,
        survivors: Vec<Survivor>,
        kept: HashMap<String, OwnedFd>,
        config: EngineConfig,
    ) -> Arc<Self> {
        let _ = (survivors, kept);
        Arc::new(Self {
            config,
            events: Events::default(),
            zones,
            started: Instant::now(),
            store: Cell::new(),
            network: Cell::new(),
        })
    }

    pub fn set_store(self: &Arc<Self>, store: Arc<Store>) {
        self.store.0.send_replace(Later::Here(store));
    }

    /// There will be no store; who waits for it is told why.
    pub fn no_store(&self, reason: impl Into<String>) {
        self.store.0.send_replace(Later::Never(reason.into()));
    }

    pub fn set_network(&self, network: Arc<Network>) {
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

    pub async fn network(&self) -> Result<Arc<Network>> {
        self.network.get().await
    }

    /// The store if it is open by now.
    pub fn store_now(&self) -> Option<Arc<Store>> {
        self.store.now()
    }

    pub(crate) fn network_now(&self) -> Option<Arc<Network>> {
        self.network.now()
    }
}
