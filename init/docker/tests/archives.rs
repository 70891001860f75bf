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
