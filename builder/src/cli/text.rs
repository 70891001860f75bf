//! How things look: emphasis where a terminal shows it, tables, errors, and the way this program
//! was called, so that what is to be typed next can be typed as it stands.

use std::env;
use std::fmt::Write as _;
use std::io::{self, IsTerminal, Write as _};

use anyhow::Context as _;
use serde::Serialize;

/// Whether a stream shows colours (see also <https://no-color.org>).
fn shows_colour(stream: &impl IsTerminal) -> bool {
    stream.is_terminal() && env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

fn wrapped(code: &str, text: &str) -> String {
    if shows_colour(&io::stdout()) {
        format!("\x1b[{code}m{text}\x1b[0m")
    } else {
        text.to_owned()
    }
}

pub(super) fn bold(text: &str) -> String {
    wrapped("1", text)
}

pub(super) fn dim(text: &str) -> String {
    wrapped("2", text)
}

pub(super) fn green(text: &str) -> String {
    wrapped("32", text)
}

pub(super) fn red(text: &str) -> String {
    wrapped("31", text)
}

/// Writes to standard output; a reader that has gone away (`| head`) is no failure.
pub(super) fn print(text: &str) -> anyhow::Result<()> {
    let mut stdout = io::stdout().lock();
    match stdout.write_all(text.as_bytes()).and_then(|()| stdout.flush()) {
        Err(error) if error.kind() != io::ErrorKind::BrokenPipe => {
            Err(error).context("Cannot write to standard output")
        }
        _ => Ok(()),
    }
}

pub(super) fn print_json(value: &impl Serialize) -> anyhow::Result<()> {
    let mut text = serde_json::to_string_pretty(value).context("Cannot write this as JSON")?;
    text.push('\n');
    print(&text)
}

/// Rows of a name and a text, the texts under each other.
pub(super) fn table<'a>(rows: impl IntoIterator<Item = (&'a str, String)> + Clone) -> String {
    let width = rows
        .clone()
        .into_iter()
        .map(|(name, _)| name.chars().count())
        .max()
        .unwrap_or_default();
    rows.into_iter().fold(String::new(), |mut text, (name, value)| {
        let _ = writeln!(text, "  {name:width$}  {value}");
        text
    })
}

pub(super) fn indented(text: &str) -> String {
    text.lines().fold(String::new(), |mut all, line| {
        let _ = writeln!(all, "    {line}");
        all
    })
}

/// Bytes as people read them, in powers of 1024.
pub(super) fn size(bytes: u64) -> String {
    let units = ["KiB", "MiB", "GiB", "TiB"];
    let mut value = bytes as f64;
    let mut unit = "B";
    for next in units {
        if value < 1024.0 {
            break;
        }
        value /= 1024.0;
        unit = next;
    }
    if unit == "B" || value >= 100.0 {
        format!("{value:.0} {unit}")
    } else {
        format!("{value:.1} {unit}")
    }
}

/// A number of things.
pub(super) fn count(number: u32, thing: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {thing}{plural}")
}

/// How a person calls a command of this program again.
pub(super) fn again(arguments: &str) -> String {
    let called = env::args().next().unwrap_or_default();
    // cargo sets it for what it runs.
    let by_cargo = env::var_os("CARGO_MANIFEST_DIR").is_some();
    again_as(&called, by_cargo, cfg!(debug_assertions), arguments)
}

pub(super) fn again_as(called: &str, by_cargo: bool, debug: bool, arguments: &str) -> String {
    match (by_cargo, debug) {
        (true, true) => format!("cargo run -- {arguments}"),
        (true, false) => format!("cargo run --release -- {arguments}"),
        (false, _) if called.is_empty() => format!("monobloc {arguments}"),
        (false, _) => format!("{called} {arguments}"),
    }
}

/// Tells an error: what happened, and below it why.
pub(super) fn tell_error(error: &anyhow::Error) {
    let word = if shows_colour(&io::stderr()) {
        "\x1b[1;31merror:\x1b[0m"
    } else {
        "error:"
    };
    let mut text = format!("{word} {error}\n");
    let mut last = error.to_string();
    for cause in error.chain().skip(1) {
        let cause = cause.to_string();
        // Some libraries repeat their source in their own words.
        if !last.contains(&cause) {
            let _ = writeln!(text, "  {}", cause.replace('\n', "\n  "));
        }
        last = cause;
    }
    let _ = io::stderr().lock().write_all(text.as_bytes());
}
