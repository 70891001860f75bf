//! Control groups, version 2: one per zone, below one of the supervisor's own.

use std::fs::{self, File};
use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::fs::chown;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};

use crate::device_rules::{self, DeviceRule};
use crate::error::Error;
use crate::spec::{CpuLimit, DeviceNumber, IoLimit, Limits};

/// The cgroup whose children are the zones.
#[derive(Debug, Clone)]
pub struct Cgroups {
    root: PathBuf,
    /// The program of the default device rules, loaded once.
    default_devices: Arc<OnceLock<OwnedFd>>,
    /// Of a zone of which no limit is said.
    unsaid: Most,
}

/// What a cgroup may have; everything where nothing is said.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Most {
    /// Bytes.
    pub memory: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

impl Most {
    /// What all zones together may have of a machine with so much: process 1, the supervisor and the
    /// kernel keep an eighth.
    #[must_use]
    pub fn of_all(machine: Most) -> Most {
        Most {
            memory: machine.memory.map(|bytes| {
                let reserve = (bytes / 8).clamp(LEAST_RESERVE, LARGEST_RESERVE);
                bytes.saturating_sub(reserve).max(bytes / 2)
            }),
            pids: machine.pids.map(|pids| pids - pids / 8),
        }
    }

    /// What one zone may have by itself of what all have: one that takes what it can get meets its own
    /// limit before its neighbours meet theirs.
    #[must_use]
    pub fn of_one(all: Most) -> Most {
        Most {
            memory: all.memory.map(|bytes| bytes - bytes / 8),
            pids: all.pids.map(|pids| pids / 2),
        }
    }

    fn write(self, dir: &Path) -> Result<(), Error> {
        let to = Setting { dir, fresh: true };
        for (file, most) in [("memory.max", self.memory), ("pids.max", self.pids)] {
            if let Some(most) = most {
                to.set(file, true, &most.to_string())?;
            }
        }
        Ok(())
    }
}

/// Controllers that the limits need.
const CONTROLLERS: &[&str] = &["cpu", "memory", "pids", "io", "cpuset"];
/// Memory that the zones leave to the machine itself.
const LEAST_RESERVE: u64 = 96 << 20;
const LARGEST_RESERVE: u64 = 1 << 30;

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
        Ok(Self {
            root,
            default_devices: Arc::default(),
            unsaid: Most::default(),
        })
    }

    /// Bounds what all zones together take of the machine, and what a zone takes of which no limit is
    /// said.
    pub fn bound(&mut self, machine: Most) -> Result<(), Error> {
        let all = Most::of_all(machine);
        self.unsaid = Most::of_one(all);
        all.write(&self.root)
    }

    fn write_limits(&self, path: &Path, limits: &Limits, fresh: bool) -> Result<(), Error> {
        write_limits(path, limits, fresh)?;
        let unsaid = Most {
            memory: self.unsaid.memory.filter(|_| limits.memory.is_none()),
            pids: self.unsaid.pids.filter(|_| limits.pids.is_none()),
        };
        unsaid.write(path)
    }

    /// Takes a cgroup as it is, with the controllers that it hands down already.
    pub fn below(root: PathBuf) -> Self {
        Self {
            root,
            default_devices: Arc::default(),
            unsaid: Most::default(),
        }
    }

    /// Folder of a zone's cgroup.
    pub fn path(&self, id: &str) -> PathBuf {
        self.root.join(id)
    }

    /// Makes a zone's cgroup with its limits and with what it may open beside the usual devices.
    /// Nothing is left behind on an error.
    pub fn create(&self, id: &str, limits: &Limits, devices: &[DeviceRule]) -> Result<OwnedFd, Error> {
        let path = self.path(id);
        let fresh = match fs::create_dir(&path) {
            Ok(()) => true,
            // Left over from a supervisor that died in the middle.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => false,
            Err(error) => return Err(Error::io(format!("make the cgroup {}", path.display()))(error)),
        };
        let made = self.write_limits(&path, limits, fresh).and_then(|()| {
            let dir = File::open(&path).map_err(Error::io(format!("open the cgroup {}", path.display())))?;
            self.allow_devices(&dir, devices).map_err(Error::io(format!(
                "set the devices of the cgroup {}",
                path.display()
            )))?;
            Ok(dir)
        });
        if made.is_err() {
            let _ = fs::remove_dir(&path);
        }
        Ok(made?.into())
    }

    fn allow_devices(&self, cgroup: &File, more: &[DeviceRule]) -> io::Result<()> {
        let load = |rules: &[DeviceRule]| sys::bpf::load_device_program(&device_rules::program(rules));
        if !more.is_empty() {
            let program = load(&[device_rules::DEFAULT, more].concat())?;
            return sys::bpf::attach_device_program(cgroup, program);
        }
        let program = match self.default_devices.get() {
            Some(program) => program,
            None => {
                let loaded = load(device_rules::DEFAULT)?;
                self.default_devices.get_or_init(|| loaded)
            }
        };
        sys::bpf::attach_device_program(cgroup, program)
    }

    /// Opens the cgroup for another process of a running zone, whose first process is `first`.
    pub fn open_zone(&self, id: &str, first: i32) -> Result<OwnedFd, Error> {
        open_for_another(&self.path(id), first)
    }

    /// Changes the limits of a zone.
    pub fn update(&self, id: &str, limits: &Limits) -> Result<(), Error> {
        self.write_limits(&self.path(id), limits, false)
    }

    /// Whether the kernel has killed a process of the zone for want of memory.
    pub fn oom_killed(&self, id: &str) -> bool {
        fs::read_to_string(self.path(id).join("memory.events")).is_ok_and(|events| {
            events
                .lines()
                .any(|line| line.strip_prefix("oom_kill ").is_some_and(|n| n != "0"))
        })
    }

    /// Kills what is left of a zone whose first process has ended. Of one with a PID namespace of its own
    /// that is nothing: the kernel has seen to it.
    pub fn kill(&self, id: &str) {
        // Without a cgroup there is nothing left of it.
        let _ = fs::write(self.path(id).join("cgroup.kill"), "1");
    }

    /// Removes a zone's cgroup after its last process has ended. One that is gone is no error.
    pub fn remove(&self, id: &str) -> Result<(), Error> {
        remove_tree(&self.path(id))
    }

    /// Hands a zone's cgroup to `owner`, who may then divide it among processes of the zone (cgroups(7),
    /// "Cgroups delegation"); what limits the zone as a whole is not his to write.
    pub fn delegate(&self, id: &str, owner: u32) -> Result<(), Error> {
        let path = self.path(id);
        let failed = || Error::io(format!("hand over the cgroup {}", path.display()));
        // Each takes memory of the kernel.
        for (file, most) in [("cgroup.max.descendants", "1000"), ("cgroup.max.depth", "16")] {
            fs::write(path.join(file), most).map_err(failed())?;
        }
        let files = fs::read_to_string(DELEGATED).map_err(failed())?;
        for file in files.lines().filter(|file| path.join(file).exists()) {
            chown(path.join(file), Some(owner), Some(owner)).map_err(failed())?;
        }
        chown(&path, Some(owner), Some(owner)).map_err(failed())
    }
}

/// Files of a cgroup that are safe to hand over.
const DELEGATED: &str = "/sys/kernel/cgroup/delegate";

/// Opens the cgroup that another process of a zone is born in: the zone's own at `path`, or that of its
/// first process where the zone has divided its own, which takes no more processes then (cgroups(7), "no
/// internal processes").
pub fn open_for_another(path: &Path, first: i32) -> Result<OwnedFd, Error> {
    let failed = || Error::io(format!("open the cgroup {}", path.display()));
    let divided = fs::read_to_string(path.join("cgroup.subtree_control")).map_err(failed())?;
    let mut part = path.to_owned();
    if !divided.trim().is_empty() {
        let cgroups = fs::read_to_string(format!("/proc/{first}/cgroup")).map_err(failed())?;
        let of_first = cgroups.lines().find_map(|line| line.strip_prefix("0::"));
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let below = of_first.and_then(|whole| whole.split_once(&format!("/{name}/")));
        part.extend(below.map(|(_, below)| below));
    }
    Ok(File::open(&part).map_err(failed())?.into())
}

/// Removes a cgroup whose processes have ended, with those that it was divided into. One that is gone is
/// no error.
pub fn remove_tree(path: &Path) -> Result<(), Error> {
    let failed = || Error::io(format!("remove the cgroup {}", path.display()));
    match fs::remove_dir(path) {
        Err(error) if error.kind() == io::ErrorKind::ResourceBusy => {}
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(failed()(error)),
        _ => return Ok(()),
    }
    for entry in fs::read_dir(path).map_err(failed())?.flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            remove_tree(&entry.path())?;
        }
    }
    fs::remove_dir(path).map_err(failed())
}

/// One file of a cgroup, and what is to be in it.
struct Setting<'a> {
    dir: &'a Path,
    /// Nothing was ever set: what is not limited need not be said.
    fresh: bool,
}

impl Setting<'_> {
    /// A controller that the hierarchy does not have has no file; no limit is as good as none then.
    fn set(&self, file: &str, limited: bool, value: &str) -> Result<(), Error> {
        let path = self.dir.join(file);
        if !limited && (self.fresh || !path.exists()) {
            return Ok(());
        }
        let failed = || Error::io(format!("set the limit {} to {value:?}", path.display()));
        fs::write(&path, value).map_err(failed())
    }
}

fn write_limits(dir: &Path, limits: &Limits, fresh: bool) -> Result<(), Error> {
    let to = Setting { dir, fresh };
    let amount = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
    to.set("memory.max", limits.memory.is_some(), &amount(limits.memory))?;
    let swap = limits.swap.or(limits.memory.map(|_| 0));
    // A kernel without swap has no file for it, and none to forbid.
    let forbidden = limits.memory.is_some() && dir.join("memory.swap.max").exists();
    to.set(
        "memory.swap.max",
        limits.swap.is_some_and(|swap| swap != u64::MAX) || forbidden,
        &amount(swap),
    )?;
    let reserved = limits.memory_reservation;
    to.set(
        "memory.low",
        reserved.is_some(),
        &reserved.unwrap_or(0).to_string(),
    )?;
    to.set("pids.max", limits.pids.is_some(), &amount(limits.pids))?;
    let cpu = limits.cpu.unwrap_or(CpuLimit {
        quota: None,
        period: CpuLimit::PERIOD,
    });
    to.set(
        "cpu.max",
        limits.cpu.is_some(),
        &format!("{} {}", amount(cpu.quota), cpu.period),
    )?;
    let shares = limits.cpu_shares;
    let weight = shares.map_or(DEFAULT_WEIGHT, weight).to_string();
    to.set("cpu.weight", shares.is_some(), &weight)?;
    // An empty list is that of the cgroup above.
    let list = |list: &Option<String>| list.as_deref().unwrap_or_default().to_owned() + "\n";
    to.set("cpuset.cpus", limits.cpus.is_some(), &list(&limits.cpus))?;
    to.set(
        "cpuset.mems",
        limits.memory_nodes.is_some(),
        &list(&limits.memory_nodes),
    )?;
    if fresh && limits.io_weight.is_none() && limits.io_weight_devices.is_empty() && limits.io.is_empty() {
        return Ok(());
    }
    write_io_weights(&to, limits)?;
    write_io_limits(&to, limits)
}

/// The kernel's weight of a cgroup of which nothing is said, for CPU and disks.
const DEFAULT_WEIGHT: u64 = 100;

/// Two schedulers know weights, each with a file and a scale of its own: BFQ has Docker's, 1 to 1000,
/// and the cost model the usual one, 1 to 10000.
fn write_io_weights(to: &Setting<'_>, limits: &Limits) -> Result<(), Error> {
    let bfq = to.dir.join("io.bfq.weight").exists();
    let (file, scale): (_, fn(u16) -> u64) = match bfq {
        true => ("io.bfq.weight", u64::from),
        false => ("io.weight", io_weight),
    };
    let default = limits.io_weight.map_or(DEFAULT_WEIGHT, scale);
    to.set(file, limits.io_weight.is_some(), &format!("default {default}"))?;
    let said = limits.io_weight_devices.iter().map(|(device, _)| *device);
    for device in no_longer(to.dir, file, said) {
        to.set(file, true, &format!("{}:{} default", device.major, device.minor))?;
    }
    for (device, weight) in &limits.io_weight_devices {
        let line = format!("{}:{} {}", device.major, device.minor, scale(*weight));
        to.set(file, true, &line)?;
    }
    Ok(())
}

fn write_io_limits(to: &Setting<'_>, limits: &Limits) -> Result<(), Error> {
    let amount = |value: Option<u64>| value.map_or("max".to_owned(), |value| value.to_string());
    let gone = no_longer(to.dir, "io.max", limits.io.iter().map(|limit| limit.device));
    for limit in gone
        .into_iter()
        .map(IoLimit::none)
        .chain(limits.io.iter().copied())
    {
        let line = format!(
            "{}:{} rbps={} wbps={} riops={} wiops={}",
            limit.device.major,
            limit.device.minor,
            amount(limit.read_bytes),
            amount(limit.written_bytes),
            amount(limit.reads),
            amount(limit.writes)
        );
        to.set("io.max", true, &line)?;
    }
    Ok(())
}

/// The devices that a file has lines of and that are not said any more.
fn no_longer(dir: &Path, file: &str, said: impl Iterator<Item = DeviceNumber>) -> Vec<DeviceNumber> {
    let said: Vec<DeviceNumber> = said.collect();
    let text = fs::read_to_string(dir.join(file)).unwrap_or_default();
    let device = |line: &str| {
        let (major, minor) = line.split(' ').next()?.split_once(':')?;
        Some(DeviceNumber {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
        })
    };
    let there = text.lines().filter_map(device);
    there.filter(|device| !said.contains(device)).collect()
}

/// cgroup v1's shares (2 to 262144) as v2's weight (1 to 10000), by the line that all runtimes use.
fn weight(shares: u64) -> u64 {
    1 + (shares.clamp(2, 262_144) - 2) * 9_999 / 262_142
}

/// cgroup v1's weight (10 to 1000) as v2's (1 to 10000), by the line that all runtimes use.
fn io_weight(weight: u16) -> u64 {
    1 + (u64::from(weight.clamp(10, 1_000)) - 10) * 9_999 / 990
}

#[cfg(test)]
mod tests {
    use super::{Most, io_weight, weight};

    #[test]
    fn the_zones_leave_the_machine_an_eighth_and_one_zone_leaves_some_to_the_others() {
        let machine = |mebibytes: u64| Most {
            memory: Some(mebibytes << 20),
            pids: Some(8000),
        };
        let all = |mebibytes| Most::of_all(machine(mebibytes)).memory.unwrap() >> 20;
        assert_eq!(
            (all(128), all(512), all(2048), all(65_536)),
            (64, 416, 1792, 64_512)
        );
        let one = Most::of_one(Most::of_all(machine(2048)));
        assert_eq!((one.memory.unwrap() >> 20, one.pids.unwrap()), (1568, 3500));
        let nothing = Most::default();
        assert_eq!(Most::of_one(Most::of_all(nothing)), nothing);
    }

    #[test]
    fn shares_become_weights_at_both_ends() {
        assert_eq!((weight(2), weight(1_024), weight(262_144)), (1, 39, 10_000));
        assert_eq!(
            (io_weight(10), io_weight(500), io_weight(1_000)),
            (1, 4_950, 10_000)
        );
    }
}
