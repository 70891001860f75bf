//! What is told of a container's life, in Docker's order and with its attributes.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::{Machine, with_machine};
use serde_json::{Value, json};

/// What has been told so far: type and action, and the attributes.
fn told(machine: &Machine, filters: &[&str]) -> Vec<(String, Value)> {
    let format = "{{.Type}} {{.Action}}\t{{json .Actor}}";
    let mut words = vec!["events", "--since", "1h", "--until=-1s", "--format", format];
    words.extend(filters.iter().flat_map(|filter| ["--filter", filter]));
    let text = machine.out(&words);
    let event = |line: &str| {
        let (action, actor) = line.split_once('\t').unwrap();
        (action.to_owned(), serde_json::from_str(actor).unwrap())
    };
    text.lines().map(event).collect()
}

fn actions(told: &[(String, Value)]) -> Vec<&str> {
    told.iter().map(|(action, _)| action.as_str()).collect()
}

#[test]
fn a_containers_whole_life_is_told_in_dockers_order_with_its_attributes() {
    with_machine(|machine| {
        machine.out(&["volume", "create", "kept"]);
        let id = machine.out(&[
            "create",
            "-t",
            "--name",
            "life",
            "-l",
            "who=me",
            "-v",
            "kept:/data",
            "busybox",
            "sleep",
            "600",
        ]);
        machine.out(&["start", "life"]);
        machine.fails(&["exec", "life", "sh", "-c", "exit 3"]);
        machine.ask_at("POST", "containers/life/resize?h=30&w=100", &Value::Null);
        machine.out(&["top", "life"]);
        machine.out(&["pause", "life"]);
        machine.out(&["unpause", "life"]);
        machine.out(&["rename", "life", "living"]);
        machine.out(&["update", "--restart", "no", "living"]);
        machine.out(&["cp", "living:/etc/passwd", "-"]);
        machine.out(&["kill", "-s", "HUP", "living"]);
        machine.out(&["restart", "-t", "0", "living"]);
        machine.out(&["kill", "living"]);
        machine.out(&["rm", "living"]);
        machine.out(&["volume", "rm", "kept"]);
        let told = told(machine, &["type=container", "type=network", "type=volume"]);
        let started = ["network connect", "volume mount", "container start"];
        let ended = ["network disconnect", "volume unmount", "container die"];
        let killed = ["container kill", "container kill"];
        let expected = [
            &["volume create", "container create"][..],
            &started,
            &[
                "container exec_create: sh -c exit 3",
                "container exec_start: sh -c exit 3",
            ],
            &[
                "container exec_die",
                "container resize",
                "container top",
                "container pause",
            ],
            &[
                "container unpause",
                "container rename",
                "container update",
                "container archive-path",
            ],
            &["container kill"],
            &killed,
            &ended,
            &["container stop"],
            &started,
            &["container restart", "container kill"],
            &ended,
            &["container destroy", "volume destroy"],
        ];
        assert_eq!(actions(&told), expected.concat());
        let common = |name: &str, more: Value| {
            let mut all = json!({"image": "busybox", "name": name, "who": "me"});
            all.as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            json!({"ID": id, "Attributes": all})
        };
        let of = |action: &str| -> Vec<Value> {
            let same = told.iter().filter(|(told, _)| told == action);
            same.map(|(_, actor)| actor.clone()).collect()
        };
        assert_eq!(of("container start")[0], common("life", json!({})));
        assert_eq!(
            of("container resize")[0],
            common("life", json!({"height": "30", "width": "100"}))
        );
        assert_eq!(
            of("container rename")[0],
            common("living", json!({"oldName": "/life"}))
        );
        let signals = ["1", "15", "9", "9"].map(|signal| common("living", json!({"signal": signal})));
        assert_eq!(of("container kill"), signals);
        let end = &of("container die")[1]["Attributes"];
        assert!(
            end["exitCode"] == "137" && end["execDuration"].as_str().unwrap().parse::<u32>().is_ok(),
            "{end}"
        );
        let added = &of("container exec_die")[0]["Attributes"];
        assert_eq!(added["exitCode"], "3");
        assert_eq!(
            added["execID"],
            of("container exec_create: sh -c exit 3")[0]["Attributes"]["execID"]
        );
        let network = machine.out(&["network", "inspect", "-f", "{{.Id}}", "bridge"]);
        let place =
            json!({"ID": network, "Attributes": {"container": id, "name": "bridge", "type": "bridge"}});
        assert_eq!(of("network connect"), [place.clone(), place.clone()]);
        assert_eq!(of("network disconnect"), [place.clone(), place]);
        let mount = json!({
            "container": id, "destination": "/data", "driver": "local", "propagation": "", "read/write": "true",
        });
        assert_eq!(of("volume mount")[0], json!({"ID": "kept", "Attributes": mount}));
        let unmount = json!({"container": id, "driver": "local"});
        assert_eq!(
            of("volume unmount")[0],
            json!({"ID": "kept", "Attributes": unmount})
        );
        assert_eq!(
            of("volume destroy")[0],
            json!({"ID": "kept", "Attributes": {"driver": "local"}})
        );
    });
}

#[test]
fn an_attached_client_a_change_of_health_and_a_forced_removal_are_told() {
    with_machine(|machine| {
        machine.out(&[
            "run",
            "--rm",
            "--name",
            "mayfly",
            "--network",
            "none",
            "busybox",
            "true",
        ]);
        let mayfly = told(machine, &["type=container", "type=network"]);
        let expected = [
            "container create",
            "container attach",
            "network connect",
            "container start",
            "network disconnect",
            "container die",
            "container destroy",
        ];
        assert_eq!(actions(&mayfly), expected);
        assert_eq!(mayfly[2].1["Attributes"]["type"], "null");
        let check = ["--health-cmd", "true", "--health-interval", "500ms"];
        let run = [
            &["run", "-d", "--name", "checked"],
            &check[..],
            &["busybox", "sleep", "600"],
        ]
        .concat();
        machine.out(&run);
        let health = || machine.out(&["inspect", "-f", "{{.State.Health.Status}}", "checked"]);
        machine.until(|| health() == "healthy");
        machine.out(&["rm", "-f", "checked"]);
        let checked = told(machine, &["container=checked"]);
        let told = actions(&checked);
        let expected = [
            "container create",
            "container start",
            "container exec_create: /bin/sh -c true",
            "container exec_start: /bin/sh -c true",
            "container exec_die",
            "container health_status: healthy",
        ];
        assert_eq!(told[..expected.len()], expected);
        assert_eq!(
            told[told.len() - 3..],
            ["container kill", "container die", "container destroy"]
        );
        let filtered = self::told(machine, &["event=health_status"]);
        assert_eq!(actions(&filtered), ["container health_status: healthy"]);
    });
}
