//! From the modules that a recipe wants to all that must lie in the image.

use std::collections::{BTreeMap, BTreeSet};

use handover::{ModuleEntry, ModuleIndex};

use super::modinfo::{Catalog, Module};

/// A wanted module that the kernel does not have.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ClosureError {
    #[error("This kernel has no module {name}{}; `modinfo` on a machine with it may know the name", near(.similar))]
    Unknown { name: String, similar: Vec<String> },
    #[error("Module {of} depends on {name}, which the kernel's package does not have; take another kernel")]
    Broken { of: String, name: String },
}

fn near(similar: &[String]) -> String {
    if similar.is_empty() {
        String::new()
    } else {
        format!(" (but {})", similar.join(", "))
    }
}

/// The index of everything that `wanted` needs. What is built into the kernel needs no file and has
/// no entry. `without` are soft dependencies that stay away.
///
/// # Errors
/// The kernel does not have a module that is wanted or needed.
pub fn closure<'a>(
    catalog: &Catalog,
    wanted: impl IntoIterator<Item = &'a str>,
    without: &BTreeSet<&str>,
) -> Result<ModuleIndex, ClosureError> {
    let mut index = ModuleIndex::default();
    let mut pending: Vec<String> = Vec::new();
    for name in wanted {
        if catalog.modules.contains_key(name) {
            pending.push(name.to_owned());
        } else if !catalog.built_in.contains_key(name) {
            return Err(ClosureError::Unknown {
                name: name.to_owned(),
                similar: similar(catalog, name),
            });
        }
    }
    while let Some(name) = pending.pop() {
        if index.modules.contains_key(&name) {
            continue;
        }
        let Some(module) = catalog.modules.get(&name) else {
            continue;
        };
        let depends = hard(catalog, &name, module)?;
        let soft = soft(catalog, module, without);
        pending.extend(depends.iter().chain(&soft).cloned());
        let entry = ModuleEntry {
            file: format!("{name}.ko"),
            depends,
            soft,
            aliases: module.aliases.clone(),
        };
        index.modules.insert(name, entry);
    }
    Ok(index)
}

/// What must be loaded before a module.
fn hard(catalog: &Catalog, of: &str, module: &Module) -> Result<Vec<String>, ClosureError> {
    let mut names = Vec::new();
    for name in &module.depends {
        if catalog.modules.contains_key(name) {
            names.push(name.clone());
        } else if !catalog.built_in.contains_key(name) {
            return Err(ClosureError::Broken {
                of: of.to_owned(),
                name: name.clone(),
            });
        }
    }
    Ok(names)
}

/// What a module would like to find. Nothing is needed where the kernel itself has it.
fn soft(catalog: &Catalog, module: &Module, without: &BTreeSet<&str>) -> Vec<String> {
    let mut names = BTreeSet::new();
    for wish in &module.soft_depends {
        let plain = wish.replace('-', "_");
        let provides = |(name, module): &(&String, &Module)| {
            **name == plain || module.aliases.iter().any(|alias| alias == wish)
        };
        if !catalog.built_in.iter().any(|entry| provides(&entry)) {
            names.extend(
                catalog
                    .modules
                    .iter()
                    .filter(provides)
                    .map(|(name, _)| name.clone()),
            );
        }
    }
    names.retain(|name| !without.contains(name.as_str()));
    names.into_iter().collect()
}

/// Modules whose names contain what was asked for or are contained in it.
fn similar(catalog: &Catalog, name: &str) -> Vec<String> {
    let close = |known: &&String| known.contains(name) || (known.len() > 3 && name.contains(known.as_str()));
    let mut found: Vec<String> = catalog.modules.keys().filter(close).take(5).cloned().collect();
    found.sort();
    found
}

/// All modules of an index, each after what it depends on.
#[must_use]
pub fn in_load_order(index: &ModuleIndex) -> Vec<&str> {
    fn visit<'a>(
        modules: &'a BTreeMap<String, ModuleEntry>,
        name: &'a str,
        seen: &mut BTreeSet<&'a str>,
        order: &mut Vec<&'a str>,
    ) {
        if let Some(entry) = modules.get(name)
            && seen.insert(name)
        {
            entry
                .depends
                .iter()
                .for_each(|needed| visit(modules, needed, seen, order));
            order.push(name);
        }
    }
    let mut order = Vec::new();
    let mut seen = BTreeSet::new();
    index
        .modules
        .keys()
        .for_each(|name| visit(&index.modules, name, &mut seen, &mut order));
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn catalog() -> Catalog {
        let module = |depends: &[&str], aliases: &[&str], soft: &[&str]| Module {
            path: Some("x.ko".into()),
            depends: depends.iter().map(|text| (*text).to_owned()).collect(),
            aliases: aliases.iter().map(|text| (*text).to_owned()).collect(),
            soft_depends: soft.iter().map(|text| (*text).to_owned()).collect(),
        };
        Catalog {
            modules: [
                (
                    "btrfs",
                    module(
                        &["xor", "raid6_pq", "libcrc32c"],
                        &[],
                        &["crypto-crc32c", "xxhash64", "ghost"],
                    ),
                ),
                ("xor", module(&[], &[], &[])),
                ("raid6_pq", module(&[], &[], &[])),
                ("xxhash_generic", module(&["lib_x"], &["xxhash64"], &[])),
                ("crc32c_intel", module(&[], &["crypto-crc32c"], &[])),
                ("lib_x", module(&[], &[], &[])),
                ("broken", module(&["nowhere"], &[], &[])),
            ]
            .map(|(name, module)| (name.to_owned(), module))
            .into(),
            built_in: [
                ("libcrc32c", Module::default()),
                (
                    "crc32c_generic",
                    Module {
                        path: None,
                        ..module(&[], &["crypto-crc32c"], &[])
                    },
                ),
            ]
            .map(|(name, module)| (name.to_owned(), module))
            .into(),
        }
    }

    #[test]
    fn hard_and_soft_dependencies_come_along_but_not_what_is_built_in() {
        let index = closure(&catalog(), ["btrfs"], &BTreeSet::new()).unwrap();
        let names: Vec<_> = index.modules.keys().map(String::as_str).collect();
        assert_eq!(names, ["btrfs", "lib_x", "raid6_pq", "xor", "xxhash_generic"]);
        assert_eq!(index.modules["btrfs"].depends, ["xor", "raid6_pq"]);
        assert_eq!(index.modules["btrfs"].soft, ["xxhash_generic"]);
        let order = in_load_order(&index);
        let at = |name| order.iter().position(|found| *found == name).unwrap();
        assert!(at("xor") < at("btrfs") && at("lib_x") < at("xxhash_generic"));
    }

    #[test]
    fn a_soft_dependency_can_stay_away() {
        let index = closure(&catalog(), ["btrfs"], &BTreeSet::from(["xxhash_generic"])).unwrap();
        assert_eq!(index.modules.len(), 3);
    }

    #[test]
    fn a_module_that_is_built_in_needs_no_file() {
        assert!(
            closure(&catalog(), ["libcrc32c"], &BTreeSet::new())
                .unwrap()
                .modules
                .is_empty()
        );
    }

    #[test]
    fn a_module_that_the_kernel_does_not_have_is_named_with_similar_ones() {
        let error = closure(&catalog(), ["crc32c"], &BTreeSet::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("no module crc32c (but crc32c_intel)"), "{error}");
        let error = closure(&catalog(), ["broken"], &BTreeSet::new())
            .unwrap_err()
            .to_string();
        assert!(error.contains("broken depends on nowhere"), "{error}");
    }
}
