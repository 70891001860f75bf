//! What the suites need from Debian, without touching the machine more than that: tools are
//! installed, and what would start a service (the docker and registry packages) is only unpacked
//! into the cache, `$XDG_CACHE_HOME/monobloc/tests`.

use std::env;
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{LazyLock, OnceLock};

use anyhow::{Context as _, bail};
use xshell::{Shell, cmd};

/// Debian packages whose programs the suites call, besides those that the builder installs itself.
const TOOLS: &[&str] = &[
    "binutils",
    "btrfs-progs",
    "busybox-static",
    "cpio",
    "cryptsetup-bin",
    "debootstrap",
    "kmod",
    "mtools",
    "dosfstools",
    "ovmf",
    "qemu-system-x86",
    "sbsigntool",
    "skopeo",
    "swtpm",
    "systemd-boot-efi",
    "zstd",
];

/// The project's folder.
#[must_use]
pub fn workspace() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .parent()
        .unwrap_or(Path::new("."))
}

/// The folder of what is kept between test runs.
///
/// # Panics
/// It cannot be made.
pub fn cache() -> &'static Path {
    static CACHE: LazyLock<PathBuf> = LazyLock::new(tools::cache);
    &CACHE
}

/// A place of the cache that one process at a time may fill: `fill` is called unless it is there,
/// and what it makes appears under its name only when it is whole.
///
/// # Errors
/// Those of `fill`, or the cache cannot be written.
pub fn cached(name: &str, fill: impl FnOnce(&Path) -> anyhow::Result<()>) -> anyhow::Result<PathBuf> {
    let path = cache().join(name);
    let lock = File::create(cache().join(format!("{name}.lock")))?;
    lock.lock()
        .with_context(|| format!("Cannot lock {}", path.display()))?;
    if !path.exists() {
        let unfinished = cache().join(format!("{name}.unfinished"));
        let _ = fs::remove_dir_all(&unfinished);
        let _ = fs::remove_file(&unfinished);
        fill(&unfinished)?;
        fs::rename(&unfinished, &path)?;
    }
    Ok(path)
}

/// Installs the [`TOOLS`] that are missing.
///
/// # Panics
/// They cannot be installed.
pub fn tools() {
    tools::need(TOOLS);
}

/// A folder with a Debian package's files, unpacked there and not installed.
///
/// # Panics
/// The package cannot be fetched.
#[must_use]
pub fn unpacked(package: &str) -> PathBuf {
    let made = cached(&format!("unpacked-{package}"), |unfinished| {
        fs::create_dir_all(unfinished)?;
        tools::update_lists();
        let shell = Shell::new()?;
        let download = shell.create_temp_dir()?;
        shell.change_dir(download.path());
        cmd!(shell, "apt-get -o APT::Sandbox::User=root download {package}")
            .quiet()
            .ignore_stdout()
            .run()?;
        let file = fs::read_dir(download.path())?
            .next()
            .context("apt-get brought no file")??
            .path();
        cmd!(shell, "dpkg-deb --extract {file} {unfinished}")
            .quiet()
            .run()?;
        Ok(())
    });
    made.unwrap_or_else(|error| panic!("cannot fetch Debian's package {package}: {error:#}"))
}

/// A `btrfs` command that can check a file system with simple quotas, as those from 6.7 on can: the
/// installed one, or that of the release's backports, which is not installed.
///
/// # Panics
/// It cannot be fetched.
#[must_use]
pub fn btrfs_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        tools();
        let installed = Shell::new().and_then(|shell| cmd!(shell, "btrfs --version").quiet().read());
        if installed.is_ok_and(|said| knows_simple_quotas(&said)) {
            return "btrfs".into();
        }
        let made = cached("unpacked-backports-btrfs-progs", |unfinished| {
            backport("btrfs-progs", unfinished)
        });
        let made =
            made.unwrap_or_else(|error| panic!("cannot fetch btrfs-progs of the backports: {error:#}"));
        ["bin/btrfs", "usr/bin/btrfs"]
            .map(|path| made.join(path))
            .into_iter()
            .find(|path| path.exists())
            .expect("Debian's btrfs-progs holds no btrfs command")
    })
}

/// Reads `btrfs-progs v6.2`.
fn knows_simple_quotas(version: &str) -> bool {
    let numbers = version.trim().strip_prefix("btrfs-progs v").map(|version| {
        let mut numbers = version.split(|c: char| !c.is_ascii_digit());
        let mut next = || numbers.next().and_then(|number| number.parse::<u32>().ok());
        (next(), next())
    });
    numbers.is_some_and(|numbers| numbers >= (Some(6), Some(7)))
}

/// Unpacks a package of the backports, which this machine's apt need not know.
fn backport(package: &str, into: &Path) -> anyhow::Result<()> {
    let (code_name, archive) = debian_release()?;
    let shell = Shell::new()?;
    let dir = shell.create_temp_dir()?;
    shell.change_dir(dir.path());
    let list = dir.path().join("sources.list");
    fs::write(&list, format!("deb {archive} {code_name}-backports main\n"))?;
    for folder in ["lists/partial", "cache/archives/partial"] {
        fs::create_dir_all(dir.path().join(folder))?;
    }
    let options: Vec<String> = [
        format!("Dir::Etc::sourcelist={}", list.display()),
        "Dir::Etc::sourceparts=/dev/null".to_owned(),
        format!("Dir::State::lists={}", dir.path().join("lists").display()),
        format!("Dir::Cache={}", dir.path().join("cache").display()),
        "APT::Sandbox::User=root".to_owned(),
    ]
    .into_iter()
    .flat_map(|option| ["-o".to_owned(), option])
    .collect();
    let options = &options;
    for verb in [&["update"][..], &["download", package]] {
        cmd!(shell, "apt-get {options...} {verb...}")
            .quiet()
            .ignore_stdout()
            .run()?;
    }
    let file = fs::read_dir(dir.path())?
        .filter_map(|entry| Some(entry.ok()?.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "deb"))
        .context("apt-get brought no file")?;
    fs::create_dir_all(into)?;
    cmd!(shell, "dpkg-deb --extract {file} {into}").quiet().run()?;
    Ok(())
}

/// Debian's docker command, 20.10 in Debian 12. Its daemon is never started.
#[must_use]
pub fn docker_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| {
        // Debian 13 and later ship the command apart from the daemon.
        let programs = ["docker.io", "docker-cli"].map(|package| {
            let shell = Shell::new().ok()?;
            cmd!(shell, "apt-cache show {package}")
                .quiet()
                .ignore_stdout()
                .ignore_stderr()
                .run()
                .ok()?;
            Some(unpacked(package).join("usr/bin/docker")).filter(|program| program.exists())
        });
        programs
            .into_iter()
            .flatten()
            .next()
            .expect("Debian's docker.io holds no docker command")
    })
}

/// The `monobloc` command, built as the tests are.
///
/// # Panics
/// It cannot be built.
pub fn monobloc_program() -> &'static Path {
    static PROGRAM: OnceLock<PathBuf> = OnceLock::new();
    PROGRAM.get_or_init(|| build_monobloc().unwrap_or_else(|error| panic!("{error:#}")))
}

fn build_monobloc() -> anyhow::Result<PathBuf> {
    let shell = Shell::new()?;
    shell.change_dir(workspace());
    let cargo = env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
    let build = cmd!(shell, "{cargo} build --quiet -p monobloc --message-format=json");
    for line in build.quiet().read()?.lines() {
        let message: serde_json::Value = serde_json::from_str(line)?;
        if let Some(program) = message.get("executable").and_then(serde_json::Value::as_str) {
            return Ok(program.into());
        }
    }
    bail!("cargo built no program for the package monobloc")
}

/// The Debian release that this machine's apt knows: its code name and the archive it comes from.
///
/// # Errors
/// apt has no lists of it.
pub fn debian_release() -> anyhow::Result<(String, String)> {
    tools::update_lists();
    let release = fs::read_to_string("/etc/os-release").context("This machine is no Debian")?;
    let code_name = release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .context("/etc/os-release names no VERSION_CODENAME")?;
    let shell = Shell::new()?;
    let release = format!("Codename: {code_name}");
    let targets = cmd!(
        shell,
        "apt-get indextargets --format $(REPO_URI) 'Created-By: Packages' {release}"
    );
    let archives = targets.quiet().read()?;
    let archive = archives
        .lines()
        .next()
        .with_context(|| format!("apt knows no archive of {code_name}"))?;
    Ok((code_name.to_owned(), archive.to_owned()))
}

#[cfg(test)]
mod tests {
    use super::knows_simple_quotas;

    #[test]
    fn a_btrfs_command_of_6_7_and_later_knows_simple_quotas() {
        for (version, knows) in [
            ("btrfs-progs v6.2", false),
            ("btrfs-progs v6.6.3 ", false),
            ("btrfs-progs v6.7", true),
            ("btrfs-progs v6.14\n-EXPERIMENTAL", true),
            ("btrfs-progs v7.0", true),
            ("", false),
        ] {
            assert_eq!(knows_simple_quotas(version), knows, "{version:?}");
        }
    }
}
