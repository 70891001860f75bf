//! Power cuts: the machine dies at any moment of its work, again and again, and whatever it had
//! acknowledged is there afterwards.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::collections::BTreeMap;
use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use serde_json::{Value, json};
use tests::api::Connection;
use tests::client::Endpoint;
use tests::images::{Image, Layer};
use tests::process::run;
use tests::registry::{Access, Registry};
use tests::{Boot, Disk, Machine};

const LONG: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// Images that are pulled and removed in turn.
const IMAGES: usize = 4;
/// The power is cut so long after the work has begun, at least and at most.
const WORK: (u64, u64) = (300, 3000);
/// Bytes of each file that is written to the volume.
const FILE: usize = 20_000;
/// How many of the files are read again after each cut; after the last one all are.
const RECENT: u64 = 40;

/// What is known of one object.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Fate {
    /// Whether the last acknowledged request has left it there.
    there: bool,
    /// A request was sent that nobody has answered: it may have happened or not.
    unsure: bool,
}

/// What has been acknowledged, by kind and name.
#[derive(Default)]
struct Ledger(Mutex<BTreeMap<(Kind, String), Fate>>);

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum Kind {
    Container,
    Image,
}

impl Ledger {
    fn sent(&self, kind: Kind, name: &str) {
        let mut all = self.0.lock().unwrap();
        let fate = all.entry((kind, name.to_owned())).or_insert(Fate {
            there: false,
            unsure: true,
        });
        fate.unsure = true;
    }

    fn answered(&self, kind: Kind, name: &str, there: bool) {
        let fate = Fate { there, unsure: false };
        self.0.lock().unwrap().insert((kind, name.to_owned()), fate);
    }

    /// Holds what a machine shows against it; what was unsure is known then.
    fn check(&self, kind: Kind, shown: &[String], round: usize) {
        let mut all = self.0.lock().unwrap();
        for name in shown {
            assert!(
                all.contains_key(&(kind, name.clone())),
                "round {round}: nobody has asked for the {kind:?} {name}"
            );
        }
        for ((_, name), fate) in all.iter_mut().filter(|((of, _), _)| *of == kind) {
            let there = shown.contains(name);
            assert!(
                fate.unsure || fate.there == there,
                "round {round}: {kind:?} {name} was acknowledged as {fate:?} and is {there}"
            );
            *fate = Fate { there, unsure: false };
        }
    }
}

/// A client whose machine may die; none is what came when it did.
struct Client<'a>(&'a Endpoint);

impl Client<'_> {
    fn ask(&self, method: &str, path: &str, body: &Value) -> Option<(u16, String)> {
        let body = if body.is_null() {
            String::new()
        } else {
            body.to_string()
        };
        let connection = Connection::open(self.0).ok()?;
        connection.send(method, path, body.as_bytes()).ok()
    }

    /// Asks for a change of one object, and writes down what is known of it. False when the machine is dead.
    fn change(
        &self,
        ledger: &Ledger,
        object: (Kind, &str),
        there: bool,
        request: (&str, &str, Value),
    ) -> bool {
        let (kind, name) = object;
        let (method, path, body) = request;
        ledger.sent(kind, name);
        let Some((status, answer)) = self.ask(method, path, &body) else {
            return false;
        };
        // An answer in parts may say at its end that it came to nothing.
        assert!(
            status < 300 && !answer.contains("\"error\""),
            "{method} {path}: {status} {answer}"
        );
        ledger.answered(kind, name, there);
        true
    }
}

/// Makes containers and removes some of them.
fn containers(client: &Client<'_>, ledger: &Ledger, round: usize, dead: &AtomicBool) {
    for number in 0.. {
        let name = format!("made-{round}-{number}");
        let path = format!("/containers/create?name={name}");
        let body = json!({"Image": "busybox", "Cmd": ["true"]});
        let object = (Kind::Container, name.as_str());
        let mut alive = client.change(ledger, object, true, ("POST", &path, body));
        if alive && number % 3 != 0 {
            let path = format!("/containers/{name}");
            alive = client.change(ledger, object, false, ("DELETE", &path, Value::Null));
        }
        if !alive || dead.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Pulls images and removes them.
fn pulls(client: &Client<'_>, ledger: &Ledger, registry: &str, dead: &AtomicBool) {
    for number in (0..IMAGES).cycle() {
        let name = format!("{registry}/cut:{number}");
        let object = (Kind::Image, name.as_str());
        let path = format!("/images/create?fromImage={registry}/cut&tag={number}");
        let alive = client.change(ledger, object, true, ("POST", &path, Value::Null));
        let path = format!("/images/{name}?force=1");
        let alive = alive && client.change(ledger, object, false, ("DELETE", &path, Value::Null));
        if !alive || dead.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// Commits a container again and again and removes every other image.
fn commits(client: &Client<'_>, ledger: &Ledger, round: usize, dead: &AtomicBool) {
    for number in 0.. {
        let name = format!("committed:{round}-{number}");
        let object = (Kind::Image, name.as_str());
        let path = format!("/commit?container=base&repo=committed&tag={round}-{number}");
        let mut alive = client.change(ledger, object, true, ("POST", &path, json!({})));
        if alive && number % 2 == 0 {
            let path = format!("/images/{name}?force=1");
            alive = client.change(ledger, object, false, ("DELETE", &path, Value::Null));
        }
        if !alive || dead.load(Ordering::Relaxed) {
            return;
        }
    }
}

/// `splitmix64`
struct Numbers(u64);

impl Numbers {
    fn between(&mut self, (least, most): (u64, u64)) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ z >> 30).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ z >> 27).wrapping_mul(0x94d0_49bb_1331_11eb);
        least + (z ^ z >> 31) % (most - least)
    }
}

fn image(number: usize) -> Image {
    let content: Vec<u8> = (0..2 * MIB as usize)
        .map(|at| (at * at / 11 + number) as u8)
        .collect();
    let layer = Layer::new().folder("data/").file("data/content", 0o644, content);
    let small = Layer::new().file("data/number", 0o644, number.to_string());
    Image::new(&format!("cut:{number}"), &[layer, small])
}

/// Works on the machine, in four ways at once, until its power is cut; gives the last file whose bytes it
/// has said are on the disk.
fn work(
    machine: Machine,
    ledger: &Ledger,
    registry: &str,
    round: usize,
    written: u64,
    time: Duration,
) -> u64 {
    let docker = machine.docker();
    let script = format!(
        "n={}; while :; do yes $n | head -c {FILE} | dd of=/data/f$n conv=fsync 2>/dev/null; echo $n; n=$((n+1)); done",
        written + 1
    );
    docker.ok(&format!(
        "run -d --name writer-{round} -v data:/data busybox sh -c '{script}'"
    ));
    ledger.answered(Kind::Container, &format!("writer-{round}"), true);
    let said = docker.follow(&format!("logs -f writer-{round}"));
    let endpoint = machine.endpoint().clone();
    let (client, dead) = (Client(&endpoint), AtomicBool::new(false));
    thread::scope(|scope| {
        let (client, dead) = (&client, &dead);
        scope.spawn(move || containers(client, ledger, round, dead));
        scope.spawn(move || pulls(client, ledger, registry, dead));
        scope.spawn(move || commits(client, ledger, round, dead));
        // The moment is what is tried, not something that is waited for.
        thread::sleep(time);
        dead.store(true, Ordering::Relaxed);
        machine.cut_power();
    });
    let said = said.so_far();
    let lines = said.split_inclusive('\n').filter(|line| line.ends_with('\n'));
    let numbers = lines.filter_map(|line| line.trim().parse::<u64>().ok());
    numbers.max().unwrap_or(written).max(written)
}

/// Holds what the machine shows against what it has acknowledged.
fn check(machine: &Machine, ledger: &Ledger, round: usize, first: u64, written: u64) {
    let names = |path: &str, pointer: &str| -> Vec<String> {
        let listed: Value = serde_json::from_str(&machine.request("GET", path)).unwrap();
        let listed = listed.as_array().unwrap().clone();
        listed
            .iter()
            .flat_map(|one| one[pointer].as_array().cloned().unwrap_or_default())
            .map(|name| name.as_str().unwrap().trim_start_matches('/').to_owned())
            .collect()
    };
    ledger.check(Kind::Container, &names("/containers/json?all=1", "Names"), round);
    let images = names("/images/json", "RepoTags");
    ledger.check(Kind::Image, &images, round);
    let docker = machine.docker();
    // Each image is whole: its layers are packed again and held against their digests.
    let folder = tempfile::tempdir().unwrap();
    let saved = folder.path().join("saved");
    for image in images.iter().filter(|image| image.contains("/cut:")) {
        docker.ok(&format!("save -o {} {image}", saved.display()));
    }
    let script = format!(
        "n={first}; while [ $n -le {written} ]; do yes $n | head -c {FILE} | cmp -s - /data/f$n || echo bad $n; n=$((n+1)); done; echo checked"
    );
    let said = docker.ok(&format!("run --rm -v data:/data busybox sh -c '{script}'"));
    assert_eq!(said, "checked", "round {round}: files that were on the disk");
}

#[track_caller]
fn check_pool(disk: &Disk, round: usize) {
    let program = tests::setup::btrfs_program();
    let arguments = ["check".as_ref(), "--readonly".as_ref(), disk.path().as_os_str()];
    let said = run(LONG, program, arguments, &[], b"");
    assert!(
        said.code == 0 && said.stdout.contains("no error found"),
        "round {round}: {said}"
    );
}

/// Looks into the pool of a machine that is off: nothing half-made is left, and each layer has what it
/// needs.
#[track_caller]
fn check_leftovers(disk: &Disk) {
    let script = "mount -o loop,ro \"$0\" /mnt; ls -A /mnt/store/tmp; ls /mnt/store/layers > /tmp/layers.$$; \
        ls /mnt/store/recipes | diff /tmp/layers.$$ -; ls /mnt/state/layers | sed 's/.json$//' | diff /tmp/layers.$$ -; \
        wc -l < /tmp/layers.$$; rm /tmp/layers.$$";
    let arguments = [
        "--mount".as_ref(),
        "sh".as_ref(),
        "-ec".as_ref(),
        script.as_ref(),
        disk.path().as_os_str(),
    ];
    let said = run(LONG, "unshare", arguments, &[], b"").ok();
    let layers: usize = said
        .parse()
        .unwrap_or_else(|_| panic!("leftovers in the pool:\n{said}"));
    assert!(layers > 0);
}

fn cut(rounds: usize) {
    let registry = Registry::start(Access::Anyone);
    for number in 0..IMAGES {
        registry.push(&format!("cut:{number}"), &image(number));
    }
    let disk = Disk::blank(4096 * MIB);
    let boot = Boot::quickstart().disk(&disk);
    let ledger = Ledger::default();
    let mut machine = boot.start();
    machine
        .docker()
        .ok("run --name base busybox sh -c 'head -c 300000 /dev/urandom > /file; sync'");
    ledger.answered(Kind::Container, "base", true);
    ledger.answered(Kind::Image, "busybox:latest", true);
    // Another sequence each time: a moment that fails is told.
    let seed = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    let seed = u64::from(seed.unwrap().subsec_nanos());
    println!("seed {seed}");
    let mut numbers = Numbers(seed);
    let mut written = 0;
    for round in 0..rounds {
        let time = Duration::from_millis(numbers.between(WORK));
        written = work(machine, &ledger, &registry.address(), round, written, time);
        check_pool(&disk, round);
        machine = boot.start();
        let first = if round + 1 == rounds {
            1
        } else {
            written.saturating_sub(RECENT) + 1
        };
        check(&machine, &ledger, round, first, written);
        machine.docker().ok(&format!("rm -f writer-{round}"));
        ledger.answered(Kind::Container, &format!("writer-{round}"), false);
    }
    machine.power_off();
    check_pool(&disk, rounds);
    check_leftovers(&disk);
    let all = ledger.0.lock().unwrap();
    println!("{rounds} power cuts, {} objects, {written} files", all.len());
    // The work was not so slow that nothing has come of it.
    assert!(
        all.len() > 3 * rounds && written > rounds as u64,
        "{} {written}",
        all.len()
    );
}

#[test]
fn power_cuts_lose_nothing_that_was_acknowledged() {
    cut(25);
}

#[test]
#[ignore = "takes a quarter of an hour where the machine is emulated"]
fn a_hundred_power_cuts_lose_nothing_that_was_acknowledged() {
    cut(100);
}
