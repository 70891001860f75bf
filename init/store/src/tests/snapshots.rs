//! Snapshots of roots and volumes: rollback, clones, limits, and what power cuts leave.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::{add, count};
use crate::snapshot::Of;
use crate::testing::{TarMaker, TestPool, UserNamespace};
use crate::{Image, Store};

const POOL: u64 = 256 << 20;
const MIB: u64 = 1 << 20;
const LIMIT: u64 = 16 * MIB;
const START: u32 = 1_000_000;

/// A detached mount can be used through its descriptor.
fn within(mount: &OwnedFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())).join(path)
}

fn image(store: &Store) -> Image {
    // A process of the machine can write to a root's files and make none: its id is none of the zone's.
    let names = ["kept", "changed", "removed"].into_iter();
    let tar = names.fold(TarMaker::default(), |tar, name| tar.file(name, b"from the image"));
    add(store, &[&tar.finish()], "a")
}

fn noise(length: u64) -> Vec<u8> {
    (0..length).map(|n| (n * n / 7) as u8).collect()
}

fn write(path: impl AsRef<Path>, length: u64) -> io::Result<()> {
    use std::io::Write as _;
    let mut file = File::create(path)?;
    file.write_all(&noise(length))?;
    file.sync_all()
}

fn names(store: &Store, of: Of<'_>) -> Vec<String> {
    let snapshots = store.snapshots(of).unwrap();
    snapshots.into_iter().map(|snapshot| snapshot.name).collect()
}

#[test]
fn a_rollback_brings_back_what_a_zone_was() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    fs::write(within(&mount, "changed"), "before").unwrap();
    // It runs: nothing is unmounted for the snapshot.
    let made = store.create_snapshot(Of::Zone("zone"), "first").unwrap();
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH);
    assert!(now.unwrap().as_secs().abs_diff(made.created) < 600, "{made:?}");
    fs::write(within(&mount, "changed"), "after").unwrap();
    fs::remove_file(within(&mount, "removed")).unwrap();
    store.create_snapshot(Of::Zone("zone"), "second").unwrap();
    fs::write(within(&mount, "kept"), "after").unwrap();
    drop(mount);
    assert_eq!(names(&store, Of::Zone("zone")), ["first", "second"]);

    for (snapshot, changed, removed) in [("first", "before", true), ("second", "after", false)] {
        store.roll_back(Of::Zone("zone"), snapshot).unwrap();
        let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
        let read = |name| fs::read_to_string(within(&mount, name));
        assert_eq!(read("changed").unwrap(), changed);
        assert_eq!(read("kept").unwrap(), "from the image");
        assert_eq!(read("removed").is_ok(), removed);
        // And it can be changed as ever.
        fs::write(within(&mount, "changed"), "anew").unwrap();
    }
    assert_eq!(count(&store, "tmp"), 0);
    let snapshot = pool.path().join("store/snapshots/zones/zone/first/upper/changed");
    assert_eq!(fs::read_to_string(&snapshot).unwrap(), "before");
    assert_eq!(
        fs::write(&snapshot, "x").unwrap_err().kind(),
        io::ErrorKind::ReadOnlyFilesystem
    );
}

#[test]
fn a_snapshot_that_was_acknowledged_is_there_after_a_power_cut_and_so_is_a_rollback() {
    let mut pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    store.create_root("zone", &image.id, None).unwrap();
    store.create_volume("data", None).unwrap();
    let file = |pool: &TestPool| pool.path().join("volumes/data/file");
    fs::write(file(&pool), "before").unwrap();
    store.create_snapshot(Of::Volume("data"), "kept").unwrap();
    store.create_snapshot(Of::Zone("zone"), "kept").unwrap();
    fs::write(file(&pool), "after").unwrap();
    store.roll_back(Of::Volume("data"), "kept").unwrap();
    // What a rollback that was cut short leaves.
    sys::btrfs::snapshot(
        File::open(store.volume_path("data")).unwrap(),
        &store.tmp,
        "copy-7",
    )
    .unwrap();
    let cut = pool.copy();
    drop(store);
    pool.unmount();
    pool.replace_image(cut);
    pool.mount();
    let store = pool.store();
    assert_eq!(names(&store, Of::Volume("data")), ["kept"]);
    assert_eq!(names(&store, Of::Zone("zone")), ["kept"]);
    assert_eq!(fs::read_to_string(file(&pool)).unwrap(), "before");
    assert_eq!(count(&store, "tmp"), 0);
    store.roll_back(Of::Zone("zone"), "kept").unwrap();
}

#[test]
fn a_limit_holds_for_what_a_root_and_its_snapshots_hold_however_often_it_is_rolled_back() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    let zone = Of::Zone("zone");
    store.create_root("zone", &image.id, Some(LIMIT)).unwrap();
    let own = |name: &str| pool.path().join("store/roots/zone/upper").join(name);
    write(own("first"), 6 * MIB).unwrap();
    store.create_snapshot(zone, "first").unwrap();
    fs::remove_file(own("first")).unwrap();
    write(own("second"), 6 * MIB).unwrap();
    // 6 MiB are only in the snapshot by now, and count.
    let refused = write(own("third"), 6 * MIB).unwrap_err();
    assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
    fs::remove_file(own("third")).unwrap();
    for _ in 0..3 {
        store.roll_back(zone, "first").unwrap();
        assert_eq!(fs::read(own("first")).unwrap(), noise(6 * MIB));
        let held = store.root_held("zone").unwrap().unwrap();
        assert_eq!(held.limit, Some(LIMIT));
        assert!(held.used >= 6 * MIB, "{held:?}");
        // What was only in the root is freed by the kernel, in a while.
        settled(&store, || {
            store.root_held("zone").unwrap().unwrap().used < 8 * MIB
        });
        let refused = write(own("big"), 11 * MIB).unwrap_err();
        assert_eq!(refused.kind(), io::ErrorKind::QuotaExceeded);
        // A start's slack works on the limit that counts.
        store.limit_root("zone", LIMIT, true).unwrap();
        store.limit_root("zone", LIMIT, false).unwrap();
    }
    store.roll_back(zone, "first").unwrap();
    fs::remove_file(own("first")).unwrap();
    store.delete_snapshot(zone, "first").unwrap();
    settled(&store, || store.root_held("zone").unwrap().unwrap().used < MIB);
    write(own("big"), 14 * MIB).unwrap();
}

/// Waits until the kernel has freed what was removed, which it does at its commits.
#[track_caller]
fn settled(store: &Store, holds: impl Fn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while !holds() {
        assert!(Instant::now() < deadline, "it does not come to be");
        sys::btrfs::sync(&store.root).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_volume_is_rolled_back_with_its_limit_whatever_subvolumes_a_zone_made_in_it() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let data = Of::Volume("data");
    store.create_volume("data", Some(LIMIT)).unwrap();
    let path = store.volume_path("data");
    write(path.join("file"), 4 * MIB).unwrap();
    store.create_snapshot(data, "first").unwrap();
    sys::btrfs::create_subvolume(File::open(&path).unwrap(), "own").unwrap();
    write(path.join("own/more"), 4 * MIB).unwrap();
    store.roll_back(data, "first").unwrap();
    assert!(!path.join("own").exists());
    assert_eq!(fs::read(path.join("file")).unwrap(), noise(4 * MIB));
    settled(&store, || {
        store.volume_held("data").unwrap().unwrap().used < 6 * MIB
    });
    assert_eq!(
        write(path.join("big"), 13 * MIB).unwrap_err().kind(),
        io::ErrorKind::QuotaExceeded
    );
    // A subvolume that is made now counts too.
    fs::remove_file(path.join("big")).unwrap();
    sys::btrfs::create_subvolume(File::open(&path).unwrap(), "own").unwrap();
    assert_eq!(
        write(path.join("own/big"), 13 * MIB).unwrap_err().kind(),
        io::ErrorKind::QuotaExceeded
    );
    store.remove_volume("data").unwrap();
    assert!(names(&store, data).is_empty());
    assert_eq!(
        fs::read_dir(pool.path().join("store/snapshots/volumes"))
            .unwrap()
            .count(),
        0
    );
}

#[test]
fn a_clone_has_a_limit_and_a_life_of_its_own() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    store.create_root("one", &image.id, Some(LIMIT)).unwrap();
    let one = pool.path().join("store/roots/one/upper");
    let two = pool.path().join("store/roots/two/upper");
    write(one.join("file"), 6 * MIB).unwrap();
    store.create_snapshot(Of::Zone("one"), "then").unwrap();
    write(one.join("later"), MIB).unwrap();
    store.clone_root("one", Some("then"), "two", Some(LIMIT)).unwrap();
    store.clone_root("one", None, "three", None).unwrap();
    assert!(two.join("file").exists() && !two.join("later").exists());
    assert!(pool.path().join("store/roots/three/upper/later").exists());
    assert!(
        store
            .clone_root("one", None, "two", None)
            .unwrap_err()
            .is_conflict()
    );
    assert!(
        store
            .clone_root("one", Some("never"), "four", None)
            .unwrap_err()
            .is_not_found()
    );
    assert!(
        store
            .clone_root("nobody", None, "four", None)
            .unwrap_err()
            .is_not_found()
    );
    write(two.join("mine"), 14 * MIB).unwrap();
    assert_eq!(
        write(two.join("more"), 4 * MIB).unwrap_err().kind(),
        io::ErrorKind::QuotaExceeded
    );
    store.remove_root("one").unwrap();
    assert_eq!(fs::read(two.join("file")).unwrap(), noise(6 * MIB));
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("two", userns.fd.as_fd()).unwrap();
    assert_eq!(fs::read(within(&mount, "file")).unwrap(), noise(6 * MIB));
    assert_eq!(
        fs::read_to_string(within(&mount, "kept")).unwrap(),
        "from the image"
    );

    store.create_volume("data", None).unwrap();
    fs::write(store.volume_path("data").join("file"), "then").unwrap();
    store.create_snapshot(Of::Volume("data"), "then").unwrap();
    fs::write(store.volume_path("data").join("file"), "now").unwrap();
    store
        .clone_volume("data", Some("then"), "old", Some(LIMIT))
        .unwrap();
    store.clone_volume("data", None, "new", None).unwrap();
    let read = |name: &str| fs::read_to_string(store.volume_path(name).join("file")).unwrap();
    assert_eq!((read("old"), read("new")), ("then".to_owned(), "now".to_owned()));
    assert_eq!(store.volume_held("old").unwrap().unwrap().limit, Some(LIMIT));
}

#[test]
fn an_image_stays_as_long_as_a_snapshot_needs_it_and_snapshots_go_with_their_zone() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    store.create_root("zone", &image.id, None).unwrap();
    store.create_snapshot(Of::Zone("zone"), "then").unwrap();
    drop(store);
    // The image is gone, and a power cut has taken the root.
    fs::remove_dir_all(pool.path().join("state/images")).unwrap();
    sys::btrfs::destroy_subvolume(File::open(pool.path().join("store/roots")).unwrap(), "zone").unwrap();
    let store = pool.store();
    assert_eq!(count(&store, "layers"), 1);
    assert_eq!(names(&store, Of::Zone("zone")), ["then"]);
    assert_eq!(store.with_snapshots().unwrap(), (vec!["zone".to_owned()], vec![]));
    store.remove_root("zone").unwrap();
    assert_eq!(store.with_snapshots().unwrap(), (vec![], vec![]));
    assert_eq!(count(&store, "layers"), 0);
}

#[test]
fn what_cannot_name_a_snapshot_or_is_not_there_is_refused() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    store.create_volume("data", None).unwrap();
    let data = Of::Volume("data");
    for bad in ["", "..", "a/b", ".a", "a b", &"x".repeat(65)] {
        for refused in [
            store.create_snapshot(data, bad).map(drop),
            store.delete_snapshot(data, bad),
            store.roll_back(data, bad),
        ] {
            assert!(refused.unwrap_err().is_bad_input(), "{bad:?}");
        }
    }
    store.create_snapshot(data, &"x".repeat(64)).unwrap();
    store.create_snapshot(data, "a").unwrap();
    assert!(store.create_snapshot(data, "a").unwrap_err().is_conflict());
    for of in [Of::Volume("nothing"), Of::Zone("data"), Of::Zone("nothing")] {
        assert!(store.create_snapshot(of, "a").unwrap_err().is_not_found());
        assert!(store.roll_back(of, "a").unwrap_err().is_not_found());
        assert!(store.delete_snapshot(of, "a").unwrap_err().is_not_found());
        assert!(names(&store, of).is_empty());
    }
    assert!(
        store
            .create_snapshot(Of::Volume("../host"), "a")
            .unwrap_err()
            .is_bad_input()
    );
}
