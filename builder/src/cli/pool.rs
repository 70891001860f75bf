//! `monobloc disks` and `monobloc pool`.

use std::io::{self, BufRead as _, IsTerminal as _, Write as _};
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::{Args, Subcommand, ValueEnum};
use monobloc::client::{Api, Disk, Encryption, Order, Stage};
use monobloc::progress::{self, Step};
use serde::Deserialize as _;
use serde_json::Value;

use super::{passphrase, pick, text};

/// How long the appliance may take for an answer, or to begin.
const LIMIT: Duration = Duration::from_secs(60);

/// Show a machine's disks: model, serial number, size, and what is on them
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc disks
  monobloc disks --json | jq -r '.[] | select(.content == \"blank\") | .serial'")]
pub(super) struct Disks {
    /// The machine's name, where several run
    #[arg(short, long)]
    machine: Option<String>,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Show and change the disks that a machine keeps everything on
///
/// How often each block is kept follows from the number of disks: on one everything is lost with it,
/// two or more survive the loss of one. All of it is done while the containers run. A disk is named by
/// its serial number or its name (`monobloc disks`); one that bears anything is taken only with
/// `--erase` and a confirmation.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc pool status             what it lies on, and what it promises
  monobloc pool create S3ZNB0      move a pool that is in memory to a disk
  monobloc pool create S3ZNB0 --encrypt passphrase
                                   which nobody can read without the passphrase
  monobloc pool unlock             give a machine that has started its passphrase
  monobloc pool add vdb            take another disk in
  monobloc pool add vdb --erase    although it bears something, which will be lost
  monobloc pool replace S3ZNB1     put a disk in the place of the one that is missing
  monobloc pool replace vdc --old vdb
                                   or of one that is still there
  monobloc pool remove vdc         move everything off a disk and let it go
  monobloc pool scrub              read everything, repair what is damaged")]
pub(super) struct Pool {
    /// The machine's name, where several run
    #[arg(short, long, global = true)]
    machine: Option<String>,
    #[command(subcommand)]
    command: PoolCommand,
}

#[derive(Debug, Subcommand)]
enum PoolCommand {
    /// Show the pool's disks, what they promise, and what is wrong
    Status {
        /// As JSON, for programs
        #[arg(long)]
        json: bool,
    },
    /// Move a pool that is in memory to disks, with all that is in it
    Create {
        #[arg(required = true, value_name = "DISK")]
        disks: Vec<String>,
        /// Encrypt the disks; the key is with whoever knows the passphrase, in the bundle that the
        /// machine is started with, or in its TPM
        #[arg(long, value_name = "KEY")]
        encrypt: Option<KeyPlace>,
        /// Read the passphrase from a file's first line (`-`: standard input) instead of asking
        #[arg(long, value_name = "FILE", requires = "encrypt")]
        passphrase_file: Option<PathBuf>,
        #[command(flatten)]
        consent: Consent,
    },
    /// Give a machine the passphrase of its encrypted pool, for which it waits when it has started
    Unlock {
        /// Read the passphrase from a file's first line (`-`: standard input) instead of asking
        #[arg(long, value_name = "FILE")]
        passphrase_file: Option<PathBuf>,
    },
    /// Take disks into the pool; they are encrypted if it is
    Add {
        #[arg(required = true, value_name = "DISK")]
        disks: Vec<String>,
        #[command(flatten)]
        consent: Consent,
    },
    /// Move everything off a disk and let it go; `missing` for one that is gone
    Remove {
        disk: String,
        /// Do not ask
        #[arg(short, long)]
        yes: bool,
    },
    /// Put a disk in the place of one of the pool's
    Replace {
        /// The disk that comes
        #[arg(value_name = "DISK")]
        new: String,
        /// The disk that goes; without it, the one that is missing
        #[arg(long, value_name = "DISK")]
        old: Option<String>,
        #[command(flatten)]
        consent: Consent,
    },
    /// Read everything on every disk, and repair what is damaged; done every month by itself
    Scrub,
}

/// Where the key of an encrypted pool is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum KeyPlace {
    Passphrase,
    Bundle,
    Tpm,
}

#[derive(Debug, Clone, Copy, Args)]
struct Consent {
    /// Take the disk although it bears something, which is lost then
    #[arg(long)]
    erase: bool,
    /// Do not ask
    #[arg(short, long)]
    yes: bool,
}

/// `monobloc disks`
pub(super) fn disks(arguments: &Disks) -> anyhow::Result<()> {
    let (_, api) = api(arguments.machine.as_deref())?;
    let told = api.disks(LIMIT)?;
    if arguments.json {
        return text::print_json(&told);
    }
    let disks = known(&told)?;
    if disks.is_empty() {
        return text::print("The machine has no disk.\n");
    }
    text::print(&list(&disks))
}

/// `monobloc pool`
pub(super) fn pool(arguments: &Pool) -> anyhow::Result<()> {
    let (name, api) = api(arguments.machine.as_deref())?;
    let order = match &arguments.command {
        PoolCommand::Status { json } => {
            let told = api.pool(LIMIT)?;
            return if *json {
                text::print_json(&told)
            } else {
                text::print(&status(&told))
            };
        }
        PoolCommand::Unlock { passphrase_file } => {
            let passphrase = passphrase::read(passphrase_file.as_deref(), false)?;
            api.unlock_pool(&passphrase, LIMIT)?;
            return text::print(&format!("The pool of {name} is open.\n"));
        }
        PoolCommand::Create {
            disks,
            encrypt,
            passphrase_file,
            ..
        } => Order {
            encryption: encryption(*encrypt, passphrase_file.as_deref())?,
            ..order("create", disks, None)
        },
        PoolCommand::Add { disks, .. } => order("add", disks, None),
        PoolCommand::Remove { disk, .. } => order("remove", std::slice::from_ref(disk), None),
        PoolCommand::Replace { new, old, .. } => order("replace", std::slice::from_ref(new), old.clone()),
        PoolCommand::Scrub => order("scrub", &[], None),
    };
    let order = confirmed(&api, order, &arguments.command, &name)?;
    let recovery = order.encryption.as_ref().and_then(Encryption::recovery_key);
    let progress = progress::for_stderr();
    let step = progress.step(&format!("{} of the pool of {name}", order.verb));
    api.change_pool(&order, LIMIT, &mut stages(&*step))?;
    step.finish();
    if let Some(key) = recovery {
        text::print(&format!(
            "Recovery key: {key}\n  Keep it where the machine is not: it opens the pool where the TPM does not, for instance\n  after a change of Secure Boot. The machine asks for it then.\n\n"
        ))?;
    }
    text::print(&status(&api.pool(LIMIT)?))
}

fn encryption(place: Option<KeyPlace>, file: Option<&std::path::Path>) -> anyhow::Result<Option<Encryption>> {
    Ok(match place {
        None => None,
        Some(KeyPlace::Passphrase) => Some(Encryption::Passphrase(passphrase::read(file, true)?)),
        Some(_) if file.is_some() => bail!("Only `--encrypt passphrase` has a passphrase"),
        Some(KeyPlace::Bundle) => Some(Encryption::Bundle),
        Some(KeyPlace::Tpm) => Some(Encryption::tpm()?),
    })
}

/// Tells on a step how far the appliance is.
pub(super) fn stages(step: &dyn Step) -> impl FnMut(&Stage) {
    let mut shown = (String::new(), 0);
    move |stage| {
        if stage.phase != shown.0 {
            step.message(&stage.phase);
            shown = (stage.phase.clone(), 0);
        }
        if stage.total > 0 {
            step.set_length(stage.total);
            step.inc(stage.done.saturating_sub(shown.1));
            shown.1 = stage.done.max(shown.1);
        }
    }
}

fn order(verb: &'static str, disks: &[String], old: Option<String>) -> Order {
    Order {
        verb,
        disks: disks.to_vec(),
        old,
        ..Order::default()
    }
}

pub(super) fn api(machine: Option<&str>) -> anyhow::Result<(String, Api)> {
    let (machine, _) = pick::running(machine)?;
    let name = machine.name().to_owned();
    let record = machine.record();
    let record = record.with_context(|| format!("It is not known how {name} was started"))?;
    Ok((name, pick::api(&record)?))
}

fn known(told: &Value) -> anyhow::Result<Vec<Disk>> {
    Vec::deserialize(told).context("The appliance tells of its disks in words of another version")
}

/// The order with leave to erase, where its disks bear something and the person says so.
fn confirmed(api: &Api, order: Order, command: &PoolCommand, machine: &str) -> anyhow::Result<Order> {
    let Consent { erase, yes } = match command {
        PoolCommand::Create { consent, .. }
        | PoolCommand::Add { consent, .. }
        | PoolCommand::Replace { consent, .. } => *consent,
        PoolCommand::Remove { yes, .. } => {
            let question = format!(
                "Disk {} leaves the pool of {machine}; what lies on it is moved to the others.",
                order.disks.join(", ")
            );
            ask(&question, *yes)?;
            return Ok(order);
        }
        PoolCommand::Status { .. } | PoolCommand::Unlock { .. } | PoolCommand::Scrub => return Ok(order),
    };
    let disks = known(&api.disks(LIMIT)?)?;
    let mut lost = Vec::new();
    for name in &order.disks {
        lost.extend(meant(&disks, name)?.filter(|disk| disk.content != "blank"));
    }
    if lost.is_empty() {
        return Ok(order);
    }
    let summary = format!(
        "This will be lost for good:\n{}",
        lost.iter()
            .map(|disk| format!("  {}\n", loss(disk)))
            .collect::<String>()
    );
    if !erase {
        bail!("{summary}Say `--erase` if that is meant");
    }
    ask(summary.trim_end(), yes)?;
    Ok(Order { erase, ..order })
}

/// The disk of a serial number, else of a name; the appliance tells what is wrong with another.
fn meant<'a>(disks: &'a [Disk], name: &str) -> anyhow::Result<Option<&'a Disk>> {
    let by_serial: Vec<&Disk> = disks.iter().filter(|disk| disk.serial == name).collect();
    let by_name = || {
        disks
            .iter()
            .find(|disk| disk.name == name || format!("/dev/{}", disk.name) == name)
    };
    match by_serial.as_slice() {
        [] => Ok(by_name()),
        [disk] => Ok(Some(disk)),
        _ => bail!("Several disks have the serial number {name}; give the name of one"),
    }
}

fn loss(disk: &Disk) -> String {
    format!("{}: {}", identity(disk), disk.description)
}

fn identity(disk: &Disk) -> String {
    let serial = match disk.serial.as_str() {
        "" => String::new(),
        serial => format!(", serial number {serial}"),
    };
    format!("disk {} ({}{serial})", disk.name, text::size(disk.size))
}

/// Waits for a yes, which `--yes` says beforehand.
pub(super) fn ask(question: &str, yes: bool) -> anyhow::Result<()> {
    if yes {
        return Ok(());
    }
    if !io::stdin().is_terminal() {
        bail!("{question}\nNobody is there to confirm that; say `--yes` if it is meant");
    }
    eprint!("{question}\nGo on? Type yes: ");
    io::stderr().flush().context("Cannot write to the terminal")?;
    let mut answer = String::new();
    io::stdin()
        .lock()
        .read_line(&mut answer)
        .context("Cannot read from the terminal")?;
    if answer.trim() != "yes" {
        bail!("Nothing was done");
    }
    Ok(())
}

pub(super) fn list(disks: &[Disk]) -> String {
    let mut text = String::new();
    for disk in disks {
        let about: Vec<&str> = [disk.model.as_str(), disk.bus.as_str()]
            .into_iter()
            .filter(|word| !word.is_empty())
            .collect();
        let serial = if disk.serial.is_empty() {
            "none"
        } else {
            &disk.serial
        };
        let rows = [
            ("serial number", serial.to_owned()),
            ("size", text::size(disk.size)),
            ("kind", about.join(", ")),
            ("bears", disk.description.clone()),
        ];
        text.push_str(&format!("{}\n{}", text::bold(&disk.name), text::table(rows)));
    }
    text
}

pub(super) fn status(pool: &Value) -> String {
    let number = |value: &Value, key: &str| value.get(key).and_then(Value::as_u64).unwrap_or(0);
    let word = |value: &Value, key: &str| {
        let text = value.get(key).and_then(Value::as_str);
        text.unwrap_or_default().to_owned()
    };
    let used = number(pool, "total").saturating_sub(number(pool, "free"));
    let mut rows = vec![
        ("promise", word(pool, "profile")),
        (
            "used",
            format!("{} of {}", text::size(used), text::size(number(pool, "total"))),
        ),
    ];
    for disk in pool.get("disks").and_then(Value::as_array).into_iter().flatten() {
        rows.push(("disk", member(disk)));
    }
    if let Some(work) = pool.get("work").filter(|work| !work.is_null()) {
        let (done, total) = (number(work, "done"), number(work, "total"));
        let part = (done * 100)
            .checked_div(total)
            .map_or_else(String::new, |part| format!(", {part} %"));
        rows.push((
            "being done",
            format!("{}: {}{part}", word(work, "verb"), word(work, "phase")),
        ));
    }
    let mut text = format!("pool\n{}", text::table(rows));
    for warning in pool
        .get("warnings")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
    {
        text.push_str(&text::red(&format!("  {}", warning.as_str().unwrap_or_default())));
        text.push('\n');
    }
    text
}

fn member(disk: &Value) -> String {
    let get = |pointer: &str| disk.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
    let words = |pointer: &str| disk.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
    let mut text = match words("/name") {
        "" => format!("number {}", get("/id")),
        name => name.to_owned(),
    };
    if !words("/serial").is_empty() {
        text.push_str(&format!(" (serial number {})", words("/serial")));
    }
    text.push_str(&format!(", {}", text::size(get("/size"))));
    if disk.get("encrypted").and_then(Value::as_bool) == Some(true) {
        text.push_str(", encrypted");
    }
    if disk.get("missing").and_then(Value::as_bool) == Some(true) {
        text.push_str(&format!(", {}", text::red("missing")));
    }
    for (pointer, what) in [
        ("/errors/read", "read errors"),
        ("/errors/write", "write errors"),
        ("/errors/damaged", "damaged blocks"),
        ("/scrubs/repaired", "blocks repaired by scrubs"),
        ("/scrubs/lost", "blocks lost"),
    ] {
        if get(pointer) > 0 {
            text.push_str(&format!(", {} {what}", get(pointer)));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_disk_is_shown_with_all_by_which_it_is_known() {
        let disk = Disk {
            name: "vdb".to_owned(),
            serial: "S3".to_owned(),
            model: "Fast".to_owned(),
            size: 10 << 30,
            bus: "NVMe".to_owned(),
            content: "foreign".to_owned(),
            description: "an ext4 filesystem called `data`".to_owned(),
        };
        assert_eq!(
            loss(&disk),
            "disk vdb (10.0 GiB, serial number S3): an ext4 filesystem called `data`"
        );
        let list = list(&[disk]);
        for part in ["S3", "10.0 GiB", "Fast, NVMe", "an ext4 filesystem called `data`"] {
            assert!(list.contains(part), "{list}");
        }
    }

    #[test]
    fn the_pool_is_told_with_what_is_wrong_and_what_is_done() {
        let told = status(&json!({
            "profile": "survives the loss of one disk", "total": 10_u64 << 30, "free": 9_u64 << 30,
            "disks": [
                {"id": 1, "name": "vda", "serial": "S3", "size": 10_u64 << 30, "missing": false, "encrypted": true,
                 "errors": {"read": 3}, "scrubs": {"repaired": 7}},
                {"id": 2, "name": null, "serial": "", "size": 10_u64 << 30, "missing": true},
            ],
            "work": {"verb": "replace", "phase": "copying to the new disk", "done": 250, "total": 1000},
            "warnings": ["The pool's disk number 2 is missing."],
        }));
        for part in [
            "survives the loss of one disk",
            "1.0 GiB of 10.0 GiB",
            "vda (serial number S3), 10.0 GiB, encrypted, 3 read errors, 7 blocks repaired by scrubs",
            "number 2, 10.0 GiB, missing",
            "replace: copying to the new disk, 25 %",
            "The pool's disk number 2 is missing.",
        ] {
            assert!(told.contains(part), "{part} is not in {told}");
        }
    }

    #[test]
    fn nothing_is_erased_where_nobody_can_be_asked() {
        // The tests' standard input is no terminal.
        if !io::stdin().is_terminal() {
            assert!(ask("All is lost.", false).is_err());
        }
        assert!(ask("All is lost.", true).is_ok());
    }
}
