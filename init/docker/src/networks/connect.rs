//! A container's joining and leaving of networks while it is there, running or not.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;

use hyper::StatusCode;
use network::{BoundPort, Networks, Port};
use serde::Deserialize;

use super::joined::{EndpointSettings, Joined};
use super::seat::{Directions, already, publish, reserve};
use super::table::{Builtin, Found};
use super::{known, link_of, tell};
use crate::containers::spec::ports;
use crate::containers::{Container, Record, nullable};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, empty};

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    #[serde(deserialize_with = "nullable")]
    container: String,
    #[serde(deserialize_with = "nullable")]
    force: bool,
    #[serde(deserialize_with = "nullable")]
    endpoint_config: EndpointSettings,
}

pub(super) async fn connect(engine: &Arc<Engine>, network: &str, mut req: Request) -> Result<Response> {
    let wanted: Wanted = req.json().await?;
    known(engine).await?;
    let found = engine.networks.find(network)?;
    let container = engine.containers().await?.find(&wanted.container)?;
    let engine = engine.clone();
    // In a task of its own: a client that goes away leaves nothing half-done.
    tokio::spawn(async move { join(&engine, &found, &container, &wanted.endpoint_config).await }).await??;
    Ok(empty(StatusCode::OK))
}

pub(super) async fn disconnect(engine: &Arc<Engine>, network: &str, mut req: Request) -> Result<Response> {
    let wanted: Wanted = req.json().await?;
    known(engine).await?;
    let found = engine.networks.find(network)?;
    let container = match engine.containers().await?.find(&wanted.container) {
        Ok(container) => container,
        // Its place went with it.
        Err(error) if wanted.force && error.status == StatusCode::NOT_FOUND => {
            return Ok(empty(StatusCode::OK));
        }
        Err(error) => return Err(error),
    };
    let engine = engine.clone();
    tokio::spawn(async move { leave(&engine, &found, &container).await }).await??;
    Ok(empty(StatusCode::OK))
}

/// Refuses what has no links to join others with.
fn check(found: &Found, record: &Record) -> Result<()> {
    let mode = record.host.network_mode.as_str();
    if matches!(found, Found::Builtin(Builtin::Host)) || mode == "host" {
        return Err(ApiError::bad_request(
            "container cannot be disconnected from host network or connected to host network",
        ));
    }
    if mode.starts_with("container:") {
        return Err(ApiError::bad_request(
            "container sharing network namespace with another container or host cannot be connected to any other network",
        ));
    }
    if matches!(found, Found::Builtin(Builtin::None)) || mode == "none" {
        return Err(ApiError::bad_request(
            "container cannot be connected to multiple networks with one of the networks in private (none) mode",
        ));
    }
    Ok(())
}

fn not_usable() -> ApiError {
    ApiError::conflict("the container is being removed")
}

async fn join(
    engine: &Arc<Engine>,
    found: &Found,
    container: &Arc<Container>,
    settings: &EndpointSettings,
) -> Result<()> {
    let (store, networks) = (engine.store().await?, engine.network().await?);
    let _turn = container.turn().await;
    if container.life.borrow().removed {
        return Err(not_usable());
    }
    let record = container.record();
    check(found, &record)?;
    let joined = settings.on(found)?;
    let mut all = record.joined();
    if all.iter().any(|other| other.id == joined.id) {
        return Err(already(&record, &joined.name));
    }
    all.push(joined.clone());
    let directions = Directions::of(engine, &all);
    let namespace = running_namespace(container)?;
    if let Some(namespace) = namespace {
        reserve(engine, &networks, &record, &joined)?;
        let wanted = ports(&record.config, &record.host)?;
        blocking(move || {
            networks.attach(&record.id, namespace.as_fd(), directions.ways())?;
            follow(&networks, &record.id, &directions, wanted)
        })
        .await?;
    }
    save(container, &store, all).await?;
    tell(engine, "connect", found, Some(&container.id));
    Ok(())
}

async fn leave(engine: &Arc<Engine>, found: &Found, container: &Arc<Container>) -> Result<()> {
    let (store, networks) = (engine.store().await?, engine.network().await?);
    let _turn = container.turn().await;
    let record = container.record();
    if matches!(found, Found::Builtin(Builtin::Host)) {
        return Err(ApiError::bad_request(
            "container cannot be disconnected from host network or connected to host network",
        ));
    }
    let mut all = record.joined();
    let Some(at) = all.iter().position(|joined| joined.id == found.id()) else {
        return Err(ApiError::forbidden(format!(
            "container {} is not connected to network {}",
            container.id,
            found.name()
        )));
    };
    all.remove(at);
    if let (Some(namespace), Some(link)) = (running_namespace(container)?, link_of(engine, &found.id())) {
        let directions = Directions::of(engine, &all);
        let wanted = ports(&record.config, &record.host)?;
        blocking(move || {
            let bound = networks.published(&record.id);
            networks.leave(&record.id, &link)?;
            networks.redirect(&record.id, namespace.as_fd(), directions.ways())?;
            let wanted = if bound.is_empty() { wanted } else { again(&bound) };
            follow(&networks, &record.id, &directions, wanted)
        })
        .await?;
    }
    save(container, &store, all).await?;
    tell(engine, "disconnect", found, Some(&container.id));
    Ok(())
}

/// Sees to it that a container's ports are published over the network that leads outside, at the host's
/// ports where they are by now. Blocks.
fn follow(networks: &Networks, id: &str, directions: &Directions, wanted: Vec<Port>) -> Result<()> {
    let bound = networks.published(id);
    if !bound.is_empty() && networks.served(id) == directions.outside {
        return Ok(());
    }
    networks.unpublish(id)?;
    let wanted = if bound.is_empty() { wanted } else { again(&bound) };
    publish(networks, id, directions, &directions.publish(wanted))
}

fn again(bound: &[BoundPort]) -> Vec<Port> {
    let port = |port: &BoundPort| Port {
        protocol: port.protocol,
        host_ip: Some(port.host_ip),
        host_ports: Some((port.host_port, port.host_port)),
        zone_port: port.zone_port,
    };
    bound.iter().map(port).collect()
}

/// The network namespace of a container that runs.
fn running_namespace(container: &Container) -> Result<Option<OwnedFd>> {
    let Some(process) = container.process() else {
        return Ok(None);
    };
    let namespace = sys::spawn::network_namespace(&process.pidfd);
    namespace.map(Some).map_err(|error| {
        ApiError::internal(format!("Cannot open the container's network namespace: {error}."))
    })
}

async fn save(container: &Arc<Container>, store: &Arc<store::Store>, joined: Vec<Joined>) -> Result<()> {
    container.lock().networks = Some(joined);
    let (container, store) = (container.clone(), store.clone());
    blocking(move || container.save(&store)).await
}
