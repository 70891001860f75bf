//! The init of a zone (`docker run --init`), a third role of this file: it runs the zone's program as its
//! child, passes signals on to it, reaps whatever is left to process 1, and ends as the child ends.

use std::ffi::OsString;
use std::io::ErrorKind;
use std::os::fd::AsFd;
use std::process::{Command, ExitCode};

use anyhow::Context;
use rustix::event::{PollFd, PollFlags, poll};
use rustix::process::{Pid, PidfdFlags, WaitOptions, pidfd_open, wait};
use sys::signals::{self, SIGCHLD};

/// Docker's exit codes of a program that cannot be run, and of one that is not there.
const NOT_EXECUTABLE: u8 = 126;
const NOT_FOUND: u8 = 127;
/// What a child's death by a signal is told with.
const SIGNALLED: i32 = 128;

/// Whether this process was started as one, by the name that it has in a zone.
pub(crate) fn is_meant() -> bool {
    std::env::args_os().next().is_some_and(|name| name == zones::INIT)
}

pub(crate) fn run() -> ExitCode {
    let mut arguments: Vec<OsString> = std::env::args_os().skip(1).collect();
    if arguments.first().is_some_and(|first| first == "--") {
        arguments.remove(0);
    }
    let Some((program, arguments)) = arguments.split_first() else {
        eprintln!("docker-init: there is no program to run; name one after --");
        return ExitCode::from(2);
    };
    match try_run(Command::new(program).args(arguments)) {
        Ok(code) => ExitCode::from(code),
        Err(error) => {
            eprintln!(
                "docker-init: exec {} failed: {error:#}",
                program.to_string_lossy()
            );
            let kind = error.downcast_ref::<std::io::Error>().map(std::io::Error::kind);
            match kind {
                Some(ErrorKind::NotFound) => ExitCode::from(NOT_FOUND),
                _ => ExitCode::from(NOT_EXECUTABLE),
            }
        }
    }
}

fn try_run(command: &mut Command) -> anyhow::Result<u8> {
    // Before there is a child that could end unseen.
    let coming = signals::catch_all().context("Cannot catch signals")?;
    let child = signals::spawn_in_foreground(command)?;
    let number = i32::try_from(child.id()).context("The child's number is none")?;
    let own = Pid::from_raw(number).context("The child has no number")?;
    let pidfd = pidfd_open(own, PidfdFlags::empty())?;
    loop {
        while let Some(signal) = signals::next(&coming) {
            if signal != SIGCHLD {
                // A child that has just ended is told of by the next signal.
                let _ = signals::send(&pidfd, signal);
                continue;
            }
            while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
                if pid == own {
                    let code = status
                        .exit_status()
                        .or(status.terminating_signal().map(|s| SIGNALLED + s));
                    return Ok(code.and_then(|code| u8::try_from(code).ok()).unwrap_or(u8::MAX));
                }
            }
        }
        match poll(
            &mut [PollFd::from_borrowed_fd(coming.as_fd(), PollFlags::IN)],
            None,
        ) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error).context("Cannot wait for signals"),
        }
    }
}
