//! Copies out of and into a zone's tree, and what the zone has changed.

use std::fs;
use std::os::fd::AsFd;

use super::add;
use crate::testing::{TarMaker, TestPool, UserNamespace};
use crate::{ChangeKind, Error, Unpacking, ZoneFiles};

const POOL: u64 = 256 << 20;
const START: u32 = 1_000_000;

fn image() -> Vec<u8> {
    TarMaker::default()
        .dir("./")
        .dir("etc")
        .file("etc/passwd", b"root")
        .file("etc/gone", b"x")
        .dir("data")
        .file("data/old", b"old")
        .symlink("link", "/etc")
        .symlink("outside", "../../../../../../etc")
        .finish()
}

/// Gives a tree of such an image, which is a zone's.
fn with_tree(test: impl FnOnce(&crate::Store, &ZoneFiles)) {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&image()], "a");
    store.create_root("zone", &image.id, None).unwrap();
    let userns = UserNamespace::new(START);
    let mount = store.mount_root("zone", userns.fd.as_fd()).unwrap();
    test(&store, &ZoneFiles::new(mount, START));
}

fn packed(tree: &ZoneFiles, path: &str) -> Vec<(String, u64, String)> {
    let mut bytes = Vec::new();
    tree.pack(path, &mut bytes).unwrap();
    listed(&bytes)
}

/// Names, owners and contents of a tar.
fn listed(bytes: &[u8]) -> Vec<(String, u64, String)> {
    let mut archive = tar::Archive::new(bytes);
    let entries = archive.entries().unwrap();
    entries
        .map(|entry| {
            let mut entry = entry.unwrap();
            let mut text = String::new();
            std::io::Read::read_to_string(&mut entry, &mut text).unwrap();
            let name = String::from_utf8(entry.path_bytes().into_owned()).unwrap();
            (name, entry.header().uid().unwrap(), text)
        })
        .collect()
}

fn line(name: &str, text: &str) -> (String, u64, String) {
    (name.to_owned(), 0, text.to_owned())
}

#[test]
fn what_is_copied_in_belongs_to_the_zone_and_comes_out_the_same() {
    with_tree(|store, tree| {
        let tar = TarMaker::default().dir("new").file("new/file", b"hello").finish();
        tree.unpack("/data", tar.as_slice(), Unpacking::default())
            .unwrap();
        let upper = store.path().join("store/roots/zone/upper/data/new/file");
        assert_eq!(fs::read(&upper).unwrap(), b"hello");
        let owner = std::os::unix::fs::MetadataExt::uid(&fs::metadata(&upper).unwrap());
        assert_eq!(owner, 0, "on disk the ids are the image's");
        assert_eq!(
            packed(tree, "/data/new"),
            [line("new/", ""), line("new/file", "hello")]
        );
        assert_eq!(packed(tree, "/data/new/file"), [line("file", "hello")]);
        let info = tree.stat("/data/new/file").unwrap();
        assert_eq!((info.name.as_str(), info.size), ("file", 5));
    });
}

#[test]
fn links_are_followed_within_the_zone_only() {
    with_tree(|_, tree| {
        // The link itself, then what it means.
        assert_eq!(tree.stat("/link").unwrap().link, "/etc");
        assert_eq!(packed(tree, "/link/passwd"), [line("passwd", "root")]);
        assert_eq!(packed(tree, "/outside/passwd"), [line("passwd", "root")]);
        let tar = TarMaker::default().file("passwd", b"new").finish();
        tree.unpack("/outside", tar.as_slice(), Unpacking::default())
            .unwrap();
        assert_eq!(packed(tree, "/etc/passwd"), [line("passwd", "new")]);
        let escape = TarMaker::default().file("../passwd", b"bad").finish();
        let refused = tree.unpack("/data", escape.as_slice(), Unpacking::default());
        assert!(matches!(refused, Err(Error::BadEntry { .. })), "{refused:?}");
        assert_eq!(packed(tree, "/etc/passwd"), [line("passwd", "new")]);
    });
}

#[test]
fn paths_that_are_not_there_or_no_folders_are_told_apart() {
    with_tree(|_, tree| {
        let tar = TarMaker::default().file("a", b"").finish();
        let into = |folder| tree.unpack(folder, tar.as_slice(), Unpacking::default());
        assert!(matches!(into("/nowhere"), Err(Error::NoSuchPath { .. })));
        assert!(matches!(into("/etc/passwd"), Err(Error::NotADirectory { .. })));
        assert!(matches!(tree.stat("/etc/nothing"), Err(Error::NoSuchPath { .. })));
        let mut sink = Vec::new();
        assert!(matches!(
            tree.pack("/nowhere/x", &mut sink),
            Err(Error::NoSuchPath { .. })
        ));
    });
}

#[test]
fn kinds_are_kept_where_that_is_asked_and_owners_changed() {
    with_tree(|store, tree| {
        let tar = TarMaker::default().file("etc", b"no folder").finish();
        let keep = Unpacking {
            keep_kinds: true,
            ..Unpacking::default()
        };
        let refused = tree.unpack("/", tar.as_slice(), keep).unwrap_err();
        assert!(refused.to_string().contains("overwrite a directory"), "{refused}");
        let tar = TarMaker::default().file("own", b"").finish();
        let owned = Unpacking {
            owner: Some((33, 44)),
            ..Unpacking::default()
        };
        tree.unpack("/data", tar.as_slice(), owned).unwrap();
        let meta = fs::metadata(store.path().join("store/roots/zone/upper/data/own")).unwrap();
        use std::os::unix::fs::MetadataExt;
        assert_eq!((meta.uid(), meta.gid()), (33, 44));
    });
}

#[test]
fn the_changes_are_those_of_the_zone_alone() {
    with_tree(|store, tree| {
        assert_eq!(store.changes("zone").unwrap(), []);
        let tar = TarMaker::default()
            .file("data/fresh", b"")
            .file("etc/passwd", b"1")
            .finish();
        tree.unpack("/", tar.as_slice(), Unpacking::default()).unwrap();
        let merged = format!("/proc/self/fd/{}", std::os::fd::AsRawFd::as_raw_fd(&tree.root()));
        fs::remove_file(format!("{merged}/etc/gone")).unwrap();
        let changes = store.changes("zone").unwrap();
        let shown: Vec<_> = changes
            .iter()
            .map(|change| (change.path.as_str(), change.kind))
            .collect();
        assert_eq!(
            shown,
            [
                ("/data", ChangeKind::Modified),
                ("/data/fresh", ChangeKind::Added),
                ("/etc", ChangeKind::Modified),
                ("/etc/gone", ChangeKind::Deleted),
                ("/etc/passwd", ChangeKind::Modified),
            ]
        );
    });
}

#[test]
fn an_export_is_an_image_again() {
    with_tree(|store, tree| {
        let mut bytes = Vec::new();
        tree.export(&mut bytes).unwrap();
        let names: Vec<_> = listed(&bytes).into_iter().map(|(name, ..)| name).collect();
        assert!(
            names.contains(&"etc/passwd".to_owned()) && names[0] == "./",
            "{names:?}"
        );
        add(store, &[&bytes], "again");
    });
}

/// Makes a folder in a folder in a folder …, deeper than any path can name.
fn dig(folder: &std::path::Path, levels: usize) {
    use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
    let mut here = openat(CWD, folder, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    for _ in 0..levels {
        mkdirat(&here, "d", Mode::RWXU).unwrap();
        here = openat(&here, "d", OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
    }
}

#[test]
fn a_tree_deeper_than_any_path_ends_no_process() {
    with_tree(|store, tree| {
        let upper = store.path().join("store/roots/zone/upper");
        fs::write(upper.join("counted"), "12345").unwrap();
        dig(&upper, 6_000);
        assert_eq!(store.root_size("zone").unwrap(), 5);
        // Half a copy or list would be taken for the whole.
        store.changes("zone").unwrap_err();
        tree.export(std::io::sink()).unwrap_err();
        tree.pack("/d", std::io::sink()).unwrap_err();
        let tar = TarMaker::default().file("d", b"").finish();
        tree.unpack("/", tar.as_slice(), Unpacking::default())
            .unwrap_err();
    });
}
