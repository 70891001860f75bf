//! The pool phase: which disk is the pool, and what the console says of it.

use std::path::Path;

use anyhow::Context;
use handover::{BootConfig, PoolEncryption, PoolPolicy};
use store::{Kind, Policy, Pool, Protection, Store};

use crate::console::say;
use crate::keys::Keyring;
use crate::modules::Loader;

/// Where the pool is mounted.
const POOL: &str = "/pool";
/// What the store needs of the kernel.
const MODULES: &[&str] = &["btrfs", "overlay", "loop"];

/// What lies under the store, in a word, as the kernel has it mounted.
pub(crate) fn kind() -> String {
    let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
    let device = mounts.lines().find_map(|line| {
        let (device, rest) = line.split_once(' ')?;
        rest.starts_with("/pool ").then_some(device)
    });
    match device {
        None => "none".to_owned(),
        Some(device) if device.starts_with("/dev/loop") => "memory".to_owned(),
        Some(_) => "disk".to_owned(),
    }
}

/// Opens the pool that the policy allows and the store in it. A pool that an earlier supervisor
/// mounted is taken as it is.
pub(crate) fn open(config: &BootConfig, keys: &Keyring, modules: &Loader) -> anyhow::Result<Store> {
    MODULES
        .iter()
        .try_for_each(|module| modules.load(module))
        .map_err(anyhow::Error::msg)?;
    let opened = Pool::choose(as_policy(config), keys, Path::new(POOL)).context("Cannot open a pool");
    keys.settle(opened.is_ok());
    let opened = opened?;
    for note in &opened.notes {
        say!("pool: {note}");
    }
    match &opened.kind {
        Kind::Disks {
            names,
            size,
            formatted_now,
        } => {
            let plural = if names.len() == 1 { "" } else { "s" };
            let verb = if *formatted_now {
                "claimed the blank disk"
            } else {
                "on disk"
            };
            say!("pool: {verb}{plural} {}, {}", names.join(" and "), human(*size));
        }
        Kind::Memory { size } => say!(
            "pool: IN MEMORY, at most {}: images and containers are gone when the machine goes off",
            human(*size)
        ),
    }
    let store = Store::open(opened.pool.path()).context("Cannot open the store in the pool")?;
    for note in store.notes() {
        say!("pool: {note}");
    }
    if let Some(why) = store.no_quotas() {
        say!("pool: {why}");
    }
    Ok(store)
}

fn as_policy(config: &BootConfig) -> Policy {
    Policy {
        claim_blank: config.pool == PoolPolicy::ClaimBlank,
        memory_only: config.pool == PoolPolicy::Memory,
        encryption: config.pool_encryption.map(|encryption| match encryption {
            PoolEncryption::Bundle => Protection::Bundle,
            PoolEncryption::Tpm => Protection::Tpm,
        }),
        memory_size: None,
    }
}

/// Bytes in the unit that a person would use.
fn human(bytes: u64) -> String {
    const UNITS: [&str; 5] = ["B", "KiB", "MiB", "GiB", "TiB"];
    let mut unit = 0;
    let mut value = bytes;
    while value >= 10 * 1024 && unit + 1 < UNITS.len() {
        value /= 1024;
        unit += 1;
    }
    format!("{value} {}", UNITS[unit])
}

#[cfg(test)]
mod tests {
    use super::human;

    #[test]
    fn sizes_are_told_in_the_unit_that_a_person_would_use() {
        assert_eq!(human(512), "512 B");
        assert_eq!(human(20 << 30), "20 GiB");
        assert_eq!(human(4 << 30), "4096 MiB");
    }
}
