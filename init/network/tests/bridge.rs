//! The bridge, its packet rules and published ports, with real packets between namespaces.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::time::Duration;

use common::Namespace;
use network::links::Links;
use network::{Bridge, Cidr, Endpoint, Error, Join, Networks, Port, Protocol, Ways};
use serde_json::Value;

const GATEWAY: Cidr = Cidr::new(Ipv4Addr::new(172, 17, 0, 1), 16);
const USUAL: &str = "mono0";
const HOST: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 2);
const PATIENCE: Duration = Duration::from_secs(5);
/// How long a packet that must not arrive is waited for.
const DOUBT: Duration = Duration::from_millis(400);

/// A host with an uplink to one machine outside, and the bridge.
struct Site {
    host: Namespace,
    outside: Namespace,
    network: Networks,
}

impl Site {
    fn new() -> Self {
        let host = Namespace::new();
        let outside = Namespace::new();
        host.cable(("up0", "192.0.2.1/24"), &outside, ("out0", "192.0.2.2/24"));
        let network = host.run(|| Networks::open(Bridge::new(USUAL, GATEWAY))).unwrap();
        Self {
            host,
            outside,
            network,
        }
    }

    fn zone(&self, id: &str) -> (Namespace, Endpoint) {
        let namespace = Namespace(sys_namespace());
        let endpoint = attach(&self.network, id, &namespace, None).unwrap();
        (namespace, endpoint)
    }

    fn publish(&self, id: &str, port: Port) -> u16 {
        let bound = self
            .host
            .run(|| self.network.publish(id, USUAL, &[port]))
            .unwrap();
        bound[0].host_port
    }
}

/// Puts a zone on the usual network alone, from wherever it was.
fn attach(
    networks: &Networks,
    id: &str,
    zone: &Namespace,
    address: Option<Ipv4Addr>,
) -> Result<Endpoint, Error> {
    let join = Join {
        network: USUAL.to_owned(),
        address,
        ..Join::default()
    };
    networks.detach(id)?;
    let endpoint = networks.reserve(id, &join)?;
    let ways = Ways {
        outside: Some(USUAL),
        names: None,
    };
    networks.attach(id, zone.fd(), ways)?;
    Ok(endpoint)
}

fn sys_namespace() -> std::os::fd::OwnedFd {
    sys::netlink::new_namespace().unwrap()
}

fn port(protocol: Protocol, host_port: Option<u16>, zone_port: u16) -> Port {
    Port {
        protocol,
        host_ip: None,
        host_ports: host_port.map(|port| (port, port)),
        zone_port,
    }
}

/// Serves one connection: answers with the client's address as the server sees it.
fn serve_tcp(namespace: &Namespace, at: u16) -> std::thread::JoinHandle<()> {
    serve_tcp_times(namespace, at, 1)
}

/// Serves so many connections. One listener does: a program that another test starts at that moment
/// holds a copy of it until its `exec`, and the port could not be bound again.
fn serve_tcp_times(namespace: &Namespace, at: u16, times: usize) -> std::thread::JoinHandle<()> {
    let listener = namespace
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, at)))
        .unwrap();
    std::thread::spawn(move || {
        for _ in 0..times {
            let (mut stream, client) = listener.accept().unwrap();
            stream.write_all(client.ip().to_string().as_bytes()).unwrap();
        }
    })
}

/// What a TCP server says, or why it could not be reached.
fn ask_tcp(from: &Namespace, to: impl Into<SocketAddr>, patience: Duration) -> std::io::Result<String> {
    let to = to.into();
    from.run(|| {
        let mut stream = TcpStream::connect_timeout(&to, patience)?;
        stream.set_read_timeout(Some(patience))?;
        let mut text = String::new();
        stream.read_to_string(&mut text)?;
        Ok(text)
    })
}

#[test]
fn a_zone_gets_a_link_an_address_a_route_and_loopback() {
    let site = Site::new();
    let id = "0123456789abcdef".repeat(4);
    let (zone, endpoint) = site.zone(&id);
    assert_eq!(endpoint.host_link, "mz-0123456789ab");

    let addresses = zone.ip(&["-4", "addr", "show"]);
    let links = addresses.as_array().unwrap();
    let lo = links.iter().find(|l| l["ifname"] == "lo").unwrap();
    assert_eq!(lo["addr_info"][0]["local"], "127.0.0.1");
    let eth0 = links.iter().find(|l| l["ifname"] == "eth0").unwrap();
    assert_eq!(eth0["addr_info"][0]["local"], endpoint.address.to_string());
    assert_eq!(eth0["addr_info"][0]["prefixlen"], 16);
    assert_eq!(eth0["addr_info"][0]["broadcast"], "172.17.255.255");
    let link = zone.ip(&["link", "show", "eth0"]);
    assert_eq!(link[0]["address"], endpoint.mac.to_string());
    assert_eq!(link[0]["operstate"], "UP");
    let routes = zone.ip(&["route", "show", "default"]);
    assert_eq!(routes[0]["gateway"], "172.17.0.1");

    let host = site.host.ip(&["link", "show", &endpoint.host_link]);
    assert_eq!(host[0]["master"], Value::Null);
    let route = site.host.ip(&["route", "get", &endpoint.address.to_string()]);
    assert_eq!(route[0]["dev"], endpoint.host_link);
    assert_eq!(route[0]["prefsrc"], "172.17.0.1");
    let ports = site.host.run(|| Links::open().unwrap().list()).unwrap();
    let port = ports.iter().find(|l| l.name == endpoint.host_link).unwrap();
    assert_eq!(port.kind.as_deref(), Some("veth"));
    assert!(port.carrier);
}

#[test]
fn nft_shows_the_rules_as_they_are_meant() {
    let site = Site::new();
    let (_zone, endpoint) = site.zone("web");
    site.publish("web", port(Protocol::Tcp, Some(8080), 80));
    let at = Port {
        host_ip: Some(HOST.into()),
        ..port(Protocol::Udp, Some(5353), 53)
    };
    site.publish("web", at);
    let text = site.host.output("nft", &["list", "ruleset"]);
    for line in [
        "iifname != \"lo\" ip daddr 127.0.0.0/8 drop",
        "iifname \"mz-*\" fib saddr . iif oif missing drop",
        "iifgroup . oifgroup @together accept",
        "fib daddr type local dnat ip to ip daddr . meta l4proto . th dport map @published_at",
        "fib daddr type local dnat ip to meta l4proto . th dport map @published",
        "type filter hook forward priority filter; policy drop;",
        "ct state established,related accept",
        "oifgroup @outward ct status dnat accept",
        "iifgroup @masqueraded oifname != \"mz-*\" masquerade",
        "ip saddr 127.0.0.0/8 oifname \"mz-*\" masquerade",
        "iifname \"mz-*\" oifname \"mz-*\" ct status dnat masquerade",
        &format!("tcp . 8080 : {} . 80", endpoint.address),
        &format!("192.0.2.1 . udp . 5353 : {} . 53", endpoint.address),
    ] {
        assert!(text.contains(line), "{line} is not in\n{text}");
    }
    let json: serde_json::Value =
        serde_json::from_str(&site.host.output("nft", &["-j", "list", "ruleset"])).unwrap();
    let rules = json["nftables"].as_array().unwrap();
    assert_eq!(rules.iter().filter(|o| o.get("rule").is_some()).count(), 28);
    assert_eq!(rules.iter().filter(|o| o.get("chain").is_some()).count(), 6);
}

#[test]
fn a_zone_reaches_the_outside_by_the_hosts_address() {
    let site = Site::new();
    let (zone, _) = site.zone("web");
    let server = serve_tcp(&site.outside, 80);
    let seen = ask_tcp(&zone, (OUTSIDE, 80), PATIENCE).unwrap();
    assert_eq!(seen, HOST.to_string());
    server.join().unwrap();
}

#[test]
fn zones_of_a_bridge_reach_each_other() {
    let site = Site::new();
    let (zone, endpoint) = site.zone("web");
    let (other, other_endpoint) = site.zone("client");
    let server = serve_tcp(&zone, 80);
    let seen = ask_tcp(&other, (endpoint.address, 80), PATIENCE).unwrap();
    assert_eq!(seen, other_endpoint.address.to_string());
    server.join().unwrap();
}

#[test]
fn a_published_port_is_reached_from_outside_with_the_clients_address() {
    let site = Site::new();
    let (zone, _) = site.zone("web");
    let bound = site.publish("web", port(Protocol::Tcp, None, 80));
    let server = serve_tcp(&zone, 80);
    let seen = ask_tcp(&site.outside, (HOST, bound), PATIENCE).unwrap();
    assert_eq!(seen, OUTSIDE.to_string());
    server.join().unwrap();
}

#[test]
fn a_published_port_is_reached_from_the_host_itself() {
    let site = Site::new();
    let (zone, _) = site.zone("web");
    site.publish("web", port(Protocol::Tcp, Some(8080), 80));
    let server = serve_tcp_times(&zone, 80, 3);
    for address in [Ipv4Addr::LOCALHOST, HOST, GATEWAY.address] {
        ask_tcp(&site.host, (address, 8080), PATIENCE).unwrap_or_else(|e| panic!("by {address}: {e}"));
    }
    server.join().unwrap();
}

#[test]
fn a_published_port_is_reached_from_zones_by_the_hosts_address() {
    let site = Site::new();
    let (zone, _) = site.zone("web");
    let (other, _) = site.zone("client");
    site.publish("web", port(Protocol::Tcp, Some(8080), 80));
    // From a neighbour, and from the very zone that serves.
    let server = serve_tcp_times(&zone, 80, 4);
    for (who, from) in [("a neighbour", &other), ("itself", &zone)] {
        for address in [HOST, GATEWAY.address] {
            ask_tcp(from, (address, 8080), PATIENCE).unwrap_or_else(|e| panic!("by {who} at {address}: {e}"));
        }
    }
    server.join().unwrap();
}

#[test]
fn udp_ports_are_published_too() {
    let site = Site::new();
    let (zone, _) = site.zone("dns");
    site.publish("dns", port(Protocol::Udp, Some(5353), 53));
    let server = zone.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 53))).unwrap();
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = site
        .outside
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)))
        .unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.send_to(b"ping", (HOST, 5353)).unwrap();
    let mut buffer = [0; 16];
    let (length, from) = server.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"ping");
    server.send_to(b"pong", from).unwrap();
    let (length, from) = client.recv_from(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"pong");
    assert_eq!(from, (HOST, 5353).into());
}

#[test]
fn a_port_that_is_not_published_is_not_reached_from_outside() {
    let site = Site::new();
    let (zone, endpoint) = site.zone("web");
    site.outside.default_route(HOST, "out0");
    let _server = zone
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)))
        .unwrap();
    let direct = ask_tcp(&site.outside, (endpoint.address, 80), DOUBT);
    assert!(direct.is_err(), "{direct:?}");
    // The same packets pass where the port is published.
    site.publish("web", port(Protocol::Tcp, Some(80), 80));
    assert!(
        site.outside
            .run(|| TcpStream::connect_timeout(&(HOST, 80).into(), PATIENCE))
            .is_ok()
    );
}

#[test]
fn a_port_published_at_loopback_is_for_the_host_alone() {
    let site = Site::new();
    let (zone, _) = site.zone("web");
    let at = Port {
        host_ip: Some(Ipv4Addr::LOCALHOST.into()),
        ..port(Protocol::Tcp, Some(8080), 80)
    };
    site.publish("web", at);
    assert!(ask_tcp(&site.outside, (HOST, 8080), DOUBT).is_err());
    // A neighbour that sends packets for 127.0.0.1 to the host.
    site.outside
        .output("sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"]);
    site.outside
        .output("ip", &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
    site.outside.output(
        "ip",
        &[
            "route",
            "add",
            "127.0.0.1/32",
            "via",
            "192.0.2.1",
            "src",
            "192.0.2.2",
        ],
    );
    assert!(ask_tcp(&site.outside, (Ipv4Addr::LOCALHOST, 8080), DOUBT).is_err());
    let server = serve_tcp(&zone, 80);
    ask_tcp(&site.host, (Ipv4Addr::LOCALHOST, 8080), PATIENCE).unwrap();
    server.join().unwrap();
}

#[test]
fn a_zone_cannot_reach_the_hosts_loopback_or_send_with_a_foreign_address() {
    let site = Site::new();
    let (zone, endpoint) = site.zone("evil");
    let host = site
        .host
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7)))
        .unwrap();
    let mut buffer = [0; 16];

    // The good case: its own address, to the bridge's.
    let own = zone.run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))).unwrap();
    own.send_to(b"fair", (GATEWAY.address, 7)).unwrap();
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let (length, from) = host.recv_from(&mut buffer).unwrap();
    assert_eq!(
        (&buffer[..length], from.ip()),
        (&b"fair"[..], endpoint.address.into())
    );

    host.set_read_timeout(Some(DOUBT)).unwrap();
    zone.output("ip", &["addr", "add", "198.51.100.9/32", "dev", "eth0"]);
    let foreign = zone.run(|| UdpSocket::bind(("198.51.100.9", 0))).unwrap();
    foreign.send_to(b"foul", (GATEWAY.address, 7)).unwrap();
    assert!(host.recv_from(&mut buffer).is_err());

    zone.output("sysctl", &["-qw", "net.ipv4.conf.all.route_localnet=1"]);
    zone.output("ip", &["addr", "del", "127.0.0.1/8", "dev", "lo"]);
    let source = endpoint.address.to_string();
    zone.output(
        "ip",
        &[
            "route",
            "add",
            "127.0.0.1/32",
            "via",
            "172.17.0.1",
            "src",
            &source,
        ],
    );
    own.send_to(b"foul", (Ipv4Addr::LOCALHOST, 7)).unwrap();
    assert!(host.recv_from(&mut buffer).is_err());
}

#[test]
fn a_zone_cannot_speak_with_a_neighbours_address() {
    let site = Site::new();
    let (_neighbour, theirs) = site.zone("neighbour");
    let (zone, own) = site.zone("evil");
    let host = site
        .host
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 7)))
        .unwrap();
    zone.output(
        "ip",
        &["addr", "add", &format!("{}/32", theirs.address), "dev", "eth0"],
    );
    let mut buffer = [0; 16];
    // The good case comes second, and alone arrives.
    for (address, word) in [(theirs.address, b"foul"), (own.address, b"fair")] {
        let socket = zone.run(|| UdpSocket::bind((address, 0))).unwrap();
        socket.send_to(word, (GATEWAY.address, 7)).unwrap();
    }
    host.set_read_timeout(Some(PATIENCE)).unwrap();
    let (length, from) = host.recv_from(&mut buffer).unwrap();
    assert_eq!((&buffer[..length], from.ip()), (&b"fair"[..], own.address.into()));
}

#[test]
fn a_zone_that_has_ended_leaves_its_link_to_its_namespace_and_its_address_to_others() {
    let site = Site::new();
    let (first, endpoint) = site.zone("first");
    site.network.ended("first").unwrap();
    assert!(site.network.endpoints().is_empty());
    // The namespace is still there, so is the link; another zone with the same address takes its place.
    let second = Namespace::new();
    let taken = attach(&site.network, "second", &second, Some(endpoint.address));
    assert_eq!(taken.unwrap().address, endpoint.address);
    let server = serve_tcp(&second, 80);
    ask_tcp(&site.host, (endpoint.address, 80), PATIENCE).unwrap();
    server.join().unwrap();
    let links = first.ip(&["link"]);
    assert!(
        links
            .as_array()
            .unwrap()
            .iter()
            .all(|link| link["ifname"] != "eth0")
    );
}

#[test]
fn a_new_supervisor_finds_zones_and_ports_as_they_are() {
    let site = Site::new();
    let (zone, endpoint) = site.zone("web");
    site.publish("web", port(Protocol::Tcp, Some(8080), 80));
    let published = site.network.published("web");
    let Site {
        host,
        outside,
        network,
    } = site;
    drop(network);

    let network = host.run(|| Networks::open(Bridge::new(USUAL, GATEWAY))).unwrap();
    assert_eq!(network.endpoints(), [("web".to_owned(), endpoint.clone())]);
    assert_eq!(network.published("web"), published);
    let server = serve_tcp(&zone, 80);
    ask_tcp(&outside, (HOST, 8080), PATIENCE).unwrap();
    server.join().unwrap();
    // The address and the port are not given again.
    let other = Namespace::new();
    let next = attach(&network, "other", &other, None).unwrap();
    assert_ne!(next.address, endpoint.address);
    let again = host.run(|| network.publish("other", USUAL, &[port(Protocol::Tcp, Some(8080), 80)]));
    assert!(matches!(again, Err(Error::PortPublished { holder, .. }) if holder == "web"));
}

#[test]
fn detaching_leaves_nothing_behind() {
    let site = Site::new();
    let (_zone, endpoint) = site.zone("web");
    site.publish("web", port(Protocol::Tcp, Some(8080), 80));
    site.network.detach("web").unwrap();
    site.network.detach("web").unwrap();
    assert!(site.network.endpoints().is_empty());
    let links = site.host.run(|| Links::open().unwrap().list()).unwrap();
    assert!(links.iter().all(|link| link.name != endpoint.host_link));
    let rules = site.host.output("nft", &["list", "ruleset"]);
    assert!(!rules.contains("8080"), "{rules}");
    // The port is free for others again.
    site.host.run(|| TcpListener::bind((HOST, 8080))).unwrap();
}

#[test]
fn a_zone_whose_namespace_is_gone_can_be_attached_anew() {
    let site = Site::new();
    let (first, _) = site.zone("web");
    drop(first);
    let (second, endpoint) = site.zone("web");
    let server = serve_tcp(&second, 80);
    ask_tcp(&site.host, (endpoint.address, 80), PATIENCE).unwrap();
    server.join().unwrap();
    assert_eq!(site.network.endpoints().len(), 1);
}

#[test]
fn ports_in_use_are_refused_with_the_reason() {
    let site = Site::new();
    let (_a, _) = site.zone("a");
    let (_b, _) = site.zone("b");
    site.publish("a", port(Protocol::Tcp, Some(8080), 80));
    let publish = |id: &str, port| site.host.run(|| site.network.publish(id, USUAL, &[port]));
    let twice = publish("b", port(Protocol::Tcp, Some(8080), 80)).unwrap_err();
    assert_eq!(
        twice.to_string(),
        "Port 8080/tcp of 0.0.0.0 is published by the container a already; choose another host port"
    );
    let _listener = site
        .host
        .run(|| TcpListener::bind((Ipv4Addr::UNSPECIFIED, 2376)))
        .unwrap();
    let taken = publish("b", port(Protocol::Tcp, Some(2376), 80)).unwrap_err();
    assert!(matches!(taken, Error::PortUnusable { .. }), "{taken}");
    // All or none: the first of these two would be free.
    let both = [
        port(Protocol::Tcp, Some(9000), 80),
        port(Protocol::Tcp, Some(8080), 81),
    ];
    assert!(site.host.run(|| site.network.publish("b", USUAL, &both)).is_err());
    assert!(site.network.published("b").is_empty());
    publish("b", port(Protocol::Tcp, Some(9000), 80)).unwrap();
    // The same number of the other protocol is another port.
    publish("b", port(Protocol::Udp, Some(8080), 80)).unwrap();
    assert!(matches!(
        publish("c", port(Protocol::Tcp, None, 80)),
        Err(Error::NotAttached(_))
    ));
    assert!(matches!(
        publish("b", port(Protocol::Tcp, None, 0)),
        Err(Error::PortZero)
    ));
}

#[test]
fn wanted_addresses_are_given_or_refused_with_the_reason() {
    let site = Site::new();
    let namespace = Namespace::new();
    let wanted = Ipv4Addr::new(172, 17, 9, 9);
    let attach = |id: &str, address| attach(&site.network, id, &namespace, Some(address));
    assert_eq!(attach("a", wanted).unwrap().address, wanted);
    assert!(matches!(attach("b", wanted), Err(Error::AddressTaken { holder, .. }) if holder == "a"));
    for outside in ["172.17.0.0", "172.17.0.1", "172.17.255.255", "10.0.0.1"] {
        let refused = attach("b", outside.parse().unwrap());
        assert!(matches!(refused, Err(Error::AddressOutside { .. })), "{outside}");
    }
}

#[test]
fn a_full_subnet_says_so_and_gives_freed_addresses_again() {
    let host = Namespace::new();
    let small = Cidr::new(Ipv4Addr::new(10, 1, 1, 1), 29);
    let network = host.run(|| Networks::open(Bridge::new(USUAL, small))).unwrap();
    let zones: Vec<Namespace> = (0..6).map(|_| Namespace::new()).collect();
    for (number, zone) in zones.iter().take(5).enumerate() {
        attach(&network, &format!("z{number}"), zone, None).unwrap();
    }
    let full = attach(&network, "z5", &zones[5], None).unwrap_err();
    assert!(matches!(full, Error::Exhausted { .. }), "{full}");
    let freed = network.endpoint("z2", USUAL).unwrap().address;
    network.detach("z2").unwrap();
    assert_eq!(attach(&network, "z5", &zones[5], None).unwrap().address, freed);
}

#[test]
fn a_failed_attach_leaves_nothing_behind() {
    let site = Site::new();
    let zone = Namespace::new();
    zone.output("ip", &["link", "add", "eth0", "type", "bridge"]);
    let before = site.host.ip(&["link"]).as_array().unwrap().len();
    let error = attach(&site.network, "web", &zone, None).unwrap_err();
    assert!(error.to_string().contains("container web"), "{error}");
    assert_eq!(site.host.ip(&["link"]).as_array().unwrap().len(), before);
    assert!(site.network.endpoints().is_empty());
}
