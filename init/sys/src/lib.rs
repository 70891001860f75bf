//! The project's only `unsafe`: system calls, ioctls and sockets that `rustix` has no safe words for.

pub mod block;
pub mod bpf;
pub mod btrfs;
pub mod btrfs_devices;
pub mod btrfs_quota;
pub mod btrfs_snapshots;
pub mod dm;
pub mod loopdev;
pub mod mounts;
pub mod netlink;
pub mod packet;
pub mod program;
pub mod readiness;
pub mod signals;
pub mod socket;
pub mod spawn;
