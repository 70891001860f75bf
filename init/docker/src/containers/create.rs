//! Making a container.

use std::sync::Arc;

use hyper::StatusCode;
use serde_json::{Value, json};
use store::{Healthcheck, Image, Store};

use super::config::{self, Config, Wanted};
use super::container::{Container, NEVER, Record, Status};
use super::registry::new_id;
use super::{modes, mounts, names, ready, spec};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, json};
use crate::networks;

pub(crate) async fn create(engine: &Arc<Engine>, mut req: Request) -> Result<Response> {
    let body: Value = req.json().await?;
    let name = req.query.get("name").unwrap_or_default().to_owned();
    if let Some(platform) = req.query.get("platform") {
        check_platform(platform)?;
    }
    let wanted = config::parse(body)?;
    networks::check_count(&wanted.networking, req.version)?;
    let warnings = [spec::warnings(&wanted.host), mounts::warnings(&wanted)].concat();
    // In a task of its own: a client that goes away leaves nothing half-made.
    let engine = engine.clone();
    let making = tokio::spawn(async move { make(&engine, &name, wanted).await });
    let container = making.await??;
    json(
        StatusCode::CREATED,
        &json!({"Id": container.id, "Warnings": warnings}),
    )
}

fn check_platform(platform: &str) -> Result<()> {
    let architecture = match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    };
    match platform.split('/').collect::<Vec<_>>().as_slice() {
        ["linux"] | [""] => Ok(()),
        ["linux", wanted, ..] if *wanted == architecture => Ok(()),
        _ => Err(ApiError::bad_request(format!(
            "Platform {platform} is not what this machine is (linux/{architecture})."
        ))),
    }
}

/// Makes the root of a new container, which may hold so many bytes; what it has made is removed if it fails.
type Begin = Box<dyn FnOnce(&Store, &Record, Option<u64>) -> Result<()> + Send>;

/// Makes a container; an empty name has one made up.
pub(crate) async fn make(engine: &Arc<Engine>, name: &str, wanted: Wanted) -> Result<Arc<Container>> {
    let image = engine.store().await?.resolve(&wanted.config.image)?;
    let id = image.id;
    let begin: Begin = Box::new(move |store, record, limit| Ok(store.create_root(&record.id, &id, limit)?));
    make_with(engine, name, wanted, image, begin).await
}

/// As [`make`], of this image, with a root that does not begin as the image is.
pub(crate) async fn make_with(
    engine: &Arc<Engine>,
    name: &str,
    wanted: Wanted,
    image: Image,
    begin: Begin,
) -> Result<Arc<Container>> {
    let name = name.strip_prefix('/').unwrap_or(name);
    if !name.is_empty() && !names::is_valid(name) {
        return Err(ApiError::bad_request(format!(
            "Invalid container name ({name}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
        )));
    }
    let store = engine.store().await?;
    let mut wanted = Wanted {
        config: merge(wanted.config, &image),
        ..wanted
    };
    modes::check(
        &wanted.host,
        &wanted.config.hostname,
        engine.config.allow_host_privilege,
    )?;
    spec::check(&wanted)?;
    if wanted.host.init == Some(true) && engine.config.zone_init.is_none() {
        return Err(ApiError::not_implemented(
            "There is no init for containers here (HostConfig.Init); leave it out.",
        ));
    }
    modes::name_by_id(engine, &mut wanted.host).await?;
    let networks = networks::settle(engine, &wanted.host, &wanted.networking).await?;
    let command = [&wanted.config.entrypoint, &wanted.config.cmd];
    if command.into_iter().flatten().flatten().all(String::is_empty) {
        return Err(ApiError::bad_request("no command specified"));
    }
    // Held until the container is known as one that uses its volumes.
    let turn = engine.volumes.turn.lock().await;
    let settled = mounts::settle(engine, &store, &wanted.config, &wanted.host).await?;
    let record = Record {
        id: new_id()?,
        name: name.to_owned(),
        created: zones::log::now(),
        image: image.id.to_string(),
        config: wanted.config,
        host: wanted.host,
        networks: Some(networks),
        mounts: settled.points,
        first_id: 0,
        joined_first_id: None,
        status: Status::Created,
        started: NEVER.to_owned(),
        finished: NEVER.to_owned(),
        exit_code: 0,
        oom_killed: false,
        error: String::new(),
        restarts: 0,
        stopped: false,
        health: None,
    };
    let added = match engine.containers().await {
        Ok(containers) => containers.add(record),
        Err(error) => Err(error),
    };
    let container = match added {
        Ok(container) => container,
        Err(error) => {
            mounts::forget(engine, &store, &settled.made).await;
            return Err(error);
        }
    };
    drop(turn);
    // Nobody starts it before it is all there.
    let turn = container.turn().await;
    let placed = {
        let (store, container) = (store.clone(), container.clone());
        blocking(move || place(&store, &container, &image, begin)).await
    };
    if let Err(error) = placed {
        engine.containers.remove(&container.id);
        let _turn = engine.volumes.turn.lock().await;
        mounts::forget(engine, &store, &settled.made).await;
        return Err(error);
    }
    drop(turn);
    engine.tell("container", "create", &container);
    // The first start needs it; made now, it is there by then.
    tokio::spawn(ready::make_ready(engine.clone(), container.clone()));
    Ok(container)
}

fn place(store: &Store, container: &Container, image: &Image, begin: Begin) -> Result<()> {
    let limit = container.lock().host.storage_limit()?;
    let record = container.record();
    begin(store, &record, limit)
        .and_then(|()| mounts::fill(store, &record, &image.id))
        .and_then(|()| Ok(container.save(store)?))
        .inspect_err(|_| {
            // What is left of it is collected with the store's next opening.
            let _ = store.remove_root(&container.id);
        })
}

fn over(mine: Healthcheck, theirs: &Healthcheck) -> Healthcheck {
    let number = |mine, theirs| if mine == 0 { theirs } else { mine };
    Healthcheck {
        test: if mine.test.is_empty() {
            theirs.test.clone()
        } else {
            mine.test
        },
        interval: number(mine.interval, theirs.interval),
        timeout: number(mine.timeout, theirs.timeout),
        start_period: number(mine.start_period, theirs.start_period),
        start_interval: number(mine.start_interval, theirs.start_interval),
        retries: number(mine.retries, theirs.retries),
    }
}

/// What the image says goes below what was asked for.
fn merge(mut config: Config, image: &Image) -> Config {
    let own = &image.config.config;
    let mut env = own.env.clone();
    spec::merge_env(&mut env, &config.env);
    if !env.iter().any(|entry| entry.starts_with("PATH=")) {
        env.push(spec::DEFAULT_PATH.to_owned());
    }
    config.env = env;
    // An entrypoint that is asked for leaves the image's arguments out; `--entrypoint ""` asks for none.
    if config.entrypoint.is_none() {
        config.entrypoint.clone_from(&own.entrypoint);
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd.clone_from(&own.cmd);
        }
    } else if config.entrypoint.as_deref() == Some(&[String::new()]) {
        config.entrypoint = None;
        if config.cmd.as_ref().is_none_or(Vec::is_empty) {
            config.cmd.clone_from(&own.cmd);
        }
    }
    let take = |mine: &mut String, theirs: &String| {
        if mine.is_empty() {
            mine.clone_from(theirs);
        }
    };
    take(&mut config.user, &own.user);
    take(&mut config.working_dir, &own.working_dir);
    for (key, value) in &own.labels {
        config.labels.entry(key.clone()).or_insert_with(|| value.clone());
    }
    for (key, value) in &own.exposed_ports {
        config
            .exposed_ports
            .entry(key.clone())
            .or_insert_with(|| value.clone());
    }
    for (path, value) in &own.volumes {
        config
            .volumes
            .entry(path.clone())
            .or_insert_with(|| value.clone());
    }
    config.healthcheck = match (config.healthcheck.take(), &own.healthcheck) {
        // What is left open is as the image has it.
        (Some(mine), Some(theirs)) => Some(over(mine, theirs)),
        (mine, theirs) => mine.or_else(|| theirs.clone()),
    };
    if config.stop_signal.is_none() {
        config.stop_signal.clone_from(&own.stop_signal);
    }
    config
}
