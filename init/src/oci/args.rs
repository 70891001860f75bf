//! The command line of an OCI runtime, as callers of runc and crun write it: options anywhere, long
//! ones with one dash or two, values after `=` or as the next word.

use std::collections::VecDeque;

use anyhow::{Context as _, bail, ensure};

/// An option: its names, the first of which it is known by, and whether it has a value.
pub(super) struct Known {
    pub(super) names: &'static [&'static str],
    pub(super) value: bool,
}

/// An option with a value.
pub(super) const fn value(names: &'static [&'static str]) -> Known {
    Known { names, value: true }
}

/// An option without.
pub(super) const fn flag(names: &'static [&'static str]) -> Known {
    Known { names, value: false }
}

/// The options of a command and what else it was given.
#[derive(Debug, Default)]
pub(super) struct Parsed {
    options: Vec<(&'static str, String)>,
    pub(super) words: VecDeque<String>,
}

impl Parsed {
    /// Reads options until the words begin, and takes all that follows as words.
    pub(super) fn leading(words: impl IntoIterator<Item = String>, known: &[Known]) -> anyhow::Result<Self> {
        Self::read(words, known, true)
    }

    /// Reads options and words in any order.
    pub(super) fn all(words: impl IntoIterator<Item = String>, known: &[Known]) -> anyhow::Result<Self> {
        Self::read(words, known, false)
    }

    fn read(words: impl IntoIterator<Item = String>, known: &[Known], leading: bool) -> anyhow::Result<Self> {
        let mut parsed = Self::default();
        let mut words = words.into_iter();
        while let Some(word) = words.next() {
            let option = word.strip_prefix('-').filter(|rest| !rest.is_empty());
            let Some(option) = option else {
                parsed.words.push_back(word);
                if leading {
                    break;
                }
                continue;
            };
            let option = option.strip_prefix('-').unwrap_or(option);
            if option.is_empty() {
                break;
            }
            let (name, own) = match option.split_once('=') {
                Some((name, value)) => (name, Some(value.to_owned())),
                None => (option, None),
            };
            let found = known.iter().find(|known| known.names.contains(&name));
            let found = found.with_context(|| format!("There is no option {word:?} here; see --help"))?;
            let first = found.names.first().copied().unwrap_or_default();
            let value = match (found.value, own) {
                (true, Some(value)) => value,
                (true, None) => words
                    .next()
                    .with_context(|| format!("The option {word:?} needs a value"))?,
                (false, None) => "true".to_owned(),
                (false, Some(value)) if value == "true" => value,
                (false, Some(value)) if value == "false" => continue,
                (false, Some(_)) => bail!("The option {word:?} takes no value"),
            };
            parsed.options.push((first, value));
        }
        parsed.words.extend(words);
        Ok(parsed)
    }

    /// The value of an option, the last one if there are more.
    pub(super) fn get(&self, name: &str) -> Option<&str> {
        let given = self.options.iter().rfind(|(known, _)| *known == name);
        given.map(|(_, value)| value.as_str())
    }

    /// All values of an option that may be there more than once.
    pub(super) fn all_of(&self, name: &str) -> Vec<String> {
        let given = self.options.iter().filter(|(known, _)| *known == name);
        given.map(|(_, value)| value.clone()).collect()
    }

    pub(super) fn has(&self, name: &str) -> bool {
        self.get(name).is_some()
    }

    /// The next word, which says what the command is about.
    pub(super) fn word(&mut self, what: &str) -> anyhow::Result<String> {
        self.words
            .pop_front()
            .with_context(|| format!("Say {what}; see --help"))
    }

    /// Nothing may be left.
    pub(super) fn end(&self) -> anyhow::Result<()> {
        ensure!(
            self.words.is_empty(),
            "{:?} is too much here; see --help",
            self.words.front().map_or("", String::as_str)
        );
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KNOWN: &[Known] = &[value(&["bundle", "b"]), flag(&["force", "f"])];

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(str::to_owned).collect()
    }

    #[test]
    fn options_stand_where_callers_put_them() {
        for line in [
            "--bundle /x -f id",
            "-b=/x id --force",
            "id -bundle /x --force=true",
            "-f --bundle=/x -- id",
        ] {
            let mut parsed = Parsed::all(words(line), KNOWN).unwrap();
            assert_eq!(
                (parsed.get("bundle"), parsed.has("force")),
                (Some("/x"), true),
                "{line}"
            );
            assert_eq!(parsed.word("the id").unwrap(), "id", "{line}");
            parsed.end().unwrap();
        }
        let parsed = Parsed::leading(words("-f id -f x"), KNOWN).unwrap();
        assert_eq!(parsed.words, ["id", "-f", "x"]);
    }

    #[test]
    fn a_wrong_line_is_told() {
        for line in ["--nothing id", "id --bundle", "--force=x"] {
            assert!(Parsed::all(words(line), KNOWN).is_err(), "{line}");
        }
    }
}
