//! A stock caller: podman with this runtime in place of runc or crun.

use std::path::Path;
use std::process::{Command, Output};

use tempfile::TempDir;

use crate::bundle::make_root;

/// Podman with stores of its own; its containers are gone when this is.
struct Podman {
    dir: TempDir,
}

impl Podman {
    fn new() -> Self {
        tools::need(&["podman"]);
        let dir = tempfile::tempdir().unwrap();
        let root = dir.path().join("rootfs");
        make_root(&root);
        // What podman mounts on; without these they would be made by whoever mounts.
        for folder in ["proc", "sys", "dev", "run", "etc"] {
            std::fs::create_dir(root.join(folder)).unwrap();
        }
        Self { dir }
    }

    fn path(&self) -> &Path {
        self.dir.path()
    }

    fn say(&self, words: &[&str]) -> Output {
        let mut podman = Command::new("podman");
        for (option, folder) in [("--root", "store"), ("--runroot", "run"), ("--tmpdir", "tmp")] {
            podman.arg(option).arg(self.path().join(folder));
        }
        podman.args(["--storage-driver", "vfs", "--cgroup-manager", "cgroupfs"]);
        podman.args([
            "--events-backend",
            "file",
            "--runtime",
            env!("CARGO_BIN_EXE_init"),
        ]);
        podman.args(words).output().unwrap()
    }

    /// `podman run`, without what it asks for by itself and not every machine that tests has: a network,
    /// a controller of version 2, higher limits of open files.
    fn run(&self, options: &[&str], program: &[&str]) -> Output {
        let root = self.path().join("rootfs");
        let mut words = vec!["run", "--network=none", "--pids-limit=-1"];
        words.extend(["--ulimit=nofile=1024:1024", "--ulimit=nproc=1024:1024"]);
        words.extend(options);
        words.extend(["--rootfs", root.to_str().unwrap()]);
        words.extend(program);
        self.say(&words)
    }

    #[track_caller]
    fn good(&self, words: &[&str]) -> String {
        let output = self.say(words);
        assert!(output.status.success(), "podman {words:?}: {output:?}");
        String::from_utf8(output.stdout).unwrap()
    }
}

impl Drop for Podman {
    fn drop(&mut self) {
        self.say(&["rm", "--all", "--force", "--time=0"]);
    }
}

#[test]
fn podman_runs_containers_and_gets_their_exit_codes() {
    let podman = Podman::new();
    let script = "echo hello; grep Seccomp: /proc/self/status; exit 5";
    let output = podman.run(&["--rm"], &["sh", "-c", script]);
    assert_eq!(
        (
            String::from_utf8_lossy(&output.stdout).as_ref(),
            output.status.code()
        ),
        ("hello\nSeccomp:\t2\n", Some(5)),
        "{output:?}"
    );
    let output = podman.run(&["--rm", "--tty"], &["stty", "size"]);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "24 80\r\n", "{output:?}");
    // Docker's and podman's codes for what is not there and for what may not be run.
    for (program, code) in [("nothing-such", 127), ("/tmp", 126)] {
        let output = podman.run(&["--rm"], &[program]);
        assert_eq!(output.status.code(), Some(code), "{output:?}");
    }
}

#[test]
fn podman_adds_processes_stops_and_removes() {
    let podman = Podman::new();
    let output = podman.run(&["--detach", "--name=one"], &["sleep", "1000"]);
    assert!(output.status.success(), "{output:?}");
    assert_eq!(podman.good(&["exec", "one", "cat", "/proc/1/comm"]), "sleep\n");
    assert_eq!(
        podman.say(&["exec", "one", "sh", "-c", "exit 4"]).status.code(),
        Some(4)
    );
    assert_eq!(podman.good(&["ps", "--format={{.Names}}"]), "one\n");
    podman.good(&["kill", "one"]);
    assert_eq!(podman.good(&["wait", "one"]), "137\n");
    podman.good(&["rm", "one"]);
    assert_eq!(podman.good(&["ps", "--all", "--quiet"]), "");
}
