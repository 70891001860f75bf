//! Damaged records: what can be made again is, what cannot is kept and told of, and all else works on.

use std::fs;
use std::os::unix::fs::FileExt;

use super::{add, count};
use crate::disk::{self, Content};
use crate::mkfs;
use crate::testing::{TarMaker, TestPool};

const POOL: u64 = 256 << 20;

/// Overwrites the record of an object with something else.
fn damage(pool: &TestPool, kind: &str, name: &str, content: &[u8]) {
    let path = pool.path().join(format!("state/{kind}/{name}.json"));
    assert!(path.exists(), "{}", path.display());
    fs::write(path, content).unwrap();
}

#[test]
fn a_layers_record_is_made_again_from_its_image() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let below = TarMaker::default().file("a", &[1; 5000]).finish();
    let above = TarMaker::default().file("b", &[2; 7000]).finish();
    let image = add(&store, &[&below, &above], "kept");
    store.create_root("zone", &image.id, None).unwrap();
    let before: Vec<_> = image.layers.iter().map(|chain| store.layer(chain)).collect();
    drop(store);
    for chain in &image.layers {
        damage(&pool, "layers", &chain.hex(), b"\0\0\0\0");
    }
    let store = pool.store();
    assert_eq!(store.notes().len(), 2, "{:?}", store.notes());
    assert!(
        store.notes()[0].contains("was damaged and was made again"),
        "{:?}",
        store.notes()
    );
    let after: Vec<_> = image.layers.iter().map(|chain| store.layer(chain)).collect();
    assert_eq!(after, before);
    assert!(store.image(&image.id).is_some());
    assert_eq!(store.roots().len(), 1);
    drop(store);
    assert!(pool.store().notes().is_empty(), "it is mended for good");
}

#[test]
fn what_cannot_be_made_again_is_kept_and_the_rest_goes_on() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let lost = add(
        &store,
        &[&TarMaker::default().file("a", b"lost").finish()],
        "lost",
    );
    let kept = add(
        &store,
        &[&TarMaker::default().file("b", b"kept").finish()],
        "kept",
    );
    store.create_root("of-lost", &lost.id, None).unwrap();
    store.create_root("of-kept", &kept.id, None).unwrap();
    drop(store);
    // Neither the layer nor the image that tells of it can be read.
    damage(&pool, "layers", &lost.layers[0].hex(), b"{}");
    damage(&pool, "images", &lost.id.hex(), b"{\"config\":");
    for _ in 0..2 {
        let store = pool.store();
        let notes = store.notes().join("\n");
        for sentence in [
            "its record is damaged. Pull or load it again",
            "is not used, because its record is damaged",
            "The root of zone of-lost is kept",
        ] {
            assert!(notes.contains(sentence), "{sentence}: {notes}");
        }
        assert!(store.image(&lost.id).is_none() && store.image(&kept.id).is_some());
        let roots: Vec<String> = store.roots().into_iter().map(|(zone, _)| zone).collect();
        assert_eq!(roots, ["of-kept"]);
        assert_eq!((count(&store, "layers"), count(&store, "roots")), (2, 2));
    }
    // The image comes again, and with it the zone.
    let store = pool.store();
    add(
        &store,
        &[&TarMaker::default().file("a", b"lost").finish()],
        "lost",
    );
    drop(store);
    let store = pool.store();
    assert!(store.notes().is_empty(), "{:?}", store.notes());
    assert_eq!(store.roots().len(), 2);
}

#[test]
fn a_disk_whose_first_superblock_is_damaged_is_told_and_never_taken_for_a_blank_one() {
    let mut pool = TestPool::new(POOL);
    fs::write(pool.path().join("kept"), "kept").unwrap();
    pool.unmount();
    let file = fs::File::options()
        .read(true)
        .write(true)
        .open(pool.image())
        .unwrap();
    for content in [[0u8; 4096], [7; 4096]] {
        file.write_all_at(&content, mkfs::SUPER_OFFSET).unwrap();
        let found = disk::inspect(&file, POOL);
        assert!(
            matches!(&found, Content::Foreign(what) if what.contains("btrfs")),
            "{found:?}"
        );
    }
}
