//! The name service of the zones' networks, and what it says.
//!
//! One pair of sockets on the host serves all networks: zones reach it at [`NAME_SERVICE`](crate::NAME_SERVICE),
//! which leads to the host by a route of their own, and the asker is known by his address, which nobody else
//! can have. Who is called what is not kept here: a [`Directory`] is asked each time. What it does not know
//! goes to other servers as it is, and so does their answer.
//!
//! The sockets can be handed on to a successor, in which queries wait that came while nobody served.

mod forward;
mod serve;

use std::net::{IpAddr, Ipv4Addr};

use hickory_proto::op::{Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, PTR};
use hickory_proto::rr::{DNSClass, Name, RData, Record, RecordType};

pub use serve::{Directory, Sockets, serve};

/// Seconds that an answer may be kept; Docker's.
const TTL: u32 = 600;
/// Bytes of an answer by UDP to one who does not say that he takes more (RFC 1035, section 2.3.4).
const SMALL: u16 = 512;

/// What a zone wants to know.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Question {
    /// The zone's address.
    pub asker: Ipv4Addr,
    pub about: About,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum About {
    /// Addresses of a name, in small letters and without the dot at its end.
    Name(String),
    /// Names of an address.
    Address(IpAddr),
}

/// What a directory knows.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Addresses(Vec<IpAddr>),
    Names(Vec<String>),
    /// These servers may know.
    Ask(Vec<IpAddr>),
    /// There is no such name for the asker, and nobody else is to be asked.
    Nothing,
}

/// What is to be done about a query.
#[derive(Debug, PartialEq, Eq)]
enum Verdict {
    Reply(Vec<u8>),
    Forward(Vec<IpAddr>),
    /// It is no query.
    Ignore,
}

/// `most`: bytes that the asker takes, if the query does not say.
fn judge(query: &[u8], asker: Ipv4Addr, most: Most, look_up: impl Fn(&Question) -> Answer) -> Verdict {
    let Ok(message) = Message::from_vec(query) else {
        return Verdict::Ignore;
    };
    if message.metadata.message_type != MessageType::Query {
        return Verdict::Ignore;
    }
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    let [question] = message.queries.as_slice() else {
        reply.metadata.response_code = ResponseCode::FormErr;
        return encode(reply, &message, most);
    };
    reply.add_query(question.clone());
    if message.metadata.op_code != OpCode::Query || question.query_class() != DNSClass::IN {
        reply.metadata.response_code = ResponseCode::NotImp;
        return encode(reply, &message, most);
    }
    let (name, kind) = (question.name(), question.query_type());
    let Some(about) = about(name, kind) else {
        // A part of the names' tree that no address is at.
        reply.metadata.response_code = ResponseCode::NXDomain;
        return encode(reply, &message, most);
    };
    match look_up(&Question { asker, about }) {
        Answer::Ask(servers) => return Verdict::Forward(servers),
        Answer::Nothing => reply.metadata.response_code = ResponseCode::NXDomain,
        Answer::Addresses(addresses) => {
            let wanted = |kind_of| matches!(kind, RecordType::ANY) || kind == kind_of;
            for address in addresses {
                let data = match address {
                    IpAddr::V4(address) if wanted(RecordType::A) => RData::A(A(address)),
                    IpAddr::V6(address) if wanted(RecordType::AAAA) => RData::AAAA(AAAA(address)),
                    _ => continue,
                };
                reply.add_answer(Record::from_rdata(name.clone(), TTL, data));
            }
        }
        Answer::Names(names) => {
            for other in names {
                if let Ok(mut other) = Name::from_utf8(&other) {
                    other.set_fqdn(true);
                    let data = RData::PTR(PTR(other));
                    reply.add_answer(Record::from_rdata(name.clone(), TTL, data));
                }
            }
        }
    }
    encode(reply, &message, most)
}

/// None for a question about an address that is none.
fn about(name: &Name, kind: RecordType) -> Option<About> {
    let text = name.to_ascii().trim_end_matches('.').to_ascii_lowercase();
    let reverse = text.ends_with(".in-addr.arpa") || text.ends_with(".ip6.arpa");
    if kind == RecordType::PTR && reverse {
        let net = name.parse_arpa_name().ok()?;
        let whole = net.prefix_len() == net.max_prefix_len();
        return whole.then_some(About::Address(net.addr()));
    }
    Some(About::Name(text))
}

/// How much an asker takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Most {
    /// What a datagram holds: what the query says, or little.
    Datagram,
    Stream,
}

fn encode(reply: Message, query: &Message, most: Most) -> Verdict {
    let limit = match (most, &query.edns) {
        (Most::Stream, _) => usize::from(u16::MAX),
        (Most::Datagram, None) => usize::from(SMALL),
        (Most::Datagram, Some(_)) => usize::from(query.max_payload().max(SMALL)),
    };
    match reply.to_vec() {
        Ok(bytes) if bytes.len() <= limit => Verdict::Reply(bytes),
        // He asks again by TCP.
        Ok(_) => reply.truncate().to_vec().map_or(Verdict::Ignore, Verdict::Reply),
        Err(_) => Verdict::Ignore,
    }
}

/// The reply to a query that nobody has answered.
fn failure(query: &[u8]) -> Option<Vec<u8>> {
    let message = Message::from_vec(query).ok()?;
    let mut reply = Message::response(message.metadata.id, message.metadata.op_code);
    reply.metadata.recursion_desired = message.metadata.recursion_desired;
    reply.metadata.recursion_available = true;
    reply.metadata.response_code = ResponseCode::ServFail;
    reply.add_queries(message.queries);
    reply.to_vec().ok()
}

#[cfg(test)]
mod tests {
    use hickory_proto::op::Query;

    use super::*;

    const ASKER: Ipv4Addr = Ipv4Addr::new(172, 18, 0, 2);

    fn query(name: &str, kind: RecordType) -> Vec<u8> {
        let mut message = Message::query();
        message.metadata.id = 7;
        message.add_query(Query::query(Name::from_ascii(name).unwrap(), kind));
        message.to_vec().unwrap()
    }

    fn ask(name: &str, kind: RecordType, answer: &Answer) -> (Message, Question) {
        let asked = std::cell::RefCell::new(None);
        let verdict = judge(&query(name, kind), ASKER, Most::Datagram, |question| {
            *asked.borrow_mut() = Some(question.clone());
            answer.clone()
        });
        let Verdict::Reply(bytes) = verdict else {
            panic!("{verdict:?}");
        };
        (Message::from_vec(&bytes).unwrap(), asked.into_inner().unwrap())
    }

    #[test]
    fn a_name_is_answered_with_its_addresses_of_the_kind_that_is_asked_for() {
        let all: Vec<IpAddr> = ["172.18.0.3", "fd00::3", "172.18.0.4"]
            .iter()
            .map(|text| text.parse().unwrap())
            .collect();
        let answer = Answer::Addresses(all);
        for (kind, count) in [(RecordType::A, 2), (RecordType::AAAA, 1), (RecordType::MX, 0)] {
            let (reply, question) = ask("WEB.", kind, &answer);
            assert_eq!(question.about, About::Name("web".to_owned()));
            assert_eq!(reply.metadata.response_code, ResponseCode::NoError);
            assert_eq!((reply.metadata.id, reply.answers.len()), (7, count), "{kind}");
        }
    }

    #[test]
    fn an_address_is_answered_with_its_names() {
        let answer = Answer::Names(vec!["web.front".to_owned()]);
        let (reply, question) = ask("3.0.18.172.in-addr.arpa.", RecordType::PTR, &answer);
        assert_eq!(question.about, About::Address("172.18.0.3".parse().unwrap()));
        assert_eq!(reply.answers[0].data.to_string(), "web.front.");
    }

    #[test]
    fn what_is_not_known_is_none_or_asked_of_others() {
        let (reply, _) = ask("nobody.", RecordType::A, &Answer::Nothing);
        assert_eq!(reply.metadata.response_code, ResponseCode::NXDomain);
        let server: IpAddr = "192.0.2.53".parse().unwrap();
        let verdict = judge(
            &query("example.com.", RecordType::A),
            ASKER,
            Most::Datagram,
            |_| Answer::Ask(vec![server]),
        );
        assert_eq!(verdict, Verdict::Forward(vec![server]));
    }

    #[test]
    fn too_many_addresses_for_a_datagram_are_cut_off_and_come_whole_by_a_stream() {
        let many: Vec<IpAddr> = (0..100).map(|n| Ipv4Addr::new(10, 0, 0, n).into()).collect();
        let of = |most| match judge(&query("many.", RecordType::A), ASKER, most, |_| {
            Answer::Addresses(many.clone())
        }) {
            Verdict::Reply(bytes) => Message::from_vec(&bytes).unwrap(),
            other => panic!("{other:?}"),
        };
        assert!(of(Most::Datagram).metadata.truncation);
        assert_eq!(of(Most::Stream).answers.len(), 100);
    }

    #[test]
    fn what_is_no_query_is_ignored() {
        let none = |_: &Question| -> Answer { panic!("nobody asked") };
        for bytes in [&[][..], &[0; 11], &[255; 40]] {
            assert_eq!(
                judge(bytes, ASKER, Most::Datagram, none),
                Verdict::Ignore,
                "{bytes:?}"
            );
        }
        let mut reply = Message::from_vec(&query("a.", RecordType::A)).unwrap();
        reply.metadata.message_type = MessageType::Response;
        assert_eq!(
            judge(&reply.to_vec().unwrap(), ASKER, Most::Datagram, none),
            Verdict::Ignore
        );
        // Cut anywhere, none panics.
        let whole = query("a.long.name.example.", RecordType::A);
        for cut in 0..whole.len() {
            judge(&whole[..cut], ASKER, Most::Stream, |_| Answer::Nothing);
        }
    }
}
