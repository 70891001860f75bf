//! DHCP messages: what the client says, and what of the answers is believed (RFC 2131, 2132, 3442).

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, MessageType, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable, Encoder};

use super::Lease;
use crate::{Cidr, Mac};

/// Fixed fields of a message with the magic cookie (RFC 2131, section 2; RFC 2132, section 2).
const FIXED: usize = 240;
const COOKIE: [u8; 4] = [99, 130, 83, 99];
/// The least that old relays pass on (RFC 1542, section 2.1).
const SHORTEST: usize = 300;
/// The longest message taken, headers included: an Ethernet frame's.
const LONGEST: u16 = 1500;

/// The least MTU that every host must be able to take (RFC 791).
const LEAST_MTU: u16 = 576;
/// More name servers than this are of no use to a resolver.
const NAME_SERVERS: usize = 8;
const ROUTES: usize = 64;

/// What the client asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Question {
    Discover,
    /// Takes an offer.
    Select {
        address: Ipv4Addr,
        server: Ipv4Addr,
    },
    /// Asks for an address it had before.
    Reboot {
        address: Ipv4Addr,
    },
    /// Prolongs the lease of an address it has; for renewing and for rebinding.
    Prolong {
        address: Ipv4Addr,
    },
}

/// What is the same in all messages of a transaction.
#[derive(Debug, Clone, Copy)]
pub(super) struct Transaction<'a> {
    pub(super) id: u32,
    pub(super) mac: Mac,
    pub(super) hostname: Option<&'a str>,
    /// Time since the client began.
    pub(super) since: Duration,
}

/// A server's answer to the client.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Answer {
    Offer(Lease),
    Ack(Lease),
    Nak { server: Option<Ipv4Addr> },
}

impl Transaction<'_> {
    /// The message as bytes.
    pub(super) fn ask(&self, question: Question) -> Result<Vec<u8>, dhcproto::error::EncodeError> {
        let mut message = Message::default();
        message
            .set_xid(self.id)
            .set_secs(u16::try_from(self.since.as_secs()).unwrap_or(u16::MAX))
            .set_chaddr(&self.mac.0);
        if let Question::Prolong { address } = question {
            message.set_ciaddr(address);
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(match question {
            Question::Discover => MessageType::Discover,
            _ => MessageType::Request,
        }));
        match question {
            Question::Select { address, server } => {
                options.insert(DhcpOption::RequestedIpAddress(address));
                options.insert(DhcpOption::ServerIdentifier(server));
            }
            Question::Reboot { address } => {
                options.insert(DhcpOption::RequestedIpAddress(address));
            }
            Question::Discover | Question::Prolong { .. } => {}
        }
        // Type 1 is Ethernet (RFC 2132, section 9.14).
        let identifier = [&[1][..], &self.mac.0].concat();
        options.insert(DhcpOption::ClientIdentifier(identifier));
        options.insert(DhcpOption::MaxMessageSize(LONGEST));
        options.insert(DhcpOption::ParameterRequestList(vec![
            OptionCode::SubnetMask,
            // Before the router, as RFC 3442 wants it.
            OptionCode::ClasslessStaticRoute,
            OptionCode::Router,
            OptionCode::DomainNameServer,
            OptionCode::DomainName,
            OptionCode::Hostname,
            OptionCode::InterfaceMtu,
            OptionCode::Renewal,
            OptionCode::Rebinding,
        ]));
        if let Some(name) = self.hostname {
            options.insert(DhcpOption::Hostname(name.to_owned()));
        }
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes))?;
        if bytes.len() < SHORTEST {
            bytes.resize(SHORTEST, 0);
        }
        Ok(bytes)
    }

    /// Reads an answer to this transaction; none if it is something else or makes no sense.
    pub(super) fn read(&self, bytes: &[u8]) -> Option<Answer> {
        // Before the decoder sees it: a reply (2) by Ethernet (1) with 6 address bytes, to us.
        let [2, 1, 6, _, id @ .., _, _, _, _] = *bytes.first_chunk::<12>()? else {
            return None;
        };
        if u32::from_be_bytes(id) != self.id
            || bytes.get(28..34)? != self.mac.0
            || bytes.get(FIXED - COOKIE.len()..FIXED)? != COOKIE
        {
            return None;
        }
        let message = Message::decode(&mut Decoder::new(bytes)).ok()?;
        let options = message.opts();
        let Some(DhcpOption::MessageType(kind)) = options.get(OptionCode::MessageType) else {
            return None;
        };
        let server = match options.get(OptionCode::ServerIdentifier) {
            Some(DhcpOption::ServerIdentifier(server)) => Some(*server),
            _ => None,
        };
        match kind {
            MessageType::Offer => lease(&message, server?).map(Answer::Offer),
            MessageType::Ack => lease(&message, server?).map(Answer::Ack),
            MessageType::Nak => Some(Answer::Nak { server }),
            _ => None,
        }
    }
}

fn lease(message: &Message, server: Ipv4Addr) -> Option<Lease> {
    let address = message.yiaddr();
    if !usable(address) {
        return None;
    }
    let options = message.opts();
    let seconds = |code| match options.get(code) {
        Some(DhcpOption::AddressLeaseTime(s) | DhcpOption::Renewal(s) | DhcpOption::Rebinding(s)) => Some(*s),
        _ => None,
    };
    let name = |code| match options.get(code) {
        Some(DhcpOption::DomainName(name) | DhcpOption::Hostname(name)) => host_name(name),
        _ => None,
    };
    let lease_time = match seconds(OptionCode::AddressLeaseTime)? {
        u32::MAX => None,
        seconds => Some(Duration::from_secs(seconds.max(1).into())),
    };
    let (renew_after, rebind_after) = times(
        lease_time,
        seconds(OptionCode::Renewal),
        seconds(OptionCode::Rebinding),
    );
    Some(Lease {
        address,
        prefix: match options.get(OptionCode::SubnetMask) {
            Some(DhcpOption::SubnetMask(mask)) => prefix(*mask)?,
            _ => classful_prefix(address),
        },
        router: match options.get(OptionCode::Router) {
            Some(DhcpOption::Router(routers)) => routers.iter().copied().find(|r| usable(*r)),
            _ => None,
        },
        routes: match options.get(OptionCode::ClasslessStaticRoute) {
            Some(DhcpOption::ClasslessStaticRoute(routes)) => routes
                .iter()
                .take(ROUTES)
                .map(|(net, by)| (Cidr::new(net.addr(), net.prefix_len()).network(), *by))
                .filter(|(_, by)| by.is_unspecified() || usable(*by))
                .collect(),
            _ => Vec::new(),
        },
        dns: match options.get(OptionCode::DomainNameServer) {
            Some(DhcpOption::DomainNameServer(servers)) => servers
                .iter()
                .copied()
                .filter(|server| usable(*server))
                .take(NAME_SERVERS)
                .collect(),
            _ => Vec::new(),
        },
        domain: name(OptionCode::DomainName),
        hostname: name(OptionCode::Hostname),
        mtu: match options.get(OptionCode::InterfaceMtu) {
            Some(DhcpOption::InterfaceMtu(mtu)) => Some(*mtu).filter(|mtu| *mtu >= LEAST_MTU),
            _ => None,
        },
        server,
        lease_time,
        renew_after,
        rebind_after,
    })
}

/// T1 and T2: the server's if they are in order, else half and seven eighths of the lease
/// (RFC 2131, section 4.4.5).
fn times(lease: Option<Duration>, t1: Option<u32>, t2: Option<u32>) -> (Duration, Duration) {
    let Some(lease) = lease else {
        return (Duration::MAX, Duration::MAX);
    };
    let seconds = |t: u32| Duration::from_secs(t.into());
    match (t1.map(seconds), t2.map(seconds)) {
        (Some(t1), Some(t2)) if !t1.is_zero() && t1 < t2 && t2 < lease => (t1, t2),
        _ => (lease / 2, lease / 8 * 7),
    }
}

/// Whether a single host can have the address.
fn usable(address: Ipv4Addr) -> bool {
    let first = address.octets()[0];
    first != 0 && first < 224 && !address.is_loopback()
}

fn prefix(mask: Ipv4Addr) -> Option<u8> {
    let bits = mask.to_bits();
    let ones = bits.leading_ones();
    (bits.count_ones() == ones && ones > 0).then_some(ones as u8)
}

/// For a server that does not tell the mask.
fn classful_prefix(address: Ipv4Addr) -> u8 {
    match address.octets()[0] {
        0..128 => 8,
        128..192 => 16,
        _ => 24,
    }
}

/// A name that is safe in a `resolv.conf` or as a host name. Some servers end it with zeros.
fn host_name(name: &str) -> Option<String> {
    let name = name.trim_end_matches(['\0', '.']);
    let safe = (1..=253).contains(&name.len())
        && !name.starts_with('-')
        && name
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || b"-._".contains(&b));
    safe.then(|| name.to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn transaction() -> Transaction<'static> {
        Transaction {
            id: 0x1234_5678,
            mac: MAC,
            hostname: Some("node"),
            since: Duration::from_secs(3),
        }
    }

    fn reply(kind: MessageType, change: impl FnOnce(&mut Message)) -> Vec<u8> {
        let mut message = Message::default();
        message
            .set_opcode(dhcproto::v4::Opcode::BootReply)
            .set_xid(0x1234_5678)
            .set_chaddr(&MAC.0)
            .set_yiaddr([10, 0, 2, 15]);
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        options.insert(DhcpOption::ServerIdentifier([10, 0, 2, 2].into()));
        options.insert(DhcpOption::AddressLeaseTime(86_400));
        options.insert(DhcpOption::SubnetMask([255, 255, 255, 0].into()));
        options.insert(DhcpOption::Router(vec![[10, 0, 2, 2].into()]));
        options.insert(DhcpOption::DomainNameServer(vec![[10, 0, 2, 3].into()]));
        change(&mut message);
        let mut bytes = Vec::new();
        message.encode(&mut Encoder::new(&mut bytes)).unwrap();
        bytes
    }

    fn offered(change: impl FnOnce(&mut Message)) -> Option<Lease> {
        match transaction().read(&reply(MessageType::Offer, change)) {
            Some(Answer::Offer(lease)) => Some(lease),
            _ => None,
        }
    }

    #[test]
    fn an_offer_is_read() {
        let lease = offered(|_| {}).unwrap();
        assert_eq!(lease.address, Ipv4Addr::new(10, 0, 2, 15));
        assert_eq!(lease.prefix, 24);
        assert_eq!(lease.router, Some(Ipv4Addr::new(10, 0, 2, 2)));
        assert_eq!(lease.dns, [Ipv4Addr::new(10, 0, 2, 3)]);
        assert_eq!(lease.lease_time, Some(Duration::from_secs(86_400)));
        assert_eq!(lease.renew_after, Duration::from_secs(43_200));
        assert_eq!(lease.rebind_after, Duration::from_secs(75_600));
    }

    #[test]
    fn answers_to_others_and_nonsense_are_not_read() {
        let changes: [fn(&mut Message); 7] = [
            |m| _ = m.set_xid(1),
            |m| _ = m.set_chaddr(&[2, 0, 0, 0, 0, 2]),
            |m| _ = m.set_yiaddr([0, 0, 0, 0]),
            |m| _ = m.set_yiaddr([127, 0, 0, 1]),
            |m| _ = m.set_yiaddr([224, 0, 0, 1]),
            |m| _ = m.opts_mut().remove(OptionCode::ServerIdentifier),
            |m| _ = m.opts_mut().remove(OptionCode::AddressLeaseTime),
        ];
        for (number, change) in changes.into_iter().enumerate() {
            assert!(offered(change).is_none(), "change {number}");
        }
        let holes = [255, 0, 255, 0].into();
        let mut bytes = reply(MessageType::Offer, |m| {
            m.opts_mut().insert(DhcpOption::SubnetMask(holes));
        });
        assert!(transaction().read(&bytes).is_none());
        // A hardware address longer than its field.
        bytes[2] = 200;
        assert!(transaction().read(&bytes).is_none());
    }

    #[test]
    fn timers_out_of_order_are_replaced() {
        for (t1, t2) in [(0, 10), (80_000, 70_000), (10, 90_000)] {
            let lease = offered(|m| {
                m.opts_mut().insert(DhcpOption::Renewal(t1));
                m.opts_mut().insert(DhcpOption::Rebinding(t2));
            })
            .unwrap();
            assert_eq!(lease.renew_after, Duration::from_secs(43_200));
        }
        let lease = offered(|m| {
            m.opts_mut().insert(DhcpOption::Renewal(10));
            m.opts_mut().insert(DhcpOption::Rebinding(20));
        })
        .unwrap();
        assert_eq!(lease.renew_after, Duration::from_secs(10));
    }

    #[test]
    fn a_lease_for_ever_is_never_renewed() {
        let lease = offered(|m| {
            m.opts_mut().insert(DhcpOption::AddressLeaseTime(u32::MAX));
        })
        .unwrap();
        assert_eq!(lease.lease_time, None);
        assert_eq!(lease.renew_after, Duration::MAX);
    }

    #[test]
    fn names_that_are_no_host_names_are_left_out() {
        for (name, expected) in [
            ("example.org", Some("example.org")),
            ("example.org.\0", Some("example.org")),
            ("", None),
            ("a b", None),
            ("a\nnameserver 6.6.6.6", None),
            ("-x", None),
        ] {
            assert_eq!(host_name(name).as_deref(), expected, "{name:?}");
        }
    }

    #[test]
    fn cut_off_and_damaged_answers_do_no_harm() {
        let good = reply(MessageType::Ack, |_| {});
        for length in 0..good.len() {
            let _ = transaction().read(&good[..length]);
        }
        for at in 0..good.len() {
            for value in [0, 1, 4, 0x7f, 0xff] {
                let mut bad = good.clone();
                bad[at] = value;
                let _ = transaction().read(&bad);
            }
        }
    }

    #[test]
    fn questions_say_what_the_state_demands() {
        let address = Ipv4Addr::new(10, 0, 2, 15);
        let server = Ipv4Addr::new(10, 0, 2, 2);
        // Question; ciaddr; requested address; server identifier (RFC 2131, table 4).
        for (question, ciaddr, requested, identifier) in [
            (Question::Discover, false, false, false),
            (Question::Select { address, server }, false, true, true),
            (Question::Reboot { address }, false, true, false),
            (Question::Prolong { address }, true, false, false),
        ] {
            let bytes = transaction().ask(question).unwrap();
            assert!(bytes.len() >= SHORTEST);
            let message = Message::decode(&mut Decoder::new(&bytes)).unwrap();
            assert_eq!(message.ciaddr() == address, ciaddr, "{question:?}");
            let has = |code| message.opts().contains(code);
            assert_eq!(has(OptionCode::RequestedIpAddress), requested, "{question:?}");
            assert_eq!(has(OptionCode::ServerIdentifier), identifier, "{question:?}");
            assert_eq!(message.secs(), 3);
        }
    }
}
