//! What a fuzzer calls: everything that reads what a client or a registry has written. None of it may
//! panic, whatever the bytes are.

use crate::http::no_body;
use crate::query::Filters;
use crate::{build, containers, registry, routes};

/// A request: the first line is its target, the rest the body of a container that is to be created.
pub fn request(bytes: &[u8]) {
    let end = bytes
        .iter()
        .position(|byte| *byte == b'\n')
        .unwrap_or(bytes.len());
    let (target, body) = bytes.split_at(end);
    if let Ok(request) = hyper::Request::get(target).body(no_body())
        && let Ok(request) = routes::parse(request)
    {
        let _ = request.query.filters();
    }
    if let Ok(text) = std::str::from_utf8(target) {
        let _ = Filters::parse(text);
    }
    if let Ok(body) = serde_json::from_slice(body.get(1..).unwrap_or_default()) {
        let _ = containers::config::parse(body);
    }
}

/// A manifest or an index of a registry.
pub fn manifest(bytes: &[u8]) {
    let _ = registry::manifest::Document::parse(bytes);
}

/// A Dockerfile.
pub fn dockerfile(bytes: &[u8]) {
    if let Ok(text) = std::str::from_utf8(bytes) {
        let _ = build::dockerfile::parse(text);
    }
}
