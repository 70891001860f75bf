//! The supervisor's side of the keeper.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use sys::program::Program;
use sys::readiness::{self, AsyncFd, Interest};
use sys::socket;
use sys::spawn::{IdMap, ResourceLimit};
use tokio::sync::{oneshot, watch};

use super::{Event, RawExit, Request, SpawnRequest};
use crate::error::Error;

/// What process 1 had kept when the supervisor came.
#[derive(Debug, Default)]
pub struct Restored {
    pub processes: Vec<RestoredProcess>,
    pub kept: HashMap<String, OwnedFd>,
}

#[derive(Debug)]
pub struct RestoredProcess {
    pub key: String,
    pub pid: i32,
    pub pidfd: OwnedFd,
    pub exit: Option<RawExit>,
    pub kept: HashMap<String, OwnedFd>,
}

/// A process to be started.
pub(crate) struct NewProcess<'a> {
    pub(crate) key: &'a str,
    pub(crate) program: Program,
    pub(crate) fds: &'a [OwnedFd],
    pub(crate) namespaces: u64,
    pub(crate) cgroup: Option<BorrowedFd<'a>>,
    pub(crate) joins: Option<BorrowedFd<'a>>,
    pub(crate) enters: &'a [(OwnedFd, i32)],
    pub(crate) ids: Option<IdMap>,
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) oom_score_adj: Option<i32>,
    pub(crate) keep: &'a [(&'a str, BorrowedFd<'a>)],
}

type SpawnReply = Result<(i32, OwnedFd), String>;

#[derive(Default)]
struct State {
    replies: HashMap<u64, (String, oneshot::Sender<SpawnReply>)>,
    exits: HashMap<String, watch::Sender<Option<RawExit>>>,
    gone: bool,
}

/// Process 1, as the supervisor sees it. Clones are the same connection.
#[derive(Clone)]
pub struct Client {
    socket: Arc<AsyncFd<OwnedFd>>,
    state: Arc<Mutex<State>>,
    serial: Arc<AtomicU64>,
    ends: watch::Receiver<Option<bool>>,
}

impl Client {
    /// Takes the socket to process 1 and what it has kept. Must be called in a tokio runtime.
    pub async fn connect(socket: OwnedFd) -> Result<(Self, Restored), Error> {
        let socket = readiness::watch(socket, Interest::READABLE | Interest::WRITABLE)
            .map_err(Error::io("watch the socket to process 1"))?;
        let (ended, ends) = watch::channel(None);
        let client = Self {
            socket: Arc::new(socket),
            state: Arc::default(),
            serial: Arc::default(),
            ends,
        };
        client.send(&Request::Restore, &[]).await?;
        let mut restored = Restored::default();
        loop {
            let (event, fds) = client.receive().await?;
            match event {
                Event::RestoreEnd => break,
                Event::Kept { name } => restored.kept.extend(fds.into_iter().next().map(|fd| (name, fd))),
                Event::Process { key, pid, exit, kept } => {
                    client.lock().exits.insert(key.clone(), watch::channel(exit).0);
                    let mut fds = fds.into_iter();
                    let Some(pidfd) = fds.next() else { continue };
                    let kept = kept.into_iter().zip(fds).collect();
                    restored.processes.push(RestoredProcess {
                        key,
                        pid,
                        pidfd,
                        exit,
                        kept,
                    });
                }
                other => client.handle(other, fds, &ended),
            }
        }
        tokio::spawn(client.clone().listen(ended));
        Ok((client, restored))
    }

    async fn listen(self, ended: watch::Sender<Option<bool>>) {
        while let Ok((event, fds)) = self.receive().await {
            self.handle(event, fds, &ended);
        }
        let mut state = self.lock();
        state.gone = true;
        state.replies.clear();
        state.exits.clear();
    }

    fn handle(&self, event: Event, fds: Vec<OwnedFd>, ended: &watch::Sender<Option<bool>>) {
        match event {
            Event::Spawned { serial, pid } => {
                let reply = fds
                    .into_iter()
                    .next()
                    .map(|fd| (pid, fd))
                    .ok_or("no pidfd came".to_owned());
                self.reply(serial, reply);
            }
            Event::NotSpawned { serial, error } => self.reply(serial, Err(error)),
            Event::Exited { key, exit } => {
                if let Some(sender) = self.lock().exits.get(&key) {
                    sender.send_replace(Some(exit));
                }
            }
            Event::EndAsked { restart } => {
                ended.send_replace(Some(restart));
            }
            Event::Process { .. } | Event::Kept { .. } | Event::RestoreEnd => {}
        }
    }

    fn reply(&self, serial: u64, reply: SpawnReply) {
        let Some((key, waiting)) = self.lock().replies.remove(&serial) else {
            return;
        };
        // Whoever asked has given up meanwhile: nobody will ever know of the process.
        if let Err(Ok((_, pidfd))) = waiting.send(reply) {
            let _ = rustix::process::pidfd_send_signal(&pidfd, rustix::process::Signal::KILL);
            let client = self.clone();
            tokio::spawn(async move {
                client.exited(&key).await;
                let _ = client.acknowledge(&key).await;
            });
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn receive(&self) -> Result<(Event, Vec<OwnedFd>), Error> {
        let packet = self
            .socket
            .async_io(Interest::READABLE, |socket| socket::receive(socket))
            .await
            .ok()
            .flatten()
            .ok_or(Error::KeeperGone)?;
        let event = postcard::from_bytes(&packet.bytes).map_err(|_| Error::KeeperGone)?;
        Ok((event, packet.fds))
    }

    async fn send(&self, request: &Request, fds: &[BorrowedFd<'_>]) -> Result<(), Error> {
        let bytes = postcard::to_stdvec(request)
            .map_err(|error| Error::io("encode a request to process 1")(io::Error::other(error)))?;
        self.socket
            .async_io(Interest::WRITABLE, |socket| socket::send(socket, &bytes, fds))
            .await
            .map_err(|error| match error.kind() {
                io::ErrorKind::InvalidInput => Error::io("send the request to process 1")(error),
                _ => Error::KeeperGone,
            })
    }

    /// Starts a process; it runs its program from here on. Its exit can be waited for by its key.
    pub(crate) async fn spawn(&self, process: NewProcess<'_>) -> Result<(i32, OwnedFd), Error> {
        let serial = self.serial.fetch_add(1, Ordering::Relaxed);
        let (sender, receiver) = oneshot::channel();
        {
            let mut state = self.lock();
            if state.gone {
                return Err(Error::KeeperGone);
            }
            state.replies.insert(serial, (process.key.to_owned(), sender));
            // Before the request: the exit may come with the answer.
            state.exits.insert(process.key.to_owned(), watch::channel(None).0);
        }
        let outcome = self.request_spawn(serial, &process, receiver).await;
        if outcome.is_err() {
            let mut state = self.lock();
            state.replies.remove(&serial);
            state.exits.remove(process.key);
        }
        outcome
    }

    async fn request_spawn(
        &self,
        serial: u64,
        process: &NewProcess<'_>,
        receiver: oneshot::Receiver<SpawnReply>,
    ) -> Result<(i32, OwnedFd), Error> {
        let request = Request::Spawn(Box::new(SpawnRequest {
            serial,
            key: process.key.to_owned(),
            program: process.program.clone(),
            program_fds: process.fds.len() as u16,
            namespaces: process.namespaces,
            has_cgroup: process.cgroup.is_some(),
            joins: process.joins.is_some(),
            enters: process.enters.iter().map(|(_, flags)| *flags).collect(),
            ids: process.ids,
            limits: process.limits.clone(),
            oom_score_adj: process.oom_score_adj,
            keep: process.keep.iter().map(|(name, _)| (*name).to_owned()).collect(),
        }));
        let mut fds: Vec<BorrowedFd<'_>> = process.fds.iter().map(AsFd::as_fd).collect();
        fds.extend(process.cgroup);
        fds.extend(process.joins);
        fds.extend(process.enters.iter().map(|(fd, _)| fd.as_fd()));
        fds.extend(process.keep.iter().map(|(_, fd)| *fd));
        self.send(&request, &fds).await?;
        receiver
            .await
            .map_err(|_| Error::KeeperGone)?
            .map_err(Error::NotCloned)
    }

    /// How a process ended, when it has; none for one that is unknown or acknowledged.
    pub async fn exited(&self, key: &str) -> Option<RawExit> {
        let mut receiver = self.lock().exits.get(key)?.subscribe();
        let exit = receiver.wait_for(Option::is_some).await.ok()?;
        *exit
    }

    /// The exit status is safe; process 1 may forget the process and what it kept with it.
    pub async fn acknowledge(&self, key: &str) -> Result<(), Error> {
        self.lock().exits.remove(key);
        self.send(&Request::Acknowledge { key: key.to_owned() }, &[])
            .await
    }

    /// Gives a process that has ended another key.
    pub(crate) async fn rename(&self, from: &str, to: &str) -> Result<(), Error> {
        {
            let mut state = self.lock();
            let ended = state.exits.remove(from);
            state.exits.extend(ended.map(|exit| (to.to_owned(), exit)));
        }
        let (from, to) = (from.to_owned(), to.to_owned());
        self.send(&Request::Rename { from, to }, &[]).await
    }

    /// Has process 1 keep a descriptor for the supervisor's successor.
    pub async fn keep(&self, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let name = name.to_owned();
        self.send(&Request::Keep { process: None, name }, &[fd]).await
    }

    /// Has process 1 close a descriptor that it keeps under a name.
    pub async fn release(&self, name: &str) -> Result<(), Error> {
        let name = name.to_owned();
        self.send(&Request::Release { process: None, name }, &[]).await
    }

    /// Has process 1 keep a descriptor with a process, until that is acknowledged.
    pub(crate) async fn keep_with(&self, key: &str, name: &str, fd: BorrowedFd<'_>) -> Result<(), Error> {
        let (process, name) = (Some(key.to_owned()), name.to_owned());
        self.send(&Request::Keep { process, name }, &[fd]).await
    }

    pub(crate) async fn release_with(&self, key: &str, name: &str) -> Result<(), Error> {
        let (process, name) = (Some(key.to_owned()), name.to_owned());
        self.send(&Request::Release { process, name }, &[]).await
    }

    /// Tells process 1 that clients are answered.
    pub async fn serves(&self) -> Result<(), Error> {
        self.send(&Request::Serves, &[]).await
    }

    /// Has process 1 start the next supervisors from another program, of this name.
    pub async fn replace(&self, build: &str, program: BorrowedFd<'_>) -> Result<(), Error> {
        let build = build.to_owned();
        self.send(&Request::Replace { build }, &[program]).await
    }

    /// Has process 1 end the machine; the zones must be stopped by now.
    pub async fn power(&self, restart: bool) -> Result<(), Error> {
        self.send(&Request::Power { restart }, &[]).await
    }

    /// Waits until somebody asks process 1 by a signal to end the machine; true for a restart.
    pub async fn end_asked(&self) -> Option<bool> {
        let mut ends = self.ends.clone();
        let asked = ends.wait_for(Option::is_some).await.ok()?;
        *asked
    }
}
