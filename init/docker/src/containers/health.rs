//! Health checks: a command that runs in a container again and again and says how it is.
//!
//! A check runs as long as its container's process does; a supervisor that takes a container over goes on
//! with what its predecessor has found, of which the memo tells ([`crate::memo`]): a result is of use only
//! as long as the process runs, so none is worth the wait for a disk. With the container's end the last
//! results become part of its record, which is written then anyway.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Healthcheck;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::container::Container;
use super::pause;
use crate::engine::Engine;
use crate::exec;

const INTERVAL: Duration = Duration::from_secs(30);
const TIMEOUT: Duration = Duration::from_secs(30);
/// Between checks while the container starts.
const START_INTERVAL: Duration = Duration::from_secs(5);
const RETRIES: i64 = 3;
/// How many results are kept, and how much of what each said.
const KEPT: usize = 5;
const MAX_OUTPUT: usize = 4096;

/// How a container is.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Health {
    pub(crate) status: HealthStatus,
    failing: u64,
    log: VecDeque<Value>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum HealthStatus {
    Starting,
    Healthy,
    Unhealthy,
}

impl HealthStatus {
    pub(crate) fn text(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

impl Health {
    /// At a start; the results of the life before are shown until there are others.
    fn begun(before: Option<Self>) -> Self {
        Self {
            status: HealthStatus::Starting,
            failing: 0,
            log: before.map(|before| before.log).unwrap_or_default(),
        }
    }

    pub(crate) fn show(&self) -> Value {
        json!({"Status": self.status.text(), "FailingStreak": self.failing, "Log": self.log})
    }

    /// Takes a result; true if the status has changed. Failures while it starts do not count.
    fn take(&mut self, code: i32, retries: u64, starts: bool, shown: Value) -> bool {
        let before = self.status;
        self.log.push_back(shown);
        while self.log.len() > KEPT {
            self.log.pop_front();
        }
        if code == 0 {
            self.failing = 0;
            self.status = HealthStatus::Healthy;
        } else if !(starts && self.status == HealthStatus::Starting) {
            self.failing += 1;
            if self.failing >= retries {
                self.status = HealthStatus::Unhealthy;
            }
        }
        self.status != before
    }
}

/// What is to be run, if anything.
fn command(check: &Healthcheck, shell: &[String]) -> Option<Vec<String>> {
    match check.test.split_first() {
        Some((kind, rest)) if kind == "CMD" && !rest.is_empty() => Some(rest.to_vec()),
        Some((kind, rest)) if kind == "CMD-SHELL" => {
            Some(shell.iter().cloned().chain([rest.join(" ")]).collect())
        }
        _ => None,
    }
}

fn or(nanoseconds: i64, default: Duration) -> Duration {
    u64::try_from(nanoseconds)
        .ok()
        .filter(|nanoseconds| *nanoseconds > 0)
        .map_or(default, Duration::from_nanos)
}

/// What the memo has of a container: when that life of it began, and what was found in it.
type Noted = (String, Health);

const BEGINNING: &str = "health ";

fn key(id: &str) -> String {
    format!("{BEGINNING}{id}")
}

/// The container has ended: as Docker has it, it is not well then.
pub(super) fn end(container: &Container) {
    let ended = container.change_health(|health| {
        health.status = HealthStatus::Unhealthy;
        true
    });
    if ended.is_some() {
        container.lock().health = container.health();
    }
}

/// The record is written.
pub(super) async fn forget(engine: &Engine, container: &Container) {
    let keeper = engine.zones.keeper();
    engine.memo.remove(keeper, &key(&container.id)).await;
}

/// Forgets what a predecessor has noted of containers that have ended since.
pub(super) async fn forget_ended(engine: &Engine) {
    for key in engine.memo.keys(BEGINNING) {
        let id = key.strip_prefix(BEGINNING).unwrap_or_default();
        let runs = engine
            .containers
            .find(id)
            .is_ok_and(|found| found.process().is_some());
        if !runs {
            engine.memo.remove(engine.zones.keeper(), &key).await;
        }
    }
}

/// Begins to check a container that has just started or was found running.
pub(super) fn watch(engine: &Arc<Engine>, container: &Arc<Container>) {
    let record = container.record();
    let check = record.config.healthcheck.unwrap_or_default();
    let shell = ["/bin/sh".to_owned(), "-c".to_owned()];
    let Some(command) = command(&check, &shell) else {
        container.set_health(None);
        return;
    };
    let noted = engine.memo.get::<Noted>(&key(&container.id));
    let found = match noted.filter(|(started, _)| *started == record.started) {
        Some((_, found)) => found,
        None => Health::begun(record.health),
    };
    container.set_health(Some(found));
    let (engine, container) = (engine.clone(), container.clone());
    tokio::spawn(async move {
        let mut life = container.life.subscribe();
        let exits = life.borrow_and_update().exits;
        tokio::select! {
            () = run(&engine, &container, &check, &command) => {}
            _ = life.wait_for(|life| life.exits > exits || life.removed) => {}
        }
    });
}

async fn run(engine: &Arc<Engine>, container: &Arc<Container>, check: &Healthcheck, command: &[String]) {
    let started = container.lock().started.clone();
    let begun = OffsetDateTime::parse(&started, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let start_period = or(check.start_period, Duration::ZERO);
    let retries = u64::try_from(if check.retries > 0 { check.retries } else { RETRIES }).unwrap_or(1);
    loop {
        let starting = || OffsetDateTime::now_utc() - begun < start_period;
        let is_new = container
            .health()
            .is_some_and(|health| health.status == HealthStatus::Starting);
        let pause = if starting() && is_new {
            or(check.start_interval, START_INTERVAL).min(or(check.interval, INTERVAL))
        } else {
            or(check.interval, INTERVAL)
        };
        tokio::time::sleep(pause).await;
        if pause::is_paused(engine, &container.id) {
            continue;
        }
        let start = zones::log::now();
        let (code, output) = probe(engine, container, command, or(check.timeout, TIMEOUT)).await;
        let shown = json!({"Start": start, "End": zones::log::now(), "ExitCode": code, "Output": output});
        let starts = starting();
        let changed = container.change_health(|health| health.take(code, retries, starts, shown));
        if let Some(health) = container.health() {
            let keeper = engine.zones.keeper();
            engine
                .memo
                .set(keeper, &key(&container.id), &(&started, health))
                .await;
        }
        if let Some(status) = changed {
            engine.tell(
                "container",
                &format!("health_status: {}", status.text()),
                container,
            );
        }
    }
}

/// Runs the command once; its exit code and what it said.
async fn probe(
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    command: &[String],
    limit: Duration,
) -> (i32, String) {
    match exec::probe(engine, container, command, limit, MAX_OUTPUT).await {
        Ok(Some((code, output))) => (code, output),
        Ok(None) => (-1, format!("Health check exceeded timeout ({limit:?})")),
        Err(error) => (-1, error.message),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_status_changes_after_so_many_failures_and_with_the_first_success() {
        let mut health = Health::begun(None);
        let take = |health: &mut Health, code, starts| health.take(code, 2, starts, json!({}));
        assert!(!take(&mut health, 1, true) && health.failing == 0);
        assert!(!take(&mut health, 1, false));
        assert!(take(&mut health, 1, false));
        assert_eq!(health.status, HealthStatus::Unhealthy);
        assert!(take(&mut health, 0, false));
        assert_eq!((health.status, health.failing), (HealthStatus::Healthy, 0));
        for _ in 0..9 {
            take(&mut health, 0, false);
        }
        assert_eq!(health.show()["Log"].as_array().unwrap().len(), KEPT);
    }

    #[test]
    fn commands_are_lists_or_lines_of_the_shell_or_none() {
        let of = |test: &[&str]| {
            let check = Healthcheck {
                test: test.iter().map(|word| (*word).to_owned()).collect(),
                ..Healthcheck::default()
            };
            command(&check, &["sh".to_owned(), "-c".to_owned()])
        };
        assert_eq!(of(&["CMD", "a", "b"]).unwrap(), ["a", "b"]);
        assert_eq!(of(&["CMD-SHELL", "a || b"]).unwrap(), ["sh", "-c", "a || b"]);
        assert_eq!((of(&["NONE"]), of(&[]), of(&["CMD"])), (None, None, None));
    }
}
