//! All links that lead out of the machine, each with a DHCP client of its own.
//!
//! ```text
//! let uplinks = Uplinks::start(UplinkConfig::default())?;   // in a tokio runtime; returns at once
//! let mut status = uplinks.watch();                         // tokio watch::Receiver<Status>
//! status.wait_for(|s| s.online()).await
//! status.borrow().dns()                                     // for resolv.conf of zones, resolver
//! ```

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::sync::Arc;

use tokio::sync::watch;
use tokio::task::JoinHandle;

use crate::dhcp::{Client, Config, Event, Lease};
use crate::links::{Link, LinkWatch, Links, Route};
use crate::{Cidr, Error, Result};

/// Added to the link's index for the metric of its routes: the first link is preferred, and any
/// route without a metric is preferred to all of them.
const METRIC: u32 = 100;

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
    /// In the order of the kernel's indices.
    pub uplinks: Vec<Uplink>,
}

impl Status {
    /// Whether any uplink has an address.
    pub fn online(&self) -> bool {
        self.uplinks.iter().any(|uplink| uplink.lease.is_some())
    }

    /// Name servers of all leases, without repetition.
    pub fn dns(&self) -> Vec<Ipv4Addr> {
        unique(self.leases().flat_map(|lease| lease.dns.iter().copied()))
    }

    /// Search domains of all leases, without repetition.
    pub fn search(&self) -> Vec<String> {
        unique(self.leases().filter_map(|lease| lease.domain.clone()))
    }

    fn leases(&self) -> impl Iterator<Item = &Lease> {
        self.uplinks.iter().filter_map(|u| u.lease.as_ref())
    }

    fn change(&mut self, link: &str, change: impl FnOnce(&mut Uplink)) {
        if let Some(uplink) = self.uplinks.iter_mut().find(|u| u.link == link) {
            change(uplink);
        }
    }
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uplink {
    /// Name of the link.
    pub link: String,
    pub carrier: bool,
    pub lease: Option<Lease>,
    /// The last thing that went wrong, as a sentence; none when all is well again.
    pub trouble: Option<String>,
}

/// The running clients; dropping it stops them and leaves addresses and routes as they are.
#[derive(Debug)]
pub struct Uplinks {
    status: watch::Receiver<Status>,
    manager: JoinHandle<()>,
}

impl Drop for Uplinks {
    fn drop(&mut self) {
        self.manager.abort();
    }
}

impl Uplinks {
    /// Brings every uplink up, runs a DHCP client on each that has a carrier, now or later, and
    /// keeps address, routes and MTU as the lease says. Returns without waiting for any of it.
    /// Must be called in a tokio runtime, in the network namespace that it is for.
    pub fn start(config: UplinkConfig) -> Result<Uplinks> {
        let watch = LinkWatch::open()?;
        let (sender, status) = watch::channel(Status::default());
        let manager = Manager {
            config,
            links: Arc::new(Links::open()?),
            status: Arc::new(sender),
            clients: BTreeMap::new(),
        };
        Ok(Uplinks {
            status,
            manager: tokio::spawn(manager.run(watch)),
        })
    }

    /// The status now and whenever it changes.
    pub fn watch(&self) -> watch::Receiver<Status> {
        self.status.clone()
    }
}

struct Manager {
    config: UplinkConfig,
    links: Arc<Links>,
    status: Arc<watch::Sender<Status>>,
    /// By the link's index.
    clients: BTreeMap<u32, RunningClient>,
}

/// A client's task, which ends with it.
struct RunningClient(JoinHandle<()>);

impl Drop for RunningClient {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Manager {
    async fn run(mut self, mut watch: LinkWatch) {
        loop {
            if let Ok(links) = self.links.list() {
                self.adjust(links);
            }
            if watch.changed().await.is_err() {
                return;
            }
        }
    }

    /// Makes the clients those of the uplinks with a carrier.
    fn adjust(&mut self, links: Vec<Link>) {
        let uplinks: Vec<Link> = links.into_iter().filter(self.config.select).collect();
        for link in uplinks.iter().filter(|link| !link.up) {
            // The change is told by the watch; a link that cannot be brought up has no carrier.
            if let Err(error) = self.links.set_up(&link.name) {
                let trouble = sentence(&error);
                self.status.send_modify(|status| {
                    status.change(&link.name, |uplink| uplink.trouble = Some(trouble));
                });
            }
        }
        let connected = |index: &u32| uplinks.iter().any(|link| link.index == *index && link.carrier);
        // A client begins anew when the cable is back: it may lead to another network.
        self.clients
            .retain(|index, client| connected(index) && !client.0.is_finished());
        self.status.send_if_modified(|status| {
            let now: Vec<Uplink> = uplinks.iter().map(|link| carried_over(status, link)).collect();
            let changed = status.uplinks != now;
            status.uplinks = now;
            changed
        });
        for link in uplinks.iter().filter(|link| link.carrier) {
            if !self.clients.contains_key(&link.index) {
                let task = tokio::spawn(serve(
                    link.clone(),
                    self.config.hostname.clone(),
                    Arc::clone(&self.links),
                    Arc::clone(&self.status),
                ));
                self.clients.insert(link.index, RunningClient(task));
            }
        }
    }
}

/// What the status says of a link, with its carrier as it is now.
fn carried_over(status: &Status, link: &Link) -> Uplink {
    let old = status.uplinks.iter().find(|u| u.link == link.name);
    Uplink {
        link: link.name.clone(),
        carrier: link.carrier,
        lease: old.and_then(|u| u.lease.clone()),
        trouble: old.and_then(|u| u.trouble.clone()),
    }
}

/// Runs the client of one link and does on the link what it says.
async fn serve(link: Link, hostname: Option<String>, links: Arc<Links>, status: Arc<watch::Sender<Status>>) {
    let say = |trouble: Option<String>| {
        status.send_modify(|s| s.change(&link.name, |uplink| uplink.trouble = trouble));
    };
    let config = Config {
        hostname,
        former: former_address(&links, &link),
    };
    let client = match Client::new(&link, config) {
        Ok(client) => client,
        Err(error) => return say(Some(sentence(&error))),
    };
    let mut current = status
        .borrow()
        .uplinks
        .iter()
        .find(|u| u.link == link.name)
        .and_then(|u| u.lease.clone());
    let error = client
        .run(|event| match event {
            Event::Bound(lease) => {
                let trouble = apply(&links, &link, &lease, current.as_ref()).err();
                current = Some(lease.clone());
                status.send_modify(|s| {
                    s.change(&link.name, |uplink| {
                        uplink.lease = Some(lease);
                        uplink.trouble = trouble.as_ref().map(|e| sentence(e));
                    });
                });
            }
            Event::Lost(lease) => {
                current = None;
                let outcome = links.remove_address(link.index, lease.cidr());
                let trouble = match outcome {
                    Ok(()) => format!("The DHCP lease of {} on {} was lost", lease.address, link.name),
                    Err(error) => sentence(&error),
                };
                status.send_modify(|s| {
                    s.change(&link.name, |uplink| {
                        uplink.lease = None;
                        uplink.trouble = Some(trouble);
                    });
                });
            }
            Event::Trouble(trouble) => say(Some(trouble)),
        })
        .await;
    say(Some(sentence(&error)));
}

/// The address that an earlier client got for the link: leased ones are those with a lifetime.
fn former_address(links: &Links, link: &Link) -> Option<Ipv4Addr> {
    links
        .addresses()
        .ok()?
        .into_iter()
        .find(|address| address.link == link.index && address.lifetime.is_some())
        .map(|address| address.address.address)
}

/// Makes the link what the lease says. The kernel drops the address itself when its time is over,
/// even if this process is gone by then.
fn apply(links: &Links, link: &Link, lease: &Lease, old: Option<&Lease>) -> Result<(), Error> {
    if let Some(old) = old.filter(|old| old.cidr() != lease.cidr()) {
        links.remove_address(link.index, old.cidr())?;
    }
    if let Some(mtu) = lease.mtu.map(u32::from).filter(|mtu| *mtu != link.mtu) {
        links.set_mtu(&link.name, mtu)?;
    }
    links.replace_address(link.index, lease.cidr(), lease.lease_time)?;
    let wanted = routes(link.index, lease);
    for route in &wanted {
        links.replace_route(route)?;
    }
    let stale = |route: &Route| {
        let kept = wanted
            .iter()
            .any(|w| (w.destination, w.gateway) == (route.destination, route.gateway));
        route.dhcp && route.link == link.index && !kept
    };
    for route in links.routes()?.iter().filter(|route| stale(route)) {
        links.remove_route(route)?;
    }
    Ok(())
}

/// The routes of a lease, those on the link first, as others may lead through them.
fn routes(link: u32, lease: &Lease) -> Vec<Route> {
    let route = |destination: Cidr, by: Ipv4Addr| {
        let gateway = Some(by).filter(|by| !by.is_unspecified());
        Route {
            destination: destination.network(),
            gateway,
            link,
            source: Some(lease.address),
            metric: METRIC + link,
            on_link: gateway.is_some_and(|gateway| !lease.cidr().contains(gateway)),
            dhcp: true,
        }
    };
    let mut routes: Vec<Route> = if lease.routes.is_empty() {
        let everything = Cidr::new(Ipv4Addr::UNSPECIFIED, 0);
        lease
            .router
            .map(|router| route(everything, router))
            .into_iter()
            .collect()
    } else {
        lease.routes.iter().map(|(to, by)| route(*to, *by)).collect()
    };
    routes.sort_by_key(|route| route.gateway.is_some());
    routes
}

fn unique<T: PartialEq>(items: impl Iterator<Item = T>) -> Vec<T> {
    items.fold(Vec::new(), |mut kept, item| {
        if !kept.contains(&item) {
            kept.push(item);
        }
        kept
    })
}

/// An error with its causes in one line.
fn sentence(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(source) = cause {
        text.push_str(&format!(": {source}"));
        cause = source.source();
    }
    text
}
