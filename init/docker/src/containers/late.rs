//! What a container has said that is not in its log yet when its end is settled: the pool is full, or slow.
//!
//! The container has ended for everybody, and can be removed; only a new start waits for its log. Process 1
//! keeps the output meanwhile, under a key of its own, so that a successor goes on with it.

use std::sync::Arc;

use store::Store;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use zones::Stdio;
use zones::log::{Life, Writer};

use super::container::Container;
use super::run::{self, report};
use crate::engine::Engine;
use crate::http::{Result, blocking};
use crate::streams::{BREATH, Streams};

/// Ends the key of such an output, after the container's id.
const OUTPUT: &str = ".output";

fn key(id: &str) -> String {
    format!("{id}{OUTPUT}")
}

/// The id of the container whose late output has this key.
pub(super) fn of(key: &str) -> Option<&str> {
    key.strip_suffix(OUTPUT)
}

/// Gives back everything that a container had that has ended, but for its output.
pub(super) async fn retire(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>) {
    run::release(engine, container, store).await;
    let id = &container.id;
    let retired = engine.zones.retire_zone(id, &key(id)).await;
    report(id, "clean up after it", retired.map_err(Into::into));
}

/// Has process 1 forget the output when `reading` has taken it to the log.
pub(super) fn forget_after(engine: &Arc<Engine>, id: &str, reading: JoinHandle<()>) {
    let (engine, id) = (engine.clone(), id.to_owned());
    tokio::spawn(async move {
        let _ = reading.await;
        forget(&engine, &id).await;
    });
}

pub(super) async fn forget(engine: &Engine, id: &str) {
    let forgotten = engine.zones.acknowledge(&key(id)).await;
    report(id, "give up its output", forgotten.map_err(Into::into));
}

/// Goes on with an output that a predecessor has left.
pub(super) fn adopt(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>, stdio: Stdio) {
    // From now on a start waits for it.
    let turn = run::free_log_turn(container);
    let (engine, container, store) = (engine.clone(), container.clone(), store.clone());
    tokio::spawn(async move {
        let heard = match turn {
            Ok(turn) => hear(&engine, &container, &store, stdio, turn).await,
            Err(error) => Err(error),
        };
        report(&container.id, "take the rest of what it said", heard);
        forget(&engine, &container.id).await;
    });
}

async fn hear(
    engine: &Engine,
    container: &Arc<Container>,
    store: &Arc<Store>,
    stdio: Stdio,
    _turn: OwnedMutexGuard<()>,
) -> Result<()> {
    let Some(writer) = opened(container, store).await? else {
        return Ok(());
    };
    // Not the container's: those are for its next process.
    let streams = Streams::default();
    let key = key(&container.id);
    let ends = streams.open(stdio, &engine.zones, &key).map_err(run::unheard)?;
    let relay = run::relay(engine, &key, &ends).await?;
    streams.record(ends, relay, writer, &container.id).await;
    Ok(())
}

/// The log, when it can be written; none where there is none any more.
async fn opened(container: &Arc<Container>, store: &Arc<Store>) -> Result<Option<Writer>> {
    let mut told = false;
    while !container.life.borrow().removed {
        let (owned, store) = (container.clone(), store.clone());
        match blocking(move || run::open_writer(&store, &owned, Life::Continued)).await {
            Ok(writer) => return Ok(writer),
            Err(error) if told => drop(error),
            failed => report(&container.id, "open its log", failed.map(drop)),
        }
        told = true;
        tokio::time::sleep(BREATH).await;
    }
    Ok(None)
}
