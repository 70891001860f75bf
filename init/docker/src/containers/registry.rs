//! All containers of the machine, by id, name and beginning of an id.

use std::collections::{BTreeMap, HashSet};
use std::sync::{Arc, PoisonError, RwLock};

use tokio::sync::watch;
use zones::IDS_PER_ZONE;

use super::container::{Container, Record};
use super::names;
use crate::http::{ApiError, Result};

/// First id on the host that belongs to a zone; below it are the host's own.
const FIRST_ID: u32 = 1_000_000;
/// So many times 65,536 ids fit above it.
const RANGES: u32 = (u32::MAX - FIRST_ID) / IDS_PER_ZONE - 1;

pub(crate) struct Containers {
    all: RwLock<BTreeMap<String, Arc<Container>>>,
    /// Those of the store have been read.
    loaded: watch::Sender<bool>,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            all: RwLock::default(),
            loaded: watch::channel(false).0,
        }
    }
}

impl Containers {
    pub(crate) async fn loaded(&self) {
        let _ = self.loaded.subscribe().wait_for(|loaded| *loaded).await;
    }

    pub(crate) fn set_loaded(&self) {
        self.loaded.send_replace(true);
    }

    pub(crate) fn all(&self) -> Vec<Arc<Container>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        all.values().cloned().collect()
    }

    /// Adds one that was stored before.
    pub(crate) fn restore(&self, record: Record) -> Arc<Container> {
        let container = Container::new(record);
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        all.insert(container.id.clone(), container.clone());
        container
    }

    /// Adds a new one; gives it a name if it has none, and ids of its own.
    pub(crate) fn add(&self, mut record: Record) -> Result<Arc<Container>> {
        let mut all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        let holder = |name: &str| {
            all.values()
                .find(|other| other.lock().name == name)
                .map(|c| c.id.clone())
        };
        if record.name.is_empty() {
            let random = random::<4>()?;
            record.name = names::generate(&random, |name| holder(name).is_some());
        } else if let Some(id) = holder(&record.name) {
            return Err(name_conflict(&record.name, &id));
        }
        let taken: HashSet<u32> = all.values().map(|other| other.lock().first_id).collect();
        record.first_id = (0..RANGES)
            .map(|range| FIRST_ID + range * IDS_PER_ZONE)
            .find(|first| !taken.contains(first))
            .ok_or_else(|| {
                ApiError::unavailable("There are no ids left for another container; remove some.")
            })?;
        let container = Container::new(record);
        all.insert(container.id.clone(), container.clone());
        Ok(container)
    }

    pub(crate) fn remove(&self, id: &str) {
        self.all
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(id);
    }

    pub(crate) fn rename(&self, container: &Container, name: &str) -> Result<()> {
        let all = self.all.write().unwrap_or_else(PoisonError::into_inner);
        match all.values().find(|other| other.lock().name == name) {
            Some(other) => Err(name_conflict(name, &other.id)),
            None => {
                container.lock().name = name.to_owned();
                Ok(())
            }
        }
    }

    /// By id, name, or the beginning of an id if it is the only such.
    pub(crate) fn find(&self, wanted: &str) -> Result<Arc<Container>> {
        let all = self.all.read().unwrap_or_else(PoisonError::into_inner);
        let missing = || ApiError::not_found(format!("No such container: {wanted}"));
        let name = wanted.strip_prefix('/').unwrap_or(wanted);
        if name.is_empty() {
            return Err(missing());
        }
        if let Some(found) = all.get(name) {
            return Ok(found.clone());
        }
        if let Some(found) = all.values().find(|other| other.lock().name == name) {
            return Ok(found.clone());
        }
        let mut with_prefix = all.values().filter(|other| other.id.starts_with(name));
        match (with_prefix.next(), with_prefix.next()) {
            (Some(found), None) => Ok(found.clone()),
            (Some(_), Some(_)) => Err(ApiError::bad_request(format!(
                "Multiple IDs found with provided prefix: {wanted}"
            ))),
            _ => Err(missing()),
        }
    }
}

fn name_conflict(name: &str, id: &str) -> ApiError {
    ApiError::conflict(format!(
        "Conflict. The container name \"/{name}\" is already in use by container \"{id}\". You have to remove (or rename) that container to be able to reuse that name."
    ))
}

/// Which of the id ranges is the container's: also the number of its address.
pub(crate) fn slot(first_id: u32) -> u32 {
    first_id.saturating_sub(FIRST_ID) / IDS_PER_ZONE
}

pub(crate) fn random<const N: usize>() -> Result<[u8; N]> {
    let mut bytes = [0; N];
    let count = rustix::rand::getrandom(&mut bytes, rustix::rand::GetRandomFlags::empty())
        .map_err(|error| ApiError::internal(format!("Cannot get random bytes: {error}.")))?;
    if count == N {
        Ok(bytes)
    } else {
        Err(ApiError::internal("The kernel gave too few random bytes."))
    }
}

/// A new id: 64 hexadecimal digits.
pub(crate) fn new_id() -> Result<String> {
    use std::fmt::Write;
    let mut id = String::with_capacity(64);
    for byte in random::<32>()? {
        let _ = write!(id, "{byte:02x}");
    }
    Ok(id)
}
