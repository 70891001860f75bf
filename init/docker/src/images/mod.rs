//! Image endpoints.

mod archive;
mod commit;
mod distribution;
mod list;
mod progress;
mod pull;
mod push;
mod remove;
mod save;

pub(crate) use commit::commit;
pub(crate) use list::usage;
pub(crate) use pull::{download, fetch};

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::StatusCode;
use store::Image;

use crate::build;
use crate::engine::Engine;
use crate::http::{self, ApiError, Request, Response, Result};
use crate::registry::{Credentials, RegistryError, Session};
use crate::routes;

/// Answers everything below `/images`, `/auth`, `/build` and `/distribution`.
///
/// An image's name may have slashes, so it is what lies between `/images/` and the verb.
pub async fn route(
    engine: Arc<Engine>,
    method: &str,
    segments: &[&str],
    mut req: Request,
) -> Result<Response> {
    match (method, segments) {
        ("POST", ["auth"]) => auth(&engine, req).await,
        ("GET", ["images", "json"]) => list::list(&engine, req).await,
        ("POST", ["images", "create"]) => pull::create(&engine, req).await,
        ("POST", ["images", "load"]) => archive::load(&engine, req).await,
        ("POST", ["build", "prune"]) => build::cache::prune(&engine).await,
        ("POST", ["build"]) => build::build(&engine, req).await,
        ("POST", ["images", "prune"]) => remove::prune(&engine, req).await,
        ("GET", ["images", name @ .., "json"]) if !name.is_empty() => {
            req.name = name.join("/");
            list::inspect(&engine, req).await
        }
        ("GET", ["images", "search"]) => Err(ApiError::not_implemented(
            "Monobloc searches no registry: the protocol that all of them speak has no search. Look for the image at the registry's own site.",
        )),
        ("GET", ["distribution", name @ .., "json"]) if !name.is_empty() => {
            req.name = name.join("/");
            distribution::inspect(&engine, &req).await
        }
        ("GET", ["images", "get"]) => {
            let names: Vec<&str> = req.query.all("names").collect();
            save::save(&engine, &names).await
        }
        ("GET", ["images", name @ .., "get"]) if !name.is_empty() => {
            save::save(&engine, &[&name.join("/")]).await
        }
        ("GET", ["images", name @ .., "history"]) if !name.is_empty() => {
            req.name = name.join("/");
            list::history(&engine, req).await
        }
        ("POST", ["images", name @ .., "push"]) if !name.is_empty() => {
            req.name = name.join("/");
            push::start(&engine, req).await
        }
        ("POST", ["images", name @ .., "tag"]) if !name.is_empty() => {
            req.name = name.join("/");
            remove::tag(&engine, req).await
        }
        ("DELETE", ["images", name @ ..]) if !name.is_empty() => {
            req.name = name.join("/");
            remove::remove(&engine, req).await
        }
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

/// Refuses images for other machines, which would not run here.
pub(crate) fn only_this_platform(platform: Option<&str>) -> Result<()> {
    match platform {
        None | Some("linux" | "linux/amd64" | "linux/x86_64") => Ok(()),
        Some(other) => Err(ApiError::not_implemented(format!(
            "This machine runs linux/amd64 images only, and none for {other}."
        ))),
    }
}

/// Tells those who listen what became of an image.
fn tell(engine: &Engine, action: &str, id: &str, name: &str) {
    engine.events.tell(
        "image",
        action,
        id,
        BTreeMap::from([("name".to_owned(), name.to_owned())]),
    );
}

/// The beginning of an id, as people see it.
pub(crate) fn short(id: &str) -> &str {
    id.get(..12).unwrap_or(id)
}

/// Finds an image, with Docker's words where there is none.
fn find(store: &store::Store, name: &str) -> Result<Image> {
    store.resolve(name).map_err(|error| match error {
        store::Error::NoSuchImage { .. } => ApiError::not_found(format!("No such image: {name}")),
        other => other.into(),
    })
}

/// `POST /auth`: whether a registry lets somebody in.
async fn auth(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    #[derive(serde::Deserialize)]
    struct Address {
        #[serde(default)]
        serveraddress: String,
    }
    let body = req.bytes().await?;
    let address: Address = serde_json::from_slice(&body).map_err(|error| {
        ApiError::bad_request(format!("The request's body is not the JSON expected: {error}."))
    })?;
    let credentials = Credentials::from_json(&body)?;
    let server = address
        .serveraddress
        .trim_start_matches("https://")
        .trim_start_matches("http://");
    let registry = match server.split('/').next().unwrap_or_default() {
        "" | "index.docker.io" => "docker.io",
        other => other,
    };
    // Any name in the registry will do; none is asked for.
    let reference = format!("{registry}/library/scratch").parse::<store::Reference>()?;
    // A single word would be read as a user of Docker's own registry, which must not get the password.
    if reference.registry() != registry {
        return Err(ApiError::bad_request(format!(
            "`{registry}` is not a registry's address; give its full name or its port."
        )));
    }
    let session = Session::new(&reference, credentials, &engine.config.registry.insecure)?;
    session.check().await.map_err(|error| match error {
        RegistryError::Denied { reason, .. } => ApiError::new(
            StatusCode::UNAUTHORIZED,
            format!(
                "login attempt to https://{registry}/v2/ failed with status: 401 Unauthorized ({reason})"
            ),
        ),
        other => other.into(),
    })?;
    http::ok(&serde_json::json!({ "Status": "Login Succeeded", "IdentityToken": "" }))
}
