//! Asking other name servers what the own directory does not know.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::rand::{GetRandomFlags, getrandom};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::Most;

const DOMAIN: u16 = 53;
/// How long one server is waited for; whoever asks waits 5 seconds himself (resolver(5)).
const PATIENCE: Duration = Duration::from_secs(2);
/// Length of a message's header (RFC 1035, section 4.1.1); its identification comes first.
const HEADER: usize = 12;

/// The first answer that one of the servers gives, tried in order.
pub(super) async fn ask(query: &[u8], servers: &[IpAddr], by: Most) -> Option<Vec<u8>> {
    for server in servers {
        let server = SocketAddr::new(*server, DOMAIN);
        let asked = async {
            match by {
                Most::Datagram => by_datagram(query, server).await,
                Most::Stream => by_stream(query, server).await,
            }
        };
        if let Ok(Ok(answer)) = timeout(PATIENCE, asked).await {
            return Some(answer);
        }
    }
    None
}

async fn by_datagram(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let any: IpAddr = match server {
        SocketAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        SocketAddr::V6(_) => Ipv6Addr::UNSPECIFIED.into(),
    };
    let socket = UdpSocket::bind((any, 0)).await?;
    socket.connect(server).await?;
    // Nobody on the way can know it, so a forged answer would have to guess it and the port.
    let mut id = [0; 2];
    getrandom(&mut id, GetRandomFlags::empty())?;
    socket.send(&with_id(query, id)).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let length = socket.recv(&mut buffer).await?;
        let answer = buffer.get(..length).unwrap_or_default();
        if length >= HEADER && answer.starts_with(&id) && same_question(query, answer) {
            let own = query.first_chunk().copied().unwrap_or_default();
            return Ok(with_id(answer, own));
        }
    }
}

async fn by_stream(query: &[u8], server: SocketAddr) -> io::Result<Vec<u8>> {
    let mut stream = TcpStream::connect(server).await?;
    send(&mut stream, query).await?;
    receive(&mut stream).await
}

/// Sends a message by a stream, its length before it (RFC 1035, section 4.2.2).
pub(super) async fn send(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(io::Error::other)?;
    let whole = [&length.to_be_bytes()[..], message].concat();
    stream.write_all(&whole).await
}

pub(super) async fn receive(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let length = stream.read_u16().await?;
    let mut message = vec![0; usize::from(length)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

fn with_id(message: &[u8], id: [u8; 2]) -> Vec<u8> {
    let rest = message.get(2..).unwrap_or_default();
    [&id[..], rest].concat()
}

/// Whether an answer repeats the first question, whatever the case of its letters.
fn same_question(query: &[u8], answer: &[u8]) -> bool {
    let name = |message: &[u8]| {
        let rest = message.get(HEADER..)?;
        let end = rest.iter().position(|byte| *byte == 0)?;
        Some(rest.get(..end + 5)?.to_ascii_lowercase())
    };
    name(query).is_some_and(|asked| name(answer).is_none_or(|answered| answered == asked))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_to_another_question_is_none() {
        let question = |name: &[u8]| [&[0; HEADER][..], name, &[0, 0, 1, 0, 1]].concat();
        let asked = question(b"\x01a");
        assert!(same_question(&asked, &question(b"\x01A")));
        assert!(!same_question(&asked, &question(b"\x01b")));
        // A refusal need not repeat it.
        assert!(same_question(&asked, &[0; HEADER]));
        assert!(!same_question(&[0; HEADER], &asked));
    }
}
