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
use zones::Process;

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
        let mut laps: [Vec<Duration>; 4] = Default::default();
        // In turns, so that whatever else the machine does meets both.
        for round in 0..WARM_UP + ROUNDS {
            let measured = [
                start(&bench).await,
                crun_start(bundle.path()),
                run(&bench).await,
                crun_run(bundle.path()),
            ];
            if round >= WARM_UP {
                laps.iter_mut().zip(measured).for_each(|(all, lap)| all.push(lap));
            }
        }
        println!("{ROUNDS} rounds of `true` each, in milliseconds");
        println!("{:36} {:>8} {:>8}", "", "p50", "p99");
        let what = [
            "start of one that waits for it",
            "crun start",
            "run, until it has ended",
            "crun run",
        ];
        let mut medians = [0.0; 4];
        for ((what, times), median) in what.into_iter().zip(&mut laps).zip(&mut medians) {
            *median = report(what, times);
        }
        let [start, crun_start, run, crun_run] = medians;
        println!(
            "p50: crun start takes {:.1} times as long as a start, crun run {:.1} times as long as a start \
             and {:.1} times as long as a run",
            crun_start / start,
            crun_run / start,
            crun_run / run
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

/// What a client does between the creation and the start, in which the process comes to its gate. crun
/// waits for that before its `create` ends.
const BETWEEN: Duration = Duration::from_millis(10);

/// From the wish for the start until the program runs.
async fn start(bench: &Bench) -> Duration {
    let pending = bench.zones.create(spec(&["true"]), bench.tree()).await.unwrap();
    tokio::time::sleep(BETWEEN).await;
    let begin = Instant::now();
    let (process, _stdio) = pending.release().await.unwrap();
    let took = begin.elapsed();
    end(bench, &process).await;
    took
}

/// A zone from nothing to nothing.
async fn run(bench: &Bench) -> Duration {
    let (spec, tree) = (spec(&["true"]), bench.tree());
    let begin = Instant::now();
    let pending = bench.zones.create(spec, tree).await.unwrap();
    let (process, _stdio) = pending.release().await.unwrap();
    end(bench, &process).await;
    begin.elapsed()
}

async fn end(bench: &Bench, process: &Process) {
    let exit = bench.zones.exited(&process.key).await.unwrap();
    bench.zones.acknowledge_zone(&process.key).await.unwrap();
    assert_eq!(exit.code, 0);
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

fn crun_run(bundle: &Path) -> Duration {
    let id = unique("bench");
    timed(crun("run").arg("--bundle").arg(bundle).arg(&id))
}

fn crun_start(bundle: &Path) -> Duration {
    let id = unique("bench");
    timed(crun("create").arg("--bundle").arg(bundle).arg(&id));
    let took = timed(crun("start").arg(&id));
    timed(crun("delete").arg("--force").arg(&id));
    took
}

fn crun(verb: &str) -> Command {
    let mut crun = Command::new("crun");
    crun.args(["--cgroup-manager=disabled", verb]);
    crun
}

fn timed(command: &mut Command) -> Duration {
    // Pipes: crun gives the files that it is started with to the container's root, /dev/null too. A container
    // that waits for its start has them, so nobody reads them to their end.
    command.stdin(Stdio::piped()).stdout(Stdio::piped());
    let begin = Instant::now();
    let status = command.spawn().unwrap().wait().unwrap();
    let took = begin.elapsed();
    assert!(status.success(), "{command:?} failed");
    took
}

/// Prints a line and returns the median in milliseconds.
fn report(what: &str, times: &mut [Duration]) -> f64 {
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_secs_f64() * 1e3;
    println!("{what:36} {:8.2} {:8.2}", at(50), at(99));
    at(50)
}
