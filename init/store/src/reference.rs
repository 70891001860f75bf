//! Image names: `busybox`, `ghcr.io/team/app:v1`, `localhost:5000/x@sha256:…`.
//!
//! The grammar is that of the distribution project's `reference` package: a first component that
//! has a dot or a colon, or is `localhost`, is the registry; without one the registry is
//! `docker.io`, and a single remaining component stands under `library/`.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::digest::Digest;
use crate::error::{Error, Result};

const DEFAULT_REGISTRY: &str = "docker.io";
const DEFAULT_NAMESPACE: &str = "library/";
const DEFAULT_TAG: &str = "latest";
const MAX_NAME: usize = 255;
const MAX_TAG: usize = 128;

/// A normalised image name; `Display` gives the familiar short form.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// `docker.io`, `localhost:5000`, …
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The repository within the registry, such as `library/busybox`.
    pub fn path(&self) -> &str {
        &self.path
    }

    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// Registry and repository in the familiar form, without tag and digest.
    pub fn familiar_name(&self) -> String {
        if self.registry != DEFAULT_REGISTRY {
            return format!("{}/{}", self.registry, self.path);
        }
        match self.path.strip_prefix(DEFAULT_NAMESPACE) {
            Some(single) if !single.contains('/') => single.to_owned(),
            _ => self.path.clone(),
        }
    }

    /// With `latest` where neither tag nor digest was given.
    pub fn or_latest(mut self) -> Reference {
        if self.tag.is_none() && self.digest.is_none() {
            self.tag = Some(DEFAULT_TAG.to_owned());
        }
        self
    }

    /// The same repository with another tag and no digest.
    pub fn with_tag(&self, tag: &str) -> Result<Reference> {
        check_tag(tag, tag)?;
        Ok(Reference {
            tag: Some(tag.to_owned()),
            digest: None,
            ..self.clone()
        })
    }

    /// The same repository by digest alone.
    pub fn with_digest(&self, digest: Digest) -> Reference {
        Reference {
            tag: None,
            digest: Some(digest),
            ..self.clone()
        }
    }

    /// True for two references to one repository, whatever their tags.
    pub fn same_repository(&self, other: &Reference) -> bool {
        self.registry == other.registry && self.path == other.path
    }
}

impl FromStr for Reference {
    type Err = Error;

    fn from_str(text: &str) -> Result<Reference> {
        let refuse = |reason| Error::InvalidReference {
            text: text.to_owned(),
            reason,
        };
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse()?)),
            None => (text, None),
        };
        // A colon before the last slash belongs to the registry's port.
        let (name, tag) = match rest.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, Some(tag)),
            _ => (rest, None),
        };
        if let Some(tag) = tag {
            check_tag(text, tag)?;
        }
        if Digest::from_hex(name).is_some() {
            return Err(refuse("64 hexadecimal digits are an image id"));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if is_registry(first) => (first, path.to_owned()),
            _ => (DEFAULT_REGISTRY, name.to_owned()),
        };
        let registry = if registry == "index.docker.io" {
            DEFAULT_REGISTRY
        } else {
            registry
        };
        check_registry(text, registry)?;
        let path = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("{DEFAULT_NAMESPACE}{path}")
        } else {
            path
        };
        if registry.len() + path.len() + 1 > MAX_NAME {
            return Err(refuse("it is longer than 255 characters"));
        }
        if !path.split('/').all(is_component) {
            return Err(refuse(
                "each part consists of lower-case letters and digits, with single `.`, `_`, `__` or dashes between them",
            ));
        }
        Ok(Reference {
            registry: registry.to_owned(),
            path,
            tag: tag.map(str::to_owned),
            digest,
        })
    }
}

fn is_registry(first: &str) -> bool {
    first == "localhost" || first.contains(['.', ':']) || first.chars().any(|c| c.is_ascii_uppercase())
}

fn check_registry(text: &str, registry: &str) -> Result<()> {
    let refuse = |reason| {
        Err(Error::InvalidReference {
            text: text.to_owned(),
            reason,
        })
    };
    let (host, port) = match registry.strip_prefix('[').and_then(|rest| rest.split_once(']')) {
        Some((host, port)) if host.chars().all(|c| c.is_ascii_hexdigit() || c == ':') => {
            ("v6", port.strip_prefix(':'))
        }
        Some(_) => return refuse("the registry's address is not IPv6"),
        None => match registry.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (registry, None),
        },
    };
    let host_good = host.split('.').all(|label| {
        let alphanumeric = |c: Option<char>| c.is_some_and(|c| c.is_ascii_alphanumeric());
        alphanumeric(label.chars().next())
            && alphanumeric(label.chars().next_back())
            && label.chars().all(|c| c.is_ascii_alphanumeric() || c == '-')
    });
    if !host_good {
        return refuse("its registry is not a host name");
    }
    match port {
        Some(port) if port.parse::<u16>().is_err() => refuse("the registry's port is not a number"),
        _ => Ok(()),
    }
}

fn check_tag(text: &str, tag: &str) -> Result<()> {
    let good = !tag.is_empty()
        && tag.len() <= MAX_TAG
        && !tag.starts_with(['.', '-'])
        && tag
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_'));
    if good {
        return Ok(());
    }
    Err(Error::InvalidReference {
        text: text.to_owned(),
        reason: "a tag has 1 to 128 letters, digits, `.`, `_` and `-`, and begins with none of `.` and `-`",
    })
}

/// `[a-z0-9]+` joined by `.`, `_`, `__` or any number of `-`.
fn is_component(component: &str) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let ends_good = component.starts_with(alphanumeric) && component.ends_with(alphanumeric);
    ends_good
        && component
            .split(alphanumeric)
            .all(|gap| matches!(gap, "" | "." | "_" | "__") || gap.chars().all(|c| c == '-'))
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.familiar_name())?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(f, "@{digest}")?;
        }
        Ok(())
    }
}

impl TryFrom<String> for Reference {
    type Error = Error;

    fn try_from(text: String) -> Result<Reference> {
        text.parse()
    }
}

impl From<Reference> for String {
    fn from(reference: Reference) -> String {
        reference.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_normalised_and_shown_in_the_familiar_form() {
        let digest = Digest::of(b"");
        let table = [
            ("busybox", "docker.io", "library/busybox", None, "busybox"),
            (
                "busybox:1.36",
                "docker.io",
                "library/busybox",
                Some("1.36"),
                "busybox:1.36",
            ),
            (
                "docker.io/library/busybox",
                "docker.io",
                "library/busybox",
                None,
                "busybox",
            ),
            (
                "index.docker.io/busybox",
                "docker.io",
                "library/busybox",
                None,
                "busybox",
            ),
            ("team/app", "docker.io", "team/app", None, "team/app"),
            ("localhost/app", "localhost", "app", None, "localhost/app"),
            (
                "10.0.2.2:5000/a/b__c:v-1",
                "10.0.2.2:5000",
                "a/b__c",
                Some("v-1"),
                "10.0.2.2:5000/a/b__c:v-1",
            ),
            ("ghcr.io/x/y:t", "ghcr.io", "x/y", Some("t"), "ghcr.io/x/y:t"),
        ];
        for (text, registry, path, tag, shown) in table {
            let reference: Reference = text.parse().unwrap();
            assert_eq!(
                (reference.registry(), reference.path(), reference.tag()),
                (registry, path, tag)
            );
            assert_eq!(reference.to_string(), shown);
        }
        let pinned: Reference = format!("a/b:t@{digest}").parse().unwrap();
        assert_eq!(pinned.digest(), Some(&digest));
        assert_eq!(pinned.to_string(), format!("a/b:t@{digest}"));
    }

    #[test]
    fn malformed_names_are_refused() {
        let id = Digest::of(b"").hex();
        for text in [
            "",
            "UPPER",
            "a//b",
            "/a",
            "a/",
            "a:",
            "a:-x",
            "a b",
            "a..b",
            "a___b",
            "-a",
            "host.io:port/a",
            "a@sha256:12",
            "../x",
            &id,
            &"a".repeat(300),
        ] {
            assert!(text.parse::<Reference>().is_err(), "`{text}` was accepted");
        }
    }

    #[test]
    fn latest_is_meant_where_nothing_is_said() {
        let plain: Reference = "a".parse().unwrap();
        assert_eq!(plain.clone().or_latest().to_string(), "a:latest");
        assert_eq!(plain.with_digest(Digest::of(b"")).or_latest().tag(), None);
    }
}
