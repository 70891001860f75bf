//! The link that bears a network's gateway addresses, and what the host's kernel must be told for it.

use std::fs;
use std::io::ErrorKind;

use rustix::io::Errno;

use crate::links::Link;
use crate::netlink::{Batch, Connection};
use crate::place::LOOPBACK_INDEX;
use crate::rtnl::{self, Change, Which};
use crate::{Bridge, Error, Mac, Result};

/// Kind of the link.
const BRIDGE: &str = "bridge";
/// By which a new supervisor knows that the link is one of these.
const ALIAS: &str = "monobloc-network";

/// Its index.
pub(crate) fn find_or_make(links: &mut Connection, wanted: &Bridge) -> Result<u32> {
    let Bridge { name, gateway, .. } = wanted;
    let action = || format!("make the bridge {name}");
    let link = match get_link(links, name)? {
        Some(link) => link,
        None => {
            let mut batch = Batch::new();
            rtnl::new_bridge(&mut batch, name, Mac::of(gateway.address));
            let mark = Change {
                alias: Some(ALIAS),
                ..Change::default()
            };
            rtnl::set_link(&mut batch, Which::Name(name), mark);
            rtnl::get_link(&mut batch, Which::Name(name));
            let replies = links.run(batch).map_err(|f| f.to(action()))?;
            replies.iter().find_map(rtnl::link).ok_or_else(|| Error::Answer {
                action: action(),
                reason: "it does not tell of the link",
            })?
        }
    };
    if link.kind.as_deref() != Some(BRIDGE) || link.alias.as_deref() != Some(ALIAS) {
        return Err(Error::NotABridge(name.clone()));
    }
    let mut batch = Batch::new();
    let up = Change {
        up: Some(true),
        mtu: wanted.mtu,
        ..Change::default()
    };
    rtnl::set_link(&mut batch, Which::Index(link.index), up);
    rtnl::replace_address(&mut batch, link.index, *gateway, None);
    if let Some(gateway) = wanted.gateway6 {
        rtnl::replace_address6(&mut batch, link.index, gateway, false);
    }
    links.run(batch).map_err(|f| f.to(action()))?;
    Ok(link.index)
}

/// All such links.
pub(crate) fn list(links: &mut Connection) -> Result<Vec<Link>> {
    let replies = links
        .dump(rtnl::LIST_LINKS, rtnl::list_links)
        .map_err(|f| f.to("list the network links"))?;
    let all = replies.iter().filter_map(rtnl::link);
    Ok(all.filter(|link| link.alias.as_deref() == Some(ALIAS)).collect())
}

fn get_link(links: &mut Connection, name: &str) -> Result<Option<Link>> {
    let mut batch = Batch::new();
    rtnl::get_link(&mut batch, Which::Name(name));
    match links.run(batch) {
        Ok(replies) => Ok(replies.iter().find_map(rtnl::link)),
        Err(f) if f.errno() == Some(Errno::NODEV) => Ok(None),
        Err(f) => Err(f.to(format!("look up the network link {name}"))),
    }
}

/// Brings the host's loopback up, whose addresses the name service and published ports are reached at.
pub(crate) fn set_loopback_up(links: &mut Connection) -> Result<()> {
    let up = Change {
        up: Some(true),
        ..Change::default()
    };
    let mut batch = Batch::new();
    rtnl::set_link(&mut batch, Which::Index(LOOPBACK_INDEX), up);
    let done = links.run(batch).map(drop);
    done.map_err(|f| f.to("bring the loopback up"))
}

/// Lets the host forward packets of a network.
pub(crate) fn forward_packets(bridge: &Bridge) -> Result<()> {
    set("/proc/sys/net/ipv4/ip_forward", "1")?;
    // A zone that asks a neighbour by a published port must keep asking the host, so the host
    // must not tell it of a shorter way.
    set("/proc/sys/net/ipv4/conf/all/send_redirects", "0")?;
    let name = &bridge.name;
    set(&format!("/proc/sys/net/ipv4/conf/{name}/send_redirects"), "0")?;
    if bridge.gateway6.is_some() {
        set("/proc/sys/net/ipv6/conf/all/forwarding", "1")?;
    }
    // Where the module br_netfilter is loaded, packets between ports of a bridge would pass
    // through the rules for routed packets, and be changed before they are routed.
    set_if_there("/proc/sys/net/bridge/bridge-nf-call-iptables", "0")
}

/// The table of the neighbours' hardware addresses is one for all namespaces (arp(7)), and full with
/// 1,024 of them unless told otherwise: one for a zone and one for its gateway.
pub(crate) fn allow_many_neighbours() -> Result<()> {
    for (threshold, entries) in [
        ("gc_thresh3", "65536"),
        ("gc_thresh2", "32768"),
        ("gc_thresh1", "16384"),
    ] {
        set_if_there(&format!("/proc/sys/net/ipv4/neigh/default/{threshold}"), entries)?;
    }
    Ok(())
}

fn set(path: &str, value: &str) -> Result<()> {
    fs::write(path, value).map_err(|source| Error::Io {
        action: format!("set {path} to {value}"),
        source,
    })
}

/// One that the kernel does not have, or not in this namespace, is no error.
fn set_if_there(path: &str, value: &str) -> Result<()> {
    match set(path, value) {
        Err(Error::Io { source, .. }) if source.kind() == ErrorKind::NotFound => Ok(()),
        other => other,
    }
}
