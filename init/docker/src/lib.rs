//! The Docker Engine API over TLS: what an unmodified `docker` client talks to.
//!
//! [`serve`] takes connections, [`routes`] finds the handler, and the handlers work on the
//! [`Engine`], which holds the containers and hands out the store, the network and the zones.

#![forbid(unsafe_code)]
// `json!` of the longer answers goes one level deeper with each token.
#![recursion_limit = "512"]

mod build;
mod containers;
mod disks;
pub mod engine;
pub mod events;
mod exec;
#[cfg(fuzzing)]
pub mod fuzzing;
pub mod http;
pub mod images;
mod memo;
mod networks;
pub mod query;
mod registry;
pub mod routes;
mod serve;
mod snapshots;
mod streams;
mod system;
pub mod tls;
mod units;
mod until;
pub mod upgrade;
mod upgraded;
mod usage;
mod users;
mod volumes;
mod websocket;

pub use containers::spec::seccomp_profile;
pub use engine::{Engine, EngineConfig, Power};
pub use serve::serve;
