//! The channels to a process: three pipes, or the master of a terminal.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;

use rustix::pipe::{PipeFlags, pipe_with};
use sys::socket;

use crate::compile::{ChildEnds, ChildStdio};
use crate::error::Error;
use crate::spec::{IdMap, ProcessSpec};

/// The supervisor's ends. All are in non-blocking mode and closed by an exec.
#[derive(Debug)]
pub enum Stdio {
    Pipes {
        /// None if the process has no standard input.
        stdin: Option<OwnedFd>,
        stdout: OwnedFd,
        stderr: OwnedFd,
    },
    /// Both directions.
    Terminal(OwnedFd),
}

/// Names under which process 1 keeps the supervisor's ends.
pub(crate) const STDIN: &str = "stdin";
pub(crate) const STDOUT: &str = "stdout";
pub(crate) const STDERR: &str = "stderr";
pub(crate) const TERMINAL: &str = "terminal";
/// Kept only until the program runs: the report's reading end, and the socket over which the
/// terminal's master will come.
pub(crate) const REPORT: &str = "report";
pub(crate) const TERMINAL_SOCKET: &str = "terminal socket";
/// Name under which process 1 keeps what lies between a terminal and its log.
pub(crate) const RELAY: &str = "relay";

/// A pipe that is both ends in one descriptor, in non-blocking mode.
pub(crate) fn relay() -> io::Result<OwnedFd> {
    use rustix::fs::{Mode, OFlags, open};
    use std::os::fd::AsRawFd;
    let (read, _write) = pipe_with(PipeFlags::CLOEXEC)?;
    let path = format!("/proc/self/fd/{}", read.as_raw_fd());
    let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
    Ok(open(path, flags, Mode::empty())?)
}

pub(crate) struct Channels {
    pub(crate) child: ChildEnds,
    pub(crate) report: OwnedFd,
    pub(crate) gate: OwnedFd,
    pub(crate) stdio: ParentStdio,
}

pub(crate) enum ParentStdio {
    Pipes(Stdio),
    /// The socket over which the terminal's master will come.
    Terminal(OwnedFd),
}

/// Makes the channels of a process. The pipes' files are given to the user, who may want to open
/// them again through `/dev/stdout`.
pub(crate) fn channels(process: &ProcessSpec, ids: IdMap) -> Result<Channels, Error> {
    let failed = || Error::io("make the pipes of a process");
    let (report, child_report) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .map_err(failed())?;
    let (child_gate, gate) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .map_err(failed())?;
    let (child, stdio) = if process.terminal.is_some() {
        let (ours, childs) = socket::pair().map_err(failed())?;
        (ChildStdio::Terminal(childs), ParentStdio::Terminal(ours))
    } else {
        let (ends, stdio) = pipes(process, ids).map_err(failed())?;
        (ChildStdio::Pipes(ends), ParentStdio::Pipes(stdio))
    };
    rustix::io::ioctl_fionbio(&report, true)
        .map_err(io::Error::from)
        .map_err(failed())?;
    Ok(Channels {
        child: ChildEnds {
            report: child_report,
            gate: child_gate,
            stdio: child,
        },
        report,
        gate,
        stdio,
    })
}

fn pipes(process: &ProcessSpec, ids: IdMap) -> io::Result<([OwnedFd; 3], Stdio)> {
    let owner = ids
        .host
        .checked_add(process.user.uid)
        .filter(|_| process.user.uid < ids.count);
    let pipe = || -> io::Result<(OwnedFd, OwnedFd)> {
        let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
        if let Some(owner) = owner {
            rustix::fs::fchown(&read, Some(rustix::fs::Uid::from_raw(owner)), None)?;
        }
        Ok((read, write))
    };
    let (child_in, stdin) = if process.stdin {
        let (read, write) = pipe()?;
        rustix::io::ioctl_fionbio(&write, true)?;
        (read, Some(write))
    } else {
        (File::open("/dev/null")?.into(), None)
    };
    let (stdout, child_out) = pipe()?;
    let (stderr, child_err) = pipe()?;
    // The pipe's two ends are separate open files: the process's stay blocking.
    rustix::io::ioctl_fionbio(&stdout, true)?;
    rustix::io::ioctl_fionbio(&stderr, true)?;
    Ok((
        [child_in, child_out, child_err],
        Stdio::Pipes {
            stdin,
            stdout,
            stderr,
        },
    ))
}

/// Sets the size of a terminal by its master.
pub fn resize(master: impl std::os::fd::AsFd, rows: u16, columns: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(master, size)?)
}
