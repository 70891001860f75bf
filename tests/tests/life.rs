//! Pausing, limits that change and figures that count, in a booted machine: its control groups are the
//! ones that containers get.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use tests::{Boot, Docker, Machine, api};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

fn state(name: &str) -> String {
    docker().ok(&format!("inspect -f {{{{.State.Status}}}} {name}"))
}

/// Lines that a container has printed by now.
fn lines(name: &str) -> usize {
    docker().ok(&format!("logs {name}")).lines().count()
}

#[test]
fn a_paused_container_stands_still_and_goes_on_where_it_was() {
    docker().ok("run -d --name still busybox sh -c 'while :; do echo x; sleep 0.05; done'");
    docker().ok("pause still");
    assert_eq!(state("still"), "paused");
    assert!(docker().ok("ps --filter status=paused").contains("(Paused)"));
    let before = lines("still");
    let said = docker().fails("exec still true");
    assert!(said.contains("is paused"), "{said}");
    let said = docker().fails("pause still");
    assert!(said.contains("already paused"), "{said}");
    // The supervisor's death changes nothing of it.
    MACHINE.crash_supervisor();
    assert_eq!(state("still"), "paused");
    assert_eq!(lines("still"), before);
    docker().ok("unpause still");
    assert_eq!(state("still"), "running");
    docker().ok("exec still true");
    assert!(docker().fails("unpause still").contains("is not paused"));
    // Who stops a paused one need not wake it first.
    docker().ok("pause still");
    docker().ok("stop -t 1 still");
    assert_eq!(state("still"), "exited");
    docker().ok("rm still");
}

#[test]
fn limits_change_while_a_container_runs() {
    let _calm = MACHINE.undisturbed();
    docker().ok("run -d --name limited -m 64m busybox sleep 600");
    let read = |file: &str| docker().ok(&format!("exec limited cat /sys/fs/cgroup/{file}"));
    assert_eq!(read("memory.max"), (64_u64 << 20).to_string());
    docker().ok("update -m 96m --memory-swap 96m --pids-limit 77 --cpus 0.5 limited");
    assert_eq!(read("memory.max"), (96_u64 << 20).to_string());
    assert_eq!(read("pids.max"), "77");
    assert_eq!(read("cpu.max"), "50000 100000");
    let kept = docker().ok("inspect -f '{{.HostConfig.Memory}} {{.HostConfig.PidsLimit}}' limited");
    assert_eq!(kept, format!("{} 77", 96_u64 << 20));
    docker().ok("rm -f limited");
}

#[test]
fn statistics_show_what_a_container_uses() {
    let _calm = MACHINE.undisturbed();
    docker().ok("run -d --name uses -m 64m busybox sh -c 'while :; do :; done'");
    let line = docker().ok("stats --no-stream --format '{{.CPUPerc}} {{.MemUsage}} {{.PIDs}}' uses");
    let percent: f64 = line.split('%').next().unwrap().parse().unwrap();
    assert!(percent > 5.0, "{line}");
    assert!(line.contains("/ 64MiB") && line.ends_with(" 1"), "{line}");
    assert!(docker().ok("top uses").contains("sh -c"));
    docker().ok("rm -f uses");
}

/// What the API says of an added process.
fn added(id: &str) -> serde_json::Value {
    let (status, text) = api::request(MACHINE.endpoint(), "GET", &format!("/exec/{id}/json")).unwrap();
    assert_eq!(status, 200, "{text}");
    serde_json::from_str(&text).unwrap()
}

#[test]
fn what_execs_and_health_checks_came_to_outlives_a_killed_supervisor() {
    let check =
        "--health-cmd 'echo -n x >> /times; cat /times; false' --health-interval 1s --health-retries 1";
    docker().ok(&format!("run -d --name ill {check} busybox sleep 600"));
    let health = || {
        let form = "{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{range .State.Health.Log}}{{.Output}},{{end}}";
        docker().ok(&format!("inspect -f '{form}' ill"))
    };
    docker()
        .follow("events --since 1h --filter container=ill")
        .expect("health_status: unhealthy");
    docker().ok("exec -d ill sh -c 'until test -e /go; do sleep 0.1; done; exit 9'");
    let ids = docker().ok("inspect -f '{{range .ExecIDs}}{{.}} {{end}}' ill");
    // A check may be under way.
    let waiting = ids
        .split_whitespace()
        .find(|id| {
            added(id)["ProcessConfig"]["arguments"][1]
                .as_str()
                .unwrap_or_default()
                .contains("/go")
        })
        .unwrap();
    MACHINE.crash_supervisor();
    let found = health();
    assert!(found.starts_with("unhealthy ") && found.contains('x'), "{found}");
    assert_eq!(added(waiting)["Running"], true);
    let events = docker().follow("events --filter event=exec_die --format '{{.Actor.Attributes.exitCode}} {{.Actor.Attributes.execID}}'");
    docker().ok("exec ill touch /go");
    events.expect(&format!("9 {waiting}"));
    assert_eq!(added(waiting)["ExitCode"], 9);
    MACHINE.crash_supervisor();
    assert_eq!(added(waiting)["ExitCode"], 9);
    docker().ok("rm -f ill");
}
