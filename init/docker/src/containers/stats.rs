//! `GET /containers/{id}/stats`: what a container uses, once or each second, with the figures before
//! them, of which clients make their rates.

use std::sync::Arc;
use std::time::Duration;

use serde_json::{Map, Value, json};
use zones::stats::{CpuStats, Stats};

use super::container::Container;
use crate::engine::Engine;
use crate::http::{Request, Response, Result, blocking, ndjson, ok};

/// Time between two samples, as Docker has it.
const PERIOD: Duration = Duration::from_secs(1);
/// Nanoseconds of a clock tick.
const TICK: u64 = 10_000_000;

/// One look at a container.
#[derive(Default)]
struct Sample {
    /// None for one that does not run.
    stats: Option<Stats>,
    /// CPU time of the whole machine, in nanoseconds.
    system: u64,
    networks: Map<String, Value>,
    read: String,
}

pub(crate) async fn stats(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let first = sample(engine, &container).await?;
    if !req.query.flag_or("stream", true) {
        if req.query.flag("one-shot") || first.stats.is_none() {
            return ok(&show(&container, &Sample::default(), &first));
        }
        tokio::time::sleep(PERIOD).await;
        let second = sample(engine, &container).await?;
        return ok(&show(&container, &first, &second));
    }
    let (sender, response) = ndjson();
    let engine = engine.clone();
    tokio::spawn(async move {
        let mut life = container.life.subscribe();
        let mut ticks = tokio::time::interval(PERIOD);
        let (mut before, mut now) = (Sample::default(), first);
        ticks.tick().await;
        loop {
            if sender.send_json(&show(&container, &before, &now)).await.is_err() {
                return;
            }
            tokio::select! {
                _ = ticks.tick() => {}
                () = sender.closed() => return,
                removed = life.wait_for(|life| life.removed) => {
                    drop(removed);
                    return;
                }
            }
            let Ok(next) = sample(&engine, &container).await else {
                return;
            };
            before = std::mem::replace(&mut now, next);
        }
    });
    Ok(response)
}

async fn sample(engine: &Arc<Engine>, container: &Arc<Container>) -> Result<Sample> {
    let Some(process) = container.process() else {
        let read = zones::log::now();
        return Ok(Sample {
            read,
            ..Sample::default()
        });
    };
    let (engine, id) = (engine.clone(), container.id.clone());
    blocking(move || {
        Ok::<_, crate::http::ApiError>(Sample {
            // One that ends at this moment has none any more.
            stats: engine.zones.cgroups().stats(&id).ok(),
            system: system_time(),
            networks: networks(process.pid),
            read: zones::log::now(),
        })
    })
    .await
}

fn show(container: &Container, before: &Sample, now: &Sample) -> Value {
    let empty = Stats::default();
    let stats = now.stats.as_ref().unwrap_or(&empty);
    let memory = stats.memory.as_ref().map_or(json!({}), |memory| {
        json!({
            "usage": memory.usage, "stats": memory.details,
            // Without a limit of its own it is the machine's.
            "limit": memory.limit.unwrap_or_else(|| crate::system::memory().0),
        })
    });
    let pids = stats.pids.map_or(json!({}), |pids| {
        let limit = pids.limit.map_or(json!(u64::MAX), Value::from);
        json!({"current": pids.current, "limit": limit})
    });
    let before_time = if before.read.is_empty() {
        super::container::NEVER
    } else {
        &before.read
    };
    json!({
        "id": container.id, "name": format!("/{}", container.record().name), "os_type": "linux",
        "read": now.read, "preread": before_time, "num_procs": 0, "storage_stats": {},
        "cpu_stats": cpu(now), "precpu_stats": cpu(before), "memory_stats": memory,
        "pids_stats": pids, "blkio_stats": blkio(stats), "networks": now.networks,
    })
}

fn cpu(sample: &Sample) -> Value {
    let CpuStats {
        usage,
        user,
        system,
        periods,
        throttled_periods,
        throttled,
    } = sample.stats.as_ref().map(|stats| stats.cpu).unwrap_or_default();
    // Microseconds in the kernel's files, nanoseconds in Docker's answers.
    let mut shown = json!({
        "cpu_usage": {
            "total_usage": usage * 1000, "usage_in_usermode": user * 1000,
            "usage_in_kernelmode": system * 1000,
        },
        "throttling_data": {
            "periods": periods, "throttled_periods": throttled_periods, "throttled_time": throttled * 1000,
        },
    });
    if sample.stats.is_some() {
        shown["system_cpu_usage"] = sample.system.into();
        shown["online_cpus"] = std::thread::available_parallelism().map_or(1, usize::from).into();
    }
    shown
}

fn blkio(stats: &Stats) -> Value {
    let mut bytes = Vec::new();
    let mut counts = Vec::new();
    for device in &stats.io {
        let entry = |op: &str, value: u64| json!({"major": device.major, "minor": device.minor, "op": op, "value": value});
        bytes.extend([
            entry("read", device.read_bytes),
            entry("write", device.written_bytes),
        ]);
        counts.extend([entry("read", device.reads), entry("write", device.writes)]);
    }
    json!({
        "io_service_bytes_recursive": bytes, "io_serviced_recursive": counts, "io_queue_recursive": null,
        "io_service_time_recursive": null, "io_wait_time_recursive": null, "io_merged_recursive": null,
        "io_time_recursive": null, "sectors_recursive": null,
    })
}

/// The links of a process's network namespace but for the loopback (proc_pid_net(5), `dev`).
fn networks(pid: i32) -> Map<String, Value> {
    let text = std::fs::read_to_string(format!("/proc/{pid}/net/dev")).unwrap_or_default();
    let links = text.lines().filter_map(|line| {
        let (name, counters) = line.split_once(':')?;
        let name = name.trim();
        let counters: Vec<u64> = counters
            .split_whitespace()
            .filter_map(|text| text.parse().ok())
            .collect();
        let at = |index: usize| counters.get(index).copied().unwrap_or(0);
        (name != "lo" && counters.len() >= 12).then(|| {
            let shown = json!({
                "rx_bytes": at(0), "rx_packets": at(1), "rx_errors": at(2), "rx_dropped": at(3),
                "tx_bytes": at(8), "tx_packets": at(9), "tx_errors": at(10), "tx_dropped": at(11),
            });
            (name.to_owned(), shown)
        })
    });
    links.collect()
}

/// The first line of `/proc/stat`: what all CPUs have spent, idle or not.
fn system_time() -> u64 {
    let text = std::fs::read_to_string("/proc/stat").unwrap_or_default();
    let ticks = text
        .lines()
        .next()
        .unwrap_or_default()
        .split_whitespace()
        .skip(1)
        .take(8);
    ticks.filter_map(|text| text.parse::<u64>().ok()).sum::<u64>() * TICK
}
