//! What is remembered of the pool's disks: who they are, so that one that is gone can still be named,
//! and what the scrubs have found. And the watch over them: a scrub every month, a word on the console
//! when a disk goes.

use std::collections::BTreeMap;
use std::sync::{Arc, Weak};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use store::disk::Changes;
use store::members::{Scrub, State};
use store::{StateDir, Store};

use super::{Change, state, work};
use crate::engine::Engine;
use crate::http::Result;

/// Kind of the objects, and their names.
const KIND: &str = "pool";
const SCRUBS: &str = "scrubs";
const DISKS: &str = "disks";
/// Seconds between two scrubs.
const EVERY: u64 = 30 * 24 * 3600;
/// Scrubs that are kept: two years of them.
const KEPT: usize = 24;
/// After a scrub that could not begin.
const AGAIN: Duration = Duration::from_secs(3600);

/// The scrubs of a pool, oldest first.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Scrubs {
    /// When the pool was first looked at, in seconds since 1970.
    since: u64,
    scrubs: Vec<Scrub>,
}

/// What the scrubs have found on one disk, together.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub(super) struct Found {
    read_errors: u64,
    damaged: u64,
    pub(super) repaired: u64,
    pub(super) lost: u64,
}

impl Scrubs {
    pub(super) fn last(&self) -> Option<&Scrub> {
        self.scrubs.last()
    }

    /// When the next one is to be, in seconds since 1970.
    pub(super) fn due(&self) -> u64 {
        let last = self.last().map(|scrub| scrub.started + scrub.seconds);
        last.unwrap_or(self.since).saturating_add(EVERY)
    }

    pub(super) fn of_disk(&self, id: u64) -> Found {
        let mut sum = Found::default();
        let disks = self.scrubs.iter().flat_map(|scrub| &scrub.disks);
        for disk in disks.filter(|disk| disk.id == id) {
            sum.read_errors = sum.read_errors.saturating_add(disk.read_errors);
            sum.damaged = sum.damaged.saturating_add(disk.damaged);
            sum.repaired = sum.repaired.saturating_add(disk.repaired);
            sum.lost = sum.lost.saturating_add(disk.lost);
        }
        sum
    }

    fn add(&mut self, scrub: Scrub) {
        self.scrubs.push(scrub);
        let surplus = self.scrubs.len().saturating_sub(KEPT);
        self.scrubs.drain(..surplus);
    }

    fn forget(&mut self, id: u64) {
        for scrub in &mut self.scrubs {
            scrub.disks.retain(|disk| disk.id != id);
        }
    }

    /// What the last scrub could not mend.
    fn warnings(&self) -> Vec<String> {
        let disks = self.last().into_iter().flat_map(|scrub| &scrub.disks);
        disks
            .filter_map(|disk| {
                let name = disk.name.as_deref().unwrap_or("that is gone");
                match (&disk.failure, disk.lost) {
                    (Some(failure), _) => Some(format!(
                        "The last scrub could not read disk {name} to its end: {failure}. Replace the disk (`monobloc pool replace`)."
                    )),
                    (None, 0) => None,
                    (None, lost) => Some(format!(
                        "The last scrub found {lost} blocks on disk {name} that are damaged on every disk; what they belonged to is lost."
                    )),
                }
            })
            .collect()
    }
}

fn now() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH);
    since.map_or(0, |since| since.as_secs())
}

fn objects(store: &Store) -> Result<StateDir> {
    Ok(store.objects(KIND)?)
}

/// A record that is damaged or not there is an empty one: it is of use, and nothing depends on it.
pub(super) fn read(store: &Store) -> Scrubs {
    let kept = objects(store).ok().and_then(|objects| objects.read(SCRUBS).ok());
    kept.unwrap_or_default()
}

pub(super) fn keep(store: &Store, scrub: Scrub) -> Result<()> {
    let mut scrubs = read(store);
    scrubs.add(scrub);
    Ok(objects(store)?.write(SCRUBS, &scrubs)?)
}

/// The disk of a number is another one now.
pub(super) fn forget(store: &Store, id: u64) -> Result<()> {
    let mut scrubs = read(store);
    scrubs.forget(id);
    Ok(objects(store)?.write(SCRUBS, &scrubs)?)
}

pub(super) fn warnings(store: &Store) -> Vec<String> {
    read(store).warnings()
}

/// Writes down who the disks are.
pub(super) fn remember(store: &Store) -> Result<()> {
    let state = state(store)?;
    let serials: BTreeMap<u64, &str> = state
        .members
        .iter()
        .map(|member| (member.id, member.serial.as_str()))
        .collect();
    Ok(objects(store)?.write(DISKS, &serials)?)
}

/// Gives the disks that are gone the serial numbers that they had.
pub(super) fn recall(store: &Store, state: &mut State) {
    let known = objects(store).ok().and_then(|objects| objects.read(DISKS).ok());
    let mut known: BTreeMap<u64, String> = known.unwrap_or_default();
    for member in &mut state.members {
        if member.serial.is_empty()
            && let Some(serial) = known.remove(&member.id)
        {
            member.serial = serial;
        }
    }
}

/// Looks after the pool of an engine as long as the supervisor lives.
pub(crate) fn watch_over(engine: Arc<Engine>, store: Arc<Store>) {
    tokio::task::spawn_blocking({
        let (engine, store) = (engine.clone(), store.clone());
        move || {
            if let Err(error) = begin(&engine, &store) {
                eprintln!("pool: {error}");
            }
        }
    });
    // A thread of its own: it waits as long as the supervisor lives, and the runtime need not wait for it.
    let watching = Arc::downgrade(&store);
    std::thread::spawn(move || {
        if let Err(error) = tell_of_changes(&watching) {
            eprintln!("pool: {error}");
        }
    });
    tokio::spawn(scrub_in_time(engine, store));
}

fn begin(engine: &Arc<Engine>, store: &Store) -> Result<()> {
    let scrubs = read(store);
    if scrubs.since == 0 {
        let since = now();
        objects(store)?.write(SCRUBS, &Scrubs { since, ..scrubs })?;
    }
    remember(store)?;
    let state = state(store)?;
    if state.in_memory() || state.settled() {
        return Ok(());
    }
    work::settle(engine, store)
}

/// Says on the console what is wrong, and what is wrong newly whenever a disk comes or goes.
fn tell_of_changes(store: &Weak<Store>) -> Result<()> {
    let changes = Changes::watch()?;
    let mut told = Vec::new();
    let mut known = names();
    loop {
        let Some(store) = store.upgrade() else {
            return Ok(());
        };
        let warnings = state(&store)?.warnings();
        drop(store);
        for warning in warnings.iter().filter(|warning| !told.contains(*warning)) {
            eprintln!("pool: WARNING: {warning}");
        }
        told = warnings;
        changes.wait(None)?;
        let now = names();
        for name in now.iter().filter(|name| !known.contains(*name)) {
            eprintln!("pool: the disk {name} has come; `monobloc disks` shows what it is");
        }
        known = now;
    }
}

/// Names of the machine's disks, without a look at what they bear.
fn names() -> Vec<String> {
    store::disk::names().unwrap_or_default()
}

async fn scrub_in_time(engine: Arc<Engine>, store: Arc<Store>) {
    loop {
        let reading = store.clone();
        let due = tokio::task::spawn_blocking(move || {
            let in_memory = state(&reading).is_ok_and(|state| state.in_memory());
            (read(&reading), in_memory)
        });
        let Ok((scrubs, in_memory)) = due.await else {
            return;
        };
        let since = if scrubs.since == 0 {
            now().saturating_add(EVERY)
        } else {
            scrubs.due()
        };
        match since.saturating_sub(now()) {
            0 if !in_memory => {}
            0 => {
                tokio::time::sleep(AGAIN).await;
                continue;
            }
            left => {
                // The clock may be set meanwhile.
                tokio::time::sleep(Duration::from_secs(left).min(AGAIN)).await;
                continue;
            }
        }
        let scrubbed = match work::start(&engine, store.clone(), Change::Scrub, Vec::new()) {
            Ok(running) => matches!(running.await, Ok(Ok(()))),
            Err(_) => false,
        };
        if !scrubbed {
            tokio::time::sleep(AGAIN).await;
        }
    }
}

#[cfg(test)]
mod tests {
    use store::members::ScrubbedDisk;

    use super::*;

    fn scrub(started: u64, repaired: u64, lost: u64) -> Scrub {
        let disk = ScrubbedDisk {
            id: 2,
            name: Some("vdb".to_owned()),
            bytes: 1 << 20,
            read_errors: 1,
            damaged: repaired + lost,
            repaired,
            lost,
            failure: None,
        };
        Scrub {
            started,
            seconds: 60,
            disks: vec![disk],
        }
    }

    #[test]
    fn a_scrub_is_due_a_month_after_the_last_or_after_the_pool_was_made() {
        let mut scrubs = Scrubs {
            since: 1000,
            scrubs: Vec::new(),
        };
        assert_eq!(scrubs.due(), 1000 + EVERY);
        scrubs.add(scrub(5000, 0, 0));
        assert_eq!(scrubs.due(), 5060 + EVERY);
    }

    #[test]
    fn what_was_found_is_counted_per_disk_until_the_disk_is_another() {
        let mut scrubs = Scrubs::default();
        scrubs.add(scrub(1, 3, 0));
        scrubs.add(scrub(2, 4, 1));
        let found = scrubs.of_disk(2);
        assert_eq!((found.repaired, found.lost, found.read_errors), (7, 1, 2));
        assert_eq!(scrubs.of_disk(1), Found::default());
        assert!(
            scrubs.warnings()[0].contains("1 blocks on disk vdb"),
            "{:?}",
            scrubs.warnings()
        );
        scrubs.forget(2);
        assert_eq!(scrubs.of_disk(2), Found::default());
        assert!(scrubs.warnings().is_empty());
    }

    #[test]
    fn no_more_scrubs_are_kept_than_for_two_years() {
        let mut scrubs = Scrubs::default();
        for at in 0..100 {
            scrubs.add(scrub(at, 0, 0));
        }
        assert_eq!(scrubs.scrubs.len(), KEPT);
        assert_eq!(scrubs.last().map(|scrub| scrub.started), Some(99));
    }
}
