//! A container's root: that it is there, its mount, and how much the container may change of it.

use std::os::fd::{BorrowedFd, OwnedFd};
use std::sync::Arc;

use store::{ImageId, Store};

use super::container::{Container, Record};
use super::run::report;
use crate::http::{ApiError, Result, blocking};

/// As [`mount`], for a start: one that is full to its limit starts too, and is given files of its own, so
/// until [`narrow`] it may hold a little more.
pub(super) fn mount_to_start(store: &Store, record: &Record, namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    ensure(store, record)?;
    if let Some(limit) = record.host.storage_limit()? {
        store.limit_root(&record.id, limit, true)?;
    }
    mount(store, record, namespace)
}

/// Takes back the room that a start has beyond the container's limit.
pub(super) async fn narrow(container: &Arc<Container>, store: &Arc<Store>) {
    let Ok(Some(limit)) = container.lock().host.storage_limit() else {
        return;
    };
    let (kept, id) = (store.clone(), container.id.clone());
    let done = blocking(move || kept.limit_root(&id, limit, false)).await;
    report(&container.id, "bound what it may change", done);
}

/// A container's root, mounted with its ids.
pub(super) fn mount(store: &Store, record: &Record, namespace: BorrowedFd<'_>) -> Result<OwnedFd> {
    if record.status.is_going() {
        return Err(ApiError::conflict(format!(
            "container {} is marked for removal: its files cannot be reached any more",
            record.id
        )));
    }
    ensure(store, record)?;
    Ok(store.mount_root(&record.id, namespace)?)
}

/// A root that a power cut has taken is made anew: nothing in it had been flushed.
fn ensure(store: &Store, record: &Record) -> Result<()> {
    if store.has_root(&record.id) {
        return Ok(());
    }
    let limit = record.host.storage_limit()?;
    Ok(store.create_root(&record.id, &image_id(store, record)?, limit)?)
}

fn image_id(store: &Store, record: &Record) -> Result<ImageId> {
    Ok(store.resolve(&record.image)?.id)
}
