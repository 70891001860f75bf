//! The limits of a container, read from inside it as the kernel holds them: one machine, many tests.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use tests::{Boot, Docker, Machine};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

/// Files of the zone's cgroup, as a container with these options reads them, one line each.
fn cgroup(options: &str, files: &[&str]) -> Vec<String> {
    let files: Vec<String> = files
        .iter()
        .map(|file| format!("/sys/fs/cgroup/{file}"))
        .collect();
    let command = format!("run --rm {options} busybox cat {}", files.join(" "));
    docker().ok(&command).lines().map(str::to_owned).collect()
}

#[test]
fn memory_is_limited_reserved_and_swapped_as_asked() {
    let files = ["memory.max", "memory.low", "memory.swap.max"];
    assert_eq!(cgroup("", &files)[1..], ["0", "max"]);
    let options = "--memory 64m --memory-reservation 32m --memory-swap 96m";
    assert_eq!(cgroup(options, &files), ["67108864", "33554432", "33554432"]);
    assert_eq!(cgroup("--memory 64m --memory-swap 64m", &files)[2], "0");
    assert_eq!(cgroup("--memory 64m --memory-swap -1", &files)[2], "max");
    assert_eq!(cgroup("--memory 64m", &files)[2], "67108864");
}

#[test]
fn cpu_time_is_limited_to_the_microsecond() {
    let files = ["cpu.max", "cpu.weight"];
    assert_eq!(cgroup("", &files), ["max 100000", "100"]);
    let options = "--cpu-quota 12345 --cpu-period 67890 --cpu-shares 512";
    assert_eq!(cgroup(options, &files), ["12345 67890", "20"]);
    assert_eq!(cgroup("--cpus 1.5", &files)[0], "150000 100000");
    assert_eq!(cgroup("--cpu-period 50000", &files)[0], "max 50000");
}

#[test]
fn a_container_runs_on_the_cpus_that_it_is_given() {
    let status = |options: &str| {
        docker().ok(&format!(
            "run --rm {options} busybox grep -E '^(Cpus|Mems)_allowed_list' /proc/self/status"
        ))
    };
    assert_eq!(status(""), "Cpus_allowed_list:\t0-1\nMems_allowed_list:\t0");
    assert!(status("--cpuset-cpus 1 --cpuset-mems 0").starts_with("Cpus_allowed_list:\t1\n"));
    let refused = docker().fails("run --rm --cpuset-cpus 0-9 busybox true");
    assert!(
        refused.contains("Requested CPUs are not available - requested 0-9, available: 0-1"),
        "{refused}"
    );
}

#[test]
fn processes_are_counted_and_one_too_many_is_refused() {
    assert_eq!(cgroup("--pids-limit 17", &["pids.max"]), ["17"]);
    let script = "sleep 5 & sleep 5 & sleep 5 & sleep 5 & echo all";
    let outcome = docker().outcome_of(&format!("run --rm --pids-limit 3 busybox sh -c '{script}'"), b"");
    assert!(outcome.stderr.contains("can't fork"), "{outcome}");
    assert_eq!(
        docker().ok("run --rm --pids-limit 3 busybox sh -c 'true | true; echo all'"),
        "all"
    );
}

#[test]
fn a_disk_is_slowed_by_its_path_and_what_is_no_disk_is_refused() {
    let options = "--device-read-bps /dev/vda:1mb --device-write-iops /dev/vda:50 --blkio-weight 300";
    let files = ["io.max", "io.weight"];
    let said = cgroup(options, &files);
    assert!(
        said[0].ends_with("rbps=1048576 wbps=max riops=max wiops=50"),
        "{said:?}"
    );
    assert_eq!(said[1], "default 2930");
    let refused = docker().fails("run --rm --device-read-bps /dev/null:1mb busybox true");
    assert!(refused.contains("no block device"), "{refused}");
    let refused = docker().fails("run --rm --device-read-bps /dev/nothing:1mb busybox true");
    assert!(refused.contains("no such device"), "{refused}");
    assert_eq!(cgroup("", &["io.max"]), Vec::<String>::new());
}

#[test]
fn a_container_beyond_its_memory_is_killed_and_inspect_says_so() {
    let script = "x=0123456789abcdef; while true; do x=$x$x; done";
    let run = |memory: &str, script: &str| {
        let id = docker().ok(&format!(
            "run -d --memory {memory} --memory-swap {memory} busybox sh -c '{script}'"
        ));
        docker().ok(&format!("wait {id}"));
        let state = docker().ok(&format!(
            "inspect -f '{{{{.State.OOMKilled}}}} {{{{.State.ExitCode}}}}' {id}"
        ));
        let events = docker().follow(&format!(
            "events --since 1h --filter container={id} --format '{{{{.Action}}}}'"
        ));
        docker().ok(&format!("rm {id}"));
        events.expect("destroy");
        let oom = events.so_far().lines().any(|line| line == "oom");
        (state, oom)
    };
    assert_eq!(run("32m", script), ("true 137".to_owned(), true));
    assert_eq!(
        run("32m", "x=0123456789abcdef; x=$x$x"),
        ("false 0".to_owned(), false)
    );
}

#[test]
fn the_score_for_the_lack_of_memory_is_that_of_every_process_of_the_container() {
    let read = "cat /proc/self/oom_score_adj";
    assert_eq!(docker().ok(&format!("run --rm busybox {read}")), "0");
    assert_eq!(
        docker().ok(&format!("run --rm --oom-score-adj 500 busybox {read}")),
        "500"
    );
    docker().ok("run -d --name scored --oom-score-adj -300 busybox sleep 1000");
    assert_eq!(docker().ok(&format!("exec scored {read}")), "-300");
    docker().ok("rm -f scored");
    let refused = docker().fails("run --rm --oom-score-adj 1001 busybox true");
    assert!(
        refused.contains("range for oom score adj is [-1000, 1000]"),
        "{refused}"
    );
}

#[test]
fn what_version_2_of_cgroups_cannot_do_is_refused_or_warned_of() {
    let outcome = docker().outcome_of("run --rm --oom-kill-disable busybox echo runs", b"");
    assert!(outcome.stderr.contains("OomKillDisable discarded"), "{outcome}");
    assert_eq!(outcome.ok(), "runs");
    for option in [
        "--memory-swappiness 10",
        "--cpu-rt-runtime 1000",
        "--cgroup-parent /mine",
    ] {
        let refused = docker().fails(&format!("run --rm {option} busybox true"));
        assert!(refused.contains("cannot be set"), "{option}: {refused}");
    }
}

#[test]
fn limits_of_a_process_are_those_of_ulimit() {
    let script = "ulimit -n; ulimit -c; ulimit -u";
    let limited = docker().ok(&format!(
        "run --rm --ulimit nofile=77:99 --ulimit core=0 --ulimit nproc=500 busybox sh -c '{script}'"
    ));
    assert_eq!(limited, "77\n0\n500");
    let refused = docker().fails("run --rm --ulimit nofile=99:77 busybox true");
    assert!(refused.contains("ulimit"), "{refused}");
}

#[test]
fn what_a_container_changes_is_bounded_as_asked_and_so_is_a_volume() {
    let write = |options: &str, path: &str| {
        let script = format!("dd if=/dev/zero of={path} bs=1M count=40 2>&1; sync");
        docker().ok(&format!("run --rm {options} busybox sh -c '{script}'"))
    };
    let refused = "quota exceeded";
    assert!(write("--storage-opt size=20m", "/f").contains(refused));
    assert!(!write("--storage-opt size=80m", "/f").contains(refused));
    assert!(!write("", "/f").contains(refused));
    docker().ok("volume create --opt size=20m small");
    assert!(write("-v small:/v", "/v/f").contains(refused));
    // The volume is full, not its container.
    assert!(!write("-v small:/v", "/f").contains(refused));
    docker().ok("volume rm small");
    // The bound stays with the container.
    docker().ok("create --name bounded --storage-opt size=20m busybox sh -c 'dd if=/dev/zero of=/f bs=1M count=40 2>&1; sync'");
    let told = docker().ok("inspect -f '{{.HostConfig.StorageOpt}}' bounded");
    assert_eq!(told, "map[size:20m]");
    for _ in 0..2 {
        let said = docker().outcome_of("start -a bounded", b"");
        assert!(said.stdout.contains(refused), "{said}");
    }
    docker().ok("rm bounded");
    let said = docker().fails("create --storage-opt size=much busybox true");
    assert!(said.contains("invalid size: 'much'"), "{said}");
    let said = docker().fails("create --storage-opt size=1k busybox true");
    assert!(said.contains("too small"), "{said}");
}
