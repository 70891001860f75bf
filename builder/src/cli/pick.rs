//! Which recipe or machine is meant.

use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use monobloc::client::Api;
use monobloc::host::dirs;
use monobloc::image::BuildOptions;
use monobloc::machine::{Machine, Process, Record};

use super::text::again;

/// The recipe whose machine needs no name: its docker context is just `monobloc`.
const FIRST: &str = "quickstart";

/// A recipe's file: the path as it is, or `images/NAME.toml` of the project for a mere name.
pub(super) fn recipe(argument: &Path) -> anyhow::Result<PathBuf> {
    let is_name = argument.components().count() == 1 && argument.extension().is_none();
    if argument.exists() || !is_name {
        return absolute(argument);
    }
    let images = BuildOptions::from_environment()?.workspace.join("images");
    let path = images.join(argument).with_extension("toml");
    if path.is_file() {
        return Ok(path);
    }
    bail!(
        "There is no recipe {} in {}; give the path of a recipe's file, or one of these names: {}",
        argument.display(),
        images.display(),
        names(&images).join(", ")
    )
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("Cannot tell where {} is", path.display()))
}

fn names(images: &Path) -> Vec<String> {
    let entries = images.read_dir().into_iter().flatten().flatten();
    let mut names: Vec<String> = entries
        .map(|entry| entry.path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "toml"))
        .filter_map(|path| Some(path.file_stem()?.to_str()?.to_owned()))
        .collect();
    names.sort();
    names
}

/// The docker context of a machine.
pub(super) fn context(machine: &str) -> String {
    if machine == FIRST {
        "monobloc".to_owned()
    } else {
        format!("monobloc-{machine}")
    }
}

/// The machine of a name, or the one that must be meant without one: the only one that runs, or the
/// only one there is.
pub(super) fn machine(name: Option<&str>) -> anyhow::Result<Machine> {
    let all = Machine::all(&dirs::state()?)?;
    let list = |machines: &[&Machine]| {
        let names: Vec<&str> = machines.iter().map(|machine| machine.name()).collect();
        names.join(", ")
    };
    let all: Vec<&Machine> = all.iter().collect();
    if all.is_empty() {
        bail!("There is no machine yet; start one with `{}`", again("up"));
    }
    if let Some(name) = name {
        let found = all.iter().find(|machine| machine.name() == name);
        return found
            .map(|machine| (*machine).clone())
            .with_context(|| format!("There is no machine {name}; there is {}", list(&all)));
    }
    let running: Vec<&Machine> = all
        .iter()
        .copied()
        .filter(|machine| machine.process().is_some())
        .collect();
    match (running.as_slice(), all.as_slice()) {
        ([one], _) | ([], [one]) => Ok((*one).clone()),
        ([], many) => bail!("No machine runs; name one of {}", list(many)),
        (many, _) => bail!("Several machines run; name one of {}", list(many)),
    }
}

/// A machine that must run.
pub(super) fn running(name: Option<&str>) -> anyhow::Result<(Machine, Process)> {
    let machine = machine(name)?;
    let process = machine.process().with_context(|| {
        format!(
            "The machine {} does not run; start it with `{}`",
            machine.name(),
            again("up")
        )
    })?;
    Ok((machine, process))
}

/// The API of a machine that was started as `record` says.
pub(super) fn api(record: &Record) -> anyhow::Result<Api> {
    let certificates = site_dir()?.join("client");
    Ok(Api::new(record.api_port, &certificates)?)
}

pub(super) fn site_dir() -> anyhow::Result<PathBuf> {
    Ok(dirs::data()?.join("site"))
}
