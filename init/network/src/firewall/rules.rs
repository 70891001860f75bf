//! The chains of the table, in the kernel's expressions; [the module above](super) has them in nft(8)'s words.

use std::net::Ipv4Addr;

use super::{
    INTERNAL, IPPROTO_TCP, IPPROTO_UDP, MASQUERADED, NAMES_PORT, OUTWARD, PUBLISHED, PUBLISHED_AT,
    PUBLISHED6, PUBLISHED6_AT, TOGETHER,
};
use crate::nft::expression::{Base, Expression, Family, Meta, Operator, Register, Tracked, Verdict};
use crate::nft::{Chain, Hook, Map};
use crate::place::LINK_PREFIX;
use crate::{Cidr, NAME_SERVICE};

const LOOPBACK: Cidr = Cidr {
    address: Ipv4Addr::new(127, 0, 0, 0),
    prefix: 8,
};

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

const IPPROTO_ICMPV6: u8 = 58;

const R0: Register = Register(0);
const R1: Register = Register(1);
/// Behind an address of IPv6 that begins at [`R0`].
const R4: Register = Register(4);

type Rule = Vec<Expression>;

pub(super) fn chains() -> Vec<Chain> {
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
            [vec![to_names_port()], redirections()].concat(),
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

/// What `guard` has let through.
fn to_names_port() -> Rule {
    let there = vec![
        Expression::Value(R0, NAME_SERVICE.octets().to_vec()),
        Expression::Value(R1, NAMES_PORT.to_be_bytes().to_vec()),
        Expression::DestinationNat {
            family: Family::V4,
            address: R0,
            port: R1,
        },
    ];
    [from_zone(), to_name_service(), there].concat()
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
