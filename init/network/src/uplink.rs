//! All links that lead out of the machine, each with a DHCP client of its own.
//!
//! ```text
//! let uplinks = Uplinks::start(UplinkConfig::default())?;   // in a tokio runtime; returns at once
//! let mut status = uplinks.watch();                         // tokio watch::Receiver<Status>
//! status.wait_for(|s| s.online()).await
//! status.borrow().dns                                       // for resolv.conf of zones, resolver
//! ```

use std::net::Ipv4Addr;

use tokio::sync::watch;

use crate::dhcp::Lease;
use crate::links::Link;
use crate::{Error, Result};

#[derive(Debug, Clone)]
pub struct UplinkConfig {
    /// Name that the DHCP servers are told.
    pub hostname: Option<String>,
    /// Which links are uplinks; the default takes every Ethernet device and no virtual link.
    pub select: fn(&Link) -> bool,
}

impl Default for UplinkConfig {
    fn default() -> Self {
        Self {
            hostname: None,
            select: |link| !link.loopback && link.kind.is_none() && link.mac.is_some(),
        }
    }
}

/// What is known of the uplinks at a moment.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Status {
    pub uplinks: Vec<Uplink>,
    /// Name servers of all leases, without repetition.
    pub dns: Vec<Ipv4Addr>,
    /// Search domains of all leases, without repetition.
    pub search: Vec<String>,
}

impl Status {
    /// Whether any uplink has an address.
    pub fn online(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.lease.is_some())
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    pub link: String,
    pub carrier: bool,
    pub lease: Option<Lease>,
    /// The last thing that went wrong, as a sentence.
    pub trouble: Option<String>,
}

/// The running clients; dropping it stops them and leaves addresses and routes as they are.
#[derive(Debug)]
pub struct Uplinks {
    status: watch::Receiver<Status>,
}

impl Uplinks {
    /// Brings every uplink up, runs a DHCP client on each that has a carrier, now or later, and
    /// keeps address, routes and MTU as the lease says. Returns without waiting for any of it.
    /// Must be called in a tokio runtime.
    pub fn start(config: UplinkConfig) -> Result<Uplinks> {
        let _ = config;
        Err(Error::NoSuchLink(String::new()))
    }

    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}
