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

#[cfg(test)]
mod tests {
    use rcgen::{
        BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    };
    use rustls::ClientConfig;
    use rustls::pki_types::ServerName;
    use tokio_rustls::{TlsAcceptor, TlsConnector};

    use super::*;

    type Site = CertifiedIssuer<'static, KeyPair>;

    fn site() -> Site {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap()
    }

    /// Certificate and key, as PEM.
    fn sign(site: &Site, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params = CertificateParams::new(vec!["node".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        (params.signed_by(&key, site).unwrap().pem(), key.serialize_pem())
    }

    fn bundle(site: &Site) -> NodeBundle {
        let (certificate, key) = sign(site, ExtendedKeyUsagePurpose::ServerAuth);
        NodeBundle {
            name: "node".to_owned(),
            ca: site.pem(),
            certificate,
            key,
            pool_key: None,
        }
    }

    /// Whether a node of `site` lets a client with this identity in. The client trusts the node.
    async fn lets_in(site: &Site, identity: Option<(String, String)>) -> bool {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(site.pem().as_bytes()).unwrap())
            .unwrap();
        let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots);
        let client = match identity {
            None => client.with_no_client_auth(),
            Some((certificate, key)) => client
                .with_client_auth_cert(
                    vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()],
                    PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
                )
                .unwrap(),
        };
        let (near, far) = tokio::io::duplex(64 << 10);
        let connector = TlsConnector::from(Arc::new(client));
        let name = ServerName::try_from("node").unwrap();
        let server = TlsAcceptor::from(server_config(&bundle(site)).unwrap());
        // With TLS 1.3 a client takes itself for connected before the node has looked at it.
        let (accepted, _connected) = tokio::join!(server.accept(far), connector.connect(name, near));
        accepted.is_ok()
    }

    #[tokio::test]
    async fn only_a_client_that_the_site_signed_is_let_in() {
        let (ours, theirs) = (site(), site());
        let client = ExtendedKeyUsagePurpose::ClientAuth;
        assert!(lets_in(&ours, Some(sign(&ours, client.clone()))).await);
        assert!(!lets_in(&ours, None).await, "without a certificate");
        let stranger = sign(&theirs, client);
        assert!(!lets_in(&ours, Some(stranger)).await, "of another site");
        let node = sign(&ours, ExtendedKeyUsagePurpose::ServerAuth);
        assert!(!lets_in(&ours, Some(node)).await, "a node is no client");
    }

    #[test]
    fn a_damaged_bundle_is_told_by_its_part() {
        let site = site();
        assert!(server_config(&bundle(&site)).is_ok());
        let said = |change: fn(&mut NodeBundle)| {
            let mut damaged = bundle(&site);
            change(&mut damaged);
            server_config(&damaged).map(drop).unwrap_err().to_string()
        };
        assert!(said(|bundle| bundle.ca.clear()).contains("names no CA"));
        assert!(said(|bundle| bundle.key.clear()).contains("key"));
        assert!(!said(|bundle| bundle.certificate.clear()).is_empty());
    }
}
