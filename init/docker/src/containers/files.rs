//! A container's files: `docker cp` both ways, `docker export`, `docker diff`.
//!
//! Of a running container these are what its processes see, volumes included; of another one its
//! root, or the volume that the path lies in, and nobody starts it meanwhile.

use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::sync::Arc;

use base64::Engine as _;
use base64::prelude::BASE64_STANDARD;
use hyper::header::HeaderValue;
use hyper::{Method, StatusCode};
use serde_json::json;
use store::{Change, ChangeKind, PathInfo, Unpacking, ZoneFiles};
use time::OffsetDateTime;
use tokio_util::io::SyncIoBridge;

use super::container::{Container, Turn};
use super::{mounts, root};
use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, empty, ok, stream_tar};
use crate::users::Databases;

const PATH_STAT: &str = "X-Docker-Container-Path-Stat";

/// A tree and a path in it, and where nobody uses it the turn that keeps it so.
struct Opened {
    tree: ZoneFiles,
    path: String,
    /// The path is the root of a volume, which has no name there.
    unnamed: bool,
    _turn: Option<Turn>,
}

async fn open(engine: &Arc<Engine>, container: &Arc<Container>, path: &str) -> Result<Opened> {
    let store = engine.store().await?;
    let record = container.record();
    if let Some(opened) = of_running(container, path)? {
        return Ok(opened);
    }
    let turn = container.turn().await;
    if let Some(opened) = of_running(container, path)? {
        return Ok(opened);
    }
    let (owned, path) = (container.clone(), path.to_owned());
    blocking(move || {
        let namespace = owned.user_namespace();
        let namespace = namespace
            .map_err(|error| ApiError::internal(format!("Cannot make a user namespace: {error}.")))?;
        let mounted = mounts::mount_of(&store, &record, &path, namespace.as_fd())?;
        let (root, path, unnamed) = match mounted {
            Some((mount, rest)) if rest.trim_matches('/').is_empty() => (mount, "/".to_owned(), true),
            Some((mount, rest)) => (mount, rest, false),
            None => (root::mount(&store, &record, namespace.as_fd())?, path, false),
        };
        Ok::<_, ApiError>(Opened {
            tree: ZoneFiles::new(root, record.first_id),
            path,
            unnamed,
            _turn: Some(turn),
        })
    })
    .await
}

fn of_running(container: &Container, path: &str) -> Result<Option<Opened>> {
    let Some(process) = container.process() else {
        return Ok(None);
    };
    match File::open(format!("/proc/{}/root", process.pid)) {
        Ok(root) => Ok(Some(Opened {
            tree: ZoneFiles::new(root.into(), container.record().first_id),
            path: path.to_owned(),
            unnamed: false,
            _turn: None,
        })),
        // It has ended meanwhile.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(ApiError::internal(format!(
            "Cannot open the root of container {}: {error}.",
            container.id
        ))),
    }
}

fn asked_path(req: &Request) -> Result<String> {
    match req.query.get("path") {
        Some(path) if !path.is_empty() => Ok(path.to_owned()),
        _ => Err(ApiError::bad_request("missing parameter: path")),
    }
}

/// The words by which docker's command line knows that a path is not there.
fn not_there(error: store::Error, container: &Container) -> ApiError {
    match &error {
        store::Error::NoSuchPath { path } => ApiError::not_found(format!(
            "Could not find the file {path} in container {}",
            container.record().name
        )),
        store::Error::NotADirectory { .. } => ApiError::bad_request("extraction point is not a directory"),
        _ => error.into(),
    }
}

/// `HEAD` and `GET /containers/{id}/archive`
pub(super) async fn get(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let path = asked_path(req)?;
    let opened = open(engine, &container, &path).await?;
    if opened.unnamed && req.method() != Method::HEAD {
        return Err(ApiError::not_implemented(format!(
            "Monobloc does not copy {path}, the whole of a mount, while its container does not run; start it first, or copy what is in it."
        )));
    }
    let (opened, info) = {
        let container = container.clone();
        let stat = move || match opened.tree.stat(&opened.path) {
            Ok(info) => Ok((opened, info)),
            Err(error) => Err(not_there(error, &container)),
        };
        blocking(stat).await?
    };
    let mut response = if req.method() == Method::HEAD {
        empty(StatusCode::OK)
    } else {
        engine.tell("container", "archive-path", &container);
        tar_of(opened, |opened, to| opened.tree.pack(&opened.path, to))
    };
    let stat = HeaderValue::from_str(&BASE64_STANDARD.encode(path_stat(&info).to_string()));
    let stat = stat.map_err(|error| ApiError::internal(format!("Cannot write a header: {error}.")))?;
    response.headers_mut().insert(PATH_STAT, stat);
    Ok(response)
}

fn path_stat(info: &PathInfo) -> serde_json::Value {
    let (seconds, nanoseconds) = info.mtime;
    let at = i128::from(seconds) * 1_000_000_000 + i128::from(nanoseconds);
    let at = OffsetDateTime::from_unix_timestamp_nanos(at).unwrap_or(OffsetDateTime::UNIX_EPOCH);
    json!({
        "name": info.name, "size": info.size, "mode": go_mode(info.mode),
        "mtime": zones::log::timestamp(at), "linkTarget": info.link,
    })
}

/// `st_mode` as Go's `fs.FileMode` has it.
fn go_mode(mode: u32) -> u32 {
    let kind = match mode & 0o170_000 {
        0o040_000 => 1 << 31,
        0o120_000 => 1 << 27,
        0o010_000 => 1 << 25,
        0o140_000 => 1 << 24,
        0o060_000 => 1 << 26,
        0o020_000 => 1 << 26 | 1 << 21,
        _ => 0,
    };
    let special = [(0o4000, 1 << 23), (0o2000, 1 << 22), (0o1000, 1 << 20)];
    let special = special.iter().filter(|(bit, _)| mode & bit != 0);
    special.fold(kind | mode & 0o777, |all, (_, bit)| all | bit)
}

/// A 200 whose body is a tar. A failure on the way breaks the connection: its start is sent already.
fn tar_of(
    opened: Opened,
    write: impl FnOnce(&Opened, &mut dyn Write) -> store::Result<()> + Send + 'static,
) -> Response {
    stream_tar(move |to| write(&opened, to))
}

/// `PUT /containers/{id}/archive`
pub(super) async fn put(engine: &Arc<Engine>, req: Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let record = container.record();
    if record.host.readonly_rootfs {
        return Err(ApiError::new(
            StatusCode::FORBIDDEN,
            "container rootfs is marked read-only",
        ));
    }
    let path = asked_path(&req)?;
    let keep_kinds = req.query.flag("noOverwriteDirNonDir");
    let own = req.query.flag("copyUIDGID");
    let opened = open(engine, &container, &path).await?;
    let tar = SyncIoBridge::new(Box::pin(req.into_reader()));
    let told = container.clone();
    blocking(move || {
        let owner = if own {
            let found = Databases::read(opened.tree.root()).find(&record.config.user, &[])?;
            Some((found.user.uid, found.user.gid))
        } else {
            None
        };
        let how = Unpacking { owner, keep_kinds };
        let unpacked = opened.tree.unpack(&opened.path, tar, how);
        unpacked.map_err(|error| not_there(error, &container))
    })
    .await?;
    engine.tell("container", "extract-to-dir", &told);
    Ok(empty(StatusCode::OK))
}

/// `GET /containers/{id}/export`
pub(super) async fn export(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let opened = open(engine, &container, "/").await?;
    engine.tell("container", "export", &container);
    Ok(tar_of(opened, |opened, to| opened.tree.export(to)))
}

/// `GET /containers/{id}/changes`
pub(super) async fn changes(engine: &Arc<Engine>, req: &Request) -> Result<Response> {
    let container = engine.containers().await?.find(&req.name)?;
    let store = engine.store().await?;
    let changes = blocking(move || match store.changes(&container.id) {
        // A root that is not made yet has no changes.
        Err(store::Error::NoSuchRoot { .. }) => Ok(Vec::new()),
        other => other,
    })
    .await?;
    let listed: Vec<_> = own_changes(changes)
        .iter()
        .map(|change| {
            let kind = match change.kind {
                ChangeKind::Modified => 0,
                ChangeKind::Added => 1,
                ChangeKind::Deleted => 2,
            };
            json!({"Path": change.path, "Kind": kind})
        })
        .collect();
    ok(&listed)
}

/// Places that the engine makes in every container to mount on.
pub(crate) const MADE: &[&str] = &[
    "dev",
    "etc/hostname",
    "etc/hosts",
    "etc/resolv.conf",
    "proc",
    "sys",
];

/// Those changes that the container has made, not the engine.
fn own_changes(mut changes: Vec<Change>) -> Vec<Change> {
    let below = |changes: &[Change], path: &str| {
        let inside = format!("{path}/");
        changes.iter().any(|change| change.path.starts_with(&inside))
    };
    for made in MADE {
        let made = format!("/{made}");
        let is_made = |change: &Change| change.path == made && change.kind == ChangeKind::Added;
        let Some(at) = changes.iter().position(is_made) else {
            continue;
        };
        if !below(&changes, &made) {
            changes.remove(at);
        }
    }
    // The folder of the files above, if nothing else in it is left and it was not changed itself.
    if !below(&changes, "/etc") {
        changes.retain(|change| change.path != "/etc" || change.of_itself);
    }
    changes
}

#[cfg(test)]
mod tests {
    use super::{Change, ChangeKind, go_mode, own_changes};

    #[test]
    fn what_the_engine_has_made_is_no_change() {
        let change = |path: &str, kind| Change {
            path: path.to_owned(),
            kind,
            of_itself: kind != ChangeKind::Modified,
        };
        let (added, modified) = (ChangeKind::Added, ChangeKind::Modified);
        let only_made = vec![
            change("/dev", added),
            change("/etc", modified),
            change("/etc/hosts", added),
            change("/proc", added),
        ];
        assert_eq!(own_changes(only_made), []);
        let mut of_itself = change("/etc", modified);
        of_itself.of_itself = true;
        assert_eq!(
            own_changes(vec![of_itself.clone(), change("/etc/hosts", added)]),
            [of_itself]
        );
        let own = vec![
            change("/etc", modified),
            change("/etc/hosts", added),
            change("/etc/passwd", modified),
            change("/proc", added),
            change("/proc/own", added),
        ];
        let paths: Vec<String> = own_changes(own).into_iter().map(|change| change.path).collect();
        assert_eq!(paths, ["/etc", "/etc/passwd", "/proc", "/proc/own"]);
    }

    #[test]
    fn modes_are_told_as_go_tells_them() {
        assert_eq!(go_mode(0o100_644), 0o644);
        assert_eq!(go_mode(0o040_755), 0x8000_0000 | 0o755);
        assert_eq!(go_mode(0o041_777), 0x8010_0000 | 0o777);
        assert_eq!(go_mode(0o120_777), 0x0800_0000 | 0o777);
        assert_eq!(go_mode(0o104_755), 0x0080_0000 | 0o755);
    }
}
