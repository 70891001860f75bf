//! Encrypted pools: that nothing can be read on their disks, and how a machine gets at the key when it
//! starts.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::fs::File;
use std::os::unix::fs::FileExt as _;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use monobloc::client::{Api, ApiError, Encryption, Order};
use serde_json::Value;
use tests::{Boot, Disk, Machine, Tpm};

const LONG: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
const PASSPHRASE: &str = "correct horse battery";
/// What is looked for on the disks.
const MARK: &str = "nobody-may-read-this-sentence";

fn api(machine: &Machine) -> Api {
    Api::new(machine.endpoint().port, &machine.endpoint().certificates).unwrap()
}

#[track_caller]
fn change(machine: &Machine, order: &Order) {
    let done = api(machine).change_pool(order, LONG, &mut |_| {});
    done.unwrap_or_else(|error| panic!("{order:?}: {error}"));
}

fn order(verb: &'static str, disks: &[&str]) -> Order {
    Order {
        verb,
        disks: disks.iter().map(|disk| (*disk).to_owned()).collect(),
        erase: true,
        ..Order::default()
    }
}

fn create(disk: &str, encryption: Encryption) -> Order {
    Order {
        encryption: Some(encryption),
        ..order("create", &[disk])
    }
}

#[track_caller]
fn says(machine: &Machine, mark: usize, text: &str) {
    let said = machine.console().wait_after(mark, text, LONG);
    said.unwrap_or_else(|error| panic!("{error}"));
}

#[track_caller]
fn refused(answer: Result<(), ApiError>) -> (u16, String) {
    match answer {
        Err(ApiError::Refused { status, message, .. }) => (status, message),
        other => panic!("{other:?}"),
    }
}

/// The disks of the pool, which all must be encrypted and there.
#[track_caller]
fn serials(machine: &Machine) -> Vec<String> {
    let told = api(machine).pool(LONG).unwrap();
    let disks = told["disks"].as_array().unwrap().clone();
    for disk in &disks {
        assert_eq!(disk["encrypted"], true, "{told:#}");
        assert_eq!(disk["missing"], false, "{told:#}");
    }
    let serial = |disk: &Value| disk["serial"].as_str().unwrap().to_owned();
    disks.iter().map(serial).collect()
}

/// A disk that no machine takes by itself.
fn foreign() -> Disk {
    Disk::beginning_with(&[0x55; 4096], 4096 * MIB)
}

/// Whether a disk shows what was written to it. Holes of its file are passed over.
fn shows(disk: &Disk, text: &str) -> bool {
    let file = File::open(disk.path()).unwrap();
    let mut at = 0;
    while let Ok(begin) = rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)) {
        at = rustix::fs::seek(&file, rustix::fs::SeekFrom::Hole(begin)).unwrap();
        let mut data = vec![0; usize::try_from(at - begin).unwrap()];
        file.read_exact_at(&mut data, begin).unwrap();
        let mut rest = data.as_slice();
        let first = text.as_bytes()[0];
        while let Some(found) = rest.iter().position(|byte| *byte == first) {
            rest = &rest[found..];
            if rest.starts_with(text.as_bytes()) {
                return true;
            }
            rest = &rest[1..];
        }
    }
    false
}

fn write(machine: &Machine) {
    let docker = machine.docker();
    docker.ok(&format!(
        "run --rm -v kept:/kept busybox sh -c 'yes {MARK} | head -n 50000 > /kept/file; sha256sum /kept/file > /kept/sum; sync'"
    ));
}

#[track_caller]
fn is_kept(machine: &Machine) {
    let said = machine
        .docker()
        .ok("run --rm -v kept:/kept busybox sha256sum -c /kept/sum");
    assert!(said.contains("OK"), "{said}");
}

/// Whether cryptsetup, on this machine, opens a disk with a passphrase.
fn cryptsetup_opens(disk: &Disk, passphrase: &str) -> bool {
    let script = "printf %s \"$WORD\" | cryptsetup open --test-passphrase \"$DISK\" -d -";
    let status = Command::new("sh")
        .args(["-c", script])
        .env("WORD", passphrase)
        .env("DISK", disk.path())
        .stderr(Stdio::null())
        .status();
    status.unwrap().success()
}

#[test]
fn a_pool_under_a_passphrase_is_read_by_nobody_without_it() {
    let (first, second, third) = (foreign(), foreign(), Disk::blank(4096 * MIB));
    let boot = Boot::quickstart().disk(&first).another_disk("second", &second);
    let machine = boot.start();
    let passphrase = Encryption::Passphrase(PASSPHRASE.to_owned());
    change(&machine, &create("vda", passphrase));
    assert_eq!(serials(&machine), ["first"]);
    write(&machine);
    // Another disk joins without the passphrase being asked for.
    change(&machine, &order("add", &["second"]));
    assert_eq!(serials(&machine).len(), 2);
    is_kept(&machine);
    let told = api(&machine).pool(LONG).unwrap();
    assert_eq!(told["profile"], "survives the loss of one disk");
    machine.power_off();
    assert!(
        shows(&foreign_with_mark(), MARK),
        "the search finds what is there"
    );
    for disk in [&first, &second] {
        assert!(!shows(disk, MARK));
        assert!(cryptsetup_opens(disk, PASSPHRASE));
        assert!(!cryptsetup_opens(disk, "wrong horse battery"));
    }

    // It waits for the passphrase, at its console and by its API.
    let machine = boot.power_on();
    says(&machine, 0, "pool: LOCKED");
    says(&machine, 0, "Passphrase for the encrypted disk");
    let refusal = machine.docker().fails("ps");
    assert!(refusal.contains("The pool is locked"), "{refusal}");
    let (status, message) = refused(api(&machine).unlock_pool("wrong horse battery", LONG));
    assert_eq!((status, message.contains("not the passphrase")), (403, true));
    let mark = machine.console().mark();
    machine.type_at_console("wrong horse battery\r");
    says(&machine, mark, "that is not the passphrase");
    api(&machine).unlock_pool(PASSPHRASE, LONG).unwrap();
    machine.wait_ready(0);
    is_kept(&machine);
    let (status, _) = refused(api(&machine).unlock_pool(PASSPHRASE, LONG));
    assert_eq!(status, 409);
    let console = machine.console().text();
    assert!(!console.contains("horse"), "{console}");

    // A successor of the supervisor asks for nothing.
    machine.crash_supervisor();
    is_kept(&machine);

    // One disk fails; a blank one takes its place, encrypted as the others.
    let mark = machine.console().mark();
    machine.unplug("second");
    says(&machine, mark, "is missing");
    is_kept(&machine);
    machine.plug("third", &third);
    await_disk(&machine, "third");
    change(&machine, &order("replace", &["third"]));
    let mut there = serials(&machine);
    there.sort();
    assert_eq!(there, ["first", "third"]);
    is_kept(&machine);

    // The other leaves, with its key.
    change(&machine, &order("remove", &["first"]));
    is_kept(&machine);
    machine.power_off();
    assert!(!cryptsetup_opens(&first, PASSPHRASE), "its header is gone");
    assert!(cryptsetup_opens(&third, PASSPHRASE));
    assert!(!shows(&third, MARK));

    // By the console this time.
    let machine = Boot::quickstart().disk(&third).power_on();
    says(&machine, 0, "Passphrase for the encrypted disk");
    machine.type_at_console(&format!("{PASSPHRASE}\r"));
    machine.wait_ready(0);
    is_kept(&machine);
    machine.power_off();
}

fn foreign_with_mark() -> Disk {
    Disk::beginning_with(format!("{} {MARK}", "x".repeat(5 << 20)).as_bytes(), 16 * MIB)
}

/// Waits until the machine has found a disk that was plugged in, which it tells nobody.
#[track_caller]
fn await_disk(machine: &Machine, serial: &str) {
    let deadline = Instant::now() + LONG;
    let api = api(machine);
    loop {
        let told = api.disks(LONG).unwrap();
        let mut disks = told.as_array().unwrap().iter();
        if disks.any(|disk| disk["serial"] == serial) {
            return;
        }
        assert!(Instant::now() < deadline, "the disk {serial} was not found");
    }
}

#[test]
fn a_tpm_opens_the_pool_in_its_own_machine_only() {
    let (disk, tpm) = (foreign(), Tpm::new());
    let boot = Boot::quickstart().disk(&disk);
    let machine = boot.clone().tpm(&tpm).start();
    let encryption = Encryption::tpm().unwrap();
    let recovery = encryption.recovery_key().unwrap();
    change(&machine, &create("vda", encryption));
    write(&machine);
    machine.power_off();
    assert!(!shows(&disk, MARK));

    let machine = boot.clone().tpm(&tpm).start();
    assert_eq!(serials(&machine).len(), 1);
    is_kept(&machine);
    machine.power_off();

    // In another machine, and in one without a TPM, the recovery key is the way in.
    let machine = boot.clone().tpm(&Tpm::new()).power_on();
    says(&machine, 0, "pool: LOCKED");
    api(&machine).unlock_pool(&recovery, LONG).unwrap();
    machine.wait_ready(0);
    is_kept(&machine);
    machine.power_off();
    let machine = boot.power_on();
    says(&machine, 0, "pool: LOCKED");
    assert!(cryptsetup_opens(&disk, &recovery));
    let refusal = refused(api(&machine).change_pool(&order("scrub", &[]), LONG, &mut |_| {}));
    assert_eq!(refusal.0, 503, "{refusal:?}");
}

#[test]
fn a_pool_whose_key_is_in_the_bundle_opens_by_itself_and_never_without_the_bundle() {
    let disk = Disk::blank(4096 * MIB);
    let boot = Boot::encrypting().disk(&disk);
    let machine = boot.start();
    says(&machine, 0, "pool: claimed the blank disk vda");
    assert_eq!(serials(&machine), ["first"]);
    write(&machine);
    // Without a TPM nothing can be sealed, and no disk is touched.
    let (status, message) =
        refused(api(&machine).change_pool(&create("vda", Encryption::tpm().unwrap()), LONG, &mut |_| {}));
    assert_eq!(status, 409, "{message}");
    assert!(message.contains("no TPM"), "{message}");
    machine.power_off();
    assert!(!shows(&disk, MARK));

    let machine = boot.start();
    is_kept(&machine);
    machine.power_off();

    let blank = Disk::blank(4096 * MIB);
    let machine = boot.another_disk("blank", &blank).without_identity().power_on();
    says(&machine, 0, "/dev/vda was passed over. It is encrypted.");
    says(&machine, 0, "was not claimed");
    says(&machine, 0, "pool: IN MEMORY");
}
