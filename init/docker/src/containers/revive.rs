//! What becomes of the containers that no process is left of when a supervisor begins.
//!
//! After a boot that is all of them, and the restart policies decide what runs. A supervisor that
//! follows another on a running machine starts nothing that did not run; it only completes what its
//! predecessor was about: a start, a pause before a restart, a removal.

use std::sync::Arc;
use std::time::Duration;

use store::Store;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::container::{Container, Record, Status};
use super::ending::remove_ended;
use super::modes;
use super::run::{self, Failure, report};
use crate::engine::Engine;
use crate::http::{ApiError, blocking};

/// Docker's code for an end that nobody saw.
const UNSEEN: i32 = 255;
/// Docker's code for a start that failed.
const NOT_STARTED: i32 = 128;

const CUT_SHORT: &str = "The supervisor ended while it started the container; start it again.";

/// What is to be done about a container.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// It is what its record says.
    Keep,
    /// Its record has changed.
    Save,
    /// Its restart policy wants it to run.
    Start,
    /// It is in the pause before a restart, with so much of it left.
    StartAfter(Duration),
    /// The predecessor died while it started it, and its restart policy wants no other start.
    FailStart,
    Remove,
}

/// Corrects what is recorded of it, and says what else is to be done. `half_removed`: its root is gone.
pub(super) fn judge(container: &Container, successor: bool, half_removed: bool) -> Verdict {
    if half_removed {
        return Verdict::Remove;
    }
    let (verdict, code) = {
        let mut record = container.lock();
        (judge_record(&mut record, successor), record.exit_code)
    };
    // For those who ask for its end from now on.
    container.life.send_modify(|life| life.code = code);
    verdict
}

fn judge_record(record: &mut Record, successor: bool) -> Verdict {
    match (record.status, successor) {
        (Status::Removing | Status::Dead, _) if record.host.auto_remove => Verdict::Remove,
        // As with Docker: whoever asked for the removal is the one to ask again.
        (Status::Removing | Status::Dead, _) => {
            record.status = Status::Dead;
            Verdict::Keep
        }
        (Status::Restarting, _) => Verdict::StartAfter(rest_of_pause(record)),
        (Status::Running, true) => {
            record.exit_code = NOT_STARTED;
            if pause_of_counted(record).is_none() {
                record.status = Status::Exited;
                record.error = CUT_SHORT.to_owned();
                record.finished = zones::log::now();
                return Verdict::FailStart;
            }
            record.status = Status::Restarting;
            Verdict::StartAfter(Duration::ZERO)
        }
        (Status::Exited, true) if record.host.auto_remove => Verdict::Remove,
        (_, true) | (Status::Created, false) => Verdict::Keep,
        (status, false) => {
            let lost = status == Status::Running;
            if lost {
                record.status = Status::Exited;
                record.exit_code = UNSEEN;
                record.finished = zones::log::now();
            }
            if wanted_after_boot(record) {
                Verdict::Start
            } else if record.host.auto_remove {
                Verdict::Remove
            } else if lost {
                Verdict::Save
            } else {
                Verdict::Keep
            }
        }
    }
}

/// As Docker has it when its daemon starts: `always` also runs what was stopped by hand.
fn wanted_after_boot(record: &Record) -> bool {
    record.host.restart_policy.name == "always" || run::next_start(record).is_some()
}

/// The pause before a start that is counted already; none if the policy does not want it.
fn pause_of_counted(record: &Record) -> Option<Duration> {
    run::next_start(&Record {
        restarts: record.restarts.saturating_sub(1),
        ..record.clone()
    })
}

fn rest_of_pause(record: &Record) -> Duration {
    let pause = pause_of_counted(record).unwrap_or_default();
    let finished = OffsetDateTime::parse(&record.finished, &Rfc3339).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    let gone = OffsetDateTime::now_utc() - finished;
    // A clock that was set back does not make the pause longer.
    pause.saturating_sub(Duration::try_from(gone).unwrap_or_default())
}

/// Does it. What nobody waits for goes to the console.
pub(super) async fn carry_out(
    verdict: Verdict,
    engine: &Arc<Engine>,
    container: &Arc<Container>,
    store: &Arc<Store>,
) {
    match verdict {
        Verdict::Keep => {}
        Verdict::Save => {
            let (kept, owned) = (store.clone(), container.clone());
            let saved = blocking(move || owned.save(&kept)).await;
            report(&container.id, "write its state", saved);
            let mended = run::mend_log(container, store).await;
            report(&container.id, "put its log right", mended);
        }
        Verdict::Start => {
            let (engine, container) = (engine.clone(), container.clone());
            tokio::spawn(async move {
                after_those_it_joins(&engine, &container).await;
                let started = run::start(&engine, &container).await;
                report(&container.id, "start it after a boot", started.map(drop));
            });
        }
        Verdict::StartAfter(pause) => {
            tokio::spawn(run::start_again(engine.clone(), container.clone(), pause));
        }
        Verdict::FailStart => fail_start(engine, container, store).await,
        Verdict::Remove => {
            let _turn = container.turn().await;
            if container.process().is_none() {
                remove_ended(engine, container, store).await;
            }
        }
    }
}

/// Waits for the containers whose namespaces it joins, as far as they are to run again too.
async fn after_those_it_joins(engine: &Engine, container: &Container) {
    for id in modes::joined_ids(&container.record().host) {
        let Ok(donor) = engine.containers.find(&id) else {
            continue;
        };
        if donor.process().is_some() || !wanted_after_boot(&donor.record()) {
            continue;
        }
        let mut life = donor.life.subscribe();
        let _ = life
            .wait_for(|life| life.running || life.removed || life.exits > 0)
            .await;
    }
}

/// Settles a start that the predecessor's death cut short.
async fn fail_start(engine: &Arc<Engine>, container: &Arc<Container>, store: &Arc<Store>) {
    let _turn = container.turn().await;
    // Somebody may have started it meanwhile, and it may have ended.
    if container.process().is_none() && container.life.borrow().exits == 0 {
        let failure = Failure {
            api: ApiError::internal(CUT_SHORT),
            code: NOT_STARTED,
        };
        run::fail(engine, container, store, &failure).await;
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    /// A container with a restart policy, of which this is recorded.
    fn container(policy: &str, status: &str, code: i32, stopped: bool, restarts: u32) -> Arc<Container> {
        let (name, most) = policy.split_once(':').unwrap_or((policy, "0"));
        let most: i64 = most.parse().unwrap();
        let auto_remove = name == "remove";
        let now = zones::log::now();
        let record = json!({
            "id": "a", "name": "a", "created": now, "image": "sha256:0", "config": {},
            "host": {"AutoRemove": auto_remove, "RestartPolicy": {"Name": name, "MaximumRetryCount": most}},
            "mounts": [], "first_id": 1_000_000, "status": status, "started": now, "finished": now,
            "exit_code": code, "oom_killed": false, "error": "", "restarts": restarts, "stopped": stopped,
        });
        Container::new(serde_json::from_value(record).unwrap())
    }

    #[test]
    fn after_a_boot_the_policy_decides_what_runs() {
        use Verdict::{Keep, Remove, Save, Start};
        for (policy, status, code, stopped, verdict) in [
            ("always", "running", 0, false, Start),
            ("always", "exited", 0, true, Start),
            ("always", "created", 0, false, Keep),
            ("unless-stopped", "running", 0, false, Start),
            ("unless-stopped", "exited", 0, false, Start),
            ("unless-stopped", "exited", 137, true, Keep),
            ("on-failure", "running", 0, false, Start),
            ("on-failure", "exited", 0, false, Keep),
            ("on-failure", "exited", 137, true, Keep),
            ("no", "running", 0, false, Save),
            ("no", "exited", 3, false, Keep),
            ("remove", "running", 0, false, Remove),
            ("remove", "created", 0, false, Keep),
            ("always", "dead", 1, false, Keep),
            ("remove", "dead", 1, false, Remove),
        ] {
            let container = container(policy, status, code, stopped, 0);
            let told = judge(&container, false, false);
            assert_eq!(told, verdict, "{policy} {status} {code} {stopped}");
            assert_ne!(container.lock().status, Status::Running, "nothing runs yet");
        }
    }

    #[test]
    fn a_successor_completes_what_was_begun_and_starts_nothing_else() {
        use Verdict::{FailStart, Keep, Remove};
        for (policy, status, restarts, verdict) in [
            ("always", "exited", 0, Keep),
            ("always", "created", 0, Keep),
            ("no", "exited", 0, Keep),
            ("remove", "exited", 0, Remove),
            ("always", "dead", 0, Keep),
            ("always", "removing", 0, Keep),
            ("remove", "removing", 0, Remove),
            // Its start was cut short.
            ("no", "running", 0, FailStart),
            ("remove", "running", 0, FailStart),
            ("always", "running", 0, Verdict::StartAfter(Duration::ZERO)),
            // The restart that is counted already is the last.
            ("on-failure:2", "running", 2, Verdict::StartAfter(Duration::ZERO)),
        ] {
            let container = container(policy, status, 1, false, restarts);
            assert_eq!(judge(&container, true, false), verdict, "{policy} {status}");
        }
        assert_eq!(judge(&container("no", "exited", 0, false, 0), true, true), Remove);
    }

    #[test]
    fn a_pause_before_a_restart_goes_on_where_it_was() {
        for boot in [true, false] {
            let container = container("always", "restarting", 5, false, 4);
            let Verdict::StartAfter(rest) = judge(&container, !boot, false) else {
                panic!("it is not restarted");
            };
            // 100 ms doubled three times, less what has passed since.
            assert!(rest <= Duration::from_millis(800), "{rest:?}");
            assert!(rest > Duration::from_millis(100), "{rest:?}");
            assert_eq!(container.lock().exit_code, 5, "its last end is what it was");
        }
    }
}
