//! `monobloc up`: from a recipe to a machine in which a container has run.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use monobloc::client::context::{self, Registered};
use monobloc::client::{Api, greeting};
use monobloc::host::{self, dirs};
use monobloc::image::{self, BuildOptions, BuiltImage};
use monobloc::machine::{Machine, NotReady, Process, Record, Start};
use monobloc::progress::{self, Progress, spell};
use monobloc::qemu::acceleration::{self, Verdict};
use monobloc::recipe::Recipe;
use monobloc::site::Site;

use super::text::again;
use super::{Up, pick, status, text};

/// How long the API of a machine that runs may take before its console is looked at.
const LIMIT: Duration = Duration::from_secs(5);

/// Ports of a machine behind which a browser finds something.
const WEB_PORTS: [u16; 2] = [80, 8080];

/// A machine that is up.
struct UpAndReady {
    machine: Machine,
    record: Record,
    api: Api,
    /// What was found out about this machine's acceleration; none if the machine ran already.
    verdict: Option<Verdict>,
}

pub(super) fn run(arguments: &Up) -> anyhow::Result<()> {
    let began = Instant::now();
    let path = pick::recipe(&arguments.recipe)?;
    let recipe = Recipe::load(&path)?;
    ensure!(
        recipe.output.efi || !arguments.efi,
        "The recipe {} makes no .efi file to boot; take `efi = false` out of it, or boot without --efi",
        path.display()
    );
    let progress = progress::for_stderr();
    provide(arguments, progress.as_ref())?;
    let options = BuildOptions::from_environment()?;
    let image = image::build(&recipe, &options, progress.as_ref())?;
    let site = Site::open_or_create(&pick::site_dir()?)?;

    let machine = Machine::named(&dirs::state()?, recipe.name.as_str());
    let start = |acceleration| Start {
        recipe: &recipe,
        path: &path,
        image: &image,
        site: &site,
        acceleration,
        efi: arguments.efi,
        more_disks: &[],
    };
    let up = bring_up(machine, start, progress.as_ref())?;
    let greeting = match &up.verdict {
        Some(_) => greet(&recipe, &up.api, progress.as_ref())?,
        None => None,
    };
    let context = register(&up, &site, progress.as_ref());
    tell(&recipe, &image, &up, greeting, context, began.elapsed())
}

fn provide(arguments: &Up, progress: &dyn Progress) -> anyhow::Result<()> {
    let mut needs = vec![host::QEMU];
    needs.extend(host::PACKAGE_TOOLS);
    if arguments.efi {
        needs.push(host::FIRMWARE);
    }
    Ok(host::provide(&needs, progress)?)
}

/// Finds the machine running, or starts it, and waits until it is ready.
fn bring_up<'a>(
    machine: Machine,
    start: impl FnOnce(acceleration::Acceleration) -> Start<'a>,
    progress: &dyn Progress,
) -> anyhow::Result<UpAndReady> {
    let lock =
        machine.lock(&mut || eprintln!("Waiting for another command on {} to finish ...", machine.name()))?;
    if let Some(process) = machine.process() {
        drop(lock);
        return find_running(machine, &process, progress);
    }
    let sample = start(acceleration::Acceleration::Emulated);
    let verdict = judge(sample.image, progress)?;
    if sample.efi {
        machine.provide_variables()?;
    }
    let started = machine.start(Start {
        acceleration: verdict.acceleration,
        ..sample
    })?;
    // From here on another command may take the machine down again.
    drop(lock);
    let api = pick::api(&started.record)?;
    if let Err(error) = boot(&machine, &started.process, &api, progress) {
        if matches!(error.downcast_ref(), Some(NotReady::Locked)) {
            return Err(error);
        }
        // What does not come up is not left behind, nor a disk that holds the beginning of a pool.
        let _ = machine.take_down(&started.process, None);
        if started.new_disk {
            let _ = std::fs::remove_file(machine.disk());
        }
        return Err(error);
    }
    Ok(UpAndReady {
        machine,
        record: started.record,
        api,
        verdict: Some(verdict),
    })
}

fn find_running(machine: Machine, process: &Process, progress: &dyn Progress) -> anyhow::Result<UpAndReady> {
    let record = machine.record().with_context(|| {
        format!(
            "The machine {} runs, but what it was started as is lost; take it down with `{}`",
            machine.name(),
            again("down")
        )
    })?;
    let api = pick::api(&record)?;
    if api.ping(LIMIT).is_err() {
        // It may still be booting.
        boot(&machine, process, &api, progress)?;
    }
    Ok(UpAndReady {
        machine,
        record,
        api,
        verdict: None,
    })
}

pub(super) fn judge(image: &BuiltImage, progress: &dyn Progress) -> anyhow::Result<Verdict> {
    let mut step = None;
    let verdict = acceleration::verdict(&image.vmlinuz, &dirs::cache()?, &mut || {
        step = Some(progress.step("try this machine's KVM"));
    })?;
    if let Some(step) = step {
        step.finish();
    }
    Ok(verdict)
}

fn boot(machine: &Machine, process: &Process, api: &Api, progress: &dyn Progress) -> anyhow::Result<()> {
    let step = progress.step(&format!("boot {}", machine.name()));
    let mut told = |line: &str| {
        // The appliance's own lines: `[    1.234] monobloc: …`.
        if let Some((_, text)) = line.split_once("monobloc: ") {
            step.message(text);
        }
    };
    machine.wait_ready(process, api, &mut told)?;
    step.finish();
    Ok(())
}

/// Runs a container from the first image that the machine brings along, unless it is there to run
/// one application, which speaks for itself.
fn greet(recipe: &Recipe, api: &Api, progress: &dyn Progress) -> anyhow::Result<Option<String>> {
    let image = match recipe.images.first() {
        Some(image) if recipe.zones.is_empty() => image.reference.get_ref().as_str(),
        _ => return Ok(None),
    };
    let step = progress.step(&format!("run a container from {image}"));
    let output = greeting::run(api, image).with_context(|| {
        format!(
            "The machine {} is up, but its first container failed; see `{}`",
            recipe.name,
            again("logs")
        )
    })?;
    step.finish();
    Ok(Some(output))
}

/// Makes docker know the machine; where it cannot, the machine is as good without.
fn register(up: &UpAndReady, site: &Site, progress: &dyn Progress) -> Option<Registered> {
    if host::program("docker").is_none() {
        return Some(Registered::NoClient);
    }
    let name = pick::context(up.machine.name());
    let step = progress.step(&format!("docker context {name}"));
    match context::register(&name, up.record.api_port, &site.client_dir()) {
        Ok(registered) => {
            step.finish();
            Some(registered)
        }
        Err(error) => {
            drop(step);
            eprintln!("The docker context {name} was not made: {error}");
            None
        }
    }
}

fn tell(
    recipe: &Recipe,
    image: &BuiltImage,
    up: &UpAndReady,
    greeting: Option<String>,
    context: Option<Registered>,
    took: Duration,
) -> anyhow::Result<()> {
    let name = text::bold(up.machine.name());
    let mut told = String::from("\n");
    if let Some(greeting) = greeting {
        told += &text::indented(&greeting);
        told.push('\n');
    }
    told += &match &up.verdict {
        Some(verdict) => format!(
            "The machine {name} is up after {}, {} ({}).\n",
            spell(took),
            verdict.acceleration,
            verdict.reason
        ),
        None => format!(
            "The machine {name} is running already, for {}.\n",
            spell(up.record.age())
        ),
    };
    if up.record.image != image.dir {
        told += &format!(
            "It runs an older build. To boot the new one: {} && {}\n",
            again("down"),
            again("up")
        );
    }
    for (forward, wanted) in up.record.forwards.iter().zip(&recipe.qemu.forwards) {
        let taken = if forward.host == wanted.outer {
            String::new()
        } else {
            format!(" ({} was taken)", wanted.outer)
        };
        told += &format!("{}{taken}.\n", status::port(forward));
    }
    told += &next(recipe, up, context);
    text::print(&told)
}

/// What to type next.
fn next(recipe: &Recipe, up: &UpAndReady, context: Option<Registered>) -> String {
    let name = pick::context(up.machine.name());
    let mut rows = Vec::new();
    let mut told = String::new();
    match context {
        Some(Registered::Created | Registered::Updated) => {
            rows.push((format!("docker --context {name} ps"), "what runs in it"));
            if let (Some(image), true) = (recipe.images.first(), recipe.zones.is_empty()) {
                let image = image.reference.get_ref();
                rows.insert(
                    0,
                    (
                        format!("docker --context {name} run --rm -it {image} sh"),
                        "a shell in a container",
                    ),
                );
            }
        }
        Some(Registered::NoClient) => {
            told += &format!(
                "\nThis machine has no docker command. Install Debian's docker-cli (docker.io before Debian\n\
                 13) and do `{}` again; then `docker --context {name} run ...` reaches the machine.\n",
                again("up")
            );
        }
        None => {}
    }
    let pages = up
        .record
        .forwards
        .iter()
        .filter(|forward| WEB_PORTS.contains(&forward.guest));
    for forward in pages {
        rows.push((
            format!("curl http://127.0.0.1:{}/", forward.host),
            "what it serves",
        ));
    }
    rows.push((again("status"), "how the machine is"));
    rows.push((again("console"), "its serial console"));
    rows.push((again("down"), "power it off"));
    let table = text::table(
        rows.iter()
            .map(|(command, what)| (command.as_str(), text::dim(what))),
    );
    format!("{told}\n{}\n{table}", text::bold("Next:"))
}
