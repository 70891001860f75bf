//! Entries that are copied into a zone's tree: where they belong there, and whose they are.

use super::{Outcome, join, refuse};
use crate::tarball::{Entry, Kind};

#[derive(Debug, Clone)]
pub(crate) struct Copying {
    /// Path of the folder from the tree's root on, without a slash at either end.
    pub(crate) folder: Vec<u8>,
    /// The host's id of the zone's root; the zone's ids are the 65,536 from there on.
    pub(crate) first_id: u32,
    /// Owner within the zone of everything, instead of what the tar says.
    pub(crate) owner: Option<(u32, u32)>,
    /// Refuses to replace a folder by what is none, and the other way round.
    pub(crate) keep_kinds: bool,
}

/// Ids that a zone has.
pub(crate) const IDS: u32 = 65_536;

impl Copying {
    /// The entry as one of the zone's whole tree, with the host's ids.
    pub(super) fn rebase(&self, entry: &Entry) -> Outcome<Entry> {
        if matches!(entry.kind, Kind::Char { .. } | Kind::Block { .. }) {
            return refuse("it is a device, which is not copied into a container");
        }
        let id = |id: u32| match self.first_id.checked_add(id).filter(|_| id < IDS) {
            Some(id) => Ok(id),
            None => refuse(format!("its owner {id} is none of the container's {IDS} ids")),
        };
        let (uid, gid) = self.owner.unwrap_or((entry.uid, entry.gid));
        let within = |path: &[u8]| {
            let start = path.iter().position(|byte| *byte != b'/').unwrap_or(path.len());
            join(&self.folder, path.get(start..).unwrap_or_default())
        };
        let mut rebased = entry.clone();
        (rebased.uid, rebased.gid) = (id(uid)?, id(gid)?);
        rebased.path = within(&entry.path);
        if entry.kind == Kind::HardLink {
            rebased.link = within(&entry.link);
        }
        for (name, value) in &mut rebased.xattrs {
            if name == CAPABILITY {
                *value = capability_of_zone(value, self.first_id);
            }
        }
        Ok(rebased)
    }
}

pub(crate) const CAPABILITY: &[u8] = b"security.capability";
/// `VFS_CAP_REVISION_2` and `_3` in the first word of `struct vfs_cap_data` (`linux/capability.h`);
/// the lowest bit says that they are effective.
const REVISION: usize = 3;
const REVISION_2: u8 = 2;
const REVISION_3: u8 = 3;
const LENGTH_2: usize = 20;

/// A file's capabilities as the host sees those of a zone's file: with the zone's root in them.
fn capability_of_zone(value: &[u8], first_id: u32) -> Vec<u8> {
    let mut value = value.to_vec();
    if value.len() == LENGTH_2 && value.get(REVISION) == Some(&REVISION_2) {
        value[REVISION] = REVISION_3;
        value.extend(first_id.to_le_bytes());
    }
    value
}

/// The way back: as an image has them.
pub(crate) fn capability_of_image(mut value: Vec<u8>, first_id: u32) -> Vec<u8> {
    if value.get(REVISION) == Some(&REVISION_3) && value.get(LENGTH_2..) == Some(&first_id.to_le_bytes()) {
        value.truncate(LENGTH_2);
        value[REVISION] = REVISION_2;
    }
    value
}
