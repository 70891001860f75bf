//! Hooks: programs of the machine's or the container's that a bundle has run at certain places of the
//! life cycle, each with the container's state on its standard input (`config.md`, "POSIX-platform
//! Hooks").

use std::io::{Read as _, Seek as _, Write as _};
use std::os::fd::{AsFd, BorrowedFd};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::{MemfdFlags, memfd_create};
use rustix::process::{WaitId, WaitIdOptions, waitid};
use sys::spawn::Spawned;
use zones::direct::{Helper, help};

use super::config::Hook;
use super::state::{Record, Status};

/// Bytes of a failed hook's output that its error shows.
const SHOWN: u64 = 4096;

/// Runs the hooks of one place one after the other, in the machine's namespaces or those of a zone.
/// The first that fails is an error, and those after it do not run.
pub(super) fn run(
    place: &str,
    hooks: &[Hook],
    record: &Record,
    status: Status,
    within: Option<BorrowedFd<'_>>,
) -> anyhow::Result<()> {
    for hook in hooks {
        let within = within.map(|pidfd| (pidfd, record.namespaces));
        one(hook, record, status, within)
            .with_context(|| format!("The {place} hook {} failed", hook.path))?;
    }
    Ok(())
}

/// Runs all hooks of a place whose failure changes nothing, and returns what went wrong.
pub(super) fn run_all(place: &str, hooks: &[Hook], record: &Record, status: Status) -> Vec<anyhow::Error> {
    let run_one = |hook| run(place, std::slice::from_ref(hook), record, status, None).err();
    hooks.iter().filter_map(run_one).collect()
}

fn one(
    hook: &Hook,
    record: &Record,
    status: Status,
    within: Option<(BorrowedFd<'_>, u64)>,
) -> anyhow::Result<()> {
    ensure!(hook.path.starts_with('/'), "Its path is not absolute");
    let state = serde_json::to_vec(&record.state(status))?;
    let file = |name: &str| anyhow::Ok(std::fs::File::from(memfd_create(name, MemfdFlags::CLOEXEC)?));
    let (mut stdin, mut output) = (file("state")?, file("output")?);
    stdin.write_all(&state)?;
    stdin.rewind()?;
    let own_name = [hook.path.clone()];
    let process = help(Helper {
        path: &hook.path,
        args: if hook.args.is_empty() {
            &own_name
        } else {
            &hook.args
        },
        env: &hook.env,
        within,
        stdin: stdin.into(),
        output: output.try_clone()?.into(),
    })?;
    let timeout = hook
        .timeout
        .map(|seconds| Duration::from_secs(u64::from(seconds)));
    let code = wait(&process, timeout)?;
    if code == Some(0) {
        return Ok(());
    }
    output.rewind()?;
    let mut said = Vec::new();
    output.take(SHOWN).read_to_end(&mut said)?;
    let said = String::from_utf8_lossy(&said);
    match code {
        Some(code) => bail!("It ended with {code} and said: {}", said.trim()),
        None => bail!("It did not end in {} s and was killed", hook.timeout.unwrap_or(0)),
    }
}

/// The exit code of a child, 128 and the number of a signal that ended it; none if it took too long
/// and was killed.
pub(super) fn wait(process: &Spawned, timeout: Option<Duration>) -> anyhow::Result<Option<i32>> {
    let end = timeout.map(|timeout| Instant::now() + timeout);
    let in_time = loop {
        let left = end.map(|end| end.saturating_duration_since(Instant::now()));
        let left = left.map(rustix::time::Timespec::try_from).transpose()?;
        let mut ended = [PollFd::new(&process.pidfd, PollFlags::IN)];
        match poll(&mut ended, left.as_ref()) {
            Err(rustix::io::Errno::INTR) => {}
            other => break other? > 0,
        }
    };
    if !in_time {
        sys::signals::send(&process.pidfd, KILL)?;
    }
    let status = waitid(WaitId::PidFd(process.pidfd.as_fd()), WaitIdOptions::EXITED)?;
    let code = status.and_then(|status| {
        let signal = status.terminating_signal().map(|signal| 128 + signal);
        status.exit_status().or(signal)
    });
    Ok(code.filter(|_| in_time))
}

/// `SIGKILL`
pub(super) const KILL: i32 = 9;
