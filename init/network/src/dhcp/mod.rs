//! The DHCPv4 client of one link (RFC 2131).
//!
//! [`Client::run`] is the protocol's state machine from INIT (or INIT-REBOOT, with an address the
//! link had before) through SELECTING, REQUESTING and BOUND to RENEWING and REBINDING, and back. It
//! changes nothing on the host: it tells what it got, and the caller sets the link up.

mod exchange;
mod frame;
mod message;

use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use tokio::time::{Instant, sleep, sleep_until, timeout};

use crate::Cidr;
use crate::links::Link;
use exchange::{Backoff, Bound, Unbound};
use message::{Answer, Question};

/// REQUESTs that go unanswered before the client looks for another server.
const REQUEST_ATTEMPTS: u32 = 4;
/// REQUESTs for the former address that go unanswered before the client asks for any.
const REBOOT_ATTEMPTS: u32 = 2;
/// The least between two requests to prolong a lease (RFC 2131, section 4.4.5).
const PROLONG_PAUSE: Duration = Duration::from_secs(60);
/// What is waited after something that another attempt will not change at once.
const PAUSE: Duration = Duration::from_secs(10);

/// What a server granted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Lease {
    pub address: Ipv4Addr,
    pub prefix: u8,
    pub router: Option<Ipv4Addr>,
    /// Routes (RFC 3442): destination and gateway (`0.0.0.0`: on the link). If there are any,
    /// `router` is to be ignored.
    pub routes: Vec<(Cidr, Ipv4Addr)>,
    pub dns: Vec<Ipv4Addr>,
    pub domain: Option<String>,
    pub hostname: Option<String>,
    pub mtu: Option<u16>,
    /// Identifier of the server.
    pub server: Ipv4Addr,
    /// None: for ever.
    pub lease_time: Option<Duration>,
    /// When renewal (T1) and rebinding (T2) begin, counted from the grant.
    pub renew_after: Duration,
    pub rebind_after: Duration,
}

impl Lease {
    pub fn cidr(&self) -> Cidr {
        Cidr::new(self.address, self.prefix)
    }
}

/// How the client presents itself.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// Name that the server is told.
    pub hostname: Option<String>,
    /// An address that the link had before; it is asked for first.
    pub former: Option<Ipv4Addr>,
}

#[derive(Debug, thiserror::Error)]
pub enum DhcpError {
    #[error("The link {0} is no Ethernet, so it cannot be configured by DHCP")]
    NoEthernet(String),
    #[error(
        "No DHCP server answered on {link} within {} s; check the cable and the server",
        patience.as_secs()
    )]
    Timeout { link: String, patience: Duration },
    #[error("DHCP on {link} failed")]
    Io { link: String, source: io::Error },
}

/// What the client tells its caller.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Event {
    /// A lease was granted or prolonged. It has to be on the link when this is handled, as the
    /// client will prolong it from its address.
    Bound(Lease),
    /// The lease ran out or was withdrawn: its address must not be used any more.
    Lost(Lease),
    /// Something went wrong, told as a sentence; the client goes on.
    Trouble(String),
}

/// Gets a lease for the link, which must be up, or gives up after `patience`.
pub async fn acquire(link: &Link, config: &Config, patience: Duration) -> Result<Lease, DhcpError> {
    let mut client = Client::new(link, config.clone())?;
    match timeout(patience, client.obtain(&mut |_| {})).await {
        Ok(outcome) => outcome
            .map(|(lease, _)| lease)
            .map_err(|source| client.failed(source)),
        Err(_) => Err(DhcpError::Timeout {
            link: link.name.clone(),
            patience,
        }),
    }
}

/// The client of one link.
#[derive(Debug)]
pub struct Client {
    link: u32,
    name: String,
    mac: crate::Mac,
    config: Config,
}

impl Client {
    pub fn new(link: &Link, config: Config) -> Result<Self, DhcpError> {
        Ok(Self {
            link: link.index,
            name: link.name.clone(),
            mac: link.mac.ok_or_else(|| DhcpError::NoEthernet(link.name.clone()))?,
            config,
        })
    }

    /// Gets and keeps a lease for as long as the future is polled. Ends only if the link is gone
    /// or sockets cannot be had.
    pub async fn run(mut self, mut tell: impl FnMut(Event)) -> DhcpError {
        loop {
            let (mut lease, mut granted) = match self.obtain(&mut tell).await {
                Ok(obtained) => obtained,
                Err(source) => return self.failed(source),
            };
            loop {
                tell(Event::Bound(lease.clone()));
                self.config.former = Some(lease.address);
                match self.keep(&lease, granted, &mut tell).await {
                    Some(prolonged) => (lease, granted) = prolonged,
                    None => break,
                }
            }
            tell(Event::Lost(lease));
            self.config.former = None;
        }
    }

    fn failed(&self, source: io::Error) -> DhcpError {
        DhcpError::Io {
            link: self.name.clone(),
            source,
        }
    }

    /// INIT-REBOOT and INIT up to BOUND: the lease and when it began.
    async fn obtain(&mut self, tell: &mut impl FnMut(Event)) -> io::Result<(Lease, Instant)> {
        let socket = Unbound::open(self.link)?;
        let began = Instant::now();
        if let Some(address) = self.config.former.take() {
            let question = Question::Reboot { address };
            let transaction = self.transaction(began);
            let answer = request(&socket, &transaction, question, REBOOT_ATTEMPTS).await?;
            if let Some((Answer::Ack(lease), asked)) = answer {
                return Ok((lease, asked));
            }
        }
        // SELECTING, until some server offers something.
        let mut backoff = Backoff::new();
        let mut silent = 0_u32;
        loop {
            let transaction = self.transaction(began);
            let wait = backoff.next();
            let offer = socket
                .ask(&transaction, Question::Discover, wait, |answer| {
                    matches!(answer, Answer::Offer(_))
                })
                .await?;
            let Some(Answer::Offer(offer)) = offer else {
                silent += 1;
                if silent == REQUEST_ATTEMPTS {
                    tell(Event::Trouble(format!(
                        "No DHCP server answers on {}; check the cable and the server",
                        self.name
                    )));
                }
                continue;
            };
            let question = Question::Select {
                address: offer.address,
                server: offer.server,
            };
            // The server knows its offer by the transaction's id.
            match request(&socket, &transaction, question, REQUEST_ATTEMPTS).await? {
                Some((Answer::Ack(lease), asked)) => return Ok((lease, asked)),
                Some(_) => {
                    tell(Event::Trouble(format!(
                        "The DHCP server {} on {} offered {} and then refused it",
                        offer.server, self.name, offer.address
                    )));
                    // A server that keeps doing so must not be flooded.
                    sleep(backoff.next()).await;
                }
                None => {}
            }
        }
    }

    /// BOUND, RENEWING and REBINDING: the prolonged lease, or none when the address is lost.
    async fn keep(
        &self,
        lease: &Lease,
        granted: Instant,
        tell: &mut impl FnMut(Event),
    ) -> Option<(Lease, Instant)> {
        let Some(lifetime) = lease.lease_time else {
            return std::future::pending().await;
        };
        let (rebind, end) = (granted + lease.rebind_after, granted + lifetime);
        sleep_until(granted + lease.renew_after).await;
        let phases = [(rebind, lease.server), (end, Ipv4Addr::BROADCAST)];
        for (until, server) in phases {
            match self.prolong(lease.address, server, until).await {
                Ok(Some((Answer::Ack(new), asked))) if new.address == lease.address => {
                    return Some((new, asked));
                }
                Ok(Some(_)) => return None,
                Ok(None) => tell(Event::Trouble(format!(
                    "The DHCP server {server} on {} does not prolong the lease of {}",
                    self.name, lease.address
                ))),
                Err(error) => {
                    tell(Event::Trouble(format!(
                        "The lease of {} on {} cannot be prolonged: {error}",
                        lease.address, self.name
                    )));
                    sleep_until(until).await;
                }
            }
        }
        None
    }

    /// Asks to prolong until there is an answer or the time is over.
    async fn prolong(
        &self,
        address: Ipv4Addr,
        server: Ipv4Addr,
        until: Instant,
    ) -> io::Result<Option<(Answer, Instant)>> {
        let socket = Bound::open(&self.name, address)?;
        let began = Instant::now();
        let transaction = self.transaction(began);
        let question = Question::Prolong { address };
        loop {
            let asked = Instant::now();
            let left = until.saturating_duration_since(asked);
            if left.is_zero() {
                return Ok(None);
            }
            // Half of what is left, but not too often (RFC 2131, section 4.4.5).
            let wait = (left / 2).max(PROLONG_PAUSE).min(left);
            let accept = |answer: &Answer| settles(answer, question);
            match socket.ask(&transaction, question, server, wait, accept).await {
                Ok(Some(answer)) => return Ok(Some((answer, asked))),
                Ok(None) => {}
                // The way to the server is interrupted; it may come back.
                Err(_) => sleep(PAUSE.min(left)).await,
            }
        }
    }

    fn transaction(&self, began: Instant) -> message::Transaction<'_> {
        message::Transaction {
            id: exchange::random(),
            mac: self.mac,
            hostname: self.config.hostname.as_deref(),
            since: began.elapsed(),
        }
    }
}

/// REQUESTING and REBOOTING: the answer and when the request was sent, or none.
async fn request(
    socket: &Unbound,
    transaction: &message::Transaction<'_>,
    question: Question,
    attempts: u32,
) -> io::Result<Option<(Answer, Instant)>> {
    let mut backoff = Backoff::new();
    for _ in 0..attempts {
        let asked = Instant::now();
        let accept = |answer: &Answer| settles(answer, question);
        let answer = socket.ask(transaction, question, backoff.next(), accept).await?;
        if let Some(answer) = answer {
            return Ok(Some((answer, asked)));
        }
    }
    Ok(None)
}

/// Whether an answer decides a request: a grant of what was asked for, or a refusal by the server
/// that was asked.
fn settles(answer: &Answer, question: Question) -> bool {
    match (answer, question) {
        (Answer::Ack(lease), Question::Select { server, .. }) => lease.server == server,
        (Answer::Nak { server: Some(by) }, Question::Select { server, .. }) => *by == server,
        (Answer::Ack(_) | Answer::Nak { .. }, _) => true,
        (Answer::Offer(_), _) => false,
    }
}
