//! What is known of the containers of this role: one folder each below `--root`, with `state.json`
//! (written aside, synced, renamed) and the two named pipes that reach the container's first process
//! before it runs its program. Whether a container runs is not written down: its process says so.

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder, File};
use std::io::{self, Write as _};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{FlockOperation, Mode, OFlags, flock, open};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use zones::direct::Steps;

use super::config::Hooks;

/// The version of the runtime-spec that states and features are given in.
pub(super) const OCI_VERSION: &str = "1.2.0";

/// A container as it is written down.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Record {
    pub(super) id: String,
    pub(super) bundle: PathBuf,
    pub(super) rootfs: PathBuf,
    pub(super) annotations: BTreeMap<String, String>,
    pub(super) hooks: Hooks,
    pub(super) phase: Phase,
    pub(super) process: Numbered,
    /// `NEW_*` of the namespaces that are not the machine's.
    pub(super) namespaces: u64,
    pub(super) steps: Steps,
    /// The profile of system calls, for the processes that are added.
    pub(super) seccomp: Option<Value>,
    /// Its cgroup's folder.
    pub(super) cgroup: Option<PathBuf>,
    /// RFC 3339.
    pub(super) created: String,
}

/// How far the life cycle has come.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Phase {
    Creating,
    Created,
    Started,
}

/// A process that may have ended, and whose number may be another's by now.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Numbered {
    pub(super) pid: i32,
    /// Clock ticks after the machine's boot.
    pub(super) started: u64,
}

impl Numbered {
    pub(super) fn of(pid: i32) -> anyhow::Result<Self> {
        let (_, started) = stat(pid).with_context(|| format!("Cannot look at process {pid}"))?;
        Ok(Self { pid, started })
    }

    /// The process, unless it has ended. One that nobody has reaped has ended too.
    pub(super) fn open(self) -> Option<OwnedFd> {
        let pidfd = pidfd_open(Pid::from_raw(self.pid)?, PidfdFlags::empty()).ok()?;
        // What the number means now, it means for as long as the descriptor's process lives.
        let (state, started) = stat(self.pid).ok()?;
        (started == self.started && !matches!(state, 'Z' | 'X')).then_some(pidfd)
    }
}

/// State and start of a process (proc(5), fields 3 and 22 of `stat`).
fn stat(pid: i32) -> io::Result<(char, u64)> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat"))?;
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    // The name in brackets may hold anything.
    let (_, rest) = text.rsplit_once(") ").ok_or_else(bad)?;
    let mut fields = rest.split(' ');
    let state = fields
        .next()
        .and_then(|field| field.chars().next())
        .ok_or_else(bad)?;
    let started = fields
        .nth(18)
        .and_then(|field| field.parse().ok())
        .ok_or_else(bad)?;
    Ok((state, started))
}

/// `status` of the specification's `runtime.md`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub(super) enum Status {
    Creating,
    Created,
    Running,
    Stopped,
}

impl Status {
    pub(super) fn name(self) -> &'static str {
        match self {
            Self::Creating => "creating",
            Self::Created => "created",
            Self::Running => "running",
            Self::Stopped => "stopped",
        }
    }
}

/// The state of a container as hooks and callers get it.
#[derive(Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct State<'a> {
    oci_version: &'static str,
    id: &'a str,
    status: Status,
    /// None of a stopped one.
    pid: i32,
    bundle: &'a Path,
    rootfs: &'a Path,
    created: &'a str,
    annotations: &'a BTreeMap<String, String>,
}

impl Record {
    pub(super) fn status(&self) -> Status {
        match (self.process.open(), self.phase) {
            (None, _) => Status::Stopped,
            (Some(_), Phase::Creating) => Status::Creating,
            (Some(_), Phase::Created) => Status::Created,
            (Some(_), Phase::Started) => Status::Running,
        }
    }

    pub(super) fn state(&self, status: Status) -> State<'_> {
        State {
            oci_version: OCI_VERSION,
            id: &self.id,
            status,
            pid: if status == Status::Stopped {
                0
            } else {
                self.process.pid
            },
            bundle: &self.bundle,
            rootfs: &self.rootfs,
            created: &self.created,
            annotations: &self.annotations,
        }
    }
}

/// A container's folder. It is locked as long as this lives, unless it was opened to look only.
#[derive(Debug)]
pub(super) struct Folder {
    path: PathBuf,
    _lock: Option<File>,
}

/// Names that are safe as a folder's and a cgroup's.
fn check_id(id: &str) -> anyhow::Result<()> {
    let letters = id
        .chars()
        .all(|letter| letter.is_ascii_alphanumeric() || "_+-.".contains(letter));
    ensure!(
        letters && !id.is_empty() && id.len() <= 255 && id != "." && id != "..",
        "{id:?} is no id of a container: letters, digits and \"_+-.\" are what it can have"
    );
    Ok(())
}

impl Folder {
    /// Makes a new container's folder.
    pub(super) fn make(root: &Path, id: &str) -> anyhow::Result<Self> {
        check_id(id)?;
        let failed = || format!("Cannot make {}", root.join(id).display());
        DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(root)
            .with_context(failed)?;
        let path = root.join(id);
        match DirBuilder::new().mode(0o700).create(&path) {
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
                bail!("There is a container {id} already; delete it or take another id")
            }
            other => other.with_context(failed)?,
        }
        let folder = Self::locked(path)?;
        folder.context("The container was deleted while it was made")
    }

    /// A container's folder, locked.
    pub(super) fn open(root: &Path, id: &str) -> anyhow::Result<Self> {
        check_id(id)?;
        Self::locked(root.join(id))?.with_context(|| unknown(id))
    }

    /// A container's folder, to look at what its record says now.
    pub(super) fn look(root: &Path, id: &str) -> anyhow::Result<Self> {
        check_id(id)?;
        let path = root.join(id);
        ensure!(path.is_dir(), unknown(id));
        Ok(Self { path, _lock: None })
    }

    /// None if there is no such folder (any more).
    fn locked(path: PathBuf) -> anyhow::Result<Option<Self>> {
        let failed = || format!("Cannot lock {}", path.display());
        let lock = match File::open(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(failed)?,
        };
        flock(&lock, FlockOperation::LockExclusive).with_context(failed)?;
        // Whoever had it before may have deleted it, and another may have made it anew.
        let own = lock.metadata().with_context(failed)?;
        let same = fs::metadata(&path).is_ok_and(|now| (now.dev(), now.ino()) == (own.dev(), own.ino()));
        Ok(same.then_some(Self {
            path,
            _lock: Some(lock),
        }))
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Where the container's first process waits.
    pub(super) fn gate(&self) -> PathBuf {
        self.path.join("gate")
    }

    /// Where it says which step has failed.
    pub(super) fn report(&self) -> PathBuf {
        self.path.join("report")
    }

    /// Makes a named pipe and opens it such that it never ends: for reading and for writing.
    pub(super) fn make_pipe(path: &Path) -> anyhow::Result<OwnedFd> {
        let failed = || format!("Cannot make the pipe {}", path.display());
        let kind = rustix::fs::FileType::Fifo;
        rustix::fs::mknodat(rustix::fs::CWD, path, kind, Mode::from_raw_mode(0o600), 0)
            .with_context(failed)?;
        open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()).with_context(failed)
    }

    /// The container, or none if its creation was cut off before it had a process.
    pub(super) fn record(&self) -> anyhow::Result<Option<Record>> {
        let path = self.path.join("state.json");
        let bytes = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            other => other.with_context(|| format!("Cannot read {}", path.display()))?,
        };
        let record = serde_json::from_slice(&bytes);
        Ok(Some(record.with_context(|| {
            format!("{} is damaged; delete the container with --force", path.display())
        })?))
    }

    pub(super) fn write(&self, record: &Record) -> anyhow::Result<()> {
        let (path, aside) = (self.path.join("state.json"), self.path.join("state.json.new"));
        let written = File::create(&aside).and_then(|mut file| {
            file.write_all(&serde_json::to_vec(record)?)?;
            file.sync_all()?;
            fs::rename(&aside, &path)
        });
        written.with_context(|| format!("Cannot write {}", path.display()))
    }

    /// Removes the folder and what is in it.
    pub(super) fn remove(&self) -> anyhow::Result<()> {
        fs::remove_dir_all(&self.path).with_context(|| format!("Cannot remove {}", self.path.display()))
    }
}

pub(super) fn unknown(id: &str) -> String {
    format!("There is no container {id}; it does not exist")
}

/// The ids of all containers.
pub(super) fn ids(root: &Path) -> anyhow::Result<Vec<String>> {
    let entries = match fs::read_dir(root) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        other => other.with_context(|| format!("Cannot read {}", root.display()))?,
    };
    let mut ids: Vec<String> = entries
        .filter_map(|entry| entry.ok()?.file_name().into_string().ok())
        .filter(|id| check_id(id).is_ok())
        .collect();
    ids.sort();
    Ok(ids)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_process_is_told_from_another_of_its_number() {
        let own = Numbered::of(std::process::id() as i32).unwrap();
        assert!(own.open().is_some());
        let other = Numbered {
            started: own.started + 1,
            ..own
        };
        assert!(other.open().is_none());
    }

    #[test]
    fn an_id_is_no_path() {
        for id in ["", ".", "..", "a/b", "a b", "ä"] {
            assert!(check_id(id).is_err(), "{id:?}");
        }
        for id in ["a", "A-1_b.c+d", ".hidden"] {
            assert!(check_id(id).is_ok(), "{id:?}");
        }
    }
}
