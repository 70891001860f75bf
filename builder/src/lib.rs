//! Monobloc's builder: from a recipe to one bootable image, and what is done with it.
//!
//! `recipe`, `debian`, `kernel`, `oci`, `initramfs`, `uki` and `image` make images; `site` holds the
//! operator's keys; `qemu`, `machine` and `client` run an image on this machine. The command line in
//! `main.rs` puts them together; nothing here prints.

#![forbid(unsafe_code)]

pub mod client;
pub mod command;
mod debian;
pub mod demo;
pub mod host;
pub mod image;
mod init_binary;
mod initramfs;
pub mod inspect;
pub mod kernel;
pub mod machine;
pub mod manifest;
pub mod oci;
pub mod progress;
pub mod qemu;
pub mod recipe;
pub mod site;
pub mod uki;
