//! Files that are either whole or not there, and keys that only their owner reads.

use std::fs::{self, DirBuilder, File, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;

use super::SiteError;

const PRIVATE: u32 = 0o600;
const PUBLIC: u32 = 0o644;
const PRIVATE_DIR: u32 = 0o700;

/// Attaches what was tried to an error of the file system.
fn at<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SiteError + 'a {
    move |source| SiteError::File {
        action,
        path: path.to_owned(),
        source,
    }
}

pub(super) fn make_private_dir(path: &Path) -> Result<(), SiteError> {
    DirBuilder::new()
        .recursive(true)
        .mode(PRIVATE_DIR)
        .create(path)
        .map_err(at("make the folder", path))
}

/// Keeps other processes from changing the site at the same time, until it is dropped.
pub(super) fn lock(dir: &Path) -> Result<File, SiteError> {
    let path = dir.join(".lock");
    let lock = || {
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .open(&path)?;
        file.lock().map(|()| file)
    };
    lock().map_err(at("lock", &path))
}

pub(super) fn exists(path: &Path) -> Result<bool, SiteError> {
    path.try_exists().map_err(at("look for", path))
}

pub(super) fn read(path: &Path) -> Result<String, SiteError> {
    fs::read_to_string(path).map_err(at("read", path))
}

pub(super) fn write(path: &Path, text: &str) -> Result<(), SiteError> {
    replace(path, text, PUBLIC).map_err(at("write", path))
}

pub(super) fn write_private(path: &Path, text: &str) -> Result<(), SiteError> {
    replace(path, text, PRIVATE).map_err(at("write", path))
}

/// Takes a key from the eyes of others, should it have been copied here without care.
pub(super) fn make_private(path: &Path) -> Result<(), SiteError> {
    fs::set_permissions(path, Permissions::from_mode(PRIVATE)).map_err(at("protect", path))
}

fn replace(path: &Path, text: &str, mode: u32) -> io::Result<()> {
    let new = path.with_extension("new");
    // What an interrupted run has left may have another mode.
    match fs::remove_file(&new) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new()
        .create_new(true)
        .write(true)
        .mode(mode)
        .open(&new)?;
    file.write_all(text.as_bytes())?;
    file.sync_all()?;
    fs::rename(&new, path)
}
