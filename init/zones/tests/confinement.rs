//! What a zone cannot do; each check with a twin that shows the same thing let through where it may be.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod common;

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use common::{bench, spec};
use zones::{
    Capability, CapabilitySet, DeviceAccess, DeviceKind, DeviceRule, Mount, MountAttributes, ResourceLimit,
    Seccomp, User,
};

#[tokio::test]
async fn a_user_of_the_zone_has_no_capabilities_and_its_root_has_the_default_ones() {
    let bench = bench().await;
    let script = "id -u; id -g; id -G; grep CapEff /proc/self/status; grep CapBnd /proc/self/status";
    let mut as_user = spec(&["sh", "-c", script]);
    as_user.process.user = User {
        uid: 1000,
        gid: 100,
        groups: vec![7],
    };
    let (text, _) = bench.run(as_user).await;
    assert_eq!(
        text,
        "1000\n100\n100 7\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n"
    );
    let (text, _) = bench.sh("grep CapEff /proc/self/status").await;
    assert_eq!(text, "CapEff:\t00000000a80425fb\n");
}

#[tokio::test]
async fn forbidden_calls_fail_and_allowed_ones_do_not() {
    let bench = bench().await;
    let (text, exit) = bench.sh("mount -t tmpfs none /tmp").await;
    assert_ne!(exit.code, 0);
    assert!(text.contains("permission denied"), "{text}");
    let mut admin = spec(&["sh", "-c", "mount -t tmpfs none /tmp && echo mounted"]);
    admin.process.capabilities = CapabilitySet::DEFAULT.with(Capability::SysAdmin);
    let (text, exit) = bench.run(admin).await;
    assert_eq!((text.as_str(), exit.code), ("mounted\n", 0));
}

#[tokio::test]
async fn what_a_zone_writes_bears_the_images_own_ids_on_the_disk() {
    let bench = bench().await;
    let (text, exit) = bench.sh("touch /tmp/here && ls /tmp").await;
    assert_eq!((text.as_str(), exit.code), ("here\n", 0));
    assert_eq!(owner(&bench.root.join("tmp/here")), 0, "root of the image");
}

fn owner(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap())
}

#[tokio::test]
async fn what_tells_of_the_host_is_masked_and_kernel_parameters_are_read_only() {
    // The twin of each: a file of /proc that is not masked, and a parameter that the specification sets.
    let bench = bench().await;
    let (text, _) = bench
        .sh("cat /proc/keys | grep -c . ; echo x > /proc/sys/kernel/hostname; ls /sys/firmware")
        .await;
    assert!(text.starts_with("0\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    let (text, _) = bench.sh("cat /proc/sys/kernel/hostname").await;
    assert_eq!(text, "box\n");
}

#[tokio::test]
async fn a_link_in_the_image_cannot_lead_a_mount_out_of_the_root() {
    let bench = bench().await;
    let outside = tempfile::tempdir().unwrap();
    symlink(outside.path(), bench.root.join("proc")).unwrap();
    let climbing = format!("../../../../..{}-data", outside.path().display());
    symlink(climbing, bench.root.join("data")).unwrap();
    // Where the links point to within the root, nothing is there; the folders are made.
    let mut mounted = spec(&["sh", "-c", "cat /proc/self/comm; touch /data/x; ls -L /data"]);
    let options = vec![("size".to_owned(), "1m".to_owned())];
    mounted.mounts = vec![Mount::Tmpfs {
        at: "/data".to_owned(),
        options,
        attributes: MountAttributes::default(),
    }];
    let (text, exit) = bench.run(mounted).await;
    assert_eq!((text.as_str(), exit.code), ("cat\nx\n", 0));
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    let inside = bench.root.join(outside.path().strip_prefix("/").unwrap());
    assert!(inside.is_dir(), "{} must have been made", inside.display());
}

#[tokio::test]
async fn a_file_replaces_a_link_to_nothing_as_distributions_have_for_resolv_conf() {
    let bench = bench().await;
    symlink(
        "../run/systemd/resolve/stub-resolv.conf",
        bench.root.join("etc/resolv.conf"),
    )
    .unwrap();
    let mut with_file = spec(&["cat", "/etc/resolv.conf"]);
    with_file.files = vec![("/etc/resolv.conf".to_owned(), b"nameserver 192.0.2.1\n".to_vec())];
    let (text, _) = bench.run(with_file).await;
    assert_eq!(text, "nameserver 192.0.2.1\n");
    // A link to itself is an error and no endless loop.
    symlink("loop", bench.root.join("etc/loop")).unwrap();
    let mut looping = spec(&["true"]);
    looping.files = vec![("/etc/loop".to_owned(), Vec::new())];
    let error = bench.start(looping).await.expect_err("must not start");
    assert!(error.to_string().contains("/etc/loop"), "{error}");
}

#[tokio::test]
async fn a_read_only_root_takes_no_files() {
    let bench = bench().await;
    let mut read_only = spec(&["touch", "/tmp/x"]);
    read_only.read_only_root = true;
    let (text, exit) = bench.run(read_only).await;
    assert_eq!(exit.code, 1);
    assert!(text.contains("Read-only file system"), "{text}");
}

#[tokio::test]
async fn no_descriptor_of_the_supervisor_reaches_a_zone() {
    let bench = bench().await;
    let (text, _) = bench.sh("ls /proc/self/fd").await;
    // 3 is the folder that ls reads.
    assert_eq!(text, "0\n1\n2\n3\n");
}

#[tokio::test]
async fn a_parameter_that_the_specification_names_is_set() {
    let bench = bench().await;
    let mut with_parameter = spec(&["cat", "/proc/sys/net/ipv4/ip_forward", "/proc/meminfo"]);
    with_parameter.sysctls = vec![("net.ipv4.ip_forward".to_owned(), "1".to_owned())];
    let (text, exit) = bench.run(with_parameter).await;
    assert!(text.starts_with("1\nMemTotal:"), "{text}");
    assert_eq!(exit.code, 0);
}

#[tokio::test]
async fn all_capabilities_without_a_filter_give_no_power_outside_the_zone() {
    let bench = bench().await;
    let powerful = |script: &str| {
        let mut spec = spec(&["sh", "-c", script]);
        spec.process.capabilities = CapabilitySet::all();
        spec.process.seccomp = Seccomp::Unconfined;
        spec
    };
    // Within the zone they are real.
    let (text, exit) = bench
        .run(powerful("hostname other && hostname && mount -t tmpfs none /tmp"))
        .await;
    assert_eq!((text.as_str(), exit.code), ("other\n", 0));
    for (script, refusal) in [
        ("mknod /tmp/disk b 8 0", "Operation not permitted"),
        ("busybox date -s 2001-01-01", "Operation not permitted"),
        (
            "mount -t proc none /tmp && echo 1 > /tmp/sys/vm/panic_on_oom",
            "Permission denied",
        ),
        (
            "mount -t proc none /tmp && echo 3 > /tmp/sys/vm/drop_caches",
            "Permission denied",
        ),
        (
            "mount -t sysfs none /tmp && echo 1 > /tmp/kernel/profiling",
            "Permission denied",
        ),
        ("busybox renice -n -20 -p 1", "Permission denied"),
    ] {
        let (text, _) = bench.run(powerful(script)).await;
        assert!(text.contains(refusal), "{script}: {text}");
    }
}

/// Not a test: what the next one runs in a zone and outside.
#[test]
#[ignore = "run by another test"]
fn open_own_executable_for_writing() {
    let opened = fs::OpenOptions::new().write(true).open("/proc/self/exe");
    println!("opened: {:?}", opened.err().map(|error| error.kind()));
}

#[tokio::test]
async fn the_executable_of_process_1_cannot_be_written_from_a_zone() {
    const HELPER: &[&str] = &[
        "--ignored",
        "--exact",
        "--nocapture",
        "open_own_executable_for_writing",
    ];
    let bench = bench().await;
    // At this moment the process's executable is still that of process 1: here, this test.
    let mut args = vec!["/proc/self/exe"];
    args.extend(HELPER);
    let (text, _) = bench.run(spec(&args)).await;
    assert!(text.contains("opened: Some(PermissionDenied)"), "{text}");
    let outside = std::process::Command::new("/proc/self/exe")
        .args(HELPER)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&outside.stdout).into_owned();
    assert!(
        text.contains("opened: ") && !text.contains("PermissionDenied"),
        "{text}"
    );
}

#[tokio::test]
async fn a_zone_sees_only_its_own_processes_and_cgroup() {
    let bench = bench().await;
    let (text, _) = bench.sh("echo /proc/[0-9]*; grep ^0:: /proc/self/cgroup").await;
    assert_eq!(text, "/proc/1\n0::/\n");
}

#[tokio::test]
async fn limits_of_open_files_hold_and_may_be_chosen() {
    let bench = bench().await;
    let (text, _) = bench.sh("ulimit -S -n").await;
    assert_eq!(text, "1024\n");
    let mut chosen = spec(&["sh", "-c", "ulimit -S -n; ulimit -H -n"]);
    chosen.process.rlimits = vec![ResourceLimit {
        resource: libc::RLIMIT_NOFILE,
        soft: 77,
        hard: 99,
    }];
    let (text, _) = bench.run(chosen).await;
    assert_eq!(text, "77\n99\n");
}

#[tokio::test]
async fn a_device_is_opened_only_where_the_cgroups_rules_let_it() {
    let bench = bench().await;
    let (text, _) = bench.sh("cat /dev/null && echo null").await;
    assert_eq!(text, "null\n");
    // An image may bring any node with it, here that of the kernel's tunnels, open to everybody.
    let node = bench.root.join("tmp/tun");
    rustix::fs::mknodat(
        rustix::fs::CWD,
        &node,
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(10, 200),
    )
    .unwrap();
    fs::set_permissions(&node, std::os::unix::fs::PermissionsExt::from_mode(0o666)).unwrap();
    let script = ": < /tmp/tun && echo opened";
    let (text, _) = bench.sh(script).await;
    assert!(text.contains("Operation not permitted"), "{text}");
    let mut with = spec(&["sh", "-c", script]);
    with.device_rules = vec![DeviceRule {
        kind: Some(DeviceKind::Character),
        major: Some(10),
        minor: Some(200),
        access: DeviceAccess::parse("r").unwrap(),
    }];
    let (text, _) = bench.run(with).await;
    assert_eq!(text, "opened\n");
}

#[tokio::test]
async fn a_zone_may_be_the_first_to_go_when_memory_runs_out() {
    let bench = bench().await;
    for score in [700, 0] {
        let mut scored = spec(&["cat", "/proc/self/oom_score_adj"]);
        scored.process.oom_score_adj = score;
        let (text, _) = bench.run(scored).await;
        assert_eq!(text, format!("{score}\n"));
    }
}
