//! The keeper's side in process 1: synchronous, one thread, never waiting for anyone but the kernel.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::event::epoll;
use rustix::process::{WaitId, WaitIdOptions, WaitIdStatus, waitid};
use sys::socket;
use sys::spawn::{Spawn, spawn};

use super::{Event, RawExit, Request, SpawnRequest};

/// What [`Server::turn`] woke for and the caller must see to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    /// The keeper's own work; done.
    Own,
    /// The supervisor has closed its socket or sent what is no request.
    SupervisorGone,
    Power {
        restart: bool,
    },
    /// The supervisor answers its clients.
    Serves,
    /// The caller's own descriptor, by the token that it gave.
    Caller(u64),
}

struct Process {
    pid: i32,
    pidfd: OwnedFd,
    token: u64,
    exit: Option<RawExit>,
    kept: BTreeMap<String, OwnedFd>,
}

/// A supervisor's program that is to take the place of the machine's own.
#[derive(Debug)]
pub struct Build {
    pub name: String,
    pub program: OwnedFd,
}

/// A packet for the supervisor that could not be sent yet.
struct Outgoing {
    bytes: Vec<u8>,
    fds: Vec<OwnedFd>,
}

/// The keeper.
pub struct Server {
    epoll: OwnedFd,
    supervisor: Option<OwnedFd>,
    processes: BTreeMap<String, Process>,
    keys: BTreeMap<u64, String>,
    kept: BTreeMap<String, OwnedFd>,
    outgoing: VecDeque<Outgoing>,
    next_token: u64,
    /// What the next supervisor is to be, if not the machine's own.
    pub build: Option<Build>,
}

const SUPERVISOR: u64 = 0;
const FIRST_PROCESS: u64 = 1;
/// Exit code of a process whose own is not known.
const UNKNOWN: i32 = 255;
/// Tokens with this bit are the caller's.
const CALLER: u64 = 1 << 63;

impl Server {
    pub fn new() -> io::Result<Self> {
        allow_many_descriptors();
        Ok(Self {
            epoll: epoll::create(epoll::CreateFlags::CLOEXEC)?,
            supervisor: None,
            processes: BTreeMap::new(),
            keys: BTreeMap::new(),
            kept: BTreeMap::new(),
            outgoing: VecDeque::new(),
            next_token: FIRST_PROCESS,
            build: None,
        })
    }

    /// Has [`turn`](Self::turn) return [`Turn::Caller`] with this token when `fd` can be read.
    pub fn watch(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        self.add(fd, CALLER | token)
    }

    fn add(&self, fd: BorrowedFd<'_>, token: u64) -> io::Result<()> {
        Ok(epoll::add(
            &self.epoll,
            fd,
            epoll::EventData::new_u64(token),
            epoll::EventFlags::IN,
        )?)
    }

    /// Serves a supervisor from now on; one that was served before is let go.
    pub fn attach_supervisor(&mut self, socket: OwnedFd) -> io::Result<()> {
        self.detach_supervisor();
        self.add(socket.as_fd(), SUPERVISOR)?;
        self.supervisor = Some(socket);
        Ok(())
    }

    /// The supervisor is dead: what it had still said is heard, then it is let go. None of the
    /// processes that it had still wanted are started: nobody would open their gates.
    pub fn bury_supervisor(&mut self) -> Turn {
        while let Some(socket) = &self.supervisor {
            let Ok(Some(packet)) = socket::receive(socket) else {
                break;
            };
            let turn = match postcard::from_bytes(&packet.bytes) {
                Ok(Request::Spawn(_) | Request::Restore) => Turn::Own,
                Ok(request) => self.handle(request, packet.fds),
                Err(_) => break,
            };
            if matches!(turn, Turn::Power { .. }) {
                return turn;
            }
        }
        self.detach_supervisor();
        Turn::SupervisorGone
    }

    /// Lets the supervisor go. What is kept stays.
    pub fn detach_supervisor(&mut self) {
        if let Some(socket) = self.supervisor.take() {
            let _ = epoll::delete(&self.epoll, &socket);
        }
        self.outgoing.clear();
    }

    /// Tells the supervisor that somebody asked for the machine's end; false if there is none to tell.
    pub fn ask_for_end(&mut self, restart: bool) -> bool {
        if self.supervisor.is_some() {
            self.tell(&Event::EndAsked { restart }, Vec::new());
        }
        self.supervisor.is_some()
    }

    /// A child was reaped by the caller, who waits for all children (`code` as in [`RawExit`]).
    /// Returns whether it is one that the supervisor started.
    pub fn reaped(&mut self, pid: i32, code: i32) -> bool {
        let mut running = self
            .processes
            .iter()
            .filter(|(_, process)| process.exit.is_none());
        let Some((key, _)) = running.find(|(_, process)| process.pid == pid) else {
            return false;
        };
        self.ended(&key.clone(), code);
        true
    }

    /// Waits for the next thing to happen and deals with it. A signal only ends the wait.
    pub fn turn(&mut self) -> io::Result<Turn> {
        let mut events = [epoll::Event {
            flags: epoll::EventFlags::empty(),
            data: epoll::EventData::new_u64(0),
        }];
        match epoll::wait(&self.epoll, &mut events, None) {
            Ok(0) | Err(rustix::io::Errno::INTR) => return Ok(Turn::Own),
            Ok(_) => {}
            Err(error) => return Err(error.into()),
        }
        let [event] = events;
        match event.data.u64() {
            SUPERVISOR => Ok(self.supervisor_event(event.flags)),
            token if token & CALLER != 0 => Ok(Turn::Caller(token & !CALLER)),
            token => {
                if let Some(key) = self.keys.get(&token).cloned() {
                    self.exited(&key);
                }
                Ok(Turn::Own)
            }
        }
    }

    fn supervisor_event(&mut self, flags: epoll::EventFlags) -> Turn {
        if flags.contains(epoll::EventFlags::OUT) {
            self.flush();
        }
        if !flags.intersects(epoll::EventFlags::IN | epoll::EventFlags::HUP | epoll::EventFlags::ERR) {
            return Turn::Own;
        }
        let Some(socket) = &self.supervisor else {
            return Turn::Own;
        };
        let packet = match socket::receive(socket) {
            Ok(Some(packet)) => packet,
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
                ) =>
            {
                return Turn::Own;
            }
            Ok(None) | Err(_) => return self.gone(),
        };
        let Ok(request) = postcard::from_bytes(&packet.bytes) else {
            return self.gone();
        };
        self.handle(request, packet.fds)
    }

    fn gone(&mut self) -> Turn {
        self.detach_supervisor();
        Turn::SupervisorGone
    }

    fn handle(&mut self, request: Request, mut fds: Vec<OwnedFd>) -> Turn {
        match request {
            Request::Spawn(request) => self.spawn(*request, fds),
            Request::Keep { process, name } => {
                if let (Some(fd), Some(kept)) = (fds.pop(), self.kept_for(process)) {
                    kept.insert(name, fd);
                }
            }
            Request::Release { process, name } => {
                if let Some(kept) = self.kept_for(process) {
                    kept.remove(&name);
                }
            }
            Request::Acknowledge { key } => {
                if self.has_ended(&key) {
                    self.forget(&key);
                }
            }
            Request::Rename { from, to } => self.rename(&from, to),
            Request::Restore => self.restore(),
            Request::Power { restart } => return Turn::Power { restart },
            Request::Serves => return Turn::Serves,
            Request::Replace { build: name } => {
                if let Some(program) = fds.pop() {
                    self.build = Some(Build { name, program });
                }
            }
        }
        Turn::Own
    }

    /// What is kept for a process that is not forgotten, or for the supervisor.
    fn kept_for(&mut self, process: Option<String>) -> Option<&mut BTreeMap<String, OwnedFd>> {
        match process {
            Some(key) => Some(&mut self.processes.get_mut(&key)?.kept),
            None => Some(&mut self.kept),
        }
    }

    fn spawn(&mut self, request: SpawnRequest, fds: Vec<OwnedFd>) {
        let serial = request.serial;
        match self.try_spawn(request, fds) {
            Ok((pid, pidfd)) => self.tell(&Event::Spawned { serial, pid }, vec![pidfd]),
            Err(error) => self.tell(
                &Event::NotSpawned {
                    serial,
                    error: error.to_string(),
                },
                Vec::new(),
            ),
        }
    }

    fn try_spawn(&mut self, request: SpawnRequest, fds: Vec<OwnedFd>) -> io::Result<(i32, OwnedFd)> {
        if self.processes.contains_key(&request.key) {
            return Err(io::Error::new(
                io::ErrorKind::AlreadyExists,
                format!("{} runs already", request.key),
            ));
        }
        let mut fds = fds.into_iter();
        let own: Vec<OwnedFd> = fds.by_ref().take(usize::from(request.program_fds)).collect();
        let cgroup = request.has_cgroup.then(|| fds.next()).flatten();
        let joined = request.joins.then(|| fds.next()).flatten();
        let entered: Vec<OwnedFd> = fds.by_ref().take(request.enters.len()).collect();
        let enters: Vec<(BorrowedFd<'_>, i32)> = entered
            .iter()
            .map(AsFd::as_fd)
            .zip(request.enters.iter().copied())
            .collect();
        let kept = request.keep.into_iter().zip(fds).collect();
        let borrowed: Vec<BorrowedFd<'_>> = own.iter().map(AsFd::as_fd).collect();
        let spawned = spawn(&Spawn {
            program: &request.program,
            fds: &borrowed,
            namespaces: request.namespaces,
            cgroup: cgroup.as_ref().map(AsFd::as_fd),
            pid_namespace_of: joined.as_ref().map(AsFd::as_fd),
            enters: &enters,
            ids: request.ids.map(Into::into),
            limits: &request.limits,
            oom_score_adj: request.oom_score_adj,
        })?;
        let token = self.next_token;
        let watched = self.add(spawned.pidfd.as_fd(), token);
        let copy = match watched.and_then(|()| spawned.pidfd.try_clone()) {
            Ok(copy) => copy,
            Err(error) => {
                let _ = rustix::process::pidfd_send_signal(&spawned.pidfd, rustix::process::Signal::KILL);
                return Err(error);
            }
        };
        self.next_token += 1;
        self.keys.insert(token, request.key.clone());
        let process = Process {
            pid: spawned.pid,
            pidfd: spawned.pidfd,
            token,
            exit: None,
            kept,
        };
        self.processes.insert(request.key, process);
        Ok((spawned.pid, copy))
    }

    /// Takes the status of a process that has ended, and tells of it.
    fn exited(&mut self, key: &str) {
        let Some(process) = self.processes.get(key) else {
            return;
        };
        let options = WaitIdOptions::EXITED | WaitIdOptions::NOHANG;
        match waitid(WaitId::PidFd(process.pidfd.as_fd()), options) {
            Ok(Some(status)) => self.ended(key, exit_code(&status)),
            Ok(None) => {}
            // Reaped by somebody else: its status is lost, but that it has ended is sure.
            Err(_) => self.ended(key, UNKNOWN),
        }
    }

    fn ended(&mut self, key: &str, code: i32) {
        let Some(process) = self.processes.get_mut(key) else {
            return;
        };
        let exit = RawExit { code, at: now() };
        process.exit = Some(exit);
        let _ = epoll::delete(&self.epoll, &process.pidfd);
        self.keys.remove(&process.token);
        self.tell(
            &Event::Exited {
                key: key.to_owned(),
                exit,
            },
            Vec::new(),
        );
    }

    fn has_ended(&self, key: &str) -> bool {
        let process = self.processes.get(key);
        process.is_some_and(|process| process.exit.is_some())
    }

    fn rename(&mut self, from: &str, to: String) {
        if !self.has_ended(from) || self.processes.contains_key(&to) {
            return;
        }
        if let Some(process) = self.processes.remove(from) {
            if let Some(key) = self.keys.get_mut(&process.token) {
                key.clone_from(&to);
            }
            self.processes.insert(to, process);
        }
    }

    fn forget(&mut self, key: &str) {
        if let Some(process) = self.processes.remove(key) {
            self.keys.remove(&process.token);
        }
    }

    fn restore(&mut self) {
        let mut packets = Vec::new();
        for (key, process) in &self.processes {
            let fds = std::iter::once(&process.pidfd).chain(process.kept.values());
            let Ok(fds) = fds.map(OwnedFd::try_clone).collect::<io::Result<Vec<_>>>() else {
                continue;
            };
            let kept = process.kept.keys().cloned().collect();
            packets.push((
                Event::Process {
                    key: key.clone(),
                    pid: process.pid,
                    exit: process.exit,
                    kept,
                },
                fds,
            ));
        }
        for (name, fd) in &self.kept {
            if let Ok(fd) = fd.try_clone() {
                packets.push((Event::Kept { name: name.clone() }, vec![fd]));
            }
        }
        packets.push((Event::RestoreEnd, Vec::new()));
        for (event, fds) in packets {
            self.tell(&event, fds);
        }
    }

    fn tell(&mut self, event: &Event, fds: Vec<OwnedFd>) {
        // An event holds only numbers and text; it always has an encoding.
        let Ok(bytes) = postcard::to_stdvec(event) else {
            return;
        };
        self.outgoing.push_back(Outgoing { bytes, fds });
        self.flush();
    }

    /// Sends what the supervisor can take now; the rest when it has read.
    fn flush(&mut self) {
        let Some(socket) = &self.supervisor else {
            self.outgoing.clear();
            return;
        };
        while let Some(packet) = self.outgoing.front() {
            let fds: Vec<BorrowedFd<'_>> = packet.fds.iter().map(AsFd::as_fd).collect();
            match socket::send(socket, &packet.bytes, &fds) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                // A supervisor that has closed is noticed by its socket's event.
                _ => self.outgoing.pop_front(),
            };
        }
        let mut wanted = epoll::EventFlags::IN;
        if !self.outgoing.is_empty() {
            wanted |= epoll::EventFlags::OUT;
        }
        let _ = epoll::modify(&self.epoll, socket, epoll::EventData::new_u64(SUPERVISOR), wanted);
    }
}

/// The keeper holds up to five descriptors for each process; the kernel's default is 1,024 in all.
fn allow_many_descriptors() {
    /// `fs.nr_open` by default.
    const MANY: u64 = 1 << 20;
    use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
    let both = |limit| Rlimit {
        current: limit,
        maximum: limit,
    };
    if setrlimit(Resource::Nofile, both(Some(MANY))).is_err() {
        let _ = setrlimit(Resource::Nofile, both(getrlimit(Resource::Nofile).maximum));
    }
}

fn exit_code(status: &WaitIdStatus) -> i32 {
    match (status.exit_status(), status.terminating_signal()) {
        (Some(code), _) => code,
        (None, Some(signal)) => 128 + signal,
        (None, None) => UNKNOWN,
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or(u64::MAX)
}
