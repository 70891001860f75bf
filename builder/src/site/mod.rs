//! The site: one operator's certificate authority, his client certificate, and the identities of
//! his machines.
//!
//! It lies in one folder (`$XDG_DATA_HOME/monobloc/site`) and is made at first use:
//! `ca.pem` and `ca-key.pem`, and `client/` with `ca.pem`, `cert.pem` and `key.pem`, the names that
//! docker wants. Keys are readable by their owner only. A file appears under its name when it is
//! whole, and `ca.pem` is the last that is written of the authority, so an interrupted first use is
//! simply repeated. A certificate that will soon be void is renewed *for the same key*: only one
//! file changes, and certificate and key can never be of different times.

mod files;
#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use handover::NodeBundle;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, UnixTime};
use rustls::server::WebPkiClientVerifier;
use time::OffsetDateTime;

/// The authority outlives what it signs.
const CA_DAYS: i64 = 30 * 365;
/// The longest that TLS implementations take without grumbling.
const LEAF_DAYS: i64 = 825;
/// A client certificate that is void within this time is renewed.
const RENEW_DAYS: u64 = 90;
/// Clocks of machines differ; what was signed just now is valid on one that is slow.
const SLACK_DAYS: i64 = 1;
const DAY: u64 = 24 * 3600;

/// Why the site cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SiteError {
    #[error("Cannot {action} {}", .path.display())]
    File {
        action: &'static str,
        path: PathBuf,
        source: io::Error,
    },
    #[error(
        "{} does not fit the site's authority; restore it from a backup, or move {} away to begin a new site \
         (machines and clients of the old one then no longer fit)",
        .path.display(), .site.display()
    )]
    Damaged { path: PathBuf, site: PathBuf },
    #[error("Cannot make a certificate for {subject}")]
    Signing { subject: String, source: rcgen::Error },
}

/// 256 random bits as hexadecimal digits, which a person can type where he must.
///
/// # Errors
/// There are no random bytes.
pub fn random_key() -> io::Result<String> {
    let mut bytes = [0; 32];
    let random = rustls::crypto::ring::default_provider().secure_random;
    random
        .fill(&mut bytes)
        .map_err(|_| io::Error::other("there are no random bytes"))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// One operator's site.
#[derive(Debug)]
pub struct Site {
    dir: PathBuf,
    ca: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Site {
    /// Opens the site in a folder; makes it if there is none, and renews what is due.
    ///
    /// # Errors
    /// The folder cannot be written, or what is in it does not fit together.
    pub fn open_or_create(dir: &Path) -> Result<Self, SiteError> {
        files::make_private_dir(dir)?;
        let _lock = files::lock(dir)?;
        if !files::exists(&dir.join("ca.pem"))? {
            make_authority(dir)?;
        }
        let site = Self::open(dir)?;
        site.provide_client()?;
        Ok(site)
    }

    fn open(dir: &Path) -> Result<Self, SiteError> {
        let ca = files::read(&dir.join("ca.pem"))?;
        let key_path = dir.join("ca-key.pem");
        let damaged = |path: PathBuf| SiteError::Damaged {
            path,
            site: dir.to_owned(),
        };
        if !files::exists(&key_path)? {
            return Err(damaged(key_path));
        }
        let key = KeyPair::from_pem(&files::read(&key_path)?).map_err(|_| damaged(key_path.clone()))?;
        let certificate =
            CertificateDer::from_pem_slice(ca.as_bytes()).map_err(|_| damaged(dir.join("ca.pem")))?;
        if !is_for(&certificate, &key) {
            return Err(damaged(key_path));
        }
        let issuer = Issuer::from_ca_cert_pem(&ca, key).map_err(|_| damaged(dir.join("ca.pem")))?;
        Ok(Self {
            dir: dir.to_owned(),
            ca,
            issuer,
        })
    }

    /// The folder with `ca.pem`, `cert.pem` and `key.pem` of the operator, as docker wants it.
    #[must_use]
    pub fn client_dir(&self) -> PathBuf {
        self.dir.join("client")
    }

    /// Makes the name and identity of one node; `names` are the DNS names and addresses besides its
    /// own name that it is reached by.
    ///
    /// # Errors
    /// A name is none.
    pub fn node_bundle(&self, name: &str, names: &[&str]) -> Result<NodeBundle, SiteError> {
        let all = [&[name], names].concat();
        let key = generate_key(name)?;
        let certificate = self.sign(name, &all, ExtendedKeyUsagePurpose::ServerAuth, &key)?;
        Ok(NodeBundle {
            name: name.to_owned(),
            ca: self.ca.clone(),
            certificate,
            key: key.serialize_pem(),
            pool_key: Some(self.pool_key(name)?),
        })
    }

    /// What encrypted disks of a node are opened with; made at first use, and the same from then on.
    fn pool_key(&self, name: &str) -> Result<String, SiteError> {
        let dir = self.dir.join("pool-keys");
        files::make_private_dir(&dir)?;
        let _lock = files::lock(&dir)?;
        let path = dir.join(name);
        if files::exists(&path)? {
            return files::read(&path).map(|key| key.trim_end().to_owned());
        }
        let key = random_key().map_err(|source| SiteError::File {
            action: "make random bytes for",
            path: path.clone(),
            source,
        })?;
        files::write_private(&path, &format!("{key}\n"))?;
        Ok(key)
    }

    /// Makes the client's key and certificate, or renews the certificate.
    fn provide_client(&self) -> Result<(), SiteError> {
        let dir = self.client_dir();
        files::make_private_dir(&dir)?;
        let key_path = dir.join("key.pem");
        if !files::exists(&key_path)? {
            files::write_private(&key_path, &generate_key("the client")?.serialize_pem())?;
        }
        let key = KeyPair::from_pem(&files::read(&key_path)?).map_err(|_| SiteError::Damaged {
            path: key_path.clone(),
            site: self.dir.clone(),
        })?;
        files::make_private(&key_path)?;
        let certificate_path = dir.join("cert.pem");
        let good = fs::read(&certificate_path)
            .is_ok_and(|pem| self.stays_valid(&pem, &key, Duration::from_secs(RENEW_DAYS * DAY)));
        if !good {
            let certificate = self.sign("client", &["client"], ExtendedKeyUsagePurpose::ClientAuth, &key)?;
            files::write(&certificate_path, &certificate)?;
        }
        let ca_path = dir.join("ca.pem");
        if fs::read_to_string(&ca_path).is_ok_and(|ca| ca == self.ca) {
            return Ok(());
        }
        files::write(&ca_path, &self.ca)
    }

    /// Whether a machine of this site would still take a client's certificate after some time.
    fn stays_valid(&self, pem: &[u8], key: &KeyPair, time: Duration) -> bool {
        let Ok(certificate) = CertificateDer::from_pem_slice(pem) else {
            return false;
        };
        if !is_for(&certificate, key) {
            return false;
        }
        let mut roots = RootCertStore::empty();
        let added = CertificateDer::from_pem_slice(self.ca.as_bytes()).is_ok_and(|ca| roots.add(ca).is_ok());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let Ok(verifier) = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider).build()
        else {
            return false;
        };
        let now = UnixTime::now().as_secs();
        let then = UnixTime::since_unix_epoch(Duration::from_secs(now).saturating_add(time));
        added && verifier.verify_client_cert(&certificate, &[], then).is_ok()
    }

    fn sign(
        &self,
        subject: &str,
        names: &[&str],
        usage: ExtendedKeyUsagePurpose,
        key: &KeyPair,
    ) -> Result<String, SiteError> {
        let failed = |source| SiteError::Signing {
            subject: subject.to_owned(),
            source,
        };
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let mut params = CertificateParams::new(names).map_err(failed)?;
        params.distinguished_name.push(DnType::CommonName, subject);
        params.use_authority_key_identifier_extension = true;
        params.key_usages.push(KeyUsagePurpose::DigitalSignature);
        params.extended_key_usages.push(usage);
        valid_for(&mut params, LEAF_DAYS);
        let certificate = params.signed_by(key, &self.issuer).map_err(failed)?;
        Ok(certificate.pem())
    }
}

/// Makes the authority's key, and with its certificate the site begins to be.
fn make_authority(dir: &Path) -> Result<(), SiteError> {
    let subject = "the site's authority";
    let key = generate_key(subject)?;
    let mut params = CertificateParams::default();
    params
        .distinguished_name
        .push(DnType::CommonName, "Monobloc site");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_DAYS);
    let certificate = params.self_signed(&key).map_err(|source| SiteError::Signing {
        subject: subject.to_owned(),
        source,
    })?;
    files::write_private(&dir.join("ca-key.pem"), &key.serialize_pem())?;
    files::write(&dir.join("ca.pem"), &certificate.pem())
}

/// Whether a certificate is one for a key: it holds the public key as it is (SubjectPublicKeyInfo,
/// RFC 5280 section 4.1.2.7).
fn is_for(certificate: &CertificateDer<'_>, key: &KeyPair) -> bool {
    let public = key.public_key_raw();
    certificate.windows(public.len()).any(|part| part == public)
}

fn generate_key(subject: &str) -> Result<KeyPair, SiteError> {
    KeyPair::generate().map_err(|source| SiteError::Signing {
        subject: subject.to_owned(),
        source,
    })
}

fn valid_for(params: &mut CertificateParams, days: i64) {
    let now = OffsetDateTime::now_utc();
    params.not_before = now - time::Duration::days(SLACK_DAYS);
    params.not_after = now + time::Duration::days(days);
}
