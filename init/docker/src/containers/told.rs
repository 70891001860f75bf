//! What is told of a container's places on networks, beside what [`Engine::tell`] tells of itself.

use super::container::Record;
use crate::engine::Engine;
use crate::networks;

/// Tells that a container has come to its networks (`connect`) or has left them (`disconnect`).
pub(super) fn network(engine: &Engine, record: &Record, action: &str) {
    for found in networks::of(engine, record) {
        networks::tell(engine, action, &found, Some(&record.id));
    }
}
