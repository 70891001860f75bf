//! The process that waits for its container's start from the creation on.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::fs;

use common::{Machine, with_machine, with_supervisors};
use serde_json::{Value, json};

/// The processes in the cgroup of a container.
fn processes_of(id: &str) -> Vec<u32> {
    let entries = fs::read_dir("/proc").unwrap();
    entries
        .filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read_to_string(format!("/proc/{pid}/cgroup")).is_ok_and(|cgroups| cgroups.contains(id))
        })
        .collect()
}

/// The only one.
fn process_of(id: &str) -> Option<u32> {
    processes_of(id).first().copied()
}

fn create(machine: &Machine, words: &[&str]) -> String {
    let words: Vec<&str> = ["create"].into_iter().chain(words.iter().copied()).collect();
    machine.out(&words)
}

fn create_ready(machine: &Machine, words: &[&str]) -> (String, u32) {
    let id = create(machine, words);
    machine.until(|| process_of(&id).is_some());
    let pid = process_of(&id).unwrap();
    (id, pid)
}

#[test]
fn the_start_runs_the_program_in_the_process_that_waited() {
    with_machine(|machine| {
        let (id, pid) = create_ready(machine, &["-p", "8080", "busybox", "sleep", "600"]);
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Status}} {{.State.Pid}}", &id]),
            "created 0"
        );
        let (_, text) = machine.fails(&["exec", &id, "true"]);
        assert!(text.contains("is not running"), "{text}");
        machine.out(&["start", &id]);
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Pid}}", &id]),
            pid.to_string()
        );
        assert!(machine.out(&["port", &id]).starts_with("8080/tcp -> "));
        assert!(
            machine
                .out(&["exec", &id, "ip", "-o", "-4", "addr", "show", "eth0"])
                .contains("172.17.")
        );
        machine.out(&["rm", "-f", &id]);
        assert_eq!(process_of(&id), None);
    });
}

#[test]
fn what_has_changed_since_the_creation_holds_at_the_start() {
    with_machine(|machine| {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("marker");
        fs::write(&file, "new\n").unwrap();
        let (id, _) = create_ready(machine, &["busybox", "cat", "/etc/marker"]);
        machine.out(&["cp", file.to_str().unwrap(), &format!("{id}:/etc/marker")]);
        assert_eq!(
            process_of(&id),
            None,
            "its files are nobody else's while they are changed"
        );
        assert_eq!(machine.out(&["start", "-a", &id]), "new");

        let (id, pid) = create_ready(machine, &["busybox", "sleep", "600"]);
        machine.out(&["update", "--restart", "always", &id]);
        machine.out(&["start", &id]);
        assert_ne!(process_of(&id), Some(pid));
        machine.out(&["rm", "-f", &id]);
    });
}

#[test]
fn a_process_that_waits_goes_with_its_container_and_with_the_supervisor() {
    let first = |machine: &Machine| {
        let (id, _) = create_ready(machine, &["busybox", "true"]);
        machine.out(&["rm", &id]);
        assert_eq!(process_of(&id), None);
        create_ready(machine, &["--name", "left", "busybox", "echo", "here"]);
    };
    let second = |machine: &Machine| {
        let id = machine.out(&["inspect", "-f", "{{.Id}}", "left"]);
        assert_eq!(process_of(&id), None);
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Status}}", "left"]),
            "created"
        );
        assert_eq!(machine.out(&["start", "-a", "left"]), "here");
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.ExitCode}}", "left"]),
            "0"
        );
    };
    with_supervisors(&[&first, &second]);
}

#[test]
fn only_some_wait_and_all_can_be_started() {
    with_machine(|machine| {
        let ids: Vec<String> = (0..12)
            .map(|_| create(machine, &["busybox", "sleep", "600"]))
            .collect();
        let waiting = || ids.iter().filter(|id| process_of(id).is_some()).count();
        machine.until(|| waiting() == 8);
        let words: Vec<&str> = ["start"]
            .into_iter()
            .chain(ids.iter().map(String::as_str))
            .collect();
        machine.out(&words);
        assert_eq!(waiting(), ids.len());
        assert_eq!(machine.out(&["ps", "-q"]).lines().count(), ids.len());
    });
}

#[test]
fn an_added_process_waits_from_its_creation_on() {
    with_machine(|machine| {
        let (id, first) = create_ready(machine, &["busybox", "sleep", "600"]);
        machine.out(&["start", &id]);
        let added = || processes_of(&id).into_iter().find(|pid| *pid != first);
        let path = format!("containers/{id}/exec");
        let (_, exec) = machine.ask_at("POST", &path, &json!({"Cmd": ["sleep", "600"]}));
        let exec = exec[0]["Id"].as_str().unwrap();
        machine.until(|| added().is_some());
        let waiting = added().unwrap();
        let (status, _) = machine.ask_at("POST", &format!("exec/{exec}/start"), &json!({"Detach": true}));
        assert_eq!(status, 200);
        let (_, shown) = machine.ask_at("GET", &format!("exec/{exec}/json"), &Value::Null);
        assert_eq!(shown[0]["Pid"], waiting);
        machine.out(&["rm", "-f", &id]);
    });
}

#[test]
fn a_container_that_shares_something_is_made_ready_at_its_start() {
    with_machine(|machine| {
        machine.out(&["volume", "create", "data"]);
        for words in [
            &["-v", "data:/data"][..],
            &["-v", "/srv/bound:/data"],
            &["--tmpfs", "/made/by/a/start"],
            &["--storage-opt", "size=64M"],
        ] {
            let words: Vec<&str> = words.iter().copied().chain(["busybox", "true"]).collect();
            let id = create(machine, &words);
            // One that is made later and does wait: this one's turn has come and gone by then.
            create_ready(machine, &["busybox", "true"]);
            assert_eq!(process_of(&id), None, "{words:?}");
            machine.out(&["start", "-a", &id]);
        }
    });
}
