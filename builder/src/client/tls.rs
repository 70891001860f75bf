//! TLS with the certificates of one folder.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};

/// Why certificates cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("Cannot read {}: {reason}", .path.display())]
    Unreadable { path: PathBuf, reason: String },
    #[error("The certificates in {} do not fit together", .path.display())]
    Unfit { path: PathBuf, source: rustls::Error },
}

/// A client that trusts only `ca.pem`, and shows `cert.pem` with its `key.pem`.
///
/// # Errors
/// A file cannot be read, or holds something else.
pub fn client_config(certificates: &Path) -> Result<Arc<ClientConfig>, TlsError> {
    let unfit = |source| TlsError::Unfit {
        path: certificates.to_owned(),
        source,
    };
    let ca = read(certificates.join("ca.pem"), |path| {
        CertificateDer::from_pem_file(path)
    })?;
    let chain = read(certificates.join("cert.pem"), |path| {
        CertificateDer::pem_file_iter(path)?.collect::<Result<Vec<_>, _>>()
    })?;
    let key = read(certificates.join("key.pem"), |path| {
        PrivateKeyDer::from_pem_file(path)
    })?;
    let mut roots = RootCertStore::empty();
    roots.add(ca).map_err(unfit)?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(unfit)?
        .with_root_certificates(roots)
        .with_client_auth_cert(chain, key)
        .map_err(unfit)?;
    Ok(Arc::new(config))
}

fn read<T>(
    path: PathBuf,
    parse: impl FnOnce(&Path) -> Result<T, rustls::pki_types::pem::Error>,
) -> Result<T, TlsError> {
    parse(&path).map_err(|error| TlsError::Unreadable {
        reason: error.to_string(),
        path,
    })
}
