//! `GET /system/df`: what takes the pool's space.

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::{Value, json};

use crate::containers::{sizes, summary};
use crate::engine::Engine;
use crate::http::{Request, Response, Result, ok};
use crate::{images, volumes};

const TYPES: &[&str] = &["image", "container", "volume", "build-cache"];

pub(crate) async fn usage(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let asked: Vec<&str> = req.query.all("type").collect();
    if let Some(other) = asked.iter().find(|kind| !TYPES.contains(kind)) {
        return Err(crate::http::ApiError::bad_request(format!(
            "unknown object type: {other}"
        )));
    }
    let wanted = |kind: &str| asked.is_empty() || asked.contains(&kind);
    let store = engine.store().await?;
    let records: Vec<_> = engine
        .containers()
        .await?
        .all()
        .iter()
        .map(|container| container.record())
        .collect();
    let mut answer = json!({ "BuildCache": [] });
    if wanted("container") {
        let ids = records.iter().map(|record| record.id.clone()).collect();
        let sizes = sizes(&store, ids).await?;
        let shown = records.iter().zip(sizes).map(|(record, (own, whole))| {
            let mut shown = summary(engine, &store, record);
            shown["SizeRw"] = own.into();
            shown["SizeRootFs"] = whole.into();
            shown
        });
        answer["Containers"] = Value::Array(shown.collect());
    }
    if wanted("image") {
        let mut users: HashMap<&str, i64> = HashMap::new();
        for record in &records {
            *users.entry(&record.image).or_default() += 1;
        }
        let (shown, layers) = images::usage(&store, &users);
        answer["Images"] = json!(shown);
        answer["LayersSize"] = layers.into();
    }
    if wanted("volume") {
        answer["Volumes"] = Value::Array(volumes::usage(engine, &store).await?);
    }
    ok(&answer)
}
