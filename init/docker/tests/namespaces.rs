//! Containers that share namespaces, and what they may not share.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::{Machine, with_machine};

fn run(machine: &Machine, options: &[&str], script: &str) -> String {
    machine.out(&[&["run", "--rm"], options, &["busybox", "sh", "-c", script]].concat())
}

fn refused(machine: &Machine, options: &[&str]) -> String {
    let (code, text) = machine.fails(&[&["run", "--rm"], options, &["busybox", "true"]].concat());
    assert_eq!(code, 125, "{text}");
    text
}

#[test]
fn containers_share_a_network_with_its_names_and_each_has_its_own_processes() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "server",
            "--hostname",
            "front",
            "busybox",
            "sleep",
            "600",
        ]);
        let address = "cat /sys/class/net/eth0/address";
        let of_server = machine.out(&["exec", "server", "sh", "-c", address]);
        let shared = ["--net", "container:server"];
        assert_eq!(run(machine, &shared, address), of_server);
        assert_eq!(run(machine, &shared, "hostname"), "front");
        assert!(run(machine, &shared, "cat /etc/hosts").contains("front"));
        assert_eq!(run(machine, &shared, "echo /proc/[0-9]*"), "/proc/1");
        // A low port of the shared network, and its loopback.
        let script = "echo hello | nc -l -p 80 & for try in $(seq 50); do nc 127.0.0.1 80 < /dev/null && break; sleep 0.1; done";
        assert_eq!(run(machine, &shared, script), "hello");
        assert_ne!(run(machine, &[], address), of_server);
        let text = refused(machine, &["--net", "container:server", "-p", "80:80"]);
        assert!(text.contains("conflicting options"), "{text}");
        machine.out(&["kill", "server"]);
        machine.out(&["wait", "server"]);
        let text = refused(machine, &shared);
        assert!(text.contains("non running container"), "{text}");
    });
}

#[test]
fn containers_share_memory_and_processes_if_the_one_lets_the_other() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "-d",
            "--name",
            "donor",
            "--ipc",
            "shareable",
            "busybox",
            "sh",
            "-c",
            "echo kept > /dev/shm/file; exec sleep 600",
        ]);
        machine.until(|| machine.out(&["exec", "donor", "sh", "-c", "cat /dev/shm/file || true"]) == "kept");
        let read = "cat /dev/shm/file && echo back >> /dev/shm/file";
        assert_eq!(run(machine, &["--ipc", "container:donor"], read), "kept");
        assert_eq!(
            machine.out(&["exec", "donor", "cat", "/dev/shm/file"]),
            "kept\nback"
        );
        let shared = ["--pid", "container:donor"];
        assert_eq!(run(machine, &shared, "cat /proc/1/comm"), "sleep");
        machine.out(&["run", "-d", "--name", "alone", "busybox", "sleep", "600"]);
        let text = refused(machine, &["--ipc", "container:alone"]);
        assert!(text.contains("non-shareable IPC"), "{text}");
        let text = refused(machine, &["--ipc", "container:donor", "--pid", "container:alone"]);
        assert!(text.contains("user namespace of its own"), "{text}");
        // A third joins both where the second has joined the first.
        machine.out(&[
            "run",
            "-d",
            "--name",
            "second",
            "--pid",
            "container:donor",
            "busybox",
            "sleep",
            "600",
        ]);
        let both = ["--net", "container:second", "--ipc", "container:donor"];
        assert_eq!(run(machine, &both, "head -n 1 /dev/shm/file"), "kept");
        let none = run(machine, &["--ipc", "none"], "test -d /dev/shm || echo none");
        assert_eq!(none, "none");
    });
}

#[test]
fn the_machines_own_namespaces_are_not_for_containers() {
    with_machine(|machine| {
        for option in ["--net", "--pid", "--ipc", "--uts", "--userns", "--cgroupns"] {
            let text = refused(machine, &[option, "host"]);
            assert!(text.contains("allow-host-privilege"), "{option}: {text}");
        }
    });
}

#[test]
fn a_privileged_container_has_all_powers_within_and_its_files_unmasked() {
    with_machine(|machine| {
        let script = "grep CapEff /proc/self/status; grep Seccomp: /proc/self/status; mount -t tmpfs none /tmp && echo mounted";
        let said = run(machine, &["--privileged"], script);
        assert_eq!(said, "CapEff:\t000001ffffffffff\nSeccomp:\t0\nmounted");
        let said = run(machine, &[], "grep Seccomp: /proc/self/status");
        assert_eq!(said, "Seccomp:\t2");
        machine.out(&["run", "-d", "--name", "plain", "busybox", "sleep", "600"]);
        let script = "grep CapEff /proc/self/status";
        let exec = ["exec", "--privileged", "plain", "sh", "-c", script];
        assert_eq!(machine.out(&exec), "CapEff:\t000001ffffffffff");
        let exec = ["exec", "plain", "sh", "-c", script];
        assert_eq!(machine.out(&exec), "CapEff:\t00000000a80425fb");
    });
}

#[test]
fn only_parameters_of_its_own_namespaces_are_set_for_a_container() {
    with_machine(|machine| {
        let options = [
            "--sysctl",
            "net.ipv4.ip_forward=1",
            "--sysctl",
            "kernel.msgmax=1234",
        ];
        let script = "cat /proc/sys/net/ipv4/ip_forward /proc/sys/kernel/msgmax";
        assert_eq!(run(machine, &options, script), "1\n1234");
        // Docker's own client refuses those that are the machine's, and the engine one of its network.
        let text = refused(machine, &["--sysctl", "net..core.somaxconn=1"]);
        assert!(text.contains("is not in a separate kernel namespace"), "{text}");
    });
}

#[test]
fn a_profile_of_system_calls_is_the_clients_own() {
    with_machine(|machine| {
        let dir = tempfile::tempdir().unwrap();
        let profile = dir.path().join("profile.json");
        std::fs::write(
            &profile,
            r#"{"defaultAction": "SCMP_ACT_ALLOW",
                "syscalls": [{"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 28}]}"#,
        )
        .unwrap();
        let option = format!("seccomp={}", profile.display());
        let said = run(
            machine,
            &["--security-opt", &option],
            "mkdir /tmp/x 2>&1; touch /tmp/y && echo touched",
        );
        assert!(
            said.contains("No space left") && said.ends_with("touched"),
            "{said}"
        );
        assert_eq!(run(machine, &[], "mkdir /tmp/x && echo made"), "made");
        std::fs::write(&profile, "{}").unwrap();
        let text = refused(machine, &["--security-opt", &option]);
        assert!(text.contains("Decoding seccomp profile failed"), "{text}");
    });
}

#[test]
fn names_and_groups_of_a_container_are_those_asked_for() {
    with_machine(|machine| {
        let options = ["--add-host", "box:host-gateway", "--add-host", "other:192.0.2.9"];
        let hosts = run(machine, &options, "cat /etc/hosts; ip route | grep default");
        let gateway = hosts
            .lines()
            .last()
            .and_then(|line| line.split(' ').nth(2))
            .unwrap();
        assert!(hosts.contains(&format!("{gateway}\tbox")), "{hosts}");
        assert!(hosts.contains("192.0.2.9\tother"), "{hosts}");
        let options = [
            "--dns",
            "192.0.2.1",
            "--dns-search",
            "example.org",
            "--dns-opt",
            "ndots:3",
        ];
        assert_eq!(
            run(machine, &options, "cat /etc/resolv.conf"),
            "nameserver 192.0.2.1\nsearch example.org\noptions ndots:3"
        );
        let options = [
            "--hostname",
            "name",
            "--domainname",
            "example.org",
            "--group-add",
            "4242",
        ];
        let script = "hostname; cat /proc/sys/kernel/domainname; id -G | tr ' ' '\\n' | grep 4242";
        assert_eq!(run(machine, &options, script), "name\nexample.org\n4242");
    });
}
