//! The images that came in the initramfs: into the store once, and out of memory.

use std::fs::{self, File};
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use anyhow::Context;
use handover::{IMAGES_DIR, PreloadedImage};
use store::{Reference, Store};
use tokio::task::spawn_blocking;

use crate::boot::report;

/// Loads the images that the store does not have yet.
pub(crate) async fn images(store: &Arc<Store>, images: &[PreloadedImage]) {
    for image in images {
        let started = Instant::now();
        let (store, image) = (store.clone(), image.clone());
        let told = spawn_blocking(move || load(&store, &image)).await;
        let told = told.unwrap_or_else(|panic| Err(anyhow::anyhow!("Loading an image panicked: {panic}")));
        report("image", started, told);
    }
}

fn load(store: &Store, image: &PreloadedImage) -> anyhow::Result<String> {
    let path = Path::new(IMAGES_DIR).join(&image.file);
    let reference: Reference = image
        .reference
        .parse()
        .with_context(|| format!("The image name {} is not one", image.reference))?;
    let there = store
        .images()
        .into_iter()
        .find(|there| there.id.to_string() == image.id);
    let told = match there {
        Some(there) if there.references.contains(&reference) => format!("{} is there", image.reference),
        Some(there) => {
            store.tag(&there.id, &reference)?;
            format!("{} is there", image.reference)
        }
        None => {
            let file = File::open(&path).with_context(|| format!("Cannot open {}", path.display()))?;
            store
                .load(io::BufReader::new(file), &mut |_| {})
                .with_context(|| format!("Cannot load {}", path.display()))?;
            format!("loaded {}", image.reference)
        }
    };
    // The store has it; what lies in the initramfs only takes memory.
    let _ = fs::remove_file(&path);
    Ok(told)
}
