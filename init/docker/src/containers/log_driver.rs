//! `HostConfig.LogConfig`: where what a container says is kept, and how much of it.
//!
//! `json-file` and `local` are the same store with defaults of their own; with `none` nothing is kept.
//! The options' names and the texts of what is wrong with them are Docker's.

use std::collections::BTreeMap;
use std::fmt::Write;

use serde::{Deserialize, Serialize};
use zones::log::Limits;

use super::config::nullable;
use super::container::Record;
use crate::http::{ApiError, Result};
use crate::images::short;
use crate::units;

/// What `local` keeps unless it is told: five files of 20 MiB, compressed.
const LOCAL: Limits = Limits {
    max_size: Some(20 << 20),
    max_files: 5,
    compress: true,
};
/// Bytes that may wait for a log that the container does not wait for, unless it is told.
const BUFFER: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Driver {
    JsonFile,
    Local,
    None,
}

impl Driver {
    pub(crate) const NAMES: [&str; 3] = ["json-file", "local", "none"];

    fn name(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::Local => "local",
            Self::None => "none",
        }
    }

    fn options(self) -> &'static [&'static str] {
        match self {
            Self::JsonFile => &["max-size", "max-file", "compress", "labels", "env", "tag"],
            Self::Local => &["max-size", "max-file", "compress"],
            Self::None => &[],
        }
    }
}

/// As the client gave it.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct LogConfig {
    /// Empty is the default.
    #[serde(rename = "Type", deserialize_with = "nullable")]
    kind: String,
    #[serde(rename = "Config", deserialize_with = "nullable")]
    options: BTreeMap<String, String>,
}

impl LogConfig {
    pub(crate) fn check(&self) -> Result<()> {
        let driver = self.driver()?;
        // Docker does not look at the options of what keeps nothing.
        if driver == Driver::None {
            return Ok(());
        }
        for (option, value) in &self.options {
            self.check_option(driver, option, value)?;
        }
        self.limits().map(drop)
    }

    fn check_option(&self, driver: Driver, option: &str, value: &str) -> Result<()> {
        match option {
            "mode" if matches!(value, "" | "blocking" | "non-blocking") => Ok(()),
            "mode" => Err(wrong(format!("logger: logging mode not supported: {value}"))),
            "max-buffer-size" if self.option("mode") == Some("non-blocking") => self.buffer().map(drop),
            "max-buffer-size" => Err(wrong(
                "logger: max-buffer-size option is only supported with 'mode=non-blocking'".to_owned(),
            )),
            "labels-regex" | "env-regex" if driver == Driver::JsonFile => {
                Err(refused(&format!("log option {option}"), "name them one by one"))
            }
            "tag" if driver == Driver::JsonFile => tag(value, &BTreeMap::new()).map(drop),
            known if driver.options().contains(&known) => Ok(()),
            _ => Err(wrong(match driver {
                Driver::Local => format!("unknown log opt '{option}' for log driver local"),
                _ => format!("unknown log opt '{option}' for {} log driver", driver.name()),
            })),
        }
    }

    /// # Errors
    /// 400 for one that is not there.
    pub(crate) fn driver(&self) -> Result<Driver> {
        match self.kind.as_str() {
            "" | "json-file" => Ok(Driver::JsonFile),
            "local" => Ok(Driver::Local),
            "none" => Ok(Driver::None),
            other => Err(wrong(format!(
                "logger: no log driver named '{other}' is registered; there are {}",
                Driver::NAMES.join(", ")
            ))),
        }
    }

    /// How much is kept; none where nothing is.
    pub(crate) fn limits(&self) -> Result<Option<Limits>> {
        let default = match self.driver()? {
            Driver::JsonFile => Limits::NONE,
            Driver::Local => LOCAL,
            Driver::None => return Ok(None),
        };
        let max_size = match self.option("max-size") {
            None => default.max_size,
            Some("-1") => None,
            Some(text) => Some(size(text)?),
        };
        let max_files = match self.options.get("max-file") {
            None => default.max_files,
            Some(text) => match text.parse::<i64>() {
                Ok(count) if count < 1 => return Err(wrong("max-file cannot be less than 1".to_owned())),
                Ok(count) => u32::try_from(count).unwrap_or(u32::MAX),
                Err(_) => {
                    return Err(wrong(format!("strconv.Atoi: parsing \"{text}\": invalid syntax")));
                }
            },
        };
        let compress = match self.option("compress") {
            // Docker does without where nothing is rotated.
            None => default.compress && max_files > 1 && max_size.is_some(),
            Some(text) => boolean(text)?,
        };
        if compress && (max_files < 2 || max_size.is_none()) {
            return Err(wrong(
                "compress cannot be true when max-file is less than 2 or max-size is not set".to_owned(),
            ));
        }
        Ok(Some(Limits {
            max_size,
            max_files,
            compress,
        }))
    }

    fn option(&self, name: &str) -> Option<&str> {
        self.options.get(name).map(String::as_str)
    }

    /// How many bytes may wait for the log before some are dropped; none where the container waits.
    pub(crate) fn buffer(&self) -> Result<Option<u64>> {
        match (self.option("mode"), self.option("max-buffer-size")) {
            (Some("non-blocking"), None) => Ok(Some(BUFFER)),
            (Some("non-blocking"), Some(text)) => match units::bytes(text, 1024) {
                Some(bytes) if bytes > 0 => Ok(Some(bytes)),
                _ => Err(wrong(format!(
                    "error parsing option max-buffer-size: invalid size: '{text}'"
                ))),
            },
            _ => Ok(None),
        }
    }

    /// As `inspect` shows it.
    pub(crate) fn shown(&self) -> serde_json::Value {
        let kind = if self.kind.is_empty() {
            Driver::JsonFile.name()
        } else {
            &self.kind
        };
        serde_json::json!({"Type": kind, "Config": self.options})
    }

    /// What goes before each line with `--details`: labels and variables that the options name, as
    /// `key=value`, with commas between, escaped as in a query.
    pub(crate) fn details(&self, record: &Record) -> String {
        let mut details = BTreeMap::new();
        let names = |option: &str| {
            let names = self.options.get(option).map(String::as_str).unwrap_or_default();
            names
                .split(',')
                .filter(|name| !name.is_empty())
                .collect::<Vec<_>>()
        };
        for label in names("labels") {
            details.extend(
                record
                    .config
                    .labels
                    .get(label)
                    .map(|value| (label.to_owned(), value.clone())),
            );
        }
        for name in names("env") {
            let mut variables = record.config.env.iter().filter_map(|entry| entry.split_once('='));
            let found = variables.find(|(key, _)| *key == name);
            details.extend(found.map(|(key, value)| (key.to_owned(), value.to_owned())));
        }
        let short = |id: &str| short(id.trim_start_matches("sha256:")).to_owned();
        let facts = BTreeMap::from([
            ("ID", short(&record.id)),
            ("FullID", record.id.clone()),
            ("Name", record.name.clone()),
            ("ImageID", short(&record.image)),
            ("ImageFullID", record.image.clone()),
            ("ImageName", record.config.image.clone()),
            ("DaemonName", "docker".to_owned()),
        ]);
        let text = self.options.get("tag").map(String::as_str).unwrap_or_default();
        let tag = tag(text, &facts).unwrap_or_default();
        if !tag.is_empty() {
            details.insert("tag".to_owned(), tag);
        }
        let pairs = details
            .iter()
            .map(|(key, value)| format!("{}={}", escape(key), escape(value)));
        pairs.collect::<Vec<_>>().join(",")
    }
}

/// The words that a tag may hold in double braces.
const TAG_WORDS: [&str; 7] = [
    "ID",
    "FullID",
    "Name",
    "ImageID",
    "ImageFullID",
    "ImageName",
    "DaemonName",
];

/// Fills in a tag; words without a fact become nothing.
fn tag(template: &str, facts: &BTreeMap<&str, String>) -> Result<String> {
    let mut filled = String::new();
    let mut rest = template;
    while let Some((before, after)) = rest.split_once("{{") {
        let inside = after.split_once("}}");
        let word = inside.and_then(|(word, later)| Some((word.trim().strip_prefix('.')?, later)));
        let Some((word, later)) = word.filter(|(word, _)| TAG_WORDS.contains(word)) else {
            return Err(refused(
                &format!("log option tag={template}"),
                &format!("its words are {{{{.{}}}}}", TAG_WORDS.join("}}, {{.")),
            ));
        };
        filled.push_str(before);
        filled.push_str(facts.get(word).map(String::as_str).unwrap_or_default());
        rest = later;
    }
    filled.push_str(rest);
    Ok(filled)
}

/// Go's `url.QueryEscape`.
fn escape(text: &str) -> String {
    let mut escaped = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'.' | b'~' => escaped.push(byte.into()),
            b' ' => escaped.push('+'),
            _ => {
                let _ = write!(escaped, "%{byte:02X}");
            }
        }
    }
    escaped
}

/// Go's `strconv.ParseBool`.
fn boolean(text: &str) -> Result<bool> {
    match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Ok(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Ok(false),
        _ => Err(wrong(format!(
            "strconv.ParseBool: parsing \"{text}\": invalid syntax"
        ))),
    }
}

/// An amount of bytes; Docker reads this option's units as powers of a thousand.
fn size(text: &str) -> Result<u64> {
    match units::bytes(text, 1000) {
        None => Err(wrong(format!("invalid size: '{text}'"))),
        Some(0) => Err(wrong("max-size must be a positive number".to_owned())),
        Some(bytes) => Ok(bytes),
    }
}

fn wrong(message: String) -> ApiError {
    ApiError::bad_request(message)
}

fn refused(what: &str, why: &str) -> ApiError {
    ApiError::not_implemented(format!("Monobloc does not do {what} ({why}); leave it out."))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config(kind: &str, options: serde_json::Value) -> LogConfig {
        serde_json::from_value(json!({"Type": kind, "Config": options})).unwrap()
    }

    #[test]
    fn the_drivers_have_their_own_limits_and_take_others() {
        let limits = |kind, options| config(kind, options).limits().unwrap();
        assert_eq!(limits("", json!(null)), Some(Limits::NONE));
        assert_eq!(limits("local", json!({})), Some(LOCAL));
        assert_eq!(limits("none", json!({})), None);
        let set = json!({"max-size": "1.5m", "max-file": "3"});
        let expected = Limits {
            max_size: Some(1_500_000),
            max_files: 3,
            compress: false,
        };
        assert_eq!(limits("json-file", set.clone()), Some(expected));
        let compressed = Limits {
            compress: true,
            ..expected
        };
        assert_eq!(limits("local", set), Some(compressed));
        let asked = json!({"max-size": "1.5m", "max-file": "3", "compress": "true"});
        assert_eq!(limits("json-file", asked), Some(compressed));
        let unlimited = limits("local", json!({"max-size": "-1"})).unwrap();
        assert_eq!(unlimited.max_size, None);
        let buffer = |options| config("json-file", options).buffer().unwrap();
        assert_eq!(buffer(json!({"mode": "blocking"})), None);
        assert_eq!(buffer(json!({"mode": "non-blocking"})), Some(1 << 20));
        assert_eq!(
            buffer(json!({"mode": "non-blocking", "max-buffer-size": "4k"})),
            Some(4096)
        );
    }

    #[test]
    fn what_is_wrong_has_dockers_words() {
        for (kind, options, text) in [
            (
                "syslog",
                json!({}),
                "logger: no log driver named 'syslog' is registered",
            ),
            (
                "json-file",
                json!({"colour": "red"}),
                "unknown log opt 'colour' for json-file log driver",
            ),
            (
                "local",
                json!({"labels": "a"}),
                "unknown log opt 'labels' for log driver local",
            ),
            (
                "json-file",
                json!({"max-file": "0"}),
                "max-file cannot be less than 1",
            ),
            (
                "json-file",
                json!({"max-size": "0"}),
                "max-size must be a positive number",
            ),
            ("json-file", json!({"max-size": "big"}), "invalid size: 'big'"),
            (
                "json-file",
                json!({"mode": "fast"}),
                "logger: logging mode not supported: fast",
            ),
            (
                "json-file",
                json!({"max-buffer-size": "1m"}),
                "only supported with 'mode=non-blocking'",
            ),
            (
                "local",
                json!({"mode": "non-blocking", "max-buffer-size": "x"}),
                "invalid size: 'x'",
            ),
            (
                "json-file",
                json!({"compress": "true"}),
                "compress cannot be true",
            ),
            ("json-file", json!({"compress": "yes"}), "ParseBool"),
            ("json-file", json!({"labels-regex": "^a"}), "labels-regex"),
            ("json-file", json!({"tag": "{{.Colour}}"}), "tag={{.Colour}}"),
        ] {
            let error = config(kind, options).check().unwrap_err();
            assert!(error.message.contains(text), "{}", error.message);
            assert!(error.status.as_u16() == 400 || error.status.as_u16() == 501);
        }
        for (kind, options) in [
            ("none", json!({"anything": "goes"})),
            ("local", json!({"compress": "false", "mode": "blocking"})),
            (
                "json-file",
                json!({"mode": "non-blocking", "max-buffer-size": "4m"}),
            ),
            (
                "json-file",
                json!({"labels": "a,b", "env": "X", "tag": "{{.Name}}/{{ .ID }}", "max-size": "10k"}),
            ),
        ] {
            config(kind, options).check().unwrap();
        }
    }

    #[test]
    fn a_tag_is_filled_in_and_details_are_escaped() {
        let facts = BTreeMap::from([("Name", "web".to_owned())]);
        assert_eq!(tag("x-{{.Name}}-{{.ID}}!", &facts).unwrap(), "x-web-!");
        assert_eq!(escape("a b=c/ü"), "a+b%3Dc%2F%C3%BC");
    }
}
