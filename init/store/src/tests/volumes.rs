//! Volumes and the node's own tree: content, ids, and paths that would lead out of them.

use std::fs::{self, Permissions};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown, symlink};
use std::path::PathBuf;

use sys::program::MountAttributes;

use super::add;
use crate::testing::{TarMaker, TestPool, UserNamespace, output};
use crate::{Error, NodeSpec, Place, ReadOnly, TreeOptions};

const POOL: u64 = 256 << 20;
const START: u32 = 1_000_000;

/// A detached mount can be used through its descriptor.
fn within(mount: &OwnedFd, path: &str) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", mount.as_raw_fd())).join(path)
}

fn volume(name: &str) -> Place<'_> {
    Place::Volume { name, path: "" }
}

#[test]
fn zones_with_different_ranges_share_a_volume_with_equal_ids() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    store.create_volume("data", None).unwrap();
    store.create_volume("data", None).unwrap();
    let (one, two) = (UserNamespace::new(START), UserNamespace::new(START + 65536));
    let options = TreeOptions::default();
    let first = store.tree(volume("data"), options, one.fd.as_fd()).unwrap();
    let second = store.tree(volume("data"), options, two.fd.as_fd()).unwrap();
    assert!(!first.is_file);
    fs::write(store.volume_path("data").join("a"), "x").unwrap();
    chown(within(&first.mount, "a"), Some(START + 33), Some(START)).unwrap();
    let meta = fs::metadata(within(&second.mount, "a")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (START + 65536 + 33, START + 65536));
    assert_eq!(
        fs::metadata(store.volume_path("data").join("a")).unwrap().uid(),
        33
    );
    drop((first, second));
    store.remove_volume("data").unwrap();
    store.remove_volume("data").unwrap();
    assert!(!store.volume_path("data").exists());
}

#[test]
fn a_volume_that_is_new_gets_the_images_content_with_owners_modes_and_links() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let tar = TarMaker::default()
        .dir("data")
        .file("data/a", b"content")
        .hardlink("data/b", "data/a")
        .dir("data/sub")
        .hardlink("data/sub/c", "data/a")
        .symlink("data/link", "/etc/passwd")
        .symlink("elsewhere", "data")
        .file("file", b"")
        .finish();
    let image = add(&store, &[&tar], "a");
    store.create_volume("v", None).unwrap();
    store.fill(volume("v"), &image.id, "/absent").unwrap();
    let layer = pool.path().join("store/layers").join(image.layers[0].hex());
    assert!(layer.join("data/a").exists());
    // Through a link, as the zone will find it.
    store.fill(volume("v"), &image.id, "/elsewhere").unwrap();
    let path = store.volume_path("v");
    assert_eq!(fs::read(path.join("a")).unwrap(), b"content");
    let inode = |name: &str| fs::metadata(path.join(name)).unwrap().ino();
    assert!(inode("a") == inode("b") && inode("a") == inode("sub/c"));
    assert_eq!(
        fs::read_link(path.join("link")).unwrap(),
        PathBuf::from("/etc/passwd")
    );
    let times = |of: PathBuf| fs::metadata(of).unwrap().mtime();
    assert_eq!(times(path.join("sub/c")), times(layer.join("data/a")));
    assert_eq!(times(path.clone()), times(layer.join("data")));
    // Not a second time, and not what is no folder.
    fs::remove_file(path.join("link")).unwrap();
    store.fill(volume("v"), &image.id, "/data").unwrap();
    assert!(!path.join("link").exists());
    let refused = store.fill(volume("v"), &image.id, "/file").unwrap_err();
    assert!(refused.is_bad_input(), "{refused}");
    assert!(store.volume_usage("v").unwrap() > 0);
}

#[test]
fn the_folder_itself_gives_the_volume_its_owner_and_mode() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&TarMaker::default().dir("data").finish()], "a");
    let layer = pool.path().join("store/layers").join(image.layers[0].hex());
    let open = fs::File::open(&layer).unwrap();
    sys::btrfs::set_read_only(&open, false).unwrap();
    fs::set_permissions(layer.join("data"), Permissions::from_mode(0o1770)).unwrap();
    chown(layer.join("data"), Some(33), Some(44)).unwrap();
    sys::btrfs::set_read_only(&open, true).unwrap();
    store.create_volume("v", None).unwrap();
    store.fill(volume("v"), &image.id, "/data").unwrap();
    let meta = fs::metadata(store.volume_path("v")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.mode() & 0o7777), (33, 44, 0o1770));
}

#[test]
fn a_path_of_the_nodes_tree_does_not_leave_it() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let userns = UserNamespace::new(START);
    let host = pool.path().join("host");
    store.make_host_folder("/srv/deep/er").unwrap();
    store.make_host_folder("/srv/deep/er").unwrap();
    fs::write(host.join("srv/file"), "x").unwrap();
    symlink("/../../../../store", host.join("out")).unwrap();
    symlink("../../../../srv", host.join("in")).unwrap();
    let options = TreeOptions::default();
    let tree = |path| store.tree(Place::Host(path), options, userns.fd.as_fd());
    for path in ["/out", "/../store", "/out/../store"] {
        let refused = tree(path).unwrap_err();
        assert!(matches!(refused, Error::NoSuchPlace { .. }), "{path}: {refused}");
        assert!(!store.host_has(path).unwrap(), "{path}");
    }
    // The twins: a link that stays within, also upwards, and a file.
    assert!(within(&tree("/in").unwrap().mount, "file").exists());
    assert!(within(&tree("/srv/../../srv").unwrap().mount, "file").exists());
    assert!(tree("/srv/file").unwrap().is_file);
    store.make_host_folder("/in/made").unwrap();
    assert!(host.join("srv/made").is_dir());
    // A link to what is absent is not followed to anywhere.
    assert!(store.make_host_folder("/out/made").is_err());
    assert!(!pool.path().join("store/made").exists());
}

#[test]
fn a_path_in_a_volume_does_not_leave_it() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let userns = UserNamespace::new(START);
    store.create_volume("v", None).unwrap();
    let path = store.volume_path("v");
    fs::create_dir_all(path.join("a/b")).unwrap();
    symlink("../../../host", path.join("out")).unwrap();
    let at = |path| {
        let place = Place::Volume { name: "v", path };
        store.tree(place, TreeOptions::default(), userns.fd.as_fd())
    };
    assert!(at("a/b").is_ok());
    assert!(at("out").is_err());
    assert!(at("absent").is_err());
}

#[test]
fn a_mount_is_read_only_where_it_is_asked_for() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let userns = UserNamespace::new(START);
    store.create_volume("v", None).unwrap();
    fs::write(store.volume_path("v").join("a"), "").unwrap();
    for (read_only, written) in [
        (ReadOnly::Nothing, true),
        (ReadOnly::Itself, false),
        (ReadOnly::Everything, false),
    ] {
        let options = TreeOptions {
            read_only,
            recursive: true,
            ..TreeOptions::default()
        };
        let tree = store.tree(volume("v"), options, userns.fd.as_fd()).unwrap();
        assert_eq!(fs::write(within(&tree.mount, "a"), "x").is_ok(), written);
    }
}

#[test]
fn a_zones_own_subvolumes_do_not_keep_a_volume() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    store.create_volume("v", None).unwrap();
    let path = store.volume_path("v");
    fs::create_dir(path.join("folder")).unwrap();
    let script = "btrfs subvolume create v/folder/one && btrfs subvolume create v/folder/one/two \
        && btrfs property set v/folder/one ro true";
    let made = output(
        std::process::Command::new("sh")
            .current_dir(pool.path().join("volumes"))
            .args(["-c", script]),
    );
    assert!(made.status.success(), "{made:?}");
    store.remove_volume("v").unwrap();
    assert!(!path.exists());
}

#[test]
fn a_device_node_opens_the_device_and_belongs_to_the_zone() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let userns = UserNamespace::new(START);
    let null = NodeSpec {
        block: false,
        major: 1,
        minor: 3,
        mode: 0o640,
        uid: 0,
        gid: 7,
    };
    let node = store.device_node(null, userns.fd.as_fd()).unwrap();
    let path = format!("/proc/self/fd/{}", node.as_raw_fd());
    let meta = fs::metadata(&path).unwrap();
    assert_eq!(
        (meta.uid(), meta.gid(), meta.mode() & 0o777),
        (START, START + 7, 0o640)
    );
    fs::write(&path, "gone").unwrap();
    // Its twin without a node of its own: what lies in a volume opens nothing.
    store.create_volume("v", None).unwrap();
    let device = rustix::fs::makedev(1, 3);
    rustix::fs::mknodat(
        rustix::fs::CWD,
        store.volume_path("v").join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        device,
    )
    .unwrap();
    let tree = store
        .tree(volume("v"), TreeOptions::default(), userns.fd.as_fd())
        .unwrap();
    let refused = fs::read(within(&tree.mount, "null")).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::PermissionDenied);
}

#[test]
fn a_tmpfs_over_a_volume_is_there_until_it_is_taken_away() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let userns = UserNamespace::new(START);
    store.create_volume("v", None).unwrap();
    let options = [
        ("size".to_owned(), "64k".to_owned()),
        ("uid".to_owned(), "33".to_owned()),
    ];
    let cover = || {
        store
            .cover_volume("v", &options, MountAttributes::NO_EXEC)
            .unwrap()
    };
    cover();
    fs::write(store.volume_path("v").join("a"), "x").unwrap();
    cover();
    let tree = store
        .tree(volume("v"), TreeOptions::default(), userns.fd.as_fd())
        .unwrap();
    assert!(within(&tree.mount, "a").exists(), "the same one");
    assert_eq!(fs::metadata(within(&tree.mount, ".")).unwrap().uid(), START + 33);
    store.uncover_volume("v").unwrap();
    store.uncover_volume("v").unwrap();
    assert!(!store.volume_path("v").join("a").exists());
    assert!(within(&tree.mount, "a").exists(), "who has it keeps it");
    cover();
    store.remove_volume("v").unwrap();
    store.uncover_volume("v").unwrap();
}
