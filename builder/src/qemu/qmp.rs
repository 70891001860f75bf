//! QEMU's monitor protocol (QMP), as much of it as is needed: one command over a connection.

use std::io::{self, BufRead, BufReader, Read as _, Write as _};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use serde_json::{Value, json};

/// How long QEMU may take for one answer.
const LIMIT: Duration = Duration::from_secs(5);
/// QEMU's answers are short.
const MAX_LINE: u64 = 64 << 10;

/// Why QEMU did not do something.
#[derive(Debug, thiserror::Error)]
pub enum QmpError {
    #[error("QEMU's monitor does not answer")]
    Silent(#[from] io::Error),
    #[error("QEMU's monitor was closed")]
    Closed,
    #[error("QEMU refuses `{command}`: {answer}")]
    Refused { command: String, answer: String },
}

/// Has QEMU execute a command; gives what it returns.
///
/// # Errors
/// QEMU does not answer in time, or refuses.
pub fn execute(socket: &Path, command: &str) -> Result<Value, QmpError> {
    execute_with(socket, command, &json!({}))
}

/// As [`execute`], of a command that takes arguments.
///
/// # Errors
/// As [`execute`].
pub fn execute_with(socket: &Path, command: &str, arguments: &Value) -> Result<Value, QmpError> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(LIMIT))?;
    stream.set_write_timeout(Some(LIMIT))?;
    let mut answers = BufReader::new(stream.try_clone()?);
    read(&mut answers)?; // the greeting
    let mut returned = Value::Null;
    for (command, arguments) in [("qmp_capabilities", &json!({})), (command, arguments)] {
        writeln!(
            stream,
            "{}",
            json!({ "execute": command, "arguments": arguments })
        )?;
        returned = answer(&mut answers, command)?;
    }
    Ok(returned)
}

/// Has QEMU end, as if the machine's plug were pulled. It is gone a moment later.
///
/// # Errors
/// As [`execute`].
pub fn quit(socket: &Path) -> Result<(), QmpError> {
    match execute(socket, "quit") {
        // It may be gone before it has answered.
        Ok(_) | Err(QmpError::Closed) => Ok(()),
        Err(QmpError::Silent(error)) if error.kind() == io::ErrorKind::ConnectionReset => Ok(()),
        Err(error) => Err(error),
    }
}

/// Reads up to the answer; events may come before it.
fn answer(answers: &mut impl BufRead, command: &str) -> Result<Value, QmpError> {
    loop {
        let value = read(answers)?;
        if let Some(returned) = value.get("return") {
            return Ok(returned.clone());
        }
        if let Some(error) = value.get("error") {
            let description = error.get("desc").and_then(Value::as_str);
            return Err(QmpError::Refused {
                command: command.to_owned(),
                answer: description.unwrap_or("without a reason").to_owned(),
            });
        }
    }
}

fn read(answers: &mut impl BufRead) -> Result<Value, QmpError> {
    let mut line = String::new();
    if answers.take(MAX_LINE).read_line(&mut line)? == 0 {
        return Err(QmpError::Closed);
    }
    serde_json::from_str(&line).map_err(|error| io::Error::other(error).into())
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;
    use std::thread;

    use super::*;

    /// Something that says these lines, each after it has heard one (the first at once).
    fn monitor(lines: &'static [&'static str]) -> (tempfile::TempDir, std::path::PathBuf) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("qmp");
        let listener = UnixListener::bind(&path).unwrap();
        thread::spawn(move || {
            let (mut stream, _) = listener.accept().unwrap();
            let mut heard = BufReader::new(stream.try_clone().unwrap()).lines();
            for line in lines {
                stream.write_all(line.as_bytes()).unwrap();
                let _ = heard.next();
            }
        });
        (folder, path)
    }

    #[test]
    fn events_before_the_answer_are_passed_over() {
        let (_folder, path) = monitor(&[
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"event\": \"RESUME\"}\n{\"return\": {\"running\": true}}\n",
        ]);
        let returned = execute(&path, "query-status").unwrap();
        assert_eq!(returned, json!({"running": true}));
    }

    #[test]
    fn a_refusal_is_told_in_qemus_words() {
        let (_folder, path) = monitor(&[
            "{\"QMP\": {}}\n",
            "{\"return\": {}}\n",
            "{\"error\": {\"class\": \"CommandNotFound\", \"desc\": \"not known\"}}\n",
        ]);
        let error = execute(&path, "dance").unwrap_err().to_string();
        assert!(error.contains("dance") && error.contains("not known"), "{error}");
    }

    #[test]
    fn a_monitor_that_is_not_there_or_goes_away_is_an_error() {
        let (_folder, path) = monitor(&["{\"QMP\": {}}\n", "nonsense\n"]);
        assert!(execute(&path, "query-status").is_err());
        let (_folder, path) = monitor(&["{\"QMP\": {}}\n", "{\"return\": {}}\n"]);
        assert!(quit(&path).is_ok(), "gone is what `quit` wants");
        assert!(execute(Path::new("/nowhere"), "quit").is_err());
    }
}
