//! What is stored of a network of one's own, and what the machine's package is told of it.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use network::{Bridge, Cidr, Cidr6, Outside};
use serde::{Deserialize, Serialize};
use store::{StateDir, Store};

/// Kind of the stored objects, see [`Store::objects`].
const KIND: &str = "networks";

/// A network that somebody made. Docker's three own ones have no record.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Network {
    pub(crate) id: String,
    pub(crate) name: String,
    /// RFC 3339.
    pub(crate) created: String,
    /// Name of the link that bears its gateway's addresses.
    pub(crate) link: String,
    pub(crate) pool: Pool,
    pub(crate) pool6: Option<Pool6>,
    pub(crate) internal: bool,
    pub(crate) attachable: bool,
    pub(crate) settings: Settings,
    pub(crate) labels: BTreeMap<String, String>,
    /// As they were given; [`Settings`] is what they mean.
    pub(crate) options: BTreeMap<String, String>,
    pub(crate) ipam_options: BTreeMap<String, String>,
}

/// The addresses of a network.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool {
    pub(crate) gateway: Cidr,
    /// What addresses are given from; none: from all.
    pub(crate) range: Option<Cidr>,
    /// Given to nobody, by name.
    pub(crate) spared: BTreeMap<String, Ipv4Addr>,
    /// Somebody chose the subnet, so that containers may choose addresses.
    pub(crate) chosen: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Pool6 {
    pub(crate) gateway: Cidr6,
    pub(crate) spared: BTreeMap<String, std::net::Ipv6Addr>,
    pub(crate) chosen: bool,
}

/// What the driver's options mean.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Settings {
    pub(crate) together: bool,
    pub(crate) masquerade: bool,
    /// Where ports are published that name no address.
    pub(crate) publish_at: Option<Ipv4Addr>,
    pub(crate) mtu: Option<u32>,
}

impl Network {
    pub(crate) fn bridge(&self) -> Bridge {
        let spared = self.pool.spared.values().copied().map(IpAddr::from);
        let spared6 = self.pool6.iter().flat_map(|pool| pool.spared.values());
        Bridge {
            name: self.link.clone(),
            gateway: self.pool.gateway,
            gateway6: self.pool6.as_ref().map(|pool| pool.gateway),
            outside: match (self.internal, self.settings.masquerade) {
                (true, _) => Outside::None,
                (false, true) => Outside::Masqueraded,
                (false, false) => Outside::Routed,
            },
            together: self.settings.together,
            mtu: self.settings.mtu,
            range: self.pool.range,
            spared: spared.chain(spared6.copied().map(IpAddr::from)).collect(),
        }
    }
}

pub(super) fn states(store: &Store) -> Result<StateDir, store::Error> {
    store.objects(KIND)
}
