//! `POST /containers/{id}/attach`, and `GET /containers/{id}/attach/ws`, by which browsers can do it.

use std::sync::Arc;

use super::container::{Container, log_path};
use super::logs::content_type;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result};
use crate::streams::{self, Attachment, Follower, Listener, Source, Span, parse_detach_keys};

/// Hears the container from here on, also before its start: the listener is in place when the client
/// has the answer.
pub(crate) async fn attach(engine: &Arc<Engine>, req: Request, websocket: bool) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let config = container.record().config;
    let query = &req.query;
    let keys = query.get("detachKeys").unwrap_or_default();
    let detach_keys = parse_detach_keys(keys)
        .ok_or_else(|| ApiError::bad_request(format!("Invalid escape keys ({keys}) provided")))?;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    let stream = query.flag("stream");
    let span = match (query.flag("logs"), stream) {
        (true, true) => Some(Span::Whole),
        (true, false) => Some(Span::Past),
        (false, true) => Some(Span::Present),
        (false, false) => None,
    };
    let wanted = Attachment {
        stdin: stream && query.flag("stdin") && config.open_stdin,
        stdout,
        stderr,
        terminal: config.tty,
        raw: websocket,
        close_stdin: config.stdin_once,
        detach_keys,
    };
    let source = source(engine, &container, span).await?;
    let (response, hijack) = if websocket {
        req.hijack_websocket()?
    } else {
        let kind = content_type(req.version, config.tty);
        req.hijack(kind)
    };
    let engine = engine.clone();
    engine.tell("container", "attach", &container);
    tokio::spawn(async move {
        let own = &container.streams;
        // A client that goes away is no failure.
        if let Ok(true) = streams::attend(own, source, hijack, wanted).await {
            engine.tell("container", "detach", &container);
        }
    });
    Ok(response)
}

async fn source(engine: &Arc<Engine>, container: &Container, span: Option<Span>) -> Result<Source> {
    let Some(span) = span else {
        return Ok(Source::Queue(Listener::deaf()));
    };
    if container.keeps_log() {
        let dir = log_path(&*engine.store().await?, &container.id)?;
        let progress = container.log.subscribe();
        let follower = Follower::open(&container.streams, progress, dir, span).await?;
        return Ok(Source::Log(Box::new(follower)));
    }
    match span {
        Span::Past => Err(ApiError::not_implemented(
            "configured logging driver does not support reading",
        )),
        Span::Present | Span::Whole => Ok(Source::Queue(container.streams.listen())),
    }
}
