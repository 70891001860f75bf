//! Requests, responses and errors as the handlers see them.
//!
//! A [`Request`] is hyper's with its query parsed and its body bounded where it is JSON; a
//! [`Response`] has a body in memory or one that a task feeds ([`channel`]). [`ApiError`] is Docker's
//! `{"message": …}`. [`Request::hijack`] turns the connection into a raw stream.

use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures_util::TryStreamExt;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyDataStream, BodyExt, Full, Limited};
use hyper::body::{Body as HttpBody, Frame};
use hyper::header::{
    CONNECTION, CONTENT_TYPE, HeaderValue, SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_VERSION,
    UPGRADE,
};
use hyper::http::request::Parts;
use hyper::{HeaderMap, Method, StatusCode};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc;
use tokio_util::io::StreamReader;

use crate::query::Query;
use crate::{upgraded, websocket};

/// Longest JSON document that a client may send.
const MAX_JSON: usize = 4 << 20;
/// Chunks that a streamed body holds before its writer waits for the client.
const CHANNEL_DEPTH: usize = 16;

pub type Body = BoxBody<Bytes, io::Error>;
pub type Response = hyper::Response<Body>;
pub type Result<T, E = ApiError> = std::result::Result<T, E>;

/// What a client is told when its request cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{message}")]
pub struct ApiError {
    pub status: StatusCode,
    pub message: String,
}

impl ApiError {
    pub fn new(status: StatusCode, message: impl Into<String>) -> Self {
        Self {
            status,
            message: message.into(),
        }
    }

    /// 400: what the client sent is at fault.
    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, message)
    }

    /// 403: the machine's operator does not permit it.
    pub fn forbidden(message: impl Into<String>) -> Self {
        Self::new(StatusCode::FORBIDDEN, message)
    }

    /// 404
    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, message)
    }

    /// 409: the request contradicts the present state.
    pub fn conflict(message: impl Into<String>) -> Self {
        Self::new(StatusCode::CONFLICT, message)
    }

    /// 500
    pub fn internal(message: impl Into<String>) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, message)
    }

    /// 501
    pub fn not_implemented(message: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_IMPLEMENTED, message)
    }

    /// 503: it is not there yet, or will not come.
    pub fn unavailable(message: impl Into<String>) -> Self {
        Self::new(StatusCode::SERVICE_UNAVAILABLE, message)
    }

    pub fn into_response(self) -> Response {
        #[derive(Serialize)]
        struct Message {
            message: String,
        }
        json(
            self.status,
            &Message {
                message: self.message,
            },
        )
        .unwrap_or_else(|_| empty(self.status))
    }
}

impl From<store::Error> for ApiError {
    fn from(error: store::Error) -> Self {
        let status = if error.is_not_found() {
            StatusCode::NOT_FOUND
        } else if error.is_conflict() {
            StatusCode::CONFLICT
        } else if error.is_bad_input() {
            StatusCode::BAD_REQUEST
        } else {
            StatusCode::INTERNAL_SERVER_ERROR
        };
        Self::new(status, error.to_string())
    }
}

impl From<zones::Error> for ApiError {
    fn from(error: zones::Error) -> Self {
        Self::internal(with_causes(&error))
    }
}

impl From<network::Error> for ApiError {
    fn from(error: network::Error) -> Self {
        Self::internal(with_causes(&error))
    }
}

impl From<tokio::task::JoinError> for ApiError {
    fn from(error: tokio::task::JoinError) -> Self {
        Self::internal(format!("A task of the engine failed: {error}."))
    }
}

/// An error and what lies below it, in one line.
pub fn with_causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}

/// Runs what blocks where it may.
pub async fn blocking<T, E>(work: impl FnOnce() -> Result<T, E> + Send + 'static) -> Result<T>
where
    T: Send + 'static,
    E: Into<ApiError> + Send + 'static,
{
    tokio::task::spawn_blocking(work).await?.map_err(Into::into)
}

/// A version of the API, such as 1.51.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ApiVersion(pub u16, pub u16);

pub struct Request {
    /// The path without the version's prefix, such as `/containers/json`.
    pub path: String,
    /// What the path names, decoded: a container's id or name, an image's name.
    pub name: String,
    pub version: ApiVersion,
    pub query: Query,
    parts: Parts,
    body: Body,
}

impl Request {
    pub fn new(request: hyper::Request<Body>, path: String, version: ApiVersion) -> Self {
        let (parts, body) = request.into_parts();
        Self {
            path,
            name: String::new(),
            version,
            query: Query::parse(parts.uri.query().unwrap_or_default()),
            parts,
            body,
        }
    }

    pub fn method(&self) -> &Method {
        &self.parts.method
    }

    pub fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// A header's text; none where it is absent or no text.
    pub fn header(&self, name: &str) -> Option<&str> {
        self.parts.headers.get(name)?.to_str().ok()
    }

    /// Reads the body as JSON. An empty one is read as `null` would be, then as `{}`.
    pub async fn json<T: DeserializeOwned>(&mut self) -> Result<T> {
        let bytes = self.bytes().await?;
        let bytes = if bytes.is_empty() {
            Bytes::from_static(b"{}")
        } else {
            bytes
        };
        serde_json::from_slice(&bytes).map_err(|error| {
            ApiError::bad_request(format!("The request's body is not the JSON expected: {error}."))
        })
    }

    /// The whole body, of 4 MiB at most.
    pub async fn bytes(&mut self) -> Result<Bytes> {
        let body = std::mem::replace(&mut self.body, no_body());
        let collected = Limited::new(body, MAX_JSON).collect().await;
        collected
            .map(|collected| collected.to_bytes())
            .map_err(|error| ApiError::bad_request(format!("Cannot read the request's body: {error}.")))
    }

    /// The body as a byte stream without limit, for archives.
    pub fn into_reader(self) -> impl AsyncRead + Send + 'static {
        StreamReader::new(
            BodyDataStream::new(self.body)
                .map_err(io::Error::other)
                .into_stream(),
        )
    }

    /// Turns the connection into a raw stream: with `Upgrade: tcp` both directions, after a 101;
    /// otherwise a 200 whose body is the output, and the request's body as the input.
    pub fn hijack(self, content_type: &'static str) -> (Response, Hijack) {
        let upgrade = self.parts.headers.contains_key(UPGRADE);
        let mut response = empty(StatusCode::OK);
        response
            .headers_mut()
            .insert(CONTENT_TYPE, HeaderValue::from_static(content_type));
        if !upgrade {
            let (sender, body) = channel();
            *response.body_mut() = body;
            return (response, Hijack::Streams(self.body, sender));
        }
        *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("tcp"));
        let coming = hyper::upgrade::on(hyper::Request::from_parts(self.parts, ()));
        (response, Hijack::Upgrade(coming))
    }
}

impl Request {
    /// As [`hijack`](Self::hijack), to a stream over WebSocket frames.
    ///
    /// # Errors
    /// 400 for a request that is no handshake (RFC 6455, 4.2.1).
    pub(crate) fn hijack_websocket(self) -> Result<(Response, Hijack)> {
        let header = |name| self.parts.headers.get(name).map(HeaderValue::as_bytes);
        let asked = header(UPGRADE).is_some_and(|to| to.eq_ignore_ascii_case(b"websocket"));
        let (true, Some(b"13"), Some(key)) =
            (asked, header(SEC_WEBSOCKET_VERSION), header(SEC_WEBSOCKET_KEY))
        else {
            return Err(ApiError::bad_request(
                "This is no handshake of WebSocket's version 13 (RFC 6455).",
            ));
        };
        let accept = HeaderValue::try_from(websocket::accept(key))
            .map_err(|error| ApiError::internal(format!("Cannot write a header: {error}.")))?;
        let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
        let headers = response.headers_mut();
        headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
        headers.insert(UPGRADE, HeaderValue::from_static("websocket"));
        headers.insert(SEC_WEBSOCKET_ACCEPT, accept);
        let coming = hyper::upgrade::on(hyper::Request::from_parts(self.parts, ()));
        Ok((response, Hijack::WebSocket(coming)))
    }
}

pub(crate) type Input = Box<dyn AsyncRead + Send + Unpin>;
pub(crate) type Output = Box<dyn AsyncWrite + Send + Unpin>;
/// Ends when the client has gone, if that can be told.
pub(crate) type Gone = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A connection that becomes a raw stream when the response's head has been sent.
pub enum Hijack {
    Upgrade(hyper::upgrade::OnUpgrade),
    WebSocket(hyper::upgrade::OnUpgrade),
    Streams(Body, BodySender),
}

impl Hijack {
    /// Waits until the response's head is sent; the client's input, the way to it, and its end, which
    /// must be dropped before the way to it is closed.
    pub(crate) async fn streams(self) -> io::Result<(Input, Output, Gone)> {
        match self {
            Self::Upgrade(coming) => Ok(upgraded::split(coming.await.map_err(io::Error::other)?)),
            Self::WebSocket(coming) => {
                let raw = upgraded::split(coming.await.map_err(io::Error::other)?);
                Ok(websocket::over(raw))
            }
            Self::Streams(body, sender) => {
                let input =
                    StreamReader::new(BodyDataStream::new(body).map_err(io::Error::other).into_stream());
                let gone = sender.clone();
                Ok((
                    Box::new(input),
                    Box::new(BodyWriter::new(sender)),
                    Box::pin(async move { gone.closed().await }),
                ))
            }
        }
    }
}

/// Feeds a streamed body; the body ends when it is dropped.
#[derive(Clone)]
pub struct BodySender(mpsc::Sender<io::Result<Bytes>>);

impl BodySender {
    /// Waits for room. An error means that the client has gone.
    pub async fn send(&self, bytes: impl Into<Bytes>) -> io::Result<()> {
        let sent = self.0.send(Ok(bytes.into())).await;
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// One JSON document and a line's end.
    pub async fn send_json<T: Serialize + ?Sized>(&self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.extend_from_slice(b"\r\n");
        self.send(line).await
    }

    /// As [`Self::send_json`] from a thread that may block.
    pub fn blocking_send_json<T: Serialize + ?Sized>(&self, value: &T) -> io::Result<()> {
        let mut line = serde_json::to_vec(value)?;
        line.extend_from_slice(b"\r\n");
        self.blocking_send(line)
    }

    /// As [`Self::send`] from a thread that may block.
    pub fn blocking_send(&self, bytes: impl Into<Bytes>) -> io::Result<()> {
        let sent = self.0.blocking_send(Ok(bytes.into()));
        sent.map_err(|_| io::ErrorKind::BrokenPipe.into())
    }

    /// Breaks the body off, so that the client does not take what it has for the whole.
    pub fn blocking_fail(self, error: io::Error) {
        let _ = self.0.blocking_send(Err(error));
    }

    /// Returns when the client has gone.
    pub async fn closed(&self) {
        self.0.closed().await;
    }
}

/// [`BodySender`] as a writer.
struct BodyWriter(tokio_util::sync::PollSender<io::Result<Bytes>>);

impl BodyWriter {
    fn new(sender: BodySender) -> Self {
        Self(tokio_util::sync::PollSender::new(sender.0))
    }
}

impl AsyncWrite for BodyWriter {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let gone = |_| io::Error::from(io::ErrorKind::BrokenPipe);
        std::task::ready!(self.0.poll_reserve(cx)).map_err(gone)?;
        self.0.send_item(Ok(Bytes::copy_from_slice(buf))).map_err(gone)?;
        Poll::Ready(Ok(buf.len()))
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.0.close();
        Poll::Ready(Ok(()))
    }
}

struct ChannelBody(mpsc::Receiver<io::Result<Bytes>>);

impl HttpBody for ChannelBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<io::Result<Frame<Bytes>>>> {
        self.0
            .poll_recv(cx)
            .map(|sent| sent.map(|bytes| bytes.map(Frame::data)))
    }
}

/// A body that a task feeds.
pub fn channel() -> (BodySender, Body) {
    let (sender, receiver) = mpsc::channel(CHANNEL_DEPTH);
    (BodySender(sender), BoxBody::new(ChannelBody(receiver)))
}

/// A 200 with newline-delimited JSON that a task feeds.
pub fn ndjson() -> (BodySender, Response) {
    let (sender, body) = channel();
    let mut response = hyper::Response::new(body);
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    (sender, response)
}

/// Answers with a tar that `write` writes while the client reads; what fails breaks the answer off.
pub(crate) fn stream_tar(
    write: impl FnOnce(&mut dyn io::Write) -> store::Result<()> + Send + 'static,
) -> Response {
    /// Bytes of one piece on its way to the client.
    const PIECE: usize = 64 << 10;
    let (sender, body) = channel();
    tokio::task::spawn_blocking(move || {
        let mut to = io::BufWriter::with_capacity(PIECE, Pieces(sender.clone()));
        let written = write(&mut to).map_err(|error| io::Error::other(error.to_string()));
        if let Err(error) = written.and_then(|()| io::Write::flush(&mut to)) {
            sender.blocking_fail(error);
        }
    });
    let mut response = hyper::Response::new(body);
    let tar = HeaderValue::from_static("application/x-tar");
    response.headers_mut().insert(CONTENT_TYPE, tar);
    response
}

struct Pieces(BodySender);

impl io::Write for Pieces {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.blocking_send(bytes.to_vec())?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

pub fn no_body() -> Body {
    whole(Bytes::new())
}

pub fn whole(bytes: impl Into<Bytes>) -> Body {
    BoxBody::new(Full::new(bytes.into()).map_err(|never| match never {}))
}

/// A response with a JSON document.
pub fn json<T: Serialize + ?Sized>(status: StatusCode, value: &T) -> Result<Response> {
    let text = serde_json::to_vec(value)
        .map_err(|error| ApiError::internal(format!("Cannot write the response as JSON: {error}.")))?;
    let mut response = hyper::Response::new(whole(text));
    *response.status_mut() = status;
    response
        .headers_mut()
        .insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    Ok(response)
}

/// A 200 with a JSON document.
pub fn ok<T: Serialize + ?Sized>(value: &T) -> Result<Response> {
    json(StatusCode::OK, value)
}

pub fn empty(status: StatusCode) -> Response {
    let mut response = hyper::Response::new(no_body());
    *response.status_mut() = status;
    response
}

/// A 204.
pub fn no_content() -> Result<Response> {
    Ok(empty(StatusCode::NO_CONTENT))
}
