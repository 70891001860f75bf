//! `POST /containers/{id}/attach`.

use std::sync::Arc;

use super::logs::{Replay, content_type};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result};
use crate::streams::{self, Attachment, Listener, parse_detach_keys};

/// Hears the container from here on, also before its start: the listener is in place when the client
/// has the answer.
pub(crate) async fn attach(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let config = container.record().config;
    let query = &req.query;
    let keys = query.get("detachKeys").unwrap_or_default();
    let detach_keys = parse_detach_keys(keys)
        .ok_or_else(|| ApiError::bad_request(format!("Invalid escape keys ({keys}) provided")))?;
    let (stdout, stderr) = (query.flag("stdout"), query.flag("stderr"));
    let stream = query.flag("stream");
    let replay = if query.flag("logs") {
        Some(Replay::open(engine, &container, stdout, stderr).await?)
    } else {
        None
    };
    let wanted = Attachment {
        stdin: stream && query.flag("stdin") && config.open_stdin,
        stdout,
        stderr,
        terminal: config.tty,
        close_stdin: config.stdin_once,
        detach_keys,
    };
    let listener = if stream && replay.is_none() {
        container.streams.listen()
    } else {
        Listener::deaf()
    };
    let (response, hijack) = {
        let kind = content_type(req.version, config.tty);
        req.hijack(kind)
    };
    let engine = engine.clone();
    engine.tell("container", "attach", &container);
    tokio::spawn(async move {
        let own = &container.streams;
        let attended = match replay {
            Some(replay) => streams::attend_after(own, replay, stream, hijack, wanted).await,
            None => streams::attend(own, listener, hijack, wanted).await,
        };
        // A client that goes away is no failure.
        if let Ok(true) = attended {
            engine.tell("container", "detach", &container);
        }
    });
    Ok(response)
}
