//! A container's places on its networks: reserved before its process is prepared, as its files name its
//! addresses, taken when its network namespace is there.

use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::AsFd;
use std::sync::Arc;

use network::{Cidr, Endpoint, Error, Networks, Port, Ways};
use serde_json::{Map, Value, json};
use zones::Pending;

use super::joined::Joined;
use super::record::Network;
use super::table::Found;
use super::{endpoint_id, link_of};
use crate::containers::spec::ports;
use crate::containers::{Record, slot};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking, with_causes};

/// What a container has of networks while it starts.
pub(crate) struct Seat {
    /// None: no links of its own.
    networks: Option<Arc<Networks>>,
    /// Its own, or those of the container whose network it has.
    endpoints: Vec<Endpoint>,
    directions: Directions,
    container: String,
}

/// Which of a container's networks leads where, by their links' names.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(super) struct Directions {
    pub(super) outside: Option<String>,
    pub(super) names: Option<String>,
    /// Where the network that leads outside has ports published that name no address.
    publish_at: Option<Ipv4Addr>,
}

impl Directions {
    /// Docker's order: the greatest priority, then the name. An internal network leads nowhere.
    pub(super) fn of(engine: &Engine, joined: &[Joined]) -> Self {
        let outward = |joined: &&Joined| match engine.networks.find(&joined.id) {
            Ok(Found::Made(network)) => !network.internal,
            Ok(Found::Builtin(_)) => true,
            Err(_) => false,
        };
        let mut candidates: Vec<&Joined> = joined.iter().filter(outward).collect();
        candidates.sort_by(|a, b| b.priority.cmp(&a.priority).then_with(|| a.name.cmp(&b.name)));
        let link = |joined: &&Joined| link_of(engine, &joined.id);
        let outside = candidates.first().and_then(link);
        let named = joined.iter().any(|joined| !joined.is_usual());
        let names = outside
            .clone()
            .or_else(|| joined.iter().find_map(|joined| link(&joined)));
        Self {
            names: names.filter(|_| named),
            publish_at: candidates.first().and_then(|first| publish_at(engine, first)),
            outside,
        }
    }

    pub(super) fn ways(&self) -> Ways<'_> {
        Ways {
            outside: self.outside.as_deref(),
            names: self.names.as_deref(),
        }
    }

    /// The ports as this network has them.
    pub(super) fn publish(&self, mut ports: Vec<Port>) -> Vec<Port> {
        for port in &mut ports {
            port.host_ip = port.host_ip.or(self.publish_at.map(IpAddr::from));
        }
        ports
    }
}

fn publish_at(engine: &Engine, joined: &Joined) -> Option<Ipv4Addr> {
    match engine.networks.find(&joined.id).ok()? {
        Found::Made(network) => network.settings.publish_at,
        Found::Builtin(_) => None,
    }
}

impl Seat {
    /// Reserves the addresses of a container that is about to start. `network_of`: whose network it has.
    pub(crate) async fn reserve(
        engine: &Engine,
        record: &Record,
        network_of: Option<&Record>,
    ) -> Result<Self> {
        let mut seat = Self {
            networks: None,
            endpoints: Vec::new(),
            directions: Directions::default(),
            container: record.id.clone(),
        };
        let of = network_of.unwrap_or(record);
        let joined = of.joined();
        if joined.is_empty() {
            return Ok(seat);
        }
        let networks = engine.network().await?;
        seat.directions = Directions::of(engine, &joined);
        if network_of.is_some() {
            seat.endpoints = networks.endpoints_of(&of.id);
            return Ok(seat);
        }
        // What is left of a life that nobody has settled.
        networks.detach(&record.id)?;
        for joined in &joined {
            let endpoint = reserve(engine, &networks, record, joined)?;
            seat.endpoints.push(endpoint);
        }
        seat.networks = Some(networks);
        Ok(seat)
    }

    /// The container's addresses.
    pub(crate) fn addresses(&self) -> Vec<IpAddr> {
        let mut addresses = Vec::new();
        for endpoint in &self.endpoints {
            addresses.push(endpoint.address.into());
            addresses.extend(endpoint.v6.map(|v6| IpAddr::from(v6.address)));
        }
        addresses
    }

    /// Whether it has the name service.
    pub(crate) fn names(&self) -> bool {
        self.directions.names.is_some()
    }

    /// The machine's own address on the network that leads outside, or on any.
    pub(crate) fn gateway(&self) -> Option<Ipv4Addr> {
        let outside = self.directions.outside.as_deref();
        let mut endpoints = self.endpoints.iter();
        let leads = endpoints.find(|endpoint| Some(endpoint.network.as_str()) == outside);
        leads.or(self.endpoints.first()).map(|endpoint| endpoint.gateway)
    }

    /// Puts the waiting zone in its places, or sees to its loopback.
    pub(crate) async fn take(&self, pending: &Pending, record: &Record) -> Result<()> {
        let mode = record.host.network_mode.as_str();
        if mode.starts_with("container:") || mode == "host" {
            // It is somebody else's, and up.
            return Ok(());
        }
        let namespace = pending.network_namespace()?;
        let Some(networks) = self.networks.clone() else {
            return blocking(move || network::set_loopback_up(namespace.as_fd())).await;
        };
        let (id, directions) = (self.container.clone(), self.directions.clone());
        blocking(move || networks.attach(&id, namespace.as_fd(), directions.ways())).await
    }

    /// Publishes the container's ports.
    pub(crate) async fn publish(&self, record: &Record) -> Result<()> {
        let wanted = ports(&record.config, &record.host)?;
        let Some(networks) = self.networks.clone().filter(|_| !wanted.is_empty()) else {
            return Ok(());
        };
        let (id, directions) = (self.container.clone(), self.directions.clone());
        blocking(move || publish(&networks, &id, &directions, &directions.publish(wanted))).await
    }

    /// Frees the places of a zone that has ended before it came to run.
    pub(crate) async fn give_up(self) {
        if let Some(networks) = self.networks {
            let _ = blocking(move || networks.ended(&self.container)).await;
        }
    }
}

/// Publishes a container's ports over the network that leads outside. Blocks.
pub(super) fn publish(networks: &Networks, id: &str, directions: &Directions, ports: &[Port]) -> Result<()> {
    let Some(outside) = directions.outside.as_deref().filter(|_| !ports.is_empty()) else {
        return Ok(());
    };
    networks.publish(id, outside, ports).map(drop).map_err(|error| {
        ApiError::internal(format!(
            "driver failed programming external connectivity: {}",
            with_causes(&error)
        ))
    })
}

pub(super) fn reserve(
    engine: &Engine,
    networks: &Networks,
    record: &Record,
    joined: &Joined,
) -> Result<Endpoint> {
    let missing = || ApiError::not_found(format!("network {} not found", joined.name));
    let link = link_of(engine, &joined.id).ok_or_else(missing)?;
    let mut join = joined.join(link);
    if joined.is_usual() {
        join.address = address(networks.usual().gateway, record.first_id);
    }
    networks.reserve(&record.id, &join).map_err(|error| match error {
        Error::AddressTaken { .. } => {
            ApiError::forbidden("failed to set up container networking: Address already in use")
        }
        Error::AddressOutside { address, .. } => ApiError::bad_request(format!(
            "failed to set up container networking: Requested address {address} is not usable: it is the network's own"
        )),
        Error::Exhausted { .. } => ApiError::forbidden(format!(
            "failed to set up container networking: no available IPv4 addresses on this network's address pools: {} ({})",
            joined.name, joined.id
        )),
        Error::NoSuchNetwork(_) => missing(),
        Error::JoinedAlready { .. } => already(record, &joined.name),
        other => other.into(),
    })
}

pub(super) fn already(record: &Record, network: &str) -> ApiError {
    ApiError::forbidden(format!(
        "endpoint with name {} already exists in network {network}",
        record.name
    ))
}

/// Each id range has an address of its own, so that it is known before the zone is there.
fn address(gateway: Cidr, first_id: u32) -> Option<Ipv4Addr> {
    let number = slot(first_id)
        .checked_add(gateway.address.to_bits())?
        .checked_add(1)?;
    let address = Ipv4Addr::from_bits(number);
    let cidr = Cidr::new(gateway.address, gateway.prefix);
    (cidr.contains(address) && address != cidr.broadcast()).then_some(address)
}

/// The networks of a container by their names; one that has another's shows none.
pub(crate) fn show(engine: &Engine, record: &Record) -> Map<String, Value> {
    let networks = engine.network_now();
    let mut shown = Map::new();
    let mode = record.host.network_mode.as_str();
    if let "host" | "none" = mode
        && let Ok(found) = engine.networks.find(mode)
    {
        shown.insert(mode.to_owned(), settings(record, &found.id(), None, None));
    }
    for joined in record.joined() {
        let link = link_of(engine, &joined.id);
        let endpoint = networks
            .as_ref()
            .zip(link)
            .and_then(|(networks, link)| networks.endpoint(&record.id, &link));
        let made = match engine.networks.find(&joined.id) {
            Ok(Found::Made(network)) => Some(network),
            _ => None,
        };
        let settings = settings(
            record,
            &joined.id,
            Some((&joined, made.as_deref())),
            endpoint.as_ref(),
        );
        shown.insert(joined.name, settings);
    }
    shown
}

/// As `inspect` and the list show a container's place on a network.
fn settings(
    record: &Record,
    id: &str,
    joined: Option<(&Joined, Option<&Network>)>,
    endpoint: Option<&Endpoint>,
) -> Value {
    let text = |of: fn(&Endpoint) -> String| endpoint.map(of).unwrap_or_default();
    let v6 = endpoint.and_then(|endpoint| endpoint.v6);
    let mut shown = json!({
        "IPAMConfig": null, "Links": null, "Aliases": null, "DriverOpts": null, "DNSNames": null,
        "GwPriority": 0, "NetworkID": id,
        "EndpointID": endpoint.map(|_| endpoint_id(&record.id, id)).unwrap_or_default(),
        "Gateway": text(|endpoint| endpoint.gateway.to_string()),
        "IPAddress": text(|endpoint| endpoint.address.to_string()),
        "IPPrefixLen": endpoint.map_or(0, |endpoint| endpoint.prefix),
        "MacAddress": text(|endpoint| endpoint.mac.to_string()),
        "IPv6Gateway": v6.map(|v6| v6.gateway.to_string()).unwrap_or_default(),
        "GlobalIPv6Address": v6.map(|v6| v6.address.to_string()).unwrap_or_default(),
        "GlobalIPv6PrefixLen": v6.map_or(0, |v6| v6.prefix),
    });
    let Some((joined, made)) = joined else {
        return shown;
    };
    shown["GwPriority"] = json!(joined.priority);
    if joined.address.is_some() || joined.address6.is_some() {
        let mut ipam = Map::new();
        ipam.extend(
            joined
                .address
                .map(|a| ("IPv4Address".to_owned(), json!(a.to_string()))),
        );
        ipam.extend(
            joined
                .address6
                .map(|a| ("IPv6Address".to_owned(), json!(a.to_string()))),
        );
        shown["IPAMConfig"] = Value::Object(ipam);
    }
    if !joined.links.is_empty() {
        shown["Links"] = json!(joined.links);
    }
    if !joined.aliases.is_empty() {
        shown["Aliases"] = json!(joined.aliases);
    }
    if made.is_some() {
        shown["DNSNames"] = json!(names(record, joined));
    }
    if let (None, Some(mac)) = (endpoint, joined.mac) {
        shown["MacAddress"] = json!(mac.to_string());
    }
    shown
}

/// What a container is called on a network of one's own: its name, its aliases, its short id, its hostname.
pub(crate) fn names(record: &Record, joined: &Joined) -> Vec<String> {
    let short: String = record.id.chars().take(12).collect();
    let mut names = vec![record.name.clone()];
    let others = joined
        .aliases
        .iter()
        .cloned()
        .chain([short, record.config.hostname.clone()]);
    for name in others {
        if !name.is_empty() && !names.contains(&name) {
            names.push(name);
        }
    }
    names
}
