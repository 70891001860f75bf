//! Sending a snapshot: `GET …/snapshots/NAME/send`, as one stream of bytes, the same each time.
//!
//! `from` names an earlier snapshot that the other side has: only the difference is sent. `offset` leaves
//! out so many bytes that have arrived. `label` asks for the beginning alone, by which the other side
//! tells what it has.

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::header::{CONTENT_TYPE, HeaderValue};
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Store;

use super::subject::Subject;
use crate::containers::Record;
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, blocking, channel, whole};

/// What is said of a zone, so that it can be made elsewhere.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AboutZone {
    /// The body of a request that makes it.
    pub(super) create: Value,
    pub(super) image: String,
    /// What people call the image.
    pub(super) image_names: Vec<String>,
}

/// The same of a volume.
#[derive(Debug, Serialize, Deserialize)]
pub(super) struct AboutVolume {
    pub(super) labels: BTreeMap<String, String>,
    pub(super) options: BTreeMap<String, String>,
}

pub(super) async fn send(
    engine: &Arc<Engine>,
    subject: &Subject,
    name: &str,
    req: &Request,
) -> Result<Response> {
    let store = engine.store().await?;
    let (from, offset) = (
        req.query.get("from").map(str::to_owned),
        req.query.number("offset")?,
    );
    let (subject, name) = (subject.clone(), name.to_owned());
    let sending = blocking(move || {
        let about = about(&store, &subject)?;
        let sending = store.sending(subject.of(), &name, from.as_deref(), &subject.name(), about);
        Ok::<_, ApiError>(sending?)
    })
    .await?;
    let bytes = HeaderValue::from_static("application/octet-stream");
    if req.query.flag("label") {
        let mut response = hyper::Response::new(whole(sending.beginning().to_vec()));
        response.headers_mut().insert(CONTENT_TYPE, bytes);
        return Ok(response);
    }
    let (sender, body) = channel();
    drop(tokio::task::spawn_blocking(move || {
        let sent = sending.write(offset.unwrap_or(0), Chunks(&sender));
        if let Err(error) = sent {
            sender.blocking_fail(std::io::Error::other(error));
        }
    }));
    let mut response = hyper::Response::new(body);
    response.headers_mut().insert(CONTENT_TYPE, bytes);
    Ok(response)
}

fn about(store: &Store, subject: &Subject) -> Result<Value> {
    let told = match subject {
        Subject::Zone(container) => serde_json::to_value(of_zone(store, &container.record())?),
        Subject::Volume { volume, .. } => serde_json::to_value(AboutVolume {
            labels: volume.labels.clone(),
            options: volume.options.clone(),
        }),
    };
    told.map_err(|error| ApiError::internal(format!("Cannot write what is sent: {error}.")))
}

fn of_zone(store: &Store, record: &Record) -> Result<AboutZone> {
    let names = match store.resolve(&record.image) {
        Ok(image) => image.references.iter().map(ToString::to_string).collect(),
        Err(_) => Vec::new(),
    };
    let mut create = json!(record.config);
    create["HostConfig"] = json!(record.host);
    // By their names: the other machine has its own networks.
    let joined = record.joined().into_iter();
    let endpoints: BTreeMap<String, Value> = joined
        .map(|joined| {
            let asked =
                json!({"Aliases": joined.aliases, "Links": joined.links, "GwPriority": joined.priority});
            (joined.name, asked)
        })
        .collect();
    create["NetworkingConfig"] = json!({"EndpointsConfig": endpoints});
    Ok(AboutZone {
        create,
        image: record.image.clone(),
        image_names: names,
    })
}

/// A body that a thread writes.
struct Chunks<'a>(&'a BodySender);

impl std::io::Write for Chunks<'_> {
    fn write(&mut self, buffer: &[u8]) -> std::io::Result<usize> {
        if !buffer.is_empty() {
            self.0.blocking_send(buffer.to_vec())?;
        }
        Ok(buffer.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}
