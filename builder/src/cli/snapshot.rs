//! `monobloc snapshot`.

use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand};
use monobloc::client::{Kind, Subject};
use monobloc::progress;
use serde_json::Value;

use super::pool::{api, ask};
use super::text;

/// How long the appliance may take: it may have to write much to its disks first, or stop containers.
const LIMIT: Duration = Duration::from_secs(600);

/// Keep what a zone or volume holds now, and bring it back
///
/// A snapshot takes the same moment however much it is of, and room only for what changes afterwards. Of
/// a zone that runs it is what a power cut at that moment would have left; with `--freeze` none of its
/// processes runs meanwhile. Snapshots go with their zone or volume when that is removed; clone or send
/// what is to stay. What they keep counts for its size limit. A zone's volumes are no part of it: name
/// each with `--volume`. Subvolumes that programs have made in a volume are not kept.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc snapshot create web@before-upgrade
  monobloc snapshot create --freeze web    named after the time
  monobloc snapshot create --volume data@monday
  monobloc snapshot list                   all of the machine
  monobloc snapshot list --json web
  monobloc snapshot rollback --restart web@before-upgrade
  monobloc snapshot clone web@before-upgrade web-old
                                           another zone: own ids and address, same configuration
  monobloc snapshot delete web@before-upgrade")]
pub(super) struct Snapshot {
    /// The machine's name, where several run
    #[arg(short, long, global = true)]
    machine: Option<String>,
    /// Volumes are named, not zones
    #[arg(short, long, global = true)]
    volume: bool,
    #[command(subcommand)]
    command: SnapshotCommand,
}

#[derive(Debug, Subcommand)]
enum SnapshotCommand {
    /// Make a snapshot of a zone or volume as it is now
    Create {
        /// Which, and what the snapshot is called; named after the time where that is left out
        #[arg(value_name = "ZONE[@SNAPSHOT]")]
        of: String,
        /// Have nothing that could change it run meanwhile
        #[arg(long)]
        freeze: bool,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Show the snapshots of one, or of all
    List {
        #[arg(value_name = "ZONE")]
        of: Option<String>,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Make a zone or volume what it was; what has changed since is lost
    Rollback {
        #[arg(value_name = "ZONE@SNAPSHOT")]
        of: String,
        /// Stop what runs with it, and start it again afterwards
        #[arg(long)]
        restart: bool,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Delete snapshots
    Delete {
        #[arg(required = true, value_name = "ZONE@SNAPSHOT")]
        of: Vec<String>,
    },
    /// Make another zone or volume: from a snapshot, or as it is now
    ///
    /// The new zone has the configuration of the other, and ids and an address of its own. It is not
    /// started. Volumes without a name are cloned with it as they are now, named ones are shared. What it
    /// has of the other does not count for its own size limit.
    Clone {
        #[arg(value_name = "ZONE[@SNAPSHOT]")]
        of: String,
        /// Its name
        new: String,
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
}

/// Takes `ZONE@SNAPSHOT` apart.
pub(super) fn parse(text: &str, kind: Kind) -> anyhow::Result<(Subject, Option<&str>)> {
    let (name, snapshot) = match text.split_once('@') {
        Some((name, snapshot)) => (name, Some(snapshot)),
        None => (text, None),
    };
    if name.is_empty() || snapshot == Some("") {
        bail!("`{text}` is no name; write it as `web`, or `web@before` with a snapshot's name");
    }
    let name = name.to_owned();
    Ok((Subject { kind, name }, snapshot))
}

fn with_snapshot(text: &str, kind: Kind) -> anyhow::Result<(Subject, &str)> {
    let (subject, snapshot) = parse(text, kind)?;
    let snapshot = snapshot.with_context(|| {
        format!("`{text}` names no snapshot; write it as `{text}@NAME` (`monobloc snapshot list`)")
    })?;
    Ok((subject, snapshot))
}

pub(super) fn kind(volume: bool) -> Kind {
    if volume { Kind::Volume } else { Kind::Zone }
}

/// `monobloc snapshot`
pub(super) fn snapshot(arguments: &Snapshot) -> anyhow::Result<()> {
    let kind = kind(arguments.volume);
    let (_, api) = api(arguments.machine.as_deref())?;
    let progress = progress::for_stderr();
    match &arguments.command {
        SnapshotCommand::Create { of, freeze, json } => {
            let (subject, name) = parse(of, kind)?;
            let step = progress.step(&format!("make a snapshot of {}", subject.name));
            let made = api.create_snapshot(&subject, name, *freeze, LIMIT)?;
            step.finish();
            if *json {
                return text::print_json(&made);
            }
            text::print(&created(&made))
        }
        SnapshotCommand::List { of, json } => {
            let subject = of.as_deref().map(|of| parse(of, kind)).transpose()?;
            let told = api.snapshots(subject.as_ref().map(|(subject, _)| subject), LIMIT)?;
            if *json {
                return text::print_json(&told);
            }
            text::print(&list(&told))
        }
        SnapshotCommand::Rollback { of, restart, yes } => {
            let (subject, name) = with_snapshot(of, kind)?;
            let question = format!(
                "What {} has changed since its snapshot {name} is lost for good.",
                subject.name
            );
            ask(&question, *yes)?;
            let step = progress.step(&format!("roll {} back to {name}", subject.name));
            api.roll_back(&subject, name, *restart, LIMIT)?;
            step.finish();
            Ok(())
        }
        SnapshotCommand::Delete { of } => {
            let named: anyhow::Result<Vec<_>> = of.iter().map(|of| with_snapshot(of, kind)).collect();
            for (subject, name) in named? {
                let step = progress.step(&format!("delete {}@{name}", subject.name));
                api.delete_snapshot(&subject, name, LIMIT)?;
                step.finish();
            }
            Ok(())
        }
        SnapshotCommand::Clone { of, new, json } => {
            let (subject, name) = parse(of, kind)?;
            let step = progress.step(&format!("make {new} of {of}"));
            let made = api.clone_subject(&subject, name, new, LIMIT)?;
            step.finish();
            if *json {
                return text::print_json(&made);
            }
            text::print(&match kind {
                Kind::Zone => format!("{new} is there; start it with `docker start {new}`.\n"),
                Kind::Volume => format!("{new} is there.\n"),
            })
        }
    }
}

fn word<'a>(value: &'a Value, key: &str) -> &'a str {
    value.get(key).and_then(Value::as_str).unwrap_or_default()
}

fn created(made: &Value) -> String {
    let mut text = format!("{}@{}\n", word(made, "of"), word(made, "name"));
    let without = made.get("not_included").and_then(Value::as_array);
    for volume in without.into_iter().flatten() {
        text.push_str(&format!(
            "Not in it: volume {} at {}; `monobloc snapshot create --volume` keeps that.\n",
            word(volume, "volume"),
            word(volume, "at")
        ));
    }
    text
}

fn list(told: &Value) -> String {
    let snapshots = told.as_array().map(Vec::as_slice).unwrap_or_default();
    if snapshots.is_empty() {
        return "There are no snapshots.\n".to_owned();
    }
    let name = |snapshot: &Value| format!("{}@{}", word(snapshot, "of"), word(snapshot, "name"));
    let width = snapshots.iter().map(|snapshot| name(snapshot).len()).max();
    snapshots.iter().fold(String::new(), |text, snapshot| {
        let width = width.unwrap_or_default();
        format!(
            "{text}{:6}  {:width$}  {}\n",
            word(snapshot, "kind"),
            name(snapshot),
            word(snapshot, "created")
        )
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_snapshot_is_named_with_what_it_is_of() {
        let (subject, name) = parse("web@before", Kind::Zone).unwrap();
        assert_eq!((subject.name.as_str(), name), ("web", Some("before")));
        assert_eq!(parse("data", Kind::Volume).unwrap().1, None);
        for bad in ["", "@x", "web@"] {
            assert!(parse(bad, Kind::Zone).is_err(), "{bad}");
        }
        assert!(with_snapshot("web", Kind::Zone).is_err());
    }

    #[test]
    fn what_is_not_in_a_snapshot_is_told() {
        let made =
            json!({"of": "db", "name": "monday", "not_included": [{"volume": "data", "at": "/var/lib"}]});
        let told = created(&made);
        assert!(
            told.starts_with("db@monday\n") && told.contains("volume data at /var/lib"),
            "{told}"
        );
        let told = list(&json!([
            {"kind": "zone", "of": "web", "name": "before", "created": "2026-01-02T03:04:05Z"},
            {"kind": "volume", "of": "d", "name": "x", "created": "2026-01-02T03:04:06Z"},
        ]));
        assert_eq!(
            told,
            "zone    web@before  2026-01-02T03:04:05Z\nvolume  d@x         2026-01-02T03:04:06Z\n"
        );
    }
}
