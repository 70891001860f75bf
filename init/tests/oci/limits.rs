//! The container's cgroup: on a machine where version 2 is mounted, alone or beside version 1, and
//! where it is not.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use serde_json::json;

use crate::bundle::Bundle;

/// The hierarchy of version 2 on this machine.
fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let point = |line: &str| {
        let mut fields = line.split(' ').skip(1);
        let point = fields.next()?.to_owned();
        (fields.next()? == "cgroup2").then_some(point)
    };
    PathBuf::from(
        mounts
            .lines()
            .filter_map(point)
            .next_back()
            .expect("cgroup2 must be mounted"),
    )
}

/// A runtime's command where cgroup2 alone is mounted, or where nothing of it is.
fn on_machine(bundle: &Bundle, prepare: &str, words: &[&str]) -> Command {
    bundle.write();
    let inner = bundle.command(words);
    let mut outer = Command::new("unshare");
    outer.args(["--mount", "sh", "-c", &format!("{prepare} && exec \"$@\""), "sh"]);
    outer
        .arg(inner.get_program())
        .args(inner.get_args())
        .current_dir(bundle.path());
    outer
}

const PURE: &str = "mount -t cgroup2 cgroup2 /sys/fs/cgroup";
const NONE: &str = "umount -R /sys/fs/cgroup";

#[test]
fn a_container_has_a_cgroup_of_its_own_with_what_is_set() {
    let mut bundle =
        Bundle::new("cat /proc/self/cgroup | grep ^0; cat /sys/fs/cgroup/cgroup.max.descendants");
    bundle.add_namespace(json!({"type": "cgroup"}));
    let name = format!("monobloc-test-{}", std::process::id());
    bundle.config["linux"]["cgroupsPath"] = json!(format!("/{name}/inner"));
    bundle.config["linux"]["resources"]["unified"] = json!({"cgroup.max.descendants": "17"});
    let output = on_machine(&bundle, PURE, &["run", "one"]).output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, "0::/\n17\n", "{output:?}");
    assert!(
        !hierarchy().join(&name).join("inner").exists(),
        "it goes with the container"
    );
    bundle.create("one").good();
    let pid = bundle.state("one")["pid"].to_string();
    let procs = hierarchy().join(&name).join("inner/cgroup.procs");
    assert_eq!(fs::read_to_string(procs).unwrap().trim(), pid);
    bundle.say(&["delete", "--force", "one"]).good();
    fs::remove_dir(hierarchy().join(name)).unwrap();
    bundle.config["linux"]["cgroupsPath"] = json!("/../x");
    bundle.create("one").bad("leads out");
    bundle.config["linux"]["cgroupsPath"] = json!("/x");
    bundle.config["linux"]["resources"]["unified"] = json!({"../x": "1"});
    bundle.create("one").bad("is no file of a cgroup");
    bundle.nothing_left();
    assert!(!hierarchy().join("x").exists());
}

#[test]
fn limits_are_set_where_the_controller_is_there_and_refused_where_not() {
    let mut bundle = Bundle::new("cd /sys/fs/cgroup; cat memory.max pids.max cpu.max");
    bundle.add_namespace(json!({"type": "cgroup"}));
    bundle.config["linux"]["resources"] = json!({
        "memory": {"limit": 64 << 20}, "pids": {"limit": 77}, "cpu": {"quota": 50_000, "period": 100_000},
    });
    let there = fs::read_to_string(hierarchy().join("cgroup.controllers")).unwrap();
    let said = bundle.run();
    if ["memory", "pids", "cpu"].iter().all(|name| there.contains(name)) {
        assert_eq!(said.good(), "67108864\n77\n50000 100000\n");
    } else {
        said.bad("memory.max");
    }
}

#[test]
fn devices_that_no_rule_allows_cannot_be_opened() {
    // No driver has the second, so the kernel finds nothing where the rules let it look.
    let script =
        "mknod /dev/it c 1 7 && head -c 1 /dev/it | wc -c; mknod /dev/other c 240 7 && cat /dev/other";
    let mut bundle = Bundle::new(script);
    for name in ["bounding", "effective", "permitted"] {
        bundle.config["process"]["capabilities"][name] = json!(["CAP_MKNOD"]);
    }
    let said = bundle.run();
    assert!(said.out.starts_with("1\n"), "full is a usual device: {said:?}");
    assert!(
        said.err.contains("/dev/other") && said.err.contains("not permitted"),
        "{said:?}"
    );
    bundle.config["linux"]["resources"]["devices"] = json!([
        {"allow": false, "access": "rwm"}, {"allow": true, "type": "c", "major": 240, "minor": 7, "access": "r"},
    ]);
    let said = bundle.run();
    assert!(
        said.err.contains("No such device"),
        "the rule lets it through: {said:?}"
    );
    bundle.config["linux"]["resources"]["devices"] = json!([
        {"allow": true, "type": "c"}, {"allow": false, "type": "c", "major": 1},
    ]);
    bundle.create("one").bad("after it has allowed some");
}

#[test]
fn without_cgroups_a_bundle_runs_and_limits_are_refused() {
    let mut bundle = Bundle::new("echo runs");
    // There is nothing to mount.
    let mounts = bundle.config["mounts"].as_array_mut().unwrap();
    mounts.retain(|mount| mount["type"] != "cgroup");
    let output = on_machine(&bundle, NONE, &["run", "one"]).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&output.stdout), "runs\n", "{output:?}");
    for (what, limit) in [
        ("limits", json!({"pids": {"limit": 5}})),
        (
            "device rules",
            json!({"devices": [{"allow": true, "type": "c", "major": 10, "access": "rwm"}]}),
        ),
    ] {
        bundle.config["linux"]["resources"] = limit;
        let output = on_machine(&bundle, NONE, &["run", "one"]).output().unwrap();
        assert!(!output.status.success(), "{what}");
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(
            text.contains("cgroup version 2 must be mounted"),
            "{what}: {text}"
        );
    }
    bundle.nothing_left();
}
