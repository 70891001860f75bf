//! States of containers and the calls about them, with the docker command line.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::{Machine, with_machine};

fn health(machine: &Machine, name: &str) -> String {
    machine.out(&["inspect", "-f", "{{.State.Health.Status}}", name])
}

#[test]
fn a_health_check_follows_what_its_command_says() {
    with_machine(|machine| {
        let script = "test -e /well";
        machine.out(&[
            "run",
            "-d",
            "--name",
            "checked",
            "--health-cmd",
            script,
            "--health-interval",
            "100ms",
            "--health-retries",
            "2",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.until(|| health(machine, "checked") == "unhealthy");
        assert!(machine.out(&["ps"]).contains("(unhealthy)"));
        machine.out(&["exec", "checked", "sh", "-c", "echo > /well"]);
        machine.until(|| health(machine, "checked") == "healthy");
        assert_eq!(
            machine.out(&["ps", "-q", "-f", "health=healthy"]).lines().count(),
            1
        );
        machine.until(|| machine.out(&["inspect", "-f", "{{len .State.Health.Log}}", "checked"]) == "5");
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Health.FailingStreak}}", "checked"]),
            "0"
        );
        machine.out(&["rm", "-f", "checked"]);
    });
}

#[test]
fn a_check_that_takes_too_long_is_killed_with_its_children_and_counts_as_failed() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "slow",
            "--health-cmd",
            "echo begun; sleep 599 & wait",
            "--health-interval",
            "100ms",
            "--health-timeout",
            "300ms",
            "--health-retries",
            "1",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.until(|| health(machine, "slow") == "unhealthy");
        let last = machine.out(&["inspect", "-f", "{{(index .State.Health.Log 0).Output}}", "slow"]);
        assert!(last.contains("exceeded timeout"), "{last}");
        machine.out(&["update", "--restart", "no", "slow"]);
        machine.out(&["stop", "-t", "0", "slow"]);
        let (_, text) = machine.fails(&[
            "run",
            "--health-cmd",
            "true",
            "--health-interval",
            "1us",
            "busybox",
        ]);
        assert!(text.contains("cannot be less than 1ms"), "{text}");
        machine.out(&["rm", "slow"]);
        // One that starts is told so, and failures in that time do not count.
        machine.out(&[
            "run",
            "-d",
            "--name",
            "starts",
            "--health-cmd",
            "false",
            "--health-interval",
            "100ms",
            "--health-start-period",
            "600s",
            "--health-retries",
            "1",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.until(|| machine.out(&["inspect", "-f", "{{len .State.Health.Log}}", "starts"]) != "0");
        assert_eq!(health(machine, "starts"), "starting");
        assert!(machine.out(&["ps"]).contains("(health: starting)"));
        machine.out(&["rm", "-f", "starts"]);
    });
}

#[test]
fn top_shows_the_processes_in_the_columns_that_are_asked_for() {
    with_machine(|machine| {
        machine.out(&[
            "run", "-d", "--name", "tops", "-u", "33", "busybox", "sleep", "600",
        ]);
        let full = machine.out(&["top", "tops"]);
        assert!(full.starts_with("UID") && full.contains("sleep 600"), "{full}");
        assert_eq!(full.lines().nth(1).unwrap().split_whitespace().next(), Some("33"));
        let own = machine.out(&["top", "tops", "-o", "pid,comm"]);
        let pid = machine.out(&["inspect", "-f", "{{.State.Pid}}", "tops"]);
        assert_eq!(
            own.lines().nth(1).unwrap().split_whitespace().collect::<Vec<_>>(),
            [&pid, "sleep"]
        );
        assert!(machine.out(&["top", "tops", "aux"]).starts_with("USER"));
        assert!(
            machine
                .fails(&["top", "tops", "--forest"])
                .1
                .contains("has no ps")
        );
        machine.out(&["stop", "-t", "0", "tops"]);
        assert!(machine.fails(&["top", "tops"]).1.contains("is not running"));
        machine.out(&["rm", "tops"]);
    });
}

#[test]
fn statistics_are_told_once_and_as_a_stream() {
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
        let line = machine.out(&[
            "stats",
            "--no-stream",
            "--format",
            "{{.Name}} {{.CPUPerc}} {{.NetIO}}",
            "busy",
        ]);
        let percent: f64 = line
            .split(' ')
            .nth(1)
            .unwrap()
            .trim_end_matches('%')
            .parse()
            .unwrap();
        assert!(line.starts_with("busy ") && percent > 1.0, "{line}");
        machine.out(&["rm", "-f", "busy"]);
        machine.out(&["create", "--name", "idle", "busybox", "true"]);
        let line = machine.out(&["stats", "--no-stream", "--format", "{{.CPUPerc}}", "idle"]);
        assert_eq!(line, "0.00%");
        machine.out(&["rm", "idle"]);
    });
}

#[test]
fn a_policy_may_be_changed_and_what_cannot_be_is_refused() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "changes",
            "busybox",
            "sh",
            "-c",
            "sleep 0.2; exit 1",
        ]);
        machine.until(|| machine.out(&["inspect", "-f", "{{.State.Status}}", "changes"]) == "exited");
        machine.out(&["update", "--restart", "on-failure:2", "changes"]);
        machine.out(&["start", "changes"]);
        machine.until(|| {
            machine.out(&["inspect", "-f", "{{.State.Status}} {{.RestartCount}}", "changes"]) == "exited 2"
        });
        assert!(
            machine
                .fails(&["update", "--memory", "1m", "changes"])
                .1
                .contains("Minimum memory limit")
        );
        machine.out(&["rm", "changes"]);
        machine.out(&["run", "-d", "--rm", "--name", "gone", "busybox", "sleep", "600"]);
        assert!(
            machine
                .fails(&["update", "--restart", "always", "gone"])
                .1
                .contains("AutoRemove")
        );
        machine.out(&["stop", "-t", "0", "gone"]);
    });
}
