//! Archives of whole images, made by hand and by skopeo.

use std::process::Command;

use super::{add, config, count};
use crate::testing::{TarMaker, TestPool, output};
use crate::{Digest, Error, ImageConfig, LoadEvent, Store};

const POOL: u64 = 256 << 20;

fn layer() -> Vec<u8> {
    TarMaker::default().dir("bin").file("bin/sh", b"shell").finish()
}

/// `docker save` as it was before version 25.
fn old_archive(layer: &[u8], config: &[u8]) -> Vec<u8> {
    let name = format!("{}.json", Digest::of(config).hex());
    let manifest = serde_json::json!([
        {"Config": name, "RepoTags": ["team/app:v1"], "Layers": ["one/layer.tar"]}
    ]);
    TarMaker::default()
        .symlink("one/layer.tar", "../two/layer.tar")
        .file("two/layer.tar", layer)
        .file(&name, config)
        .file("manifest.json", manifest.to_string().as_bytes())
        .finish()
}

fn oci_archive(layer: &[u8], config: &[u8]) -> Vec<u8> {
    let (layer_id, config_id) = (Digest::of(layer), Digest::of(config));
    let manifest = serde_json::json!({
        "schemaVersion": 2, "config": {"digest": config_id, "size": config.len()},
        "layers": [{"digest": layer_id, "size": layer.len()}],
    })
    .to_string();
    let manifest_id = Digest::of(manifest.as_bytes());
    let index = serde_json::json!({"schemaVersion": 2, "manifests": [
        {"digest": Digest::of(b"arm"), "platform": {"architecture": "arm64", "os": "linux"}},
        {"digest": manifest_id, "annotations": {"org.opencontainers.image.ref.name": "team/app:v1"}},
    ]});
    [
        (&layer_id, layer),
        (&config_id, config),
        (&manifest_id, manifest.as_bytes()),
    ]
    .into_iter()
    .fold(TarMaker::default(), |tar, (id, content)| {
        tar.file(&format!("blobs/sha256/{}", id.hex()), content)
    })
    .file("index.json", index.to_string().as_bytes())
    .finish()
}

fn load(store: &Store, archive: &[u8]) -> crate::Result<Vec<crate::Loaded>> {
    store.load(archive, &mut |_| {})
}

#[test]
fn both_forms_of_archives_give_the_same_image() {
    let (layer, config) = (layer(), config(&[&layer()]));
    for archive in [old_archive(&layer, &config), oci_archive(&layer, &config)] {
        let pool = TestPool::new(POOL);
        let store = pool.store();
        let (mut layers, mut unpacked) = (Vec::new(), Vec::new());
        let loaded = store
            .load(archive.as_slice(), &mut |event| match event {
                LoadEvent::Layer {
                    index,
                    total,
                    present,
                } => layers.push((index, total, present)),
                LoadEvent::Unpacking { diff_id, done, total } => unpacked.push((diff_id, done == total)),
                LoadEvent::Read { .. } => {}
            })
            .unwrap();
        assert_eq!(
            (loaded.len(), loaded[0].references[0].to_string()),
            (1, "team/app:v1".to_owned())
        );
        assert_eq!(layers, [(0, 1, false)]);
        assert_eq!(unpacked, [(Digest::of(&layer), true)]);
        let image = store.resolve("team/app:v1").unwrap();
        assert_eq!(
            (image.id.0, image.raw_config, image.size),
            (Digest::of(&config), config.clone(), 5)
        );
        // Again, and compressed: nothing is made twice.
        let compressed = zstd::encode_all(archive.as_slice(), 1).unwrap();
        load(&store, &compressed).unwrap();
        assert_eq!(
            (
                store.images().len(),
                count(&store, "layers"),
                count(&store, "tmp")
            ),
            (1, 1, 0)
        );
    }
}

#[test]
fn damaged_archives_are_refused_and_leave_nothing() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let (layer, config) = (layer(), config(&[&layer()]));
    let whole = oci_archive(&layer, &config);
    let other = TarMaker::default().file("bin/sh", b"other").finish();
    let position = whole.windows(5).position(|bytes| bytes == b"shell").unwrap();
    let mut flipped = whole.clone();
    flipped[position] ^= 1;
    let table: [(&str, Vec<u8>); 8] = [
        ("truncated", whole[..whole.len() / 2].to_vec()),
        ("a flipped bit", flipped),
        ("another layer", old_archive(&other, &config)),
        ("no image", TarMaker::default().file("a", b"x").finish()),
        ("no tar", vec![b'x'; 4096]),
        ("empty", Vec::new()),
        (
            "no json",
            TarMaker::default().file("manifest.json", b"{").finish(),
        ),
        (
            "a missing part",
            TarMaker::default()
                .file("manifest.json", br#"[{"Config":"c.json","Layers":["l"]}]"#)
                .finish(),
        ),
    ];
    for (name, archive) in table {
        let error = load(&store, &archive).unwrap_err();
        assert!(error.is_bad_input(), "{name}: {error}");
        assert_eq!(
            (count(&store, "tmp"), count(&store, "layers")),
            (0, 0),
            "{name} left something"
        );
        assert!(store.images().is_empty(), "{name}");
    }
}

#[test]
fn a_hostile_layer_within_an_archive_is_refused_by_name() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let layer = TarMaker::default()
        .file("good", b"x")
        .file("../../evil", b"x")
        .finish();
    let error = load(&store, &oci_archive(&layer, &config(&[&layer]))).unwrap_err();
    assert!(
        matches!(&error, Error::BadEntry { entry, .. } if entry == "../../evil"),
        "{error}"
    );
    assert_eq!((count(&store, "tmp"), count(&store, "layers")), (0, 0));
}

#[test]
fn a_bare_tree_is_imported_with_the_config_given() {
    let pool = TestPool::new(POOL);
    let store = pool.store();
    let mut wanted = ImageConfig::default();
    wanted.config.cmd = Some(vec!["/bin/sh".to_owned()]);
    let image = store
        .import(layer().as_slice(), wanted, Some(&"tree".parse().unwrap()))
        .unwrap();
    assert_eq!(image.config.config.cmd, Some(vec!["/bin/sh".to_owned()]));
    assert_eq!(image.config.rootfs.diff_ids, [Digest::of(&layer())]);
    assert_eq!(
        (store.resolve("tree").unwrap().id, image.config.os.as_str()),
        (image.id, "linux")
    );
    assert_eq!(add(&store, &[&layer()], "same").layers, image.layers);
}

/// The tool that others use reads our image and writes it in its own two forms.
#[test]
fn archives_that_skopeo_writes_are_loaded() {
    let dir = tempfile::tempdir().unwrap();
    let (layer, config) = (layer(), config(&[&layer()]));
    let source = dir.path().join("source.tar");
    let manifest = r#"[{"Config":"c.json","RepoTags":["a:b"],"Layers":["l.tar"]}]"#;
    let archive = TarMaker::default()
        .file("l.tar", &layer)
        .file("c.json", &config)
        .file("manifest.json", manifest.as_bytes())
        .finish();
    std::fs::write(&source, archive).unwrap();
    for form in ["docker-archive", "oci-archive"] {
        let target = dir.path().join(format!("{form}.tar"));
        let output = output(
            Command::new("skopeo")
                .args(["--insecure-policy", "copy", "--quiet"])
                .arg(format!("docker-archive:{}", source.display()))
                .arg(format!("{form}:{}:docker.io/team/copy:v2", target.display())),
        );
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "skopeo failed to write a {form}: {text}");
        let pool = TestPool::new(POOL);
        let store = pool.store();
        let loaded = load(&store, &std::fs::read(&target).unwrap()).unwrap();
        assert_eq!(loaded[0].references[0].to_string(), "team/copy:v2", "{form}");
        assert_eq!(store.images()[0].config.rootfs.diff_ids, [Digest::of(&layer)]);
    }
}
