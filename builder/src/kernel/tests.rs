//! Debian's own kernel, with `depmod` as the oracle.

use std::collections::{BTreeMap, BTreeSet};
use std::process::Command;

use super::*;
use crate::image::BuildOptions;
use crate::progress::Silent;
use crate::recipe::Recipe;

fn kernel() -> Kernel {
    let text = "name = \"t\"\n[kernel]\nprovider = \"debian\"\npackage = \"linux-image-6.12-cloud-amd64\"\ncommand-line = \"\"\n";
    let recipe = Recipe::parse(text, Path::new("t.toml")).unwrap();
    let cache = Cache::open(&BuildOptions::from_environment().unwrap().cache).unwrap();
    provide(&recipe, &cache, &Archive::new(&cache, &Silent), &Silent).unwrap()
}

/// What depmod would write for the kernel, as lines of words: `modules.dep`, then aliases and soft
/// dependencies.
fn depmod(kernel: &Kernel) -> String {
    tools::need(&["kmod"]);
    // depmod wants lib/modules/<release> below its base folder.
    let base = kernel.modules_dir.ancestors().nth(3).unwrap();
    let output = Command::new("depmod")
        .args(["--dry-run", "--basedir"])
        .arg(base)
        .arg(&kernel.release)
        .env("PATH", "/usr/sbin:/sbin:/usr/bin:/bin")
        .output()
        .unwrap_or_else(|error| panic!("This test needs depmod (Debian package kmod): {error}"));
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

fn module_name(path: &str) -> String {
    let file = path.rsplit('/').next().unwrap();
    file.split(".ko").next().unwrap().replace('-', "_")
}

/// All that a module needs, whether directly or through others.
fn transitive(catalog: &Catalog, name: &str, found: &mut BTreeSet<String>) {
    for needed in &catalog.modules[name].depends {
        if catalog.modules.contains_key(needed) && found.insert(needed.clone()) {
            transitive(catalog, needed, found);
        }
    }
}

#[test]
fn depmod_finds_the_same_modules_dependencies_aliases_and_soft_dependencies() {
    let kernel = kernel();
    let text = depmod(&kernel);
    let mut dependencies = BTreeMap::new();
    let mut aliases: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    let mut soft: BTreeMap<String, BTreeSet<String>> = BTreeMap::new();
    for line in text.lines() {
        let words: Vec<&str> = line.split_whitespace().collect();
        match words.as_slice() {
            // Of its own making, for symbols rather than devices.
            ["alias", pattern, _] if pattern.starts_with("symbol:") => {}
            ["alias", pattern, module] => {
                aliases
                    .entry((*module).to_owned())
                    .or_default()
                    .insert((*pattern).to_owned());
            }
            ["softdep", module, rest @ ..] => {
                let names = rest
                    .iter()
                    .filter(|word| !word.ends_with(':'))
                    .map(|word| (*word).to_owned());
                soft.entry((*module).to_owned()).or_default().extend(names);
            }
            [first, rest @ ..] if first.ends_with(':') && first.contains(".ko") => {
                let names: BTreeSet<String> = rest.iter().map(|path| module_name(path)).collect();
                dependencies.insert(module_name(first.trim_end_matches(':')), names);
            }
            _ => {}
        }
    }
    assert!(
        dependencies.len() > 1000,
        "depmod told of {} modules only",
        dependencies.len()
    );
    assert_eq!(
        dependencies.keys().collect::<Vec<_>>(),
        kernel.catalog.modules.keys().collect::<Vec<_>>(),
        "the same modules"
    );
    for (name, expected) in &dependencies {
        let mut found = BTreeSet::new();
        transitive(&kernel.catalog, name, &mut found);
        assert_eq!(&found, expected, "dependencies of {name}");
    }
    for (name, module) in &kernel.catalog.modules {
        let set = |list: &[String]| list.iter().cloned().collect::<BTreeSet<_>>();
        // depmod writes `-` of an alias as `_`, except within brackets.
        let plain = |list: &BTreeSet<String>| {
            list.iter()
                .map(|text| text.replace('-', "_"))
                .collect::<BTreeSet<_>>()
        };
        let known = aliases.remove(name).unwrap_or_default();
        assert_eq!(plain(&set(&module.aliases)), plain(&known), "aliases of {name}");
        let known = soft.remove(name).unwrap_or_default();
        assert_eq!(
            plain(&set(&module.soft_depends)),
            plain(&known),
            "soft dependencies of {name}"
        );
    }
}

#[test]
fn the_kernels_package_is_found_behind_its_metapackage_and_unpacked() {
    let kernel = kernel();
    assert!(
        kernel.package.name.contains(&kernel.release),
        "{} {}",
        kernel.package.name,
        kernel.release
    );
    let image = std::fs::read(&kernel.vmlinuz).unwrap();
    // The boot protocol's magic (Documentation/arch/x86/boot.rst): "HdrS" at 0x202.
    assert_eq!(&image[0x202..0x206], b"HdrS");
    assert!(kernel.catalog.built_in.contains_key("virtio_pci"));
}
