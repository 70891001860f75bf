//! An added process that waits for its start from its creation on, as a container's first one does: a
//! client that makes one is about to start it.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{Mutex, OwnedSemaphorePermit};
use zones::Pending;

use super::{Exec, Phase, set_up};
use crate::engine::Engine;

/// How long one waits. Meanwhile it is among the zone's processes.
const PATIENCE: Duration = Duration::from_secs(5);

/// Where the process waits; held while it is made.
#[derive(Default)]
pub(super) struct Slot(Mutex<Option<(Pending, OwnedSemaphorePermit)>>);

impl Slot {
    /// The process, if it waits and nothing has happened to it.
    pub(super) async fn take(&self) -> Option<Pending> {
        let (pending, _place) = self.0.lock().await.take()?;
        if pending.has_failed() {
            // Why does not matter: the start tries again.
            let _ = pending.failure().await;
            return None;
        }
        Some(pending)
    }

    async fn give_up(&self) {
        let mut left = self.0.lock().await;
        if let Some((pending, _place)) = left.take() {
            let _ = pending.failure().await;
        }
    }
}

/// Makes one ready, if there is a place for it.
pub(super) async fn make_ready(engine: Arc<Engine>, exec: Arc<Exec>) {
    let mut slot = exec.ready.0.lock().await;
    let Ok(place) = engine.places.clone().try_acquire_owned() else {
        return;
    };
    if !matches!(*exec.phase(), Phase::Created) {
        return;
    }
    // What does not succeed is told by the start, which tries again.
    let Ok(pending) = set_up(&engine, &exec, &exec.key(), None).await else {
        return;
    };
    *slot = Some((pending, place));
    drop(slot);
    tokio::time::sleep(PATIENCE).await;
    exec.ready.give_up().await;
}
