//! Progress for a terminal: a bar while a step lasts, and a line with its time when it is over.

use std::time::{Duration, Instant};

use indicatif::{MultiProgress, ProgressBar, ProgressStyle};

use super::{Progress, Step, spell};

/// How often the spinner turns.
const TICK: Duration = Duration::from_millis(100);
/// Columns of a step's name.
const NAME: usize = 36;
const SPINNING: &str = "{spinner:.cyan} {prefix} {elapsed:>6.dim}  {wide_msg:.dim}";
const COUNTING: &str =
    "{spinner:.cyan} {prefix} {elapsed:>6.dim}  {bar:20.cyan/dim} {percent:>3} %  {wide_msg:.dim}";

/// Draws bars on the terminal that is the standard error stream.
#[derive(Debug, Clone, Default)]
pub struct Terminal {
    bars: MultiProgress,
}

impl Progress for Terminal {
    fn step(&self, name: &str) -> Box<dyn Step> {
        let bar = self.bars.add(ProgressBar::new_spinner());
        bar.set_style(style(SPINNING));
        bar.set_prefix(format!("{name:NAME$}"));
        bar.enable_steady_tick(TICK);
        Box::new(Bar {
            bars: self.bars.clone(),
            bar,
            name: name.to_owned(),
            started: Instant::now(),
            finished: false,
        })
    }
}

fn style(template: &str) -> ProgressStyle {
    // A template with a mistake would only look plainer.
    ProgressStyle::with_template(template)
        .unwrap_or_else(|_| ProgressStyle::default_spinner())
        .progress_chars("━━─")
}

struct Bar {
    bars: MultiProgress,
    bar: ProgressBar,
    name: String,
    started: Instant,
    finished: bool,
}

impl Step for Bar {
    fn set_length(&self, length: u64) {
        self.bar.set_length(length);
        self.bar.set_style(style(COUNTING));
    }

    fn inc(&self, done: u64) {
        self.bar.inc(done);
    }

    fn message(&self, text: &str) {
        self.bar.set_message(text.to_owned());
    }

    fn finish(mut self: Box<Self>) {
        self.finished = true;
    }
}

impl Drop for Bar {
    fn drop(&mut self) {
        let time = spell(self.started.elapsed());
        let mark = if self.finished {
            "\x1b[32m✓\x1b[0m"
        } else {
            "\x1b[31m✗\x1b[0m"
        };
        let _ = self
            .bars
            .println(format!("{mark} {:NAME$} \x1b[2m{time:>6}\x1b[0m", self.name));
        self.bar.finish_and_clear();
    }
}
