//! What happens when disks fail: on a machine with two, one is overwritten, pulled out and replaced while
//! a program goes on, which checks every byte that it has ever written.

use std::fs::File;
use std::io::SeekFrom;
use std::ops::ControlFlow;
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use super::Said;
use super::program::Program;
use crate::client::{Api, Order};
use crate::image::BuiltImage;
use crate::machine::{Machine, Process, Start};
use crate::qemu::Acceleration;
use crate::recipe::{ByteSize, Recipe};
use crate::site::Site;

const MIB: u64 = 1 << 20;
/// Bytes of each disk.
const SIZE: u64 = 1024 * MIB;
/// btrfs puts nothing before it but the superblock: the disk is still known for one of the pool's.
pub const DATA_BEGINS: u64 = MIB;
const SECOND: &str = "second";
const THIRD: &str = "third";
/// How long one thing may take, emulated on a busy machine.
const LIMIT: Duration = Duration::from_secs(180);

/// With what the machine is made.
#[derive(Clone, Copy)]
pub struct Setting<'a> {
    pub recipe: &'a Recipe,
    /// The recipe's file.
    pub path: &'a Path,
    pub image: &'a BuiltImage,
    pub site: &'a Site,
    pub acceleration: Acceleration,
}

/// Shows it, and checks it. The machine is gone afterwards.
///
/// # Errors
/// Something is not as it was promised, or the machine cannot be had.
pub fn run(machine: &Machine, setting: Setting<'_>, told: &mut dyn FnMut(Said)) -> anyhow::Result<()> {
    let mut recipe = setting.recipe.clone();
    recipe.qemu.disk = Some(ByteSize(SIZE));
    recipe.qemu.forwards.clear();
    let mut show = Show { told };
    show.scene(
        "A machine with two disks",
        "Whatever is stored on it is stored twice, once on each disk.",
    );
    let disks = [SECOND, THIRD].map(|name| machine.dir().join(format!("{name}.img")));
    let [second, third] = &disks;
    let started = {
        let _lock = machine.lock(&mut || {})?;
        for disk in &disks {
            blank(disk)?;
        }
        machine.start(Start {
            recipe: &recipe,
            path: setting.path,
            image: setting.image,
            site: setting.site,
            acceleration: setting.acceleration,
            efi: false,
            more_disks: &[(SECOND.to_owned(), second.clone())],
        })?
    };
    let api = Api::new(started.record.api_port, &setting.site.client_dir())?;
    let stage = Stage {
        machine,
        process: &started.process,
        api: &api,
    };
    let played = machine
        .wait_ready(&started.process, &api, &mut |_| {})
        .map_err(anyhow::Error::from)
        .and_then(|()| stage.play(&recipe, second, third, &mut show));
    // It was only for this.
    let down = machine.take_down(&started.process, None);
    played?;
    down?;
    machine.delete()
}

struct Show<'a> {
    told: &'a mut dyn FnMut(Said),
}

impl Show<'_> {
    fn scene(&mut self, title: &str, why: &str) {
        (self.told)(Said::Scene {
            title: title.to_owned(),
            why: why.to_owned(),
        });
    }

    fn seen(&mut self, text: impl Into<String>) {
        (self.told)(Said::Seen(text.into()));
    }
}

struct Stage<'a> {
    machine: &'a Machine,
    process: &'a Process,
    api: &'a Api,
}

impl Stage<'_> {
    fn play(&self, recipe: &Recipe, second: &Path, third: &Path, show: &mut Show<'_>) -> anyhow::Result<()> {
        let pool = self.pool()?;
        let promise = pool["profile"].as_str().unwrap_or_default().to_owned();
        ensure!(
            promise == "survives the loss of one disk",
            "The machine's pool {promise}"
        );
        show.seen(format!(
            "It is up. The machine says of what it stores on: it {promise}."
        ));

        show.scene(
            "A program writes files, and takes the fingerprint of each",
            "A fingerprint (a checksum) is a number made of all bytes of a file. If one letter of the file is \
             another, so is the fingerprint: whoever has it can tell whether the file is still what it was.",
        );
        let image = recipe.images.first().context("The recipe has no image to run")?;
        let mut program = Program::start(self.api, image.reference.get_ref().as_str())?;
        program.write(8)?;
        program.check()?;
        show.seen(format!("{}, and all fingerprints are right.", amount(&program)));

        show.scene(
            "We overwrite the second disk with garbage, from outside, while the program runs",
            "As if the disk had gone mad. Nothing tells the machine of it.",
        );
        overwrite(second, SIZE)?;
        show.seen(format!(
            "{} MB of garbage, where one of the two copies of everything was.",
            (SIZE - DATA_BEGINS) / 1_000_000
        ));

        show.scene(
            "The program reads all of it again",
            "It has too little memory to remember its files: they come from the disks.",
        );
        program.check()?;
        show.seen("Every byte is right.");
        let wrong = self.errors(SECOND)?;
        if wrong > 0 {
            show.seen(format!(
                "The second disk gave {wrong} wrong blocks. The machine keeps a fingerprint of each block, saw \
                 that they were wrong, took the copy from the first disk, and wrote it back to the second."
            ));
        }

        show.scene(
            "The machine reads everything that is on both disks, and repairs it",
            "It does so every month by itself. Today we ask for it: `monobloc pool scrub`.",
        );
        let scrubbed = self.scrub()?;
        ensure!(scrubbed.repaired + wrong > 0, "The garbage was not noticed");
        ensure!(scrubbed.lost == 0, "{} blocks were lost", scrubbed.lost);
        program.check()?;
        show.seen(format!(
            "{} blocks were wrong and are right again; none is lost.",
            scrubbed.repaired
        ));

        show.scene(
            "We pull the second disk out",
            "The program is not asked, and not stopped.",
        );
        let mark = self.console_end()?;
        self.machine.unplug(SECOND)?;
        self.hear(mark, "is missing")?;
        show.seen("The machine says on its console that a disk of its pool is missing. It goes on.");
        program.check()?;
        program.write(2)?;
        program.check()?;
        show.seen(format!(
            "So does the program: it has written more. {}, all right.",
            amount(&program)
        ));

        show.scene(
            "We plug an empty disk in, and have the machine use it",
            "One command: `monobloc pool replace third`. Everything is kept twice again afterwards.",
        );
        let mark = self.console_end()?;
        self.machine.plug(THIRD, third)?;
        self.hear(mark, "has come")?;
        let order = Order {
            verb: "replace",
            disks: vec![THIRD.to_owned()],
            ..Order::default()
        };
        self.api.change_pool(&order, LIMIT, &mut |_| {})?;
        let pool = self.pool()?;
        ensure!(
            pool["profile"] == "survives the loss of one disk",
            "The pool is not whole again: {pool}"
        );
        ensure!(
            pool["warnings"] == serde_json::json!([]),
            "The machine still warns: {}",
            pool["warnings"]
        );
        show.seen("It has copied what the lost disk had; there is nothing that it warns of any more.");

        show.scene(
            "The last look: every byte, on both disks",
            "The program compares its files, the machine the copies.",
        );
        program.check()?;
        let scrubbed = self.scrub()?;
        ensure!(
            scrubbed.wrong_now == 0 && scrubbed.lost == 0,
            "There is damage left: {scrubbed:?}"
        );
        ensure!(program.never_stopped()?, "The program was stopped in between");
        show.seen(format!(
            "{}. Each of them is what it was, on both disks.",
            amount(&program)
        ));
        (show.told)(Said::End(
            "A disk was overwritten, pulled out and replaced. Nothing was lost, and the program has not noticed.".to_owned(),
        ));
        Ok(())
    }

    fn pool(&self) -> anyhow::Result<Value> {
        Ok(self.api.pool(LIMIT)?)
    }

    /// Blocks that a disk gave wrong since it was made a part of the pool.
    fn errors(&self, serial: &str) -> anyhow::Result<u64> {
        let pool = self.pool()?;
        let disks = pool["disks"].as_array().map(Vec::as_slice).unwrap_or_default();
        let disk = disks.iter().find(|disk| disk["serial"] == serial);
        Ok(disk
            .and_then(|disk| disk.pointer("/errors/damaged")?.as_u64())
            .unwrap_or(0))
    }

    fn scrub(&self) -> anyhow::Result<Scrubbed> {
        let order = Order {
            verb: "scrub",
            ..Order::default()
        };
        self.api.change_pool(&order, LIMIT, &mut |_| {})?;
        let pool = self.pool()?;
        let last = pool.pointer("/last_scrub/disks").and_then(Value::as_array);
        let sum = |key: &str| {
            last.into_iter()
                .flatten()
                .filter_map(|disk| disk[key].as_u64())
                .sum()
        };
        Ok(Scrubbed {
            wrong_now: sum("damaged"),
            repaired: sum("repaired"),
            lost: sum("lost"),
        })
    }

    fn console_end(&self) -> anyhow::Result<u64> {
        Ok(self
            .machine
            .log()
            .metadata()
            .context("The machine has no console")?
            .len())
    }

    /// Waits until the console says something.
    fn hear(&self, from: u64, words: &'static str) -> anyhow::Result<()> {
        let (sender, heard) = channel();
        let (machine, process) = (self.machine.clone(), self.process.try_clone()?);
        std::thread::spawn(move || {
            let mut said = Vec::new();
            let followed = machine.follow(SeekFrom::Start(from), Some(&process), |bytes| {
                said.extend_from_slice(bytes);
                if String::from_utf8_lossy(&said).contains(words) {
                    // Nobody may wait any more.
                    let _ = sender.send(());
                    return ControlFlow::Break(());
                }
                ControlFlow::Continue(())
            });
            drop(followed);
        });
        match heard.recv_timeout(LIMIT) {
            Ok(()) => Ok(()),
            Err(RecvTimeoutError::Timeout) => bail!("The machine did not say \"{words}\" on its console"),
            Err(RecvTimeoutError::Disconnected) => bail!("The machine ended:\n{}", self.machine.tail(20)),
        }
    }
}

/// What a scrub has found on all disks.
#[derive(Debug)]
struct Scrubbed {
    wrong_now: u64,
    repaired: u64,
    lost: u64,
}

fn amount(program: &Program) -> String {
    format!(
        "{} files with {} MB",
        program.files(),
        program.bytes() / 1_000_000
    )
}

fn blank(path: &PathBuf) -> anyhow::Result<()> {
    let made = File::create(path).and_then(|file| file.set_len(SIZE));
    made.with_context(|| format!("Cannot make the disk {}", path.display()))
}

/// Overwrites a disk with garbage, all but what it is known by.
///
/// # Errors
/// It cannot be written.
pub fn overwrite(path: &Path, size: u64) -> anyhow::Result<()> {
    let write = || -> std::io::Result<()> {
        let image = File::options().write(true).open(path)?;
        let mut state = 1_u64;
        let mut noise = vec![0_u8; MIB as usize];
        for at in (DATA_BEGINS..size).step_by(MIB as usize) {
            for word in noise.chunks_mut(8) {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                word.copy_from_slice(&state.to_le_bytes());
            }
            image.write_all_at(&noise, at)?;
        }
        Ok(())
    };
    write().with_context(|| format!("Cannot overwrite {}", path.display()))
}
