//! The links of the host.

use crate::{Mac, Result};

/// A link as the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    pub mac: Option<Mac>,
    /// Kind of a virtual link (`bridge`, `veth`, …); none for a device's and for loopback.
    pub kind: Option<String>,
    pub loopback: bool,
    /// Set up by the administrator (`IFF_UP`).
    pub up: bool,
    /// A cable with something at its other end (`IFF_LOWER_UP`).
    pub carrier: bool,
    pub mtu: u32,
    /// Index of the bridge that the link is a port of.
    pub master: Option<u32>,
    /// Free text beside the name (`ip link set alias`).
    pub alias: Option<String>,
}

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {}

impl Links {
    /// Speaks for the network namespace of the calling thread.
    pub fn open() -> Result<Links> {
        Err(crate::Error::NoSuchLink(String::new()))
    }

    pub fn list(&self) -> Result<Vec<Link>> {
        Ok(Vec::new())
    }
}
