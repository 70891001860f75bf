//! Zones that nobody keeps: whoever asks for one clones its first process himself and may be gone
//! before it ends. It is then the child of whoever adopts orphans, and what is left to find it by is
//! its process id.
//!
//! Such a zone says everything about itself: which namespaces it has, which it shares, every mount.
//! The same steps are compiled for it as for a [kept](crate::Zones) one. The process stops at three
//! places: when its mounts are made and the machine's root is still there ([`Created::mounted`]),
//! when it is ready ([`Created::ready`]), and then at its gate, which is a named pipe so that it
//! outlives the creator.

mod compile;

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};
use serde::{Deserialize, Serialize};
use sys::program::{CapabilitySets, Failure, Fd, Program, Step};
use sys::spawn::{IdMaps, ResourceLimit, Spawn, Spawned, spawn};

use crate::compile::text;
use crate::devices::Node;
use crate::error::{Error, StartError};
use crate::spec::{Mount, ProcessSpec};

/// A zone that nobody keeps.
#[derive(Debug)]
pub struct DirectZone {
    /// Its capabilities are the bounding set; its terminal and standard input count for nothing.
    pub process: ProcessSpec,
    pub capabilities: CapabilitySets,
    /// As of `/proc/PID/oom_score_adj` (proc(5)); the caller's own where none.
    pub oom_score_adj: Option<i32>,
    /// As of umask(2).
    pub umask: u32,
    /// As of personality(2).
    pub personality: Option<u64>,
    /// A detached mount.
    pub root: OwnedFd,
    /// A folder of the machine's to attach the root at; nobody else sees it there.
    pub staging: String,
    pub read_only_root: bool,
    /// Propagation (`MS_SHARED` and the like) of the root when all is mounted.
    pub root_propagation: Option<u64>,
    pub namespaces: Namespaces,
    pub hostname: Option<String>,
    pub domainname: Option<String>,
    /// All there are, in order.
    pub mounts: Vec<Mount>,
    /// Whether to fill `/dev` with the usual devices and links.
    pub usual_devices: bool,
    pub nodes: Vec<Node>,
    pub masked_paths: Vec<String>,
    pub read_only_paths: Vec<String>,
    pub sysctls: Vec<(String, String)>,
    pub stdio: DirectStdio,
    /// Descriptors from 3 on, without a gap, that the program gets under the numbers they have.
    pub inherited: Vec<OwnedFd>,
}

/// The namespaces of a zone; what is neither new nor joined is the machine's.
#[derive(Debug, Default)]
pub struct Namespaces {
    /// `NEW_*` of [`sys::spawn`].
    pub new: u64,
    /// Those that are there, each with its `NEW_*`.
    pub joined: Vec<(OwnedFd, u64)>,
    /// Of the new user namespace.
    pub ids: Option<IdMaps>,
}

impl Namespaces {
    /// `NEW_*` of all that are not the machine's.
    pub fn own(&self) -> u64 {
        self.joined.iter().fold(self.new, |all, (_, kind)| all | kind)
    }
}

/// Where standard input, output and error lead.
#[derive(Debug)]
pub enum DirectStdio {
    Given([OwnedFd; 3]),
    /// A terminal, whose master is sent over this socket.
    Terminal(OwnedFd),
}

/// What outlives the creator.
#[derive(Debug)]
pub struct Lasting {
    /// The process waits here for one byte. It must never come to its end: a named pipe that is open
    /// for writing too.
    pub gate: OwnedFd,
    /// Where the process reports, open for writing.
    pub report: OwnedFd,
    /// The same, open for reading.
    pub reported: OwnedFd,
}

/// The names of a program's steps, to explain a failure by; written down for whoever opens the gate.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Steps {
    program: String,
    /// What each does; none where it runs the program.
    names: Vec<Option<String>>,
}

impl Steps {
    fn of(program: &Program, name: &str) -> Self {
        let describe = |step: &Step| match step {
            Step::Exec { .. } | Step::Executable { .. } => None,
            other => Some(crate::compile::describe(Some(other))),
        };
        Self {
            program: name.to_owned(),
            names: program.steps.iter().map(describe).collect(),
        }
    }

    fn explain(&self, failure: Failure) -> StartError {
        match self.names.get(failure.step) {
            Some(None) => StartError::from_exec(self.program.clone(), failure.errno),
            Some(Some(step)) => StartError::Step {
                step: step.clone(),
                source: io::Error::from_raw_os_error(failure.errno),
            },
            None => StartError::Step {
                step: crate::compile::describe(None),
                source: io::Error::from_raw_os_error(failure.errno),
            },
        }
    }

    /// Waits until the program runs, after the gate was opened, or the process has ended.
    pub fn outcome(&self, reported: &OwnedFd, process: impl AsFd) -> Result<(), StartError> {
        // A report may come and the process be gone with it, or the exec close the report.
        match next(&[reported.as_fd(), process.as_fd()], reported)? {
            Some(failure) => Err(self.explain(failure)),
            None => Ok(()),
        }
    }
}

/// A zone whose first process sets itself up. Dropping it leaves the process alone.
#[derive(Debug)]
pub struct Created {
    pub process: Spawned,
    steps: Steps,
    reported: OwnedFd,
    told: OwnedFd,
    word: OwnedFd,
}

impl Created {
    pub fn steps(&self) -> &Steps {
        &self.steps
    }

    /// Waits until all is mounted; the zone's namespaces can be entered, and the machine's root is
    /// still theirs.
    pub fn mounted(&self) -> Result<(), StartError> {
        self.wait()
    }

    /// Lets the process leave the machine's root and waits until it is at its gate.
    pub fn ready(&self) -> Result<(), StartError> {
        // A process that has ended has left its report.
        let _ = rustix::io::write(&self.word, &[1]);
        self.wait()
    }

    fn wait(&self) -> Result<(), StartError> {
        let failure = next(
            &[
                self.told.as_fd(),
                self.reported.as_fd(),
                self.process.pidfd.as_fd(),
            ],
            &self.reported,
        )?;
        if let Some(failure) = failure {
            return Err(self.steps.explain(failure));
        }
        match rustix::io::read(&self.told, &mut [0]) {
            Ok(1) => Ok(()),
            _ => Err(StartError::Killed {
                program: self.steps.program.clone(),
            }),
        }
    }
}

/// Waits for any of the descriptors, then looks for a report.
fn next(fds: &[BorrowedFd<'_>], reported: &OwnedFd) -> Result<Option<Failure>, Error> {
    let failed = || Error::io("wait for the report of a process");
    let mut polled: Vec<PollFd<'_>> = fds
        .iter()
        .map(|fd| PollFd::from_borrowed_fd(*fd, PollFlags::IN))
        .collect();
    loop {
        match poll(&mut polled, None) {
            Err(rustix::io::Errno::INTR) => {}
            other => {
                other.map_err(io::Error::from).map_err(failed())?;
                break;
            }
        }
    }
    let mut bytes = [0; Failure::LEN];
    match rustix::io::read(reported, &mut bytes) {
        Ok(read) => Ok((read == bytes.len()).then(|| Failure::from_bytes(bytes))),
        Err(rustix::io::Errno::AGAIN) => Ok(None),
        Err(error) => Err(failed()(error.into())),
    }
}

/// Clones a zone's first process, in a cgroup or in the caller's own.
pub fn create(zone: DirectZone, cgroup: Option<BorrowedFd<'_>>, lasting: Lasting) -> Result<Created, Error> {
    let pipe = || {
        pipe_with(PipeFlags::CLOEXEC)
            .map_err(io::Error::from)
            .map_err(Error::io("make a pipe"))
    };
    let ((told, tells), (hears, word)) = (pipe()?, pipe()?);
    let (rlimits, new) = (zone.process.rlimits.clone(), zone.namespaces.new);
    let oom_score_adj = zone.oom_score_adj;
    let compiled = compile::program(
        zone,
        compile::Ends {
            report: lasting.report,
            gate: lasting.gate,
            tells,
            hears,
        },
    )?;
    let fds: Vec<BorrowedFd<'_>> = compiled.fds.iter().map(AsFd::as_fd).collect();
    let enters: Vec<(BorrowedFd<'_>, i32)> = compiled
        .enters
        .iter()
        .map(|(namespace, kind)| (namespace.as_fd(), *kind))
        .collect();
    let process = spawn(&Spawn {
        program: &compiled.program,
        fds: &fds,
        // A cgroup namespace has its root where its maker is: it is made by the process itself.
        namespaces: new & !sys::spawn::NEW_CGROUP,
        cgroup,
        pid_namespace_of: None,
        enters: &enters,
        ids: compiled.ids,
        limits: &rlimits,
        oom_score_adj,
    })
    .map_err(Error::io("start the process"))?;
    Ok(Created {
        steps: Steps::of(&compiled.program, &compiled.name),
        reported: lasting.reported,
        told,
        word,
        process,
    })
}

/// A process that is added to a zone.
#[derive(Debug)]
pub struct Added<'a> {
    /// As of [`DirectZone`].
    pub process: ProcessSpec,
    pub capabilities: CapabilitySets,
    pub umask: u32,
    pub oom_score_adj: Option<i32>,
    pub stdio: DirectStdio,
    pub inherited: Vec<OwnedFd>,
    /// A process of the zone, and the `NEW_*` of its namespaces that are not the machine's.
    pub zone: (BorrowedFd<'a>, u64),
    pub cgroup: Option<BorrowedFd<'a>>,
}

/// Adds a process to a zone, and returns when its program runs.
pub fn add(added: Added<'_>) -> Result<Spawned, StartError> {
    let failed = || Error::io("make a pipe");
    let (reported, report) = pipe_with(PipeFlags::CLOEXEC)
        .map_err(io::Error::from)
        .map_err(failed())?;
    let (pidfd, kinds) = added.zone;
    let zone = pidfd.try_clone_to_owned().map_err(failed())?;
    let rlimits = added.process.rlimits.clone();
    let (cgroup, oom_score_adj) = (added.cgroup, added.oom_score_adj);
    let compiled = compile::added(added, zone, kinds & !sys::spawn::NEW_PID, report)?;
    let fds: Vec<BorrowedFd<'_>> = compiled.fds.iter().map(AsFd::as_fd).collect();
    let process = spawn(&Spawn {
        program: &compiled.program,
        fds: &fds,
        namespaces: 0,
        cgroup,
        pid_namespace_of: (kinds & sys::spawn::NEW_PID != 0).then_some(pidfd),
        enters: &[],
        ids: None,
        limits: &rlimits,
        oom_score_adj,
    })
    .map_err(Error::io("start the process"))?;
    let steps = Steps::of(&compiled.program, &compiled.name);
    // Our own copy of the report would keep it open.
    drop(compiled.fds);
    steps.outcome(&reported, &process.pidfd)?;
    Ok(process)
}

/// A program of the machine's or, within a zone's namespaces, of the zone's.
#[derive(Debug)]
pub struct Helper<'a> {
    pub path: &'a str,
    /// With the name of the program as the first.
    pub args: &'a [String],
    pub env: &'a [String],
    /// A zone's process, and the `NEW_*` of its namespaces to enter.
    pub within: Option<(BorrowedFd<'a>, u64)>,
    pub stdin: OwnedFd,
    /// Standard output and error.
    pub output: OwnedFd,
}

/// Starts a helper; what cannot be run ends with 127.
pub fn help(helper: Helper<'_>) -> Result<Spawned, Error> {
    let null = std::fs::File::options()
        .write(true)
        .open("/dev/null")
        .map_err(Error::io("open /dev/null"))?;
    let mut fds = vec![helper.stdin.as_fd(), helper.output.as_fd(), null.as_fd()];
    let mut steps = Vec::new();
    if let Some((pidfd, kinds)) = helper.within {
        let flags = kinds & !sys::spawn::NEW_PID;
        fds.push(pidfd);
        if flags != 0 {
            let flags = i32::try_from(flags).map_err(|_| Error::NotRunning)?;
            steps.push(Step::JoinNamespaces { pidfd: Fd(3), flags });
        }
    }
    let texts = |list: &[String]| list.iter().map(|entry| text(&**entry)).collect::<Result<_, _>>();
    steps.push(Step::Stdio([Fd(0), Fd(1), Fd(1)]));
    steps.push(Step::Exec {
        files: vec![text(helper.path)?],
        arguments: texts(helper.args)?,
        environment: texts(helper.env)?,
    });
    let program = Program { steps, report: Fd(2) };
    spawn(&Spawn {
        program: &program,
        fds: &fds,
        namespaces: 0,
        cgroup: None,
        pid_namespace_of: helper
            .within
            .filter(|(_, kinds)| kinds & sys::spawn::NEW_PID != 0)
            .map(|(pidfd, _)| pidfd),
        enters: &[],
        ids: None,
        limits: &[] as &[ResourceLimit],
        oom_score_adj: None,
    })
    .map_err(Error::io("start the process"))
}
