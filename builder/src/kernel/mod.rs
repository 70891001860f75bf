//! Kernels: a Debian kernel package becomes what an image needs of it.
//!
//! The package is unpacked once into the cache, its configuration is checked against what the
//! appliance needs ([`config`]), and its modules are catalogued from their own `.modinfo` sections
//! ([`modinfo`]), from which [`closure`] picks those that a recipe wants.

pub mod closure;
pub mod config;
pub mod modinfo;
#[cfg(test)]
mod tests;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, ensure};

use crate::debian::{self, Archive, Follow, Package, Wanted};
use crate::image::cache::{Cache, key};
use crate::progress::Progress;
use crate::recipe;

use modinfo::Catalog;

/// What the appliance needs of any kernel.
const REQUIRED_CONFIG: &str = include_str!("../../../kernel-config/required.config");

/// A kernel, unpacked and checked.
#[derive(Debug, Clone)]
pub struct Kernel {
    /// The package that holds it.
    pub package: Package,
    /// `uname -r`
    pub release: String,
    pub vmlinuz: PathBuf,
    /// `/lib/modules/<release>` of the package.
    pub modules_dir: PathBuf,
    pub catalog: Catalog,
}

/// Fetches, unpacks and checks the kernel of a recipe.
pub(crate) fn provide(
    recipe: &recipe::Recipe,
    cache: &Cache,
    archive: &Archive<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Kernel> {
    let recipe::KernelProvider::Debian = recipe.kernel.provider;
    let package = find_package(archive, recipe.kernel.package.as_str())?;
    let dir = cache.folder("kernels", &key(&("unpacked", &package))?, |dir| {
        let debs = archive.fetch(std::slice::from_ref(&package))?;
        let step = progress.step("unpack the kernel");
        let deb = debs.first().context("The kernel's package is missing")?;
        debian::unpack(deb, dir, is_part_of_a_kernel)?;
        step.finish();
        Ok(())
    })?;
    let release = release_of(&dir)?;
    check_config(recipe, &dir.join(format!("boot/config-{release}")))?;
    let modules_dir = [dir.join("lib/modules"), dir.join("usr/lib/modules")]
        .into_iter()
        .find(|dir| dir.is_dir())
        .with_context(|| {
            format!(
                "Package {} has no modules; name another in [kernel]",
                package.name
            )
        })?
        .join(&release);
    let catalog = cache.value("modules", &key(&("catalog", &package))?, || {
        let step = progress.step("read the kernel's modules");
        let catalog = Catalog::read(&modules_dir)?;
        step.finish();
        Ok(catalog)
    })?;
    let vmlinuz = dir.join(format!("boot/vmlinuz-{release}"));
    Ok(Kernel {
        package,
        release,
        vmlinuz,
        modules_dir,
        catalog,
    })
}

/// The package itself, or for a metapackage (`linux-image-amd64`) the kernel that it depends on.
fn find_package(archive: &Archive<'_>, name: &str) -> anyhow::Result<Package> {
    let wanted = Wanted {
        follow: Follow::Prefix("linux-image-".to_owned()),
        ..Wanted::only(&[name])
    };
    let found = archive
        .resolve(&wanted)
        .with_context(|| format!("No kernel {name}"))?;
    found
        .iter()
        .find(|package| package.name != name)
        .or_else(|| found.first())
        .cloned()
        .with_context(|| format!("No kernel {name}"))
}

fn is_part_of_a_kernel(name: &str) -> bool {
    let file = name.rsplit('/').next().unwrap_or(name);
    name.starts_with("boot/config-")
        || name.starts_with("boot/vmlinuz-")
        || ((name.starts_with("lib/modules/") || name.starts_with("usr/lib/modules/"))
            && (file.contains(".ko") || file.starts_with("modules.")))
}

fn release_of(dir: &Path) -> anyhow::Result<String> {
    let boot = dir.join("boot");
    let mut found = Vec::new();
    for entry in fs::read_dir(&boot).with_context(|| format!("There is no kernel in {}", dir.display()))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        found.extend(name.strip_prefix("vmlinuz-").map(str::to_owned));
    }
    ensure!(
        found.len() == 1,
        "There is not one kernel in {} but {}",
        boot.display(),
        found.len()
    );
    found.pop().context("There is no kernel")
}

fn check_config(recipe: &recipe::Recipe, path: &Path) -> anyhow::Result<()> {
    let own = recipe
        .kernel
        .required_config
        .as_deref()
        .map(|path| recipe.resolve(path));
    let (name, required) = match &own {
        Some(path) => (
            path.display().to_string(),
            fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?,
        ),
        None => (
            "kernel-config/required.config".to_owned(),
            REQUIRED_CONFIG.to_owned(),
        ),
    };
    let required = config::Required::parse(&required).with_context(|| format!("{name} has a mistake"))?;
    let actual = fs::read_to_string(path).with_context(|| format!("Cannot read {}", path.display()))?;
    let missing = required.missing_in(&actual);
    ensure!(
        missing.is_empty(),
        "The kernel of {} lacks what {name} asks for: {}; take another kernel or build one with these",
        recipe.kernel.package,
        missing.join(", ")
    );
    Ok(())
}
