//! The machine's disks, and what is on them.

use std::path::PathBuf;

use crate::error::Result;

/// A whole disk of real hardware.
#[derive(Debug, Clone)]
pub struct Disk {
    /// `/dev/vda`
    pub path: PathBuf,
    /// `vda`
    pub name: String,
    /// Bytes.
    pub size: u64,
    pub model: String,
    pub serial: String,
    pub read_only: bool,
    pub removable: bool,
    pub content: Content,
}

/// What a disk bears. Anything in doubt is [`Content::Foreign`].
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    Blank,
    Pool { uuid: String, label: String },
    Foreign(String),
}

/// All disks, by name.
pub fn list() -> Result<Vec<Disk>> {
    Err(crate::store::unfinished("list the disks"))
}
