//! The memory that zones of one image take for its files: with their roots as they are, and beside it with
//! roots that would be plain btrfs snapshots, and with those of Docker's overlay2, which are overlays of
//! folders. Run with `cargo test -p store memory -- --ignored --nocapture`.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::path::{Path, PathBuf};

use super::add;
use crate::testing::{TarMaker, TestPool, UserNamespace};

const ZONES: usize = 100;
const LIBRARIES: usize = 4;
const MIB: usize = 1 << 20;
/// Bytes of each of the image's libraries.
const LIBRARY: usize = 4 * MIB;

/// Bytes of files that the machine keeps in memory.
fn cached() -> i64 {
    let text = fs::read_to_string("/proc/meminfo").unwrap();
    let line = text
        .lines()
        .find_map(|line| line.strip_prefix("Cached:"))
        .unwrap();
    let kilobytes: i64 = line.trim().trim_end_matches(" kB").parse().unwrap();
    kilobytes * 1024
}

/// Reads the libraries as programs do that are started from a tree.
fn read(tree: &Path) {
    for n in 0..LIBRARIES {
        let mut file = File::open(tree.join(format!("lib{n}.so"))).unwrap();
        let read = io::copy(&mut file, &mut io::sink()).unwrap();
        assert_eq!(read as usize, LIBRARY);
    }
}

/// A root as overlay2 makes it; unmounted when this ends.
struct Overlay {
    merged: PathBuf,
}

impl Overlay {
    fn new(lower: &Path, place: &Path, number: usize) -> Overlay {
        let part = |name: &str| {
            let path = place.join(format!("overlay2/{number}/{name}"));
            fs::create_dir_all(&path).unwrap();
            path
        };
        let (upper, work, merged) = (part("diff"), part("work"), part("merged"));
        let options = format!(
            "lowerdir={},upperdir={},workdir={}",
            lower.display(),
            upper.display(),
            work.display()
        );
        let options = std::ffi::CString::new(options).unwrap();
        let flags = rustix::mount::MountFlags::empty();
        rustix::mount::mount("overlay", &merged, "overlay", flags, Some(options.as_c_str())).unwrap();
        Overlay { merged }
    }
}

impl Drop for Overlay {
    fn drop(&mut self) {
        rustix::mount::unmount(&self.merged, rustix::mount::UnmountFlags::empty()).unwrap();
    }
}

#[test]
#[ignore = "a measurement, not a test"]
fn a_hundred_zones_of_one_image_take_memory() {
    let pool = TestPool::new(1 << 30);
    let store = pool.store();
    let tar = (0..LIBRARIES).fold(TarMaker::default(), |tar, n| {
        let content: Vec<u8> = (0..LIBRARY).map(|at| (at * at / 7 + n) as u8).collect();
        tar.file(&format!("lib{n}.so"), &content)
    });
    let image = add(&store, &[&tar.finish()], "a");
    let userns = UserNamespace::new(1_000_000);
    let layer = fs::read_dir(pool.path().join("store/layers")).unwrap().next();
    let layer = File::open(layer.unwrap().unwrap().path()).unwrap();
    // What the first takes from the disk is there for both.
    read(Path::new(&format!("/proc/self/fd/{}", layer.as_raw_fd())));

    let before = cached();
    let mut mounts = Vec::new();
    for n in 0..ZONES {
        let zone = format!("zone-{n}");
        store.create_root(&zone, &image.id, None).unwrap();
        let mount = store.mount_root(&zone, userns.fd.as_fd()).unwrap();
        read(&PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())));
        mounts.push(mount);
    }
    let ours = cached() - before;

    let before = cached();
    for n in 0..ZONES {
        let name = format!("plain-{n}");
        sys::btrfs::snapshot(&layer, &store.tmp, &name).unwrap();
        read(&pool.path().join("store/tmp").join(&name));
    }
    let plain = cached() - before;

    let before = cached();
    let mut overlays = Vec::new();
    for n in 0..ZONES {
        overlays.push(Overlay::new(
            &pool.path().join("store/tmp/plain-0"),
            &pool.path(),
            n,
        ));
        read(&overlays[n].merged);
    }
    let overlay = cached() - before;
    let image = (LIBRARIES * LIBRARY / MIB) as i64;
    println!(
        "{ZONES} zones of an image with {image} MiB of libraries: {} MiB more in memory, {} MiB as overlays of folders, {} MiB as plain snapshots",
        ours / MIB as i64,
        overlay / MIB as i64,
        plain / MIB as i64
    );
    assert!(ours * 4 < plain, "{ours} beside {plain}");
}
