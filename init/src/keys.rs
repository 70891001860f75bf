//! The secrets of encrypted disks: the node's bundle, the TPM, and whoever sits at the console or speaks
//! to the API.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use anyhow::Context;
use rustix::event::{EventfdFlags, PollFd, PollFlags, eventfd, poll};
use rustix::termios::{LocalModes, OptionalActions, tcgetattr, tcsetattr};
use store::luks::{Lock, Secret};
use store::{Keys, Protection};

use crate::console::say;
use crate::modules::Loader;
use crate::tpm;

const MAPPER: &str = "/dev/mapper/control";
const CONSOLE: &str = "/dev/console";
/// A longer line is no passphrase.
const LONGEST: usize = 4096;

type OnWait = Box<dyn Fn() + Send + Sync>;

/// What this machine can open disks with.
pub(crate) struct Keyring {
    modules: Arc<Loader>,
    bundle: OnceLock<Secret>,
    on_wait: OnceLock<OnWait>,
    desk: Mutex<Desk>,
    /// From the first question to the last answer: in between, what is typed is not shown either.
    console: Mutex<Option<Console>>,
}

/// Where a passphrase is waited for.
#[derive(Default)]
struct Desk {
    /// Wakes who waits, if someone does.
    bell: Option<OwnedFd>,
    /// Whether the pool is still to be opened.
    open: bool,
    given: Option<Answer>,
    /// Who wants to know whether the last one was right.
    tried: Option<Sender<bool>>,
}

/// A passphrase that came by the API.
struct Answer {
    secret: Secret,
    verdict: Sender<bool>,
}

impl Keyring {
    pub(crate) fn new(modules: Arc<Loader>) -> Keyring {
        Keyring {
            modules,
            bundle: OnceLock::new(),
            on_wait: OnceLock::new(),
            desk: Mutex::default(),
            console: Mutex::default(),
        }
    }

    pub(crate) fn set_bundle(&self, key: &str) {
        let _ = self.bundle.set(Secret::new(key.as_bytes().to_vec()));
    }

    /// What is done when a passphrase has to be waited for.
    pub(crate) fn set_on_wait(&self, on_wait: OnWait) {
        let _ = self.on_wait.set(on_wait);
    }

    /// Takes a passphrase for the pool that waits for it; whether it was the right one.
    pub(crate) fn unlock(&self, secret: Secret) -> Result<bool, String> {
        let (verdict, told) = channel();
        {
            let mut desk = self.desk();
            let Some(bell) = desk.bell.as_ref().filter(|_| desk.open) else {
                return Err("No pool waits for a passphrase.".to_owned());
            };
            let rung = rustix::io::write(bell, &1u64.to_ne_bytes());
            rung.map_err(|reason| format!("The passphrase was not taken ({reason})."))?;
            desk.given = Some(Answer { secret, verdict });
        }
        told.recv()
            .map_err(|_| "The passphrase was not tried; another one came at the same time.".to_owned())
    }

    /// Tells whoever gave the last passphrase that it was right, if the pool is open now.
    pub(crate) fn settle(&self, opened: bool) {
        *self.console() = None;
        let mut desk = self.desk();
        desk.open = false;
        desk.given = None;
        if let Some(verdict) = desk.tried.take().filter(|_| opened) {
            let _ = verdict.send(true);
        }
    }

    fn console(&self) -> MutexGuard<'_, Option<Console>> {
        self.console.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn desk(&self) -> MutexGuard<'_, Desk> {
        self.desk.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn ask(&self, disk: &str, refused: bool) -> anyhow::Result<Secret> {
        if refused {
            say!("pool: that is not the passphrase");
            if let Some(verdict) = self.desk().tried.take() {
                let _ = verdict.send(false);
            }
        } else {
            say!("pool: LOCKED, type the passphrase here, or run `monobloc pool unlock`");
            if let Some(on_wait) = self.on_wait.get() {
                on_wait();
            }
        }
        let bell = eventfd(0, EventfdFlags::CLOEXEC).context("Cannot wait for a passphrase")?;
        {
            let mut desk = self.desk();
            desk.open = true;
            desk.bell = Some(bell.try_clone().context("Cannot wait for a passphrase")?);
        }
        let mut console = self.console();
        if console.is_none() {
            *console = Console::open();
        }
        let line = console.as_ref().map(|console| console.passphrase(disk, &bell));
        if let Some(Ok(Some(secret))) = line {
            return Ok(secret);
        }
        if let Some(Err(reason)) = line {
            say!("pool: the console cannot be read: {reason:#}");
        }
        loop {
            rustix::io::read(&bell, &mut [0u8; 8]).context("Cannot wait for a passphrase")?;
            let mut desk = self.desk();
            if let Some(answer) = desk.given.take() {
                desk.tried = Some(answer.verdict);
                return Ok(answer.secret);
            }
        }
    }
}

impl Keys for Keyring {
    fn prepare(&self) -> Result<(), String> {
        // A processor without the instructions has no use for the first.
        let _ = self.modules.load("aesni_intel");
        for module in ["xts", "dm_crypt"] {
            let loaded = self.modules.load(module);
            loaded.map_err(|reason| format!("The kernel cannot encrypt disks: {reason}."))?;
        }
        if Path::new(MAPPER).exists() {
            return Ok(());
        }
        Err("The image cannot encrypt disks: add `dm_crypt`, `xts` and `aesni_intel` to the recipe's modules, `on-demand`.".to_owned())
    }

    fn secret(&self, lock: &Lock, disk: &str, refused: bool) -> Result<Secret, String> {
        match lock {
            Lock::Bundle => self.bundle.get().cloned().ok_or_else(no_bundle_key),
            Lock::Tpm(sealed) => tpm::unseal(sealed).map_err(sentence),
            Lock::Passphrase => self.ask(disk, refused).map_err(sentence),
        }
    }

    fn make(&self, protection: Protection) -> Result<(Lock, Secret), String> {
        match protection {
            Protection::Bundle => {
                let secret = self.bundle.get().cloned().ok_or_else(no_bundle_key)?;
                Ok((Lock::Bundle, secret))
            }
            Protection::Tpm => {
                let secret = Secret::random().map_err(|reason| reason.to_string())?;
                let sealed = tpm::seal(&secret).map_err(sentence)?;
                Ok((Lock::Tpm(sealed), secret))
            }
        }
    }
}

fn no_bundle_key() -> String {
    "The node's bundle has no key for disks: start the machine with the one that was made for it.".to_owned()
}

fn sentence(reason: anyhow::Error) -> String {
    format!("{reason:#}.")
}

/// The console as a place to type at, which shows nothing of what is typed.
struct Console {
    file: File,
    before: rustix::termios::Termios,
}

impl Console {
    /// None where there is none that could be typed at.
    fn open() -> Option<Console> {
        let flags = rustix::fs::OFlags::NOCTTY.bits() as i32;
        let file = OpenOptions::new()
            .read(true)
            .write(true)
            .custom_flags(flags)
            .open(CONSOLE)
            .ok()?;
        let before = tcgetattr(&file).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        silent.local_modes.insert(LocalModes::ICANON | LocalModes::ECHONL);
        tcsetattr(&file, OptionalActions::Flush, &silent).ok()?;
        Some(Console { file, before })
    }

    /// A line that is typed; none when the bell rings before.
    fn passphrase(&self, disk: &str, bell: &OwnedFd) -> anyhow::Result<Option<Secret>> {
        let prompt = format!("Passphrase for the encrypted disk {disk}: ");
        let mut line = vec![0; LONGEST];
        loop {
            rustix::io::write(&self.file, prompt.as_bytes())?;
            let mut asked = [
                PollFd::from_borrowed_fd(self.file.as_fd(), PollFlags::IN),
                PollFd::from_borrowed_fd(bell.as_fd(), PollFlags::IN),
            ];
            match poll(&mut asked, None) {
                Err(rustix::io::Errno::INTR) => continue,
                other => other?,
            };
            let [typed, rung] = &asked;
            if rung.revents().contains(PollFlags::IN) {
                rustix::io::write(&self.file, b"\n")?;
                return Ok(None);
            }
            if !typed.revents().contains(PollFlags::IN) {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
            let length = rustix::io::read(&self.file, &mut line)?;
            let text = line.get(..length).unwrap_or_default().trim_ascii_end();
            if !text.is_empty() {
                return Ok(Some(Secret::new(text.to_vec())));
            }
            if length == 0 {
                return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
            }
        }
    }
}

impl Drop for Console {
    fn drop(&mut self) {
        let _ = tcsetattr(&self.file, OptionalActions::Now, &self.before);
    }
}
