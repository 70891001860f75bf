//! What of a container is a mount: binds, volumes and tmpfs, from the request to the zone.
//!
//! - [`request`], [`parse`], [`tmpfs`]: what clients send, and Docker's rules for it
//! - [`settle`]: at the creation, which mounts those come to, with volumes made and named
//! - [`attach`]: at the start, the mounts themselves
//!
//! A bind's source is a path in the node's own tree, a subvolume of the pool: nothing of what the
//! machine itself runs from can be named.

mod attach;
mod parse;
pub(crate) mod request;
mod settle;
mod tmpfs;

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use store::Store;

pub(crate) use attach::{attach, mount_of};
pub(crate) use parse::clean;
pub(crate) use settle::{check, fill, forget, settle, warnings};
pub(crate) use tmpfs::{Tmpfs, parse as parse_tmpfs};

use super::container::Record;

/// A mount of a container, settled at its creation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Point {
    /// A cleaned absolute path in the container.
    pub(crate) destination: String,
    /// As the client wrote it, such as `ro,z`.
    pub(crate) mode: String,
    pub(crate) read_only: bool,
    pub(crate) kind: Kind,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    Bind(Bind),
    Volume(VolumeUse),
    /// Options as `--tmpfs` takes them.
    Tmpfs {
        options: String,
    },
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Bind {
    /// A cleaned absolute path in the node's own tree.
    pub(crate) source: String,
    /// It is made as a folder where it is missing.
    pub(crate) make: bool,
    pub(crate) recursive: bool,
    pub(crate) propagation: Propagation,
    /// Of one that is read-only: what is mounted below the source is not.
    pub(crate) writable_below: bool,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct VolumeUse {
    /// Empty until one is made up.
    pub(crate) name: String,
    /// Made for this container: it goes with the container when volumes are to go.
    pub(crate) anonymous: bool,
    /// The image's content goes into it while it is empty.
    pub(crate) copy: bool,
    /// A path in it; empty for the whole.
    pub(crate) subpath: String,
}

/// Docker's word for a bind's propagation, `rprivate` unless it is said.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Propagation {
    shared: Sharing,
    recursive: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Sharing {
    Private,
    Slave,
    Shared,
}

impl Default for Propagation {
    fn default() -> Self {
        Self {
            shared: Sharing::Private,
            recursive: true,
        }
    }
}

impl Propagation {
    fn parse(text: &str) -> Option<Self> {
        let (recursive, word) = text.strip_prefix('r').map_or((false, text), |rest| (true, rest));
        let shared = match word {
            "private" => Sharing::Private,
            "slave" => Sharing::Slave,
            "shared" => Sharing::Shared,
            _ => return None,
        };
        Some(Self { shared, recursive })
    }

    fn text(self) -> &'static str {
        match (self.shared, self.recursive) {
            (Sharing::Private, false) => "private",
            (Sharing::Private, true) => "rprivate",
            (Sharing::Slave, false) => "slave",
            (Sharing::Slave, true) => "rslave",
            (Sharing::Shared, false) => "shared",
            (Sharing::Shared, true) => "rshared",
        }
    }
}

impl Point {
    pub(crate) fn volume(&self) -> Option<&VolumeUse> {
        match &self.kind {
            Kind::Volume(volume) => Some(volume),
            _ => None,
        }
    }
}

/// Whether a container has a mount of this volume, or at this path.
pub(crate) fn names(record: &Record, wanted: &str) -> bool {
    record.mounts.iter().any(|point| {
        point.destination == wanted || point.volume().is_some_and(|volume| volume.name == wanted)
    })
}

/// `Mounts`, as `inspect` and the list show them.
pub(crate) fn show(store: &Store, record: &Record) -> Value {
    let one = |point: &Point| {
        let (destination, writable) = (&point.destination, !point.read_only);
        match &point.kind {
            Kind::Bind(bind) => json!({
                "Type": "bind", "Source": bind.source, "Destination": destination, "Mode": point.mode,
                "RW": writable, "Propagation": bind.propagation.text(),
            }),
            Kind::Volume(volume) => json!({
                "Type": "volume", "Name": volume.name, "Source": store.volume_path(&volume.name),
                "Destination": destination, "Driver": "local", "Mode": point.mode, "RW": writable,
                "Propagation": "",
            }),
            Kind::Tmpfs { .. } => json!({
                "Type": "tmpfs", "Source": "", "Destination": destination, "Mode": point.mode,
                "RW": writable, "Propagation": "",
            }),
        }
    };
    record.mounts.iter().map(one).collect()
}
