//! Names of images, and what keeps their layers.

use super::{add, config, count};
use crate::testing::{TarMaker, TestPool};
use crate::{Digest, Error, Reference};

const POOL: u64 = 256 << 20;

fn tar(name: &str) -> Vec<u8> {
    TarMaker::default().file(name, name.as_bytes()).finish()
}

fn shown(references: &[Reference]) -> Vec<String> {
    references.iter().map(Reference::to_string).collect()
}

#[test]
fn an_image_is_found_by_each_of_its_names() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&tar("a")], "team/app:v1");
    let digest = Digest::of(b"manifest");
    store
        .tag(&image.id, &format!("team/app@{digest}").parse().unwrap())
        .unwrap();
    store.tag(&image.id, &"other".parse().unwrap()).unwrap();
    let hex = image.id.hex();
    for name in [
        "team/app:v1",
        "docker.io/team/app:v1",
        "other",
        "other:latest",
        &format!("team/app@{digest}"),
        &hex,
        &hex[..12],
        &format!("sha256:{hex}"),
        &format!("sha256:{}", &hex[..8]),
    ] {
        assert_eq!(store.resolve(name).unwrap().id, image.id, "{name}");
    }
    for name in [
        "team/app",
        "team/app:v2",
        "",
        "..",
        "sha256:",
        &Digest::of(b"x").hex(),
    ] {
        assert!(
            store.resolve(name).unwrap_err().is_not_found(),
            "`{name}` was found"
        );
    }
    let image = store.image(&image.id).unwrap();
    assert_eq!(shown(&image.references), ["other:latest", "team/app:v1"]);
    assert_eq!(shown(&image.digests), [format!("team/app@{digest}")]);
}

#[test]
fn a_tag_moves_to_the_image_that_got_it_last() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let first = add(&store, &[&tar("a")], "app");
    let second = add(&store, &[&tar("b")], "app");
    assert_eq!(store.resolve("app").unwrap().id, second.id);
    assert!(store.image(&first.id).unwrap().references.is_empty());
    drop(store);
    let store = pool.store();
    assert_eq!(store.resolve("app").unwrap().id, second.id);
    assert_eq!(store.images().len(), 2);
}

#[test]
fn everything_is_there_again_after_a_remount() {
    let mut pool = TestPool::new(POOL);
    let image = add(&pool.store(), &[&tar("a"), &tar("b")], "app:v1");
    pool.unmount();
    pool.mount();
    let again = pool.store().resolve("app:v1").unwrap();
    assert_eq!(
        (again.id, again.raw_config, again.size),
        (image.id, config(&[&tar("a"), &tar("b")]), 2)
    );
}

#[test]
fn an_acknowledged_image_survives_a_power_cut() {
    let mut pool = TestPool::new(POOL);
    let store = pool.store();
    let large = TarMaker::default().file("large", &[7; 3 << 20]).finish();
    let image = add(&store, &[&large, &tar("b")], "app:v1");
    // Not acknowledged yet: a layer without its image.
    store
        .ingest_layer(None, &Digest::of(&tar("c")), tar("c").as_slice())
        .unwrap();
    let copy = pool.copy();
    drop(store);
    pool.unmount();
    pool.replace_image(copy);
    pool.mount();
    let store = pool.store();
    let again = store.resolve("app:v1").unwrap();
    assert_eq!(
        (again.id, count(&store, "layers"), count(&store, "tmp")),
        (image.id, 2, 0)
    );
    let file = pool
        .path()
        .join("store/layers")
        .join(image.layers[1].hex())
        .join("large");
    assert_eq!(std::fs::read(file).unwrap(), vec![7; 3 << 20]);
}

#[test]
fn layers_go_with_the_last_image_that_uses_them() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let (base, a, b) = (tar("base"), tar("a"), tar("b"));
    let first = add(&store, &[&base, &a], "first");
    let second = add(&store, &[&base, &b], "second");
    assert_eq!(count(&store, "layers"), 3);
    assert_eq!(store.remove_image(&first.id, false).unwrap(), [first.layers[1]]);
    assert_eq!(count(&store, "layers"), 2);
    assert_eq!(store.remove_image(&second.id, false).unwrap().len(), 2);
    assert_eq!(count(&store, "layers"), 0);
    assert!(store.remove_image(&second.id, false).unwrap_err().is_not_found());
}

#[test]
fn an_image_in_use_or_with_several_names_is_not_removed_unless_forced() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let image = add(&store, &[&tar("a")], "app");
    store.tag(&image.id, &"other".parse().unwrap()).unwrap();
    assert!(matches!(
        store.remove_image(&image.id, false),
        Err(Error::ImageHasNames { count: 2, .. })
    ));
    store.untag(&"other".parse().unwrap()).unwrap();
    store.create_root("zone1", &image.id, None).unwrap();
    let error = store.remove_image(&image.id, false).unwrap_err();
    assert!(
        error.is_conflict() && error.to_string().contains("zone1"),
        "{error}"
    );
    assert_eq!(store.remove_image(&image.id, true).unwrap(), []);
    assert_eq!(count(&store, "layers"), 1, "a root lost its tree");
    store.remove_root("zone1").unwrap();
    assert_eq!(count(&store, "layers"), 0);
}

#[test]
fn a_held_layer_outlives_the_image_it_was_of() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let (base, a) = (tar("base"), tar("a"));
    let first = add(&store, &[&base], "first");
    let hold = store.hold();
    store.remove_image(&first.id, false).unwrap();
    assert!(store.has_layer(&first.layers[0]));
    add(&store, &[&base, &a], "second");
    drop(hold);
    assert_eq!(count(&store, "layers"), 2);
}

#[test]
fn an_image_without_its_layers_is_not_recorded() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let error = store.add_image(&config(&[&tar("a")]), None).unwrap_err();
    assert!(matches!(error, Error::MissingLayer { .. }));
    assert!(store.add_image(b"no json", None).unwrap_err().is_bad_input());
    assert!(store.images().is_empty());
}

#[test]
fn a_folder_that_is_no_pool_is_refused() {
    let dir = tempfile::tempdir().unwrap();
    assert!(matches!(
        crate::Store::open(dir.path()),
        Err(Error::NotAPool { .. })
    ));
}

#[test]
fn the_stores_own_objects_are_out_of_reach() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    assert!(store.objects("images").is_err() && store.directory("store").is_err());
    assert!(store.objects("containers").is_ok() && store.directory("logs").is_ok());
    let usage = store.usage().unwrap();
    assert!(usage.free > 0 && usage.free < usage.total);
}
