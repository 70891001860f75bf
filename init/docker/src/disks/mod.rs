//! `/monobloc/v1/disks` and `/monobloc/v1/pool`: the machine's disks, the pool on them, and what is
//! done to it while zones run.
//!
//! One change at a time. It goes on when its client has gone; who comes later sees in `GET pool` how
//! far it is.

mod encryption;
mod history;
mod metrics;
mod work;

use std::sync::Arc;

use hyper::StatusCode;
use serde::Deserialize;
use serde_json::{Value, json};
use store::disk::{Content, Disk};
use store::members::{Member, State};
use store::{Members, Store};

use self::encryption::Encryption;
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, ok};

pub(crate) use encryption::unlock;
pub(crate) use history::watch_over;
pub(crate) use metrics::metrics;
pub(crate) use work::Work;

/// The word for a disk of the pool that is not there.
const MISSING: &str = "missing";
const ENCRYPTED: &str = "an encrypted disk of a pool, which is closed";

/// What is to be done to the pool.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Change {
    Create(Vec<String>, Option<Encryption>),
    Add(Vec<String>),
    Remove(String),
    Replace { old: String, new: String },
    Scrub,
}

/// The body of a change.
#[derive(Debug, Default, Deserialize)]
#[serde(deny_unknown_fields, default)]
struct Order {
    /// Disks by serial number or name: those that are taken in, or the one that is removed.
    disks: Vec<String>,
    /// The disk of the pool that is replaced; the missing one where it is not said.
    old: Option<String>,
    /// What the disks bear may be lost.
    erase: bool,
    /// How a pool that is created is encrypted, if it is.
    encryption: Option<Encryption>,
}

/// `GET /monobloc/v1/disks`
pub(crate) async fn list(engine: &Arc<Engine>) -> Result<Response> {
    let store = engine.store_now();
    let disks = blocking(move || -> Result<Vec<Value>> {
        let state = store.and_then(|store| state(&store).ok());
        let disks = store::disk::list()?;
        Ok(disks.iter().map(|disk| told(disk, state.as_ref())).collect())
    });
    ok(&disks.await?)
}

/// A disk with what it bears and whether it can be had.
fn told(disk: &Disk, state: Option<&State>) -> Value {
    let member = state.and_then(|state| member_of(state, disk));
    let (content, description) = match (&disk.content, member) {
        (_, Some(member)) => ("in use", format!("disk {} of this machine's pool", member.id)),
        (Content::Blank, None) => ("blank", "nothing".to_owned()),
        (Content::Pool(pool), None) => ("pool", format!("disk {} of the pool {}", pool.device, pool.uuid)),
        (Content::Encrypted, None) => ("pool", ENCRYPTED.to_owned()),
        (Content::Foreign(what), None) => ("foreign", what.clone()),
    };
    json!({
        "name": disk.name, "path": disk.path, "serial": disk.serial, "model": disk.model,
        "size": disk.size, "bus": disk.bus, "removable": disk.removable, "read_only": disk.read_only,
        "boot_medium": disk.boot, "content": content, "description": description,
        "user": disk.user.as_ref().filter(|_| member.is_none()),
    })
}

fn member_of<'a>(state: &'a State, disk: &Disk) -> Option<&'a Member> {
    let here = |member: &&Member| !member.missing && member.name.as_deref() == Some(&disk.name);
    state.members.iter().find(here)
}

fn state(store: &Store) -> Result<State> {
    let mut state = Members::open(store.path())?.state()?;
    history::recall(store, &mut state);
    Ok(state)
}

/// What `docker info` should say of the disks.
pub(crate) async fn warnings(engine: &Arc<Engine>) -> Vec<String> {
    let Some(store) = engine.store_now() else {
        return Vec::new();
    };
    let warnings = blocking(move || -> Result<Vec<String>> {
        let mut warnings = state(&store)?.warnings();
        warnings.extend(history::warnings(&store));
        Ok(warnings)
    });
    let warnings = warnings.await.unwrap_or_default();
    warnings
        .into_iter()
        .map(|warning| format!("WARNING: {warning}"))
        .collect()
}

/// `GET /monobloc/v1/pool`
pub(crate) async fn pool(engine: &Arc<Engine>) -> Result<Response> {
    let store = engine.store().await?;
    let work = engine.pool_work.now();
    let told = blocking(move || -> Result<Value> {
        let state = state(&store)?;
        let usage = store.usage()?;
        let mut warnings = state.warnings();
        warnings.extend(history::warnings(&store));
        let scrubs = history::read(&store);
        let disks: Vec<Value> = state
            .members
            .iter()
            .map(|member| {
                json!({
                    "id": member.id, "name": member.name, "serial": member.serial,
                    "missing": member.missing, "encrypted": member.encrypted, "size": member.size, "used": member.used,
                    "errors": member.errors, "scrubs": scrubs.of_disk(member.id),
                })
            })
            .collect();
        Ok(json!({
            "uuid": state.uuid, "place": if state.in_memory() { "memory" } else { "disks" },
            "profile": state.promise(), "data": state.data, "metadata": state.metadata,
            "total": usage.total, "free": usage.free, "disks": disks, "warnings": warnings,
            "work": work, "last_scrub": scrubs.last(), "next_scrub": scrubs.due(),
        }))
    });
    ok(&told.await?)
}

/// `POST /monobloc/v1/pool/create|add|remove|replace|scrub`: refused at once, or done while the answer
/// tells how far it is, a JSON document a line; the last has `done` or `error`.
pub(crate) async fn change(engine: Arc<Engine>, verb: &str, mut req: Request) -> Result<Response> {
    let order: Order = req.json().await?;
    let erase = order.erase;
    let change = order.into_change(verb)?;
    let store = engine.store().await?;
    change.can_be_encrypted(&engine).await?;
    let (disks, change) = {
        let store = store.clone();
        blocking(move || -> Result<_> {
            let all = store::disk::list()?;
            let state = state(&store)?;
            change.check(&all, &state, erase)?;
            Ok((all, change))
        })
        .await?
    };
    work::begin(&engine, store, change, disks)
}

impl Order {
    fn into_change(self, verb: &str) -> Result<Change> {
        let one = |mut disks: Vec<String>| match (disks.pop(), disks.is_empty()) {
            (Some(disk), true) => Ok(disk),
            _ => Err(ApiError::bad_request("Name one disk in `disks`.")),
        };
        let some = |disks: Vec<String>| {
            if disks.is_empty() {
                return Err(ApiError::bad_request(
                    "Name a disk in `disks`, by its serial number or name.",
                ));
            }
            Ok(disks)
        };
        if self.old.is_some() && verb != "replace" {
            return Err(ApiError::bad_request("Only `replace` has an `old` disk."));
        }
        if self.encryption.is_some() && verb != "create" {
            return Err(ApiError::bad_request(
                "Only `create` has an `encryption`; a disk that joins an encrypted pool is encrypted as that is.",
            ));
        }
        match verb {
            "create" => Ok(Change::Create(some(self.disks)?, self.encryption)),
            "add" => some(self.disks).map(Change::Add),
            "remove" => one(self.disks).map(Change::Remove),
            "replace" => Ok(Change::Replace {
                old: self.old.unwrap_or_else(|| MISSING.to_owned()),
                new: one(self.disks)?,
            }),
            "scrub" if self.disks.is_empty() => Ok(Change::Scrub),
            "scrub" => Err(ApiError::bad_request("A scrub is always of all disks.")),
            _ => Err(ApiError::not_found(format!(
                "A pool cannot `{verb}`; it can create, add, remove, replace and scrub."
            ))),
        }
    }
}

impl Change {
    /// Refuses what the present state does not allow.
    fn check(&self, all: &[Disk], state: &State, erase: bool) -> Result<()> {
        let new = match self {
            Self::Create(..) if !state.in_memory() => {
                return Err(ApiError::conflict(
                    "The pool is on disks already; `add` takes another one in.",
                ));
            }
            Self::Add(_) if state.in_memory() => {
                return Err(ApiError::conflict(
                    "The pool is in memory; `create` moves it to a disk.",
                ));
            }
            Self::Create(disks, _) | Self::Add(disks) => disks.as_slice(),
            Self::Replace { old, new } => {
                find_member(state, old)?;
                std::slice::from_ref(new)
            }
            Self::Remove(disk) => {
                find_member(state, disk)?;
                &[]
            }
            Self::Scrub => &[],
        };
        let mut taken: Vec<&str> = Vec::new();
        for name in new {
            let disk = find_disk(all, name)?;
            if taken.contains(&disk.name.as_str()) {
                return Err(ApiError::bad_request(format!(
                    "Disk {} is named twice.",
                    disk.name
                )));
            }
            taken.push(&disk.name);
            may_be_taken(disk, member_of(state, disk), erase)?;
        }
        Ok(())
    }
}

fn may_be_taken(disk: &Disk, member: Option<&Member>, erase: bool) -> Result<()> {
    let name = &disk.name;
    if member.is_some() {
        return Err(ApiError::conflict(format!(
            "Disk {name} is a part of the pool already."
        )));
    }
    if disk.boot {
        return Err(ApiError::conflict(format!(
            "Disk {name} is what this machine was started from."
        )));
    }
    if disk.read_only {
        return Err(ApiError::conflict(format!("Disk {name} cannot be written to.")));
    }
    if let Some(user) = &disk.user {
        return Err(ApiError::conflict(format!("Disk {name} is in use: {user}.")));
    }
    let bears = match &disk.content {
        Content::Blank => return Ok(()),
        Content::Foreign(what) => what.clone(),
        Content::Encrypted => ENCRYPTED.to_owned(),
        Content::Pool(pool) => format!("disk {} of the pool {}", pool.device, pool.uuid),
    };
    if erase {
        return Ok(());
    }
    Err(ApiError::new(
        StatusCode::CONFLICT,
        format!("Disk {name} bears {bears}. It is taken only if `erase` says that this may be lost."),
    ))
}

/// The disk of a serial number, else of a name or path.
fn find_disk<'a>(all: &'a [Disk], name: &str) -> Result<&'a Disk> {
    let by_serial: Vec<&Disk> = all
        .iter()
        .filter(|disk| !name.is_empty() && disk.serial == name)
        .collect();
    match by_serial.as_slice() {
        [disk] => return Ok(disk),
        [] => {}
        _ => {
            return Err(ApiError::bad_request(format!(
                "Several disks have the serial number {name}; give the name of one."
            )));
        }
    }
    all.iter()
        .find(|disk| disk.name == name || disk.path.to_str() == Some(name))
        .ok_or_else(|| ApiError::not_found(format!("There is no disk {name}.")))
}

/// The disk of the pool of a serial number, a name or a number in the pool, or the one that is missing.
fn find_member<'a>(state: &'a State, name: &str) -> Result<&'a Member> {
    let is = |member: &&Member| match name {
        MISSING => member.missing,
        name => {
            member.serial == name
                || member
                    .name
                    .as_deref()
                    .is_some_and(|own| own == name || format!("/dev/{own}") == name)
                || member.id.to_string() == name
        }
    };
    let found: Vec<&Member> = state.members.iter().filter(is).collect();
    match found.as_slice() {
        [member] => Ok(member),
        [] if name == MISSING => Err(ApiError::conflict(
            "No disk of the pool is missing; say which one is to be replaced.",
        )),
        [] => Err(ApiError::not_found(format!("The pool has no disk {name}."))),
        _ => Err(ApiError::bad_request(format!(
            "Several disks of the pool are meant by `{name}`; give the number of one in the pool."
        ))),
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn disk(name: &str, serial: &str, content: Content) -> Disk {
        Disk {
            path: Path::new("/dev").join(name),
            name: name.to_owned(),
            size: 10 << 30,
            model: String::new(),
            serial: serial.to_owned(),
            bus: "virtio".to_owned(),
            read_only: false,
            removable: false,
            boot: false,
            mapping: None,
            user: None,
            content,
        }
    }

    fn member(id: u64, name: Option<&str>, serial: &str) -> Member {
        Member {
            id,
            name: name.map(str::to_owned),
            serial: serial.to_owned(),
            missing: name.is_none(),
            encrypted: false,
            size: 10 << 30,
            used: 0,
            errors: store::members::Errors::default(),
        }
    }

    fn state(members: Vec<Member>) -> State {
        State {
            uuid: "u".to_owned(),
            members,
            data: vec!["raid1".to_owned()],
            metadata: vec!["raid1".to_owned()],
            survives: 1,
        }
    }

    fn checked(verb: &str, body: Value, erase: bool) -> Result<(), String> {
        let all = [
            disk("vda", "a", Content::Foreign("data in use".to_owned())),
            disk("vdb", "b", Content::Blank),
            disk("vdc", "c", Content::Foreign("an ext4 filesystem".to_owned())),
            disk("vdd", "twin", Content::Blank),
            disk("vde", "twin", Content::Blank),
            Disk {
                boot: true,
                ..disk("vdf", "f", Content::Blank)
            },
        ];
        let order: Order = serde_json::from_value(body).map_err(|error| error.to_string())?;
        let change = order.into_change(verb).map_err(|error| error.message)?;
        let state = state(vec![member(1, Some("vda"), "a"), member(2, None, "gone")]);
        change.check(&all, &state, erase).map_err(|error| error.message)
    }

    #[test]
    fn a_disk_is_meant_by_its_serial_number_or_an_unambiguous_name() {
        for good in ["b", "vdb", "/dev/vdb", "vdd"] {
            assert_eq!(checked("add", json!({"disks": [good]}), false), Ok(()), "{good}");
        }
        for (bad, words) in [
            ("twin", "Several disks"),
            ("vdz", "no disk vdz"),
            ("", "no disk"),
            ("a", "part of the pool already"),
            ("vdf", "started from"),
        ] {
            let refusal = checked("add", json!({"disks": [bad]}), true).unwrap_err();
            assert!(refusal.contains(words), "{bad}: {refusal}");
        }
        assert!(checked("add", json!({"disks": ["b", "vdb"]}), false).is_err());
    }

    #[test]
    fn what_bears_something_is_taken_only_if_it_is_said_that_it_may_be_lost() {
        let order = || json!({"disks": ["c"]});
        let refusal = checked("add", order(), false).unwrap_err();
        assert!(
            refusal.contains("an ext4 filesystem") && refusal.contains("erase"),
            "{refusal}"
        );
        assert_eq!(checked("add", order(), true), Ok(()));
    }

    #[test]
    fn the_missing_disk_is_the_one_that_is_replaced_unless_another_is_named() {
        for old in [
            json!(null),
            json!("gone"),
            json!("2"),
            json!("missing"),
            json!("a"),
            json!("vda"),
        ] {
            assert_eq!(
                checked("replace", json!({"disks": ["b"], "old": old}), false),
                Ok(()),
                "{old}"
            );
        }
        assert!(checked("replace", json!({"disks": ["b"], "old": "vdb"}), false).is_err());
        assert_eq!(checked("remove", json!({"disks": ["missing"]}), false), Ok(()));
        let whole = state(vec![member(1, Some("vda"), "a")]);
        assert!(find_member(&whole, MISSING).is_err());
    }

    #[test]
    fn an_order_that_says_too_little_or_too_much_is_refused() {
        for (verb, body) in [
            ("add", json!({})),
            ("create", json!({"disks": ["b"]})),
            ("remove", json!({"disks": ["a", "b"]})),
            ("scrub", json!({"disks": ["a"]})),
            ("add", json!({"disks": ["b"], "old": "a"})),
            ("add", json!({"disks": ["b"], "force": true})),
            ("dance", json!({})),
        ] {
            assert!(checked(verb, body.clone(), true).is_err(), "{verb} {body}");
        }
        assert_eq!(checked("scrub", json!({}), false), Ok(()));
    }
}
