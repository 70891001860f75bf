//! What btrfs keeps of a snapshot, and the stream that makes another of it elsewhere (`linux/btrfs.h`;
//! btrfs-send(8)).

use std::io;
use std::os::fd::{AsFd, AsRawFd};

use crate::btrfs::{both_request, check, read_request, write_request};

/// A subvolume's own name among all of the world (`BTRFS_UUID_SIZE`).
pub type Uuid = [u8; 16];

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct Time {
    seconds: u64,
    nanoseconds: u32,
}

/// `struct btrfs_ioctl_get_subvol_info_args`.
#[repr(C)]
struct InfoArgs {
    tree: u64,
    name: [u8; 256],
    parent_tree: u64,
    folder: u64,
    generation: u64,
    flags: u64,
    uuid: Uuid,
    parent_uuid: Uuid,
    received_uuid: Uuid,
    /// Of the last change, the making, the sending and the receiving.
    transactions: [u64; 4],
    times: [Time; 4],
    reserved: [u64; 8],
}

/// `struct btrfs_ioctl_received_subvol_args`.
#[repr(C)]
struct ReceivedArgs {
    uuid: Uuid,
    sent_transaction: u64,
    received_transaction: u64,
    sent: Time,
    received: Time,
    flags: u64,
    reserved: [u64; 16],
}

/// `struct btrfs_ioctl_send_args`.
#[repr(C)]
struct SendArgs {
    to: i64,
    sources_count: u64,
    sources: *const u64,
    parent: u64,
    flags: u64,
    version: u32,
    reserved: [u8; 28],
}

const _: () = assert!(size_of::<InfoArgs>() == 504 && size_of::<ReceivedArgs>() == 200);
const _: () = assert!(size_of::<SendArgs>() == 72);

const SET_RECEIVED: libc::c_ulong = both_request(37, size_of::<ReceivedArgs>());
const SEND: libc::c_ulong = write_request(38, size_of::<SendArgs>());
const SUBVOL_INFO: libc::c_ulong = read_request(60, size_of::<InfoArgs>());

/// What is known of a subvolume.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Info {
    /// Rises with each that is made.
    pub id: u64,
    pub uuid: Uuid,
    /// What it was received from.
    pub received: Option<Uuid>,
    /// When it was made, in seconds since 1970.
    pub made: u64,
}

/// Asks of the subvolume in which `any` is.
pub fn info(any: impl AsFd) -> io::Result<Info> {
    let mut args = InfoArgs {
        tree: 0,
        name: [0; 256],
        parent_tree: 0,
        folder: 0,
        generation: 0,
        flags: 0,
        uuid: Uuid::default(),
        parent_uuid: Uuid::default(),
        received_uuid: Uuid::default(),
        transactions: [0; 4],
        times: [Time::default(); 4],
        reserved: [0; 8],
    };
    // SAFETY: the request writes a `btrfs_ioctl_get_subvol_info_args`, which `args` is (size asserted
    // above) and which lives through the call.
    check(unsafe { libc::ioctl(any.as_fd().as_raw_fd(), SUBVOL_INFO, &raw mut args) })?;
    let [_, made, _, _] = args.times;
    Ok(Info {
        id: args.tree,
        uuid: args.uuid,
        received: (args.received_uuid != Uuid::default()).then_some(args.received_uuid),
        made: made.seconds,
    })
}

/// Notes in a subvolume, which is writable still, what it was received from.
pub fn set_received(subvolume: impl AsFd, from: Uuid) -> io::Result<()> {
    let mut args = ReceivedArgs {
        uuid: from,
        sent_transaction: 0,
        received_transaction: 0,
        sent: Time::default(),
        received: Time::default(),
        flags: 0,
        reserved: [0; 16],
    };
    // SAFETY: the request reads and writes a `btrfs_ioctl_received_subvol_args`, which `args` is (size
    // asserted above) and which lives through the call.
    check(unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SET_RECEIVED, &raw mut args) })
}

/// Writes to the pipe `to` the stream that makes the read-only `subvolume` elsewhere: from nothing, or from
/// the subvolume with the id `parent`, which is read-only too. Returns when all is written.
///
/// # Errors
/// `EPIPE` where nobody reads any more, beside what else the kernel says.
pub fn send(subvolume: impl AsFd, parent: Option<u64>, to: impl AsFd) -> io::Result<()> {
    // What the parent has need not be sent again where it lies elsewhere in the tree.
    let sources: Vec<u64> = parent.into_iter().collect();
    let mut args = SendArgs {
        to: i64::from(to.as_fd().as_raw_fd()),
        sources_count: sources.len() as u64,
        sources: sources.as_ptr(),
        parent: parent.unwrap_or(0),
        flags: 0,
        version: 0,
        reserved: [0; 28],
    };
    // SAFETY: the request reads a `btrfs_ioctl_send_args`, which `args` is (size asserted above), and the
    // ids behind its pointer, as many as it says; both live through the call, and the descriptors are open.
    check(unsafe { libc::ioctl(subvolume.as_fd().as_raw_fd(), SEND, &raw mut args) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn requests_have_the_numbers_of_the_kernel_header() {
        assert_eq!(SET_RECEIVED, 0xc0c8_9425);
        assert_eq!(SEND, 0x4048_9426);
        assert_eq!(SUBVOL_INFO, 0x81f8_943c);
    }
}
