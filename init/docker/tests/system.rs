//! What the machine tells of itself: networks, and what takes its space.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::with_machine;
use serde_json::Value;

#[test]
fn dockers_own_networks_are_there_and_tell_who_is_on_them() {
    with_machine(|machine| {
        let names = machine.out(&["network", "ls", "--format", "{{.Name}} {{.Driver}}"]);
        assert_eq!(names, "bridge bridge\nhost host\nnone null");
        assert_eq!(
            machine
                .out(&["network", "ls", "-q", "-f", "driver=null"])
                .lines()
                .count(),
            1
        );
        machine.out(&["run", "-d", "--name", "on-bridge", "busybox", "sleep", "600"]);
        machine.out(&[
            "run",
            "-d",
            "--name",
            "alone",
            "--network",
            "none",
            "busybox",
            "sleep",
            "600",
        ]);
        let told: Value = serde_json::from_str(&machine.out(&["network", "inspect", "bridge"])).unwrap();
        let members: Vec<&Value> = told[0]["Containers"].as_object().unwrap().values().collect();
        assert_eq!(members.len(), 1, "{told}");
        assert_eq!(members[0]["Name"], "on-bridge");
        let address = machine.out(&["inspect", "-f", "{{.NetworkSettings.IPAddress}}", "on-bridge"]);
        assert!(
            members[0]["IPv4Address"].as_str().unwrap().starts_with(&address),
            "{told}"
        );
        let by_id = machine.out(&[
            "inspect",
            "-f",
            "{{.NetworkSettings.Networks.bridge.NetworkID}}",
            "on-bridge",
        ]);
        assert_eq!(
            machine.out(&["network", "inspect", "-f", "{{.Name}}", &by_id]),
            "bridge"
        );
        let (_, text) = machine.fails(&["network", "rm", "bridge"]);
        assert!(text.contains("pre-defined network"), "{text}");
        machine.out(&["rm", "-f", "on-bridge", "alone"]);
    });
}

#[test]
fn the_space_that_things_take_is_told_as_it_is() {
    with_machine(|machine| {
        let script = "head -c 3000000 /dev/zero > /own; head -c 2000000 /dev/zero > /data/file";
        machine.out(&[
            "run",
            "--name",
            "big",
            "-v",
            "much:/data",
            "busybox",
            "sh",
            "-c",
            script,
        ]);
        let sized = machine.out(&["ps", "-a", "-s", "--format", "{{.Names}} {{.Size}}"]);
        assert!(sized.contains("big 3MB"), "{sized}");
        let size = machine.out(&["inspect", "-s", "-f", "{{.SizeRw}}", "big"]);
        assert!(
            (3_000_000..3_100_000).contains(&size.parse::<u64>().unwrap()),
            "{size}"
        );
        let df = machine.out(&["system", "df", "-v", "--format", "{{json .}}"]);
        let df: Value = serde_json::from_str(&df).unwrap();
        assert_eq!(df["Volumes"][0]["Size"], "2MB", "{df}");
        assert_eq!(df["Volumes"][0]["Links"], "1", "{df}");
        assert_eq!(df["Images"][0]["Containers"], "1", "{df}");
        assert!(machine.out(&["system", "df"]).contains("Local Volumes"), "");
        machine.out(&["system", "prune", "-f", "--volumes"]);
        assert_eq!(machine.out(&["ps", "-aq"]), "");
        machine.out(&["volume", "rm", "-f", "much"]);
    });
}
