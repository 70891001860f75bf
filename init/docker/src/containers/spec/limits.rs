//! Limits of the container's cgroup and of its processes.

use zones::{Limits, ResourceLimit};

use super::positive;
use crate::containers::config::{HostConfig, Ulimit};
use crate::http::{ApiError, Result};

/// Period that a quota is a part of where none is said, in microseconds.
const DEFAULT_PERIOD: i64 = 100_000;

/// Names of `ulimit`, with their numbers.
const RLIMITS: &[(&str, u32)] = &[
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];

pub(super) fn rlimits(host: &HostConfig) -> Result<Vec<ResourceLimit>> {
    let one = |limit: &Ulimit| {
        let known = RLIMITS.iter().find(|(name, _)| *name == limit.name);
        let (_, resource) =
            known.ok_or_else(|| ApiError::bad_request(format!("invalid ulimit type: {}", limit.name)))?;
        // -1 is no limit.
        let amount = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (amount(limit.soft), amount(limit.hard));
        if soft > hard {
            return Err(ApiError::bad_request(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )));
        }
        Ok(ResourceLimit {
            resource: *resource,
            soft,
            hard,
        })
    };
    host.ulimits.iter().map(one).collect()
}

pub(super) fn limits(host: &HostConfig) -> Limits {
    let memory = positive(host.memory);
    // Memory and swap together; unset is twice the memory, -1 is no limit.
    let swap = match (memory, host.memory_swap) {
        (Some(memory), 0) => Some(memory),
        (Some(_), ..=-1) => Some(u64::MAX),
        (Some(memory), together) => positive(together).map(|together| together.saturating_sub(memory)),
        (None, _) => None,
    };
    let quota = positive(host.cpu_quota).map(|quota| {
        let period = positive(host.cpu_period).unwrap_or(DEFAULT_PERIOD as u64);
        quota.saturating_mul(1_000_000_000) / period
    });
    Limits {
        memory,
        swap,
        nano_cpus: positive(host.nano_cpus).or(quota),
        cpu_shares: positive(host.cpu_shares),
        pids: host.pids_limit.and_then(positive),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::wanted;
    use super::*;

    #[test]
    fn limits_follow_dockers_meaning() {
        let limits = |host| limits(&wanted(host).host);
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
        assert_eq!(limits(json!({"CpuQuota": 50_000})).nano_cpus, Some(500_000_000));
        assert_eq!(limits(json!({"PidsLimit": -1})).pids, None);
    }
}
