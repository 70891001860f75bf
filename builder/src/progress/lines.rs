//! Progress for a pipe or a log: one line a step, with its time.
//!
//! The line is begun when the step begins, so that a log that stops tells what it stopped at.

use std::io::Write;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::{Progress, Step, spell};

/// Writes plain lines.
pub struct Lines {
    state: Arc<Mutex<State>>,
}

struct State {
    output: Box<dyn Write + Send>,
    /// The step whose line is begun and not ended.
    open: Option<u64>,
    steps: u64,
}

impl Lines {
    pub fn new(output: impl Write + Send + 'static) -> Self {
        Self {
            state: Arc::new(Mutex::new(State {
                output: Box::new(output),
                open: None,
                steps: 0,
            })),
        }
    }
}

impl Progress for Lines {
    fn step(&self, name: &str) -> Box<dyn Step> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        state.steps += 1;
        let number = state.steps;
        state.end_line();
        state.write(&format!("{name} ... "));
        state.open = Some(number);
        Box::new(Line {
            state: self.state.clone(),
            name: name.to_owned(),
            number,
            started: Instant::now(),
            finished: false,
        })
    }
}

impl State {
    /// Where nobody takes the lines, the work goes on all the same.
    fn write(&mut self, text: &str) {
        let _ = self
            .output
            .write_all(text.as_bytes())
            .and_then(|()| self.output.flush());
    }

    fn end_line(&mut self) {
        if self.open.take().is_some() {
            self.write("\n");
        }
    }
}

struct Line {
    state: Arc<Mutex<State>>,
    name: String,
    number: u64,
    started: Instant,
    finished: bool,
}

impl Step for Line {
    fn set_length(&self, _length: u64) {}
    fn inc(&self, _done: u64) {}
    fn message(&self, _text: &str) {}
    fn finish(mut self: Box<Self>) {
        self.finished = true;
    }
}

impl Drop for Line {
    fn drop(&mut self) {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.open != Some(self.number) {
            state.end_line();
            state.write(&format!("{} ... ", self.name));
        }
        state.open = None;
        let end = if self.finished {
            spell(self.started.elapsed())
        } else {
            "failed".to_owned()
        };
        state.write(&format!("{end}\n"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Clone, Default)]
    struct Text(Arc<Mutex<Vec<u8>>>);

    impl Write for Text {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().extend(bytes);
            Ok(bytes.len())
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn a_step_is_one_line_and_one_within_another_has_its_own() {
        let text = Text::default();
        let lines = Lines::new(text.clone());
        lines.step("fetch").finish();
        let outer = lines.step("build");
        lines.step("unpack").finish();
        outer.finish();
        drop(lines.step("boot"));
        let text = String::from_utf8(text.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "fetch ... 0.0 s\nbuild ... \nunpack ... 0.0 s\nbuild ... 0.0 s\nboot ... failed\n"
        );
    }
}
