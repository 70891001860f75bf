//! Snapshots in a booted machine: of zones that write all the time, under limits, through a power cut, and
//! on their way to another place over TLS, cut off in between.

// What fails here fails the test.
#![allow(clippy::unwrap_used)]

use std::time::{Duration, Instant};

use monobloc::client::{Api, ApiError, Kind, Source, Subject};
use tests::{Boot, Disk, Machine};

const LONG: Duration = Duration::from_secs(180);
const MIB: u64 = 1 << 20;
/// Each number to two files, one after the other; a zone that finds them tells their last.
const WRITES: &str = "if [ -e /a ]; then echo found $(tail -n 1 /a) $(tail -n 1 /b).; while :; do sleep 100; done; fi; \
     i=0; while :; do i=$((i+1)); echo $i >> /a; echo $i >> /b; [ $i = 100 ] && echo begun; done";

fn api(machine: &Machine) -> Api {
    Api::new(machine.endpoint().port, &machine.endpoint().certificates).unwrap()
}

fn zone(name: &str) -> Subject {
    Subject {
        kind: Kind::Zone,
        name: name.to_owned(),
    }
}

fn volume(name: &str) -> Subject {
    Subject {
        kind: Kind::Volume,
        ..zone(name)
    }
}

#[track_caller]
fn refusal<T: std::fmt::Debug>(answer: Result<T, ApiError>) -> String {
    match answer {
        Err(ApiError::Refused { message, .. }) => message,
        other => panic!("{other:?}"),
    }
}

/// Reads from what another end writes, and stops after so many bytes.
struct Cut<R>(R, u64);

impl<R: std::io::Read> std::io::Read for Cut<R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let most = usize::try_from(self.1).unwrap().min(buffer.len());
        if most == 0 {
            return Err(std::io::ErrorKind::ConnectionReset.into());
        }
        let count = self.0.read(&mut buffer[..most])?;
        self.1 -= count as u64;
        Ok(count)
    }
}

/// Sends a snapshot through this end, at most so many bytes of it.
fn pass(from: &Api, to: &Api, source: &Source, id: &str, offset: u64, most: u64) -> Result<(), ApiError> {
    let (reader, mut writer) = std::io::pipe().unwrap();
    std::thread::scope(|scope| {
        scope.spawn(move || {
            // Whoever reads may stop.
            let _ = from.send_snapshot(source, offset, &mut writer, LONG, &mut |_| {});
        });
        to.upload(id, offset, Cut(reader, most), |_| {})
    })
}

/// What a zone that was made of the writer has found.
#[track_caller]
fn found(machine: &Machine, name: &str) -> (u64, u64) {
    let docker = machine.docker();
    let follow = docker.follow(&format!("logs -f --tail 1 {name}"));
    let said = follow.expect(".");
    let numbers: Vec<u64> = said
        .split_whitespace()
        .filter_map(|word| word.trim_end_matches('.').parse().ok())
        .collect();
    let [a, b] = numbers[..] else { panic!("{said}") };
    (a, b)
}

#[test]
fn snapshots_keep_what_was_through_changes_power_cuts_and_transfers() {
    let disk = Disk::blank(4096 * MIB);
    let machine = Boot::quickstart().disk(&disk).start();
    let (docker, monobloc) = (machine.docker(), api(&machine));

    // Of a zone that writes all the time: where it stood still, nothing of it is half-done.
    docker.ok(&format!(
        "run -d --name writer --storage-opt size=64m busybox sh -c '{WRITES}'"
    ));
    docker.follow("logs -f writer").expect("begun");
    let mut last = 0;
    for (name, freeze) in [("one", true), ("two", true), ("three", false)] {
        let made = monobloc
            .create_snapshot(&zone("writer"), Some(name), freeze, LONG)
            .unwrap();
        assert_eq!(made["frozen"], freeze);
        let copy = format!("of-{name}");
        monobloc
            .clone_subject(&zone("writer"), Some(name), &copy, LONG)
            .unwrap();
        docker.ok(&format!("start {copy}"));
        let (a, b) = found(&machine, &copy);
        assert!(a >= b && a - b <= 1 && a > last, "{name}: {a} {b} after {last}");
        last = a;
    }
    assert_eq!(docker.ok("inspect -f '{{.State.Status}}' writer"), "running");
    let refused = refusal(monobloc.roll_back(&zone("writer"), "one", false, LONG));
    assert!(refused.contains("writer runs"), "{refused}");
    monobloc.roll_back(&zone("writer"), "one", true, LONG).unwrap();
    let kept = found(&machine, "writer");
    assert_eq!(kept, found(&machine, "of-one"));

    // The limit holds for what it is now and what its snapshots keep.
    let write = |name: &str, mib: u32| {
        format!("exec writer sh -c 'dd if=/dev/urandom of=/{name} bs=1M count={mib} && sync'")
    };
    docker.ok(&write("kept", 30));
    monobloc
        .create_snapshot(&zone("writer"), Some("full"), false, LONG)
        .unwrap();
    docker.ok("exec writer rm /kept");
    let refused = docker.fails(&write("more", 50));
    assert!(refused.contains("quota exceeded"), "{refused}");
    docker.ok("exec writer rm /more");
    monobloc.delete_snapshot(&zone("writer"), "full", LONG).unwrap();

    // A volume, and what is said of it when the power is cut at once.
    docker.ok("run -d --name user -v data:/data busybox sh -c 'while :; do sleep 100; done'");
    docker
        .ok("exec user sh -c 'head -c 20000000 /dev/urandom > /data/file; cd /data; sha256sum file > sums'");
    let began = Instant::now();
    monobloc
        .create_snapshot(&volume("data"), Some("kept"), false, LONG)
        .unwrap();
    eprintln!(
        "a snapshot of 20 MB that are not on the disk yet: {:?}",
        began.elapsed()
    );
    let source = Source {
        of: volume("data"),
        snapshot: "kept".to_owned(),
        from: None,
    };
    let beginning = monobloc.beginning(&source, LONG).unwrap();
    let (id, received) = monobloc.offer(&beginning, Some("copy"), LONG).unwrap();
    assert_eq!(received, 0);
    assert!(
        pass(&monobloc, &monobloc, &source, &id, 0, 16 * MIB).is_err(),
        "it was cut off"
    );
    docker.ok("exec user sh -c 'echo changed > /data/file'");
    let (_, received) = monobloc.offer(&beginning, Some("copy"), LONG).unwrap();
    assert!(received > 5 * MIB && received <= 16 * MIB, "{received}");
    refusal(monobloc.take_in(&id, Some("copy"), LONG, &mut |_| {}));
    assert_eq!(docker.ok("volume ls -q"), "data");
    docker.ok("exec user sync");
    machine.cut_power();

    let machine = Boot::quickstart().disk(&disk).start();
    let (docker, monobloc) = (machine.docker(), api(&machine));
    let all = monobloc.snapshots(None, LONG).unwrap();
    let names: Vec<String> = all
        .as_array()
        .unwrap()
        .iter()
        .map(|one| {
            format!(
                "{}@{}",
                one["of"].as_str().unwrap(),
                one["name"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(names, ["writer@one", "writer@two", "writer@three", "data@kept"]);
    docker.ok("start writer");
    assert_eq!(found(&machine, "writer"), kept);

    // It goes on where it was.
    let (same, received) = monobloc.offer(&beginning, Some("copy"), LONG).unwrap();
    assert!(same == id && received >= 4 * MIB, "{received}");
    pass(&monobloc, &monobloc, &source, &id, received, u64::MAX).unwrap();
    let mut phases = Vec::new();
    let told = monobloc.take_in(&id, Some("copy"), LONG, &mut |stage| {
        phases.push(stage.phase.clone())
    });
    assert_eq!(told.unwrap()["of"], "copy");
    assert!(phases.contains(&"unpacking".to_owned()), "{phases:?}");
    let check = "sh -c 'cd /data && sha256sum -c sums'";
    assert_eq!(
        docker.ok(&format!("run --rm -v copy:/data busybox {check}")),
        "file: OK"
    );
    monobloc.roll_back(&volume("data"), "kept", false, LONG).unwrap();
    assert_eq!(
        docker.ok(&format!("run --rm -v data:/data busybox {check}")),
        "file: OK"
    );

    // What goes takes its snapshots with it.
    docker.ok("rm -f writer user");
    docker.ok("volume rm data");
    let left = monobloc.snapshots(None, LONG).unwrap();
    assert_eq!(
        (left[0]["of"].as_str(), left.as_array().unwrap().len()),
        (Some("copy"), 1)
    );
    machine.power_off();
}
