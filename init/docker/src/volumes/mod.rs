//! Volumes: what is stored of each, and the endpoints below `/volumes`.
//!
//! What a volume holds is the store's; here is what it is called, what is said of it and who uses it.
//! The last is not stored: it is what the containers' records say.

mod local;
mod routes;

use std::collections::BTreeMap;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use store::{Place, StateDir, Store};

use crate::containers::Record;
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};

pub(crate) use local::Backing;
pub(crate) use routes::{route, usage};

/// Kind of the stored objects, see [`Store::objects`].
const KIND: &str = "volumes";
pub(crate) const DRIVER: &str = "local";
/// Docker's label of a volume that nobody has named.
pub(crate) const ANONYMOUS: &str = "com.docker.volume.anonymous";
/// The store's names are no longer.
const MAX_NAME: usize = 200;

/// Held by whoever makes volumes, removes or mounts them, until what uses them is known too. Who also
/// holds a container's turn has taken that before.
#[derive(Default)]
pub(crate) struct Volumes {
    pub(crate) turn: tokio::sync::Mutex<()>,
}

/// What is stored of a volume.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Volume {
    pub(crate) name: String,
    /// RFC 3339.
    pub(crate) created: String,
    pub(crate) labels: BTreeMap<String, String>,
    /// Of the driver.
    pub(crate) options: BTreeMap<String, String>,
}

fn states(store: &Store) -> Result<StateDir, store::Error> {
    store.objects(KIND)
}

fn no_such_volume(name: &str) -> ApiError {
    ApiError::not_found(format!("get {name}: no such volume"))
}

/// Docker's rule for names, and its texts.
pub(crate) fn check_name(name: &str) -> Result<()> {
    if name.len() == 1 {
        return Err(ApiError::bad_request(
            "volume name is too short, names should be at least two alphanumeric characters",
        ));
    }
    let good = name.starts_with(|first: char| first.is_ascii_alphanumeric())
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-'));
    if !good {
        return Err(ApiError::bad_request(format!(
            "create {name}: \"{name}\" includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path"
        )));
    }
    if name.len() > MAX_NAME {
        return Err(ApiError::bad_request(format!(
            "create {name}: the name has more than {MAX_NAME} characters"
        )));
    }
    Ok(())
}

pub(crate) fn check_driver(driver: &str) -> Result<()> {
    match driver {
        "" | DRIVER => Ok(()),
        other => Err(ApiError::not_found(format!(
            "error looking up volume plugin {other}: plugin \"{other}\" not found"
        ))),
    }
}

pub(crate) fn check_options(name: &str, options: &BTreeMap<String, String>) -> Result<()> {
    local::backing(name, options).map(drop)
}

/// Reads a volume. Blocks.
pub(crate) fn read(store: &Store, name: &str) -> Result<Volume> {
    if check_name(name).is_err() {
        return Err(no_such_volume(name));
    }
    match states(store)?.read(name) {
        Err(error) if error.is_not_found() => Err(no_such_volume(name)),
        volume => Ok(volume?),
    }
}

/// A volume of this name: the one that is there, or a new one. The caller holds the turn.
pub(crate) async fn make(
    engine: &Engine,
    store: &Arc<Store>,
    name: &str,
    labels: BTreeMap<String, String>,
    options: BTreeMap<String, String>,
) -> Result<Volume> {
    check_name(name)?;
    check_options(name, &options)?;
    let volume = Volume {
        name: name.to_owned(),
        created: zones::log::now(),
        labels,
        options,
    };
    let store = store.clone();
    let (volume, new) = blocking(move || match read(&store, &volume.name) {
        Ok(known) => Ok((known, false)),
        Err(error) if error.status == hyper::StatusCode::NOT_FOUND => {
            // The record last: what has one has content.
            store.create_volume(&volume.name, local::limit(&volume.name, &volume.options)?)?;
            states(&store)?.write(&volume.name, &volume)?;
            Ok((volume, true))
        }
        Err(error) => Err(error),
    })
    .await?;
    if new {
        tell(engine, "create", &volume.name, []);
    }
    Ok(volume)
}

/// Makes a volume ready to be mounted, and tells where it lies: a path in it comes to a place, which
/// may be read-only by itself. Blocks.
pub(crate) fn ready<T>(
    store: &Store,
    name: &str,
    path: &str,
    with: impl FnOnce(Place<'_>, bool) -> Result<T>,
) -> Result<T> {
    match backing_of(store, name)? {
        Backing::Host {
            path: device,
            read_only,
        } => with(Place::Host(&format!("{device}/{path}")), read_only),
        // One that a power cut has taken is made anew: nothing in it had been flushed.
        Backing::Pool { limit } => {
            store.create_volume(name, limit)?;
            with(Place::Volume { name, path }, false)
        }
        Backing::Tmpfs(tmpfs) => {
            store.create_volume(name, None)?;
            store.cover_volume(name, &tmpfs.options, tmpfs.attributes)?;
            with(Place::Volume { name, path }, false)
        }
    }
}

/// Where a volume lies; one whose record has gone is a folder of the pool. Blocks.
pub(crate) fn backing_of(store: &Store, name: &str) -> Result<Backing> {
    match read(store, name) {
        Ok(volume) => local::backing(name, &volume.options),
        Err(error) if error.status == hyper::StatusCode::NOT_FOUND => Ok(Backing::Pool { limit: None }),
        Err(error) => Err(error),
    }
}

/// Whether what a volume holds lies in the pool. Blocks.
pub(crate) fn in_pool(store: &Store, name: &str) -> Result<bool> {
    Ok(matches!(backing_of(store, name)?, Backing::Pool { .. }))
}

/// Bytes that a volume may have of the pool.
pub(crate) fn limit(volume: &Volume) -> Result<Option<u64>> {
    local::limit(&volume.name, &volume.options)
}

/// As [`limit`] of a stored volume. Blocks.
pub(crate) fn limit_of(store: &Store, name: &str) -> Result<Option<u64>> {
    limit(&read(store, name)?)
}

/// Whether there is a volume of this name, be its record damaged or gone while something uses it.
pub(crate) async fn exists(engine: &Engine, store: &Arc<Store>, name: &str) -> Result<bool> {
    let (store, owned) = (store.clone(), name.to_owned());
    let known = blocking(move || Ok::<_, ApiError>(states(&store)?.list()?.contains(&owned)));
    Ok(known.await? || !users(engine, name).await?.is_empty())
}

/// Writes the record of a new volume, whose content is there. Blocks.
pub(crate) fn keep(store: &Store, volume: &Volume) -> Result<()> {
    Ok(states(store)?.write(&volume.name, volume)?)
}

pub(crate) fn tell_made(engine: &Engine, name: &str) {
    tell(engine, "create", name, []);
}

/// The volumes' turn for whoever mounts those of a container; none for one that has no volumes.
pub(crate) async fn turn<'a>(engine: &'a Engine, record: &Record) -> Option<tokio::sync::MutexGuard<'a, ()>> {
    if record.mounts.iter().all(|point| point.volume().is_none()) {
        return None;
    }
    Some(engine.volumes.turn.lock().await)
}

/// A container has ended, or has not come to run: what only it had in memory goes.
pub(crate) async fn release(engine: &Engine, store: &Arc<Store>, record: &Record) -> Result<()> {
    let Some(_turn) = turn(engine, record).await else {
        return Ok(());
    };
    let mounted = |name: &str| {
        let all = engine.containers.all();
        all.iter()
            .any(|other| other.process().is_some() && uses(&other.record(), name))
    };
    for volume in record.mounts.iter().filter_map(|point| point.volume()) {
        if mounted(&volume.name) {
            continue;
        }
        let (store, name) = (store.clone(), volume.name.clone());
        blocking(move || match backing_of(&store, &name)? {
            Backing::Tmpfs(_) => Ok::<_, ApiError>(store.uncover_volume(&name)?),
            _ => Ok(()),
        })
        .await?;
    }
    Ok(())
}

pub(crate) fn uses(record: &Record, name: &str) -> bool {
    let mut volumes = record.mounts.iter().filter_map(|point| point.volume());
    volumes.any(|volume| volume.name == name)
}

/// Ids of the containers that a volume belongs to.
async fn users(engine: &Engine, name: &str) -> Result<Vec<String>> {
    let all = engine.containers().await?.all();
    Ok(all
        .iter()
        .filter(|container| uses(&container.record(), name))
        .map(|container| container.id.clone())
        .collect())
}

/// Removes a volume that nothing uses. The caller holds the turn.
pub(crate) async fn discard(engine: &Engine, store: &Arc<Store>, name: &str) -> Result<()> {
    let (store, owned) = (store.clone(), name.to_owned());
    blocking(move || {
        // The record last: what is half-removed can be removed again.
        store.remove_volume(&owned)?;
        states(&store)?.remove(&owned)
    })
    .await?;
    tell(engine, "destroy", name, []);
    Ok(())
}

/// Removes the volumes that were made for a container that is gone, except those that others use by now.
pub(crate) async fn discard_of(engine: &Engine, store: &Arc<Store>, record: &Record) -> Result<()> {
    let _turn = engine.volumes.turn.lock().await;
    for volume in record.mounts.iter().filter_map(|point| point.volume()) {
        if volume.anonymous && users(engine, &volume.name).await?.is_empty() {
            discard(engine, store, &volume.name).await?;
        }
    }
    Ok(())
}

fn tell<const N: usize>(engine: &Engine, action: &str, name: &str, more: [(&str, String); N]) {
    let more = more.map(|(key, value)| (key.to_owned(), value));
    let driver = ("driver".to_owned(), DRIVER.to_owned());
    let attributes = [driver].into_iter().chain(more).collect();
    engine.events.tell("volume", action, name, attributes);
}

/// Tells that a container has its volumes mounted, or has them no more.
pub(crate) fn tell_use(engine: &Engine, record: &Record, mounted: bool) {
    for point in &record.mounts {
        let Some(volume) = point.volume() else { continue };
        let container = ("container", record.id.clone());
        if mounted {
            let at = ("destination", point.destination.clone());
            let access = ("read/write", (!point.read_only).to_string());
            let more = [container, at, access, ("propagation", String::new())];
            tell(engine, "mount", &volume.name, more);
        } else {
            tell(engine, "unmount", &volume.name, [container]);
        }
    }
}
