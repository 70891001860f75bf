//! The messages of rtnetlink(7) for links, addresses and routes: each function adds one request to
//! a batch or reads one answer. Layouts and numbers are those of `linux/rtnetlink.h`,
//! `linux/if_link.h`, `linux/if_addr.h` and `linux/veth.h`.

use std::net::{Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::time::Duration;

use crate::links::{Address, Link, Route};
use crate::netlink::{Attributes, Batch, Body, Reply, flag, text, u16_of, u32_of};
use crate::{Cidr, Cidr6, Mac};

const RTM_NEWLINK: u16 = 16;
const RTM_DELLINK: u16 = 17;
const RTM_GETLINK: u16 = 18;
const RTM_NEWADDR: u16 = 20;
const RTM_DELADDR: u16 = 21;
const RTM_GETADDR: u16 = 22;
const RTM_NEWROUTE: u16 = 24;
const RTM_DELROUTE: u16 = 25;
const RTM_GETROUTE: u16 = 26;
const RTM_NEWNEIGH: u16 = 28;

/// Multicast mask that tells of links coming, going and changing.
pub(crate) const GROUP_LINK: u32 = 1;

const AF_UNSPEC: u8 = 0;
const AF_INET: u8 = 2;
const AF_INET6: u8 = 10;

/// Length of `ifinfomsg`.
const IFINFO: usize = 16;
/// Length of `ifaddrmsg`.
const IFADDR: usize = 8;
/// Length of `rtmsg`.
const RTMSG: usize = 12;

const ARPHRD_ETHER: u16 = 1;

const IFF_UP: u32 = 0x1;
const IFF_LOOPBACK: u32 = 0x8;
const IFF_LOWER_UP: u32 = 0x1_0000;

const IFLA_ADDRESS: u16 = 1;
const IFLA_IFNAME: u16 = 3;
const IFLA_MTU: u16 = 4;
const IFLA_MASTER: u16 = 10;
const IFLA_LINKINFO: u16 = 18;
const IFLA_IFALIAS: u16 = 20;
const IFLA_AF_SPEC: u16 = 26;
const IFLA_GROUP: u16 = 27;
const IFLA_NET_NS_FD: u16 = 28;
const IFLA_EXT_MASK: u16 = 29;
const IFLA_NUM_TX_QUEUES: u16 = 31;
const IFLA_NUM_RX_QUEUES: u16 = 32;
/// Leave the counters out of the answers.
const RTEXT_FILTER_SKIP_STATS: u32 = 1 << 3;

/// Within `IFLA_AF_SPEC`'s part of IPv4: settings by their numbers in `linux/ip.h`.
const IFLA_INET_CONF: u16 = 1;
const IPV4_DEVCONF_SEND_REDIRECTS: u16 = 6;
const IPV4_DEVCONF_RP_FILTER: u16 = 8;
const IPV4_DEVCONF_ROUTE_LOCALNET: u16 = 26;
/// Within its part of IPv6: no address is made up for the link.
const IFLA_INET6_ADDR_GEN_MODE: u16 = 8;
const IN6_ADDR_GEN_MODE_NONE: u8 = 1;

const IFLA_INFO_KIND: u16 = 1;
const IFLA_INFO_DATA: u16 = 2;
const VETH_INFO_PEER: u16 = 1;

const IFA_ADDRESS: u16 = 1;
const IFA_LOCAL: u16 = 2;
const IFA_BROADCAST: u16 = 4;
const IFA_CACHEINFO: u16 = 6;
const IFA_FLAGS: u16 = 8;
/// The address says nothing of what is on the link.
const IFA_F_NOPREFIXROUTE: u32 = 0x200;
/// Nobody is asked whether he has the address already.
const IFA_F_NODAD: u32 = 0x02;
const LIFETIME_INFINITE: u32 = u32::MAX;

const RTA_DST: u16 = 1;
const RTA_OIF: u16 = 4;
const RTA_GATEWAY: u16 = 5;
const RTA_PRIORITY: u16 = 6;
const RTA_PREFSRC: u16 = 7;
const RT_TABLE_MAIN: u8 = 254;
const RT_TABLE_LOCAL: u8 = 255;
const RTPROT_BOOT: u8 = 3;
const RTPROT_DHCP: u8 = 16;
const RT_SCOPE_UNIVERSE: u8 = 0;
const RT_SCOPE_LINK: u8 = 253;
const RTN_UNICAST: u8 = 1;
/// The gateway is on the link although no address of the link's says so.
const RTNH_F_ONLINK: u32 = 4;

/// Length of `ndmsg`.
const NDMSG: usize = 12;
const NDA_DST: u16 = 1;
const NDA_LLADDR: u16 = 2;
const NUD_PERMANENT: u16 = 0x80;

/// How a request names a link.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Which<'a> {
    Index(u32),
    Name(&'a str),
}

/// What a request changes of a link; the default changes nothing.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Change<'a> {
    pub(crate) up: Option<bool>,
    pub(crate) mtu: Option<u32>,
    pub(crate) alias: Option<&'a str>,
    pub(crate) settings: Settings,
}

/// Settings of the link's protocols; see `linux/ip.h`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(crate) enum Settings {
    #[default]
    Unchanged,
    /// What comes by it is taken for a zone's, see [`guard_against_zone`].
    OfZone,
    /// Addresses of the loopback's network may be at the link's other end (`route_localnet`).
    LoopbackBeyond,
}

pub(crate) fn new_bridge(batch: &mut Batch, name: &str, mac: Mac) {
    batch.push(RTM_NEWLINK, flag::CREATE | flag::EXCL, |body| {
        ifinfo(body, 0, IFF_UP, IFF_UP);
        body.text(IFLA_IFNAME, name);
        // Without one of its own the bridge takes the least of its ports' addresses, and changes
        // it as they come and go.
        body.bytes(IFLA_ADDRESS, &mac.0);
        body.nest(IFLA_LINKINFO, |info| info.text(IFLA_INFO_KIND, "bridge"));
    });
}

/// One end of a veth pair.
#[derive(Debug, Clone, Copy)]
pub(crate) struct VethEnd<'a> {
    pub(crate) name: &'a str,
    /// 0: the kernel chooses.
    pub(crate) index: u32,
    pub(crate) mac: Option<Mac>,
    /// None: the kernel's usual one.
    pub(crate) mtu: Option<u32>,
    /// By which the packet rules know its network; 0 is that of all others.
    pub(crate) group: u32,
    /// Namespace that the end is born in; none: the socket's.
    pub(crate) namespace: Option<BorrowedFd<'a>>,
}

/// Makes a veth pair with the near end up. The far one cannot be born up: the kernel makes it
/// before it has anything to be connected to.
pub(crate) fn new_veth(batch: &mut Batch, near: VethEnd<'_>, far: VethEnd<'_>) {
    let end = |body: &mut Body<'_>, flags: u32, end: VethEnd<'_>| {
        ifinfo(body, end.index, flags, flags);
        body.text(IFLA_IFNAME, end.name);
        if let Some(mac) = end.mac {
            body.bytes(IFLA_ADDRESS, &mac.0);
        }
        if let Some(mtu) = end.mtu {
            body.u32(IFLA_MTU, mtu);
        }
        if end.group > 0 {
            body.u32(IFLA_GROUP, end.group);
        }
        if let Some(namespace) = end.namespace {
            body.u32(IFLA_NET_NS_FD, namespace.as_raw_fd().cast_unsigned());
        }
        // Of itself it has one for each processor, and each is some objects of the kernel's.
        body.u32(IFLA_NUM_TX_QUEUES, 1);
        body.u32(IFLA_NUM_RX_QUEUES, 1);
    };
    batch.push(RTM_NEWLINK, flag::CREATE | flag::EXCL, |body| {
        end(body, IFF_UP, near);
        body.nest(IFLA_LINKINFO, |info| {
            info.text(IFLA_INFO_KIND, "veth");
            info.nest(IFLA_INFO_DATA, |data| {
                data.nest(VETH_INFO_PEER, |peer| end(peer, 0, far));
            });
        });
    });
}

pub(crate) fn set_link(batch: &mut Batch, which: Which<'_>, change: Change<'_>) {
    batch.push(RTM_NEWLINK, 0, |body| {
        let flags = if change.up == Some(true) { IFF_UP } else { 0 };
        let mask = if change.up.is_some() { IFF_UP } else { 0 };
        name_link(body, which, flags, mask);
        if let Some(mtu) = change.mtu {
            body.u32(IFLA_MTU, mtu);
        }
        if let Some(alias) = change.alias {
            body.bytes(IFLA_IFALIAS, alias.as_bytes());
        }
        match change.settings {
            Settings::Unchanged => {}
            Settings::OfZone => guard_against_zone(body),
            Settings::LoopbackBeyond => body.nest(IFLA_AF_SPEC, |families| {
                families.nest(AF_INET.into(), |family| {
                    family.nest(IFLA_INET_CONF, |settings| {
                        settings.u32(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
                    });
                });
            }),
        }
    });
}

/// What the host's end of a zone's link is like: only packets that the routes would answer by it come
/// in (`rp_filter`), so that a zone has no address but its own; the zone is told of no shorter way; the
/// host itself reaches the zone's published ports by its loopback addresses. And no address of IPv6 comes by
/// itself.
fn guard_against_zone(body: &mut Body<'_>) {
    body.nest(IFLA_AF_SPEC, |families| {
        families.nest(AF_INET.into(), |family| {
            family.nest(IFLA_INET_CONF, |settings| {
                settings.u32(IPV4_DEVCONF_SEND_REDIRECTS, 0);
                settings.u32(IPV4_DEVCONF_RP_FILTER, 1);
                settings.u32(IPV4_DEVCONF_ROUTE_LOCALNET, 1);
            });
        });
        families.nest(AF_INET6.into(), |family| {
            family.bytes(IFLA_INET6_ADDR_GEN_MODE, &[IN6_ADDR_GEN_MODE_NONE]);
        });
    });
}

pub(crate) fn delete_link(batch: &mut Batch, which: Which<'_>) {
    batch.push(RTM_DELLINK, 0, |body| name_link(body, which, 0, 0));
}

/// Asks for one link; the answer is for [`link`].
pub(crate) fn get_link(batch: &mut Batch, which: Which<'_>) {
    batch.push(RTM_GETLINK, 0, |body| {
        name_link(body, which, 0, 0);
        body.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
    });
}

/// The body of a request for all links.
pub(crate) const LIST_LINKS: u16 = RTM_GETLINK;
pub(crate) fn list_links(body: &mut Body<'_>) {
    ifinfo(body, 0, 0, 0);
    body.u32(IFLA_EXT_MASK, RTEXT_FILTER_SKIP_STATS);
}

pub(crate) const LIST_ADDRESSES: u16 = RTM_GETADDR;
pub(crate) fn list_addresses(body: &mut Body<'_>) {
    body.fixed(&[AF_INET, 0, 0, 0, 0, 0, 0, 0]);
}

pub(crate) const LIST_ROUTES: u16 = RTM_GETROUTE;
pub(crate) fn list_routes(body: &mut Body<'_>) {
    body.fixed(&[AF_INET, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0]);
}

/// Gives a link an address, or an address it has a new lifetime.
pub(crate) fn replace_address(batch: &mut Batch, link: u32, address: Cidr, lifetime: Option<Duration>) {
    batch.push(RTM_NEWADDR, flag::CREATE | flag::REPLACE, |body| {
        write_address(body, link, address);
        if let Some(lifetime) = lifetime {
            let seconds = u32::try_from(lifetime.as_secs())
                .unwrap_or(LIFETIME_INFINITE)
                .max(1);
            let mut info = [0_u8; 16];
            info[..4].copy_from_slice(&seconds.to_ne_bytes());
            info[4..8].copy_from_slice(&seconds.to_ne_bytes());
            body.bytes(IFA_CACHEINFO, &info);
        }
    });
}

/// Gives a link an address that does not say that the rest of its network is on the link.
pub(crate) fn replace_lone_address(batch: &mut Batch, link: u32, address: Cidr) {
    batch.push(RTM_NEWADDR, flag::CREATE | flag::REPLACE, |body| {
        write_address(body, link, address);
        body.u32(IFA_FLAGS, IFA_F_NOPREFIXROUTE);
    });
}

fn write_address(body: &mut Body<'_>, link: u32, address: Cidr) {
    ifaddr(body, link, address);
    body.bytes(IFA_LOCAL, &address.address.octets());
    body.bytes(IFA_ADDRESS, &address.address.octets());
    if address.prefix < 31 {
        body.bytes(IFA_BROADCAST, &address.broadcast().octets());
    }
}

/// Gives a link an address of IPv6 that nobody else can have and that says nothing of what else is on the
/// link, where `lone`.
pub(crate) fn replace_address6(batch: &mut Batch, link: u32, address: Cidr6, lone: bool) {
    batch.push(RTM_NEWADDR, flag::CREATE | flag::REPLACE, |body| {
        body.fixed(&[AF_INET6, address.prefix, 0, 0]);
        body.fixed(&link.to_ne_bytes());
        body.bytes(IFA_LOCAL, &address.address.octets());
        let prefix_route = if lone { IFA_F_NOPREFIXROUTE } else { 0 };
        body.u32(IFA_FLAGS, IFA_F_NODAD | prefix_route);
    });
}

/// Says for ever which hardware address is a neighbour's, so that nobody is asked.
pub(crate) fn replace_neighbour(batch: &mut Batch, link: u32, address: Ipv6Addr, mac: Mac) {
    batch.push(RTM_NEWNEIGH, flag::CREATE | flag::REPLACE, |body| {
        let mut fixed = [0_u8; NDMSG];
        fixed[0] = AF_INET6;
        fixed[4..8].copy_from_slice(&link.to_ne_bytes());
        fixed[8..10].copy_from_slice(&NUD_PERMANENT.to_ne_bytes());
        body.fixed(&fixed);
        body.bytes(NDA_DST, &address.octets());
        body.bytes(NDA_LLADDR, &mac.0);
    });
}

/// Sets a route of IPv6: to what is on the link, or by a gateway that is.
pub(crate) fn replace_route6(batch: &mut Batch, link: u32, destination: Cidr6, gateway: Option<Ipv6Addr>) {
    batch.push(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, |body| {
        let prefix = destination.prefix;
        let (table, protocol) = (RT_TABLE_MAIN, RTPROT_BOOT);
        body.fixed(&[
            AF_INET6,
            prefix,
            0,
            0,
            table,
            protocol,
            RT_SCOPE_UNIVERSE,
            RTN_UNICAST,
        ]);
        body.fixed(&if gateway.is_some() { RTNH_F_ONLINK } else { 0 }.to_ne_bytes());
        if prefix > 0 {
            body.bytes(RTA_DST, &destination.network().address.octets());
        }
        if let Some(gateway) = gateway {
            body.bytes(RTA_GATEWAY, &gateway.octets());
        }
        body.u32(RTA_OIF, link);
    });
}

/// Has packets for one address of the loopback's network leave by a link's gateway.
pub(crate) fn replace_way_beyond(
    batch: &mut Batch,
    link: u32,
    address: Ipv4Addr,
    by: Ipv4Addr,
    from: Ipv4Addr,
) {
    batch.push(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, |body| {
        let (table, scope) = (RT_TABLE_LOCAL, RT_SCOPE_UNIVERSE);
        body.fixed(&[
            AF_INET,
            32,
            0,
            0,
            table,
            RTPROT_BOOT,
            scope,
            RTN_UNICAST,
            0,
            0,
            0,
            0,
        ]);
        body.bytes(RTA_DST, &address.octets());
        body.bytes(RTA_GATEWAY, &by.octets());
        body.bytes(RTA_PREFSRC, &from.octets());
        body.u32(RTA_OIF, link);
    });
}

pub(crate) fn delete_address(batch: &mut Batch, link: u32, address: Cidr) {
    batch.push(RTM_DELADDR, 0, |body| {
        ifaddr(body, link, address);
        body.bytes(IFA_LOCAL, &address.address.octets());
    });
}

pub(crate) fn replace_route(batch: &mut Batch, route: &Route) {
    batch.push(RTM_NEWROUTE, flag::CREATE | flag::REPLACE, |body| {
        write_route(body, route);
    });
}

pub(crate) fn delete_route(batch: &mut Batch, route: &Route) {
    batch.push(RTM_DELROUTE, 0, |body| write_route(body, route));
}

/// Reads a link out of an answer.
pub(crate) fn link(reply: &Reply) -> Option<Link> {
    if reply.kind != RTM_NEWLINK {
        return None;
    }
    let kind = u16_of(reply.body.get(2..)?)?;
    let flags = u32_of(reply.body.get(8..)?)?;
    let attributes = Attributes::after(&reply.body, IFINFO);
    let info = attributes.find(IFLA_LINKINFO).map(Attributes::of);
    Some(Link {
        index: u32_of(reply.body.get(4..)?)?,
        name: attributes.find(IFLA_IFNAME).map(text)?,
        mac: attributes
            .find(IFLA_ADDRESS)
            .filter(|_| kind == ARPHRD_ETHER)
            .and_then(|bytes| bytes.try_into().ok())
            .map(Mac),
        kind: info.and_then(|info| info.find(IFLA_INFO_KIND)).map(text),
        loopback: flags & IFF_LOOPBACK != 0,
        up: flags & IFF_UP != 0,
        carrier: flags & IFF_LOWER_UP != 0,
        mtu: attributes.find(IFLA_MTU).and_then(u32_of).unwrap_or(0),
        master: attributes.find(IFLA_MASTER).and_then(u32_of),
        group: attributes.find(IFLA_GROUP).and_then(u32_of).unwrap_or(0),
        alias: attributes.find(IFLA_IFALIAS).map(text),
    })
}

/// Reads an address out of an answer.
pub(crate) fn address(reply: &Reply) -> Option<Address> {
    if reply.kind != RTM_NEWADDR || reply.body.first() != Some(&AF_INET) {
        return None;
    }
    let attributes = Attributes::after(&reply.body, IFADDR);
    let valid = attributes
        .find(IFA_CACHEINFO)
        .and_then(|info| u32_of(info.get(4..)?));
    Some(Address {
        link: u32_of(reply.body.get(4..)?)?,
        address: Cidr::new(ipv4(attributes.find(IFA_LOCAL)?)?, *reply.body.get(1)?),
        lifetime: valid
            .filter(|seconds| *seconds != LIFETIME_INFINITE)
            .map(|seconds| Duration::from_secs(seconds.into())),
    })
}

/// Reads a route of the main table out of an answer.
pub(crate) fn route(reply: &Reply) -> Option<Route> {
    let [family, length, _, _, table, protocol, _, kind, ..] = *reply.body.first_chunk::<RTMSG>()?;
    if reply.kind != RTM_NEWROUTE || (family, table, kind) != (AF_INET, RT_TABLE_MAIN, RTN_UNICAST) {
        return None;
    }
    let attributes = Attributes::after(&reply.body, RTMSG);
    let destination = match attributes.find(RTA_DST) {
        Some(bytes) => ipv4(bytes)?,
        None => Ipv4Addr::UNSPECIFIED,
    };
    Some(Route {
        destination: Cidr::new(destination, length),
        gateway: attributes.find(RTA_GATEWAY).and_then(ipv4),
        link: attributes.find(RTA_OIF).and_then(u32_of)?,
        source: attributes.find(RTA_PREFSRC).and_then(ipv4),
        metric: attributes.find(RTA_PRIORITY).and_then(u32_of).unwrap_or(0),
        on_link: u32_of(reply.body.get(8..)?)? & RTNH_F_ONLINK != 0,
        dhcp: protocol == RTPROT_DHCP,
    })
}

fn write_route(body: &mut Body<'_>, route: &Route) {
    let scope = match route.gateway {
        Some(_) => RT_SCOPE_UNIVERSE,
        None => RT_SCOPE_LINK,
    };
    let protocol = if route.dhcp { RTPROT_DHCP } else { RTPROT_BOOT };
    let flags = if route.on_link { RTNH_F_ONLINK } else { 0 };
    let prefix = route.destination.prefix;
    body.fixed(&[AF_INET, prefix, 0, 0, RT_TABLE_MAIN, protocol, scope, RTN_UNICAST]);
    body.fixed(&flags.to_ne_bytes());
    if prefix > 0 {
        body.bytes(RTA_DST, &route.destination.network().address.octets());
    }
    if let Some(gateway) = route.gateway {
        body.bytes(RTA_GATEWAY, &gateway.octets());
    }
    if let Some(source) = route.source {
        body.bytes(RTA_PREFSRC, &source.octets());
    }
    if route.metric > 0 {
        body.u32(RTA_PRIORITY, route.metric);
    }
    body.u32(RTA_OIF, route.link);
}

fn name_link(body: &mut Body<'_>, which: Which<'_>, flags: u32, mask: u32) {
    match which {
        Which::Index(index) => ifinfo(body, index, flags, mask),
        Which::Name(name) => {
            ifinfo(body, 0, flags, mask);
            body.text(IFLA_IFNAME, name);
        }
    }
}

fn ifinfo(body: &mut Body<'_>, index: u32, flags: u32, mask: u32) {
    // Family, padding and a hardware type of 0.
    body.fixed(&[AF_UNSPEC, 0, 0, 0]);
    body.fixed(&index.to_ne_bytes());
    body.fixed(&flags.to_ne_bytes());
    body.fixed(&mask.to_ne_bytes());
}

fn ifaddr(body: &mut Body<'_>, link: u32, address: Cidr) {
    // Flags 0 and scope 0 (global).
    body.fixed(&[AF_INET, address.prefix, 0, 0]);
    body.fixed(&link.to_ne_bytes());
}

pub(crate) fn ipv4(bytes: &[u8]) -> Option<Ipv4Addr> {
    <[u8; 4]>::try_from(bytes).ok().map(Ipv4Addr::from)
}
