//! The site of the test run: an authority, a node bundle and client certificates, in temporary folders.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use anyhow::anyhow;
use handover::NodeBundle;
use rcgen::{BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
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
        let ca_key = KeyPair::generate()?;
        let mut params = CertificateParams::new(Vec::new())?;
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test site");
        let ca = params.self_signed(&ca_key)?.pem();
        let issuer = Issuer::new(params, ca_key);
        let (certificate, key) = leaf(
            &issuer,
            &["node.test", "127.0.0.1", "localhost"],
            ExtendedKeyUsagePurpose::ServerAuth,
        )?;
        let bundle = NodeBundle {
            name: "node".to_owned(),
            ca: ca.clone(),
            certificate,
            key,
        };
        let (certificate, key) = leaf(&issuer, &["client.test"], ExtendedKeyUsagePurpose::ClientAuth)?;
        let client = folder.path().join("client");
        fs::create_dir(&client)?;
        write(
            &client,
            [("ca.pem", &ca), ("cert.pem", &certificate), ("key.pem", &key)],
        )?;
        let path = folder.path().join("bundle.json");
        fs::write(&path, serde_json::to_vec(&bundle)?)?;
        Ok(Self {
            bundle: path,
            client,
            _folder: folder,
        })
    }
}

fn leaf(
    issuer: &Issuer<'_, KeyPair>,
    names: &[&str],
    usage: ExtendedKeyUsagePurpose,
) -> anyhow::Result<(String, String)> {
    let key = KeyPair::generate()?;
    let mut params = CertificateParams::new(names.iter().map(ToString::to_string).collect::<Vec<_>>())?;
    params.extended_key_usages.push(usage);
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn write(folder: &Path, files: [(&str, &String); 3]) -> anyhow::Result<()> {
    for (name, text) in files {
        fs::write(folder.join(name), text)?;
    }
    Ok(())
}
