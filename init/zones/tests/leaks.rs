//! What remains of zones that have come and gone. In a file of its own, because it counts everything
//! that this process has.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use std::fs;
use std::time::{Duration, Instant};

use common::{IDS, bench, process, read_all, spec, unique};
use zones::TerminalSize;

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

fn children() -> String {
    let tasks = fs::read_dir("/proc/self/task").unwrap();
    tasks
        .map(|task| fs::read_to_string(task.unwrap().path().join("children")).unwrap())
        .collect()
}

#[tokio::test]
async fn neither_descriptors_nor_processes_nor_cgroups_remain() {
    let bench = bench().await;
    let mut before = 0;
    for round in 0..20 {
        bench.sh("true").await;
        bench
            .start(spec(&["no-such-program"]))
            .await
            .expect_err("must not start");
        let mut zone = spec(&["sh", "-c", "stty -echo; cat"]);
        zone.process.terminal = Some(TerminalSize::default());
        let id = zone.id.clone();
        let (first, _terminal) = bench.start(zone).await.unwrap();
        let key = unique("exec");
        let added = bench.zones.add(&first, &key, &process(&["true"]), IDS).await;
        let (_, stdio) = added.unwrap().release().await.unwrap();
        read_all(stdio).await;
        bench.zones.exited(&key).await.unwrap();
        bench.zones.acknowledge(&key).await.unwrap();
        first.signal(libc::SIGKILL).unwrap();
        bench.zones.exited(&id).await.unwrap();
        bench.zones.acknowledge_zone(&id).await.unwrap();
        assert!(!bench.zones.cgroups().path(&id).exists());
        if round == 10 {
            before = descriptors();
        }
    }
    // Process 1 forgets when it has read the last acknowledgement, which nobody answers.
    let deadline = Instant::now() + Duration::from_secs(10);
    while descriptors() > before && Instant::now() < deadline {
        tokio::task::yield_now().await;
    }
    let left = descriptors();
    assert!(left <= before, "{before} descriptors have become {left}");
    assert_eq!(children(), "");
}
