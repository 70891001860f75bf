//! Connections: TLS with a client certificate of the site, then HTTP/1.1.

use std::convert::Infallible;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::{Body as HttpBody, Frame, Incoming, SizeHint};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio_rustls::TlsAcceptor;

use crate::engine::Engine;
use crate::routes;

/// How long a client may take for its part of the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
/// A client that has been silent for so long is asked whether it is there, so many times.
const PROBE_AFTER: Duration = Duration::from_secs(30);
const PROBE_PAUSE: Duration = Duration::from_secs(10);
const PROBES: u32 = 3;
/// Pause after a connection that could not be accepted, for want of descriptors or memory.
const BREATH: Duration = Duration::from_millis(100);

/// Serves the API until the task is dropped.
pub async fn serve(listener: TcpListener, tls: Arc<ServerConfig>, engine: Arc<Engine>) {
    let acceptor = TlsAcceptor::from(tls);
    loop {
        match listener.accept().await {
            Ok((stream, _)) => {
                let (acceptor, engine) = (acceptor.clone(), engine.clone());
                // A client that fails its handshake, or goes away, concerns nobody else.
                tokio::spawn(async move { connection(stream, acceptor, engine).await });
            }
            Err(error) => {
                eprintln!("api: cannot accept a connection: {error}");
                tokio::time::sleep(BREATH).await;
            }
        }
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, engine: Arc<Engine>) -> io::Result<()> {
    stream.set_nodelay(true)?;
    probe_when_idle(&stream)?;
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
    let stream = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
    http(stream, engine).await
}

/// Has the kernel ask a silent client whether it is still there: one whose machine or cable has gone
/// says nothing of it. See tcp(7).
fn probe_when_idle(stream: &TcpStream) -> io::Result<()> {
    use rustix::net::sockopt;
    sockopt::set_tcp_keepidle(stream, PROBE_AFTER)?;
    sockopt::set_tcp_keepintvl(stream, PROBE_PAUSE)?;
    sockopt::set_tcp_keepcnt(stream, PROBES)?;
    Ok(sockopt::set_socket_keepalive(stream, true)?)
}

/// HTTP on a connection that is trusted by now.
pub(crate) async fn http(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    engine: Arc<Engine>,
) -> io::Result<()> {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let engine = engine.clone();
        async move {
            let request = request.map(|body| BoxBody::new(Drained(Some(body))));
            Ok::<_, Infallible>(routes::answer(engine, request).await)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}

/// A request's body. What nobody reads of it is read and thrown away: a connection that is closed while
/// its client still sends is reset, and the client loses the answer that it has not read yet.
struct Drained(Option<Incoming>);

impl HttpBody for Drained {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        let Some(body) = self.0.as_mut() else {
            return Poll::Ready(None);
        };
        Pin::new(body)
            .poll_frame(cx)
            .map(|frame| frame.map(|frame| frame.map_err(io::Error::other)))
    }

    fn is_end_stream(&self) -> bool {
        self.0.as_ref().is_none_or(HttpBody::is_end_stream)
    }

    fn size_hint(&self) -> SizeHint {
        self.0
            .as_ref()
            .map_or_else(SizeHint::default, HttpBody::size_hint)
    }
}

impl Drop for Drained {
    fn drop(&mut self) {
        // Ends when the client has sent all, or goes away, as it may once it has its answer.
        if let Some(mut body) = self.0.take()
            && !body.is_end_stream()
            && let Ok(runtime) = Handle::try_current()
        {
            runtime.spawn(async move { while let Some(Ok(_)) = body.frame().await {} });
        }
    }
}
