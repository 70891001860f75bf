//! What a superblock says of a pool and of the disk that it lies on.

use crate::mkfs;

/// A device's membership of a btrfs, from its first superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Membership {
    /// The filesystem's id, the same on all its devices.
    pub uuid: String,
    pub label: String,
    /// Counts the commits: of two copies the higher is the newer.
    pub generation: u64,
    /// How many devices the filesystem has.
    pub devices: u64,
    /// Which of them this is.
    pub device: u64,
}

/// Reads `block`, the 4096 bytes at 64 KiB (btrfs' on-disk format, `struct btrfs_super_block`).
pub(super) fn read(block: &[u8]) -> Option<Membership> {
    const GENERATION: usize = 72;
    const DEVICES: usize = 136;
    const DEVICE: usize = 201;
    let word = |at: usize| -> Option<u64> {
        let field = block.get(at..)?.first_chunk()?;
        Some(u64::from_le_bytes(*field))
    };
    let (uuid, label) = mkfs::recognise(block)?;
    Some(Membership {
        uuid,
        label,
        generation: word(GENERATION)?,
        devices: word(DEVICES)?,
        device: word(DEVICE)?,
    })
}
