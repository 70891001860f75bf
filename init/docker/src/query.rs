//! Query strings and Docker's `filters` parameter.

use std::collections::BTreeMap;

use serde::Deserialize;

use crate::http::{ApiError, Result};

/// A parsed query string; of a repeated key all values are there, in order.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(text: &str) -> Self {
        let pairs = text.split('&').filter(|pair| !pair.is_empty());
        Self(
            pairs
                .map(|pair| {
                    let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                    (decode(key, true), decode(value, true))
                })
                .collect(),
        )
    }

    /// The first value; an empty one counts as absent.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.all(key).next().filter(|value| !value.is_empty())
    }

    pub fn all<'a>(&'a self, key: &str) -> impl Iterator<Item = &'a str> {
        self.0
            .iter()
            .filter(move |(known, _)| known == key)
            .map(|(_, value)| value.as_str())
    }

    /// As Docker reads a boolean: absent, empty, `0`, `no`, `false` and `none` are false.
    pub fn flag(&self, key: &str) -> bool {
        self.flag_or(key, false)
    }

    pub fn flag_or(&self, key: &str, default: bool) -> bool {
        match self.get(key).map(str::to_ascii_lowercase).as_deref() {
            None => default,
            Some("0" | "no" | "false" | "none") => false,
            Some(_) => true,
        }
    }

    pub fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>> {
        let Some(text) = self.get(key) else {
            return Ok(None);
        };
        let number = text.parse().map(Some);
        number.map_err(|_| {
            ApiError::bad_request(format!("Parameter {key} is {text:?}, which is not a number."))
        })
    }

    pub fn filters(&self) -> Result<Filters> {
        self.get("filters")
            .map_or_else(|| Ok(Filters::default()), Filters::parse)
    }
}

/// Percent-decoding; `+` is a space in a query, not in a path. A wrong escape stays as it is.
pub fn decode(text: &str, plus_is_space: bool) -> String {
    let hex = |byte: Option<&u8>| byte.and_then(|b| char::from(*b).to_digit(16));
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while let Some(&byte) = bytes.get(at) {
        at += 1;
        match (byte, hex(bytes.get(at)), hex(bytes.get(at + 1))) {
            (b'%', Some(high), Some(low)) => {
                out.push((high * 16 + low) as u8);
                at += 2;
            }
            (b'+', ..) if plus_is_space => out.push(b' '),
            _ => out.push(byte),
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// Docker's filters: per key the accepted values, any of which does; all keys must be satisfied.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filters(BTreeMap<String, Vec<String>>);

#[derive(Deserialize)]
#[serde(untagged)]
enum Values {
    List(Vec<String>),
    /// The form of clients before 1.22, which some still send.
    Map(BTreeMap<String, bool>),
}

impl Filters {
    pub fn parse(text: &str) -> Result<Self> {
        let parsed: BTreeMap<String, Values> = serde_json::from_str(text).map_err(|error| {
            ApiError::bad_request(format!("Parameter filters is not the JSON expected: {error}."))
        })?;
        let lists = parsed.into_iter().map(|(key, values)| match values {
            Values::List(list) => (key, list),
            Values::Map(map) => (
                key,
                map.into_iter()
                    .filter(|(_, on)| *on)
                    .map(|(value, _)| value)
                    .collect(),
            ),
        });
        Ok(Self(lists.collect()))
    }

    /// Refuses a filter that is not known rather than let it pass everything.
    pub fn only(&self, known: &[&str]) -> Result<()> {
        match self.0.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => Err(ApiError::bad_request(format!(
                "Invalid filter {key:?}; the known ones are {}.",
                known.join(", ")
            ))),
        }
    }

    pub fn get(&self, key: &str) -> &[String] {
        self.0.get(key).map_or(&[], Vec::as_slice)
    }

    /// Whether there is no such filter or one of its values satisfies.
    pub fn matches(&self, key: &str, satisfies: impl Fn(&str) -> bool) -> bool {
        let values = self.get(key);
        values.is_empty() || values.iter().any(|value| satisfies(value))
    }

    /// `label=key` and `label=key=value`; all that are given must hold.
    pub fn labels<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.all_labels("label", label)
    }

    /// As [`labels`](Self::labels), and what has all labels of `label!` stays.
    pub fn pruned<'a>(&self, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        let kept = !self.get("label!").is_empty() && self.all_labels("label!", &label);
        !kept && self.labels(label)
    }

    fn all_labels<'a>(&self, key: &str, label: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.get(key).iter().all(|wanted| match wanted.split_once('=') {
            None => label(wanted).is_some(),
            Some((key, value)) => label(key) == Some(value),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_query_is_decoded_and_keeps_repeated_keys() {
        let query = Query::parse("name=a%20b+c&names=x&names=y&flag=1&off=false&bad=%zz");
        assert_eq!(query.get("name"), Some("a b c"));
        assert_eq!(query.all("names").collect::<Vec<_>>(), ["x", "y"]);
        assert!(query.flag("flag") && !query.flag("off") && !query.flag("absent"));
        assert_eq!(query.get("bad"), Some("%zz"));
        assert!(query.number::<u32>("name").is_err());
    }

    #[test]
    fn both_forms_of_filters_are_read() {
        for text in [
            r#"{"label":["a=b","c"]}"#,
            r#"{"label":{"a=b":true,"c":true,"d":false}}"#,
        ] {
            let filters = Filters::parse(text).unwrap();
            assert!(filters.labels(|key| match key {
                "a" => Some("b"),
                "c" => Some(""),
                _ => None,
            }));
            assert!(!filters.labels(|key| (key == "a").then_some("b")));
        }
        assert!(Filters::parse("[").is_err());
    }

    #[test]
    fn an_unknown_filter_is_refused() {
        let filters = Filters::parse(r#"{"colour":["red"]}"#).unwrap();
        assert!(filters.only(&["label"]).unwrap_err().message.contains("colour"));
        assert!(filters.only(&["label", "colour"]).is_ok());
    }
}
