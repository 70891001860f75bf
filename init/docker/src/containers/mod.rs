//! Containers: what the API says of them, on top of zones, roots and the network.
//!
//! - [`config`]: what a client asks for, and what is refused
//! - [`container`], [`registry`]: one, and all of them
//! - [`spec`]: from the record to what `zones` runs
//! - [`mounts`], [`devices`]: what of the machine and of the pool is put into one
//! - [`create`], [`root`], [`run`], [`ending`]: making; its root; starting and what follows; stopping,
//!   killing, removing
//! - [`show`], [`logs`], [`attach`], [`files`], [`control`], [`prune`]: the endpoints

mod attach;
mod boot;
pub(crate) mod config;
mod container;
mod control;
mod create;
pub(crate) mod devices;
mod ending;
mod errand;
mod files;
mod health;
mod late;
mod list;
mod log_driver;
pub(crate) mod logs;
mod modes;
pub(crate) mod mounts;
mod names;
mod pause;
mod prune;
mod ready;
mod registry;
mod revive;
mod root;
mod run;
mod show;
pub(crate) mod spec;
mod stats;
mod told;
mod top;
mod update;

use std::sync::Arc;

pub(crate) use boot::{adopt_all, start_boot_zone, stop_all};
pub(crate) use config::{HostConfig, Networking, Wanted, nullable, parse as parse_wanted};
pub(crate) use container::{Container, Record, Status, Turn};
pub(crate) use control::own_patience;
pub(crate) use create::make_with;
pub(crate) use ending::stop;
pub(crate) use errand::{discard, make, run_to_end};
pub(crate) use files::MADE;
pub(crate) use list::{sizes, summary};
pub(crate) use log_driver::Driver as LogDriver;
pub(crate) use mounts::clean;
pub(crate) use pause::{awake, is_paused};
pub(crate) use ready::MOST_READY;
pub(crate) use registry::{Containers, new_id, slot};
pub(crate) use run::start;

use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result};
use crate::{exec, routes};

/// Answers everything below `/containers`.
pub(crate) async fn route(
    engine: Arc<Engine>,
    method: &str,
    rest: &[&str],
    req: Request,
) -> Result<Response> {
    match (method, rest) {
        ("GET", ["json"]) => list::list(&engine, &req).await,
        ("POST", ["create"]) => create::create(&engine, req).await,
        ("POST", ["prune"]) => prune::prune(&engine, &req).await,
        ("GET", [_, "json"]) => show::inspect(&engine, &req).await,
        // The name of an image: docker asks for a container of that name before it asks for the image.
        ("GET", [name @ .., "json"]) => Err(ApiError::not_found(format!(
            "No such container: {}",
            name.join("/")
        ))),
        ("HEAD" | "GET", [_, "archive"]) => files::get(&engine, &req).await,
        ("PUT", [_, "archive"]) => files::put(&engine, req).await,
        ("GET", [_, "export"]) => files::export(&engine, &req).await,
        ("GET", [_, "changes"]) => files::changes(&engine, &req).await,
        ("GET", [_, "logs"]) => logs::logs(&engine, &req).await,
        ("POST", [_, "start"]) => control::start(&engine, &req).await,
        ("POST", [_, "stop"]) => control::stop(&engine, &req).await,
        ("POST", [_, "restart"]) => control::restart(&engine, &req).await,
        ("POST", [_, "pause"]) => pause::pause(&engine, &req).await,
        ("POST", [_, "unpause"]) => pause::unpause(&engine, &req).await,
        ("POST", [_, "update"]) => update::update(&engine, req).await,
        ("GET", [_, "top"]) => top::top(&engine, &req).await,
        ("GET", [_, "stats"]) => stats::stats(&engine, &req).await,
        ("POST", [_, "kill"]) => control::kill(&engine, &req).await,
        ("POST", [_, "wait"]) => control::wait(&engine, &req).await,
        ("POST", [_, "rename"]) => control::rename(&engine, &req).await,
        ("POST", [_, "resize"]) => control::resize(&engine, &req).await,
        ("POST", [_, "attach"]) => attach::attach(&engine, req, false).await,
        ("GET", [_, "attach", "ws"]) => attach::attach(&engine, req, true).await,
        ("POST", [_, "exec"]) => exec::create(&engine, req).await,
        ("DELETE", [_]) => control::remove(&engine, &req).await,
        _ => Err(routes::unknown(req.method(), &req.path)),
    }
}

/// Rows and columns of a resize request.
pub(crate) fn size(req: &Request) -> Result<(u16, u16)> {
    let number = |key| {
        let value = req.query.number::<u16>(key)?;
        value.ok_or_else(|| {
            ApiError::bad_request(format!("Parameter {key} is missing; a resize needs h and w."))
        })
    };
    Ok((number("h")?, number("w")?))
}
