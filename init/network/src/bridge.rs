//! One network of zones and their published ports.
//!
//! A zone's link is a cable to the host and nothing else: the host routes the zone's one address to it,
//! and every packet of the zone goes by the gateway, also to a neighbour. A bridge would take 1,023
//! links and no more, would carry each broadcast to all of them, and would let a zone speak with a
//! neighbour's addresses. The link of kind bridge that bears the gateway's address has no ports.
//!
//! What stands is read from the kernel, never from a file: the host's end of a zone's link carries
//! the zone's id and address as its alias, and the published ports are elements of the packet rules'
//! maps. So a new supervisor finds all of it by [`Network::open`].

use std::collections::BTreeMap;
use std::fs;
use std::io::ErrorKind;
use std::net::Ipv4Addr;
use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::io::Errno;
use sys::netlink::Family;

use crate::firewall::{Firewall, Publication};
use crate::links::{Link, Route};
use crate::netlink::{Batch, Connection};
use crate::ports;
use crate::rtnl::{self, Change, VethEnd, Which};
use crate::{BoundPort, Cidr, Endpoint, Error, Mac, Port, Result};

/// The zone's own end of its link.
const ZONE_LINK: &str = "eth0";
/// Its index, the first after the loopback's: so it need not be asked for.
const ZONE_LINK_INDEX: u32 = 2;
/// Index of the loopback link, the same in every namespace.
const LOOPBACK_INDEX: u32 = 1;
/// How the name of a zone's link on the host begins; the packet rules know the links by it.
pub(crate) const LINK_PREFIX: &str = "mz-";
/// The index of a zone's link on the host is its address's last 30 bits and this one, so that a request
/// may name the link before the kernel has made it. Other links have small numbers.
const ZONE_INDEX: u32 = 1 << 30;
/// The first word of the alias of a zone's link on the host.
const ALIAS: &str = "monobloc-zone";
/// Kind of the bridge's link.
const BRIDGE: &str = "bridge";

const ID_LENGTH: usize = 128;
/// `IFNAMSIZ` without the zero byte at the end.
const LINK_NAME_LENGTH: usize = 15;

/// A gateway's address on the host, NAT to the other links, and the zones behind it.
///
/// All methods may be called from any thread of the namespace it was opened in. A zone id is the
/// container's id.
#[derive(Debug)]
pub struct Network {
    name: String,
    gateway: Cidr,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    links: Connection,
    firewall: Firewall,
    zones: BTreeMap<String, Zone>,
    /// The address given last; the search for a free one begins behind it, so that an address
    /// rests as long as possible before it is used again.
    last: Ipv4Addr,
}

#[derive(Debug)]
struct Zone {
    endpoint: Endpoint,
    ports: Vec<Published>,
}

#[derive(Debug)]
struct Published {
    port: BoundPort,
    /// Keeps the port from everyone else on the host.
    _reservation: Option<OwnedFd>,
}

impl Network {
    /// Makes the bridge `name` with the address `gateway` (such as `172.17.0.1/16`), or finds it
    /// as it is, with the zones and published ports that it has, and puts the packet rules in
    /// place. Works in the network namespace of the calling thread.
    pub fn open(name: &str, gateway: Cidr) -> Result<Network> {
        if !usable(name, LINK_NAME_LENGTH) {
            return Err(Error::LinkName(name.to_owned()));
        }
        let hosts = gateway.network().address != gateway.address && gateway.broadcast() != gateway.address;
        if !(8..=30).contains(&gateway.prefix) || !hosts {
            return Err(Error::Subnet(gateway));
        }
        let mut links = Connection::open(Family::Route)?;
        find_or_make_bridge(&mut links, name, gateway)?;
        forward_packets(name)?;
        allow_many_neighbours()?;
        let mut zones = find_zones(&mut links, gateway)?;
        let mut firewall = Firewall::open()?;
        let published = firewall.published()?;
        let kept = assign_ports(&mut zones, &published);
        firewall.install(gateway, &kept)?;
        let last = zones
            .values()
            .map(|zone| zone.endpoint.address)
            .max()
            .unwrap_or(gateway.address);
        Ok(Network {
            name: name.to_owned(),
            gateway,
            state: Mutex::new(State {
                links,
                firewall,
                zones,
                last,
            }),
        })
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bridge's own address with the subnet's prefix.
    pub fn gateway(&self) -> Cidr {
        self.gateway
    }

    /// Gives the zone a link `eth0` in its namespace `netns`, with an address (`wanted`, or a free
    /// one) and a default route, and brings its loopback up. A link that the zone has from an
    /// earlier life goes first. On an error nothing is left behind.
    pub fn attach(&self, zone_id: &str, netns: BorrowedFd<'_>, wanted: Option<Ipv4Addr>) -> Result<Endpoint> {
        if !usable(zone_id, ID_LENGTH) {
            return Err(Error::ZoneId(zone_id.to_owned()));
        }
        let endpoint = {
            let mut state = self.state();
            if state.zones.contains_key(zone_id) {
                state.detach(zone_id)?;
            }
            let endpoint = self.reserve(&mut state, zone_id, wanted)?;
            let zone = Zone {
                endpoint: endpoint.clone(),
                ports: Vec::new(),
            };
            state.make_link(zone_id, &endpoint, netns)?;
            state.zones.insert(zone_id.to_owned(), zone);
            endpoint
        };
        match configure_zone(netns, &endpoint) {
            Ok(()) => Ok(endpoint),
            Err(error) => {
                // The first error is the one to tell; what is left of the link falls with the
                // zone's namespace.
                let _ = self.detach(zone_id);
                Err(error)
            }
        }
    }

    /// Takes the zone off the network: published ports, link, address. A zone that is not on it,
    /// or whose namespace is gone, is no error.
    pub fn detach(&self, zone_id: &str) -> Result<()> {
        self.state().detach(zone_id)
    }

    /// As [`detach`](Self::detach), of a zone whose last process has ended: its link falls with its
    /// namespace. The kernel takes many of these away at once in little more time than one, while each
    /// link that it is asked to remove takes a turn of its own.
    pub fn ended(&self, zone_id: &str) -> Result<()> {
        let mut state = self.state();
        state.unpublish(zone_id)?;
        state.zones.remove(zone_id);
        Ok(())
    }

    /// Publishes ports of an attached zone in addition to those it has; all or none.
    pub fn publish(&self, zone_id: &str, wanted: &[Port]) -> Result<Vec<BoundPort>> {
        let mut state = self.state();
        let zone = match state.zones.get(zone_id) {
            Some(zone) => zone.endpoint.address,
            None => return Err(Error::NotAttached(zone_id.to_owned())),
        };
        let mut published = Vec::with_capacity(wanted.len());
        for port in wanted {
            if let Some(holder) = state.holder(port) {
                return Err(Error::PortPublished {
                    port: port.host_port.unwrap_or(0),
                    protocol: port.protocol,
                    host: port.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED),
                    holder,
                });
            }
            let (port, reservation) = ports::reserve(port)?;
            published.push(Published {
                port,
                _reservation: Some(reservation),
            });
        }
        let bound: Vec<BoundPort> = published.iter().map(|p| p.port).collect();
        state.firewall.publish(&publications(zone, &bound))?;
        if let Some(entry) = state.zones.get_mut(zone_id) {
            entry.ports.extend(published);
        }
        Ok(bound)
    }

    /// Withdraws all published ports of the zone. One that has none is no error.
    pub fn unpublish(&self, zone_id: &str) -> Result<()> {
        self.state().unpublish(zone_id)
    }

    /// The zones on the network (also those found by [`Network::open`]), by zone id.
    pub fn endpoints(&self) -> Vec<(String, Endpoint)> {
        self.state()
            .zones
            .iter()
            .map(|(id, zone)| (id.clone(), zone.endpoint.clone()))
            .collect()
    }

    pub fn endpoint(&self, zone_id: &str) -> Option<Endpoint> {
        self.state().zones.get(zone_id).map(|zone| zone.endpoint.clone())
    }

    /// The zone's published ports (also those found by [`Network::open`]).
    pub fn published(&self, zone_id: &str) -> Vec<BoundPort> {
        self.state()
            .zones
            .get(zone_id)
            .map(|zone| zone.ports.iter().map(|p| p.port).collect())
            .unwrap_or_default()
    }

    /// Chooses the address and names of a zone's link.
    fn reserve(&self, state: &mut State, zone_id: &str, wanted: Option<Ipv4Addr>) -> Result<Endpoint> {
        let address = match wanted {
            Some(address) => self.check_wanted(state, address)?,
            None => self.free_address(state)?,
        };
        state.last = address;
        Ok(Endpoint {
            address,
            prefix: self.gateway.prefix,
            gateway: self.gateway.address,
            mac: Mac::of(address),
            host_link: host_link(zone_id),
        })
    }

    fn check_wanted(&self, state: &State, address: Ipv4Addr) -> Result<Ipv4Addr> {
        let subnet = self.gateway.network();
        let reserved = [subnet.address, self.gateway.broadcast(), self.gateway.address];
        if !subnet.contains(address) || reserved.contains(&address) {
            return Err(Error::AddressOutside { address, subnet });
        }
        match state.holder_of(address) {
            Some(holder) => Err(Error::AddressTaken {
                address,
                holder: holder.to_owned(),
            }),
            None => Ok(address),
        }
    }

    fn free_address(&self, state: &State) -> Result<Ipv4Addr> {
        let subnet = self.gateway.network();
        let first = subnet.address.to_bits() + 1;
        let last = self.gateway.broadcast().to_bits() - 1;
        let used: std::collections::HashSet<Ipv4Addr> =
            state.zones.values().map(|z| z.endpoint.address).collect();
        let after = state.last.to_bits().clamp(first, last);
        (after + 1..=last)
            .chain(first..=after)
            .map(Ipv4Addr::from_bits)
            .find(|address| *address != self.gateway.address && !used.contains(address))
            .ok_or_else(|| Error::Exhausted {
                name: self.name.clone(),
                subnet,
            })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is recorded after the kernel has made it, so a panic leaves nothing half
        // recorded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Makes the zone's link and the route to it, in one request to the kernel.
    fn make_link(&mut self, zone_id: &str, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Result<()> {
        let index = link_index(endpoint.address);
        let mut made = self.links.run(link_request(zone_id, endpoint, netns));
        if made
            .as_ref()
            .is_err_and(|f| matches!(f.errno(), Some(Errno::EXIST | Errno::BUSY)))
        {
            // The link of an earlier life, whose namespace the kernel has not taken away yet.
            self.delete_link(Which::Name(&endpoint.host_link))?;
            self.delete_link(Which::Index(index))?;
            made = self.links.run(link_request(zone_id, endpoint, netns));
        }
        made.map(drop).map_err(|failure| {
            if failure.index > 0 {
                let _ = self.delete_link(Which::Index(index));
            }
            failure.to(format!("make the network link of the container {zone_id}"))
        })
    }

    /// One that is not there is no error.
    fn delete_link(&mut self, which: Which<'_>) -> Result<()> {
        let mut batch = Batch::new();
        rtnl::delete_link(&mut batch, which);
        match self.links.run(batch) {
            Ok(_) => Ok(()),
            Err(f) if f.errno() == Some(Errno::NODEV) => Ok(()),
            Err(f) => Err(f.to(format!("remove the network link {which:?}"))),
        }
    }

    fn detach(&mut self, zone_id: &str) -> Result<()> {
        self.unpublish(zone_id)?;
        if let Some(zone) = self.zones.get(zone_id) {
            let link = zone.endpoint.host_link.clone();
            self.delete_link(Which::Name(&link))?;
            self.zones.remove(zone_id);
        }
        Ok(())
    }

    fn unpublish(&mut self, zone_id: &str) -> Result<()> {
        let Some(zone) = self.zones.get_mut(zone_id) else {
            return Ok(());
        };
        if zone.ports.is_empty() {
            return Ok(());
        }
        let bound: Vec<BoundPort> = zone.ports.iter().map(|p| p.port).collect();
        self.firewall
            .withdraw(&publications(zone.endpoint.address, &bound))?;
        zone.ports.clear();
        Ok(())
    }

    /// The zone that has the port, or one that excludes it, published already.
    fn holder(&self, wanted: &Port) -> Option<String> {
        let host_port = wanted.host_port?;
        let everywhere = |ip: Ipv4Addr| ip.is_unspecified();
        let host_ip = wanted.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
        let excludes = |other: &BoundPort| {
            (other.protocol, other.host_port) == (wanted.protocol, host_port)
                && (other.host_ip == host_ip || everywhere(other.host_ip) || everywhere(host_ip))
        };
        self.zones
            .iter()
            .find(|(_, zone)| zone.ports.iter().any(|p| excludes(&p.port)))
            .map(|(id, _)| id.clone())
    }

    fn holder_of(&self, address: Ipv4Addr) -> Option<&str> {
        self.zones
            .iter()
            .find(|(_, zone)| zone.endpoint.address == address)
            .map(|(id, _)| id.as_str())
    }
}

/// Two ends of a cable and what the host has to know of its own.
fn link_request(zone_id: &str, endpoint: &Endpoint, netns: BorrowedFd<'_>) -> Batch {
    let index = link_index(endpoint.address);
    let near = VethEnd {
        name: &endpoint.host_link,
        index,
        mac: None,
        namespace: None,
    };
    let far = VethEnd {
        name: ZONE_LINK,
        index: ZONE_LINK_INDEX,
        mac: Some(endpoint.mac),
        namespace: Some(netns),
    };
    let alias = format!("{ALIAS} {zone_id} {}", endpoint.address);
    let mut batch = Batch::new();
    rtnl::new_veth(&mut batch, near, far);
    let change = Change {
        up: Some(true),
        alias: Some(&alias),
        zone: true,
        ..Change::default()
    };
    rtnl::set_link(&mut batch, Which::Index(index), change);
    let route = Route {
        source: Some(endpoint.gateway),
        ..Route::to_neighbour(endpoint.address, index)
    };
    rtnl::replace_route(&mut batch, &route);
    batch
}

fn link_index(address: Ipv4Addr) -> u32 {
    ZONE_INDEX | (address.to_bits() & (ZONE_INDEX - 1))
}

fn find_or_make_bridge(links: &mut Connection, name: &str, gateway: Cidr) -> Result<()> {
    let action = || format!("make the bridge {name}");
    let bridge = match get_link(links, name) {
        Ok(Some(link)) => link,
        Ok(None) => {
            let mut batch = Batch::new();
            rtnl::new_bridge(&mut batch, name, Mac::of(gateway.address));
            rtnl::get_link(&mut batch, Which::Name(name));
            let replies = links.run(batch).map_err(|f| f.to(action()))?;
            replies.iter().find_map(rtnl::link).ok_or_else(|| Error::Answer {
                action: action(),
                reason: "it does not tell of the link",
            })?
        }
        Err(error) => return Err(error),
    };
    if bridge.kind.as_deref() != Some(BRIDGE) {
        return Err(Error::NotABridge(name.to_owned()));
    }
    let mut batch = Batch::new();
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    rtnl::set_link(&mut batch, Which::Index(bridge.index), up);
    rtnl::replace_address(&mut batch, bridge.index, gateway, None);
    links.run(batch).map(drop).map_err(|f| f.to(action()))
}

fn get_link(links: &mut Connection, name: &str) -> Result<Option<Link>> {
    let mut batch = Batch::new();
    rtnl::get_link(&mut batch, Which::Name(name));
    match links.run(batch) {
        Ok(replies) => Ok(replies.iter().find_map(rtnl::link)),
        Err(f) if f.errno() == Some(Errno::NODEV) => Ok(None),
        Err(f) => Err(f.to(format!("look up the network link {name}"))),
    }
}

/// The zones that have a link to the host and an address of this network.
fn find_zones(links: &mut Connection, gateway: Cidr) -> Result<BTreeMap<String, Zone>> {
    let replies = links
        .dump(rtnl::LIST_LINKS, rtnl::list_links)
        .map_err(|f| f.to("list the network links"))?;
    let zone = |link: Link| {
        let alias = link.alias?;
        let mut words = alias.split(' ');
        let (ALIAS, id, address) = (words.next()?, words.next()?, words.next()?) else {
            return None;
        };
        let address: Ipv4Addr = address.parse().ok()?;
        if !gateway.contains(address) || link.index != link_index(address) {
            return None;
        }
        let endpoint = Endpoint {
            address,
            prefix: gateway.prefix,
            gateway: gateway.address,
            mac: Mac::of(address),
            host_link: link.name,
        };
        let zone = Zone {
            endpoint,
            ports: Vec::new(),
        };
        Some((id.to_owned(), zone))
    };
    Ok(replies
        .iter()
        .filter_map(rtnl::link)
        .filter(|link| link.name.starts_with(LINK_PREFIX))
        .filter_map(zone)
        .collect())
}

/// Gives the zones their ports back and returns the publications that belong to one; the others'
/// zones are gone.
fn assign_ports(zones: &mut BTreeMap<String, Zone>, published: &[Publication]) -> Vec<Publication> {
    let mut kept = Vec::new();
    for publication in published {
        let owner = zones
            .values_mut()
            .find(|zone| zone.endpoint.address == publication.zone);
        if let Some(zone) = owner {
            kept.push(*publication);
            zone.ports.push(Published {
                port: publication.port,
                // The port works without; something else may have taken it meanwhile.
                _reservation: ports::reserve_again(&publication.port).ok(),
            });
        }
    }
    kept
}

/// Brings the loopback of a zone up that is on no network.
pub fn set_loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
    let mut links = Connection::open_in(netns, Family::Route)?;
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    let mut batch = Batch::new();
    rtnl::set_link(&mut batch, Which::Index(LOOPBACK_INDEX), up);
    let done = links.run(batch).map(drop);
    done.map_err(|f| f.to("bring the container's loopback up"))
}

/// Sets up what is inside the zone: two requests on a socket of its namespace.
fn configure_zone(netns: BorrowedFd<'_>, endpoint: &Endpoint) -> Result<()> {
    let mut links = Connection::open_in(netns, Family::Route)?;
    let action = "configure the container's network link";
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    let mut batch = Batch::new();
    rtnl::set_link(&mut batch, Which::Index(LOOPBACK_INDEX), up);
    rtnl::set_link(&mut batch, Which::Index(ZONE_LINK_INDEX), up);
    let address = Cidr::new(endpoint.address, endpoint.prefix);
    rtnl::replace_lone_address(&mut batch, ZONE_LINK_INDEX, address);
    let (near, all) = (
        Route::to_neighbour(endpoint.gateway, ZONE_LINK_INDEX),
        Route::default_by(endpoint.gateway, ZONE_LINK_INDEX),
    );
    rtnl::replace_route(&mut batch, &near);
    rtnl::replace_route(&mut batch, &all);
    links.run(batch).map_err(|f| f.to(action))?;
    Ok(())
}

fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|source| Error::Io {
        action: format!("set {path} to {value}"),
        source,
    })
}

/// One that the kernel does not have, or not in this namespace, is no error.
fn set_if_there(path: &str, value: &str) -> Result<()> {
    match set(path, value) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// The table of the neighbours' hardware addresses is one for all namespaces (arp(7)), and full with
/// 1,024 of them unless told otherwise: one for a zone and one for its gateway.
fn allow_many_neighbours() -> Result<()> {
    for (threshold, entries) in [
        ("gc_thresh3", "65536"),
        ("gc_thresh2", "32768"),
        ("gc_thresh1", "16384"),
    ] {
        set_if_there(&format!("/proc/sys/net/ipv4/neigh/default/{threshold}"), entries)?;
    }
    Ok(())
}

/// Lets the host forward packets.
fn forward_packets(bridge: &str) -> Result<()> {
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    // A zone that asks a neighbour by a published port must keep asking the host, so the host
    // must not tell it of a shorter way.
    set("/proc/sys/net/ipv4/conf/all/send_redirects", "0")?;
    set(&format!("/proc/sys/net/ipv4/conf/{bridge}/send_redirects"), "0")?;
    // Where the module br_netfilter is loaded, packets between ports of a bridge would pass
    // through the rules for routed packets, and be changed before they are routed.
    set_if_there("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
}

fn publications(zone: Ipv4Addr, ports: &[BoundPort]) -> Vec<Publication> {
    ports
        .iter()
        .map(|port| Publication { port: *port, zone })
        .collect()
}

/// Name of a zone's link on the host: told by the id's beginning if it is hexadecimal, else by a
/// hash of it (64-bit FNV-1a), which is as good as unique among the zones of a machine.
fn host_link(zone_id: &str) -> String {
    const DIGITS: usize = 12;
    let head: Option<&str> = zone_id.get(..DIGITS);
    match head.filter(|head| head.bytes().all(|b| b.is_ascii_hexdigit())) {
        Some(head) => format!("{LINK_PREFIX}{head}"),
        None => {
            let hash = zone_id.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
            });
            format!("{LINK_PREFIX}{:012x}", hash >> 16)
        }
    }
}

/// Whether a text is safe as a link's name or within an alias.
fn usable(text: &str, longest: usize) -> bool {
    (1..=longest).contains(&text.len())
        && text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"_.-".contains(&b))
        && text != "."
        && text != ".."
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_fits_the_kernel_and_tells_zones_apart() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(host_link(&hex), "mz-0123456789ab");
        let names: std::collections::BTreeSet<String> =
            ["web", "web1", "1web", "a-zone-with-a-long-name", &hex]
                .iter()
                .map(|id| host_link(id))
                .collect();
        assert_eq!(names.len(), 5);
        assert!(names.iter().all(|name| usable(name, LINK_NAME_LENGTH)));
    }

    #[test]
    fn ids_that_could_be_taken_for_something_else_are_not_usable() {
        for id in ["", " ", "a b", "a/b", "..", ".", "ä", "a\n", &"x".repeat(129)] {
            assert!(!usable(id, ID_LENGTH), "{id:?}");
        }
        for id in ["web", "my_app-1.2", &"f".repeat(64)] {
            assert!(usable(id, ID_LENGTH), "{id:?}");
        }
    }
}
