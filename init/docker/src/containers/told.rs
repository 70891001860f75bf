//! What is told of a container's places on networks, beside what [`Engine::tell`] tells of itself.

use super::container::Record;
use crate::engine::Engine;
use crate::networks;

/// Tells that a container has come to its network (`connect`) or has left it (`disconnect`).
pub(super) fn network(engine: &Engine, record: &Record, action: &str) {
    let Some(name) = record.network_name() else {
        return;
    };
    let attributes = [
        ("container", record.id.as_str()),
        ("name", name),
        ("type", networks::driver(name)),
    ];
    let attributes = attributes.map(|(key, value)| (key.to_owned(), value.to_owned()));
    engine
        .events
        .tell("network", action, &networks::id(name), attributes.into());
}
