//! Names given and taken away, and images removed.

use std::sync::Arc;

use bollard_stubs::models::{ImageDeleteResponseItem, ImagePruneResponse};
use hyper::StatusCode;
use store::{Image, ImageId, Reference, Store};

use super::find;
use crate::engine::Engine;
use crate::http::{self, ApiError, Request, Response, Result, blocking};

/// `POST /images/{name}/tag`
pub(super) async fn tag(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let repository = req.query.get("repo").ok_or_else(|| ApiError::bad_request("Parameter repo is missing."))?;
    let mut reference: Reference = repository.parse()?;
    if let Some(tag) = req.query.get("tag") {
        reference = reference.with_tag(tag)?;
    }
    let image = find(&store, &req.name)?;
    blocking(move || store.tag(&image.id, &reference.or_latest())).await?;
    Ok(http::empty(StatusCode::CREATED))
}

/// `DELETE /images/{name}`
pub(super) async fn remove(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let (name, force) = (req.name.clone(), req.query.flag("force"));
    let removed = blocking(move || remove_by_name(&store, &name, force)).await?;
    http::ok(&removed)
}

fn remove_by_name(store: &Store, name: &str, force: bool) -> Result<Vec<ImageDeleteResponseItem>> {
    let image = find(store, name)?;
    let mut told = Vec::new();
    match named_by(&image, name) {
        // One name of several: the image stays.
        Some(reference) if image.references.len() + image.digests.len() > 1 && !is_last_tag(&image, &reference) => {
            store.untag(&reference)?;
            told.push(untagged(&reference));
        }
        Some(_) => delete(store, &image, force, &mut told)?,
        None if image.references.len() > 1 && !force => {
            return Err(ApiError::conflict(format!(
                "conflict: unable to delete {} (must be forced) - image is referenced in multiple repositories",
                short(&image.id)
            )));
        }
        None => delete(store, &image, force, &mut told)?,
    }
    Ok(told)
}

/// Names by digest go with the last tag.
fn is_last_tag(image: &Image, reference: &Reference) -> bool {
    reference.digest().is_none() && image.references.len() == 1
}

/// Which of the image's names was meant; none if it was its id.
fn named_by(image: &Image, name: &str) -> Option<Reference> {
    let wanted = name.parse::<Reference>().ok()?.or_latest();
    image.references.iter().chain(&image.digests).find(|known| **known == wanted).cloned()
}

fn delete(store: &Store, image: &Image, force: bool, told: &mut Vec<ImageDeleteResponseItem>) -> Result<()> {
    let users = users(store, &image.id);
    if let Some(zone) = users.first()
        && !force
    {
        return Err(ApiError::conflict(format!(
            "conflict: unable to remove repository reference \"{}\" (must force) - container {} is using its referenced image {}",
            image.references.first().map(ToString::to_string).unwrap_or_default(),
            zone.get(..12).unwrap_or(zone),
            short(&image.id)
        )));
    }
    let layers = store.remove_image(&image.id, true)?;
    told.extend(image.references.iter().chain(&image.digests).map(untagged));
    told.push(deleted(image.id.to_string()));
    told.extend(layers.iter().rev().map(|chain| deleted(chain.to_string())));
    Ok(())
}

fn users(store: &Store, id: &ImageId) -> Vec<String> {
    store.roots().into_iter().filter(|(_, image)| image == id).map(|(zone, _)| zone).collect()
}

fn short(id: &ImageId) -> String {
    id.hex().chars().take(12).collect()
}

fn untagged(reference: &Reference) -> ImageDeleteResponseItem {
    ImageDeleteResponseItem { untagged: Some(reference.to_string()), deleted: None }
}

fn deleted(id: String) -> ImageDeleteResponseItem {
    ImageDeleteResponseItem { untagged: None, deleted: Some(id) }
}

/// `POST /images/prune`: images without a name, or all that no container uses (`dangling=false`).
pub(super) async fn prune(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let filters = req.query.filters()?;
    filters.only(&["dangling"])?;
    let all = filters.get("dangling").iter().any(|value| matches!(value.as_str(), "0" | "false"));
    let pruned = blocking(move || {
        let before = store.usage()?.free;
        let mut told = Vec::new();
        for image in store.images() {
            if users(&store, &image.id).is_empty() && (all || image.references.is_empty()) {
                delete(&store, &image, true, &mut told)?;
            }
        }
        let freed = store.usage()?.free.saturating_sub(before);
        Ok::<_, ApiError>(ImagePruneResponse {
            images_deleted: Some(told),
            space_reclaimed: Some(i64::try_from(freed).unwrap_or(i64::MAX)),
        })
    })
    .await?;
    http::ok(&pruned)
}
