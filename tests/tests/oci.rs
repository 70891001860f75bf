//! The OCI command line where cgroup version 2 has all its controllers: in a booted machine, called from
//! a zone with the machine's own privileges.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use serde_json::{Value, json};
use tests::{Boot, Docker, Machine, Outcome};

const MEMORY: u64 = 64 << 20;

static MACHINE: LazyLock<Machine> = LazyLock::new(|| {
    let machine = Boot::host_privilege().blank_disk().start();
    let own = "--privileged --userns host --pid host --cgroupns host";
    machine
        .docker()
        .ok(&format!("run -d --name caller {own} busybox sleep 100000"));
    machine
});

fn docker() -> &'static Docker {
    MACHINE.docker()
}

fn call(script: &str, stdin: &[u8]) -> Outcome {
    docker().outcome_of(&format!("exec -i caller sh -c '{script}'"), stdin)
}

/// A bundle `/NAME` that runs a line of shell in a zone with limits, and the runtime beside it.
fn bundle(name: &str, script: &str) {
    let mount = |at: &str, kind: &str| json!({ "destination": at, "type": kind, "source": kind });
    let namespaces: Vec<Value> = ["pid", "mount", "ipc", "uts", "cgroup", "network"]
        .iter()
        .map(|kind| json!({ "type": kind }))
        .collect();
    let config = json!({
        "ociVersion": "1.0.2",
        "process": {
            "user": { "uid": 0, "gid": 0 },
            "args": ["sh", "-c", script],
            "env": ["PATH=/bin"],
            "cwd": "/",
        },
        "root": { "path": "rootfs" },
        "mounts": [
            mount("/proc", "proc"),
            mount("/dev", "tmpfs"),
            mount("/sys", "sysfs"),
            mount("/sys/fs/cgroup", "cgroup"),
        ],
        "linux": {
            "cgroupsPath": format!("/oci/{name}"),
            "namespaces": namespaces,
            "resources": {
                "memory": { "limit": MEMORY, "swap": MEMORY },
                "cpu": { "quota": 50_000, "period": 100_000, "shares": 512 },
                "pids": { "limit": 20 },
            },
        },
    });
    let make = format!(
        "mkdir -p /{name}/rootfs/bin /{name}/rootfs/proc /{name}/rootfs/dev /{name}/rootfs/sys && cp -a /bin/. /{name}/rootfs/bin/ && \
         cp /proc/1/exe /{name}/runtime && cat > /{name}/config.json"
    );
    call(&make, config.to_string().as_bytes()).ok();
}

fn run(name: &str) -> Outcome {
    call(&format!("cd /{name} && ./runtime run {name}"), b"")
}

#[test]
fn limits_are_those_of_the_configuration() {
    let files = [
        "memory.max",
        "memory.swap.max",
        "cpu.max",
        "cpu.weight",
        "pids.max",
    ];
    bundle("told", &format!("cd /sys/fs/cgroup && cat {}", files.join(" ")));
    let said = run("told").ok();
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines, ["67108864", "0", "50000 100000", "20", "20"]);
    // Of a container that has ended nothing stays.
    call("test ! -e /sys/fs/cgroup/oci/told", b"").ok();
}

#[test]
fn one_process_too_many_is_refused() {
    bundle(
        "many",
        "i=0; while [ $i -lt 40 ]; do sleep 30 & i=$((i+1)); done; echo all",
    );
    let said = run("many");
    assert!(said.stderr.contains("can't fork"), "{}", said.stderr);
    assert!(!said.stdout.contains("all"), "{}", said.stdout);
}

#[test]
fn one_that_takes_more_memory_than_it_has_is_killed() {
    // The shell itself, which is the zone's process 1, holds it all.
    bundle(
        "much",
        "x=$(head -c 100000000 /dev/zero | tr '\\0' x); echo survived",
    );
    let said = call("cd /much && ./runtime run much; echo ended $?", b"").ok();
    assert_eq!(said, "ended 137");
}
