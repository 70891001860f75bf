//! What a snapshot is of, as the API knows it.

use std::sync::Arc;

use serde_json::{Value, json};
use store::Of;

use crate::containers::Container;
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};
use crate::volumes::{self, Backing, Volume};

#[derive(Clone)]
pub(crate) enum Subject {
    Zone(Arc<Container>),
    Volume { name: String, volume: Arc<Volume> },
}

/// Held while it is changed: what must not happen meanwhile waits.
pub(super) enum Turn<'a> {
    Zone(#[allow(dead_code, reason = "held, not read")] crate::containers::Turn),
    Volume(#[allow(dead_code, reason = "held, not read")] tokio::sync::MutexGuard<'a, ()>),
}

impl Subject {
    pub(crate) async fn zone(engine: &Engine, name: &str) -> Result<Self> {
        Ok(Self::Zone(engine.containers().await?.find(name)?))
    }

    pub(crate) async fn volume(engine: &Engine, name: &str) -> Result<Self> {
        let (store, owned) = (engine.store().await?, name.to_owned());
        let (volume, backing) = blocking(move || {
            let volume = volumes::read(&store, &owned)?;
            let backing = volumes::backing_of(&store, &owned)?;
            Ok::<_, ApiError>((volume, backing))
        })
        .await?;
        let elsewhere = match backing {
            Backing::Pool { .. } => {
                return Ok(Self::Volume {
                    name: volume.name.clone(),
                    volume: Arc::new(volume),
                });
            }
            Backing::Host { path, .. } => format!("is the folder {path} of the node's tree"),
            Backing::Tmpfs(_) => "is in memory".to_owned(),
        };
        Err(ApiError::bad_request(format!(
            "Volume {name} {elsewhere}; only volumes that lie in the pool have snapshots."
        )))
    }

    pub(crate) fn of(&self) -> Of<'_> {
        match self {
            Self::Zone(container) => Of::Zone(&container.id),
            Self::Volume { name, .. } => Of::Volume(name),
        }
    }

    /// What people call it.
    pub(crate) fn name(&self) -> String {
        match self {
            Self::Zone(container) => container.record().name,
            Self::Volume { name, .. } => name.clone(),
        }
    }

    pub(super) async fn turn<'a>(&self, engine: &'a Engine) -> Turn<'a> {
        match self {
            Self::Zone(container) => Turn::Zone(container.turn().await),
            Self::Volume { .. } => Turn::Volume(engine.volumes.turn.lock().await),
        }
    }

    /// Containers that run and can change it.
    pub(super) fn users(&self, engine: &Engine) -> Vec<Arc<Container>> {
        let all = match self {
            Self::Zone(container) => vec![container.clone()],
            Self::Volume { name, .. } => {
                let mut all = engine.containers.all();
                all.retain(|container| volumes::uses(&container.record(), name));
                all
            }
        };
        all.into_iter()
            .filter(|container| container.process().is_some())
            .collect()
    }

    /// The refusal where something runs that must not.
    pub(super) fn in_use(&self, running: &[Arc<Container>]) -> ApiError {
        let names: Vec<String> = running.iter().map(|container| container.record().name).collect();
        let names = names.join(", ");
        ApiError::conflict(match self {
            Self::Zone(_) => format!(
                "Zone {names} runs; stop it before it is rolled back, or have it restarted (`restart`)."
            ),
            Self::Volume { name, .. } => format!(
                "Volume {name} is used by {names}, which runs; stop what runs before the volume is rolled back, or have it restarted (`restart`)."
            ),
        })
    }

    /// Volumes of a zone, which have snapshots of their own.
    pub(super) fn not_included(&self) -> Value {
        let Self::Zone(container) = self else {
            return json!([]);
        };
        let mounts = container.record().mounts;
        let volumes = mounts.iter().filter_map(|point| {
            let volume = point.volume()?;
            Some(json!({"volume": volume.name, "at": point.destination}))
        });
        volumes.collect()
    }
}
