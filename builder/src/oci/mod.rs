//! Container images that the appliance has from the start, each written as one OCI archive.
//!
//! Whatever an image comes from, the archive has the same form: uncompressed layers, since the
//! initramfs around it is compressed as a whole and the appliance then need not decompress twice;
//! and entries in a fixed order with fixed times and owners. An image's id is the digest of its
//! config, which is taken over byte by byte from a finished image.

mod archive;
mod config;
mod packages;
pub(crate) mod rootfs;
#[cfg(test)]
mod tests;
mod tree;
pub(crate) mod unpacked;

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::Context;
use serde::{Deserialize, Serialize};

use crate::debian::{Archive, Package};
use crate::image::cache::{Cache, key, sha256_of_file};
use crate::progress::Progress;
use crate::recipe::{Image, Recipe, Source};

/// An image in the cache, ready to be put into the initramfs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Prepared {
    pub reference: String,
    /// `sha256:` and the digest of the config.
    pub id: String,
    /// The archive in the cache; not part of what is kept about it.
    #[serde(skip)]
    pub archive: PathBuf,
    /// SHA-256 of the archive.
    pub sha256: String,
    /// What it was made from.
    pub inputs: Inputs,
}

/// What an image was made from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Inputs {
    Packages(Vec<Package>),
    /// SHA-256 of the file, or of the folder's index.
    File {
        name: String,
        sha256: String,
    },
}

/// Makes an image, or finds it made.
pub(crate) fn prepare(
    recipe: &Recipe,
    image: &Image,
    cache: &Cache,
    archive: &Archive<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Prepared> {
    let reference = image.reference.get_ref();
    prepare_source(recipe, image, cache, archive, progress)
        .with_context(|| format!("Cannot make the image {reference}"))
}

fn prepare_source(
    recipe: &Recipe,
    image: &Image,
    cache: &Cache,
    archive: &Archive<'_>,
    progress: &dyn Progress,
) -> anyhow::Result<Prepared> {
    let reference = image.reference.get_ref();
    let inputs = inputs(recipe, image, archive)?;
    let added = rootfs::digests_of_extra_files(recipe, image)?;
    let key = key(&(image_settings(image), &inputs, added))?;
    let dir = cache.folder("images", &key, |dir| {
        let step = progress.step(&format!("make the image {reference}"));
        let scratch = cache.scratch("images")?;
        let parts = match &image.source {
            Source::Packages(packages) => {
                let Inputs::Packages(wanted) = &inputs else {
                    unreachable_inputs()?
                };
                let debs = archive.fetch(wanted)?;
                packages::assemble(recipe, image, packages, &debs, scratch.path())?
            }
            Source::Rootfs(path) => rootfs::assemble(recipe, image, &recipe.resolve(path), scratch.path())?,
            Source::OciLayout(path) => unpacked::layout(&recipe.resolve(path), reference, scratch.path())?,
            Source::OciArchive(path) | Source::DockerArchive(path) => {
                unpacked::archive(&recipe.resolve(path), reference, scratch.path())?
            }
        };
        let sha256 = archive::write(&dir.join("image.tar"), reference, &parts)?;
        let prepared = Prepared {
            reference: reference.to_string(),
            id: format!("sha256:{}", parts.config_digest()),
            archive: PathBuf::new(),
            sha256,
            inputs: inputs.clone(),
        };
        fs::write(dir.join("image.json"), serde_json::to_vec(&prepared)?)?;
        step.finish();
        Ok(())
    })?;
    let about = fs::read(dir.join("image.json"))?;
    let prepared: Prepared = serde_json::from_slice(&about)
        .with_context(|| format!("{} is damaged; delete it and build again", dir.display()))?;
    Ok(Prepared {
        archive: dir.join("image.tar"),
        ..prepared
    })
}

fn unreachable_inputs<T>() -> anyhow::Result<T> {
    anyhow::bail!("The image's source and its inputs do not fit")
}

/// What of the recipe's entry the image depends on, without the places in the recipe's text.
fn image_settings(image: &Image) -> serde_json::Value {
    let mut value = serde_json::to_value(image).unwrap_or_default();
    // Where a source lies does not matter, only what is in it.
    if !matches!(image.source, Source::Packages(_))
        && let Some(fields) = value.as_object_mut()
    {
        fields.remove("source");
    }
    value
}

fn inputs(recipe: &Recipe, image: &Image, archive: &Archive<'_>) -> anyhow::Result<Inputs> {
    match &image.source {
        Source::Packages(packages) => Ok(Inputs::Packages(archive.resolve(&packages::wanted(packages))?)),
        Source::OciLayout(path) => {
            // The index names all else by digest.
            let index = recipe.resolve(path).join("index.json");
            file_input(path, &index)
        }
        Source::OciArchive(path) | Source::DockerArchive(path) | Source::Rootfs(path) => {
            file_input(path, &recipe.resolve(path))
        }
    }
}

fn file_input(named: &Path, file: &Path) -> anyhow::Result<Inputs> {
    let sha256 = sha256_of_file(file).with_context(|| {
        format!(
            "Cannot read {}, which the recipe names; check the path",
            file.display()
        )
    })?;
    let name = named
        .file_name()
        .map(|name| name.to_string_lossy().into_owned())
        .unwrap_or_default();
    Ok(Inputs::File { name, sha256 })
}

/// An image before it is written: its config and its layers, uncompressed, lowest first.
#[derive(Debug)]
pub(crate) struct Parts {
    config: Vec<u8>,
    layers: Vec<Layer>,
}

/// One layer's tar file.
#[derive(Debug)]
pub(crate) struct Layer {
    path: PathBuf,
    /// SHA-256 of the tar file in hex; with `sha256:` before it, the diff id.
    digest: String,
    size: u64,
}

impl Parts {
    fn config_digest(&self) -> String {
        crate::image::cache::sha256(&self.config)
    }
}
