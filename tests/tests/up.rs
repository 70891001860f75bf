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
        for machine in ["quickstart", "second"] {
            let _ = self.monobloc(&format!("down {machine}"));
        }
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

/// A recipe like the quick start's by another name, in the person's home.
fn second_recipe(person: &Person) -> String {
    let text = std::fs::read_to_string(tests::setup::workspace().join("images/quickstart.toml")).unwrap();
    let path = person.home.path().join("second.toml");
    let second = text.replace("name = \"quickstart\"", "name = \"second\"");
    assert_ne!(second, text);
    std::fs::write(&path, second).unwrap();
    path.to_str().unwrap().to_owned()
}

#[test]
fn zones_and_volumes_go_from_one_machine_to_another() {
    let person = Person::new();
    person.monobloc("up").ok();
    let said = person.monobloc(&format!("up {}", second_recipe(&person)));
    assert!(said.code == 0, "{said}");
    let one = |line: &str| person.docker(&format!("--context monobloc {line}"));
    let two = |line: &str| person.docker(&format!("--context monobloc-second {line}"));
    one("run -d --name web -v data:/data busybox sh -c '[ -e /kept ] || echo first > /kept; echo first > /data/kept; sync; exec sleep 9999'").ok();
    let kept = one("exec web sh -c 'until [ -s /data/kept ]; do :; done; cat /kept'").ok();
    assert_eq!(kept, "first");

    // Straight to the other machine, whole and then what has changed.
    person.monobloc("snapshot create web@monday -m quickstart").ok();
    person.monobloc("send web@monday -m quickstart --to second").ok();
    person
        .monobloc("send --volume data -m quickstart --to second --name data2")
        .ok();
    two("start web").ok();
    assert_eq!(two("exec web cat /kept").ok(), "first");
    assert_eq!(
        two("run --rm -v data2:/data busybox cat /data/kept").ok(),
        "first"
    );
    one("exec web sh -c 'echo second > /kept; sync'").ok();
    person.monobloc("snapshot create web@tuesday -m quickstart").ok();
    person
        .monobloc("send web@tuesday --from monday -m quickstart --to second")
        .ok();
    two("stop -t 0 web").ok();
    person
        .monobloc("snapshot rollback web@tuesday --yes -m second")
        .ok();
    two("start web").ok();
    assert_eq!(two("exec web cat /kept").ok(), "second");

    // By way of a file, which is refused when it was changed on the way.
    let file = person.home.path().join("web.tuesday");
    let file = file.to_str().unwrap();
    person
        .monobloc(&format!("send web@tuesday -m quickstart -o {file}"))
        .ok();
    let mut bytes = std::fs::read(file).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle] ^= 1;
    std::fs::write(format!("{file}.bad"), &bytes).unwrap();
    let refusal = person
        .monobloc(&format!("receive --name web3 {file}.bad -m second"))
        .failed();
    assert!(refusal.contains("digest"), "{refusal}");
    assert!(!two("ps -a --format {{.Names}}").ok().contains("web3"));
    person
        .monobloc(&format!("receive --name web3 {file} -m second"))
        .ok();
    two("start web3").ok();
    assert_eq!(two("exec web3 cat /kept").ok(), "second");
    for name in ["quickstart", "second"] {
        person.monobloc(&format!("down {name}")).ok();
    }
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
