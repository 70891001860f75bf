//! A zone's place on a network: a pair of links, the addresses of the zone's end and the ways by it.
//!
//! The host's end tells by its alias whose it is, so that a new supervisor finds it.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::BorrowedFd;

use rustix::io::Errno;
use sys::netlink::Family;

use crate::links::{Link, Route};
use crate::netlink::{Batch, Connection};
use crate::rtnl::{self, Change, Settings, VethEnd, Which};
use crate::{Bridge, Cidr, Cidr6, Endpoint, Endpoint6, Error, Mac, NAME_SERVICE, Result, Ways};

/// How the names of a zone's own links begin; a number follows.
const ZONE_LINK: &str = "eth";
/// Index of a zone's first link, the first after the loopback's: so it need not be asked for.
const FIRST_LINK_INDEX: u32 = 2;
/// Index of the loopback link, the same in every namespace.
pub(crate) const LOOPBACK_INDEX: u32 = 1;
/// How the name of a zone's link on the host begins; the packet rules know the links by it.
pub(crate) const LINK_PREFIX: &str = "mz-";
/// The index of a zone's link on the host is its address's last 30 bits and this one, so that a request
/// may name the link before the kernel has made it. Other links have small numbers.
const ZONE_INDEX: u32 = 1 << 30;
/// The first word of the alias of a zone's link on the host.
const ALIAS: &str = "monobloc-zone";
/// Where the alias has nothing to tell.
const NOTHING: &str = "-";

/// The index of a zone's link on the host.
pub(crate) fn link_index(address: Ipv4Addr) -> u32 {
    ZONE_INDEX | (address.to_bits() & (ZONE_INDEX - 1))
}

/// Whether two networks' links could get the same index.
pub(crate) fn share_indices(one: Cidr, other: Cidr) -> bool {
    let prefix = one.prefix.min(other.prefix);
    let start = |net: Cidr| link_index(Cidr::new(net.address, prefix).network().address);
    start(one) == start(other)
}

/// Name of the zone's link of this number.
pub(crate) fn zone_link(number: usize) -> String {
    format!("{ZONE_LINK}{number}")
}

/// Hardware address of the host's end of every link of a network.
pub(crate) fn gateway_mac(bridge: &Bridge) -> Mac {
    Mac::of(bridge.gateway.address)
}

/// A zone's end that the alias of the host's end tells of; the network is known by its name only.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Found {
    pub(crate) zone: String,
    pub(crate) network: String,
    address: Ipv4Addr,
    address6: Option<Ipv6Addr>,
    mac: Mac,
    link: String,
    host_link: String,
}

impl Found {
    /// Reads it off the host's end; none for any other link.
    pub(crate) fn read(link: &Link) -> Option<Self> {
        let mut words = link.alias.as_deref()?.split(' ');
        if words.next() != Some(ALIAS) {
            return None;
        }
        let zone = words.next()?.to_owned();
        let address: Ipv4Addr = words.next()?.parse().ok()?;
        (link.index == link_index(address)).then_some(())?;
        Some(Self {
            zone,
            address,
            network: words.next()?.to_owned(),
            link: words.next()?.to_owned(),
            mac: words.next()?.parse().ok()?,
            address6: match words.next()? {
                NOTHING => None,
                address => Some(address.parse().ok()?),
            },
            host_link: link.name.clone(),
        })
    }

    pub(crate) fn has(&self, address: IpAddr) -> bool {
        match address {
            IpAddr::V4(address) => self.address == address,
            IpAddr::V6(address) => self.address6 == Some(address),
        }
    }

    /// None if it cannot be on that network as it is now.
    pub(crate) fn on(self, bridge: &Bridge) -> Option<Endpoint> {
        if !bridge.gateway.contains(self.address) {
            return None;
        }
        Some(Endpoint {
            v6: bridge
                .gateway6
                .zip(self.address6)
                .map(|(gateway, address)| Endpoint6 {
                    address,
                    prefix: gateway.prefix,
                    gateway: gateway.address,
                }),
            network: bridge.name.clone(),
            address: self.address,
            prefix: bridge.gateway.prefix,
            gateway: bridge.gateway.address,
            mac: self.mac,
            link: self.link,
            host_link: self.host_link,
        })
    }
}

/// Makes the zone's link and the route to it, in one request to the kernel. `group` is the network's.
pub(crate) fn make_link(
    links: &mut Connection,
    zone_id: &str,
    endpoint: &Endpoint,
    bridge: &Bridge,
    group: u32,
    netns: BorrowedFd<'_>,
) -> Result<()> {
    let index = link_index(endpoint.address);
    let request = || link_request(zone_id, endpoint, bridge, group, netns);
    let mut made = links.run(request());
    if made
        .as_ref()
        .is_err_and(|f| matches!(f.errno(), Some(Errno::EXIST | Errno::BUSY)))
    {
        // The link of an earlier life, whose namespace the kernel has not taken away yet.
        delete_link(links, Which::Name(&endpoint.host_link))?;
        delete_link(links, Which::Index(index))?;
        made = links.run(request());
    }
    made.map(drop).map_err(|failure| {
        if failure.index > 0 {
            let _ = delete_link(links, Which::Index(index));
        }
        failure.to(format!("make the network link of the container {zone_id}"))
    })
}

/// One that is not there is no error.
pub(crate) fn delete_link(links: &mut Connection, which: Which<'_>) -> Result<()> {
    let mut batch = Batch::new();
    rtnl::delete_link(&mut batch, which);
    match links.run(batch) {
        Ok(_) => Ok(()),
        Err(f) if f.errno() == Some(Errno::NODEV) => Ok(()),
        Err(f) => Err(f.to(format!("remove the network link {which:?}"))),
    }
}

/// Two ends of a cable and what the host has to know of its own.
fn link_request(
    zone_id: &str,
    endpoint: &Endpoint,
    bridge: &Bridge,
    group: u32,
    netns: BorrowedFd<'_>,
) -> Batch {
    let index = link_index(endpoint.address);
    let near = VethEnd {
        name: &endpoint.host_link,
        index,
        mac: endpoint.v6.map(|_| gateway_mac(bridge)),
        mtu: bridge.mtu,
        group,
        namespace: None,
    };
    let far = VethEnd {
        name: &endpoint.link,
        index: index_in_zone(endpoint).unwrap_or(0),
        mac: Some(endpoint.mac),
        mtu: bridge.mtu,
        group: 0,
        namespace: Some(netns),
    };
    let alias = alias(zone_id, endpoint);
    let mut batch = Batch::new();
    rtnl::new_veth(&mut batch, near, far);
    let change = Change {
        up: Some(true),
        alias: Some(&alias),
        settings: Settings::OfZone,
        ..Change::default()
    };
    rtnl::set_link(&mut batch, Which::Index(index), change);
    let route = Route {
        source: Some(endpoint.gateway),
        ..Route::to_neighbour(endpoint.address, index)
    };
    rtnl::replace_route(&mut batch, &route);
    if let Some(v6) = endpoint.v6 {
        rtnl::replace_route6(&mut batch, index, Cidr6::new(v6.address, 128), None);
        rtnl::replace_neighbour(&mut batch, index, v6.address, endpoint.mac);
    }
    batch
}

fn alias(zone_id: &str, endpoint: &Endpoint) -> String {
    let Endpoint {
        network,
        address,
        link,
        mac,
        v6,
        ..
    } = endpoint;
    let address6 = v6.map_or(NOTHING.to_owned(), |v6| v6.address.to_string());
    format!("{ALIAS} {zone_id} {address} {network} {link} {mac} {address6}")
}

/// Known for the first link only: others may have been made meanwhile by the zone itself.
fn index_in_zone(endpoint: &Endpoint) -> Option<u32> {
    (endpoint.link == zone_link(0)).then_some(FIRST_LINK_INDEX)
}

/// Sets up what is inside the zone: the addresses of `new` and the ways by all of its `places`. With nothing
/// but the first link that is two requests on a socket of its namespace.
pub(crate) fn configure(
    netns: BorrowedFd<'_>,
    new: &[&Endpoint],
    places: &[(&Endpoint, &Bridge)],
    ways: Ways<'_>,
) -> Result<()> {
    let mut links = Connection::open_in(netns, Family::Route)?;
    let mut indices = Vec::with_capacity(places.len());
    for (endpoint, _) in places {
        let index = match index_in_zone(endpoint) {
            Some(index) => index,
            None => index_of(&mut links, &endpoint.link)?,
        };
        indices.push(index);
    }
    let mut batch = Batch::new();
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    rtnl::set_link(&mut batch, Which::Index(LOOPBACK_INDEX), up);
    let all = || indices.iter().copied().zip(places);
    for (index, (endpoint, _)) in all() {
        if new.contains(endpoint) {
            let settings = match ways.names {
                Some(_) => Settings::LoopbackBeyond,
                None => Settings::Unchanged,
            };
            rtnl::set_link(&mut batch, Which::Index(index), Change { settings, ..up });
            add_addresses(&mut batch, index, endpoint);
        }
    }
    for (index, (endpoint, bridge)) in all() {
        let is = |way: Option<&str>| way == Some(endpoint.network.as_str());
        add_ways(&mut batch, index, endpoint, bridge, is(ways.outside));
        if is(ways.names) {
            rtnl::replace_way_beyond(
                &mut batch,
                index,
                NAME_SERVICE,
                endpoint.gateway,
                endpoint.address,
            );
        }
    }
    let done = links.run(batch).map(drop);
    done.map_err(|f| f.to("configure the container's network link"))
}

fn add_addresses(batch: &mut Batch, index: u32, endpoint: &Endpoint) {
    let address = Cidr::new(endpoint.address, endpoint.prefix);
    rtnl::replace_lone_address(batch, index, address);
    rtnl::replace_route(batch, &Route::to_neighbour(endpoint.gateway, index));
    if let Some(v6) = endpoint.v6 {
        rtnl::replace_address6(batch, index, Cidr6::new(v6.address, v6.prefix), true);
    }
}

/// The gateway is the way to all neighbours, and where it is the way out to everything.
fn add_ways(batch: &mut Batch, index: u32, endpoint: &Endpoint, bridge: &Bridge, outside: bool) {
    let mut all = Route::default_by(endpoint.gateway, index);
    if !outside {
        all.destination = Cidr::new(endpoint.address, endpoint.prefix);
    }
    rtnl::replace_route(batch, &all);
    if let Some(v6) = endpoint.v6 {
        rtnl::replace_neighbour(batch, index, v6.gateway, gateway_mac(bridge));
        let all = match outside {
            true => Cidr6::new(Ipv6Addr::UNSPECIFIED, 0),
            false => Cidr6::new(v6.address, v6.prefix),
        };
        rtnl::replace_route6(batch, index, all, Some(v6.gateway));
    }
}

fn index_of(links: &mut Connection, name: &str) -> Result<u32> {
    let action = || format!("look up the container's network link {name}");
    let mut batch = Batch::new();
    rtnl::get_link(&mut batch, Which::Name(name));
    let replies = links.run(batch).map_err(|f| f.to(action()))?;
    let link = replies.iter().find_map(rtnl::link);
    link.map(|link| link.index).ok_or_else(|| Error::Answer {
        action: action(),
        reason: "it does not tell of the link",
    })
}

/// Brings the loopback of a zone up that is on no network.
pub fn set_loopback_up(netns: BorrowedFd<'_>) -> Result<()> {
    configure(netns, &[], &[], Ways::default())
}

/// Name of a zone's link on the host: told by the id's beginning if it is hexadecimal, else by a
/// hash of it (64-bit FNV-1a), which is as good as unique among the zones of a machine. All but the first
/// are told by a hash of id and number.
pub(crate) fn host_link(zone_id: &str, number: usize) -> String {
    const DIGITS: usize = 12;
    let head: Option<&str> = zone_id.get(..DIGITS).filter(|_| number == 0);
    match head.filter(|head| head.bytes().all(|b| b.is_ascii_hexdigit())) {
        Some(head) => format!("{LINK_PREFIX}{head}"),
        None => {
            let more = number.to_le_bytes().into_iter().filter(|_| number > 0);
            let hash = zone_id
                .bytes()
                .chain(more)
                .fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
                    (hash ^ u64::from(byte)).wrapping_mul(0x100_0000_01b3)
                });
            format!("{LINK_PREFIX}{:012x}", hash >> 16)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_name_fits_the_kernel_and_tells_zones_apart() {
        let hex = "0123456789abcdef".repeat(4);
        assert_eq!(host_link(&hex, 0), "mz-0123456789ab");
        let ids = ["web", "web1", "1web", "a-zone-with-a-long-name", &hex];
        let names: std::collections::BTreeSet<String> = ids
            .iter()
            .flat_map(|id| [host_link(id, 0), host_link(id, 1), host_link(id, 2)])
            .collect();
        assert_eq!(names.len(), 15);
        assert!(names.iter().all(|name| name.len() <= 15));
    }

    #[test]
    fn networks_whose_links_would_have_the_same_index_are_told() {
        let net = |text: &str| text.parse::<Cidr>().unwrap();
        assert!(share_indices(net("172.17.0.1/16"), net("44.0.0.1/8")));
        assert!(share_indices(net("10.0.0.1/8"), net("10.9.0.1/24")));
        for (one, other) in [
            ("172.17.0.1/16", "172.18.0.1/16"),
            ("10.0.0.1/8", "192.168.0.1/20"),
            ("172.31.0.1/16", "192.168.0.1/20"),
        ] {
            assert!(!share_indices(net(one), net(other)), "{one} {other}");
        }
    }
}
