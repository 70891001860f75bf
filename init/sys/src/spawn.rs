//! A new process by one `clone3(2)`: in its cgroup and namespaces from its first instruction on, and
//! with a pidfd that names it for good.

use std::ffi::c_int;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};

use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};

use crate::program::{Prepared, Program};

/// Namespaces of the new process, `CLONE_NEW*`.
pub const NEW_USER: u64 = libc::CLONE_NEWUSER as u64;
pub const NEW_PID: u64 = libc::CLONE_NEWPID as u64;
pub const NEW_MOUNT: u64 = libc::CLONE_NEWNS as u64;
pub const NEW_UTS: u64 = libc::CLONE_NEWUTS as u64;
pub const NEW_IPC: u64 = libc::CLONE_NEWIPC as u64;
pub const NEW_NET: u64 = libc::CLONE_NEWNET as u64;
pub const NEW_CGROUP: u64 = libc::CLONE_NEWCGROUP as u64;

/// `CLONE_INTO_CGROUP` (`linux/sched.h`); a flag of `clone3` alone, wider than an int.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A run of ids: `count` ids from 0 on inside are those from `host` on outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub host: u32,
    pub count: u32,
}

/// How a process begins.
#[derive(Debug)]
pub struct Spawn<'a> {
    pub program: &'a Program,
    /// The program's descriptors.
    pub fds: &'a [BorrowedFd<'a>],
    /// `NEW_*`.
    pub namespaces: u64,
    /// Folder of the cgroup to be born in; the parent's own where none.
    pub cgroup: Option<BorrowedFd<'a>>,
    /// A pidfd of a process in whose PID namespace the new one is born.
    pub pid_namespace_of: Option<BorrowedFd<'a>>,
    /// Map of user and group ids of the new user namespace.
    pub ids: Option<IdMap>,
}

/// A process that was born; it runs its program.
#[derive(Debug)]
pub struct Spawned {
    /// As the caller's PID namespace numbers it.
    pub pid: i32,
    pub pidfd: OwnedFd,
}

/// Starts a process. Safe to call in a program with threads: the child runs nothing but the
/// interpreter of [`crate::program`].
pub fn spawn(spawn: &Spawn<'_>) -> io::Result<Spawned> {
    let fds: Vec<RawFd> = spawn.fds.iter().map(AsRawFd::as_raw_fd).collect();
    let prepared = Prepared::new(spawn.program, &fds)?;
    let (mapped_read, mapped_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let gate = spawn.ids.map(|_| mapped_read.as_raw_fd());
    let writer = mapped_write.as_raw_fd();

    let _entered = spawn
        .pid_namespace_of
        .map(EnteredPidNamespace::enter)
        .transpose()?;
    let spawned = clone(spawn.namespaces, spawn.cgroup, || {
        // Its copy of the write end would keep it waiting for ever if the parent died.
        // SAFETY: closes this process's copy.
        unsafe { libc::close(writer) };
        if let Some(gate) = gate {
            wait_until_mapped(gate);
        }
        reset_signals();
        prepared.run()
    })?;
    if let Some(ids) = spawn.ids {
        if let Err(error) = write_maps(spawned.pid, ids) {
            // Dropping the pipe ends the child; it is the caller's to reap only if it is told of it.
            let _ = rustix::process::pidfd_send_signal(&spawned.pidfd, rustix::process::Signal::KILL);
            let _ = rustix::process::waitid(
                rustix::process::WaitId::PidFd(spawned.pidfd.as_fd()),
                rustix::process::WaitIdOptions::EXITED,
            );
            return Err(error);
        }
        rustix::io::write(&mapped_write, &[1])?;
    }
    Ok(spawned)
}

/// A user namespace with a map of ids, for idmapped mounts. It lives as long as the descriptor.
pub fn user_namespace(ids: IdMap) -> io::Result<OwnedFd> {
    let spawned = clone(NEW_USER, None, || {
        loop {
            // SAFETY: waits for a signal, which is the kill below.
            unsafe { libc::pause() };
        }
    })?;
    let namespace = write_maps(spawned.pid, ids).and_then(|()| {
        Ok(OwnedFd::from(std::fs::File::open(format!(
            "/proc/{}/ns/user",
            spawned.pid
        ))?))
    });
    rustix::process::pidfd_send_signal(&spawned.pidfd, rustix::process::Signal::KILL)?;
    rustix::process::waitid(
        rustix::process::WaitId::PidFd(spawned.pidfd.as_fd()),
        rustix::process::WaitIdOptions::EXITED,
    )?;
    namespace
}

fn write_maps(pid: i32, ids: IdMap) -> io::Result<()> {
    let line = format!("0 {} {}\n", ids.host, ids.count);
    for map in ["uid_map", "gid_map"] {
        std::fs::write(format!("/proc/{pid}/{map}"), &line)
            .map_err(|error| io::Error::new(error.kind(), format!("Cannot write {map}: {error}")))?;
    }
    Ok(())
}

/// `clone3(2)` without shared memory; `child` runs on a copy of the caller's stack.
fn clone(namespaces: u64, cgroup: Option<BorrowedFd<'_>>, child: impl FnOnce()) -> io::Result<Spawned> {
    let mut pidfd: c_int = -1;
    // SAFETY: an all-zero `clone_args` is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    arguments.flags = namespaces | libc::CLONE_PIDFD as u64;
    arguments.pidfd = (&raw mut pidfd) as u64;
    arguments.exit_signal = libc::SIGCHLD as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup.as_raw_fd() as u64;
    }
    // SAFETY: without CLONE_VM the child has its own copy of the memory, and runs only `child`, which
    // allocates nothing and takes no lock (see `program`).
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<libc::clone_args>()) };
    match pid {
        -1 => Err(io::Error::last_os_error()),
        0 => {
            child();
            // SAFETY: ends this process, should the closure ever return.
            unsafe { libc::_exit(127) }
        }
        pid => Ok(Spawned {
            pid: pid as i32,
            // SAFETY: the kernel has just made this descriptor for us.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Waits for the parent's word that the id maps are written; ends the process if it never comes.
fn wait_until_mapped(gate: RawFd) {
    let mut byte = 0u8;
    // SAFETY: reads into a local; `_exit` ends only this process.
    unsafe {
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(127);
        }
    }
}

/// The parent's handlers and mask are none of the new process's.
fn reset_signals() {
    // SAFETY: default dispositions and an empty mask; signals that cannot be changed are refused.
    unsafe {
        for signal in 1..=64 {
            libc::signal(signal, libc::SIG_DFL);
        }
        let mut none: libc::sigset_t = std::mem::zeroed();
        libc::sigemptyset(&mut none);
        libc::sigprocmask(libc::SIG_SETMASK, &none, std::ptr::null_mut());
    }
}

/// While it lives, children of the calling thread are born in another PID namespace
/// (`setns(2)`: only `pid_for_children` changes).
struct EnteredPidNamespace {
    own: OwnedFd,
}

impl EnteredPidNamespace {
    fn enter(of: BorrowedFd<'_>) -> io::Result<Self> {
        let own = OwnedFd::from(std::fs::File::open("/proc/thread-self/ns/pid")?);
        set_pid_namespace(of)?;
        Ok(Self { own })
    }
}

impl Drop for EnteredPidNamespace {
    fn drop(&mut self) {
        // A thread may always go back to its own namespace.
        let _ = set_pid_namespace(self.own.as_fd());
    }
}

fn set_pid_namespace(fd: BorrowedFd<'_>) -> io::Result<()> {
    // SAFETY: plain descriptor and flag.
    match unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWPID) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}
