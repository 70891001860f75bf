//! The container's cgroup. Only version 2 is used: at `/sys/fs/cgroup`, or where else it is mounted.
//! Without it a bundle runs without a cgroup of its own, unless it asks for limits.

use std::fs;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, bail, ensure};
use rustix::event::{PollFd, PollFlags, poll};
use sys::mounts::{Change, change};
use sys::spawn::NEW_USER;
use zones::direct::DirectZone;
use zones::{
    Capability, Cgroups, CpuLimit, DeviceAccess, DeviceKind, DeviceNumber, DeviceRule, IoLimit, Limits,
    MountAttributes,
};

use super::config::{self, BlockIo, Config, Resources, Throttle, refuse};

/// Where the containers are that name no cgroup.
const PARENT: &str = "monobloc-oci";
/// The kernel's own shares of a cgroup of version 1 of which nothing is said.
const USUAL_SHARES: u64 = 1024;

/// A container's cgroup: its folder, and the folder open to be born in.
#[derive(Debug)]
pub(super) struct Cgroup {
    pub(super) path: PathBuf,
    pub(super) folder: OwnedFd,
}

/// Makes the container's cgroup with its limits. None where the machine has no version 2 and none is
/// needed. Nothing is left behind on an error.
pub(super) fn make(config: &Config, id: &str) -> anyhow::Result<Option<Cgroup>> {
    let none = Resources::default();
    let wanted = config.linux.resources.as_ref().unwrap_or(&none);
    let (mut limits, devices) = (limits(wanted)?, device_rules(&wanted.devices)?);
    let limited = limits != Limits::default() || !wanted.unified.is_empty();
    let Some(hierarchy) = hierarchy() else {
        ensure!(
            !limited && devices.is_empty(),
            "config.json asks for limits (linux.resources), for which cgroup version 2 must be mounted at \
             /sys/fs/cgroup; mount it or leave the limits out"
        );
        return Ok(None);
    };
    let controllers = fs::read_to_string(hierarchy.join("cgroup.controllers")).unwrap_or_default();
    if limits.cpu_shares == Some(USUAL_SHARES) && !controllers.split_whitespace().any(|name| name == "cpu") {
        // Callers say it always, and it says nothing.
        limits.cpu_shares = None;
    }
    let limited = limits != Limits::default() || !wanted.unified.is_empty();
    let path = place(config.linux.cgroups_path.as_deref(), id)?;
    let failed = || format!("Cannot make the cgroup {path}");
    let (parent, name) = path.rsplit_once('/').unwrap_or(("", &path));
    let cgroups = if limited {
        hand_down(&hierarchy, parent)
    } else {
        let parent = hierarchy.join(parent);
        fs::create_dir_all(&parent)
            .map(|()| Cgroups::below(parent))
            .map_err(anyhow::Error::from)
    };
    let cgroups = cgroups.with_context(failed)?;
    let others = fs::read_to_string(cgroups.path(name).join("cgroup.events")).unwrap_or_default();
    ensure!(
        !others.contains("populated 1"),
        "Other processes are in the cgroup {path}; say another one in linux.cgroupsPath of config.json"
    );
    let folder = cgroups.create(name, &limits, &devices).with_context(failed)?;
    let path = cgroups.path(name);
    for (file, value) in &wanted.unified {
        if let Err(error) = unified(&path, file, value) {
            let _ = zones::remove_cgroup(&path);
            return Err(error);
        }
    }
    Ok(Some(Cgroup { path, folder }))
}

/// Has a zone without a cgroup open no device but those that it is given, as a configuration with device
/// rules wants it.
pub(super) fn without(config: &Config, zone: &DirectZone) -> anyhow::Result<()> {
    if config
        .linux
        .resources
        .as_ref()
        .is_none_or(|wanted| wanted.devices.is_empty())
    {
        return Ok(());
    }
    ensure!(
        zone.namespaces.own() & NEW_USER != 0 || !zone.process.capabilities.contains(Capability::Mknod),
        "config.json has device rules and CAP_MKNOD, for which cgroup version 2 must be mounted at \
         /sys/fs/cgroup; mount it or leave the capability out"
    );
    let no_devices = Change {
        set: MountAttributes::NO_DEV,
        ..Change::default()
    };
    change(&zone.root, no_devices, true).context("Cannot keep the zone from the devices of its root")
}

/// Each level hands its controllers down to the next.
fn hand_down(hierarchy: &Path, parent: &str) -> anyhow::Result<Cgroups> {
    let mut level = hierarchy.to_owned();
    let mut cgroups = Cgroups::open(&level, "")?;
    for name in parent.split('/').filter(|name| !name.is_empty()) {
        cgroups = Cgroups::open(&level, name)?;
        level.push(name);
    }
    Ok(cgroups)
}

/// What may be opened beside the usual devices. The rules come in order, and all are refused before
/// the first.
fn device_rules(wanted: &[config::DeviceRule]) -> anyhow::Result<Vec<DeviceRule>> {
    let mut allowed: Vec<DeviceRule> = Vec::new();
    for rule in wanted {
        let number = |number: Option<i64>| {
            number
                .filter(|number| *number >= 0)
                .map(u32::try_from)
                .transpose()
        };
        let read = DeviceRule {
            kind: match rule.kind.as_deref() {
                None | Some("" | "a") => None,
                Some("c" | "u") => Some(DeviceKind::Character),
                Some("b") => Some(DeviceKind::Block),
                Some(other) => bail!("A device rule of config.json has the type {other:?}"),
            },
            major: number(rule.major).context("A device rule of config.json has no such major number")?,
            minor: number(rule.minor).context("A device rule of config.json has no such minor number")?,
            access: match rule.access.as_deref() {
                None | Some("") => DeviceAccess::ALL,
                Some(letters) => DeviceAccess::parse(letters)
                    .with_context(|| format!("A device rule of config.json has the access {letters:?}"))?,
            },
        };
        if rule.allow {
            allowed.push(read);
        } else if read == DeviceRule::ALL {
            allowed.clear();
        } else {
            ensure!(
                allowed.is_empty(),
                "config.json refuses a device after it has allowed some; Monobloc refuses all devices but \
                 those that are allowed, so allow what is to be had"
            );
        }
    }
    Ok(allowed)
}

fn unified(cgroup: &Path, file: &str, value: &str) -> anyhow::Result<()> {
    ensure!(
        !file.contains('/') && file.contains('.'),
        "{file:?} of linux.resources.unified is no file of a cgroup"
    );
    let failed = || format!("Cannot set {file} of linux.resources.unified to {value:?}");
    fs::write(cgroup.join(file), value).with_context(failed)
}

/// The hierarchy of version 2: where it belongs, or beside version 1.
fn hierarchy() -> Option<PathBuf> {
    let mounts = fs::read_to_string("/proc/self/mounts").ok()?;
    let points: Vec<&str> = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ').skip(1);
            let point = fields.next()?;
            (fields.next()? == "cgroup2").then_some(point)
        })
        .collect();
    let usual = points.iter().find(|point| **point == "/sys/fs/cgroup");
    usual.or(points.last()).map(PathBuf::from)
}

/// The path below the hierarchy.
fn place(wanted: Option<&str>, id: &str) -> anyhow::Result<String> {
    let Some(wanted) = wanted.filter(|wanted| !wanted.is_empty()) else {
        return Ok(format!("{PARENT}/{id}"));
    };
    let names: Vec<&str> = wanted
        .split('/')
        .filter(|name| !name.is_empty() && *name != ".")
        .collect();
    ensure!(
        !names.contains(&"..") && !names.is_empty(),
        "The cgroupsPath {wanted:?} of config.json leads out of the hierarchy"
    );
    let below = names.join("/");
    Ok(if wanted.starts_with('/') {
        below
    } else {
        format!("{PARENT}/{below}")
    })
}

fn limits(wanted: &Resources) -> anyhow::Result<Limits> {
    refuse(&[
        ("linux.resources.hugepageLimits", &wanted.hugepage_limits),
        ("linux.resources.network", &wanted.network),
        ("linux.resources.rdma", &wanted.rdma),
        ("linux.resources.memory.kernel", &wanted.memory.kernel),
        ("linux.resources.memory.kernelTCP", &wanted.memory.kernel_tcp),
        ("linux.resources.memory.swappiness", &wanted.memory.swappiness),
        (
            "linux.resources.cpu.realtimeRuntime",
            &wanted.cpu.realtime_runtime,
        ),
        ("linux.resources.cpu.realtimePeriod", &wanted.cpu.realtime_period),
        ("linux.resources.blockIO.leafWeight", &wanted.block_io.leaf_weight),
    ])?;
    ensure!(
        !wanted.memory.disable_oom_killer
            && wanted.cpu.burst.is_none()
            && wanted.cpu.idle.is_none_or(|idle| idle == 0),
        "Monobloc does not do linux.resources.memory.disableOOMKiller, cpu.burst and cpu.idle of config.json; \
         leave them out"
    );
    let amount = |value: Option<i64>| {
        value
            .and_then(|value| u64::try_from(value).ok())
            .filter(|value| *value > 0)
    };
    let memory = amount(wanted.memory.limit);
    let list = |text: &str| (!text.is_empty()).then(|| text.to_owned());
    let (quota, period) = (
        amount(wanted.cpu.quota),
        wanted.cpu.period.filter(|period| *period > 0),
    );
    Ok(Limits {
        memory,
        memory_reservation: amount(wanted.memory.reservation),
        swap: swap(memory, wanted.memory.swap)?,
        cpu: (quota.is_some() || period.is_some()).then_some(CpuLimit {
            quota,
            period: period.unwrap_or(CpuLimit::PERIOD),
        }),
        cpu_shares: wanted.cpu.shares.filter(|shares| *shares > 0),
        cpus: list(&wanted.cpu.cpus),
        memory_nodes: list(&wanted.cpu.mems),
        pids: amount(wanted.pids.limit),
        io_weight: wanted.block_io.weight.filter(|weight| *weight > 0),
        io_weight_devices: wanted
            .block_io
            .weight_device
            .iter()
            .filter_map(|one| Some((number(one.major, one.minor), one.weight?)))
            .collect(),
        io: io_limits(&wanted.block_io),
    })
}

/// Swap beside the memory; the specification has both together.
fn swap(memory: Option<u64>, both: Option<i64>) -> anyhow::Result<Option<u64>> {
    Ok(match (memory, both) {
        // What nobody limits is not limited; a kept zone with a limit of memory has no swap instead.
        (None, None | Some(0)) => None,
        (_, None | Some(..=0)) => Some(u64::MAX),
        (Some(memory), Some(both)) => Some(u64::try_from(both)?.checked_sub(memory).context(
            "linux.resources.memory.swap of config.json is memory and swap together and must not be below limit",
        )?),
        (None, Some(_)) => bail!("linux.resources.memory of config.json has a swap but no limit"),
    })
}

const fn number(major: u32, minor: u32) -> DeviceNumber {
    DeviceNumber { major, minor }
}

fn io_limits(wanted: &BlockIo) -> Vec<IoLimit> {
    type Field = fn(&mut IoLimit) -> &mut Option<u64>;
    let fields: [(&[Throttle], Field); 4] = [
        (&wanted.throttle_read_bps_device, |limit| &mut limit.read_bytes),
        (&wanted.throttle_write_bps_device, |limit| {
            &mut limit.written_bytes
        }),
        (&wanted.throttle_read_iops_device, |limit| &mut limit.reads),
        (&wanted.throttle_write_iops_device, |limit| &mut limit.writes),
    ];
    let mut limits: Vec<IoLimit> = Vec::new();
    for (throttles, field) in fields {
        for throttle in throttles {
            let device = number(throttle.major, throttle.minor);
            let at = limits.iter().position(|limit| limit.device == device);
            let at = at.unwrap_or_else(|| {
                limits.push(IoLimit::none(device));
                limits.len() - 1
            });
            if let Some(limit) = limits.get_mut(at) {
                *field(limit) = Some(throttle.rate);
            }
        }
    }
    limits
}

/// Kills whatever is in a cgroup and waits until it is empty.
pub(super) fn kill(cgroup: &Path) -> anyhow::Result<()> {
    let failed = || format!("Cannot kill the processes of {}", cgroup.display());
    let events = match fs::File::open(cgroup.join("cgroup.events")) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.with_context(failed)?,
    };
    fs::write(cgroup.join("cgroup.kill"), "1").with_context(failed)?;
    loop {
        let mut text = [0; 256];
        let read = rustix::io::pread(&events, &mut text, 0).with_context(failed)?;
        let text = String::from_utf8_lossy(text.get(..read).unwrap_or_default()).into_owned();
        if !text.contains("populated 1") {
            return Ok(());
        }
        match poll(&mut [PollFd::new(&events, PollFlags::PRI)], None) {
            Err(rustix::io::Errno::INTR) => {}
            other => drop(other.with_context(failed)?),
        }
    }
}

/// The processes of a cgroup and those below it.
pub(super) fn processes(cgroup: &Path) -> Vec<i32> {
    let own = fs::read_to_string(cgroup.join("cgroup.procs")).unwrap_or_default();
    let mut all: Vec<i32> = own.lines().filter_map(|line| line.parse().ok()).collect();
    for entry in fs::read_dir(cgroup).into_iter().flatten().flatten() {
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            all.extend(processes(&entry.path()));
        }
    }
    all
}
