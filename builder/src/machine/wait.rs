//! Waiting for a machine that boots, by what happens: lines of its console, the end of its process,
//! answers of its API.

use std::io::SeekFrom;
use std::ops::ControlFlow;
use std::sync::mpsc::{RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use super::{Machine, Process, TAIL};
use crate::client::{Api, ApiError};

/// The console's word that everything is there.
const READY: &str = "monobloc: ready";
/// The console's word that somebody has to give a passphrase first.
const LOCKED: &str = "monobloc: pool: LOCKED";
/// The kernel's last word.
const PANIC: &str = "Kernel panic";
/// How long a boot may take, emulated on a machine that does other things as well.
const BOOT: Duration = Duration::from_secs(300);
/// How long after the console's word the API may be out of reach, or the other way round.
const GRACE: Duration = Duration::from_secs(60);
/// How often the API is asked without an occasion: hardly before the console's word, often after it.
const SELDOM: Duration = Duration::from_secs(5);
const OFTEN: Duration = Duration::from_millis(500);
/// How long one question may take.
const QUESTION: Duration = Duration::from_secs(10);

/// Why a machine did not come up.
#[derive(Debug, thiserror::Error)]
pub enum NotReady {
    #[error("The machine's kernel panicked{tail}")]
    Panicked { tail: Tail },
    #[error(
        "The machine waits for the passphrase of its pool. Give it by `monobloc pool unlock`, or type it at \
         the console (`monobloc console`); everything is there then"
    )]
    Locked,
    #[error("The machine ended while it booted{tail}")]
    Ended { tail: Tail },
    #[error("The machine was not ready after {} s{}{tail}", .waited.as_secs(), because(.last))]
    Late {
        waited: Duration,
        last: Option<String>,
        tail: Tail,
    },
}

/// The console's end, as a part of a sentence.
#[derive(Debug)]
pub struct Tail(String);

impl std::fmt::Display for Tail {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.0.is_empty() {
            return formatter.write_str("; its console said nothing");
        }
        formatter.write_str("; the end of its console:\n")?;
        for line in self.0.lines() {
            write!(formatter, "\n    {line}")?;
        }
        Ok(())
    }
}

fn because(last: &Option<String>) -> String {
    last.as_ref()
        .map_or_else(String::new, |last| format!(" ({last})"))
}

enum Event {
    Line(String),
    /// The log has ended, and with it the process.
    End,
    Answer(Result<(), ApiError>),
}

impl Machine {
    /// Waits until the machine says that it is ready and its API answers; `told` gets each line of
    /// the console.
    ///
    /// # Errors
    /// It ends or panics instead, or takes too long.
    pub fn wait_ready(
        &self,
        process: &Process,
        api: &Api,
        told: &mut dyn FnMut(&str),
    ) -> Result<(), NotReady> {
        let (sender, events) = channel();
        self.watch_log(process, sender.clone());
        let mut wait = Wait::new(Instant::now());
        loop {
            if wait.is_over() {
                return Ok(());
            }
            let now = Instant::now();
            if now >= wait.deadline {
                return Err(self.late(wait));
            }
            if wait.is_due(now) {
                wait.asking = true;
                ask(api.clone(), sender.clone());
            }
            let next = if wait.asking {
                wait.deadline
            } else {
                wait.deadline.min(wait.next)
            };
            match events.recv_timeout(next.saturating_duration_since(now)) {
                Ok(Event::Line(line)) => {
                    told(&line);
                    if line.contains(PANIC) {
                        return Err(self.panicked(&events));
                    }
                    if line.contains(LOCKED) {
                        return Err(NotReady::Locked);
                    }
                    wait.heard(&line);
                }
                Ok(Event::Answer(answer)) => wait.answered(answer),
                Ok(Event::End) | Err(RecvTimeoutError::Disconnected) => {
                    return Err(NotReady::Ended { tail: self.end() });
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    /// Gives the panic the moment that it takes to be told in full.
    fn panicked(&self, events: &std::sync::mpsc::Receiver<Event>) -> NotReady {
        const TOLD: &str = "end Kernel panic";
        let deadline = Instant::now() + Duration::from_secs(1);
        while let Ok(event) = events.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            if matches!(&event, Event::Line(line) if line.contains(TOLD)) || matches!(event, Event::End) {
                break;
            }
        }
        NotReady::Panicked { tail: self.end() }
    }

    fn late(&self, wait: Wait) -> NotReady {
        NotReady::Late {
            waited: wait.started.elapsed(),
            last: wait.last,
            tail: self.end(),
        }
    }

    fn end(&self) -> Tail {
        Tail(self.tail(TAIL))
    }

    /// Sends each line of the log from its beginning on.
    fn watch_log(&self, process: &Process, events: Sender<Event>) {
        let Ok(process) = process.try_clone() else {
            return;
        };
        let machine = self.clone();
        thread::spawn(move || {
            let mut rest = Vec::new();
            let _ = machine.follow(SeekFrom::Start(0), Some(&process), |bytes| {
                rest.extend_from_slice(bytes);
                while let Some(end) = rest.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = rest.drain(..=end).collect();
                    let line = String::from_utf8_lossy(&line).trim_end().to_owned();
                    // Nobody waits any more.
                    if events.send(Event::Line(line)).is_err() {
                        return ControlFlow::Break(());
                    }
                }
                ControlFlow::Continue(())
            });
            let _ = events.send(Event::End);
        });
    }
}

/// What is known while waiting.
struct Wait {
    started: Instant,
    deadline: Instant,
    /// When the API is asked next.
    next: Instant,
    asking: bool,
    ready: bool,
    answers: bool,
    /// Why the API did not answer last.
    last: Option<String>,
}

impl Wait {
    fn new(now: Instant) -> Self {
        Self {
            started: now,
            deadline: now + BOOT,
            next: now + SELDOM,
            asking: false,
            ready: false,
            answers: false,
            last: None,
        }
    }

    fn is_over(&self) -> bool {
        self.ready && self.answers
    }

    fn is_due(&self, now: Instant) -> bool {
        !self.asking && !self.answers && now >= self.next
    }

    fn heard(&mut self, line: &str) {
        if line.contains(READY) && !self.ready {
            self.ready = true;
            let now = Instant::now();
            self.next = now;
            self.deadline = self.deadline.min(now + GRACE);
        }
    }

    fn answered(&mut self, answer: Result<(), ApiError>) {
        self.asking = false;
        let now = Instant::now();
        match answer {
            Ok(()) => {
                self.answers = true;
                self.last = None;
                self.deadline = self.deadline.min(now + GRACE);
            }
            Err(error) => {
                self.last = Some(error.to_string());
                self.next = now + if self.ready { OFTEN } else { SELDOM };
            }
        }
    }
}

fn ask(api: Api, events: Sender<Event>) {
    thread::spawn(move || events.send(Event::Answer(api.ping(QUESTION))));
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_api_is_asked_when_the_console_says_ready() {
        let now = Instant::now();
        let mut wait = Wait::new(now);
        wait.heard("[    1.000] monobloc: bridge (3 ms)");
        assert!(!wait.is_due(Instant::now()));
        wait.heard("[    2.000] monobloc: ready, with 50 MB of memory in use");
        assert!(wait.is_due(Instant::now()) && !wait.is_over());
        wait.answered(Ok(()));
        assert!(wait.is_over());
    }

    #[test]
    fn an_answer_before_the_console_says_ready_is_not_enough() {
        let mut wait = Wait::new(Instant::now());
        wait.answered(Ok(()));
        assert!(!wait.is_over() && !wait.is_due(Instant::now() + SELDOM));
        wait.heard("monobloc: ready");
        assert!(wait.is_over());
    }

    #[test]
    fn a_failure_to_come_up_shows_the_consoles_end() {
        let late = NotReady::Late {
            waited: Duration::from_secs(60),
            last: Some("No connection".to_owned()),
            tail: Tail("one\ntwo".to_owned()),
        };
        assert_eq!(
            late.to_string(),
            "The machine was not ready after 60 s (No connection); the end of its console:\n\n    one\n    two"
        );
    }
}
