//! The filesystem under the store: found, made, mounted.

use std::path::{Path, PathBuf};

use crate::error::Result;

/// A mounted pool; it stays mounted when this is dropped.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
}

/// What may become the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// The first wholly blank disk may be formatted where no disk is a pool.
    pub claim_blank: bool,
    /// No disk is looked at.
    pub memory_only: bool,
    /// Bytes that a pool in memory may grow to; half of the memory where `None`.
    pub memory_size: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Disk {
        path: PathBuf,
        name: String,
        size: u64,
        formatted_now: bool,
    },
    Memory {
        size: u64,
    },
}

/// The outcome of [`Pool::choose`].
#[derive(Debug)]
pub struct Opened {
    pub pool: Pool,
    pub kind: Kind,
    /// Sentences for the console: what was passed over, and why.
    pub notes: Vec<String>,
}

impl Pool {
    /// Writes an empty pool to `device`, whatever it bears.
    pub fn format(_device: &Path, _label: &str) -> Result<()> {
        Err(crate::store::unfinished("format a pool"))
    }

    /// Mounts the pool on `device` at `at` (created if missing).
    pub fn mount(_device: &Path, _at: &Path) -> Result<Pool> {
        Err(crate::store::unfinished("mount a pool"))
    }

    /// A new pool in a sparse file of `size` bytes below `dir` (a tmpfs), mounted at `at`.
    pub fn in_memory(_dir: &Path, _size: u64, _at: &Path) -> Result<Pool> {
        Err(crate::store::unfinished("make a pool in memory"))
    }

    /// Takes a disk that is a pool already, else as `policy` allows a blank one, else memory.
    pub fn choose(_policy: Policy, _at: &Path) -> Result<Opened> {
        Err(crate::store::unfinished("choose a pool"))
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes and unmounts.
    pub fn unmount(self) -> Result<()> {
        Err(crate::store::unfinished("unmount the pool"))
    }
}
