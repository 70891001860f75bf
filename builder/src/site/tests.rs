use std::io::Cursor;
use std::os::unix::fs::PermissionsExt;
use std::sync::Arc;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::server::WebPkiClientVerifier;
use rustls::{ClientConfig, ClientConnection, RootCertStore, ServerConfig, ServerConnection};

use super::*;

fn roots(ca: &str) -> RootCertStore {
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(ca.as_bytes()).unwrap())
        .unwrap();
    roots
}

fn pair(certificate: &str, key: &str) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
    let certificate = CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap();
    (
        vec![certificate],
        PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap(),
    )
}

/// Shakes hands as a client of `site` with a node whose bundle this is.
fn handshake(site: &Site, bundle: &NodeBundle) -> Result<(), rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots(&bundle.ca)), provider.clone())
        .build()
        .unwrap();
    let (certificates, key) = pair(&bundle.certificate, &bundle.key);
    let server = ServerConfig::builder_with_provider(provider.clone())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(certificates, key)
        .unwrap();
    let read = |name: &str| fs::read_to_string(site.client().join(name)).unwrap();
    let (certificates, key) = pair(&read("cert.pem"), &read("key.pem"));
    let client = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots(&read("ca.pem")))
        .with_client_auth_cert(certificates, key)
        .unwrap();
    let mut server = ServerConnection::new(Arc::new(server)).unwrap();
    let name = ServerName::try_from("127.0.0.1").unwrap();
    let mut client = ClientConnection::new(Arc::new(client), name).unwrap();
    while client.is_handshaking() || server.is_handshaking() {
        let mut wire = Vec::new();
        client.write_tls(&mut wire).unwrap();
        server.read_tls(&mut Cursor::new(wire)).unwrap();
        server.process_new_packets()?;
        let mut wire = Vec::new();
        server.write_tls(&mut wire).unwrap();
        client.read_tls(&mut Cursor::new(wire)).unwrap();
        client.process_new_packets()?;
    }
    Ok(())
}

fn site() -> (tempfile::TempDir, Site) {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(&dir.path().join("data/site")).unwrap();
    (dir, site)
}

#[test]
fn a_client_of_the_site_and_its_node_accept_each_other() {
    let (_dir, site) = site();
    let bundle = site.node_bundle("node", &["127.0.0.1"]).unwrap();
    handshake(&site, &bundle).unwrap();
}

#[test]
fn another_sites_client_is_refused() {
    let ((_a, ours), (_b, other)) = (site(), site());
    let mut bundle = ours.node_bundle("node", &["127.0.0.1"]).unwrap();
    handshake(&other, &bundle).expect_err("the client must not trust the node");
    // A client that trusts the node is still none of the node's.
    bundle = other.node_bundle("node", &["127.0.0.1"]).unwrap();
    bundle.ca = ours.node_bundle("node", &[]).unwrap().ca;
    handshake(&other, &bundle).expect_err("the node must not trust the client");
}

#[test]
fn a_site_is_made_once_and_its_keys_are_its_owners() {
    let (dir, site) = site();
    let before = fs::read(site.client().join("key.pem")).unwrap();
    let again = Site::open_or_create(&dir.path().join("data/site")).unwrap();
    assert_eq!(fs::read(again.client().join("key.pem")).unwrap(), before);
    for key in [site.ca_key(), site.client().join("key.pem")] {
        assert_eq!(
            fs::metadata(&key).unwrap().permissions().mode() & 0o777,
            0o600,
            "{}",
            key.display()
        );
    }
    let left: Vec<_> = fs::read_dir(dir.path().join("data")).unwrap().collect();
    assert_eq!(left.len(), 1, "nothing but the site may be left: {left:?}");
}

#[test]
fn a_site_that_lacks_a_part_is_told_of() {
    let (dir, site) = site();
    fs::remove_file(site.ca_key()).unwrap();
    let error = Site::open_or_create(&dir.path().join("data/site"))
        .unwrap_err()
        .to_string();
    assert!(
        error.contains("ca-key.pem") && error.contains("restore"),
        "{error}"
    );
}
