//! Limits of roots and volumes, and the bound on all of them.

use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use super::add;
use crate::testing::{TarMaker, TestPool, UserNamespace};
use crate::{Error, Image, Store};

const POOL: u64 = 256 << 20;
const MIB: u64 = 1 << 20;
const LIMIT: u64 = 16 * MIB;
const START: u32 = 1_000_000;

/// A detached mount can be used through its descriptor.
fn within(mount: &OwnedFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())).join(path)
}

/// Appends to a file until that fails; returns the bytes written and why no more were.
fn fill(path: &Path) -> (u64, io::ErrorKind) {
    let mut file = match File::options().append(true).create(true).open(path) {
        Ok(file) => file,
        Err(reason) => return (0, reason.kind()),
    };
    // Nothing that compression or holes would make small.
    let block: Vec<u8> = (0..MIB).map(|n| (n * n / 7) as u8).collect();
    for written in 0.. {
        // The kernel may find out only when it writes to the disk.
        if let Err(reason) = file.write_all(&block).and_then(|()| file.sync_data()) {
            return (written * MIB, reason.kind());
        }
    }
    unreachable!()
}

fn image(store: &Store) -> Image {
    // A process of the machine can write to a root's files and make none: its id is none of the zone's.
    let names = ["big", "again", "more"].into_iter();
    let tar = names.fold(TarMaker::default(), |tar, name| tar.file(name, b""));
    add(store, &[&tar.finish()], "a")
}

/// Folders of groups that the kernel shows.
fn groups(pool: &TestPool) -> Vec<String> {
    let root = File::open(pool.path()).unwrap();
    let uuid = crate::mkfs::uuid_text(&sys::btrfs_devices::filesystem(&root).unwrap().fsid);
    let names = fs::read_dir(format!("/sys/fs/btrfs/{uuid}/qgroups")).unwrap();
    let names = names.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = names.filter(|name| name.contains('_')).collect();
    names.retain(|name| name.starts_with(|first: char| first.is_ascii_digit()));
    names.sort();
    names
}

/// Waits until the kernel has freed what was removed, which it does at its commits.
fn wait_for_groups(pool: &TestPool, wanted: &[String]) {
    let deadline = Instant::now() + Duration::from_secs(60);
    while groups(pool) != wanted {
        assert!(
            Instant::now() < deadline,
            "{:?} stay, not {wanted:?}",
            groups(pool)
        );
        sys::btrfs::sync(File::open(pool.path()).unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
}

#[test]
fn a_root_is_refused_what_goes_over_its_limit_and_no_other_root_is() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    store.create_root("bounded", &image.id, Some(LIMIT)).unwrap();
    store.create_root("free", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let bounded = store.mount_root("bounded", userns.fd.as_fd()).unwrap();
    let free = store.mount_root("free", userns.fd.as_fd()).unwrap();
    let (written, why) = fill(&within(&bounded, "big"));
    assert_eq!(why, io::ErrorKind::QuotaExceeded);
    assert!((LIMIT - 2 * MIB..LIMIT).contains(&written), "{written}");
    let held = store.root_held("bounded").unwrap().unwrap();
    assert_eq!(held.limit, Some(LIMIT));
    assert!((written..=LIMIT).contains(&held.used), "{held:?}");
    fs::write(within(&free, "big"), vec![1; 2 * LIMIT as usize]).unwrap();
    assert_eq!(store.root_held("free").unwrap().unwrap().limit, None);
}

#[test]
fn a_full_root_can_be_mounted_and_tidied_up_after_a_restart_and_is_still_bounded() {
    let mut pool = TestPool::new(POOL);
    let userns = UserNamespace::new(START);
    let upper = |name: &str| PathBuf::from("store/roots/zone/upper").join(name);
    {
        let store = pool.store();
        let image = image(&store);
        store.create_root("zone", &image.id, Some(LIMIT)).unwrap();
        fill(&pool.path().join(upper("own")));
        // Small files take the rest.
        for n in 0.. {
            if fs::write(pool.path().join(upper(&format!("small-{n}"))), [1; 1000]).is_err() {
                break;
            }
        }
    }
    pool.unmount();
    pool.mount();
    let store = pool.store();
    for _ in 0..3 {
        let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
        let again = fs::write(within(&mount, "more"), vec![1; MIB as usize]);
        assert_eq!(again.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    }
    assert_eq!(store.root_held("zone").unwrap().unwrap().limit, Some(LIMIT));
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    fs::remove_file(within(&mount, "own")).unwrap();
    let (written, _) = fill(&within(&mount, "more"));
    assert!(written >= LIMIT / 2, "{written}");
}

#[test]
fn a_volumes_limit_holds_for_subvolumes_that_zones_make_in_it() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let before = groups(&pool);
    store.create_volume("bounded", Some(LIMIT)).unwrap();
    store.create_volume("free", None).unwrap();
    let path = store.volume_path("bounded");
    sys::btrfs::create_subvolume(File::open(&path).unwrap(), "own").unwrap();
    sys::btrfs::snapshot(
        File::open(&path).unwrap(),
        File::open(path.join("own")).unwrap(),
        "deep",
    )
    .unwrap();
    fs::write(path.join("own/first"), vec![1; 4 * MIB as usize]).unwrap();
    fs::write(path.join("own/deep/second"), vec![1; 4 * MIB as usize]).unwrap();
    let (written, why) = fill(&path.join("third"));
    assert_eq!(why, io::ErrorKind::QuotaExceeded);
    assert!((5 * MIB..=8 * MIB).contains(&written), "{written}");
    let held = store.volume_held("bounded").unwrap().unwrap();
    assert!(
        held.limit == Some(LIMIT) && held.used > LIMIT - 3 * MIB,
        "{held:?}"
    );
    let more = fs::write(path.join("own/deep/more"), vec![1; 4 * MIB as usize]);
    assert_eq!(more.unwrap_err().kind(), io::ErrorKind::QuotaExceeded);
    fs::write(store.volume_path("free").join("big"), vec![1; 2 * LIMIT as usize]).unwrap();
    store.remove_volume("bounded").unwrap();
    store.remove_volume("free").unwrap();
    // The group of a volume with subvolumes in it goes with the store's next opening.
    drop(store);
    let level = |names: Vec<String>| -> Vec<String> {
        names.into_iter().filter(|name| name.starts_with("0_")).collect()
    };
    let deadline = Instant::now() + Duration::from_secs(60);
    while level(groups(&pool)) != level(before.clone()) {
        assert!(Instant::now() < deadline, "{:?} stay", groups(&pool));
        sys::btrfs::sync(File::open(pool.path()).unwrap()).unwrap();
        std::thread::sleep(Duration::from_millis(20));
    }
    drop(pool.store());
    assert_eq!(groups(&pool), before);
}

#[test]
fn no_group_stays_of_what_was_removed() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    let before = groups(&pool);
    for zone in ["one", "two", "three"] {
        store.create_root(zone, &image.id, Some(LIMIT)).unwrap();
        store.create_volume(zone, Some(LIMIT)).unwrap();
    }
    assert_eq!(groups(&pool).len(), before.len() + 9);
    for zone in ["one", "two", "three"] {
        store.remove_root(zone).unwrap();
        store.remove_volume(zone).unwrap();
    }
    wait_for_groups(&pool, &before);
}

#[test]
fn what_a_removed_root_has_left_in_a_snapshot_keeps_its_group_until_that_is_gone_too() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    let before = groups(&pool);
    store.create_root("zone", &image.id, Some(LIMIT)).unwrap();
    fs::write(
        pool.path().join("store/roots/zone/upper/big"),
        vec![1; MIB as usize],
    )
    .unwrap();
    let moment = store.moment("zone").unwrap();
    store.remove_root("zone").unwrap();
    sys::btrfs::sync(&store.root).unwrap();
    drop(moment);
    drop(store);
    let deadline = Instant::now() + Duration::from_secs(60);
    while groups(&pool) != before {
        assert!(
            Instant::now() < deadline,
            "{:?} stay, not {before:?}",
            groups(&pool)
        );
        sys::btrfs::sync(File::open(pool.path()).unwrap()).unwrap();
        drop(pool.store());
    }
}

#[test]
fn a_limit_in_which_nothing_fits_is_refused() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = image(&store);
    assert_eq!(store.no_quotas(), None);
    let refused = store.create_root("zone", &image.id, Some(crate::LEAST_LIMIT - 1));
    assert!(matches!(refused, Err(Error::LimitTooSmall { .. })));
    assert!(store.create_volume("data", Some(0)).unwrap_err().is_bad_input());
    // With the least one, a zone can be mounted and write a little.
    let userns = UserNamespace::new(START);
    store
        .create_root("zone", &image.id, Some(crate::LEAST_LIMIT))
        .unwrap();
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    fs::write(within(&mount, "more"), "little").unwrap();
    store.create_volume("data", Some(crate::LEAST_LIMIT)).unwrap();
    fs::write(store.volume_path("data").join("b"), "little").unwrap();
}
