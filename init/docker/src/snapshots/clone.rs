//! Another zone or volume with the content of one.

use std::sync::Arc;

use serde::Deserialize;
use serde_json::{Value, json};
use store::Store;

use super::subject::Subject;
use crate::containers::{self, Container, Record, Wanted};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};
use crate::networks;
use crate::volumes::{self, Volume};

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub(super) struct Order {
    /// Of the new one; made up for a zone where it is empty.
    name: String,
    /// As it is now, where none is said.
    snapshot: Option<String>,
}

pub(super) async fn clone(engine: &Arc<Engine>, subject: &Subject, order: Order) -> Result<Value> {
    match subject {
        Subject::Zone(container) => zone(engine, container, order).await,
        Subject::Volume { name, volume } => self::volume(engine, name, volume, order).await,
    }
}

async fn zone(engine: &Arc<Engine>, from: &Arc<Container>, order: Order) -> Result<Value> {
    let record = from.record();
    // Not by its name: that may be another image's by now.
    let image = engine.store().await?.resolve(&record.image)?;
    let wanted = Wanted {
        config: record.config.clone(),
        host: record.host.clone(),
        networking: networks::like(&record),
    };
    let snapshot = order.snapshot;
    let begin = Box::new(move |store: &Store, made: &Record, limit| {
        store.clone_root(&record.id, snapshot.as_deref(), &made.id, limit)?;
        fill(store, &record, made)
    });
    let made = containers::make_with(engine, &order.name, wanted, image, begin).await?;
    let record = made.record();
    Ok(json!({"kind": "zone", "id": made.id, "name": record.name}))
}

/// Gives a new zone what the other's volumes hold that nobody else has. Blocks.
fn fill(store: &Store, from: &Record, to: &Record) -> Result<()> {
    for point in &to.mounts {
        let Some(volume) = point.volume().filter(|volume| volume.anonymous) else {
            continue;
        };
        let twin = from
            .mounts
            .iter()
            .find(|other| other.destination == point.destination);
        let Some(twin) = twin.and_then(|point| point.volume()) else {
            continue;
        };
        if twin.name != volume.name && volumes::in_pool(store, &twin.name)? {
            let limit = volumes::limit_of(store, &volume.name)?;
            store.clone_volume(&twin.name, None, &volume.name, limit)?;
        }
    }
    Ok(())
}

async fn volume(engine: &Arc<Engine>, from: &str, volume: &Arc<Volume>, order: Order) -> Result<Value> {
    volumes::check_name(&order.name)?;
    let store = engine.store().await?;
    let _turn = engine.volumes.turn.lock().await;
    let record = Volume {
        name: order.name.clone(),
        created: zones::log::now(),
        labels: volume.labels.clone(),
        options: volume.options.clone(),
    };
    if volumes::exists(engine, &store, &record.name).await? {
        return Err(ApiError::conflict(format!(
            "There is a volume {} already; choose another name.",
            record.name
        )));
    }
    let from = from.to_owned();
    blocking(move || {
        let limit = volumes::limit(&record)?;
        store.clone_volume(&from, order.snapshot.as_deref(), &record.name, limit)?;
        // The record last: what has one has content.
        volumes::keep(&store, &record)
    })
    .await?;
    volumes::tell_made(engine, &order.name);
    Ok(json!({"kind": "volume", "name": order.name}))
}
