//! Zones in the namespaces of other zones and of the machine.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use common::{Bench, bench, read_all, spec};
use zones::{Capability, CapabilitySet, IdMap, Namespace, Namespaces, Node, Process, Stdio, ZoneSpec};

/// A zone that only waits, and ends with the input that it is given.
async fn donor(bench: &Bench) -> (Process, Stdio) {
    let mut donor = spec(&["cat"]);
    donor.process.stdin = true;
    bench.start(donor).await.unwrap()
}

async fn end(bench: &Bench, (process, stdio): (Process, Stdio)) {
    drop(stdio);
    process.signal(libc::SIGKILL).unwrap();
    bench.zones.exited(&process.key).await.unwrap();
    bench.zones.acknowledge_zone(&process.key).await.unwrap();
}

fn of(process: &Process) -> Namespace {
    Namespace::Of(process.pidfd.try_clone().unwrap())
}

/// The links of a process's namespaces, as the machine sees them.
fn link(process: &Process, name: &str) -> String {
    let path = format!("/proc/{}/ns/{name}", process.pid);
    std::fs::read_link(path).unwrap().display().to_string()
}

fn waiting(namespaces: Namespaces) -> ZoneSpec {
    let mut waiting = spec(&["sleep", "1000"]);
    waiting.namespaces = namespaces;
    waiting
}

#[tokio::test]
async fn a_zone_has_the_namespaces_of_another_that_it_joins_and_its_own_besides() {
    let bench = bench().await;
    let donor = donor(&bench).await;
    let joined = Namespaces {
        user: of(&donor.0),
        network: of(&donor.0),
        ipc: of(&donor.0),
        ..Namespaces::default()
    };
    let joiner = bench.start(waiting(joined)).await.unwrap();
    for same in ["user", "net", "ipc"] {
        assert_eq!(link(&joiner.0, same), link(&donor.0, same), "{same}");
    }
    for other in ["pid", "mnt", "uts", "cgroup"] {
        assert_ne!(link(&joiner.0, other), link(&donor.0, other), "{other}");
    }
    end(&bench, joiner).await;
    end(&bench, donor).await;
}

#[tokio::test]
async fn a_zone_that_joins_has_power_over_the_network_that_it_shares() {
    let bench = bench().await;
    let donor = donor(&bench).await;
    let script = "echo /proc/[0-9]*; echo 1 > /proc/sys/net/ipv4/ip_forward; ls /sys/class/net; id -u";
    let mut joiner = spec(&["sh", "-c", script]);
    joiner.read_only_paths.clear();
    joiner.process.capabilities = CapabilitySet::DEFAULT.with(Capability::NetAdmin);
    joiner.namespaces = Namespaces {
        user: of(&donor.0),
        network: of(&donor.0),
        ..Namespaces::default()
    };
    joiner.sysctls = vec![("net.ipv4.ip_unprivileged_port_start".to_owned(), "77".to_owned())];
    let (text, exit) = bench.run(joiner).await;
    assert_eq!((text.as_str(), exit.code), ("/proc/1\nlo\n0\n", 0));
    end(&bench, donor).await;
}

#[tokio::test]
async fn a_zone_sees_the_processes_of_another_whose_pid_namespace_it_joins() {
    let bench = bench().await;
    let donor = donor(&bench).await;
    let mut joiner = spec(&["sh", "-c", "cat /proc/1/comm; kill -0 1 && echo reachable"]);
    joiner.namespaces = Namespaces {
        user: of(&donor.0),
        pid: of(&donor.0),
        ..Namespaces::default()
    };
    let (text, exit) = bench.run(joiner).await;
    assert_eq!((text.as_str(), exit.code), ("cat\nreachable\n", 0));
    end(&bench, donor).await;
}

#[tokio::test]
async fn what_a_zone_leaves_behind_in_anothers_pid_namespace_ends_with_it() {
    let bench = bench().await;
    let donor = donor(&bench).await;
    let mut joiner = spec(&["sh", "-c", "sleep 1002 > /dev/null 2>&1 & echo started"]);
    joiner.namespaces = Namespaces {
        user: of(&donor.0),
        pid: of(&donor.0),
        ..Namespaces::default()
    };
    let id = joiner.id.clone();
    let (text, _) = bench.run(joiner).await;
    assert_eq!(text, "started\n");
    // Its cgroup is gone, which it could not be with a process in it.
    assert!(!bench.zones.cgroups().path(&id).exists());
    end(&bench, donor).await;
}

#[tokio::test]
async fn a_zone_of_the_machine_is_in_its_namespaces_and_can_be_entered() {
    let bench = bench().await;
    let own = |name: &str| {
        let path = format!("/proc/self/ns/{name}");
        std::fs::read_link(path).unwrap().display().to_string()
    };
    let mut waiting = waiting(Namespaces {
        user: Namespace::Host,
        pid: Namespace::Host,
        ipc: Namespace::Host,
        network: Namespace::Host,
        uts: Namespace::Host,
        cgroup: Namespace::Host,
    });
    waiting.ids = IdMap::HOST;
    let zone = bench.start(waiting).await.unwrap();
    for name in ["user", "pid", "ipc", "net", "uts", "cgroup"] {
        assert_eq!(link(&zone.0, name), own(name), "{name}");
    }
    assert_ne!(link(&zone.0, "mnt"), own("mnt"));
    let added = common::process(&["cat", "/proc/self/uid_map"]);
    let key = format!("{}.added", zone.0.key);
    let (_, stdio) = bench
        .zones
        .add(&zone.0, &key, &added, IdMap::HOST)
        .await
        .unwrap()
        .release()
        .await
        .unwrap();
    let text = read_all(stdio).await;
    let map: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(map[..2], ["0", "0"], "{text}");
    bench.zones.exited(&key).await.unwrap();
    bench.zones.acknowledge(&key).await.unwrap();
    end(&bench, zone).await;
}

#[tokio::test]
async fn a_zone_of_the_machine_can_have_device_nodes_of_its_own_and_opens_what_its_rules_let_it() {
    let bench = bench().await;
    let script = "head -c 3 /dev/own/zero | wc -c; ls -l /dev/own/zero | cut -c 1-10; : < /dev/refused";
    let mut zone = spec(&["sh", "-c", &format!("exec 2>&1; {script}")]);
    zone.namespaces.user = Namespace::Host;
    zone.ids = IdMap::HOST;
    let node = |path: &str, (major, minor)| Node {
        path: path.to_owned(),
        mode: libc::S_IFCHR | 0o640,
        device: rustix::fs::makedev(major, minor),
        uid: 0,
        gid: 0,
    };
    zone.nodes = vec![node("/dev/own/zero", (1, 5)), node("/dev/refused", (10, 237))];
    let (text, _) = bench.run(zone).await;
    let lines: Vec<&str> = text.lines().collect();
    assert_eq!(lines[..2], ["3", "crw-r-----"], "{text}");
    assert!(lines[2].contains("not permitted"), "{text}");
}
