//! `docker pull`: a pull told as Docker tells it.

use std::sync::Arc;

use serde_json::{Value, json};
use store::{Digest, Reference, Store};
use tokio::sync::mpsc;

use super::{archive, progress, short};
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, ndjson};
use crate::registry::{Credentials, Event, Pull, Pulled, RegistryError, Session, client};

/// Events that may wait for a slow client; progress beyond them is left out, never waited for.
const DEPTH: usize = 64;

/// `POST /images/create`
pub(super) async fn create(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    super::only_this_platform(req.query.get("platform"))?;
    let Some(name) = req.query.get("fromImage") else {
        return archive::import(engine, store, req);
    };
    let wanted = wanted(name, req.query.get("tag"))?;
    let credentials = Credentials::from_header(req.header("x-registry-auth"))?;
    let insecure = engine.config.registry.insecure.clone();
    let references = match wanted {
        Wanted::One(reference) => vec![reference],
        Wanted::All(repository) => {
            let tags = Session::new(&repository, credentials.clone(), &insecure)?
                .tags()
                .await?;
            let named = tags.iter().map(|tag| repository.with_tag(tag));
            named.collect::<store::Result<Vec<_>>>()?
        }
    };
    let session = move |reference: &Reference| Session::new(reference, credentials.clone(), &insecure);
    let (sender, response) = ndjson();
    let mut references = references.into_iter();
    let Some(first) = references.next() else {
        return Err(RegistryError::UnknownManifest(name.parse()?).into());
    };
    // What fails before the first word has a status of its own; later failures lie in the stream.
    let mut pull = Pull::begin(session(&first)?).await?;
    let engine = engine.clone();
    tokio::spawn(async move {
        let pulling = async {
            let mut reference = first;
            loop {
                if run(pull, store.clone(), &reference, &sender).await.is_none() {
                    return;
                }
                super::tell(
                    &engine,
                    "pull",
                    &reference.to_string(),
                    &reference.familiar_name(),
                );
                let Some(next) = references.next() else { return };
                reference = next;
                let begun = async { Pull::begin(session(&reference)?).await };
                pull = match begun.await {
                    Ok(pull) => pull,
                    Err(error) => {
                        let _ = sender.send_json(&archive::failure(&error.to_string())).await;
                        return;
                    }
                };
            }
        };
        // A client that goes away ends the pull.
        tokio::select! {
            () = sender.closed() => {}
            () = pulling => {}
        }
    });
    Ok(response)
}

/// Fetches an image for another request, whose answer tells of it.
pub(crate) async fn fetch(
    session: Session,
    store: &Arc<Store>,
    reference: &Reference,
    sender: &BodySender,
) -> Result<()> {
    let pull = Pull::begin(session).await?;
    match run(pull, store.clone(), reference, sender).await {
        Some(_) => Ok(()),
        None => Err(ApiError::not_found(format!(
            "Cannot fetch the image {reference}."
        ))),
    }
}

/// Fetches a file.
pub(crate) async fn download(url: &str) -> Result<Vec<u8>> {
    let failed = |error: String| ApiError::bad_request(format!("Cannot fetch {url}: {error}."));
    let client = client(false).map_err(failed)?;
    let answer = client.get(url).send().await;
    let answer = answer.and_then(reqwest::Response::error_for_status);
    let answer = answer.map_err(|error| failed(crate::http::with_causes(&error)))?;
    let content = answer.bytes().await;
    Ok(content
        .map_err(|error| failed(crate::http::with_causes(&error)))?
        .to_vec())
}

/// What is to be pulled.
#[derive(Debug)]
enum Wanted {
    One(Reference),
    /// All tags of a repository.
    All(Reference),
}

/// `tag` may be a tag, a digest, or be missing; the name itself may have one as well.
fn wanted(name: &str, tag: Option<&str>) -> Result<Wanted> {
    let reference: Reference = name.parse()?;
    Ok(match tag.filter(|tag| !tag.is_empty()) {
        Some(digest) if digest.contains(':') => Wanted::One(reference.with_digest(digest.parse()?)),
        Some(tag) => Wanted::One(reference.with_tag(tag)?),
        None if reference.tag().is_none() && reference.digest().is_none() => Wanted::All(reference),
        None => Wanted::One(reference),
    })
}

async fn run(pull: Pull, store: Arc<Store>, reference: &Reference, sender: &BodySender) -> Option<Pulled> {
    let id = reference.digest().map_or_else(
        || reference.tag().unwrap_or_default().to_owned(),
        ToString::to_string,
    );
    let first = json!({ "status": format!("Pulling from {}", reference.path()), "id": id });
    sender.send_json(&first).await.ok()?;
    let (events, mut coming) = mpsc::channel(DEPTH);
    let telling = async {
        while let Some(event) = coming.recv().await {
            if sender.send_json(&tell(&event)).await.is_err() {
                return;
            }
        }
    };
    let (outcome, ()) = tokio::join!(pull.run(store, events), telling);
    let lines = match &outcome {
        Ok(pulled) => ending(reference, pulled),
        Err(error) => vec![archive::failure(&error.to_string())],
    };
    for line in lines {
        // What was pulled is there, whether the client still listens or not.
        let _ = sender.send_json(&line).await;
    }
    outcome.ok()
}

fn ending(reference: &Reference, pulled: &Pulled) -> Vec<Value> {
    let verdict = if pulled.changed {
        "Downloaded newer image"
    } else {
        "Image is up to date"
    };
    vec![
        json!({ "status": format!("Digest: {}", pulled.digest) }),
        json!({ "status": format!("Status: {verdict} for {reference}") }),
    ]
}

fn tell(event: &Event) -> Value {
    let line = |status: &str, layer: &Digest| json!({ "status": status, "progressDetail": {}, "id": short(&layer.hex()) });
    match event {
        Event::Waiting(layer) => line("Pulling fs layer", layer),
        Event::Exists(layer) => line("Already exists", layer),
        Event::Downloaded(layer) => line("Download complete", layer),
        Event::Extracting(layer) => line("Extracting", layer),
        Event::Complete(layer) => line("Pull complete", layer),
        Event::Downloading { layer, done, total } => progress::line("Downloading", layer, *done, *total),
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::BodyExt;

    use super::*;
    use crate::registry::tests::pool::TestStore;
    use crate::registry::tests::server::{Layout, Server};

    #[test]
    fn a_tag_parameter_may_be_a_digest_and_without_any_all_tags_are_meant() {
        let one = |name: &str, tag: Option<&str>| match wanted(name, tag) {
            Ok(Wanted::One(reference)) => reference,
            other => panic!("{name} {tag:?}: {other:?}"),
        };
        let digest = format!("sha256:{}", "a".repeat(64));
        assert_eq!(one("busybox:2", None).tag(), Some("2"));
        assert_eq!(one("busybox", Some("1")).tag(), Some("1"));
        assert_eq!(
            one("busybox", Some(&digest)).digest().unwrap().to_string(),
            digest
        );
        assert!(wanted("busybox", Some("no tag")).is_err());
        assert!(matches!(wanted("team/busybox", None), Ok(Wanted::All(_))));
        assert!(matches!(wanted("team/busybox", Some("")), Ok(Wanted::All(_))));
    }

    /// The lines of a pull's answer, each with its id where it has one.
    async fn told(store: &Arc<Store>, name: &str) -> Vec<String> {
        let reference: Reference = name.parse().unwrap();
        let pull = Pull::begin(Session::new(&reference, None, &[]).unwrap())
            .await
            .unwrap();
        let (sender, body) = crate::http::channel();
        let running = async move {
            run(pull, store.clone(), &reference, &sender).await;
            drop(sender);
        };
        let ((), body) = tokio::join!(running, body.collect());
        let body = body.unwrap().to_bytes();
        let lines = std::str::from_utf8(&body).unwrap().lines().map(|line| {
            let line: Value = serde_json::from_str(line).unwrap();
            let text = |key: &str| line.get(key).and_then(Value::as_str).map(str::to_owned);
            if let Some(error) = text("error") {
                assert_eq!(line["errorDetail"]["message"], error);
                return format!("error: {error}");
            }
            let status = text("status").unwrap();
            text("id").map_or(status.clone(), |id| format!("{id}: {status}"))
        });
        // How often a transfer is told depends on its time.
        lines.filter(|line| !line.ends_with(": Downloading")).collect()
    }

    #[tokio::test]
    async fn a_pull_is_told_as_docker_tells_it() {
        let (pool, server) = (TestStore::new(), Server::start());
        let layout = Layout::new(&[b"one"]);
        server.push(&layout, "team/box:1");
        let name = format!("127.0.0.1:{}/team/box:1", server.port);
        let store = pool.store();
        let layer = layout.layers[0].hex()[..12].to_owned();
        let ends = |verdict: &str| {
            [
                format!("Digest: {}", layout.top),
                format!("Status: {verdict} for {name}"),
            ]
        };
        let mut expected = vec!["1: Pulling from team/box".to_owned()];
        for status in [
            "Pulling fs layer",
            "Download complete",
            "Extracting",
            "Pull complete",
        ] {
            expected.push(format!("{layer}: {status}"));
        }
        expected.extend(ends("Downloaded newer image"));
        assert_eq!(told(&store, &name).await, expected);
        let mut expected = vec![
            "1: Pulling from team/box".to_owned(),
            format!("{layer}: Already exists"),
        ];
        expected.extend(ends("Image is up to date"));
        assert_eq!(told(&store, &name).await, expected);
        // What goes wrong on the way lies in the stream.
        let damaged = Layout::new(&[b"two"]);
        server.push(&damaged, "team/box:2");
        server.damage(&damaged.layers[0]);
        let lines = told(&store, &format!("127.0.0.1:{}/team/box:2", server.port)).await;
        assert!(
            lines.last().unwrap().starts_with("error: Content has digest"),
            "{lines:?}"
        );
    }
}
