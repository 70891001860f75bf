//! Ports of this machine's loopback.

use std::io;
use std::net::{Ipv4Addr, TcpListener, UdpSocket};

use handover::Protocol;

/// A port that is free now and not `given` away already: the wanted one, or else any.
pub(super) fn free(protocol: Protocol, wanted: u16, given: &[(Protocol, u16)]) -> io::Result<u16> {
    if !given.contains(&(protocol, wanted))
        && let Ok(port) = bind(protocol, wanted)
    {
        return Ok(port);
    }
    loop {
        let any = bind(protocol, 0)?;
        if !given.contains(&(protocol, any)) {
            return Ok(any);
        }
    }
}

/// Binds a port and lets go of it again.
fn bind(protocol: Protocol, port: u16) -> io::Result<u16> {
    let address = (Ipv4Addr::LOCALHOST, port);
    let bound = match protocol {
        Protocol::Tcp => TcpListener::bind(address)?.local_addr()?,
        Protocol::Udp => UdpSocket::bind(address)?.local_addr()?,
    };
    Ok(bound.port())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_that_is_taken_is_not_given() {
        let taken = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = taken.local_addr().unwrap().port();
        let other = free(Protocol::Tcp, port, &[]).unwrap();
        assert!(other != port && other != 0);
    }

    #[test]
    fn a_port_is_given_once() {
        let one = free(Protocol::Tcp, 0, &[]).unwrap();
        let given = [(Protocol::Tcp, one)];
        assert_ne!(free(Protocol::Tcp, one, &given).unwrap(), one);
    }
}
