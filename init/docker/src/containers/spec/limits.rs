//! Limits of the container's cgroup and of its processes.

use std::io;

use zones::{CpuLimit, DeviceNumber, IoLimit, Limits, ResourceLimit};

use super::positive;
use crate::containers::config::{HostConfig, ThrottleDevice, Ulimit};
use crate::http::{ApiError, Result};

pub(super) fn rlimits(host: &HostConfig) -> Result<Vec<ResourceLimit>> {
    let one = |limit: &Ulimit| {
        let resource = sys::spawn::resource(&limit.name)
            .ok_or_else(|| ApiError::bad_request(format!("invalid ulimit type: {}", limit.name)))?;
        // -1 is no limit.
        let amount = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (amount(limit.soft), amount(limit.hard));
        if soft > hard {
            return Err(ApiError::bad_request(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )));
        }
        Ok(ResourceLimit { resource, soft, hard })
    };
    host.ulimits.iter().map(one).collect()
}

/// Least memory of a container, in bytes.
const LEAST_MEMORY: i64 = 6 << 20;
/// Where the kernel lists what CPUs and NUMA nodes there are.
const CPUS: &str = "/sys/devices/system/cpu/online";
const MEMORY_NODES: &str = "/sys/devices/system/node/online";

/// Refuses limits that cannot be set, in Docker's words and order.
pub(crate) fn check_limits(host: &HostConfig) -> Result<()> {
    check_memory(host)?;
    check_cpu(host)?;
    let weights = host.blkio_weight_device.iter().map(|device| device.weight);
    for weight in weights.chain([host.blkio_weight]) {
        ensure(weight == 0 || (10..=1_000).contains(&weight), || {
            "Range of blkio weight is from 10 to 1000".to_owned()
        })?;
    }
    let score = host.oom_score_adj;
    ensure((-1_000..=1_000).contains(&score), || {
        format!("Invalid value {score}, range for oom score adj is [-1000, 1000]")
    })?;
    limits(host).map(drop)
}

fn ensure(right: bool, text: impl FnOnce() -> String) -> Result<()> {
    if right {
        Ok(())
    } else {
        Err(ApiError::bad_request(text()))
    }
}

fn check_memory(host: &HostConfig) -> Result<()> {
    let (memory, swap, reserved) = (host.memory, host.memory_swap, host.memory_reservation);
    let say = |text: &'static str| move || text.to_owned();
    ensure(
        memory == 0 || memory >= LEAST_MEMORY,
        say("Minimum memory limit allowed is 6MB"),
    )?;
    ensure(
        memory == 0 || swap <= 0 || swap >= memory,
        say("Minimum memoryswap limit should be larger than memory limit, see usage"),
    )?;
    ensure(
        memory != 0 || swap <= 0,
        say("You should always set the Memory limit when using Memoryswap limit, see usage"),
    )?;
    ensure(
        reserved == 0 || reserved >= LEAST_MEMORY,
        say("Minimum memory reservation allowed is 6MB"),
    )?;
    ensure(
        memory == 0 || reserved <= memory,
        say("Minimum memory limit can not be less than memory reservation limit, see usage"),
    )
}

fn check_cpu(host: &HostConfig) -> Result<()> {
    let (nano, period, quota) = (host.nano_cpus, host.cpu_period, host.cpu_quota);
    let say = |text: &'static str| move || text.to_owned();
    ensure(
        nano <= 0 || period == 0,
        say("Conflicting options: Nano CPUs and CPU Period cannot both be set"),
    )?;
    ensure(
        nano <= 0 || quota == 0,
        say("Conflicting options: Nano CPUs and CPU Quota cannot both be set"),
    )?;
    let cpus = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let most = i64::try_from(cpus)
        .unwrap_or(i64::MAX)
        .saturating_mul(1_000_000_000);
    ensure((0..=most).contains(&nano), || {
        format!("Range of CPUs is from 0.01 to {cpus}.00, as there are only {cpus} CPUs available")
    })?;
    ensure(
        period == 0 || (1_000..=1_000_000).contains(&period),
        say("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)"),
    )?;
    ensure(
        quota <= 0 || quota >= 1_000,
        say("CPU cfs quota can not be less than 1ms (i.e. 1000)"),
    )?;
    ensure(host.cpu_shares >= 0, || {
        format!("CPU shares cannot be negative ({})", host.cpu_shares)
    })?;
    check_list(&host.cpuset_cpus, CPUS, "cpuset cpus", "CPUs")?;
    check_list(&host.cpuset_mems, MEMORY_NODES, "cpuset mems", "memory nodes")
}

/// Holds a list of numbers, such as `0-2,7`, against the one of those that there are.
fn check_list(wanted: &str, available: &str, field: &str, what: &str) -> Result<()> {
    if wanted.is_empty() {
        return Ok(());
    }
    let numbers =
        ranges(wanted).ok_or_else(|| ApiError::bad_request(format!("Invalid value {wanted} for {field}")))?;
    let available = std::fs::read_to_string(available).unwrap_or_else(|_| "0".to_owned());
    let available = available.trim();
    let there = ranges(available).unwrap_or_default();
    let is_there = |number: u32| there.iter().any(|range| range.contains(&number));
    ensure(numbers.into_iter().flatten().all(is_there), || {
        format!("Requested {what} are not available - requested {wanted}, available: {available}")
    })
}

fn ranges(list: &str) -> Option<Vec<std::ops::RangeInclusive<u32>>> {
    /// More than any kernel counts CPUs or nodes.
    const MOST: u32 = 8_192;
    let range = |text: &str| {
        let (first, last) = text.split_once('-').unwrap_or((text, text));
        let (first, last): (u32, u32) = (first.trim().parse().ok()?, last.trim().parse().ok()?);
        (first <= last && last < MOST).then_some(first..=last)
    };
    list.split(',').map(range).collect()
}

/// What is asked for that this kernel has no word for and Docker only warns of.
pub(crate) fn warnings(host: &HostConfig) -> Vec<String> {
    let mut warnings = Vec::new();
    if host.oom_kill_disable == Some(true) {
        warnings.push("Your kernel does not support OomKillDisable. OomKillDisable discarded.".to_owned());
    }
    warnings
}

/// The limits of the container's cgroup; devices are looked up by their paths on the machine.
pub(crate) fn limits(host: &HostConfig) -> Result<Limits> {
    let memory = positive(host.memory);
    // Memory and swap together; unset is twice the memory, -1 is no limit.
    let swap = match (memory, host.memory_swap) {
        (Some(memory), 0) => Some(memory),
        (Some(_), ..=-1) => Some(u64::MAX),
        (Some(memory), together) => positive(together).map(|together| together.saturating_sub(memory)),
        (None, _) => None,
    };
    let quota = positive(host.cpu_quota);
    let period = positive(host.cpu_period);
    let part = (quota.is_some() || period.is_some()).then(|| CpuLimit {
        quota,
        period: period.unwrap_or(CpuLimit::PERIOD),
    });
    let list = |list: &str| Some(list.to_owned()).filter(|list| !list.is_empty());
    let weights = host.blkio_weight_device.iter();
    Ok(Limits {
        memory,
        memory_reservation: positive(host.memory_reservation),
        swap,
        cpu: positive(host.nano_cpus).map(CpuLimit::of_nano_cpus).or(part),
        cpu_shares: positive(host.cpu_shares),
        cpus: list(&host.cpuset_cpus),
        memory_nodes: list(&host.cpuset_mems),
        pids: host.pids_limit.and_then(positive),
        io_weight: Some(host.blkio_weight).filter(|weight| *weight > 0),
        io_weight_devices: weights
            .map(|device| Ok((block_device(&device.path)?, device.weight)))
            .collect::<Result<_>>()?,
        io: throttles(host)?,
    })
}

/// The four lists of the API as one, by device.
fn throttles(host: &HostConfig) -> Result<Vec<IoLimit>> {
    type Field = fn(&mut IoLimit) -> &mut Option<u64>;
    let lists: [(&[ThrottleDevice], Field); 4] = [
        (&host.blkio_device_read_bps, |limit| &mut limit.read_bytes),
        (&host.blkio_device_write_bps, |limit| &mut limit.written_bytes),
        (&host.blkio_device_read_iops, |limit| &mut limit.reads),
        (&host.blkio_device_write_iops, |limit| &mut limit.writes),
    ];
    let mut limits: Vec<IoLimit> = Vec::new();
    for (list, field) in lists {
        for throttle in list {
            let device = block_device(&throttle.path)?;
            let at = match limits.iter().position(|limit| limit.device == device) {
                Some(at) => at,
                None => {
                    limits.push(IoLimit::none(device));
                    limits.len() - 1
                }
            };
            if let Some(limit) = limits.get_mut(at) {
                // Zero is no limit.
                *field(limit) = Some(throttle.rate).filter(|rate| *rate > 0);
            }
        }
    }
    Ok(limits)
}

fn block_device(path: &str) -> Result<DeviceNumber> {
    let stat = rustix::fs::stat(path).map_err(|error| {
        ApiError::bad_request(format!("no such device: {path}: {}", io::Error::from(error)))
    })?;
    if rustix::fs::FileType::from_raw_mode(stat.st_mode) != rustix::fs::FileType::BlockDevice {
        return Err(ApiError::bad_request(format!(
            "{path} is no block device of the machine"
        )));
    }
    Ok(DeviceNumber {
        major: rustix::fs::major(stat.st_rdev),
        minor: rustix::fs::minor(stat.st_rdev),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::wanted;
    use super::*;

    #[test]
    fn limits_follow_dockers_meaning() {
        let limits = |host| limits(&wanted(host).host).unwrap();
        let memory = limits(json!({"Memory": 100 << 20}));
        assert_eq!((memory.memory, memory.swap), (Some(100 << 20), Some(100 << 20)));
        assert_eq!(
            limits(json!({"Memory": 100 << 20, "MemorySwap": 100 << 20})).swap,
            Some(0)
        );
        assert_eq!(
            limits(json!({"Memory": 100 << 20, "MemorySwap": -1})).swap,
            Some(u64::MAX)
        );
        let cpu = |host| limits(host).cpu.map(|cpu| (cpu.quota, cpu.period));
        assert_eq!(cpu(json!({"CpuQuota": 50_000})), Some((Some(50_000), 100_000)));
        assert_eq!(
            cpu(json!({"CpuQuota": 12_345, "CpuPeriod": 67_890})),
            Some((Some(12_345), 67_890))
        );
        assert_eq!(cpu(json!({"CpuPeriod": 50_000})), Some((None, 50_000)));
        assert_eq!(
            cpu(json!({"NanoCpus": 500_000_000})),
            Some((Some(50_000), 100_000))
        );
        assert_eq!(cpu(json!({"CpuQuota": -1})), None);
        assert_eq!(limits(json!({"PidsLimit": -1})).pids, None);
    }

    #[test]
    fn limits_that_cannot_be_set_are_refused_in_dockers_words() {
        for (host, text) in [
            (json!({"Memory": 100}), "Minimum memory limit allowed is 6MB"),
            (
                json!({"MemorySwap": 100 << 20}),
                "You should always set the Memory limit",
            ),
            (
                json!({"Memory": 100 << 20, "MemorySwap": 50 << 20}),
                "Minimum memoryswap limit should be larger",
            ),
            (
                json!({"Memory": 10 << 20, "MemoryReservation": 20 << 20}),
                "can not be less than memory reservation",
            ),
            (json!({"NanoCpus": -1}), "Range of CPUs is from 0.01 to"),
            (json!({"NanoCpus": 1, "CpuPeriod": 1_000}), "Conflicting options"),
            (
                json!({"CpuPeriod": 10}),
                "CPU cfs period can not be less than 1ms",
            ),
            (json!({"CpuQuota": 10}), "CPU cfs quota can not be less than 1ms"),
            (
                json!({"CpusetCpus": "0-8191"}),
                "Requested CPUs are not available",
            ),
            (
                json!({"CpusetCpus": "zero"}),
                "Invalid value zero for cpuset cpus",
            ),
            (
                json!({"CpusetMems": "4000"}),
                "Requested memory nodes are not available",
            ),
            (
                json!({"BlkioWeight": 5}),
                "Range of blkio weight is from 10 to 1000",
            ),
            (
                json!({"OomScoreAdj": 1_001}),
                "range for oom score adj is [-1000, 1000]",
            ),
            (
                json!({"BlkioDeviceReadBps": [{"Path": "/dev/null", "Rate": 5}]}),
                "/dev/null is no block device",
            ),
        ] {
            let error = check_limits(&wanted(host).host).unwrap_err();
            assert!(error.message.contains(text), "{}", error.message);
        }
        check_limits(&wanted(json!({"CpusetCpus": "0", "CpusetMems": "0", "BlkioWeight": 300})).host)
            .unwrap();
    }

    #[test]
    fn only_what_the_kernel_cannot_do_is_warned_of() {
        assert!(warnings(&wanted(json!({"OomKillDisable": false})).host).is_empty());
        let warnings = warnings(&wanted(json!({"OomKillDisable": true})).host);
        assert!(warnings[0].contains("OomKillDisable discarded"), "{warnings:?}");
    }
}
