//! The network phase: the uplinks' DHCP clients and the bridge that the zones hang on.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::Context;
use network::uplink::{Status, UplinkConfig, Uplinks};
use network::{Bridge, Cidr, Networks};

use crate::console::say;
use crate::modules::Loader;

/// The zones' bridge and its address, Docker's own default.
const BRIDGE: &str = "mono0";
const GATEWAY: Cidr = Cidr::new(Ipv4Addr::new(172, 17, 0, 1), 16);
/// What the bridge and its rules need of the kernel.
const MODULES: &[&str] = &[
    "bridge",
    "veth",
    "nf_tables",
    "nf_conntrack",
    "nft_chain_nat",
    "nft_ct",
    "nft_fib_inet",
    "nft_masq",
    "nft_nat",
];
/// Read by the registry client and copied into zones.
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Makes the bridge, or finds the one that an earlier supervisor made.
pub(crate) fn open_bridge(modules: &Loader) -> anyhow::Result<Networks> {
    MODULES
        .iter()
        .try_for_each(|module| modules.load(module))
        .map_err(anyhow::Error::msg)?;
    Networks::open(Bridge::new(BRIDGE, GATEWAY)).context("Cannot set up the zones' bridge")
}

/// Starts the DHCP clients and tells the console of every change. Nothing waits for a lease.
pub(crate) fn start_uplinks(modules: &Loader, hostname: &str) -> anyhow::Result<()> {
    modules.load("af_packet").map_err(anyhow::Error::msg)?;
    let config = UplinkConfig {
        hostname: Some(hostname.to_owned()),
        ..UplinkConfig::default()
    };
    let uplinks = Uplinks::start(config).context("Cannot start the uplinks")?;
    tokio::spawn(follow(uplinks));
    Ok(())
}

async fn follow(uplinks: Uplinks) {
    let mut changes = uplinks.watch();
    let mut told = String::new();
    loop {
        let status = changes.borrow_and_update().clone();
        // What a predecessor has written is good until there is news.
        if status.online()
            && let Err(error) = write_atomically(RESOLV_CONF, &resolv_conf(&status))
        {
            say!("network: cannot write {RESOLV_CONF}: {error}");
        }
        let text = describe(&status);
        if text != told {
            say!("network: {text}");
            told = text;
        }
        if changes.changed().await.is_err() {
            return;
        }
    }
}

fn describe(status: &Status) -> String {
    if status.uplinks.is_empty() {
        return "no network card found yet".to_owned();
    }
    let mut text = String::new();
    for uplink in &status.uplinks {
        let separator = if text.is_empty() { "" } else { "; " };
        let _ = match (&uplink.lease, &uplink.trouble) {
            (Some(lease), _) => write!(
                text,
                "{separator}{} has {}/{}",
                uplink.link, lease.address, lease.prefix
            ),
            (None, Some(trouble)) => write!(text, "{separator}{}: {trouble}", uplink.link),
            (None, None) if !uplink.carrier => write!(text, "{separator}{}: no cable", uplink.link),
            (None, None) => write!(text, "{separator}{}: asking for an address", uplink.link),
        };
    }
    text
}

fn resolv_conf(status: &Status) -> String {
    let mut text = String::new();
    if !status.search().is_empty() {
        let _ = writeln!(text, "search {}", status.search().join(" "));
    }
    for server in &status.dns() {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

fn write_atomically(path: &str, text: &str) -> std::io::Result<()> {
    let new = Path::new(path).with_extension("new");
    std::fs::write(&new, text)?;
    std::fs::rename(&new, path)
}
