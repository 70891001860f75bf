//! Images in archives, as the docker command line sends them.

#![allow(
    clippy::unwrap_used,
    reason = "a test ends at the first thing that is not as it should be"
)]

mod common;

use std::io::Write;
use std::process::Stdio;

use common::{Machine, with_machine};
use serde_json::json;
use store::Digest;

/// Bytes that no buffer between client and engine holds.
const MUCH: usize = 64 << 20;

fn tar(files: &[(&str, &[u8])]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        // Written as it is, since the crate refuses what this test wants to send.
        header.as_old_mut().name[..name.len()].copy_from_slice(name.as_bytes());
        header.set_cksum();
        builder.append(&header, *content).unwrap();
    }
    builder.into_inner().unwrap()
}

/// An image as `docker save` packs it.
fn archive(name: &str, layer: &[u8]) -> Vec<u8> {
    let config = json!({
        "architecture": "amd64", "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [Digest::of(layer)]},
    });
    let manifest = json!([{"Config": "config.json", "RepoTags": [name], "Layers": ["layer.tar"]}]);
    tar(&[
        ("layer.tar", layer),
        ("config.json", config.to_string().as_bytes()),
        ("manifest.json", manifest.to_string().as_bytes()),
    ])
}

/// Sends `input` to a command that must fail; what it complains of.
fn refused(machine: &Machine, args: &[&str], input: &[u8]) -> String {
    let mut child = machine.command(args).stdin(Stdio::piped()).spawn().unwrap();
    // The command may end before it has read everything.
    let _ = child.stdin.take().unwrap().write_all(input);
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success(), "docker {args:?}: {text}");
    text
}

#[test]
fn a_client_that_still_sends_learns_why_its_archive_is_refused() {
    with_machine(|machine| {
        // What is wrong stands at the front.
        let layer = tar(&[("../escape", b"x"), ("much", &vec![0; MUCH])]);
        let mut garbage = b"this is no archive".repeat(64);
        garbage.resize(MUCH, b'x');
        for round in 0..5 {
            let text = refused(machine, &["load"], &garbage);
            assert!(text.contains("archive"), "round {round}: {text}");
            let text = refused(machine, &["import", "-", "bad:1"], &layer);
            assert!(text.contains("escape"), "round {round}: {text}");
            // Here nothing of it is looked at.
            let elsewhere = ["import", "--platform", "linux/arm64", "-", "bad:1"];
            let text = refused(machine, &elsewhere, &layer);
            assert!(text.contains("linux/arm64"), "round {round}: {text}");
        }
        assert_eq!(machine.out(&["images", "-q", "bad"]), "");
    });
}

#[test]
fn a_load_tells_how_far_it_is_and_a_quiet_one_does_not() {
    with_machine(|machine| {
        let layer = tar(&[("file", &vec![7; 2 << 20])]);
        let id = &Digest::of(&layer).hex()[..12];
        let file = machine.dir.join("box.tar");
        std::fs::write(&file, archive("box:1", &layer)).unwrap();
        let file = file.to_str().unwrap();
        let (code, told) = machine.terminal(&["load", "-i", file], 24, 120).finish();
        assert_eq!(code, 0, "{told}");
        for part in [id, "Loading layer", "Loaded image: box:1"] {
            assert!(told.contains(part), "{part}: {told}");
        }
        machine.out(&["rmi", "box:1"]);
        assert_eq!(machine.out(&["load", "-q", "-i", file]), "Loaded image: box:1");
    });
}

#[test]
fn an_import_for_another_kind_of_machine_is_refused() {
    with_machine(|machine| {
        let rootfs = tar(&[("file", b"x")]);
        let text = refused(
            machine,
            &["import", "--platform", "linux/arm64", "-", "arm:1"],
            &rootfs,
        );
        assert!(text.contains("linux/arm64"), "{text}");
        let id = machine.feed(&["import", "--platform", "linux/amd64", "-", "amd:1"], &rootfs);
        assert!(id.starts_with("sha256:"), "{id}");
    });
}

/// Names and contents of the files of a tar.
fn files(tar: &[u8]) -> std::collections::BTreeMap<String, Vec<u8>> {
    let mut archive = tar::Archive::new(tar);
    let entries = archive.entries().unwrap().map(|entry| {
        let mut entry = entry.unwrap();
        let name = entry.path().unwrap().to_str().unwrap().to_owned();
        let mut content = Vec::new();
        std::io::Read::read_to_end(&mut entry, &mut content).unwrap();
        (name, content)
    });
    entries.collect()
}

#[test]
fn what_is_saved_is_what_was_loaded_and_loads_again() {
    with_machine(|machine| {
        let layer = tar(&[("file", &vec![7; 300_000]), ("other", b"x")]);
        let load = |name: &str, archive: &[u8]| {
            let file = machine.dir.join(name);
            std::fs::write(&file, archive).unwrap();
            machine.out(&["load", "-i", file.to_str().unwrap()])
        };
        load("first", &archive("box:1", &layer));
        let id = machine
            .out(&["images", "-q", "--no-trunc", "box:1"])
            .trim()
            .to_owned();
        machine.out(&["tag", "box:1", "box:2"]);
        machine.out(&["tag", "box:1", "elsewhere/box:3"]);
        // One that was made here, of what a container has changed.
        machine.out(&[
            "run",
            "--name",
            "maker",
            "busybox",
            "sh",
            "-c",
            "echo made > /made; rm /etc/group",
        ]);
        machine.out(&["commit", "maker", "made:1"]);
        let save = |names: &[&str]| {
            let output = machine
                .command(&[&["save"], names].concat())
                .stdout(Stdio::piped())
                .output()
                .unwrap();
            assert!(output.status.success(), "{output:?}");
            output.stdout
        };
        let one = save(&["box:1"]);
        let parts = files(&one);
        let blob = format!("blobs/sha256/{}", Digest::of(&layer).hex());
        assert!(parts[&blob] == layer, "the layer's archive is another");
        let manifest: serde_json::Value = serde_json::from_slice(&parts["manifest.json"]).unwrap();
        assert_eq!(manifest[0]["RepoTags"], json!(["box:1"]));
        assert_eq!(manifest[0]["Layers"], json!([blob]));
        // By its repository with all tags of that, by its id without any.
        let manifest = |tar: &[u8]| -> serde_json::Value {
            serde_json::from_slice(&files(tar)["manifest.json"]).unwrap()
        };
        assert_eq!(
            manifest(&save(&["box"]))[0]["RepoTags"],
            json!(["box:1", "box:2"])
        );
        assert_eq!(manifest(&save(&[&id]))[0]["RepoTags"], serde_json::Value::Null);

        let all = save(&["box:1", "elsewhere/box:3", "made:1", "busybox"]);
        assert_eq!(manifest(&all).as_array().unwrap().len(), 3);
        let made = machine.out(&["images", "-q", "--no-trunc", "made:1"]);
        machine.out(&["rm", "maker"]);
        machine.out(&["rmi", "box:1", "box:2", "elsewhere/box:3", "made:1"]);
        let told = load("all", &all);
        assert!(told.contains("Loaded image: elsewhere/box:3"), "{told}");
        assert_eq!(machine.out(&["images", "-q", "--no-trunc", "box:1"]).trim(), id);
        assert_eq!(machine.out(&["images", "-q", "--no-trunc", "made:1"]), made);
        let said = machine.out(&[
            "run",
            "--rm",
            "made:1",
            "sh",
            "-c",
            "cat /made; [ -e /etc/group ] || echo gone",
        ]);
        assert_eq!(said, "made\ngone");

        // As other tools read it: by its manifest, and as an OCI layout.
        let folder = machine.dir.join("layout");
        std::fs::create_dir(&folder).unwrap();
        tar::Archive::new(one.as_slice()).unpack(&folder).unwrap();
        let file = machine.dir.join("one.tar");
        std::fs::write(&file, &one).unwrap();
        tools::need(&["skopeo"]);
        for source in [
            format!("docker-archive:{}", file.display()),
            format!("oci:{}", folder.display()),
        ] {
            let told = std::process::Command::new("skopeo")
                .args(["inspect", "--config", "--raw", &source])
                .output()
                .unwrap();
            assert!(told.status.success(), "{source}: {told:?}");
            assert_eq!(format!("{}", Digest::of(&told.stdout)), id, "{source}");
        }
        let missing = machine.command(&["save", "nothing:1"]).output().unwrap();
        let text = String::from_utf8_lossy(&missing.stderr).into_owned();
        assert!(text.contains("No such image: nothing:1"), "{text}");
    });
}

#[test]
fn images_are_pruned_by_label_and_age() {
    with_machine(|machine| {
        for name in ["keep", "drop"] {
            let file = machine.dir.join("Dockerfile");
            std::fs::write(&file, format!("FROM busybox\nLABEL kind={name}\n")).unwrap();
            machine.out(&["build", "-q", "-t", name, machine.dir.to_str().unwrap()]);
        }
        machine.out(&["image", "prune", "-af", "--filter", "label=kind=drop"]);
        assert_eq!(machine.out(&["images", "-q", "drop"]), "");
        machine.out(&[
            "image",
            "prune",
            "-af",
            "--filter",
            "until=24h",
            "--filter",
            "label=kind",
        ]);
        assert_ne!(machine.out(&["images", "-q", "keep"]), "");
        machine.out(&[
            "image",
            "prune",
            "-af",
            "--filter",
            "label!=kind=other",
            "--filter",
            "label=kind",
        ]);
        assert_eq!(machine.out(&["images", "-q", "keep"]), "");
        assert_ne!(machine.out(&["images", "-q", "busybox"]), "");
    });
}
