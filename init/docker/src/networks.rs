//! The endpoints below `/networks`: Docker's three own networks, and who is on them.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use store::Digest;

use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, ok};
use crate::query::Filters;
use crate::routes;

/// Name and driver of each; Docker's own, so that clients know them.
const NETWORKS: &[(&str, &str)] = &[("bridge", "bridge"), ("host", "host"), ("none", "null")];
const FILTERS: &[&str] = &["dangling", "driver", "id", "label", "name", "scope", "type"];

/// A network's id: the same on every machine, since what it names is.
pub(crate) fn id(name: &str) -> String {
    Digest::of(format!("network {name}").as_bytes()).hex()
}

/// The driver of a network that is there.
pub(crate) fn driver(name: &str) -> &'static str {
    find(name).map_or("", |(_, driver)| driver)
}

/// Answers everything below `/networks`.
pub(crate) async fn route(
    engine: &Arc<Engine>,
    method: &str,
    rest: &[&str],
    req: &Request,
) -> Result<Response> {
    match (method, rest) {
        ("GET", []) => list(engine, &req.query.filters()?).await,
        ("GET", [name]) => {
            let (name, driver) = find(name)?;
            ok(&show(engine, name, driver, true).await?)
        }
        ("POST", ["prune"]) => ok(&json!({ "NetworksDeleted": null })),
        ("POST", ["create"]) => Err(ApiError::not_implemented(
            "Monobloc does not make networks yet; containers can reach each other on the network `bridge`.",
        )),
        ("DELETE", [name]) => {
            let (name, _) = find(name)?;
            Err(ApiError::new(
                StatusCode::FORBIDDEN,
                format!("{name} is a pre-defined network and cannot be removed"),
            ))
        }
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

/// By name, or by the beginning of an id.
fn find(wanted: &str) -> Result<(&'static str, &'static str)> {
    let found = NETWORKS
        .iter()
        .find(|(name, _)| *name == wanted || id(name).starts_with(wanted));
    found
        .copied()
        .ok_or_else(|| ApiError::not_found(format!("network {wanted} not found")))
}

async fn list(engine: &Arc<Engine>, filters: &Filters) -> Result<Response> {
    filters.only(FILTERS)?;
    let mut shown = Vec::new();
    for (name, driver) in NETWORKS {
        let fits = filters.matches("name", |part| name.contains(part))
            && filters.matches("id", |part| id(name).contains(part))
            && filters.matches("driver", |wanted| wanted == *driver)
            && filters.matches("scope", |wanted| wanted == "local")
            && filters.matches("type", |wanted| wanted == "builtin")
            // These have no labels, and never count as unused.
            && filters.labels(|_| None)
            && filters.matches("dangling", |wanted| matches!(wanted, "0" | "false"));
        if fits {
            shown.push(show(engine, name, driver, false).await?);
        }
    }
    ok(&shown)
}

async fn show(engine: &Arc<Engine>, name: &str, driver: &str, whole: bool) -> Result<Value> {
    let network = if name == "bridge" {
        Some(engine.network().await?)
    } else {
        None
    };
    let pools: Vec<Value> = network
        .iter()
        .map(|network| {
            let gateway = network.gateway();
            json!({"Subnet": gateway.network().to_string(), "Gateway": gateway.address.to_string()})
        })
        .collect();
    let options = match &network {
        Some(network) => json!({
            "com.docker.network.bridge.default_bridge": "true",
            "com.docker.network.bridge.enable_icc": "true",
            "com.docker.network.bridge.enable_ip_masquerade": "true",
            "com.docker.network.bridge.host_binding_ipv4": "0.0.0.0",
            "com.docker.network.bridge.name": network.name(),
        }),
        None => json!({}),
    };
    let containers = if whole {
        members(engine, name).await?
    } else {
        json!({})
    };
    Ok(json!({
        "Name": name, "Id": id(name), "Created": "0001-01-01T00:00:00Z", "Scope": "local",
        "Driver": driver, "EnableIPv4": true, "EnableIPv6": false,
        "IPAM": {"Driver": "default", "Options": null, "Config": pools},
        "Internal": false, "Attachable": false, "Ingress": false, "ConfigFrom": {"Network": ""},
        "ConfigOnly": false, "Containers": containers, "Options": options, "Labels": {},
    }))
}

/// The running containers on a network, by id.
async fn members(engine: &Arc<Engine>, name: &str) -> Result<Value> {
    let network = engine.network_now();
    let mut members = serde_json::Map::new();
    for container in engine.containers().await?.all() {
        let record = container.record();
        let on = if record.has_network() {
            "bridge"
        } else {
            record.host.network_mode.as_str()
        };
        if on != name || container.process().is_none() {
            continue;
        }
        let endpoint = network.as_ref().and_then(|network| network.endpoint(&record.id));
        let text = |of: &dyn Fn(&network::Endpoint) -> String| endpoint.as_ref().map(of).unwrap_or_default();
        let member = json!({
            "Name": record.name, "EndpointID": text(&|endpoint| endpoint.host_link.clone()),
            "MacAddress": text(&|endpoint| endpoint.mac.to_string()),
            "IPv4Address": text(&|endpoint| format!("{}/{}", endpoint.address, endpoint.prefix)),
            "IPv6Address": "",
        });
        members.insert(record.id, member);
    }
    Ok(Value::Object(members))
}

#[cfg(test)]
mod tests {
    use super::{find, id};

    #[test]
    fn a_network_is_found_by_name_and_by_the_beginning_of_its_id() {
        assert_eq!(find("bridge").unwrap().0, "bridge");
        assert_eq!(find(&id("none")[..12]).unwrap().1, "null");
        assert_eq!(find("mine").unwrap_err().status, hyper::StatusCode::NOT_FOUND);
    }
}
