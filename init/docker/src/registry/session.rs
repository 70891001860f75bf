//! One repository of one registry: requests, the authentication that it asks for, and documents.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use reqwest::header::{ACCEPT, AUTHORIZATION, HeaderValue, RANGE, WWW_AUTHENTICATE};
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde::Deserialize;
use store::{Digest, Reference};

use super::RegistryError;
use super::auth::{Challenge, Credentials};
use super::manifest;

/// A registry that does not answer within these is given up.
const CONNECT_LIMIT: Duration = Duration::from_secs(20);
const READ_LIMIT: Duration = Duration::from_secs(60);
/// Longest manifest, config or token that is read.
const MAX_DOCUMENT: usize = 4 << 20;
/// As much of an error's text as a person wants.
const MAX_ERROR: usize = 300;
/// Where `docker.io` really is.
const DOCKER_HUB: &str = "registry-1.docker.io";

/// A repository that is being read.
pub(crate) struct Session {
    http: reqwest::Client,
    base: String,
    reference: Reference,
    credentials: Option<Credentials>,
    authorization: Mutex<Option<HeaderValue>>,
}

impl Session {
    /// Begins to speak with the registry of an image. The name servers are read anew, as the
    /// network may have changed.
    pub(crate) fn new(
        reference: &Reference,
        credentials: Option<Credentials>,
        insecure: &[String],
    ) -> Result<Self, RegistryError> {
        let registry = reference.registry();
        let scheme = if is_insecure(registry, insecure) {
            "http"
        } else {
            "https"
        };
        let host = if registry == "docker.io" {
            DOCKER_HUB
        } else {
            registry
        };
        if needs_names(host) && !has_name_servers() {
            let reason =
                "this node has no name servers (its network has given none), so the name cannot be resolved";
            return Err(RegistryError::Unreachable {
                registry: registry.to_owned(),
                reason: reason.to_owned(),
            });
        }
        let http = client(scheme == "https").map_err(|reason| RegistryError::Unreachable {
            registry: registry.to_owned(),
            reason,
        })?;
        let token = credentials
            .as_ref()
            .map(|given| given.registry_token.as_str())
            .filter(|token| !token.is_empty());
        let authorization = token.and_then(|token| HeaderValue::from_str(&format!("Bearer {token}")).ok());
        Ok(Self {
            http,
            base: format!("{scheme}://{host}/v2"),
            reference: reference.clone(),
            credentials,
            authorization: Mutex::new(authorization),
        })
    }

    /// Asks whether the credentials are good (`POST /auth`).
    pub(crate) async fn check(&self) -> Result<(), RegistryError> {
        let url = format!("{}/", self.base);
        let response = self.send(|http| http.request(Method::GET, &url)).await?;
        self.expect(response, "the greeting").await.map(drop)
    }

    /// Fetches a manifest or index by tag or digest, with its digest.
    pub(crate) async fn manifest(&self, wanted: &str) -> Result<(Vec<u8>, Digest), RegistryError> {
        let url = self.url(&format!("manifests/{wanted}"));
        let response = self
            .send(|http| http.request(Method::GET, &url).header(ACCEPT, manifest::ACCEPT))
            .await?;
        let response = self.expect(response, "a manifest").await?;
        let header = response.headers().get("docker-content-digest");
        let told = header.and_then(|header| header.to_str().ok()).map(str::to_owned);
        let bytes = self.document(response, "manifest").await?;
        let digest = Digest::of(&bytes);
        let asked = wanted.contains(':').then(|| wanted.to_owned());
        // By tag the registry's own word is all there is; it shows what was damaged in its storage.
        if let Some(promised) = asked.or(told)
            && promised.starts_with("sha256:")
            && promised != digest.to_string()
        {
            return Err(self.damaged("manifest", format!("it should be {promised} and is {digest}")));
        }
        Ok((bytes, digest))
    }

    /// All tags of the repository, as the registry gives them, page by page.
    pub(crate) async fn tags(&self) -> Result<Vec<String>, RegistryError> {
        /// More than these are no repository that somebody wants whole.
        const MOST: usize = 10_000;
        #[derive(Deserialize)]
        struct List {
            tags: Option<Vec<String>>,
        }
        let mut tags = Vec::new();
        loop {
            // A page begins after the last tag of the one before it.
            let after = tags
                .last()
                .map(|last| format!("&last={last}"))
                .unwrap_or_default();
            let url = self.url(&format!("tags/list?n=1000{after}"));
            let response = self.send(|http| http.request(Method::GET, &url)).await?;
            if response.status() == StatusCode::NOT_FOUND {
                return Err(RegistryError::UnknownManifest(self.reference.clone()));
            }
            let response = self.expect(response, "a list of tags").await?;
            let more = response.headers().contains_key("link");
            let bytes = self.document(response, "list of tags").await?;
            let list: List = serde_json::from_slice(&bytes)
                .map_err(|error| self.damaged("list of tags", error.to_string()))?;
            let page = list.tags.unwrap_or_default();
            let ended = page.is_empty() || !more;
            tags.extend(page);
            if ended {
                return Ok(tags);
            }
            if tags.len() > MOST {
                return Err(self.damaged("list of tags", format!("it has more than {MOST}")));
            }
        }
    }

    /// Fetches a small blob, verified.
    pub(crate) async fn small_blob(&self, digest: &Digest) -> Result<Vec<u8>, RegistryError> {
        let response = self.blob(digest, 0).await?;
        let bytes = self.document(response, "config").await?;
        if Digest::of(&bytes) != *digest {
            return Err(self.damaged("config", format!("its digest is not {digest}")));
        }
        Ok(bytes)
    }

    /// Begins to fetch a blob from an offset on. A registry that cannot begin there answers 200.
    pub(crate) async fn blob(&self, digest: &Digest, offset: u64) -> Result<Response, RegistryError> {
        let url = self.url(&format!("blobs/{digest}"));
        let response = self
            .send(|http| {
                let request = http.request(Method::GET, &url);
                if offset > 0 {
                    request.header(RANGE, format!("bytes={offset}-"))
                } else {
                    request
                }
            })
            .await?;
        self.expect(response, "a blob").await
    }

    /// The address of something in the repository.
    pub(super) fn url(&self, place: &str) -> String {
        format!("{}/{}/{place}", self.base, self.reference.path())
    }

    /// Sends a request; when the registry asks who we are, answers and sends it again.
    pub(super) async fn send(
        &self,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let response = self.send_once(&request).await?;
        if response.status() != StatusCode::UNAUTHORIZED {
            return Ok(response);
        }
        let challenges = response.headers().get_all(WWW_AUTHENTICATE);
        let challenge = challenges
            .iter()
            .filter_map(|header| header.to_str().ok())
            .find_map(Challenge::parse);
        let Some(challenge) = challenge else {
            return Ok(response);
        };
        let Some(authorization) = self.authorize(&challenge).await? else {
            return Ok(response);
        };
        *self.authorization.lock().unwrap_or_else(PoisonError::into_inner) = Some(authorization);
        self.send_once(&request).await
    }

    async fn send_once(
        &self,
        request: impl Fn(&reqwest::Client) -> RequestBuilder,
    ) -> Result<Response, RegistryError> {
        let mut request = request(&self.http);
        let authorization = self
            .authorization
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        if let Some(authorization) = authorization {
            request = request.header(AUTHORIZATION, authorization);
        }
        request.send().await.map_err(|error| {
            if error.is_connect() || error.is_timeout() || error.is_redirect() || error.is_builder() {
                unreachable(self.reference.registry(), &error)
            } else {
                self.broken(innermost(&error))
            }
        })
    }

    /// The header that answers a challenge; none if there is nothing to answer it with.
    async fn authorize(&self, challenge: &Challenge) -> Result<Option<HeaderValue>, RegistryError> {
        let text = match (challenge, &self.credentials) {
            (Challenge::Basic, None) => return Ok(None),
            (Challenge::Basic, Some(given)) => basic(given),
            (
                Challenge::Bearer {
                    realm,
                    service,
                    scope,
                },
                given,
            ) => {
                let token = self
                    .token(realm, service.as_deref(), scope.as_deref(), given.as_ref())
                    .await?;
                format!("Bearer {token}")
            }
        };
        let mut value =
            HeaderValue::from_str(&text).map_err(|error| self.damaged("token", error.to_string()))?;
        value.set_sensitive(true);
        Ok(Some(value))
    }

    /// Fetches a token (distribution specification, token authentication).
    async fn token(
        &self,
        realm: &str,
        service: Option<&str>,
        scope: Option<&str>,
        given: Option<&Credentials>,
    ) -> Result<String, RegistryError> {
        #[derive(Deserialize)]
        struct Token {
            token: Option<String>,
            access_token: Option<String>,
        }
        if self.base.starts_with("https:") && !realm.starts_with("https://") {
            let registry = self.reference.registry().to_owned();
            return Err(RegistryError::PlainRealm {
                registry,
                realm: realm.to_owned(),
            });
        }
        let refresh = given
            .map(|given| given.identity_token.as_str())
            .filter(|token| !token.is_empty());
        let mut parameters: Vec<(&str, &str)> = Vec::new();
        parameters.extend(service.map(|service| ("service", service)));
        let own_scope = format!("repository:{}:pull", self.reference.path());
        parameters.push(("scope", scope.unwrap_or(&own_scope)));
        let request = match refresh {
            Some(refresh) => {
                parameters.extend([
                    ("grant_type", "refresh_token"),
                    ("client_id", "monobloc"),
                    ("refresh_token", refresh),
                ]);
                self.http
                    .post(realm)
                    .header("content-type", "application/x-www-form-urlencoded")
                    .body(form(&parameters))
            }
            None => {
                let request = self.http.get(realm).query(&parameters);
                match given.filter(|given| !given.username.is_empty()) {
                    Some(given) => request.header(AUTHORIZATION, basic(given)),
                    None => request,
                }
            }
        };
        let response = request.send().await.map_err(|error| unreachable(realm, &error))?;
        let response = self.expect(response, "a request for a token").await?;
        let bytes = self.document(response, "token").await?;
        let token: Token =
            serde_json::from_slice(&bytes).map_err(|error| self.damaged("token", error.to_string()))?;
        token
            .token
            .or(token.access_token)
            .ok_or_else(|| self.damaged("token", "it is empty".to_owned()))
    }

    /// Passes a good answer on and makes an error of another.
    pub(super) async fn expect(&self, response: Response, what: &str) -> Result<Response, RegistryError> {
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = self.document(response, "error").await.unwrap_or_default();
        let reason = error_text(&body);
        Err(match status {
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => RegistryError::Denied {
                repository: self.reference.familiar_name(),
                reason,
            },
            StatusCode::NOT_FOUND if what == "a manifest" => {
                RegistryError::UnknownManifest(self.reference.clone())
            }
            _ => RegistryError::Status {
                registry: self.reference.registry().to_owned(),
                what: what.to_owned(),
                status: status.as_u16(),
                body: reason,
            },
        })
    }

    async fn document(&self, mut response: Response, what: &'static str) -> Result<Vec<u8>, RegistryError> {
        let mut bytes = Vec::new();
        while let Some(chunk) = response
            .chunk()
            .await
            .map_err(|error| self.broken(innermost(&error)))?
        {
            bytes.extend_from_slice(&chunk);
            if bytes.len() > MAX_DOCUMENT {
                return Err(self.damaged(what, format!("it is larger than {MAX_DOCUMENT} bytes")));
            }
        }
        Ok(bytes)
    }

    pub(crate) fn damaged(&self, what: &'static str, reason: String) -> RegistryError {
        RegistryError::Damaged {
            registry: self.reference.registry().to_owned(),
            what,
            reason,
        }
    }

    pub(super) fn broken(&self, reason: String) -> RegistryError {
        RegistryError::Broken {
            registry: self.reference.registry().to_owned(),
            reason,
        }
    }

    pub(crate) fn reference(&self) -> &Reference {
        &self.reference
    }
}

/// Names are resolved by hickory; the C library's resolver cannot be used in a static binary. Who was
/// reached over TLS cannot lead elsewhere without it.
/// A client with what all requests to the outside have in common.
pub(crate) fn client(tls_only: bool) -> Result<reqwest::Client, String> {
    let roots = rustls::RootCertStore {
        roots: webpki_roots::TLS_SERVER_ROOTS.to_vec(),
    };
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls = rustls::ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| error.to_string())?
        .with_root_certificates(roots)
        .with_no_client_auth();
    reqwest::Client::builder()
        .tls_backend_preconfigured(tls)
        .hickory_dns(true)
        .no_proxy()
        .https_only(tls_only)
        .connect_timeout(CONNECT_LIMIT)
        .read_timeout(READ_LIMIT)
        .user_agent(concat!("monobloc/", env!("CARGO_PKG_VERSION")))
        .build()
        .map_err(|error| innermost(&error))
}

/// Whether a host (with or without a port) is a name rather than an address.
fn needs_names(host: &str) -> bool {
    let name = host.rsplit_once(':').map_or(host, |(name, _)| name);
    name != "localhost" && !host.starts_with('[') && name.parse::<Ipv4Addr>().is_err()
}

fn has_name_servers() -> bool {
    std::fs::read_to_string("/etc/resolv.conf").is_ok_and(|text| names_a_server(&text))
}

/// Without a usable one, the resolver would ask servers of strangers.
fn names_a_server(resolv_conf: &str) -> bool {
    resolv_conf.lines().any(|line| {
        let mut words = line.split_whitespace();
        words.next() == Some("nameserver")
            && words
                .next()
                .is_some_and(|address| address.parse::<IpAddr>().is_ok())
    })
}

/// Plain HTTP is spoken with loopback addresses and with what the node's config names, with or
/// without the port.
fn is_insecure(registry: &str, insecure: &[String]) -> bool {
    let host = registry.rsplit_once(':').map_or(registry, |(host, _)| host);
    host == "localhost"
        || host
            .parse::<Ipv4Addr>()
            .is_ok_and(|address| address.is_loopback())
        || insecure.iter().any(|known| known == registry || known == host)
}

fn basic(given: &Credentials) -> String {
    use base64::Engine as _;
    let pair = format!("{}:{}", given.username, given.password);
    format!("Basic {}", base64::engine::general_purpose::STANDARD.encode(pair))
}

/// `application/x-www-form-urlencoded`
fn form(parameters: &[(&str, &str)]) -> String {
    let encode = |text: &str| -> String {
        text.bytes()
            .map(|byte| match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'*' => {
                    char::from(byte).to_string()
                }
                other => format!("%{other:02X}"),
            })
            .collect()
    };
    let pairs: Vec<String> = parameters
        .iter()
        .map(|(key, value)| format!("{}={}", encode(key), encode(value)))
        .collect();
    pairs.join("&")
}

fn unreachable(registry: &str, error: &reqwest::Error) -> RegistryError {
    let reason = innermost(error);
    let reason = if error.is_dns() {
        format!("its name cannot be resolved ({reason})")
    } else {
        reason
    };
    RegistryError::Unreachable {
        registry: registry.to_owned(),
        reason,
    }
}

/// The cause below all others; the outer ones only repeat the address.
pub(super) fn innermost(error: &reqwest::Error) -> String {
    let mut cause: &dyn std::error::Error = error;
    while let Some(next) = cause.source() {
        cause = next;
    }
    cause.to_string()
}

/// The registry's own words: `{"errors":[{"code":…,"message":…}]}`, or the beginning of the text.
fn error_text(body: &[u8]) -> String {
    #[derive(Deserialize)]
    struct Errors {
        errors: Vec<Entry>,
    }
    #[derive(Deserialize)]
    struct Entry {
        #[serde(default)]
        code: String,
        #[serde(default)]
        message: String,
    }
    if let Ok(Errors { errors }) = serde_json::from_slice(body)
        && let Some(first) = errors.first()
    {
        return format!("{}: {}", first.code.to_lowercase(), first.message);
    }
    String::from_utf8_lossy(body)
        .chars()
        .filter(|c| !c.is_control())
        .take(MAX_ERROR)
        .collect()
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};
    use std::net::TcpListener;
    use std::thread;

    use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};

    use super::*;

    #[test]
    fn plain_http_is_for_loopback_and_the_registries_named_insecure() {
        let insecure = ["10.0.2.2".to_owned(), "lab.example:5000".to_owned()];
        for plain in [
            "127.0.0.1",
            "127.9.9.9:5000",
            "localhost:5000",
            "10.0.2.2",
            "10.0.2.2:5000",
            "lab.example:5000",
        ] {
            assert!(is_insecure(plain, &insecure), "{plain}");
        }
        for tls in [
            "docker.io",
            "127.0.0.1.example",
            "localhost.example:5000",
            "128.0.0.1",
            "10.0.2.20:5000",
            "lab.example",
            "lab.example:5001",
            "notlab.example:5000",
        ] {
            assert!(!is_insecure(tls, &insecure), "{tls}");
        }
    }

    #[test]
    fn only_a_name_server_that_can_be_asked_counts() {
        for some in ["search x\nnameserver 10.0.2.3\n", "  nameserver\t::1"] {
            assert!(names_a_server(some), "{some:?}");
        }
        for none in [
            "",
            "search x\n",
            "# nameserver 1.1.1.1",
            "nameserver",
            "nameserver x",
        ] {
            assert!(!names_a_server(none), "{none:?}");
        }
    }

    #[test]
    fn addresses_need_no_name_server() {
        for address in [
            "10.0.2.2",
            "10.0.2.2:5000",
            "[::1]:5000",
            "localhost",
            "localhost:1",
        ] {
            assert!(!needs_names(address), "{address}");
        }
        for name in ["registry.example", "registry.example:5000"] {
            assert!(needs_names(name), "{name}");
        }
    }

    /// A TLS server whose certificate nobody has signed, for one connection.
    fn stranger() -> u16 {
        let certificate = rcgen::generate_simple_self_signed(vec!["127.0.0.1".to_owned()]).unwrap();
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(certificate.signing_key.serialize_der()));
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.cert.der().clone()], key)
            .unwrap();
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        thread::spawn(move || {
            let (tcp, _) = listener.accept().unwrap();
            let tls = rustls::ServerConnection::new(Arc::new(config)).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, tcp);
            // The client is to hang up.
            let _ = stream.read(&mut [0; 1024]);
            let _ = stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 0\r\n\r\n");
        });
        port
    }

    #[tokio::test]
    async fn a_certificate_that_nobody_vouches_for_is_refused_and_named() {
        let url = format!("https://127.0.0.1:{}/v2/", stranger());
        let error = client(true).unwrap().get(url).send().await.unwrap_err();
        assert!(error.is_connect());
        let text = unreachable("here", &error).to_string();
        assert!(text.contains("certificate"), "{text}");
    }

    #[tokio::test]
    async fn who_was_reached_over_tls_is_not_followed_without_it() {
        let error = client(true).unwrap().get("http://127.0.0.1:1/").send().await;
        assert!(error.unwrap_err().is_builder());
        // The same place is tried where plain HTTP is allowed.
        let error = client(false).unwrap().get("http://127.0.0.1:1/").send().await;
        assert!(error.unwrap_err().is_connect());
    }

    #[tokio::test]
    async fn a_password_goes_to_no_token_service_without_tls() {
        let reference: Reference = "10.255.255.1/box:1".parse().unwrap();
        let json = br#"{"username":"anna","password":"secret"}"#;
        let session = Session::new(&reference, Credentials::from_json(json).unwrap(), &[]).unwrap();
        let challenge = Challenge::parse("Bearer realm=\"http://127.0.0.1:1/token\"").unwrap();
        let error = session.authorize(&challenge).await.unwrap_err();
        assert!(matches!(error, RegistryError::PlainRealm { .. }), "{error}");
        // Over TLS it is asked.
        let challenge = Challenge::parse("Bearer realm=\"https://127.0.0.1:1/token\"").unwrap();
        let error = session.authorize(&challenge).await.unwrap_err();
        assert!(matches!(error, RegistryError::Unreachable { .. }), "{error}");
    }
}
