//! Programs of this machine that tests hold the project's work against. A test says what it needs,
//! and what is missing is installed from Debian's packages, so that `cargo test` is the one command
//! on a fresh machine. Only tests depend on this package.

#![forbid(unsafe_code)]

use std::collections::BTreeSet;
use std::env;
use std::fs::{self, File};
use std::io;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::Mutex;

/// The folder of what tests keep between runs, `$XDG_CACHE_HOME/monobloc/tests`.
///
/// # Panics
/// It cannot be made.
#[must_use]
pub fn cache() -> PathBuf {
    let base = env::var_os("XDG_CACHE_HOME")
        .map(PathBuf::from)
        .filter(|path| path.is_absolute());
    let base = base.or_else(|| Some(PathBuf::from(env::var_os("HOME")?).join(".cache")));
    let cache = base
        .unwrap_or_else(|| panic!("set HOME or XDG_CACHE_HOME"))
        .join("monobloc/tests");
    fs::create_dir_all(&cache).unwrap_or_else(|error| panic!("cannot make {}: {error}", cache.display()));
    cache
}

/// Makes sure that Debian packages are installed. As root it installs what is missing.
///
/// # Panics
/// A package is missing and cannot be installed; the message says what to do.
#[track_caller]
pub fn need(packages: &[&str]) {
    static THERE: Mutex<BTreeSet<String>> = Mutex::new(BTreeSet::new());
    // A test that failed here has told why; the others may try again.
    let mut there = THERE.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
    let unknown = packages
        .iter()
        .copied()
        .filter(|package| !there.contains(*package))
        .collect::<Vec<_>>();
    if unknown.is_empty() {
        return;
    }
    install(&missing(&unknown));
    there.extend(unknown.into_iter().map(String::from));
}

fn missing<'a>(packages: &[&'a str]) -> Vec<&'a str> {
    let mut query = Command::new("dpkg-query");
    query
        .args(["-W", "-f", "${Package} ${db:Status-Status}\n"])
        .args(packages);
    let output = output(&mut query).unwrap_or_else(|error| panic!("this machine is no Debian ({error})"));
    let known = String::from_utf8_lossy(&output.stdout).into_owned();
    let installed = known
        .lines()
        .filter_map(|line| line.strip_suffix(" installed"))
        .collect::<BTreeSet<_>>();
    packages
        .iter()
        .copied()
        .filter(|package| !installed.contains(package))
        .collect()
}

#[track_caller]
fn install(packages: &[&str]) {
    if packages.is_empty() {
        return;
    }
    let lock = File::create(cache().join("apt.lock")).and_then(|file| file.lock().map(|()| file));
    let _lock = lock.unwrap_or_else(|error| panic!("cannot lock the package manager: {error}"));
    update_lists();
    let mut apt = Command::new("apt-get");
    apt.args(["install", "--yes", "--no-install-recommends"])
        .args(packages);
    // Another process's apt may be at work.
    apt.args(["-o", "DPkg::Lock::Timeout=300"])
        .env("DEBIAN_FRONTEND", "noninteractive");
    demand(
        &mut apt,
        &format!(
            "install the packages that the tests need: apt-get install {}",
            packages.join(" ")
        ),
    );
}

/// Fetches apt's package lists if there are none, as on a machine that was never updated.
///
/// # Panics
/// They cannot be fetched.
#[track_caller]
pub fn update_lists() {
    let files = output(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(FILENAME)",
        "Created-By: Packages",
    ]));
    let files = files
        .map(|output| String::from_utf8_lossy(&output.stdout).into_owned())
        .unwrap_or_default();
    if !files.lines().any(|file| Path::new(file).exists()) {
        demand(
            Command::new("apt-get").arg("update"),
            "fetch the package lists: apt-get update",
        );
    }
}

#[track_caller]
fn demand(command: &mut Command, what: &str) {
    let output = output(command).unwrap_or_else(|error| panic!("cannot {what} ({error})"));
    let said = String::from_utf8_lossy(&output.stderr);
    assert!(
        output.status.success(),
        "cannot {what}\nRun it as root. It said: {said}"
    );
}

fn output(command: &mut Command) -> io::Result<Output> {
    command.stdin(Stdio::null()).output()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_installed_is_not_missing_and_what_does_not_exist_is() {
        assert_eq!(missing(&["dpkg", "no-such-package", "apt"]), ["no-such-package"]);
    }
}
