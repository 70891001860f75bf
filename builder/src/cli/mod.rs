//! The command line: what a person types, and what he reads.
//!
//! Results go to standard output, progress and errors to standard error. Every command ends with a
//! code other than 0 when it did not do what it was told to.

mod build;
mod console;
mod demo;
mod doctor;
mod down;
mod inspect;
mod logs;
mod passphrase;
mod pick;
mod pool;
mod send;
mod snapshot;
mod status;
#[cfg(test)]
mod tests;
mod text;
mod up;
mod upgrade;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

/// One file turns bare metal into a Docker-compatible container host.
#[derive(Debug, Parser)]
#[command(
    name = "monobloc",
    version,
    arg_required_else_help = true,
    disable_help_subcommand = true,
    after_help = "Begin with `monobloc up`; each command has examples under `--help`."
)]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Up(Up),
    Down(Down),
    Status(Status),
    Console(Console),
    Logs(Logs),
    Build(Build),
    Inspect(Inspect),
    Doctor(Doctor),
    UpgradeSupervisor(UpgradeSupervisor),
    Disks(pool::Disks),
    Pool(pool::Pool),
    Snapshot(snapshot::Snapshot),
    Send(send::Send),
    Receive(send::Receive),
    Demo(demo::Demo),
}

/// Build a recipe, boot it in QEMU, and run a first container
///
/// Installs what is missing from Debian's packages, builds what has changed, and starts the machine
/// in the background. Done a second time it finds everything done.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc up                      the quick start: a container host with busybox
  monobloc up web                  images/web.toml: one application, a web server
  monobloc up my/recipe.toml       a recipe of your own
  monobloc up --efi                boot the .efi file by UEFI firmware")]
struct Up {
    /// A recipe's file, or the name of one in images/
    #[arg(default_value = "quickstart")]
    recipe: PathBuf,
    /// Let UEFI firmware start the .efi file, as real hardware would, instead of the kernel at once
    #[arg(long)]
    efi: bool,
}

/// Power a machine off
///
/// Its zones are stopped and its disk is written. The disk stays, so that the next `up` finds
/// everything as it was.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc down                    power off the machine that runs
  monobloc down web                power off the machine `web`
  monobloc down --delete           and delete it with its disk, images and containers")]
struct Down {
    /// The machine's name, where several run
    machine: Option<String>,
    /// Delete the machine afterwards: its disk with all images and containers, and its docker context
    #[arg(long)]
    delete: bool,
}

/// Show the machines, whether they run, and where they are reached
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc status
  monobloc status --json | jq -r '.[0].api.address'")]
struct Status {
    /// Only the machine of this name
    machine: Option<String>,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Attach to a machine's serial console; Ctrl-] leaves it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc console                 see what the machine says; Ctrl-] leaves

The appliance has no shell: its console tells, and does not listen.")]
struct Console {
    /// The machine's name, where several run
    machine: Option<String>,
}

/// Print what a machine's serial console has said since it was started
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc logs                    all of it
  monobloc logs -n 20              the last 20 lines
  monobloc logs -f                 and go on until the machine is off, or Ctrl-C")]
struct Logs {
    /// The machine's name, where there are several
    machine: Option<String>,
    /// Go on with what it says from now on
    #[arg(short, long)]
    follow: bool,
    /// Only that many of the last lines
    #[arg(short = 'n', long, value_name = "LINES")]
    tail: Option<usize>,
}

/// Build a recipe's image into a file
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc build images/quickstart.toml -o quickstart.efi
                                   one file that UEFI firmware starts, and its manifest
  monobloc build web -o out/       everything: vmlinuz, initrd, web.efi, manifest.json")]
struct Build {
    /// A recipe's file, or the name of one in images/
    recipe: PathBuf,
    /// The .efi file to write, or a folder (with `/` at its end, or one that exists) for all files
    #[arg(short, long, value_name = "FILE")]
    output: PathBuf,
}

/// Show what is in an image: kernel, command line, init, modules, packages, digests
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc inspect quickstart.efi
  monobloc inspect out/            a folder with vmlinuz and initrd
  monobloc inspect --json quickstart.efi | jq '.inputs.kernel'")]
struct Inspect {
    /// An .efi file, or a folder with vmlinuz and initrd
    file: PathBuf,
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Show what this machine has and lacks for building and booting images
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc doctor
  monobloc doctor --json | jq '.[] | select(.there | not)'")]
struct Doctor {
    /// As JSON, for programs
    #[arg(long)]
    json: bool,
}

/// Replace a running machine's supervisor by another build, while all its zones go on
///
/// The machine checks the program first. One that does not come to serve is given up for the packed
/// one, and so is any after a boot: to keep it, boot an image with it.
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc upgrade-supervisor quickstart.efi       the /init of another image
  monobloc upgrade-supervisor target/x86_64-unknown-linux-gnu/appliance/init")]
struct UpgradeSupervisor {
    /// A build of /init; or an .efi file, an initrd, or a folder with one, to take it from
    file: PathBuf,
    /// The machine's name, where several run
    machine: Option<String>,
}

pub(crate) fn main() -> ExitCode {
    let done = match Cli::parse().command {
        Command::Up(arguments) => up::run(&arguments),
        Command::Down(arguments) => down::run(&arguments),
        Command::Status(arguments) => status::run(&arguments),
        Command::Console(arguments) => console::run(&arguments),
        Command::Logs(arguments) => logs::run(&arguments),
        Command::Build(arguments) => build::run(&arguments),
        Command::Inspect(arguments) => inspect::run(&arguments),
        Command::Doctor(arguments) => doctor::run(&arguments),
        Command::UpgradeSupervisor(arguments) => upgrade::run(&arguments),
        Command::Disks(arguments) => pool::disks(&arguments),
        Command::Pool(arguments) => pool::pool(&arguments),
        Command::Send(arguments) => send::send(&arguments),
        Command::Receive(arguments) => send::receive(&arguments),
        Command::Demo(arguments) => demo::run(&arguments),
        Command::Snapshot(arguments) => snapshot::snapshot(&arguments),
    };
    match done {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            text::tell_error(&error);
            ExitCode::FAILURE
        }
    }
}
