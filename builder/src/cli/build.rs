//! `monobloc build`.

use std::ffi::OsString;
use std::fs;
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use monobloc::host;
use monobloc::image::{self, BuildOptions, BuiltImage};
use monobloc::progress;
use monobloc::recipe::Recipe;

use super::{Build, pick, text};

pub(super) fn run(arguments: &Build) -> anyhow::Result<()> {
    let recipe = Recipe::load(&pick::recipe(&arguments.recipe)?)?;
    let output = &arguments.output;
    let folder = output.is_dir() || output.as_os_str().as_bytes().ends_with(b"/");
    if !folder && !recipe.output.efi {
        bail!(
            "The recipe {} makes no .efi file; give a folder instead, such as `-o {}/`",
            recipe.name,
            recipe.name
        );
    }
    if !folder {
        check_parent(output)?;
    }
    let progress = progress::for_stderr();
    host::provide(&host::PACKAGE_TOOLS, progress.as_ref())?;
    let image = image::build(&recipe, &BuildOptions::from_environment()?, progress.as_ref())?;
    let written = if folder {
        write_folder(&image, output)?
    } else {
        write_file(&image, output)?
    };
    let lines = written.iter().map(|path| {
        let length = fs::metadata(path).map_or(0, |data| data.len());
        format!("{}  {}\n", path.display(), text::dim(&text::size(length)))
    });
    text::print(&lines.collect::<String>())
}

/// Looks whether the file can be put there before minutes are spent on it.
fn check_parent(output: &Path) -> anyhow::Result<()> {
    match output.parent() {
        Some(parent) if parent != Path::new("") && !parent.is_dir() => bail!(
            "There is no folder {} to write {} to; make it first",
            parent.display(),
            output.display()
        ),
        _ => Ok(()),
    }
}

/// The `.efi` file under its new name, and the manifest beside it.
fn write_file(image: &BuiltImage, output: &Path) -> anyhow::Result<Vec<PathBuf>> {
    let efi = image.efi.as_deref().context("The image has no .efi file")?;
    let manifest = output.with_extension("manifest.json");
    copy(efi, output)?;
    copy(&image.manifest, &manifest)?;
    Ok(vec![output.to_owned(), manifest])
}

fn write_folder(image: &BuiltImage, folder: &Path) -> anyhow::Result<Vec<PathBuf>> {
    fs::create_dir_all(folder).with_context(|| format!("Cannot make the folder {}", folder.display()))?;
    let files = [
        Some(&image.vmlinuz),
        Some(&image.initrd),
        image.efi.as_ref(),
        Some(&image.manifest),
    ];
    let mut written = Vec::new();
    for file in files.into_iter().flatten() {
        let name = file.file_name().context("A file of the image has no name")?;
        let target = folder.join(name);
        copy(file, &target)?;
        written.push(target);
    }
    Ok(written)
}

/// Copies a file so that it appears when it is whole.
fn copy(from: &Path, to: &Path) -> anyhow::Result<()> {
    let mut name = to
        .file_name()
        .map(OsString::from)
        .context("The output has no file name")?;
    name.push(".part");
    let part = to.with_file_name(name);
    let copied = fs::copy(from, &part).and_then(|_| fs::rename(&part, to));
    if copied.is_err() {
        let _ = fs::remove_file(&part);
    }
    copied.with_context(|| {
        format!(
            "Cannot write {}; look for room on the disk and permission to write there",
            to.display()
        )
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_output_without_a_folder_is_refused_before_the_build() {
        let error = check_parent(Path::new("/nowhere/x.efi")).unwrap_err().to_string();
        assert!(error.contains("/nowhere"), "{error}");
        for good in ["x.efi", "./x.efi", "/x.efi"] {
            check_parent(Path::new(good)).unwrap();
        }
    }
}
