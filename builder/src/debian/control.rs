//! Debian's control format: stanzas of `Field: value`, and the dependencies in them
//! (deb-control(5)).

use std::collections::BTreeMap;

use anyhow::Context;

use super::Package;

/// One package's entry in apt's lists.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Stanza {
    pub(super) package: Package,
    /// All of these, each by one of its alternatives.
    pub(super) depends: Vec<Vec<String>>,
}

/// Reads what `apt-cache show` prints.
pub(super) fn stanzas(text: &str) -> anyhow::Result<Vec<Stanza>> {
    text.split("\n\n")
        .filter(|part| !part.trim().is_empty())
        .map(stanza)
        .collect()
}

fn stanza(text: &str) -> anyhow::Result<Stanza> {
    let mut fields: BTreeMap<&str, &str> = BTreeMap::new();
    for line in text.lines().filter(|line| !line.starts_with([' ', '\t'])) {
        if let Some((name, value)) = line.split_once(':') {
            fields.insert(name, value.trim());
        }
    }
    let field = |name: &str| {
        fields
            .get(name)
            .map(|value| (*value).to_owned())
            .with_context(|| format!("apt's entry of a package has no field {name}: {text:.200}"))
    };
    let depends = ["Pre-Depends", "Depends"]
        .iter()
        .filter_map(|name| fields.get(name))
        .flat_map(|value| dependencies(value))
        .collect();
    let package = Package {
        name: field("Package")?,
        version: field("Version")?,
        architecture: field("Architecture")?,
        sha256: field("SHA256")?,
    };
    Ok(Stanza { package, depends })
}

/// `a (>= 1), b | c:any` → `[[a], [b, c]]`
fn dependencies(value: &str) -> Vec<Vec<String>> {
    value
        .split(',')
        .map(|group| {
            group
                .split('|')
                .filter_map(|one| one.split_whitespace().next())
                .map(|name| name.split(':').next().unwrap_or(name).to_owned())
                .filter(|name| !name.is_empty())
                .collect::<Vec<String>>()
        })
        .filter(|group| !group.is_empty())
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stanzas_and_their_dependencies_are_read() {
        let text = "Package: web\nVersion: 1:2-3\nArchitecture: amd64\nPre-Depends: init (>= 1.54~)\n\
                    Depends: libc6 (>= 2.36), media-types | mime-support, perl:any\n\
                    Description: a\n Depends: not this\nSHA256: 00ff\n\nPackage: b\nVersion: 1\n\
                    Architecture: all\nSHA256: 01\n";
        let read = stanzas(text).unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!(read[0].package.version, "1:2-3");
        assert_eq!(
            read[0].depends,
            [
                vec!["init"],
                vec!["libc6"],
                vec!["media-types", "mime-support"],
                vec!["perl"]
            ]
        );
        assert!(read[1].depends.is_empty());
    }

    #[test]
    fn an_entry_without_a_checksum_is_refused() {
        let error = stanzas("Package: web\nVersion: 1\nArchitecture: all\n")
            .unwrap_err()
            .to_string();
        assert!(error.contains("SHA256"), "{error}");
    }
}
