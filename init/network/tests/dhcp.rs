//! The DHCP client and the uplinks, with dnsmasq or a hand-made server at the cable's other end.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use std::net::{Ipv4Addr, UdpSocket};
use std::time::{Duration, Instant};

use common::Namespace;
use common::dnsmasq::Dnsmasq;
use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};
use network::Cidr;
use network::dhcp::{self, Client, Config, DhcpError, Event, Lease};
use network::links::{Link, Links};
use network::uplink::{Status, UplinkConfig, Uplinks};

const SERVER: Ipv4Addr = Ipv4Addr::new(10, 9, 0, 1);
const PATIENCE: Duration = Duration::from_secs(20);

/// A host and a server, joined by a cable.
struct Site {
    host: Namespace,
    server: Namespace,
}

impl Site {
    fn new() -> Self {
        let site = Self {
            host: Namespace::new(),
            server: Namespace::new(),
        };
        site.host
            .cable(("up0", ""), &site.server, ("srv0", "10.9.0.1/24"));
        site
    }

    fn dnsmasq(&self, options: &[&str]) -> Dnsmasq {
        let range = "--dhcp-range=10.9.0.50,10.9.0.60,255.255.255.0,2m";
        Dnsmasq::start(&self.server, "srv0", &[&[range], options].concat())
    }

    fn link(&self) -> Link {
        self.host
            .run(|| Links::open().unwrap().find("up0"))
            .unwrap()
            .unwrap()
    }

    fn acquire(&self, former: Option<Ipv4Addr>, patience: Duration) -> Result<Lease, DhcpError> {
        let link = self.link();
        let config = Config {
            hostname: Some("node1".to_owned()),
            former,
        };
        self.host
            .run(|| block_on(dhcp::acquire(&link, &config, patience)))
    }

    /// Runs the uplinks in the host's namespace while `work` waits for their status.
    fn with_uplinks<T: Send>(
        &self,
        work: impl AsyncFnOnce(&mut tokio::sync::watch::Receiver<Status>) -> T + Send,
    ) -> T {
        self.host.run(|| {
            block_on(async {
                let config = UplinkConfig {
                    hostname: Some("node1".to_owned()),
                    select: |link| link.name.starts_with("up"),
                };
                let uplinks = Uplinks::start(config).unwrap();
                let mut status = uplinks.watch();
                work(&mut status).await
            })
        })
    }
}

fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap()
        .block_on(work)
}

async fn wait_for(
    status: &mut tokio::sync::watch::Receiver<Status>,
    what: impl FnMut(&Status) -> bool,
) -> Status {
    tokio::time::timeout(PATIENCE, status.wait_for(what))
        .await
        .expect("the uplinks' status in time")
        .unwrap()
        .clone()
}

#[test]
fn a_lease_is_what_the_server_says() {
    let site = Site::new();
    let dnsmasq = site.dnsmasq(&[
        "--dhcp-option=option:dns-server,10.9.0.3,10.9.0.4",
        "--dhcp-option=option:mtu,1400",
        "--domain=example.org",
    ]);
    let lease = site.acquire(None, PATIENCE).unwrap();
    assert!((50..=60).contains(&lease.address.octets()[3]), "{lease:?}");
    assert_eq!(lease.prefix, 24);
    assert_eq!(lease.router, Some(SERVER));
    assert_eq!(
        lease.dns,
        [Ipv4Addr::new(10, 9, 0, 3), Ipv4Addr::new(10, 9, 0, 4)]
    );
    assert_eq!(lease.domain.as_deref(), Some("example.org"));
    assert_eq!(lease.mtu, Some(1400));
    assert_eq!(lease.lease_time, Some(Duration::from_secs(120)));
    assert_eq!(lease.server, SERVER);
    assert_eq!(dnsmasq.count("client provides name: node1"), 2);
}

#[test]
fn the_former_address_is_asked_for_without_looking_for_servers() {
    let site = Site::new();
    let dnsmasq = site.dnsmasq(&[]);
    let former = Ipv4Addr::new(10, 9, 0, 57);
    assert_eq!(site.acquire(Some(former), PATIENCE).unwrap().address, former);
    assert_eq!(dnsmasq.count("DHCPDISCOVER"), 0);
}

#[test]
fn a_former_address_of_another_network_is_given_up_when_the_server_refuses_it() {
    let site = Site::new();
    let dnsmasq = site.dnsmasq(&[]);
    let lease = site.acquire(Some(Ipv4Addr::new(192, 0, 2, 7)), PATIENCE).unwrap();
    assert_eq!(lease.address.octets()[..3], [10, 9, 0]);
    assert_eq!(dnsmasq.count("DHCPNAK"), 1);
}

#[test]
fn silence_is_told_as_such() {
    let site = Site::new();
    let error = site.acquire(None, Duration::from_secs(1)).unwrap_err();
    assert_eq!(
        error.to_string(),
        "No DHCP server answered on up0 within 1 s; check the cable and the server"
    );
}

#[test]
fn an_uplink_gets_address_routes_and_mtu_of_its_lease() {
    let site = Site::new();
    let _dnsmasq = site.dnsmasq(&[
        "--dhcp-option=option:mtu,1400",
        "--dhcp-option=option:dns-server,10.9.0.3",
    ]);
    let (status, addresses, routes, link) = site.with_uplinks(async |status| {
        let status = wait_for(status, Status::online).await;
        (
            status,
            site.host.ip(&["-4", "addr", "show", "dev", "up0"]),
            site.host.ip(&["route"]),
            site.host.ip(&["link", "show", "up0"]),
        )
    });
    let lease = status.uplinks[0].lease.clone().unwrap();
    assert_eq!(status.dns(), [Ipv4Addr::new(10, 9, 0, 3)]);
    assert_eq!(status.uplinks[0].trouble, None);
    let address = &addresses[0]["addr_info"][0];
    assert_eq!(address["local"], lease.address.to_string());
    assert_eq!(address["broadcast"], "10.9.0.255");
    let lifetime = address["valid_life_time"].as_u64().unwrap();
    assert!((100..=120).contains(&lifetime), "{lifetime}");
    let routes = routes.as_array().unwrap();
    let default = routes.iter().find(|r| r["dst"] == "default").unwrap();
    assert_eq!(default["gateway"], "10.9.0.1");
    assert_eq!(default["protocol"], "dhcp");
    assert_eq!(default["prefsrc"], lease.address.to_string());
    assert_eq!(link[0]["mtu"], 1400);
}

#[test]
fn classless_routes_take_the_place_of_the_router() {
    let site = Site::new();
    let _dnsmasq = site.dnsmasq(&[
        "--dhcp-option=option:classless-static-route,0.0.0.0/0,10.9.0.9,198.51.100.0/24,10.9.0.8,203.0.113.1/32,0.0.0.0",
    ]);
    let routes = site.with_uplinks(async |status| {
        wait_for(status, Status::online).await;
        site.host.run(|| Links::open().unwrap().routes()).unwrap()
    });
    let by = |to: &str| {
        let to: Cidr = to.parse().unwrap();
        routes
            .iter()
            .find(|r| r.destination == to && r.dhcp)
            .map(|r| r.gateway)
    };
    assert_eq!(by("0.0.0.0/0"), Some(Some(Ipv4Addr::new(10, 9, 0, 9))));
    assert_eq!(by("198.51.100.0/24"), Some(Some(Ipv4Addr::new(10, 9, 0, 8))));
    assert_eq!(by("203.0.113.1/32"), Some(None));
}

#[test]
fn a_cable_that_is_plugged_in_later_gets_its_lease_then() {
    let site = Site::new();
    let _dnsmasq = site.dnsmasq(&[]);
    site.server.output("ip", &["link", "set", "srv0", "down"]);
    site.with_uplinks(async |status| {
        let unplugged = wait_for(status, |s| !s.uplinks.is_empty()).await;
        assert!(!unplugged.uplinks[0].carrier && !unplugged.online());
        site.server.output("ip", &["link", "set", "srv0", "up"]);
        let plugged = wait_for(status, Status::online).await;
        assert!(plugged.uplinks[0].carrier);
    });
}

#[test]
fn a_lease_is_renewed_with_its_server() {
    let site = Site::new();
    let dnsmasq = site.dnsmasq(&["--dhcp-option-force=58,2", "--dhcp-option-force=59,12"]);
    site.with_uplinks(async |status| {
        wait_for(status, Status::online).await;
        let granted = Instant::now();
        status.mark_unchanged();
        // A prolonged lease is told anew.
        tokio::time::timeout(PATIENCE, status.changed())
            .await
            .unwrap_or_else(|_| panic!("no renewal; {}", dnsmasq.log()))
            .unwrap();
        assert!(granted.elapsed() >= Duration::from_secs(1));
        assert!(status.borrow().online());
    });
    dnsmasq.wait_for("DHCPACK");
    assert_eq!(dnsmasq.count("DHCPDISCOVER"), 1);
    assert_eq!(dnsmasq.count("DHCPREQUEST"), 2);
}

#[test]
fn a_lease_is_rebound_with_another_server_when_its_own_is_gone() {
    let site = Site::new();
    let times = ["--dhcp-option-force=58,1", "--dhcp-option-force=59,3"];
    let first = site.dnsmasq(&times);
    site.with_uplinks(async |status| {
        wait_for(status, Status::online).await;
        drop(first);
        site.server.output("ip", &["addr", "flush", "dev", "srv0"]);
        site.server
            .output("ip", &["addr", "add", "10.9.0.2/24", "dev", "srv0"]);
        let _second = site.dnsmasq(&times);
        let by_other = |s: &Status| {
            let lease = s.uplinks[0].lease.as_ref();
            lease.is_some_and(|lease| lease.server == Ipv4Addr::new(10, 9, 0, 2))
        };
        wait_for(status, by_other).await;
    });
}

/// A server made by hand: answers each message as `answer` says, with options for this long.
fn serve(site: &Site, lease: u32, mut answer: impl FnMut(MessageType) -> Vec<MessageType> + Send + 'static) {
    let socket = site
        .server
        .run(|| UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 67)))
        .unwrap();
    socket.set_broadcast(true).unwrap();
    std::thread::spawn(move || {
        let mut buffer = [0; 2048];
        while let Ok((length, from)) = socket.recv_from(&mut buffer) {
            let Ok(question) = Message::decode(&mut Decoder::new(&buffer[..length])) else {
                continue;
            };
            let Some(DhcpOption::MessageType(kind)) = question.opts().get(OptionCode::MessageType) else {
                continue;
            };
            for kind in answer(*kind) {
                let mut reply = Message::default();
                reply
                    .set_opcode(Opcode::BootReply)
                    .set_xid(question.xid())
                    .set_chaddr(question.chaddr())
                    .set_yiaddr([10, 9, 0, 70]);
                let options = reply.opts_mut();
                options.insert(DhcpOption::MessageType(kind));
                options.insert(DhcpOption::ServerIdentifier(SERVER));
                options.insert(DhcpOption::AddressLeaseTime(lease));
                options.insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
                let mut bytes = Vec::new();
                reply.encode(&mut Encoder::new(&mut bytes)).unwrap();
                // Noise first: cut off, and with a hardware address longer than its field.
                let mut noise = bytes.clone();
                noise[2] = 255;
                let to = match from.ip().is_unspecified() {
                    true => (Ipv4Addr::new(10, 9, 0, 255), 68).into(),
                    false => from,
                };
                for packet in [&noise, &bytes[..100].to_vec(), &vec![], &bytes] {
                    socket.send_to(packet, to).unwrap();
                }
            }
        }
    });
}

#[test]
fn an_expired_lease_takes_its_address_along() {
    let site = Site::new();
    let mut answers = 0;
    // Grants once and is silent from then on.
    serve(&site, 3, move |kind| {
        answers += 1;
        match kind {
            _ if answers > 2 => vec![],
            MessageType::Discover => vec![MessageType::Offer],
            _ => vec![MessageType::Ack],
        }
    });
    site.with_uplinks(async |status| {
        let granted = wait_for(status, Status::online).await;
        assert_eq!(
            granted.uplinks[0].lease.as_ref().unwrap().address,
            Ipv4Addr::new(10, 9, 0, 70)
        );
        wait_for(status, |s| !s.online()).await;
    });
    let addresses = site.host.run(|| Links::open().unwrap().addresses()).unwrap();
    assert!(
        addresses.iter().all(|a| a.address.address.is_loopback()),
        "{addresses:?}"
    );
}

#[test]
fn a_refused_renewal_takes_the_address_away_and_begins_anew() {
    let site = Site::new();
    let mut requests = 0;
    // Refuses the second request, the renewal.
    serve(&site, 4, move |kind| match kind {
        MessageType::Discover => vec![MessageType::Offer],
        _ => {
            requests += 1;
            vec![if requests == 2 {
                MessageType::Nak
            } else {
                MessageType::Ack
            }]
        }
    });
    let link = site.link();
    let events = site.host.run(|| {
        let links = Links::open().unwrap();
        let client = Client::new(&link, Config::default()).unwrap();
        let (sender, mut events) = tokio::sync::mpsc::unbounded_channel();
        block_on(async {
            let run = client.run(|event| {
                if let Event::Bound(lease) = &event {
                    links.replace_address(link.index, lease.cidr(), None).unwrap();
                }
                sender.send(event).unwrap();
            });
            let collect = async {
                let mut all = Vec::new();
                while all.len() < 3 {
                    all.extend(events.recv().await);
                }
                all
            };
            tokio::select! {
                error = run => panic!("{error}"),
                all = tokio::time::timeout(PATIENCE, collect) => all.unwrap(),
            }
        })
    });
    assert!(
        matches!(&events[..], [Event::Bound(_), Event::Lost(_), Event::Bound(_)]),
        "{events:?}"
    );
}
