//! Networks of one's own in a booted machine: names, isolation, published ports, and that they outlive the
//! supervisor and the machine's power.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::time::Duration;

use tests::{Boot, Machine, host};

/// Starts a container that serves its own name on port 80 whenever it runs, and waits until it does.
#[track_caller]
fn serve(machine: &Machine, name: &str, options: &str) {
    let script =
        "mkdir -p /www; hostname > /www/index.html; httpd -p 80 -h /www; echo ready; exec sleep 100000";
    machine.docker().ok(&format!(
        "run -d --restart always --name {name} -h {name} {options} busybox sh -c '{script}'"
    ));
    machine
        .docker()
        .follow(&format!("logs -f {name}"))
        .expect("ready");
}

const GET: &str = "timeout 5 wget -q -O -";

#[track_caller]
fn reaches(machine: &Machine, from: &str, to: &str, answer: &str) {
    let script = format!("i=0; until {GET} http://{to}/ || [ $i -ge 30 ]; do i=$((i+1)); sleep 1; done");
    let said = machine.docker().ok(&format!("exec {from} sh -c '{script}'"));
    assert_eq!(said, answer, "{from} to {to}");
}

/// By the program of busybox that asks name servers itself.
#[track_caller]
fn knows(machine: &Machine, from: &str, name: &str, address: &str) {
    let said = machine
        .docker()
        .ok(&format!("exec {from} nslookup -type=a {name}"));
    let answer = said.rsplit_once("Address: ").map(|(_, last)| last.trim());
    assert_eq!(answer, Some(address), "{from} asks for {name}: {said}");
}

#[track_caller]
fn is_cut_off(machine: &Machine, from: &str, to: &str) {
    machine.docker().fails(&format!(
        "exec {from} sh -c '{} http://{to}/'",
        GET.replace('5', "2")
    ));
}

fn address(machine: &Machine, name: &str, network: &str) -> String {
    machine.docker().ok(&format!(
        "inspect -f '{{{{.NetworkSettings.Networks.{network}.IPAddress}}}}' {name}"
    ))
}

/// What holds as long as the networks do.
#[track_caller]
fn check(machine: &Machine, port: u16) {
    knows(machine, "client", "web", "10.20.0.80");
    knows(machine, "client", "www.front", "10.20.0.80");
    knows(machine, "web", "client", &address(machine, "client", "front"));
    knows(machine, "web", "db", &address(machine, "db", "back"));
    reaches(machine, "client", "10.20.0.80", "web");
    // Nobody else's names, and nobody else's addresses.
    machine.docker().fails("exec client nslookup lonely");
    is_cut_off(machine, "client", &address(machine, "lonely", "other"));
    is_cut_off(machine, "lonely", "10.20.0.80");
    // What is inside stays inside, and the one that is on both sides reaches both.
    reaches(machine, "web", &address(machine, "db", "back"), "db");
    is_cut_off(machine, "db", "10.20.0.80");
    is_cut_off(machine, "db", "10.0.2.2:80");
    // The published port: from this machine, from a neighbour by the host, from another network by the host.
    assert_eq!(host::get_in_time(port, "/", Duration::from_secs(60)), "web\n");
    reaches(machine, "client", "10.20.0.1:8080", "web");
    reaches(machine, "lonely", "10.20.0.1:8080", "web");
    // Names of the world outside are asked of the node's own servers: an answer or a refusal, no silence.
    let said = machine
        .docker()
        .outcome_of("exec client nslookup example.invalid", b"");
    assert!(!format!("{said:?}").contains("timed out"), "{said:?}");
}

#[test]
fn networks_of_ones_own_are_what_they_say_and_outlive_supervisor_and_power() {
    let machine = Boot::quickstart().blank_disk().restarting().start();
    let docker = machine.docker();
    docker.ok("network create --subnet 10.20.0.0/24 --ipv6 --subnet fd00:20::/64 front");
    docker.ok("network create other");
    docker.ok("network create --internal back");
    let port = machine.forwarded(8080);
    serve(
        &machine,
        "web",
        "--network front --ip 10.20.0.80 --ip6 fd00:20::80 --network-alias www -p 8080:80",
    );
    serve(&machine, "client", "--network front");
    serve(&machine, "lonely", "--network other");
    serve(&machine, "db", "--network back");
    is_cut_off(&machine, "web", &address(&machine, "db", "back"));
    docker.ok("network connect back web");
    check(&machine, port);
    reaches(&machine, "client", "[fd00:20::80]", "web");

    machine.crash_supervisor();
    check(&machine, port);

    machine.reboot();
    // Their restart policy has them run again: whoever is not there yet is waited for.
    docker.ok("start web client lonely db");
    check(&machine, port);
    reaches(&machine, "client", "[fd00:20::80]", "web");

    docker.ok("network disconnect back web");
    is_cut_off(&machine, "web", &address(&machine, "db", "back"));
    docker.fails("network rm front");
    docker.ok("rm -f web client lonely db");
    assert_eq!(
        docker.ok("network prune -f").lines().skip(1).count(),
        3,
        "all that were made"
    );
}
