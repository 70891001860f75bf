//! What the tests of this folder share.

use serde_json::json;

use crate::containers::config::{self, Wanted};

/// A container of image `x` with this `HostConfig`, and port 90 exposed.
pub(super) fn wanted(host: serde_json::Value) -> Wanted {
    config::parse(json!({"Image": "x", "HostConfig": host, "ExposedPorts": {"90/tcp": {}}})).unwrap()
}
