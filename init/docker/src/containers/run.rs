//! A container's life: its start, its end, its start again.
//!
//! One task per running container ([`bury`]) waits for its end and settles everything: state, network,
//! restart policy, removal. Nobody else does, so that an end is settled in the same way whether the
//! process ended by itself, was killed, or ended while no supervisor ran.

use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use store::Store;
use tokio::sync::OwnedMutexGuard;
use tokio::task::JoinHandle;
use zones::log::{Life as LogLife, Writer};
use zones::{ExitStatus, Pending, Process, StartError, Stdio};

use super::container::{Container, Record, Status, Turn, log_path, save};
use super::ending::{SIGKILL, remove_ended};
use super::modes::{self, Resolved};
use super::ready::{self, Ready};
use super::{health, late, root, told};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking, with_causes};
use crate::networks;
use crate::streams::{self, Ends};
use crate::volumes;

/// How long the rest of a container's output may hold up the settling of its end.
const OUTPUT_LIMIT: Duration = Duration::from_secs(5);
/// First pause before a restart by policy; doubled at each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LONGEST_PAUSE: Duration = Duration::from_secs(60);
/// A container that ran for so many seconds is taken for healthy: its pause begins anew.
const HEALTHY: i64 = 10;

/// Starts a container; false if it runs already.
pub(crate) async fn start(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<bool> {
    let store = engine.store().await?;
    let mut turn = container.turn_as_it_is().await;
    if container.process().is_some() {
        return Ok(false);
    }
    // Somebody wants it: its policy counts anew.
    container.lock().restarts = 0;
    start_in_turn(engine, container, &store, &mut turn)
        .await
        .map(|()| true)
}

async fn start_in_turn(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    turn: &mut Turn,
) -> Result<()> {
    if container.life.borrow().removed {
        return Err(ApiError::not_found(format!(
            "No such container: {}",
            container.id
        )));
    }
    if container.lock().status.is_going() {
        return Err(ApiError::conflict(
            "container is marked for removal and cannot be started",
        ));
    }
    if engine.ending() {
        return Err(ApiError::unavailable("The machine is going down."));
    }
    let mut record = container.record();
    record.status = Status::Running;
    record.started = zones::log::now();
    record.error.clear();
    record.stopped = false;
    let resolved = match networks::find_again(engine, record.networks.as_deref_mut().unwrap_or_default()) {
        Ok(()) => modes::resolve(engine, &record).await,
        Err(error) => Err(error),
    };
    let launched = match resolved {
        Ok(resolved) => {
            record.joined_first_id = resolved.ids.map(|ids| ids.host);
            launch(engine, container, store, &record, resolved, turn.take()).await
        }
        Err(error) => Err(error.into()),
    };
    if let Some(unused) = turn.take() {
        unused.give_up().await;
    }
    root::narrow(container, store).await;
    match launched {
        Ok(running) => {
            // A rename may have come meanwhile.
            record.name = container.lock().name.clone();
            *container.lock() = record;
            watch_over(engine, container, store, running);
            let record = container.record();
            told::network(engine, &record, "connect");
            volumes::tell_use(engine, &record, true);
            engine.tell("container", "start", container);
            Ok(())
        }
        Err(error) => {
            let error = explain(error);
            fail(engine, container, store, &error).await;
            Err(error.api)
        }
    }
}

pub(super) struct Failure {
    pub(super) api: ApiError,
    pub(super) code: i32,
}

/// A start that failed, with the texts by which docker's command line chooses its exit code.
fn explain(error: LaunchError) -> Failure {
    match error {
        LaunchError::Api(api) => Failure { api, code: 128 },
        LaunchError::Start(error) => {
            let code = error.exit_code();
            let text = format!(
                "failed to create task for container: failed to create shim task: OCI runtime create failed: unable to start container process: {}",
                with_causes(&error)
            );
            let api = if matches!(error, StartError::Other(_)) {
                ApiError::internal(text)
            } else {
                ApiError::bad_request(text)
            };
            Failure { api, code }
        }
    }
}

pub(super) enum LaunchError {
    Api(ApiError),
    Start(StartError),
}

impl<E: Into<ApiError>> From<E> for LaunchError {
    fn from(error: E) -> Self {
        Self::Api(error.into())
    }
}

/// A process and what is needed to hear it.
struct Running {
    process: Process,
    ends: Ends,
    /// None where nothing is kept.
    log: Option<Log>,
}

/// A log that is written, by nobody else meanwhile.
struct Log {
    writer: Writer,
    turn: OwnedMutexGuard<()>,
}

/// Runs the program. The record is written while other things are done; the write has ended when this
/// returns, so that none of a failed start comes after what tells of the failure.
async fn launch(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    record: &Record,
    resolved: Resolved,
    ready: Option<Ready>,
) -> Result<Running, LaunchError> {
    // The log is opened before anything runs: what a full pool does not take fails the start here.
    let writing = async {
        let turn = tokio::time::timeout(OUTPUT_LIMIT, container.log_turn.clone().lock_owned()).await;
        let turn = turn.map_err(|_| {
            ApiError::conflict(format!(
                "container {} cannot start: its last output waits to be written, for want of room in the pool",
                container.id
            ))
        })?;
        let (store, record, container) = (store.clone(), record.clone(), container.clone());
        blocking(move || {
            save(&store, &record)?;
            open_log(&store, &container, LogLife::New, turn)
        })
        .await
    };
    let setting_up = async {
        let ready = match ready {
            Some(ready) if ready.is_for(record) => ready,
            other => {
                if let Some(outdated) = other {
                    outdated.give_up().await;
                }
                ready::set_up(engine, container, store, record, resolved).await?
            }
        };
        ready.publish(record).await
    };
    let (written, pending) = tokio::join!(writing, setting_up);
    let pending: Pending = pending?;
    let log = written?;
    let (process, stdio) = pending.release().await.map_err(LaunchError::Start)?;
    match container.streams.open(stdio, &engine.zones, &container.id) {
        Ok(ends) => Ok(Running { process, ends, log }),
        Err(error) => {
            // Nobody could hear it; nothing of it may stay.
            let _ = process.signal(SIGKILL);
            engine.zones.exited(&container.id).await;
            engine.zones.acknowledge_zone(&container.id).await?;
            Err(unheard(error).into())
        }
    }
}

pub(super) fn unheard(error: std::io::Error) -> ApiError {
    ApiError::internal(format!("Cannot take the container's output: {error}."))
}

/// None where nothing is kept.
fn open_log(
    store: &Store,
    container: &Container,
    life: LogLife,
    turn: OwnedMutexGuard<()>,
) -> Result<Option<Log>> {
    let writer = open_writer(store, container, life)?;
    Ok(writer.map(|writer| Log { writer, turn }))
}

/// The turn to write the log of a container that was just read: nobody else has written it.
pub(super) fn free_log_turn(container: &Container) -> Result<OwnedMutexGuard<()>> {
    let turn = container.log_turn.clone().try_lock_owned();
    turn.map_err(|_| ApiError::internal("The container's log is in use."))
}

/// As [`open_log`]; the caller has its turn.
pub(super) fn open_writer(store: &Store, container: &Container, life: LogLife) -> Result<Option<Writer>> {
    let Some(limits) = container.lock().host.log_config.limits()? else {
        return Ok(None);
    };
    let dir = log_path(store, &container.id)?;
    let opened = Writer::open(&dir, limits, life, container.log.clone());
    opened.map(Some).map_err(unheard)
}

/// Puts right what the end of the machine has left of the log of a container that does not run.
pub(super) async fn mend_log(container: &Arc<Container>, store: &Arc<Store>) -> Result<()> {
    let turn = container.log_turn.clone().lock_owned().await;
    let (store, container) = (store.clone(), container.clone());
    blocking(move || open_log(&store, &container, LogLife::New, turn).map(drop)).await
}

/// Settles a start that failed.
pub(super) async fn fail(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    failure: &Failure,
) {
    let record = {
        let mut record = container.lock();
        if record.status != Status::Created {
            record.status = Status::Exited;
        }
        record.exit_code = failure.code;
        record.error.clone_from(&failure.api.message);
        record.finished = zones::log::now();
        record.clone()
    };
    container.streams.close();
    disconnect(engine, &container.id).await;
    let released = volumes::release(engine, store, &record).await;
    report(&container.id, "release its volumes", released);
    let (kept, id) = (store.clone(), container.id.clone());
    let written = blocking(move || save(&kept, &record)).await;
    report(&id, "write its state", written);
    container.life.send_modify(|life| {
        life.running = false;
        life.exits += 1;
        life.code = failure.code;
    });
    if container.record().host.auto_remove {
        remove_ended(engine, container, store).await;
    }
}

/// What nobody waits for goes to the console.
pub(super) fn report(id: &str, action: &str, done: Result<()>) {
    if let Err(error) = done {
        eprintln!("container {id}: cannot {action}: {error}");
    }
}

async fn disconnect(engine: &Arc<Engine>, id: &str) {
    let Some(network) = engine.network_now() else {
        return;
    };
    let owned = id.to_owned();
    let left = blocking(move || network.ended(&owned)).await;
    report(id, "take it off the network", left);
}

/// Takes a process that runs, just started or found: its output, its end.
fn watch_over(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>, running: Running) {
    let Running { process, ends, log } = running;
    let pumping = tokio::spawn(hear(engine.clone(), container.clone(), ends, log));
    container.set_process(Some(Arc::new(process)));
    container.life.send_modify(|life| life.running = true);
    health::watch(engine, container);
    tokio::spawn(bury(engine.clone(), container.clone(), store.clone(), pumping));
}

/// Takes what the process says to where it is to go.
async fn hear(engine: Arc<Engine>, container: Arc<Container>, ends: Ends, log: Option<Log>) {
    let Some(Log { writer, turn }) = log else {
        return container.streams.pump(ends).await;
    };
    // Checked when the container was made.
    let buffer = container.lock().host.log_config.buffer().unwrap_or_default();
    let ends = match buffer {
        None => ends,
        Some(most) => match streams::buffered(ends, most) {
            Ok(ends) => ends,
            Err(error) => return report(&container.id, "hear it", Err(unheard(error))),
        },
    };
    let relay = match relay(&engine, &container.id, &ends).await {
        Ok(relay) => relay,
        Err(error) => return report(&container.id, "hear its terminal", Err(error)),
    };
    container.streams.record(ends, relay, writer, &container.id).await;
    drop(turn);
}

/// What a terminal's words pass through on their way to the log; `key` is the process's.
pub(super) async fn relay(engine: &Engine, key: &str, ends: &Ends) -> Result<Option<OwnedFd>> {
    if !ends.is_terminal() {
        return Ok(None);
    }
    Ok(Some(engine.zones.relay(key).await?))
}

/// Waits for the end and settles it.
async fn bury(
    engine: Arc<Engine>,
    container: Arc<Container>,
    store: Arc<Store>,
    mut pumping: JoinHandle<()>,
) {
    // None: process 1 is gone, and the machine with it.
    let Some(exit) = engine.zones.exited(&container.id).await else {
        return;
    };
    container.streams.hurry();
    let heard = tokio::time::timeout(OUTPUT_LIMIT, &mut pumping).await;
    let late = heard.is_err() && container.keeps_log();
    if heard.is_err() && !late {
        pumping.abort();
    }
    let _turn = container.turn().await;
    let restart = settle(&engine, &container, exit);
    let cleanup = {
        let (store, container) = (store.clone(), container.clone());
        blocking(move || container.save(&store))
    };
    let ((), written) = tokio::join!(disconnect(&engine, &container.id), cleanup);
    report(&container.id, "write its state", written);
    health::forget(&engine, &container).await;
    // Process 1 forgets it last: what is not done by then, a successor does.
    if late {
        // It is in the pipes, and goes on waiting for room in the pool without the process.
        late::retire(&engine, &container, &store).await;
        late::forget_after(&engine, &container.id, pumping);
    } else {
        give_back(&engine, &container, &store).await;
    }
    if container.record().host.auto_remove {
        remove_ended(&engine, &container, &store).await;
    } else if let Some(pause) = restart {
        tokio::spawn(start_again(engine.clone(), container.clone(), pause));
    }
}

/// Does what a predecessor did not do any more after an end that it has noted. `stdio` is where the rest
/// of what it said may be.
pub(super) async fn clean_up(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    stdio: Option<Stdio>,
) {
    disconnect(engine, &container.id).await;
    match stdio {
        Some(stdio) if container.keeps_log() && !container.record().host.auto_remove => {
            late::retire(engine, container, store).await;
            late::adopt(engine, container, store, stdio);
        }
        _ => give_back(engine, container, store).await,
    }
}

async fn give_back(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>) {
    release(engine, container, store).await;
    let acknowledged = engine.zones.acknowledge_zone(&container.id).await;
    report(
        &container.id,
        "clean up after it",
        acknowledged.map_err(Into::into),
    );
}

pub(super) async fn release(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>) {
    let released = volumes::release(engine, store, &container.record()).await;
    report(&container.id, "release its volumes", released);
}

/// When it ended, as records have it.
fn moment(exit: ExitStatus) -> String {
    zones::log::timestamp(ended_at(exit))
}

fn ended_at(exit: ExitStatus) -> time::OffsetDateTime {
    let at = time::OffsetDateTime::from_unix_timestamp_nanos(i128::from(exit.at) * 1000);
    at.unwrap_or(time::OffsetDateTime::UNIX_EPOCH)
}

/// Notes the end and tells those who wait for it. The pause before the next start, if one is due.
fn settle(engine: &Arc<Engine>, container: &Arc<Container>, exit: ExitStatus) -> Option<Duration> {
    let pause = {
        let mut record = container.lock();
        record.status = Status::Exited;
        record.exit_code = exit.code;
        record.oom_killed = exit.oom_killed;
        record.finished = moment(exit);
        let pause = next_start(&record).filter(|_| !engine.ending());
        if pause.is_some() {
            record.status = Status::Restarting;
            record.restarts += 1;
        }
        pause
    };
    health::end(container);
    container.set_process(None);
    container.streams.close();
    container.life.send_modify(|life| {
        life.running = false;
        life.exits += 1;
        life.code = exit.code;
    });
    if exit.oom_killed {
        engine.tell("container", "oom", container);
    }
    let record = container.record();
    told::network(engine, &record, "disconnect");
    volumes::tell_use(engine, &record, false);
    let lasted = ["exitCode", "execDuration"]
        .into_iter()
        .zip([exit.code.to_string(), lasted(&record).to_string()]);
    engine.tell_more("die", container, lasted);
    pause
}

/// Whole seconds from its start to its end.
fn lasted(record: &Record) -> i64 {
    let time = |text| time::OffsetDateTime::parse(text, &time::format_description::well_known::Rfc3339);
    match (time(&record.started), time(&record.finished)) {
        (Ok(started), Ok(finished)) => (finished - started).whole_seconds().max(0),
        _ => 0,
    }
}

/// Whether the restart policy asks for another start, and after which pause.
pub(super) fn next_start(record: &Record) -> Option<Duration> {
    let policy = &record.host.restart_policy;
    let due = !record.stopped
        && match policy.name.as_str() {
            "always" | "unless-stopped" => true,
            "on-failure" => {
                let most = policy.maximum_retry_count;
                record.exit_code != 0 && (most <= 0 || i64::from(record.restarts) < most)
            }
            _ => false,
        };
    let doublings = if lasted(record) >= HEALTHY {
        0
    } else {
        record.restarts.min(16)
    };
    due.then(|| (FIRST_PAUSE * 2u32.pow(doublings)).min(LONGEST_PAUSE))
}

pub(super) async fn start_again(engine: Arc<Engine>, container: Arc<Container>, pause: Duration) {
    tokio::time::sleep(pause).await;
    let Ok(store) = engine.store().await else { return };
    let mut turn = container.turn().await;
    // Stopped, started or removed meanwhile.
    if container.lock().status != Status::Restarting || container.process().is_some() {
        return;
    }
    let started = start_in_turn(&engine, &container, &store, &mut turn).await;
    report(&container.id, "start it again", started);
}

/// Takes over a container that was found: running, or recorded so.
pub(crate) fn adopt(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
    process: Process,
    stdio: Stdio,
) -> Result<()> {
    let stdio = without_lost_input(engine, container, stdio);
    let log = open_log(store, container, LogLife::Continued, free_log_turn(container)?)?;
    let ends = container.streams.open(stdio, &engine.zones, &container.id);
    let ends = ends.map_err(unheard)?;
    let (owned, kept) = (container.clone(), store.clone());
    // The predecessor may have died before it did.
    tokio::spawn(async move { root::narrow(&owned, &kept).await });
    watch_over(engine, container, store, Running { process, ends, log });
    Ok(())
}

/// The one client whose input it was to have has gone with the predecessor, so that input is at its end.
fn without_lost_input(engine: &Arc<Engine>, container: &Arc<Container>, stdio: Stdio) -> Stdio {
    match stdio {
        Stdio::Pipes {
            stdin: Some(_),
            stdout,
            stderr,
        } if container.lock().config.stdin_once => {
            let (engine, id) = (engine.clone(), container.id.clone());
            tokio::spawn(async move {
                let closed = engine.zones.close_input(&id).await;
                report(&id, "close its input", closed.map_err(Into::into));
            });
            Stdio::Pipes {
                stdin: None,
                stdout,
                stderr,
            }
        }
        other => other,
    }
}
