//! How long a zone takes, beside `crun run` with the same root file system in the same minute.
//!
//! Both run `true` in namespaces of its own, user namespace included. The zone is started by a keeper
//! in a thread, its root is mounted before; crun is a process for each container, as container engines
//! use it.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by it")]

#[path = "../tests/common/mod.rs"]
mod common;

use std::fs;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use common::{Bench, IDS, bench, spec, unique};
use serde_json::{Value, json};

const ROUNDS: usize = 200;
const WARM_UP: usize = 20;

fn main() {
    // `cargo test` runs benchmarks too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    tools::need(&["busybox-static", "crun"]);
    if !std::env::args().any(|argument| argument == INSIDE) {
        let status = inside_pure_cgroup2().status().unwrap();
        assert!(status.success(), "the benchmark failed");
        return;
    }
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let bench = bench().await;
        let bundle = bundle(&bench.root);
        let (mut started, mut ran, mut others) = (Vec::new(), Vec::new(), Vec::new());
        // In turns, so that whatever else the machine does meets both.
        for round in 0..WARM_UP + ROUNDS {
            let (start, run) = zone(&bench).await;
            let other = crun(bundle.path());
            if round >= WARM_UP {
                started.push(start);
                ran.push(run);
                others.push(other);
            }
        }
        println!("{ROUNDS} rounds of `true` each, in milliseconds");
        println!("{:28} {:>8} {:>8}", "", "p50", "p99");
        report("zone: until it runs", &mut started);
        let ours = report("zone: until it has ended", &mut ran);
        let theirs = report("crun run", &mut others);
        println!(
            "crun run takes {:.1} times as long as a whole zone (p50)",
            theirs / ours
        );
    });
}

/// Says that this process sees cgroup2 alone.
const INSIDE: &str = "--inside";

/// This program again, in a mount namespace with cgroup2 where crun looks for it: it refuses to work
/// where a machine has both versions.
fn inside_pure_cgroup2() -> Command {
    let script = r#"mount -t cgroup2 cgroup2 /sys/fs/cgroup && exec "$@""#;
    let mut again = Command::new("unshare");
    again.args(["--mount", "sh", "-c", script, "sh"]);
    again
        .arg(std::env::current_exe().unwrap())
        .args(["--bench", INSIDE]);
    again
}

async fn zone(bench: &Bench) -> (Duration, Duration) {
    let (spec, tree) = (spec(&["true"]), bench.tree());
    let begin = Instant::now();
    let pending = bench.zones.create(spec, tree).await.unwrap();
    let (process, _stdio) = pending.release().await.unwrap();
    let started = begin.elapsed();
    let exit = bench.zones.exited(&process.key).await.unwrap();
    bench.zones.acknowledge_zone(&process.key).await.unwrap();
    assert_eq!(exit.code, 0);
    (started, begin.elapsed())
}

/// A bundle as `crun spec` makes it, with a user namespace and without a terminal.
fn bundle(root: &Path) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let made = Command::new("crun")
        .arg("spec")
        .current_dir(dir.path())
        .status()
        .unwrap();
    assert!(made.success(), "crun spec failed");
    let path = dir.path().join("config.json");
    let mut config: Value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    config["process"]["terminal"] = json!(false);
    config["process"]["args"] = json!(["/bin/true"]);
    config["root"] = json!({ "path": root, "readonly": false });
    let map = json!([{ "containerID": 0, "hostID": IDS.host, "size": IDS.count }]);
    config["linux"]["uidMappings"] = map.clone();
    config["linux"]["gidMappings"] = map;
    config["linux"]["namespaces"]
        .as_array_mut()
        .unwrap()
        .push(json!({ "type": "user" }));
    fs::write(path, config.to_string()).unwrap();
    dir
}

fn crun(bundle: &Path) -> Duration {
    let mut run = Command::new("crun");
    run.args(["--cgroup-manager=disabled", "run", "--bundle"])
        .arg(bundle)
        .arg(unique("bench"));
    // Pipes: crun gives the files that it is started with to the container's root, /dev/null too.
    run.stdin(Stdio::piped());
    let begin = Instant::now();
    let output = run.output().unwrap();
    let took = begin.elapsed();
    assert!(
        output.status.success(),
        "crun: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    took
}

/// Prints a line and returns the median in milliseconds.
fn report(what: &str, times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:28} {:8.2} {:8.2}", at(50), at(99));
    at(50)
}
