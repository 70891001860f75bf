//! The newcomer's way: the real `monobloc` command from `up` to `down`, in folders of its own.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::ffi::OsStr;
use std::time::Duration;

use tempfile::TempDir;
use tests::Outcome;
use tests::process::{run, words};
use tests::setup::{cache, docker_program, monobloc_program, tools};

const LONG: Duration = Duration::from_secs(900);

/// A person with a home of his own.
struct Person {
    home: TempDir,
    path: String,
}

impl Person {
    fn new() -> Self {
        tools();
        let path = format!(
            "{}:{}",
            docker_program().parent().unwrap().display(),
            std::env::var("PATH").unwrap()
        );
        Self {
            home: tempfile::tempdir().unwrap(),
            path,
        }
    }

    fn monobloc(&self, line: &str) -> Outcome {
        let folder = |name: &str| self.home.path().join(name);
        let (data, state, docker) = (folder("data"), folder("state"), folder("docker"));
        // The cache is the one of this machine's user: what it holds is the same for everyone.
        let cache = cache().parent().and_then(|path| path.parent()).unwrap();
        let environment: &[(&str, &OsStr)] = &[
            ("HOME", self.home.path().as_ref()),
            ("XDG_DATA_HOME", data.as_ref()),
            ("XDG_STATE_HOME", state.as_ref()),
            ("XDG_CACHE_HOME", cache.as_ref()),
            ("DOCKER_CONFIG", docker.as_ref()),
            ("PATH", self.path.as_ref()),
        ];
        run(LONG, monobloc_program(), words(line), environment, b"")
    }

    fn docker(&self, line: &str) -> Outcome {
        let config = self.home.path().join("docker");
        run(
            LONG,
            docker_program(),
            words(line),
            &[
                ("DOCKER_CONFIG", config.as_ref()),
                ("HOME", self.home.path().as_ref()),
            ],
            b"",
        )
    }
}

/// A machine that a failed test left is taken down with its person.
impl Drop for Person {
    fn drop(&mut self) {
        let _ = self.monobloc("down");
    }
}

#[test]
fn up_brings_a_machine_that_docker_knows_and_down_takes_it_away() {
    let person = Person::new();
    let said = person.monobloc("up");
    assert!(said.code == 0, "{said}");
    assert!(format!("{said}").contains("docker --context monobloc"), "{said}");

    let again = person.monobloc("up");
    assert!(
        again.code == 0 && format!("{again}").contains("running"),
        "{again}"
    );

    assert_eq!(
        person
            .docker("--context monobloc run --rm busybox echo hello")
            .ok(),
        "hello"
    );
    let status = person.monobloc("status --json").ok();
    let status: serde_json::Value = serde_json::from_str(&status).unwrap();
    assert!(status.to_string().contains("running"), "{status}");
    assert!(person.monobloc("logs").ok().contains("monobloc: "));

    let down = person.monobloc("down");
    assert!(down.code == 0, "{down}");
    let status = person.monobloc("status");
    assert!(!format!("{status}").contains("panicked"), "{status}");
    assert_ne!(person.docker("--context monobloc version").code, 0);
}

#[test]
fn without_qemu_up_says_what_to_install_and_leaves_nothing() {
    let mut person = Person::new();
    person.path = "/nowhere".to_owned();
    let said = person.monobloc("up").failed();
    assert!(
        said.contains("apt-get install") || said.contains("qemu-system-x86"),
        "{said}"
    );
    let left = std::fs::read_dir(person.home.path().join("state/monobloc")).map_or(0, Iterator::count);
    assert_eq!(left, 0, "a machine that never was is registered");
}

#[test]
fn doctor_tells_what_this_machine_has() {
    let person = Person::new();
    let told = person.monobloc("doctor --json");
    let told: serde_json::Value = serde_json::from_str(&told.stdout).unwrap();
    assert!(told.to_string().contains("qemu"), "{told}");
}

#[test]
fn what_needs_a_machine_says_that_there_is_none() {
    let person = Person::new();
    for line in ["console", "logs"] {
        let said = person.monobloc(line).failed();
        assert!(said.contains("up"), "`monobloc {line}` says: {said}");
    }
}
