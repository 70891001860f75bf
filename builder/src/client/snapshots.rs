//! Snapshots of a machine's zones and volumes, `/monobloc/v1/snapshots` and what lies below each.

use std::time::Duration;

use hyper::Method;
use hyper::body::Bytes;
use serde_json::{Value, json};

use super::{Api, ApiError};

/// What snapshots are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Zone,
    Volume,
}

/// A zone or volume of a machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    pub kind: Kind,
    pub name: String,
}

impl Subject {
    /// Path of what is below it.
    pub(super) fn path(&self, below: &str) -> String {
        let kind = match self.kind {
            Kind::Zone => "zones",
            Kind::Volume => "volumes",
        };
        format!("/monobloc/v1/{kind}/{}/{below}", escaped(&self.name))
    }
}

/// One component of a path.
pub(super) fn escaped(name: &str) -> String {
    name.bytes().fold(String::new(), |mut text, byte| {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.') {
            text.push(char::from(byte));
        } else {
            text.push_str(&format!("%{byte:02X}"));
        }
        text
    })
}

impl Api {
    /// Snapshots of one, or all of the machine.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn snapshots(&self, of: Option<&Subject>, limit: Duration) -> Result<Value, ApiError> {
        let all = || "/monobloc/v1/snapshots".to_owned();
        let path = of.map_or_else(all, |of| of.path("snapshots"));
        self.call_for_json(Method::GET, &path, Bytes::new(), limit)
    }

    /// Makes a snapshot; its name is made up where none is given.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn create_snapshot(
        &self,
        of: &Subject,
        name: Option<&str>,
        freeze: bool,
        limit: Duration,
    ) -> Result<Value, ApiError> {
        let body = json!({"name": name.unwrap_or_default(), "freeze": freeze});
        self.call_for_json(Method::POST, &of.path("snapshots"), bytes(&body), limit)
    }

    /// # Errors
    /// As [`Api::ping`].
    pub fn delete_snapshot(&self, of: &Subject, name: &str, limit: Duration) -> Result<(), ApiError> {
        let path = of.path(&format!("snapshots/{}", escaped(name)));
        self.call(Method::DELETE, &path, Bytes::new(), limit).map(|_| ())
    }

    /// Makes a zone or volume what it was; with `restart` what runs with it is stopped and started.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn roll_back(
        &self,
        of: &Subject,
        name: &str,
        restart: bool,
        limit: Duration,
    ) -> Result<(), ApiError> {
        let path = of.path(&format!("snapshots/{}/rollback", escaped(name)));
        self.call(Method::POST, &path, bytes(&json!({"restart": restart})), limit)
            .map(|_| ())
    }

    /// Makes another zone or volume of one as it is, or as a snapshot has it.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn clone_subject(
        &self,
        of: &Subject,
        snapshot: Option<&str>,
        name: &str,
        limit: Duration,
    ) -> Result<Value, ApiError> {
        let body = json!({"name": name, "snapshot": snapshot});
        self.call_for_json(Method::POST, &of.path("clone"), bytes(&body), limit)
    }
}

fn bytes(body: &Value) -> Bytes {
    Bytes::from(body.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_name_is_one_component_of_the_path() {
        let subject = Subject {
            kind: Kind::Volume,
            name: "a/../b c".to_owned(),
        };
        assert_eq!(subject.path("clone"), "/monobloc/v1/volumes/a%2F..%2Fb%20c/clone");
    }
}
