//! Zones from creation to exit, as the supervisor drives them.
//!
//! [`Zones::create`] clones a zone's first process, which sets its namespaces and mounts up and then
//! waits at a gate. The caller meanwhile connects the zone's network. [`Pending::release`] opens the
//! gate and returns when the image's program runs, or says why it does not.

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use sys::program::{Failure, Program, Step};
use sys::readiness::{self, Interest};
use sys::socket;
use sys::spawn::{NEW_IPC, NEW_MOUNT, NEW_NET, NEW_PID, NEW_USER, NEW_UTS};

use crate::cgroup::Cgroups;
use crate::compile::{self, Compiled};
use crate::device_rules::DeviceRule;
use crate::error::{Error, StartError};
use crate::keeper::{Client, RawExit, Restored};
use crate::spec::{IdMap, Namespace, Namespaces, ProcessSpec, ZoneSpec};
use crate::stdio::{
    self, Channels, ParentStdio, RELAY, REPORT, STDERR, STDIN, STDOUT, Stdio, TERMINAL, TERMINAL_SOCKET,
};

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ExitStatus {
    /// 0 to 255; 128 and the signal's number for a process that a signal ended.
    pub code: i32,
    /// The kernel killed a process of the zone for want of memory.
    pub oom_killed: bool,
    /// Microseconds since the epoch.
    pub at: u64,
}

/// The zones of this machine.
#[derive(Clone)]
pub struct Zones {
    keeper: Client,
    cgroups: Cgroups,
    /// Those that process 1 had kept, by the key of the process, until they are asked for.
    relays: Arc<Mutex<HashMap<String, OwnedFd>>>,
}

/// A process that a predecessor of this supervisor started.
#[derive(Debug)]
pub struct Survivor {
    /// The zone's id, or the exec's key.
    pub key: String,
    pub process: Process,
    /// None if process 1 kept no channels of it.
    pub stdio: Option<Stdio>,
    /// The exit status, if it has ended by now.
    pub exit: Option<ExitStatus>,
    /// Of one whose start the predecessor did not see to its end.
    begun: Option<Begun>,
}

/// What a start that was cut short is completed with.
#[derive(Debug)]
struct Begun {
    report: OwnedFd,
    terminal: Option<OwnedFd>,
}

/// A running process: a zone's first one, or one that was added.
#[derive(Debug)]
pub struct Process {
    pub key: String,
    pub pid: i32,
    pub pidfd: OwnedFd,
}

impl Process {
    /// Sends a signal; one to a process that has ended is lost without an error.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        match sys::signals::send(&self.pidfd, signal) {
            Err(error) if error.raw_os_error() != Some(libc::ESRCH) => {
                Err(Error::io(format!("send signal {signal} to process {}", self.pid))(error))
            }
            _ => Ok(()),
        }
    }
}

/// A process that waits at the gate: a zone's first, or one that is added. Dropping it ends it.
pub struct Pending {
    zones: Zones,
    process: Option<Process>,
    report: OwnedFd,
    gate: Option<OwnedFd>,
    stdio: Option<ParentStdio>,
    program: Program,
    name: String,
}

impl Zones {
    /// Takes the socket to process 1 and the cgroup below which the zones are. Must be called in a
    /// tokio runtime.
    pub async fn connect(
        socket: OwnedFd,
        cgroups: Cgroups,
    ) -> Result<(Self, Vec<Survivor>, HashMap<String, OwnedFd>), Error> {
        let (keeper, Restored { mut processes, kept }) = Client::connect(socket).await?;
        let relays = processes
            .iter_mut()
            .filter_map(|process| Some((process.key.clone(), process.kept.remove(RELAY)?)))
            .collect();
        let zones = Self {
            keeper,
            cgroups,
            relays: Arc::new(Mutex::new(relays)),
        };
        let survivors = processes
            .into_iter()
            .map(|mut restored| Survivor {
                exit: restored.exit.map(|raw| zones.exit_status(&restored.key, raw)),
                process: Process {
                    key: restored.key.clone(),
                    pid: restored.pid,
                    pidfd: restored.pidfd,
                },
                begun: take_begun(&mut restored.kept),
                stdio: restored_stdio(restored.kept),
                key: restored.key,
            })
            .collect();
        Ok((zones, survivors, kept))
    }

    pub fn keeper(&self) -> &Client {
        &self.keeper
    }

    pub fn cgroups(&self) -> &Cgroups {
        &self.cgroups
    }

    /// Clones a zone's first process, which then waits at the gate. `root` is the zone's root as a
    /// detached mount (`open_tree(2)`, `fsmount(2)`), mapped to the zone's ids.
    pub async fn create(&self, spec: ZoneSpec, root: OwnedFd) -> Result<Pending, Error> {
        let (id, ids) = (spec.id.clone(), spec.ids);
        let channels = stdio::channels(&spec.process, ids)?;
        let own = spec.devices.iter().map(DeviceRule::from);
        let devices: Vec<DeviceRule> = own.chain(spec.device_rules.iter().copied()).collect();
        let cgroup = self.cgroups.create(&id, &spec.limits, &devices)?;
        let divides = spec.system_files_writable && matches!(spec.namespaces.user, Namespace::Own);
        if divides && let Err(error) = self.cgroups.delegate(&id, ids.host) {
            let _ = self.cgroups.remove(&id);
            return Err(error);
        }
        let Channels {
            child,
            report,
            gate,
            stdio,
        } = channels;
        let birthplace = Birthplace::of(&spec.namespaces)?;
        let compiled = compile::zone(spec, root, child)?;
        let birth = Birth {
            key: &id,
            namespaces: birthplace.new,
            cgroup: cgroup.as_fd(),
            joins: None,
            enters: &birthplace.enters,
            ids: birthplace.maps_ids.then_some(ids),
        };
        match self.clone_process(&birth, &compiled, &stdio, &report).await {
            Ok(process) => Ok(Pending {
                zones: self.clone(),
                process: Some(process),
                report,
                gate: Some(gate),
                stdio: Some(stdio),
                program: compiled.program,
                name: compiled.name,
            }),
            Err(error) => {
                let _ = self.cgroups.remove(&id);
                Err(error)
            }
        }
    }

    /// Clones another process in the zone whose first process is `zone`; it waits at the gate. `key` must
    /// be unique; `ids` are those of the zone.
    pub async fn add(
        &self,
        zone: &Process,
        key: &str,
        process: &ProcessSpec,
        ids: IdMap,
    ) -> Result<Pending, Error> {
        let channels = stdio::channels(process, ids)?;
        let cgroup = self.cgroups.open_zone(&zone.key, zone.pid)?;
        let Channels {
            child,
            report,
            gate,
            stdio,
        } = channels;
        let own = zone.pidfd.try_clone().map_err(Error::io("copy a pidfd"))?;
        let compiled = compile::exec(process, own, ids == IdMap::HOST, child)?;
        let birth = Birth {
            key,
            namespaces: 0,
            cgroup: cgroup.as_fd(),
            joins: Some(zone.pidfd.as_fd()),
            enters: &[],
            ids: None,
        };
        let born = self.clone_process(&birth, &compiled, &stdio, &report).await?;
        // Our copies of its descriptors go with `compiled`, among them the report's, whose closing tells of
        // the exec.
        Ok(Pending {
            zones: self.clone(),
            process: Some(born),
            report,
            gate: Some(gate),
            stdio: Some(stdio),
            program: compiled.program,
            name: compiled.name,
        })
    }

    async fn clone_process(
        &self,
        birth: &Birth<'_>,
        compiled: &Compiled,
        stdio: &ParentStdio,
        report: &OwnedFd,
    ) -> Result<Process, Error> {
        let mut keep: Vec<(&str, BorrowedFd<'_>)> = vec![(REPORT, report.as_fd())];
        match stdio {
            ParentStdio::Pipes(Stdio::Pipes {
                stdin,
                stdout,
                stderr,
            }) => {
                keep.extend(stdin.iter().map(|fd| (STDIN, fd.as_fd())));
                keep.extend([(STDOUT, stdout.as_fd()), (STDERR, stderr.as_fd())]);
            }
            ParentStdio::Terminal(socket) => keep.push((TERMINAL_SOCKET, socket.as_fd())),
            ParentStdio::Pipes(Stdio::Terminal(_)) => {}
        }
        let (pid, pidfd) = self
            .keeper
            .spawn(crate::keeper::NewProcess {
                key: birth.key,
                program: compiled.program.clone(),
                fds: &compiled.fds,
                namespaces: birth.namespaces,
                cgroup: Some(birth.cgroup),
                joins: birth.joins,
                enters: birth.enters,
                ids: birth.ids,
                limits: compiled.limits.clone(),
                oom_score_adj: compiled.oom_score_adj,
                keep: &keep,
            })
            .await?;
        Ok(Process {
            key: birth.key.to_owned(),
            pid,
            pidfd,
        })
    }

    /// Waits for a process to end; none for one that is unknown, acknowledged, or lost with process 1.
    pub async fn exited(&self, key: &str) -> Option<ExitStatus> {
        let raw = self.keeper.exited(key).await?;
        self.cgroups.kill(key);
        Some(self.exit_status(key, raw))
    }

    fn exit_status(&self, key: &str, raw: RawExit) -> ExitStatus {
        ExitStatus {
            code: raw.code,
            at: raw.at,
            oom_killed: self.cgroups.oom_killed(key),
        }
    }

    /// A zone's exit status is safe: its cgroup goes, and process 1 forgets it.
    pub async fn acknowledge_zone(&self, id: &str) -> Result<(), Error> {
        let removed = self.cgroups.remove_when_empty(id).await;
        self.acknowledge(id).await?;
        removed
    }

    /// A zone's exit status is safe, and not all that it has said: its cgroup goes, and process 1 keeps its
    /// output under the key `output`, until that is acknowledged.
    pub async fn retire_zone(&self, id: &str, output: &str) -> Result<(), Error> {
        let removed = self.cgroups.remove_when_empty(id).await;
        {
            let mut relays = self.relays.lock().unwrap_or_else(PoisonError::into_inner);
            let relay = relays.remove(id);
            relays.extend(relay.map(|relay| (output.to_owned(), relay)));
        }
        self.keeper.rename(id, output).await?;
        removed
    }

    /// Closes process 1's copy of a process's standard input, so that the process sees its end when
    /// the caller has closed his own.
    pub async fn close_input(&self, key: &str) -> Result<(), Error> {
        self.keeper.release_with(key, STDIN).await
    }

    /// The pipe between a process's terminal and its log, which process 1 keeps until the process is
    /// acknowledged: what a predecessor had on the way is still in it. Each is given once.
    pub async fn relay(&self, key: &str) -> Result<OwnedFd, Error> {
        let inherited = self
            .relays
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(key);
        if let Some(relay) = inherited {
            return Ok(relay);
        }
        let relay = stdio::relay().map_err(Error::io("make a pipe for a terminal's log"))?;
        self.keeper.keep_with(key, RELAY, relay.as_fd()).await?;
        Ok(relay)
    }

    /// The exit status of an added process is safe; process 1 forgets it.
    pub async fn acknowledge(&self, key: &str) -> Result<(), Error> {
        self.keeper.acknowledge(key).await
    }
}

struct Birth<'a> {
    key: &'a str,
    namespaces: u64,
    cgroup: BorrowedFd<'a>,
    joins: Option<BorrowedFd<'a>>,
    enters: &'a [(OwnedFd, i32)],
    ids: Option<IdMap>,
}

/// The namespaces that a zone's first process is born in.
struct Birthplace {
    /// `NEW_*`.
    new: u64,
    /// Those of other zones, by pidfds; the user namespace first.
    enters: Vec<(OwnedFd, i32)>,
    maps_ids: bool,
}

impl Birthplace {
    fn of(namespaces: &Namespaces) -> Result<Self, Error> {
        let mut place = Self {
            new: NEW_MOUNT,
            enters: Vec::new(),
            maps_ids: matches!(namespaces.user, Namespace::Own),
        };
        for (namespace, flag) in [
            (&namespaces.user, NEW_USER),
            (&namespaces.pid, NEW_PID),
            (&namespaces.ipc, NEW_IPC),
            (&namespaces.network, NEW_NET),
            (&namespaces.uts, NEW_UTS),
        ] {
            match namespace {
                Namespace::Own => place.new |= flag,
                Namespace::Host => {}
                Namespace::Of(pidfd) => {
                    let pidfd = pidfd.try_clone().map_err(Error::io("copy a pidfd"))?;
                    place.enters.push((pidfd, flag as i32));
                }
            }
        }
        Ok(place)
    }
}

fn restored_stdio(mut kept: HashMap<String, OwnedFd>) -> Option<Stdio> {
    if let Some(master) = kept.remove(TERMINAL) {
        return Some(Stdio::Terminal(master));
    }
    Some(Stdio::Pipes {
        stdin: kept.remove(STDIN),
        stdout: kept.remove(STDOUT)?,
        stderr: kept.remove(STDERR)?,
    })
}

fn take_begun(kept: &mut HashMap<String, OwnedFd>) -> Option<Begun> {
    Some(Begun {
        report: kept.remove(REPORT)?,
        terminal: kept.remove(TERMINAL_SOCKET),
    })
}

/// Reads the report: none when the exec has closed it.
async fn reported(report: OwnedFd) -> io::Result<Option<Failure>> {
    let report = readiness::watch(report, Interest::READABLE)?;
    let mut bytes = [0; Failure::LEN];
    let read = report
        .async_io(Interest::READABLE, |fd| Ok(rustix::io::read(fd, &mut bytes)?))
        .await?;
    Ok((read == bytes.len()).then(|| Failure::from_bytes(bytes)))
}

impl Zones {
    /// Sees a survivor's start to its end, if the predecessor did not: true if its program runs or
    /// ran. False for one that will not come so far, because the predecessor died before it opened the
    /// gate or because a step failed; it has ended or is about to.
    pub async fn complete_start(&self, survivor: &mut Survivor) -> Result<bool, Error> {
        let Some(Begun { report, terminal }) = survivor.begun.take() else {
            return Ok(true);
        };
        let failed = reported(report)
            .await
            .map_err(Error::io("read the report of a process"))?;
        if failed.is_some() {
            return Ok(false);
        }
        let has_terminal = terminal.is_some();
        if let (Some(socket), None) = (terminal, &survivor.stdio) {
            survivor.stdio = Some(self.terminal(&survivor.key, socket).await?);
        }
        self.forget_start(&survivor.key, has_terminal).await?;
        Ok(true)
    }

    /// Has process 1 close what it keeps only until the program runs.
    async fn forget_start(&self, key: &str, terminal: bool) -> Result<(), Error> {
        if terminal {
            self.keeper.release_with(key, TERMINAL_SOCKET).await?;
        }
        self.keeper.release_with(key, REPORT).await
    }

    async fn terminal(&self, key: &str, socket: OwnedFd) -> Result<Stdio, Error> {
        let failed = || Error::io("receive the terminal of a process");
        let socket = readiness::watch(socket, Interest::READABLE).map_err(failed())?;
        // Left in the socket, which process 1 has too: whoever dies before the next step loses nothing.
        let packet = socket
            .async_io(Interest::READABLE, |socket| socket::peek(socket))
            .await
            .map_err(failed())?;
        let master = packet
            .and_then(|packet| packet.fds.into_iter().next())
            .ok_or(Error::NotRunning)?;
        rustix::io::ioctl_fionbio(&master, true)
            .map_err(io::Error::from)
            .map_err(failed())?;
        self.keeper.keep_with(key, TERMINAL, master.as_fd()).await?;
        Ok(Stdio::Terminal(master))
    }
}

impl Pending {
    /// As the host's PID namespace numbers it.
    pub fn pid(&self) -> i32 {
        self.process.as_ref().map_or(0, |process| process.pid)
    }

    /// The zone's network namespace. Fails if the process has ended; [`failure`](Self::failure) says why.
    pub fn network_namespace(&self) -> Result<OwnedFd, Error> {
        let process = self.process.as_ref().ok_or(Error::NotRunning)?;
        sys::spawn::network_namespace(&process.pidfd).map_err(Error::io("open the zone's network namespace"))
    }

    /// Whether it has reported a step that failed: [`failure`](Self::failure) says which.
    pub fn has_failed(&self) -> bool {
        let mut report = [PollFd::new(&self.report, PollFlags::IN)];
        let now = Timespec::default();
        poll(&mut report, Some(&now)).is_ok_and(|ready| ready > 0)
    }

    /// Ends the process, and says why it failed by itself, if it has. Nothing of it is left then, and
    /// its id may be used again.
    pub async fn failure(mut self) -> StartError {
        if let Some(process) = &self.process {
            let _ = process.signal(libc::SIGKILL);
        }
        let reported = self.reported().await;
        self.give_up(reported).await
    }

    /// Opens the gate and waits until the program runs or has failed to; nothing is left of one that
    /// has failed.
    pub async fn release(mut self) -> Result<(Process, Stdio), StartError> {
        if let Some(gate) = self.gate.take() {
            // A process that has ended at an earlier step has closed its end; its report says why.
            let _ = rustix::io::write(&gate, &[1]);
        }
        let (zones, key) = (self.zones.clone(), self.key());
        let stdio = match self.stdio.take() {
            Some(ParentStdio::Pipes(stdio)) => Ok(stdio),
            Some(ParentStdio::Terminal(socket)) => zones.terminal(&key, socket).await,
            None => Err(Error::NotRunning),
        };
        let reported = self.reported().await;
        match (reported, stdio) {
            (Ok(None), Ok(stdio)) => match self.process.take() {
                Some(process) => {
                    zones
                        .forget_start(&key, matches!(stdio, Stdio::Terminal(_)))
                        .await?;
                    Ok((process, stdio))
                }
                None => Err(Error::NotRunning.into()),
            },
            (reported, _) => Err(self.give_up(reported).await),
        }
    }

    fn key(&self) -> String {
        self.process
            .as_ref()
            .map(|process| process.key.clone())
            .unwrap_or_default()
    }

    async fn give_up(&mut self, reported: io::Result<Option<Failure>>) -> StartError {
        if let Some(process) = &self.process {
            let _ = process.signal(libc::SIGKILL);
            self.zones.keeper.exited(&process.key).await;
            let _ = self.zones.acknowledge_zone(&process.key).await;
        }
        self.process = None;
        match reported {
            Ok(Some(failure)) => self.explain(failure),
            // Closed without a report: killed on the way.
            Ok(None) => StartError::Killed {
                program: self.name.clone(),
            },
            Err(source) => Error::io("read the report of a process")(source).into(),
        }
    }

    async fn reported(&self) -> io::Result<Option<Failure>> {
        reported(self.report.try_clone()?).await
    }

    fn explain(&self, failure: Failure) -> StartError {
        match self.program.steps.get(failure.step) {
            Some(Step::Exec { .. }) => StartError::from_exec(self.name.clone(), failure.errno),
            step => StartError::Step {
                step: compile::describe(step) + question(step, failure.errno),
                source: io::Error::from_raw_os_error(failure.errno),
            },
        }
    }
}

/// Docker's question where a mount fails because its two ends are not of one kind.
fn question(step: Option<&Step>, errno: i32) -> &'static str {
    match (step, errno) {
        (Some(Step::MakeDir { .. }), libc::ENOTDIR)
        | (Some(Step::AttachTree { .. }), libc::ENOTDIR | libc::EINVAL) => {
            " (Are you trying to mount a directory onto a file (or vice-versa)? Check if the specified host path exists and is the expected type)"
        }
        _ => "",
    }
}

impl Drop for Pending {
    /// A process that did not come to run its program is ended, and forgotten when it has.
    fn drop(&mut self) {
        let Some(process) = self.process.take() else {
            return;
        };
        // At a gate that is closed it ends by itself, and says that it did not come to run.
        if self.gate.take().is_none() {
            let _ = process.signal(libc::SIGKILL);
        }
        let zones = self.zones.clone();
        if let Ok(runtime) = tokio::runtime::Handle::try_current() {
            runtime.spawn(async move {
                zones.keeper.exited(&process.key).await;
                let _ = zones.acknowledge_zone(&process.key).await;
            });
        }
    }
}
