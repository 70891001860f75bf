//! Processes of this machine: each has a limit or dies with the test process, so that a test run
//! that is killed leaves nothing behind.

use std::ffi::OsStr;
use std::io;
use std::process::{Child, Command};
use std::sync::OnceLock;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::thread;
use std::time::Duration;

use xshell::{Shell, cmd};

/// How a command that ran to its end went.
#[derive(Debug, Clone)]
pub struct Outcome {
    pub command: String,
    /// 124 stands for a command that ran into its limit.
    pub code: i32,
    /// Without the line ends at its end.
    pub stdout: String,
    pub stderr: String,
}

/// Exit status of `timeout(1)` for a command that ran into its limit.
const TIMED_OUT: i32 = 124;

impl Outcome {
    /// Its output; panics unless it succeeded.
    #[track_caller]
    pub fn ok(self) -> String {
        assert!(self.code == 0, "{self}");
        self.stdout
    }

    /// What it said when it failed, both streams; panics if it succeeded or did not end.
    #[track_caller]
    pub fn failed(self) -> String {
        assert!(
            self.code != 0 && self.code != TIMED_OUT,
            "a failure was expected: {self}"
        );
        format!("{}\n{}", self.stdout, self.stderr)
    }
}

impl std::fmt::Display for Outcome {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            command,
            code,
            stdout,
            stderr,
        } = self;
        let limit = if *code == TIMED_OUT { " (its limit)" } else { "" };
        write!(
            f,
            "`{command}` ended with {code}{limit}\nstdout: {stdout}\nstderr: {stderr}"
        )
    }
}

/// Runs a command to its end, or to `limit`.
///
/// # Panics
/// It cannot be started.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(
    limit: Duration,
    program: impl AsRef<OsStr>,
    args: impl IntoIterator<Item = A>,
    environment: &[(&str, &OsStr)],
    stdin: &[u8],
) -> Outcome {
    let shell = Shell::new().expect("the current folder is gone");
    let (program, seconds) = (program.as_ref(), limit.as_secs().to_string());
    // By its path, because the command may be given another search path.
    let command = cmd!(
        shell,
        "/usr/bin/timeout --kill-after=5 {seconds} {program} {args...}"
    )
    .envs(environment.iter().copied())
    .stdin(stdin)
    .quiet()
    .ignore_status();
    let text = command.to_string();
    let text = text
        .split_once(&seconds)
        .map_or(text.as_str(), |(_, command)| command.trim_start());
    let output = command
        .output()
        .unwrap_or_else(|error| panic!("cannot run {text}: {error}"));
    Outcome {
        command: text.to_owned(),
        code: output.status.code().unwrap_or(TIMED_OUT),
        stdout: lossy(&output.stdout),
        stderr: lossy(&output.stderr),
    }
}

fn lossy(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes)
        .trim_end_matches(['\r', '\n'])
        .to_owned()
}

/// A command that is killed when this process ends, however it ends.
#[must_use]
pub fn bound(program: impl AsRef<OsStr>) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "--"]).arg(program);
    command
}

/// Starts a [`bound`] command.
///
/// The kernel takes the thread that starts a process for its parent: with a test's thread the
/// process would die when that test ends. So one thread, which lives as long as the process, starts
/// them all.
///
/// # Errors
/// As [`Command::spawn`].
pub fn spawn(command: Command) -> io::Result<Child> {
    type Order = (Command, Sender<io::Result<Child>>);
    static SPAWNER: OnceLock<Sender<Order>> = OnceLock::new();
    let spawner = SPAWNER.get_or_init(|| {
        let (orders, inbox): (_, Receiver<Order>) = channel();
        thread::spawn(move || {
            for (mut command, answer) in inbox {
                let _ = answer.send(command.spawn());
            }
        });
        orders
    });
    let (answer, started) = channel();
    spawner.send((command, answer)).map_err(io::Error::other)?;
    started.recv().map_err(io::Error::other)?
}

/// Splits a line into words as a shell does that knows only blanks and both kinds of quotes.
#[must_use]
pub fn words(line: &str) -> Vec<String> {
    let mut words = Vec::new();
    let mut word: Option<String> = None;
    let mut quote = None;
    for char in line.chars() {
        match (quote, char) {
            (None, '\'' | '"') => {
                quote = Some(char);
                word.get_or_insert_default();
            }
            (Some(open), _) if open == char => quote = None,
            (None, _) if char.is_whitespace() => words.extend(word.take()),
            _ => word.get_or_insert_default().push(char),
        }
    }
    words.extend(word);
    words
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_split_at_blanks_outside_of_quotes() {
        assert_eq!(
            words("run  box sh -c 'echo \"a  b\"'"),
            ["run", "box", "sh", "-c", "echo \"a  b\""]
        );
        assert_eq!(words("--format='{{.Id}}' \"\" x"), ["--format={{.Id}}", "", "x"]);
    }

    #[test]
    fn a_command_that_does_not_end_is_ended_at_its_limit() {
        let outcome = run(Duration::from_secs(1), "sleep", ["60"], &[], b"");
        assert_eq!(outcome.code, TIMED_OUT, "{outcome}");
    }

    #[test]
    fn input_and_both_outputs_are_passed() {
        let outcome = run(
            Duration::from_secs(10),
            "sh",
            ["-c", "cat; echo $X >&2; exit 3"],
            &[("X", "y".as_ref())],
            b"in",
        );
        assert_eq!(
            (outcome.code, outcome.stdout.as_str(), outcome.stderr.as_str()),
            (3, "in", "y")
        );
    }

    #[test]
    fn a_bound_process_outlives_the_thread_that_asked_for_it() {
        let mut command = bound("cat");
        command
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped());
        let mut child = thread::spawn(move || spawn(command).unwrap()).join().unwrap();
        std::io::Write::write_all(child.stdin.as_mut().unwrap(), b"alive").unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success() && output.stdout == b"alive", "{output:?}");
    }
}
