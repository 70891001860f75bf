//! The words of the package: addresses, endpoints, ports.

use std::fmt;
use std::net::Ipv4Addr;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::Protocol;

/// An IPv4 address with the length of its network's prefix, such as `172.17.0.1/16`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cidr {
    pub address: Ipv4Addr,
    /// 0 to 32.
    pub prefix: u8,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address with a prefix length; write it as `172.17.0.1/16`")]
pub struct ParseCidrError(String);

impl Cidr {
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let prefix = if prefix > 32 { 32 } else { prefix };
        Self { address, prefix }
    }

    pub fn netmask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask_bits())
    }

    /// The address with the host's bits zero.
    pub fn network(self) -> Self {
        Self {
            address: Ipv4Addr::from_bits(self.address.to_bits() & self.mask_bits()),
            prefix: self.prefix,
        }
    }

    /// The address with the host's bits one.
    pub fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.address.to_bits() | !self.mask_bits())
    }

    pub fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask_bits() == self.network().address.to_bits()
    }

    fn mask_bits(self) -> u32 {
        u32::MAX
            .checked_shl(32 - u32::from(self.prefix.min(32)))
            .unwrap_or(0)
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 32).ok_or_else(wrong)?;
        Ok(Self {
            address: address.parse().map_err(|_| wrong())?,
            prefix,
        })
    }
}

/// An Ethernet address, displayed as `02:42:ac:11:00:02`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash, Serialize, Deserialize)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    pub const BROADCAST: Mac = Mac([0xff; 6]);

    /// The locally administered address that belongs to an IPv4 address of a zone. As it is a
    /// function of the address, a neighbour's cache stays right when an address is used again.
    pub fn of(address: Ipv4Addr) -> Self {
        let [a, b, c, d] = address.octets();
        Self([0x02, 0x42, a, b, c, d])
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// Where a zone stands on the network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    /// Address of the zone's own link `eth0`.
    pub mac: Mac,
    /// Name of the link's other end on the host, a port of the bridge.
    pub host_link: String,
}

/// A port that a zone asks to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub protocol: Protocol,
    /// The host's address to publish at; none means all of them.
    pub host_ip: Option<Ipv4Addr>,
    /// The host's port; none lets the kernel choose a free one.
    pub host_port: Option<u16>,
    /// The port in the zone.
    pub zone_port: u16,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BoundPort {
    pub protocol: Protocol,
    /// `0.0.0.0` for all addresses of the host.
    pub host_ip: Ipv4Addr,
    pub host_port: u16,
    pub zone_port: u16,
}
