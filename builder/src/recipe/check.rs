//! What must fit together in a recipe whose values are each valid by themselves.

use std::collections::BTreeSet;
use std::ops::Range;

use super::{Compression, ExtraFile, Image, Recipe, Source};

/// A mistake and where it stands.
pub(super) struct Mistake {
    pub(super) span: Range<usize>,
    pub(super) message: String,
}

fn ensure(condition: bool, span: Range<usize>, message: impl FnOnce() -> String) -> Result<(), Mistake> {
    if condition {
        Ok(())
    } else {
        Err(Mistake {
            span,
            message: message(),
        })
    }
}

pub(super) fn check(recipe: &Recipe) -> Result<(), Mistake> {
    level(recipe)?;
    let mut references = BTreeSet::new();
    for image in &recipe.images {
        let reference = image.reference.get_ref();
        ensure(references.insert(reference), image.reference.span(), || {
            format!("Image {reference} is there twice, expected each `reference` once")
        })?;
        made_here(image)?;
        image.files.iter().try_for_each(extra_file)?;
    }
    zones(recipe, &references)
}

fn level(recipe: &Recipe) -> Result<(), Mistake> {
    let Some(level) = &recipe.initramfs.level else {
        return Ok(());
    };
    let (name, highest) = match recipe.initramfs.compression {
        Compression::Zstd => ("zstd", 19),
        Compression::Gzip => ("gzip", 9),
        Compression::None => ("none", 0),
    };
    ensure((1..=highest).contains(level.get_ref()), level.span(), || {
        let form = if highest == 0 {
            "no level at all".to_owned()
        } else {
            format!("a level from 1 to {highest}")
        };
        format!(
            "Invalid level {}, expected {form} for compression {name:?}",
            level.get_ref()
        )
    })
}

/// Files, users and a config go into an image that is made here; a finished image is taken as it is.
fn made_here(image: &Image) -> Result<(), Mistake> {
    let (users, rest) = match &image.source {
        Source::Packages(packages) => {
            return ensure(!packages.names.is_empty(), image.reference.span(), || {
                format!(
                    "Image {} has no packages, expected at least one in `names`",
                    image.reference.get_ref()
                )
            });
        }
        Source::Rootfs(_) => (image.users.is_empty(), true),
        Source::OciArchive(_) | Source::OciLayout(_) | Source::DockerArchive(_) => (
            image.users.is_empty(),
            image.files.is_empty() && image.config == super::ImageConfig::default(),
        ),
    };
    ensure(users && rest, image.reference.span(), || {
        format!(
            "Image {} comes from a finished archive, expected no `config`, `file` or `user` with it \
             (`config` and `file` go with `source.rootfs`, all three with `source.packages`)",
            image.reference.get_ref()
        )
    })
}

fn extra_file(file: &ExtraFile) -> Result<(), Mistake> {
    let kinds = [
        file.content.is_some(),
        file.source.is_some(),
        file.link.is_some(),
        file.folder,
    ];
    ensure(
        kinds.iter().filter(|is| **is).count() == 1,
        file.path.span(),
        || {
            format!(
                "File {} is not one thing, expected exactly one of `content`, `source`, `link` and `folder`",
                file.path.get_ref()
            )
        },
    )
}

fn zones(recipe: &Recipe, references: &BTreeSet<&super::Reference>) -> Result<(), Mistake> {
    let mut names = BTreeSet::new();
    let mut ports = BTreeSet::new();
    for zone in &recipe.zones {
        let image = zone.image.get_ref();
        ensure(names.insert(&zone.name), zone.image.span(), || {
            format!("Zone {} is there twice, expected each `name` once", zone.name)
        })?;
        ensure(references.contains(image), zone.image.span(), || {
            let known: Vec<&str> = references.iter().map(|reference| reference.as_str()).collect();
            let known = if known.is_empty() {
                "an [[image]] of this recipe".into()
            } else {
                known.join(", ")
            };
            format!(
                "Zone {} wants image {image}, which this recipe does not have, expected {known}",
                zone.name
            )
        })?;
        for mapping in &zone.ports {
            let port = mapping.get_ref();
            ensure(ports.insert((port.outer, port.protocol)), mapping.span(), || {
                format!(
                    "Port {} is published twice, expected each port of the appliance once",
                    port.outer
                )
            })?;
        }
    }
    Ok(())
}
