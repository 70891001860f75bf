//! `GET /distribution/{name}/json`: what a registry has under a name, for which platforms.

use std::sync::Arc;

use serde_json::{Value, json};
use store::{Digest, Reference};

use crate::engine::Engine;
use crate::http::{self, ApiError, Request, Response, Result};
use crate::registry::manifest::{Descriptor, Document};
use crate::registry::{Credentials, RegistryError, Session};

pub(super) async fn inspect(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let reference = req.name.parse::<Reference>()?.or_latest();
    let credentials = Credentials::from_header(req.header("x-registry-auth"))?;
    let session = Session::new(&reference, credentials, &engine.config.registry.insecure)?;
    let wanted = match reference.digest() {
        Some(digest) => digest.to_string(),
        None => reference.tag().unwrap_or("latest").to_owned(),
    };
    let (bytes, digest) = session.manifest(&wanted).await.map_err(|error| match error {
        RegistryError::Denied { .. } => ApiError::new(hyper::StatusCode::UNAUTHORIZED, error.to_string()),
        other => other.into(),
    })?;
    let document = Document::parse(&bytes).map_err(|reason| session.damaged("manifest", reason))?;
    let (fallback, platforms) = match document {
        Document::Index(list) => ("index.v1+json", list.iter().filter_map(platform).collect()),
        Document::Image(manifest) => {
            let config = session.small_blob(&manifest.config.digest).await?;
            (
                "manifest.v1+json",
                platform_of_config(&config).into_iter().collect(),
            )
        }
    };
    let platforms: Vec<Value> = platforms;
    http::ok(&json!({
        "Descriptor": {
            "mediaType": media_type(&bytes, fallback), "digest": Digest::to_string(&digest), "size": bytes.len(),
        },
        "Platforms": platforms,
    }))
}

fn media_type(manifest: &[u8], fallback: &str) -> String {
    let read: Option<Value> = serde_json::from_slice(manifest).ok();
    let told = read.as_ref().and_then(|read| read.get("mediaType")?.as_str());
    told.map_or_else(|| format!("application/vnd.oci.image.{fallback}"), str::to_owned)
}

fn platform(descriptor: &Descriptor) -> Option<Value> {
    let platform = descriptor.platform.as_ref()?;
    let mut told = json!({"architecture": platform.architecture, "os": platform.os});
    if !platform.variant.is_empty() {
        told["variant"] = json!(platform.variant);
    }
    Some(told)
}

fn platform_of_config(config: &[u8]) -> Option<Value> {
    let read: Value = serde_json::from_slice(config).ok()?;
    Some(json!({"architecture": read.get("architecture")?, "os": read.get("os")?}))
}
