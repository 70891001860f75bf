//! `exec`: another process in a running container, as a file describes it or like its first one.

use std::fs;
use std::os::fd::AsFd as _;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context as _, ensure};
use sys::signals;
use zones::direct::{Added, add};

use super::args::{Known, Parsed, flag, value};
use super::config::{self, Config, Process};
use super::create::Connection;
use super::life;
use super::state::{Folder, Record, Status};
use super::zone;

pub(super) const OPTIONS: &[Known] = &[
    value(&["process", "p"]),
    value(&["console-socket"]),
    value(&["pid-file"]),
    value(&["preserve-fds"]),
    value(&["cwd"]),
    value(&["env", "e"]),
    value(&["user", "u"]),
    flag(&["tty", "t"]),
    flag(&["detach", "d"]),
    flag(&["no-new-privs"]),
];

/// Adds a process. Without `--detach` waits for it and returns its exit code.
pub(super) fn exec(
    root: &Path,
    id: &str,
    parsed: Parsed,
    connection: &Connection,
) -> anyhow::Result<ExitCode> {
    let record = Folder::look(root, id)?.record()?;
    let record = record.with_context(|| format!("Container {id} has no process yet"))?;
    let status = record.status();
    ensure!(
        matches!(status, Status::Created | Status::Running),
        "Container {id} is {}, so nothing can be run in it",
        status.name()
    );
    let process = described(&record, &parsed)?;
    process.check()?;
    let streams = connection.streams(&process)?;
    let pidfd = record
        .process
        .open()
        .context("The container's process has ended")?;
    let cgroup = record
        .cgroup
        .as_ref()
        .map(|cgroup| zones::open_cgroup_for_another(cgroup, record.process.pid))
        .transpose()?;
    let detach = parsed.has("detach");
    let caught = (!detach).then(|| signals::catch(&life::FORWARDED)).transpose()?;
    let (spec, capabilities) = zone::process(&process, record.seccomp.as_ref())?;
    let added = add(Added {
        process: spec,
        capabilities,
        umask: process.user.umask.unwrap_or(0o022),
        oom_score_adj: process.oom_score_adj,
        stdio: streams.stdio,
        inherited: streams.inherited,
        zone: (pidfd.as_fd(), record.namespaces),
        cgroup: cgroup.as_ref().map(|folder| folder.as_fd()),
    })?;
    connection.write_pid(added.pid)?;
    match caught {
        None => Ok(ExitCode::SUCCESS),
        Some(caught) => {
            let code = life::wait(&added.pidfd, &caught)?;
            Ok(ExitCode::from(u8::try_from(code).unwrap_or(255)))
        }
    }
}

/// The process of `--process`, or the container's own with what the command line changes of it.
fn described(record: &Record, parsed: &Parsed) -> anyhow::Result<Process> {
    if let Some(path) = parsed.get("process") {
        let bytes = fs::read(path).with_context(|| format!("Cannot read {path}"))?;
        return config::parse(&bytes)
            .with_context(|| format!("{path} is no process of the OCI runtime-spec"));
    }
    let config = Config::read(&record.bundle)?;
    let mut process = config.process.context("config.json has no process")?;
    ensure!(!parsed.words.is_empty(), "Say which program to run; see --help");
    process.args = parsed.words.iter().cloned().collect();
    process.terminal = parsed.has("tty");
    process.env.extend(parsed.all_of("env"));
    process.no_new_privileges |= parsed.has("no-new-privs");
    if let Some(cwd) = parsed.get("cwd") {
        cwd.clone_into(&mut process.cwd);
    }
    if let Some(user) = parsed.get("user") {
        let (uid, gid) = user.split_once(':').unwrap_or((user, "0"));
        let number = |text: &str| {
            text.parse()
                .with_context(|| format!("--user {user:?} is no UID[:GID]"))
        };
        (process.user.uid, process.user.gid) = (number(uid)?, number(gid)?);
    }
    Ok(process)
}
