//! `GET /containers/{id}/json`.

use std::collections::BTreeMap;
use std::sync::Arc;

use network::BoundPort;
use serde_json::{Map, Value, json};
use zones::{MASKED_PATHS, READ_ONLY_PATHS};

use super::config::HostConfig;
use super::container::{Container, Record, Status, log_path};
use super::list::sizes;
use super::pause::is_paused;
use super::{mounts, spec};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, ok};
use crate::networks;

pub(crate) async fn inspect(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let mut shown = describe(engine, &container).await?;
    if req.query.flag("size") {
        let store = engine.store().await?;
        for (own, whole) in sizes(&store, vec![container.id.clone()]).await? {
            shown["SizeRw"] = own.into();
            shown["SizeRootFs"] = whole.into();
        }
    }
    ok(&shown)
}

async fn describe(engine: &Arc<Engine>, container: &Container) -> Result<Value> {
    let store = engine.store().await?;
    let record = container.record();
    let command = record.command();
    let (path, args) = command
        .split_first()
        .map_or((String::new(), &[][..]), |(path, args)| (path.clone(), args));
    let log = log_path(&store, &record.id)?;
    Ok(json!({
        "Id": record.id, "Created": record.created, "Path": path, "Args": args,
        "State": state(engine, container, &record),
        "Image": record.image,
        "ResolvConfPath": "", "HostnamePath": "", "HostsPath": "", "LogPath": log,
        "Name": format!("/{}", record.name),
        "RestartCount": record.restarts, "Driver": "btrfs", "Platform": "linux",
        "MountLabel": "", "ProcessLabel": "", "AppArmorProfile": "",
        "ExecIDs": engine.execs.of(&record.id),
        "HostConfig": host_config(&record)?,
        "GraphDriver": {"Name": "btrfs", "Data": null},
        "Mounts": mounts::show(&store, &record),
        "Config": config(&record)?,
        "NetworkSettings": network_settings(engine, &record),
    }))
}

fn state(engine: &Engine, container: &Container, record: &Record) -> Value {
    let process = container.process();
    let paused = process.is_some() && is_paused(engine, &record.id);
    let mut shown = json!({
        "Status": if paused { "paused" } else { record.status.text() },
        "Running": matches!(record.status, Status::Running | Status::Restarting),
        "Paused": paused, "Restarting": record.status == Status::Restarting,
        "OOMKilled": record.oom_killed, "Dead": record.status == Status::Dead,
        "Pid": process.map_or(0, |process| process.pid),
        "ExitCode": record.exit_code, "Error": record.error,
        "StartedAt": record.started, "FinishedAt": record.finished,
    });
    if let Some(health) = container.health() {
        shown["Health"] = health.show();
    }
    shown
}

fn to_json(value: &impl serde::Serialize) -> Result<Value> {
    serde_json::to_value(value)
        .map_err(|error| ApiError::internal(format!("Cannot show the container: {error}.")))
}

/// What was asked for, with Docker's words for what was left open.
fn host_config(record: &Record) -> Result<Value> {
    let mut shown = to_json(&record.host)?;
    if let Value::Object(map) = &mut shown {
        map.insert("NetworkMode".to_owned(), json!(mode(&record.host)));
        map.insert("LogConfig".to_owned(), record.host.log_config.shown());
        for (field, mode) in [
            ("CgroupnsMode", &record.host.cgroupns_mode),
            ("IpcMode", &record.host.ipc_mode),
        ] {
            let shown = if mode.is_empty() { "private" } else { mode.as_str() };
            map.insert(field.to_owned(), json!(shown));
        }
        let usual = |paths: &'static [&'static str]| if record.host.privileged { &[] } else { paths };
        for (key, asked_for, paths) in [
            ("MaskedPaths", &record.host.masked_paths, MASKED_PATHS),
            ("ReadonlyPaths", &record.host.readonly_paths, READ_ONLY_PATHS),
        ] {
            if asked_for.is_none() {
                map.insert(key.to_owned(), json!(usual(paths)));
            }
        }
        map.insert("Runtime".to_owned(), json!("monobloc"));
    }
    Ok(shown)
}

fn config(record: &Record) -> Result<Value> {
    let mut shown = to_json(&record.config)?;
    if let Value::Object(map) = &mut shown {
        map.insert("Hostname".to_owned(), json!(spec::hostname(record)));
        map.entry("Volumes".to_owned()).or_insert(Value::Null);
        map.insert("OnBuild".to_owned(), Value::Null);
    }
    Ok(shown)
}

/// The network mode with Docker's word for the usual one.
pub(super) fn mode(host: &HostConfig) -> &str {
    match host.network_mode.as_str() {
        "" | "default" => "bridge",
        mode => mode,
    }
}

fn network_settings(engine: &Engine, record: &Record) -> Value {
    let bound = engine
        .network_now()
        .map(|networks| networks.published(&record.id))
        .unwrap_or_default();
    let networks = networks::show(engine, record);
    let mut settings = json!({
        "Bridge": "", "SandboxID": "", "SandboxKey": "", "HairpinMode": false,
        "LinkLocalIPv6Address": "", "LinkLocalIPv6PrefixLen": 0,
        "SecondaryIPAddresses": null, "SecondaryIPv6Addresses": null,
        "Ports": ports(record, &bound),
    });
    // As Docker has it, what stands outside of the networks is of the usual one.
    let usual = networks.get("bridge").cloned().unwrap_or(Value::Null);
    for key in [
        "EndpointID",
        "Gateway",
        "IPAddress",
        "MacAddress",
        "IPv6Gateway",
        "GlobalIPv6Address",
    ] {
        settings[key] = usual.get(key).cloned().unwrap_or_else(|| json!(""));
    }
    for key in ["IPPrefixLen", "GlobalIPv6PrefixLen"] {
        settings[key] = usual.get(key).cloned().unwrap_or_else(|| json!(0));
    }
    settings["Networks"] = Value::Object(networks);
    settings
}

fn ports(record: &Record, bound: &[BoundPort]) -> Value {
    let mut ports: BTreeMap<String, Vec<Value>> = BTreeMap::new();
    for port in bound {
        let key = format!("{}/{}", port.zone_port, port.protocol.name());
        let binding = json!({"HostIp": port.host_ip.to_string(), "HostPort": port.host_port.to_string()});
        ports.entry(key).or_default().push(binding);
    }
    let mut shown: Map<String, Value> = ports
        .into_iter()
        .map(|(key, list)| (key, Value::Array(list)))
        .collect();
    if record.status == Status::Running {
        for key in record.config.exposed_ports.keys() {
            shown.entry(key.clone()).or_insert(Value::Null);
        }
    }
    Value::Object(shown)
}
