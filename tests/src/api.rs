//! Requests that docker has no command for (`/monobloc/v1/…`), over TLS with the site's certificate.

use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::time::Duration;

use anyhow::Context as _;
use monobloc::client::tls::client_config;
use rustls::pki_types::ServerName;
use rustls::{ClientConnection, StreamOwned};

use crate::client::Endpoint;

/// How long an answer may take.
const LIMIT: Duration = Duration::from_secs(60);

/// Sends a request without a body; gives the status and the body of the answer.
///
/// # Errors
/// There is no connection, no trust, or no answer.
pub fn request(endpoint: &Endpoint, method: &str, path: &str) -> anyhow::Result<(u16, String)> {
    send(endpoint, method, path, b"")
}

/// As [`request`], with a body: JSON, or whatever the path takes.
///
/// # Errors
/// As [`request`].
pub fn send(endpoint: &Endpoint, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
    Connection::open(endpoint)?.send(method, path, body)
}

/// A connection that both sides trust, for one request.
pub struct Connection(StreamOwned<ClientConnection, TcpStream>);

impl Connection {
    /// # Errors
    /// There is no connection, or no trust.
    pub fn open(endpoint: &Endpoint) -> anyhow::Result<Self> {
        let config = client_config(&endpoint.certificates)?;
        let name = ServerName::from(std::net::IpAddr::from(Ipv4Addr::LOCALHOST));
        let mut connection = ClientConnection::new(config, name)?;
        let mut socket = TcpStream::connect((Ipv4Addr::LOCALHOST, endpoint.port))?;
        socket.set_read_timeout(Some(LIMIT))?;
        socket.set_nodelay(true)?;
        while connection.is_handshaking() {
            connection.complete_io(&mut socket)?;
        }
        Ok(Self(StreamOwned::new(connection, socket)))
    }

    /// Sends a request; gives the status and the body of the answer.
    ///
    /// # Errors
    /// There is no answer, or not all of it.
    pub fn send(mut self, method: &str, path: &str, body: &[u8]) -> anyhow::Result<(u16, String)> {
        let head = format!(
            "{method} {path} HTTP/1.1\r\nHost: monobloc\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
            body.len()
        );
        self.0.write_all(&[head.as_bytes(), body].concat())?;
        let mut answer = Vec::new();
        match self.0.read_to_end(&mut answer) {
            // A machine that goes down does not always say goodbye.
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof || answer.ends_with(b"}") => {}
            other => _ = other?,
        }
        let answer = String::from_utf8_lossy(&answer).into_owned();
        let (head, body) = answer.split_once("\r\n\r\n").context("The API gave no answer")?;
        let status = head
            .split(' ')
            .nth(1)
            .and_then(|code| code.parse().ok())
            .context("The API gave no status")?;
        let chunked = head
            .to_ascii_lowercase()
            .contains("\r\ntransfer-encoding: chunked");
        anyhow::ensure!(
            !chunked || body.ends_with("0\r\n\r\n"),
            "The API's answer was cut off: {body:?}"
        );
        Ok((status, body.to_owned()))
    }
}
