//! `monobloc status`.

use std::fs;
use std::os::unix::fs::MetadataExt as _;
use std::path::PathBuf;
use std::time::Duration;

use handover::Protocol;
use monobloc::host::dirs;
use monobloc::machine::{Machine, Record};
use monobloc::progress::spell;
use monobloc::qemu::Forward;
use serde::Serialize;
use serde_json::Value;

use super::{Status, pick, text};

/// How long the API may take; who asks how things are does not want to wait for long.
const LIMIT: Duration = Duration::from_secs(5);

#[derive(Debug, Serialize)]
struct Report {
    name: String,
    state: &'static str,
    context: String,
    pid: Option<i32>,
    /// Seconds since it was started, if it runs.
    uptime: Option<u64>,
    api: Option<ApiReport>,
    /// What it was started as, when it was last.
    started: Option<Record>,
    disk: Option<Disk>,
    console: PathBuf,
}

#[derive(Debug, Serialize)]
struct ApiReport {
    address: String,
    answers: bool,
    /// Why it does not.
    #[serde(skip_serializing_if = "Option::is_none")]
    trouble: Option<String>,
    /// What the appliance says of itself.
    #[serde(skip_serializing_if = "Option::is_none")]
    appliance: Option<Value>,
}

#[derive(Debug, Serialize)]
struct Disk {
    path: PathBuf,
    size: u64,
    /// Bytes that it takes on this machine.
    used: u64,
}

pub(super) fn run(arguments: &Status) -> anyhow::Result<()> {
    let machines = match &arguments.machine {
        Some(name) => vec![pick::machine(Some(name))?],
        None => Machine::all(&dirs::state()?)?,
    };
    let reports: Vec<Report> = machines.iter().map(report).collect();
    if arguments.json {
        return text::print_json(&reports);
    }
    if reports.is_empty() {
        return text::print(&format!(
            "There is no machine; start one with `{}`.\n",
            text::again("up")
        ));
    }
    let told: Vec<String> = reports.iter().map(tell).collect();
    text::print(&told.join("\n"))
}

fn report(machine: &Machine) -> Report {
    let record = machine.record();
    let process = machine.process();
    let running = process.is_some();
    Report {
        name: machine.name().to_owned(),
        state: if running { "running" } else { "stopped" },
        context: pick::context(machine.name()),
        pid: process.as_ref().map(|process| process.pid()),
        uptime: record
            .as_ref()
            .filter(|_| running)
            .map(|record| record.age().as_secs()),
        api: record.as_ref().filter(|_| running).map(ask),
        started: record,
        disk: disk(machine),
        console: machine.log(),
    }
}

fn ask(record: &Record) -> ApiReport {
    let asked = pick::api(record).and_then(|api| {
        api.ping(LIMIT)?;
        Ok(api)
    });
    let (trouble, appliance) = match asked {
        Ok(api) => (None, api.status(LIMIT).ok()),
        Err(error) => (Some(error.to_string()), None),
    };
    ApiReport {
        address: format!("tcp://127.0.0.1:{}", record.api_port),
        answers: trouble.is_none(),
        trouble,
        appliance,
    }
}

fn disk(machine: &Machine) -> Option<Disk> {
    /// The unit of `st_blocks` (stat(2)).
    const BLOCK: u64 = 512;
    let path = machine.disk();
    let data = fs::metadata(&path).ok()?;
    Some(Disk {
        path,
        size: data.len(),
        used: data.blocks() * BLOCK,
    })
}

fn tell(report: &Report) -> String {
    let mut rows = Vec::new();
    if let Some(api) = &report.api {
        let state = match &api.trouble {
            None => format!("answers; docker --context {}", report.context),
            Some(trouble) => text::red(trouble),
        };
        rows.push(("API", format!("{}  {state}", api.address)));
    }
    rows.extend(report.api.as_ref().and_then(supervisor));
    if let Some(record) = &report.started {
        let running = report.uptime.is_some();
        rows.extend(
            record
                .forwards
                .iter()
                .filter(|_| running)
                .map(|forward| ("port", port(forward))),
        );
        rows.push((
            "machine",
            format!(
                "{} memory, {}, {}",
                text::size(record.memory),
                text::count(record.cpus, "CPU"),
                record.acceleration
            ),
        ));
        rows.push(("recipe", record.recipe.display().to_string()));
    }
    if let Some(disk) = &report.disk {
        let (used, size) = (text::size(disk.used), text::size(disk.size));
        rows.push(("disk", format!("{}, {used} of {size}", disk.path.display())));
    }
    rows.push(("console", report.console.display().to_string()));
    let state = match report.uptime {
        Some(uptime) => text::green(&format!("running for {}", spell(Duration::from_secs(uptime)))),
        None => format!("stopped; `{}` starts it", text::again("up")),
    };
    format!("{}  {state}\n{}", text::bold(&report.name), text::table(rows))
}

/// A supervisor that is not the packed one, or why it is not.
fn supervisor(api: &ApiReport) -> Option<(&'static str, String)> {
    let told = api.appliance.as_ref()?.get("supervisor")?;
    let field = |name: &str| told.get(name).and_then(Value::as_str);
    let build = field("build").map(|build| format!("{build}, until the next boot"));
    let fell_back = field("fell_back").map(text::red);
    build.or(fell_back).map(|text| ("supervisor", text))
}

/// A forwarded port, for people.
pub(super) fn port(forward: &Forward) -> String {
    let protocol = match forward.protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    };
    format!(
        "127.0.0.1:{} leads to {protocol} port {} of the machine",
        forward.host, forward.guest
    )
}
