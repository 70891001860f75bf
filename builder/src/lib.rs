#![forbid(unsafe_code)]
pub mod command;
mod debian;
pub mod image;
mod init_binary;
mod initramfs;
pub mod inspect;
pub mod kernel;
pub mod manifest;
pub mod oci;
pub mod progress;
pub mod recipe;
pub mod site;
pub mod uki;
