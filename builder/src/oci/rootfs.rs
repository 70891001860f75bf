//! Images made of a root file system in a tar file, and the files that a recipe adds to an image.

use std::fs::{self, File};
use std::io::BufReader;
use std::path::Path;

use anyhow::{Context, bail};

use super::tree::{Kind, Node, Tree};
use super::{Layer, Parts, config, unpacked};
use crate::image::cache::sha256_of_file;
use crate::recipe::{ExtraFile, Image, Recipe};

/// The tar file becomes the first layer as it is, the added files the second.
pub(super) fn assemble(recipe: &Recipe, image: &Image, path: &Path, scratch: &Path) -> anyhow::Result<Parts> {
    let mut layers: Vec<Layer> = vec![unpacked::plain_layer(path, &scratch.join("rootfs.tar"))?];
    check(&scratch.join("rootfs.tar"), path)?;
    if !image.files.is_empty() {
        let mut tree = Tree::default();
        add_extra_files(&mut tree, recipe, image)?;
        layers.push(tree.write(&scratch.join("added.tar"))?);
    }
    let digests: Vec<&str> = layers.iter().map(|layer| layer.digest.as_str()).collect();
    let config = config::write(&image.config, &digests, "Root file system")?;
    Ok(Parts { config, layers })
}

/// Reads all headers, so that a damaged file is found now and not at boot.
fn check(tar: &Path, named: &Path) -> anyhow::Result<()> {
    let mut count = 0;
    let damaged = || format!("{} is no whole tar file; make it again", named.display());
    let mut archive = tar::Archive::new(BufReader::new(File::open(tar)?));
    for entry in archive.entries_with_seek().with_context(damaged)? {
        let entry = entry.with_context(damaged)?;
        let end = entry.raw_file_position().saturating_add(entry.size());
        if end > fs::metadata(tar)?.len() {
            bail!(damaged());
        }
        count += 1;
    }
    if count == 0 {
        bail!("{} is empty or no tar file", named.display());
    }
    Ok(())
}

/// Adds the recipe's files to a tree.
pub(super) fn add_extra_files(tree: &mut Tree, recipe: &Recipe, image: &Image) -> anyhow::Result<()> {
    for file in &image.files {
        let path = file.path.get_ref();
        let (kind, mode) = match file {
            ExtraFile {
                content: Some(text), ..
            } => (Kind::File(text.clone().into_bytes()), 0o644),
            ExtraFile {
                link: Some(target), ..
            } => (Kind::Symlink(target.clone()), 0o777),
            ExtraFile {
                source: Some(source), ..
            } => {
                let source = recipe.resolve(source);
                let bytes = fs::read(&source).with_context(|| {
                    format!(
                        "Cannot read {}, which the recipe adds as {path}; check the path",
                        source.display()
                    )
                })?;
                (Kind::File(bytes), 0o644)
            }
            _ => (Kind::Folder, 0o755),
        };
        let mode = file.mode.map_or(mode, |mode| mode.0);
        let node = Node {
            uid: file.uid.into(),
            gid: file.gid.into(),
            ..Node::new(kind, mode)
        };
        tree.add(path.relative(), node)?;
    }
    Ok(())
}

/// What the image depends on besides the recipe's text.
pub(crate) fn digests_of_extra_files(recipe: &Recipe, image: &Image) -> anyhow::Result<Vec<String>> {
    let sources = image.files.iter().filter_map(|file| file.source.as_ref());
    sources
        .map(|source| {
            let source = recipe.resolve(source);
            sha256_of_file(&source).with_context(|| {
                format!(
                    "Cannot read {}, which the recipe adds; check the path",
                    source.display()
                )
            })
        })
        .collect()
}
