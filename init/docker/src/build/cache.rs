//! What builds have made before, by what it was made of.
//!
//! An entry's key is a digest of the image that an instruction began with, of its text and of what it
//! copies; its value the image that it ended with. These images have no names; they are not listed,
//! and go when the cache is pruned.

use std::collections::HashSet;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{Digest, Image, ImageId, Store};

use crate::engine::Engine;
use crate::http::{ApiError, Response, Result, blocking, ok};

/// Kind of the stored objects.
const KIND: &str = "build-cache";

#[derive(Serialize, Deserialize)]
struct Entry {
    /// `sha256:…`
    image: String,
}

pub(super) fn key(before: Option<&ImageId>, instruction: &str, content: Option<&Digest>) -> String {
    let before = before.map_or_else(|| "scratch".to_owned(), ToString::to_string);
    let content = content.map(ToString::to_string).unwrap_or_default();
    Digest::of(format!("{before}\n{instruction}\n{content}").as_bytes()).hex()
}

/// The image that was made before, if it is still there.
pub(super) fn find(store: &Store, key: &str) -> Option<Image> {
    let entry: Entry = store.objects(KIND).ok()?.read(key).ok()?;
    store.resolve(&entry.image).ok()
}

pub(super) fn keep(store: &Store, key: &str, image: &ImageId) -> store::Result<()> {
    let image = image.to_string();
    store.objects(KIND)?.write(key, &Entry { image })
}

/// The images that are only there for later builds.
pub(crate) fn images(store: &Store) -> HashSet<String> {
    let Ok(objects) = store.objects(KIND) else {
        return HashSet::new();
    };
    let names = objects.list().unwrap_or_default();
    let read = |name: &String| objects.read::<Entry>(name).ok().map(|entry| entry.image);
    names.iter().filter_map(read).collect()
}

/// `POST /build/prune`
pub(crate) async fn prune(engine: &Arc<Engine>) -> Result<Response> {
    let store = engine.store().await?;
    let (deleted, freed) = blocking(move || {
        let free = store.usage()?.free;
        let objects = store.objects(KIND)?;
        let hidden = images(&store);
        let mut deleted = objects.list()?;
        for name in &deleted {
            objects.remove(name)?;
        }
        for id in hidden {
            if let Ok(image) = store.resolve(&id)
                && image.references.is_empty()
            {
                // One that a container uses stays, and is listed from now on.
                let _ = store.remove_image(&image.id, false);
            }
        }
        deleted.sort_unstable();
        Ok::<_, ApiError>((deleted, store.usage()?.free.saturating_sub(free)))
    })
    .await?;
    ok(&json!({ "CachesDeleted": deleted, "SpaceReclaimed": freed }))
}
