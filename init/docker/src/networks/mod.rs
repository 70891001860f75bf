//! Networks: what is stored of each, who is on them, and the endpoints below `/networks`.
//!
//! What a network does is the package `network`'s; here is what it is called, what is said of it, and what
//! its containers asked for when they joined.
//!
//! - [`record`], [`table`]: one, and all of them; Docker's three own ones have no record
//! - [`create`], [`pools`]: making; the subnets of those that ask for none
//! - [`joined`]: what a container asks of the networks that it is to be on
//! - [`seat`]: its places on them, from the reservation of the addresses on
//! - [`names`]: who is called what on them
//! - [`connect`]: a container's joining and leaving while it is there

mod connect;
mod create;
mod joined;
mod names;
mod pools;
mod record;
mod seat;
mod table;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use store::Digest;

use crate::containers::{Container, Record};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, no_content, ok};
use crate::query::Filters;
use crate::{routes, until};

pub(crate) use joined::{EndpointSettings, Joined, check_count, find_again, like, settle};
pub(crate) use names::{Inherited, serve as serve_names};
pub(crate) use seat::{Seat, show};
pub(crate) use table::{Table, restore};

use record::{Network, states};
use table::{BUILTIN, Builtin, Found};

const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

/// Answers everything below `/networks`.
pub(crate) async fn route(
    engine: &Arc<Engine>,
    method: &str,
    rest: &[&str],
    req: Request,
) -> Result<Response> {
    match (method, rest) {
        ("GET", []) => list(engine, &req.query.filters()?).await,
        ("POST", ["create"]) => create::create(engine, req).await,
        ("POST", ["prune"]) => prune(engine, &req.query.filters()?).await,
        ("GET", [name]) => {
            known(engine).await?;
            let scope = req.query.get("scope").unwrap_or_default();
            if !matches!(scope, "" | "local") {
                return Err(ApiError::not_found(format!("network {name} not found")));
            }
            let found = engine.networks.find(name)?;
            ok(&describe(engine, &found, true).await?)
        }
        ("POST", [name, "connect"]) => connect::connect(engine, name, req).await,
        ("POST", [name, "disconnect"]) => connect::disconnect(engine, name, req).await,
        ("DELETE", [name]) => {
            let (engine, name) = (engine.clone(), (*name).to_owned());
            // In a task of its own: a client that goes away leaves nothing half-done.
            tokio::spawn(async move { remove_by_name(&engine, &name).await }).await??;
            no_content()
        }
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

/// Waits until the networks of the store are known.
async fn known(engine: &Engine) -> Result<()> {
    engine.containers().await.map(drop)
}

async fn list(engine: &Arc<Engine>, filters: &Filters) -> Result<Response> {
    filters.only(FILTERS)?;
    if let Some(bad) = filters
        .get("type")
        .iter()
        .find(|kind| !matches!(kind.as_str(), "builtin" | "custom"))
    {
        return Err(ApiError::bad_request(format!("invalid filter: 'type'='{bad}'")));
    }
    let dangling = match filters.get("dangling").first().map(String::as_str) {
        None => None,
        Some("1" | "true") => Some(true),
        Some("0" | "false") => Some(false),
        Some(bad) => return Err(ApiError::bad_request(format!("invalid filter 'dangling={bad}'"))),
    };
    known(engine).await?;
    let mut shown = Vec::new();
    for found in all(engine) {
        let unused = || members_of(engine, &found).is_ok_and(|members| members.is_empty());
        if matches(&found, filters)
            && dangling.is_none_or(|dangling| dangling == (custom(&found) && unused()))
        {
            shown.push(describe(engine, &found, false).await?);
        }
    }
    ok(&shown)
}

fn all(engine: &Engine) -> Vec<Found> {
    let mut made = engine.networks.made();
    made.sort_by(|a, b| a.name.cmp(&b.name));
    let builtin = BUILTIN.into_iter().map(Found::Builtin);
    builtin.chain(made.into_iter().map(Found::Made)).collect()
}

fn custom(found: &Found) -> bool {
    matches!(found, Found::Made(_))
}

fn matches(found: &Found, filters: &Filters) -> bool {
    let kind = if custom(found) { "custom" } else { "builtin" };
    let label = |key: &str| match found {
        Found::Made(network) => network.labels.get(key).map(String::as_str),
        Found::Builtin(_) => None,
    };
    filters.matches("name", |part| found.name().contains(part))
        && filters.matches("id", |part| found.id().contains(part))
        && filters.matches("driver", |wanted| wanted == found.driver())
        && filters.matches("scope", |wanted| wanted == "local")
        && filters.matches("type", |wanted| wanted == kind)
        && filters.labels(label)
}

async fn describe(engine: &Arc<Engine>, found: &Found, whole: bool) -> Result<Value> {
    let containers = match whole {
        true => members(engine, found)?,
        false => json!({}),
    };
    let mut shown = json!({
        "Name": found.name(), "Id": found.id(), "Created": "0001-01-01T00:00:00Z", "Scope": "local",
        "Driver": found.driver(), "EnableIPv4": true, "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": null, "Config": []},
        "Internal": false, "Attachable": false, "Ingress": false, "ConfigFrom": {"Network": ""},
        "ConfigOnly": false, "Containers": containers, "Options": {}, "Labels": {},
    });
    match found {
        Found::Made(network) => {
            shown["Created"] = json!(network.created);
            shown["EnableIPv6"] = json!(network.pool6.is_some());
            shown["IPAM"] = json!({
                "Driver": "default", "Options": network.ipam_options, "Config": create::show_pools(network),
            });
            shown["Internal"] = json!(network.internal);
            shown["Attachable"] = json!(network.attachable);
            shown["Options"] = json!(network.options);
            shown["Labels"] = json!(network.labels);
        }
        Found::Builtin(Builtin::Bridge) => {
            let networks = engine.network().await?;
            let (name, gateway) = (&networks.usual().name, networks.usual().gateway);
            shown["IPAM"]["Config"] =
                json!([{"Subnet": gateway.network().to_string(), "Gateway": gateway.address.to_string()}]);
            shown["Options"] = json!({
                "com.docker.network.bridge.default_bridge": "true",
                "com.docker.network.bridge.enable_icc": "true",
                "com.docker.network.bridge.enable_ip_masquerade": "true",
                "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
                "com.docker.network.bridge.name": name,
            });
        }
        Found::Builtin(Builtin::Host | Builtin::None) => {}
    }
    Ok(shown)
}

/// Docker's id of a container's place on a network.
pub(crate) fn endpoint_id(container: &str, network: &str) -> String {
    Digest::of(format!("endpoint {container} {network}").as_bytes()).hex()
}

/// The running containers on a network.
fn members_of(engine: &Engine, found: &Found) -> Result<Vec<Arc<Container>>> {
    let on = |container: &Arc<Container>| {
        let record = container.lock();
        match found {
            Found::Builtin(Builtin::Host | Builtin::None) => record.host.network_mode == found.name(),
            _ => record.joined().iter().any(|joined| joined.id == found.id()),
        }
    };
    let all = engine.containers.all().into_iter();
    Ok(all
        .filter(|container| container.process().is_some() && on(container))
        .collect())
}

fn members(engine: &Arc<Engine>, found: &Found) -> Result<Value> {
    let networks = engine.network_now();
    let mut members = serde_json::Map::new();
    for container in members_of(engine, found)? {
        let name = container.lock().name.clone();
        let link = link_of(engine, &found.id());
        let endpoint = networks
            .as_ref()
            .zip(link)
            .and_then(|(networks, link)| networks.endpoint(&container.id, &link));
        let text = |of: &dyn Fn(&network::Endpoint) -> String| endpoint.as_ref().map(of).unwrap_or_default();
        let v6 = endpoint.as_ref().and_then(|endpoint| endpoint.v6);
        let member = json!({
            "Name": name, "EndpointID": endpoint_id(&container.id, &found.id()),
            "MacAddress": text(&|endpoint| endpoint.mac.to_string()),
            "IPv4Address": text(&|endpoint| format!("{}/{}", endpoint.address, endpoint.prefix)),
            "IPv6Address": v6.map(|v6| format!("{}/{}", v6.address, v6.prefix)).unwrap_or_default(),
        });
        members.insert(container.id.clone(), member);
    }
    Ok(Value::Object(members))
}

/// The networks that a container is on, `host` and `none` among them.
pub(crate) fn of(engine: &Engine, record: &Record) -> Vec<Found> {
    let mode = Some(record.host.network_mode.as_str()).filter(|mode| matches!(*mode, "host" | "none"));
    let joined = record.joined();
    let ids = joined.iter().map(|joined| joined.id.as_str());
    mode.into_iter()
        .chain(ids)
        .filter_map(|wanted| engine.networks.find(wanted).ok())
        .collect()
}

/// Name of the link by which the package `network` knows a network; none for `host` and `none`, and for one
/// that is gone.
pub(crate) fn link_of(engine: &Engine, id: &str) -> Option<String> {
    match engine.networks.find(id).ok()? {
        Found::Made(network) => Some(network.link.clone()),
        Found::Builtin(Builtin::Bridge) => Some(engine.network_now()?.usual().name.clone()),
        Found::Builtin(_) => None,
    }
}

async fn remove_by_name(engine: &Arc<Engine>, name: &str) -> Result<()> {
    known(engine).await?;
    let _turn = engine.networks.turn.lock().await;
    match engine.networks.find(name)? {
        Found::Builtin(builtin) => Err(ApiError::forbidden(format!(
            "{} is a pre-defined network and cannot be removed",
            builtin.name()
        ))),
        Found::Made(network) => remove(engine, network).await,
    }
}

/// The caller holds the turn.
async fn remove(engine: &Arc<Engine>, network: Arc<Network>) -> Result<()> {
    let found = Found::Made(network.clone());
    let on: Vec<String> = members_of(engine, &found)?
        .iter()
        .map(|container| {
            let name = container.lock().name.clone();
            let id = endpoint_id(&container.id, &network.id);
            format!("name:\"{name}\" id:\"{}\"", id.get(..12).unwrap_or_default())
        })
        .collect();
    let in_use = |on: &str| {
        ApiError::forbidden(format!(
            "error while removing network: network {} has active endpoints ({on})",
            network.name
        ))
    };
    if !on.is_empty() {
        return Err(in_use(&on.join(", ")));
    }
    let (networks, store) = (engine.network().await?, engine.store().await?);
    let (id, link) = (network.id.clone(), network.link.clone());
    let removed = blocking(move || {
        match networks.remove(&link) {
            // One that is about to start.
            Err(network::Error::InUse { .. }) => return Ok(false),
            other => other?,
        }
        // What has a record is made again when a supervisor begins.
        states(&store)?.remove(&id)?;
        Ok::<_, ApiError>(true)
    });
    if !removed.await? {
        return Err(in_use("a container that starts"));
    }
    engine.networks.take(&network.id);
    tell(engine, "destroy", &found, None);
    Ok(())
}

async fn prune(engine: &Arc<Engine>, filters: &Filters) -> Result<Response> {
    filters.only(&["label", "label!", "until"])?;
    known(engine).await?;
    let until = until::of(filters)?;
    let _turn = engine.networks.turn.lock().await;
    let mut removed = Vec::new();
    for network in engine.networks.made() {
        let meant = filters.pruned(|key| network.labels.get(key).map(String::as_str))
            && until.is_none_or(|until| !until::is_after(&network.created, until));
        if !meant {
            continue;
        }
        let name = network.name.clone();
        match remove(engine, network).await {
            Ok(()) => removed.push(name),
            Err(error) if error.status == StatusCode::FORBIDDEN => {}
            Err(error) => return Err(error),
        }
    }
    engine.events.tell(
        "network",
        "prune",
        "",
        BTreeMap::from([("reclaimed".to_owned(), "0".to_owned())]),
    );
    ok(&json!({"NetworksDeleted": Some(removed).filter(|removed| !removed.is_empty())}))
}

/// Tells an event of a network, with the container that it is about.
pub(crate) fn tell(engine: &Engine, action: &str, found: &Found, container: Option<&str>) {
    let mut attributes = BTreeMap::from([
        ("name".to_owned(), found.name().to_owned()),
        ("type".to_owned(), found.driver().to_owned()),
    ]);
    if let Some(container) = container {
        attributes.insert("container".to_owned(), container.to_owned());
    }
    engine.events.tell("network", action, &found.id(), attributes);
}
