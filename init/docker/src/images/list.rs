//! What images there are and what is in them.

use std::cell::LazyCell;
use std::collections::HashMap;
use std::sync::Arc;

use bollard_stubs::models::{ImageHistoryResponseItem, ImageSummary};
use serde_json::{Value, json};
use store::{ChainId, Image, Reference, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::find;
use crate::build::cache;
use crate::engine::Engine;
use crate::http::{self, ApiVersion, Request, Response, Result};

const FILTERS: &[&str] = &["reference", "dangling", "label", "before", "since"];
/// Since this version a nameless image has empty lists of names.
const EMPTY_NAMES: ApiVersion = ApiVersion(1, 43);

/// `GET /images/json`
pub(super) async fn list(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let filters = req.query.filters()?;
    filters.only(FILTERS)?;
    let edge = |key: &str| -> Result<Option<i64>> {
        let Some(name) = filters.get(key).first() else {
            return Ok(None);
        };
        find(&store, name).map(|image| Some(seconds(&image.created)))
    };
    let (before, since) = (edge("before")?, edge("since")?);
    // Read only where there is an image that may be one of these.
    let hidden = LazyCell::new(|| cache::images(&store));
    let all = req.query.flag("all");
    let shown = |image: &Image| {
        let is_cache = !all && image.references.is_empty() && hidden.contains(&image.id.to_string());
        let created = seconds(&image.created);
        !is_cache
            && filters.labels(|key| image.config.config.labels.get(key).map(String::as_str))
            && filters.matches("dangling", |wanted| {
                image.references.is_empty() == matches!(wanted, "1" | "true")
            })
            && before.is_none_or(|edge| created < edge)
            && since.is_none_or(|edge| created > edge)
    };
    let mut images: Vec<Image> = store.images().into_iter().filter(shown).collect();
    if !filters.get("reference").is_empty() {
        // Of an image with several names only those are shown that were asked for.
        let wanted = |name: &Reference| filters.matches("reference", |pattern| fits(pattern, name));
        images.retain_mut(|image| {
            image.references.retain(wanted);
            image.digests.retain(wanted);
            !(image.references.is_empty() && image.digests.is_empty())
        });
    }
    images.sort_by_key(|image| std::cmp::Reverse(seconds(&image.created)));
    let mut list: Vec<ImageSummary> = images.into_iter().map(summary).collect();
    if req.version < EMPTY_NAMES {
        list.iter_mut().for_each(name_the_nameless);
    }
    http::ok(&list)
}

/// Older clients show an image without names only if it has these.
fn name_the_nameless(summary: &mut ImageSummary) {
    if summary.repo_tags.is_empty() && summary.repo_digests.is_empty() {
        summary.repo_tags.push("<none>:<none>".to_owned());
        summary.repo_digests.push("<none>@<none>".to_owned());
    }
}

fn summary(image: Image) -> ImageSummary {
    let size = i64::try_from(image.size).unwrap_or(i64::MAX);
    ImageSummary {
        id: image.id.to_string(),
        repo_tags: names(&image.references),
        repo_digests: names(&image.digests),
        created: seconds(&image.created),
        size,
        shared_size: -1,
        containers: -1,
        labels: image.config.config.labels.into_iter().collect::<HashMap<_, _>>(),
        ..ImageSummary::default()
    }
}

/// All images with the number of their containers and what they share, and the bytes of all layers.
pub(crate) fn usage(store: &Store, users: &HashMap<&str, i64>) -> (Vec<ImageSummary>, u64) {
    let images = store.images();
    let mut holders: HashMap<ChainId, u32> = HashMap::new();
    for chain in images.iter().flat_map(|image| &image.layers) {
        *holders.entry(*chain).or_default() += 1;
    }
    let size = |chain: &ChainId| store.layer(chain).map_or(0, |layer| layer.size);
    let total = holders.keys().map(size).sum();
    let shown = images
        .into_iter()
        .map(|image| {
            let common = |chain: &&ChainId| holders.get(*chain).is_some_and(|count| *count > 1);
            let shared: u64 = image.layers.iter().filter(common).map(size).sum();
            let mut summary = summary(image);
            summary.containers = users.get(summary.id.as_str()).copied().unwrap_or(0);
            summary.shared_size = i64::try_from(shared).unwrap_or(i64::MAX);
            summary
        })
        .collect();
    (shown, total)
}

fn names(references: &[Reference]) -> Vec<String> {
    references.iter().map(ToString::to_string).collect()
}

/// Seconds since the epoch; 0 for a time that is none.
fn seconds(rfc3339: &str) -> i64 {
    OffsetDateTime::parse(rfc3339, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp)
}

/// Whether a name fits a pattern of the `reference` filter: `*` and `?` do not cross a slash; a pattern
/// without a tag fits all tags.
fn fits(pattern: &str, name: &Reference) -> bool {
    let (full, repository) = (name.to_string(), name.familiar_name());
    glob(pattern.as_bytes(), full.as_bytes()) || glob(pattern.as_bytes(), repository.as_bytes())
}

fn glob(pattern: &[u8], text: &[u8]) -> bool {
    match (pattern.split_first(), text.split_first()) {
        (None, None) => true,
        (Some((b'*', rest)), _) => {
            let most = text.iter().position(|byte| *byte == b'/').unwrap_or(text.len());
            (0..=most).any(|taken| glob(rest, text.get(taken..).unwrap_or_default()))
        }
        (Some((b'?', rest)), Some((byte, after))) if *byte != b'/' => glob(rest, after),
        (Some((wanted, rest)), Some((byte, after))) => wanted == byte && glob(rest, after),
        _ => false,
    }
}

/// `GET /images/{name}/json`
pub(super) async fn inspect(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let image = find(&store, &req.name)?;
    let raw: Value = serde_json::from_slice(&image.raw_config).unwrap_or_default();
    let config = &image.config;
    let chain: Vec<String> = config.rootfs.diff_ids.iter().map(ToString::to_string).collect();
    http::ok(&json!({
        "Id": image.id.to_string(),
        "RepoTags": names(&image.references),
        "RepoDigests": names(&image.digests),
        "Parent": "",
        "Comment": config.history.last().and_then(|last| last.comment.clone()).unwrap_or_default(),
        "Created": image.created,
        "DockerVersion": "",
        "Author": config.author.clone().unwrap_or_default(),
        "Config": raw.get("config").cloned().unwrap_or_else(|| json!({})),
        "Architecture": config.architecture,
        "Variant": config.variant.clone().unwrap_or_default(),
        "Os": config.os,
        "Size": image.size,
        "VirtualSize": image.size,
        "GraphDriver": { "Name": "btrfs", "Data": null },
        "RootFS": { "Type": "layers", "Layers": chain },
        "Metadata": { "LastTagTime": "0001-01-01T00:00:00Z" },
    }))
}

/// `GET /images/{name}/history`
pub(super) async fn history(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let image = find(&store, &req.name)?;
    let mut sizes = image
        .layers
        .iter()
        .map(|chain| store.layer(chain).map_or(0, |layer| layer.size));
    let mut entries: Vec<ImageHistoryResponseItem> = image
        .config
        .history
        .iter()
        .map(|entry| ImageHistoryResponseItem {
            id: "<missing>".to_owned(),
            created: entry.created.as_deref().map_or(0, seconds),
            created_by: entry.created_by.clone().unwrap_or_default(),
            tags: Vec::new(),
            size: if entry.empty_layer {
                0
            } else {
                i64::try_from(sizes.next().unwrap_or(0)).unwrap_or(i64::MAX)
            },
            comment: entry.comment.clone().unwrap_or_default(),
        })
        .collect();
    if let Some(last) = entries.last_mut() {
        last.id = image.id.to_string();
        last.tags = names(&image.references);
    }
    entries.reverse();
    http::ok(&entries)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_reference_filter_takes_globs_that_stay_within_a_path_part() {
        let name: Reference = "example.com/team/web:v1.2".parse().unwrap();
        for yes in [
            "example.com/team/web",
            "example.com/*/web:v1*",
            "example.com/team/w?b",
            "*/*/*",
        ] {
            assert!(fits(yes, &name), "{yes}");
        }
        for no in ["web", "*", "example.com/*", "example.com/team/web:v2"] {
            assert!(!fits(no, &name), "{no}");
        }
        assert!(fits("busybox", &"busybox:latest".parse().unwrap()));
    }

    #[test]
    fn a_time_that_is_none_counts_as_the_epoch() {
        assert_eq!(seconds("2026-01-02T03:04:05Z"), 1_767_323_045);
        assert_eq!(seconds(""), 0);
    }
}
