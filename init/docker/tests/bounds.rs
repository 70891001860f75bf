//! What a client that is slow, early, late or rude may do to the engine, and what it may not.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::io::Read;
use std::time::{Duration, Instant};

use common::{Machine, with_machine};

/// Bytes that fit into no queue between a process and its client.
const MUCH: usize = 8 << 20;

/// What a command says of which nothing is read for `pause`.
fn read_late(machine: &Machine, args: &[&str], pause: Duration) -> usize {
    let mut child = machine.command(args).spawn().unwrap();
    std::thread::sleep(pause);
    let mut said = Vec::new();
    child.stdout.take().unwrap().read_to_end(&mut said).unwrap();
    child.wait().unwrap();
    said.len()
}

#[test]
fn a_client_that_reads_late_gets_everything() {
    with_machine(|machine| {
        let script = format!("dd if=/dev/zero bs=4096 count={} 2>/dev/null", MUCH / 4096);
        let run = ["run", "--rm", "busybox", "sh", "-c", &script];
        assert_eq!(read_late(machine, &run, Duration::from_secs(1)), MUCH);
        let id = machine.out(&["run", "-d", "busybox", "sleep", "600"]);
        // The process ends while its client is busy elsewhere for longer than an end is waited for.
        let exec = [
            "exec",
            &id,
            "sh",
            "-c",
            "dd if=/dev/zero bs=4096 count=700 2>/dev/null",
        ];
        assert_eq!(read_late(machine, &exec, Duration::from_secs(9)), 700 * 4096);
    });
}

#[test]
fn a_stop_or_a_forced_removal_ends_a_container_between_two_starts() {
    with_machine(|machine| {
        for round in 0..12 {
            let name = format!("flaky{round}");
            machine.out(&[
                "run",
                "-d",
                "--name",
                &name,
                "--restart",
                "always",
                "busybox",
                "sh",
                "-c",
                "exit 1",
            ]);
            // At another moment of the pause or the start each time.
            std::thread::sleep(Duration::from_millis(90 + 13 * round));
            if round % 2 == 0 {
                machine.out(&["rm", "-f", &name]);
            } else {
                machine.out(&["stop", "-t", "0", &name]);
                let status = machine.out(&["inspect", "-f", "{{.State.Status}}", &name]);
                assert_eq!(status, "exited", "round {round}");
            }
        }
        std::thread::sleep(Duration::from_secs(1));
        assert_eq!(machine.out(&["ps", "-q"]), "");
    });
}

#[test]
fn what_is_asked_for_beyond_what_is_done_is_refused_and_the_default_by_another_name_is_not() {
    with_machine(|machine| {
        let parent = ["run", "--rm", "--cgroup-parent", "/other", "busybox", "true"];
        let (code, text) = machine.fails(&parent);
        assert!(code == 125 && text.contains("CgroupParent"), "{code} {text}");
        machine.out(&["run", "--rm", "--no-healthcheck", "busybox", "true"]);
        machine.out(&[
            "run",
            "--rm",
            "--security-opt",
            "no-new-privileges",
            "busybox",
            "true",
        ]);
    });
}

#[test]
fn a_signal_of_the_real_time_kind_is_sent() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "waiter",
            "--stop-signal",
            "SIGRTMIN+3",
            "busybox",
            "sh",
            "-c",
            "trap 'exit 5' 37; echo ready; while :; do sleep 0.1; done",
        ]);
        machine.until(|| machine.out(&["logs", "waiter"]) == "ready");
        let before = Instant::now();
        machine.out(&["stop", "waiter"]);
        assert!(before.elapsed() < Duration::from_secs(8));
        assert_eq!(machine.out(&["wait", "waiter"]), "5");
    });
}
