//! The appliance's network: links and their addresses, the uplinks' DHCP, the networks that the zones
//! are on, and the packet rules (NAT, forwarding, published ports).
//!
//! Everything is said to the kernel in netlink by this package itself; no helper program runs. What
//! the kernel can tell is not stored: after a restart of the supervisor [`Networks::open`] reads the
//! zones' links and the published ports back from the kernel.
//!
//! - [`links`]: list, bring up, address, route, watch for carrier
//! - [`dhcp`]: the DHCPv4 client of one link
//! - [`uplink`]: all links that lead out of the machine, each with its DHCP client
//! - [`names`]: the name service of the zones
//! - [`Networks`]: the networks, the zones on them and their published ports
//!
//! Calls of [`Networks`] and [`links::Links`] are synchronous: the kernel answers them in
//! microseconds to a few milliseconds, without waiting for the outside world.

#![forbid(unsafe_code)]

mod addresses;
mod bridge;
pub mod dhcp;
mod error;
mod firewall;
pub mod links;
pub mod names;
mod netlink;
mod networks;
mod nft;
mod place;
mod ports;
mod rtnl;
mod types;
pub mod uplink;

pub use error::{Error, Result};
pub use networks::Networks;
pub use place::set_loopback_up;
pub use types::{
    BoundPort, Bridge, Cidr, Cidr6, Endpoint, Endpoint6, Join, Mac, Outside, ParseCidrError, ParseMacError,
    Port, Protocol, Ways,
};

/// The address by which zones reach the name service of their networks; Docker's own.
pub const NAME_SERVICE: std::net::Ipv4Addr = std::net::Ipv4Addr::new(127, 0, 0, 11);
