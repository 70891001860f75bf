//! The machines that `up` starts: one folder each under `$XDG_STATE_HOME/monobloc`, named after the
//! recipe.
//!
//! A machine is a QEMU process that outlives the command that started it. Its folder holds its disk,
//! the console's log, the sockets of console and monitor, QEMU's pid file and [`Record`], what it was
//! started as. Whether it runs is never taken from a file: the process of that pid must exist and
//! have this folder's monitor socket on its command line, and from then on it is held by a pidfd, so
//! that no other process can be taken for it.

mod follow;
mod ports;
mod start;
#[cfg(test)]
mod tests;
mod wait;

use std::fs::{self, DirBuilder, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, bail};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use serde::{Deserialize, Serialize};

use crate::client::Api;
use crate::qemu::{Acceleration, Forward, disks, qmp};

pub use start::{Start, Started};
pub use wait::NotReady;

/// How long a machine may take to stop its zones, write its disk and power itself off.
const POWER_OFF: Duration = Duration::from_secs(90);
/// How long QEMU may take to end when it is told to.
const QUIT: Duration = Duration::from_secs(10);
/// How long the API may take to take an order.
const ORDER: Duration = Duration::from_secs(15);
/// As much of the console's end as a failure shows.
const TAIL: usize = 25;
/// No line that is shown lies further from the log's end.
const TAIL_BYTES: u64 = 64 << 10;

/// Mode of a machine's folder.
const PRIVATE_DIR: u32 = 0o700;

/// What a machine was started as.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub struct Record {
    pub recipe: PathBuf,
    /// Folder of the image in the cache; another image is another folder.
    pub image: PathBuf,
    /// Port of this machine's loopback that leads to the API.
    pub api_port: u16,
    /// Other ports that lead into the machine.
    pub forwards: Vec<Forward>,
    pub memory: u64,
    pub cpus: u32,
    pub acceleration: Acceleration,
    /// When it was started, Unix time in seconds.
    pub started: u64,
}

/// A machine's folder, whether the machine runs or not.
#[derive(Debug, Clone)]
pub struct Machine {
    name: String,
    dir: PathBuf,
}

/// A QEMU process that was seen to be the machine's.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    fd: OwnedFd,
}

/// How a machine went down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Down {
    /// By itself, when asked to.
    PoweredOff,
    /// QEMU was told to end.
    Quit,
    /// QEMU was killed.
    Killed,
}

impl Record {
    /// How long ago it was started, by this machine's clock.
    #[must_use]
    pub fn age(&self) -> Duration {
        let started = UNIX_EPOCH + Duration::from_secs(self.started);
        SystemTime::now().duration_since(started).unwrap_or_default()
    }
}

impl Machine {
    /// The machine of this name; nothing is made or looked at yet.
    #[must_use]
    pub fn named(state: &Path, name: &str) -> Self {
        Self {
            name: name.to_owned(),
            dir: state.join(name),
        }
    }

    /// All machines that were ever started and not deleted, by name.
    ///
    /// # Errors
    /// The folder cannot be read.
    pub fn all(state: &Path) -> anyhow::Result<Vec<Self>> {
        let entries = match fs::read_dir(state) {
            Ok(entries) => entries,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).context(format!("Cannot read {}", state.display())),
        };
        let mut machines: Vec<Self> = entries
            .flatten()
            .filter_map(|entry| entry.file_name().into_string().ok())
            .map(|name| Self::named(state, &name))
            .filter(|machine| machine.record_path().is_file())
            .collect();
        machines.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(machines)
    }

    #[must_use]
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of everything that is the machine's.
    #[must_use]
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    /// What the serial console has said since the machine was started.
    #[must_use]
    pub fn log(&self) -> PathBuf {
        self.dir.join("console.log")
    }

    /// Socket of the serial console.
    #[must_use]
    pub fn console(&self) -> PathBuf {
        self.dir.join("console.sock")
    }

    #[must_use]
    pub fn disk(&self) -> PathBuf {
        self.dir.join("disk.img")
    }

    fn qmp(&self) -> PathBuf {
        self.dir.join("qmp.sock")
    }

    fn pid_file(&self) -> PathBuf {
        self.dir.join("qemu.pid")
    }

    fn record_path(&self) -> PathBuf {
        self.dir.join("machine.json")
    }

    /// What it was started as, if it ever was.
    #[must_use]
    pub fn record(&self) -> Option<Record> {
        let bytes = fs::read(self.record_path()).ok()?;
        serde_json::from_slice(&bytes).ok()
    }

    /// Keeps other commands from starting or stopping this machine until the lock is dropped.
    ///
    /// # Errors
    /// The folder cannot be written.
    pub fn lock(&self, waiting: &mut dyn FnMut()) -> anyhow::Result<File> {
        let path = self.dir.join("lock");
        let open = || {
            // The disk and the monitor are nobody else's business.
            DirBuilder::new()
                .recursive(true)
                .mode(PRIVATE_DIR)
                .create(&self.dir)?;
            OpenOptions::new()
                .create(true)
                .truncate(false)
                .write(true)
                .open(&path)
        };
        let file = open().with_context(|| format!("Cannot make {}", path.display()))?;
        if file.try_lock().is_err() {
            waiting();
            file.lock()
                .with_context(|| format!("Cannot lock {}", path.display()))?;
        }
        Ok(file)
    }

    /// The machine's process, if it runs.
    #[must_use]
    pub fn process(&self) -> Option<Process> {
        let text = fs::read_to_string(self.pid_file()).ok()?;
        let pid = text
            .trim()
            .parse()
            .ok()
            .filter(|pid| *pid > 0)
            .and_then(Pid::from_raw)?;
        let process = Process {
            pid,
            fd: pidfd_open(pid, PidfdFlags::empty()).ok()?,
        };
        // Read after the pidfd was opened: if the process still lives then, it is the one held.
        let line = fs::read(format!("/proc/{}/cmdline", pid.as_raw_nonzero())).ok()?;
        let socket = self.qmp();
        let socket = crate::qemu::escaped(socket.as_os_str());
        let ours = line.windows(socket.len()).any(|part| part == socket.as_bytes());
        (ours && process.is_alive()).then_some(process)
    }

    /// The last lines of the console.
    #[must_use]
    pub fn tail(&self, lines: usize) -> String {
        let read = || -> io::Result<String> {
            let mut file = File::open(self.log())?;
            let length = file.metadata()?.len();
            file.seek(SeekFrom::Start(length.saturating_sub(TAIL_BYTES)))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(String::from_utf8_lossy(&bytes).into_owned())
        };
        let text = read().unwrap_or_default();
        let all: Vec<&str> = text
            .lines()
            .map(str::trim_end)
            .filter(|line| !line.is_empty())
            .collect();
        let last = all.get(all.len().saturating_sub(lines)..).unwrap_or_default();
        last.join("\n")
    }

    /// Gives what the console says to `take`, from the log's beginning or its present end on, until
    /// `take` has had enough or the machine has ended.
    ///
    /// # Errors
    /// The log cannot be read.
    pub fn follow(
        &self,
        from: SeekFrom,
        process: Option<&Process>,
        take: impl FnMut(&[u8]) -> std::ops::ControlFlow<()>,
    ) -> anyhow::Result<()> {
        follow::follow(&self.log(), from, process, take)
            .with_context(|| format!("Cannot read {}", self.log().display()))
    }

    /// Takes a running machine down: asks it to power off, and pulls its plug if it does not.
    ///
    /// # Errors
    /// It runs on all the same.
    pub fn take_down(&self, process: &Process, api: Option<&Api>) -> anyhow::Result<Down> {
        let asked = api.is_some_and(|api| api.power_off(ORDER).is_ok());
        let down = if asked && process.wait_end(POWER_OFF) {
            Down::PoweredOff
        } else {
            self.pull_plug(process)?
        };
        self.clean_up();
        Ok(down)
    }

    /// Pulls out a disk that it was started with beside the recipe's.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn unplug(&self, serial: &str) -> anyhow::Result<()> {
        Ok(disks::unplug(&self.qmp(), serial)?)
    }

    /// Plugs a disk in, while it runs; it was started with others.
    ///
    /// # Errors
    /// QEMU refuses.
    pub fn plug(&self, serial: &str, image: &Path) -> anyhow::Result<()> {
        Ok(disks::plug(&self.qmp(), serial, image)?)
    }

    fn pull_plug(&self, process: &Process) -> anyhow::Result<Down> {
        if !process.is_alive() {
            return Ok(Down::PoweredOff);
        }
        if qmp::quit(&self.qmp()).is_ok() && process.wait_end(QUIT) {
            return Ok(Down::Quit);
        }
        let killed = pidfd_send_signal(&process.fd, Signal::KILL);
        if process.wait_end(QUIT) {
            return Ok(Down::Killed);
        }
        killed.context("Cannot end QEMU")?;
        bail!("QEMU (process {}) does not end", process.pid())
    }

    /// Takes away what only a running machine has.
    fn clean_up(&self) {
        for path in [self.pid_file(), self.qmp(), self.console(), self.bundle()] {
            // What is left is not taken for a running machine.
            let _ = fs::remove_file(path);
        }
    }

    fn bundle(&self) -> PathBuf {
        self.dir.join("bundle.json")
    }

    /// Deletes the machine with its disk.
    ///
    /// # Errors
    /// It runs, or the folder cannot be deleted.
    pub fn delete(&self) -> anyhow::Result<()> {
        if self.process().is_some() {
            bail!("The machine {} runs; take it down first", self.name);
        }
        fs::remove_dir_all(&self.dir).with_context(|| format!("Cannot delete {}", self.dir.display()))
    }
}

impl Process {
    pub(crate) fn try_clone(&self) -> io::Result<Self> {
        Ok(Self {
            pid: self.pid,
            fd: self.fd.try_clone()?,
        })
    }

    #[must_use]
    pub fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }

    #[must_use]
    pub fn is_alive(&self) -> bool {
        !self.wait_end(Duration::ZERO)
    }

    /// Waits until the process has ended; whether it has within the limit.
    #[must_use]
    pub fn wait_end(&self, limit: Duration) -> bool {
        let deadline = Instant::now() + limit;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let left = Timespec::try_from(left).unwrap_or_default();
            let mut fds = [PollFd::new(&self.fd, PollFlags::IN)];
            match poll(&mut fds, Some(&left)) {
                Ok(ready) => return ready > 0,
                Err(rustix::io::Errno::INTR) => {}
                Err(_) => return false,
            }
        }
    }
}
