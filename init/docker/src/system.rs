//! What the machine says of itself, its events, and its end.

use std::collections::HashMap;
use std::sync::Arc;

use hyper::StatusCode;
use hyper::header::{CACHE_CONTROL, CONTENT_TYPE, HeaderValue};
use serde_json::{Value, json};

use crate::containers::LogDriver;
use crate::containers::logs::moment;
use crate::engine::{Engine, Power};
use crate::events::Event;
use crate::http::{Request, Response, Result, json, ndjson, ok, whole};
use crate::query::Filters;

pub(crate) fn ping() -> Result<Response> {
    let mut response = hyper::Response::new(whole("OK"));
    let headers = response.headers_mut();
    headers.insert(
        CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(
        CACHE_CONTROL,
        HeaderValue::from_static("no-cache, no-store, must-revalidate"),
    );
    Ok(response)
}

/// The machine's architecture as Go names it.
fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn kernel() -> String {
    rustix::system::uname().release().to_string_lossy().into_owned()
}

pub(crate) fn version(engine: &Engine) -> Result<Response> {
    let version = &engine.config.version;
    let details = json!({
        "ApiVersion": "1.51", "MinAPIVersion": "1.24", "Arch": architecture(), "Os": "linux",
        "KernelVersion": kernel(), "BuildTime": "", "GitCommit": "", "GoVersion": "", "Experimental": "false",
    });
    ok(&json!({
        "Platform": {"Name": "Monobloc"}, "Version": version,
        "Components": [{"Name": "Engine", "Version": version, "Details": details}],
        "ApiVersion": "1.51", "MinAPIVersion": "1.24", "GitCommit": "", "GoVersion": "", "Os": "linux",
        "Arch": architecture(), "KernelVersion": kernel(), "BuildTime": "", "Experimental": false,
    }))
}

/// `MemTotal` and `MemAvailable`, in bytes.
pub(crate) fn memory() -> (u64, u64) {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    (field(&text, "MemTotal"), field(&text, "MemAvailable"))
}

/// What the kernel has for itself: objects, stacks, page tables, what each CPU has of its own. Bytes.
fn kernel_memory() -> u64 {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    ["Slab", "KernelStack", "PageTables", "Percpu"]
        .into_iter()
        .map(|name| field(&text, name))
        .sum()
}

/// What a process has in memory that is no file's, in bytes.
fn own_memory(process: &str) -> u64 {
    let text = std::fs::read_to_string(format!("/proc/{process}/status")).unwrap_or_default();
    field(&text, "RssAnon")
}

/// A line `NAME: NUMBER kB`, as in proc_meminfo(5), in bytes.
fn field(text: &str, name: &str) -> u64 {
    text.lines()
        .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
        .and_then(|rest| rest.split_whitespace().next()?.parse::<u64>().ok())
        .map_or(0, |kib| kib * 1024)
}

/// Containers by whether they run: running, stopped.
fn counts(engine: &Engine) -> (usize, usize) {
    let all = engine.containers.all();
    let running = all
        .iter()
        .filter(|container| container.process().is_some())
        .count();
    (running, all.len() - running)
}

/// A pool that is nearly full is told of, as `docker info` shows it.
fn warning(usage: store::Usage) -> Option<String> {
    let free = usage.free >> 20;
    (usage.free < usage.total / NEARLY_FULL).then(|| {
        format!("WARNING: The pool is nearly full ({free} MiB are free): remove containers or images.")
    })
}

/// The part of the pool that should be free.
const NEARLY_FULL: u64 = 20;

pub(crate) async fn info(engine: &Arc<Engine>) -> Result<Response> {
    let (running, stopped) = counts(engine);
    let store = engine.store_now();
    let images = store.as_ref().map_or(0, |store| store.images().len());
    let usage = store.and_then(|store| store.usage().ok());
    let pool = (engine.config.pool_kind)();
    let mut warnings: Vec<String> = usage.and_then(warning).into_iter().collect();
    warnings.extend(crate::disks::warnings(engine).await);
    let mut status = vec![json!(["Pool", pool])];
    if let Some(usage) = usage {
        status.push(json!(["Total bytes", usage.total.to_string()]));
        status.push(json!(["Free bytes", usage.free.to_string()]));
    }
    let (total, _) = memory();
    let insecure: HashMap<&String, Value> = engine
        .config
        .registry
        .insecure
        .iter()
        .map(|name| {
            (
                name,
                json!({"Name": name, "Mirrors": [], "Secure": false, "Official": false}),
            )
        })
        .collect();
    ok(&json!({
        "ID": engine.config.name, "Name": engine.config.name,
        "Containers": running + stopped, "ContainersRunning": running, "ContainersPaused": 0,
        "ContainersStopped": stopped, "Images": images,
        "Driver": "btrfs", "DriverStatus": status,
        "Plugins": {"Volume": ["local"], "Network": ["bridge", "none"], "Authorization": null, "Log": LogDriver::NAMES},
        "MemoryLimit": true, "SwapLimit": true, "CpuCfsPeriod": true, "CpuCfsQuota": true, "CPUShares": true,
        "CPUSet": true, "PidsLimit": true, "OomKillDisable": false,
        "IPv4Forwarding": true, "Debug": false, "NFd": 0, "NGoroutines": 0, "NEventsListener": 0,
        "SystemTime": zones::log::now(), "LoggingDriver": "json-file", "CgroupDriver": "cgroupfs",
        "CgroupVersion": "2", "KernelVersion": kernel(), "OperatingSystem": "Monobloc", "OSVersion": engine.config.version,
        "OSType": "linux", "Architecture": std::env::consts::ARCH, "IndexServerAddress": "https://index.docker.io/v1/",
        "RegistryConfig": {"InsecureRegistryCIDRs": [], "IndexConfigs": insecure, "Mirrors": []},
        "NCPU": std::thread::available_parallelism().map_or(1, usize::from), "MemTotal": total,
        "GenericResources": null, "DockerRootDir": "", "HttpProxy": "", "HttpsProxy": "", "NoProxy": "",
        "Labels": [], "ExperimentalBuild": false, "ServerVersion": engine.config.version,
        "Runtimes": {"monobloc": {"path": "/init"}}, "DefaultRuntime": "monobloc",
        "Swarm": {"NodeID": "", "NodeAddr": "", "LocalNodeState": "inactive", "ControlAvailable": false,
            "Error": "", "RemoteManagers": null},
        "LiveRestoreEnabled": true, "Isolation": "", "InitBinary": "", "ContainerdCommit": {"ID": ""},
        "RuncCommit": {"ID": ""}, "InitCommit": {"ID": ""},
        "SecurityOptions": ["name=seccomp,profile=builtin", "name=userns", "name=cgroupns"],
        "Warnings": (!warnings.is_empty()).then_some(warnings),
    }))
}

/// Seconds since the machine's boot.
pub(crate) fn uptime() -> f64 {
    let text = std::fs::read_to_string("/proc/uptime").unwrap_or_default();
    text.split(' ')
        .next()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0.0)
}

pub(crate) async fn status(engine: &Arc<Engine>) -> Result<Response> {
    let (running, stopped) = counts(engine);
    let (total, available) = memory();
    let usage = engine.store_now().and_then(|store| store.usage().ok());
    ok(&json!({
        "name": engine.config.name, "version": engine.config.version, "kernel": kernel(),
        "uptime_seconds": uptime(), "supervisor_seconds": engine.started.elapsed().as_secs_f64(),
        "memory_total": total, "memory_available": available, "memory_kernel": kernel_memory(),
        "memory_supervisor": own_memory("self"), "memory_process_1": own_memory("1"),
        "pool": (engine.config.pool_kind)(), "pool_open": engine.store_now().is_some(),
        "pool_total": usage.map(|usage| usage.total), "pool_free": usage.map(|usage| usage.free),
        "network_open": engine.network_now().is_some(),
        "zones_running": running, "zones_stopped": stopped,
        "supervisor": {"build": engine.config.build, "fell_back": engine.config.fell_back},
    }))
}

/// Answers, then ends the machine.
pub(crate) fn power(engine: Arc<Engine>, verb: &str) -> Result<Response> {
    let power = match verb {
        "reboot" => Power::Reboot,
        "restart-supervisor" => Power::Supervisor,
        _ => Power::Off,
    };
    (engine.config.power)(power);
    json(
        StatusCode::ACCEPTED,
        &json!({"message": format!("The machine does its {verb}.")}),
    )
}

/// `GET /events`: what was, from `since` on, then what comes, until `until` or the client goes.
pub(crate) fn events(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let filters = req.query.filters()?;
    filters.only(&[
        "container",
        "event",
        "image",
        "label",
        "type",
        "network",
        "volume",
        "daemon",
        "scope",
    ])?;
    let (since, until) = (moment(&req.query, "since")?, moment(&req.query, "until")?);
    let (past, mut coming) = engine.events.listen();
    let (sender, response) = ndjson();
    tokio::spawn(async move {
        let telling = async {
            for event in past
                .iter()
                .filter(|event| since.is_some_and(|since| i128::from(event.time_nano) >= since))
            {
                if selected(event, &filters) && until.is_none_or(|until| i128::from(event.time_nano) <= until)
                {
                    sender.send_json(event).await?;
                }
            }
            while let Ok(event) = coming.recv().await {
                if selected(&event, &filters) {
                    sender.send_json(&event).await?;
                }
            }
            Ok::<(), std::io::Error>(())
        };
        let deadline = async {
            let now = time::OffsetDateTime::now_utc().unix_timestamp_nanos();
            match until.map(|until| u64::try_from(until - now).unwrap_or(0)) {
                Some(left) => tokio::time::sleep(std::time::Duration::from_nanos(left)).await,
                None => std::future::pending().await,
            }
        };
        // What is past goes out even if the deadline is past too.
        tokio::select! {
            biased;
            _ = telling => {}
            () = sender.closed() => {}
            () = deadline => {}
        }
    });
    Ok(response)
}

fn selected(event: &Event, filters: &Filters) -> bool {
    let attribute = |key: &str| event.actor.attributes.get(key).map(String::as_str);
    // `exec_start: ls` is the event `exec_start`.
    let action = event.action.split(": ").next().unwrap_or_default();
    let named = |kind: &str, wanted: &str| {
        event.kind == kind && (event.actor.id.starts_with(wanted) || attribute("name") == Some(wanted))
    };
    filters.matches("type", |kind| kind == event.kind)
        && filters.matches("event", |wanted| wanted == action || wanted == event.action)
        && filters.matches("container", |wanted| named("container", wanted))
        && filters.matches("image", |wanted| {
            named("image", wanted) || attribute("image") == Some(wanted)
        })
        && filters.matches("network", |wanted| named("network", wanted))
        && filters.matches("volume", |wanted| named("volume", wanted))
        && filters.matches("daemon", |wanted| named("daemon", wanted))
        && filters.matches("scope", |scope| scope == event.scope)
        && filters.labels(attribute)
}
