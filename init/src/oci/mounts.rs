//! The mounts of a bundle: what their options say (`config.md`, "Linux mount options").

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use rustix::fs::{CWD, FileType, fstat};
use rustix::mount::{OpenTreeFlags, open_tree};
use sys::mounts::{Change, Propagation, change};
use zones::{Mount, MountAttributes};

use super::config::{self, refuse};

/// What a list of options comes to.
#[derive(Debug, Default)]
struct Options {
    bind: bool,
    recursive: bool,
    /// Of the mount itself.
    own: Change,
    /// Of it and all that is mounted below it.
    below: Change,
    propagation: Option<(Propagation, bool)>,
    /// Of the file system: a name with its value, or a flag without.
    data: Vec<(String, String)>,
}

const fn flag(set: MountAttributes) -> (MountAttributes, MountAttributes) {
    (set, MountAttributes(0))
}

const fn no_flag(clear: MountAttributes) -> (MountAttributes, MountAttributes) {
    (MountAttributes(0), clear)
}

const fn times(set: MountAttributes) -> (MountAttributes, MountAttributes) {
    (set, MountAttributes::ACCESS_TIMES)
}

/// Options that are attributes: what is set and what is cleared. Each may have an `r` before it.
const ATTRIBUTES: &[(&str, (MountAttributes, MountAttributes))] = &[
    ("ro", flag(MountAttributes::READ_ONLY)),
    ("rw", no_flag(MountAttributes::READ_ONLY)),
    ("nosuid", flag(MountAttributes::NO_SUID)),
    ("suid", no_flag(MountAttributes::NO_SUID)),
    ("nodev", flag(MountAttributes::NO_DEV)),
    ("dev", no_flag(MountAttributes::NO_DEV)),
    ("noexec", flag(MountAttributes::NO_EXEC)),
    ("exec", no_flag(MountAttributes::NO_EXEC)),
    ("nosymfollow", flag(MountAttributes::NO_SYMLINK_FOLLOW)),
    ("symfollow", no_flag(MountAttributes::NO_SYMLINK_FOLLOW)),
    ("nodiratime", flag(MountAttributes::NO_FOLDER_ACCESS_TIME)),
    ("diratime", no_flag(MountAttributes::NO_FOLDER_ACCESS_TIME)),
    ("noatime", times(MountAttributes::NO_ACCESS_TIME)),
    ("strictatime", times(MountAttributes::STRICT_ACCESS_TIME)),
    ("relatime", times(MountAttributes(0))),
    ("atime", times(MountAttributes(0))),
    ("norelatime", times(MountAttributes(0))),
    ("nostrictatime", times(MountAttributes(0))),
];

/// Options that are a propagation. Each may have an `r` before it.
pub(super) fn propagation(option: &str) -> Option<Propagation> {
    match option.strip_prefix('r').unwrap_or(option) {
        "private" => Some(Propagation::Private),
        "slave" => Some(Propagation::Slave),
        "shared" => Some(Propagation::Shared),
        _ => None,
    }
}

/// Options of this and other runtimes that nothing here does.
const REFUSED: &[&str] = &[
    "remount",
    "idmap",
    "ridmap",
    "tmpcopyup",
    "unbindable",
    "runbindable",
];

/// All options that are understood beside those of the file systems.
pub(super) fn option_names() -> Vec<String> {
    let twice = |name: &str| [name.to_owned(), format!("r{name}")];
    let attributes = ATTRIBUTES.iter().flat_map(|(name, _)| twice(name));
    let mut names: Vec<String> = attributes
        .chain(["bind", "private", "slave", "shared"].into_iter().flat_map(twice))
        .chain([String::from("defaults"), String::from("async")])
        .collect();
    names.sort();
    names
}

fn attribute(option: &str) -> Option<(MountAttributes, MountAttributes)> {
    ATTRIBUTES
        .iter()
        .find(|(name, _)| *name == option)
        .map(|(_, change)| *change)
}

fn parse(options: &[String]) -> anyhow::Result<Options> {
    let mut parsed = Options::default();
    let apply = |change: &mut Change, (set, clear): (MountAttributes, MountAttributes)| {
        // The later one wins; the kernel takes none that is both set and cleared.
        change.set = change.set.without(clear).with(set);
        change.clear = change.clear.without(set).with(clear);
    };
    for option in options {
        match option.as_str() {
            "bind" => parsed.bind = true,
            "rbind" => (parsed.bind, parsed.recursive) = (true, true),
            // As a mount is anyway.
            "defaults" | "async" | "nomand" | "silent" | "loud" => {}
            refused if REFUSED.contains(&refused) => {
                bail!("Monobloc does not do the mount option {refused:?} of config.json; leave it out");
            }
            other => {
                if let Some(change) = attribute(other) {
                    apply(&mut parsed.own, change);
                } else if let Some(change) = other.strip_prefix('r').and_then(attribute) {
                    apply(&mut parsed.below, change);
                } else if let Some(propagation) = propagation(other) {
                    parsed.propagation = Some((propagation, other.starts_with('r')));
                } else {
                    let (key, value) = other.split_once('=').unwrap_or((other, ""));
                    parsed.data.push((key.to_owned(), value.to_owned()));
                }
            }
        }
    }
    Ok(parsed)
}

/// What of a zone's namespaces decides how a file system can be mounted in it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ownership {
    /// It has a user namespace of its own, and the network is not of that user namespace.
    pub(super) foreign_network: bool,
    /// The same of the cgroup namespace.
    pub(super) foreign_cgroups: bool,
}

/// A mount of the bundle, made ready for the zone. Sources are relative to the bundle.
pub(super) fn mount(wanted: &config::Mount, bundle: &Path, ownership: Ownership) -> anyhow::Result<Mount> {
    refuse(&[
        ("mounts.uidMappings", &wanted.uid_mappings),
        ("mounts.gidMappings", &wanted.gid_mappings),
    ])?;
    let at = format!("/{}", wanted.destination.trim_start_matches('/'));
    ensure!(
        at != "/",
        "A mount of config.json has the root as its destination"
    );
    let kind = wanted.kind.as_deref().unwrap_or("none");
    let options = parse(&wanted.options).with_context(|| format!("Cannot mount on {at}"))?;
    if options.bind || kind == "bind" {
        let source = wanted
            .source
            .as_deref()
            .with_context(|| format!("The bind mount on {at} has no source"))?;
        return bind(&bundle.join(source), at, &options);
    }
    // The kernel mounts these for the owner of the namespace that they show only.
    match kind {
        "sysfs" if ownership.foreign_network => return bind_machines("/sys", at, &options),
        "cgroup" | "cgroup2" if ownership.foreign_cgroups => {
            return bind_machines("/sys/fs/cgroup", at, &options);
        }
        _ => {}
    }
    if matches!(options.propagation, Some((Propagation::Shared, _))) {
        bail!("Monobloc does not share the mount on {at} with others; leave its option \"shared\" out");
    }
    let fstype = if kind == "cgroup" { "cgroup2" } else { kind };
    ensure!(
        fstype != "none",
        "The mount on {at} says neither a type nor \"bind\""
    );
    let attributes = options.own.set.with(options.below.set);
    let mut data = options.data;
    if let Some(source) = wanted.source.clone().filter(|source| !source.is_empty()) {
        data.push(("source".to_owned(), source));
    }
    Ok(Mount::New {
        fstype: fstype.to_owned(),
        at,
        options: data,
        attributes,
    })
}

fn bind_machines(path: &str, at: String, options: &Options) -> anyhow::Result<Mount> {
    let recursive = Options {
        recursive: true,
        own: options.own,
        below: options.own,
        ..Options::default()
    };
    bind(Path::new(path), at, &recursive)
}

fn bind(source: &Path, at: String, options: &Options) -> anyhow::Result<Mount> {
    if let Some((key, _)) = options.data.first() {
        bail!("The bind mount on {at} has the option {key:?}, which none has");
    }
    let tree = tree(source, options.recursive)?;
    let failed = || format!("Cannot set the options of the mount on {at}");
    let (propagation, all) = options.propagation.unwrap_or((Propagation::Private, true));
    let shared = Change {
        propagation: Some(propagation),
        ..Change::default()
    };
    change(&tree, shared, all).with_context(failed)?;
    for (wanted, recursive) in [(options.below, true), (options.own, false)] {
        if wanted != Change::default() {
            change(&tree, wanted, recursive).with_context(failed)?;
        }
    }
    let file = fstat(&tree)
        .map(|stat| FileType::from_raw_mode(stat.st_mode) != FileType::Directory)
        .with_context(failed)?;
    Ok(Mount::Tree { tree, at, file })
}

/// A detached copy of what is mounted at a path of the machine's.
fn tree(source: &Path, recursive: bool) -> anyhow::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= OpenTreeFlags::AT_RECURSIVE;
    }
    open_tree(CWD, source, flags).with_context(|| format!("Cannot bind {}", source.display()))
}

/// The root of a bundle as a detached mount, with what is mounted below it.
pub(super) fn root(path: &Path, rootfs_propagation: &str) -> anyhow::Result<OwnedFd> {
    let metadata = File::open(path).and_then(|file| file.metadata());
    let metadata = metadata.with_context(|| format!("Cannot open the root {}", path.display()))?;
    ensure!(metadata.is_dir(), "The root {} is no folder", path.display());
    let tree = tree(path, true)?;
    let propagation = match rootfs_propagation {
        "slave" | "rslave" => Propagation::Slave,
        // Others are made when the root has become the root: until then it must not be shared.
        _ => Propagation::Private,
    };
    let change_all = Change {
        propagation: Some(propagation),
        ..Change::default()
    };
    change(&tree, change_all, true).context("Cannot set the propagation of the root")?;
    Ok(tree)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn options(list: &[&str]) -> anyhow::Result<Options> {
        parse(&list.iter().map(|option| (*option).to_owned()).collect::<Vec<_>>())
    }

    #[test]
    fn options_are_attributes_propagation_or_the_file_systems_own() {
        let parsed = options(&[
            "rbind",
            "ro",
            "rw",
            "rnosuid",
            "rslave",
            "size=64k",
            "newinstance",
        ])
        .unwrap();
        assert!(parsed.bind && parsed.recursive);
        assert_eq!(
            (parsed.own.set, parsed.own.clear),
            (MountAttributes(0), MountAttributes::READ_ONLY)
        );
        assert_eq!(parsed.below.set, MountAttributes::NO_SUID);
        assert_eq!(parsed.propagation, Some((Propagation::Slave, true)));
        let data =
            [("size", "64k"), ("newinstance", "")].map(|(key, value)| (key.to_owned(), value.to_owned()));
        assert_eq!(parsed.data, data);
    }

    #[test]
    fn a_kind_of_access_times_clears_the_others() {
        let parsed = options(&["noatime", "strictatime"]).unwrap();
        assert_eq!(parsed.own.set, MountAttributes::STRICT_ACCESS_TIME);
    }

    #[test]
    fn what_is_not_done_is_refused() {
        for option in ["idmap", "tmpcopyup", "remount"] {
            assert!(options(&[option]).is_err(), "{option}");
        }
    }
}
