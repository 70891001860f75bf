//! Roots of zones: ids, inode numbers and isolation from the layer.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::path::PathBuf;

use super::{add, count};
use crate::Error;
use crate::testing::{TarMaker, TestPool, UserNamespace, output};

const POOL: u64 = 256 << 20;
const START: u32 = 1_000_000;

fn tar() -> Vec<u8> {
    TarMaker::default()
        .dir("./")
        .dir("bin")
        .file("bin/sh", b"lower")
        .file("etc/a", b"1")
        .finish()
}

/// A detached mount can be used through its descriptor.
fn within(mount: &OwnedFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())).join(path)
}

/// Runs a script in a root as one of the host's ids.
fn as_user(mount: &OwnedFd, uid: u32, script: &str) -> bool {
    let path = format!("/proc/{}/fd/{}", std::process::id(), mount.as_raw_fd());
    // The folder is entered with root's rights: a process of other ids cannot follow `/proc/PID/fd`.
    let inner =
        format!("cd {path} && exec setpriv --reuid={uid} --regid={uid} --clear-groups sh -c '{script}'");
    let done = output(std::process::Command::new("sh").args(["-c", &inner]));
    eprint!("{}", String::from_utf8_lossy(&done.stderr));
    done.status.success()
}

#[test]
fn a_zone_sees_the_images_ids_as_its_own() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&tar()], "a");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    for path in ["", "bin", "bin/sh"] {
        let meta = fs::metadata(within(&mount, path)).unwrap();
        assert_eq!((meta.uid(), meta.gid()), (START, START), "{path}");
    }
    assert_eq!(
        fs::metadata(within(&mount, "")).unwrap().permissions().mode() & 0o7777,
        0o755
    );
    // A change copies the file up and keeps its owner; on disk the ids are the image's.
    fs::set_permissions(within(&mount, "bin/sh"), Permissions::from_mode(0o4755)).unwrap();
    fs::write(within(&mount, "bin/sh"), "upper").unwrap();
    assert_eq!(fs::metadata(within(&mount, "bin/sh")).unwrap().uid(), START);
    let root = pool.path().join("store/roots/zone");
    let upper = fs::metadata(root.join("upper/bin/sh")).unwrap();
    assert_eq!((upper.uid(), upper.gid()), (0, 0));
    // Nothing of it reached the layer.
    let layer = pool.path().join("store/layers").join(image.layers[0].hex());
    assert_eq!(fs::read(layer.join("bin/sh")).unwrap(), b"lower");
    // A file that the zone owns under another of its ids.
    chown(within(&mount, "etc/a"), Some(START + 33), Some(START + 33)).unwrap();
    assert_eq!(fs::metadata(root.join("upper/etc/a")).unwrap().uid(), 33);
    fs::remove_file(within(&mount, "etc/a")).unwrap();
    assert!(!within(&mount, "etc/a").exists());
}

#[test]
fn the_zones_own_root_creates_files_and_others_cannot() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&tar()], "a");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    assert!(as_user(
        &mount,
        START,
        "echo x > made && mkdir folder && rm etc/a && mv bin/sh bin/renamed"
    ));
    assert!(!as_user(&mount, START + 5, "echo x > other"));
    let upper = pool.path().join("store/roots/zone/upper");
    assert_eq!(fs::metadata(upper.join("made")).unwrap().uid(), 0);
    assert_eq!(fs::metadata(within(&mount, "made")).unwrap().uid(), START);
}

#[test]
fn no_two_files_of_a_root_have_one_inode_number() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let many = (0..50)
        .fold(TarMaker::default(), |tar, n| {
            tar.file(&format!("lower/{n}"), b"x")
        })
        .finish();
    let image = add(&store, &[&many], "a");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    let mut seen = std::collections::BTreeMap::new();
    assert!(as_user(
        &mount,
        START,
        "for n in $(seq 50); do mkdir upper-$n || exit 1; done"
    ));
    for path in ["", "lower"] {
        for entry in fs::read_dir(within(&mount, path)).unwrap() {
            let entry = entry.unwrap();
            let meta = fs::symlink_metadata(entry.path()).unwrap();
            let key = (meta.dev(), meta.ino());
            let other = seen.insert(key, entry.path());
            assert!(
                other.is_none(),
                "{:?} and {other:?} are both {key:?}",
                entry.path()
            );
        }
    }
    assert_eq!(seen.len(), 101);
}

#[test]
fn roots_of_one_image_do_not_see_each_other() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&tar()], "a");
    let (one, two) = (UserNamespace::new(START), UserNamespace::new(START + 65536));
    store.create_root("one", &image.id, None).unwrap();
    store.create_root("two", &image.id, None).unwrap();
    let first = store.mount_root("one", one.fd.as_fd()).unwrap();
    let second = store.mount_root("two", two.fd.as_fd()).unwrap();
    fs::write(within(&first, "bin/sh"), "changed").unwrap();
    assert_eq!(fs::read(within(&second, "bin/sh")).unwrap(), b"lower");
    assert_eq!(
        fs::metadata(within(&second, "bin/sh")).unwrap().uid(),
        START + 65536
    );
    assert_eq!(store.roots().len(), 2);
}

#[test]
fn nothing_stays_attached_and_a_root_can_be_mounted_again() {
    let mut pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&tar()], "a");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    for round in 0..3 {
        let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
        fs::write(within(&mount, "bin/sh"), format!("{round}")).unwrap();
        drop(mount);
    }
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    assert_eq!(fs::read(within(&mount, "bin/sh")).unwrap(), b"2");
    drop(mount);
    let place = pool.path().join("store/mount");
    let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(place.to_str().unwrap()), "{mounts}");
    drop(store);
    pool.unmount();
}

#[test]
fn devices_of_an_image_cannot_be_opened() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let mut header = tar::Header::new_gnu();
    header.set_path("null").unwrap();
    header.set_entry_type(tar::EntryType::Char);
    header.set_mode(0o666);
    header.set_uid(0);
    header.set_gid(0);
    header.set_size(0);
    header.set_device_major(1).unwrap();
    header.set_device_minor(3).unwrap();
    header.set_cksum();
    let mut bytes = header.as_bytes().to_vec();
    bytes.resize(512 * 3, 0);
    let image = add(&store, &[&bytes], "a");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    let error = fs::File::open(within(&mount, "null")).unwrap_err();
    assert_eq!(error.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn roots_are_known_after_a_restart_and_removed_for_good() {
    let mut pool = TestPool::new(POOL);
    let image = {
        let store = pool.store();
        let image = add(&store, &[&tar()], "a");
        store.create_root("zone", &image.id, None).unwrap();
        assert!(matches!(
            store.create_root("zone", &image.id, None),
            Err(Error::RootExists { .. })
        ));
        image
    };
    pool.unmount();
    pool.mount();
    let store = pool.store();
    assert_eq!(store.roots(), [("zone".to_owned(), image.id)]);
    store.remove_root("zone").unwrap();
    store.remove_root("zone").unwrap();
    assert_eq!((count(&store, "roots"), count(&store, "tmp")), (0, 0));
    let userns = UserNamespace::new(START);
    assert!(
        store
            .mount_root("zone", userns.fd.as_fd())
            .unwrap_err()
            .is_not_found()
    );
    assert!(store.create_root("../zone", &image.id, None).is_err());
}

#[test]
fn an_image_without_layers_has_a_root_too() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[], "scratch");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    assert!(within(&mount, "").is_dir());
}
