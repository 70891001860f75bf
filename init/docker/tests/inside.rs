//! What a client asks for, read back from inside the container, and what it may wait for.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::time::{Duration, Instant};

use common::{Machine, with_machine};
use serde_json::{Value, json};

fn run(machine: &Machine, options: &[&str], script: &str) -> String {
    machine.out(&[&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat())
}

#[test]
fn every_setting_of_a_process_is_found_inside() {
    with_machine(|machine| {
        let applets = "exec 2>&1; PATH=$PATH:/x; df() { busybox df \"$@\"; }; ";
        for (options, script, expected) in [
            (&["-u", "web"][..], "id -u; id -g; id -G", "33\n34\n34 4"),
            (&["-u", "33:4"], "id -u; id -g", "33\n4"),
            (&["-u", "1234", "--group-add", "log"], "id -G", "0 4"),
            (&["-w", "/made/here"], "pwd", "/made/here"),
            (&["-e", "ONE=1", "-e", "TWO=2"], "echo $ONE$TWO$HOME", "12/root"),
            (&["-u", "web"], "echo $HOME", "/tmp"),
            (&["-h", "named"], "hostname; cat /etc/hostname", "named\nnamed"),
            (
                &["--shm-size", "9m"],
                "df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'",
                "9216",
            ),
            (
                &[],
                "df -k /dev/shm | busybox tail -1 | busybox awk '{print $2}'",
                "65536",
            ),
            (
                &["--tmpfs", "/t:size=4m,mode=700,noexec"],
                "df -k /t | busybox tail -1 | busybox awk '{print $2}'; busybox stat -c %a /t; cp /bin/busybox /t/sh; /t/sh || echo refused",
                "4096\n700\nsh: /t/sh: Permission denied\nrefused",
            ),
            (
                &["--ulimit", "nofile=100:200", "--ulimit", "core=0"],
                "ulimit -n; ulimit -H -n; ulimit -c",
                "100\n200\n0",
            ),
            (&["--oom-score-adj", "300"], "cat /proc/self/oom_score_adj", "300"),
            (
                &["--security-opt", "no-new-privileges"],
                "busybox grep -c 'NoNewPrivs:.1' /proc/self/status",
                "1",
            ),
            (
                &["--security-opt", "seccomp=unconfined"],
                "busybox grep Seccomp: /proc/self/status | busybox tr -d '\\t'",
                "Seccomp:0",
            ),
            (
                &["--cap-drop", "ALL"],
                "busybox grep CapBnd /proc/self/status | busybox cut -f 2",
                "0000000000000000",
            ),
            (
                &["--read-only"],
                "echo > /file || echo refused",
                "sh: can't create /file: Read-only file system\nrefused",
            ),
            (
                &["--read-only", "--tmpfs", "/tmp"],
                "echo x > /tmp/file && cat /tmp/file",
                "x",
            ),
            (
                &["--sysctl", "kernel.shmmni=77"],
                "cat /proc/sys/kernel/shmmni",
                "77",
            ),
            (
                &["--security-opt", "systempaths=unconfined"],
                "busybox grep -c proc/sys /proc/mounts; true",
                "0",
            ),
        ] {
            let said = run(machine, options, &format!("{applets}{script}"));
            assert_eq!(said, expected, "{options:?}");
        }
        let entry = [
            "run",
            "--rm",
            "--entrypoint",
            "/bin/echo",
            "busybox",
            "only",
            "these",
        ];
        assert_eq!(machine.out(&entry), "only these");
    });
}

#[test]
fn a_list_of_hidden_paths_replaces_the_usual_one() {
    with_machine(|machine| {
        let hidden = |masked: Value, name: &str| {
            let body = json!({
                "Image": "busybox", "Cmd": ["sh", "-c", "busybox wc -c < /etc/passwd; busybox wc -c < /proc/timer_list"],
                "HostConfig": {"MaskedPaths": masked, "ReadonlyPaths": []},
            });
            let (status, answer) = machine.ask_at("POST", &format!("containers/create?name={name}"), &body);
            assert_eq!(status, 201, "{answer:?}");
            let said = machine.out(&["start", "-a", name]);
            let sizes: Vec<u64> = said.lines().map(|line| line.trim().parse().unwrap()).collect();
            (sizes[0] > 0, sizes[1] > 0)
        };
        assert_eq!(hidden(Value::Null, "usual"), (true, false));
        assert_eq!(
            hidden(json!(["/etc/passwd", "/proc/timer_list"]), "own"),
            (false, false)
        );
    });
}

#[test]
fn a_container_has_so_long_to_stop_as_it_was_made_with() {
    with_machine(|machine| {
        let ignores = [
            "busybox",
            "sh",
            "-c",
            "trap '' TERM; echo ready; while :; do sleep 0.1; done",
        ];
        let stop = |name: &str, timeout: &str, args: &[&str]| {
            machine.out(
                &[
                    &["run", "-d", "--name", name, "--stop-timeout", timeout],
                    &ignores[..],
                ]
                .concat(),
            );
            machine.until(|| machine.out(&["logs", name]) == "ready");
            let begun = Instant::now();
            machine.out(&[&["stop"], args, &[name]].concat());
            assert_eq!(machine.out(&["wait", name]), "137");
            begun.elapsed()
        };
        let short = stop("short", "1", &[]);
        assert!(
            short >= Duration::from_secs(1) && short < Duration::from_secs(9),
            "{short:?}"
        );
        // What the request says goes over it.
        assert!(stop("long", "600", &["-t", "0"]) < Duration::from_secs(60));
    });
}

#[test]
fn each_condition_of_a_wait_is_met_when_it_should_be() {
    with_machine(|machine| {
        let wait = |name: &str, condition: &str| {
            let path = format!("containers/{name}/wait?condition={condition}");
            let (status, answer) = machine.ask_at("POST", &path, &Value::Null);
            (status, answer[0]["StatusCode"].as_i64())
        };
        machine.out(&["create", "--name", "one", "busybox", "sh", "-c", "exit 6"]);
        // It does not run, so that is met; the others are only met later.
        assert_eq!(wait("one", "not-running"), (200, Some(0)));
        std::thread::scope(|scope| {
            let next = scope.spawn(|| wait("one", "next-exit"));
            // The first end may come before somebody waits for the next.
            while !next.is_finished() {
                machine.out(&["start", "one"]);
                machine.out(&["wait", "one"]);
            }
            assert_eq!(next.join().unwrap(), (200, Some(6)));
        });
        // With `--rm` the client waits for the removal.
        assert_eq!(
            machine
                .fails(&["run", "--rm", "--name", "gone", "busybox", "sh", "-c", "exit 7"])
                .0,
            7
        );
        assert_eq!(wait("gone", "not-running").0, 404);
        machine.out(&["create", "--name", "two", "busybox", "true"]);
        assert_eq!(wait("two", "sometime").0, 400);
        assert_eq!(wait("nobody", "removed").0, 404);
    });
}

#[test]
fn statistics_have_those_before_them_unless_one_shot_is_asked_for() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "busy",
            "busybox",
            "sh",
            "-c",
            "while :; do :; done",
        ]);
        let stats = |query: &str| {
            machine
                .ask_at("GET", &format!("containers/busy/stats?{query}"), &Value::Null)
                .1
        };
        let total = |of: &Value| of["cpu_usage"]["total_usage"].as_u64().unwrap();
        let both = stats("stream=false").remove(0);
        assert!(total(&both["precpu_stats"]) > 0, "{both}");
        assert!(total(&both["cpu_stats"]) > total(&both["precpu_stats"]), "{both}");
        assert!(both["read"].as_str() > both["preread"].as_str(), "{both}");
        let one = stats("stream=false&one-shot=true").remove(0);
        assert_eq!(total(&one["precpu_stats"]), 0, "{one}");
        machine.out(&["rm", "-f", "busy"]);
    });
}
