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
//!     fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @published_at
//!     fib daddr type local dnat ip to meta l4proto . th dport map @published
//!     (the same two for IPv6) }
//! chain output      { type nat hook output priority dstnat; policy accept; (the same four) }
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

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use rustix::io::Errno;
use sys::netlink::Family as Socket;

use crate::netlink::Connection;
use crate::nft::expression::{Base, Expression, Family, Meta, Operator, Register, Tracked, Verdict};
use crate::nft::{self, Chain, Element, Hook, Kind, Map, PART, Transaction};
use crate::place::LINK_PREFIX;
use crate::{BoundPort, Bridge, Cidr, NAME_SERVICE, Outside, Protocol, Result};

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

const LOOPBACK: Cidr = Cidr {
    address: Ipv4Addr::new(127, 0, 0, 0),
    prefix: 8,
};

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;
const IPPROTO_ICMPV6: u8 = 58;
const IPPROTO_SCTP: u8 = 132;

/// Source and destination port of what a DHCP server says to its clients, of both versions.
const DHCP_SERVERS: [[u16; 2]; 2] = [[67, 68], [547, 546]];
/// Advertisement of a router, and redirect: types of ICMPv6.
const ROUTERS_WORDS: [u8; 2] = [134, 137];
const DOMAIN: u16 = 53;

/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;
/// Offset in the IPv6 header.
const DESTINATION6: u32 = 24;

/// `IPS_DST_NAT` of connection tracking: the destination was changed.
const STATUS_DNAT: u32 = 1 << 5;
/// Bits of connection tracking's states `established` and `related`.
const STATE_ESTABLISHED_RELATED: u32 = 1 << 1 | 1 << 2;
/// The kind of address that is the host's own.
const RTN_LOCAL: u32 = 2;

/// Priorities of the hooks, as nft(8) names them.
const RAW: i32 = -300;
const DSTNAT: i32 = -100;
const FILTER: i32 = 0;
const SRCNAT: i32 = 100;

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
        for chain in chains() {
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

const R0: Register = Register(0);
const R1: Register = Register(1);
/// Behind an address of IPv6 that begins at [`R0`].
const R4: Register = Register(4);

type Rule = Vec<Expression>;

fn chains() -> Vec<Chain> {
    let chain = |name, kind, hook, priority, policy, rules| Chain {
        name,
        kind,
        hook,
        priority,
        policy,
        rules,
    };
    use Verdict::{Accept, Drop};
    vec![
        chain("guard", "filter", Hook::Prerouting, RAW, Accept, guard()),
        chain(
            "prerouting",
            "nat",
            Hook::Prerouting,
            DSTNAT,
            Accept,
            redirections(),
        ),
        chain("output", "nat", Hook::Output, DSTNAT, Accept, redirections()),
        chain("input", "filter", Hook::Input, FILTER, Accept, input()),
        chain("forward", "filter", Hook::Forward, FILTER, Drop, forward()),
        chain(
            "postrouting",
            "nat",
            Hook::Postrouting,
            SRCNAT,
            Accept,
            postrouting(),
        ),
    ]
}

fn accept() -> Rule {
    vec![Expression::Verdict(Verdict::Accept)]
}

fn drop() -> Rule {
    vec![Expression::Verdict(Verdict::Drop)]
}

fn from_zone() -> Rule {
    interface(Meta::InputName, Operator::Equal, Name::Beginning(LINK_PREFIX))
}

fn to_zone(operator: Operator) -> Rule {
    interface(Meta::OutputName, operator, Name::Beginning(LINK_PREFIX))
}

fn to_name_service() -> Rule {
    address(DESTINATION, Cidr::new(NAME_SERVICE, 32))
}

fn guard() -> Vec<Rule> {
    let no_way_back = || {
        vec![
            Expression::WayBack(R0),
            Expression::Compare(R0, Operator::Equal, vec![0; 4]),
        ]
    };
    let mut rules = vec![[from_zone(), no_way_back(), drop()].concat()];
    for ports in DHCP_SERVERS {
        let ports = ports.map(u16::to_be_bytes).concat();
        let ports = transport(0, 4, &ports);
        rules.push([from_zone(), protocol(IPPROTO_UDP), ports, drop()].concat());
    }
    for word in ROUTERS_WORDS {
        let word = transport(0, 1, &[word]);
        rules.push([from_zone(), protocol(IPPROTO_ICMPV6), word, drop()].concat());
    }
    for of in [IPPROTO_UDP, IPPROTO_TCP] {
        let port = transport(2, 2, &DOMAIN.to_be_bytes());
        rules.push([from_zone(), to_name_service(), protocol(of), port, accept()].concat());
    }
    let not_by_loopback = interface(Meta::InputName, Operator::NotEqual, Name::Whole("lo"));
    rules.push([not_by_loopback, address(DESTINATION, LOOPBACK), drop()].concat());
    rules
}

fn input() -> Vec<Rule> {
    vec![
        [tracked(Tracked::State, STATE_ESTABLISHED_RELATED), accept()].concat(),
        [to_name_service(), accept()].concat(),
        [group(Meta::InputGroup, &INTERNAL), drop()].concat(),
    ]
}

fn forward() -> Vec<Rule> {
    let same_network = vec![
        Expression::Meta(Meta::InputGroup, R0),
        Expression::Meta(Meta::OutputGroup, R1),
        Expression::Member {
            name: TOGETHER.name,
            key: R0,
        },
    ];
    vec![
        [tracked(Tracked::State, STATE_ESTABLISHED_RELATED), accept()].concat(),
        [same_network, accept()].concat(),
        [group(Meta::InputGroup, &INTERNAL), drop()].concat(),
        [
            group(Meta::InputGroup, &OUTWARD),
            to_zone(Operator::NotEqual),
            accept(),
        ]
        .concat(),
        [
            group(Meta::OutputGroup, &OUTWARD),
            tracked(Tracked::Status, STATUS_DNAT),
            accept(),
        ]
        .concat(),
    ]
}

fn postrouting() -> Vec<Rule> {
    let masquerade = || vec![Expression::Masquerade];
    vec![
        [
            group(Meta::InputGroup, &MASQUERADED),
            to_zone(Operator::NotEqual),
            masquerade(),
        ]
        .concat(),
        [address(SOURCE, LOOPBACK), to_zone(Operator::Equal), masquerade()].concat(),
        [
            from_zone(),
            to_zone(Operator::Equal),
            tracked(Tracked::Status, STATUS_DNAT),
            masquerade(),
        ]
        .concat(),
    ]
}

/// The rules that send packets for published ports to the zones; those for a certain address of the host
/// come first.
fn redirections() -> Vec<Rule> {
    let local = || {
        vec![
            Expression::DestinationKind(R0),
            Expression::Compare(R0, Operator::Equal, RTN_LOCAL.to_ne_bytes().to_vec()),
        ]
    };
    let protocol_and_port = |at: Register| {
        vec![
            Expression::Meta(Meta::TransportProtocol, at),
            Expression::Payload {
                base: Base::Transport,
                offset: 2,
                length: 2,
                to: Register(at.0 + 1),
            },
        ]
    };
    let redirect = |map: &Map, family: Family, port: Register| {
        vec![
            Expression::Map {
                name: map.name,
                key: R0,
                to: R0,
            },
            Expression::DestinationNat {
                family,
                address: R0,
                port,
            },
        ]
    };
    let destination = |offset, length| {
        vec![Expression::Payload {
            base: Base::Network,
            offset,
            length,
            to: R0,
        }]
    };
    // A longer address takes more registers.
    let (v4, v6) = (Family::V4, Family::V6);
    [
        (v4, &PUBLISHED_AT, destination(DESTINATION, 4), R1, R1),
        (v4, &PUBLISHED, Vec::new(), R0, R1),
        (v6, &PUBLISHED6_AT, destination(DESTINATION6, 16), R4, R4),
        (v6, &PUBLISHED6, Vec::new(), R0, R4),
    ]
    .into_iter()
    .map(|(of, map, destination, at, port)| {
        [
            family(of),
            local(),
            destination,
            protocol_and_port(at),
            redirect(map, of, port),
        ]
        .concat()
    })
    .collect()
}

/// A link's name, or how it begins.
enum Name {
    Whole(&'static str),
    Beginning(&'static str),
}

fn interface(which: Meta, operator: Operator, name: Name) -> Rule {
    let compared = match name {
        Name::Whole(name) => {
            // IFNAMSIZ
            let mut padded = name.as_bytes().to_vec();
            padded.resize(16, 0);
            padded
        }
        // As many bytes are compared as are given.
        Name::Beginning(name) => name.as_bytes().to_vec(),
    };
    vec![
        Expression::Meta(which, R0),
        Expression::Compare(R0, operator, compared),
    ]
}

/// The link's group is in the set.
fn group(which: Meta, set: &Map) -> Rule {
    vec![
        Expression::Meta(which, R0),
        Expression::Member {
            name: set.name,
            key: R0,
        },
    ]
}

fn family(of: Family) -> Rule {
    vec![
        Expression::Meta(Meta::Family, R0),
        Expression::Compare(R0, Operator::Equal, vec![of as u8]),
    ]
}

fn protocol(of: u8) -> Rule {
    vec![
        Expression::Meta(Meta::TransportProtocol, R0),
        Expression::Compare(R0, Operator::Equal, vec![of]),
    ]
}

/// Bytes of the header behind the Internet protocol's.
fn transport(offset: u32, length: u32, value: &[u8]) -> Rule {
    vec![
        Expression::Payload {
            base: Base::Transport,
            offset,
            length,
            to: R0,
        },
        Expression::Compare(R0, Operator::Equal, value.to_vec()),
    ]
}

fn address(offset: u32, net: Cidr) -> Rule {
    let mut rule = family(Family::V4);
    rule.extend([
        Expression::Payload {
            base: Base::Network,
            offset,
            length: 4,
            to: R0,
        },
        Expression::Mask(R0, net.netmask().octets().to_vec()),
        Expression::Compare(R0, Operator::Equal, net.network().address.octets().to_vec()),
    ]);
    rule
}

fn tracked(what: Tracked, any_of: u32) -> Rule {
    vec![
        Expression::Tracked(what, R0),
        Expression::Mask(R0, any_of.to_ne_bytes().to_vec()),
        Expression::Compare(R0, Operator::NotEqual, vec![0; 4]),
    ]
}
