//! `monobloc doctor`.

use std::env;
use std::path::Path;

use anyhow::bail;
use monobloc::host::{self, Finding, dirs};
use monobloc::qemu::acceleration;

use super::{Doctor, text};

/// Room that the builder and a machine's disk want, with some to spare.
const ROOM: u64 = 3 << 30;
/// The quick start's memory, and the compiler's.
const MEMORY: u64 = 2 << 30;
/// The only thing that `up` does not install: without it there would be no `up`.
const CARGO: &str = "cargo";

pub(super) fn run(arguments: &Doctor) -> anyhow::Result<()> {
    let findings = findings();
    if arguments.json {
        text::print_json(&findings)?;
    } else {
        text::print(&tell(&findings))?;
    }
    let missing: Vec<&str> = findings
        .iter()
        .filter(|finding| !finding.there && !finding.optional)
        .map(|finding| finding.name.as_str())
        .collect();
    if missing.is_empty() {
        return Ok(());
    }
    if missing == [CARGO] {
        bail!("This machine lacks cargo; install it as https://rustup.rs says, then run this again");
    }
    bail!(
        "This machine lacks {}; what comes from Debian's packages is installed by `{}`",
        missing.join(", "),
        text::again("up")
    )
}

fn findings() -> Vec<Finding> {
    let mut findings = vec![host::QEMU.finding(false)];
    findings.extend(host::PACKAGE_TOOLS.iter().map(|need| need.finding(false)));
    findings.push(cargo());
    findings.push(memory());
    findings.push(room());
    findings.push(acceleration());
    findings.push(host::FIRMWARE.finding(true));
    findings.push(docker());
    findings
}

fn finding(name: &str, there: bool, optional: bool, note: impl Into<String>) -> Finding {
    Finding {
        name: name.to_owned(),
        there,
        optional,
        note: note.into(),
    }
}

fn cargo() -> Finding {
    let there = env::var_os("CARGO").is_some() || host::program("cargo").is_some();
    let note = if there {
        "builds the appliance's /init"
    } else {
        "builds the appliance's /init; see https://rustup.rs"
    };
    finding(CARGO, there, false, note)
}

fn docker() -> Finding {
    match host::program("docker") {
        Some(path) => finding("docker", true, true, format!("the client ({})", path.display())),
        None => finding(
            "docker",
            false,
            true,
            "the client; apt-get install docker-cli (before Debian 13: docker.io)",
        ),
    }
}

fn acceleration() -> Finding {
    match acceleration::obstacle() {
        None => finding(
            "KVM",
            true,
            true,
            "/dev/kvm opens; whether it works is tried at the first `up`",
        ),
        Some(obstacle) => finding(
            "KVM",
            false,
            true,
            format!("{obstacle}; machines are emulated, which is slower"),
        ),
    }
}

fn memory() -> Finding {
    let text = std::fs::read_to_string("/proc/meminfo").unwrap_or_default();
    let available = text.lines().find_map(|line| {
        let number = line.strip_prefix("MemAvailable:")?.trim().strip_suffix("kB")?;
        number.trim().parse::<u64>().ok()
    });
    let available = available.unwrap_or_default() << 10;
    let note = format!(
        "{} available, {} wanted",
        text::size(available),
        text::size(MEMORY)
    );
    finding("memory", available >= MEMORY, true, note)
}

fn room() -> Finding {
    let Ok(cache) = dirs::cache() else {
        return finding(
            "room",
            false,
            false,
            "no folder to keep things in; set HOME or XDG_CACHE_HOME",
        );
    };
    // The cache itself may not be there yet.
    let free = cache
        .ancestors()
        .find_map(|folder| free_bytes(folder).ok())
        .unwrap_or_default();
    let note = format!(
        "{} free under {}, {} wanted",
        text::size(free),
        cache.display(),
        text::size(ROOM)
    );
    finding("room", free >= ROOM, true, note)
}

fn free_bytes(folder: &Path) -> std::io::Result<u64> {
    let stats = rustix::fs::statvfs(folder)?;
    Ok(stats.f_bavail.saturating_mul(stats.f_frsize))
}

fn tell(findings: &[Finding]) -> String {
    let mark = |finding: &Finding| match (finding.there, finding.optional) {
        (true, _) => text::green("ok"),
        (false, true) => "--".to_owned(),
        (false, false) => text::red("NO"),
    };
    let width = findings
        .iter()
        .map(|finding| finding.name.len())
        .max()
        .unwrap_or_default();
    let lines = findings
        .iter()
        .map(|finding| format!("{}  {:width$}  {}\n", mark(finding), finding.name, finding.note));
    lines.collect()
}
