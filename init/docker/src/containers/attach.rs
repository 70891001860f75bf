//! `POST /containers/{id}/attach`.

use std::sync::Arc;

use bytes::Bytes;

use super::logs::{content_type, so_far};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result};
use crate::streams::{self, Attachment, parse_detach_keys};

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
    let before = if query.flag("logs") {
        so_far(engine, &container, stdout, stderr).await?
    } else {
        Bytes::new()
    };
    let wanted = Attachment {
        stdin: stream && query.flag("stdin") && config.open_stdin,
        stdout,
        stderr,
        terminal: config.tty,
        close_stdin: config.stdin_once,
        detach_keys,
        before,
    };
    let listener = if stream {
        container.streams.listen()
    } else {
        // Ends at once: only what was said before is wanted.
        tokio::sync::mpsc::channel(1).1
    };
    let (response, hijack) = {
        let kind = content_type(req.version, config.tty);
        req.hijack(kind)
    };
    let engine = engine.clone();
    engine.tell("container", "attach", &container);
    tokio::spawn(async move {
        // A client that goes away is no failure.
        if let Ok(true) = streams::attend(&container.streams, listener, hijack, wanted).await {
            engine.tell("container", "detach", &container);
        }
    });
    Ok(response)
}
