//! The endpoints that change a container's life, and the one that waits for a change.

use std::sync::Arc;
use std::time::Duration;

use hyper::StatusCode;
use serde_json::json;

use super::container::{Container, Life};
use super::{ending, names, run, spec};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, empty, ndjson, no_content};

/// Docker's patience with a container that is asked to stop.
const STOP_LIMIT: Duration = Duration::from_secs(10);

async fn find(engine: &Arc<Engine>, req: &Request) -> Result<Arc<Container>> {
    engine.containers().await?.find(&req.name)
}

/// 204, or 304 where nothing was to be done.
fn changed(changed: bool) -> Result<Response> {
    if changed {
        no_content()
    } else {
        Ok(empty(StatusCode::NOT_MODIFIED))
    }
}

pub(crate) async fn start(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    // In a task of its own: a client that goes away does not leave a start half-done.
    let engine = engine.clone();
    let started = tokio::spawn(async move { run::start(&engine, &container).await });
    changed(started.await??)
}

/// How long a stop waits before it kills; none is for ever.
fn patience(req: &Request, container: &Container) -> Result<Option<Duration>> {
    Ok(match req.query.number::<i64>("t")? {
        None => own_patience(container),
        Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
    })
}

/// The same where nobody says how long.
pub(crate) fn own_patience(container: &Container) -> Option<Duration> {
    match container.record().config.stop_timeout {
        None => Some(STOP_LIMIT),
        Some(seconds) => u64::try_from(seconds).ok().map(Duration::from_secs),
    }
}

fn signal(req: &Request) -> Result<Option<i32>> {
    req.query.get("signal").map(spec::parse_signal).transpose()
}

pub(crate) async fn stop(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    let (signal, limit) = (signal(req)?, patience(req, &container)?);
    let owned = engine.clone();
    let stopped = tokio::spawn(async move { ending::stop(&owned, &container, signal, limit).await });
    changed(stopped.await??)
}

pub(crate) async fn restart(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    let (signal, limit) = (signal(req)?, patience(req, &container)?);
    let engine = engine.clone();
    let restarted = tokio::spawn(async move {
        ending::stop(&engine, &container, signal, limit).await?;
        run::start(&engine, &container).await?;
        engine.tell("container", "restart", &container);
        Ok::<_, ApiError>(())
    });
    restarted.await??;
    no_content()
}

pub(crate) async fn kill(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    ending::kill(engine, &container, signal(req)?.unwrap_or(ending::SIGKILL)).await?;
    no_content()
}

pub(crate) async fn rename(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    let name = req.query.get("name").unwrap_or_default();
    let name = name.strip_prefix('/').unwrap_or(name).to_owned();
    if !names::is_valid(&name) {
        return Err(ApiError::bad_request(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    let store = engine.store().await?;
    let _turn = container.turn_as_it_is().await;
    let before = container.record().name;
    engine.containers.rename(&container, &name)?;
    let owned = container.clone();
    if let Err(error) = blocking(move || owned.save(&store)).await {
        container.lock().name = before;
        return Err(error);
    }
    engine.tell_more("rename", &container, [("oldName", format!("/{before}"))]);
    no_content()
}

pub(crate) async fn resize(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    let (rows, columns) = super::size(req)?;
    container.running()?;
    // Without a terminal it means nothing; docker's client does not ask first.
    if container.streams.resize(rows, columns) {
        let size = [("height", rows.to_string()), ("width", columns.to_string())];
        engine.tell_more("resize", &container, size);
    }
    Ok(empty(StatusCode::OK))
}

pub(crate) async fn remove(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    if req.query.flag("link") {
        return Err(ApiError::not_implemented(
            "Monobloc does not do links; leave the parameter link out.",
        ));
    }
    let (force, volumes) = (req.query.flag("force"), req.query.flag("v"));
    let engine = engine.clone();
    tokio::spawn(async move { ending::remove(&engine, &container, force, volumes).await }).await??;
    no_content()
}

/// Answers at once and ends its body when what is waited for has come: docker's client starts the
/// container only when it has the answer's head.
pub(crate) async fn wait(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = find(engine, req).await?;
    let mut life = container.life.subscribe();
    let (exits, failed) = {
        let life = life.borrow_and_update();
        (life.exits, life.failed_removals)
    };
    let done: Box<dyn Fn(&Life) -> bool + Send + Sync> = match req.query.get("condition") {
        None | Some("not-running") => Box::new(|life| !life.running),
        Some("next-exit") => Box::new(move |life| life.exits > exits),
        Some("removed") => Box::new(move |life| life.failed_removals > failed),
        Some(other) => {
            return Err(ApiError::bad_request(format!("invalid condition: \"{other}\"")));
        }
    };
    let (sender, response) = ndjson();
    tokio::spawn(async move {
        let waited = async {
            // Removed is the last thing that can happen to it.
            let answer = life
                .wait_for(|life| done(life) || life.removed)
                .await
                .map(|life| {
                    let mut answer = json!({"StatusCode": life.code});
                    if life.failed_removals > failed && !life.removed {
                        answer["Error"] = json!({"Message": life.removal_error});
                    }
                    answer
                });
            if let Ok(answer) = answer {
                let _ = sender.send_json(&answer).await;
            }
        };
        tokio::select! {
            () = waited => {}
            () = sender.closed() => {}
        }
    });
    Ok(response)
}
