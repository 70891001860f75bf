//! A recipe's mistakes, told with file, line and column and the line itself.

use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};

/// Why a recipe is not taken.
#[derive(Debug, thiserror::Error)]
pub enum RecipeError {
    #[error("Cannot read the recipe {}; name a file such as images/quickstart.toml", path.display())]
    Unreadable { path: PathBuf, source: io::Error },
    #[error("{}:{line}:{column}: {message}\n  {line} | {excerpt}", path.display())]
    Mistake {
        path: PathBuf,
        line: usize,
        column: usize,
        message: String,
        excerpt: String,
    },
}

/// An error at a place of the recipe's text (byte offsets).
pub(super) fn at(path: &Path, text: &str, span: Range<usize>, message: String) -> RecipeError {
    let mut start = span.start.min(text.len());
    while !text.is_char_boundary(start) {
        start -= 1;
    }
    // The end of the text counts as part of its last line.
    if start == text.len() && text.ends_with('\n') {
        start -= 1;
    }
    let before = &text[..start];
    let line_start = before.rfind('\n').map_or(0, |at| at + 1);
    RecipeError::Mistake {
        path: path.to_owned(),
        line: before.matches('\n').count() + 1,
        column: before[line_start..].chars().count() + 1,
        message,
        excerpt: text[line_start..].lines().next().unwrap_or("").to_owned(),
    }
}

/// The error of the TOML reader, made into one of ours.
pub(super) fn from_toml(path: &Path, text: &str, error: &toml::de::Error) -> RecipeError {
    let told = capitalised(error.message().trim());
    let message = match suggestion(&told) {
        Some(near) => format!("{told}. Did you mean `{near}`?"),
        None => told,
    };
    at(
        path,
        text,
        error.span().unwrap_or(0..0),
        message.replace('\n', " "),
    )
}

fn capitalised(text: &str) -> String {
    let mut chars = text.chars();
    chars
        .next()
        .map_or_else(String::new, |first| first.to_uppercase().chain(chars).collect())
}

/// For ``unknown field `x`, expected one of `a`, `b` ``: the expected word that is nearest to `x`.
fn suggestion(message: &str) -> Option<&str> {
    if !message.starts_with("Unknown ") {
        return None;
    }
    let mut quoted = message.split('`').skip(1).step_by(2);
    let wrong = quoted.next()?;
    quoted
        .map(|word| (distance(wrong, word), word))
        .filter(|(distance, word)| *distance <= 2.max(word.len() / 3))
        .min()
        .map(|(_, word)| word)
}

/// Levenshtein distance: how many letters must be changed, added or dropped.
fn distance(a: &str, b: &str) -> usize {
    let mut row: Vec<usize> = (0..=b.chars().count()).collect();
    for (i, from) in a.chars().enumerate() {
        let mut diagonal = i;
        let mut left = i + 1;
        for (cell, to) in row.iter_mut().skip(1).zip(b.chars()) {
            let above = *cell;
            left = (above + 1).min(left + 1).min(diagonal + usize::from(from != to));
            diagonal = above;
            *cell = left;
        }
        if let Some(first) = row.first_mut() {
            *first = i + 1;
        }
    }
    row.last().copied().unwrap_or(0)
}
