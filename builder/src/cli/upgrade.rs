//! `monobloc upgrade-supervisor`.

use std::time::Duration;

use anyhow::{Context, bail};
use monobloc::client::Upgraded;
use monobloc::inspect::init_program;
use monobloc::progress;

use super::{UpgradeSupervisor, pick, text};

/// How long the whole of it may take, on a machine that is emulated and busy.
const LIMIT: Duration = Duration::from_secs(240);

pub(super) fn run(arguments: &UpgradeSupervisor) -> anyhow::Result<()> {
    let program = init_program(&arguments.file)?;
    let (machine, _) = pick::running(arguments.machine.as_deref())?;
    let name = machine.name();
    let record = machine.record();
    let record = record.with_context(|| format!("It is not known how {name} was started"))?;
    let progress = progress::for_stderr();
    let step = progress.step(&format!("replace the supervisor of {name}"));
    let upgraded = pick::api(&record)?.upgrade_supervisor(program, LIMIT)?;
    step.finish();
    match upgraded {
        Upgraded::Runs(build) => text::print(&format!(
            "The supervisor of {name} is {build} now, and its zones have gone on.\n\
             It stays until {name} boots: then the packed one runs again.\n"
        )),
        Upgraded::FellBack(reason) => {
            bail!("{reason} The packed supervisor runs again; the zones have gone on")
        }
    }
}
