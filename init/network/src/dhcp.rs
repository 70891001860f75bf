//! The DHCPv4 client of one link (RFC 2131).

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::Cidr;

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub router: Option<Ipv4Addr>,
    /// Routes beside the default one (RFC 3442): destination and gateway.
    pub routes: Vec<(Cidr, Ipv4Addr)>,
    pub dns: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    pub hostname: Option<String>,
    pub mtu: Option<u16>,
    /// Identifier of the server.
    pub server: Ipv4Addr,
    /// None: for ever.
    pub lease_time: Option<Duration>,
    /// When renewal (T1) and rebinding (T2) begin, counted from the grant.
    pub renew_after: Duration,
    pub rebind_after: Duration,
}
