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
pub const NEW_TIME: u64 = libc::CLONE_NEWTIME as u64;

/// `CLONE_INTO_CGROUP` (`linux/sched.h`); a flag of `clone3` alone, wider than an int.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// A run of ids: `count` ids from 0 on inside are those from `host` on outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct IdMap {
    pub host: u32,
    pub count: u32,
}

impl IdMap {
    /// The machine's own ids, each as itself.
    pub const HOST: Self = Self {
        host: 0,
        count: u32::MAX,
    };
}

/// Maps of a user namespace, as `/proc/PID/uid_map` and `gid_map` have them (user_namespaces(7)).
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct IdMaps {
    pub users: Vec<IdRange>,
    pub groups: Vec<IdRange>,
}

/// `count` ids from `inside` on in the namespace are those from `outside` on in its parent's.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

impl From<IdMap> for IdMaps {
    fn from(ids: IdMap) -> Self {
        let range = IdRange {
            inside: 0,
            outside: ids.host,
            count: ids.count,
        };
        Self {
            users: vec![range],
            groups: vec![range],
        }
    }
}

/// A limit of setrlimit(2), by the number of its `RLIMIT_*`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct ResourceLimit {
    pub resource: u32,
    pub soft: u64,
    pub hard: u64,
}

/// Names of ulimit and of getrlimit(2), less their `RLIMIT_`, by their numbers.
const RESOURCES: &[&str] = &[
    "cpu",
    "fsize",
    "data",
    "stack",
    "core",
    "rss",
    "nproc",
    "nofile",
    "memlock",
    "as",
    "locks",
    "sigpending",
    "msgqueue",
    "nice",
    "rtprio",
    "rttime",
];

/// The number of a resource by its name, such as `nofile`.
pub fn resource(name: &str) -> Option<u32> {
    let at = RESOURCES.iter().position(|known| *known == name)?;
    u32::try_from(at).ok()
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
    /// Pidfds of processes, and which of their namespaces (`CLONE_NEW*`) the new process has from its
    /// birth; a user namespace comes first. The new namespaces then belong to that user namespace.
    pub enters: &'a [(BorrowedFd<'a>, c_int)],
    /// Maps of user and group ids of the new user namespace.
    pub ids: Option<IdMaps>,
    /// Set from outside: within a user namespace no hard limit can be raised.
    pub limits: &'a [ResourceLimit],
    /// `oom_score_adj` of proc(5), set from outside too; the parent's own where none.
    pub oom_score_adj: Option<i32>,
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
    let (gate_read, gate_write) = pipe_with(PipeFlags::CLOEXEC)?;
    let gate = gate_read.as_raw_fd();

    let _entered = spawn
        .pid_namespace_of
        .map(EnteredPidNamespace::enter)
        .transpose()?;
    let enters: Vec<(RawFd, c_int)> = spawn
        .enters
        .iter()
        .map(|(fd, flags)| (fd.as_raw_fd(), *flags))
        .collect();
    let child = || {
        // Among the others is its copy of the gate's other end, without which it would wait for
        // ever if the parent died.
        prepared.close_others(gate);
        wait_for_parent(gate);
        isolate();
        // SAFETY: closes this process's copy.
        unsafe { libc::close(gate) };
        prepared.run()
    };
    let spawned = if enters.is_empty() {
        clone(spawn.namespaces, spawn.cgroup, child)?
    } else {
        clone_within(&enters, spawn.namespaces, spawn.cgroup, child)?
    };
    let maps = spawn.ids.as_ref();
    let ready = maps.map_or(Ok(()), |maps| write_maps(spawned.pid, maps));
    let ready = ready.and_then(|()| {
        spawn
            .limits
            .iter()
            .try_for_each(|limit| set_limit(spawned.pid, limit))
    });
    let ready = ready.and_then(|()| {
        spawn
            .oom_score_adj
            .map_or(Ok(()), |score| set_oom_score(spawned.pid, score))
    });
    if let Err(error) = ready {
        // The caller reaps only what it is told of.
        end(&spawned)?;
        return Err(error);
    }
    rustix::io::write(&gate_write, &[1])?;
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
    let namespace = write_maps(spawned.pid, &ids.into()).and_then(|()| {
        Ok(OwnedFd::from(std::fs::File::open(format!(
            "/proc/{}/ns/user",
            spawned.pid
        ))?))
    });
    end(&spawned)?;
    namespace
}

/// The network namespace of a running process.
pub fn network_namespace(pidfd: impl AsFd) -> io::Result<OwnedFd> {
    /// `PIDFD_GET_NET_NAMESPACE` (`linux/pidfd.h`), there since Linux 6.11.
    const GET_NETWORK: libc::Ioctl = 0xff04;
    // SAFETY: the ioctl takes no argument and returns a new descriptor.
    match unsafe { libc::ioctl(pidfd.as_fd().as_raw_fd(), GET_NETWORK, 0) } {
        -1 => Err(io::Error::last_os_error()),
        // SAFETY: as above; it is nobody else's.
        fd => Ok(unsafe { OwnedFd::from_raw_fd(fd) }),
    }
}

/// Kills a process that waits, and reaps it.
fn end(spawned: &Spawned) -> io::Result<()> {
    rustix::process::pidfd_send_signal(&spawned.pidfd, rustix::process::Signal::KILL)?;
    let pidfd = rustix::process::WaitId::PidFd(spawned.pidfd.as_fd());
    rustix::process::waitid(pidfd, rustix::process::WaitIdOptions::EXITED)?;
    Ok(())
}

fn set_limit(pid: i32, limit: &ResourceLimit) -> io::Result<()> {
    let new = libc::rlimit {
        rlim_cur: limit.soft,
        rlim_max: limit.hard,
    };
    // SAFETY: reads a local; no old value is asked for.
    match unsafe { libc::prlimit(pid, limit.resource, &new, std::ptr::null_mut()) } {
        0 => Ok(()),
        _ => {
            let error = io::Error::last_os_error();
            let what = format!("Cannot set resource limit {}: {error}", limit.resource);
            Err(io::Error::new(error.kind(), what))
        }
    }
}

fn set_oom_score(pid: i32, score: i32) -> io::Result<()> {
    std::fs::write(format!("/proc/{pid}/oom_score_adj"), score.to_string()).map_err(|error| {
        io::Error::new(
            error.kind(),
            format!("Cannot set oom_score_adj to {score}: {error}"),
        )
    })
}

fn write_maps(pid: i32, ids: &IdMaps) -> io::Result<()> {
    for (map, ranges) in [("uid_map", &ids.users), ("gid_map", &ids.groups)] {
        let lines: String = ranges
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
            .collect();
        std::fs::write(format!("/proc/{pid}/{map}"), lines)
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

/// As [`clone`], from within other namespaces: a process in between enters them, has the child, which is
/// its sibling, and ends. Nobody could come back from a user namespace to have another.
fn clone_within(
    enters: &[(RawFd, c_int)],
    namespaces: u64,
    cgroup: Option<BorrowedFd<'_>>,
    child: impl FnOnce(),
) -> io::Result<Spawned> {
    let (read, write) = pipe_with(PipeFlags::CLOEXEC)?;
    let report = write.as_raw_fd();
    let cgroup = cgroup.map(|cgroup| cgroup.as_raw_fd());
    // Not in the cgroup itself, whose limits are for the child alone.
    let between = clone(0, None, || {
        // Before it is in a user namespace whose root could look into it.
        isolate();
        // Its id, or the negative errno.
        let result = match enter_and_clone(enters, namespaces, cgroup) {
            Ok(0) => return child(),
            Ok(pid) => pid,
            Err(errno) => -errno,
        };
        // SAFETY: writes a local to the pipe, then ends this process.
        unsafe {
            libc::write(report, (&raw const result).cast(), size_of::<c_int>());
            libc::_exit(0)
        }
    })?;
    drop(write);
    let mut bytes = [0; size_of::<c_int>()];
    let told = rustix::io::read(&read, &mut bytes);
    let pidfd = rustix::process::WaitId::PidFd(between.pidfd.as_fd());
    rustix::process::waitid(pidfd, rustix::process::WaitIdOptions::EXITED)?;
    if told? != bytes.len() {
        return Err(io::Error::other(
            "The process that was to enter the namespaces has ended",
        ));
    }
    let pid = c_int::from_ne_bytes(bytes);
    if pid < 0 {
        return Err(io::Error::from_raw_os_error(-pid));
    }
    // It is a child of this process that nobody has reaped: the number is still its own.
    let known =
        rustix::process::Pid::from_raw(pid).ok_or_else(|| io::Error::other("A process has no number"))?;
    let pidfd = rustix::process::pidfd_open(known, rustix::process::PidfdFlags::empty())?;
    Ok(Spawned { pid, pidfd })
}

/// In the process in between, and, with 0, in the child.
fn enter_and_clone(
    enters: &[(RawFd, c_int)],
    namespaces: u64,
    cgroup: Option<RawFd>,
) -> Result<c_int, c_int> {
    let errno = || io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO);
    for (fd, flags) in enters {
        // SAFETY: plain descriptor and flags.
        if unsafe { libc::setns(*fd, *flags) } != 0 {
            return Err(errno());
        }
    }
    // SAFETY: an all-zero `clone_args` is valid.
    let mut arguments: libc::clone_args = unsafe { std::mem::zeroed() };
    // The signal at its end is that of this process, as for every CLONE_PARENT.
    arguments.flags = namespaces | libc::CLONE_PARENT as u64;
    if let Some(cgroup) = cgroup {
        arguments.flags |= CLONE_INTO_CGROUP;
        arguments.cgroup = cgroup as u64;
    }
    // SAFETY: as in `clone`.
    match unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<libc::clone_args>()) } {
        -1 => Err(errno()),
        pid => Ok(pid as c_int),
    }
}

/// Waits for the parent's word that id maps and limits are set; ends the process if it never comes.
fn wait_for_parent(gate: RawFd) {
    let mut byte = 0u8;
    // SAFETY: reads into a local; `_exit` ends only this process.
    unsafe {
        if libc::read(gate, (&raw mut byte).cast(), 1) != 1 {
            libc::_exit(127);
        }
    }
}

/// Nothing of the parent's shows: its signal handlers and mask, its umask, and its memory, which
/// processes of a zone that it enters could otherwise read (ptrace(2), "dumpable").
fn isolate() {
    // SAFETY: default dispositions and an empty mask; signals that cannot be changed are refused.
    unsafe {
        libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        libc::umask(0o022);
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
