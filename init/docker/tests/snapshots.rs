//! Snapshots by the API: of zones and volumes, running and not; rollback, clones, and what goes with what.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use common::{Machine, with_machine, with_supervisors};
use serde_json::{Value, json};

/// What answers a request that succeeds.
#[track_caller]
fn done(machine: &Machine, method: &str, path: &str, body: &Value) -> Value {
    let (status, mut answer) = machine.ask(method, path, body);
    assert!(
        (200..300).contains(&status),
        "{method} {path}: {status} {answer:?}"
    );
    answer.pop().unwrap_or_default()
}

/// Status and words of a refusal.
#[track_caller]
fn refused(machine: &Machine, method: &str, path: &str, body: &Value) -> (u32, String) {
    let (status, answer) = machine.ask(method, path, body);
    assert!(status >= 400, "{method} {path}: {status} {answer:?}");
    (status, answer[0]["message"].as_str().unwrap().to_owned())
}

fn names(machine: &Machine, path: &str) -> Vec<String> {
    let told = done(machine, "GET", path, &json!({}));
    let snapshots = told.as_array().unwrap().iter();
    snapshots
        .map(|snapshot| {
            format!(
                "{}@{}",
                snapshot["of"].as_str().unwrap(),
                snapshot["name"].as_str().unwrap()
            )
        })
        .collect()
}

#[test]
fn a_zone_is_rolled_back_to_what_a_snapshot_of_it_has_and_can_be_cloned() {
    with_machine(|machine| {
        let loops = "echo begun; while :; do sleep 1; done";
        machine.out(&[
            "run",
            "-d",
            "--name",
            "web",
            "-e",
            "KEY=value",
            "-v",
            "shared:/shared",
            "-v",
            "/own",
            "busybox",
            "sh",
            "-c",
            loops,
        ]);
        let sh = |zone: &str, script: &str| machine.out(&["exec", zone, "sh", "-c", script]);
        sh(
            "web",
            "echo before > /file; echo mine > /own/file; echo ours > /shared/file",
        );
        let made = done(machine, "POST", "zones/web/snapshots", &json!({"name": "before"}));
        assert_eq!(
            (&made["kind"], &made["of"], &made["name"]),
            (&json!("zone"), &json!("web"), &json!("before"))
        );
        let places: Vec<&Value> = made["not_included"]
            .as_array()
            .unwrap()
            .iter()
            .map(|volume| &volume["at"])
            .collect();
        assert_eq!(places, ["/shared", "/own"]);
        sh("web", "echo after > /file; echo new > /other");
        let unnamed = done(machine, "POST", "zones/web/snapshots", &json!({"freeze": true}));
        assert_eq!(
            (&unnamed["frozen"], unnamed["name"].as_str().unwrap().len()),
            (&json!(true), 15)
        );
        assert_eq!(names(machine, "zones/web/snapshots").len(), 2);

        let rollback = "zones/web/snapshots/before/rollback";
        let (status, words) = refused(machine, "POST", rollback, &json!({}));
        assert!(status == 409 && words.contains("web runs"), "{words}");
        let started = machine.out(&["inspect", "-f", "{{.State.StartedAt}}", "web"]);
        done(machine, "POST", rollback, &json!({"restart": true}));
        assert_ne!(
            machine.out(&["inspect", "-f", "{{.State.StartedAt}}", "web"]),
            started
        );
        assert_eq!(
            sh("web", "cat /file; [ -e /other ] || echo absent"),
            "before\nabsent"
        );
        assert_eq!(sh("web", "cat /own/file /shared/file"), "mine\nours");
        machine.out(&["kill", "web"]);
        let path = format!(
            "zones/web/snapshots/{}/rollback",
            unnamed["name"].as_str().unwrap()
        );
        done(machine, "POST", &path, &json!({}));
        machine.out(&["start", "web"]);
        assert_eq!(sh("web", "cat /file /other"), "after\nnew");

        let made = done(
            machine,
            "POST",
            "zones/web/clone",
            &json!({"name": "twin", "snapshot": "before"}),
        );
        assert_eq!(made["name"], "twin");
        machine.out(&["start", "twin"]);
        assert_eq!(
            sh("twin", "echo $KEY; cat /file /own/file /shared/file"),
            "value\nbefore\nmine\nours"
        );
        sh(
            "twin",
            "echo twin > /file; echo twin > /own/file; echo all > /shared/file",
        );
        assert_eq!(sh("web", "cat /file /own/file /shared/file"), "after\nmine\nall");
        let ids = |zone: &str| machine.out(&["exec", zone, "cat", "/proc/self/uid_map"]);
        assert_ne!(ids("web"), ids("twin"));
        done(machine, "POST", "zones/web/clone", &json!({}));
        let (status, words) = refused(machine, "POST", "zones/web/clone", &json!({"name": "twin"}));
        assert!(status == 409 && words.contains("already in use"), "{words}");

        // What it was made from may go, and the snapshots go with it.
        machine.out(&["rm", "-fv", "web"]);
        assert_eq!(names(machine, "snapshots"), [""; 0]);
        assert_eq!(sh("twin", "cat /file /own/file"), "twin\ntwin");
    });
}

#[test]
fn a_volume_has_snapshots_of_its_own() {
    with_machine(|machine| {
        machine.out(&[
            "volume",
            "create",
            "--label",
            "kind=data",
            "-o",
            "size=64m",
            "data",
        ]);
        let loops = "while :; do sleep 1; done";
        machine.out(&[
            "run",
            "-d",
            "--name",
            "user",
            "-v",
            "data:/data",
            "busybox",
            "sh",
            "-c",
            loops,
        ]);
        let sh = |script: &str| machine.out(&["exec", "user", "sh", "-c", script]);
        sh("echo before > /data/file");
        let made = done(
            machine,
            "POST",
            "volumes/data/snapshots",
            &json!({"name": "first", "freeze": true}),
        );
        assert_eq!(
            (&made["frozen"], &made["not_included"]),
            (&json!(true), &json!([]))
        );
        sh("echo after > /data/file");
        let rollback = "volumes/data/snapshots/first/rollback";
        let (status, words) = refused(machine, "POST", rollback, &json!({}));
        assert!(status == 409 && words.contains("used by user"), "{words}");
        done(machine, "POST", rollback, &json!({"restart": true}));
        assert_eq!(sh("cat /data/file"), "before");
        done(
            machine,
            "POST",
            "volumes/data/clone",
            &json!({"name": "copy", "snapshot": "first"}),
        );
        let options = machine.out(&[
            "volume",
            "inspect",
            "-f",
            "{{.Labels.kind}} {{.Options.size}}",
            "copy",
        ]);
        assert_eq!(options, "data 64m");
        assert_eq!(
            machine.out(&["run", "--rm", "-v", "copy:/data", "busybox", "cat", "/data/file"]),
            "before"
        );
        let (status, _) = refused(machine, "POST", "volumes/data/clone", &json!({"name": "copy"}));
        assert_eq!(status, 409);
        done(
            machine,
            "POST",
            "volumes/copy/snapshots",
            &json!({"name": "second"}),
        );
        assert_eq!(names(machine, "snapshots"), ["copy@second", "data@first"]);
        done(machine, "DELETE", "volumes/data/snapshots/first", &json!({}));
        machine.out(&["volume", "rm", "copy"]);
        assert_eq!(names(machine, "snapshots"), [""; 0]);

        machine.out(&[
            "volume",
            "create",
            "-o",
            "type=tmpfs",
            "-o",
            "device=tmpfs",
            "memory",
        ]);
        let (status, words) = refused(machine, "POST", "volumes/memory/snapshots", &json!({}));
        assert!(status == 400 && words.contains("in memory"), "{words}");
    });
}

#[test]
fn what_is_not_there_or_has_no_good_name_is_refused() {
    with_machine(|machine| {
        machine.out(&["create", "--name", "web", "busybox"]);
        done(machine, "POST", "zones/web/snapshots", &json!({"name": "one"}));
        for (method, path, body, status) in [
            ("POST", "zones/nobody/snapshots", json!({}), 404),
            ("POST", "volumes/nobody/snapshots", json!({}), 404),
            ("POST", "zones/web/snapshots", json!({"name": "one"}), 409),
            ("POST", "zones/web/snapshots", json!({"name": "../one"}), 400),
            ("POST", "zones/web/snapshots", json!({"nam": "two"}), 400),
            ("DELETE", "zones/web/snapshots/two", json!({}), 404),
            ("DELETE", "zones/web/snapshots/..%2fone", json!({}), 400),
            ("POST", "zones/web/snapshots/two/rollback", json!({}), 404),
            ("POST", "zones/web/clone", json!({"snapshot": "two"}), 404),
            ("POST", "zones/web/clone", json!({"name": "a b"}), 400),
            ("POST", "zones/web/dance", json!({}), 501),
        ] {
            assert_eq!(refused(machine, method, path, &body).0, status, "{method} {path}");
        }
        assert_eq!(names(machine, "snapshots"), ["web@one"]);
        assert_eq!(machine.out(&["ps", "-aq"]).lines().count(), 1);
    });
}

#[test]
fn a_zone_that_a_dying_supervisor_has_left_frozen_goes_on() {
    let loops = "while :; do sleep 1; done";
    with_supervisors(&[
        &|machine| {
            let id = machine.out(&["run", "-d", "--name", "web", "busybox", "sh", "-c", loops]);
            // What a snapshot leaves that is cut short: the note, and a zone that stands still.
            std::fs::create_dir_all("/run/monobloc/frozen").unwrap();
            std::fs::write(format!("/run/monobloc/frozen/{id}"), "").unwrap();
            machine.out(&["pause", "web"]);
        },
        &|machine| {
            let state = || machine.out(&["inspect", "-f", "{{.State.Status}}", "web"]);
            machine.until(|| state() == "running");
            let id = machine.out(&["inspect", "-f", "{{.Id}}", "web"]);
            assert!(!std::path::Path::new(&format!("/run/monobloc/frozen/{id}")).exists());
        },
    ]);
}
