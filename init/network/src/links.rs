//! The links of the host: list them, bring them up, give them addresses and routes, and learn when
//! one changes.

use std::io;
use std::net::Ipv4Addr;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use rustix::io::Errno;
use sys::netlink::Family;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::netlink::{Batch, Connection, Failure, Reply};
use crate::rtnl::{self, Change, Which};
use crate::{Cidr, Error, Mac, Result};

/// A link as the kernel tells of it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// Ethernet address; none where the link is no Ethernet.
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
    /// Number by which packet rules know several links at once (`ip link set group`).
    pub group: u32,
    /// Free text beside the name (`ip link set alias`).
    pub alias: Option<String>,
}

/// An address of a link.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Address {
    /// Index of the link.
    pub link: u32,
    pub address: Cidr,
    /// How long the kernel keeps it; none: for ever.
    pub lifetime: Option<Duration>,
}

/// A unicast route of the main table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    /// `0.0.0.0/0` for the default route.
    pub destination: Cidr,
    pub gateway: Option<Ipv4Addr>,
    /// Index of the link.
    pub link: u32,
    /// Source address that the host prefers on it.
    pub source: Option<Ipv4Addr>,
    /// The least is preferred.
    pub metric: u32,
    /// The gateway is reached directly although it is in no subnet of the link.
    pub on_link: bool,
    /// Learnt by DHCP.
    pub dhcp: bool,
}

impl Route {
    /// A default route by a gateway that another route of the link leads to.
    pub fn default_by(gateway: Ipv4Addr, link: u32) -> Self {
        Self {
            destination: Cidr::new(Ipv4Addr::UNSPECIFIED, 0),
            gateway: Some(gateway),
            ..Self::to_neighbour(gateway, link)
        }
    }

    /// The route to one address that is at the other end of the link.
    pub fn to_neighbour(address: Ipv4Addr, link: u32) -> Self {
        Self {
            destination: Cidr::new(address, 32),
            gateway: None,
            link,
            source: None,
            metric: 0,
            on_link: false,
            dhcp: false,
        }
    }
}

/// The links of one network namespace.
#[derive(Debug)]
pub struct Links {
    connection: Mutex<Connection>,
}

impl Links {
    /// Speaks for the network namespace of the calling thread.
    pub fn open() -> Result<Links> {
        Ok(Links {
            connection: Mutex::new(Connection::open(Family::Route)?),
        })
    }

    pub fn list(&self) -> Result<Vec<Link>> {
        let replies = self
            .connection()
            .dump(rtnl::LIST_LINKS, rtnl::list_links)
            .map_err(|f| f.to("list the network links"))?;
        Ok(replies.iter().filter_map(rtnl::link).collect())
    }

    /// The link of this name, or none.
    pub fn find(&self, name: &str) -> Result<Option<Link>> {
        let mut batch = Batch::new();
        rtnl::get_link(&mut batch, Which::Name(name));
        match self.connection().run(batch) {
            Ok(replies) => Ok(replies.iter().find_map(rtnl::link)),
            Err(f) if f.errno() == Some(Errno::NODEV) => Ok(None),
            Err(f) => Err(f.to(format!("look up the network link {name}"))),
        }
    }

    pub fn set_up(&self, name: &str) -> Result<()> {
        self.change(
            name,
            Change {
                up: Some(true),
                ..Change::default()
            },
            "bring up",
        )
    }

    pub fn set_down(&self, name: &str) -> Result<()> {
        self.change(
            name,
            Change {
                up: Some(false),
                ..Change::default()
            },
            "take down",
        )
    }

    pub fn set_mtu(&self, name: &str, mtu: u32) -> Result<()> {
        self.change(
            name,
            Change {
                mtu: Some(mtu),
                ..Change::default()
            },
            "set the MTU of",
        )
    }

    /// All IPv4 addresses of all links.
    pub fn addresses(&self) -> Result<Vec<Address>> {
        let replies = self
            .connection()
            .dump(rtnl::LIST_ADDRESSES, rtnl::list_addresses)
            .map_err(|f| f.to("list the addresses"))?;
        Ok(replies.iter().filter_map(rtnl::address).collect())
    }

    /// Gives the link an address, or an address that it has a new lifetime (rounded down to
    /// seconds, at least one; none is for ever).
    pub fn replace_address(&self, link: u32, address: Cidr, lifetime: Option<Duration>) -> Result<()> {
        let mut batch = Batch::new();
        rtnl::replace_address(&mut batch, link, address, lifetime);
        self.run(batch, || format!("set the address {address}"))
    }

    /// Takes an address, and the routes that need it, off a link. One that is not there is no
    /// error.
    pub fn remove_address(&self, link: u32, address: Cidr) -> Result<()> {
        let mut batch = Batch::new();
        rtnl::delete_address(&mut batch, link, address);
        self.forgiving(batch, &[Errno::ADDRNOTAVAIL, Errno::NODEV], || {
            format!("remove the address {address}")
        })
    }

    /// The unicast IPv4 routes of the main table.
    pub fn routes(&self) -> Result<Vec<Route>> {
        let replies = self
            .connection()
            .dump(rtnl::LIST_ROUTES, rtnl::list_routes)
            .map_err(|f| f.to("list the routes"))?;
        Ok(replies.iter().filter_map(rtnl::route).collect())
    }

    /// Sets a route; one to the same destination with the same metric is replaced.
    pub fn replace_route(&self, route: &Route) -> Result<()> {
        let mut batch = Batch::new();
        rtnl::replace_route(&mut batch, route);
        self.run(batch, || format!("set the route to {}", route.destination))
    }

    /// Removes a route. One that is not there is no error.
    pub fn remove_route(&self, route: &Route) -> Result<()> {
        let mut batch = Batch::new();
        rtnl::delete_route(&mut batch, route);
        self.forgiving(batch, &[Errno::SRCH, Errno::NODEV], || {
            format!("remove the route to {}", route.destination)
        })
    }

    fn change(&self, name: &str, change: Change<'_>, verb: &str) -> Result<()> {
        let mut batch = Batch::new();
        rtnl::set_link(&mut batch, Which::Name(name), change);
        match self.connection().run(batch) {
            Ok(_) => Ok(()),
            Err(f) if f.errno() == Some(Errno::NODEV) => Err(Error::NoSuchLink(name.to_owned())),
            Err(f) => Err(f.to(format!("{verb} the network link {name}"))),
        }
    }

    fn run(&self, batch: Batch, action: impl FnOnce() -> String) -> Result<()> {
        self.forgiving(batch, &[], action)
    }

    fn forgiving(&self, batch: Batch, forgiven: &[Errno], action: impl FnOnce() -> String) -> Result<()> {
        let outcome: Result<Vec<Reply>, Failure> = self.connection().run(batch);
        match outcome {
            Ok(_) => Ok(()),
            Err(f) if f.errno().is_some_and(|e| forgiven.contains(&e)) => Ok(()),
            Err(f) => Err(f.to(action())),
        }
    }

    fn connection(&self) -> MutexGuard<'_, Connection> {
        // A connection has no state that a panic could leave half changed.
        self.connection.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Makes a socket one that can be waited for.
#[expect(
    deprecated,
    reason = "the newer way is unsafe, as a descriptor might change under it; an owned socket's does not"
)]
pub(crate) fn readable<T: AsRawFd>(socket: T) -> io::Result<AsyncFd<T>> {
    AsyncFd::with_interest(socket, Interest::READABLE)
}

/// Tells that links changed.
#[derive(Debug)]
pub struct LinkWatch {
    socket: AsyncFd<OwnedFd>,
    buffer: Vec<u8>,
}

impl LinkWatch {
    /// Watches the network namespace of the calling thread, in a tokio runtime. Open it before
    /// the links are listed, so that no change is missed between the two.
    pub fn open() -> Result<LinkWatch> {
        let open = || -> io::Result<AsyncFd<OwnedFd>> {
            let socket = sys::netlink::open(Family::Route, rtnl::GROUP_LINK)?;
            readable(socket)
        };
        Ok(LinkWatch {
            socket: open().map_err(|source| Error::Io {
                action: "watch the network links".to_owned(),
                source,
            })?,
            buffer: vec![0; 64 << 10],
        })
    }

    /// Returns when something about a link may have changed since the last return (or the
    /// opening). What it was, [`Links::list`] tells.
    pub async fn changed(&mut self) -> Result<()> {
        let failed = |source| Error::Io {
            action: "watch the network links".to_owned(),
            source,
        };
        loop {
            let mut ready = self.socket.readable().await.map_err(failed)?;
            let mut any = false;
            loop {
                match sys::netlink::receive(self.socket.get_ref(), &mut self.buffer, false) {
                    Ok(_) => any = true,
                    Err(e) if e.kind() == io::ErrorKind::WouldBlock => break,
                    // Changes were lost for want of room, so there were some.
                    Err(e) if Errno::from_io_error(&e) == Some(Errno::NOBUFS) => any = true,
                    Err(e) => return Err(failed(e)),
                }
            }
            ready.clear_ready();
            if any {
                return Ok(());
            }
        }
    }
}
