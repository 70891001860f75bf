//! `monobloc demo`.

use std::time::Instant;

use clap::{Args, Subcommand};
use monobloc::demo::{Said, disk};
use monobloc::host::{self, dirs};
use monobloc::image::{self, BuildOptions};
use monobloc::machine::Machine;
use monobloc::progress::{self, spell};
use monobloc::recipe::Recipe;
use monobloc::site::Site;

use super::{pick, text, up};

/// Name of the machine, which is nobody's.
const NAME: &str = "demo-disk";
const WIDTH: usize = 76;

/// Show what the appliance promises, on a machine that is booted for it
#[derive(Debug, Args)]
#[command(after_help = "Examples:
  monobloc demo disk               what happens when a disk fails")]
pub(super) struct Demo {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Overwrite, pull out and replace a disk under a program that checks every byte
    ///
    /// Boots a machine with two disks in QEMU; the disks are files, and no other machine is touched. It
    /// ends with an error if anything was lost.
    Disk,
}

pub(super) fn run(arguments: &Demo) -> anyhow::Result<()> {
    match arguments.what {
        What::Disk => show(),
    }
}

fn show() -> anyhow::Result<()> {
    let began = Instant::now();
    let path = pick::recipe("quickstart".as_ref())?;
    let recipe = Recipe::load(&path)?;
    let progress = progress::for_stderr();
    let mut needs = vec![host::QEMU];
    needs.extend(host::PACKAGE_TOOLS);
    host::provide(&needs, progress.as_ref())?;
    let image = image::build(&recipe, &BuildOptions::from_environment()?, progress.as_ref())?;
    let site = Site::open_or_create(&pick::site_dir()?)?;
    let verdict = up::judge(&image, progress.as_ref())?;
    let machine = Machine::named(&dirs::state()?, NAME);
    // What one that was broken off has left.
    if let Some(process) = machine.process() {
        machine.take_down(&process, None)?;
    }
    if machine.dir().exists() {
        machine.delete()?;
    }
    let setting = disk::Setting {
        recipe: &recipe,
        path: &path,
        image: &image,
        site: &site,
        acceleration: verdict.acceleration,
    };
    let mut scenes = 0;
    disk::run(&machine, setting, &mut |said| {
        // Where nobody reads, it is still a test.
        let _ = text::print(&told(&said, &mut scenes));
    })?;
    text::print(&text::dim(&format!("It took {}.\n", spell(began.elapsed()))))
}

fn told(said: &Said, scenes: &mut usize) -> String {
    match said {
        Said::Scene { title, why } => {
            *scenes += 1;
            format!(
                "\n{} {}\n{}",
                text::bold(&format!("{scenes}.")),
                text::bold(title),
                text::dim(&wrapped(why))
            )
        }
        Said::Seen(text) => {
            let lines = wrapped(text);
            let rest = lines.trim_start();
            format!("   {} {rest}", text::green("→"))
        }
        Said::End(text) => format!("\n{}\n", text::green(text)),
    }
}

/// Lines of some width, a little to the right.
fn wrapped(text: &str) -> String {
    let mut lines = vec![String::new()];
    for word in text.split_whitespace() {
        let fits = |line: &String| line.chars().count() + 1 + word.chars().count() <= WIDTH;
        if let Some(line) = lines.last_mut().filter(|line| fits(line)) {
            line.push(' ');
            line.push_str(word);
            continue;
        }
        lines.push(format!(" {word}"));
    }
    lines.iter().map(|line| format!("    {line}\n")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn scenes_are_numbered_and_no_line_is_too_long() {
        let mut scenes = 0;
        let scene = Said::Scene {
            title: "We look".to_owned(),
            why: "word ".repeat(100),
        };
        let first = told(&scene, &mut scenes);
        assert!(first.contains("1.") && first.contains("We look"), "{first}");
        assert!(
            first.lines().all(|line| line.chars().count() <= WIDTH + 8),
            "{first}"
        );
        assert!(told(&scene, &mut scenes).contains("2."));
        let seen = told(&Said::Seen("word ".repeat(40)), &mut scenes);
        assert!(
            seen.starts_with("   → word") && seen.lines().count() > 1,
            "{seen}"
        );
    }
}
