//! Processes that are added to a running container.

mod ready;
mod restore;

use std::collections::HashMap;
use std::os::fd::AsFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use rustix::fs::{Mode, OFlags, open};
use rustix::process::{Pid, Signal, kill_process_group};
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};
use tokio::io::AsyncWriteExt;
use tokio::task::JoinHandle;
use zones::log::Stream;
use zones::{Pending, Process, StartError, TerminalSize};

use crate::containers::{Container, awake, logs, new_id, size, spec};
use crate::engine::Engine;
use crate::http::{ApiError, Hijack, Request, Response, Result, blocking, empty, json, ok, with_causes};
use crate::streams::{self, Attachment, Source, Streams, frame, parse_detach_keys};
use crate::users::Databases;
use ready::Slot;

pub(crate) use restore::{adopt, adopt_rest};

/// How long one that has ended can be asked for.
const REMEMBERED: Duration = Duration::from_secs(300);
/// How long a terminal's size waits for the terminal.
const TERMINAL_LIMIT: Duration = Duration::from_secs(10);
/// Begins the second half of the key of a process that the engine itself has added.
pub(crate) const PROBE: &str = "probe-";
/// How long what it left running may keep its output open.
const OUTPUT_LIMIT: Duration = Duration::from_secs(5);

/// All added processes, by id.
#[derive(Default)]
pub(crate) struct Execs(Mutex<HashMap<String, Arc<Exec>>>);

impl Execs {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Arc<Exec>>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, id: &str) -> Result<Arc<Exec>> {
        let found = self.lock().get(id).cloned();
        found.ok_or_else(|| ApiError::not_found(format!("No such exec instance: {id}")))
    }

    fn add(&self, exec: Arc<Exec>) {
        self.lock().insert(exec.id.clone(), exec);
    }

    /// Takes out what cannot be asked for any more.
    fn forget(&self) -> Vec<Arc<Exec>> {
        let mut all = self.lock();
        all.extract_if(|_, old| old.is_forgotten())
            .map(|(_, old)| old)
            .collect()
    }

    /// Ids of a container's running ones; null if there are none, as Docker has it.
    pub(crate) fn of(&self, container: &str) -> Option<Vec<String>> {
        let all = self.lock();
        let mine = all
            .values()
            .filter(|exec| exec.container.id == container && exec.is_running());
        let ids: Vec<String> = mine.map(|exec| exec.id.clone()).collect();
        Some(ids).filter(|ids| !ids.is_empty())
    }
}

#[derive(Debug, Clone, Default, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    attach_stdin: bool,
    attach_stdout: bool,
    attach_stderr: bool,
    detach_keys: Option<String>,
    tty: bool,
    cmd: Option<Vec<String>>,
    env: Option<Vec<String>>,
    user: Option<String>,
    working_dir: Option<String>,
    privileged: bool,
    console_size: Option<(u16, u16)>,
    /// Older clients say here what they say again at the start.
    #[serde(rename = "Detach")]
    _detach: bool,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

enum Phase {
    Created,
    Starting,
    Running(Arc<Process>),
    Ended { code: i32, at: Instant },
}

pub(crate) struct Exec {
    id: String,
    container: Arc<Container>,
    wanted: Wanted,
    /// The engine's, which nobody can ask for.
    own: bool,
    phase: Mutex<Phase>,
    ready: Slot,
    streams: Streams,
}

impl Exec {
    fn phase(&self) -> MutexGuard<'_, Phase> {
        self.phase.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_running(&self) -> bool {
        matches!(*self.phase(), Phase::Starting | Phase::Running(_))
    }

    fn is_forgotten(&self) -> bool {
        match *self.phase() {
            Phase::Ended { at, .. } => at.elapsed() > REMEMBERED,
            Phase::Created => self.container.life.borrow().removed,
            _ => false,
        }
    }

    fn end(&self, code: i32) {
        *self.phase() = Phase::Ended {
            code,
            at: Instant::now(),
        };
        // After the code is there: a client asks for it as soon as the output ends.
        self.streams.close_for_good();
    }

    /// Of its process. A full stop tells it from a zone's.
    fn key(&self) -> String {
        let kind = if self.own { PROBE } else { "" };
        format!("{}.{kind}{}", self.container.id, self.id)
    }

    fn command(&self) -> &[String] {
        self.wanted.cmd.as_deref().unwrap_or_default()
    }

    /// As Docker tells of it: an end by its code, the rest by the command.
    fn tell(&self, engine: &Engine, action: &str, code: Option<i32>) {
        let action = match code {
            Some(_) => action.to_owned(),
            None => format!("{action}: {}", self.command().join(" ")),
        };
        let code = code.map(|code| ("exitCode", code.to_string()));
        let more = [("execID", self.id.clone())].into_iter().chain(code);
        engine.tell_more(&action, &self.container, more);
    }
}

pub(crate) async fn create(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let wanted: Wanted = req.json().await?;
    if wanted.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(ApiError::bad_request("No exec command specified"));
    }
    if let Some((field, _)) = wanted
        .rest
        .iter()
        .find(|(_, value)| !matches!(value, Value::Null | Value::Bool(false)))
    {
        return Err(ApiError::not_implemented(format!(
            "Monobloc does not do {field} yet; leave it out."
        )));
    }
    keys(&wanted)?;
    container.running()?;
    awake(engine, &container, "exec")?;
    let exec = Arc::new(Exec {
        id: new_id()?,
        container,
        wanted,
        own: false,
        phase: Mutex::new(Phase::Created),
        ready: Slot::default(),
        streams: Streams::default(),
    });
    let id = exec.id.clone();
    exec.tell(engine, "exec_create", None);
    restore::note(engine, &exec, None).await;
    engine.execs.add(exec.clone());
    tokio::spawn(ready::make_ready(engine.clone(), exec));
    for old in engine.execs.forget() {
        engine
            .memo
            .remove(engine.zones.keeper(), &restore::key(&old.id))
            .await;
    }
    json(StatusCode::CREATED, &json!({"Id": id}))
}

fn keys(wanted: &Wanted) -> Result<Vec<u8>> {
    let keys = wanted.detach_keys.as_deref().unwrap_or_default();
    parse_detach_keys(keys)
        .ok_or_else(|| ApiError::bad_request(format!("Invalid escape keys ({keys}) provided")))
}

pub(crate) async fn route(engine: Arc<Engine>, verb: &str, req: Request) -> Result<Response> {
    let exec = engine.execs.find(&req.name)?;
    match (req.method().as_str(), verb) {
        ("POST", "start") => start(engine, exec, req).await,
        ("POST", "resize") => resize(&exec, &req).await,
        ("GET", "json") => inspect(&exec),
        _ => Err(crate::routes::unknown(req.method(), &req.path)),
    }
}

/// Docker's client sets the size while the process is being started, and tries only a few times within
/// milliseconds; so this waits for the terminal.
async fn resize(exec: &Exec, req: &Request) -> Result<Response> {
    let (rows, columns) = size(req)?;
    let _ = tokio::time::timeout(TERMINAL_LIMIT, exec.streams.settled()).await;
    if exec.streams.resize(rows, columns) {
        Ok(empty(StatusCode::OK))
    } else {
        Err(ApiError::conflict(format!(
            "exec process {} has no terminal yet",
            exec.id
        )))
    }
}

fn inspect(exec: &Exec) -> Result<Response> {
    let (entrypoint, arguments) = exec
        .command()
        .split_first()
        .map_or(("", &[][..]), |(first, rest)| (first.as_str(), rest));
    let (code, pid) = match &*exec.phase() {
        Phase::Ended { code, .. } => (Some(*code), 0),
        Phase::Running(process) => (None, process.pid),
        _ => (None, 0),
    };
    ok(&json!({
        "ID": exec.id, "ContainerID": exec.container.id, "Running": exec.is_running(),
        "ExitCode": code, "Pid": pid, "CanRemove": code.is_some(),
        "OpenStdin": exec.wanted.attach_stdin, "OpenStdout": exec.wanted.attach_stdout,
        "OpenStderr": exec.wanted.attach_stderr, "DetachKeys": "",
        "ProcessConfig": {
            "tty": exec.wanted.tty, "entrypoint": entrypoint, "arguments": arguments,
            "privileged": exec.wanted.privileged, "user": exec.wanted.user,
        },
    }))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct StartWanted {
    detach: bool,
    console_size: Option<(u16, u16)>,
}

async fn start(engine: Arc<Engine>, exec: Arc<Exec>, mut req: Request) -> Result<Response> {
    let wanted: StartWanted = req.json().await?;
    exec.container.running()?;
    awake(&engine, &exec.container, "exec")?;
    {
        let mut phase = exec.phase();
        if !matches!(*phase, Phase::Created) {
            return Err(ApiError::conflict(format!(
                "Error: Exec command {} has already run",
                exec.id
            )));
        }
        *phase = Phase::Starting;
    }
    if wanted.detach {
        let running = tokio::spawn(async move { run(&engine, &exec, wanted.console_size).await });
        running.await??;
        return Ok(empty(StatusCode::OK));
    }
    let kind = logs::content_type(req.version, exec.wanted.tty);
    let (response, hijack) = req.hijack(kind);
    tokio::spawn(async move {
        // A client that goes away is no failure.
        let _ = serve(&engine, &exec, hijack, wanted.console_size).await;
    });
    Ok(response)
}

/// Runs it for a client. Why it could not run is told in the stream, as Docker does.
async fn serve(
    engine: &Arc<Engine>,
    exec: &Arc<Exec>,
    hijack: Hijack,
    size: Option<(u16, u16)>,
) -> std::io::Result<()> {
    let listener = exec.streams.listen();
    if let Err(error) = run(engine, exec, size).await {
        let (_, mut output, _) = hijack.streams().await?;
        let text = format!("{error}\r\n");
        if exec.wanted.tty {
            output.write_all(text.as_bytes()).await?;
        } else {
            output.write_all(&frame(Stream::Stdout, text.as_bytes())).await?;
        }
        return output.shutdown().await;
    }
    let wanted = Attachment {
        stdin: exec.wanted.attach_stdin,
        stdout: exec.wanted.attach_stdout,
        stderr: exec.wanted.attach_stderr,
        terminal: exec.wanted.tty,
        raw: false,
        close_stdin: true,
        detach_keys: keys(&exec.wanted).unwrap_or_default(),
    };
    streams::attend(&exec.streams, Source::Queue(listener), hijack, wanted)
        .await
        .map(drop)
}

/// Starts the process; its output and its end are seen to from then on.
async fn run(engine: &Arc<Engine>, exec: &Arc<Exec>, size: Option<(u16, u16)>) -> Result<()> {
    let key = exec.key();
    let started = async {
        let pending = match exec.ready.take().await {
            Some(ready) => ready,
            None => set_up(engine, exec, &key, size).await?,
        };
        pending.release().await.map_err(|error| explain(exec, &error))
    };
    let (process, stdio) = match started.await {
        Ok(started) => started,
        Err(error) => {
            let ended = match &*exec.phase() {
                Phase::Ended { code, .. } => Some(*code),
                _ => None,
            };
            let code = ended.unwrap_or(126);
            if ended.is_none() {
                exec.end(code);
            }
            restore::note(engine, exec, Some(code)).await;
            return Err(error);
        }
    };
    let ends = exec.streams.open(stdio, &engine.zones, &key);
    let ends =
        ends.map_err(|error| ApiError::internal(format!("Cannot take the process's output: {error}.")))?;
    if let Some((rows, columns)) = size {
        // One that was made ready did not know it.
        exec.streams.resize(rows, columns);
    }
    *exec.phase() = Phase::Running(Arc::new(process));
    exec.tell(engine, "exec_start", None);
    let pumping = {
        let exec = exec.clone();
        tokio::spawn(async move { exec.streams.pump(ends).await })
    };
    tokio::spawn(bury(engine.clone(), exec.clone(), key, pumping));
    Ok(())
}

fn explain(exec: &Exec, error: &StartError) -> ApiError {
    let code = error.exit_code();
    // Docker gives every other failure to run 126.
    exec.end(if code == 128 { 126 } else { code });
    ApiError::bad_request(format!(
        "OCI runtime exec failed: exec failed: unable to start container process: {}",
        with_causes(error)
    ))
}

/// The process up to the gate at which it waits for its start.
async fn set_up(engine: &Engine, exec: &Arc<Exec>, key: &str, size: Option<(u16, u16)>) -> Result<Pending> {
    let zone = exec.container.running()?;
    let process = prepare(exec, &zone, size).await?;
    let ids = exec.container.record().ids();
    Ok(engine.zones.add(&zone, key, &process, ids).await?)
}

async fn prepare(
    exec: &Arc<Exec>,
    zone: &Arc<Process>,
    size: Option<(u16, u16)>,
) -> Result<zones::ProcessSpec> {
    let (exec, root) = (exec.clone(), format!("/proc/{}/root", zone.pid));
    blocking(move || {
        let record = exec.container.record();
        let wanted = &exec.wanted;
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let root = open(root, flags, Mode::empty())
            .map_err(|_| ApiError::conflict(format!("container {} is not running", record.id)))?;
        let name = wanted.user.as_deref().filter(|user| !user.is_empty());
        let name = name.unwrap_or(&record.config.user);
        let user = Databases::read(root.as_fd()).find(name, &record.host.group_add)?;
        let size = size
            .or(wanted.console_size)
            .filter(|(rows, columns)| *rows > 0 && *columns > 0);
        let size = size.map_or_else(TerminalSize::default, |(rows, columns)| TerminalSize {
            rows,
            columns,
        });
        spec::added(
            &record,
            spec::Added {
                args: exec.command(),
                env: wanted.env.as_deref().unwrap_or_default(),
                cwd: wanted.working_dir.as_deref().unwrap_or_default(),
                user,
                terminal: wanted.tty.then_some(size),
                stdin: wanted.attach_stdin,
                privileged: wanted.privileged,
            },
        )
    })
    .await
}

/// Runs a command in a container for the engine itself; its exit code and the beginning of what it
/// said. None if it took longer than `limit`: it is killed then, with what it has started.
pub(crate) async fn probe(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    command: &[String],
    limit: Duration,
    most: usize,
) -> Result<Option<(i32, String)>> {
    let exec = Arc::new(Exec {
        id: new_id()?,
        container: container.clone(),
        wanted: Wanted {
            attach_stdout: true,
            attach_stderr: true,
            cmd: Some(command.to_vec()),
            ..Wanted::default()
        },
        own: true,
        phase: Mutex::new(Phase::Starting),
        ready: Slot::default(),
        streams: Streams::default(),
    });
    exec.tell(engine, "exec_create", None);
    let mut listener = exec.streams.listen();
    run(engine, &exec, None).await?;
    let mut output = Vec::new();
    let heard = async {
        while let Some(chunk) = listener.next().await {
            let room = most.saturating_sub(output.len());
            output.extend_from_slice(chunk.bytes.get(..room.min(chunk.bytes.len())).unwrap_or_default());
        }
    };
    let in_time = tokio::time::timeout(limit, heard).await.is_ok();
    let text = String::from_utf8_lossy(&output).into_owned();
    match &*exec.phase() {
        Phase::Ended { code, .. } if in_time => return Ok(Some((*code, text))),
        // It leads a session of its own, and a process group.
        Phase::Running(process) => {
            if let Some(group) = Pid::from_raw(process.pid) {
                let _ = kill_process_group(group, Signal::KILL);
            }
        }
        _ => {}
    }
    Ok(None)
}

async fn bury(engine: Arc<Engine>, exec: Arc<Exec>, key: String, mut pumping: JoinHandle<()>) {
    let Some(exit) = engine.zones.exited(&key).await else {
        return;
    };
    exec.streams.hurry();
    if tokio::time::timeout(OUTPUT_LIMIT, &mut pumping).await.is_err() {
        pumping.abort();
    }
    exec.end(exit.code);
    exec.tell(&engine, "exec_die", Some(exit.code));
    restore::note(&engine, &exec, Some(exit.code)).await;
    // Only now may process 1 forget it.
    if let Err(error) = engine.zones.acknowledge(&key).await {
        eprintln!("process {key}: cannot clean up after it: {error}");
    }
}
