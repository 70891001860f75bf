//! What a serial console, a terminal or a command says, as it says it: a thread reads the source
//! into a buffer, and whoever waits for a text is woken by what arrives. Nothing polls.

use std::io::{ErrorKind, Read};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

/// A growing text.
#[derive(Clone)]
pub struct Transcript {
    name: Arc<str>,
    shared: Arc<(Mutex<State>, Condvar)>,
}

#[derive(Default)]
struct State {
    text: Vec<u8>,
    ended: bool,
}

/// A text that did not come.
#[derive(Debug, thiserror::Error)]
pub enum Missed {
    #[error("{name} did not say {wanted:?} within {} s. Its end is:\n{tail}", limit.as_secs())]
    Late {
        name: String,
        wanted: String,
        limit: Duration,
        tail: String,
    },
    #[error("{name} ended without saying {wanted:?}. Its end is:\n{tail}")]
    Ended {
        name: String,
        wanted: String,
        tail: String,
    },
}

/// Lines that a failure shows.
const TAIL_LINES: usize = 60;

impl Transcript {
    /// Reads `source` to its end in a thread of its own; `name` is for errors.
    pub fn follow(name: &str, source: impl Read + Send + 'static) -> Self {
        let transcript = Self {
            name: name.into(),
            shared: Arc::default(),
        };
        let writer = transcript.clone();
        thread::spawn(move || writer.fill(source));
        transcript
    }

    fn fill(&self, mut source: impl Read) {
        let mut buffer = [0; 4096];
        loop {
            match source.read(&mut buffer) {
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                // A terminal whose other side is gone reports an error, not an end.
                Ok(0) | Err(_) => break,
                Ok(count) => {
                    self.lock()
                        .text
                        .extend_from_slice(buffer.get(..count).unwrap_or_default());
                    self.shared.1.notify_all();
                }
            }
        }
        self.lock().ended = true;
        self.shared.1.notify_all();
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.shared.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Whether both are the same text.
    #[must_use]
    pub fn is(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.shared, &other.shared)
    }

    /// How much has been said, as the place to wait from ([`Self::wait_after`]).
    #[must_use]
    pub fn mark(&self) -> usize {
        self.lock().text.len()
    }

    /// All that has been said, without carriage returns.
    #[must_use]
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.lock().text).replace('\r', "")
    }

    /// The last lines.
    #[must_use]
    pub fn tail(&self) -> String {
        let text = self.text();
        let lines = text.lines().collect::<Vec<_>>();
        lines
            .get(lines.len().saturating_sub(TAIL_LINES)..)
            .unwrap_or_default()
            .join("\n")
    }

    /// Waits until `wanted` has been said since the beginning, and gives the line it stands in as
    /// far as it has come.
    ///
    /// # Errors
    /// It was not said within `limit`, or the source ended.
    pub fn wait_for(&self, wanted: &str, limit: Duration) -> Result<String, Missed> {
        self.wait_after(0, wanted, limit).map(|(line, _)| line)
    }

    /// As [`Self::wait_for`], of what was said after `mark`; also gives the place behind `wanted`.
    ///
    /// # Errors
    /// As [`Self::wait_for`].
    pub fn wait_after(&self, mark: usize, wanted: &str, limit: Duration) -> Result<(String, usize), Missed> {
        let deadline = Instant::now() + limit;
        let mut state = self.lock();
        // What was searched already is not searched again.
        let mut from = mark;
        loop {
            if let Some(at) = find(state.text.get(from..).unwrap_or_default(), wanted.as_bytes()) {
                let at = from + at;
                return Ok((line_at(&state.text, at), at + wanted.len()));
            }
            from = state.text.len().saturating_sub(wanted.len()).max(mark);
            let left = deadline.saturating_duration_since(Instant::now());
            if state.ended || left.is_zero() {
                let (ended, name, wanted) = (state.ended, self.name.to_string(), wanted.to_owned());
                drop(state);
                let tail = self.tail();
                return Err(if ended {
                    Missed::Ended { name, wanted, tail }
                } else {
                    Missed::Late {
                        name,
                        wanted,
                        limit,
                        tail,
                    }
                });
            }
            state = self
                .shared
                .1
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// Waits until the source has ended; says whether it did within `limit`.
    #[must_use]
    pub fn wait_end(&self, limit: Duration) -> bool {
        let (state, _) = self
            .shared
            .1
            .wait_timeout_while(self.lock(), limit, |state| !state.ended)
            .unwrap_or_else(PoisonError::into_inner);
        state.ended
    }
}

fn find(text: &[u8], wanted: &[u8]) -> Option<usize> {
    text.windows(wanted.len().max(1))
        .position(|window| window == wanted)
}

/// The line that the byte at `at` stands in, as far as it has come.
fn line_at(text: &[u8], at: usize) -> String {
    let (before, after) = text.split_at(at);
    let start = before
        .iter()
        .rposition(|byte| *byte == b'\n')
        .map_or(0, |at| at + 1);
    let end = after
        .iter()
        .position(|byte| *byte == b'\n')
        .map_or(text.len(), |end| at + end);
    String::from_utf8_lossy(text.get(start..end).unwrap_or_default())
        .trim_end_matches('\r')
        .to_owned()
}

#[cfg(test)]
mod tests {
    use std::io::{Write, pipe};

    use super::*;

    const LONG: Duration = Duration::from_secs(20);

    #[test]
    fn a_text_that_comes_in_pieces_is_found_with_its_line() {
        let (reader, mut writer) = pipe().unwrap();
        let transcript = Transcript::follow("pipe", reader);
        writer.write_all(b"first\r\nboot: rea").unwrap();
        transcript.wait_for("rea", LONG).unwrap();
        writer.write_all(b"dy\r\nlast").unwrap();
        assert_eq!(transcript.wait_for("ready", LONG).unwrap(), "boot: ready");
        assert_eq!(transcript.text(), "first\nboot: ready\nlast");
    }

    #[test]
    fn waiting_after_a_mark_does_not_see_what_was_said_before() {
        let (reader, mut writer) = pipe().unwrap();
        let transcript = Transcript::follow("pipe", reader);
        writer.write_all(b"prompt $ ").unwrap();
        let (_, mark) = transcript.wait_after(0, "$ ", LONG).unwrap();
        let missed = transcript
            .wait_after(mark, "$ ", Duration::from_millis(1))
            .unwrap_err();
        assert!(matches!(missed, Missed::Late { .. }), "{missed}");
        writer.write_all(b"again $ ").unwrap();
        transcript.wait_after(mark, "$ ", LONG).unwrap();
    }

    #[test]
    fn a_source_that_ends_is_not_waited_on() {
        let transcript = Transcript::follow("console", &b"kernel panic"[..]);
        let missed = transcript.wait_for("ready", LONG).unwrap_err();
        assert!(matches!(missed, Missed::Ended { .. }), "{missed}");
        assert!(missed.to_string().contains("kernel panic"), "{missed}");
        assert!(transcript.wait_end(LONG));
    }
}
