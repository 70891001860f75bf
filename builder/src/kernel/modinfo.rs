//! What kernel modules say of themselves: the `.modinfo` section, a list of `key=value` strings each
//! closed by a zero byte (`include/linux/moduleparam.h`), and the same for what is built in
//! (`modules.builtin.modinfo`, there with the module's name before the key).

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use object::{Object as _, ObjectSection as _};
use serde::{Deserialize, Serialize};

/// One module.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Module {
    /// File relative to the modules' folder; none for what is built in.
    pub path: Option<PathBuf>,
    /// Modules that must be there before it.
    pub depends: Vec<String>,
    /// Patterns over modaliases.
    pub aliases: Vec<String>,
    /// What it can use if it is there: module names or aliases.
    pub soft_depends: Vec<String>,
}

/// All modules of a kernel by name (with `_`, never `-`).
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Catalog {
    pub modules: BTreeMap<String, Module>,
    pub built_in: BTreeMap<String, Module>,
}

impl Catalog {
    /// Reads a kernel's `/lib/modules/<release>`.
    ///
    /// # Errors
    /// A file cannot be read or is no module; it is named.
    pub fn read(dir: &Path) -> anyhow::Result<Self> {
        let mut files = Vec::new();
        find(&dir.join("kernel"), &mut files)?;
        files.sort();
        let mut modules = BTreeMap::new();
        for (name, module) in read_all(dir, &files)? {
            modules.insert(name, module);
        }
        Ok(Self {
            modules,
            built_in: read_built_in(dir)?,
        })
    }
}

/// Decompression is all the work, so it is spread over the processors.
fn read_all(dir: &Path, files: &[PathBuf]) -> anyhow::Result<Vec<(String, Module)>> {
    let threads = std::thread::available_parallelism().map_or(1, usize::from);
    let share = files.len().div_ceil(threads).max(1);
    let read_share = |share: &[PathBuf]| share.iter().map(|file| read_one(dir, file)).collect::<Vec<_>>();
    std::thread::scope(|scope| {
        let workers: Vec<_> = files
            .chunks(share)
            .map(|share| scope.spawn(move || read_share(share)))
            .collect();
        let results = workers
            .into_iter()
            .map(|worker| worker.join().unwrap_or_default());
        results.flatten().collect()
    })
}

fn read_one(dir: &Path, file: &Path) -> anyhow::Result<(String, Module)> {
    let bytes = load(file)?;
    let info = Info::of_elf(&bytes).with_context(|| format!("{} is no kernel module", file.display()))?;
    let path = file
        .strip_prefix(dir)
        .context("A module lies elsewhere")?
        .to_owned();
    Ok((
        name_of(file),
        Module {
            path: Some(path),
            ..info.into_module()
        },
    ))
}

/// Reads a module and decompresses it if it is: Debian's are `.ko.xz`.
///
/// # Errors
/// The file cannot be read, is damaged or is compressed in an unknown way.
pub fn load(file: &Path) -> anyhow::Result<Vec<u8>> {
    let damaged = || {
        format!(
            "Cannot read the kernel module {}; delete the cache and build again",
            file.display()
        )
    };
    let bytes = fs::read(file).with_context(damaged)?;
    let mut plain = Vec::new();
    match file.extension().and_then(|extension| extension.to_str()) {
        Some("ko") => return Ok(bytes),
        Some("xz") => liblzma::read::XzDecoder::new(&bytes[..])
            .read_to_end(&mut plain)
            .with_context(damaged)?,
        Some("gz") => flate2::read::MultiGzDecoder::new(&bytes[..])
            .read_to_end(&mut plain)
            .with_context(damaged)?,
        Some("zst") => zstd::stream::read::Decoder::new(&bytes[..])?
            .read_to_end(&mut plain)
            .with_context(damaged)?,
        _ => bail!(
            "{} is compressed in a way that the builder does not know (xz, gz, zst)",
            file.display()
        ),
    };
    Ok(plain)
}

/// Closes a signed module (the kernel's `include/linux/module_signature.h`).
const SIGNATURE_MAGIC: &[u8] = b"~Module signature appended~\n";
/// `struct module_signature`; its last four bytes are the signature's length, big-endian.
const SIGNATURE_INFO: usize = 12;

/// A module without the signature that is appended to it, if there is one.
#[must_use]
pub fn without_signature(module: &[u8]) -> &[u8] {
    let bare = || {
        let rest = module.strip_suffix(SIGNATURE_MAGIC)?;
        let (rest, info) = rest.split_at_checked(rest.len().checked_sub(SIGNATURE_INFO)?)?;
        let length = u32::from_be_bytes(info.last_chunk().copied()?);
        rest.get(..rest.len().checked_sub(usize::try_from(length).ok()?)?)
    };
    bare().unwrap_or(module)
}

/// `drivers/char/hw_random/virtio-rng.ko.xz` → `virtio_rng`
fn name_of(file: &Path) -> String {
    let name = file
        .file_name()
        .map(|name| name.to_string_lossy())
        .unwrap_or_default();
    name.split(".ko").next().unwrap_or_default().replace('-', "_")
}

fn find(dir: &Path, found: &mut Vec<PathBuf>) -> anyhow::Result<()> {
    let entries =
        fs::read_dir(dir).with_context(|| format!("Cannot read the modules in {}", dir.display()))?;
    for entry in entries {
        let entry = entry?;
        let path = entry.path();
        if entry.file_type()?.is_dir() {
            find(&path, found)?;
        } else if path.to_string_lossy().contains(".ko") {
            found.push(path);
        }
    }
    Ok(())
}

fn read_built_in(dir: &Path) -> anyhow::Result<BTreeMap<String, Module>> {
    let mut built_in: BTreeMap<String, Module> = BTreeMap::new();
    // The list has every name; the information only of those that have any.
    let list = fs::read_to_string(dir.join("modules.builtin")).unwrap_or_default();
    for line in list.lines() {
        built_in.insert(name_of(Path::new(line)), Module::default());
    }
    let text = fs::read(dir.join("modules.builtin.modinfo")).unwrap_or_default();
    let mut infos: BTreeMap<String, Info> = BTreeMap::new();
    for entry in text.split(|byte| *byte == 0) {
        let entry = String::from_utf8_lossy(entry);
        if let Some((name, rest)) = entry.split_once('.') {
            infos.entry(name.replace('-', "_")).or_default().add(rest);
        }
    }
    built_in.extend(infos.into_iter().map(|(name, info)| (name, info.into_module())));
    Ok(built_in)
}

/// The `key=value` pairs that matter here.
#[derive(Debug, Default)]
struct Info {
    depends: Vec<String>,
    aliases: Vec<String>,
    soft_depends: Vec<String>,
}

impl Info {
    fn of_elf(bytes: &[u8]) -> anyhow::Result<Self> {
        let elf = object::File::parse(bytes)?;
        let section = elf
            .section_by_name(".modinfo")
            .context("It has no section .modinfo")?;
        let mut info = Self::default();
        for entry in section.data()?.split(|byte| *byte == 0) {
            info.add(&String::from_utf8_lossy(entry));
        }
        Ok(info)
    }

    fn add(&mut self, entry: &str) {
        match entry.split_once('=') {
            Some(("depends", names)) => {
                self.depends.extend(
                    names
                        .split(',')
                        .filter(|name| !name.is_empty())
                        .map(|name| name.replace('-', "_")),
                );
            }
            Some(("alias", pattern)) => self.aliases.push(pattern.to_owned()),
            // `softdep=pre: a b post: c`. What comes after is of no use before it, so both are one.
            Some(("softdep", text)) => self.soft_depends.extend(
                text.split_whitespace()
                    .filter(|word| !word.ends_with(':'))
                    .map(str::to_owned),
            ),
            _ => {}
        }
    }

    fn into_module(self) -> Module {
        Module {
            path: None,
            depends: self.depends,
            aliases: self.aliases,
            soft_depends: self.soft_depends,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn entries_of_a_modinfo_section_are_read() {
        let mut info = Info::default();
        for entry in [
            "license=GPL",
            "depends=xor,raid6-pq",
            "depends=",
            "alias=fs-btrfs",
            "softdep=pre: a b post: c-d",
            "x",
        ] {
            info.add(entry);
        }
        assert_eq!(info.depends, ["xor", "raid6_pq"]);
        assert_eq!(info.aliases, ["fs-btrfs"]);
        assert_eq!(info.soft_depends, ["a", "b", "c-d"]);
    }

    #[test]
    fn only_a_signature_that_is_whole_is_taken_off() {
        let signed = [
            b"module".as_slice(),
            b"sig",
            &[0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 0, 3],
            SIGNATURE_MAGIC,
        ]
        .concat();
        assert_eq!(without_signature(&signed), b"module");
        assert_eq!(without_signature(b"module"), b"module");
        assert_eq!(without_signature(SIGNATURE_MAGIC), SIGNATURE_MAGIC);
        let too_long = [b"m".as_slice(), &[0xff; SIGNATURE_INFO], SIGNATURE_MAGIC].concat();
        assert_eq!(without_signature(&too_long), too_long);
    }

    #[test]
    fn a_modules_name_is_that_of_its_file_with_underscores() {
        assert_eq!(
            name_of(Path::new("kernel/drivers/char/hw_random/virtio-rng.ko.xz")),
            "virtio_rng"
        );
        assert_eq!(name_of(Path::new("loop.ko")), "loop");
    }

    #[test]
    fn a_file_that_is_no_module_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        for (name, bytes) in [
            ("a.ko", &b"\x7fELF nothing"[..]),
            ("b.ko.xz", b"no xz"),
            ("c.ko.lzo", b""),
        ] {
            let file = dir.path().join(name);
            fs::write(&file, bytes).unwrap();
            let error = read_one(dir.path(), &file).unwrap_err();
            assert!(format!("{error:#}").contains(name), "{error:#}");
        }
    }
}
