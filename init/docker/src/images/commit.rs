//! `POST /commit`: an image of what a container has changed.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use store::{ContainerConfig, History};

use super::archive::{changes, wanted_name};
use crate::containers::{MADE, spec};
use crate::engine::Engine;
use crate::http::{self, ApiError, Request, Response, Result, blocking};

/// The container goes on meanwhile, also where the client asks for a pause: the image is made of a
/// snapshot, which is of one moment.
pub(crate) async fn commit(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let name = req
        .query
        .get("container")
        .ok_or_else(|| ApiError::bad_request("Parameter container is missing."))?
        .to_owned();
    let container = engine.containers().await?.find(&name)?;
    let store = engine.store().await?;
    let reference = wanted_name(&req)?;
    let text = |key: &str| {
        req.query
            .get(key)
            .filter(|text| !text.is_empty())
            .map(str::to_owned)
    };
    let (comment, author) = (text("comment"), text("author"));
    let changed = changes(req.query.all("changes"))?;
    let body: Value = req.json().await?;
    let record = container.record();
    let mut config = container_config(serde_json::to_value(&record.config).unwrap_or_default())?;
    merge(&mut config, container_config(body)?);
    merge(&mut config, changed);

    let now = zones::log::now();
    let made = History {
        created: Some(now.clone()),
        created_by: Some(record.command().join(" ")),
        author: author.clone(),
        comment,
        empty_layer: false,
    };
    let image = blocking(move || {
        let base = store.resolve(&record.image)?;
        let mut whole = base.config.clone();
        whole.created = Some(now);
        whole.author = author.or(whole.author);
        whole.config = config;
        let moment = store.moment(&record.id)?;
        moment.commit(whole, made, MADE, reference.as_ref())
    })
    .await?;
    let id = image.id.to_string();
    engine.tell("container", "commit", &container);
    http::json(StatusCode::CREATED, &json!({ "Id": id }))
}

/// What of a container's or request's `Config` an image keeps.
fn container_config(value: Value) -> Result<ContainerConfig> {
    let value = if value.is_object() { value } else { json!({}) };
    serde_json::from_value(value)
        .map_err(|error| ApiError::bad_request(format!("The request's configuration is wrong: {error}.")))
}

/// Puts what is set in `over` over `config`; lists by name are added to.
fn merge(config: &mut ContainerConfig, over: ContainerConfig) {
    let text = |own: &mut String, over: String| {
        if !over.is_empty() {
            *own = over;
        }
    };
    spec::merge_env(&mut config.env, &over.env);
    text(&mut config.user, over.user);
    text(&mut config.working_dir, over.working_dir);
    config.exposed_ports.extend(over.exposed_ports);
    config.volumes.extend(over.volumes);
    config.labels.extend(over.labels);
    config.stop_signal = over.stop_signal.or(config.stop_signal.take());
    config.healthcheck = over.healthcheck.or(config.healthcheck.take());
    config.shell = over.shell.or(config.shell.take());
    config.on_build = over.on_build.or(config.on_build.take());
    // As in a Dockerfile: another entry point leaves the old command out.
    if over.entrypoint.is_some() {
        config.entrypoint = over.entrypoint;
        config.cmd = None;
    }
    config.cmd = over.cmd.or(config.cmd.take());
}
