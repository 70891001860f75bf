//! The life cycle, and what is said to those who use it wrongly.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::process::Command;

use serde_json::{Value, json};

use crate::bundle::{Bundle, own_cgroup};

/// Creates, looks, starts, looks, kills, looks, deletes.
fn whole_life(bundle: &Bundle) {
    bundle
        .create_with(&["create", "-b", ".", "--pid-file", "pid", "one"])
        .good();
    let state = bundle.state("one");
    assert_eq!(state["status"], "created");
    assert_eq!(state["id"], "one");
    let real = fs::canonicalize(bundle.path()).unwrap();
    assert_eq!(state["bundle"], json!(real));
    let pid = state["pid"].to_string();
    assert_eq!(fs::read_to_string(bundle.path().join("pid")).unwrap(), pid);
    assert_eq!(bundle.out(), "", "nothing of it runs yet");
    bundle.say(&["start", "one"]).good();
    assert_eq!(bundle.status("one"), "running");
    bundle.say(&["delete", "one"]).bad("is running, not stopped");
    assert_eq!(bundle.status("one"), "running");
    bundle.say(&["kill", "one", "KILL"]).good();
    bundle.wait("one");
    assert_eq!(bundle.status("one"), "stopped");
    bundle.say(&["kill", "one", "KILL"]).bad("not running");
    bundle.say(&["delete", "one"]).good();
    bundle.say(&["state", "one"]).bad("does not exist");
    bundle.nothing_left();
}

#[test]
fn a_bundle_of_crun_lives_from_create_to_delete() {
    whole_life(&Bundle::new("sleep 1000"));
}

#[test]
fn a_bundle_with_a_user_namespace_lives_from_create_to_delete() {
    whole_life(&Bundle::new("sleep 1000").with_users());
}

#[test]
fn a_bundle_of_umoci_lives_from_create_to_delete() {
    tools::need(&["umoci"]);
    for rootless in [false, true] {
        let source = Bundle::new("true");
        let umoci = |words: &[&str]| {
            let done = Command::new("umoci")
                .args(words)
                .current_dir(source.path())
                .output();
            let done = done.unwrap();
            assert!(
                done.status.success(),
                "umoci {words:?}: {}",
                String::from_utf8_lossy(&done.stderr)
            );
        };
        umoci(&["init", "--layout", "images"]);
        umoci(&["new", "--image", "images:box"]);
        umoci(&["insert", "--image", "images:box", "rootfs", "/"]);
        umoci(&[
            "config",
            "--image",
            "images:box",
            "--config.cmd",
            "sleep",
            "--config.cmd",
            "1000",
            "--config.env",
            "PATH=/bin",
        ]);
        let mut unpack = vec!["unpack", "--image", "images:box", "unpacked"];
        if rootless {
            unpack.insert(1, "--rootless");
        }
        umoci(&unpack);
        let config = fs::read(source.path().join("unpacked/config.json")).unwrap();
        let config: Value = serde_json::from_slice(&config).unwrap();
        assert_eq!(config["process"]["args"], json!(["sleep", "1000"]));
        let mut bundle = Bundle::new("true");
        fs::remove_dir_all(bundle.path().join("rootfs")).unwrap();
        fs::rename(
            source.path().join("unpacked/rootfs"),
            bundle.path().join("rootfs"),
        )
        .unwrap();
        bundle.config = config;
        bundle.config["linux"]["cgroupsPath"] = json!(own_cgroup());
        // Nobody takes a terminal here.
        bundle.config["process"]["terminal"] = json!(false);
        whole_life(&bundle);
    }
}

#[test]
fn a_container_prints_where_its_creator_did_and_its_exit_code_comes_from_run() {
    let bundle = Bundle::new("echo out; echo err >&2; hostname; exit 7");
    let said = bundle.run();
    assert_eq!(
        (said.code, said.out.as_str(), said.err.as_str()),
        (7, "out\ncrun\n", "err")
    );
}

#[test]
fn wrong_usage_is_told_and_leaves_nothing() {
    let mut bundle = Bundle::new("sleep 1000");
    for command in ["state", "start", "kill", "delete"] {
        bundle.say(&[command, "nobody"]).bad("does not exist");
        bundle.say(&[command]).bad("Say the id");
    }
    bundle.say(&["delete", "--force", "nobody"]).good();
    bundle.say(&["fly", "one"]).bad("There is no command");
    bundle.say(&["state", "--fly", "one"]).bad("There is no option");
    bundle.say(&["state", "one", "two"]).bad("too much");
    bundle.say(&["state", "../one"]).bad("is no id");
    bundle
        .say(&["--systemd-cgroup", "state", "one"])
        .bad("without systemd");
    bundle
        .create_with(&["create", "--bundle", "nowhere", "one"])
        .bad("Cannot find the bundle");
    bundle
        .create_with(&["create", "--no-pivot", "one"])
        .bad("--no-pivot");

    bundle.create("one").good();
    bundle.create("one").bad("There is a container one already");
    bundle.say(&["delete", "one"]).bad("is created, not stopped");
    bundle.say(&["kill", "one", "FLY"]).bad("There is no signal");
    bundle.say(&["start", "one"]).good();
    bundle.say(&["start", "one"]).bad("only a created one");
    bundle.say(&["delete", "--force", "one"]).good();
    bundle.nothing_left();

    bundle.config["linux"]["intelRdt"] = json!({"closID": "x"});
    bundle.create("two").bad("linux.intelRdt");
    bundle.config = json!({"ociVersion": "2.0.0"});
    bundle.create("two").bad("is unknown");
    bundle.config = json!("nothing");
    bundle.create("two").bad("is no configuration");
    bundle.nothing_left();
}

#[test]
fn what_cannot_be_run_is_told_by_create() {
    let mut bundle = Bundle::new("");
    for (program, words) in [
        ("nothing-such", "executable file not found in $PATH"),
        ("/bin/nothing-such", "no such file or directory"),
        ("/tmp", "permission denied"),
    ] {
        bundle.config["process"]["args"] = json!([program]);
        let said = bundle.create("one");
        assert!(said.code != 0 && said.err.contains(words), "{said:?}");
        bundle.nothing_left();
    }
    bundle.config["process"]["args"] = json!(["true"]);
    bundle.config["mounts"].as_array_mut().unwrap().push(json!({
        "destination": "/data", "type": "bind", "source": "/nothing-such", "options": ["bind"],
    }));
    bundle.create("one").bad("Cannot bind /nothing-such");
    bundle.config["mounts"][0]["options"] = json!(["nothing-such"]);
    bundle.config["mounts"].as_array_mut().unwrap().pop();
    bundle.create("one").bad("Cannot mount proc on /proc");
    bundle.nothing_left();
}

#[test]
fn errors_stand_in_the_log_as_callers_read_them() {
    let bundle = Bundle::new("true");
    let log = bundle.path().join("log");
    let path = log.to_str().unwrap();
    bundle
        .say(&["--log", path, "--log-format=json", "start", "nobody"])
        .bad("does not exist");
    let line: Value = serde_json::from_str(&fs::read_to_string(&log).unwrap()).unwrap();
    assert_eq!(line["level"], "error");
    assert!(line["msg"].as_str().unwrap().contains("does not exist"), "{line}");
    assert!(line["time"].as_str().unwrap().contains('T'), "{line}");
}

#[test]
fn a_signal_reaches_the_container_and_all_of_it() {
    let bundle = Bundle::new("trap 'echo caught; exit 0' USR1; echo ready; while true; do sleep 0.1; done");
    let (mut read, write) = std::io::pipe().unwrap();
    bundle.write();
    let mut create = bundle.command(&["create", "one"]);
    assert!(create.stdout(write).status().unwrap().success());
    drop(create);
    bundle.say(&["start", "one"]).good();
    crate::bundle::read_until(&mut read, "ready");
    bundle.say(&["kill", "one", "SIGUSR1"]).good();
    crate::bundle::read_until(&mut read, "caught");
    bundle.wait("one");
    bundle.say(&["delete", "one"]).good();

    let bundle = Bundle::new("sleep 1000 & sleep 1000");
    bundle.create("one").good();
    bundle.say(&["start", "one"]).good();
    bundle.say(&["kill", "--all", "one", "9"]).good();
    bundle.wait("one");
    bundle.say(&["delete", "one"]).good();
}

#[test]
fn what_it_does_and_its_version_are_told() {
    let bundle = Bundle::new("true");
    let features: Value = serde_json::from_str(&bundle.say(&["features"]).good()).unwrap();
    assert_eq!(features["ociVersionMin"], "1.0.0");
    assert!(
        features["hooks"]
            .as_array()
            .unwrap()
            .contains(&json!("createContainer"))
    );
    assert!(
        features["linux"]["capabilities"]
            .as_array()
            .unwrap()
            .contains(&json!("CAP_BPF"))
    );
    assert!(bundle.say(&["--version"]).good().contains("spec: 1."));
    assert_eq!(bundle.say(&["list", "--format", "json"]).good(), "[]\n");
    bundle.create("one").good();
    assert!(bundle.say(&["list"]).good().contains("created"));
    assert_eq!(bundle.say(&["list", "-q"]).good(), "one\n");
    assert!(fs::metadata("/dev/null").unwrap().file_type().is_char_device());
}
