//! Reservation of the host's ports. A published port is taken by the packet rules before any socket
//! could see it; a bound socket that nobody reads keeps it from other users of the host, lets the
//! kernel choose free ports, and finds ports that are in use already.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::fd::OwnedFd;

use rustix::io::Errno;
use rustix::net::{AddressFamily, Protocol as Number, SocketFlags, SocketType};

use crate::{BoundPort, Error, Port, Protocol, Result};

/// A reserved port. Without a socket, where the kernel does not speak the protocol: then nobody on the host
/// does.
#[derive(Debug)]
pub(crate) struct Reserved {
    pub(crate) port: BoundPort,
    _socket: Option<OwnedFd>,
}

/// Whether the one excludes the other.
pub(crate) fn excludes(one: &BoundPort, protocol: Protocol, host_ip: IpAddr, host_port: u16) -> bool {
    (one.protocol, one.host_port) == (protocol, host_port)
        && one.host_ip.is_ipv4() == host_ip.is_ipv4()
        && (one.host_ip == host_ip || one.host_ip.is_unspecified() || host_ip.is_unspecified())
}

/// Takes a port of the host (one of those that will do, or a free one) for a zone's port, at each address
/// that is asked for and that the zone can be reached by, in the network namespace of the calling thread.
/// `holder` tells who has a port published already.
pub(crate) fn reserve(
    wanted: &Port,
    with_v6: bool,
    holder: impl Fn(Protocol, IpAddr, u16) -> Option<String>,
) -> Result<Vec<Reserved>> {
    if wanted.zone_port == 0 {
        return Err(Error::PortZero);
    }
    let (v4, v6) = (
        IpAddr::V4(Ipv4Addr::UNSPECIFIED),
        IpAddr::V6(Ipv6Addr::UNSPECIFIED),
    );
    let addresses = match wanted.host_ip {
        None if with_v6 => vec![v4, v6],
        None => vec![v4],
        // Nobody could be reached there.
        Some(address) if address == v6 && !with_v6 => Vec::new(),
        Some(IpAddr::V6(address)) if !with_v6 => return Err(Error::PortFamily(address)),
        Some(address) => vec![address],
    };
    let (first, last) = wanted.host_ports.unwrap_or((0, 0));
    let mut refusal = None;
    for port in first..=last {
        match at_all(wanted, &addresses, port, &holder) {
            Ok(reserved) => return Ok(reserved),
            Err(error) => refusal = refusal.or(Some(error)),
        }
    }
    Err(refusal.unwrap_or(Error::PortZero))
}

fn at_all(
    wanted: &Port,
    addresses: &[IpAddr],
    mut port: u16,
    holder: impl Fn(Protocol, IpAddr, u16) -> Option<String>,
) -> Result<Vec<Reserved>> {
    let mut reserved = Vec::with_capacity(addresses.len());
    for host_ip in addresses {
        if let Some(holder) = holder(wanted.protocol, *host_ip, port).filter(|_| port != 0) {
            return Err(Error::PortPublished {
                port,
                protocol: wanted.protocol,
                host: *host_ip,
                holder,
            });
        }
        let (host_port, socket) =
            bind(wanted.protocol, *host_ip, port).map_err(|source| Error::PortUnusable {
                port,
                protocol: wanted.protocol,
                host: *host_ip,
                source,
            })?;
        // Whatever the kernel chose first is the number for all.
        port = host_port;
        reserved.push(Reserved {
            port: BoundPort {
                protocol: wanted.protocol,
                host_ip: *host_ip,
                host_port,
                zone_port: wanted.zone_port,
            },
            _socket: socket,
        });
    }
    Ok(reserved)
}

/// Takes a port that is published already. It works without, should something else have taken it meanwhile.
pub(crate) fn reserve_again(port: &BoundPort) -> Reserved {
    let bound = bind(port.protocol, port.host_ip, port.host_port);
    Reserved {
        port: *port,
        _socket: bound.ok().and_then(|(_, socket)| socket),
    }
}

fn bind(protocol: Protocol, address: IpAddr, port: u16) -> io::Result<(u16, Option<OwnedFd>)> {
    let (kind, number) = match protocol {
        Protocol::Tcp => (SocketType::STREAM, None),
        Protocol::Udp => (SocketType::DGRAM, None),
        Protocol::Sctp => (SocketType::STREAM, Some(rustix::net::ipproto::SCTP)),
    };
    match bind_as(kind, number, address, port) {
        // A port of TCP's instead, so that two are never given the same one.
        Err(Errno::PROTONOSUPPORT) if protocol == Protocol::Sctp => {
            if port != 0 {
                return Ok((port, None));
            }
            let (port, _) = bind_as(SocketType::STREAM, None, address, 0)?;
            Ok((port, None))
        }
        other => Ok(other.map(|(port, socket)| (port, Some(socket)))?),
    }
}

fn bind_as(
    kind: SocketType,
    number: Option<Number>,
    address: IpAddr,
    port: u16,
) -> Result<(u16, OwnedFd), Errno> {
    let family = if address.is_ipv4() {
        AddressFamily::INET
    } else {
        AddressFamily::INET6
    };
    let socket = rustix::net::socket_with(family, kind, SocketFlags::CLOEXEC, number)?;
    if address.is_ipv6() {
        // The port of IPv4 is another's business.
        rustix::net::sockopt::set_ipv6_v6only(&socket, true)?;
    }
    rustix::net::bind(&socket, &SocketAddr::new(address, port))?;
    let bound = SocketAddr::try_from(rustix::net::getsockname(&socket)?)?;
    Ok((bound.port(), socket))
}
