//! The commands on a container that is there: `state`, `kill`, `delete`, `list`, and `run`, which is
//! all of them in a row.

use std::fs;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use serde_json::{Value, json};
use sys::signals;
use sys::spawn::NEW_PID;

use super::create::{self, Connection};
use super::hooks;
use super::resources;
use super::state::{self, Folder, Numbered, OCI_VERSION, Record, Status};

/// The state of a container, as `runtime.md` has it.
pub(super) fn state(root: &Path, id: &str) -> anyhow::Result<Value> {
    match Folder::look(root, id)?.record()? {
        Some(record) => Ok(serde_json::to_value(record.state(record.status()))?),
        // Its creation is under way, or was cut off before it had a process.
        None => Ok(json!({"ociVersion": OCI_VERSION, "id": id, "status": "creating"})),
    }
}

/// Lines of a table, or the states as JSON.
pub(super) fn list(root: &Path, as_json: bool, quiet: bool) -> anyhow::Result<String> {
    // One that is deleted meanwhile is not there.
    let ids = state::ids(root)?;
    let states: Vec<Value> = ids.iter().filter_map(|id| state(root, id).ok()).collect();
    if as_json {
        return Ok(serde_json::to_string(&states)?);
    }
    let text = |state: &Value, key: &str| match state.get(key) {
        Some(Value::String(text)) => text.clone(),
        Some(other) => other.to_string(),
        None => "-".to_owned(),
    };
    if quiet {
        let ids: Vec<String> = states.iter().map(|state| text(state, "id")).collect();
        return Ok(ids.join("\n"));
    }
    let mut table = format!("{:<24} {:<8} {:<10} BUNDLE", "ID", "PID", "STATUS");
    for state in &states {
        let [id, pid, status, bundle] = ["id", "pid", "status", "bundle"].map(|key| text(state, key));
        table.push_str(&format!("\n{id:<24} {pid:<8} {status:<10} {bundle}"));
    }
    Ok(table)
}

/// Sends a signal to a container's first process, or to all its processes.
pub(super) fn kill(root: &Path, id: &str, signal: i32, all: bool) -> anyhow::Result<()> {
    let record = Folder::look(root, id)?.record()?;
    let record = record.with_context(|| format!("Container {id} has no process yet"))?;
    if all {
        return kill_all(&record, signal);
    }
    let pidfd = record.process.open();
    let pidfd = pidfd.with_context(|| format!("Container {id} is stopped; it is not running any more"))?;
    signals::send(&pidfd, signal).with_context(|| format!("Cannot send signal {signal} to container {id}"))
}

fn kill_all(record: &Record, signal: i32) -> anyhow::Result<()> {
    if let Some(cgroup) = &record.cgroup {
        if signal == hooks::KILL {
            return resources::kill(cgroup);
        }
        for pid in resources::processes(cgroup) {
            send(pid, signal);
        }
        return Ok(());
    }
    ensure!(
        record.namespaces & NEW_PID != 0,
        "Container {} has neither a cgroup nor a pid namespace to tell its processes by; leave --all out",
        record.id
    );
    let of = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/pid")).ok();
    let own = of(&record.process.pid.to_string());
    ensure!(own.is_some(), "Container {} is not running any more", record.id);
    for entry in fs::read_dir("/proc").context("Cannot read /proc")?.flatten() {
        let name = entry.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if let Some(pid) = pid.filter(|pid: &i32| of(&pid.to_string()) == own) {
            send(pid, signal);
        }
    }
    Ok(())
}

/// Sends a signal to a process that may end at any time.
fn send(pid: i32, signal: i32) {
    if let Some(pidfd) = Numbered::of(pid).ok().and_then(Numbered::open) {
        let _ = signals::send(&pidfd, signal);
    }
}

/// Removes all that is left of a stopped container; with `force` a running one is killed first, and
/// one that does not exist is no error.
pub(super) fn delete(root: &Path, id: &str, force: bool) -> anyhow::Result<()> {
    let folder = match Folder::open(root, id) {
        Err(_) if force && !root.join(id).exists() => return Ok(()),
        other => other?,
    };
    let record = match folder.record() {
        Err(error) if !force => return Err(error),
        other => other.ok().flatten(),
    };
    let Some(record) = record else {
        return folder.remove();
    };
    if let Some(pidfd) = record.process.open() {
        ensure!(
            force,
            "Container {id} is {}, not stopped; kill it first, or delete it with --force",
            record.status().name()
        );
        signals::send(&pidfd, hooks::KILL).with_context(|| format!("Cannot kill container {id}"))?;
        ended(&pidfd)?;
    }
    if let Some(cgroup) = &record.cgroup {
        resources::kill(cgroup)?;
        zones::remove_cgroup(cgroup)?;
    }
    folder.remove()?;
    for error in hooks::run_all("poststop", &record.hooks.poststop, &record, Status::Stopped) {
        super::warn(&error);
    }
    Ok(())
}

/// Waits for the end of a process, whoever's child it is.
fn ended(pidfd: &OwnedFd) -> anyhow::Result<()> {
    loop {
        match poll(&mut [PollFd::new(pidfd, PollFlags::IN)], None) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other.context("Cannot wait for a process")?;
                return Ok(());
            }
        }
    }
}

/// Creates and starts a container, passes the caller's signals on to it, and deletes it when it has
/// ended. The exit code is the container's.
pub(super) fn run(
    root: &Path,
    id: &str,
    bundle: &Path,
    connection: &Connection,
    detach: bool,
) -> anyhow::Result<ExitCode> {
    // Before the process: from then on none is lost.
    let caught = (!detach).then(|| signals::catch(&FORWARDED)).transpose()?;
    let record = create::create(root, id, bundle, connection)?;
    let ended = create::start(root, id).and_then(|()| match &caught {
        None => Ok(0),
        Some(caught) => {
            // Not yet reaped, so it is this process's child, running or not.
            let pid = rustix::process::Pid::from_raw(record.process.pid);
            let pid = pid.context("The container has no process")?;
            let none = rustix::process::PidfdFlags::empty();
            wait(&rustix::process::pidfd_open(pid, none)?, caught)
        }
    });
    if !detach || ended.is_err() {
        delete(root, id, true)?;
    }
    Ok(ExitCode::from(u8::try_from(ended?).unwrap_or(255)))
}

pub(super) const FORWARDED: [i32; 5] = [
    signals::SIGINT,
    signals::SIGTERM,
    signals::SIGUSR1,
    signals::SIGUSR2,
    signals::SIGPWR,
];

/// Passes the caller's signals on to a child until it has ended, and returns its exit code.
pub(super) fn wait(pidfd: &OwnedFd, caught: &OwnedFd) -> anyhow::Result<i32> {
    loop {
        let mut polled = [
            PollFd::new(pidfd, PollFlags::IN),
            PollFd::new(caught, PollFlags::IN),
        ];
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => continue,
            other => other.context("Cannot wait for the container")?,
        };
        while let Some(signal) = signals::next(caught) {
            let _ = signals::send(pidfd, signal);
        }
        let [process, _] = &polled;
        if process.revents().is_empty() {
            continue;
        }
        let status = waitid(WaitId::PidFd(pidfd.as_fd()), WaitIdOptions::EXITED)?;
        let Some(status) = status else {
            bail!("The container has no exit status")
        };
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        return Ok(status.exit_status().or(signal).unwrap_or(255));
    }
}
