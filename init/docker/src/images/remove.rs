//! Names given and taken away, and images removed.

use std::collections::HashSet;
use std::sync::Arc;

use bollard_stubs::models::{ImageDeleteResponseItem, ImagePruneResponse};
use hyper::StatusCode;
use store::{Image, ImageId, Reference, Store};

use super::{find, short};
use crate::build::cache;
use crate::containers::Status;
use crate::engine::Engine;
use crate::http::{self, ApiError, Request, Response, Result, blocking};
use crate::until;

/// `POST /images/{name}/tag`
pub(super) async fn tag(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let repository = req
        .query
        .get("repo")
        .ok_or_else(|| ApiError::bad_request("Parameter repo is missing."))?;
    let mut reference: Reference = repository.parse()?;
    if let Some(tag) = req.query.get("tag") {
        reference = reference.with_tag(tag)?;
    }
    let reference = reference.or_latest();
    let image = find(&store, &req.name)?;
    let name = reference.to_string();
    blocking(move || store.tag(&image.id, &reference)).await?;
    super::tell(engine, "tag", &image.id.to_string(), &name);
    Ok(http::empty(StatusCode::CREATED))
}

/// `DELETE /images/{name}`
pub(super) async fn remove(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    if req.query.get("platforms").is_some() {
        return Err(ApiError::not_implemented(
            "An image here is for one platform; remove it without `platforms`.",
        ));
    }
    let running = running(engine).await?;
    let (name, force) = (req.name.clone(), req.query.flag("force"));
    let (id, removed) = blocking(move || {
        let id = find(&store, &name)?.id.to_string();
        remove_by_name(&store, &name, force, &running).map(|removed| (id, removed))
    })
    .await?;
    tell(engine, &id, &removed);
    http::ok(&removed)
}

fn tell(engine: &Engine, id: &str, removed: &[ImageDeleteResponseItem]) {
    for item in removed {
        if let Some(name) = &item.untagged {
            super::tell(engine, "untag", id, name);
        }
        // Layers are told as deleted too, but are no images.
        if item.deleted.as_deref() == Some(id) {
            super::tell(engine, "delete", id, id);
        }
    }
}

/// Ids of the containers that run.
async fn running(engine: &Engine) -> Result<Vec<String>> {
    let all = engine.containers().await?.all();
    let runs = |status| matches!(status, Status::Running | Status::Restarting);
    Ok(all
        .iter()
        .filter(|container| runs(container.record().status))
        .map(|container| container.id.clone())
        .collect())
}

fn remove_by_name(
    store: &Store,
    name: &str,
    force: bool,
    running: &[String],
) -> Result<Vec<ImageDeleteResponseItem>> {
    let image = find(store, name)?;
    let mut told = Vec::new();
    let users = users(store, &image.id);
    let runner = users.iter().find(|zone| running.contains(zone));
    match named_by(&image, name) {
        // One name of several: the image stays. So it does where a container runs from it.
        Some(reference)
            if image.references.len() + image.digests.len() > 1 && !is_last_tag(&image, &reference)
                || force && runner.is_some() =>
        {
            store.untag(&reference)?;
            told.push(untagged(&reference));
        }
        Some(reference) => match users.first() {
            Some(zone) if !force => {
                return Err(ApiError::conflict(format!(
                    "conflict: unable to remove repository reference \"{reference}\" (must force) - container {} is using its referenced image {}",
                    short(zone),
                    short(&image.id.hex())
                )));
            }
            _ => delete(store, &image, &mut told)?,
        },
        None => {
            let hex = image.id.hex();
            let id = short(&hex);
            if let Some(zone) = runner {
                return Err(ApiError::conflict(format!(
                    "conflict: unable to delete {id} (cannot be forced) - image is being used by running container {}",
                    short(zone)
                )));
            }
            if image.references.len() > 1 && !force {
                return Err(ApiError::conflict(format!(
                    "conflict: unable to delete {id} (must be forced) - image is referenced in multiple repositories"
                )));
            }
            if let Some(zone) = users.first().filter(|_| !force) {
                return Err(ApiError::conflict(format!(
                    "conflict: unable to delete {id} (must be forced) - image is being used by stopped container {}",
                    short(zone)
                )));
            }
            delete(store, &image, &mut told)?;
        }
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
    image
        .references
        .iter()
        .chain(&image.digests)
        .find(|known| **known == wanted)
        .cloned()
}

fn delete(store: &Store, image: &Image, told: &mut Vec<ImageDeleteResponseItem>) -> Result<()> {
    let layers = store.remove_image(&image.id, true)?;
    told.extend(image.references.iter().chain(&image.digests).map(untagged));
    told.push(deleted(image.id.to_string()));
    told.extend(layers.iter().rev().map(|chain| deleted(chain.to_string())));
    Ok(())
}

fn users(store: &Store, id: &ImageId) -> Vec<String> {
    store
        .roots()
        .into_iter()
        .filter(|(_, image)| image == id)
        .map(|(zone, _)| zone)
        .collect()
}

fn untagged(reference: &Reference) -> ImageDeleteResponseItem {
    ImageDeleteResponseItem {
        untagged: Some(reference.to_string()),
        deleted: None,
    }
}

fn deleted(id: String) -> ImageDeleteResponseItem {
    ImageDeleteResponseItem {
        untagged: None,
        deleted: Some(id),
    }
}

/// `POST /images/prune`: images without a name, or all that no container uses (`dangling=false`).
pub(super) async fn prune(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let filters = req.query.filters()?;
    filters.only(&["dangling", "label", "label!", "until"])?;
    let until = until::of(&filters)?;
    let all = filters
        .get("dangling")
        .iter()
        .any(|value| matches!(value.as_str(), "0" | "false"));
    let engine = engine.clone();
    let pruned = blocking(move || {
        let free = store.usage()?.free;
        let mut told = Vec::new();
        // What later builds may use goes with the cache.
        let hidden = if all {
            HashSet::new()
        } else {
            cache::images(&store)
        };
        let images = store.images().into_iter();
        let meant = |image: &Image| {
            let labels = &image.config.config.labels;
            !hidden.contains(&image.id.to_string())
                && filters.pruned(|key| labels.get(key).map(String::as_str))
                && until.is_none_or(|until| !until::is_after(&image.created, until))
        };
        for image in images.filter(meant) {
            if users(&store, &image.id).is_empty() && (all || image.references.is_empty()) {
                let before = told.len();
                delete(&store, &image, &mut told)?;
                tell(
                    &engine,
                    &image.id.to_string(),
                    told.get(before..).unwrap_or_default(),
                );
            }
        }
        let freed = store.usage()?.free.saturating_sub(free);
        Ok::<_, ApiError>(ImagePruneResponse {
            images_deleted: Some(told),
            space_reclaimed: Some(i64::try_from(freed).unwrap_or(i64::MAX)),
        })
    })
    .await?;
    http::ok(&pruned)
}

#[cfg(test)]
mod tests {
    use store::ImageConfig;

    use super::*;
    use crate::registry::tests::pool::TestStore;

    /// An image with these names, and `user` with a root of it.
    fn image(store: &Store, names: &[&str], user: Option<&str>) -> Image {
        let tar: &[u8] = &[0; 1024];
        let id = store.import(tar, ImageConfig::default(), None).unwrap().id;
        for name in names {
            store.tag(&id, &name.parse().unwrap()).unwrap();
        }
        if let Some(user) = user {
            store.create_root(user, &id, None).unwrap();
        }
        store.image(&id).unwrap()
    }

    /// What was untagged and deleted, without the ids.
    fn told(removed: Result<Vec<ImageDeleteResponseItem>>) -> Vec<String> {
        let tell = |item: ImageDeleteResponseItem| item.untagged.unwrap_or_else(|| "deleted".to_owned());
        removed.unwrap().into_iter().map(tell).collect()
    }

    #[test]
    fn an_image_goes_with_its_last_name() {
        let pool = TestStore::new();
        let store = pool.store();
        let pinned = format!("box@sha256:{}", "a".repeat(64));
        let image = image(&store, &["box:1", "box:2", &pinned], None);
        let remove = |name: &str| remove_by_name(&store, name, false, &[]);
        let refusal = remove(&image.id.to_string()).unwrap_err();
        assert_eq!(refusal.status, StatusCode::CONFLICT);
        assert!(refusal.message.contains("must be forced"), "{refusal}");
        assert_eq!(told(remove("box:1")), ["box:1"]);
        assert_eq!(told(remove("box:2")), ["box:2", &pinned, "deleted", "deleted"]);
        assert_eq!(remove("box:2").unwrap_err().status, StatusCode::NOT_FOUND);
    }

    #[test]
    fn an_image_that_a_container_uses_stays() {
        let pool = TestStore::new();
        let store = pool.store();
        let image = image(&store, &["box:1"], Some("user"));
        let running = ["user".to_owned()];
        for (name, force, running, why) in [
            ("box:1", false, &running[..], "must force"),
            ("box:1", false, &[], "must force"),
            (
                &image.id.to_string(),
                false,
                &[],
                "used by stopped container user",
            ),
            (&image.id.to_string(), true, &running, "cannot be forced"),
        ] {
            let refusal = remove_by_name(&store, name, force, running).unwrap_err();
            assert_eq!(refusal.status, StatusCode::CONFLICT);
            assert!(refusal.message.contains(why), "{refusal}");
        }
        // Only the name goes while it runs; afterwards force takes the image, and the root stays whole.
        assert_eq!(told(remove_by_name(&store, "box:1", true, &running)), ["box:1"]);
        assert_eq!(
            told(remove_by_name(&store, &image.id.to_string(), true, &[])),
            ["deleted"]
        );
        assert_eq!(store.roots().len(), 1);
    }
}
