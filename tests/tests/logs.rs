//! What zones say, as docker's command shows it, on a booted machine whose supervisor is killed.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use tests::{Boot, Disk, Docker, Machine};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

fn numbers(count: u32) -> String {
    let lines: Vec<String> = (1..=count).map(|number| format!("line {number}")).collect();
    lines.join("\n")
}

#[test]
fn a_log_is_kept_within_its_limits() {
    let _calm = MACHINE.undisturbed();
    docker().ok(
        "run --name limited --log-opt max-size=20k --log-opt max-file=3 busybox sh -c 'seq 1 20000 | sed s/^/line\\ /'",
    );
    let kept = docker().ok("logs limited");
    assert!(numbers(20_000).ends_with(&kept), "{} bytes", kept.len());
    assert!((20_000..140_000).contains(&kept.len()), "{}", kept.len());
    assert_eq!(docker().ok("logs --tail 2 limited"), "line 19999\nline 20000");
    docker().ok("rm limited");
}

#[test]
fn a_follower_reads_across_rotations() {
    let _calm = MACHINE.undisturbed();
    let options = "--log-opt max-size=4k --log-opt max-file=100";
    docker().ok(&format!(
        "run -d --name turning {options} busybox sh -c 'i=0; while [ $i -lt 3000 ]; do i=$((i+1)); echo line $i; done; sleep 600'"
    ));
    let follower = docker().follow("logs -f turning");
    follower.expect("line 3000\n");
    docker().ok("rm -f turning");
}

#[test]
fn the_drivers_do_what_they_are_named_for() {
    let _calm = MACHINE.undisturbed();
    assert_eq!(
        docker().ok("run --name local --log-driver local busybox echo kept"),
        "kept"
    );
    assert_eq!(docker().ok("logs local"), "kept");
    assert_eq!(
        docker().ok("run --name nothing --log-driver none busybox echo heard"),
        "heard"
    );
    let said = docker().fails("logs nothing");
    assert!(
        said.contains("configured logging driver does not support reading"),
        "{said}"
    );
    let said = docker().fails("run --rm --log-driver journald busybox true");
    assert!(said.contains("no log driver named 'journald'"), "{said}");
    docker().ok("rm local nothing");
}

#[test]
fn logs_are_chosen_by_time() {
    let _calm = MACHINE.undisturbed();
    docker().ok("run --name timed busybox sh -c 'echo early; sleep 2; echo late'");
    let stamped = docker().ok("logs -t timed");
    let late = stamped.lines().last().unwrap().split(' ').next().unwrap();
    assert_eq!(docker().ok(&format!("logs --since {late} timed")), "late");
    assert_eq!(docker().ok("logs --until 1h timed"), "");
    docker().ok("rm timed");
}

#[test]
fn what_is_said_while_the_supervisor_is_killed_is_in_the_log_once() {
    const LINES: u32 = 1500;
    // Says some at a time, for as long as the kills take.
    let script = format!(
        "i=0; while [ $i -lt {LINES} ]; do i=$((i+1)); echo line $i; [ $((i % 50)) = 0 ] && sleep 1; done; sleep 600"
    );
    for (name, option) in [("piped", ""), ("shown", "-t")] {
        docker().ok(&format!("run -d {option} --name {name} busybox sh -c '{script}'"));
    }
    for _ in 0..3 {
        let attached = docker().follow("attach --no-stdin piped");
        attached.expect("line");
        MACHINE.crash_supervisor();
        // Its client's output has ended, and holds nothing that was not said.
        let (_, said) = attached.end();
        assert!(numbers(LINES).contains(said.trim_end()), "{said}");
    }
    for name in ["piped", "shown"] {
        docker()
            .follow(&format!("logs -f {name}"))
            .expect(&format!("line {LINES}"));
        let all = docker().ok(&format!("logs {name}")).replace('\r', "");
        assert!(all == numbers(LINES), "{name}: {} bytes", all.len());
    }
    docker().ok("rm -f piped shown");
}

#[test]
fn after_a_power_cut_the_log_is_a_beginning_of_what_was_said() {
    let disk = Disk::blank(4 << 30);
    let machine = Boot::quickstart().disk(&disk).start();
    machine
        .docker()
        .ok("run -d --name cut busybox sh -c 'i=0; while :; do i=$((i+1)); echo line $i; done'");
    machine.docker().follow("logs -f cut").expect("line 1000\n");
    machine.cut_power();
    let machine = Boot::quickstart().disk(&disk).start();
    let kept = machine.docker().ok("logs cut");
    let count = u32::try_from(kept.lines().count()).unwrap();
    let whole: Vec<&str> = kept.lines().collect();
    let (last, before) = whole.split_last().unwrap_or((&"", &[]));
    let said = numbers(count);
    // The last line may be cut.
    assert!(said.starts_with(&before.join("\n")) && said.lines().last().unwrap_or("").starts_with(last));
    machine.docker().ok("start cut");
    machine.docker().follow("logs --tail 0 -f cut").expect("line ");
}
