//! States of containers and the calls about them, with the docker command line.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::{Machine, with_machine, with_supervisors};
use serde_json::{Value, json};

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

/// Something mounted where a container's log lies: its removal fails there, half-way.
struct Obstacle(std::path::PathBuf);

impl Obstacle {
    fn put(machine: &Machine, container: &str) -> Self {
        let id = machine.out(&["inspect", "-f", "{{.Id}}", container]);
        let place = machine.dir.join("pool/logs").join(id);
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("none", &place, "tmpfs", flags, None).unwrap();
        Self(place)
    }
}

impl Drop for Obstacle {
    fn drop(&mut self) {
        let _ = rustix::mount::unmount(&self.0, rustix::mount::UnmountFlags::DETACH);
    }
}

#[test]
fn a_removal_that_fails_leaves_a_dead_container_that_can_only_be_removed_again() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "--restart",
            "unless-stopped",
            "-d",
            "--name",
            "stuck",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.out(&["stop", "-t", "0", "stuck"]);
        let obstacle = Obstacle::put(machine, "stuck");
        let (_, text) = machine.fails(&["rm", "stuck"]);
        assert!(text.contains("failed to remove root filesystem"), "{text}");
        let state = machine.out(&[
            "inspect",
            "-f",
            "{{.State.Status}} {{.State.Dead}} {{.State.Running}}",
            "stuck",
        ]);
        assert_eq!(state, "dead true false");
        assert_eq!(
            machine.out(&[
                "ps",
                "-a",
                "-f",
                "status=dead",
                "--format",
                "{{.Names}} {{.Status}}"
            ]),
            "stuck Dead"
        );
        for refused in [
            &["start", "stuck"][..],
            &["restart", "stuck"],
            &["update", "--restart", "no", "stuck"],
        ] {
            let (_, text) = machine.fails(refused);
            assert!(text.contains("is marked for removal"), "{text}");
        }
        machine.fails(&["cp", "stuck:/etc/passwd", "-"]);
        machine.fails(&["rm", "stuck"]);
        drop(obstacle);
        machine.out(&["rm", "stuck"]);
        assert_eq!(machine.out(&["ps", "-aq"]), "");
    });
}

#[test]
fn whoever_waits_for_a_removal_is_told_that_it_failed_and_a_successor_tries_it_again() {
    let fails = |machine: &Machine| {
        let mut child = machine.command(&["run", "-i", "--rm", "--name", "held", "busybox", "cat"]);
        let mut child = child.stdin(std::process::Stdio::piped()).spawn().unwrap();
        machine.until(|| machine.docker(&["top", "held"]).status.success());
        std::mem::forget(Obstacle::put(machine, "held"));
        drop(child.stdin.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(said.contains("failed to remove root filesystem"), "{said}");
        assert_eq!(output.status.code(), Some(125));
        assert_eq!(
            machine.out(&["inspect", "-f", "{{.State.Status}}", "held"]),
            "dead"
        );
        let place = machine.out(&["inspect", "-f", "{{.LogPath}}", "held"]);
        rustix::mount::unmount(&place, rustix::mount::UnmountFlags::DETACH).unwrap();
    };
    let is_tried_again = |machine: &Machine| machine.until(|| machine.out(&["ps", "-aq"]).is_empty());
    with_supervisors(&[&fails, &is_tried_again]);
}

#[test]
fn what_does_not_run_is_pruned_by_age_and_label_and_the_space_that_comes_back_is_told() {
    with_machine(|machine| {
        for (name, label) in [("one", "keep=yes"), ("two", "keep=no"), ("three", "other")] {
            machine.out(&["create", "--name", name, "--label", label, "busybox", "true"]);
        }
        machine.out(&["run", "-d", "--name", "up", "busybox", "sleep", "600"]);
        let prune = |filters: &[&str]| {
            let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
            let words: Vec<&str> = ["container", "prune", "-f"].into_iter().chain(filters).collect();
            machine.out(&words)
        };
        let names = || machine.out(&["ps", "-a", "--format", "{{.Names}}"]);
        prune(&["until=1h"]);
        prune(&["until=2020-01-01"]);
        prune(&["label=keep=maybe"]);
        assert_eq!(names(), "up\nthree\ntwo\none");
        prune(&["until=0s", "label!=keep=yes", "label=keep"]);
        assert_eq!(names(), "up\nthree\none");
        assert!(
            machine
                .fails(&["container", "prune", "-f", "--filter", "until=soon"])
                .1
                .contains("'until'")
        );
        let script = "head -c 8000000 /dev/urandom > /data && sync";
        machine.out(&["run", "--name", "full", "busybox", "sh", "-c", script]);
        let told = prune(&["label!=keep=yes"]);
        let reclaimed = told
            .lines()
            .last()
            .unwrap()
            .rsplit(' ')
            .next()
            .unwrap()
            .to_owned();
        assert!(reclaimed.starts_with("8.") && reclaimed.ends_with("MB"), "{told}");
        assert_eq!(names(), "up\none");
        let events = machine.out(&[
            "events",
            "--since",
            "10m",
            "--until=-1s",
            "--filter",
            "event=prune",
            "--format",
            "{{.Type}} {{.Actor.Attributes.reclaimed}}",
        ]);
        let last = events.lines().last().unwrap();
        let bytes: u64 = last.strip_prefix("container ").unwrap().parse().unwrap();
        assert!((8_000_000..9_000_000).contains(&bytes), "{events}");
        machine.out(&["rm", "-f", "up", "one"]);
    });
}

/// Makes an added process by the API; its id.
fn add(machine: &Machine, container: &str, command: &[&str]) -> String {
    let body = json!({"Cmd": command, "AttachStdin": true, "AttachStdout": true});
    let (status, answer) = machine.ask_at("POST", &format!("containers/{container}/exec"), &body);
    assert_eq!(status, 201, "{answer:?}");
    answer[0]["Id"].as_str().unwrap().to_owned()
}

fn begin(machine: &Machine, exec: &str) {
    let (status, answer) = machine.ask_at("POST", &format!("exec/{exec}/start"), &json!({"Detach": true}));
    assert_eq!(status, 200, "{answer:?}");
}

fn look(machine: &Machine, exec: &str) -> Value {
    let (status, mut answer) = machine.ask_at("GET", &format!("exec/{exec}/json"), &Value::Null);
    assert_eq!(status, 200, "{answer:?}");
    answer.remove(0)
}

#[test]
fn an_added_process_has_its_exit_code_whatever_becomes_of_the_supervisor() {
    let ids = std::sync::Mutex::new(Vec::new());
    let first = |machine: &Machine| {
        machine.out(&["run", "-d", "--name", "host", "busybox", "sleep", "600"]);
        let commands: [&[&str]; 6] = [
            &["sh", "-c", "exit 7"],
            &["/no/such/program"],
            // It ends as soon as its input does, and that ends with the client.
            &["sh", "-c", "cat; exit 8"],
            &["sh", "-c", "until test -e /go; do sleep 0.1; done; exit 9"],
            &["sh", "-c", "exit 10"],
            &["sleep", "600"],
        ];
        let made: Vec<String> = commands
            .iter()
            .map(|command| add(machine, "host", command))
            .collect();
        begin(machine, &made[0]);
        machine.ask_at(
            "POST",
            &format!("exec/{}/start", made[1]),
            &json!({"Detach": true}),
        );
        for id in [&made[2], &made[3], &made[5]] {
            begin(machine, id);
        }
        machine.until(|| look(machine, &made[0])["ExitCode"] == 7);
        // Many notes: what is out of date in the memory is given up.
        for _ in 0..40 {
            add(machine, "host", &["echo", &"x".repeat(4000)]);
        }
        ids.lock().unwrap().extend(made);
    };
    let second = |machine: &Machine| {
        let ids = ids.lock().unwrap();
        assert_eq!(look(machine, &ids[0])["ExitCode"], 7);
        assert_eq!(look(machine, &ids[1])["ExitCode"], 127);
        machine.until(|| look(machine, &ids[2])["ExitCode"] == 8);
        let runs = look(machine, &ids[3]);
        assert_eq!(
            (&runs["Running"], &runs["ExitCode"]),
            (&json!(true), &Value::Null)
        );
        assert_ne!(runs["Pid"], 0);
        let listed = machine.out(&["inspect", "-f", "{{.ExecIDs}}", "host"]);
        assert!(
            listed.contains(&ids[3]) && listed.contains(&ids[5]) && !listed.contains(&ids[0]),
            "{listed}"
        );
        machine.out(&["exec", "host", "sh", "-c", "echo > /go"]);
        machine.until(|| look(machine, &ids[3])["ExitCode"] == 9);
        // One that was not begun yet can be.
        begin(machine, &ids[4]);
        machine.until(|| look(machine, &ids[4])["ExitCode"] == 10);
        let again = machine.ask_at(
            "POST",
            &format!("exec/{}/start", ids[0]),
            &json!({"Detach": true}),
        );
        assert_eq!(again.0, 409, "{again:?}");
    };
    let third = |machine: &Machine| {
        let ids = ids.lock().unwrap();
        for (id, code) in [(0, 7), (2, 8), (3, 9), (4, 10)] {
            assert_eq!(look(machine, &ids[id])["ExitCode"], code);
        }
        let shown = look(machine, &ids[4]);
        assert_eq!(shown["ProcessConfig"]["arguments"], json!(["-c", "exit 10"]));
        machine.out(&["rm", "-f", "host"]);
        machine.until(|| look(machine, &ids[5])["ExitCode"] == 137);
    };
    with_supervisors(&[&first, &second, &third]);
}

#[test]
fn what_health_checks_have_found_outlives_the_supervisor_and_the_container() {
    let found = |machine: &Machine, name: &str| {
        let form = "{{.State.Health.Status}} {{.State.Health.FailingStreak}} {{range .State.Health.Log}}{{.Output}},{{end}}";
        machine.out(&["inspect", "-f", form, name])
    };
    let run = |machine: &Machine, name: &str, check: &str| {
        let check = format!("echo -n x >> /times; cat /times; {check}");
        machine.out(&[
            "run",
            "-d",
            "--name",
            name,
            "--health-cmd",
            &check,
            "--health-interval",
            "1s",
            "--health-retries",
            "2",
            "busybox",
            "sleep",
            "600",
        ]);
    };
    let streak = |machine: &Machine, name: &str| -> u32 {
        let found = found(machine, name);
        found.split(' ').nth(1).unwrap().parse().unwrap()
    };
    let last = std::sync::Mutex::new(String::new());
    let first = |machine: &Machine| {
        run(machine, "sick", "false");
        run(machine, "hangs", "sleep 599");
        machine.until(|| streak(machine, "sick") >= 3);
    };
    let second = |machine: &Machine| {
        // Each result tells how many there have been.
        let inherited = found(machine, "sick");
        assert!(
            inherited.starts_with("unhealthy ") && inherited.contains(",xxx,"),
            "{inherited}"
        );
        // Nobody waits any more for the check that the last supervisor has begun.
        let checks = || machine.out(&["top", "hangs"]).matches("sleep 599").count();
        machine.until(|| checks() <= 1);
        machine.until(|| streak(machine, "sick") >= 6);
        machine.out(&["rm", "-f", "hangs"]);
        machine.out(&["kill", "sick"]);
        *last.lock().unwrap() = found(machine, "sick");
    };
    let third = |machine: &Machine| {
        let ended = found(machine, "sick");
        assert!(
            ended.starts_with("unhealthy ") && ended.matches(',').count() == 5,
            "{ended}"
        );
        assert_eq!(ended, *last.lock().unwrap());
        machine.out(&["start", "sick"]);
        assert!(found(machine, "sick").starts_with("starting "));
        machine.out(&["rm", "-f", "sick"]);
    };
    with_supervisors(&[&first, &second, &third]);
}

#[test]
fn the_list_is_filtered_by_the_ports_that_are_published_and_exposed() {
    with_machine(|machine| {
        let sleeps = ["busybox", "sleep", "600"];
        for (name, options) in [
            ("web", ["-p", "8080:80"]),
            ("names", ["-p", "5353:53/udp"]),
            ("inner", ["--expose", "9000"]),
        ] {
            machine.out(&[&["run", "-d", "--name", name], &options[..], &sleeps].concat());
        }
        let listed = |filters: &[&str]| {
            let filters = filters.iter().flat_map(|filter| ["--filter", filter]);
            let words: Vec<&str> = ["ps", "--format", "{{.Names}}"]
                .into_iter()
                .chain(filters)
                .collect();
            machine.out(&words)
        };
        assert_eq!(listed(&["publish=8080"]), "web");
        assert_eq!(listed(&["publish=8000-8100/tcp"]), "web");
        assert_eq!(listed(&["publish=5353"]), "");
        assert_eq!(listed(&["publish=5353/udp"]), "names");
        assert_eq!(listed(&["expose=80", "expose=9000"]), "inner\nweb");
        assert_eq!(listed(&["expose=9000", "name=web"]), "");
        assert_eq!(listed(&["is-task=true"]), "");
        assert_eq!(listed(&["is-task=false"]).lines().count(), 3);
        assert!(
            machine
                .fails(&["ps", "--filter", "publish=web"])
                .1
                .contains("'publish=web'")
        );
        machine.out(&["rm", "-f", "web", "names", "inner"]);
    });
}
