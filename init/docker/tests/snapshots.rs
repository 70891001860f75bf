//! Snapshots by the API: of zones and volumes, running and not; rollback, clones, and what goes with what.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

mod common;

use std::process::Command;

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

/// The bytes that a request answers with.
fn fetched(machine: &Machine, path: &str) -> Vec<u8> {
    let output = machine
        .curl("GET", &format!("monobloc/v1/{path}"))
        .output()
        .unwrap();
    assert!(output.status.success(), "{path}: {output:?}");
    output.stdout
}

fn label_of(stream: &[u8]) -> &[u8] {
    let length = u32::from_le_bytes(stream[16..20].try_into().unwrap()) as usize;
    &stream[20..20 + length]
}

/// Has the machine take in a stream; what it says at last.
fn received(machine: &Machine, stream: &[u8], query: &str) -> Value {
    let (status, answer) = machine.upload("POST", &format!("monobloc/v1/transfers{query}"), label_of(stream));
    if status != 200 {
        return answer[0].clone();
    }
    let id = answer[0]["id"].as_str().unwrap().to_owned();
    let begun = answer[0]["received"].as_u64().unwrap();
    let half = stream.len().midpoint(begun as usize);
    for (from, to) in [(begun as usize, half), (half, stream.len())] {
        let (status, answer) = machine.upload(
            "PUT",
            &format!("monobloc/v1/transfers/{id}?offset={from}"),
            &stream[from..to],
        );
        assert_eq!((status, &answer[0]["received"]), (200, &json!(to)), "{answer:?}");
    }
    let (_, answer) = machine.upload("POST", &format!("monobloc/v1/transfers/{id}{query}"), b"");
    answer.last().unwrap().clone()
}

#[test]
fn a_zone_and_a_volume_are_sent_and_received_whole_and_as_differences() {
    with_machine(|machine| {
        let loops = "while :; do sleep 1; done";
        machine.out(&[
            "run",
            "-d",
            "--name",
            "web",
            "-e",
            "KEY=value",
            "--storage-opt",
            "size=64m",
            "-v",
            "data:/data",
            "--label",
            "a=b",
            "busybox",
            "sh",
            "-c",
            loops,
        ]);
        let sh = |zone: &str, script: &str| machine.out(&["exec", zone, "sh", "-c", script]);
        sh(
            "web",
            "echo one > /file; echo kept > /other; echo of data > /data/file",
        );
        done(machine, "POST", "zones/web/snapshots", &json!({"name": "first"}));
        done(
            machine,
            "POST",
            "volumes/data/snapshots",
            &json!({"name": "first"}),
        );
        sh("web", "echo two > /file; rm /other");
        done(machine, "POST", "zones/web/snapshots", &json!({"name": "second"}));
        let first = fetched(machine, "zones/web/snapshots/first/send");
        let second = fetched(machine, "zones/web/snapshots/second/send?from=first");
        assert_eq!(
            fetched(machine, "zones/web/snapshots/first/send?offset=100"),
            first[100..]
        );
        assert_eq!(
            &fetched(machine, "zones/web/snapshots/first/send?label=1")[20..],
            label_of(&first)
        );

        let refused = received(machine, &first, "");
        assert!(
            refused["message"]
                .as_str()
                .unwrap()
                .contains("a zone web already"),
            "{refused}"
        );
        let told = received(machine, &first, "?name=copy");
        assert_eq!(
            told,
            json!({"done": true, "kind": "zone", "of": "copy", "name": "first", "new": true})
        );
        machine.out(&["start", "copy"]);
        assert_eq!(
            sh("copy", "echo $KEY; cat /file /other /data/file"),
            "value\none\nkept\nof data"
        );
        let shown = machine.out(&[
            "inspect",
            "-f",
            "{{.Config.Labels.a}} {{index .HostConfig.StorageOpt \"size\"}} {{.Config.Image}}",
            "copy",
        ]);
        assert_eq!(shown, "b 64m busybox");

        let told = received(machine, &second, "?name=copy");
        assert_eq!((&told["new"], &told["name"]), (&json!(false), &json!("second")));
        assert_eq!(sh("copy", "cat /file"), "one");
        done(
            machine,
            "POST",
            "zones/copy/snapshots/second/rollback",
            &json!({"restart": true}),
        );
        assert_eq!(sh("copy", "cat /file; [ -e /other ] || echo gone"), "two\ngone");
        let again = received(machine, &second, "?name=copy");
        assert!(
            again["message"].as_str().unwrap().contains("already, as second"),
            "{again}"
        );

        let volume = fetched(machine, "volumes/data/snapshots/first/send");
        let told = received(machine, &volume, "?name=twin");
        assert_eq!(told["kind"], "volume");
        assert_eq!(
            machine.out(&["run", "--rm", "-v", "twin:/data", "busybox", "cat", "/data/file"]),
            "of data"
        );
        assert_eq!(names(machine, "volumes/twin/snapshots"), ["twin@first"]);
        assert_eq!(done(machine, "GET", "transfers", &json!({})), json!([]));
    });
}

#[test]
fn what_does_not_come_whole_or_undamaged_is_never_seen() {
    with_machine(|machine| {
        machine.out(&["volume", "create", "data"]);
        machine.out(&[
            "run",
            "--rm",
            "-v",
            "data:/data",
            "busybox",
            "sh",
            "-c",
            "echo x > /data/file",
        ]);
        done(
            machine,
            "POST",
            "volumes/data/snapshots",
            &json!({"name": "first"}),
        );
        let stream = fetched(machine, "volumes/data/snapshots/first/send");
        let cut = received(machine, &stream[..stream.len() - 50], "?name=cut");
        assert!(cut["error"].as_str().unwrap().contains("cut off"), "{cut}");
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "data");
        let kept = done(machine, "GET", "transfers", &json!({}));
        assert_eq!(kept[0]["received"], stream.len() - 50, "{kept}");
        // What has come is gone on with.
        let (status, answer) = machine.upload(
            "PUT",
            &format!(
                "monobloc/v1/transfers/{}?offset=3",
                kept[0]["id"].as_str().unwrap()
            ),
            b"x",
        );
        assert_eq!(status, 409, "{answer:?}");
        assert_eq!(received(machine, &stream, "?name=cut")["done"], true);
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "cut\ndata");

        let mut damaged = stream.clone();
        damaged[stream.len() - 100] ^= 1;
        let refused = received(machine, &damaged, "?name=bad");
        assert!(
            refused["error"].as_str().unwrap().contains("damaged"),
            "{refused}"
        );
        assert_eq!(machine.out(&["volume", "ls", "-q"]), "cut\ndata");
        assert_eq!(done(machine, "GET", "transfers", &json!({})), json!([]));
        for (label, status) in [(&b"{}"[..], 400), (b"nonsense", 400)] {
            assert_eq!(machine.upload("POST", "monobloc/v1/transfers", label).0, status);
        }
        assert_eq!(machine.upload("PUT", "monobloc/v1/transfers/abc", b"x").0, 400);
        assert_eq!(
            machine
                .upload("POST", &format!("monobloc/v1/transfers/{}", "0".repeat(64)), b"")
                .0,
            200
        );
    });
}

#[test]
fn a_zone_whose_image_is_not_here_is_refused_before_anything_is_sent() {
    with_machine(|machine| {
        machine.out(&["create", "--name", "web", "busybox"]);
        let own = machine.feed(
            &["import", "-", "own:1"],
            &Command::new("tar")
                .args(["-C", "/etc", "-c", "hostname"])
                .output()
                .unwrap()
                .stdout,
        );
        machine.out(&["create", "--name", "other", "own:1", "/x"]);
        done(
            machine,
            "POST",
            "zones/other/snapshots",
            &json!({"name": "first"}),
        );
        let stream = fetched(machine, "zones/other/snapshots/first/send");
        machine.out(&["rm", "other"]);
        machine.out(&["rmi", &own]);
        let refused = received(machine, &stream, "");
        assert!(
            refused["message"].as_str().unwrap().contains("own:1"),
            "{refused}"
        );
        assert_eq!(done(machine, "GET", "transfers", &json!({})), json!([]));
    });
}
