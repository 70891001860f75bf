//! Passphrases: typed without being shown, or read from a file.

use std::fs::File;
use std::io::{self, BufRead as _, BufReader, Read, Write as _};
use std::os::fd::AsFd as _;
use std::path::Path;

use anyhow::{Context, bail};
use rustix::termios::{LocalModes, OptionalActions, Termios, isatty, tcgetattr, tcsetattr};

/// More than this is no passphrase.
const LONGEST: u64 = 4096;

/// The passphrase in a file's first line (`-`: of the standard input), else typed; twice where it is new.
pub(super) fn read(file: Option<&Path>, new: bool) -> anyhow::Result<String> {
    let passphrase = match file {
        Some(path) if path == Path::new("-") => first_line(io::stdin())?,
        Some(path) => {
            let file = File::open(path).with_context(|| format!("Cannot open {}", path.display()))?;
            first_line(file)?
        }
        None => typed("Passphrase: ")?,
    };
    if passphrase.is_empty() {
        bail!("The passphrase is empty");
    }
    if new && file.is_none() && typed("The same again: ")? != passphrase {
        bail!("The two are not the same; nothing was done");
    }
    Ok(passphrase)
}

fn first_line(source: impl Read) -> anyhow::Result<String> {
    let mut line = String::new();
    BufReader::new(source.take(LONGEST))
        .read_line(&mut line)
        .context("Cannot read the passphrase")?;
    Ok(line.trim_end_matches(['\r', '\n']).to_owned())
}

fn typed(prompt: &str) -> anyhow::Result<String> {
    let stdin = io::stdin();
    if !isatty(stdin.as_fd()) {
        bail!("Nobody is there to type the passphrase; give it by `--passphrase-file`");
    }
    let _silent = Silent::begin();
    eprint!("{prompt}");
    io::stderr().flush().context("Cannot write to the terminal")?;
    let line = first_line(stdin.lock());
    eprintln!();
    line
}

/// The terminal shows nothing of what is typed until this ends.
struct Silent(Termios);

impl Silent {
    fn begin() -> Option<Silent> {
        let stdin = io::stdin();
        let before = tcgetattr(stdin.as_fd()).ok()?;
        let mut silent = before.clone();
        silent.local_modes.remove(LocalModes::ECHO);
        tcsetattr(stdin.as_fd(), OptionalActions::Flush, &silent).ok()?;
        Some(Silent(before))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(io::stdin().as_fd(), OptionalActions::Now, &self.0);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_passphrase_is_the_first_line_of_a_file() {
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), "a b \r\nrest").unwrap();
        assert_eq!(read(Some(file.path()), true).unwrap(), "a b ");
        std::fs::write(file.path(), "\n").unwrap();
        let refusal = read(Some(file.path()), false).unwrap_err().to_string();
        assert!(refusal.contains("empty"), "{refusal}");
    }
}
