//! Connections: TLS with a client certificate of the site, then HTTP/1.1.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;

use crate::engine::Engine;
use crate::routes;

/// How long a client may take for its part of the TLS handshake.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(20);
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
    let handshake = tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(stream));
    let stream = handshake.await.map_err(|_| io::ErrorKind::TimedOut)??;
    http(stream, engine).await
}

/// HTTP on a connection that is trusted by now.
pub(crate) async fn http(
    stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static,
    engine: Arc<Engine>,
) -> io::Result<()> {
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let engine = engine.clone();
        async move {
            let request = request.map(|body| BoxBody::new(body.map_err(io::Error::other)));
            Ok::<_, Infallible>(routes::answer(engine, request).await)
        }
    });
    hyper::server::conn::http1::Builder::new()
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades()
        .await
        .map_err(io::Error::other)
}
