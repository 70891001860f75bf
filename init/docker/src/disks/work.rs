//! A change of the pool under way.

use std::sync::Arc;

use serde::Serialize;
use serde_json::json;
use store::disk::Disk;
use store::{Members, Store};
use tokio::sync::watch;

use super::{Change, find_disk, find_member, history, state};
use crate::engine::Engine;
use crate::http::{ApiError, Response, Result, ndjson};

/// How far something is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) struct Stage {
    verb: &'static str,
    /// What is being done right now.
    phase: String,
    done: u64,
    /// In the unit of `done`; 0 while it is not known.
    total: u64,
}

/// What is being done to the pool, if anything.
pub(crate) struct Work(watch::Sender<Option<Stage>>);

impl Default for Work {
    fn default() -> Self {
        Self(watch::channel(None).0)
    }
}

impl Work {
    pub(crate) fn now(&self) -> Option<Stage> {
        self.0.borrow().clone()
    }

    /// # Errors
    /// Something else is being done.
    fn start(&self, verb: &'static str) -> Result<()> {
        let mut other = None;
        self.0.send_if_modified(|stage| {
            other.clone_from(stage);
            let free = stage.is_none();
            if free {
                *stage = Some(Stage {
                    verb,
                    phase: "beginning".to_owned(),
                    done: 0,
                    total: 0,
                });
            }
            free
        });
        match other {
            None => Ok(()),
            Some(stage) => Err(ApiError::conflict(format!(
                "The pool is being changed ({}: {}); wait until that is done.",
                stage.verb, stage.phase
            ))),
        }
    }

    fn tell(&self, phase: &str, done: u64, total: u64) {
        self.0.send_modify(|stage| {
            if let Some(stage) = stage {
                phase.clone_into(&mut stage.phase);
                (stage.done, stage.total) = (done, total);
            }
        });
    }

    fn end(&self) {
        self.0.send_replace(None);
    }
}

impl Change {
    fn verb(&self) -> &'static str {
        match self {
            Self::Create(..) => "create",
            Self::Add(_) => "add",
            Self::Remove(_) => "remove",
            Self::Replace { .. } => "replace",
            Self::Scrub => "scrub",
        }
    }

    /// Does it; may take hours.
    fn run(
        &self,
        engine: &Engine,
        store: &Store,
        all: &[Disk],
        tell: &mut dyn FnMut(&str, u64, u64),
    ) -> Result<()> {
        let members = Members::open(store.path())?;
        let state = state(store)?;
        let disks = |names: &[String]| -> Result<Vec<&Disk>> {
            names.iter().map(|name| find_disk(all, name)).collect()
        };
        match self {
            Self::Create(names, encryption) => {
                let locks = encryption.as_ref().map(|encryption| encryption.locks(engine));
                members.move_to(&disks(names)?, &locks.transpose()?.unwrap_or_default(), tell)?;
            }
            Self::Add(names) => members.add(&disks(names)?, tell)?,
            Self::Remove(name) => members.remove(find_member(&state, name)?.id, tell)?,
            Self::Replace { old, new } => {
                members.replace(find_member(&state, old)?.id, find_disk(all, new)?, tell)?;
            }
            Self::Scrub => {
                let found = members.scrub(tell)?;
                history::keep(store, found)?;
            }
        }
        if let Self::Replace { old, .. } | Self::Remove(old) = self {
            let id = find_member(&state, old)?.id;
            history::forget(store, id)?;
        }
        history::remember(store)
    }
}

/// Starts a change and gives the answer that tells of it.
pub(super) fn begin(
    engine: &Arc<Engine>,
    store: Arc<Store>,
    change: Change,
    disks: Vec<Disk>,
) -> Result<Response> {
    let (sender, response) = ndjson();
    let mut stages = engine.pool_work.0.subscribe();
    let running = start(engine, store, change, disks)?;
    tokio::spawn(async move {
        while stages.changed().await.is_ok() {
            let Some(stage) = stages.borrow_and_update().clone() else {
                break;
            };
            if sender.send_json(&stage).await.is_err() {
                return;
            }
        }
        let last = match running.await {
            Ok(Ok(())) => json!({"done": true}),
            Ok(Err(error)) => json!({"error": error.message}),
            Err(_) => json!({"error": "The work on the pool has failed."}),
        };
        let _ = sender.send_json(&last).await;
    });
    Ok(response)
}

/// Starts a change, which goes on whoever waits for it.
pub(super) fn start(
    engine: &Arc<Engine>,
    store: Arc<Store>,
    change: Change,
    disks: Vec<Disk>,
) -> Result<tokio::task::JoinHandle<Result<()>>> {
    engine.pool_work.start(change.verb())?;
    let engine = engine.clone();
    Ok(tokio::task::spawn_blocking(move || {
        let verb = change.verb();
        let done = change.run(&engine, &store, &disks, &mut |phase, done, total| {
            engine.pool_work.tell(phase, done, total);
        });
        engine.pool_work.end();
        match &done {
            Ok(()) => eprintln!("pool: {verb} is done"),
            Err(error) => eprintln!("pool: {verb} has failed. {error}"),
        }
        done
    }))
}

/// Brings every block to as many disks as it should be on, which an earlier change has not come to.
pub(super) fn settle(engine: &Arc<Engine>, store: &Store) -> Result<()> {
    engine.pool_work.start("settle")?;
    let settled = Members::open(store.path()).and_then(|members| {
        members.settle(&mut |phase, done, total| engine.pool_work.tell(phase, done, total))
    });
    engine.pool_work.end();
    Ok(settled?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_change_at_a_time() {
        let work = Work::default();
        work.start("add").unwrap();
        work.tell("copying", 3, 10);
        let refusal = work.start("scrub").unwrap_err().message;
        assert!(refusal.contains("add: copying"), "{refusal}");
        assert_eq!(work.now().map(|stage| (stage.done, stage.total)), Some((3, 10)));
        work.end();
        assert_eq!(work.now(), None);
        work.start("scrub").unwrap();
    }
}
