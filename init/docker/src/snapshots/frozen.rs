//! Zones that stand still for a moment.
//!
//! Which ones do is noted where it is gone with a boot, as their cgroups are: a supervisor that dies in
//! between has its successor let them go on.

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::containers::{Container, is_paused};
use crate::engine::Engine;
use crate::http::{ApiError, Result};

const NOTES: &str = "/run/monobloc/frozen";

/// Runs `work` while no process of the containers does; one that is paused stays so.
pub(super) async fn while_frozen<T>(
    engine: &Arc<Engine>,
    containers: &[Arc<Container>],
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    let mut frozen = Vec::new();
    let mut failed = None;
    for container in containers {
        if is_paused(engine, &container.id) {
            continue;
        }
        // First, so that a zone that has not come to stand still goes on, too.
        frozen.push(container);
        let done = async {
            note(&container.id)?;
            engine.zones.cgroups().freeze(&container.id).await?;
            Ok::<_, ApiError>(())
        };
        if let Err(error) = done.await {
            failed = Some(error);
            break;
        }
    }
    let done = match failed {
        None => work.await,
        Some(error) => Err(error),
    };
    let mut thawed = Ok(());
    for container in frozen {
        let this = thaw(engine, container).await;
        thawed = thawed.and(this);
    }
    done.and_then(|done| thawed.map(|()| done))
}

async fn thaw(engine: &Arc<Engine>, container: &Container) -> Result<()> {
    // One that has ended meanwhile, by force, has nothing to thaw.
    let thawed = engine.zones.cgroups().thaw(&container.id).await;
    if container.process().is_some() {
        thawed?;
    }
    // What is left is thawed once more.
    let _ = fs::remove_file(place(&container.id));
    Ok(())
}

fn place(id: &str) -> PathBuf {
    Path::new(NOTES).join(id)
}

fn note(id: &str) -> Result<()> {
    let noted = fs::create_dir_all(NOTES).and_then(|()| fs::write(place(id), ""));
    noted.map_err(|error| ApiError::internal(format!("Cannot note that zone {id} is frozen: {error}.")))
}

/// Lets those go on that a predecessor has left frozen.
pub(crate) async fn thaw_left(engine: &Arc<Engine>) {
    for container in engine.containers.all() {
        if !place(&container.id).exists() {
            continue;
        }
        if let Err(error) = thaw(engine, &container).await {
            eprintln!("container {}: cannot let it go on: {error}", container.id);
        }
    }
}
