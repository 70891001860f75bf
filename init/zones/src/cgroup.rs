//! Control groups, version 2: one per zone, below one of the supervisor's own.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use crate::error::Error;
use crate::spec::Limits;

/// The cgroup whose children are the zones.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
}

/// Controllers that the limits need.
const CONTROLLERS: &[&str] = &["cpu", "memory", "pids", "io", "cpuset"];
/// Period of a CPU limit in microseconds, Docker's default.
const PERIOD: u64 = 100_000;

impl Cgroups {
    /// Makes `name` below a mounted cgroup2 hierarchy and hands it the controllers that are there.
    pub fn open(hierarchy: &Path, name: &str) -> Result<Self, Error> {
        let root = hierarchy.join(name);
        let failed = |path: &Path| Error::io(format!("set up the cgroup {}", path.display()));
        fs::create_dir_all(&root).map_err(failed(&root))?;
        for dir in [hierarchy, &root] {
            let there = fs::read_to_string(dir.join("cgroup.controllers")).map_err(failed(dir))?;
            let wanted: Vec<String> = there
                .split_whitespace()
                .filter(|controller| CONTROLLERS.contains(controller))
                .map(|controller| format!("+{controller}"))
                .collect();
            if !wanted.is_empty() {
                fs::write(dir.join("cgroup.subtree_control"), wanted.join(" ")).map_err(failed(dir))?;
            }
        }
        Ok(Self { root })
    }

    /// Folder of a zone's cgroup.
    pub fn path(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes a zone's cgroup with its limits. Nothing is left behind on an error.
    pub fn create(&self, id: &str, limits: &Limits) -> Result<OwnedFd, Error> {
        let path = self.path(id);
        match fs::create_dir(&path) {
            Ok(()) => {}
            // Left over from a supervisor that died in the middle.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
            Err(error) => return Err(Error::io(format!("make the cgroup {}", path.display()))(error)),
        }
        let made = write_limits(&path, limits).and_then(|()| {
            File::open(&path).map_err(Error::io(format!("open the cgroup {}", path.display())))
        });
        if made.is_err() {
            let _ = fs::remove_dir(&path);
        }
        Ok(made?.into())
    }

    /// Opens the cgroup of a running zone.
    pub fn open_zone(&self, id: &str) -> Result<OwnedFd, Error> {
        let path = self.path(id);
        let dir = File::open(&path).map_err(Error::io(format!("open the cgroup {}", path.display())))?;
        Ok(dir.into())
    }

    /// Changes the limits of a zone.
    pub fn update(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        write_limits(&self.path(id), limits)
    }

    /// Whether the kernel has killed a process of the zone for want of memory.
    pub fn oom_killed(&self, id: &str) -> bool {
        fs::read_to_string(self.path(id).join("memory.events")).is_ok_and(|events| {
            events
                .lines()
                .any(|line| line.strip_prefix("oom_kill ").is_some_and(|n| n != "0"))
        })
    }

    /// Removes a zone's cgroup after its last process has ended. One that is gone is no error.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        let path = self.path(id);
        match fs::remove_dir(&path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove the cgroup {}", path.display()))(error))
            }
            _ => Ok(()),
        }
    }
}

fn write_limits(dir: &Path, limits: &Limits) -> Result<(), Error> {
    let amount = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
    let set = |file: &str, wanted: bool, value: String| {
        let path = dir.join(file);
        // A controller that the hierarchy does not have has no file; no limit is as good as none then.
        if !wanted && !path.exists() {
            return Ok(());
        }
        fs::write(&path, value).map_err(Error::io(format!("set the limit {}", path.display())))
    };
    set("memory.max", limits.memory.is_some(), amount(limits.memory))?;
    if limits.memory.is_some() || limits.swap.is_some() {
        set(
            "memory.swap.max",
            limits.swap.is_some(),
            amount(Some(limits.swap.unwrap_or(0))),
        )?;
    }
    set("pids.max", limits.pids.is_some(), amount(limits.pids))?;
    let quota = limits
        .nano_cpus
        .map(|cpus| cpus.saturating_mul(PERIOD) / 1_000_000_000);
    set(
        "cpu.max",
        quota.is_some(),
        format!("{} {PERIOD}", amount(quota.map(|quota| quota.max(1_000)))),
    )?;
    if let Some(shares) = limits.cpu_shares {
        set("cpu.weight", true, weight(shares).to_string())?;
    }
    Ok(())
}

/// cgroup v1's shares (2 to 262144) as v2's weight (1 to 10000), by the line that all runtimes use.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

#[cfg(test)]
mod tests {
    use super::weight;

    #[test]
    fn shares_become_weights_at_both_ends() {
        assert_eq!((weight(2), weight(1_024), weight(262_144)), (1, 39, 10_000));
    }
}
