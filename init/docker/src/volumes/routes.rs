//! The endpoints below `/volumes`.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Map, Value, json};
use store::Store;

use super::{ANONYMOUS, DRIVER, Volume, check_driver, discard, make, no_such_volume, read, states, users};
use crate::containers::{new_id, nullable};
use crate::engine::Engine;
use crate::http::{ApiError, ApiVersion, Request, Response, Result, blocking, json, no_content, ok};
use crate::query::Filters;
use crate::routes;

/// Answers everything below `/volumes`.
pub(crate) async fn route(
    engine: Arc<Engine>,
    method: &str,
    rest: &[&str],
    req: Request,
) -> Result<Response> {
    match (method, rest) {
        ("GET", []) => list(&engine, &req).await,
        ("POST", ["create"]) => create(&engine, req).await,
        ("POST", ["prune"]) => prune(&engine, &req).await,
        ("GET", [name]) => {
            let (store, name) = (engine.store().await?, (*name).to_owned());
            let path = store.clone();
            let volume = blocking(move || read(&store, &name)).await?;
            ok(&show(&path, &volume))
        }
        ("DELETE", [name]) => {
            let (name, force) = ((*name).to_owned(), req.query.flag("force"));
            // In a task of its own: a client that goes away leaves nothing half-done.
            tokio::spawn(async move { remove(&engine, &name, force).await }).await??;
            no_content()
        }
        ("PUT", [_]) => Err(ApiError::unavailable(
            "This node is not a swarm manager: it has no cluster volumes to update.",
        )),
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

fn show(store: &Store, volume: &Volume) -> Value {
    let labels = Some(&volume.labels).filter(|labels| !labels.is_empty());
    let options = Some(&volume.options).filter(|options| !options.is_empty());
    json!({
        "CreatedAt": volume.created, "Driver": DRIVER, "Labels": labels,
        "Mountpoint": store.volume_path(&volume.name), "Name": volume.name, "Options": options,
        "Scope": "local",
    })
}

/// All volumes with their size and the number of containers that use them.
pub(crate) async fn usage(engine: &Engine, store: &Arc<Store>) -> Result<Vec<Value>> {
    let (volumes, _) = all(store).await?;
    let records = engine.containers().await?.all();
    let mut users: BTreeMap<String, u64> = BTreeMap::new();
    for point in records.iter().flat_map(|container| container.record().mounts) {
        if let Some(volume) = point.volume() {
            *users.entry(volume.name.clone()).or_default() += 1;
        }
    }
    let store = store.clone();
    blocking(move || {
        let shown = volumes.iter().map(|volume| {
            let size = store.volume_size(&volume.name)?;
            let mut shown = show(&store, volume);
            let users = users.get(&volume.name).copied().unwrap_or(0);
            shown["UsageData"] = json!({ "Size": size, "RefCount": users });
            Ok::<_, ApiError>(shown)
        });
        shown.collect()
    })
    .await
}

/// All volumes by name; one that cannot be understood gives a warning.
async fn all(store: &Arc<Store>) -> Result<(Vec<Volume>, Vec<String>)> {
    let store = store.clone();
    blocking(move || {
        let states = states(&store)?;
        let (mut volumes, mut warnings) = (Vec::new(), Vec::new());
        for name in states.list()? {
            match states.read::<Volume>(&name) {
                Ok(volume) => volumes.push(volume),
                // Removed since the list was made.
                Err(error) if error.is_not_found() => {}
                Err(error) => warnings.push(error.to_string()),
            }
        }
        Ok::<_, ApiError>((volumes, warnings))
    })
    .await
}

/// Names of the volumes that some container uses.
async fn used(engine: &Engine) -> Result<BTreeSet<String>> {
    let containers = engine.containers().await?.all();
    let records = containers.iter().map(|container| container.record());
    Ok(records
        .flat_map(|record| record.mounts)
        .filter_map(|point| point.volume().map(|volume| volume.name.clone()))
        .collect())
}

/// A filter that is yes or no.
fn choice(filters: &Filters, key: &str) -> Result<Option<bool>> {
    match filters.get(key) {
        [] => Ok(None),
        [value] => match value.as_str() {
            "1" | "true" | "True" | "TRUE" | "t" | "T" => Ok(Some(true)),
            "0" | "false" | "False" | "FALSE" | "f" | "F" => Ok(Some(false)),
            other => Err(ApiError::bad_request(format!("invalid filter '{key}=[{other}]'"))),
        },
        several => Err(ApiError::bad_request(format!(
            "invalid filter '{key}=[{}]'",
            several.join(" ")
        ))),
    }
}

async fn list(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let filters = req.query.filters()?;
    filters.only(&["dangling", "driver", "label", "name"])?;
    let dangling = choice(&filters, "dangling")?;
    let store = engine.store().await?;
    let used = used(engine).await?;
    let (volumes, warnings) = all(&store).await?;
    let shown: Vec<Value> = volumes
        .iter()
        .filter(|volume| {
            filters.matches("driver", |driver| driver == DRIVER)
                && filters.matches("name", |part| volume.name.contains(part))
                && filters.labels(|key| volume.labels.get(key).map(String::as_str))
                && dangling.is_none_or(|dangling| dangling != used.contains(&volume.name))
        })
        .map(|volume| show(&store, volume))
        .collect();
    ok(&json!({"Volumes": shown, "Warnings": warnings}))
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
struct Wanted {
    #[serde(deserialize_with = "nullable")]
    name: String,
    #[serde(deserialize_with = "nullable")]
    driver: String,
    #[serde(deserialize_with = "nullable")]
    driver_opts: BTreeMap<String, String>,
    #[serde(deserialize_with = "nullable")]
    labels: BTreeMap<String, String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

async fn create(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let mut wanted: Wanted = req.json().await?;
    if wanted
        .rest
        .get("ClusterVolumeSpec")
        .is_some_and(|spec| !spec.is_null())
    {
        return Err(ApiError::unavailable(
            "This node is not a swarm manager: it cannot make cluster volumes.",
        ));
    }
    check_driver(&wanted.driver)?;
    if wanted.name.is_empty() {
        wanted.name = new_id()?;
        wanted.labels.insert(ANONYMOUS.to_owned(), String::new());
    }
    let store = engine.store().await?;
    let (engine, kept) = (engine.clone(), store.clone());
    let making = tokio::spawn(async move {
        let _turn = engine.volumes.turn.lock().await;
        make(&engine, &kept, &wanted.name, wanted.labels, wanted.driver_opts).await
    });
    json(StatusCode::CREATED, &show(&store, &making.await??))
}

async fn remove(engine: &Arc<Engine>, name: &str, force: bool) -> Result<()> {
    let store = engine.store().await?;
    let _turn = engine.volumes.turn.lock().await;
    let (reading, owned) = (store.clone(), name.to_owned());
    let known = blocking(move || {
        // One whose record is damaged can be removed too, by force.
        Ok::<_, ApiError>(states(&reading)?.list()?.contains(&owned))
    });
    if !known.await? {
        return if force { Ok(()) } else { Err(no_such_volume(name)) };
    }
    let users = users(engine, name).await?;
    if !users.is_empty() {
        return Err(ApiError::conflict(format!(
            "remove {name}: volume is in use - [{}]",
            users.join(", ")
        )));
    }
    discard(engine, &store, name).await
}

/// Removes what nothing uses: of the volumes without a name, or of all.
async fn prune(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let filters = req.query.filters()?;
    filters.only(&["all", "label", "label!"])?;
    // Named ones only when they are asked for, since 1.42.
    let everything = choice(&filters, "all")?.unwrap_or(req.version < ApiVersion(1, 42));
    let engine = engine.clone();
    let pruning = tokio::spawn(async move {
        let store = engine.store().await?;
        let _turn = engine.volumes.turn.lock().await;
        let used = used(&engine).await?;
        let (mut removed, mut reclaimed) = (Vec::new(), 0);
        for volume in all(&store).await?.0 {
            let label = |key: &str| volume.labels.get(key).map(String::as_str);
            let meant = (everything || volume.labels.contains_key(ANONYMOUS)) && filters.pruned(label);
            if !meant || used.contains(&volume.name) {
                continue;
            }
            let (measured, name) = (store.clone(), volume.name.clone());
            reclaimed += blocking(move || measured.volume_usage(&name)).await.unwrap_or(0);
            discard(&engine, &store, &volume.name).await?;
            removed.push(volume.name);
        }
        let told = BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]);
        engine.events.tell("volume", "prune", "", told);
        Ok::<_, ApiError>(json!({"VolumesDeleted": removed, "SpaceReclaimed": reclaimed}))
    });
    ok(&pruning.await??)
}
