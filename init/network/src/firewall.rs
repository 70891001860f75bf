//! The packet rules: table `monobloc` of the family `inet`.
//!
//! In nft(8)'s words (the zones' links are `mz-…`, and a link's group is its network's number):
//!
//! ```text
//! map published_at  { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//! map published     { type inet_proto . inet_service : ipv4_addr . inet_service }
//! map published6_at { type ipv6_addr . inet_proto . inet_service : ipv6_addr . inet_service }
//! map published6    { type inet_proto . inet_service : ipv6_addr . inet_service }
//! set together      { type devgroup . devgroup }
//! set outward       { type devgroup }
//! set masqueraded   { type devgroup }
//! set internal      { type devgroup }
//! chain guard       { type filter hook prerouting priority raw; policy accept;
//!     iifname "mz-*" fib saddr . iif oif missing drop
//!     iifname "mz-*" (DHCP servers' answers, advertisements of routers, redirects) drop
//!     iifname "mz-*" ip daddr 127.0.0.11 th dport 53 (udp, tcp) accept
//!     iifname != "lo" ip daddr 127.0.0.0/8 drop }
//! chain prerouting  { type nat hook prerouting priority dstnat; policy accept;
//!     iifname "mz-*" ip daddr 127.0.0.11 dnat ip to 127.0.0.11:47
//!     fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @published_at
//!     fib daddr type local dnat ip to meta l4proto . th dport map @published
//!     (the same two for IPv6) }
//! chain output      { type nat hook output priority dstnat; policy accept; (the last four) }
//! chain input       { type filter hook input priority filter; policy accept;
//!     ct state established,related accept
//!     ip daddr 127.0.0.11 accept
//!     iifgroup @internal drop }
//! chain forward     { type filter hook forward priority filter; policy drop;
//!     ct state established,related accept
//!     iifgroup . oifgroup @together accept
//!     iifgroup @internal drop
//!     iifgroup @outward oifname != "mz-*" accept
//!     oifgroup @outward ct status dnat accept }
//! chain postrouting { type nat hook postrouting priority srcnat; policy accept;
//!     iifgroup @masqueraded oifname != "mz-*" masquerade
//!     ip saddr 127.0.0.0/8 oifname "mz-*" masquerade
//!     iifname "mz-*" oifname "mz-*" ct status dnat masquerade }
//! ```
//!
//! The rules stay as they are while networks and ports come and go: those are elements of sets and maps, so
//! that a packet's way is as long with one network as with a thousand, and publishing costs the same with
//! one port and with ten thousand. A zone's link is of its network's group from its making on, so that a
//! zone's start changes nothing here.
//!
//! The second and third rule of `postrouting` let the host itself (by 127.0.0.1) and the zone itself
//! (hairpin) use published ports: the zone's answer has to come back the way the question went. A packet to
//! 127.0.0.1 may leave the host's own loopback for that (`route_localnet` of the zones' links), which is why
//! `guard` drops what comes in from elsewhere with such a destination. The one address of that network that
//! zones may send to is the name service's.

mod rules;

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;
use sys::netlink::Family as Socket;

use crate::netlink::Connection;
use crate::nft::{self, Element, Kind, Map, PART, Transaction};
use crate::{BoundPort, Bridge, Outside, Protocol, Result};

const TABLE: &str = "monobloc";

/// Ports published at all addresses of the host.
const PUBLISHED: Map = Map {
    name: "published",
    key: &[Kind::Protocol, Kind::Port],
    value: &[Kind::Ipv4Address, Kind::Port],
};
/// Ports published at one address of the host.
const PUBLISHED_AT: Map = Map {
    name: "published_at",
    key: &[Kind::Ipv4Address, Kind::Protocol, Kind::Port],
    value: &[Kind::Ipv4Address, Kind::Port],
};
const PUBLISHED6: Map = Map {
    name: "published6",
    key: &[Kind::Protocol, Kind::Port],
    value: &[Kind::Ipv6Address, Kind::Port],
};
const PUBLISHED6_AT: Map = Map {
    name: "published6_at",
    key: &[Kind::Ipv6Address, Kind::Protocol, Kind::Port],
    value: &[Kind::Ipv6Address, Kind::Port],
};
/// All four, in the order of [`sort`].
const PORTS: [&Map; 4] = [&PUBLISHED, &PUBLISHED_AT, &PUBLISHED6, &PUBLISHED6_AT];

/// A network whose zones reach each other is here twice.
const TOGETHER: Map = Map {
    name: "together",
    key: &[Kind::LinkGroup, Kind::LinkGroup],
    value: &[],
};
const OUTWARD: Map = groups("outward");
const MASQUERADED: Map = groups("masqueraded");
const INTERNAL: Map = groups("internal");

const fn groups(name: &'static str) -> Map {
    Map {
        name,
        key: &[Kind::LinkGroup],
        value: &[],
    }
}

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_SCTP: u8 = 132;

/// The host's port of the name service: one that is nobody's (IANA has it reserved), since the usual one may
/// be published for a zone.
pub(crate) const NAMES_PORT: u16 = 47;

/// A published port with the zone's address that it leads to, of the same family.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Publication {
    pub(crate) port: BoundPort,
    pub(crate) zone: IpAddr,
}

/// What the rules are told of networks: elements of each set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Groups(Vec<(&'static Map, Element)>);

impl Groups {
    /// What is said of one network.
    pub(crate) fn of(bridge: &Bridge, group: u32) -> Self {
        let number = group.to_ne_bytes();
        let one = || (number.to_vec(), Vec::new());
        let mut elements = Vec::new();
        if bridge.together {
            elements.push((&TOGETHER, ([number, number].concat(), Vec::new())));
        }
        match bridge.outside {
            Outside::Masqueraded => elements.extend([(&OUTWARD, one()), (&MASQUERADED, one())]),
            Outside::Routed => elements.push((&OUTWARD, one())),
            Outside::None => elements.push((&INTERNAL, one())),
        }
        Self(elements)
    }

    pub(crate) fn add(&mut self, more: Groups) {
        for element in more.0 {
            if !self.0.contains(&element) {
                self.0.push(element);
            }
        }
    }

    /// Keeps what is said of these networks.
    pub(crate) fn retain(&mut self, stands: impl Fn(u32) -> bool) {
        self.0.retain(|(_, (key, _))| {
            let group = key.first_chunk().map(|bytes| u32::from_ne_bytes(*bytes));
            group.is_some_and(&stands)
        });
    }

    fn in_set(&self, set: &Map) -> Vec<Element> {
        let mine = self.0.iter().filter(|(of, _)| of.name == set.name);
        mine.map(|(_, element)| element.clone()).collect()
    }
}

/// The kernel's packet rules of one network namespace.
#[derive(Debug)]
pub(crate) struct Firewall {
    connection: Connection,
}

impl Firewall {
    /// Speaks for the network namespace of the calling thread.
    pub(crate) fn open() -> Result<Self> {
        Ok(Self {
            connection: Connection::open(Socket::Netfilter)?,
        })
    }

    /// Reads the published ports from the kernel; none where the table does not stand.
    pub(crate) fn published(&mut self) -> Result<Vec<Publication>> {
        let mut all = Vec::new();
        for map in PORTS {
            all.extend(self.elements(map)?.into_iter().filter_map(publication));
        }
        Ok(all)
    }

    /// Reads what the rules know of networks.
    pub(crate) fn groups(&mut self) -> Result<Groups> {
        let mut all = Vec::new();
        for set in [&TOGETHER, &OUTWARD, &MASQUERADED, &INTERNAL] {
            all.extend(self.elements(set)?.into_iter().map(|element| (set, element)));
        }
        Ok(Groups(all))
    }

    fn elements(&mut self, map: &Map) -> Result<Vec<Element>> {
        let answer = self
            .connection
            .dump(nft::LIST_ELEMENTS, |body| nft::list_elements(body, TABLE, map));
        match answer {
            Ok(replies) => Ok(replies.iter().flat_map(nft::elements).collect()),
            Err(f) if f.errno() == Some(Errno::NOENT) => Ok(Vec::new()),
            Err(f) => Err(f.to("list the packet rules")),
        }
    }

    /// Puts the table in place of the one that stands, without a moment between the two.
    pub(crate) fn install(&mut self, groups: &Groups, published: &[Publication]) -> Result<()> {
        let mut transaction = Transaction::new(TABLE);
        transaction.recreate_table();
        for map in PORTS {
            transaction.add_map(map);
        }
        for set in [&TOGETHER, &OUTWARD, &MASQUERADED, &INTERNAL] {
            transaction.add_map(set);
            transaction.add_elements(set, &groups.in_set(set));
        }
        for chain in rules::chains() {
            transaction.add_chain(&chain);
        }
        for (map, elements) in PORTS.iter().zip(sort(published)) {
            transaction.add_elements(map, &elements);
        }
        self.connection
            .commit(transaction.finish())
            .map_err(|f| f.to("install the packet rules"))?;
        Ok(())
    }

    pub(crate) fn publish(&mut self, published: &[Publication]) -> Result<()> {
        let mut transaction = Transaction::new(TABLE);
        for (map, elements) in PORTS.iter().zip(sort(published)) {
            transaction.add_elements(map, &elements);
        }
        self.connection
            .commit(transaction.finish())
            .map_err(|f| f.to("publish the ports"))?;
        Ok(())
    }

    pub(crate) fn withdraw(&mut self, published: &[Publication]) -> Result<()> {
        let mut transaction = Transaction::new(TABLE);
        for (map, elements) in PORTS.iter().zip(sort(published)) {
            transaction.delete_elements(map, &elements);
        }
        self.connection
            .commit(transaction.finish())
            .map_err(|f| f.to("withdraw the published ports"))?;
        Ok(())
    }
}

/// The elements of each of [`PORTS`].
fn sort(published: &[Publication]) -> [Vec<Element>; 4] {
    let mut sorted: [Vec<Element>; 4] = Default::default();
    let [anywhere, somewhere, anywhere6, somewhere6] = &mut sorted;
    for publication in published {
        let list = match (publication.zone, publication.port.host_ip.is_unspecified()) {
            (IpAddr::V4(_), true) => &mut *anywhere,
            (IpAddr::V4(_), false) => &mut *somewhere,
            (IpAddr::V6(_), true) => &mut *anywhere6,
            (IpAddr::V6(_), false) => &mut *somewhere6,
        };
        list.push(element(publication));
    }
    sorted
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(address) => address.octets().to_vec(),
        IpAddr::V6(address) => address.octets().to_vec(),
    }
}

fn address_of(octets: &[u8]) -> Option<IpAddr> {
    match octets.len() {
        4 => <[u8; 4]>::try_from(octets).ok().map(IpAddr::from),
        _ => <[u8; 16]>::try_from(octets).ok().map(IpAddr::from),
    }
}

fn element(publication: &Publication) -> Element {
    let Publication { port, zone } = publication;
    let mut key = Vec::new();
    if !port.host_ip.is_unspecified() {
        key = octets(port.host_ip);
    }
    let protocol = match port.protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
        Protocol::Sctp => IPPROTO_SCTP,
    };
    key.extend_from_slice(&[protocol, 0, 0, 0]);
    key.extend_from_slice(&port_part(port.host_port));
    let mut value = octets(*zone);
    value.extend_from_slice(&port_part(port.zone_port));
    (key, value)
}

fn publication((key, value): Element) -> Option<Publication> {
    let (key, host_port) = key.split_at_checked(key.len().checked_sub(PART)?)?;
    let (host_ip, protocol) = key.split_at_checked(key.len().checked_sub(PART)?)?;
    let (zone, zone_port) = value.split_at_checked(value.len().checked_sub(PART)?)?;
    let zone = address_of(zone)?;
    let host_ip = match (host_ip, zone) {
        ([], IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        ([], IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        (octets, _) => address_of(octets)?,
    };
    Some(Publication {
        port: BoundPort {
            protocol: match protocol {
                [IPPROTO_TCP, ..] => Protocol::Tcp,
                [IPPROTO_UDP, ..] => Protocol::Udp,
                [IPPROTO_SCTP, ..] => Protocol::Sctp,
                _ => return None,
            },
            host_ip,
            host_port: port_of(host_port)?,
            zone_port: port_of(zone_port)?,
        },
        zone,
    })
}

fn port_part(port: u16) -> [u8; PART] {
    let [high, low] = port.to_be_bytes();
    [high, low, 0, 0]
}

fn port_of(part: &[u8]) -> Option<u16> {
    part.first_chunk().map(|b| u16::from_be_bytes(*b))
}
