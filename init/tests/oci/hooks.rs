//! Hooks: where they run, in which order, what they are given, and what becomes of one that fails.

use std::fs;

use serde_json::{Value, json};

use crate::bundle::Bundle;

const PLACES: [&str; 6] = [
    "prestart",
    "createRuntime",
    "createContainer",
    "startContainer",
    "poststart",
    "poststop",
];

/// A bundle whose hooks each write a line into a file, which the container has at `/log`: its place, the
/// status that it was told, and whether its network is the machine's.
fn with_hooks() -> Bundle {
    let mut bundle = Bundle::new("echo program >>/log");
    let log = bundle.path().join("log");
    fs::write(&log, "").unwrap();
    bundle.config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/log", "type": "bind", "source": "log", "options": ["rbind"],
    }));
    let machine = fs::read_link("/proc/self/ns/net").unwrap();
    for place in PLACES {
        let path = match place {
            "startContainer" => "/log".to_owned(),
            _ => log.to_str().unwrap().to_owned(),
        };
        let script = format!(
            "state=$(cat); case $state in *'\"pid\":0'*) pid=none;; *) pid=some;; esac; \
             status=${{state#*'\"status\":\"'}}; \
             [ $(readlink /proc/self/ns/net) = $MACHINE ] && where=machine || where=zone; \
             echo {place} ${{status%%'\"'*}} $pid $where $1 >>{path}"
        );
        bundle.config["hooks"][place] = json!([{
            "path": "/bin/sh",
            "args": ["sh", "-c", script, "name", "argument"],
            "env": [format!("MACHINE={}", machine.display()), "PATH=/bin:/usr/bin"],
            "timeout": 100,
        }]);
    }
    bundle
}

fn log(bundle: &Bundle) -> Vec<String> {
    let text = fs::read_to_string(bundle.path().join("log")).unwrap();
    text.lines().map(str::to_owned).collect()
}

#[test]
fn each_hook_runs_in_its_place_with_the_state() {
    let bundle = with_hooks();
    bundle.create("one").good();
    let created = [
        "prestart creating some machine argument",
        "createRuntime creating some machine argument",
        "createContainer creating some zone argument",
    ];
    assert_eq!(log(&bundle), created);
    bundle.say(&["start", "one"]).good();
    bundle.wait("one");
    let mut started = log(&bundle);
    assert_eq!(started[3], "startContainer created some zone argument");
    // The program runs while the hook after it does.
    started[4..].sort();
    assert_eq!(
        started[4..],
        ["poststart running some machine argument", "program"]
    );
    bundle.say(&["delete", "one"]).good();
    assert_eq!(log(&bundle)[6..], ["poststop stopped none machine argument"]);
}

#[test]
fn a_hook_that_fails_before_the_start_ends_the_container() {
    for place in ["prestart", "createRuntime", "createContainer"] {
        let mut bundle = with_hooks();
        bundle.config["hooks"][place] = json!([
            {"path": "/bin/sh", "args": ["sh", "-c", "echo a reason; exit 3"]},
            {"path": "/bin/sh", "args": ["sh", "-c", "echo next >>log"]},
        ]);
        let said = bundle.create("one");
        said.bad(&format!(
            "The {place} hook /bin/sh failed: It ended with 3 and said: a reason"
        ));
        let log = log(&bundle);
        assert!(
            !log.contains(&"next".to_owned()) && !log.contains(&"program".to_owned()),
            "{log:?}"
        );
        assert_eq!(
            log.last().map(String::as_str),
            Some("poststop stopped none machine argument")
        );
        bundle.nothing_left();
    }
}

#[test]
fn a_hook_that_fails_at_the_start_stops_the_container() {
    let mut bundle = with_hooks();
    bundle.config["hooks"]["startContainer"] = json!([{"path": "/bin/nothing-such"}]);
    bundle.create("one").good();
    bundle
        .say(&["start", "one"])
        .bad("The startContainer hook /bin/nothing-such failed");
    bundle.wait("one");
    assert_eq!(bundle.status("one"), "stopped");
    assert!(!log(&bundle).contains(&"program".to_owned()));
    bundle.say(&["delete", "one"]).good();
}

#[test]
fn a_hook_that_fails_afterwards_is_told_and_changes_nothing() {
    let mut bundle = with_hooks();
    for place in ["poststart", "poststop"] {
        bundle.config["hooks"][place] = json!([{"path": "/bin/false"}, {"path": "/bin/true"}]);
    }
    bundle.create("one").good();
    let said = bundle.say(&["start", "one"]);
    assert!(
        said.err.contains("Warning: The poststart hook /bin/false failed"),
        "{said:?}"
    );
    said.good();
    bundle.wait("one");
    let said = bundle.say(&["delete", "one"]);
    assert!(
        said.err.contains("Warning: The poststop hook /bin/false failed"),
        "{said:?}"
    );
    said.good();
    bundle.nothing_left();
}

#[test]
fn a_hook_that_takes_too_long_is_killed() {
    let mut bundle = Bundle::new("true");
    let slow: Value = json!([{"path": "/bin/sleep", "args": ["sleep", "1000"], "timeout": 1}]);
    bundle.config["hooks"] = json!({"createRuntime": slow});
    bundle.create("one").bad("It did not end in 1 s and was killed");
    bundle.nothing_left();
}
