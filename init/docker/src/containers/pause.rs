//! Pausing: the freezer of the zone's cgroup. Whether a container is paused is not stored but asked of
//! the kernel, so that it is true after a supervisor's death as well.

use std::sync::Arc;

use super::container::Container;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, no_content};

pub(crate) fn is_paused(engine: &Engine, container: &str) -> bool {
    engine.zones.cgroups().is_frozen(container)
}

/// 409 for a container that is paused.
pub(crate) fn awake(engine: &Engine, container: &Container, before: &str) -> Result<()> {
    if is_paused(engine, &container.id) {
        return Err(ApiError::conflict(format!(
            "Container {} is paused, unpause the container before {before}",
            container.id
        )));
    }
    Ok(())
}

/// `POST /containers/{id}/pause`
pub(crate) async fn pause(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    container.running()?;
    if is_paused(engine, &container.id) {
        return Err(ApiError::conflict(format!(
            "Container {} is already paused",
            container.id
        )));
    }
    engine.zones.cgroups().freeze(&container.id).await?;
    engine.tell("container", "pause", &container);
    no_content()
}

/// `POST /containers/{id}/unpause`
pub(crate) async fn unpause(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    if container.process().is_none() || !is_paused(engine, &container.id) {
        return Err(ApiError::conflict(format!(
            "Container {} is not paused",
            container.id
        )));
    }
    wake(engine, &container).await?;
    no_content()
}

/// Lets a paused container go on, so that a signal reaches it. One that runs is left alone.
pub(crate) async fn wake(engine: &Arc<Engine>, container: &Container) -> Result<()> {
    if !is_paused(engine, &container.id) {
        return Ok(());
    }
    engine.zones.cgroups().thaw(&container.id).await?;
    engine.tell("container", "unpause", container);
    Ok(())
}
