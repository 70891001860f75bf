//! Whether QEMU may use the processor's own virtualisation.
//!
//! `/dev/kvm` proves nothing by being there: on some machines, mostly such as are virtual
//! themselves, it opens and then stock guests hang or QEMU aborts. So it is tried once, with the very
//! kernel that is to be booted and no initramfs: such a guest comes as far as the panic that says so,
//! within a second or two, on any machine where acceleration works. The verdict is remembered for
//! this kernel, this machine's kernel and this QEMU.
//!
//! Without it the guest is emulated: with a thread for each of its CPUs, but only from QEMU 8.2 on.
//! Before, one thread could run code that another had just patched, and one boot in some thirty ended
//! with the kernel's "Oops: int3". A boot takes no measurably longer on one thread.

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
    /// QEMU's own translation (TCG), a thread for each CPU: works everywhere, several times slower.
    #[serde(rename = "tcg")]
    Emulated,
    /// The same on one thread.
    #[serde(rename = "tcg-single")]
    EmulatedOnOneThread,
}

/// The first QEMU, major and minor version, whose translation is safe on several threads.
const SAFE_ON_THREADS: (u32, u32) = (8, 2);

/// All that the translation can do, but for what tells the guest that to copy byte by byte is the fastest
/// way (`rep movsb`): translated, it is the slowest.
const EMULATED_CPU: &str = "max,-erms,-fsrm";

impl Acceleration {
    pub(super) fn arguments(self) -> [(&'static str, &'static str); 2] {
        match self {
            Self::Kvm => [("-accel", "kvm"), ("-cpu", "host")],
            Self::Emulated => [("-accel", "tcg,thread=multi"), ("-cpu", EMULATED_CPU)],
            Self::EmulatedOnOneThread => [("-accel", "tcg,thread=single"), ("-cpu", EMULATED_CPU)],
        }
    }

    /// How a QEMU that tells this of its version emulates best.
    fn emulated_by(version: &str) -> Self {
        let number = version
            .split_whitespace()
            .find(|word| word.starts_with(|c: char| c.is_ascii_digit()));
        let mut parts = number
            .unwrap_or_default()
            .split('.')
            .map(|part| part.parse().unwrap_or(0));
        let version = (parts.next().unwrap_or(0), parts.next().unwrap_or(0));
        if version >= SAFE_ON_THREADS {
            Self::Emulated
        } else {
            Self::EmulatedOnOneThread
        }
    }
}

impl fmt::Display for Acceleration {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        formatter.write_str(match self {
            Self::Kvm => "accelerated by KVM",
            Self::Emulated | Self::EmulatedOnOneThread => "emulated",
        })
    }
}

/// What is known of this machine, and why.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Verdict {
    pub acceleration: Acceleration,
    /// Why it is so, as the end of a sentence.
    pub reason: String,
    /// QEMU's own words, where it had any.
    pub detail: Option<String>,
}

/// Why acceleration cannot work, as far as that is seen without a trial.
#[must_use]
pub fn obstacle() -> Option<String> {
    if !Path::new(KVM).exists() {
        return Some(format!("this machine has no {KVM}"));
    }
    let opened = OpenOptions::new().read(true).write(true).open(KVM);
    opened.err().map(|error| format!("{KVM} does not open: {error}"))
}

/// Gives the remembered verdict for a kernel, or tries; `cache` is the folder to remember it in.
///
/// # Errors
/// QEMU does not start, or the verdict cannot be written down.
pub fn verdict(kernel: &Path, cache: &Path, trying: &mut dyn FnMut()) -> anyhow::Result<Verdict> {
    let version = command::run(Command::new(PROGRAM).arg("--version"))?;
    let version = String::from_utf8_lossy(&version);
    let emulated = |reason, detail| Verdict {
        acceleration: Acceleration::emulated_by(&version),
        reason,
        detail,
    };
    if let Some(obstacle) = obstacle() {
        return Ok(emulated(obstacle, None));
    }
    let path = cache.join("acceleration").join(key(kernel, &version)?);
    if let Some(verdict) = fs::read(&path)
        .ok()
        .and_then(|bytes| serde_json::from_slice(&bytes).ok())
    {
        return Ok(verdict);
    }
    trying();
    let verdict = match try_out(kernel)? {
        Outcome::Proved => Verdict {
            acceleration: Acceleration::Kvm,
            reason: "a guest was seen to run".to_owned(),
            detail: None,
        },
        Outcome::Hung => emulated("guests hang under this machine's KVM".to_owned(), None),
        Outcome::Ended(words) => emulated("QEMU fails with this machine's KVM".to_owned(), Some(words)),
    };
    remember(&path, &verdict).with_context(|| format!("Cannot write {}", path.display()))?;
    Ok(verdict)
}

/// What the verdict depends on.
fn key(kernel: &Path, version: &str) -> anyhow::Result<String> {
    let mut digest = Sha256::new();
    let mut file = File::open(kernel).with_context(|| format!("Cannot open {}", kernel.display()))?;
    std::io::copy(&mut file, &mut digest).with_context(|| format!("Cannot read {}", kernel.display()))?;
    let uname = rustix::system::uname();
    for text in [uname.release(), uname.version()] {
        digest.update(text.to_bytes_with_nul());
    }
    digest.update(version);
    // And on how it is come by.
    digest.update(include_bytes!("acceleration.rs"));
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

fn try_out(kernel: &Path) -> anyhow::Result<Outcome> {
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
        Some(outcome) => outcome,
        None => Outcome::Ended(last_line(&mut stderr)),
    })
}

enum Outcome {
    Proved,
    Hung,
    /// QEMU ended, with these words.
    Ended(String),
}

/// What the guest does; none if QEMU ended before it did anything.
fn watch(child: &mut Child) -> anyhow::Result<Option<Outcome>> {
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
            Ok(line) if line.contains(PROOF) => return Ok(Some(Outcome::Proved)),
            Ok(_) => {}
            Err(RecvTimeoutError::Timeout) => return Ok(Some(Outcome::Hung)),
            Err(RecvTimeoutError::Disconnected) => return Ok(None),
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
        let verdict = Verdict {
            acceleration: Acceleration::EmulatedOnOneThread,
            reason: "it is so".to_owned(),
            detail: None,
        };
        remember(&path, &verdict).unwrap();
        let read: Verdict = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
        assert_eq!(read, verdict);
    }

    #[test]
    fn only_a_qemu_that_is_safe_on_threads_gets_several() {
        for (version, threads) in [
            (
                "QEMU emulator version 7.2.22 (Debian 1:7.2+dfsg-7+deb12u18+b3)",
                false,
            ),
            ("QEMU emulator version 8.1.5", false),
            ("QEMU emulator version 8.2.0", true),
            ("QEMU emulator version 10.0.2 (Debian 1:10.0.2+ds-2)", true),
            ("something else", false),
        ] {
            let expected = if threads {
                Acceleration::Emulated
            } else {
                Acceleration::EmulatedOnOneThread
            };
            assert_eq!(Acceleration::emulated_by(version), expected, "{version}");
        }
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
