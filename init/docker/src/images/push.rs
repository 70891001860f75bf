//! `docker push`: a push told as Docker tells it.

use std::sync::Arc;

use serde_json::{Value, json};
use store::{Image, Reference, Store};
use tokio::sync::mpsc;

use super::{archive, progress, short};
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, ndjson};
use crate::registry::{Credentials, RegistryError, Session, Step, push};

/// Steps that may wait for a slow client.
const DEPTH: usize = 64;

/// `POST /images/{name}/push`: one tag, or all of the repository where none is said.
pub(super) async fn start(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    super::only_this_platform(req.query.get("platform").filter(|text| !text.is_empty()))?;
    let named: Reference = req.name.parse()?;
    let tag = req.query.get("tag").filter(|tag| !tag.is_empty());
    let wanted = match tag {
        Some(tag) => Some(named.with_tag(tag)?),
        None => named.tag().is_some().then(|| named.clone()),
    };
    let images = of_repository(&store, &named, wanted.as_ref());
    if images.is_empty() {
        let name = named.familiar_name();
        return Err(ApiError::not_found(match wanted {
            Some(_) => format!(
                "tag does not exist: {}",
                wanted.map_or(name, |name| name.to_string())
            ),
            None => format!("An image does not exist locally with the tag: {name}"),
        }));
    }
    let credentials = Credentials::from_header(req.header("x-registry-auth"))?;
    let session = Session::new(&named, credentials, &engine.config.registry.insecure)?;
    let (sender, response) = ndjson();
    let engine = engine.clone();
    tokio::spawn(async move {
        // A client that goes away ends the push.
        tokio::select! {
            () = sender.closed() => {}
            () = all(&engine, &session, &store, images, &sender) => {}
        }
    });
    Ok(response)
}

/// The tags of a repository with their images, or the one tag.
fn of_repository(store: &Store, named: &Reference, wanted: Option<&Reference>) -> Vec<(Image, Reference)> {
    let mut found = Vec::new();
    for image in store.images() {
        let meant = |known: &&Reference| match wanted {
            Some(wanted) => *known == wanted,
            None => known.same_repository(named),
        };
        let names: Vec<Reference> = image.references.iter().filter(meant).cloned().collect();
        found.extend(names.into_iter().map(|name| (image.clone(), name)));
    }
    found
}

async fn all(
    engine: &Engine,
    session: &Session,
    store: &Arc<Store>,
    images: Vec<(Image, Reference)>,
    sender: &BodySender,
) {
    let reference = session.reference();
    let place = format!("{}/{}", reference.registry(), reference.path());
    let first = json!({"status": format!("The push refers to repository [{place}]")});
    if sender.send_json(&first).await.is_err() {
        return;
    }
    for (image, name) in images {
        match one(session, store, &image, &name, sender).await {
            Ok(()) => super::tell(engine, "push", &name.to_string(), &name.familiar_name()),
            Err(error) => {
                let _ = sender.send_json(&archive::failure(&told(&error))).await;
                return;
            }
        }
    }
}

/// Docker's own words where a registry does not let somebody in.
fn told(error: &RegistryError) -> String {
    match error {
        RegistryError::Denied { reason, .. } => {
            format!("denied: requested access to the resource is denied: {reason}")
        }
        other => other.to_string(),
    }
}

async fn one(
    session: &Session,
    store: &Arc<Store>,
    image: &Image,
    name: &Reference,
    sender: &BodySender,
) -> Result<(), RegistryError> {
    let tag = name.tag().unwrap_or("latest");
    let (steps, mut coming) = mpsc::channel(DEPTH);
    let telling = async {
        while let Some(step) = coming.recv().await {
            if sender.send_json(&line(&step)).await.is_err() {
                return;
            }
        }
    };
    let pushing = async move { push(session, store, image, tag, &steps).await };
    let (pushed, ()) = tokio::join!(pushing, telling);
    let pushed = pushed?;
    store.tag(&image.id, &name.with_digest(pushed.digest))?;
    let (digest, size) = (pushed.digest, pushed.size);
    let status = json!({"status": format!("{tag}: digest: {digest} size: {size}")});
    let aux = json!({"progressDetail": {}, "aux": {"Tag": tag, "Digest": digest, "Size": size}});
    for last in [status, aux] {
        // What was pushed is there, whether the client still listens or not.
        let _ = sender.send_json(&last).await;
    }
    Ok(())
}

fn line(step: &Step) -> Value {
    let (status, layer) = match step {
        Step::Sending { layer, done, total } => return progress::line("Pushing", layer, *done, *total),
        Step::Preparing(layer) => ("Preparing".to_owned(), layer),
        Step::Exists(layer) => ("Layer already exists".to_owned(), layer),
        Step::Mounted { layer, from } => (format!("Mounted from {from}"), layer),
        Step::Pushed(layer) => ("Pushed".to_owned(), layer),
    };
    json!({"status": status, "progressDetail": {}, "id": short(&layer.hex())})
}
