//! Where this user's things are kept (XDG Base Directory Specification).

use std::env;
use std::path::PathBuf;

use anyhow::Context;

/// `$XDG_CACHE_HOME/monobloc`: what can be made again.
///
/// # Errors
/// Neither the variable nor `HOME` is set.
pub fn cache() -> anyhow::Result<PathBuf> {
    folder("XDG_CACHE_HOME", ".cache")
}

/// `$XDG_DATA_HOME/monobloc`: the site's keys.
///
/// # Errors
/// As [`cache`].
pub fn data() -> anyhow::Result<PathBuf> {
    folder("XDG_DATA_HOME", ".local/share")
}

/// `$XDG_STATE_HOME/monobloc`: machines, their disks and consoles.
///
/// # Errors
/// As [`cache`].
pub fn state() -> anyhow::Result<PathBuf> {
    folder("XDG_STATE_HOME", ".local/state")
}

fn folder(variable: &str, default: &str) -> anyhow::Result<PathBuf> {
    // The specification wants relative paths ignored.
    let absolute = |name| {
        env::var_os(name)
            .map(PathBuf::from)
            .filter(|path| path.is_absolute())
    };
    let base = absolute(variable)
        .or_else(|| Some(absolute("HOME")?.join(default)))
        .with_context(|| {
            format!("There is no folder to keep things in: set HOME or {variable} to an absolute path")
        })?;
    Ok(base.join("monobloc"))
}
