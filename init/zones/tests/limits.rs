//! Limits of the zones' cgroups, where this machine has the controllers in version 2.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use std::fs;

use common::{bench, hierarchy, spec};
use zones::{CpuLimit, Limits};

/// Whether the machine has a controller; says so if it has not.
fn has(controller: &str) -> bool {
    let there = fs::read_to_string(hierarchy().join("cgroup.controllers")).unwrap();
    let has = there.split_whitespace().any(|name| name == controller);
    if !has {
        println!("skipped: the cgroup2 hierarchy of this machine lacks the controller {controller}");
    }
    has
}

#[tokio::test]
async fn a_zone_that_takes_more_memory_than_it_may_is_killed_and_that_is_told() {
    if !has("memory") {
        return;
    }
    let bench = bench().await;
    // The shell's own memory grows, and twice the limit is reached soon.
    let script = "x=0123456789abcdef; while true; do x=$x$x; done";
    let mut limited = spec(&["sh", "-c", script]);
    limited.limits.memory = Some(32 << 20);
    let (_, exit) = bench.run(limited).await;
    assert_eq!((exit.code, exit.oom_killed), (137, true));
    let mut modest = spec(&["sh", "-c", "x=0123456789abcdef; x=$x$x"]);
    modest.limits.memory = Some(32 << 20);
    let (_, exit) = bench.run(modest).await;
    assert_eq!((exit.code, exit.oom_killed), (0, false));
}

#[tokio::test]
async fn a_zone_cannot_have_more_processes_than_it_may() {
    if !has("pids") {
        return;
    }
    let bench = bench().await;
    let mut limited = spec(&["sh", "-c", "sleep 5 & sleep 5 & sleep 5 & sleep 5 & echo all"]);
    limited.limits.pids = Some(3);
    let (text, _) = bench.run(limited).await;
    assert!(text.contains("can't fork"), "{text}");
    let mut modest = spec(&["sh", "-c", "true | true; echo all"]);
    modest.limits.pids = Some(3);
    assert_eq!(bench.run(modest).await.0, "all\n");
}

#[tokio::test]
async fn limits_are_written_as_the_kernel_means_them() {
    if !has("cpu") {
        return;
    }
    let bench = bench().await;
    let mut limited = spec(&["sleep", "1000"]);
    limited.limits = Limits {
        cpu: Some(CpuLimit::of_nano_cpus(1_500_000_000)),
        cpu_shares: Some(512),
        ..Limits::default()
    };
    let (id, cgroups) = (limited.id.clone(), bench.zones.cgroups().clone());
    let (process, _stdio) = bench.start(limited).await.unwrap();
    let value = |file: &str| fs::read_to_string(cgroups.path(&id).join(file)).unwrap();
    assert_eq!(
        (value("cpu.max").as_str(), value("cpu.weight").as_str()),
        ("150000 100000\n", "20\n")
    );
    cgroups.update(&id, &Limits::default()).unwrap();
    assert_eq!(value("cpu.max"), "max 100000\n");
    process.signal(libc::SIGKILL).unwrap();
    bench.zones.exited(&id).await.unwrap();
    bench.zones.acknowledge_zone(&id).await.unwrap();
}

#[tokio::test]
async fn a_frozen_zone_stands_still_and_goes_on_when_thawed() {
    let bench = bench().await;
    let counting = spec(&["sh", "-c", "while true; do :; done"]);
    let (id, cgroups) = (counting.id.clone(), bench.zones.cgroups().clone());
    let (process, stdio) = bench.start(counting).await.unwrap();
    cgroups.freeze(&id).await.unwrap();
    assert!(cgroups.is_frozen(&id));
    let used = cgroups.stats(&id).unwrap().cpu.usage;
    // Again is no error, and nothing is used meanwhile.
    cgroups.freeze(&id).await.unwrap();
    assert_eq!(cgroups.stats(&id).unwrap().cpu.usage, used);
    cgroups.thaw(&id).await.unwrap();
    assert!(!cgroups.is_frozen(&id));
    while cgroups.stats(&id).unwrap().cpu.usage == used {
        tokio::task::yield_now().await;
    }
    // What is killed while it is frozen ends.
    cgroups.freeze(&id).await.unwrap();
    process.signal(libc::SIGKILL).unwrap();
    assert_eq!(bench.zones.exited(&id).await.unwrap().code, 137);
    bench.zones.acknowledge_zone(&id).await.unwrap();
    drop(stdio);
    assert!(cgroups.freeze(&id).await.is_err(), "it is gone");
}

#[tokio::test]
async fn the_processes_of_a_zone_are_listed_with_both_their_numbers() {
    let bench = bench().await;
    let shell = spec(&["sh", "-c", "sleep 1001 & echo ready; wait"]);
    let (id, cgroups) = (shell.id.clone(), bench.zones.cgroups().clone());
    let (process, stdio) = bench.start(shell).await.unwrap();
    let found = loop {
        let mut found = cgroups.processes(&id).unwrap();
        found.sort_by_key(|process| process.inner_pid);
        if found.len() == 2 && found[1].arguments == ["sleep", "1001"] {
            break found;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!((found[0].pid, found[0].inner_pid), (process.pid, 1));
    assert_eq!((found[1].parent, found[1].inner_pid), (process.pid, 2));
    assert_eq!(found[0].uid, common::IDS.host);
    assert_eq!(cgroups.pids(&id).unwrap().len(), 2);
    process.signal(libc::SIGKILL).unwrap();
    bench.zones.exited(&id).await.unwrap();
    bench.zones.acknowledge_zone(&id).await.unwrap();
    drop(stdio);
}
