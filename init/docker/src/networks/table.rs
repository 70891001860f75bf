//! All networks of the machine: Docker's three own ones, and those that were made.

use std::collections::BTreeMap;
use std::sync::{Arc, PoisonError, RwLock};

use store::{Digest, Store};

use super::record::{Network, states};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};

/// Docker's own networks, so that clients know them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Builtin {
    Bridge,
    Host,
    None,
}

pub(crate) const BUILTIN: [Builtin; 3] = [Builtin::Bridge, Builtin::Host, Builtin::None];

impl Builtin {
    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "none",
        }
    }

    pub(crate) fn driver(self) -> &'static str {
        match self {
            Self::Bridge => "bridge",
            Self::Host => "host",
            Self::None => "null",
        }
    }

    /// The same on every machine, since what it names is.
    pub(crate) fn id(self) -> String {
        Digest::of(format!("network {}", self.name()).as_bytes()).hex()
    }
}

/// A network that was found.
#[derive(Debug, Clone)]
pub(crate) enum Found {
    Builtin(Builtin),
    Made(Arc<Network>),
}

impl Found {
    pub(crate) fn name(&self) -> &str {
        match self {
            Self::Builtin(builtin) => builtin.name(),
            Self::Made(network) => &network.name,
        }
    }

    pub(crate) fn id(&self) -> String {
        match self {
            Self::Builtin(builtin) => builtin.id(),
            Self::Made(network) => network.id.clone(),
        }
    }

    pub(crate) fn driver(&self) -> &'static str {
        match self {
            Self::Builtin(builtin) => builtin.driver(),
            Self::Made(_) => "bridge",
        }
    }
}

/// The networks that were made, by id.
#[derive(Default)]
pub(crate) struct Table {
    made: RwLock<BTreeMap<String, Arc<Network>>>,
    /// Held by whoever makes or removes one.
    pub(super) turn: tokio::sync::Mutex<()>,
}

impl Table {
    pub(crate) fn made(&self) -> Vec<Arc<Network>> {
        let made = self.made.read().unwrap_or_else(PoisonError::into_inner);
        made.values().cloned().collect()
    }

    pub(super) fn put(&self, network: Network) -> Arc<Network> {
        let network = Arc::new(network);
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        made.insert(network.id.clone(), network.clone());
        network
    }

    pub(super) fn take(&self, id: &str) {
        let mut made = self.made.write().unwrap_or_else(PoisonError::into_inner);
        made.remove(id);
    }

    /// By id, by name, or by the beginning of an id.
    pub(crate) fn find(&self, wanted: &str) -> Result<Found> {
        let builtin = BUILTIN.into_iter().map(Found::Builtin);
        let all: Vec<Found> = builtin.chain(self.made().into_iter().map(Found::Made)).collect();
        let whole = |found: &&Found| found.id() == wanted || found.name() == wanted;
        if let Some(found) = all.iter().find(whole) {
            return Ok(found.clone());
        }
        let mut begins = all
            .iter()
            .filter(|found| !wanted.is_empty() && found.id().starts_with(wanted));
        match (begins.next(), begins.count()) {
            (Some(found), 0) => Ok(found.clone()),
            (Some(_), more) => Err(ApiError::bad_request(format!(
                "network {wanted} is ambiguous ({} matches found based on ID prefix)",
                more + 1
            ))),
            (None, _) => Err(ApiError::not_found(format!("network {wanted} not found"))),
        }
    }
}

/// Reads the networks of the store and makes those that do not stand, or finds them with their zones. What
/// cannot be done is told on the console.
pub(crate) async fn restore(engine: &Engine, store: &Arc<Store>) {
    let Ok(networks) = engine.network().await else {
        return;
    };
    let store = store.clone();
    let read = blocking(move || {
        let states = states(&store)?;
        let (mut made, mut trouble) = (Vec::new(), Vec::new());
        for id in states.list()? {
            match states.read::<Network>(&id) {
                Ok(network) => made.push(network),
                Err(error) => trouble.push(error.to_string()),
            }
        }
        let bridges: Vec<_> = made.iter().map(Network::bridge).collect();
        let refused = networks.restore(&bridges)?;
        trouble.extend(refused.iter().map(|error| crate::http::with_causes(error)));
        Ok::<_, ApiError>((made, trouble))
    });
    match read.await {
        Ok((made, trouble)) => {
            for network in made {
                engine.networks.put(network);
            }
            for text in trouble {
                eprintln!("networks: {text}");
            }
        }
        Err(error) => eprintln!("networks: cannot restore them: {error}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_found_by_name_and_by_the_beginning_of_its_id() {
        let table = Table::default();
        assert_eq!(table.find("bridge").unwrap().name(), "bridge");
        let id = Builtin::None.id();
        assert_eq!(table.find(&id[..12]).unwrap().driver(), "null");
        let missing = table.find("mine").unwrap_err();
        assert_eq!(missing.status, hyper::StatusCode::NOT_FOUND);
    }
}
