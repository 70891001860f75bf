//! At a container's start: its mounts, detached and with its zone's ids, in the order of their depth.

use std::os::fd::{BorrowedFd, OwnedFd};

use rustix::fs::{FileType, Mode, OFlags, ResolveFlags, fstat, openat2};
use store::{Error as StoreError, Place, ReadOnly, Store, TreeOptions};
use zones::Mount;

use super::settle::{absent, absent_in};
use super::{Bind, Kind, Point, Sharing, VolumeUse, parse, tmpfs};
use crate::containers::container::Record;
use crate::http::{ApiError, Result};
use crate::volumes;

/// The mounts of a container whose root is open as `root`, and whose ids `userns` maps. Blocks.
pub(crate) fn attach(
    store: &Store,
    record: &Record,
    root: BorrowedFd<'_>,
    userns: BorrowedFd<'_>,
) -> Result<Vec<Mount>> {
    let mut mounts: Vec<(String, Mount)> = Vec::new();
    for (at, options) in &record.host.tmpfs {
        let at = parse::clean(at);
        mounts.push((at.clone(), temporary(root, at, options)?));
    }
    for point in &record.mounts {
        let at = point.destination.clone();
        let mount = match &point.kind {
            Kind::Bind(bind) => bound(store, point, bind, userns)?,
            Kind::Volume(volume) => of_volume(store, point, volume, userns)?,
            Kind::Tmpfs { options } => temporary(root, at.clone(), options)?,
        };
        mounts.push((at, mount));
    }
    // What is above comes first; it would hide what is below.
    mounts.sort_by_key(|(at, _)| at.matches('/').count());
    Ok(mounts.into_iter().map(|(_, mount)| mount).collect())
}

/// Of a container that does not run: the volume or bind in which a path lies, as a mount, and the path
/// from there on. None where it lies in the root. Links are followed within the mount. Blocks.
pub(crate) fn mount_of(
    store: &Store,
    record: &Record,
    path: &str,
    userns: BorrowedFd<'_>,
) -> Result<Option<(OwnedFd, String)>> {
    let folder = if path.ends_with('/') || path.ends_with("/.") {
        "/"
    } else {
        ""
    };
    let cleaned = parse::clean(path);
    let below = |point: &Point| {
        let rest = cleaned.strip_prefix(&point.destination)?;
        (rest.is_empty() || rest.starts_with('/')).then(|| format!("{rest}{folder}"))
    };
    let points = record
        .mounts
        .iter()
        .filter_map(|point| Some((point, below(point)?)));
    let Some((point, rest)) = points.max_by_key(|(point, _)| point.destination.len()) else {
        return Ok(None);
    };
    let mount = match &point.kind {
        Kind::Bind(bind) => bound(store, point, bind, userns)?,
        Kind::Volume(volume) => of_volume(store, point, volume, userns)?,
        // Nothing is in it before the start.
        Kind::Tmpfs { .. } => return Ok(None),
    };
    match mount {
        Mount::Tree {
            tree, file: false, ..
        } => Ok(Some((tree, rest))),
        _ => Err(ApiError::not_implemented(format!(
            "Monobloc does not copy {path}, a file that is mounted, while its container does not run; start it first."
        ))),
    }
}

fn temporary(root: BorrowedFd<'_>, at: String, text: &str) -> Result<Mount> {
    let tmpfs::Tmpfs {
        mut options,
        attributes,
        ..
    } = tmpfs::parse(&at, text)?;
    // As the OCI runtime: it looks like the folder that it covers.
    if !options.iter().any(|(key, _)| key == "mode")
        && let Some(mode) = mode_of_folder(root, &at)
    {
        options.push(("mode".to_owned(), format!("{mode:o}")));
    }
    Ok(Mount::Tmpfs {
        at,
        options,
        attributes,
    })
}

fn mode_of_folder(root: BorrowedFd<'_>, path: &str) -> Option<u32> {
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let within = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    let folder = openat2(root, path, flags, Mode::empty(), within).ok()?;
    let stat = fstat(folder).ok()?;
    (FileType::from_raw_mode(stat.st_mode) == FileType::Directory).then_some(stat.st_mode & 0o7777)
}

fn bound(store: &Store, point: &Point, bind: &Bind, userns: BorrowedFd<'_>) -> Result<Mount> {
    if bind.make && !store.host_has(&bind.source)? {
        store.make_host_folder(&bind.source).map_err(|error| {
            ApiError::internal(format!(
                "error while creating mount source path '{}': {error}",
                bind.source
            ))
        })?;
    }
    let options = TreeOptions {
        read_only: match (point.read_only, bind.writable_below) {
            (false, _) => ReadOnly::Nothing,
            (true, true) => ReadOnly::Itself,
            (true, false) => ReadOnly::Everything,
        },
        recursive: bind.recursive,
        propagation: match bind.propagation.shared {
            Sharing::Private => store::Propagation::Private,
            Sharing::Slave => store::Propagation::Slave,
            Sharing::Shared => store::Propagation::Shared,
        },
        propagation_recursive: bind.propagation.recursive,
    };
    match store.tree(Place::Host(&bind.source), options, userns) {
        Err(StoreError::NoSuchPlace { .. }) => Err(absent(&bind.source)),
        tree => Ok(tree_mount(tree?, point)),
    }
}

fn of_volume(store: &Store, point: &Point, volume: &VolumeUse, userns: BorrowedFd<'_>) -> Result<Mount> {
    volumes::ready(store, &volume.name, &volume.subpath, |place, read_only| {
        let options = TreeOptions {
            read_only: if point.read_only || read_only {
                ReadOnly::Everything
            } else {
                ReadOnly::Nothing
            },
            ..TreeOptions::default()
        };
        match store.tree(place, options, userns) {
            Err(StoreError::NoSuchPlace { path }) => Err(absent_in(&volume.name, &path)),
            tree => Ok(tree_mount(tree?, point)),
        }
    })
}

fn tree_mount(tree: store::Tree, point: &Point) -> Mount {
    Mount::Tree {
        tree: tree.mount,
        at: point.destination.clone(),
        file: tree.is_file,
    }
}
