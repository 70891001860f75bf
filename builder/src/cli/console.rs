//! `monobloc console`: this terminal becomes the machine's serial console.
//!
//! The terminal is put into raw mode, so that every key but Ctrl-] goes to the machine, and is put
//! back however this ends: by the key, by the machine's end, by a signal, by a panic.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::thread;

use anyhow::{Context, bail};
use monobloc::machine::Machine;
use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcsetattr};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::UnixStream;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::mpsc::{Receiver, channel};

use super::{Console, pick, text};

/// Ctrl-] as the terminal sends it, the key that telnet and virsh have for this.
const ESCAPE: u8 = 0x1d;
/// Lines that were said before, shown so that the screen is not empty.
const BEFORE: usize = 12;

/// How the attachment ended.
enum End {
    Escape,
    /// The machine closed its side.
    Machine,
    Signal,
}

pub(super) fn run(arguments: &Console) -> anyhow::Result<()> {
    let (machine, _process) = pick::running(arguments.machine.as_deref())?;
    let name = machine.name();
    let _lock = lock(&machine)?;
    let before = machine.tail(BEFORE);
    if !before.is_empty() {
        text::print(&format!("{before}\n"))?;
    }
    eprintln!("--- console of {name}; Ctrl-] leaves ---");
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .context("Cannot start the runtime")?;
    let ended = {
        let _raw = Raw::set();
        runtime.block_on(attach(&machine))
    };
    match ended? {
        End::Escape => eprintln!("\n--- left the console of {name}; it runs on ---"),
        End::Machine => eprintln!("\n--- the machine {name} is off ---"),
        End::Signal => bail!("Ended by a signal"),
    }
    Ok(())
}

/// QEMU speaks to one at a time; another would wait without a word.
fn lock(machine: &Machine) -> anyhow::Result<File> {
    let path = machine.dir().join("console.lock");
    let file = File::create(&path).with_context(|| format!("Cannot write {}", path.display()))?;
    if file.try_lock().is_err() {
        bail!(
            "Somebody is attached to the console of {} already; `{}` shows what it says",
            machine.name(),
            text::again("logs -f")
        );
    }
    Ok(file)
}

async fn attach(machine: &Machine) -> anyhow::Result<End> {
    let path = machine.console();
    let mut console = UnixStream::connect(&path)
        .await
        .with_context(|| format!("Cannot reach the console at {}", path.display()))?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hang_up = signal(SignalKind::hangup())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut keys = keys();
    let mut typing = true;
    let mut said = vec![0; 4096];
    loop {
        tokio::select! {
            typed = keys.recv(), if typing => match typed {
                Some(bytes) => {
                    let end = bytes.iter().position(|byte| *byte == ESCAPE);
                    let bytes = bytes.get(..end.unwrap_or(bytes.len())).unwrap_or_default();
                    console.write_all(bytes).await.context("Cannot write to the console")?;
                    if end.is_some() {
                        return Ok(End::Escape);
                    }
                }
                // Nothing more to type; what the machine says is shown on.
                None => typing = false,
            },
            length = console.read(&mut said) => {
                let bytes = said.get(..length.unwrap_or(0)).unwrap_or_default();
                if bytes.is_empty() {
                    return Ok(End::Machine);
                }
                let mut stdout = io::stdout().lock();
                stdout.write_all(bytes).and_then(|()| stdout.flush()).context("Cannot write to standard output")?;
            }
            _ = terminate.recv() => return Ok(End::Signal),
            _ = hang_up.recv() => return Ok(End::Signal),
            _ = interrupt.recv() => return Ok(End::Signal),
        }
    }
}

/// What is typed. Reading a terminal blocks, so it has a thread of its own, which ends with the
/// process.
fn keys() -> Receiver<Vec<u8>> {
    let (sender, receiver) = channel(16);
    thread::spawn(move || {
        let mut stdin = io::stdin().lock();
        let mut bytes = [0; 256];
        while let Ok(length @ 1..) = stdin.read(&mut bytes) {
            let typed = bytes.get(..length).unwrap_or_default().to_vec();
            if sender.blocking_send(typed).is_err() {
                return;
            }
        }
    });
    receiver
}

/// The terminal's settings from before, set again when this is dropped.
struct Raw(Termios);

impl Raw {
    /// Raw mode, where standard input is a terminal.
    fn set() -> Option<Self> {
        let stdin = io::stdin();
        let fd = stdin.as_fd();
        if !isatty(fd) {
            return None;
        }
        let before = tcgetattr(fd).ok()?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(fd, OptionalActions::Flush, &raw).ok()?;
        Some(Self(before))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Flush, &self.0);
    }
}
