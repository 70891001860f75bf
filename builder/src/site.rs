//! The site: one operator's certificate authority, his client certificate, and the identities of his
//! nodes. It is made at first use and its keys never leave its folder.
//!
//! ```text
//! $XDG_DATA_HOME/monobloc/site/
//!   ca.pem  ca-key.pem             the authority
//!   client/ca.pem cert.pem key.pem what docker wants in DOCKER_CERT_PATH
//! ```

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use anyhow::Context;
use handover::NodeBundle;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use time::{Duration, OffsetDateTime};

/// The authority outlives the hardware that it speaks for.
const CA_LIFE: Duration = Duration::days(20 * 365);
const CLIENT_LIFE: Duration = Duration::days(5 * 365);
const NODE_LIFE: Duration = Duration::days(5 * 365);
/// A node's clock may be behind ours.
const SLACK: Duration = Duration::days(1);

/// One operator's site.
#[derive(Debug, Clone)]
pub struct Site {
    folder: PathBuf,
}

impl Site {
    /// Opens the site in a folder, or makes it there. An interrupted making leaves nothing behind.
    ///
    /// # Errors
    /// The folder cannot be written, or holds only a part of a site.
    pub fn open_or_create(folder: &Path) -> anyhow::Result<Self> {
        let site = Self {
            folder: folder.to_path_buf(),
        };
        if !folder.exists() {
            site.create()
                .with_context(|| format!("Cannot make the site in {}", folder.display()))?;
        }
        for file in [
            site.ca(),
            site.ca_key(),
            site.client().join("cert.pem"),
            site.client().join("key.pem"),
        ] {
            anyhow::ensure!(
                file.exists(),
                "The site in {} lacks {}; restore it from a copy, or remove the folder to begin a new site",
                folder.display(),
                file.display()
            );
        }
        Ok(site)
    }

    fn create(&self) -> anyhow::Result<()> {
        let parent = self.folder.parent().context("The site's folder has no parent")?;
        fs::create_dir_all(parent)?;
        let new = tempfile::Builder::new().prefix(".site-").tempdir_in(parent)?;
        let ca_key = KeyPair::generate()?;
        let ca = authority().self_signed(&ca_key)?.pem();
        write_secret(&new.path().join("ca-key.pem"), &ca_key.serialize_pem())?;
        fs::write(new.path().join("ca.pem"), &ca)?;
        let issuer = Issuer::new(authority(), ca_key);
        let (certificate, key) = certificate(
            &issuer,
            "client",
            &[],
            ExtendedKeyUsagePurpose::ClientAuth,
            CLIENT_LIFE,
        )?;
        let client = new.path().join("client");
        fs::DirBuilder::new().mode(0o700).create(&client)?;
        fs::write(client.join("ca.pem"), &ca)?;
        fs::write(client.join("cert.pem"), certificate)?;
        write_secret(&client.join("key.pem"), &key)?;
        fs::rename(new.keep(), &self.folder)?;
        Ok(())
    }

    fn ca(&self) -> PathBuf {
        self.folder.join("ca.pem")
    }

    fn ca_key(&self) -> PathBuf {
        self.folder.join("ca-key.pem")
    }

    /// Folder with `ca.pem`, `cert.pem` and `key.pem`, as docker's `DOCKER_CERT_PATH` wants them.
    pub fn client(&self) -> PathBuf {
        self.folder.join("client")
    }

    /// Makes the identity of a node: a new key and a certificate for its name and addresses.
    ///
    /// # Errors
    /// The authority's files cannot be read, or a name is none.
    pub fn node_bundle(&self, name: &str, addresses: &[&str]) -> anyhow::Result<NodeBundle> {
        let read = |path: PathBuf| {
            fs::read_to_string(&path).with_context(|| format!("Cannot read {} of the site", path.display()))
        };
        let ca = read(self.ca())?;
        let key = KeyPair::from_pem(&read(self.ca_key())?).context("The site's key is damaged")?;
        let issuer = Issuer::from_ca_cert_pem(&ca, key).context("The site's certificate is damaged")?;
        let (certificate, key) = certificate(
            &issuer,
            name,
            addresses,
            ExtendedKeyUsagePurpose::ServerAuth,
            NODE_LIFE,
        )
        .with_context(|| format!("Cannot make a certificate for {name}"))?;
        Ok(NodeBundle {
            name: name.to_owned(),
            ca,
            certificate,
            key,
        })
    }
}

fn authority() -> CertificateParams {
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    params
        .distinguished_name
        .push(DnType::CommonName, "Monobloc site");
    set_life(&mut params, CA_LIFE);
    params
}

fn certificate(
    issuer: &Issuer<'_, KeyPair>,
    name: &str,
    addresses: &[&str],
    usage: ExtendedKeyUsagePurpose,
    life: Duration,
) -> anyhow::Result<(String, String)> {
    let names: Vec<String> = std::iter::once(name)
        .chain(addresses.iter().copied())
        .map(str::to_owned)
        .collect();
    let mut params = CertificateParams::new(names)?;
    params.distinguished_name.push(DnType::CommonName, name);
    params.extended_key_usages.push(usage);
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    params.use_authority_key_identifier_extension = true;
    set_life(&mut params, life);
    let key = KeyPair::generate()?;
    Ok((params.signed_by(&key, issuer)?.pem(), key.serialize_pem()))
}

fn set_life(params: &mut CertificateParams, life: Duration) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - SLACK;
    params.not_after = now + life;
}

/// Writes a file that only its owner can read, from its first byte on.
pub fn write_secret(path: &Path, text: &str) -> io::Result<()> {
    fs::OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)?
        .write_all(text.as_bytes())
}

#[cfg(test)]
mod tests;
