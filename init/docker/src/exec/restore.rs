//! What a supervisor's death leaves of added processes: the memo tells what they were and how those have
//! ended that were settled ([`crate::memo`]), process 1 has the others. Their clients are gone.

use std::sync::{Arc, Mutex};
use std::time::Instant;

use serde::{Deserialize, Serialize};
use zones::{Process, Stdio};

use super::{Exec, Phase, Slot, Wanted, bury};
use crate::containers::Container;
use crate::engine::Engine;
use crate::streams::Streams;

/// What is noted of one.
#[derive(Serialize, Deserialize)]
struct Noted {
    container: String,
    wanted: Wanted,
    /// Its exit code, if it has ended.
    code: Option<i32>,
}

const BEGINNING: &str = "exec ";

pub(super) fn key(id: &str) -> String {
    format!("{BEGINNING}{id}")
}

/// Notes what a successor is to say of it, while it can be asked for.
pub(super) async fn note(engine: &Engine, exec: &Exec, code: Option<i32>) {
    if exec.own {
        return;
    }
    let noted = Noted {
        container: exec.container.id.clone(),
        wanted: exec.wanted.clone(),
        code,
    };
    engine
        .memo
        .set(engine.zones.keeper(), &key(&exec.id), &noted)
        .await;
}

/// Takes over a process that process 1 has.
/// One that nobody can ask for is given back.
pub(crate) fn adopt(
    engine: &Arc<Engine>,
    process: Process,
    stdio: Option<Stdio>,
) -> Result<(), (Process, Option<Stdio>)> {
    let Some((exec, code)) = noted_by_key(engine, &process.key) else {
        return Err((process, stdio));
    };
    if code.is_some() {
        // Settled; only process 1 does not know it yet.
        return Err((process, stdio));
    }
    let key = process.key.clone();
    let ends = stdio.map(|stdio| exec.streams.open(stdio, &engine.zones, &key));
    *exec.phase() = Phase::Running(Arc::new(process));
    engine.execs.add(exec.clone());
    let engine = engine.clone();
    tokio::spawn(async move {
        if !exec.wanted.tty {
            // Its client has gone, and with it what there was to say.
            exec.streams.close_input().await;
        }
        let pumping = {
            let exec = exec.clone();
            tokio::spawn(async move {
                if let Some(Ok(ends)) = ends {
                    exec.streams.pump(ends).await;
                }
            })
        };
        bury(engine, exec, key, pumping).await;
    });
    Ok(())
}

/// Those that no process is left of: not started yet, or ended. What belongs to no container is forgotten.
pub(crate) async fn adopt_rest(engine: &Arc<Engine>) {
    for key in engine.memo.keys(BEGINNING) {
        let id = key.strip_prefix(BEGINNING).unwrap_or_default();
        if engine.execs.find(id).is_ok() {
            continue;
        }
        match noted(engine, id) {
            Some((exec, code)) => {
                if let Some(code) = code {
                    let at = Instant::now();
                    *exec.phase() = Phase::Ended { code, at };
                    exec.streams.close_for_good();
                }
                engine.execs.add(exec);
            }
            None => engine.memo.remove(engine.zones.keeper(), &key).await,
        }
    }
}

/// By the key of its process: the container's id and its own.
fn noted_by_key(engine: &Engine, key: &str) -> Option<(Arc<Exec>, Option<i32>)> {
    let (_, id) = key.split_once('.')?;
    noted(engine, id)
}

fn noted(engine: &Engine, id: &str) -> Option<(Arc<Exec>, Option<i32>)> {
    let noted: Noted = engine.memo.get(&key(id))?;
    let container: Arc<Container> = engine.containers.find(&noted.container).ok()?;
    let exec = Exec {
        id: id.to_owned(),
        container,
        wanted: noted.wanted,
        own: false,
        phase: Mutex::new(Phase::Created),
        ready: Slot::default(),
        streams: Streams::default(),
    };
    Some((Arc::new(exec), noted.code))
}
