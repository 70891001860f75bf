//! A person at a terminal: a command on a pseudo-terminal of its own, keys written to it, and what
//! it shows waited for.

use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::OwnedFd;
use std::process::{Child, ExitStatus};
use std::time::Duration;

use anyhow::Context as _;
use rustix::fs::{Mode, OFlags};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::{bound, spawn};
use crate::transcript::Transcript;

/// How long a person waits.
const LIMIT: Duration = Duration::from_secs(60);

/// A command on a terminal.
pub struct Terminal {
    command: String,
    master: File,
    screen: Transcript,
    /// What has been waited for lies before here.
    seen: usize,
    child: Child,
}

impl Terminal {
    /// Starts a command on a new terminal of 100 columns and 30 rows, as the leader of its session.
    ///
    /// # Errors
    /// There is no terminal to be had, or the command cannot be started.
    pub fn start<A: AsRef<OsStr>>(
        program: &OsStr,
        args: impl IntoIterator<Item = A>,
        environment: &[(&str, &OsStr)],
    ) -> anyhow::Result<Self> {
        let (master, slave) = open_terminal().context("Cannot open a terminal; is /dev/pts mounted?")?;
        resize(&master, 30, 100)?;
        let mut command = bound("setsid");
        command
            .arg("--ctty")
            .arg(program)
            .args(args)
            .envs(environment.iter().copied());
        command
            .stdin(slave.try_clone()?)
            .stdout(slave.try_clone()?)
            .stderr(slave);
        let name = command
            .get_args()
            .skip(5)
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        // `command` is dropped by its spawner, and with it this process's ends of the terminal.
        let child = spawn(command).with_context(|| format!("Cannot start {name}"))?;
        let screen = Transcript::follow(&format!("`{name}`"), master.try_clone()?);
        Ok(Self {
            command: name,
            master,
            screen,
            seen: 0,
            child,
        })
    }

    /// Types keys.
    #[track_caller]
    pub fn type_keys(&mut self, keys: &str) {
        let typed = self.master.write_all(keys.as_bytes());
        typed.unwrap_or_else(|error| {
            panic!(
                "`{}` takes no keys ({error}):\n{}",
                self.command,
                self.screen.tail()
            )
        });
    }

    /// Waits until `text` is shown after what was waited for before; gives its line.
    #[track_caller]
    pub fn expect(&mut self, text: &str) -> String {
        let (line, seen) = self
            .screen
            .wait_after(self.seen, text, LIMIT)
            .unwrap_or_else(|error| panic!("{error}"));
        self.seen = seen;
        line
    }

    /// All that was shown.
    #[must_use]
    pub fn text(&self) -> String {
        self.screen.text()
    }

    /// Waits for the command to end by itself; gives its exit code.
    #[track_caller]
    pub fn end(mut self) -> i32 {
        assert!(
            self.screen.wait_end(LIMIT),
            "`{}` did not end:\n{}",
            self.command,
            self.screen.tail()
        );
        let status: ExitStatus = self
            .child
            .wait()
            .unwrap_or_else(|error| panic!("`{}`: {error}", self.command));
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn resize(terminal: &File, rows: u16, columns: u16) -> io::Result<()> {
    let size = Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(tcsetwinsize(terminal, size)?)
}

/// A new terminal's two ends.
fn open_terminal() -> io::Result<(File, OwnedFd)> {
    let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)?;
    grantpt(&master)?;
    unlockpt(&master)?;
    let name = ptsname(&master, Vec::new())?;
    let slave = rustix::fs::open(
        name,
        OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC,
        Mode::empty(),
    )?;
    Ok((File::from(master), slave))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_shell_on_a_terminal_knows_its_size_and_echoes() {
        let mut shell = Terminal::start("sh".as_ref(), ["-i"], &[("PS1", "> ".as_ref())]).unwrap();
        shell.expect("> ");
        shell.type_keys("stty size; exit 7\r");
        shell.expect("30 100");
        assert_eq!(shell.end(), 7);
    }
}
