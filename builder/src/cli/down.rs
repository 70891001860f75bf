//! `monobloc down`.

use monobloc::client::context;
use monobloc::host::dirs;
use monobloc::machine::{Down as Ended, Machine, Process};
use monobloc::progress::{self, Progress};

use super::{Down, pick, text};

pub(super) fn run(arguments: &Down) -> anyhow::Result<()> {
    if arguments.machine.is_none() && Machine::all(&dirs::state()?)?.is_empty() {
        return text::print("There is no machine.\n");
    }
    let machine = pick::machine(arguments.machine.as_deref())?;
    let name = machine.name();
    let lock = machine.lock(&mut || eprintln!("Waiting for another command on {name} to finish ..."))?;
    let told = match machine.process() {
        None => format!("The machine {name} does not run.\n"),
        Some(process) => power_off(&machine, &process, progress::for_stderr().as_ref())?,
    };
    text::print(&told)?;
    if arguments.delete {
        context::remove(&pick::context(name))?;
        machine.delete()?;
        text::print(&format!("The machine {name} is deleted with its disk.\n"))?;
    }
    drop(lock);
    Ok(())
}

fn power_off(machine: &Machine, process: &Process, progress: &dyn Progress) -> anyhow::Result<String> {
    let name = machine.name();
    // Without a record or certificates nobody can be asked, only the plug be pulled.
    let api = machine.record().and_then(|record| pick::api(&record).ok());
    let step = progress.step(&format!("power off {name}"));
    let down = machine.take_down(process, api.as_ref())?;
    step.finish();
    Ok(match down {
        Ended::PoweredOff if machine.disk().exists() => format!(
            "The machine {name} is off; its disk is kept for the next `{}`.\n",
            text::again("up")
        ),
        Ended::PoweredOff => format!("The machine {name} is off.\n"),
        Ended::Quit | Ended::Killed => format!(
            "The machine {name} did not power itself off, so its plug was pulled; what its containers wrote last may be \
             lost.\n"
        ),
    })
}
