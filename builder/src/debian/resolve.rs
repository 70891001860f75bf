//! From the packages that a recipe names to the packages that are fetched.

use std::collections::{BTreeMap, BTreeSet};

use anyhow::bail;
use serde::Serialize;

use super::Package;
use super::control::Stanza;

/// What a recipe asks for.
#[derive(Debug, Clone, Serialize)]
pub(crate) struct Wanted {
    pub(crate) names: Vec<String>,
    pub(crate) follow: Follow,
    pub(crate) without: Vec<String>,
}

/// Which dependencies come along.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(crate) enum Follow {
    None,
    All,
    /// Those whose names begin so.
    Prefix(String),
}

impl Follow {
    fn takes(&self, group: &[String]) -> bool {
        match self {
            Self::None => false,
            Self::All => true,
            Self::Prefix(prefix) => group.iter().any(|name| name.starts_with(prefix.as_str())),
        }
    }
}

impl Wanted {
    /// The packages themselves and nothing else.
    pub(crate) fn only(names: &[&str]) -> Self {
        let names = names.iter().map(|name| (*name).to_owned()).collect();
        Self {
            names,
            follow: Follow::None,
            without: Vec::new(),
        }
    }
}

/// Finds the packages, by name in alphabetical order. `show` tells what the archive knows of names.
///
/// Of alternatives, one that is wanted anyway is taken, else the first that the archive has.
pub(super) fn resolve(
    wanted: &Wanted,
    mut show: impl FnMut(&[String]) -> anyhow::Result<Vec<Stanza>>,
) -> anyhow::Result<Vec<Package>> {
    let mut known: BTreeMap<String, Stanza> = BTreeMap::new();
    // Names that were asked for, found or not.
    let mut asked: BTreeSet<String> = BTreeSet::new();
    let mut chosen: BTreeSet<String> = wanted.names.iter().cloned().collect();
    loop {
        let groups = open_groups(wanted, &known, &chosen);
        let unasked: BTreeSet<String> = chosen
            .iter()
            .chain(groups.iter().flat_map(|(_, group)| group))
            .filter(|name| !asked.contains(*name))
            .cloned()
            .collect();
        if unasked.is_empty() {
            if groups.is_empty() {
                break;
            }
            // Everything is known now.
            choose(&groups, &known, &mut chosen)?;
            continue;
        }
        let names: Vec<String> = unasked.iter().cloned().collect();
        for stanza in show(&names)? {
            known.entry(stanza.package.name.clone()).or_insert(stanza);
        }
        asked.extend(unasked);
        if let Some(absent) = wanted.names.iter().find(|name| !known.contains_key(*name)) {
            bail!(
                "There is no package {absent} in the Debian archive that this machine's apt knows; check the \
                 name in the recipe, and run `apt-get update` as root if it is new"
            );
        }
    }
    Ok(known
        .into_values()
        .map(|stanza| stanza.package)
        .filter(|package| chosen.contains(&package.name))
        .collect())
}

/// A package and the alternatives of one of its dependencies.
type Group = (String, Vec<String>);

/// The dependencies of what is chosen that nothing chosen satisfies yet.
fn open_groups(wanted: &Wanted, known: &BTreeMap<String, Stanza>, chosen: &BTreeSet<String>) -> Vec<Group> {
    known
        .values()
        .filter(|stanza| chosen.contains(&stanza.package.name))
        .flat_map(|stanza| {
            stanza
                .depends
                .iter()
                .map(|group| (stanza.package.name.clone(), group.clone()))
        })
        .filter(|(_, group)| wanted.follow.takes(group))
        .filter(|(_, group)| {
            !group
                .iter()
                .any(|name| chosen.contains(name) || wanted.without.contains(name))
        })
        .collect()
}

/// Chooses the first alternative of each group that exists.
fn choose(
    groups: &[Group],
    known: &BTreeMap<String, Stanza>,
    chosen: &mut BTreeSet<String>,
) -> anyhow::Result<()> {
    for (of, group) in groups {
        let Some(name) = group.iter().find(|name| known.contains_key(*name)) else {
            let names = group.join(" or ");
            bail!(
                "Package {of} depends on {names}, which is no package by itself; add one that provides it to \
                 `names`, or {names} to `without`"
            );
        };
        if !group.iter().any(|name| chosen.contains(name)) {
            chosen.insert(name.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn archive(names: &[String]) -> anyhow::Result<Vec<Stanza>> {
        let all: &[(&str, &[&[&str]])] = &[
            ("web", &[&["libc"], &["types", "mime"], &["init"]]),
            ("libc", &[&["gcc-base"]]),
            ("gcc-base", &[&["libc"]]),
            ("types", &[]),
            ("mime", &[]),
            ("init", &[&["systemd", "sysv"]]),
            ("sysv", &[]),
            ("odd", &[&["virtual"]]),
        ];
        let found = all
            .iter()
            .filter(|(name, _)| names.iter().any(|wanted| wanted == name));
        Ok(found
            .map(|(name, depends)| Stanza {
                package: Package {
                    name: (*name).to_owned(),
                    version: "1".to_owned(),
                    architecture: "all".to_owned(),
                    sha256: String::new(),
                },
                depends: depends
                    .iter()
                    .map(|group| group.iter().map(|name| (*name).to_owned()).collect())
                    .collect(),
            })
            .collect())
    }

    fn names(wanted: &Wanted) -> Vec<String> {
        resolve(wanted, archive)
            .unwrap()
            .into_iter()
            .map(|package| package.name)
            .collect()
    }

    #[test]
    fn without_dependencies_only_the_named_packages_come() {
        assert_eq!(names(&Wanted::only(&["web"])), ["web"]);
    }

    #[test]
    fn dependencies_come_along_in_cycles_and_alternatives() {
        let mut wanted = Wanted {
            follow: Follow::All,
            ..Wanted::only(&["web"])
        };
        assert_eq!(
            names(&wanted),
            ["gcc-base", "init", "libc", "sysv", "types", "web"]
        );
        wanted.names.push("mime".to_owned());
        wanted.without.push("init".to_owned());
        assert_eq!(
            names(&wanted),
            ["gcc-base", "libc", "mime", "web"],
            "an alternative that is wanted anyway does"
        );
    }

    #[test]
    fn an_absent_package_and_a_virtual_one_are_named() {
        let error = resolve(&Wanted::only(&["wbe"]), archive).unwrap_err().to_string();
        assert!(error.contains("no package wbe"), "{error}");
        let odd = Wanted {
            follow: Follow::All,
            ..Wanted::only(&["odd"])
        };
        let error = resolve(&odd, archive).unwrap_err().to_string();
        assert!(error.contains("odd depends on virtual"), "{error}");
    }
}
