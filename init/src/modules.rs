//! Kernel modules: by name with what they depend on, and by the modaliases of the devices present.
//!
//! The builder has read the modules' own dependencies and aliases into an index; nothing here parses
//! ELF or `modules.dep`. Every module is loaded at most once, and callers in several threads that
//! need the same one wait for it rather than for each other's whole list.

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::sync::{Mutex, OnceLock, PoisonError};

use anyhow::Context;
use handover::{MODULES_DIR, ModuleIndex};
use rustix::io::Errno;

type Outcome = Result<(), String>;

/// Loads modules of the image, each once.
pub(crate) struct Loader {
    dir: PathBuf,
    index: ModuleIndex,
    loaded: BTreeMap<String, OnceLock<Outcome>>,
    /// Modaliases that were matched already.
    seen: Mutex<BTreeSet<String>>,
}

impl Loader {
    /// Reads the index of the image's modules; without one there are no modules to load.
    pub(crate) fn open() -> anyhow::Result<Self> {
        let dir = PathBuf::from(MODULES_DIR);
        let path = dir.join("index.json");
        let index: ModuleIndex = match fs::read(&path) {
            Ok(bytes) => serde_json::from_slice(&bytes)
                .with_context(|| format!("{} is damaged; build the image again", path.display()))?,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => ModuleIndex::default(),
            Err(error) => return Err(error).context(format!("Cannot read {}", path.display())),
        };
        let loaded = index
            .modules
            .keys()
            .map(|name| (name.clone(), OnceLock::new()))
            .collect();
        Ok(Self {
            dir,
            index,
            loaded,
            seen: Mutex::default(),
        })
    }

    /// Loads a module and what it depends on. One that the index does not know is taken to be
    /// built into the kernel.
    pub(crate) fn load(&self, name: &str) -> Outcome {
        let name = name.replace('-', "_");
        let (Some(entry), Some(slot)) = (self.index.modules.get(&name), self.loaded.get(&name)) else {
            return Ok(());
        };
        // A cycle in the index would deadlock on the slot; the builder orders by the kernel's own
        // dependencies, which have none, but the file is still only data.
        if entry.depends.iter().any(|needed| self.reaches(needed, &name, 0)) {
            return Err(format!("Module {name} depends on itself; build the image again"));
        }
        slot.get_or_init(|| {
            for wanted in entry.soft.iter().filter(|wanted| !self.reaches(wanted, &name, 0)) {
                let _ = self.load(wanted);
            }
            for needed in &entry.depends {
                self.load(needed)
                    .map_err(|error| format!("{error} (needed by {name})"))?;
            }
            if Path::new("/sys/module").join(&name).exists() {
                return Ok(());
            }
            let file = self.dir.join(&entry.file);
            insert(&file).map_err(|error| format!("Cannot load module {name}: {error}"))?;
            // It lies in memory, where the kernel has its own copy now.
            let _ = fs::remove_file(&file);
            Ok(())
        })
        .clone()
    }

    fn reaches(&self, from: &str, target: &str, depth: usize) -> bool {
        from == target
            || depth > 64
            || self.index.modules.get(from).is_some_and(|entry| {
                entry
                    .depends
                    .iter()
                    .chain(&entry.soft)
                    .any(|next| self.reaches(next, target, depth + 1))
            })
    }

    /// Loads what the devices in `/sys/devices` ask for, again until no new device asks.
    /// Returns the failures; a machine with one odd device still boots.
    pub(crate) fn load_for_devices(&self) -> Vec<String> {
        let mut failures = Vec::new();
        loop {
            let fresh = self.unseen_modaliases();
            if fresh.is_empty() {
                return failures;
            }
            let names: BTreeSet<&String> = self
                .index
                .modules
                .iter()
                .filter(|(_, entry)| {
                    entry
                        .aliases
                        .iter()
                        .any(|pattern| fresh.iter().any(|alias| matches(pattern, alias)))
                })
                .map(|(name, _)| name)
                .collect();
            failures.extend(names.into_iter().filter_map(|name| self.load(name).err()));
        }
    }

    fn unseen_modaliases(&self) -> Vec<String> {
        let mut found = Vec::new();
        collect_modaliases(Path::new("/sys/devices"), 0, &mut found);
        let mut seen = self.seen.lock().unwrap_or_else(PoisonError::into_inner);
        found.retain(|alias| seen.insert(alias.clone()));
        found
    }

    /// How many modules this process has put into the kernel.
    pub(crate) fn count(&self) -> usize {
        self.loaded
            .values()
            .filter(|slot| matches!(slot.get(), Some(Ok(()))))
            .count()
    }
}

fn insert(path: &Path) -> std::io::Result<()> {
    let file = File::open(path)?;
    match rustix::system::finit_module(&file, c"", 0) {
        // Loaded already: by the kernel itself or by an earlier supervisor.
        Ok(()) | Err(Errno::EXIST) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// Deeper than any real device tree; a bound because sysfs is walked without following links.
const MAX_DEPTH: usize = 32;

fn collect_modaliases(dir: &Path, depth: usize, found: &mut Vec<String>) {
    let Ok(entries) = fs::read_dir(dir) else { return };
    for entry in entries.flatten() {
        let Ok(kind) = entry.file_type() else { continue };
        if kind.is_dir() && depth < MAX_DEPTH {
            collect_modaliases(&entry.path(), depth + 1, found);
        } else if kind.is_file()
            && entry.file_name() == "modalias"
            && let Ok(text) = fs::read_to_string(entry.path())
            && !text.trim().is_empty()
        {
            found.push(text.trim().to_owned());
        }
    }
}

/// Matches a modalias with a module's pattern as `fnmatch(3)` does: `*`, `?` and `[…]`.
pub(crate) fn matches(pattern: &str, text: &str) -> bool {
    let (pattern, text) = (pattern.as_bytes(), text.as_bytes());
    let (mut p, mut t) = (0, 0);
    // Where to go on when the text since the last `*` does not fit.
    let mut retry: Option<(usize, usize)> = None;
    while t < text.len() {
        if pattern.get(p) == Some(&b'*') {
            p += 1;
            retry = Some((p, t));
            continue;
        }
        if let Some(next) = match_one(pattern, p, text[t]) {
            p = next;
            t += 1;
        } else if let Some((after_star, from)) = retry {
            retry = Some((after_star, from + 1));
            p = after_star;
            t = from + 1;
        } else {
            return false;
        }
    }
    pattern[p.min(pattern.len())..].iter().all(|byte| *byte == b'*')
}

/// Matches one byte with the pattern element at `p`; returns where the next element begins.
fn match_one(pattern: &[u8], p: usize, byte: u8) -> Option<usize> {
    match *pattern.get(p)? {
        b'?' => Some(p + 1),
        b'[' => {
            let end = p + pattern[p..].iter().position(|byte| *byte == b']')?;
            let set = &pattern[p + 1..end];
            let mut i = 0;
            let mut inside = false;
            while i < set.len() {
                if i + 2 < set.len() && set[i + 1] == b'-' {
                    inside |= (set[i]..=set[i + 2]).contains(&byte);
                    i += 3;
                } else {
                    inside |= set[i] == byte;
                    i += 1;
                }
            }
            inside.then_some(end + 1)
        }
        literal => (literal == byte).then_some(p + 1),
    }
}

#[cfg(test)]
mod tests {
    use super::matches;

    #[test]
    fn modalias_patterns_match_as_fnmatch_does() {
        let yes = [
            ("virtio:d00000001v*", "virtio:d00000001v00001AF4"),
            (
                "pci:v00008086d0000100Esv*sd*bc*sc*i*",
                "pci:v00008086d0000100Esv00001AF4sd00001100bc02sc00i00",
            ),
            ("acpi*:QEMU0002:*", "acpi:QEMU0002:"),
            (
                "cpu:type:x86,ven*fam*mod*:feature:*0081*",
                "cpu:type:x86,ven0002fam000Fmod006B:feature:,0000,0081,0082",
            ),
            (
                "usb:v*p*d*dc*dsc*dp*ic08isc0[24]ip50in*",
                "usb:v0781p5581d0100dc00dsc00dp00ic08isc04ip50in00",
            ),
            ("a[0-9]?*", "a5bc"),
            ("*", ""),
        ];
        for (pattern, text) in yes {
            assert!(matches(pattern, text), "{pattern} should match {text}");
        }
        let no = [
            ("virtio:d00000001v*", "virtio:d00000002v00001AF4"),
            ("usb:ic08isc0[24]", "usb:ic08isc06"),
            ("a[0-9]?*", "a5"),
            ("abc", "ab"),
            ("a[", "a["),
            ("", "x"),
        ];
        for (pattern, text) in no {
            assert!(!matches(pattern, text), "{pattern} should not match {text}");
        }
    }
}
