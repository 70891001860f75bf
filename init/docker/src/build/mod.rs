//! `docker build`, as Docker's classic builder does it (`DOCKER_BUILDKIT=0`).
//!
//! - [`dockerfile`], [`words`]: the text
//! - [`stage`]: an image so far, and the instructions that change its settings
//! - [`copy`], [`run`]: the instructions that make layers
//! - [`cache`]: what was made before
//!
//! Every instruction ends with an image, as with Docker; those in between have no names and are the
//! cache. The work is done in a thread that may block; what waits for others runs on the runtime.

pub(crate) mod cache;
mod copy;
pub(crate) mod dockerfile;
mod run;
mod stage;
mod steps;
mod words;

use std::collections::BTreeMap;
use std::sync::Arc;

use base64::Engine as _;
use serde_json::{Map, Value, json};
use store::{Reference, Store, Workspace};
use tokio_util::io::SyncIoBridge;

use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Request, Response, Result, ndjson};
use crate::images::short;
use crate::registry::BASE64_URL;
use steps::Build;

/// Longest Dockerfile.
const MAX_DOCKERFILE: u64 = 4 << 20;

/// What a client asks for.
pub(super) struct Options {
    dockerfile: String,
    names: Vec<Reference>,
    /// Values of arguments; none takes the one that the Dockerfile has.
    args: BTreeMap<String, Option<String>>,
    labels: BTreeMap<String, String>,
    target: String,
    uses_cache: bool,
    pulls: bool,
    /// For the containers that `RUN` makes.
    host: Map<String, Value>,
    /// Credentials of registries, by name, as the client sends them.
    credentials: Map<String, Value>,
}

impl Options {
    fn read(req: &Request) -> Result<Self> {
        let query = &req.query;
        if query.get("version") == Some("2") {
            return Err(ApiError::not_implemented(
                "Monobloc builds as Docker's classic builder does: set DOCKER_BUILDKIT=0.",
            ));
        }
        if query.get("remote").is_some_and(|remote| !remote.is_empty()) {
            return Err(ApiError::not_implemented(
                "Monobloc builds from a folder of the client's, not from an address: clone or fetch it first.",
            ));
        }
        if query.flag("squash") {
            return Err(ApiError::not_implemented(
                "Monobloc does not squash images; leave --squash out.",
            ));
        }
        let platform = query.get("platform").filter(|platform| !platform.is_empty());
        crate::images::only_this_platform(platform)?;
        let named = query.all("t").filter(|name| !name.is_empty()).map(|name| {
            let name: Reference = name.parse()?;
            Ok::<_, ApiError>(name.or_latest())
        });
        let credentials = match req.header("x-registry-config") {
            None | Some("") => Map::new(),
            Some(header) => decoded(header)?,
        };
        Ok(Self {
            dockerfile: query
                .get("dockerfile")
                .filter(|name| !name.is_empty())
                .unwrap_or("Dockerfile")
                .to_owned(),
            names: named.collect::<Result<_>>()?,
            args: document(query.get("buildargs"), "buildargs")?,
            labels: document(query.get("labels"), "labels")?,
            target: query.get("target").unwrap_or_default().to_owned(),
            uses_cache: !query.flag("nocache"),
            pulls: query.flag("pull"),
            host: run::host_config(query)?,
            credentials,
        })
    }
}

fn document<T: serde::de::DeserializeOwned + Default>(text: Option<&str>, key: &str) -> Result<T> {
    match text {
        None | Some("" | "null") => Ok(T::default()),
        Some(text) => serde_json::from_str(text).map_err(|error| {
            ApiError::bad_request(format!("Parameter {key} is not the JSON expected: {error}."))
        }),
    }
}

fn decoded(header: &str) -> Result<Map<String, Value>> {
    let bytes = BASE64_URL.decode(header).ok();
    let read = bytes.and_then(|bytes| serde_json::from_slice(&bytes).ok());
    read.ok_or_else(|| ApiError::bad_request("The header X-Registry-Config is not the JSON expected."))
}

/// `POST /build`
pub(crate) async fn build(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let store = engine.store().await?;
    let options = Options::read(&req)?;
    let (sender, response) = ndjson();
    let engine = engine.clone();
    let context = SyncIoBridge::new(Box::pin(req.into_reader()));
    let runtime = tokio::runtime::Handle::current();
    tokio::task::spawn_blocking(move || {
        let built = whole(&engine, &store, options, context, &sender, runtime);
        if let Err(error) = built {
            let failure =
                json!({"errorDetail": {"code": 1, "message": error.message}, "error": error.message});
            // A client that has gone needs no answer.
            let _ = sender.blocking_send_json(&failure);
        }
    });
    Ok(response)
}

fn whole(
    engine: &Arc<Engine>,
    store: &Arc<Store>,
    options: Options,
    context: impl std::io::Read + Send,
    sender: &BodySender,
    runtime: tokio::runtime::Handle,
) -> Result<()> {
    let workspace = Workspace::new(store)?;
    workspace.unpack(context)?;
    let text = workspace
        .files()
        .read(&options.dockerfile, MAX_DOCKERFILE)
        .map_err(|error| match error {
            store::Error::NoSuchPath { path } => {
                ApiError::bad_request(format!("Cannot locate specified Dockerfile: {path}"))
            }
            other => other.into(),
        })?;
    let text = String::from_utf8_lossy(&text);
    let wrong = |error| ApiError::bad_request(format!("dockerfile parse error: {error}"));
    let file = dockerfile::parse(&text).map_err(wrong)?;
    let names = options.names.clone();
    let build = Build::new(engine, store, workspace, options, sender, runtime);
    let image = build.run(&file)?;
    let say = |line: String| {
        let _ = sender.blocking_send_json(&json!({ "stream": line }));
    };
    let _ = sender.blocking_send_json(&json!({"aux": {"ID": image.to_string()}}));
    say(format!("Successfully built {}\n", short(&image.hex())));
    for name in &names {
        store.tag(&image, name)?;
        say(format!("Successfully tagged {}\n", name.familiar_name()));
    }
    Ok(())
}
