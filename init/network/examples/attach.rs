//! Times the network's part of a zone's start and end, in namespaces of its own:
//! `cargo run --release -p network --example attach` (as root).

use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use network::{Bridge, Cidr, Join, Networks, Port, Protocol, Result, Ways};

const ROUNDS: u16 = 50;
const USUAL: &str = "mono0";
const GATEWAY: Cidr = Cidr::new(Ipv4Addr::new(172, 17, 0, 1), 16);

fn main() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let host = sys::netlink::new_namespace()?;
    sys::netlink::run_in(host.as_fd(), measure)??;
    Ok(())
}

fn measure() -> std::result::Result<(), Box<dyn std::error::Error + Send + Sync>> {
    let began = Instant::now();
    let network = Networks::open(Bridge::new(USUAL, GATEWAY))?;
    println!("open {:?}", began.elapsed());
    let zones: Vec<OwnedFd> = (0..ROUNDS)
        .map(|_| sys::netlink::new_namespace())
        .collect::<std::io::Result<_>>()?;
    let ids: Vec<String> = (0..ROUNDS).map(|number| format!("zone{number}")).collect();
    time("attach", &ids, |at, id| {
        let zone = zones.get(at).ok_or(network::Error::PortZero)?;
        let join = Join {
            network: USUAL.to_owned(),
            ..Join::default()
        };
        network.reserve(id, &join)?;
        let ways = Ways {
            outside: Some(USUAL),
            names: None,
        };
        network.attach(id, zone.as_fd(), ways)
    })?;
    time("publish", &ids, |at, id| {
        let port = Port {
            protocol: Protocol::Tcp,
            host_ip: None,
            host_ports: u16::try_from(10_000 + at).ok().map(|port| (port, port)),
            zone_port: 80,
        };
        network.publish(id, USUAL, &[port]).map(drop)
    })?;
    let began = Instant::now();
    let again = Networks::open(Bridge::new(USUAL, GATEWAY))?;
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
