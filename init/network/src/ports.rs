//! Reservation of the host's ports. A published port is taken by the packet rules before any socket
//! could see it; a bound socket that nobody reads keeps it from other users of the host, lets the
//! kernel choose free ports, and finds ports that are in use already.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;

use rustix::net::{AddressFamily, SocketFlags, SocketType};

use crate::{BoundPort, Error, Port, Protocol, Result};

/// Takes a port of the host (a free one if none is named) for a zone's port, in the network
/// namespace of the calling thread.
pub(crate) fn reserve(wanted: &Port) -> Result<(BoundPort, OwnedFd)> {
    if wanted.zone_port == 0 {
        return Err(Error::PortZero);
    }
    let host_ip = wanted.host_ip.unwrap_or(Ipv4Addr::UNSPECIFIED);
    let host_port = wanted.host_port.unwrap_or(0);
    let unusable = |source| Error::PortUnusable {
        port: host_port,
        protocol: wanted.protocol,
        host: host_ip,
        source,
    };
    let socket = bind(wanted.protocol, host_ip, host_port).map_err(unusable)?;
    let bound = rustix::net::getsockname(&socket)
        .and_then(SocketAddrV4::try_from)
        .map_err(|errno| unusable(errno.into()))?;
    let bound = BoundPort {
        protocol: wanted.protocol,
        host_ip,
        host_port: bound.port(),
        zone_port: wanted.zone_port,
    };
    Ok((bound, socket))
}

/// Takes a port that is published already.
pub(crate) fn reserve_again(port: &BoundPort) -> io::Result<OwnedFd> {
    bind(port.protocol, port.host_ip, port.host_port)
}

fn bind(protocol: Protocol, address: Ipv4Addr, port: u16) -> io::Result<OwnedFd> {
    let kind = match protocol {
        Protocol::Tcp => SocketType::STREAM,
        Protocol::Udp => SocketType::DGRAM,
    };
    let socket = rustix::net::socket_with(AddressFamily::INET, kind, SocketFlags::CLOEXEC, None)?;
    rustix::net::bind(&socket, &SocketAddrV4::new(address, port))?;
    Ok(socket)
}
