//! The harness that boots real images in QEMU and the words that the suites beside it are written in.
//!
//! A suite (`tests/*.rs`) boots one [`Machine`] and shares it between its tests; a test that needs a
//! boot of its own makes its own. The clients are real: Debian's `docker` command through
//! [`Machine::docker`] and its relatives, bollard through [`Machine::bollard`]. So are the registry
//! ([`registry::Registry`]) and the images ([`images`]). The words panic with what went wrong, and
//! whenever a test panics the end of every running machine's console is printed with it.
//!
//! Everything that is started dies with the test process ([`process`]), and nothing sleeps: serial
//! consoles, terminals and followed logs are [`transcript::Transcript`]s that are waited on.

#![forbid(unsafe_code)]

pub mod api;
pub mod bare;
pub mod client;
pub mod host;
pub mod image;
pub mod images;
pub mod machine;
pub mod peer;
pub mod process;
pub mod registry;
pub mod setup;
pub mod site;
pub mod terminal;
mod token;
pub mod tpm;
pub mod transcript;

pub use client::Docker;
pub use machine::{Boot, Disk, Machine};
pub use process::Outcome;
pub use tpm::Tpm;
