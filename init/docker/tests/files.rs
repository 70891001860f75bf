//! `docker cp`, `docker diff` and `docker export`, with the docker command line.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};

use common::{Machine, with_machine};

/// A folder with a file, a program and a link, made on the client's side.
fn folder(machine: &Machine) -> String {
    let dir = machine.dir.join("things");
    fs::create_dir_all(dir.join("deep/er")).unwrap();
    fs::write(dir.join("deep/er/text"), "from outside\n").unwrap();
    fs::write(dir.join("program"), "#!/bin/sh\necho it runs\n").unwrap();
    fs::set_permissions(dir.join("program"), fs::Permissions::from_mode(0o755)).unwrap();
    symlink("deep/er/text", dir.join("link")).unwrap();
    dir.to_str().unwrap().to_owned()
}

#[test]
fn files_are_copied_both_ways_whether_a_container_runs_or_not() {
    with_machine(|machine| {
        let things = folder(machine);
        machine.out(&["run", "-d", "--name", "runs", "busybox", "sleep", "600"]);
        machine.out(&[
            "create",
            "--name",
            "waits",
            "busybox",
            "sh",
            "-c",
            "/things/program; cat /things/link",
        ]);
        for name in ["runs", "waits"] {
            machine.out(&["cp", &things, &format!("{name}:/")]);
            machine.out(&["cp", &format!("{things}/link"), &format!("{name}:/tmp")]);
            let back = machine.dir.join(name);
            machine.out(&["cp", &format!("{name}:/things/deep"), back.to_str().unwrap()]);
            assert_eq!(
                fs::read(back.join("er/text")).unwrap(),
                b"from outside\n",
                "{name}"
            );
            machine.out(&[
                "cp",
                "-L",
                &format!("{name}:/things/link"),
                &format!("{}/file", back.display()),
            ]);
            assert_eq!(fs::read(back.join("file")).unwrap(), b"from outside\n", "{name}");
        }
        assert_eq!(machine.out(&["start", "-a", "waits"]), "it runs\nfrom outside");
        let inside = [
            "exec",
            "runs",
            "sh",
            "-c",
            "/things/program; readlink /tmp/link; stat -c %u:%g /things",
        ];
        assert_eq!(machine.out(&inside), "it runs\ndeep/er/text\n0:0");
        machine.out(&["rm", "-f", "runs", "waits"]);
    });
}

#[test]
fn wrong_places_are_refused_in_dockers_words_and_nothing_leaves_the_container() {
    with_machine(|machine| {
        let things = folder(machine);
        machine.out(&["create", "--name", "one", "busybox", "true"]);
        let (_, text) = machine.fails(&["cp", "one:/nowhere", "-"]);
        assert!(text.contains("one:/nowhere"), "{text}");
        let (_, text) = machine.fails(&["cp", &things, "one:/nowhere/below"]);
        assert!(text.contains("o such"), "{text}");
        machine.out(&["create", "--name", "ro", "--read-only", "busybox", "true"]);
        let (_, text) = machine.fails(&["cp", &things, "ro:/"]);
        assert!(text.contains("read-only"), "{text}");
        // A link that leads out on the client's side leads to the container's own files.
        machine.out(&[
            "run",
            "--name",
            "trap",
            "busybox",
            "sh",
            "-c",
            "ln -s ../../../../../../etc /out",
        ]);
        let passwd = machine.out(&["cp", "trap:/out/passwd", "-"]);
        assert!(
            !passwd.contains("monobloc") && passwd.contains("root"),
            "{passwd}"
        );
        machine.out(&["rm", "one", "ro", "trap"]);
    });
}

#[test]
fn a_diff_tells_the_changes_and_an_export_has_them() {
    with_machine(|machine| {
        let script = "echo new > /tmp/new; rm /etc/group; echo more >> /etc/passwd";
        machine.out(&["run", "--name", "changed", "busybox", "sh", "-c", script]);
        let diff = machine.out(&["diff", "changed"]);
        let mut lines: Vec<&str> = diff.lines().collect();
        lines.sort_unstable();
        for line in ["A /tmp/new", "D /etc/group", "C /etc/passwd", "C /etc"] {
            assert!(lines.contains(&line), "{line} is not in {lines:?}");
        }
        assert!(!diff.contains("/proc") && !diff.contains("/etc/hosts"), "{diff}");
        let tar = machine.dir.join("export.tar");
        machine.out(&["export", "-o", tar.to_str().unwrap(), "changed"]);
        machine.out(&["import", tar.to_str().unwrap(), "again:1"]);
        let again = machine.out(&["run", "--rm", "again:1", "sh", "-c", "cat /tmp/new; ls /etc"]);
        assert!(again.starts_with("new") && !again.contains("group"), "{again}");
        machine.out(&["rm", "changed"]);
        machine.out(&["rmi", "again:1"]);
    });
}

#[test]
fn a_diff_tells_of_folders_what_docker_tells() {
    with_machine(|machine| {
        let diff = |script: &str| {
            machine.out(&["run", "--name", "one", "lib:1", "sh", "-c", script]);
            let diff = machine.out(&["diff", "one"]);
            machine.out(&["rm", "one"]);
            diff.split('\n').map(str::to_owned).collect::<Vec<_>>().join(" ")
        };
        // Nothing that the container's start needs is missing in it.
        let script =
            "mkdir -p /a/b /proc /dev /sys; cd /etc; touch hosts hostname resolv.conf; echo > /a/b/c";
        machine.out(&["run", "--name", "base", "busybox", "sh", "-c", script]);
        machine.out(&["commit", "base", "lib:1"]);
        assert_eq!(diff("true"), "");
        assert_eq!(diff("chmod 700 /etc"), "C /etc");
        assert_eq!(diff("chown 33:33 /a/b"), "C /a C /a/b");
        assert_eq!(diff("echo 2 > /a/b/c"), "C /a C /a/b C /a/b/c");
        assert_eq!(diff("rm /a/b/c"), "C /a C /a/b D /a/b/c");
        assert_eq!(diff("echo > /a/n"), "C /a A /a/n");
        // Copied up, and as they were: no change.
        assert_eq!(diff(": >> /a/b/c"), "");
        assert_eq!(diff("chmod 700 /a/b; chmod 755 /a/b"), "");
        assert_eq!(diff("rm -r /a/b; mkdir /a/b"), "C /a C /a/b D /a/b/c");
        machine.out(&["rm", "base"]);
        machine.out(&["rmi", "lib:1"]);
    });
}

#[test]
fn a_commit_keeps_what_was_changed_and_what_was_taken_away() {
    with_machine(|machine| {
        let script = "echo new > /tmp/new; rm /etc/group; rm -r /root; mkdir /root; echo own > /root/own";
        machine.out(&[
            "run", "--name", "work", "-e", "A=1", "busybox", "sh", "-c", script,
        ]);
        let change = ["-c", "CMD [\"cat\", \"/tmp/new\"]", "-c", "LABEL by=test"];
        let id = machine.out(
            &[
                &["commit", "-m", "why", "-a", "who"],
                &change[..],
                &["work", "kept:1"],
            ]
            .concat(),
        );
        assert!(id.starts_with("sha256:"), "{id}");
        assert_eq!(machine.out(&["run", "--rm", "kept:1"]), "new");
        let look = [
            "run",
            "--rm",
            "kept:1",
            "sh",
            "-c",
            "ls -a /root; ls /etc; echo A=$A; ls -d /proc/1",
        ];
        let seen = machine.out(&look);
        assert!(seen.contains("own") && !seen.contains("group"), "{seen}");
        assert!(seen.contains("A=1") && seen.contains("/proc/1"), "{seen}");
        let told = machine.out(&[
            "inspect",
            "-f",
            "{{.Config.Labels.by}} {{len .RootFS.Layers}} {{.Author}}",
            "kept:1",
        ]);
        assert_eq!(told, "test 2 who");
        assert!(machine.out(&["history", "kept:1"]).contains("why"));
        // Of a running container, and again on top.
        machine.out(&[
            "run",
            "-d",
            "--name",
            "runs",
            "kept:1",
            "sh",
            "-c",
            "echo 2 > /second; sleep 600",
        ]);
        machine.until(|| {
            machine
                .out(&["exec", "runs", "sh", "-c", "ls /"])
                .contains("second")
        });
        machine.out(&["commit", "runs", "kept:2"]);
        assert_eq!(
            machine.out(&["run", "--rm", "kept:2", "cat", "/second", "/tmp/new"]),
            "2\nnew"
        );
        machine.out(&["rm", "-f", "work", "runs"]);
        machine.out(&["rmi", "kept:2", "kept:1"]);
    });
}
