//! TLS as a node serves it: its own certificate, and of clients one that the site's CA signed.

use std::sync::Arc;

use handover::NodeBundle;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};

#[derive(Debug, thiserror::Error)]
pub enum TlsError {
    #[error("The node's {part} is no PEM document of that kind ({source}); make the node's bundle anew")]
    Pem {
        part: &'static str,
        source: rustls::pki_types::pem::Error,
    },
    #[error("The node's bundle names no CA; make it anew")]
    NoAuthority,
    #[error("The node's bundle cannot be used for TLS ({0}); make it anew")]
    Unusable(String),
}

/// What the node's bundle makes of TLS; a client without a certificate of the site's is not let in.
pub fn server_config(bundle: &NodeBundle) -> Result<Arc<ServerConfig>, TlsError> {
    let certificates = |part, text: &str| -> Result<Vec<CertificateDer<'static>>, TlsError> {
        let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(text.as_bytes()).collect();
        parsed.map_err(|source| TlsError::Pem { part, source })
    };
    let unusable = |error: &dyn std::fmt::Display| TlsError::Unusable(error.to_string());
    let mut authorities = RootCertStore::empty();
    for certificate in certificates("CA certificate", &bundle.ca)? {
        authorities.add(certificate).map_err(|error| unusable(&error))?;
    }
    if authorities.is_empty() {
        return Err(TlsError::NoAuthority);
    }
    let chain = certificates("certificate", &bundle.certificate)?;
    let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes())
        .map_err(|source| TlsError::Pem { part: "key", source })?;
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(authorities), provider.clone())
        .build()
        .map_err(|error| unusable(&error))?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| unusable(&error))?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(|error| unusable(&error))?;
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Arc::new(config))
}
