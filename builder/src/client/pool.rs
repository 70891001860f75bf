//! The machine's disks and its pool, `/monobloc/v1/disks` and `/monobloc/v1/pool`.

use std::time::Duration;

use http_body_util::{BodyExt as _, Full};
use hyper::body::Bytes;
use hyper::header::CONTENT_TYPE;
use hyper::{Method, Request};
use serde::Deserialize;
use serde_json::{Value, json};

use super::{Api, ApiError, block_on};

/// A line of progress longer than this is not one of the appliance's.
const MAX_LINE: usize = 64 << 10;

/// What a pool can be told to do.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Order {
    /// `create`, `add`, `remove`, `replace`, `scrub`.
    pub verb: &'static str,
    /// By serial number or name.
    pub disks: Vec<String>,
    /// The one that is replaced; the missing one where it is not said.
    pub old: Option<String>,
    pub erase: bool,
    /// How a pool that is created is encrypted, if it is.
    pub encryption: Option<Encryption>,
}

/// Where the key of an encrypted pool is.
#[derive(Clone, PartialEq, Eq)]
pub enum Encryption {
    Passphrase(String),
    /// In the bundle that the machine is started with.
    Bundle,
    /// In its TPM; what opens the pool where that does not.
    Tpm {
        recovery_key: String,
    },
}

impl std::fmt::Debug for Encryption {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Encryption")
    }
}

impl Encryption {
    /// The TPM, with a new recovery key.
    ///
    /// # Errors
    /// There are no random bytes.
    pub fn tpm() -> std::io::Result<Encryption> {
        let recovery_key = crate::site::random_key()?;
        Ok(Encryption::Tpm { recovery_key })
    }

    /// What its owner has to keep, if the machine has the key itself.
    #[must_use]
    pub fn recovery_key(&self) -> Option<String> {
        match self {
            Encryption::Tpm { recovery_key } => Some(recovery_key.clone()),
            _ => None,
        }
    }

    fn told(&self) -> Value {
        match self {
            Encryption::Passphrase(passphrase) => json!({"by": "passphrase", "passphrase": passphrase}),
            Encryption::Bundle => json!({"by": "bundle"}),
            Encryption::Tpm { recovery_key } => json!({"by": "tpm", "passphrase": recovery_key}),
        }
    }
}

/// A disk of the machine.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
pub struct Disk {
    pub name: String,
    pub serial: String,
    pub model: String,
    /// Bytes.
    pub size: u64,
    pub bus: String,
    /// `blank`, `pool`, `foreign`, `in use`.
    pub content: String,
    pub description: String,
}

/// How far a change is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize)]
#[serde(default)]
pub struct Stage {
    pub phase: String,
    pub done: u64,
    pub total: u64,
}

impl Api {
    /// The machine's disks as the appliance tells them.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn disks(&self, limit: Duration) -> Result<Value, ApiError> {
        self.call_for_json(Method::GET, "/monobloc/v1/disks", Bytes::new(), limit)
    }

    /// The pool as the appliance tells it.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn pool(&self, limit: Duration) -> Result<Value, ApiError> {
        self.call_for_json(Method::GET, "/monobloc/v1/pool", Bytes::new(), limit)
    }

    /// Gives the appliance the passphrase that it waits for.
    ///
    /// # Errors
    /// As [`Api::ping`]; it waits for none, or it is not the right one.
    pub fn unlock_pool(&self, passphrase: &str, limit: Duration) -> Result<(), ApiError> {
        let body = json!({"passphrase": passphrase}).to_string();
        self.call(Method::POST, "/monobloc/v1/pool/unlock", Bytes::from(body), limit)
            .map(drop)
    }

    /// Has the pool changed, and waits until it is, however long; `limit` is for each word of it.
    ///
    /// # Errors
    /// As [`Api::ping`]; the appliance refuses, or it fails.
    pub fn change_pool(
        &self,
        order: &Order,
        limit: Duration,
        tell: &mut dyn FnMut(&Stage),
    ) -> Result<(), ApiError> {
        let path = format!("/monobloc/v1/pool/{}", order.verb);
        let body = json!({
            "disks": order.disks, "old": order.old, "erase": order.erase,
            "encryption": order.encryption.as_ref().map(Encryption::told),
        });
        let done = self.follow_work(&path, Bytes::from(body.to_string()), limit, tell);
        done.map(drop)
    }

    /// Has something done that tells how far it is, and waits until it is done; gives the last word.
    pub(super) fn follow_work(
        &self,
        path: &str,
        body: Bytes,
        limit: Duration,
        tell: &mut dyn FnMut(&Stage),
    ) -> Result<Value, ApiError> {
        let work = async {
            let request = Request::builder()
                .method(Method::POST)
                .uri(path)
                .header(CONTENT_TYPE, "application/json")
                .body(Full::new(body))
                .map_err(|error| self.no_answer(&error))?;
            let response = self.begin(request, path, limit).await?;
            let status = response.status();
            let mut body = response.into_body();
            let mut lines = Lines::default();
            loop {
                // What takes long says so all the time, except in a single step of the kernel's.
                let Some(frame) = body.frame().await else {
                    return Err(self.no_answer(&std::io::Error::other("it ended before the work did")));
                };
                let frame = frame.map_err(|error| self.no_answer(&error))?;
                lines.push(frame.data_ref().map_or(&[], |data| data.as_ref()));
                while let Some(line) = lines.pop() {
                    if line.get("done").and_then(Value::as_bool) == Some(true) {
                        return Ok(line);
                    }
                    if let Some(reason) = line.get("error").and_then(Value::as_str) {
                        return Err(refused(path, status.as_u16(), reason.to_owned()));
                    }
                    tell(&Stage::deserialize(line).unwrap_or_default());
                }
            }
        };
        block_on(work).map_err(|source| self.connection(source))?
    }
}

pub(super) fn refused(path: &str, status: u16, message: String) -> ApiError {
    ApiError::Refused {
        path: path.to_owned(),
        status,
        message,
    }
}

/// Takes a stream apart into JSON documents, one a line; what is none is passed over.
#[derive(Default)]
struct Lines(Vec<u8>);

impl Lines {
    fn push(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        if self.0.len() > MAX_LINE && !self.0.contains(&b'\n') {
            self.0.clear();
        }
    }

    fn pop(&mut self) -> Option<Value> {
        loop {
            let end = self.0.iter().position(|byte| *byte == b'\n')?;
            let line: Vec<u8> = self.0.drain(..=end).collect();
            if let Ok(value) = serde_json::from_slice(&line) {
                return Some(value);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn documents_are_told_apart_wherever_the_stream_is_cut() {
        let text = b"{\"phase\":\"copying\",\"done\":1,\"total\":4}\r\nnonsense\n{\"done\":true}\r\n";
        for cut in 0..text.len() {
            let mut lines = Lines::default();
            let mut seen = Vec::new();
            for part in [&text[..cut], &text[cut..]] {
                lines.push(part);
                seen.extend(std::iter::from_fn(|| lines.pop()));
            }
            assert_eq!(
                seen,
                [
                    json!({"phase": "copying", "done": 1, "total": 4}),
                    json!({"done": true})
                ]
            );
        }
    }
}
