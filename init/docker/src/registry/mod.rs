//! The registry client: images pulled and pushed by the OCI distribution protocol.
//!
//! Nothing a registry says is believed: manifests asked for by digest, configs and layers are held
//! against their digests, and a layer becomes visible only with the diff-id that the config promises.
//! A registry is spoken to over TLS, except those that the node's config or a loopback address makes
//! insecure.

mod auth;
pub(crate) mod manifest;
mod pull;
mod push;
mod session;
#[cfg(test)]
pub(crate) mod tests;

use hyper::StatusCode;
use store::Reference;

pub(crate) use auth::{BASE64_URL, Credentials};
pub(crate) use pull::{Event, Pull, Pulled};
pub(crate) use push::{Step, push};
pub(crate) use session::{Session, client};

use crate::http::ApiError;

/// What goes wrong between a registry and the store.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RegistryError {
    #[error("manifest for {0} not found: manifest unknown: the registry has no image of that name and tag")]
    UnknownManifest(Reference),
    #[error(
        "pull access denied for {repository}, repository does not exist or may require 'docker login': {reason}"
    )]
    Denied { repository: String, reason: String },
    #[error(
        "Cannot reach registry {registry}: {reason}. Check its name, the node's network and its name servers."
    )]
    Unreachable { registry: String, reason: String },
    #[error("A transfer from registry {registry} broke again and again: {reason}. Pull again.")]
    Broken { registry: String, reason: String },
    #[error(
        "Registry {registry} is spoken to over TLS but sends to {realm} for a token, where the password could be read by others; it was not sent."
    )]
    PlainRealm { registry: String, realm: String },
    #[error("Registry {registry} answered {status} to {what}: {body}")]
    Status {
        registry: String,
        what: String,
        status: u16,
        body: String,
    },
    #[error("Registry {registry} sent what is no {what}: {reason}")]
    Damaged {
        registry: String,
        what: &'static str,
        reason: String,
    },
    #[error("no matching manifest for linux/amd64 in the manifest list entries of {0}")]
    NoPlatform(Reference),
    #[error("The registry's credentials in X-Registry-Auth cannot be read: {0}")]
    Credentials(String),
    #[error(transparent)]
    Store(#[from] store::Error),
    #[error("The work of a pull failed: {0}")]
    Task(#[from] tokio::task::JoinError),
}

impl From<RegistryError> for ApiError {
    fn from(error: RegistryError) -> Self {
        let status = match error {
            RegistryError::Store(error) => return error.into(),
            RegistryError::UnknownManifest(_)
            | RegistryError::Denied { .. }
            | RegistryError::NoPlatform(_) => StatusCode::NOT_FOUND,
            RegistryError::Credentials(_) => StatusCode::BAD_REQUEST,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        ApiError::new(status, error.to_string())
    }
}
