//! Ending a container on somebody's wish: stop, kill, remove.
//!
//! A wish that meets a start under way waits for it, so that a container between two starts of its
//! restart policy is ended as surely as one that runs.

use std::sync::Arc;
use std::time::Duration;

use store::Store;
use zones::Process;

use super::container::{Container, Life, Status, Turn, log_path, states};
use super::run::report;
use super::{pause, spec};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};
use crate::volumes;

/// How long a request that kills a container waits for its end.
const KILL_LIMIT: Duration = Duration::from_secs(10);
/// Numbers that are the same on every Linux.
pub(crate) const SIGKILL: i32 = 9;
const SIGTERM: i32 = 15;

/// The process, or where there is none the turn: nobody starts the container while it is held.
enum Found {
    Running(Arc<Process>),
    Idle(Turn),
}

async fn find(container: &Container) -> Found {
    if let Some(process) = container.process() {
        return Found::Running(process);
    }
    let turn = container.turn().await;
    match container.process() {
        Some(process) => Found::Running(process),
        None => Found::Idle(turn),
    }
}

/// Asks it to end, and after `limit` ends it; false if it does not run. None waits for ever.
pub(crate) async fn stop(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    signal: Option<i32>,
    limit: Option<Duration>,
) -> Result<bool> {
    let process = match find(container).await {
        Found::Running(process) => process,
        Found::Idle(_turn) => return cancel_restart(engine, container).await,
    };
    let mut life = container.life.subscribe();
    let exits = life.borrow_and_update().exits;
    note_wish(engine, container).await?;
    let own = container
        .record()
        .config
        .stop_signal
        .and_then(|name| spec::parse_signal(&name).ok());
    send(engine, container, &process, signal.or(own).unwrap_or(SIGTERM))?;
    pause::wake(engine, container).await?;
    let ended = life.wait_for(|life| life.exits > exits || life.removed);
    let in_time = match limit {
        None => ended.await.is_ok(),
        Some(limit) => tokio::time::timeout(limit, ended).await.is_ok(),
    };
    if !in_time {
        send(engine, container, &process, SIGKILL)?;
        let _ = life.wait_for(|life| life.exits > exits || life.removed).await;
    }
    engine.tell("container", "stop", container);
    Ok(true)
}

/// Sends a signal; told of before it can have an effect, so that its end is told of later.
fn send(engine: &Engine, container: &Container, process: &Process, signal: i32) -> Result<()> {
    engine.tell_more("kill", container, [("signal", signal.to_string())]);
    Ok(process.signal(signal)?)
}

/// Notes that it is to stay down. Where a restart policy would start it again that is written before
/// anything is done, or a supervisor that comes in between would do so.
async fn note_wish(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    let restarts = {
        let mut record = container.lock();
        record.stopped = true;
        record.host.restart_policy.restarts()
    };
    if restarts {
        let (store, owned) = (engine.store().await?, container.clone());
        blocking(move || owned.save(&store)).await?;
    }
    Ok(())
}

/// A container that waits for its restart stays down, also after a boot. False if it does not wait.
/// The caller holds the container's turn.
async fn cancel_restart(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<bool> {
    {
        let mut record = container.lock();
        if record.status != Status::Restarting {
            return Ok(false);
        }
        record.status = Status::Exited;
        record.stopped = true;
    }
    let (store, owned) = (engine.store().await?, container.clone());
    blocking(move || owned.save(&store)).await?;
    Ok(true)
}

pub(crate) async fn kill(engine: &Arc<Engine>, container: &Arc<Container>, signal: i32) -> Result<()> {
    let process = container.running().map_err(|_| {
        let name = container.record().name;
        ApiError::conflict(format!(
            "cannot kill container: {name}: container {} is not running",
            container.id
        ))
    })?;
    if matches!(signal, SIGKILL | SIGTERM) {
        note_wish(engine, container).await?;
    }
    let mut life = container.life.subscribe();
    let exits = life.borrow_and_update().exits;
    send(engine, container, &process, signal)?;
    pause::wake(engine, container).await?;
    if signal == SIGKILL {
        // As with Docker: who has killed a container finds it ended.
        let ended = life.wait_for(|life| life.exits > exits || life.removed);
        let _ = tokio::time::timeout(KILL_LIMIT, ended).await;
    }
    Ok(())
}

/// Removes a container; one that runs only by force. With `volumes` those go too that were made for it.
pub(crate) async fn remove(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    force: bool,
    volumes: bool,
) -> Result<()> {
    let store = engine.store().await?;
    let Ok(_removal) = container.removal.try_lock() else {
        return Err(ApiError::conflict(format!(
            "removal of container {} is already in progress",
            container.id
        )));
    };
    loop {
        match find(container).await {
            Found::Idle(_turn) => {
                let volumes = volumes || container.lock().host.auto_remove;
                return remove_in_turn(engine, container, &store, volumes).await;
            }
            Found::Running(_) if !force => {
                let name = container.record().name;
                return Err(ApiError::conflict(format!(
                    "cannot remove container \"/{name}\": container is running: stop the container before removing or force remove"
                )));
            }
            Found::Running(process) => {
                let mut life = container.life.subscribe();
                let exits = life.borrow_and_update().exits;
                container.lock().stopped = true;
                send(engine, container, &process, SIGKILL)?;
                pause::wake(engine, container).await?;
                drop(process);
                let running = |life: &Life| life.running && life.exits == exits;
                let _ = life.wait_for(|life| !running(life)).await;
            }
        }
    }
}

/// Removes a container that has ended by itself, or whose removal was cut short; its turn is held. Where a
/// request removes it just now, that does.
pub(super) async fn remove_ended(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>) {
    if container.removal.try_lock().is_err() {
        return;
    }
    // Whoever asked for a removal that was cut short may want to keep the volumes.
    let volumes = container.lock().host.auto_remove;
    let removed = remove_in_turn(engine, container, store, volumes).await;
    report(&container.id, "remove it", removed);
}

/// The caller holds the container's turn.
async fn remove_in_turn(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    volumes: bool,
) -> Result<()> {
    if container.life.borrow().removed {
        return Ok(());
    }
    container.lock().status = Status::Removing;
    let (kept, id) = (store.clone(), container.id.clone());
    if let Err(error) = blocking(move || erase(&kept, &id)).await {
        return Err(mark_dead(container, store, &error).await);
    }
    engine.containers.remove(&container.id);
    engine.tell("container", "destroy", container);
    container.streams.close();
    let discarded = if volumes {
        volumes::discard_of(engine, store, &container.record()).await
    } else {
        Ok(())
    };
    container.life.send_modify(|life| life.removed = true);
    discarded
}

/// Removes what is stored of it. Blocks.
fn erase(store: &Store, id: &str) -> Result<()> {
    store.remove_root(id)?;
    match std::fs::remove_dir_all(log_path(store, id)?) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
            return Err(ApiError::internal(format!("Cannot remove its log: {error}.")));
        }
        _ => {}
    }
    // The record last: what is half-removed can be removed again.
    Ok(states(store)?.remove(id)?)
}

/// Some of it is gone, so it cannot run any more; those who wait for its removal are told why it failed.
/// It is written only now, so that a removal that succeeds costs no write.
async fn mark_dead(container: &Arc<Container>, store: &Arc<Store>, error: &ApiError) -> ApiError {
    let text = format!(
        "container {}: driver \"btrfs\" failed to remove root filesystem: {error}",
        container.id
    );
    {
        let mut record = container.lock();
        record.status = Status::Dead;
        record.error.clone_from(&text);
    }
    let (kept, owned) = (store.clone(), container.clone());
    let written = blocking(move || owned.save(&kept)).await;
    report(&container.id, "write that it is dead", written);
    container.life.send_modify(|life| {
        life.failed_removals += 1;
        life.removal_error.clone_from(&text);
    });
    ApiError::internal(text)
}
