//! A software TPM for a machine: `swtpm` of Debian, with its state in a temporary folder.

use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::Arc;

use anyhow::Context as _;
use tempfile::TempDir;

use crate::process::{bound, spawn};

/// A TPM that outlives the machines that it is put into, one after the other.
#[derive(Debug, Clone)]
pub struct Tpm {
    state: Arc<TempDir>,
}

impl Tpm {
    /// A new one.
    ///
    /// # Panics
    /// There is no place for its state.
    #[must_use]
    #[allow(clippy::new_without_default)]
    pub fn new() -> Self {
        let state = tempfile::tempdir().expect("no temporary folder");
        Self {
            state: Arc::new(state),
        }
    }

    /// Starts it for one machine, with whose end it ends; gives its socket, in `folder`.
    pub(crate) fn start(&self, folder: &Path) -> anyhow::Result<(Child, PathBuf)> {
        let socket = folder.join("tpm");
        let listener = UnixListener::bind(&socket).context("Cannot make the TPM's socket")?;
        // It takes no descriptor below 3.
        let program = "exec swtpm socket --tpm2 --terminate --ctrl type=unixio,fd=3 --tpmstate dir=$STATE 3<&0 </dev/null";
        let mut command = bound("sh");
        command
            .args(["-c", program])
            .env("STATE", self.state.path())
            .stdin(Stdio::from(OwnedFd::from(listener)));
        let child = spawn(command).context("Cannot start swtpm")?;
        Ok((child, socket))
    }
}
