//! How long work is told to whoever waits for it: bars on a terminal, plain lines elsewhere, and
//! with each step the time that it took.

mod lines;
mod terminal;

use std::io::{self, IsTerminal as _};
use std::time::Duration;

pub use lines::Lines;
pub use terminal::Terminal;

/// Takes notice of the steps of some work.
pub trait Progress: Sync {
    /// Begins a step; it ends with [`Step::finish`], or as a failure when it is dropped before.
    fn step(&self, name: &str) -> Box<dyn Step>;
}

/// One step under way.
pub trait Step {
    /// How much there is to do, in the unit of [`Step::inc`].
    fn set_length(&self, length: u64);
    fn inc(&self, done: u64);
    /// What is being done right now.
    fn message(&self, text: &str);
    fn finish(self: Box<Self>);
}

/// What suits the standard error stream.
#[must_use]
pub fn for_stderr() -> Box<dyn Progress> {
    if io::stderr().is_terminal() {
        Box::new(Terminal::default())
    } else {
        Box::new(Lines::new(io::stderr()))
    }
}

/// A time as people read it: `0.3 s`, `12 s`, `2 min 5 s`, `3 h 12 min`, `4 d 2 h`.
#[must_use]
pub fn spell(time: Duration) -> String {
    let seconds = time.as_secs();
    match seconds {
        0..10 => format!("{:.1} s", time.as_secs_f64()),
        10..60 => format!("{seconds} s"),
        60..3600 => format!("{} min {} s", seconds / 60, seconds % 60),
        3600..86_400 => format!("{} h {} min", seconds / 3600, seconds % 3600 / 60),
        _ => format!("{} d {} h", seconds / 86_400, seconds % 86_400 / 3600),
    }
}

/// Tells nobody.
#[derive(Debug, Clone, Copy, Default)]
pub struct Silent;

impl Progress for Silent {
    fn step(&self, _name: &str) -> Box<dyn Step> {
        Box::new(Self)
    }
}

impl Step for Silent {
    fn set_length(&self, _length: u64) {}
    fn inc(&self, _done: u64) {}
    fn message(&self, _text: &str) {}
    fn finish(self: Box<Self>) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_spelled_as_people_read_them() {
        for (millis, spelled) in [
            (49, "0.0 s"),
            (1_260, "1.3 s"),
            (12_900, "12 s"),
            (125_000, "2 min 5 s"),
            (11_520_000, "3 h 12 min"),
            (352_800_000, "4 d 2 h"),
        ] {
            assert_eq!(spell(Duration::from_millis(millis)), spelled);
        }
    }
}
