//! One test for each wall around a zone, and in it what the wall lets through: one machine, many tests.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeSet;
use std::sync::LazyLock;

use tests::{Boot, Docker, Machine};

static MACHINE: LazyLock<Machine> = LazyLock::new(|| Boot::quickstart().blank_disk().start());

fn docker() -> &'static Docker {
    MACHINE.docker()
}

/// Runs a line of shell in a new zone; what it says on both outputs, whether it fails or not.
fn sh(options: &str, script: &str) -> String {
    let line = format!("run --rm {options} busybox sh -c 'exec 2>&1; {script}'");
    docker().outcome_of(&line, b"").stdout
}

/// All capabilities and no filter: what is refused then is refused by the walls alone.
const POWERS: &str = "--privileged";

/// First id of a running container's range outside.
fn first_id(name: &str) -> u32 {
    let map = docker().ok(&format!("exec {name} cat /proc/self/uid_map"));
    let numbers: Vec<u32> = map
        .split_whitespace()
        .map(|number| number.parse().unwrap())
        .collect();
    assert_eq!((numbers[0], numbers[2]), (0, 65_536), "{map}");
    numbers[1]
}

#[test]
fn every_zone_has_65536_ids_that_no_other_has_and_keeps_them() {
    let names = ["ids-a", "ids-b", "ids-c"];
    for name in names {
        docker().ok(&format!("run -d --name {name} busybox sleep 1000"));
    }
    let ids = names.map(first_id);
    let ranges: BTreeSet<u32> = ids.iter().map(|first| first / 65_536).collect();
    assert_eq!(ranges.len(), 3, "{ids:?}");
    // One that goes does not move the others, and one that comes gets in nobody's way.
    docker().ok("rm -f ids-b");
    docker().ok("run -d --name ids-d busybox sleep 1000");
    docker().ok("restart -t 0 ids-c");
    let now = ["ids-a", "ids-c", "ids-d"].map(first_id);
    assert_eq!((now[0], now[1]), (ids[0], ids[2]));
    assert!(!now[..2].contains(&now[2]), "{now:?}");
    docker().ok("rm -f ids-a ids-c ids-d");
}

#[test]
fn an_images_files_belong_to_the_root_of_every_zone_and_to_no_id_beyond() {
    for _ in 0..2 {
        let said = sh("", "stat -c %u:%g /bin/busybox; touch /new; stat -c %u /new");
        assert_eq!(said, "0:0\n0");
    }
    let said = sh(
        "",
        "touch /file; chown 65535 /file && stat -c %u /file; chown 65536 /file",
    );
    assert!(said.starts_with("65535\n"), "{said}");
    assert!(said.contains("Invalid argument"), "{said}");
}

#[test]
fn powers_end_at_the_zones_own_user_namespace() {
    // Within it they are real.
    let said = sh(
        POWERS,
        "hostname other && hostname; mount -t tmpfs none /tmp && echo mounted",
    );
    assert_eq!(said, "other\nmounted");
    for (script, refusal) in [
        ("mknod /disk b 254 0", "not permitted"),
        ("date -s 2001-01-01", "not permitted"),
        ("echo 1 > /proc/sys/vm/panic_on_oom", "denied"),
        ("echo 1 > /proc/sys/kernel/panic", "denied"),
        ("echo c > /proc/sysrq-trigger", "denied"),
        ("echo x > /sys/kernel/mm/ksm/run", "denied"),
        ("insmod /bin/busybox", "not permitted"),
        ("mount -t btrfs /dev/zero /tmp", "denied"),
        ("dmesg -c", "not permitted"),
        ("renice -n -20 -p 1", "denied"),
    ] {
        let said = sh(POWERS, script);
        assert!(said.to_lowercase().contains(refusal), "{script}: {said}");
    }
}

#[test]
fn a_privileged_zone_is_privileged_in_its_own_user_namespace_only() {
    docker().ok("run -d --name victim busybox sleep 1000");
    docker().ok(&format!("run -d --name mighty {POWERS} busybox sleep 1000"));
    assert_ne!(first_id("mighty"), first_id("victim"));
    let said = sh(
        POWERS,
        "grep CapEff /proc/self/status; ls -d /proc/[0-9]* | wc -l; ls /sys/class/net",
    );
    assert!(said.starts_with("CapEff:\t000001ffffffffff\n"), "{said}");
    assert!(said.contains("eth0") && !said.contains("bridge"), "{said}");
    // The ids of the neighbour are none of its own.
    let outside = first_id("victim");
    let said = docker().outcome_of(
        &format!("exec mighty sh -c 'touch /f; chown {outside} /f 2>&1'"),
        b"",
    );
    assert!(said.stdout.contains("Invalid argument"), "{said}");
    docker().ok("rm -f victim mighty");
}

#[test]
fn a_privileged_zone_divides_its_own_cgroup_and_changes_nothing_above() {
    docker().ok(&format!(
        "run -d --name divides --memory 64m {POWERS} busybox sleep 1000"
    ));
    let exec = |script: &str| {
        docker()
            .outcome_of(
                &format!("exec divides sh -c 'exec 2>&1; cd /sys/fs/cgroup; {script}'"),
                b"",
            )
            .stdout
    };
    let divide = "mkdir all part && for pid in $(cat cgroup.procs); do echo $pid > all/cgroup.procs 2>/dev/null; done; \
                  echo +memory +pids > cgroup.subtree_control && echo 10 > part/pids.max && cat part/pids.max";
    assert_eq!(exec(divide), "10");
    for above in ["memory.max", "pids.max", "cpu.max"] {
        let said = exec(&format!("echo max > {above}"));
        assert!(said.contains("Permission denied"), "{above}: {said}");
    }
    assert_eq!(exec("cat memory.max"), (64 << 20).to_string());
    docker().ok("rm -f divides");
    // Who has fewer powers sees its cgroup and divides nothing.
    let said = sh("", "mkdir /sys/fs/cgroup/part || ls /sys/fs/cgroup/memory.max");
    assert!(
        said.contains("Read-only file system") && said.ends_with("memory.max"),
        "{said}"
    );
}

#[test]
fn what_tells_of_the_machine_is_masked_unless_the_client_unmasks_it() {
    let script = "wc -c < /proc/keys; wc -c < /proc/timer_list; ls /sys/firmware | wc -l; echo x > /proc/sys/kernel/hostname";
    let said = sh("", script);
    assert!(said.starts_with("0\n0\n0\n"), "{said}");
    assert!(said.contains("Read-only file system"), "{said}");
    let open = sh(
        "--security-opt systempaths=unconfined",
        "wc -c < /proc/keys; grep -c proc/sys /proc/mounts",
    );
    let lines: Vec<&str> = open.lines().collect();
    assert_ne!(lines[0], "0", "{open}");
    assert_eq!(lines[1], "0", "{open}");
}

#[test]
fn every_zone_has_a_session_keyring_of_its_own() {
    let keys = || sh("--security-opt systempaths=unconfined", "cat /proc/keys");
    let session = |text: &str| -> Vec<String> {
        let lines = text.lines().filter(|line| line.contains("_ses"));
        lines
            .map(|line| line.split_whitespace().next().unwrap().to_owned())
            .collect()
    };
    let (one, other) = (keys(), keys());
    assert_eq!(session(&one).len(), 1, "{one}");
    assert_eq!(session(&other).len(), 1, "{other}");
    assert_ne!(session(&one), session(&other));
}

#[test]
fn a_zone_reads_its_cgroup_and_cannot_loosen_it() {
    for options in ["", POWERS] {
        let limited = format!("{options} --memory 64m --pids-limit 50");
        let said = sh(
            &limited,
            "cat /proc/self/cgroup /sys/fs/cgroup/memory.max /sys/fs/cgroup/pids.max; ls /sys/fs/cgroup | grep -c zones",
        );
        assert_eq!(said, "0::/\n67108864\n50\n0", "{options}");
        let limits = [
            "echo max > /sys/fs/cgroup/memory.max",
            "echo max > /sys/fs/cgroup/pids.max",
        ];
        // A privileged one may divide what it has.
        let division = [
            "echo 0 > /sys/fs/cgroup/cgroup.procs",
            "mkdir /sys/fs/cgroup/below",
        ];
        let further = division.iter().filter(|_| options.is_empty());
        for script in limits.iter().chain(further) {
            let said = sh(&limited, &format!("{script} && echo done"));
            let refused = said.contains("Read-only file system") || said.contains("ermission denied");
            assert!(refused && !said.contains("done"), "{options}: {script}: {said}");
        }
    }
    // Nor by mounting it anew.
    let script = "mount -t cgroup2 none /mnt 2>&1 || mkdir -p /mnt && mount -t cgroup2 none /mnt; echo max > /mnt/memory.max && echo done";
    let said = sh(&format!("{POWERS} --memory 64m"), script);
    assert!(said.contains("denied") && !said.contains("done"), "{said}");
}

#[test]
fn no_descriptor_of_the_engine_reaches_a_zone() {
    // 3 is the folder that ls reads.
    assert_eq!(sh("", "ls /proc/self/fd"), "0\n1\n2\n3");
    docker().ok("run -d --name descriptors busybox sleep 1000");
    assert_eq!(docker().ok("exec descriptors ls /proc/self/fd"), "0\n1\n2\n3");
    assert_eq!(docker().ok("exec descriptors ls /proc/1/fd"), "0\n1\n2");
    docker().ok("rm -f descriptors");
    // What a zone is given, it has.
    let fed = docker().outcome_of("run --rm -i busybox cat", b"fed");
    assert_eq!(fed.ok(), "fed");
}

#[test]
fn the_engines_own_file_runs_in_a_zone_and_cannot_be_written_there() {
    let script = "readlink /proc/1/exe; head -c 4 /sbin/docker-init | tail -c 3; echo; \
        echo x >> /proc/1/exe; echo x >> /sbin/docker-init; \
        mount -o remount,bind,rw $(readlink /proc/1/exe); echo x >> /sbin/docker-init; rm /sbin/docker-init";
    let said = sh(&format!("--init {POWERS}"), script);
    let lines: Vec<&str> = said.lines().collect();
    assert!(lines[0].ends_with("/docker-init") && lines[1] == "ELF", "{said}");
    // No try may have gone through but, for those who may mount, to mount it for writing.
    let tried = &lines[2..];
    assert!((4..=5).contains(&tried.len()), "{said}");
    for line in tried {
        let refused = ["denied", "Read-only", "busy"]
            .iter()
            .any(|word| line.contains(word));
        assert!(refused, "{said}");
    }
    // The file that a zone's first process has in hand before the image's is that of process 1.
    docker().ok(&format!(
        "run -d --name self {POWERS} --entrypoint /proc/self/exe busybox"
    ));
    docker().ok("rm -f self");
    assert_eq!(sh("--init", "echo works"), "works");
}

#[test]
fn a_link_in_the_root_leads_no_mount_out_of_it() {
    // The links lie in the container's own root, for its second start.
    docker().ok(
        "create --name linked --tmpfs /data/deep --tmpfs /climb/deep busybox sh -c \
         'test -e /done && exec cat /proc/self/mountinfo; umount /x; touch /done'",
    );
    let mut archive = tar::Builder::new(Vec::new());
    for (name, target) in [("data", "/etc"), ("climb", "../../../../../../../tmp")] {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(tar::EntryType::Symlink);
        header.set_size(0);
        header.set_mode(0o777);
        archive.append_link(&mut header, name, target).unwrap();
    }
    let archive = archive.into_inner().unwrap();
    docker().outcome_of("cp - linked:/", &archive).ok();
    docker().ok("start -a linked");
    let mounts = docker().ok("start -a linked");
    let at = |path: &str| mounts.lines().any(|line| line.split(' ').nth(4) == Some(path));
    assert!(at("/etc/deep") && at("/tmp/deep"), "{mounts}");
    docker().ok("rm linked");
    // The machine's own folders of these names are as they were: another zone starts and mounts.
    assert_eq!(sh("--tmpfs /data/deep", "grep -c /data/deep /proc/mounts"), "1");
}

#[test]
fn everything_is_set_up_before_the_first_instruction_of_the_image() {
    // The first thing that the image's code does is to look.
    let look = "cat /proc/self/cgroup /proc/1/comm /proc/self/mountinfo /proc/self/status";
    let said = docker().ok(&format!("run --rm --pids-limit 50 busybox {look}"));
    let lines: Vec<&str> = said.lines().collect();
    assert_eq!(lines[..2], ["0::/", "cat"], "{said}");
    let roots: Vec<&&str> = lines
        .iter()
        .filter(|line| line.split(' ').nth(4) == Some("/"))
        .collect();
    assert_eq!(roots.len(), 1, "{said}");
    assert!(roots[0].contains(" - overlay "), "{said}");
    let staged = lines
        .iter()
        .any(|line| line.contains("zone-root") || line.contains("/lib/modules"));
    assert!(!staged, "the machine's own mounts are seen: {said}");
    for line in [
        "NoNewPrivs:\t0",
        "Seccomp:\t2",
        "NSpid:\t1",
        "CapBnd:\t00000000a80425fb",
    ] {
        assert!(lines.contains(&line), "{line}: {said}");
    }
}

#[test]
fn a_device_is_opened_only_as_the_rules_let_it() {
    // Loop control, of which every machine has the driver; its node in the zone may be read and written.
    let device = "--device /dev/loop-control:/dev/ctl";
    let script = ": < /dev/ctl && echo read; : >> /dev/ctl && echo written";
    assert_eq!(sh(device, script), "read\nwritten");
    let said = sh(&format!("{device}:r"), script);
    assert!(
        said.starts_with("read\n") && said.contains("not permitted"),
        "{said}"
    );
    let said = sh(&format!("{device}:r --device-cgroup-rule \"c 10:237 w\""), script);
    assert_eq!(said, "read\nwritten");
    let wrong = docker().fails("run --rm --device-cgroup-rule \"c 10 rwm\" busybox true");
    assert!(
        wrong.contains("device cgroup rule") || wrong.contains("invalid"),
        "{wrong}"
    );
}

#[test]
fn the_machines_own_namespaces_need_its_recipes_permission() {
    for option in ["--userns", "--pid", "--net", "--ipc", "--uts", "--cgroupns"] {
        let refused = docker().fails(&format!("run --rm {option} host busybox true"));
        assert!(refused.contains("allow-host-privilege"), "{option}: {refused}");
    }
    let machine = Boot::host_privilege().start();
    let sh = |options: &str, script: &str| {
        let line = format!("run --rm {options} busybox sh -c 'exec 2>&1; {script}'");
        machine.docker().outcome_of(&line, b"").stdout
    };
    let all = "--userns host --pid host --net host --ipc host --uts host --cgroupns host";
    let said = sh(
        all,
        "cat /proc/1/comm; cat /proc/self/uid_map; ls /sys/class/net; cat /proc/self/cgroup",
    );
    let mut lines = said.lines();
    assert_eq!(lines.next(), Some("init"), "{said}");
    let map: Vec<&str> = lines.next().unwrap().split_whitespace().collect();
    assert_eq!(map, ["0", "0", "4294967295"], "{said}");
    assert!(said.contains("0::/zones/") && said.contains("lo"), "{said}");
    // What it leaves in the machine's PID namespace ends with it.
    sh("--userns host --pid host", "sleep 4321 & echo started");
    let left = sh(
        "--userns host --pid host",
        "cat /proc/[0-9]*/cmdline | tr -d \"\\0\" | grep -c sleep[4]321",
    );
    assert_eq!(left, "0");
    let said = sh(
        "--userns host --privileged",
        "mknod /disk b 7 0 && echo made; grep CapEff /proc/self/status",
    );
    assert_eq!(said, "made\nCapEff:\t000001ffffffffff");
    // With all powers come all devices, as with Docker.
    let look = "ls /dev/kmsg /dev/loop-control; head -c 4 /dev/loop0 | wc -c; echo told > /dev/kmsg && dmesg | tail -n 1";
    let said = sh("--userns host --privileged", look);
    assert!(
        said.starts_with("/dev/kmsg\n/dev/loop-control\n4\n") && said.ends_with("told"),
        "{said}"
    );
    for options in ["--privileged", "--userns host"] {
        let said = sh(options, "ls /dev/kmsg /dev/loop0");
        assert_eq!(said.matches("No such file").count(), 2, "{options}: {said}");
    }
    // Without being asked, nothing of the machine is there.
    let said = sh(
        "",
        "cat /proc/1/comm; grep -c 4294967295 /proc/self/uid_map; true",
    );
    assert_eq!(said, "sh\n0");
    let refused = machine.docker().fails("run --rm --pid host busybox true");
    assert!(refused.contains("user namespaces"), "{refused}");
}

#[test]
fn the_little_init_passes_signals_and_exit_codes_on_and_reaps() {
    assert_eq!(sh("--init", "cat /proc/1/comm; echo $$"), "docker-init\n2");
    assert_eq!(sh("", "cat /proc/1/comm; true"), "sh");
    let code = |command: &str| {
        docker()
            .outcome_of(&format!("run --rm --init busybox {command}"), b"")
            .code
    };
    assert_eq!(code("sh -c 'exit 7'"), 7);
    assert_eq!(code("sh -c 'kill -9 $$'"), 137);
    assert_eq!(code("no-such-command"), 127);
    let script = "trap \"exit 5\" TERM; echo ready; while :; do sleep 0.1; done";
    docker().ok(&format!(
        "run -d --name signalled --init busybox sh -c '{script}'"
    ));
    docker().follow("logs -f signalled").expect("ready");
    docker().ok("stop signalled");
    assert_eq!(docker().ok("wait signalled"), "5");
    docker().ok("rm signalled");
    // An orphan is reaped as soon as it ends.
    let script = "sh -c \"sleep 0.2 & exec true\"; sleep 1; ps -o stat,comm | grep -c ^Z";
    assert_eq!(sh("--init", script), "0");
    // With a terminal, the program is in its foreground.
    let mut shell = docker().terminal("run --rm -it --init -u 1000 busybox sh");
    shell.expect("$ ");
    shell.type_keys("exit 3\r");
    assert_eq!(shell.end(), 3);
}

/// A program of 32-bit x86 that says `old` and ends with 3, by the calls of that table.
fn program_of_32_bits() -> Vec<u8> {
    const BASE: u32 = 0x0804_8000;
    const HEADERS: u32 = 52 + 32;
    #[rustfmt::skip]
    let mut code = vec![
        0xb8, 4, 0, 0, 0,           // mov eax, write
        0xbb, 1, 0, 0, 0,           // mov ebx, 1
        0xb9, 0, 0, 0, 0,           // mov ecx, text
        0xba, 4, 0, 0, 0,           // mov edx, 4
        0xcd, 0x80,                 // int 0x80
        0xb8, 1, 0, 0, 0,           // mov eax, exit
        0xbb, 3, 0, 0, 0,           // mov ebx, 3
        0xcd, 0x80,                 // int 0x80
    ];
    let text = BASE + HEADERS + code.len() as u32;
    code[11..15].copy_from_slice(&text.to_le_bytes());
    code.extend(b"old\n");
    let size = HEADERS + code.len() as u32;
    let mut file = b"\x7fELF\x01\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    file.extend([2, 0, 3, 0]);
    for word in [1, BASE + HEADERS, 52, 0, 0] {
        file.extend(word.to_le_bytes());
    }
    for half in [52u16, 32, 1, 0, 0, 0] {
        file.extend(half.to_le_bytes());
    }
    for word in [1, 0, BASE, BASE, size, size, 5, 0x1000] {
        file.extend(word.to_le_bytes());
    }
    file.extend(code);
    file
}

#[test]
fn programs_of_32_bits_run_and_a_profile_of_the_clients_may_forbid_them() {
    let script = "cat > /old; chmod +x /old; /old; echo $?";
    let run = |options: &str| {
        let line = format!("run --rm -i {options} busybox sh -c '{script}'");
        docker().outcome_of(&line, &program_of_32_bits()).stdout
    };
    assert_eq!(run(""), "old\n3");
    let folder = tempfile::tempdir().unwrap();
    let profile = folder.path().join("profile.json");
    let text = r#"{"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86_64"]}"#;
    std::fs::write(&profile, text).unwrap();
    let option = format!("--security-opt seccomp={}", profile.display());
    // Killed by SIGSYS.
    assert_eq!(run(&option).lines().last(), Some("159"));
}

#[test]
fn containers_that_share_a_network_do_so_again_after_a_reboot() {
    let machine = Boot::quickstart().blank_disk().restarting().start();
    let docker = machine.docker();
    let boot = "cat /proc/sys/kernel/random/boot_id";
    let script = format!("{boot}; readlink /proc/self/ns/net; sleep 1000");
    docker.ok(&format!(
        "run -d --name server --restart always busybox sh -c '{script}'"
    ));
    let shared = "--net container:server --restart always";
    docker.ok(&format!("run -d --name beside {shared} busybox sh -c '{script}'"));
    machine.reboot();
    let now = docker.ok(&format!("run --rm busybox {boot}"));
    docker.follow("logs -f beside").expect(&now);
    let network = |name: &str| docker.ok(&format!("exec {name} readlink /proc/self/ns/net"));
    assert_eq!(network("beside"), network("server"));
    docker.ok("rm -f beside server");
}
