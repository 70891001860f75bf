//! The pool's disks: which are taken and which are left alone, and that containers go on while one is
//! overwritten, pulled out and replaced.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::time::{Duration, Instant};

use monobloc::client::{Api, ApiError, Order};
use monobloc::demo::disk::overwrite;
use serde_json::Value;
use tests::{Boot, Disk, Machine};

const LONG: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;

fn api(machine: &Machine) -> Api {
    Api::new(machine.endpoint().port, &machine.endpoint().certificates).unwrap()
}

fn pool(machine: &Machine) -> Value {
    api(machine).pool(LONG).unwrap()
}

/// A disk of the pool.
#[track_caller]
fn disk<'a>(told: &'a Value, serial: &str) -> &'a Value {
    let mut disks = told["disks"].as_array().unwrap().iter();
    let found = disks.find(|disk| disk["serial"] == serial);
    found.unwrap_or_else(|| panic!("no disk {serial} in {told:#}"))
}

/// Has the pool changed; gives what was told meanwhile.
#[track_caller]
fn change(machine: &Machine, order: Order) -> Vec<String> {
    let mut phases = Vec::new();
    let done = api(machine).change_pool(&order, LONG, &mut |stage| phases.push(stage.phase.clone()));
    done.unwrap_or_else(|error| panic!("{order:?}: {error}"));
    phases.dedup();
    phases
}

fn order(verb: &'static str, disks: &[&str]) -> Order {
    Order {
        verb,
        disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        ..Order::default()
    }
}

#[track_caller]
fn refused(machine: &Machine, order: &Order) -> String {
    match api(machine).change_pool(order, LONG, &mut |_| {}) {
        Err(ApiError::Refused { message, .. }) => message,
        other => panic!("{order:?}: {other:?}"),
    }
}

/// Waits until the machine has found a disk that was plugged in, which it tells nobody.
#[track_caller]
fn await_disk(machine: &Machine, serial: &str) {
    let deadline = Instant::now() + LONG;
    let api = api(machine);
    loop {
        let told = api.disks(LONG).unwrap();
        if told
            .as_array()
            .unwrap()
            .iter()
            .any(|disk| disk["serial"] == serial)
        {
            return;
        }
        assert!(Instant::now() < deadline, "the disk {serial} was not found");
    }
}

#[track_caller]
fn console(machine: &Machine, mark: usize, text: &str) {
    let said = machine.console().wait_after(mark, text, LONG);
    said.unwrap_or_else(|error| panic!("{error}"));
}

/// How long the pool took to be opened.
#[track_caller]
fn opening(machine: &Machine) -> Duration {
    let said = machine.console().wait_for("monobloc: pool (", LONG);
    let said = said.unwrap_or_else(|error| panic!("{error}"));
    let (_, time) = said.rsplit_once("monobloc: pool (").unwrap_or_default();
    let millis = time.split_once(" ms").and_then(|(number, _)| number.parse().ok());
    Duration::from_millis(millis.unwrap_or_else(|| panic!("no time in {said:?}")))
}

#[test]
fn a_disk_can_be_overwritten_pulled_out_and_replaced_under_a_running_container() {
    let size = 1024 * MIB;
    let (first, second, third) = (
        Disk::blank(4 * size),
        Disk::blank(4 * size),
        Disk::blank(4 * size),
    );
    let machine = Boot::quickstart()
        .disk(&first)
        .another_disk("second", &second)
        .start();
    console(&machine, 0, "pool: claimed the blank disks");
    let docker = machine.docker();
    assert_eq!(pool(&machine)["profile"], "survives the loss of one disk");

    // The container's own data, with its checksums.
    docker.ok("run -d --name keeper busybox sh -c 'cd /root; [ -e sums ] || { for i in 1 2 3 4; do head -c 4000000 /dev/urandom > file$i; done; sha256sum file* > sums; sync; }; echo written; while sleep 1; do :; done'");
    let follow = docker.follow("logs -f keeper");
    follow.expect("written");
    let check = "exec keeper sh -c 'cd /root; sha256sum -c sums && echo all whole'";
    assert!(docker.ok(check).ends_with("all whole"));

    // Garbage from outside, on one disk, while all runs.
    overwrite(second.path(), size).unwrap();
    let phases = change(&machine, order("scrub", &[]));
    assert!(!phases.is_empty(), "a scrub tells how far it is");
    let told = pool(&machine);
    let scrubs = &disk(&told, "second")["scrubs"];
    assert!(scrubs["repaired"].as_u64().unwrap() > 0, "{told:#}");
    assert_eq!(scrubs["lost"], 0, "{told:#}");
    assert!(docker.ok(check).ends_with("all whole"));

    // The plug of that disk.
    let mark = machine.console().mark();
    machine.unplug("second");
    console(
        &machine,
        mark,
        "WARNING: The pool's disk sda (serial number second) is missing",
    );
    assert!(docker.ok(check).ends_with("all whole"));
    docker.ok(
        "exec keeper sh -c 'cd /root; head -c 4000000 /dev/urandom > file5; sha256sum file* > sums; sync'",
    );
    let warning = docker.ok("info --format '{{json .Warnings}}'");
    assert!(warning.contains("is missing"), "{warning}");
    let metrics = machine.request("GET", "/monobloc/v1/metrics");
    let line = metrics
        .lines()
        .find(|line| line.starts_with("monobloc_disk_missing{") && line.contains("serial=\"second\""));
    assert!(line.is_some_and(|line| line.ends_with("} 1")), "{metrics}");

    // A blank one in its place.
    machine.plug("third", &third);
    await_disk(&machine, "third");
    let phases = change(&machine, order("replace", &["third"]));
    assert!(
        phases.iter().any(|phase| phase.contains("copying")) || !phases.is_empty(),
        "{phases:?}"
    );
    let told = pool(&machine);
    assert_eq!(told["profile"], "survives the loss of one disk", "{told:#}");
    assert_eq!(disk(&told, "third")["name"], "sdb", "{told:#}");
    assert_eq!(told["warnings"], serde_json::json!([]), "{told:#}");
    assert!(docker.ok(check).ends_with("all whole"));
    change(&machine, order("scrub", &[]));
    assert_eq!(disk(&pool(&machine), "third")["scrubs"]["damaged"], 0);
    assert_eq!(
        docker.ok("inspect -f '{{.RestartCount}} {{.State.Running}}' keeper"),
        "0 true"
    );
    machine.power_off();

    // The new disk alone brings it all back.
    let machine = Boot::quickstart().disk(&third).start();
    console(&machine, 0, "WARNING: The pool's disk");
    let waited = opening(&machine);
    assert!(
        waited < Duration::from_secs(8),
        "it waited {waited:?} for a disk that does not come"
    );
    let docker = machine.docker();
    docker.ok("start keeper");
    let told = pool(&machine);
    assert_eq!(
        told["profile"], "does not survive the loss of another disk",
        "{told:#}"
    );
    assert!(
        docker
            .ok("info --format '{{json .Warnings}}'")
            .contains("is missing")
    );
    assert!(docker.ok(check).ends_with("all whole"));
}

#[test]
fn a_disk_that_bears_something_is_taken_only_if_that_is_said() {
    let foreign = Disk::beginning_with(b"precious", 1024 * MIB);
    let machine = Boot::quickstart()
        .another_disk("foreign", &foreign)
        .restarting()
        .start();
    console(&machine, 0, "pool: IN MEMORY");
    let docker = machine.docker();
    docker.ok("run -d --name keeper busybox sh -c 'echo kept > /file; while sleep 1; do :; done'");
    let disks = api(&machine).disks(LONG).unwrap();
    assert_eq!(disks[0]["serial"], "foreign");
    assert_eq!(disks[0]["bus"], "SCSI");
    assert_eq!(disks[0]["size"], 1024 * MIB);
    assert_eq!(disks[0]["content"], "foreign");

    let create = order("create", &["foreign"]);
    let refusal = refused(&machine, &create);
    assert!(
        refusal.contains("unknown data") && refusal.contains("erase"),
        "{refusal}"
    );
    assert!(refused(&machine, &order("add", &["foreign"])).contains("in memory"));
    let mut beginning = [0; 8];
    File::open(foreign.path())
        .unwrap()
        .read_exact_at(&mut beginning, 0)
        .unwrap();
    assert_eq!(&beginning, b"precious");

    change(
        &machine,
        Order {
            erase: true,
            ..create
        },
    );
    assert_eq!(pool(&machine)["place"], "disks");
    assert_eq!(docker.ok("exec keeper cat /file"), "kept");
    machine.reboot();
    let docker = machine.new_docker();
    docker.ok("start keeper");
    assert_eq!(docker.ok("exec keeper cat /file"), "kept");
}
