//! What goes into an image's initramfs, gathered before anything is written.

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use handover::{BOOT_CONFIG_PATH, BootConfig, BootZone, IMAGES_DIR, MODULES_DIR, ModuleIndex, PublishedPort};

use super::cache::{key, sha256};
use super::{kernel_input, preloaded};
use crate::debian::Package;
use crate::init_binary;
use crate::initramfs::{Content, Initramfs};
use crate::kernel::{Kernel, closure, modinfo};
use crate::manifest::{File, INPUTS_PATH, Inputs};
use crate::oci::Prepared;
use crate::recipe::{ModuleName, Recipe, Zone};

pub(super) struct Contents {
    pub(super) inputs: Inputs,
    boot: BootConfig,
    modules: ModuleIndex,
    init: Vec<u8>,
    archives: Vec<PathBuf>,
}

impl Contents {
    pub(super) fn gather(
        recipe: &Recipe,
        kernel: &Kernel,
        init: &Path,
        images: Vec<Prepared>,
        stub: Option<&Package>,
    ) -> anyhow::Result<Self> {
        let init = fs::read(init).with_context(|| format!("Cannot read {}", init.display()))?;
        init_binary::prove_static(&init)?;
        let modules = modules(recipe, kernel)?;
        let inputs = Inputs {
            name: recipe.name.to_string(),
            builder: env!("CARGO_PKG_VERSION").to_owned(),
            recipe: recipe_digest(recipe)?,
            command_line: recipe.kernel.command_line.to_string(),
            kernel: kernel_input(kernel),
            init: File {
                size: init.len() as u64,
                sha256: sha256(&init),
            },
            stub: stub.cloned(),
            modules: modules.modules.keys().cloned().collect(),
            images,
        };
        let boot = boot_config(recipe, &inputs.images);
        let archives = inputs.images.iter().map(|image| image.archive.clone()).collect();
        Ok(Self {
            inputs,
            boot,
            modules,
            init,
            archives,
        })
    }

    /// The initramfs; modules are uncompressed in it, so that the whole is compressed once and well.
    pub(super) fn initramfs(&self, recipe: &Recipe, kernel: &Kernel) -> anyhow::Result<Initramfs> {
        let mut initramfs = Initramfs::default();
        initramfs.add("/init", Content::Bytes(self.init.clone()), 0o755);
        // Without it the kernel starts /init with neither input nor output.
        initramfs.add("/dev/console", Content::Device { major: 5, minor: 1 }, 0o600);
        let json = [
            (BOOT_CONFIG_PATH.to_owned(), serde_json::to_vec(&self.boot)?),
            (INPUTS_PATH.to_owned(), serde_json::to_vec(&self.inputs)?),
            (
                format!("{MODULES_DIR}/index.json"),
                serde_json::to_vec(&self.modules)?,
            ),
        ];
        for (path, bytes) in json {
            initramfs.add(&path, Content::Bytes(bytes), 0o644);
        }
        for (name, entry) in &self.modules.modules {
            let path = kernel
                .catalog
                .modules
                .get(name)
                .and_then(|module| module.path.as_ref());
            let path = path.with_context(|| format!("Module {name} has no file"))?;
            let mut bytes = modinfo::load(&kernel.modules_dir.join(path))?;
            if !recipe.modules.signatures {
                bytes.truncate(modinfo::without_signature(&bytes).len());
            }
            initramfs.add(
                &format!("{MODULES_DIR}/{}", entry.file),
                Content::Bytes(bytes),
                0o644,
            );
        }
        for (image, archive) in self.boot.images.iter().zip(&self.archives) {
            initramfs.add(
                &format!("{IMAGES_DIR}/{}", image.file),
                Content::File(archive.clone()),
                0o644,
            );
        }
        Ok(initramfs)
    }
}

fn modules(recipe: &Recipe, kernel: &Kernel) -> anyhow::Result<ModuleIndex> {
    let all = &recipe.modules;
    let all = all.always.iter().chain(&all.by_device).chain(&all.on_demand);
    let without: BTreeSet<&str> = recipe
        .modules
        .without
        .iter()
        .map(|name| name.get_ref().as_str())
        .collect();
    let mut index = closure::closure(&kernel.catalog, all.map(|name| name.get_ref().as_str()), &without)?;
    // A module that is loaded for a device is there anyway once it was loaded always; its patterns
    // would only be compared for nothing. What is there on demand no device may ask for.
    for name in recipe.modules.always.iter().chain(&recipe.modules.on_demand) {
        if let Some(entry) = index.modules.get_mut(name.get_ref().as_str()) {
            entry.aliases.clear();
        }
    }
    // Only device patterns have use: `fs-btrfs` and `crypto-…` are requests of the kernel to a
    // program that the appliance does not have.
    for entry in index.modules.values_mut() {
        entry.aliases.retain(|alias| alias.contains(':'));
    }
    Ok(index)
}

/// What the recipe says, whatever its comments and order.
fn recipe_digest(recipe: &Recipe) -> anyhow::Result<String> {
    let mut value = serde_json::to_value(recipe)?;
    // How the machine is run is not in the image; what an image is made of stands with the image.
    if let Some(fields) = value.as_object_mut() {
        for name in ["qemu", "description", "image"] {
            fields.remove(name);
        }
    }
    key(&value)
}

fn boot_config(recipe: &Recipe, images: &[Prepared]) -> BootConfig {
    let names =
        |list: &[toml::Spanned<ModuleName>]| list.iter().map(|name| name.get_ref().to_string()).collect();
    BootConfig {
        name: recipe.name.to_string(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        load_modules: names(&recipe.modules.always),
        pool: recipe.pool.policy,
        pool_encryption: recipe.pool.encryption,
        images: preloaded(images),
        zones: recipe.zones.iter().map(zone).collect(),
        allow_host_privilege: recipe.zone_rules.allow_host_privilege,
        registry: handover::RegistryConfig {
            insecure: recipe.registry.insecure.iter().map(ToString::to_string).collect(),
        },
    }
}

fn zone(zone: &Zone) -> BootZone {
    let published = |port: &toml::Spanned<crate::recipe::PortMapping>| {
        let port = port.get_ref();
        PublishedPort {
            host: port.outer,
            zone: port.inner,
            protocol: port.protocol,
        }
    };
    BootZone {
        name: zone.name.to_string(),
        image: zone.image.get_ref().to_string(),
        command: zone.command.clone(),
        env: zone.env.clone(),
        ports: zone.ports.iter().map(published).collect(),
        memory: zone.memory.map(|size| size.0),
        nano_cpus: zone.cpus.map(|cpus| cpus.0),
        pids: zone.pids,
    }
}
