//! Programs of this machine that the builder runs. All runs go through here, so that each failure
//! tells the program, its own words, and what to install where it is missing.

use std::io;
use std::process::{Command, ExitStatus, Stdio};

/// Why a program did not do its work.
#[derive(Debug, thiserror::Error)]
pub enum CommandError {
    #[error("The program {program} is missing; install it with `apt-get install {package}`")]
    Missing { program: String, package: String },
    #[error("Cannot start {program}")]
    NotStarted { program: String, source: io::Error },
    #[error("{program} failed ({status}){}", told(.stderr))]
    Failed {
        program: String,
        status: ExitStatus,
        stderr: String,
    },
}

/// Debian packages of programs whose package has another name.
const PACKAGES: &[(&str, &str)] = &[
    ("apt-cache", "apt"),
    ("apt-get", "apt"),
    ("dpkg-deb", "dpkg"),
    ("qemu-system-x86_64", "qemu-system-x86"),
    ("qemu-img", "qemu-utils"),
];
/// As much of a program's last words as a reader wants.
const MAX_LINES: usize = 20;

/// Runs a program to its end: no input, the output is returned, the errors are part of the error.
///
/// # Errors
/// It cannot be started, or it ends with another status than 0.
pub fn run(command: &mut Command) -> Result<Vec<u8>, CommandError> {
    let program = command.get_program().to_string_lossy().into_owned();
    let output = command
        .stdin(Stdio::null())
        .output()
        .map_err(|error| not_started(&program, error))?;
    if output.status.success() {
        return Ok(output.stdout);
    }
    Err(failed(
        &program,
        output.status,
        &String::from_utf8_lossy(&output.stderr),
    ))
}

/// The error of a program that ended badly, with what it wrote to its error stream.
#[must_use]
pub fn failed(program: &str, status: ExitStatus, stderr: &str) -> CommandError {
    CommandError::Failed {
        program: program.to_owned(),
        status,
        stderr: stderr.trim().to_owned(),
    }
}

/// The error of a program that did not start.
#[must_use]
pub fn not_started(program: &str, source: io::Error) -> CommandError {
    if source.kind() == io::ErrorKind::NotFound {
        let package = PACKAGES
            .iter()
            .find(|(name, _)| *name == program)
            .map_or(program, |(_, package)| package);
        return CommandError::Missing {
            program: program.to_owned(),
            package: package.to_owned(),
        };
    }
    CommandError::NotStarted {
        program: program.to_owned(),
        source,
    }
}

fn told(stderr: &str) -> String {
    let lines: Vec<&str> = stderr.lines().collect();
    let last = lines
        .get(lines.len().saturating_sub(MAX_LINES)..)
        .unwrap_or_default();
    if last.is_empty() {
        String::new()
    } else {
        format!(":\n{}", last.join("\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_missing_program_is_told_with_its_package() {
        let error = run(&mut Command::new("no-such-program")).unwrap_err().to_string();
        assert!(error.contains("apt-get install no-such-program"), "{error}");
    }

    #[test]
    fn a_failure_has_the_programs_own_words() {
        let error = run(Command::new("sh").args(["-c", "echo because >&2; exit 3"]))
            .unwrap_err()
            .to_string();
        assert!(
            error.contains("sh failed") && error.contains("because") && error.contains('3'),
            "{error}"
        );
    }
}
