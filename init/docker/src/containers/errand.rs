//! Containers that the engine itself makes for a request, runs to their end and removes.

use std::sync::Arc;

use serde_json::{Value, json};
use zones::log::{Reader, Selection};

use super::container::{Container, log_path};
use super::{config, create, ending, logs, run};
use crate::engine::Engine;
use crate::http::{ApiError, BodySender, Result, blocking};

/// Makes a container with a name that is made up.
pub(crate) async fn make(engine: &Arc<Engine>, request: Value) -> Result<Arc<Container>> {
    create::make(engine, "", config::parse(request)?).await
}

/// Runs it, tells what it says as `{"stream": …}`, and gives its exit code.
pub(crate) async fn run_to_end(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    sender: &BodySender,
) -> Result<i32> {
    let mut life = container.life.subscribe();
    let exits = life.borrow_and_update().exits;
    run::start(engine, container).await?;
    let store = engine.store().await?;
    let path = log_path(&store, &container.id)?;
    let all = Selection {
        stdout: true,
        stderr: true,
        tail: None,
        since: None,
        until: None,
    };
    let mut progress = container.log.subscribe();
    let mut reader = blocking(move || Reader::open(&path, all).map_err(logs::unreadable)).await?;
    loop {
        // Taken before reading: what is appended after this is notified again.
        let ended = life.borrow_and_update().exits > exits;
        progress.mark_unchanged();
        loop {
            let (entries, back) = logs::next_entries(reader).await?;
            reader = back;
            if entries.is_empty() {
                break;
            }
            for entry in entries {
                let text = String::from_utf8_lossy(&entry.bytes).into_owned();
                let gone = |_| ApiError::bad_request("The client has gone.");
                sender.send_json(&json!({ "stream": text })).await.map_err(gone)?;
            }
        }
        if ended {
            return Ok(life.borrow().code);
        }
        let gone = |_| ApiError::internal("The container is gone.");
        tokio::select! {
            changed = progress.changed() => changed.map_err(gone)?,
            changed = life.changed() => changed.map_err(gone)?,
        }
    }
}

/// Ends it, if it runs, and removes it with its nameless volumes.
pub(crate) async fn discard(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<()> {
    ending::remove(engine, container, true, true).await
}
