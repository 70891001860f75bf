//! What a supervisor's successor should know and a reboot may forget: values under keys, in anonymous
//! memory that process 1 keeps.
//!
//! The memory is a file of lines, each a JSON array of a key and its value from there on; null has it
//! forgotten. What a killed supervisor has written stays in it, as its pages are the kernel's, and a line
//! that was cut short counts for nothing. So a note costs one small write, and no disk is waited for: that
//! suits what changes with each exec and each health check, and what no power cut can make use of.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Read, Seek};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::sync::{Mutex, MutexGuard, PoisonError};

use rustix::fs::{MemfdFlags, memfd_create};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use zones::keeper::Client;

/// Name under which process 1 keeps the memory.
pub(crate) const KEPT: &str = "memo";
/// Bytes that may be out of date, whatever is not.
const SLACK: u64 = 64 << 10;
/// Bytes of a line beside its key and its value: brackets, quotes, a comma and the end.
const AROUND: usize = 6;

pub(crate) struct Memo {
    now: Mutex<Now>,
    /// None until there is something to note. Held while the memory is written.
    lines: tokio::sync::Mutex<Option<Lines>>,
}

#[derive(Default)]
struct Now {
    /// Each with its value as it stands in the memory.
    values: HashMap<String, String>,
    /// Bytes of the lines that say so.
    weight: u64,
}

impl Now {
    fn change(&mut self, key: String, value: Option<String>) {
        let weight = |key: &str, value: &str| (key.len() + value.len() + AROUND) as u64;
        if let Some(before) = self.values.remove(&key) {
            self.weight -= weight(&key, &before);
        }
        if let Some(value) = value {
            self.weight += weight(&key, &value);
            self.values.insert(key, value);
        }
    }

    fn lines(&self) -> String {
        self.values.iter().map(|(key, value)| line(key, value)).collect()
    }
}

struct Lines {
    file: File,
    length: u64,
}

impl Memo {
    /// Takes over what a predecessor has noted.
    pub(crate) fn restore(kept: Option<OwnedFd>) -> Self {
        let mut now = Now::default();
        let lines = kept.and_then(|memory| {
            let mut file = File::from(memory);
            let mut text = Vec::new();
            // Its offset is the predecessor's.
            file.rewind().and_then(|()| file.read_to_end(&mut text)).ok()?;
            let whole = text
                .iter()
                .rposition(|byte| *byte == b'\n')
                .map_or(0, |at| at + 1);
            for line in text.get(..whole)?.split(|byte| *byte == b'\n') {
                match serde_json::from_slice::<(String, Value)>(line) {
                    Ok((key, Value::Null)) => now.change(key, None),
                    Ok((key, value)) => now.change(key, Some(value.to_string())),
                    Err(_) => {}
                }
            }
            let length = whole as u64;
            Some(Lines { file, length })
        });
        Self {
            now: Mutex::new(now),
            lines: tokio::sync::Mutex::new(lines),
        }
    }

    fn now(&self) -> MutexGuard<'_, Now> {
        self.now.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What is noted under a key, if it is of this kind.
    pub(crate) fn get<T: DeserializeOwned>(&self, key: &str) -> Option<T> {
        serde_json::from_str(self.now().values.get(key)?).ok()
    }

    /// The keys that begin so.
    pub(crate) fn keys(&self, beginning: &str) -> Vec<String> {
        let now = self.now();
        let keys = now.values.keys().filter(|key| key.starts_with(beginning));
        keys.cloned().collect()
    }

    pub(crate) async fn set(&self, keeper: &Client, key: &str, value: &impl Serialize) {
        match serde_json::to_string(value) {
            Ok(value) => self.note(keeper, key, Some(value)).await,
            Err(error) => eprintln!("memo: cannot note {key}: {error}"),
        }
    }

    pub(crate) async fn remove(&self, keeper: &Client, key: &str) {
        if self.now().values.contains_key(key) {
            self.note(keeper, key, None).await;
        }
    }

    /// A note that cannot be made is missed only by a successor.
    async fn note(&self, keeper: &Client, key: &str, value: Option<String>) {
        let mut lines = self.lines.lock().await;
        let line = line(key, value.as_deref().unwrap_or("null"));
        let all = {
            let mut now = self.now();
            now.change(key.to_owned(), value);
            let full = |lines: &Lines| lines.length > SLACK + 2 * now.weight;
            lines.as_ref().is_none_or(full).then(|| now.lines())
        };
        let noted = match (all, lines.as_mut()) {
            (None, Some(lines)) => lines.append(&line),
            (all, _) => match Lines::begin(keeper, &all.unwrap_or(line)).await {
                Ok(begun) => {
                    *lines = Some(begun);
                    Ok(())
                }
                Err(error) => Err(error),
            },
        };
        if let Err(error) = noted {
            eprintln!("memo: cannot note {key}: {error}");
        }
    }
}

fn line(key: &str, value: &str) -> String {
    format!("[{},{value}]\n", Value::from(key))
}

impl Lines {
    /// Begins anew; process 1 has the old one until it has this.
    async fn begin(keeper: &Client, text: &str) -> io::Result<Self> {
        let file = File::from(memfd_create(KEPT, MemfdFlags::CLOEXEC)?);
        let mut lines = Self { file, length: 0 };
        lines.append(text)?;
        let kept = keeper.keep(KEPT, lines.file.as_fd()).await;
        kept.map_err(io::Error::other)?;
        Ok(lines)
    }

    fn append(&mut self, text: &str) -> io::Result<()> {
        self.file.write_all_at(text.as_bytes(), self.length)?;
        self.length += text.len() as u64;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_last_whole_line_of_a_key_is_what_is_known_of_it() {
        let file = File::from(memfd_create("test", MemfdFlags::CLOEXEC).unwrap());
        let text = [
            line("a", "1"),
            line("b\"", "[2]"),
            line("a", "3"),
            line("gone", "4"),
            line("gone", "null"),
            "rubbish\n[\"a\",5".to_owned(),
        ];
        file.write_all_at(text.concat().as_bytes(), 0).unwrap();
        let memo = Memo::restore(Some(file.into()));
        assert_eq!(memo.get::<u32>("a"), Some(3));
        assert_eq!(memo.get::<Vec<u32>>("b\""), Some(vec![2]));
        assert_eq!(memo.get::<u32>("gone"), None);
        assert_eq!(memo.get::<u32>("b\""), None, "another kind");
        assert_eq!(memo.keys("a"), ["a"]);
        assert_eq!(memo.now().weight as usize, "[\"a\",3]\n[\"b.\",[2]]\n".len());
        memo.now().change("a".to_owned(), None);
        memo.now().change("b\"".to_owned(), Some("5".to_owned()));
        assert_eq!(memo.now().weight as usize, "[\"b.\",5]\n".len());
        let length = memo.lines.try_lock().unwrap().as_ref().unwrap().length;
        assert_eq!(length as usize, text.concat().len() - "[\"a\",5".len());
    }
}
