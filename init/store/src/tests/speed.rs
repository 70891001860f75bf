//! Times of what a zone's start waits for; run with `--ignored --nocapture`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::add;
use crate::testing::{TarMaker, TestPool, UserNamespace};

const ROUNDS: usize = 200;
const MIB: usize = 1 << 20;

/// A layer of so many bytes in files of 8 MiB at most, which are no two the same.
fn layer(bytes: usize, seed: u8) -> Vec<u8> {
    const FILE: usize = 8 * MIB;
    let files = (0..bytes.div_ceil(FILE)).fold(TarMaker::default(), |tar, n| {
        let length = FILE.min(bytes - n * FILE);
        let content: Vec<u8> = (0..length)
            .map(|at| (at / 4096) as u8 ^ at as u8 ^ n as u8 ^ seed)
            .collect();
        tar.file(&format!("{seed}-{n}"), &content)
    });
    files.finish()
}

#[test]
#[ignore = "a measurement that writes 2 GiB"]
fn a_root_of_two_gigabytes_is_made_as_fast_as_one_of_two_megabytes() {
    let pool = TestPool::new(4 << 30);
    let store = pool.store();
    let small = add(&store, &[&layer(2 * MIB, 0)], "small");
    let layers: Vec<Vec<u8>> = (1..=4).map(|seed| layer(512 * MIB, seed)).collect();
    let layers: Vec<&[u8]> = layers.iter().map(Vec::as_slice).collect();
    let large = add(&store, &layers, "large");
    let userns = UserNamespace::new(1_000_000);
    let mut medians = Vec::new();
    for (name, image) in [("2 MiB", small), ("2 GiB", large)] {
        let mut times: Vec<Duration> = (0..ROUNDS)
            .map(|round| {
                let zone = format!("{}-{round}", image.id.hex());
                let start = Instant::now();
                store.create_root(&zone, &image.id, None).unwrap();
                let mount = store.mount_root(&zone, userns.fd.as_fd()).unwrap();
                let time = start.elapsed();
                drop(mount);
                store.remove_root(&zone).unwrap();
                time
            })
            .collect();
        times.sort();
        println!(
            "an image of {name}: its root is made and mounted in {:?} (median), {:?} (99 %)",
            times[ROUNDS / 2],
            times[ROUNDS * 99 / 100]
        );
        medians.push(times[ROUNDS / 2]);
    }
    let ratio = medians[1].as_secs_f64() / medians[0].as_secs_f64();
    println!("{ratio:.2} times");
    assert!(ratio < 1.5, "{medians:?}");
}

#[test]
#[ignore = "a measurement, not a test"]
fn creating_and_mounting_a_root_takes() {
    let pool = TestPool::new(1 << 30);
    let store = pool.store();
    let small = add(&store, &[&TarMaker::default().file("a", b"x").finish()], "small");
    let many = (0..20_000).fold(TarMaker::default(), |tar, n| {
        tar.file(&format!("{}/{n}", n / 100), b"x")
    });
    let large = add(&store, &[&many.finish()], "large");
    let userns = UserNamespace::new(1_000_000);
    for (name, image) in [("small", small), ("large", large)] {
        let mut times: [Vec<Duration>; 4] = Default::default();
        for round in 0..ROUNDS {
            let zone = format!("{name}-{round}");
            let start = Instant::now();
            store.create_root(&zone, &image.id, None).unwrap();
            times[0].push(start.elapsed());
            let start = Instant::now();
            let mount = store.mount_root(&zone, userns.fd.as_fd()).unwrap();
            times[1].push(start.elapsed());
            drop(mount);
            let start = Instant::now();
            store
                .objects("containers")
                .unwrap()
                .write(&zone, &image.id)
                .unwrap();
            times[2].push(start.elapsed());
            let start = Instant::now();
            store.remove_root(&zone).unwrap();
            times[3].push(start.elapsed());
        }
        for (what, times) in ["create_root", "mount_root", "state write", "remove_root"]
            .iter()
            .zip(&mut times)
        {
            times.sort();
            println!(
                "{name}: {what} median {:?}, 99 % {:?}",
                times[ROUNDS / 2],
                times[ROUNDS * 99 / 100]
            );
        }
    }
}
