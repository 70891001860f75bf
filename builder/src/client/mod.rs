//! The client of a machine's API: TLS with the site's certificates and nothing else, since a public
//! authority has no say about a machine of one's own.
//!
//! Docker's endpoints are called through bollard, what stands under `/monobloc/v1/` directly; both
//! go over the connections made here. The calls block: who makes them has nothing else to do.

pub mod context;
pub mod greeting;
mod pool;
mod snapshots;
pub mod tls;
mod transfers;
mod upgrade;

pub use pool::{Disk, Encryption, Order, Stage};
pub use snapshots::{Kind, Subject};
pub use transfers::{Beginning, DIGEST_AND_MARK, SENT, Source};
pub use upgrade::Upgraded;

use std::future::Future;
use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bollard::{BollardRequest, ClientVersion, Docker};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper::body::{Body, Bytes, Incoming};
use hyper::header::{HOST, HeaderValue};
use hyper::{Method, Request, Response, Uri};
use hyper_util::rt::TokioIo;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::time::timeout;
use tokio_rustls::TlsConnector;

/// The newest Docker API that the appliance speaks.
const VERSION: ClientVersion = ClientVersion {
    major_version: 1,
    minor_version: 51,
};
/// Seconds that a call through bollard may take, on a machine that is emulated and busy.
const DOCKER_LIMIT: u64 = 120;
/// An answer longer than this is not one of the appliance's.
const MAX_ANSWER: usize = 1 << 20;

/// Why a call to the API failed.
#[derive(Debug, thiserror::Error)]
pub enum ApiError {
    #[error("Cannot use the site's certificates")]
    Certificates(#[from] tls::TlsError),
    #[error("No connection to the API at {address}: {source}")]
    Connection { address: SocketAddr, source: io::Error },
    #[error("The API at {address} gave no answer: {reason}")]
    NoAnswer { address: SocketAddr, reason: String },
    #[error("The API at {address} did not answer within {} s", .limit.as_secs())]
    Timeout { address: SocketAddr, limit: Duration },
    #[error("Cannot pass on what is sent: {0}")]
    Stream(io::Error),
    #[error("The API answered {path} with {status}: {message}")]
    Refused {
        path: String,
        status: u16,
        message: String,
    },
}

/// A machine's API on this machine's loopback.
#[derive(Clone)]
pub struct Api {
    address: SocketAddr,
    tls: Arc<ClientConfig>,
}

impl Api {
    /// `certificates` is the folder with `ca.pem`, `cert.pem` and `key.pem`.
    ///
    /// # Errors
    /// The certificates cannot be read.
    pub fn new(port: u16, certificates: &Path) -> Result<Self, ApiError> {
        Ok(Self {
            address: SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            tls: tls::client_config(certificates)?,
        })
    }

    /// Asks whether the API is there.
    ///
    /// # Errors
    /// It is not, or not within the limit, or it does not trust this client, or is not to be trusted.
    pub fn ping(&self, limit: Duration) -> Result<(), ApiError> {
        self.call(Method::GET, "/_ping", Bytes::new(), limit).map(|_| ())
    }

    /// What the appliance says of itself, as JSON.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn status(&self, limit: Duration) -> Result<serde_json::Value, ApiError> {
        self.call_for_json(Method::GET, "/monobloc/v1/status", Bytes::new(), limit)
    }

    /// Has the machine stop its zones and power itself off. It is still on when this returns.
    ///
    /// # Errors
    /// As [`Api::ping`].
    pub fn power_off(&self, limit: Duration) -> Result<(), ApiError> {
        self.call(Method::POST, "/monobloc/v1/poweroff", Bytes::new(), limit)
            .map(|_| ())
    }

    /// A client for Docker's endpoints.
    ///
    /// # Errors
    /// bollard takes no such client.
    pub fn docker(&self) -> Result<Docker, bollard::errors::Error> {
        let api = self.clone();
        let transport = move |request: BollardRequest| {
            let api = api.clone();
            async move {
                let sent = api.send(request).await;
                sent.map_err(|error| bollard::errors::Error::IOError {
                    err: io::Error::other(error),
                })
            }
        };
        let address = format!("http://{}", self.address);
        Docker::connect_with_custom_transport(transport, Some(address), DOCKER_LIMIT, &VERSION)
    }

    fn call_for_json(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        limit: Duration,
    ) -> Result<serde_json::Value, ApiError> {
        let answer = self.call(method, path, body, limit)?;
        serde_json::from_slice(&answer).map_err(|error| self.no_answer(&error))
    }

    fn call(&self, method: Method, path: &str, body: Bytes, limit: Duration) -> Result<Bytes, ApiError> {
        let exchange = async {
            let mut request = Request::new(Full::new(body));
            *request.method_mut() = method;
            *request.uri_mut() = path.parse().map_err(|error| self.no_answer(&error))?;
            let response = self.send(request).await?;
            let status = response.status();
            let body = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
            let body = body.map_err(|error| self.no_answer(&*error))?.to_bytes();
            if status.is_success() {
                return Ok(body);
            }
            Err(ApiError::Refused {
                path: path.to_owned(),
                status: status.as_u16(),
                message: message(&body),
            })
        };
        let bounded = async {
            timeout(limit, exchange).await.map_err(|_| ApiError::Timeout {
                address: self.address,
                limit,
            })?
        };
        block_on(bounded).map_err(|source| self.connection(source))?
    }

    /// Sends a request whose answer may go on for long; gives the answer if it is no refusal. `limit` is for
    /// its beginning.
    async fn begin(
        &self,
        request: Request<Full<Bytes>>,
        path: &str,
        limit: Duration,
    ) -> Result<Response<Incoming>, ApiError> {
        let silent = |_| ApiError::Timeout {
            address: self.address,
            limit,
        };
        let response = timeout(limit, self.send(request)).await.map_err(silent)??;
        let status = response.status();
        if status.is_success() {
            return Ok(response);
        }
        let body = Limited::new(response.into_body(), MAX_ANSWER).collect();
        let body = timeout(limit, body).await.map_err(silent)?;
        let body = body.map_err(|error| self.no_answer(&*error))?;
        Err(pool::refused(path, status.as_u16(), message(&body.to_bytes())))
    }

    /// Sends a request over a connection of its own.
    async fn send<B>(&self, mut request: Request<B>) -> Result<Response<Incoming>, ApiError>
    where
        B: Body + Send + 'static,
        B::Data: Send,
        B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
    {
        let socket = TcpStream::connect(self.address).await;
        let socket = socket.map_err(|source| self.connection(source))?;
        let name = ServerName::IpAddress(IpAddr::from(Ipv4Addr::LOCALHOST).into());
        let connector = TlsConnector::from(self.tls.clone());
        let stream = connector.connect(name, socket).await;
        let stream = stream.map_err(|source| self.connection(source))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| self.no_answer(&error))?;
        tokio::spawn(connection.with_upgrades());
        // On a connection to the server itself the request names only the path (RFC 9112, section 3.2.1).
        let path = request.uri().path_and_query().cloned();
        *request.uri_mut() = path.map_or_else(Uri::default, Uri::from);
        request
            .headers_mut()
            .insert(HOST, HeaderValue::from_static("monobloc"));
        sender
            .send_request(request)
            .await
            .map_err(|error| self.no_answer(&error))
    }

    fn connection(&self, source: io::Error) -> ApiError {
        ApiError::Connection {
            address: self.address,
            source,
        }
    }

    fn no_answer(&self, error: &dyn std::error::Error) -> ApiError {
        // hyper's errors name their reason only as their source.
        let reason = error
            .source()
            .map_or_else(|| error.to_string(), ToString::to_string);
        ApiError::NoAnswer {
            address: self.address,
            reason,
        }
    }
}

/// What Docker's errors say: `{"message": "…"}`.
fn message(body: &[u8]) -> String {
    let parsed: Option<serde_json::Value> = serde_json::from_slice(body).ok();
    let text = parsed.as_ref().and_then(|value| value.get("message")?.as_str());
    text.map_or_else(|| String::from_utf8_lossy(body).trim().to_owned(), str::to_owned)
}

/// Runs one call to its end on this thread.
pub(crate) fn block_on<T>(work: impl Future<Output = T>) -> io::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    Ok(runtime.block_on(work))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_message_of_an_error_is_dockers_or_the_text_itself() {
        assert_eq!(message(br#"{"message":"No such image: x"}"#), "No such image: x");
        assert_eq!(message(b"not found\n"), "not found");
    }

    #[test]
    fn a_port_where_nobody_listens_is_told() {
        let dir = tempfile::tempdir().unwrap();
        let site = crate::site::Site::open_or_create(dir.path()).unwrap();
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        let api = Api::new(port, &site.client_dir()).unwrap();
        let error = api.ping(Duration::from_secs(10)).unwrap_err().to_string();
        assert!(error.contains(&format!("127.0.0.1:{port}")), "{error}");
    }

    #[test]
    fn a_server_that_never_answers_is_given_up() {
        let dir = tempfile::tempdir().unwrap();
        let site = crate::site::Site::open_or_create(dir.path()).unwrap();
        // It takes connections and is never served.
        let listener = std::net::TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let port = listener.local_addr().unwrap().port();
        let api = Api::new(port, &site.client_dir()).unwrap();
        let error = api.ping(Duration::from_millis(100)).unwrap_err();
        assert!(matches!(error, ApiError::Timeout { .. }), "{error}");
    }
}
