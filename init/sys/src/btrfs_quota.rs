//! Quota groups of btrfs by ioctl (`linux/btrfs.h`; btrfs-qgroup(8)), in the mode of simple quotas: an
//! extent is counted once, for the subvolume in which it was written.
//!
//! A group has a level (its upper 16 bits) and a number. Groups of level 0 are the subvolumes, by
//! their ids, and come with them; those above are made here, and count what their members count. What a
//! limit refuses fails with `EDQUOT`. `any` is always some open file or folder of the filesystem.

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::btrfs::{both_request, check, read_request, write_request};

const LEVEL_SHIFT: u32 = 48;
/// `BTRFS_QUOTA_CTL_ENABLE_SIMPLE_QUOTA`.
const ENABLE_SIMPLE: u64 = 4;
/// `BTRFS_QGROUP_LIMIT_MAX_RFER`.
const LIMIT_MAX_RFER: u64 = 1;
/// A limit that is none.
const UNLIMITED: u64 = u64::MAX;
/// Inode number of every subvolume's root (`BTRFS_FIRST_FREE_OBJECTID`).
const SUBVOLUME_ROOT: u64 = 256;
/// `BTRFS_ROOT_TREE_OBJECTID` and `BTRFS_ROOT_ITEM_KEY`.
const ROOT_TREE: u64 = 1;
const ROOT_ITEM: u32 = 132;
/// `BTRFS_QUOTA_TREE_OBJECTID` and `BTRFS_QGROUP_RELATION_KEY`.
const QUOTA_TREE: u64 = 8;
const RELATION: u32 = 246;

#[repr(C)]
struct ControlArgs {
    command: u64,
    status: u64,
}

#[repr(C)]
struct CreateArgs {
    create: u64,
    id: u64,
}

#[repr(C)]
struct AssignArgs {
    assign: u64,
    member: u64,
    group: u64,
}

/// `struct btrfs_qgroup_limit`.
#[repr(C)]
#[derive(Default)]
struct Limit {
    flags: u64,
    max_referenced: u64,
    max_exclusive: u64,
    reserved: [u64; 2],
}

#[repr(C)]
struct LimitArgs {
    id: u64,
    limit: Limit,
}

#[repr(C)]
struct LookupArgs {
    tree: u64,
    object: u64,
    name: [u8; 4080],
}

/// `struct btrfs_ioctl_search_args`; each pair is the least and the most.
#[repr(C)]
struct SearchArgs {
    tree: u64,
    objects: [u64; 2],
    offsets: [u64; 2],
    transactions: [u64; 2],
    kinds: [u32; 2],
    /// How many are wanted, then how many there are.
    items: u32,
    unused: [u32; 9],
    found: [u8; 3992],
}

const _: () = assert!(size_of::<LimitArgs>() == 48);
const _: () = assert!(size_of::<LookupArgs>() == 4096 && size_of::<SearchArgs>() == 4096);

const TREE_SEARCH: libc::c_ulong = both_request(17, size_of::<SearchArgs>());
const INO_LOOKUP: libc::c_ulong = both_request(18, size_of::<LookupArgs>());
const QUOTA_CTL: libc::c_ulong = both_request(40, size_of::<ControlArgs>());
const QGROUP_ASSIGN: libc::c_ulong = write_request(41, size_of::<AssignArgs>());
const QGROUP_CREATE: libc::c_ulong = write_request(42, size_of::<CreateArgs>());
const QGROUP_LIMIT: libc::c_ulong = read_request(43, size_of::<LimitArgs>());

/// A quota group.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Group {
    pub level: u16,
    /// Below 2⁴⁸.
    pub number: u64,
}

impl Group {
    /// The group of the subvolume with an id.
    pub const fn of(subvolume: u64) -> Group {
        Group {
            level: 0,
            number: subvolume,
        }
    }

    const fn from_id(id: u64) -> Group {
        Group {
            level: (id >> LEVEL_SHIFT) as u16,
            number: id & ((1 << LEVEL_SHIFT) - 1),
        }
    }

    const fn id(self) -> u64 {
        ((self.level as u64) << LEVEL_SHIFT) | (self.number & ((1 << LEVEL_SHIFT) - 1))
    }
}

fn limit(bytes: Option<u64>) -> Limit {
    Limit {
        flags: LIMIT_MAX_RFER,
        // The kernel takes this value for "no more limit".
        max_referenced: bytes.unwrap_or(UNLIMITED),
        ..Limit::default()
    }
}

/// Begins to count, where that is not so yet. What was written before is not counted.
///
/// # Errors
/// `EINVAL` from a kernel before 6.7, which has no simple quotas.
pub fn enable(any: impl AsFd) -> io::Result<()> {
    let mut args = ControlArgs {
        command: ENABLE_SIMPLE,
        status: 0,
    };
    // SAFETY: the request reads and writes a `btrfs_ioctl_quota_ctl_args`, which `args` is and which lives
    // through the call.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), QUOTA_CTL, &raw mut args) })
}

/// Makes a group of a level above 0; one that is there stays as it is.
pub fn create_group(any: impl AsFd, group: Group) -> io::Result<()> {
    match create_or_remove(any, group, true) {
        Err(reason) if reason.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Removes a group that has no members; of level 0, one whose subvolume is gone and that counts nothing
/// any more.
///
/// # Errors
/// `EBUSY` where it is still needed, `ENOENT` where there is none.
pub fn remove_group(any: impl AsFd, group: Group) -> io::Result<()> {
    create_or_remove(any, group, false)
}

fn create_or_remove(any: impl AsFd, group: Group, create: bool) -> io::Result<()> {
    let mut args = CreateArgs {
        create: u64::from(create),
        id: group.id(),
    };
    // SAFETY: the request reads a `btrfs_ioctl_qgroup_create_args`, which `args` is.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), QGROUP_CREATE, &raw mut args) })
}

/// Makes `member` count for `group`, which has a higher level, too; one that does already stays so.
pub fn assign(any: impl AsFd, member: Group, group: Group) -> io::Result<()> {
    match assign_or_release(any, member, group, true) {
        Err(reason) if reason.raw_os_error() == Some(libc::EEXIST) => Ok(()),
        other => other,
    }
}

/// Ends that `member` counts for `group`.
///
/// # Errors
/// `ENOENT` where it does not.
pub fn release(any: impl AsFd, member: Group, group: Group) -> io::Result<()> {
    assign_or_release(any, member, group, false)
}

fn assign_or_release(any: impl AsFd, member: Group, group: Group, assign: bool) -> io::Result<()> {
    let mut args = AssignArgs {
        assign: u64::from(assign),
        member: member.id(),
        group: group.id(),
    };
    // SAFETY: the request reads a `btrfs_ioctl_qgroup_assign_args`, which `args` is. (A positive result
    // would ask for a rescan, which simple quotas do not have.)
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), QGROUP_ASSIGN, &raw mut args) })
}

/// Bounds what a group may hold, in bytes of data and metadata; `None` lifts the bound. It may be below
/// what the group holds already.
pub fn set_limit(any: impl AsFd, group: Group, bytes: Option<u64>) -> io::Result<()> {
    let mut args = LimitArgs {
        id: group.id(),
        limit: limit(bytes),
    };
    // SAFETY: the request reads a `btrfs_ioctl_qgroup_limit_args`, which `args` is (size asserted above).
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), QGROUP_LIMIT, &raw mut args) })
}

/// Id of the subvolume in which `any` is.
pub fn subvolume_id(any: impl AsFd) -> io::Result<u64> {
    // The name of a subvolume's root in it is asked for: there is none, and the answer tells where it is.
    let mut args = LookupArgs {
        tree: 0,
        object: SUBVOLUME_ROOT,
        name: [0; 4080],
    };
    // SAFETY: the request reads and writes a `btrfs_ioctl_ino_lookup_args`, which `args` is (size asserted
    // above) and which lives through the call.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), INO_LOOKUP, &raw mut args) })?;
    Ok(args.tree)
}

/// True where there is a subvolume with this id, or what the kernel has not freed yet of one.
pub fn subvolume_exists(any: impl AsFd, id: u64) -> io::Result<bool> {
    let found = first_item(any, ROOT_TREE, id, ROOT_ITEM, 0)?;
    Ok(found.is_some())
}

/// The group of a higher level for which a group counts; the first, where there are several.
pub fn group_above(any: impl AsFd, member: Group) -> io::Result<Option<Group>> {
    let above = (u64::from(member.level) + 1) << LEVEL_SHIFT;
    // A relation is noted with both: the other group is where an item's offset says.
    let found = first_item(any, QUOTA_TREE, member.id(), RELATION, above)?;
    Ok(found.map(Group::from_id))
}

/// Offset of the first item of an object that is of a kind and whose offset is not below `from`.
fn first_item(any: impl AsFd, tree: u64, object: u64, kind: u32, from: u64) -> io::Result<Option<u64>> {
    /// Place of the offset in `struct btrfs_ioctl_search_header`.
    const OFFSET: usize = 16;
    let mut args = SearchArgs {
        tree,
        objects: [object, object],
        offsets: [from, u64::MAX],
        transactions: [0, u64::MAX],
        kinds: [kind, kind],
        items: 1,
        unused: [0; 9],
        found: [0; 3992],
    };
    // SAFETY: the request reads and writes a `btrfs_ioctl_search_args`, which `args` is (size asserted
    // above) and which lives through the call.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), TREE_SEARCH, &raw mut args) })?;
    if args.items == 0 {
        return Ok(None);
    }
    let offset = args.found.get(OFFSET..).and_then(|rest| rest.first_chunk());
    Ok(offset.map(|bytes| u64::from_ne_bytes(*bytes)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernel_header() {
        assert_eq!(TREE_SEARCH, 0xd000_9411);
        assert_eq!(INO_LOOKUP, 0xd000_9412);
        assert_eq!(QUOTA_CTL, 0xc010_9428);
        assert_eq!(QGROUP_ASSIGN, 0x4018_9429);
        assert_eq!(QGROUP_CREATE, 0x4010_942a);
        assert_eq!(QGROUP_LIMIT, 0x8030_942b);
    }

    #[test]
    fn the_level_stands_above_the_number() {
        assert_eq!(Group::of(257).id(), 257);
        let group = Group { level: 2, number: 1 };
        assert_eq!(group.id(), (2 << 48) | 1);
        assert_eq!(Group::from_id(group.id()), group);
    }
}
