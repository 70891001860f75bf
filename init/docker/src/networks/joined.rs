//! What a container asks of the networks that it is to be on.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use network::{Join, Mac};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::record::Network;
use super::table::{Builtin, Found};
use crate::containers::{HostConfig, Networking, Record, nullable};
use crate::engine::Engine;
use crate::http::{ApiError, ApiVersion, Result};

/// A container's place on a network, as it was asked for.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Joined {
    /// The network's; empty for one that was not there yet.
    pub(crate) id: String,
    pub(crate) name: String,
    #[serde(default)]
    pub(crate) aliases: Vec<String>,
    /// `CONTAINER:ALIAS`
    #[serde(default)]
    pub(crate) links: Vec<String>,
    #[serde(default)]
    pub(crate) address: Option<Ipv4Addr>,
    #[serde(default)]
    pub(crate) address6: Option<Ipv6Addr>,
    #[serde(default)]
    pub(crate) mac: Option<Mac>,
    /// The network with the greatest one leads outside.
    #[serde(default)]
    pub(crate) priority: i64,
}

impl Joined {
    /// The usual network, with nothing asked for.
    pub(crate) fn usual() -> Self {
        Self::plain(&Found::Builtin(Builtin::Bridge))
    }

    fn plain(found: &Found) -> Self {
        Self::named(found.id(), found.name())
    }

    fn named(id: String, name: &str) -> Self {
        Self {
            id,
            name: name.to_owned(),
            aliases: Vec::new(),
            links: Vec::new(),
            address: None,
            address6: None,
            mac: None,
            priority: 0,
        }
    }

    pub(crate) fn is_usual(&self) -> bool {
        self.id == Builtin::Bridge.id()
    }

    pub(super) fn join(&self, link: String) -> Join {
        Join {
            network: link,
            address: self.address,
            address6: self.address6,
            mac: self.mac,
        }
    }
}

/// Docker's `EndpointSettings`, as far as they are asked for; what an engine tells in them is not read.
#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct EndpointSettings {
    #[serde(deserialize_with = "nullable", rename = "IPAMConfig")]
    ipam_config: IpamSettings,
    #[serde(deserialize_with = "nullable")]
    links: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    aliases: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    mac_address: String,
    #[serde(deserialize_with = "nullable")]
    driver_opts: BTreeMap<String, Value>,
    #[serde(deserialize_with = "nullable")]
    gw_priority: i64,
}

#[derive(Debug, Clone, Default, PartialEq, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct IpamSettings {
    #[serde(deserialize_with = "nullable", rename = "IPv4Address")]
    ipv4_address: String,
    #[serde(deserialize_with = "nullable", rename = "IPv6Address")]
    ipv6_address: String,
    #[serde(deserialize_with = "nullable", rename = "LinkLocalIPs")]
    link_local_ips: Vec<String>,
}

impl EndpointSettings {
    /// What is asked for on that network, or why it cannot be.
    pub(super) fn on(&self, found: &Found) -> Result<Joined> {
        self.check(found.name(), Some(found))
    }

    /// The same of a network that may not be there yet.
    fn check(&self, name: &str, found: Option<&Found>) -> Result<Joined> {
        let may_choose = |address: IpAddr| found.map_or(Ok(()), |found| may_choose(found, address));
        let wrong = |what: &str| {
            ApiError::bad_request(format!(
                "invalid config for network {name}: invalid endpoint settings:\n{what}"
            ))
        };
        if !self.ipam_config.link_local_ips.is_empty() {
            return Err(ApiError::not_implemented(
                "Monobloc does not do link-local addresses of one's own (LinkLocalIPs); leave them out.",
            ));
        }
        if let Some(option) = self.driver_opts.keys().next() {
            return Err(ApiError::not_implemented(format!(
                "Monobloc does not do the endpoint option {option}; leave it out."
            )));
        }
        let mut joined = Joined::named(found.map(Found::id).unwrap_or_default(), name);
        let IpamSettings {
            ipv4_address,
            ipv6_address,
            ..
        } = &self.ipam_config;
        if !ipv4_address.is_empty() {
            let address: Option<Ipv4Addr> = ipv4_address.parse().ok();
            let address = address.filter(|address| !address.is_unspecified());
            let address = address.ok_or_else(|| wrong(&format!("invalid IPv4 address: {ipv4_address}")))?;
            may_choose(address.into()).map_err(|what| wrong(&what))?;
            joined.address = Some(address);
        }
        if !ipv6_address.is_empty() {
            let address: Option<Ipv6Addr> = ipv6_address.parse().ok();
            let address = address.filter(|address| !address.is_unspecified());
            let address = address.ok_or_else(|| wrong(&format!("invalid IPv6 address: {ipv6_address}")))?;
            may_choose(address.into()).map_err(|what| wrong(&what))?;
            joined.address6 = Some(address);
        }
        if !self.mac_address.is_empty() {
            let mac = self.mac_address.parse();
            joined.mac =
                Some(mac.map_err(|_| {
                    ApiError::bad_request(format!("invalid MAC address: {}", self.mac_address))
                })?);
        }
        let usual = joined.is_usual();
        if usual && !self.aliases.is_empty() {
            return Err(ApiError::bad_request(
                "network-scoped alias is supported only for containers in user defined networks",
            ));
        }
        joined.aliases.clone_from(&self.aliases);
        joined.links.clone_from(&self.links);
        joined.priority = self.gw_priority;
        Ok(joined)
    }
}

/// Whether a container may have that address on that network; else why not.
fn may_choose(found: &Found, address: IpAddr) -> Result<(), String> {
    let unchosen = "user specified IP address is supported only when connecting to networks with user configured subnets";
    let Found::Made(network) = found else {
        return Err(unchosen.to_owned());
    };
    let Network { pool, pool6, .. } = &**network;
    let (chosen, contains) = match address {
        IpAddr::V4(address) => (pool.chosen, pool.gateway.contains(address)),
        IpAddr::V6(address) => pool6.as_ref().map_or((pool.chosen, false), |pool| {
            (pool.chosen, pool.gateway.contains(address))
        }),
    };
    match (chosen, contains) {
        (false, _) => Err(unchosen.to_owned()),
        (true, false) => Err(format!(
            "no configured subnet or ip-range contain the IP address {address}"
        )),
        (true, true) => Ok(()),
    }
}

/// The networks of another container, without what only one can have.
pub(crate) fn like(record: &Record) -> Networking {
    let settings = |joined: &Joined| EndpointSettings {
        aliases: joined.aliases.clone(),
        links: joined.links.clone(),
        gw_priority: joined.priority,
        ..EndpointSettings::default()
    };
    let all = record.joined();
    let endpoints = all
        .iter()
        .map(|joined| (joined.id.clone(), Some(settings(joined))));
    Networking {
        endpoints_config: endpoints.collect(),
        mac: String::new(),
    }
}

/// A container of an old client may be made with one endpoint only.
pub(crate) fn check_count(networking: &Networking, version: ApiVersion) -> Result<()> {
    let names: Vec<&str> = networking.endpoints_config.keys().map(String::as_str).collect();
    if names.len() > 1 && version < ApiVersion(1, 44) {
        return Err(ApiError::bad_request(format!(
            "Container cannot be connected to network endpoints: {}",
            names.join(", ")
        )));
    }
    Ok(())
}

/// The networks that a new container is to be on: its mode's, and those that it names besides.
pub(crate) async fn settle(
    engine: &Engine,
    host: &HostConfig,
    networking: &Networking,
) -> Result<Vec<Joined>> {
    engine.containers().await?;
    let Networking {
        endpoints_config: endpoints,
        mac,
    } = networking;
    let mode = match host.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    };
    if mode.starts_with("container:") {
        return match endpoints.is_empty() && mac.is_empty() {
            true => Ok(Vec::new()),
            false => Err(ApiError::bad_request(
                "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
            )),
        };
    }
    // As with Docker, a network need only be there when the container starts.
    let find = |name: &str| match engine.networks.find(name) {
        Err(error) if error.status == hyper::StatusCode::NOT_FOUND => Ok(None),
        other => other.map(Some),
    };
    let primary = find(mode)?;
    let with_links = primary.as_ref().is_none_or(has_links);
    let is_primary = |joined: &Joined| match &primary {
        Some(primary) => joined.id == primary.id(),
        None => joined.name == mode,
    };
    let mut joined: Vec<Joined> = Vec::new();
    for (name, settings) in endpoints {
        let settings = settings.clone().unwrap_or_default();
        let name = if name == "default" { "bridge" } else { name };
        let found = find(name)?;
        let one = settings.check(found.as_ref().map_or(name, Found::name), found.as_ref())?;
        let first = is_primary(&one);
        if !with_links || found.as_ref().is_some_and(|found| !has_links(found)) {
            if !first || settings != EndpointSettings::default() {
                return Err(ApiError::bad_request(
                    "conflicting options: cannot attach both user-defined and non-user-defined network-modes",
                ));
            }
            continue;
        }
        if joined.iter().any(|other| other.name == one.name) {
            return Err(ApiError::bad_request(format!(
                "network {} is named twice",
                one.name
            )));
        }
        // The mode's network comes first.
        joined.insert(if first { 0 } else { joined.len() }, one);
    }
    if with_links && !joined.first().is_some_and(is_primary) {
        let plain = primary
            .as_ref()
            .map_or_else(|| Joined::named(String::new(), mode), Joined::plain);
        joined.insert(0, plain);
    }
    link(&mut joined, host.links.as_deref().unwrap_or_default())?;
    if !mac.is_empty() {
        // Of clients before 1.44.
        let parsed = mac.parse();
        let parsed = parsed.map_err(|_| ApiError::bad_request(format!("invalid MAC address: {mac}")))?;
        match joined.first_mut() {
            Some(first) if first.mac.is_none_or(|own| own == parsed) => first.mac = Some(parsed),
            Some(_) => {
                return Err(ApiError::bad_request(
                    "the container-wide MAC address must match the endpoint-specific MAC address for the main network, or be left empty",
                ));
            }
            None => {
                return Err(ApiError::bad_request(
                    "conflicting options: mac-address and the network mode",
                ));
            }
        }
    }
    Ok(joined)
}

/// Looks the networks of a container up that is about to start: one of the same name takes the place of one
/// that is gone.
pub(crate) fn find_again(engine: &Engine, joined: &mut [Joined]) -> Result<()> {
    for one in joined {
        let there = |found: &Found| found.id() == one.id;
        if !engine.networks.find(&one.id).as_ref().is_ok_and(there) {
            one.id = engine.networks.find(&one.name)?.id();
        }
    }
    Ok(())
}

/// What the client has put beside the endpoints is of the mode's network.
fn link(joined: &mut [Joined], links: &[String]) -> Result<()> {
    match joined.first_mut() {
        _ if links.is_empty() => Ok(()),
        Some(first) if !first.is_usual() => {
            for link in links {
                if !first.links.contains(link) {
                    first.links.push(link.clone());
                }
            }
            Ok(())
        }
        Some(_) => Err(ApiError::not_implemented(
            "Monobloc does not do links on the network bridge; containers on a network of their own (docker network create) know each other by name.",
        )),
        None => Err(ApiError::bad_request(
            "conflicting options: this network mode cannot be used with links",
        )),
    }
}

fn has_links(found: &Found) -> bool {
    !matches!(found, Found::Builtin(Builtin::Host | Builtin::None))
}
