//! What can go wrong with the network, said so that the reader knows what to do next.

use std::io;
use std::net::IpAddr;

use crate::Protocol;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A request that the kernel refused; `hint` is the kernel's own explanation, if it gave one.
    #[error("The kernel refused to {action}{hint}")]
    Kernel {
        action: String,
        hint: Hint,
        source: io::Error,
    },
    #[error("The kernel's answer to the request to {action} could not be read: {reason}")]
    Answer { action: String, reason: &'static str },
    #[error("Could not {action}")]
    Io { action: String, source: io::Error },
    #[error("The network link {0} does not exist; `GET /monobloc/v1/status` lists those that do")]
    NoSuchLink(String),
    #[error("The network {name} has no free address left in {subnet}; remove containers that are not needed")]
    Exhausted { name: String, subnet: String },
    #[error("The address {address} is taken by the container {holder}; choose another or none")]
    AddressTaken { address: IpAddr, holder: String },
    #[error("The address {address} is not a usable one of the network {subnet}; choose another or none")]
    AddressOutside { address: IpAddr, subnet: String },
    #[error("The network link {0} is there and is no bridge; remove it or choose another name")]
    NotABridge(String),
    #[error("The container {0} is not on the network, so it cannot publish ports; start it first")]
    NotAttached(String),
    #[error("The zone id {0:?} is not usable; 1 to 128 letters, digits, `_`, `.` or `-` are")]
    ZoneId(String),
    #[error("The name {0:?} is not usable for a network link; 1 to 15 letters, digits, `_`, `.` or `-` are")]
    LinkName(String),
    #[error("The network {0} has no room for zones; use a prefix length from 8 to 30, of IPv6 from 8 to 126")]
    Subnet(String),
    #[error("The network {0} overlaps {1}, which is there already; choose another subnet")]
    Overlap(String, String),
    #[error("There is no network {0} here")]
    NoSuchNetwork(String),
    #[error("There is a network {0} already; choose another name")]
    NetworkExists(String),
    #[error("The network {name} is in use by {count} containers; disconnect them first")]
    InUse { name: String, count: usize },
    #[error("The container {zone} is on the network {network} already")]
    JoinedAlready { zone: String, network: String },
    #[error("Port {port}/{protocol} of {host} is published by the container {holder} already; choose another host port", protocol = .protocol.name())]
    PortPublished {
        port: u16,
        protocol: Protocol,
        host: IpAddr,
        holder: String,
    },
    /// The port is held by something that is no zone, such as the API itself.
    #[error("Port {port}/{protocol} of {host} cannot be published; choose another host port or host address", protocol = .protocol.name())]
    PortUnusable {
        port: u16,
        protocol: Protocol,
        host: IpAddr,
        source: io::Error,
    },
    #[error(
        "A container without an IPv6 address cannot be reached at {0}; choose an address of IPv4 or connect it to a network with IPv6"
    )]
    PortFamily(std::net::Ipv6Addr),
    #[error("Port 0 of a container cannot be published; name the port it listens on")]
    PortZero,
}

/// The kernel's extended acknowledgement text, displayed as `: text` or nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Hint(pub(crate) Option<String>);

impl std::fmt::Display for Hint {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match &self.0 {
            Some(text) => write!(f, " ({text})"),
            None => Ok(()),
        }
    }
}
