//! Times of what a zone's start waits for; run with `--ignored --nocapture`.

use std::os::fd::AsFd;
use std::time::{Duration, Instant};

use super::add;
use crate::testing::{TarMaker, TestPool, UserNamespace};

const ROUNDS: usize = 200;

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
