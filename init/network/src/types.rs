//! The words of the package: addresses, endpoints, ports.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::str::FromStr;

use serde::{Deserialize, Serialize};

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

impl FromStr for Mac {
    type Err = ParseMacError;

    /// Six pairs of hexadecimal digits between colons or dashes.
    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseMacError(text.to_owned());
        let mut bytes = [0; 6];
        let mut parts = text.split([':', '-']);
        for byte in &mut bytes {
            let part = parts.next().filter(|part| part.len() == 2).ok_or_else(wrong)?;
            *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
        }
        // Neither that of a group nor that of nobody.
        let usable = bytes[0] & 1 == 0 && bytes != [0; 6];
        (parts.next().is_none() && usable)
            .then_some(Self(bytes))
            .ok_or_else(wrong)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is no Ethernet address of one card; write it as `02:42:ac:11:00:02`")]
pub struct ParseMacError(String);

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// An IPv6 address with the length of its network's prefix, such as `fd00::1/64`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Cidr6 {
    pub address: Ipv6Addr,
    /// 0 to 128.
    pub prefix: u8,
}

impl Cidr6 {
    pub const fn new(address: Ipv6Addr, prefix: u8) -> Self {
        let prefix = if prefix > 128 { 128 } else { prefix };
        Self { address, prefix }
    }

    /// The address with the host's bits zero.
    pub fn network(self) -> Self {
        Self::new(
            Ipv6Addr::from_bits(self.address.to_bits() & self.mask_bits()),
            self.prefix,
        )
    }

    /// The address with the host's bits one.
    pub fn last(self) -> Ipv6Addr {
        Ipv6Addr::from_bits(self.address.to_bits() | !self.mask_bits())
    }

    pub fn contains(self, address: Ipv6Addr) -> bool {
        address.to_bits() & self.mask_bits() == self.network().address.to_bits()
    }

    fn mask_bits(self) -> u128 {
        u128::MAX
            .checked_shl(128 - u32::from(self.prefix.min(128)))
            .unwrap_or(0)
    }
}

impl fmt::Display for Cidr6 {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

impl FromStr for Cidr6 {
    type Err = ParseCidrError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let wrong = || ParseCidrError(text.to_owned());
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let prefix = prefix.parse().ok().filter(|p| *p <= 128).ok_or_else(wrong)?;
        Ok(Self {
            address: address.parse().map_err(|_| wrong())?,
            prefix,
        })
    }
}

/// What a published port speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    pub fn name(self) -> &'static str {
        match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        }
    }
}

/// How far the zones of a network reach.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outside {
    /// By the host's own addresses.
    Masqueraded,
    /// By their own; who is outside must know the way back.
    Routed,
    /// Not beyond each other and the name service.
    None,
}

/// A network of zones that the host routes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bridge {
    /// Name of the link that bears the gateway's addresses, and of the network in this package: 1 to 15
    /// letters, digits, `_`, `.` or `-`.
    pub name: String,
    /// The host's address on it, with the subnet's prefix length (8 to 30).
    pub gateway: Cidr,
    /// The same of IPv6, where the network has that (a prefix length of at most 126).
    pub gateway6: Option<Cidr6>,
    pub outside: Outside,
    /// Whether its zones reach each other.
    pub together: bool,
    /// Bytes of the largest packet; none: the kernel's usual 1500.
    pub mtu: Option<u32>,
    /// The part of the subnet that addresses are given from; none: all of it.
    pub range: Option<Cidr>,
    /// Addresses of the subnet that are given to nobody.
    pub spared: Vec<IpAddr>,
}

impl Bridge {
    /// One that is like the usual one but for these.
    pub fn new(name: &str, gateway: Cidr) -> Self {
        Self {
            name: name.to_owned(),
            gateway,
            gateway6: None,
            outside: Outside::Masqueraded,
            together: true,
            mtu: None,
            range: None,
            spared: Vec::new(),
        }
    }
}

/// What a zone asks of a network that it joins.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Join {
    /// The network's [`Bridge::name`].
    pub network: String,
    /// None: a free one.
    pub address: Option<Ipv4Addr>,
    pub address6: Option<Ipv6Addr>,
    /// None: [`Mac::of`] the address.
    pub mac: Option<Mac>,
}

/// Where a zone stands on a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint {
    /// The network's [`Bridge::name`].
    pub network: String,
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub gateway: Ipv4Addr,
    /// Address and gateway of IPv6, where the network has them.
    pub v6: Option<Endpoint6>,
    /// Address of the zone's own link.
    pub mac: Mac,
    /// Name of the zone's own link, such as `eth0`.
    pub link: String,
    /// Name of the link's other end on the host.
    pub host_link: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Endpoint6 {
    pub address: Ipv6Addr,
    pub prefix: u8,
    pub gateway: Ipv6Addr,
}

/// Which of a zone's networks leads where.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Ways<'a> {
    /// The one that leads to all that is on none of its networks; none: nothing does.
    pub outside: Option<&'a str>,
    /// The one that leads to the name service; none: there is none for the zone.
    pub names: Option<&'a str>,
}

/// A port that a zone asks to be published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Port {
    pub protocol: Protocol,
    /// The host's address to publish at; `0.0.0.0` and `::` mean all of their kind, none means all.
    pub host_ip: Option<IpAddr>,
    /// The first and the last of the host's ports that will do; none lets the kernel choose a free one.
    pub host_ports: Option<(u16, u16)>,
    /// The port in the zone.
    pub zone_port: u16,
}

/// A port that is published.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct BoundPort {
    pub protocol: Protocol,
    /// `0.0.0.0` or `::` for all addresses of the host of that kind.
    pub host_ip: IpAddr,
    pub host_port: u16,
    pub zone_port: u16,
}
