//! Taking in what another machine sent: `/monobloc/v1/transfers`.
//!
//! | request | what it does | body |
//! | --- | --- | --- |
//! | `GET transfers` | those that are not whole | |
//! | `POST transfers?name=` | asks whether it can be had, and how much of it is here | the stream's label |
//! | `PUT transfers/ID?offset=` | goes on with it | the stream from there on |
//! | `POST transfers/ID?name=` | checks it and puts it in its place, telling how far that is | |
//! | `DELETE transfers/ID` | gives it up | |
//!
//! A whole snapshot becomes a new zone or volume, with `name` under another name. A difference becomes one
//! more snapshot of the one that it is of.

use std::io;
use std::sync::Arc;

use serde_json::{Value, json};
use store::{Arrived, Label, Of, Sort, Store, transfer_id};
use tokio::io::{AsyncRead, AsyncReadExt as _};

use super::send::{AboutVolume, AboutZone};
use super::subject::Subject;
use crate::containers::{self, Record, Wanted};
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, blocking, ndjson, no_content, ok};
use crate::routes;
use crate::volumes::{self, Volume};

/// Bytes that are written at once.
const PART: usize = 256 << 10;
/// Progress is told after so many bytes.
const TOLD: u64 = 16 << 20;

pub(crate) async fn route(
    engine: Arc<Engine>,
    method: &str,
    rest: &[&str],
    mut req: Request,
) -> Result<Response> {
    let store = engine.store().await?;
    let name = req.query.get("name").map(str::to_owned);
    match (method, rest) {
        ("GET", []) => {
            let all = blocking(move || store.transfers()).await?;
            let one = |(id, received)| json!({"id": id, "received": received});
            ok(&all.into_iter().map(one).collect::<Vec<Value>>())
        }
        ("POST", []) => {
            let raw = req.bytes().await?;
            let label = Label::parse(&raw)?;
            Target::find(&engine, &store, &label, name.as_deref()).await?;
            let id = transfer_id(&raw);
            let (asked, received) = (id.clone(), store.clone());
            let received = blocking(move || received.received(&asked)).await?;
            ok(&json!({"id": id, "received": received}))
        }
        ("PUT", [id]) => {
            let offset = req.query.number("offset")?.unwrap_or(0);
            go_on(&store, id, offset, req).await
        }
        ("POST", [id]) => {
            let (id, (sender, response)) = ((*id).to_owned(), ndjson());
            tokio::spawn(async move {
                let last = match finish(&engine, &store, &id, name.as_deref(), &sender).await {
                    Ok(told) => told,
                    Err(error) => json!({"error": error.message}),
                };
                // The client may have gone; it is in its place all the same.
                let _ = sender.send_json(&last).await;
            });
            Ok(response)
        }
        ("DELETE", [id]) => {
            let id = (*id).to_owned();
            blocking(move || store.forget_transfer(&id)).await?;
            no_content()
        }
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

/// Keeps what comes, until the client has no more or goes away.
async fn go_on(store: &Arc<Store>, id: &str, offset: u64, req: Request) -> Result<Response> {
    let (kept, owned) = (store.clone(), id.to_owned());
    let mut incoming = blocking(move || kept.receive(&owned, offset)).await?;
    let mut body = Box::pin(req.into_reader());
    let mut received = offset;
    let ended = loop {
        let mut part = Vec::with_capacity(PART);
        let ended = fill(&mut body, &mut part).await;
        received += part.len() as u64;
        if !part.is_empty() {
            incoming = blocking(move || incoming.put(&part).map(|()| incoming)).await?;
        }
        if let Some(ended) = ended {
            break ended;
        }
    };
    // It waits for the disk.
    blocking(move || {
        drop(incoming);
        Ok::<(), ApiError>(())
    })
    .await?;
    ended.map_err(|error| ApiError::bad_request(format!("The transfer was cut off: {error}.")))?;
    ok(&json!({"received": received}))
}

/// Reads until `part` is full, or to the end, which it tells of.
async fn fill(body: &mut (impl AsyncRead + Unpin), part: &mut Vec<u8>) -> Option<io::Result<()>> {
    while part.len() < part.capacity() {
        match body.read_buf(part).await {
            Ok(0) => return Some(Ok(())),
            Ok(_) => {}
            Err(error) => return Some(Err(error)),
        }
    }
    None
}

/// What a transfer becomes.
enum Target {
    NewZone {
        wanted: Box<Wanted>,
        image: Box<store::Image>,
    },
    NewVolume(Volume),
    /// One more snapshot.
    Of(Subject),
}

impl Target {
    /// # Errors
    /// It cannot be had as things are.
    async fn find(
        engine: &Arc<Engine>,
        store: &Arc<Store>,
        label: &Label,
        name: Option<&str>,
    ) -> Result<Self> {
        let name = name.unwrap_or(&label.name);
        if let Some(from) = &label.from {
            let subject = match label.kind {
                Sort::Zone => Subject::zone(engine, name).await?,
                Sort::Volume => Subject::volume(engine, name).await?,
            };
            let (kept, owned, label, from) = (store.clone(), subject.clone(), label.clone(), from.clone());
            blocking(move || difference(&kept, &owned, &label, &from)).await?;
            return Ok(Self::Of(subject));
        }
        match label.kind {
            Sort::Zone => {
                let all = engine.containers().await?.all();
                if all.iter().any(|other| other.lock().name == name) {
                    return Err(taken("zone", name));
                }
                let AboutZone {
                    create,
                    image,
                    image_names,
                } = about(label)?;
                let called = image_names.first().unwrap_or(&image);
                let image = store.resolve(&image).map_err(|_| {
                    ApiError::not_found(format!(
                        "The image {called} ({image}) of the zone is not here; pull or load it first, then send again."
                    ))
                })?;
                let wanted = Box::new(containers::parse_wanted(create)?);
                let image = Box::new(image);
                Ok(Self::NewZone { wanted, image })
            }
            Sort::Volume => {
                volumes::check_name(name)?;
                let AboutVolume { labels, options } = about(label)?;
                let volume = Volume {
                    name: name.to_owned(),
                    created: zones::log::now(),
                    labels,
                    options,
                };
                volumes::limit(&volume)?;
                if volumes::exists(engine, store, name).await? {
                    return Err(taken("volume", name));
                }
                Ok(Self::NewVolume(volume))
            }
        }
    }
}

fn taken(kind: &str, name: &str) -> ApiError {
    ApiError::conflict(format!(
        "There is a {kind} {name} already; send what differs from a snapshot that both have (`from`), or give another name."
    ))
}

fn about<T: serde::de::DeserializeOwned>(label: &Label) -> Result<T> {
    serde_json::from_value(label.about.clone())
        .map_err(|error| ApiError::bad_request(format!("What was sent cannot be understood: {error}.")))
}

/// Checks that a difference can be had. Blocks.
fn difference(store: &Store, subject: &Subject, label: &Label, from: &str) -> Result<()> {
    let (of, name) = (subject.of(), subject.name());
    if let Some(known) = store.snapshot_with(of, &label.uuid)? {
        return Err(ApiError::conflict(format!(
            "{name} has that snapshot already, as {known}."
        )));
    }
    if store.snapshot_with(of, from)?.is_none() {
        return Err(ApiError::conflict(format!(
            "{name} has no snapshot that this is the difference to; send an earlier one first, or the whole."
        )));
    }
    match store.snapshot(of, &label.snapshot) {
        Ok(_) => Err(ApiError::conflict(format!(
            "{name} has another snapshot of the name {}.",
            label.snapshot
        ))),
        Err(error) if error.is_not_found() => Ok(()),
        Err(error) => Err(error.into()),
    }
}

async fn finish(
    engine: &Arc<Engine>,
    store: &Arc<Store>,
    id: &str,
    name: Option<&str>,
    sender: &BodySender,
) -> Result<Value> {
    let (kept, owned) = (store.clone(), id.to_owned());
    let mut tell = telling(sender, "checking");
    let arrived = blocking(move || kept.arrived(&owned, &mut tell)).await?;
    let label = arrived.label.clone();
    let target = Target::find(engine, store, &label, name).await?;
    let name = name.unwrap_or(&label.name);
    let tell = telling(sender, "unpacking");
    let arrived = match target {
        Target::NewZone { wanted, image } => {
            let (arrived, mut tell) = (Arc::new(arrived), tell);
            let content = arrived.clone();
            let begin = Box::new(move |store: &Store, record: &Record, limit| {
                Ok(store.take_in(&content, Of::Zone(&record.id), limit, &mut tell)?)
            });
            containers::make_with(engine, name, *wanted, *image, begin).await?;
            Arc::into_inner(arrived)
        }
        Target::NewVolume(volume) => Some(new_volume(engine, store, volume, arrived, tell).await?),
        Target::Of(subject) => Some(more(store, subject, arrived, tell).await?),
    };
    if let Some(arrived) = arrived {
        blocking(move || arrived.done()).await?;
    }
    let kind = match label.kind {
        Sort::Zone => "zone",
        Sort::Volume => "volume",
    };
    let new = label.from.is_none();
    Ok(json!({"done": true, "kind": kind, "of": name, "name": label.snapshot, "new": new}))
}

/// Tells now and then how far something is.
fn telling(sender: &BodySender, phase: &'static str) -> impl FnMut(u64, u64) + Send + use<> {
    let (sender, mut told) = (sender.clone(), 0);
    move |done, total| {
        if done >= told {
            told = done + TOLD;
            // The client may have gone; what was begun is brought to its end.
            let _ = sender.blocking_send_json(&json!({"phase": phase, "done": done, "total": total}));
        }
    }
}

async fn new_volume(
    engine: &Arc<Engine>,
    store: &Arc<Store>,
    volume: Volume,
    arrived: Arrived,
    mut tell: impl FnMut(u64, u64) + Send + 'static,
) -> Result<Arrived> {
    let _turn = engine.volumes.turn.lock().await;
    let (store, name) = (store.clone(), volume.name.clone());
    if volumes::exists(engine, &store, &name).await? {
        return Err(taken("volume", &name));
    }
    let arrived = blocking(move || {
        // What has no record is what a power cut has left of such a work.
        store.remove_volume(&volume.name)?;
        let limit = volumes::limit(&volume)?;
        let placed = store.take_in(&arrived, Of::Volume(&volume.name), limit, &mut tell);
        // The record last: what has one has content.
        placed
            .map_err(ApiError::from)
            .and_then(|()| volumes::keep(&store, &volume))
            .inspect_err(|_| {
                // The first error is the one to tell.
                let _ = store.remove_volume(&volume.name);
            })?;
        Ok::<_, ApiError>(arrived)
    })
    .await?;
    volumes::tell_made(engine, &name);
    Ok(arrived)
}

async fn more(
    store: &Arc<Store>,
    subject: Subject,
    arrived: Arrived,
    mut tell: impl FnMut(u64, u64) + Send + 'static,
) -> Result<Arrived> {
    let store = store.clone();
    blocking(move || {
        store.take_in(&arrived, subject.of(), None, &mut tell)?;
        Ok::<_, ApiError>(arrived)
    })
    .await
}
