//! The appliance's network: links and their addresses, the uplinks' DHCP, the bridge that the zones
//! hang on, and the packet rules (NAT, forwarding, published ports).
//!
//! Everything is said to the kernel in netlink by this package itself; no helper program runs. What
//! the kernel can tell is not stored: after a restart of the supervisor [`Network::open`] reads the
//! bridge, the zones' links and the published ports back from the kernel.
//!
//! - [`links`]: list, bring up, address, route, watch for carrier
//! - [`dhcp`]: the DHCPv4 client of one link
//! - [`uplink`]: all links that lead out of the machine, each with its DHCP client
//! - [`Network`]: one bridge, the zones on it and their published ports
//!
//! Calls of [`Network`] and [`links::Links`] are synchronous: the kernel answers them in
//! microseconds to a few milliseconds, without waiting for the outside world.

#![forbid(unsafe_code)]

mod bridge;
pub mod dhcp;
mod error;
mod firewall;
pub mod links;
mod netlink;
mod nft;
mod ports;
mod rtnl;
mod types;
pub mod uplink;

pub use bridge::{Network, set_loopback_up};
pub use error::{Error, Result};
pub use handover::Protocol;
pub use types::{BoundPort, Cidr, Endpoint, Mac, ParseCidrError, Port};
