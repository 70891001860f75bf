//! From recipe to image.

use std::path::PathBuf;

use crate::progress::Progress;
use crate::recipe::Recipe;

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
pub fn build(_recipe: &Recipe, _options: &BuildOptions, _progress: &dyn Progress) -> anyhow::Result<BuiltImage> {
    anyhow::bail!("Not there yet")
}
