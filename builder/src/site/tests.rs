use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::thread;

use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ServerConfig, ServerConnection, StreamOwned};

use super::*;
use crate::client::tls;

fn site() -> (tempfile::TempDir, Site) {
    let dir = tempfile::tempdir().unwrap();
    let site = Site::open_or_create(&dir.path().join("site")).unwrap();
    (dir, site)
}

/// A server as the appliance is one: with the node's identity, for clients of the bundle's authority.
fn server(bundle: &NodeBundle) -> ServerConfig {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut roots = RootCertStore::empty();
    roots
        .add(CertificateDer::from_pem_slice(bundle.ca.as_bytes()).unwrap())
        .unwrap();
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone())
        .build()
        .unwrap();
    let chain = vec![CertificateDer::from_pem_slice(bundle.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(bundle.key.as_bytes()).unwrap();
    ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .unwrap()
}

/// Lets a client with the certificates of a folder speak to a node: what it is told, or why not.
fn speak(bundle: &NodeBundle, certificates: &Path) -> Result<String, String> {
    let config = Arc::new(server(bundle));
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
    let port = listener.local_addr().unwrap().port();
    let node = thread::spawn(move || {
        let (socket, _) = listener.accept().unwrap();
        let connection = ServerConnection::new(config).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        stream.write_all(b"hello").map_err(|error| error.to_string())
    });
    let client = || -> Result<String, String> {
        let config = tls::client_config(certificates).map_err(|error| error.to_string())?;
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let connection = rustls::ClientConnection::new(config, name).unwrap();
        let socket = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).unwrap();
        let mut stream = StreamOwned::new(connection, socket);
        let mut told = [0; 5];
        stream.read_exact(&mut told).map_err(|error| error.to_string())?;
        Ok(String::from_utf8_lossy(&told).into_owned())
    };
    let told = client();
    let served = node.join().unwrap();
    told.and_then(|told| served.map(|()| told))
}

#[test]
fn a_client_and_a_node_of_one_site_trust_each_other() {
    let (_dir, site) = site();
    let bundle = site.node_bundle("node", &["127.0.0.1", "localhost"]).unwrap();
    assert_eq!(speak(&bundle, &site.client_dir()), Ok("hello".to_owned()));
}

#[test]
fn a_node_refuses_the_client_of_another_site() {
    let (_dir, ours) = site();
    let (_other_dir, other) = site();
    let bundle = ours.node_bundle("node", &["127.0.0.1"]).unwrap();
    // It trusts our authority, so that it is the node who refuses.
    fs::copy(
        ours.client_dir().join("ca.pem"),
        other.client_dir().join("ca.pem"),
    )
    .unwrap();
    assert!(speak(&bundle, &other.client_dir()).is_err());
}

#[test]
fn a_client_refuses_the_node_of_another_site() {
    let (_dir, ours) = site();
    let (_other_dir, other) = site();
    let mut bundle = other.node_bundle("node", &["127.0.0.1"]).unwrap();
    bundle.ca.clone_from(&ours.ca);
    let error = speak(&bundle, &ours.client_dir()).unwrap_err();
    assert!(error.contains("certificate"), "{error}");
}

#[test]
fn a_client_refuses_a_node_that_is_not_meant_for_the_address() {
    let (_dir, site) = site();
    let bundle = site.node_bundle("node", &["192.0.2.1"]).unwrap();
    assert!(speak(&bundle, &site.client_dir()).is_err());
}

#[test]
fn a_node_cannot_pose_as_a_client() {
    let (dir, site) = site();
    let bundle = site.node_bundle("node", &["127.0.0.1"]).unwrap();
    let posing = dir.path().join("posing");
    fs::create_dir(&posing).unwrap();
    for (name, text) in [
        ("ca.pem", &bundle.ca),
        ("cert.pem", &bundle.certificate),
        ("key.pem", &bundle.key),
    ] {
        fs::write(posing.join(name), text).unwrap();
    }
    assert!(speak(&bundle, &posing).is_err());
}

#[test]
fn keys_are_for_their_owner_only() {
    let (_dir, site) = site();
    for path in [site.dir.join("ca-key.pem"), site.client_dir().join("key.pem")] {
        let mode = fs::metadata(&path).unwrap().permissions().mode() & 0o777;
        assert_eq!(mode, 0o600, "{}", path.display());
    }
    assert_eq!(
        fs::metadata(&site.dir).unwrap().permissions().mode() & 0o777,
        0o700
    );
}

#[test]
fn a_site_that_is_opened_again_is_the_same() {
    let (_dir, site) = site();
    let read =
        || ["ca.pem", "cert.pem", "key.pem"].map(|name| fs::read(site.client_dir().join(name)).unwrap());
    let before = read();
    let again = Site::open_or_create(&site.dir).unwrap();
    assert_eq!(read(), before);
    assert_eq!(again.ca, site.ca);
}

#[test]
fn a_certificate_is_renewed_for_the_same_key_before_it_is_void() {
    let (_dir, site) = site();
    let path = site.client_dir().join("cert.pem");
    let key_pem = files::read(&site.client_dir().join("key.pem")).unwrap();
    let key = KeyPair::from_pem(&key_pem).unwrap();
    let days = |days: u64| Duration::from_secs(days * DAY);
    let fresh = fs::read(&path).unwrap();
    assert!(site.stays_valid(&fresh, &key, days(800)));
    assert!(!site.stays_valid(&fresh, &key, days(900)));

    let mut params = CertificateParams::new(vec!["client".to_owned()]).unwrap();
    params
        .extended_key_usages
        .push(ExtendedKeyUsagePurpose::ClientAuth);
    valid_for(&mut params, 10);
    let old = params.signed_by(&key, &site.issuer).unwrap().pem();
    for bad in [old.as_str(), "", "no certificate"] {
        fs::write(&path, bad).unwrap();
        Site::open_or_create(&site.dir).unwrap();
        let renewed = fs::read(&path).unwrap();
        assert!(site.stays_valid(&renewed, &key, days(800)));
    }
    assert_eq!(files::read(&site.client_dir().join("key.pem")).unwrap(), key_pem);
}

#[test]
fn a_first_use_that_was_interrupted_is_repeated() {
    let dir = tempfile::tempdir().unwrap();
    fs::write(dir.path().join("ca-key.pem"), "half a k").unwrap();
    fs::write(dir.path().join("ca.new"), "half").unwrap();
    let site = Site::open_or_create(dir.path()).unwrap();
    let bundle = site.node_bundle("node", &["127.0.0.1"]).unwrap();
    assert!(speak(&bundle, &site.client_dir()).is_ok());
}

#[test]
fn a_key_of_another_authority_is_told() {
    let (_dir, site) = site();
    let other = KeyPair::generate().unwrap().serialize_pem();
    for key in [Some("no key"), Some(other.as_str()), None] {
        let path = site.dir.join("ca-key.pem");
        match key {
            Some(key) => fs::write(path, key).unwrap(),
            None => fs::remove_file(path).unwrap(),
        }
        let error = Site::open_or_create(&site.dir).unwrap_err().to_string();
        assert!(
            error.contains("ca-key.pem") && error.contains("backup"),
            "{error}"
        );
    }
}
