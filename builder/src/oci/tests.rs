//! Images of every source, with `skopeo` as the oracle of the formats.

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::*;
use crate::progress::Silent;

/// A root file system of two files as a tar file.
fn rootfs(dir: &Path) -> PathBuf {
    let path = dir.join("rootfs.tar");
    let mut tar = tar::Builder::new(File::create(&path).unwrap());
    for (name, text) in [("etc/motd", "hello\n"), ("bin/sh", "#!\n")] {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o755);
        header.set_size(text.len() as u64);
        tar.append_data(&mut header, name, text.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap();
    path
}

const ROOTFS: &str = "source.rootfs = \"rootfs.tar\"\nconfig = { cmd = [\"sh\"], exposed-ports = [\"80\"] }\n\
    [[image.file]]\npath = \"/srv/page\"\ncontent = \"page\"\n[[image.file]]\npath = \"/srv/link\"\nlink = \"page\"\n";

/// Makes the image of a recipe that consists of it alone, in a cache of its own.
fn made(dir: &Path, image: &str) -> anyhow::Result<Prepared> {
    let text = format!(
        "name = \"t\"\n[kernel]\nprovider = \"debian\"\npackage = \"none\"\ncommand-line = \"\"\n\
         [[image]]\nreference = \"team/app:1\"\n{image}"
    );
    fs::write(dir.join("t.toml"), text).unwrap();
    let recipe = Recipe::load(&dir.join("t.toml")).unwrap();
    let cache = Cache::open(&dir.join("cache")).unwrap();
    prepare(
        &recipe,
        &recipe.images[0],
        &cache,
        &Archive::new(&cache, &Silent),
        &Silent,
    )
}

fn skopeo(args: &[&str]) -> String {
    tools::need(&["skopeo"]);
    let output = Command::new("skopeo")
        .arg("--insecure-policy")
        .args(args)
        .output()
        .unwrap_or_else(|error| panic!("This test needs skopeo (Debian package skopeo): {error}"));
    assert!(
        output.status.success(),
        "skopeo {args:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn skopeo_reads_the_archive_of_a_root_file_system_and_its_added_files() {
    let dir = tempfile::tempdir().unwrap();
    rootfs(dir.path());
    let image = made(dir.path(), ROOTFS).unwrap();
    let source = format!("oci-archive:{}", image.archive.display());
    let config: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", "--config", &source])).unwrap();
    assert_eq!(config["config"]["Cmd"][0], "sh");
    assert_eq!(config["rootfs"]["diff_ids"].as_array().unwrap().len(), 2);
    assert_eq!(
        config["rootfs"]["diff_ids"][0],
        format!(
            "sha256:{}",
            sha256_of_file(&dir.path().join("rootfs.tar")).unwrap()
        )
    );
    let about: serde_json::Value = serde_json::from_str(&skopeo(&["inspect", &source])).unwrap();
    assert_eq!(about["Layers"].as_array().unwrap().len(), 2);
}

#[test]
fn an_image_keeps_its_id_through_every_form_that_skopeo_writes() {
    let dir = tempfile::tempdir().unwrap();
    rootfs(dir.path());
    let original = made(dir.path(), ROOTFS).unwrap();
    let from = format!("oci-archive:{}", original.archive.display());
    let at = |name: &str| dir.path().join(name).display().to_string();
    // skopeo compresses layers on the way into an OCI layout; the builder takes that back.
    skopeo(&[
        "copy",
        "--dest-compress",
        &from,
        &format!("oci-archive:{}", at("oci.tar")),
    ]);
    skopeo(&[
        "copy",
        "--dest-compress",
        &from,
        &format!("oci:{}:1", at("layout")),
    ]);
    skopeo(&[
        "copy",
        &from,
        &format!("docker-archive:{}:team/app:1", at("docker.tar")),
    ]);
    let mut gzip = flate2::write::GzEncoder::new(
        File::create(at("docker.tar.gz")).unwrap(),
        flate2::Compression::fast(),
    );
    gzip.write_all(&fs::read(at("docker.tar")).unwrap()).unwrap();
    gzip.finish().unwrap();
    for source in [
        "source.oci-archive = \"oci.tar\"",
        "source.oci-layout = \"layout\"",
        "source.docker-archive = \"docker.tar\"",
        "source.docker-archive = \"docker.tar.gz\"",
    ] {
        let image = made(dir.path(), source).unwrap_or_else(|error| panic!("{source}: {error:#}"));
        let layers = |image: &Prepared| {
            let source = format!("oci-archive:{}", image.archive.display());
            let config: serde_json::Value =
                serde_json::from_str(&skopeo(&["inspect", "--config", &source])).unwrap();
            config["rootfs"]["diff_ids"].clone()
        };
        assert_eq!(layers(&image), layers(&original), "{source}");
        if !source.contains("docker") {
            assert_eq!(
                (&image.id, &image.sha256),
                (&original.id, &original.sha256),
                "{source}"
            );
        }
    }
}

#[test]
fn truncated_and_damaged_archives_are_refused_and_leave_nothing() {
    let dir = tempfile::tempdir().unwrap();
    rootfs(dir.path());
    let whole = fs::read(made(dir.path(), ROOTFS).unwrap().archive).unwrap();
    fs::remove_dir_all(dir.path().join("cache")).unwrap();
    let try_with = |bytes: &[u8]| {
        fs::write(dir.path().join("x.tar"), bytes).unwrap();
        made(dir.path(), "source.oci-archive = \"x.tar\"")
    };
    for length in [0, 100, 700, whole.len() / 2, whole.len() - 2048] {
        let error = format!(
            "{:#}",
            try_with(&whole[..length]).expect_err("a truncated archive")
        );
        assert!(
            error.contains("team/app:1") && error.contains("x.tar is no whole image archive"),
            "{length}: {error}"
        );
    }
    // One changed byte in the last layer.
    let mut damaged = whole.clone();
    let at = damaged.windows(4).rposition(|bytes| bytes == b"page").unwrap();
    damaged[at] = b'P';
    let error = format!("{:#}", try_with(&damaged).unwrap_err());
    assert!(error.contains("damaged"), "{error}");
    let made_things = fs::read_dir(dir.path().join("cache/images")).unwrap().count();
    assert_eq!(made_things, 0, "nothing half-made is left");
    assert!(try_with(&whole).is_ok(), "the whole archive is taken");
}

#[test]
fn a_damaged_root_file_system_and_one_that_is_not_there_are_named() {
    let dir = tempfile::tempdir().unwrap();
    let error = format!(
        "{:#}",
        made(dir.path(), "source.rootfs = \"none.tar\"").unwrap_err()
    );
    assert!(error.contains("none.tar, which the recipe names"), "{error}");
    let path = rootfs(dir.path());
    let mut bytes = Vec::new();
    File::open(&path).unwrap().read_to_end(&mut bytes).unwrap();
    for bad in [&bytes[..514], b"not a tar file at all, only text", b""] {
        fs::write(&path, bad).unwrap();
        let error = format!(
            "{:#}",
            made(dir.path(), "source.rootfs = \"rootfs.tar\"").unwrap_err()
        );
        assert!(error.contains("rootfs.tar"), "{error}");
    }
}

#[test]
fn a_changed_source_makes_another_image() {
    let dir = tempfile::tempdir().unwrap();
    let path = rootfs(dir.path());
    let first = made(dir.path(), "source.rootfs = \"rootfs.tar\"").unwrap();
    let mut tar = tar::Builder::new(File::create(path).unwrap());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    tar.append_data(&mut header, "other", std::io::empty()).unwrap();
    tar.into_inner().unwrap();
    assert_ne!(
        made(dir.path(), "source.rootfs = \"rootfs.tar\"").unwrap().id,
        first.id
    );
}
