//! From recipe to image: the order of the work, and what makes two builds the same.

pub(crate) mod cache;
mod contents;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;

use crate::debian::{self, Archive, Package, Wanted};
use crate::kernel::{self, Kernel};
use crate::manifest::{self, File, Inputs, Manifest};
use crate::oci::{self, Prepared};
use crate::progress::Progress;
use crate::recipe::Recipe;
use crate::{init_binary, uki};

use cache::{Cache, key, sha256_of_file};
use contents::Contents;

/// Names of an image's files.
pub const VMLINUZ: &str = "vmlinuz";
pub const INITRD: &str = "initrd";
pub const MANIFEST: &str = "manifest.json";

/// Debian's package of the UEFI stub, and the stub in it.
const STUB_PACKAGE: &str = "systemd-boot-efi";
const STUB: &str = "usr/lib/systemd/boot/efi/linuxx64.efi.stub";

/// What a build is told besides the recipe.
#[derive(Debug, Clone)]
pub struct BuildOptions {
    /// Folder that everything fetched and made is kept in.
    pub cache: PathBuf,
    /// Folder with the project's sources, for the build of `/init`.
    pub workspace: PathBuf,
    /// A finished `/init` to take instead of building it.
    pub init: Option<PathBuf>,
}

impl BuildOptions {
    /// The usual places: `$XDG_CACHE_HOME/monobloc`, and the sources that this program was built from.
    ///
    /// # Errors
    /// Neither `XDG_CACHE_HOME` nor `HOME` is set.
    pub fn from_environment() -> anyhow::Result<Self> {
        let set = |name| {
            env::var_os(name)
                .filter(|value| !value.is_empty())
                .map(PathBuf::from)
        };
        let cache = set("XDG_CACHE_HOME")
            .or_else(|| set("HOME").map(|home| home.join(".cache")))
            .context("There is no place for the cache: set XDG_CACHE_HOME or HOME")?
            .join("monobloc");
        let built_from = Path::new(env!("CARGO_MANIFEST_DIR"));
        let workspace = built_from.parent().unwrap_or(built_from).to_owned();
        Ok(Self {
            cache,
            workspace,
            init: None,
        })
    }
}

/// A finished image, in the cache.
#[derive(Debug, Clone)]
pub struct BuiltImage {
    pub dir: PathBuf,
    pub vmlinuz: PathBuf,
    pub initrd: PathBuf,
    /// The file that UEFI firmware starts, unless the recipe wants none.
    pub efi: Option<PathBuf>,
    /// Kernel command line, for a boot that has not the `.efi`'s.
    pub cmdline: String,
    pub manifest: PathBuf,
    /// Whether it was there already.
    pub cached: bool,
}

/// Builds a recipe, or finds it built.
///
/// # Errors
/// Says what is missing or wrong, and what to do.
pub fn build(recipe: &Recipe, options: &BuildOptions, progress: &dyn Progress) -> anyhow::Result<BuiltImage> {
    let cache = Cache::open(&options.cache)?;
    let archive = Archive::new(&cache, progress);
    let kernel = kernel::provide(recipe, &cache, &archive, progress)?;
    let images = recipe
        .images
        .iter()
        .map(|image| oci::prepare(recipe, image, &cache, &archive, progress))
        .collect::<anyhow::Result<Vec<_>>>()?;
    let stub = if recipe.output.efi {
        Some(stub(&cache, &archive)?)
    } else {
        None
    };
    let init = match &options.init {
        Some(path) => path.clone(),
        None => init_binary::build(&options.workspace, progress)?,
    };
    let contents = Contents::gather(
        recipe,
        &kernel,
        &init,
        images,
        stub.as_ref().map(|(package, _)| package),
    )?;
    cache.tidy(&["built", "debs", "images"]);
    let mut cached = true;
    let dir = cache.folder("built", &key(&contents.inputs)?, |dir| {
        cached = false;
        make(
            recipe,
            &kernel,
            &contents,
            stub.as_ref().map(|(_, path)| path.as_path()),
            dir,
            progress,
        )
    })?;
    let efi = recipe.output.efi.then(|| dir.join(efi_name(recipe)));
    Ok(BuiltImage {
        vmlinuz: dir.join(VMLINUZ),
        initrd: dir.join(INITRD),
        efi,
        cmdline: recipe.kernel.command_line.to_string(),
        manifest: dir.join(MANIFEST),
        dir,
        cached,
    })
}

fn efi_name(recipe: &Recipe) -> String {
    format!("{}.efi", recipe.name)
}

/// Fetches the UEFI stub.
fn stub(cache: &Cache, archive: &Archive<'_>) -> anyhow::Result<(Package, PathBuf)> {
    let found = archive.resolve(&Wanted::only(&[STUB_PACKAGE]))?;
    let package = found
        .into_iter()
        .next()
        .with_context(|| format!("There is no package {STUB_PACKAGE}"))?;
    let dir = cache.folder("stubs", &key(&package)?, |dir| {
        let debs = archive.fetch(std::slice::from_ref(&package))?;
        debs.iter()
            .try_for_each(|deb| debian::unpack(deb, dir, |name| name == STUB))
    })?;
    Ok((package, dir.join(STUB)))
}

/// Writes the files of an image into a folder.
fn make(
    recipe: &Recipe,
    kernel: &Kernel,
    contents: &Contents,
    stub: Option<&Path>,
    dir: &Path,
    progress: &dyn Progress,
) -> anyhow::Result<()> {
    fs::copy(&kernel.vmlinuz, dir.join(VMLINUZ))
        .with_context(|| format!("Cannot copy {}", kernel.vmlinuz.display()))?;
    let initramfs = contents.initramfs(recipe, kernel)?;
    let step = progress.step("pack the initramfs");
    step.set_length(initramfs.size());
    let level = recipe.initramfs.level.as_ref().map(|level| *level.get_ref());
    initramfs.write(&dir.join(INITRD), recipe.initramfs.compression, level, &|bytes| {
        step.inc(bytes)
    })?;
    step.finish();
    if let Some(stub) = stub {
        let step = progress.step("write the UEFI image");
        write_uki(recipe, kernel, stub, dir)?;
        step.finish();
    }
    write_manifest(&contents.inputs, dir)
}

fn write_uki(recipe: &Recipe, kernel: &Kernel, stub: &Path, dir: &Path) -> anyhow::Result<()> {
    let read = |path: &Path| fs::read(path).with_context(|| format!("Cannot read {}", path.display()));
    let os_release = format!(
        "ID=monobloc\nNAME=Monobloc\nPRETTY_NAME=\"Monobloc {name}\"\nVERSION_ID={version}\nIMAGE_ID={name}\n",
        name = recipe.name,
        version = env!("CARGO_PKG_VERSION"),
    );
    let image = uki::write(
        &read(stub)?,
        &uki::Parts {
            os_release: &os_release,
            command_line: recipe.kernel.command_line.as_str(),
            release: &kernel.release,
            initrd: &read(&dir.join(INITRD))?,
            kernel: &read(&kernel.vmlinuz)?,
        },
    )?;
    // What was written is what was meant.
    let sections = uki::read::sections(&image).context("The UEFI image came out wrong")?;
    let whole = sections.get(".cmdline").copied() == Some(recipe.kernel.command_line.as_str().as_bytes());
    anyhow::ensure!(
        whole,
        "The UEFI image came out wrong: its command line is another"
    );
    fs::write(dir.join(efi_name(recipe)), image)?;
    Ok(())
}

fn write_manifest(inputs: &Inputs, dir: &Path) -> anyhow::Result<()> {
    let mut outputs = BTreeMap::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        let file = File {
            size: entry.metadata()?.len(),
            sha256: sha256_of_file(&entry.path())?,
        };
        outputs.insert(entry.file_name().to_string_lossy().into_owned(), file);
    }
    let manifest = Manifest {
        inputs: inputs.clone(),
        outputs,
    };
    fs::write(dir.join(MANIFEST), serde_json::to_vec_pretty(&manifest)?)?;
    Ok(())
}

/// The kernel's part of the manifest.
fn kernel_input(kernel: &Kernel) -> manifest::Kernel {
    manifest::Kernel {
        release: kernel.release.clone(),
        package: kernel.package.clone(),
    }
}

/// The preloaded images as the appliance sees them: archives by number, since a reference may hold
/// what a file name may not.
fn preloaded(images: &[Prepared]) -> Vec<handover::PreloadedImage> {
    let describe = |(number, image): (usize, &Prepared)| handover::PreloadedImage {
        reference: image.reference.clone(),
        file: format!("{number}.tar"),
        id: image.id.clone(),
    };
    images.iter().enumerate().map(describe).collect()
}
