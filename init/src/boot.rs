//! Boot as a list of named phases. Each is timed and logged; one that fails says so on the console
//! and the boot goes on, because a machine that answers with less is better than one that hangs.

use std::fmt::Display;
use std::time::Instant;

use crate::console::say;

/// One named part of the boot.
pub(crate) struct Phase {
    pub(crate) name: &'static str,
    /// Does the work; the text it returns is what the console tells of it (may be empty).
    pub(crate) run: fn() -> anyhow::Result<String>,
}

/// Runs the phases in order.
pub(crate) fn run(phases: &[Phase]) {
    for phase in phases {
        let started = Instant::now();
        report(phase.name, started, (phase.run)());
    }
}

/// Logs how a phase ended and gives its value on, if it has one.
pub(crate) fn report<T: Display, E: Into<anyhow::Error>>(
    name: &str,
    started: Instant,
    outcome: Result<T, E>,
) -> Option<T> {
    let millis = started.elapsed().as_millis();
    match outcome {
        Ok(told) => {
            let text = told.to_string();
            let colon = if text.is_empty() { "" } else { ": " };
            say!("{name} ({millis} ms){colon}{text}");
            Some(told)
        }
        Err(error) => {
            say!("{name} FAILED ({millis} ms): {:#}", error.into());
            None
        }
    }
}
