//! What a client says of a pool's encryption: how a new one is protected, and the passphrase of one that
//! waits for it.

use std::sync::Arc;

use serde::Deserialize;
use store::Protection;
use store::luks::{Lock, Secret};

use super::Change;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, no_content};

/// Shorter passphrases are refused.
const LEAST: usize = 8;

/// How a new pool is encrypted.
#[derive(Clone, PartialEq, Eq, Deserialize)]
#[serde(deny_unknown_fields)]
pub(super) struct Encryption {
    by: By,
    /// The passphrase; beside a key in the bundle or the TPM it is the way in when that is lost.
    passphrase: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum By {
    Passphrase,
    Bundle,
    Tpm,
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "Encryption by {:?}", self.by)
    }
}

impl Encryption {
    /// The locks of the new pool, each with what opens it.
    pub(super) fn locks(&self, engine: &Engine) -> Result<Vec<(Lock, Secret)>> {
        let mut locks = Vec::new();
        engine.config.keys.prepare().map_err(ApiError::conflict)?;
        let protection = match self.by {
            By::Passphrase => None,
            By::Bundle => Some(Protection::Bundle),
            By::Tpm => Some(Protection::Tpm),
        };
        if let Some(protection) = protection {
            locks.push(engine.config.keys.make(protection).map_err(ApiError::conflict)?);
        }
        if let Some(passphrase) = &self.passphrase {
            locks.push((Lock::Passphrase, Secret::new(passphrase.clone().into_bytes())));
        }
        Ok(locks)
    }

    fn check(&self) -> Result<()> {
        match (&self.passphrase, self.by) {
            (None, By::Passphrase) => Err(ApiError::bad_request("Give the `passphrase`.")),
            (Some(text), _) if text.chars().count() < LEAST => Err(ApiError::bad_request(format!(
                "The passphrase is too short: give {LEAST} characters at least."
            ))),
            // It is one line at the console.
            (Some(text), _) if text.chars().any(char::is_control) => Err(ApiError::bad_request(
                "The passphrase has characters that cannot be typed at a console.",
            )),
            _ => Ok(()),
        }
    }
}

impl Change {
    /// Refuses an encryption that this machine does not have, before a disk is touched.
    pub(super) async fn can_be_encrypted(&self, engine: &Arc<Engine>) -> Result<()> {
        let Change::Create(_, Some(encryption)) = self else {
            return Ok(());
        };
        encryption.check()?;
        let (engine, encryption) = (engine.clone(), encryption.clone());
        blocking(move || encryption.locks(&engine).map(drop)).await
    }
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Passphrase {
    passphrase: String,
}

/// `POST /monobloc/v1/pool/unlock`: the passphrase of the pool that waits for it.
pub(crate) async fn unlock(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let given: Passphrase = req.json().await?;
    let secret = Secret::new(given.passphrase.into_bytes());
    let engine = engine.clone();
    let right = blocking(move || (engine.config.unlock)(secret).map_err(ApiError::conflict)).await?;
    if right {
        no_content()
    } else {
        Err(ApiError::forbidden("That is not the passphrase of the pool."))
    }
}
