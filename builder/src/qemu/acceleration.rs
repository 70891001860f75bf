//! Whether QEMU may use the processor's own virtualisation.
//!
//! `/dev/kvm` proves nothing by being there: on some machines, mostly such as are virtual
//! themselves, it opens and then stock guests hang or QEMU aborts. So it is tried once, with the very
//! kernel that is to be booted and no initramfs: such a guest comes as far as the panic that says so,
//! within a second or two, on any machine where acceleration works. The verdict is remembered for
//! this kernel, this machine's kernel and this QEMU.

use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context;
use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::PROGRAM;
use crate::command;

const KVM: &str = "/dev/kvm";
/// How long the guest may take; where acceleration works it takes a tenth of it.
const LIMIT: Duration = Duration::from_secs(15);
/// What the guest's kernel says when it finds no root file system.
const PROOF: &str = "Kernel panic";

/// How QEMU runs the guest's code.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Acceleration {
    Kvm,
    /// QEMU's own translation (TCG): works everywhere, several times slower.
    #[serde(rename = "tcg")]
    Emulated,
}

impl Acceleration {
    pub(super) fn arguments(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Kvm => [("-accel", "kvm"), ("-cpu", "host")],
            Self::Emulated => [("-accel", "tcg,thread=multi"), ("-cpu", "max")],
        }
    }
}

impl fmt::Display for Acceleration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "accelerated by KVM",
            Self::Emulated => "emulated",
        })
    }
}

/// What is known of this machine, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub acceleration: Acceleration,
    pub reason: String,
}

impl Verdict {
    fn emulated(reason: impl Into<String>) -> Self {
        Self {
            acceleration: Acceleration::Emulated,
            reason: reason.into(),
        }
    }
}

/// The verdict without a trial: none where only a trial can tell.
#[must_use]
pub fn obvious() -> Option<Verdict> {
    if !Path::new(KVM).exists() {
        return Some(Verdict::emulated(format!("this machine has no {KVM}")));
    }
    match OpenOptions::new().read(true).write(true).open(KVM) {
        Ok(_) => None,
        Err(error) => Some(Verdict::emulated(format!("{KVM} cannot be opened: {error}"))),
    }
}

/// Gives the remembered verdict for a kernel, or tries; `cache` is the folder to remember it in.
///
/// # Errors
/// QEMU does not start, or the verdict cannot be written down.
pub fn verdict(kernel: &Path, cache: &Path, trying: &mut dyn FnMut()) -> anyhow::Result<Verdict> {
    if let Some(verdict) = obvious() {
        return Ok(verdict);
    }
    let path = cache.join("acceleration").join(key(kernel)?);
    if let Some(verdict) = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
    {
        return Ok(verdict);
    }
    trying();
    let verdict = try_out(kernel)?;
    remember(&path, &verdict).with_context(|| format!("Cannot write {}", path.display()))?;
    Ok(verdict)
}

/// What the verdict depends on.
fn key(kernel: &Path) -> anyhow::Result<String> {
    let mut digest = Sha256::new();
    let mut file = File::open(kernel).with_context(|| format!("Cannot open {}", kernel.display()))?;
    std::io::copy(&mut file, &mut digest).with_context(|| format!("Cannot read {}", kernel.display()))?;
    let uname = rustix::system::uname();
    for text in [uname.release(), uname.version()] {
        digest.update(text.to_bytes_with_nul());
    }
    digest.update(command::run(Command::new(PROGRAM).arg("--version"))?);
    Ok(digest
        .finalize()
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect())
}

fn remember(path: &Path, verdict: &Verdict) -> anyhow::Result<()> {
    let folder = path.parent().context("The cache has no folder")?;
    fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(verdict)?)?;
    file.persist(path)?;
    Ok(())
}

fn try_out(kernel: &Path) -> anyhow::Result<Verdict> {
    let mut qemu = Command::new(PROGRAM);
    qemu.args([
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35",
    ]);
    for (option, value) in Acceleration::Kvm.arguments() {
        qemu.args([option, value]);
    }
    qemu.args(["-smp", "2", "-m", "256M", "-serial", "stdio", "-no-reboot"]);
    qemu.args(["-append", "console=ttyS0 panic=-1", "-kernel"])
        .arg(kernel);
    let mut stderr = tempfile::tempfile().context("Cannot make a temporary file")?;
    let mut child = qemu
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(stderr.try_clone()?)
        .spawn()
        .map_err(|error| command::not_started(PROGRAM, error))?;
    let outcome = watch(&mut child);
    let _ = child.kill();
    child.wait().context("QEMU is lost")?;
    Ok(match outcome? {
        Outcome::Proved => Verdict {
            acceleration: Acceleration::Kvm,
            reason: "a guest was seen to run".to_owned(),
        },
        Outcome::Hung => {
            Verdict::emulated(format!("a guest under KVM did nothing for {} s", LIMIT.as_secs()))
        }
        Outcome::Ended => Verdict::emulated(format!("QEMU cannot use KVM here: {}", last_line(&mut stderr))),
    })
}

enum Outcome {
    Proved,
    Hung,
    Ended,
}

fn watch(child: &mut Child) -> anyhow::Result<Outcome> {
    let stdout = child.stdout.take().context("QEMU has no output")?;
    let lines: Receiver<String> = {
        let (sender, receiver) = channel();
        thread::spawn(move || {
            let mut lines = BufReader::new(stdout).split(b'\n').map_while(Result::ok);
            // Who watches may have seen enough.
            lines.all(|line| sender.send(String::from_utf8_lossy(&line).into_owned()).is_ok())
        });
        receiver
    };
    let deadline = Instant::now() + LIMIT;
    loop {
        match lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) if line.contains(PROOF) => return Ok(Outcome::Proved),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(Outcome::Hung),
            Err(RecvTimeoutError::Disconnected) => return Ok(Outcome::Ended),
        }
    }
}

fn last_line(file: &mut File) -> String {
    use std::io::Seek as _;
    let mut text = String::new();
    let read = file.rewind().and_then(|()| file.read_to_string(&mut text));
    let line = text.lines().map(str::trim).rfind(|line| !line.is_empty());
    match (read, line) {
        (Ok(_), Some(line)) => line.to_owned(),
        _ => "it ended without a word".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_is_remembered_as_it_was() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("acceleration/key");
        let verdict = Verdict::emulated("because");
        remember(&path, &verdict).unwrap();
        let read: Verdict = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, verdict);
    }

    #[test]
    fn the_last_words_of_qemu_are_the_reason() {
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(b"warning\nCould not access KVM\n\n").unwrap();
        assert_eq!(last_line(&mut file), "Could not access KVM");
        let mut empty = tempfile::tempfile().unwrap();
        assert!(last_line(&mut empty).contains("without a word"));
    }
}
