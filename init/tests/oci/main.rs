//! The OCI runtime command line of the real binary, with bundles that other programs wrote, driven as
//! callers of runc do. Everything is read back from inside the container.

#![allow(clippy::unwrap_used, reason = "it is how a test's helper fails")]

mod bundle;
mod callers;
mod config;
mod cycle;
mod exec;
mod hooks;
mod limits;
