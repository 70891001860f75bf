//! One bridge, the zones on it and their published ports.

use std::net::Ipv4Addr;
use std::os::fd::BorrowedFd;

use crate::{BoundPort, Cidr, Endpoint, Port, Result};

/// A bridge of the host with its address, NAT to the other links, and the zones on it.
///
/// All methods may be called from any thread. A zone id is the container's id.
#[derive(Debug)]
pub struct Network {
    name: String,
    gateway: Cidr,
}

impl Network {
    /// Makes the bridge `name` (contract: `mono0`) with the address `gateway` (contract:
    /// `172.17.0.1/16`), or finds it as it is with the zones and published ports it has.
    /// Works in the network namespace of the calling thread.
    pub fn open(name: &str, gateway: Cidr) -> Result<Network> {
        let _ = (name, gateway);
        Err(unfinished("open the network"))
    }

    pub fn name(&self) -> &str {
        &self.name
    }

    /// The bridge's own address with the subnet's prefix.
    pub fn gateway(&self) -> Cidr {
        self.gateway
    }

    /// Gives the zone a link `eth0` in its namespace `netns`, with an address (`wanted`, or a free
    /// one) and a default route, and brings its loopback up. On an error nothing is left behind.
    pub fn attach(&self, zone_id: &str, netns: BorrowedFd<'_>, wanted: Option<Ipv4Addr>) -> Result<Endpoint> {
        let _ = (zone_id, netns, wanted);
        Err(unfinished("attach a zone"))
    }

    /// Takes the zone off the network: published ports, link, address. A zone that is not on it,
    /// or whose namespace is gone, is no error.
    pub fn detach(&self, zone_id: &str) -> Result<()> {
        let _ = zone_id;
        Err(unfinished("detach a zone"))
    }

    /// Publishes ports of an attached zone in addition to those it has; all or none.
    pub fn publish(&self, zone_id: &str, ports: &[Port]) -> Result<Vec<BoundPort>> {
        let _ = (zone_id, ports);
        Err(unfinished("publish ports"))
    }

    /// Withdraws all published ports of the zone. One that has none is no error.
    pub fn unpublish(&self, zone_id: &str) -> Result<()> {
        let _ = zone_id;
        Err(unfinished("withdraw ports"))
    }

    /// The zones on the network (also those found by [`Network::open`]), by zone id.
    pub fn endpoints(&self) -> Vec<(String, Endpoint)> {
        Vec::new()
    }

    pub fn endpoint(&self, zone_id: &str) -> Option<Endpoint> {
        self.endpoints()
            .into_iter()
            .find_map(|(id, endpoint)| (id == zone_id).then_some(endpoint))
    }

    /// The zone's published ports (also those found by [`Network::open`]), in order.
    pub fn published(&self, zone_id: &str) -> Vec<BoundPort> {
        let _ = zone_id;
        Vec::new()
    }
}

fn unfinished(action: &str) -> crate::Error {
    crate::Error::Io {
        action: action.to_owned(),
        source: std::io::ErrorKind::Unsupported.into(),
    }
}
