//! The machine itself: how it boots, from what, with which disk, and how it ends. Each test boots its
//! own.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::fs;
use std::time::Duration;

use tests::images::{Image, Layer, busybox, busybox_layer};
use tests::process::run;
use tests::{Boot, Disk, Docker, Machine, host};

const LONG: Duration = Duration::from_secs(120);
const MIB: u64 = 1 << 20;

/// Holds the pool on a disk image against `btrfs check`.
#[track_caller]
fn check_pool(disk: &Disk) {
    let said = run(
        LONG,
        tests::setup::btrfs_program(),
        ["check".as_ref(), "--readonly".as_ref(), disk.path().as_os_str()],
        &[],
        b"",
    );
    assert!(said.code == 0 && said.stdout.contains("no error found"), "{said}");
}

/// Waits for a line of the console.
#[track_caller]
fn console(machine: &Machine, text: &str) -> String {
    machine
        .console()
        .wait_for(text, LONG)
        .unwrap_or_else(|error| panic!("{error}"))
}

#[test]
fn a_boot_tells_each_phase_with_its_time_and_none_fails() {
    let machine = Boot::quickstart().blank_disk().start();
    console(&machine, "network: ");
    let text = machine.console().text();
    for phase in [
        "root", "mounts", "console", "clock", "entropy", "recipe", "devices", "bridge", "pool", "identity",
        "name",
    ] {
        let told = text
            .lines()
            .any(|line| line.contains(&format!("monobloc: {phase} (")) && line.contains(" ms)"));
        assert!(told, "no line about {phase} in:\n{text}");
    }
    assert!(!text.contains("FAILED") && !text.contains("panicked"), "{text}");
}

#[test]
fn without_a_disk_the_pool_is_in_memory_and_the_console_says_so() {
    let machine = Boot::quickstart().start();
    console(&machine, "pool: IN MEMORY");
    assert_eq!(machine.docker().ok("run --rm busybox echo works"), "works");
    assert!(
        machine
            .docker()
            .ok("info --format '{{json .}}'")
            .to_lowercase()
            .contains("memory")
    );
}

#[test]
fn a_disk_that_bears_something_is_not_written() {
    let disk = Disk::beginning_with(b"precious", 64 * MIB);
    let before = fs::read(disk.path()).unwrap();
    let machine = Boot::quickstart().disk(&disk).start();
    console(&machine, "pool: IN MEMORY");
    machine.docker().ok("run --rm busybox true");
    machine.power_off();
    assert!(
        fs::read(disk.path()).unwrap() == before,
        "the disk has been written"
    );
}

#[test]
fn containers_and_images_outlive_a_power_off() {
    let disk = Disk::blank(4096 * MIB);
    let machine = Boot::quickstart().disk(&disk).start();
    console(&machine, "pool: claimed the blank disk");
    let docker = machine.docker();
    docker
        .outcome_of("load", &busybox("mine:1").docker_archive())
        .ok();
    let script = "cat /file 2> /dev/null; echo kept >> /file; echo logged; exit 3";
    assert_eq!(
        docker
            .outcome_of(&format!("run --name writer mine:1 sh -c '{script}'"), b"")
            .code,
        3
    );
    machine.power_off();
    check_pool(&disk);

    let machine = Boot::quickstart().disk(&disk).start();
    console(&machine, "pool: on disk");
    let docker = machine.docker();
    assert_eq!(
        docker.ok("inspect -f '{{.State.Status}} {{.State.ExitCode}}' writer"),
        "exited 3"
    );
    assert_eq!(docker.ok("logs writer"), "logged");
    assert_eq!(docker.outcome_of("start -a writer", b"").stdout, "kept\nlogged");
    machine.power_off();
    check_pool(&disk);
}

#[test]
fn a_reboot_keeps_what_is_in_the_pool_and_says_what_ran() {
    let machine = Boot::quickstart().blank_disk().restarting().start();
    machine
        .docker()
        .ok("run -d --name sleeper busybox sh -c 'echo x > /file; sleep 1000'");
    machine.reboot();
    let docker = machine.docker();
    assert_eq!(docker.ok("inspect -f '{{.State.Running}}' sleeper"), "false");
    docker.ok("start sleeper");
    assert_eq!(docker.ok("exec sleeper cat /file"), "x");
}

#[test]
fn a_machine_that_loses_its_power_finds_its_pool_whole() {
    let disk = Disk::blank(4096 * MIB);
    let machine = Boot::quickstart().disk(&disk).start();
    machine.docker().ok("create --name made busybox");
    machine
        .docker()
        .ok("run -d --name running busybox sh -c 'while :; do echo x >> /file; done'");
    machine.cut_power();
    let machine = Boot::quickstart().disk(&disk).start();
    assert_eq!(
        machine.docker().ok("inspect -f '{{.State.Status}}' made running"),
        "created\nexited"
    );
    assert_eq!(machine.docker().ok("run --rm busybox echo works"), "works");
    machine.power_off();
    check_pool(&disk);
}

#[test]
fn firmware_boots_the_single_file() {
    let machine = Boot::quickstart().by_firmware().start();
    assert_eq!(
        machine.docker().ok("run --rm busybox echo from one file"),
        "from one file"
    );
}

#[test]
fn a_single_application_image_serves_after_its_boot() {
    let machine = Boot::web().start();
    console(&machine, "zones (");
    let page = host::get_in_time(machine.forwarded(80), "/", LONG);
    assert!(page.contains("<title>Monobloc</title>"), "{page}");
    let listed = machine.docker().ok("ps --format '{{.Status}} {{.Ports}}'");
    assert!(
        listed.starts_with("Up") && listed.contains("->80/tcp"),
        "{listed}"
    );
}

#[test]
fn without_a_network_the_machine_boots_all_the_same() {
    let machine = Boot::quickstart().without_network().power_on();
    console(&machine, "pool: ");
    console(&machine, "network: no network card");
    assert!(!machine.console().text().contains("panic"));
}

#[test]
fn without_an_identity_there_is_no_api() {
    let machine = Boot::quickstart().without_identity().power_on();
    console(&machine, "no node bundle");
    let refusal = machine.docker().fails("version");
    assert!(!refusal.contains("linux/amd64\n API"), "{refusal}");
}

#[test]
fn only_clients_of_the_site_are_served() {
    let machine = Boot::quickstart().start();
    machine.docker().ok("version");
    let stranger = tests::site::Identity::make().unwrap();
    // Trusts the machine, as anyone may, but shows a certificate of another site.
    fs::copy(
        machine.endpoint().certificates.join("ca.pem"),
        stranger.client.join("ca.pem"),
    )
    .unwrap();
    let endpoint = |folder: &std::path::Path| tests::client::Endpoint {
        certificates: folder.to_owned(),
        ..machine.endpoint().clone()
    };
    let refusal = Docker::new(&endpoint(&stranger.client)).fails("version");
    assert!(
        refusal.contains("tls:") || refusal.contains("certificate"),
        "{refusal}"
    );
    let nobody = tempfile::tempdir().unwrap();
    fs::copy(
        machine.endpoint().certificates.join("ca.pem"),
        nobody.path().join("ca.pem"),
    )
    .unwrap();
    let refusal = Docker::new(&endpoint(nobody.path())).fails("version");
    assert!(
        refusal.contains("tls:") || refusal.contains("certificate"),
        "{refusal}"
    );
    let plain = host::get(machine.endpoint().port, "/_ping");
    assert!(plain.is_err(), "the API answers without TLS: {plain:?}");
    machine.docker().ok("version");
}

#[test]
fn a_full_disk_is_told_and_what_did_not_fit_is_gone() {
    let disk = Disk::blank(256 * MIB);
    let machine = Boot::quickstart().disk(&disk).start();
    let docker = machine.docker();
    let mut noise = vec![0_u8; 280 << 20];
    let mut state = 1_u64;
    for word in noise.chunks_mut(8) {
        state = state
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        word.copy_from_slice(&state.to_le_bytes());
    }
    let layer = Layer::new().file("noise", 0o644, noise);
    let image = Image::new("big:1", &[busybox_layer(), layer]);
    let folder = tempfile::tempdir().unwrap();
    let archive = folder.path().join("big.tar");
    fs::write(&archive, image.docker_archive()).unwrap();
    let refusal = docker.fails(&format!("load -i {}", archive.display()));
    assert!(refusal.contains("space") || refusal.contains("full"), "{refusal}");
    assert_eq!(docker.ok("images -q big"), "");
    assert_eq!(
        docker.ok("run --rm busybox sh -c 'head -c 10000000 /dev/zero > /file; wc -c < /file'"),
        "10000000"
    );
    machine.power_off();
    check_pool(&disk);
}

#[test]
fn zones_outlive_the_supervisor() {
    let machine = Boot::quickstart().blank_disk().start();
    let docker = machine.docker();
    let script = "echo before; trap \"echo heard; exit 6\" USR1; while :; do sleep 0.2; done";
    docker.ok(&format!(
        "run -d --name survivor -p 8080:80 busybox sh -c '{script}'"
    ));
    docker.ok("run -d --name short busybox sh -c 'while [ ! -e /end ]; do sleep 0.1; done; exit 3'");
    let told = "inspect -f '{{.State.Pid}} {{.State.StartedAt}} {{.NetworkSettings.IPAddress}}' survivor";
    let before = docker.ok(told);
    machine.crash_supervisor();
    assert_eq!(docker.ok(told), before);
    assert_eq!(docker.ok("exec survivor echo in"), "in");
    docker.ok("exec -d short touch /end");
    assert_eq!(docker.ok("wait short"), "3");
    let logs = docker.follow("logs -f survivor");
    docker.ok("kill -s USR1 survivor");
    assert_eq!(docker.ok("wait survivor"), "6");
    assert_eq!(logs.end(), (0, "before\nheard\n".to_owned()));
    assert_eq!(docker.ok("run --rm busybox echo new"), "new");
}

#[test]
fn a_supervisor_can_crash_many_times() {
    let machine = Boot::quickstart().start();
    machine.docker().ok("run -d --name through busybox sleep 1000");
    for _ in 0..5 {
        machine.crash_supervisor();
    }
    assert_eq!(machine.docker().ok("exec through echo still here"), "still here");
    machine.docker().ok("rm -f through");
    assert_eq!(machine.docker().ok("ps -aq"), "");
}
