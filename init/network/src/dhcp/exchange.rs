//! Asking and waiting for the answer: over a packet socket while the link has no address, over UDP
//! when it has one.

use std::future::Future;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use sys::packet::{ETHERTYPE_IPV4, PacketSocket};
use tokio::io::unix::AsyncFd;
use tokio::net::UdpSocket;
use tokio::time::{Instant, timeout_at};

use super::frame;
use super::message::{Answer, Question, Transaction};
use crate::Mac;
use crate::links::readable;

/// The longest packet that is taken.
const BUFFER: usize = 2048;

/// The times between retransmissions: doubled each time, with a random part, so that machines that
/// were switched on together do not ask together (RFC 2131, section 4.1). It begins with one second
/// and not with four, as a first packet often falls to a switch that is not ready yet.
#[derive(Debug)]
pub(super) struct Backoff {
    next: Duration,
}

impl Backoff {
    const FIRST: Duration = Duration::from_secs(1);
    const LONGEST: Duration = Duration::from_secs(64);

    pub(super) fn new() -> Self {
        Self { next: Self::FIRST }
    }

    pub(super) fn next(&mut self) -> Duration {
        let base = self.next;
        self.next = (base * 2).min(Self::LONGEST);
        // From -0.25 s to +0.25 s for the first, at most 1 s to either side later.
        let spread = (base / 4).min(Duration::from_secs(1));
        let part = f64::from(random()) / f64::from(u32::MAX);
        base - spread + (spread * 2).mul_f64(part)
    }
}

/// A random number; one from the clock where the kernel has none yet.
pub(super) fn random() -> u32 {
    let mut bytes = [0_u8; 4];
    match rustix::rand::getrandom(&mut bytes[..], rustix::rand::GetRandomFlags::INSECURE) {
        Ok(4) => u32::from_ne_bytes(bytes),
        _ => std::time::UNIX_EPOCH
            .elapsed()
            .map_or(0, |now| now.subsec_nanos()),
    }
}

/// The way to the servers of a link that has no address.
#[derive(Debug)]
pub(super) struct Unbound(AsyncFd<PacketSocket>);

impl Unbound {
    pub(super) fn open(link: u32) -> io::Result<Self> {
        PacketSocket::open(link, ETHERTYPE_IPV4, &frame::FILTER)
            .and_then(readable)
            .map(Self)
    }

    /// Broadcasts a question and gives the first acceptable answer, or none after `wait`.
    pub(super) async fn ask(
        &self,
        transaction: &Transaction<'_>,
        question: Question,
        wait: Duration,
        accept: impl Fn(&Answer) -> bool,
    ) -> io::Result<Option<Answer>> {
        let message = transaction.ask(question).map_err(io::Error::other)?;
        let deadline = Instant::now() + wait;
        match self.0.get_ref().send(Mac::BROADCAST.0, &frame::wrap(&message)) {
            // The link is down, or its queue is full: as good as lost on the way.
            Err(e) if is_passing(&e) => {}
            other => other?,
        }
        let mut buffer = [0; BUFFER];
        until(deadline, async {
            loop {
                let mut ready = self.0.readable().await?;
                let Ok(received) = ready.try_io(|socket| socket.get_ref().receive(&mut buffer)) else {
                    continue;
                };
                let received = match received {
                    Err(e) if is_passing(&e) => continue,
                    other => other?,
                };
                let answer = buffer
                    .get(..received.length)
                    .and_then(|packet| frame::unwrap(packet, received.checksum_ready))
                    .and_then(|message| transaction.read(message))
                    .filter(&accept);
                if let Some(answer) = answer {
                    return Ok(answer);
                }
            }
        })
        .await
    }
}

/// The way to the servers of a link that has an address.
#[derive(Debug)]
pub(super) struct Bound(UdpSocket);

impl Bound {
    /// Must be called in the link's network namespace.
    pub(super) fn open(link: &str, address: Ipv4Addr) -> io::Result<Self> {
        let socket = std::net::UdpSocket::bind((address, frame::CLIENT_PORT))?;
        socket.set_nonblocking(true)?;
        socket.set_broadcast(true)?;
        let socket = UdpSocket::from_std(socket)?;
        socket.bind_device(Some(link.as_bytes()))?;
        Ok(Self(socket))
    }

    pub(super) async fn ask(
        &self,
        transaction: &Transaction<'_>,
        question: Question,
        server: Ipv4Addr,
        wait: Duration,
        accept: impl Fn(&Answer) -> bool,
    ) -> io::Result<Option<Answer>> {
        let message = transaction.ask(question).map_err(io::Error::other)?;
        let deadline = Instant::now() + wait;
        self.0.send_to(&message, (server, frame::SERVER_PORT)).await?;
        let mut buffer = [0; BUFFER];
        until(deadline, async {
            loop {
                let length = self.0.recv(&mut buffer).await?;
                let answer = buffer
                    .get(..length)
                    .and_then(|message| transaction.read(message))
                    .filter(&accept);
                if let Some(answer) = answer {
                    return Ok(answer);
                }
            }
        })
        .await
    }
}

async fn until(
    deadline: Instant,
    answer: impl Future<Output = io::Result<Answer>>,
) -> io::Result<Option<Answer>> {
    match timeout_at(deadline, answer).await {
        Ok(answer) => answer.map(Some),
        Err(_) => Ok(None),
    }
}

fn is_passing(error: &io::Error) -> bool {
    use rustix::io::Errno;
    matches!(
        Errno::from_io_error(error),
        Some(Errno::NETDOWN | Errno::NOBUFS | Errno::AGAIN | Errno::NETUNREACH)
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn retransmissions_become_rarer_up_to_a_limit() {
        let mut backoff = Backoff::new();
        for base in [1_u64, 2, 4, 8, 16, 32, 64, 64] {
            let wait = backoff.next();
            let spread = (base as f64 / 4.0).min(1.0);
            let seconds = wait.as_secs_f64();
            assert!((seconds - base as f64).abs() <= spread + 0.001, "{seconds}");
        }
    }
}
