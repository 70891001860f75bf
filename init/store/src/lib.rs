//! The store: images, their layers, and the root trees of zones, on a btrfs pool.
//!
//! [`Pool`] finds or makes the filesystem, [`Store`] keeps objects in it. Everything is synchronous
//! and safe to call from several threads; an async caller wraps it in a blocking task. A layer is a
//! read-only subvolume that holds the whole tree up to and with that layer (a snapshot of its parent
//! plus its diff), so an image is one tree however many layers it has. A zone's root is an overlay
//! of that tree and of a subvolume of the zone's own, both seen through an idmapped mount.
//!
//! Volumes and the node's own tree are subvolumes too; zones see them through mounts of the same kind.
//! Snapshots of roots and volumes are read-only subvolumes beside them.
//!
//! What is half-made lies under `tmp/` in the pool, which [`Store::open`] empties.

#![forbid(unsafe_code)]

mod archive;
mod blob;
mod changes;
mod commit;
mod copy;
mod digest;
pub mod disk;
mod encryption;
mod error;
mod extract;
mod files;
mod folder;
#[cfg(any(test, fuzzing))]
pub mod fuzzing;
mod image;
mod layer;
pub mod luks;
pub mod members;
pub mod mkfs;
mod oci;
mod opening;
mod pack;
mod pool;
mod quota;
mod recipe;
mod reference;
mod root;
mod snapshot;
mod state;
mod store;
mod tarball;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
mod transfer;
mod tree;
mod volume;
mod workspace;

pub use archive::{LoadEvent, Loaded};
pub use blob::{Blob, BlobReader, BlobWriter};
pub use changes::{Change, ChangeKind};
pub use commit::Moment;
pub use digest::{ChainId, Digest, DigestReader, ImageId};
pub use encryption::{Keys, Protection};
pub use error::{Error, Result};
pub use files::{Group, PathInfo, Unpacking, ZoneFiles, digest_groups, pack_groups};
pub use image::Image;
pub use layer::Layer;
pub use members::Members;
pub use oci::{ContainerConfig, Healthcheck, History, ImageConfig, RootFs};
pub use pack::{Part, Shape};
pub use pool::{Kind, Opened, Policy, Pool};
pub use quota::{Held, LEAST_LIMIT};
pub use reference::Reference;
pub use snapshot::{Of, Snapshot};
pub use state::StateDir;
pub use store::{Hold, Store, Usage};
pub use sys::mounts::Propagation;
pub use transfer::incoming::{Arrived, Incoming};
pub use transfer::send::Sending;
pub use transfer::{Label, Sort, transfer_id};
pub use tree::{NodeSpec, Place, ReadOnly, Tree, TreeOptions};
pub use workspace::Workspace;
