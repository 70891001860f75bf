//! Networks of one's own, by the docker command line: making them, who is on them, who reaches whom.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use common::{Machine, with_machine, with_supervisors};
use serde_json::Value;

/// `docker LINE`, by words.
fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[track_caller]
fn ok(machine: &Machine, line: &str) -> String {
    machine.out(&words(line))
}

#[track_caller]
fn refused(machine: &Machine, line: &str, text: &str) {
    let (_, said) = machine.fails(&words(line));
    assert!(said.contains(text), "{line}: {said}");
}

fn inspect(machine: &Machine, kind: &str, name: &str) -> Value {
    let text = machine.out(&[kind, "inspect", name]);
    serde_json::from_str::<Value>(&text).unwrap()[0].take()
}

/// Starts a container that answers each connection to port 80 with its own name.
fn serve(machine: &Machine, name: &str, options: &str) {
    let script = format!("echo {name} > /tmp/index.html; exec httpd -f -p 80 -h /tmp");
    let mut args = vec!["run", "-d", "--name", name];
    args.extend(words(options));
    args.extend(["busybox", "sh", "-c", &script]);
    machine.out(&args);
}

/// Asks `HOST` or `HOST PORT` for its page, whose last line is the answer.
fn get(to: &str) -> String {
    let to = if to.contains(' ') {
        to.to_owned()
    } else {
        format!("{to} 80")
    };
    format!("printf 'GET / HTTP/1.0\\r\\n\\r\\n' | nc -w 2 {to}")
}

#[track_caller]
fn reaches(machine: &Machine, from: &str, to: &str, answer: &str) {
    // The server may only be about to listen.
    let script = format!(
        "i=0; until {} || [ $i -ge 20 ]; do i=$((i+1)); sleep 0.2; done",
        get(to)
    );
    let said = machine.out(&["exec", from, "sh", "-c", &script]);
    assert_eq!(said.lines().last(), Some(answer), "{from} to {to}: {said}");
}

#[track_caller]
fn is_cut_off(machine: &Machine, from: &str, to: &str) {
    let (code, said) = machine.fails(&["exec", from, "sh", "-c", &get(to)]);
    assert_ne!(code, 0, "{from} reaches {to}: {said}");
}

fn address(machine: &Machine, container: &str, network: &str) -> String {
    let shown = inspect(machine, "container", container);
    let address = &shown["NetworkSettings"]["Networks"][network]["IPAddress"];
    address.as_str().unwrap_or_default().to_owned()
}

#[test]
fn a_network_is_made_listed_inspected_and_removed() {
    with_machine(|machine| {
        let id = ok(machine, "network create --label tier=front mine");
        assert_eq!(id.len(), 64);
        let shown = inspect(machine, "network", "mine");
        assert_eq!(shown["Id"], id.as_str());
        assert_eq!(shown["IPAM"]["Config"][0]["Subnet"], "172.18.0.0/16");
        assert_eq!(shown["IPAM"]["Config"][0]["Gateway"], "172.18.0.1");
        ok(machine, "network create second");
        assert_eq!(
            inspect(machine, "network", "second")["IPAM"]["Config"][0]["Subnet"],
            "172.19.0.0/16"
        );
        let list = |filter: &str| ok(machine, &format!("network ls --format {{{{.Name}}}} {filter}"));
        assert_eq!(list(""), "bridge\nhost\nmine\nnone\nsecond");
        assert_eq!(list("-f label=tier=front"), "mine");
        assert_eq!(list("-f type=custom -f name=sec"), "second");
        assert_eq!(list("-f dangling=true"), "mine\nsecond");
        assert_eq!(list("-f driver=bridge -f type=builtin"), "bridge");
        refused(
            machine,
            "network create mine",
            "network with name mine already exists",
        );
        refused(
            machine,
            "network create --subnet 172.18.9.0/24 third",
            "Pool overlaps",
        );
        refused(
            machine,
            "network create --driver nosuch third",
            "could not find plugin nosuch",
        );
        refused(
            machine,
            "network create bridge",
            "operation is not permitted on predefined bridge network",
        );
        refused(
            machine,
            "network create -o com.example.x=y third",
            "com.example.x",
        );
        refused(machine, "network rm nosuch", "No such network: nosuch");
        refused(
            machine,
            "run --rm --network nosuch busybox true",
            "network nosuch not found",
        );
        ok(machine, &format!("network rm {}", &id[..12]));
        assert_eq!(ok(machine, "network prune -f"), "Deleted Networks:\nsecond");
        assert_eq!(list("-f type=custom"), "");
        // What was freed is given again.
        ok(machine, "network create mine");
        assert_eq!(
            inspect(machine, "network", "mine")["IPAM"]["Config"][0]["Subnet"],
            "172.18.0.0/16"
        );
    });
}

#[test]
fn pools_ranges_and_addresses_are_as_they_were_asked_for() {
    with_machine(|machine| {
        ok(
            machine,
            "network create --subnet 10.9.0.0/16 --ip-range 10.9.4.0/24 --gateway 10.9.0.254 \
             --aux-address router=10.9.4.1 --ipv6 --subnet fd00:9::/64 lan",
        );
        let pools = inspect(machine, "network", "lan")["IPAM"]["Config"].clone();
        assert_eq!(pools[0]["IPRange"], "10.9.4.0/24");
        assert_eq!(pools[0]["AuxiliaryAddresses"]["router"], "10.9.4.1");
        assert_eq!(pools[1]["Gateway"], "fd00:9::1");
        serve(machine, "any", "--network lan");
        assert_eq!(address(machine, "any", "lan"), "10.9.4.0");
        serve(
            machine,
            "chosen",
            "--network lan --ip 10.9.7.7 --ip6 fd00:9::77 --mac-address 02:00:00:00:00:77",
        );
        let own = machine.out(&["exec", "chosen", "ip", "addr", "show", "eth0"]);
        for part in ["10.9.7.7/16", "fd00:9::77/64", "02:00:00:00:00:77"] {
            assert!(own.contains(part), "{part}: {own}");
        }
        reaches(machine, "any", "10.9.7.7", "chosen");
        reaches(machine, "any", "fd00:9::77", "chosen");
        let member = inspect(machine, "network", "lan")["Containers"].clone();
        let members = member.as_object().unwrap();
        assert_eq!(members.len(), 2, "{members:?}");
        assert!(
            members.values().any(|one| one["IPv6Address"] == "fd00:9::77/64"),
            "{members:?}"
        );
        refused(
            machine,
            "run --rm --network lan --ip 10.9.7.7 busybox true",
            "Address already in use",
        );
        refused(
            machine,
            "run --rm --network lan --ip 10.8.0.1 busybox true",
            "no configured subnet or ip-range contain the IP address 10.8.0.1",
        );
        ok(machine, "network create auto");
        refused(
            machine,
            "run --rm --network auto --ip 172.18.0.9 busybox true",
            "user specified IP address is supported only when connecting to networks with user configured subnets",
        );
        refused(machine, "network rm lan", "has active endpoints");
        ok(machine, "rm -f any chosen");
        ok(machine, "network rm lan");
    });
}

#[test]
fn networks_do_not_reach_each_other_and_an_internal_one_reaches_nothing() {
    with_machine(|machine| {
        ok(machine, "network create one");
        ok(machine, "network create two");
        ok(machine, "network create --internal inside");
        ok(
            machine,
            "network create -o com.docker.network.bridge.enable_icc=false strangers",
        );
        for (name, network) in [
            ("aa", "one"),
            ("bb", "one"),
            ("cc", "two"),
            ("dd", "inside"),
            ("ee", "inside"),
        ] {
            serve(machine, name, &format!("--network {network}"));
        }
        serve(machine, "ff", "--network strangers");
        serve(machine, "gg", "--network strangers");
        serve(machine, "hh", "-p 8081:80");
        let at = |name, network| address(machine, name, network);
        reaches(machine, "aa", &at("bb", "one"), "bb");
        is_cut_off(machine, "aa", &at("cc", "two"));
        is_cut_off(machine, "cc", &at("aa", "one"));
        is_cut_off(machine, "aa", &at("hh", "bridge"));
        is_cut_off(machine, "hh", &at("aa", "one"));
        is_cut_off(machine, "ff", &at("gg", "strangers"));
        reaches(machine, "dd", &at("ee", "inside"), "ee");
        is_cut_off(machine, "dd", &at("aa", "one"));
        is_cut_off(machine, "aa", &at("dd", "inside"));
        // By the host's own address: a port that is published is for all but those inside.
        reaches(machine, "aa", "172.18.0.1 8081", "hh");
        is_cut_off(machine, "dd", "172.20.0.1 8081");
        is_cut_off(machine, "dd", "172.18.0.1 8081");
        let routes = machine.out(&["exec", "dd", "ip", "route"]);
        assert!(!routes.contains("default"), "{routes}");
    });
}

#[test]
fn a_container_joins_and_leaves_networks_while_it_runs_and_while_it_does_not() {
    with_machine(|machine| {
        ok(machine, "network create one");
        ok(machine, "network create two");
        serve(machine, "aa", "--network one -p 8080:80");
        serve(machine, "bb", "--network two");
        let b = address(machine, "bb", "two");
        is_cut_off(machine, "aa", &b);
        ok(machine, "network connect --alias also two aa");
        reaches(machine, "aa", &b, "bb");
        let shown = inspect(machine, "container", "aa")["NetworkSettings"].clone();
        assert_eq!(shown["Networks"]["two"]["Aliases"][0], "also", "{shown}");
        assert_eq!(shown["Ports"]["80/tcp"][0]["HostPort"], "8080", "{shown}");
        refused(
            machine,
            "network connect two aa",
            "endpoint with name aa already exists in network two",
        );
        refused(machine, "network connect host aa", "host network");
        // The published port follows the way out.
        ok(machine, "network disconnect one aa");
        assert_eq!(address(machine, "aa", "one"), "");
        reaches(machine, "bb", "172.19.0.1 8080", "aa");
        reaches(machine, "aa", &b, "bb");
        refused(
            machine,
            "network disconnect one aa",
            "is not connected to network one",
        );
        refused(
            machine,
            "network disconnect nosuch aa",
            "network nosuch not found",
        );
        // What stands still takes its places at the next start.
        ok(machine, "stop -t 0 aa");
        ok(machine, "network disconnect two aa");
        ok(machine, "network connect one aa");
        ok(machine, "start aa");
        assert_ne!(address(machine, "aa", "one"), "");
        is_cut_off(machine, "aa", &b);
        // Several networks from the beginning.
        ok(machine, "create --name cc --network one busybox sleep 600");
        ok(machine, "network connect two cc");
        ok(machine, "start cc");
        reaches(machine, "cc", &b, "bb");
        reaches(machine, "cc", &address(machine, "aa", "one"), "aa");
        ok(machine, "rm -f aa bb cc");
        ok(machine, "network rm one two");
    });
}

#[test]
fn networks_and_those_on_them_outlive_the_supervisor() {
    let first = |machine: &Machine| {
        ok(machine, "network create --subnet 10.7.0.0/24 kept");
        ok(machine, "network create other");
        serve(machine, "aa", "--network kept -p 8080:80");
        serve(machine, "bb", "--network kept");
        serve(machine, "cc", "--network other");
    };
    let second = |machine: &Machine| {
        assert_eq!(
            inspect(machine, "network", "kept")["Containers"]
                .as_object()
                .unwrap()
                .len(),
            2
        );
        let (a, c) = (address(machine, "aa", "kept"), address(machine, "cc", "other"));
        assert_eq!(a, "10.7.0.2");
        reaches(machine, "bb", &a, "aa");
        is_cut_off(machine, "bb", &c);
        reaches(machine, "cc", "172.18.0.1 8080", "aa");
        assert_eq!(
            inspect(machine, "container", "aa")["NetworkSettings"]["Ports"]["80/tcp"][0]["HostPort"],
            "8080"
        );
        serve(machine, "dd", "--network kept");
        assert_eq!(address(machine, "dd", "kept"), "10.7.0.4");
        refused(machine, "network rm kept", "has active endpoints");
        ok(machine, "rm -f aa bb dd");
        ok(machine, "network rm kept");
        assert!(!ok(machine, "network ls").contains("kept"));
    };
    with_supervisors(&[&first, &second]);
}

/// What the name service says to a container, without the lines about itself.
fn look_up(machine: &Machine, from: &str, name: &str) -> String {
    let output = machine.docker(&["exec", from, "busybox", "nslookup", name]);
    let said = String::from_utf8_lossy(&output.stdout).into_owned();
    let answer = said.split("\n\n").skip(1).collect::<Vec<_>>().join("\n");
    answer.replace('\t', " ")
}

#[test]
fn containers_know_each_other_by_name_on_networks_of_ones_own() {
    let names = |machine: &Machine| {
        let (bb, cc) = (address(machine, "bb", "one"), address(machine, "cc", "two"));
        for name in [
            "bb",
            "BB",
            "db",
            "bb.one",
            &ok(machine, "inspect -f {{.Id}} bb")[..12],
        ] {
            let said = look_up(machine, "aa", name);
            assert!(said.contains(&bb), "{name}: {said}");
        }
        // Only what is on a network of the asker's.
        let said = look_up(machine, "aa", "cc");
        assert!(!said.contains(&cc), "{said}");
        let said = look_up(machine, "aa", &bb);
        assert!(said.contains("bb.one"), "{said}");
        // One who is called by another name by one alone.
        assert!(look_up(machine, "linked", "base").contains(&bb));
        assert!(!look_up(machine, "aa", "base").contains(&bb));
    };
    let first = |machine: &Machine| {
        ok(machine, "network create one");
        ok(machine, "network create two");
        serve(machine, "aa", "--network one");
        serve(machine, "bb", "--network one --network-alias db");
        serve(machine, "cc", "--network two");
        serve(machine, "linked", "--network one --link bb:base");
        assert_eq!(
            machine
                .out(&["exec", "aa", "cat", "/etc/resolv.conf"])
                .lines()
                .next(),
            Some("nameserver 127.0.0.11")
        );
        names(machine);
        // The usual network has no such service.
        let usual = machine.out(&["run", "--rm", "busybox", "cat", "/etc/resolv.conf"]);
        assert!(!usual.contains("127.0.0.11"), "{usual}");
        // Who joins is known at once, who leaves is known no more.
        ok(machine, "network connect --alias later one cc");
        assert!(look_up(machine, "aa", "later").contains(&address(machine, "cc", "one")));
        ok(machine, "network disconnect one cc");
        assert!(!look_up(machine, "aa", "later").contains("172.18."));
    };
    with_supervisors(&[&first, &names]);
}
