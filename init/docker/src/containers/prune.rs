//! `POST /containers/prune`: removes what does not run.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::json;
use store::Store;

use super::container::{Record, Status};
use super::ending;
use crate::engine::Engine;
use crate::http::{Request, Response, Result, blocking, ok};
use crate::until;

pub(super) async fn prune(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let filters = req.query.filters()?;
    filters.only(&["label", "label!", "until"])?;
    let until = until::of(&filters)?;
    let meant = |record: &Record| {
        matches!(record.status, Status::Created | Status::Exited | Status::Dead)
            && filters.pruned(|key| record.config.labels.get(key).map(String::as_str))
            && until.is_none_or(|until| !until::is_after(&record.created, until))
    };
    let store = engine.store().await?;
    let (mut removed, mut reclaimed) = (Vec::new(), 0);
    for container in engine.containers().await?.all() {
        if !meant(&container.record()) {
            continue;
        }
        let held = held(&store, &container.id).await;
        let (id, engine) = (container.id.clone(), engine.clone());
        // In a task of its own, as all removals: a client that goes away leaves none half-done.
        let removal = tokio::spawn(async move { ending::remove(&engine, &container, false, false).await });
        if removal.await?.is_ok() {
            removed.push(id);
            reclaimed += held;
        }
    }
    let told = BTreeMap::from([("reclaimed".to_owned(), reclaimed.to_string())]);
    engine.events.tell("container", "prune", "", told);
    ok(&json!({"ContainersDeleted": removed, "SpaceReclaimed": reclaimed}))
}

/// Bytes that the pool gets back with a container: by the file system's own count, which knows what a
/// copied file shares with its image; where nothing counts, the content of its files.
async fn held(store: &Arc<Store>, id: &str) -> u64 {
    let (store, id) = (store.clone(), id.to_owned());
    let held = blocking(move || match store.root_held(&id)? {
        Some(held) => Ok(held.used),
        None => store.root_size(&id),
    });
    // One that cannot be measured can be removed.
    held.await.unwrap_or(0)
}
