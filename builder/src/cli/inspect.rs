//! `monobloc inspect`.

use handover::PoolPolicy;
use monobloc::inspect::{self, Inspection};
use monobloc::manifest::Inputs;
use monobloc::oci;

use super::{Inspect, text};

/// Digits of a digest that are shown; all of them are in the JSON.
const DIGITS: usize = 16;

pub(super) fn run(arguments: &Inspect) -> anyhow::Result<()> {
    let inspection = inspect::inspect(&arguments.file)?;
    if arguments.json {
        return text::print_json(&inspection);
    }
    text::print(&tell(&inspection))
}

fn tell(image: &Inspection) -> String {
    let unknown = || "unknown".to_owned();
    let file = |file: &monobloc::manifest::File| {
        format!("{}, sha256 {}", text::size(file.size), short(&file.sha256))
    };
    let kind = match image.kind {
        "uki" => "one file for UEFI firmware",
        _ => "kernel and initramfs for direct boot",
    };
    let is_static = if image.init.is_static {
        "static"
    } else {
        "NOT static"
    };
    let mut told = format!("{}  {kind}\n", text::bold(&image.boot.name));
    told += &text::table([
        (
            "kernel",
            format!(
                "Linux {}, {}",
                image.release.clone().unwrap_or_else(unknown),
                file(&image.kernel)
            ),
        ),
        ("command line", image.command_line.clone().unwrap_or_else(unknown)),
        (
            "initramfs",
            format!(
                "{}; {} unpacked",
                file(&image.initrd),
                text::size(image.initrd_unpacked)
            ),
        ),
        ("init", format!("{}, {is_static}", file(&image.init.file))),
        ("pool", pool(image.boot.pool).to_owned()),
        (
            "modules",
            format!(
                "{} in the image, {} loaded at boot",
                image.modules.modules.len(),
                image.boot.load_modules.len()
            ),
        ),
        ("built by", format!("monobloc {}", image.boot.version)),
    ]);
    told += &images(image);
    told += &zones(image);
    if let Some(inputs) = &image.inputs {
        told += &packages(inputs);
    }
    let names: Vec<&str> = image.modules.modules.keys().map(String::as_str).collect();
    told += &section("modules", [names.join(" ")]);
    told
}

fn pool(policy: PoolPolicy) -> &'static str {
    match policy {
        PoolPolicy::Existing => "on a disk that is a pool already, else in memory",
        PoolPolicy::ClaimBlank => "on a disk that is a pool already or blank, else in memory",
        PoolPolicy::Memory => "in memory",
    }
}

fn images(image: &Inspection) -> String {
    let rows = image.boot.images.iter().map(|preloaded| {
        let size = image.images.get(&preloaded.file).copied().unwrap_or_default();
        format!(
            "{}  {}, {}",
            preloaded.reference,
            text::size(size),
            short(&preloaded.id)
        )
    });
    section("container images", rows)
}

fn zones(image: &Inspection) -> String {
    let rows = image.boot.zones.iter().map(|zone| {
        let ports: Vec<String> = zone
            .ports
            .iter()
            .map(|port| format!("{}:{}", port.host, port.zone))
            .collect();
        let ports = if ports.is_empty() {
            String::new()
        } else {
            format!(", ports {}", ports.join(" "))
        };
        format!("{}  from {}{ports}", zone.name, zone.image)
    });
    section("zones that start at boot", rows)
}

fn packages(inputs: &Inputs) -> String {
    let own = [Some(&inputs.kernel.package), inputs.stub.as_ref()];
    let of_images = inputs.images.iter().flat_map(|image| match &image.inputs {
        oci::Inputs::Packages(packages) => packages.as_slice(),
        _ => &[],
    });
    let rows = own.into_iter().flatten().chain(of_images).map(|package| {
        format!(
            "{} {} {}  {}",
            package.name,
            package.version,
            package.architecture,
            text::dim(short(&package.sha256))
        )
    });
    section("Debian packages", rows)
}

fn section(title: &str, rows: impl IntoIterator<Item = String>) -> String {
    let rows: String = rows
        .into_iter()
        .filter(|row| !row.is_empty())
        .map(|row| format!("  {row}\n"))
        .collect();
    if rows.is_empty() {
        return String::new();
    }
    format!("\n{}\n{rows}", text::bold(title))
}

fn short(digest: &str) -> &str {
    let digits = digest.strip_prefix("sha256:").unwrap_or(digest);
    digits.get(..DIGITS).unwrap_or(digits)
}
