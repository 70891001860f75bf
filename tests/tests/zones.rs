//! What holds a zone in, and what it may still do: each check has a twin that lets the good case
//! through.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::sync::LazyLock;

use tests::{Boot, Docker, Machine, host};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

/// Runs a line of shell in a new zone.
#[track_caller]
fn sh(options: &str, script: &str) -> String {
    docker().ok(&format!("run --rm {options} busybox sh -c '{script}'"))
}

#[test]
fn root_in_a_zone_is_nobody_outside() {
    let map = sh("", "cat /proc/self/uid_map /proc/self/gid_map");
    for line in map.lines() {
        let fields = line
            .split_whitespace()
            .map(|field| field.parse::<u32>().unwrap())
            .collect::<Vec<_>>();
        assert!(
            matches!(fields[..], [0, outside, 65_536] if outside >= 65_536),
            "{map}"
        );
    }
    assert_eq!(sh("", "id -u; touch /file; stat -c %u:%g /file"), "0\n0:0");
}

#[test]
fn two_zones_have_different_ids() {
    docker().ok("run -d --name one-range busybox sleep 1000");
    let other = sh("", "cat /proc/self/uid_map");
    assert_ne!(docker().ok("exec one-range cat /proc/self/uid_map"), other);
    docker().ok("rm -f one-range");
}

#[test]
fn files_can_be_given_to_any_of_the_zones_users() {
    assert_eq!(
        sh("", "touch /file; chown 65534:7 /file; stat -c %u:%g /file"),
        "65534:7"
    );
}

#[test]
fn a_zone_sees_only_its_own_processes() {
    assert_eq!(
        sh("", "echo $$; ls -d /proc/[0-9]* | wc -l").lines().next(),
        Some("1")
    );
    let count = sh("", "sleep 100 & ls -d /proc/[0-9]* | wc -l")
        .parse::<u32>()
        .unwrap();
    assert!((3..=5).contains(&count), "{count} processes");
}

#[test]
fn every_namespace_is_the_zones_own() {
    docker().ok("run -d --name namespaces busybox sleep 1000");
    let links = "for n in user pid mnt uts ipc net cgroup; do readlink /proc/1/ns/$n; done";
    let one = docker().ok(&format!("exec namespaces sh -c '{links}'"));
    let other = sh("", links);
    assert_eq!((one.lines().count(), other.lines().count()), (7, 7), "{one}");
    for (one, other) in one.lines().zip(other.lines()) {
        assert_ne!(one, other);
    }
    assert_eq!(
        docker().ok(&format!(
            "exec namespaces sh -c '{}'",
            links.replace("/1/", "/self/")
        )),
        one,
        "exec joins them all"
    );
    docker().ok("rm -f namespaces");
}

#[test]
fn capabilities_are_dockers_and_can_be_dropped_and_added() {
    let caps = |options: &str| {
        sh(
            options,
            "grep -E \"Cap(Eff|Bnd)\" /proc/self/status | cut -f2 | sort -u",
        )
    };
    assert_eq!(caps(""), "00000000a80425fb");
    assert_eq!(caps("--cap-drop ALL"), "0000000000000000");
    assert_eq!(caps("--cap-drop ALL --cap-add NET_ADMIN"), "0000000000001000");
    assert_eq!(
        sh("-u 1000", "grep CapEff /proc/self/status | cut -f2"),
        "0000000000000000"
    );
}

#[test]
fn the_default_filter_refuses_new_namespaces_and_lets_ordinary_calls_through() {
    assert_eq!(sh("", "grep Seccomp: /proc/self/status | cut -f2"), "2");
    assert!(
        docker()
            .fails("run --rm busybox unshare -U true")
            .contains("not permitted")
    );
    assert!(
        docker()
            .fails("run --rm busybox mount -t tmpfs none /tmp")
            .contains("denied")
    );
    assert_eq!(sh("", "true | cat; (exec true) && echo fine"), "fine");
}

#[test]
fn no_new_privileges_is_set_when_asked() {
    let flag = |options: &str| sh(options, "grep NoNewPrivs /proc/self/status | cut -f2");
    assert_eq!(flag("--security-opt no-new-privileges"), "1");
    assert_eq!(flag(""), "0");
}

#[test]
fn kernel_settings_and_secrets_are_out_of_reach() {
    assert_eq!(
        sh("", "echo 1 > /proc/sys/kernel/panic || echo refused")
            .lines()
            .last(),
        Some("refused")
    );
    assert_eq!(
        sh("", "echo c > /proc/sysrq-trigger || echo refused")
            .lines()
            .last(),
        Some("refused")
    );
    assert_eq!(
        sh("", "wc -c < /proc/kcore; mkdir /sys/fs/cgroup/x || echo refused")
            .lines()
            .last(),
        Some("refused")
    );
    assert_eq!(sh("", "wc -c < /proc/keys"), "0");
    assert_eq!(sh("", "grep -c . /proc/uptime"), "1");
}

#[test]
fn the_devices_are_those_of_a_container_and_no_disk() {
    let devices = sh("", "ls /dev");
    let expected = [
        "fd", "full", "mqueue", "null", "ptmx", "pts", "random", "shm", "stderr", "stdin", "stdout", "tty",
        "urandom", "zero",
    ];
    for device in devices.lines() {
        assert!(
            expected.contains(&device) || device == "console" || device == "core",
            "/dev/{device}"
        );
    }
    assert_eq!(
        sh(
            "",
            "echo x > /dev/null; head -c 3 /dev/zero | wc -c; echo s > /dev/shm/f; cat /dev/shm/f"
        ),
        "3\ns"
    );
    assert!(
        docker()
            .fails("run --rm busybox mknod /disk b 254 0")
            .contains("not permitted")
    );
}

#[test]
fn memory_is_limited_and_what_takes_more_is_killed() {
    assert_eq!(sh("-m 48m", "cat /sys/fs/cgroup/memory.max"), "50331648");
    // Without a limit it is the machine's, less what it leaves to itself and to others.
    let most: u64 = sh("", "cat /sys/fs/cgroup/memory.max").parse().unwrap();
    assert!((512 << 20..900 << 20).contains(&most), "{most}");
    let hungry = |name: &str, size: &str| {
        let script = format!(
            "head -c {size} /dev/zero | tail > /dev/null; test \"$(cat /sys/fs/cgroup/memory.events | grep ^oom_kill | cut -d\" \" -f2)\" = 0"
        );
        docker()
            .outcome_of(
                &format!("run --name {name} -m 48m --memory-swap 48m busybox sh -c '{script}'"),
                b"",
            )
            .code
    };
    assert_eq!(hungry("modest", "8m"), 0);
    assert_ne!(hungry("greedy", "100m"), 0);
    let killed = docker().outcome_of("run --name eaten -m 48m busybox tail /dev/zero", b"");
    assert_eq!(killed.code, 137, "{killed}");
    assert_eq!(
        docker().ok("inspect -f '{{.State.OOMKilled}}' eaten modest"),
        "true\nfalse"
    );
    docker().ok("rm modest greedy eaten");
}

#[test]
fn processes_are_limited() {
    assert_eq!(sh("--pids-limit 10", "cat /sys/fs/cgroup/pids.max"), "10");
    let fork = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do sleep 50 & done; echo all";
    assert_eq!(sh("--pids-limit 30", fork), "all");
    let refused = docker().outcome_of(&format!("run --rm --pids-limit 10 busybox sh -c '{fork}'"), b"");
    assert!(refused.code != 0 && refused.stderr.contains("fork"), "{refused}");
}

#[test]
fn processors_are_limited() {
    assert_eq!(sh("--cpus 0.5", "cat /sys/fs/cgroup/cpu.max"), "50000 100000");
    assert_eq!(sh("", "cat /sys/fs/cgroup/cpu.max"), "max 100000");
}

#[test]
fn resource_limits_are_as_asked() {
    assert_eq!(
        sh("--ulimit nofile=321:654", "ulimit -Sn; ulimit -Hn"),
        "321\n654"
    );
}

/// Starts a container that serves a page with its own host name on port 80, and waits until it does.
#[track_caller]
fn serve(name: &str, options: &str) {
    let script = "mkdir /www; hostname > /www/index.html; httpd -p 80 -h /www; echo ready; exec sleep 1000";
    docker().ok(&format!(
        "run -d --name {name} -h {name} {options} busybox sh -c '{script}'"
    ));
    docker().follow(&format!("logs -f {name}")).expect("ready");
}

#[test]
fn a_zone_has_an_address_of_its_own_and_reaches_its_neighbour() {
    serve("neighbour", "");
    let address = docker().ok("inspect -f '{{.NetworkSettings.IPAddress}}' neighbour");
    assert!(address.starts_with("172.17."), "{address}");
    let told = docker().ok("exec neighbour ip -4 -o addr show eth0");
    assert!(told.contains(&format!("inet {address}/16")), "{told}");
    assert_eq!(sh("", &format!("wget -q -O - http://{address}/")), "neighbour");
    assert_eq!(
        sh("", &format!("ping -c 1 -W 5 {address} > /dev/null && echo up")),
        "up"
    );
    docker().ok("rm -f neighbour");
}

#[test]
fn a_zone_without_a_network_has_only_its_loopback() {
    assert_eq!(
        sh(
            "--network none",
            "ls /sys/class/net; ping -c 1 -W 5 127.0.0.1 > /dev/null && echo up"
        ),
        "lo\nup"
    );
    docker().fails("run --rm --network none busybox ping -c 1 -W 1 172.17.0.1");
}

#[test]
fn a_zone_reaches_the_world_outside_by_nat() {
    let server = host::Server::answering("hello from outside");
    assert_eq!(
        sh("", &format!("wget -q -O - http://10.0.2.2:{}/", server.port())),
        "hello from outside"
    );
}

#[test]
fn name_files_are_written_for_the_zone() {
    assert_eq!(sh("-h there", "cat /etc/hostname"), "there");
    let hosts = sh("-h there --add-host friend:10.9.8.7", "cat /etc/hosts");
    assert!(hosts.contains("127.0.0.1") && hosts.contains("there"), "{hosts}");
    assert!(
        hosts
            .lines()
            .any(|line| line.split_whitespace().eq(["10.9.8.7", "friend"])),
        "{hosts}"
    );
    assert!(sh("", "cat /etc/resolv.conf").contains("nameserver "));
    assert_eq!(
        sh("--dns 10.1.1.1", "grep nameserver /etc/resolv.conf"),
        "nameserver 10.1.1.1"
    );
}

#[test]
fn a_published_port_answers_on_this_machine() {
    let port = MACHINE.forwarded(8080);
    serve("published", "-p 8080:80");
    assert_eq!(docker().ok("port published"), "80/tcp -> 0.0.0.0:8080");
    assert_eq!(host::get(port, "/").unwrap(), "published\n");
    docker().ok("rm -f published");
    assert!(
        host::get(port, "/").is_err(),
        "the port is closed with its container"
    );
}

#[test]
fn a_published_port_is_reached_from_a_neighbour_through_the_machine() {
    serve("hairpin", "-p 8081:80");
    assert_eq!(sh("", "wget -q -O - http://172.17.0.1:8081/"), "hairpin");
    docker().ok("rm -f hairpin");
}

#[test]
fn a_port_can_be_published_once() {
    docker().ok("run -d --name first -p 8082:80 busybox sleep 1000");
    let refusal = docker().fails("run -d --name second -p 8082:80 busybox sleep 1000");
    assert!(refusal.contains("8082"), "{refusal}");
    docker().ok("rm -f first");
    docker().ok("start second");
    docker().ok("rm -f second");
}
