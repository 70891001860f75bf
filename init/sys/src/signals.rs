//! Signals: received by a descriptor (signalfd(2)), and sent by one (pidfd_send_signal(2)).

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

pub use libc::{SIGCHLD, SIGINT, SIGPWR, SIGTERM, SIGUSR1, SIGUSR2};

/// Blocks the signals for the calling thread, and the threads it starts later, and returns a
/// descriptor that can be read when one has come. It does not block and is closed by an exec.
pub fn catch(signals: &[i32]) -> io::Result<OwnedFd> {
    // SAFETY: an all-zero set is valid memory for sigemptyset, which makes it an empty set; the calls
    // only read and write locals.
    unsafe {
        let mut set: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut set);
        for signal in signals {
            if libc::sigaddset(&mut set, *signal) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
        if libc::sigprocmask(libc::SIG_BLOCK, &set, std::ptr::null_mut()) < 0 {
            return Err(io::Error::last_os_error());
        }
        match libc::signalfd(-1, &set, libc::SFD_CLOEXEC | libc::SFD_NONBLOCK) {
            -1 => Err(io::Error::last_os_error()),
            fd => Ok(OwnedFd::from_raw_fd(fd)),
        }
    }
}

/// As [`catch`], for all that another process may send or the terminal may raise: neither those that tell
/// of a fault of this process itself nor the C library's own.
pub fn catch_all() -> io::Result<OwnedFd> {
    const OWN: &[i32] = &[
        libc::SIGKILL,
        libc::SIGSTOP,
        libc::SIGSEGV,
        libc::SIGBUS,
        libc::SIGFPE,
        libc::SIGILL,
        libc::SIGTRAP,
        libc::SIGABRT,
        libc::SIGSYS,
        32,
        33,
    ];
    /// The last of the real-time signals.
    const LAST: i32 = 64;
    let all: Vec<i32> = (1..=LAST).filter(|signal| !OWN.contains(signal)).collect();
    catch(&all)
}

/// Starts a program in a process group of its own, which is the terminal's in the foreground if standard
/// input is one, with no signal blocked. The caller has blocked `SIGTTOU` ([`catch_all`]).
pub fn spawn_in_foreground(command: &mut std::process::Command) -> io::Result<std::process::Child> {
    use std::os::unix::process::CommandExt;
    // SAFETY: only system calls on locals between fork and exec; none of them takes a lock.
    unsafe {
        command.pre_exec(|| {
            libc::setpgid(0, 0);
            // Without a terminal there is no foreground to be in.
            libc::tcsetpgrp(0, libc::getpid());
            let mut none: libc::sigset_t = std::mem::zeroed();
            libc::sigemptyset(&mut none);
            match libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut()) {
                0 => Ok(()),
                _ => Err(io::Error::last_os_error()),
            }
        });
    }
    command.spawn()
}

/// The next signal that has come, if any.
pub fn next(fd: impl AsFd) -> Option<i32> {
    // SAFETY: an all-zero structure is valid; the kernel fills it whole or not at all.
    unsafe {
        let mut info: libc::signalfd_siginfo = std::mem::zeroed();
        let size = size_of::<libc::signalfd_siginfo>();
        let read = libc::read(fd.as_fd().as_raw_fd(), (&raw mut info).cast(), size);
        (read == size as isize).then_some(info.ssi_signo as i32)
    }
}

/// Sends any signal, real-time ones too, to the process of a pidfd.
pub fn send(pidfd: impl AsFd, signal: i32) -> io::Result<()> {
    let (fd, none, flags) = (
        pidfd.as_fd().as_raw_fd(),
        std::ptr::null_mut::<libc::siginfo_t>(),
        0,
    );
    // SAFETY: the descriptor is open for the call, and without a siginfo the kernel reads no memory.
    match unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, signal, none, flags) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Reads a signal by name, with `SIG` or without, or by number.
pub fn parse(text: &str) -> Option<i32> {
    const NAMES: &[&str] = &[
        "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
        "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    /// The real-time signals; below them are the C library's own two.
    const FIRST_REAL_TIME: i32 = 34;
    const LAST: i32 = 64;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().position(|known| !known.is_empty() && *known == name);
    // `RTMIN`, `RTMIN+3`, `RTMAX-2`, `RTMAX`.
    let from_end = |end: &str, sign: char| match name.strip_prefix(end)? {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let real_time = from_end("RTMIN", '+')
        .map(|offset| FIRST_REAL_TIME + offset)
        .or_else(|| from_end("RTMAX", '-').map(|offset| LAST - offset))
        .filter(|number| *number >= FIRST_REAL_TIME);
    let number = known
        .and_then(|at| i32::try_from(at).ok())
        .or(real_time)
        .or_else(|| text.parse().ok());
    number.filter(|number| (1..=LAST).contains(number))
}
