//! Times the network's part of a zone's start and end, in namespaces of its own:
//! `cargo run --release -p network --example attach` (as root).

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use network::{Cidr, Network, Port, Protocol, Result};

const ROUNDS: u16 = 50;

fn main() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let host = sys::netlink::new_namespace()?;
    sys::netlink::run_in(host.as_fd(), measure)??;
    Ok(())
}

fn measure() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let began = Instant::now();
    let network = Network::open("mono0", Cidr::new(Ipv4Addr::new(172, 17, 0, 1), 16))?;
    println!("open {:?}", began.elapsed());
    let zones: Vec<OwnedFd> = (0..ROUNDS)
        .map(|_| sys::netlink::new_namespace())
        .collect::<std::io::Result<_>>()?;
    let ids: Vec<String> = (0..ROUNDS).map(|number| format!("zone{number}")).collect();
    time("attach", &ids, |at, id| {
        let zone = zones.get(at).ok_or(network::Error::PortZero)?;
        network.attach(id, zone.as_fd(), None).map(drop)
    })?;
    time("publish", &ids, |at, id| {
        let port = Port {
            protocol: Protocol::Tcp,
            host_ip: None,
            host_port: u16::try_from(10_000 + at).ok(),
            zone_port: 80,
        };
        network.publish(id, &[port]).map(drop)
    })?;
    let began = Instant::now();
    let again = Network::open("mono0", Cidr::new(Ipv4Addr::new(172, 17, 0, 1), 16))?;
    println!(
        "open with {} zones {:?}",
        again.endpoints().len(),
        began.elapsed()
    );
    time("unpublish", &ids, |_, id| network.unpublish(id))?;
    time("detach", &ids, |_, id| network.detach(id))?;
    Ok(())
}

fn time(what: &str, ids: &[String], mut work: impl FnMut(usize, &str) -> Result<()>) -> Result<()> {
    let mut times = Vec::with_capacity(ids.len());
    for (at, id) in ids.iter().enumerate() {
        let began = Instant::now();
        work(at, id)?;
        times.push(began.elapsed());
    }
    times.sort();
    let at = |part: usize| {
        times
            .get(times.len() * part / 100)
            .copied()
            .unwrap_or(Duration::ZERO)
    };
    println!("{what}: median {:?}, 98 % {:?}", at(50), at(98));
    Ok(())
}
