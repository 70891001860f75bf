//! The Docker Engine API over TLS: what an unmodified `docker` client talks to.
//!
//! [`serve`] takes connections, [`routes`] finds the handler, and the handlers work on the
//! [`Engine`], which holds the containers and hands out the store, the network and the zones.

#![forbid(unsafe_code)]

pub mod engine;
pub mod events;
pub mod http;
pub mod images;
pub mod query;
pub mod routes;

pub use engine::{Engine, EngineConfig, Power};
