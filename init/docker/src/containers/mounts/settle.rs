//! At a container's creation: which mounts its request comes to, and the volumes that they need.

use std::collections::BTreeSet;
use std::sync::Arc;

use store::{ImageId, Store};

use super::parse::{self, Wish};
use super::{Kind, Point, tmpfs};
use crate::containers::config::{Config, HostConfig, Wanted};
use crate::containers::{Record, new_id};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};
use crate::volumes::{self, Backing};

/// A container's mounts, with the volumes that were made up for it alone.
#[derive(Debug, Default)]
pub(crate) struct Settled {
    pub(crate) points: Vec<Point>,
    pub(crate) made: Vec<String>,
}

/// Checks everything that can be checked without looking at volumes, containers or files.
pub(crate) fn check(wanted: &Wanted) -> Result<()> {
    own(&wanted.host)?;
    for raw in wanted.host.volumes_from.iter().flatten() {
        parse::volumes_from(raw)?;
    }
    for target in wanted.config.volumes.keys() {
        Wish::anonymous(target)?;
    }
    for (at, options) in &wanted.host.tmpfs {
        tmpfs_at(at)?;
        tmpfs::parse(at, options)?;
    }
    parse::driver(&wanted.host.volume_driver)
}

/// What was asked for and does nothing here.
pub(crate) fn warnings(wanted: &Wanted) -> Vec<String> {
    let mut warnings = Vec::new();
    for wish in own(&wanted.host).unwrap_or_default() {
        let at = &wish.point.destination;
        if parse::has_label(&wish.point.mode) {
            warnings.push(format!(
                "The mode {:?} of the mount at {at} has no effect: this kernel labels no files.",
                wish.point.mode
            ));
        }
        if let Kind::Tmpfs { options } = &wish.point.kind {
            warnings.extend(devices_of_tmpfs(at, options));
        }
    }
    for (at, options) in &wanted.host.tmpfs {
        warnings.extend(devices_of_tmpfs(at, options));
    }
    warnings
}

fn devices_of_tmpfs(at: &str, options: &str) -> Option<String> {
    let asks = tmpfs::parse(at, options).is_ok_and(|tmpfs| tmpfs.dev);
    asks.then(|| {
        format!(
            "The option \"dev\" of the tmpfs at {at} has no effect: devices are opened only in /dev; use --device."
        )
    })
}

fn tmpfs_at(at: &str) -> Result<String> {
    parse::destination(at)
        .map_err(|why| ApiError::bad_request(format!("invalid tmpfs mount at {at:?}: {why}")))
}

/// `Binds` and `Mounts`; no two of them, and none of `Tmpfs`, on one path.
fn own(host: &HostConfig) -> Result<Vec<Wish>> {
    let mut taken = BTreeSet::new();
    let duplicate = |at: &str| ApiError::bad_request(format!("Duplicate mount point: {at}"));
    for at in host.tmpfs.keys() {
        let at = tmpfs_at(at)?;
        if !taken.insert(at.clone()) {
            return Err(duplicate(&at));
        }
    }
    let binds = host.binds.iter().flatten();
    let wishes: Vec<Wish> = binds
        .map(|raw| parse::bind(raw, &host.volume_driver))
        .chain(host.mounts.iter().map(parse::mount))
        .collect::<Result<_>>()?;
    for wish in &wishes {
        if !taken.insert(wish.point.destination.clone()) {
            return Err(duplicate(&wish.point.destination));
        }
    }
    Ok(wishes)
}

/// Finds out the mounts of a container that is being made, and makes the volumes that are missing. The
/// caller holds the volumes' turn until the container is among those that are known, so that nobody
/// removes one of them meanwhile.
pub(crate) async fn settle(
    engine: &Arc<Engine>,
    store: &Arc<Store>,
    config: &Config,
    host: &HostConfig,
) -> Result<Settled> {
    let mut wishes = from_others(engine, host).await?;
    let put = |wishes: &mut Vec<Wish>, wish: Wish| {
        wishes.retain(|known| known.point.destination != wish.point.destination);
        wishes.push(wish);
    };
    for wish in own(host)? {
        put(&mut wishes, wish);
    }
    for target in config.volumes.keys() {
        let wish = Wish::anonymous(target)?;
        let at = &wish.point.destination;
        let taken = wishes.iter().any(|known| known.point.destination == *at)
            || host.tmpfs.keys().any(|path| parse::clean(path) == *at);
        if !taken {
            wishes.push(wish);
        }
    }
    let mut settled = Settled::default();
    for wish in wishes {
        match one(engine, store, wish, &mut settled.made).await {
            Ok(point) => settled.points.push(point),
            Err(error) => {
                forget(engine, store, &settled.made).await;
                return Err(error);
            }
        }
    }
    Ok(settled)
}

/// The mounts of the containers named by `VolumesFrom`.
async fn from_others(engine: &Arc<Engine>, host: &HostConfig) -> Result<Vec<Wish>> {
    let mut wishes: Vec<Wish> = Vec::new();
    for raw in host.volumes_from.iter().flatten() {
        let (container, read_only, _) = parse::volumes_from(raw)?;
        // Not 404: docker's command would take the image for what is missing.
        let other = engine.containers().await?.find(container);
        let other = other
            .map_err(|error| ApiError::bad_request(error.message))?
            .record();
        for mut point in other.mounts {
            point.read_only |= read_only;
            if let Kind::Volume(volume) = &mut point.kind {
                volume.copy = false;
            }
            wishes.retain(|known| known.point.destination != point.destination);
            wishes.push(Wish::of(point));
        }
    }
    Ok(wishes)
}

async fn one(engine: &Arc<Engine>, store: &Arc<Store>, wish: Wish, made: &mut Vec<String>) -> Result<Point> {
    let Wish {
        mut point,
        mut labels,
        options,
        must_exist,
    } = wish;
    match &mut point.kind {
        Kind::Bind(bind) if must_exist => {
            let (store, source) = (store.clone(), bind.source.clone());
            let there = blocking(move || store.host_has(&source)).await?;
            if !there {
                return Err(absent(&bind.source));
            }
        }
        Kind::Volume(volume) if volume.name.is_empty() => {
            volume.name = new_id()?;
            labels.insert(volumes::ANONYMOUS.to_owned(), String::new());
            volumes::make(engine, store, &volume.name, labels, options).await?;
            made.push(volume.name.clone());
        }
        Kind::Volume(volume) => {
            volumes::make(engine, store, &volume.name, labels, options).await?;
            if point.mode.is_empty() && !volume.anonymous {
                // Docker's default, which `inspect` shows.
                point.mode = "z".to_owned();
            }
        }
        _ => {}
    }
    Ok(point)
}

pub(super) fn absent(source: &str) -> ApiError {
    ApiError::bad_request(format!(
        "invalid mount config for type \"bind\": bind source path does not exist: {source}"
    ))
}

/// Copies what the image has where the container's volumes will be into those that are empty. Blocks.
pub(crate) fn fill(store: &Store, record: &Record, image: &ImageId) -> Result<()> {
    for point in &record.mounts {
        let Some(volume) = point.volume() else { continue };
        // What went into memory now would be gone at the start.
        let lasting = !matches!(volumes::backing_of(store, &volume.name)?, Backing::Tmpfs(_));
        if volume.copy && volume.subpath.is_empty() && lasting {
            volumes::ready(store, &volume.name, "", |place, _| {
                match store.fill(place, image, &point.destination) {
                    Err(store::Error::NoSuchPlace { path }) => Err(absent_in(&volume.name, &path)),
                    filled => Ok(filled?),
                }
            })?;
        }
    }
    Ok(())
}

pub(super) fn absent_in(volume: &str, path: &str) -> ApiError {
    ApiError::bad_request(format!(
        "failed to mount local volume {volume}: cannot access path {path}: no such file or directory"
    ))
}

/// Removes volumes that were made for a container that did not come to be.
pub(crate) async fn forget(engine: &Arc<Engine>, store: &Arc<Store>, made: &[String]) {
    for name in made {
        if let Err(error) = volumes::discard(engine, store, name).await {
            eprintln!("volume {name}: cannot remove it: {error}");
        }
    }
}
