//! Debian packages: which ones, fetched and verified by apt itself, unpacked without root.
//!
//! apt checks the archive's signature, the package lists against it and each package against the
//! lists. The checksum of every package is checked once more whenever it is taken from the cache.
//! Nothing is installed and no maintainer script is run.

mod control;
mod resolve;

use std::collections::BTreeMap;
use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::UNIX_EPOCH;

use anyhow::{Context, ensure};
use serde::{Deserialize, Serialize};

use crate::command;
use crate::image::cache::{Cache, Hashing, key, sha256_of_file};
use crate::progress::Progress;

pub(crate) use resolve::{Follow, Wanted};

/// What apt-cache says when it knows none of the names.
const NOTHING_FOUND: &str = "No packages found";

/// One package of the archive, in the version that apt would install.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub struct Package {
    pub name: String,
    pub version: String,
    pub architecture: String,
    /// Of the `.deb` file, from the signed package list.
    pub sha256: String,
}

/// The Debian archive as this machine's apt knows it.
pub(crate) struct Archive<'a> {
    cache: &'a Cache,
    progress: &'a dyn Progress,
}

impl<'a> Archive<'a> {
    pub(crate) fn new(cache: &'a Cache, progress: &'a dyn Progress) -> Self {
        Self { cache, progress }
    }

    /// Which packages are meant. The answer is kept until apt's lists change.
    pub(crate) fn resolve(&self, wanted: &Wanted) -> anyhow::Result<Vec<Package>> {
        let error = match self.resolve_in(Lists::System, wanted) {
            Ok(found) => return Ok(found),
            Err(error) => error,
        };
        if let Ok(found) = self.resolve_in(Lists::Own, wanted) {
            return Ok(found);
        }
        // The machine's lists are absent or too old, and only root may renew them; the builder's
        // own need no root and are verified with the same keys.
        if self.update_own_lists().is_err() {
            return Err(error.context(
                "This machine's package lists do not do, and new ones cannot be fetched; check the network and the \
                 room on the disk",
            ));
        }
        self.resolve_in(Lists::Own, wanted)
    }

    fn resolve_in(&self, lists: Lists, wanted: &Wanted) -> anyhow::Result<Vec<Package>> {
        let key = key(&(wanted, lists, self.fingerprint(lists)))?;
        self.cache.value("apt/resolved", &key, || {
            resolve::resolve(wanted, |names| self.show(lists, names))
        })
    }

    /// What apt knows of the packages of these names; those it does not know are left out.
    fn show(&self, lists: Lists, names: &[String]) -> anyhow::Result<Vec<control::Stanza>> {
        let mut apt = Command::new("apt-cache");
        apt.args(self.options(lists)?)
            .args(["show", "--no-all-versions", "--"])
            .args(names)
            .env("LC_ALL", "C");
        // It fails when it knows none of them, which is not its caller's failure.
        let output = apt
            .stdin(Stdio::null())
            .output()
            .map_err(|error| command::not_started("apt-cache", error))?;
        let stderr = String::from_utf8_lossy(&output.stderr);
        if !output.status.success() && !stderr.contains(NOTHING_FOUND) {
            return Err(command::failed("apt-cache", output.status, &stderr).into());
        }
        control::stanzas(&String::from_utf8_lossy(&output.stdout))
    }

    /// Fetches packages that are not in the cache yet; returns the files in the same order.
    pub(crate) fn fetch(&self, packages: &[Package]) -> anyhow::Result<Vec<PathBuf>> {
        let missing: Vec<&Package> = packages
            .iter()
            .filter(|package| !self.is_whole(package))
            .collect();
        if !missing.is_empty() {
            let what = match missing.as_slice() {
                [one] => one.name.clone(),
                many => format!("{} Debian packages", many.len()),
            };
            let step = self.progress.step(&format!("fetch {what}"));
            self.download(&missing)?;
            step.finish();
        }
        Ok(packages.iter().map(|package| self.path(package)).collect())
    }

    fn path(&self, package: &Package) -> PathBuf {
        self.cache.path("debs", &format!("{}.deb", package.sha256))
    }

    fn is_whole(&self, package: &Package) -> bool {
        let path = self.path(package);
        let whole = sha256_of_file(&path).is_ok_and(|digest| digest == package.sha256);
        if !whole {
            let _ = fs::remove_file(path);
        }
        whole
    }

    fn download(&self, packages: &[&Package]) -> anyhow::Result<()> {
        let scratch = self.cache.scratch("debs")?;
        let names: Vec<String> = packages
            .iter()
            .map(|package| format!("{}:{}={}", package.name, package.architecture, package.version))
            .map(|name| name.replace(":all=", "="))
            .collect();
        let mut last = None;
        for lists in [Lists::System, Lists::Own] {
            let mut apt = Command::new("apt-get");
            apt.args(self.options(lists)?)
                .args(["download", "--quiet=2"])
                // Its own user may not write in the cache; it would go on as root with a warning.
                .args(["-oAPT::Sandbox::User=root", "--"])
                .args(&names);
            apt.current_dir(scratch.path());
            match command::run(&mut apt) {
                Ok(_) => {
                    last = None;
                    break;
                }
                Err(error) => last = last.or(Some(error)),
            }
            if lists == Lists::System {
                // A package that left the mirror is the sign of lists that are too old.
                let _ = self.update_own_lists();
            }
        }
        if let Some(error) = last {
            return Err(anyhow::Error::from(error).context(format!(
                "Cannot fetch {} from the Debian archive; check the network, then try `apt-get update` as root",
                names.join(", ")
            )));
        }
        self.take_in(scratch.path(), packages)
    }

    /// Moves what apt has fetched into the cache, by checksum.
    fn take_in(&self, dir: &Path, packages: &[&Package]) -> anyhow::Result<()> {
        let mut fetched = BTreeMap::new();
        for entry in fs::read_dir(dir)? {
            let path = entry?.path();
            fetched.insert(sha256_of_file(&path)?, path);
        }
        for package in packages {
            let path = fetched.get(&package.sha256).with_context(|| {
                format!(
                    "Package {} {} came with another checksum than the package lists say; try again",
                    package.name, package.version
                )
            })?;
            fs::rename(path, self.path(package))?;
        }
        Ok(())
    }

    fn own_lists(&self) -> PathBuf {
        self.cache.path("apt", "state")
    }

    fn update_own_lists(&self) -> anyhow::Result<()> {
        let mut apt = Command::new("apt-get");
        apt.args(self.options(Lists::Own)?)
            .args(["update", "--quiet=2", "-oAPT::Update::Error-Mode=any"]);
        let step = self.progress.step("renew the package lists");
        command::run(&mut apt)?;
        step.finish();
        Ok(())
    }

    /// Where apt keeps what. Its index of the lists (`pkgcache.bin`) is kept even where the machine's
    /// configuration says not to, because without it each call reads all lists again.
    fn options(&self, lists: Lists) -> anyhow::Result<Vec<String>> {
        let apt = self.cache.path("apt", "");
        let word = match lists {
            Lists::System => "system",
            Lists::Own => "own",
        };
        let dir = apt.join(word);
        fs::create_dir_all(&dir).with_context(|| format!("Cannot make {}", dir.display()))?;
        let dir = dir.display();
        let mut options = vec![
            format!("-oDir::Cache={dir}"),
            "-oDir::Cache::pkgcache=pkgcache.bin".to_owned(),
            "-oDir::Cache::srcpkgcache=srcpkgcache.bin".to_owned(),
            format!("-oDir::Cache::archives={dir}/"),
        ];
        if lists == Lists::Own {
            let state = self.own_lists();
            fs::create_dir_all(state.join("lists/partial"))
                .with_context(|| format!("Cannot make {}", state.display()))?;
            options.push(format!("-oDir::State={}", state.display()));
            options.push("-oDir::State::status=/dev/null".to_owned());
            options.push("-oDebug::NoLocking=1".to_owned());
        }
        Ok(options)
    }

    /// What apt's answers depend on: names, sizes and times of its lists and settings.
    fn fingerprint(&self, lists: Lists) -> Vec<(PathBuf, u64, u128)> {
        let state = match lists {
            Lists::System => PathBuf::from("/var/lib/apt"),
            Lists::Own => self.own_lists(),
        };
        let folders = [
            state.join("lists"),
            "/etc/apt".into(),
            "/etc/apt/sources.list.d".into(),
            "/etc/apt/preferences.d".into(),
        ];
        let mut found: Vec<_> = folders
            .iter()
            .filter_map(|folder| fs::read_dir(folder).ok())
            .flatten()
            .flatten()
            .filter_map(|entry| {
                let metadata = entry.metadata().ok().filter(fs::Metadata::is_file)?;
                let time = metadata
                    .modified()
                    .ok()?
                    .duration_since(UNIX_EPOCH)
                    .ok()?
                    .as_nanos();
                Some((entry.path(), metadata.len(), time))
            })
            .collect();
        found.sort();
        found
    }
}

/// Which of apt's lists are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
enum Lists {
    /// The machine's.
    System,
    /// The builder's own, made when the machine's do not do.
    Own,
}

/// Reads the files of a package: `visit` gets the tar stream that `dpkg-deb` takes out of it.
pub(crate) fn read<T>(
    deb: &Path,
    visit: impl FnOnce(&mut tar::Archive<&mut dyn Read>) -> anyhow::Result<T>,
) -> anyhow::Result<T> {
    let mut child = Command::new("dpkg-deb")
        .arg("--fsys-tarfile")
        .arg(deb)
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| command::not_started("dpkg-deb", error))?;
    let mut stdout = Hashing::new(child.stdout.take().context("dpkg-deb has no output")?);
    let visited = visit(&mut tar::Archive::new(&mut stdout as &mut dyn Read));
    // The stream's end, so that dpkg-deb is not cut off.
    let drained = io::copy(&mut stdout, &mut io::sink());
    let status = child.wait()?;
    ensure!(
        status.success() && drained.is_ok(),
        "The package file {} is damaged; delete it and build again",
        deb.display()
    );
    visited.with_context(|| format!("Cannot unpack {}", deb.display()))
}

/// Unpacks the files of a package whose names `wanted` takes into a folder.
pub(crate) fn unpack(deb: &Path, into: &Path, wanted: impl Fn(&str) -> bool) -> anyhow::Result<()> {
    read(deb, |tar| {
        for entry in tar.entries()? {
            let mut entry = entry?;
            let name = entry
                .path()?
                .to_string_lossy()
                .trim_start_matches("./")
                .to_owned();
            if entry.header().entry_type().is_file() && wanted(&name) {
                ensure!(
                    entry.unpack_in(into)?,
                    "It has a file that lies outside of it: {name}"
                );
            }
        }
        Ok(())
    })
}
