//! The packet rules: table `monobloc` of the IPv4 family.
//!
//! In nft(8)'s words (the zones' links are `mz-…`):
//!
//! ```text
//! map published_at { type ipv4_addr . inet_proto . inet_service : ipv4_addr . inet_service }
//! map published    { type inet_proto . inet_service : ipv4_addr . inet_service }
//! chain guard       { type filter hook prerouting priority raw; policy accept;
//!     iifname != "lo" ip daddr 127.0.0.0/8 drop
//!     iifname "mz-*" ip saddr != 172.17.0.0/16 drop }
//! chain prerouting  { type nat hook prerouting priority dstnat; policy accept;
//!     fib daddr type local dnat to ip daddr . meta l4proto . th dport map @published_at
//!     fib daddr type local dnat to meta l4proto . th dport map @published }
//! chain output      { type nat hook output priority dstnat; policy accept; (the same two) }
//! chain forward     { type filter hook forward priority filter; policy drop;
//!     ct state established,related accept
//!     iifname "mz-*" accept
//!     oifname "mz-*" ct status dnat accept }
//! chain postrouting { type nat hook postrouting priority srcnat; policy accept;
//!     ip saddr 172.17.0.0/16 oifname != "mz-*" masquerade
//!     ip saddr 127.0.0.0/8 oifname "mz-*" masquerade
//!     ip saddr 172.17.0.0/16 oifname "mz-*" ct status dnat masquerade }
//! ```
//!
//! The rules stay as they are while ports come and go: a published port is an element of a map, so
//! publishing costs the same with one port and with ten thousand. The second and third rule of
//! `postrouting` let the host itself (by 127.0.0.1) and the zone itself (hairpin) use
//! published ports: the zone's answer has to come back the way the question went. A packet to
//! 127.0.0.1 may leave the host's own loopback for that (`route_localnet` of the zones' links), which
//! is why `guard` drops what comes in from elsewhere with such a destination.

use std::net::Ipv4Addr;

use rustix::io::Errno;
use sys::netlink::Family;

use crate::bridge::LINK_PREFIX;
use crate::netlink::Connection;
use crate::nft::expression::{Base, Expression, Meta, Operator, Register, Tracked, Verdict};
use crate::nft::{self, Chain, Element, Hook, Kind, Map, PART, Transaction};
use crate::rtnl::ipv4;
use crate::{BoundPort, Cidr, Protocol, Result};

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

const LOOPBACK: Cidr = Cidr {
    address: Ipv4Addr::new(127, 0, 0, 0),
    prefix: 8,
};

const IPPROTO_TCP: u8 = 6;
const IPPROTO_UDP: u8 = 17;

/// Offsets in the IPv4 header.
const SOURCE: u32 = 12;
const DESTINATION: u32 = 16;

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

/// A published port with the zone's address that it leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Publication {
    pub(crate) port: BoundPort,
    pub(crate) zone: Ipv4Addr,
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
            connection: Connection::open(Family::Netfilter)?,
        })
    }

    /// Reads the published ports from the kernel; none where the table does not stand.
    pub(crate) fn published(&mut self) -> Result<Vec<Publication>> {
        let mut all = Vec::new();
        for map in [&PUBLISHED, &PUBLISHED_AT] {
            let answer = self
                .connection
                .dump(nft::LIST_ELEMENTS, |body| nft::list_elements(body, TABLE, map));
            match answer {
                Ok(replies) => {
                    all.extend(replies.iter().flat_map(nft::elements).filter_map(publication));
                }
                Err(f) if f.errno() == Some(Errno::NOENT) => {}
                Err(f) => return Err(f.to("list the published ports")),
            }
        }
        Ok(all)
    }

    /// Puts the table in place of the one that stands, without a moment between the two.
    pub(crate) fn install(&mut self, subnet: Cidr, published: &[Publication]) -> Result<()> {
        let mut transaction = Transaction::new(TABLE);
        transaction.recreate_table();
        transaction.add_map(&PUBLISHED);
        transaction.add_map(&PUBLISHED_AT);
        for chain in chains(subnet.network()) {
            transaction.add_chain(&chain);
        }
        add(&mut transaction, published);
        self.connection
            .commit(transaction.finish())
            .map_err(|f| f.to("install the packet rules"))?;
        Ok(())
    }

    pub(crate) fn publish(&mut self, published: &[Publication]) -> Result<()> {
        let mut transaction = Transaction::new(TABLE);
        add(&mut transaction, published);
        self.connection
            .commit(transaction.finish())
            .map_err(|f| f.to("publish the ports"))?;
        Ok(())
    }

    pub(crate) fn withdraw(&mut self, published: &[Publication]) -> Result<()> {
        let mut transaction = Transaction::new(TABLE);
        let (anywhere, somewhere) = elements(published);
        transaction.delete_elements(&PUBLISHED, &anywhere);
        transaction.delete_elements(&PUBLISHED_AT, &somewhere);
        self.connection
            .commit(transaction.finish())
            .map_err(|f| f.to("withdraw the published ports"))?;
        Ok(())
    }
}

fn add(transaction: &mut Transaction, published: &[Publication]) {
    let (anywhere, somewhere) = elements(published);
    transaction.add_elements(&PUBLISHED, &anywhere);
    transaction.add_elements(&PUBLISHED_AT, &somewhere);
}

/// The elements of [`PUBLISHED`] and of [`PUBLISHED_AT`].
fn elements(published: &[Publication]) -> (Vec<Element>, Vec<Element>) {
    let (anywhere, somewhere): (Vec<_>, Vec<_>) =
        published.iter().partition(|p| p.port.host_ip.is_unspecified());
    (
        anywhere.into_iter().map(element).collect(),
        somewhere.into_iter().map(element).collect(),
    )
}

fn element(publication: &Publication) -> Element {
    let Publication { port, zone } = publication;
    let mut key = Vec::with_capacity(3 * PART);
    if !port.host_ip.is_unspecified() {
        key.extend_from_slice(&port.host_ip.octets());
    }
    let protocol = match port.protocol {
        Protocol::Tcp => IPPROTO_TCP,
        Protocol::Udp => IPPROTO_UDP,
    };
    key.extend_from_slice(&[protocol, 0, 0, 0]);
    key.extend_from_slice(&port_part(port.host_port));
    let mut value = zone.octets().to_vec();
    value.extend_from_slice(&port_part(port.zone_port));
    (key, value)
}

fn publication((key, value): Element) -> Option<Publication> {
    let parts: Vec<[u8; PART]> = key
        .chunks_exact(PART)
        .filter_map(|part| part.try_into().ok())
        .collect();
    let (host_ip, protocol, host_port) = match parts.as_slice() {
        [protocol, port] => (Ipv4Addr::UNSPECIFIED, protocol, port),
        [address, protocol, port] => (Ipv4Addr::from(*address), protocol, port),
        _ => return None,
    };
    let (address, zone_port) = value.split_at_checked(PART)?;
    Some(Publication {
        port: BoundPort {
            protocol: match protocol {
                [IPPROTO_TCP, ..] => Protocol::Tcp,
                [IPPROTO_UDP, ..] => Protocol::Udp,
                _ => return None,
            },
            host_ip,
            host_port: port_of(host_port)?,
            zone_port: port_of(zone_port)?,
        },
        zone: ipv4(address)?,
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
const R2: Register = Register(2);

fn chains(subnet: Cidr) -> Vec<Chain> {
    let from_zone = || interface(Meta::InputName, Operator::Equal, Name::Beginning(LINK_PREFIX));
    let to_zone = || interface(Meta::OutputName, Operator::Equal, Name::Beginning(LINK_PREFIX));
    let not_to_zone = || interface(Meta::OutputName, Operator::NotEqual, Name::Beginning(LINK_PREFIX));
    let accept = || vec![Expression::Verdict(Verdict::Accept)];
    let drop = || vec![Expression::Verdict(Verdict::Drop)];
    let masquerade = || vec![Expression::Masquerade];
    let chain = |name, kind, hook, priority, policy, rules| Chain {
        name,
        kind,
        hook,
        priority,
        policy,
        rules,
    };
    vec![
        chain(
            "guard",
            "filter",
            Hook::Prerouting,
            RAW,
            Verdict::Accept,
            vec![
                [
                    interface(Meta::InputName, Operator::NotEqual, Name::Whole("lo")),
                    address(DESTINATION, Operator::Equal, LOOPBACK),
                    drop(),
                ]
                .concat(),
                [from_zone(), address(SOURCE, Operator::NotEqual, subnet), drop()].concat(),
            ],
        ),
        chain(
            "prerouting",
            "nat",
            Hook::Prerouting,
            DSTNAT,
            Verdict::Accept,
            redirections(),
        ),
        chain(
            "output",
            "nat",
            Hook::Output,
            DSTNAT,
            Verdict::Accept,
            redirections(),
        ),
        chain(
            "forward",
            "filter",
            Hook::Forward,
            FILTER,
            Verdict::Drop,
            vec![
                [tracked(Tracked::State, STATE_ESTABLISHED_RELATED), accept()].concat(),
                [from_zone(), accept()].concat(),
                [to_zone(), tracked(Tracked::Status, STATUS_DNAT), accept()].concat(),
            ],
        ),
        chain(
            "postrouting",
            "nat",
            Hook::Postrouting,
            SRCNAT,
            Verdict::Accept,
            vec![
                [
                    address(SOURCE, Operator::Equal, subnet),
                    not_to_zone(),
                    masquerade(),
                ]
                .concat(),
                [
                    address(SOURCE, Operator::Equal, LOOPBACK),
                    to_zone(),
                    masquerade(),
                ]
                .concat(),
                [
                    address(SOURCE, Operator::Equal, subnet),
                    to_zone(),
                    tracked(Tracked::Status, STATUS_DNAT),
                    masquerade(),
                ]
                .concat(),
            ],
        ),
    ]
}

/// The rules that send packets for published ports to the zones; the one for a certain address of
/// the host comes first.
fn redirections() -> Vec<Vec<Expression>> {
    let local = || {
        vec![
            Expression::DestinationKind(R0),
            Expression::Compare(R0, Operator::Equal, RTN_LOCAL.to_ne_bytes().to_vec()),
        ]
    };
    let protocol_and_port = |protocol, port| {
        vec![
            Expression::Meta(Meta::TransportProtocol, protocol),
            Expression::Payload {
                base: Base::Transport,
                offset: 2,
                length: 2,
                to: port,
            },
        ]
    };
    let redirect = |map: &Map| {
        vec![
            Expression::Map {
                name: map.name,
                key: R0,
                to: R0,
            },
            Expression::DestinationNat {
                address: R0,
                port: R1,
            },
        ]
    };
    let destination = vec![Expression::Payload {
        base: Base::Network,
        offset: DESTINATION,
        length: 4,
        to: R0,
    }];
    vec![
        [
            local(),
            destination,
            protocol_and_port(R1, R2),
            redirect(&PUBLISHED_AT),
        ]
        .concat(),
        [local(), protocol_and_port(R0, R1), redirect(&PUBLISHED)].concat(),
    ]
}

/// A link's name, or how it begins.
enum Name {
    Whole(&'static str),
    Beginning(&'static str),
}

fn interface(which: Meta, operator: Operator, name: Name) -> Vec<Expression> {
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

fn address(offset: u32, operator: Operator, net: Cidr) -> Vec<Expression> {
    vec![
        Expression::Payload {
            base: Base::Network,
            offset,
            length: 4,
            to: R0,
        },
        Expression::Mask(R0, net.netmask().octets().to_vec()),
        Expression::Compare(R0, operator, net.network().address.octets().to_vec()),
    ]
}

fn tracked(what: Tracked, any_of: u32) -> Vec<Expression> {
    vec![
        Expression::Tracked(what, R0),
        Expression::Mask(R0, any_of.to_ne_bytes().to_vec()),
        Expression::Compare(R0, Operator::NotEqual, vec![0; 4]),
    ]
}
