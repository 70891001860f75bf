//! A container's first process up to the gate at which it waits for its start.
//!
//! All that can be done before anybody asks for the start is done right after the creation: the root and
//! the other mounts, the process in its namespaces and its cgroup, its interface. The start then only
//! publishes the ports and opens the gate. So it is for containers to which nothing but their own record
//! matters; the others, and those that nobody starts soon, are made ready at the start, by the same code.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use store::Store;
use tokio::sync::OwnedSemaphorePermit;
use zones::{Pending, ZoneSpec};

use super::config::{Config, HostConfig};
use super::container::{Container, Record};
use super::modes::{self, Resolved};
use super::run::LaunchError;
use super::{devices, mounts, root, spec};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};
use crate::networks::{Joined, Seat};
use crate::users::Databases;
use crate::volumes;

/// So many processes may wait for a start that may never come: each costs the memory of a zone.
pub(crate) const MOST_READY: usize = 8;
/// How long one waits.
const PATIENCE: Duration = Duration::from_secs(60);

/// A process that waits at the gate.
pub(crate) struct Ready {
    pending: Pending,
    made_of: Circumstances,
    seat: Seat,
    /// None for one whose start is under way.
    _place: Option<OwnedSemaphorePermit>,
}

/// What it was made of: where any of this has changed, it is not the process to start.
struct Circumstances {
    config: Config,
    host: HostConfig,
    first_id: u32,
    joined: Vec<Joined>,
    name_servers: Vec<u8>,
}

impl Circumstances {
    fn of(record: &Record) -> Self {
        Self {
            config: record.config.clone(),
            host: record.host.clone(),
            first_id: record.first_id,
            joined: record.joined(),
            name_servers: name_servers(),
        }
    }

    fn are_of(&self, record: &Record) -> bool {
        self.config == record.config
            && self.host == record.host
            && self.first_id == record.first_id
            && self.joined == record.joined()
            && self.name_servers == name_servers()
    }
}

/// The host's `/etc/resolv.conf`. Without a network there are no name servers yet.
fn name_servers() -> Vec<u8> {
    std::fs::read("/etc/resolv.conf").unwrap_or_default()
}

impl Ready {
    /// Whether this is what a start would make now.
    pub(super) fn is_for(&self, record: &Record) -> bool {
        !self.pending.has_failed() && self.made_of.are_of(record)
    }

    /// Ends it; nothing of it is left then, and its id may be used again.
    pub(super) async fn give_up(self) {
        // Why it would not have started does not matter any more.
        let _ = self.pending.failure().await;
        self.seat.give_up().await;
    }

    /// Publishes the container's ports, and gives what is to be released.
    pub(super) async fn publish(self, record: &Record) -> Result<Pending, LaunchError> {
        let published = self.seat.publish(record).await;
        match published {
            Ok(()) => Ok(self.pending),
            Err(error) => {
                self.give_up().await;
                Err(error.into())
            }
        }
    }
}

/// Makes a container ready that was just made, if it is one that can be, and there is a place for it.
pub(super) async fn make_ready(engine: Arc<Engine>, container: Arc<Container>) {
    let mut turn = container.turn_as_it_is().await;
    let record = container.record();
    let place = engine.places.clone().try_acquire_owned();
    let (true, Ok(place), Ok(store)) = (depends_on_itself_alone(&record), place, engine.store().await) else {
        // The start needs at least this.
        drop(tokio::task::spawn_blocking(move || container.user_namespace()));
        return;
    };
    let idle = turn.is_none() && container.process().is_none() && !container.life.borrow().removed;
    // Nobody waits for the network here.
    if !idle || engine.ending() || !record.joined().is_empty() && engine.network_now().is_none() {
        return;
    }
    let Ok(resolved) = modes::resolve(&engine, &record).await else {
        return;
    };
    // What does not succeed is told by the start, which tries again.
    let Ok(mut ready) = set_up(&engine, &container, &store, &record, resolved).await else {
        return;
    };
    ready._place = Some(place);
    *turn = Some(ready);
    drop(turn);
    let waiting = Arc::downgrade(&container);
    drop((engine, container));
    tokio::time::sleep(PATIENCE).await;
    if let Some(container) = waiting.upgrade() {
        drop(container.turn().await);
    }
}

/// Whether nothing that others may change before the start is part of it: neither another container, nor a
/// network that may be gone by then, a mount, a device, or a limit that the start goes beyond. A mount would
/// also leave the folder that it is on in the root of a container that was never started.
fn depends_on_itself_alone(record: &Record) -> bool {
    let host = &record.host;
    let own = modes::Modes::of(host).is_ok_and(|modes| modes == modes::Modes::default());
    own && record.joined().iter().all(Joined::is_usual)
        && host.devices.as_ref().is_none_or(Vec::is_empty)
        && !host.privileged
        && host.storage_limit().is_ok_and(|limit| limit.is_none())
        && record.mounts.is_empty()
        && host.tmpfs.is_empty()
}

/// Everything that is done before the gate.
pub(super) async fn set_up(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    record: &Record,
    resolved: Resolved,
) -> Result<Ready, LaunchError> {
    let made_of = Circumstances::of(record);
    let seat = Seat::reserve(engine, record, resolved.network_of.as_ref()).await?;
    let made = async {
        let init = engine.config.zone_init.clone();
        let mounting = volumes::turn(engine, record).await;
        let resolv_conf = made_of.name_servers.clone();
        let (root, zone) = prepare(container, store, record, &seat, resolv_conf, resolved, init).await?;
        drop(mounting);
        let pending = engine.zones.create(zone, root).await?;
        match seat.take(&pending, record).await {
            Ok(()) => Ok(pending),
            // A process that has ended says itself why; the network only misses it.
            Err(_) if pending.has_failed() => Err(LaunchError::Start(pending.failure().await)),
            Err(error) => Err(error.into()),
        }
    };
    match made.await {
        Ok(pending) => Ok(Ready {
            pending,
            made_of,
            seat,
            _place: None,
        }),
        Err(error) => {
            seat.give_up().await;
            Err(error)
        }
    }
}

/// The root's mount and what the zone is; the user is looked up in the image.
async fn prepare(
    container: &Arc<Container>,
    store: &Arc<Store>,
    record: &Record,
    seat: &Seat,
    resolv_conf: Vec<u8>,
    resolved: Resolved,
    init: Option<String>,
) -> Result<(OwnedFd, ZoneSpec)> {
    let (addresses, gateway, names) = (seat.addresses(), seat.gateway(), seat.names());
    let (container, store, record) = (container.clone(), store.clone(), record.clone());
    blocking(move || {
        let namespace = container.user_namespace_for(record.ids());
        let namespace = namespace
            .map_err(|error| ApiError::internal(format!("Cannot make a user namespace: {error}.")))?;
        let root = root::mount_to_start(&store, &record, namespace.as_fd())?;
        let user = Databases::read(root.as_fd()).find(&record.config.user, &record.host.group_add)?;
        let (devices, mut mounts) = devices::attach(&store, &record.host, namespace.as_fd())?;
        mounts.extend(mounts::attach(&store, &record, root.as_fd(), namespace.as_fd())?);
        let now = spec::Circumstances {
            user,
            addresses,
            names,
            mounts,
            devices,
            resolv_conf,
            gateway,
            resolved,
            init,
        };
        Ok::<_, ApiError>((root, spec::zone(&record, now)?))
    })
    .await
}
