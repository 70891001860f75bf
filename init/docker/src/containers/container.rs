//! A container: what is stored of it, and what of it lives in this process.

use std::collections::BTreeMap;
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use store::{StateDir, Store};
use tokio::sync::watch;
use zones::log::Progress;
use zones::{IDS_PER_ZONE, IdMap, Process};

use super::config::{Config, HostConfig};
use super::health::{Health, HealthStatus};
use super::mounts::Point;
use super::ready::Ready;
use crate::http::{ApiError, Result};
use crate::networks::Joined;
use crate::streams::Streams;

/// Kind of the stored objects, see [`Store::objects`].
const KIND: &str = "containers";
/// Docker's time of what has not happened.
pub(crate) const NEVER: &str = "0001-01-01T00:00:00Z";

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Status {
    Created,
    Running,
    /// Between an end and the next start that the restart policy asks for.
    Restarting,
    Exited,
    /// Its removal is under way.
    Removing,
    /// Its removal has failed half-way: it is never started again, only removed.
    Dead,
}

impl Status {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Removing => "removing",
            Self::Dead => "dead",
        }
    }

    /// Whether only its removal can come.
    pub(crate) fn is_going(self) -> bool {
        matches!(self, Self::Removing | Self::Dead)
    }
}

/// What is stored of a container.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Record {
    pub(crate) id: String,
    /// Without a slash.
    pub(crate) name: String,
    /// RFC 3339, as all times here.
    pub(crate) created: String,
    /// `sha256:…`
    pub(crate) image: String,
    /// With the image's own settings merged in.
    pub(crate) config: Config,
    pub(crate) host: HostConfig,
    /// The networks that it is on when it runs. None, as records from before there were any have it: its
    /// mode's alone.
    #[serde(default)]
    pub(crate) networks: Option<Vec<Joined>>,
    /// Settled at the creation.
    #[serde(default)]
    pub(crate) mounts: Vec<Point>,
    /// First id on the host of the zone's own.
    pub(crate) first_id: u32,
    /// First id of the one whose user namespace it is in, since it started last.
    #[serde(default)]
    pub(crate) joined_first_id: Option<u32>,
    pub(crate) status: Status,
    pub(crate) started: String,
    pub(crate) finished: String,
    pub(crate) exit_code: i32,
    pub(crate) oom_killed: bool,
    /// Why the last start failed.
    pub(crate) error: String,
    pub(crate) restarts: u32,
    /// Somebody asked it to stop: `unless-stopped` leaves it so.
    pub(crate) stopped: bool,
    /// How it was when it ended, if it was checked.
    #[serde(default)]
    pub(crate) health: Option<Health>,
}

impl Record {
    pub(crate) fn ids(&self) -> IdMap {
        if self.host.userns_mode == "host" {
            return IdMap::HOST;
        }
        IdMap {
            host: self.joined_first_id.unwrap_or(self.first_id),
            count: IDS_PER_ZONE,
        }
    }

    /// The program and its arguments.
    pub(crate) fn command(&self) -> Vec<String> {
        let parts = [&self.config.entrypoint, &self.config.cmd];
        parts.into_iter().flatten().flatten().cloned().collect()
    }

    pub(crate) fn attributes(&self) -> BTreeMap<String, String> {
        let mut attributes = self.config.labels.clone();
        attributes.insert("image".to_owned(), self.config.image.clone());
        attributes.insert("name".to_owned(), self.name.clone());
        attributes
    }

    /// The networks on which it has links of its own.
    pub(crate) fn joined(&self) -> Vec<Joined> {
        match (&self.networks, self.host.network_mode.as_str()) {
            (Some(joined), _) => joined.clone(),
            (None, "" | "default" | "bridge") => vec![Joined::usual()],
            (None, _) => Vec::new(),
        }
    }
}

/// What a client may wait for.
#[derive(Debug, Clone, Default)]
pub(crate) struct Life {
    pub(crate) running: bool,
    /// Counts the ends.
    pub(crate) exits: u64,
    pub(crate) code: i32,
    pub(crate) removed: bool,
    /// Removals that have failed, and why the last one has.
    pub(crate) failed_removals: u64,
    pub(crate) removal_error: String,
}

/// Held by whoever has the turn at a container, with its process that waits to be started.
pub(crate) type Turn = tokio::sync::OwnedMutexGuard<Option<Ready>>;

pub(crate) struct Container {
    pub(crate) id: String,
    record: Mutex<Record>,
    /// See [`Container::turn`].
    turn: Arc<tokio::sync::Mutex<Option<Ready>>>,
    /// Held by the request that removes it, from its first step to its last.
    pub(crate) removal: tokio::sync::Mutex<()>,
    /// Held while the record is written.
    saving: Mutex<()>,
    process: Mutex<Option<Arc<Process>>>,
    pub(crate) streams: Streams,
    pub(crate) log: watch::Sender<Progress>,
    /// Held by whoever writes the log: one life's words wait for those of the life before.
    pub(crate) log_turn: Arc<tokio::sync::Mutex<()>>,
    pub(crate) life: watch::Sender<Life>,
    user_namespace: Mutex<Option<(IdMap, Arc<OwnedFd>)>>,
    /// None for one that is not checked.
    health: Mutex<Option<Health>>,
}

impl Container {
    pub(crate) fn new(record: Record) -> Arc<Self> {
        let ended = Progress {
            ended: true,
            ..Progress::default()
        };
        let life = Life {
            code: record.exit_code,
            ..Life::default()
        };
        Arc::new(Self {
            id: record.id.clone(),
            health: Mutex::new(record.health.clone()),
            record: Mutex::new(record),
            turn: Arc::default(),
            removal: tokio::sync::Mutex::default(),
            saving: Mutex::default(),
            process: Mutex::default(),
            streams: Streams::default(),
            log: watch::channel(ended).0,
            log_turn: Arc::default(),
            life: watch::channel(life).0,
            user_namespace: Mutex::default(),
        })
    }

    /// The turn to start it, bury it, remove it or use its files. Nothing of it waits to be started
    /// then: a process that was made ready is given up.
    pub(crate) async fn turn(&self) -> Turn {
        let mut turn = self.turn_as_it_is().await;
        if let Some(ready) = turn.take() {
            ready.give_up().await;
        }
        turn
    }

    /// As [`turn`](Self::turn), with the process that was made ready, if there is one.
    pub(super) async fn turn_as_it_is(&self) -> Turn {
        self.turn.clone().lock_owned().await
    }

    /// A copy of what is stored.
    pub(crate) fn record(&self) -> Record {
        self.lock().clone()
    }

    /// Held for a moment only, never while waiting.
    pub(crate) fn lock(&self) -> MutexGuard<'_, Record> {
        self.record.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(crate) fn process(&self) -> Option<Arc<Process>> {
        self.process
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// The process, or 409.
    pub(crate) fn running(&self) -> Result<Arc<Process>> {
        self.process()
            .ok_or_else(|| ApiError::conflict(format!("container {} is not running", self.id)))
    }

    pub(crate) fn set_process(&self, process: Option<Arc<Process>>) {
        *self.process.lock().unwrap_or_else(PoisonError::into_inner) = process;
    }

    pub(crate) fn health(&self) -> Option<Health> {
        self.health.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn set_health(&self, health: Option<Health>) {
        *self.health.lock().unwrap_or_else(PoisonError::into_inner) = health;
    }

    /// Changes it; the new status, if `change` says that it is one.
    pub(super) fn change_health(&self, change: impl FnOnce(&mut Health) -> bool) -> Option<HealthStatus> {
        let mut health = self.health.lock().unwrap_or_else(PoisonError::into_inner);
        let health = health.as_mut()?;
        change(health).then_some(health.status)
    }

    /// The user namespace that maps the root's ids; made at the first asking. Blocks.
    pub(crate) fn user_namespace(&self) -> std::io::Result<Arc<OwnedFd>> {
        let ids = self.lock().ids();
        self.user_namespace_for(ids)
    }

    /// As [`user_namespace`](Self::user_namespace), for ids that it is about to have.
    pub(crate) fn user_namespace_for(&self, ids: IdMap) -> std::io::Result<Arc<OwnedFd>> {
        let mut kept = self.user_namespace.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, namespace)) = kept.as_ref().filter(|(of, _)| *of == ids) {
            return Ok(namespace.clone());
        }
        let namespace = Arc::new(zones::user_namespace(ids)?);
        *kept = Some((ids, namespace.clone()));
        Ok(namespace)
    }

    /// Whether what it says is kept.
    pub(crate) fn keeps_log(&self) -> bool {
        self.lock()
            .host
            .log_config
            .limits()
            .is_ok_and(|limits| limits.is_some())
    }

    /// Writes the record as it is now, which an earlier one never overwrites. Blocks.
    pub(crate) fn save(&self, store: &Store) -> Result<(), store::Error> {
        let _turn = self.saving.lock().unwrap_or_else(PoisonError::into_inner);
        save(store, &self.record())
    }
}

pub(crate) fn save(store: &Store, record: &Record) -> Result<(), store::Error> {
    states(store)?.write(&record.id, record)
}

pub(crate) fn states(store: &Store) -> Result<StateDir, store::Error> {
    store.objects(KIND)
}

/// The folder in which what the container says is kept.
pub(crate) fn log_path(store: &Store, id: &str) -> Result<PathBuf, store::Error> {
    Ok(store.directory("logs")?.join(id))
}
