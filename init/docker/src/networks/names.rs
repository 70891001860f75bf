//! Who is called what on the networks of one's own: the directory of the name service.
//!
//! Nothing of it is kept: it follows from who is on which network, and from what the containers' records say,
//! at the moment of the question.

use std::collections::HashMap;
use std::net::IpAddr;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError, Weak};

use network::names::{About, Answer, Question, Sockets};
use network::{NAME_SERVICE, Networks};

use super::joined::Joined;
use super::record::Network;
use super::seat::names;
use super::table::Found;
use crate::containers::Record;
use crate::engine::Engine;

/// Names under which process 1 keeps the sockets.
const DATAGRAMS: &str = "names by datagrams";
const STREAMS: &str = "names by streams";

/// The sockets of a predecessor, until they are served.
#[derive(Default)]
pub(crate) struct Inherited(Mutex<Option<Sockets>>);

impl Inherited {
    pub(crate) fn of(kept: &mut HashMap<String, OwnedFd>) -> Self {
        let sockets = kept.remove(DATAGRAMS).zip(kept.remove(STREAMS));
        Self(Mutex::new(
            sockets.map(|(datagrams, streams)| Sockets::over(datagrams, streams)),
        ))
    }
}

/// Answers zones from now on; the containers and who is on which network are known. What cannot be done is
/// told on the console.
pub(crate) async fn serve(engine: &Arc<Engine>) {
    let inherited = {
        let mut inherited = engine.names.0.lock().unwrap_or_else(PoisonError::into_inner);
        inherited.take()
    };
    if engine.network_now().is_none() {
        return;
    }
    let sockets = match inherited {
        Some(sockets) => sockets,
        None => match open(engine).await {
            Ok(sockets) => sockets,
            Err(error) => return eprintln!("networks: there is no name service: {error}"),
        },
    };
    let turn = AtomicUsize::new(0);
    let known: Weak<Engine> = Arc::downgrade(engine);
    let directory = Arc::new(move |question: &Question| {
        let mut answer = known
            .upgrade()
            .and_then(|engine| look_up(&engine, question))
            .unwrap_or(Answer::Nothing);
        if let Answer::Addresses(addresses) = &mut answer
            && !addresses.is_empty()
        {
            // Each in its turn comes first, as most take only that.
            let first = turn.fetch_add(1, Ordering::Relaxed) % addresses.len();
            addresses.rotate_left(first);
        }
        answer
    });
    tokio::spawn(async move {
        if let Err(error) = network::names::serve(sockets, directory).await {
            eprintln!("networks: the name service has ended: {error}");
        }
    });
}

async fn open(engine: &Engine) -> std::io::Result<Sockets> {
    let sockets = Sockets::open()?;
    let keeper = engine.zones.keeper();
    for (name, fd) in [(DATAGRAMS, sockets.datagrams()), (STREAMS, sockets.streams())] {
        keeper.keep(name, fd).await.map_err(std::io::Error::other)?;
    }
    Ok(sockets)
}

/// None: nobody is at the address that asks.
fn look_up(engine: &Engine, question: &Question) -> Option<Answer> {
    let networks = engine.network_now()?;
    let zone = networks.zone_at(question.asker.into())?;
    let asker = engine.containers.find(&zone).ok()?.record();
    let own: Vec<(Joined, Arc<Network>)> = asker
        .joined()
        .into_iter()
        .filter_map(|joined| match engine.networks.find(&joined.id).ok()? {
            Found::Made(network) => Some((joined, network)),
            Found::Builtin(_) => None,
        })
        .collect();
    let found = match &question.about {
        About::Name(name) => {
            let addresses = addresses(engine, &networks, &own, name);
            (!addresses.is_empty()).then_some(Answer::Addresses(addresses))
        }
        About::Address(address) => {
            let names = names_at(engine, &networks, &own, *address);
            (!names.is_empty()).then_some(Answer::Names(names))
        }
    };
    // Who reaches nothing outside does not do so by names either.
    let outside =
        asker.joined().iter().any(Joined::is_usual) || own.iter().any(|(_, network)| !network.internal);
    Some(found.unwrap_or_else(|| match outside {
        true => Answer::Ask(servers(&asker)),
        false => Answer::Nothing,
    }))
}

fn addresses(
    engine: &Engine,
    networks: &Networks,
    own: &[(Joined, Arc<Network>)],
    name: &str,
) -> Vec<IpAddr> {
    let mut addresses = Vec::new();
    for (joined, network) in own {
        // With the network's name behind it, it is meant on that one alone.
        let suffix = format!(".{}", network.name.to_ascii_lowercase());
        let name = name.strip_suffix(&suffix).unwrap_or(name);
        let linked = joined.links.iter().find_map(|link| {
            let (target, alias) = link.split_once(':').unwrap_or((link, link));
            alias.eq_ignore_ascii_case(name).then_some(target)
        });
        let linked = linked.and_then(|target| Some(engine.containers.find(target).ok()?.id.clone()));
        for (id, endpoint) in networks.members(&network.link) {
            let called = || {
                let container = engine.containers.find(&id).ok()?;
                let record = container.lock();
                Some(is_called(&record, &network.id, name))
            };
            if linked.as_ref() == Some(&id) || called() == Some(true) {
                addresses.push(endpoint.address.into());
                addresses.extend(endpoint.v6.map(|v6| IpAddr::from(v6.address)));
            }
        }
    }
    addresses
}

fn is_called(record: &Record, network: &str, name: &str) -> bool {
    let joined = record.joined();
    let here = joined.iter().find(|joined| joined.id == network);
    here.is_some_and(|joined| {
        names(record, joined)
            .iter()
            .any(|own| own.eq_ignore_ascii_case(name))
    })
}

fn names_at(
    engine: &Engine,
    networks: &Networks,
    own: &[(Joined, Arc<Network>)],
    address: IpAddr,
) -> Vec<String> {
    let mut names = Vec::new();
    for (_, network) in own {
        for (id, endpoint) in networks.members(&network.link) {
            let v6 = endpoint.v6.map(|v6| IpAddr::from(v6.address));
            if (address == IpAddr::from(endpoint.address) || Some(address) == v6)
                && let Ok(container) = engine.containers.find(&id)
            {
                names.push(format!("{}.{}", container.lock().name, network.name));
            }
        }
    }
    names
}

/// The name servers that a container asked for, or the node's.
fn servers(asker: &Record) -> Vec<IpAddr> {
    let own: Vec<IpAddr> = asker
        .host
        .dns
        .iter()
        .filter_map(|text| text.parse().ok())
        .collect();
    if !own.is_empty() {
        return own;
    }
    // A small file in memory.
    let text = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers = text.lines().filter_map(|line| line.strip_prefix("nameserver"));
    servers
        .filter_map(|server| server.trim().parse().ok())
        .filter(|server| *server != IpAddr::from(NAME_SERVICE))
        .collect()
}
