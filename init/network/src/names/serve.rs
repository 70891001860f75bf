//! The sockets of the name service, and who may ask how much.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use tokio::net::TcpStream;
use tokio::time::timeout;

use super::forward::{self, receive, send};
use super::{Answer, Most, Question, Verdict, failure, judge};
use crate::NAME_SERVICE;
use crate::firewall::NAMES_PORT;

/// Who is asked for each name; must not wait.
pub type Directory = Arc<dyn Fn(&Question) -> Answer + Send + Sync>;

/// So many questions of one zone may be with others at a time; more are not answered.
const MOST_FORWARDED: usize = 64;
/// So many connections may one zone have.
const MOST_STREAMS: usize = 16;
/// How long a connection may say nothing.
const IDLE: Duration = Duration::from_secs(10);

/// What queries come by.
#[derive(Debug)]
pub struct Sockets {
    datagrams: UdpSocket,
    streams: TcpListener,
}

impl Sockets {
    /// Opens them in the network namespace of the calling thread, whose loopback is up.
    ///
    /// # Errors
    /// Whatever bind(2) says.
    pub fn open() -> io::Result<Self> {
        let at = (NAME_SERVICE, NAMES_PORT);
        Ok(Self {
            datagrams: UdpSocket::bind(at)?,
            streams: TcpListener::bind(at)?,
        })
    }

    /// Takes those over that a predecessor has opened.
    pub fn over(datagrams: OwnedFd, streams: OwnedFd) -> Self {
        Self {
            datagrams: datagrams.into(),
            streams: streams.into(),
        }
    }

    /// For whoever keeps them for a successor.
    pub fn datagrams(&self) -> BorrowedFd<'_> {
        self.datagrams.as_fd()
    }

    pub fn streams(&self) -> BorrowedFd<'_> {
        self.streams.as_fd()
    }
}

/// Answers queries for as long as the sockets do. Must be called in a tokio runtime.
///
/// # Errors
/// The sockets cannot be used.
pub async fn serve(sockets: Sockets, directory: Directory) -> io::Result<()> {
    let Sockets { datagrams, streams } = sockets;
    datagrams.set_nonblocking(true)?;
    streams.set_nonblocking(true)?;
    let datagrams = Arc::new(tokio::net::UdpSocket::from_std(datagrams)?);
    let streams = tokio::net::TcpListener::from_std(streams)?;
    tokio::try_join!(
        serve_datagrams(datagrams, directory.clone()),
        serve_streams(streams, directory)
    )
    .map(drop)
}

async fn serve_datagrams(socket: Arc<tokio::net::UdpSocket>, directory: Directory) -> io::Result<()> {
    let forwarded = Shares::default();
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        // An error is of an earlier answer, whose asker is gone.
        let Ok((length, from)) = socket.recv_from(&mut buffer).await else {
            continue;
        };
        let IpAddr::V4(asker) = from.ip() else { continue };
        let query = buffer.get(..length).unwrap_or_default();
        match judge(query, asker, Most::Datagram, &*directory) {
            Verdict::Ignore => {}
            Verdict::Reply(reply) => drop(socket.send_to(&reply, from).await),
            Verdict::Forward(servers) => {
                let Some(share) = forwarded.take(asker, MOST_FORWARDED) else {
                    continue;
                };
                let (socket, query) = (socket.clone(), query.to_vec());
                tokio::spawn(async move {
                    let _share = share;
                    let answer = forward::ask(&query, &servers, Most::Datagram).await;
                    if let Some(reply) = answer.or_else(|| failure(&query)) {
                        let _ = socket.send_to(&reply, from).await;
                    }
                });
            }
        }
    }
}

async fn serve_streams(listener: tokio::net::TcpListener, directory: Directory) -> io::Result<()> {
    let open = Shares::default();
    loop {
        let Ok((stream, SocketAddr::V4(from))) = listener.accept().await else {
            // Out of descriptors, or gone before it was taken.
            tokio::task::yield_now().await;
            continue;
        };
        if let Some(share) = open.take(*from.ip(), MOST_STREAMS) {
            let directory = directory.clone();
            tokio::spawn(async move {
                let _share = share;
                let _ = converse(stream, *from.ip(), directory).await;
            });
        }
    }
}

async fn converse(mut stream: TcpStream, asker: Ipv4Addr, directory: Directory) -> io::Result<()> {
    loop {
        let query = timeout(IDLE, receive(&mut stream)).await??;
        let reply = match judge(&query, asker, Most::Stream, &*directory) {
            Verdict::Ignore => return Ok(()),
            Verdict::Reply(reply) => Some(reply),
            Verdict::Forward(servers) => {
                let answer = forward::ask(&query, &servers, Most::Stream).await;
                answer.or_else(|| failure(&query))
            }
        };
        let Some(reply) = reply else { return Ok(()) };
        timeout(IDLE, send(&mut stream, &reply)).await??;
    }
}

/// How much of something each zone has.
#[derive(Debug, Clone, Default)]
struct Shares(Arc<Mutex<HashMap<Ipv4Addr, usize>>>);

impl Shares {
    /// None for one who has `most` already.
    fn take(&self, asker: Ipv4Addr, most: usize) -> Option<Share> {
        let mut counts = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let count = counts.entry(asker).or_default();
        if *count >= most {
            return None;
        }
        *count += 1;
        Some(Share {
            of: self.clone(),
            asker,
        })
    }
}

/// Given back when it is dropped.
#[derive(Debug)]
struct Share {
    of: Shares,
    asker: Ipv4Addr,
}

impl Drop for Share {
    fn drop(&mut self) {
        let mut counts = self.of.0.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = counts.get_mut(&self.asker) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&self.asker);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_zone_that_asks_too_much_takes_nothing_from_another() {
        let shares = Shares::default();
        let (one, other) = (Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(10, 0, 0, 2));
        let held: Vec<_> = (0..3).map_while(|_| shares.take(one, 2)).collect();
        assert_eq!(held.len(), 2);
        assert!(shares.take(other, 2).is_some());
        drop(held);
        assert!(shares.take(one, 2).is_some());
        assert!(shares.0.lock().unwrap().is_empty());
    }
}
