//! Tests of the whole store on a real pool.

mod archives;
mod damage;
mod escapes;
mod files;
mod images;
mod layers;
mod members;
mod memory;
mod quotas;
mod roots;
mod snapshots;
mod speed;
mod transfers;
mod volumes;

use crate::{Digest, Image, Store};

/// An image config over the layers with these tars.
fn config(layers: &[&[u8]]) -> Vec<u8> {
    let diff_ids: Vec<String> = layers.iter().map(|tar| Digest::of(tar).to_string()).collect();
    let config = serde_json::json!({
        "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
        "rootfs": {"type": "layers", "diff_ids": diff_ids},
    });
    serde_json::to_vec(&config).unwrap()
}

/// Ingests the layers and records the image.
fn add(store: &Store, layers: &[&[u8]], name: &str) -> Image {
    let _hold = store.hold();
    let mut parent = None;
    for tar in layers {
        parent = Some(
            store
                .ingest_layer(parent.as_ref(), &Digest::of(tar), *tar)
                .unwrap()
                .chain_id,
        );
    }
    store
        .add_image(&config(layers), Some(&name.parse().unwrap()))
        .unwrap()
}

fn count(store: &Store, folder: &str) -> usize {
    std::fs::read_dir(store.path().join("store").join(folder))
        .unwrap()
        .count()
}
