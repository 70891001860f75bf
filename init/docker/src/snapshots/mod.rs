//! Snapshots of zones and volumes: `/monobloc/v1/snapshots`, and `snapshots` and `clone` below
//! `/monobloc/v1/zones/NAME` and `/monobloc/v1/volumes/NAME`.
//!
//! | request | what it does | body |
//! | --- | --- | --- |
//! | `GET snapshots` | all of the machine | |
//! | `GET KIND/NAME/snapshots` | those of one | |
//! | `POST KIND/NAME/snapshots` | makes one, of what runs too | `name`, `freeze` |
//! | `DELETE KIND/NAME/snapshots/SNAPSHOT` | deletes it | |
//! | `POST KIND/NAME/snapshots/SNAPSHOT/rollback` | makes it what it was | `restart` |
//! | `POST KIND/NAME/clone` | makes another of it | `name`, `snapshot` |
//! | `GET KIND/NAME/snapshots/SNAPSHOT/send` | what makes it elsewhere, see [`send`] | |
//!
//! What comes from elsewhere is below `/monobloc/v1/transfers`, see [`transfer`].
//!
//! The volumes of a zone are no part of it: each has snapshots of its own.

mod clone;
mod frozen;
mod send;
mod subject;
mod transfer;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use store::{Of, Snapshot, Store};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use time::macros::format_description;

use crate::containers;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, json, no_content, ok};
use crate::routes;
pub(crate) use frozen::thaw_left;
use subject::Subject;
pub(crate) use transfer::route as transfers;

/// Answers everything below `/monobloc/v1/zones/NAME` and `/monobloc/v1/volumes/NAME`.
pub(crate) async fn route(
    engine: Arc<Engine>,
    method: &str,
    segments: &[&str],
    mut req: Request,
) -> Result<Response> {
    let (subject, rest) = match segments {
        ["zones", name, rest @ ..] => (Subject::zone(&engine, name).await?, rest),
        ["volumes", name, rest @ ..] => (Subject::volume(&engine, name).await?, rest),
        _ => return Err(routes::unknown(req.method(), &req.path)),
    };
    match (method, rest) {
        ("GET", ["snapshots"]) => list(&engine, &subject).await,
        ("POST", ["snapshots"]) => {
            let order: Making = req.json().await?;
            // In tasks of their own: a client that goes away leaves nothing half-done.
            let made = tokio::spawn(async move { create(&engine, &subject, order).await });
            json(StatusCode::CREATED, &made.await??)
        }
        ("DELETE", ["snapshots", name]) => {
            let name = (*name).to_owned();
            tokio::spawn(async move { delete(&engine, &subject, name).await }).await??;
            no_content()
        }
        ("POST", ["snapshots", name, "rollback"]) => {
            let (name, order): (_, Return) = ((*name).to_owned(), req.json().await?);
            tokio::spawn(async move { roll_back(&engine, &subject, name, order.restart).await }).await??;
            no_content()
        }
        ("GET", ["snapshots", name, "send"]) => send::send(&engine, &subject, name, &req).await,
        ("POST", ["clone"]) => {
            let order = req.json().await?;
            let made = tokio::spawn(async move { clone::clone(&engine, &subject, order).await });
            json(StatusCode::CREATED, &made.await??)
        }
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Making {
    /// Made up of the time where it is empty.
    name: String,
    /// No process that could change it runs while the snapshot is made.
    freeze: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Return {
    /// The containers that run with it are stopped before and started afterwards.
    restart: bool,
}

/// `GET /monobloc/v1/snapshots`
pub(crate) async fn all(engine: &Arc<Engine>) -> Result<Response> {
    let store = engine.store().await?;
    let containers = engine.containers().await?.all();
    let told = blocking(move || -> Result<Vec<Value>> {
        let (zones, mut volumes) = store.with_snapshots()?;
        // One that is not known is being removed, or received.
        let mut known: Vec<(String, &String)> = containers
            .iter()
            .filter(|container| zones.contains(&container.id))
            .map(|container| (container.record().name, &container.id))
            .collect();
        known.sort();
        volumes.sort();
        let mut told = Vec::new();
        for (name, id) in known {
            told.extend(show_all(&store, Of::Zone(id), &name)?);
        }
        for volume in volumes {
            told.extend(show_all(&store, Of::Volume(&volume), &volume)?);
        }
        Ok(told)
    });
    ok(&told.await?)
}

async fn list(engine: &Arc<Engine>, subject: &Subject) -> Result<Response> {
    let (store, subject) = (engine.store().await?, subject.clone());
    let told = blocking(move || show_all(&store, subject.of(), &subject.name()));
    ok(&told.await?)
}

fn show_all(store: &Store, of: Of<'_>, name: &str) -> Result<Vec<Value>> {
    let snapshots = store.snapshots(of)?;
    Ok(snapshots
        .iter()
        .map(|snapshot| show(of, name, snapshot))
        .collect())
}

fn show(of: Of<'_>, name: &str, snapshot: &Snapshot) -> Value {
    let kind = match of {
        Of::Zone(_) => "zone",
        Of::Volume(_) => "volume",
    };
    let created = i64::try_from(snapshot.created)
        .ok()
        .and_then(|seconds| OffsetDateTime::from_unix_timestamp(seconds).ok())
        .and_then(|time| time.format(&Rfc3339).ok());
    json!({"kind": kind, "of": name, "name": snapshot.name, "created": created})
}

async fn create(engine: &Arc<Engine>, subject: &Subject, order: Making) -> Result<Value> {
    let store = engine.store().await?;
    let name = if order.name.is_empty() {
        name_of_now()?
    } else {
        order.name
    };
    let _turn = subject.turn(engine).await;
    let users = if order.freeze {
        subject.users(engine)
    } else {
        Vec::new()
    };
    let taken = {
        let (subject, name) = (subject.clone(), name.clone());
        let flushed = store.clone();
        if !users.is_empty() {
            // What is written now need not be written while everything stands still.
            blocking(move || flushed.flush()).await?;
        }
        frozen::while_frozen(engine, &users, async move {
            blocking(move || store.create_snapshot(subject.of(), &name)).await
        })
        .await?
    };
    tell(engine, subject, "snapshot", &taken.name);
    let mut told = show(subject.of(), &subject.name(), &taken);
    told["frozen"] = json!(!users.is_empty());
    told["not_included"] = subject.not_included();
    Ok(told)
}

fn name_of_now() -> Result<String> {
    let form = format_description!("[year][month][day]-[hour][minute][second]");
    let name = OffsetDateTime::now_utc().format(form);
    name.map_err(|error| ApiError::internal(format!("Cannot tell the time: {error}.")))
}

async fn delete(engine: &Arc<Engine>, subject: &Subject, name: String) -> Result<()> {
    let store = engine.store().await?;
    let _turn = subject.turn(engine).await;
    let (owned, deleted) = (subject.clone(), name.clone());
    blocking(move || store.delete_snapshot(owned.of(), &deleted)).await?;
    tell(engine, subject, "snapshot-delete", &name);
    Ok(())
}

async fn roll_back(engine: &Arc<Engine>, subject: &Subject, name: String, restart: bool) -> Result<()> {
    let store = engine.store().await?;
    {
        // Before anything is stopped for it.
        let (store, subject, name) = (store.clone(), subject.clone(), name.clone());
        blocking(move || store.snapshot(subject.of(), &name)).await?;
    }
    let running = subject.users(engine);
    if !running.is_empty() && !restart {
        return Err(subject.in_use(&running));
    }
    for container in &running {
        let patience = containers::own_patience(container);
        containers::stop(engine, container, None, patience).await?;
    }
    let rolled = {
        let _turn = subject.turn(engine).await;
        // Nobody starts it now.
        let running = subject.users(engine);
        if running.is_empty() {
            let (subject, name) = (subject.clone(), name.clone());
            blocking(move || store.roll_back(subject.of(), &name)).await
        } else {
            Err(subject.in_use(&running))
        }
    };
    if rolled.is_ok() {
        tell(engine, subject, "rollback", &name);
    }
    for container in &running {
        containers::start(engine, container).await?;
    }
    rolled
}

fn tell(engine: &Engine, subject: &Subject, action: &str, snapshot: &str) {
    let (kind, id, mut attributes) = match subject {
        Subject::Zone(container) => ("container", &container.id, container.record().attributes()),
        Subject::Volume { name, .. } => ("volume", name, BTreeMap::new()),
    };
    attributes.insert("snapshot".to_owned(), snapshot.to_owned());
    engine.events.tell(kind, action, id, attributes);
}
