//! What the machine itself does with its containers: take over, start at boot, stop at the end.

use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use handover::{BootZone, Protocol};
use serde_json::json;
use store::Store;
use zones::{Process, Stdio, Survivor};

use super::container::{Container, Record, Status, states};
use super::{config, create, ending, health, late, revive, run};
use crate::engine::Engine;
use crate::exec;
use crate::http::{Result, blocking};
use crate::snapshots;
use crate::streams::Streams;

/// Label of a container that the recipe asks for, with the request it was made by.
const BOOT_LABEL: &str = "org.monobloc.boot";

/// Reads the stored containers and takes over what runs of them.
pub(crate) async fn adopt_all(engine: Arc<Engine>, store: Arc<Store>, survivors: Vec<Survivor>) {
    crate::networks::restore(&engine, &store).await;
    let reading = store.clone();
    match blocking(move || read_all(&reading)).await {
        Ok(records) => {
            for record in records {
                engine.containers.restore(record);
            }
        }
        Err(error) => eprintln!("containers: cannot read them: {error}"),
    }
    // Before anybody can make or start one: what is found here is nobody's work under way.
    let (swept, known) = (store.clone(), engine.containers.all());
    let successor = engine.is_successor();
    let swept = blocking(move || sweep(&swept, &known, successor)).await;
    let half_removed = swept.unwrap_or_else(|error| {
        eprintln!("containers: cannot sweep up after the last supervisor: {error}");
        Vec::new()
    });
    let mut ended = Vec::new();
    for survivor in survivors {
        ended.extend(adopt(&engine, &store, survivor).await);
    }
    snapshots::thaw_left(&engine).await;
    // Only now is it known what those that run use.
    for (container, stdio) in ended {
        run::clean_up(&engine, &container, &store, stdio).await;
    }
    exec::adopt_rest(&engine).await;
    health::forget_ended(&engine).await;
    let all = engine.containers.all();
    let idle = all.into_iter().filter(|container| container.process().is_none());
    let judged: Vec<_> = idle
        .map(|container| {
            let half_removed = half_removed.contains(&container.id);
            (revive::judge(&container, successor, half_removed), container)
        })
        .collect();
    engine.containers.set_loaded();
    crate::networks::serve_names(&engine).await;
    for (verdict, container) in judged {
        revive::carry_out(verdict, &engine, &container, &store).await;
    }
}

/// Removes the roots of containers that are not known; gives the ids of containers whose removal was
/// cut short. A root that is missing tells of that only where no power cut can have taken it.
fn sweep(store: &Store, known: &[Arc<Container>], successor: bool) -> Result<Vec<String>, store::Error> {
    let recorded: HashSet<String> = states(store)?.list()?.into_iter().collect();
    let roots: HashSet<String> = store.roots().into_iter().map(|(id, _)| id).collect();
    let (with_snapshots, _) = store.with_snapshots()?;
    let left = roots.iter().chain(&with_snapshots);
    for id in left.filter(|id| !recorded.contains(*id)) {
        store.remove_root(id)?;
    }
    let rootless = known.iter().map(|container| container.id.clone());
    Ok(rootless.filter(|id| successor && !roots.contains(id)).collect())
}

/// One that cannot be understood is told of and left where it is.
fn read_all(store: &Store) -> Result<Vec<Record>, store::Error> {
    let states = states(store)?;
    let mut records = Vec::new();
    for name in states.list()? {
        match states.read(&name) {
            Ok(record) => records.push(record),
            Err(error) => eprintln!("containers: {error}"),
        }
    }
    Ok(records)
}

/// Takes over a process that was found. A container whose end is noted already, or that did not come to
/// run, is given back when its process is gone.
async fn adopt(
    engine: &Arc<Engine>,
    store: &Arc<Store>,
    mut survivor: Survivor,
) -> Option<(Arc<Container>, Option<Stdio>)> {
    if let Some(id) = late::of(&survivor.key) {
        match (engine.containers.find(id), survivor.stdio) {
            (Ok(container), Some(stdio)) => late::adopt(engine, &container, store, stdio),
            // Its container was removed.
            _ => late::forget(engine, id).await,
        }
        return None;
    }
    let runs = engine
        .zones
        .complete_start(&mut survivor)
        .await
        .unwrap_or_else(|error| {
            eprintln!(
                "process {}: cannot tell whether it came to run: {error}",
                survivor.key
            );
            false
        });
    let Survivor { process, stdio, .. } = survivor;
    let added = process.key.contains('.');
    let container = engine
        .containers
        .find(&process.key)
        .ok()
        .filter(|found| found.id == process.key);
    match (container, stdio) {
        // What it was recorded as is judged with those that no process is left of.
        // A record says that it runs before the program does, and that it has ended before process 1 forgets it.
        (Some(container), stdio) if !runs || container.lock().status != Status::Running => {
            let _ = process.signal(ending::SIGKILL);
            engine.zones.exited(&process.key).await;
            return Some((container, stdio.filter(|_| runs)));
        }
        (Some(container), Some(stdio)) => {
            if let Err(error) = run::adopt(engine, &container, store, process, stdio) {
                eprintln!("container {}: cannot take it over: {error}", container.id);
            }
        }
        // One that was added to a zone and whose start nobody asked for, or did not see. It may be asked for
        // when this one has gone.
        (None, stdio) if added && !runs => drain(engine.clone(), process, stdio).await,
        // A process that was added to a zone: its client has gone with the predecessor.
        (None, stdio) if added => {
            if let Err((process, stdio)) = exec::adopt(engine, process, stdio) {
                // A check of its health, whose result nobody waits for any more.
                if process.key.contains(&format!(".{}", exec::PROBE)) {
                    let _ = process.signal(ending::SIGKILL);
                }
                tokio::spawn(drain(engine.clone(), process, stdio));
            }
        }
        // A zone that nothing is known of, or nothing can be heard of, is of no use to anybody.
        (_, stdio) => {
            let _ = process.signal(ending::SIGKILL);
            tokio::spawn(drain(engine.clone(), process, stdio));
        }
    }
    None
}

/// Reads what it says, so that it does not wait, until it ends.
async fn drain(engine: Arc<Engine>, process: Process, stdio: Option<Stdio>) {
    let streams = Streams::default();
    let pumping = async {
        if let Some(Ok(ends)) = stdio.map(|stdio| streams.open(stdio, &engine.zones, &process.key)) {
            streams.pump(ends).await;
        }
        std::future::pending::<()>().await;
    };
    tokio::select! {
        _ = engine.zones.exited(&process.key) => {}
        () = pumping => {}
    }
    let forgotten = if process.key.contains('.') {
        engine.zones.acknowledge(&process.key).await
    } else {
        engine.zones.acknowledge_zone(&process.key).await
    };
    if let Err(error) = forgotten {
        eprintln!("process {}: cannot clean up after it: {error}", process.key);
    }
}

pub(crate) async fn stop_all(engine: &Arc<Engine>, limit: Duration) {
    let all = engine.containers.all();
    let (running, idle): (Vec<_>, Vec<_>) = all
        .into_iter()
        .partition(|container| container.process().is_some());
    let stopping: Vec<_> = running
        .into_iter()
        .map(|container| {
            let engine = engine.clone();
            tokio::spawn(async move {
                let stopped = container.lock().stopped;
                let ended = ending::stop(&engine, &container, None, Some(limit)).await;
                // The machine's end is no wish that it stay down.
                container.lock().stopped = stopped;
                if let Ok(store) = engine.store().await {
                    let _turn = container.turn().await;
                    let owned = container.clone();
                    let _ = blocking(move || owned.save(&store)).await;
                }
                if let Err(error) = ended {
                    eprintln!("container {}: cannot stop it: {error}", container.id);
                }
            })
        })
        .collect();
    for task in stopping {
        let _ = task.await;
    }
    for container in idle {
        // What waits to be started is given up.
        drop(container.turn().await);
    }
}

/// Makes and starts a zone that the recipe names.
pub(crate) async fn start_boot_zone(engine: &Arc<Engine>, zone: &BootZone) -> Result<()> {
    let request = serde_json::to_string(zone).unwrap_or_default();
    let existing = engine.containers().await?.find(&zone.name).ok();
    let image = engine.store().await?.resolve(&zone.image)?.id.to_string();
    let container = match existing {
        Some(container) => {
            let record = container.record();
            if record.name == zone.name
                && record.config.labels.get(BOOT_LABEL) == Some(&request)
                && record.image == image
            {
                container
            } else if record.name == zone.name && record.config.labels.contains_key(BOOT_LABEL) {
                // The recipe has changed: what it made before goes.
                ending::remove(engine, &container, true, false).await?;
                make(engine, zone, &request).await?
            } else {
                // Somebody else's; the name decides, and says so.
                make(engine, zone, &request).await?
            }
        }
        None => make(engine, zone, &request).await?,
    };
    run::start(engine, &container).await.map(drop)
}

async fn make(engine: &Arc<Engine>, zone: &BootZone, request: &str) -> Result<Arc<Container>> {
    let mut bindings: BTreeMap<String, Vec<serde_json::Value>> = BTreeMap::new();
    for port in &zone.ports {
        let protocol = match port.protocol {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
        };
        let binding = json!({"HostPort": port.host.to_string()});
        bindings
            .entry(format!("{}/{protocol}", port.zone))
            .or_default()
            .push(binding);
    }
    let env: Vec<String> = zone
        .env
        .iter()
        .map(|(name, value)| format!("{name}={value}"))
        .collect();
    let command = Some(&zone.command).filter(|command| !command.is_empty());
    let body = json!({
        "Image": zone.image, "Cmd": command, "Env": env, "Labels": {BOOT_LABEL: request},
        "HostConfig": {
            "PortBindings": bindings, "Memory": zone.memory.unwrap_or(0), "NanoCpus": zone.nano_cpus.unwrap_or(0),
            "PidsLimit": zone.pids, "RestartPolicy": {"Name": "always"},
        },
    });
    create::make(engine, &zone.name, config::parse(body)?).await
}
