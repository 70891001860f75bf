//! A connection that is no longer HTTP: both directions, and word of its client's end.
//!
//! A client that is killed sends what one sends that only closes its own side: the end of its stream,
//! FIN. So after that it is asked: a TLS key update, which says nothing to a client that lives, is
//! answered by the kernel of one that does not with a reset. A client of TLS 1.2, which has no such
//! message, is noticed by the next write, or by the kernel's own probes.

use std::io::{self, Cursor};
use std::os::fd::AsFd;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use sys::readiness::{self, Interest};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;

use crate::http::{Gone, Input, Output};

type Tls = TlsStream<TcpStream>;

/// Takes a connection apart. What is not TLS over TCP tells of its end only by its input.
pub(crate) fn split(upgraded: Upgraded) -> (Input, Output, Gone) {
    match upgraded.downcast::<TokioIo<Tls>>() {
        Ok(parts) => {
            let shared = Shared(Arc::new(Mutex::new(parts.io.into_inner())));
            let input = Cursor::new(parts.read_buf).chain(shared.clone());
            (
                Box::new(input),
                Box::new(shared.clone()),
                Box::pin(async move {
                    if gone(shared).await.is_err() {
                        std::future::pending::<()>().await;
                    }
                }),
            )
        }
        Err(upgraded) => {
            let (input, output) = tokio::io::split(TokioIo::new(upgraded));
            (
                Box::new(input),
                Box::new(output),
                Box::pin(std::future::pending()),
            )
        }
    }
}

/// One connection with several holders; each holds it for a moment only.
#[derive(Clone)]
struct Shared(Arc<Mutex<Tls>>);

impl Shared {
    fn with<T>(&self, work: impl FnOnce(&mut Tls) -> T) -> T {
        work(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

impl AsyncRead for Shared {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        self.with(|tls| Pin::new(tls).poll_read(cx, buf))
    }
}

impl AsyncWrite for Shared {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.with(|tls| Pin::new(tls).poll_write(cx, buf))
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|tls| Pin::new(tls).poll_flush(cx))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.with(|tls| Pin::new(tls).poll_shutdown(cx))
    }
}

/// Returns when the client has gone; an error where that cannot be told.
async fn gone(mut connection: Shared) -> io::Result<()> {
    // A descriptor of its own: who reads the stream does not take its events away.
    let socket = connection.with(|tls| tls.get_ref().0.as_fd().try_clone_to_owned())?;
    let socket = readiness::watch(socket, Interest::READABLE | Interest::ERROR)?;
    loop {
        let mut guard = socket.readable().await?;
        if guard.ready().is_read_closed() {
            break;
        }
        guard.clear_ready();
    }
    connection.with(|tls| tls.get_mut().1.refresh_traffic_keys().map_err(io::Error::other))?;
    if connection.flush().await.is_err() {
        return Ok(());
    }
    socket.ready(Interest::ERROR).await.map(drop)
}
