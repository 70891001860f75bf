//! The site of the test run: an authority, a node bundle and client certificates, in a temporary folder.

use std::fs;
use std::path::PathBuf;
use std::sync::OnceLock;

use anyhow::anyhow;
use monobloc::site::Site;
use tempfile::TempDir;

/// One site's files.
pub struct Identity {
    /// The node bundle as JSON.
    pub bundle: PathBuf,
    /// Folder with the client's `ca.pem`, `cert.pem` and `key.pem`.
    pub client: PathBuf,
    _folder: TempDir,
}

impl Identity {
    /// The site that the machines of this process belong to.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn shared() -> anyhow::Result<&'static Self> {
        static SHARED: OnceLock<Result<Identity, String>> = OnceLock::new();
        let made = SHARED.get_or_init(|| Self::make().map_err(|error| format!("{error:#}")));
        made.as_ref().map_err(|error| anyhow!("{error}"))
    }

    /// Another site.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn make() -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let site = Site::open_or_create(&folder.path().join("site"))?;
        let node = site.node_bundle("node", &["127.0.0.1", "localhost"])?;
        let bundle = folder.path().join("bundle.json");
        fs::write(&bundle, serde_json::to_vec(&node)?)?;
        Ok(Self {
            bundle,
            client: site.client_dir(),
            _folder: folder,
        })
    }
}
