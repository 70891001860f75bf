//! `create`: the container's first process is cloned, set up, and left waiting at its gate.

use std::fs;
use std::io;
use std::os::fd::{AsFd as _, OwnedFd};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, ensure};
use rustix::fs::{Mode, OFlags, open};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use zones::direct::{self, Created, DirectStdio, Lasting};

use super::config::{Config, Process};
use super::hooks;
use super::resources::{self, Cgroup};
use super::state::{Folder, Numbered, Phase, Record, Status};
use super::zone::{self, Streams};

/// How a process is connected with its caller.
#[derive(Debug, Default)]
pub(super) struct Connection {
    pub(super) console_socket: Option<PathBuf>,
    pub(super) pid_file: Option<PathBuf>,
    /// Descriptors after standard error that the process gets too.
    pub(super) preserve_fds: u32,
}

impl Connection {
    /// The caller's own streams, or a terminal that is sent over his socket.
    pub(super) fn streams(&self, process: &Process) -> anyhow::Result<Streams> {
        // These first: every descriptor that is opened from here on has a number above theirs.
        let inherited = (0..self.preserve_fds)
            .map(|number| {
                let number = i32::try_from(number)?
                    .checked_add(3)
                    .context("--preserve-fds is too large")?;
                sys::socket::inherited(number)
                    .with_context(|| format!("Cannot pass on the descriptor {number} of --preserve-fds"))
            })
            .collect::<anyhow::Result<Vec<OwnedFd>>>()?;
        let stdio = match (&self.console_socket, process.terminal) {
            (Some(path), true) => DirectStdio::Terminal(console(path)?),
            (None, false) => {
                let own = || {
                    anyhow::Ok([
                        io::stdin().as_fd().try_clone_to_owned()?,
                        io::stdout().as_fd().try_clone_to_owned()?,
                        io::stderr().as_fd().try_clone_to_owned()?,
                    ])
                };
                DirectStdio::Given(own().context("Standard input, output and error must be open")?)
            }
            (None, true) => anyhow::bail!(
                "config.json has process.terminal, so say with --console-socket where the terminal is to go"
            ),
            (Some(_), false) => anyhow::bail!(
                "There is a --console-socket, but config.json has no process.terminal to send over it"
            ),
        };
        Ok(Streams { stdio, inherited })
    }

    pub(super) fn write_pid(&self, pid: i32) -> anyhow::Result<()> {
        let Some(path) = &self.pid_file else {
            return Ok(());
        };
        // Whoever waits for the file reads a whole number.
        let mut aside = path.clone().into_os_string();
        aside.push(".new");
        fs::write(&aside, pid.to_string())
            .and_then(|()| fs::rename(&aside, path))
            .with_context(|| format!("Cannot write {}", path.display()))
    }
}

fn console(path: &Path) -> anyhow::Result<OwnedFd> {
    let connected = || {
        let socket = socket_with(
            AddressFamily::UNIX,
            SocketType::STREAM,
            SocketFlags::CLOEXEC,
            None,
        )?;
        connect(&socket, &SocketAddrUnix::new(path)?)?;
        Ok::<_, rustix::io::Errno>(socket)
    };
    connected().with_context(|| format!("Cannot connect to the console socket {}", path.display()))
}

/// Creates a container; nothing is left of one that fails.
pub(super) fn create(
    root: &Path,
    id: &str,
    bundle: &Path,
    connection: &Connection,
) -> anyhow::Result<Record> {
    let bundle =
        fs::canonicalize(bundle).with_context(|| format!("Cannot find the bundle {}", bundle.display()))?;
    let config = Config::read(&bundle)?;
    let process = config.process.as_ref().context("config.json has no process")?;
    let streams = connection.streams(process)?;
    let folder = Folder::make(root, id)?;
    let made = Making::begin(&folder, id, &bundle, &config, streams).and_then(|mut making| {
        let done = making.finish(&folder, connection);
        match done {
            Ok(()) => Ok(making.record),
            Err(error) => {
                making.undo();
                Err(error)
            }
        }
    });
    if made.is_err() {
        let _ = folder.remove();
    }
    made
}

/// A container on its way.
struct Making {
    created: Created,
    record: Record,
}

impl Making {
    /// Clones the process; on an error nothing is left but the folder.
    fn begin(
        folder: &Folder,
        id: &str,
        bundle: &Path,
        config: &Config,
        streams: Streams,
    ) -> anyhow::Result<Self> {
        let process = config.process.as_ref().context("config.json has no process")?;
        let zone = zone::zone(config, process, bundle, folder.path(), streams)?;
        let namespaces = zone.namespaces.own();
        let gate = Folder::make_pipe(&folder.gate())?;
        let lasting = Lasting {
            gate,
            report: Folder::make_pipe(&folder.report())?,
            reported: open(
                folder.report(),
                OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
                Mode::empty(),
            )
            .context("Cannot open the container's report")?,
        };
        let cgroup = resources::make(config, id)?;
        if cgroup.is_none() {
            resources::without(config, &zone)?;
        }
        let begun = || {
            let born_in = cgroup.as_ref().map(|cgroup| cgroup.folder.as_fd());
            let created = direct::create(zone, born_in, lasting)?;
            let record = Record {
                id: id.to_owned(),
                bundle: bundle.to_owned(),
                rootfs: config
                    .root
                    .as_ref()
                    .map(|root| bundle.join(&root.path))
                    .unwrap_or_default(),
                annotations: config.annotations.clone(),
                hooks: config.hooks.clone(),
                phase: Phase::Creating,
                process: Numbered::of(created.process.pid)?,
                namespaces,
                steps: created.steps().clone(),
                seccomp: config.linux.seccomp.clone(),
                cgroup: cgroup.as_ref().map(|cgroup: &Cgroup| cgroup.path.clone()),
                created: OffsetDateTime::now_utc().format(&Rfc3339)?,
            };
            Ok(Self { created, record })
        };
        let begun: anyhow::Result<Self> = begun();
        if let (Err(_), Some(cgroup)) = (&begun, &cgroup) {
            let _ = zones::remove_cgroup(&cgroup.path);
        }
        begun
    }

    fn finish(&mut self, folder: &Folder, connection: &Connection) -> anyhow::Result<()> {
        folder.write(&self.record)?;
        self.created.mounted()?;
        let (record, wanted) = (&self.record, &self.record.hooks);
        let within = Some(self.created.process.pidfd.as_fd());
        hooks::run("prestart", &wanted.prestart, record, Status::Creating, None)?;
        hooks::run(
            "createRuntime",
            &wanted.create_runtime,
            record,
            Status::Creating,
            None,
        )?;
        hooks::run(
            "createContainer",
            &wanted.create_container,
            record,
            Status::Creating,
            within,
        )?;
        self.created.ready()?;
        self.record.phase = Phase::Created;
        connection.write_pid(self.record.process.pid)?;
        folder.write(&self.record)
    }

    fn undo(&self) {
        let process = &self.created.process;
        let _ = sys::signals::send(&process.pidfd, hooks::KILL);
        let _ = hooks::wait(process, None);
        if let Some(cgroup) = &self.record.cgroup {
            let _ = resources::kill(cgroup);
            let _ = zones::remove_cgroup(cgroup);
        }
        for error in hooks::run_all(
            "poststop",
            &self.record.hooks.poststop,
            &self.record,
            Status::Stopped,
        ) {
            super::warn(&error);
        }
    }
}

/// Opens the gate of a created container, and returns when its program runs.
pub(super) fn start(root: &Path, id: &str) -> anyhow::Result<()> {
    let folder = Folder::open(root, id)?;
    let mut record = folder
        .record()?
        .with_context(|| format!("The creation of container {id} was cut off; delete it"))?;
    let status = record.status();
    ensure!(
        status == Status::Created,
        "Container {id} is {}, not created; only a created one can be started",
        status.name()
    );
    let pidfd = record
        .process
        .open()
        .context("The container's process has ended")?;
    let started = open_gate(&folder, &record, &pidfd);
    if let Err(error) = started {
        // What could not start is stopped, and can be deleted.
        let _ = sys::signals::send(&pidfd, hooks::KILL);
        return Err(error);
    }
    record.phase = Phase::Started;
    folder.write(&record)?;
    for error in hooks::run_all("poststart", &record.hooks.poststart, &record, Status::Running) {
        super::warn(&error);
    }
    Ok(())
}

fn open_gate(folder: &Folder, record: &Record, pidfd: &OwnedFd) -> anyhow::Result<()> {
    let within = Some(pidfd.as_fd());
    hooks::run(
        "startContainer",
        &record.hooks.start_container,
        record,
        Status::Created,
        within,
    )?;
    let reported = open(
        folder.report(),
        OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("Cannot open the container's report")?;
    // Without waiting: if nobody reads, the process has ended.
    let gate = open(
        folder.gate(),
        OFlags::WRONLY | OFlags::NONBLOCK | OFlags::CLOEXEC,
        Mode::empty(),
    )
    .context("The container's process has ended")?;
    rustix::io::write(&gate, &[1]).context("Cannot open the container's gate")?;
    record.steps.outcome(&reported, pidfd)?;
    Ok(())
}
