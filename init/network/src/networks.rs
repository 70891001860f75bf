//! The networks of one machine's zones, who is on them, and the published ports.
//!
//! A zone's link is a cable to the host and nothing else: the host routes the zone's one address to it,
//! and every packet of the zone goes by the gateway, also to a neighbour. A bridge would take 1,023
//! links and no more, would carry each broadcast to all of them, and would let a zone speak with a
//! neighbour's addresses. The link of kind bridge that bears the gateway's address has no ports.
//!
//! What stands is read from the kernel, never from a file: the host's end of a zone's link carries
//! the zone's id and address as its alias, a network's number is the index of its bridge, and what the
//! packet rules know of networks and published ports are elements of their sets and maps. So a new
//! supervisor finds all of it by [`Networks::open`]; what networks there are to be it is told by
//! [`Networks::restore`], and until then the rules stay as its predecessor left them.

use std::collections::{BTreeMap, HashSet};
use std::net::{IpAddr, Ipv4Addr};
use std::os::fd::BorrowedFd;
use std::sync::{Mutex, MutexGuard, PoisonError};

use sys::netlink::Family;

use crate::addresses::{self, Taken};
use crate::bridge;
use crate::firewall::{Firewall, Groups, Publication};
use crate::netlink::Connection;
use crate::place::{self, Found};
use crate::ports::{self, Reserved};
use crate::rtnl::{self, Which};
use crate::{BoundPort, Bridge, Cidr, Endpoint, Error, Join, Mac, Port, Result, Ways};

const ID_LENGTH: usize = 128;
/// `IFNAMSIZ` without the zero byte at the end.
const LINK_NAME_LENGTH: usize = 15;

/// The usual network and those that were added, each with a gateway's address on the host; and the zones
/// behind them.
///
/// All methods may be called from any thread of the namespace it was opened in. A zone id is the
/// container's id; a network is named as its bridge.
#[derive(Debug)]
pub struct Networks {
    usual: Bridge,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    links: Connection,
    firewall: Firewall,
    bridges: BTreeMap<String, Standing>,
    zones: BTreeMap<String, Zone>,
    /// Zones' links on networks that it has not been told of yet.
    found: Vec<Found>,
}

#[derive(Debug)]
struct Standing {
    bridge: Bridge,
    /// Index of the bridge's link, by which the packet rules know the network.
    group: u32,
    /// The address given last; the search for a free one begins behind it, so that an address
    /// rests as long as possible before it is used again.
    last: Ipv4Addr,
}

#[derive(Debug, Default)]
struct Zone {
    places: Vec<Place>,
    ports: Vec<Reserved>,
    /// The address that each family's ports lead to.
    served: Option<Endpoint>,
}

#[derive(Debug)]
struct Place {
    endpoint: Endpoint,
    /// Its link has been made, and not only its address been reserved.
    linked: bool,
}

impl Networks {
    /// Makes the usual network, or finds it as it is, with the zones and published ports that it has, and
    /// puts the packet rules in place. Works in the network namespace of the calling thread.
    pub fn open(usual: Bridge) -> Result<Networks> {
        check(&usual)?;
        let mut links = Connection::open(Family::Route)?;
        bridge::set_loopback_up(&mut links)?;
        let group = bridge::find_or_make(&mut links, &usual)?;
        bridge::forward_packets(&usual)?;
        bridge::allow_many_neighbours()?;
        let (found, indices) = survey(&mut links)?;
        let mut firewall = Firewall::open()?;
        let mut published = firewall.published()?;
        published.retain(|publication| found.iter().any(|found| found.has(publication.zone)));
        let mut groups = firewall.groups()?;
        groups.retain(|other| other != group && indices.contains(&other));
        groups.add(Groups::of(&usual, group));
        firewall.install(&groups, &published)?;
        let mut state = State {
            links,
            firewall,
            bridges: BTreeMap::new(),
            zones: BTreeMap::new(),
            found,
        };
        state.stand(usual.clone(), group);
        Ok(Networks {
            usual,
            state: Mutex::new(state),
        })
    }

    /// Makes these networks, or finds them as they are, with their zones; those of a predecessor's that are
    /// not among them go, and so do published ports that lead to nobody. Gives what could not be made.
    pub fn restore(&self, bridges: &[Bridge]) -> Result<Vec<Error>> {
        let mut state = self.state();
        let refused = bridges
            .iter()
            .filter_map(|bridge| state.add(bridge).err())
            .collect();
        state.found.clear();
        for link in bridge::list(&mut state.links)? {
            if !state.bridges.contains_key(&link.name) {
                place::delete_link(&mut state.links, Which::Index(link.index))?;
            }
        }
        state.reinstall()?;
        Ok(refused)
    }

    /// Makes a network.
    pub fn add(&self, bridge: &Bridge) -> Result<()> {
        let mut state = self.state();
        if state.bridges.contains_key(&bridge.name) {
            return Err(Error::NetworkExists(bridge.name.clone()));
        }
        state.add(bridge)?;
        state.reinstall().inspect_err(|_| {
            // The first error is the one to tell.
            let _ = state.remove(&bridge.name);
        })
    }

    /// Removes a network that no zone is on. One that is not there is no error.
    pub fn remove(&self, name: &str) -> Result<()> {
        let mut state = self.state();
        if !state.bridges.contains_key(name) {
            return Ok(());
        }
        let on = |zone: &&Zone| zone.place(name).is_some();
        match state.zones.values().filter(on).count() {
            0 => state.remove(name)?,
            count => {
                let name = name.to_owned();
                return Err(Error::InUse { name, count });
            }
        }
        state.reinstall()
    }

    /// The network that is always there.
    pub fn usual(&self) -> &Bridge {
        &self.usual
    }

    /// Whether a network with this subnet could be added.
    pub fn is_free(&self, subnet: Cidr) -> Result<()> {
        self.state().check_overlap(subnet)
    }

    /// The subnets of all networks.
    pub fn subnets(&self) -> Vec<Cidr> {
        let state = self.state();
        let bridges = state.bridges.values();
        bridges
            .map(|standing| standing.bridge.gateway.network())
            .collect()
    }

    /// Keeps an address of a network for the zone, until [`ended`](Self::ended) or
    /// [`detach`](Self::detach).
    pub fn reserve(&self, zone_id: &str, join: &Join) -> Result<Endpoint> {
        if !usable(zone_id, ID_LENGTH) {
            return Err(Error::ZoneId(zone_id.to_owned()));
        }
        let mut state = self.state();
        let endpoint = state.choose(zone_id, join)?;
        let zone = state.zones.entry(zone_id.to_owned()).or_default();
        zone.places.push(Place {
            endpoint: endpoint.clone(),
            linked: false,
        });
        Ok(endpoint)
    }

    /// Gives the zone a link in its namespace `netns` for each place that it has reserved, with address and
    /// routes, and brings its loopback up. On an error nothing that it made is left behind, nor are the
    /// reservations.
    pub fn attach(&self, zone_id: &str, netns: BorrowedFd<'_>, ways: Ways<'_>) -> Result<()> {
        let (places, new) = {
            let mut state = self.state();
            let new = state.unlinked(zone_id);
            state.link(zone_id, netns).inspect_err(|_| {
                // The first error is the one to tell.
                for endpoint in &new {
                    let _ = state.drop_place(zone_id, &endpoint.network);
                }
            })?;
            (state.places(zone_id), new)
        };
        let told: Vec<_> = places
            .iter()
            .map(|(endpoint, bridge)| (endpoint, bridge))
            .collect();
        let new: Vec<_> = new.iter().collect();
        place::configure(netns, &new, &told, ways).inspect_err(|_| {
            // The first error is the one to tell; what is left of the links falls with the zone's
            // namespace.
            for endpoint in &new {
                let _ = self.leave(zone_id, &endpoint.network);
            }
        })
    }

    /// Has the zone's networks lead elsewhere than they did.
    pub fn redirect(&self, zone_id: &str, netns: BorrowedFd<'_>, ways: Ways<'_>) -> Result<()> {
        let places = self.state().places(zone_id);
        let told: Vec<_> = places
            .iter()
            .map(|(endpoint, bridge)| (endpoint, bridge))
            .collect();
        place::configure(netns, &[], &told, ways)
    }

    /// Takes the zone off one network, with the ports that are published over it. One that it is not on is no
    /// error.
    pub fn leave(&self, zone_id: &str, network: &str) -> Result<()> {
        let mut state = self.state();
        let Some(zone) = state.zones.get(zone_id) else {
            return Ok(());
        };
        if zone
            .served
            .as_ref()
            .is_some_and(|served| served.network == network)
        {
            state.unpublish(zone_id)?;
        }
        state.drop_place(zone_id, network)
    }

    /// Takes the zone off all networks: published ports, links, addresses. A zone that is on none,
    /// or whose namespace is gone, is no error.
    pub fn detach(&self, zone_id: &str) -> Result<()> {
        let mut state = self.state();
        state.unpublish(zone_id)?;
        for endpoint in state.endpoints_of(zone_id) {
            state.drop_place(zone_id, &endpoint.network)?;
        }
        state.zones.remove(zone_id);
        Ok(())
    }

    /// As [`detach`](Self::detach), of a zone whose last process has ended: its links fall with its
    /// namespace. The kernel takes many of these away at once in little more time than one, while each
    /// link that it is asked to remove takes a turn of its own.
    pub fn ended(&self, zone_id: &str) -> Result<()> {
        let mut state = self.state();
        state.unpublish(zone_id)?;
        state.zones.remove(zone_id);
        Ok(())
    }

    /// Publishes ports of a zone over one of its networks, in addition to those it has; all or none.
    pub fn publish(&self, zone_id: &str, network: &str, wanted: &[Port]) -> Result<Vec<BoundPort>> {
        let mut state = self.state();
        let endpoint = match state.zones.get(zone_id).and_then(|zone| zone.place(network)) {
            Some(place) => place.endpoint.clone(),
            None => return Err(Error::NotAttached(zone_id.to_owned())),
        };
        let mut published: Vec<Reserved> = Vec::with_capacity(wanted.len());
        for port in wanted {
            let holder = |protocol, host_ip, number| {
                let taken = |one: &Reserved| ports::excludes(&one.port, protocol, host_ip, number);
                let others = state.zones.iter();
                let mut others = others.filter(|(_, zone)| zone.ports.iter().any(taken));
                let other = others.next().map(|(id, _)| id.clone());
                other.or_else(|| published.iter().any(taken).then(|| zone_id.to_owned()))
            };
            let reserved = ports::reserve(port, endpoint.v6.is_some(), holder)?;
            published.extend(reserved);
        }
        let bound: Vec<BoundPort> = published.iter().map(|p| p.port).collect();
        state.firewall.publish(&publications(&endpoint, &bound))?;
        if let Some(entry) = state.zones.get_mut(zone_id) {
            entry.ports.extend(published);
            entry.served = Some(endpoint);
        }
        Ok(bound)
    }

    /// Withdraws all published ports of the zone. One that has none is no error.
    pub fn unpublish(&self, zone_id: &str) -> Result<()> {
        self.state().unpublish(zone_id)
    }

    /// The network over which the zone's ports are published.
    pub fn served(&self, zone_id: &str) -> Option<String> {
        let state = self.state();
        let served = state.zones.get(zone_id)?.served.as_ref()?;
        Some(served.network.clone())
    }

    /// The zone with this address.
    pub fn zone_at(&self, address: IpAddr) -> Option<String> {
        let has = |place: &Place| match address {
            IpAddr::V4(address) => place.endpoint.address == address,
            IpAddr::V6(address) => place.endpoint.v6.is_some_and(|v6| v6.address == address),
        };
        let state = self.state();
        let mut zones = state.zones.iter();
        let found = zones.find(|(_, zone)| zone.places.iter().any(has));
        found.map(|(id, _)| id.clone())
    }

    /// The zones on one network.
    pub fn members(&self, network: &str) -> Vec<(String, Endpoint)> {
        let state = self.state();
        let place = |(id, zone): (&String, &Zone)| {
            let place = zone.place(network)?;
            Some((id.clone(), place.endpoint.clone()))
        };
        state.zones.iter().filter_map(place).collect()
    }

    /// All zones' places (also those found by [`Networks::open`]), by zone id.
    pub fn endpoints(&self) -> Vec<(String, Endpoint)> {
        let state = self.state();
        let of = |(id, zone): (&String, &Zone)| {
            let id = id.clone();
            let places: Vec<_> = zone.places.iter().map(|place| place.endpoint.clone()).collect();
            places.into_iter().map(move |endpoint| (id.clone(), endpoint))
        };
        state.zones.iter().flat_map(of).collect()
    }

    /// The zone's places, in the order of its links.
    pub fn endpoints_of(&self, zone_id: &str) -> Vec<Endpoint> {
        self.state().endpoints_of(zone_id)
    }

    pub fn endpoint(&self, zone_id: &str, network: &str) -> Option<Endpoint> {
        let state = self.state();
        let place = state.zones.get(zone_id)?.place(network)?;
        Some(place.endpoint.clone())
    }

    /// The zone's published ports (also those found by [`Networks::open`]).
    pub fn published(&self, zone_id: &str) -> Vec<BoundPort> {
        let state = self.state();
        let zone = state.zones.get(zone_id);
        zone.map(|zone| zone.ports.iter().map(|p| p.port).collect())
            .unwrap_or_default()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Every change is recorded after the kernel has made it, so a panic leaves nothing half
        // recorded.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Zone {
    fn place(&self, network: &str) -> Option<&Place> {
        let mut places = self.places.iter();
        places.find(|place| place.endpoint.network == network)
    }

    /// The number of the first link's name that is free.
    fn next_link(&self) -> usize {
        let taken = |number: &usize| {
            let name = place::zone_link(*number);
            self.places.iter().any(|place| place.endpoint.link == name)
        };
        (0..).find(|number| !taken(number)).unwrap_or(0)
    }
}

impl State {
    /// Makes a network or finds it. The packet rules are not told yet.
    fn add(&mut self, bridge: &Bridge) -> Result<()> {
        if self
            .bridges
            .get(&bridge.name)
            .is_some_and(|s| s.bridge == *bridge)
        {
            return Ok(());
        }
        check(bridge)?;
        self.check_overlap(bridge.gateway)?;
        let group = bridge::find_or_make(&mut self.links, bridge)?;
        bridge::forward_packets(bridge)?;
        self.stand(bridge.clone(), group);
        Ok(())
    }

    fn remove(&mut self, name: &str) -> Result<()> {
        place::delete_link(&mut self.links, Which::Name(name))?;
        self.bridges.remove(name);
        Ok(())
    }

    /// Tells the packet rules which networks there are, and which ports lead where.
    fn reinstall(&mut self) -> Result<()> {
        let mut groups = Groups::default();
        for standing in self.bridges.values() {
            groups.add(Groups::of(&standing.bridge, standing.group));
        }
        let of = |zone: &Zone| {
            let bound: Vec<BoundPort> = zone.ports.iter().map(|p| p.port).collect();
            let served = zone.served.as_ref();
            served
                .map(|endpoint| publications(endpoint, &bound))
                .unwrap_or_default()
        };
        let published: Vec<Publication> = self.zones.values().flat_map(of).collect();
        self.firewall.install(&groups, &published)
    }

    /// Takes a network for one that stands, with the zones that were found on it and their ports.
    fn stand(&mut self, bridge: Bridge, group: u32) {
        let (mine, others): (Vec<_>, Vec<_>) = std::mem::take(&mut self.found)
            .into_iter()
            .partition(|found| found.network == bridge.name);
        self.found = others;
        let published = self.firewall.published().unwrap_or_default();
        let mut last = bridge.gateway.address;
        for found in mine {
            let id = found.zone.clone();
            let Some(endpoint) = found.on(&bridge) else {
                continue;
            };
            let zone = self.zones.entry(id).or_default();
            last = last.max(endpoint.address);
            let leads_there = |publication: &&Publication| match publication.zone {
                IpAddr::V4(address) => address == endpoint.address,
                IpAddr::V6(address) => endpoint.v6.is_some_and(|v6| v6.address == address),
            };
            let bound: Vec<_> = published.iter().filter(leads_there).collect();
            if !bound.is_empty() {
                zone.ports = bound.iter().map(|p| ports::reserve_again(&p.port)).collect();
                zone.served = Some(endpoint.clone());
            }
            zone.places.push(Place {
                endpoint,
                linked: true,
            });
            zone.places.sort_by(|a, b| a.endpoint.link.cmp(&b.endpoint.link));
        }
        let standing = Standing { bridge, group, last };
        self.bridges.insert(standing.bridge.name.clone(), standing);
    }

    fn check_overlap(&self, subnet: Cidr) -> Result<()> {
        let overlaps = |standing: &&Standing| place::share_indices(standing.bridge.gateway, subnet);
        match self.bridges.values().find(overlaps) {
            Some(other) => Err(Error::Overlap(
                subnet.network().to_string(),
                other.bridge.gateway.network().to_string(),
            )),
            None => Ok(()),
        }
    }

    /// The zone's places that have no links yet.
    fn unlinked(&self, zone_id: &str) -> Vec<Endpoint> {
        let places = self.zones.get(zone_id).into_iter().flat_map(|zone| &zone.places);
        let new = places.filter(|place| !place.linked);
        new.map(|place| place.endpoint.clone()).collect()
    }

    /// Makes their links.
    fn link(&mut self, zone_id: &str, netns: BorrowedFd<'_>) -> Result<()> {
        let Some(zone) = self.zones.get_mut(zone_id) else {
            return Err(Error::NotAttached(zone_id.to_owned()));
        };
        for place in zone.places.iter_mut().filter(|place| !place.linked) {
            let endpoint = &place.endpoint;
            let network = &endpoint.network;
            let standing = self.bridges.get(network);
            let standing = standing.ok_or_else(|| Error::NoSuchNetwork(network.clone()))?;
            let (bridge, group) = (&standing.bridge, standing.group);
            place::make_link(&mut self.links, zone_id, endpoint, bridge, group, netns)?;
            place.linked = true;
        }
        Ok(())
    }

    fn drop_place(&mut self, zone_id: &str, network: &str) -> Result<()> {
        let Some(zone) = self.zones.get_mut(zone_id) else {
            return Ok(());
        };
        if let Some(place) = zone.place(network).filter(|place| place.linked) {
            place::delete_link(&mut self.links, Which::Name(&place.endpoint.host_link))?;
        }
        zone.places.retain(|place| place.endpoint.network != network);
        if zone.places.is_empty() {
            self.zones.remove(zone_id);
        }
        Ok(())
    }

    fn endpoints_of(&self, zone_id: &str) -> Vec<Endpoint> {
        let zone = self.zones.get(zone_id);
        zone.map(|zone| zone.places.iter().map(|place| place.endpoint.clone()).collect())
            .unwrap_or_default()
    }

    /// The zone's places that have links, each with its network.
    fn places(&self, zone_id: &str) -> Vec<(Endpoint, Bridge)> {
        let zone = self.zones.get(zone_id);
        let places = zone.into_iter().flat_map(|zone| &zone.places);
        places
            .filter(|place| place.linked)
            .filter_map(|place| {
                let standing = self.bridges.get(&place.endpoint.network)?;
                Some((place.endpoint.clone(), standing.bridge.clone()))
            })
            .collect()
    }

    fn unpublish(&mut self, zone_id: &str) -> Result<()> {
        let Some(zone) = self.zones.get_mut(zone_id) else {
            return Ok(());
        };
        if let Some(endpoint) = &zone.served {
            let bound: Vec<BoundPort> = zone.ports.iter().map(|p| p.port).collect();
            self.firewall.withdraw(&publications(endpoint, &bound))?;
        }
        zone.ports.clear();
        zone.served = None;
        Ok(())
    }

    /// Chooses the addresses and names of a zone's place.
    fn choose(&mut self, zone_id: &str, join: &Join) -> Result<Endpoint> {
        let zone = self.zones.get(zone_id);
        if zone.is_some_and(|zone| zone.place(&join.network).is_some()) {
            return Err(Error::JoinedAlready {
                zone: zone_id.to_owned(),
                network: join.network.clone(),
            });
        }
        let number = zone.map_or(0, Zone::next_link);
        let standing = self.bridges.get(&join.network);
        let standing = standing.ok_or_else(|| Error::NoSuchNetwork(join.network.clone()))?;
        let taken = self.taken(&join.network);
        let (address, v6) = addresses::choose(&standing.bridge, standing.last, &taken, join)?;
        let endpoint = Endpoint {
            network: join.network.clone(),
            address,
            prefix: standing.bridge.gateway.prefix,
            gateway: standing.bridge.gateway.address,
            v6,
            mac: join.mac.unwrap_or(Mac::of(address)),
            link: place::zone_link(number),
            host_link: place::host_link(zone_id, number),
        };
        if let Some(standing) = self.bridges.get_mut(&join.network) {
            standing.last = address;
        }
        Ok(endpoint)
    }

    /// Who has which addresses of a network.
    fn taken(&self, network: &str) -> Taken<'_> {
        let mut taken = BTreeMap::new();
        for (id, zone) in &self.zones {
            let Some(place) = zone.place(network) else {
                continue;
            };
            taken.insert(place.endpoint.address.into(), id.as_str());
            if let Some(v6) = place.endpoint.v6 {
                taken.insert(v6.address.into(), id.as_str());
            }
        }
        taken
    }
}

/// The zones' links and the indices of all links.
fn survey(links: &mut Connection) -> Result<(Vec<Found>, HashSet<u32>)> {
    let replies = links
        .dump(rtnl::LIST_LINKS, rtnl::list_links)
        .map_err(|f| f.to("list the network links"))?;
    let all: Vec<_> = replies.iter().filter_map(rtnl::link).collect();
    let found = all.iter().filter_map(Found::read).collect();
    Ok((found, all.iter().map(|link| link.index).collect()))
}

fn publications(endpoint: &Endpoint, ports: &[BoundPort]) -> Vec<Publication> {
    let zone = |port: &BoundPort| match port.host_ip {
        IpAddr::V4(_) => Some(endpoint.address.into()),
        IpAddr::V6(_) => endpoint.v6.map(|v6| v6.address.into()),
    };
    ports
        .iter()
        .filter_map(|port| {
            Some(Publication {
                port: *port,
                zone: zone(port)?,
            })
        })
        .collect()
}

/// Whether a network like this can be.
fn check(bridge: &Bridge) -> Result<()> {
    let Bridge {
        name,
        gateway,
        gateway6,
        ..
    } = bridge;
    if !usable(name, LINK_NAME_LENGTH) {
        return Err(Error::LinkName(name.clone()));
    }
    let hosts = gateway.network().address != gateway.address && gateway.broadcast() != gateway.address;
    if !(8..=30).contains(&gateway.prefix) || !hosts {
        return Err(Error::Subnet(gateway.to_string()));
    }
    if let Some(gateway) = gateway6
        && (!(8..=126).contains(&gateway.prefix) || gateway.network().address == gateway.address)
    {
        return Err(Error::Subnet(gateway.to_string()));
    }
    Ok(())
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
    fn ids_that_could_be_taken_for_something_else_are_not_usable() {
        for id in ["", " ", "a b", "a/b", "..", ".", "ä", "a\n", &"x".repeat(129)] {
            assert!(!usable(id, ID_LENGTH), "{id:?}");
        }
        for id in ["web", "my_app-1.2", &"f".repeat(64)] {
            assert!(usable(id, ID_LENGTH), "{id:?}");
        }
    }
}
