//! The on-disk format of btrfs, as far as an empty filesystem needs it.
//!
//! Each structure is named as in `linux/btrfs_tree.h` and encodes itself; nothing here does I/O.
//! All numbers are little-endian, nothing is padded.

pub(super) const SECTOR_SIZE: u32 = 4096;
pub(super) const NODE_SIZE: usize = 16 << 10;
pub(super) const STRIPE_LEN: u64 = 64 << 10;
pub(super) const SUPER_SIZE: usize = 4096;
/// Where the superblock and its copies lie (`btrfs_sb_offset`).
pub(super) const SUPER_OFFSETS: [u64; 3] = [64 << 10, 64 << 20, 256 << 30];
pub(super) const SUPER_MAGIC: &[u8; 8] = b"_BHRfS_M";
pub(super) const SUPER_FSID_OFFSET: usize = 32;
pub(super) const SUPER_MAGIC_OFFSET: usize = 64;
pub(super) const SUPER_LABEL_OFFSET: usize = 299;
pub(super) const LABEL_SIZE: usize = 256;

const CSUM_SIZE: usize = 32;
const HEADER_SIZE: usize = 101;
const ITEM_SIZE: usize = 25;
const HEADER_FLAG_WRITTEN: u64 = 1;
/// `BTRFS_MIXED_BACKREF_REV << BTRFS_BACKREF_REV_SHIFT`.
const HEADER_BACKREF_REVISION: u64 = 1 << 56;
const SYS_CHUNK_ARRAY_SIZE: usize = 2048;

pub(super) mod objectid {
    pub(crate) const ROOT_TREE: u64 = 1;
    pub(crate) const EXTENT_TREE: u64 = 2;
    pub(crate) const CHUNK_TREE: u64 = 3;
    pub(crate) const DEV_TREE: u64 = 4;
    pub(crate) const FS_TREE: u64 = 5;
    pub(crate) const ROOT_TREE_DIR: u64 = 6;
    pub(crate) const CSUM_TREE: u64 = 7;
    pub(crate) const DATA_RELOC_TREE: u64 = -9i64 as u64;
    pub(crate) const DEV_ITEMS: u64 = 1;
    pub(crate) const FIRST_CHUNK_TREE: u64 = 256;
    /// The first inode of a tree, its root folder; also the id of the first subvolume.
    pub(crate) const FIRST_FREE: u64 = 256;
}

pub(super) mod key_type {
    pub(crate) const INODE_ITEM: u8 = 1;
    pub(crate) const INODE_REF: u8 = 12;
    pub(crate) const DIR_ITEM: u8 = 84;
    pub(crate) const DIR_INDEX: u8 = 96;
    pub(crate) const ROOT_ITEM: u8 = 132;
    pub(crate) const ROOT_BACKREF: u8 = 144;
    pub(crate) const ROOT_REF: u8 = 156;
    pub(crate) const METADATA_ITEM: u8 = 169;
    pub(crate) const TREE_BLOCK_REF: u8 = 176;
    pub(crate) const BLOCK_GROUP_ITEM: u8 = 192;
    pub(crate) const DEV_EXTENT: u8 = 204;
    pub(crate) const DEV_ITEM: u8 = 216;
    pub(crate) const CHUNK_ITEM: u8 = 228;
}

pub(super) mod block_group {
    pub(crate) const SYSTEM: u64 = 1 << 1;
    pub(crate) const METADATA: u64 = 1 << 2;
    pub(crate) const DUP: u64 = 1 << 5;
}

pub(super) mod incompat {
    pub(crate) const MIXED_BACKREF: u64 = 1 << 0;
    pub(crate) const BIG_METADATA: u64 = 1 << 5;
    pub(crate) const EXTENDED_IREF: u64 = 1 << 6;
    pub(crate) const SKINNY_METADATA: u64 = 1 << 8;
    pub(crate) const NO_HOLES: u64 = 1 << 9;
}

pub(super) const MODE_DIR: u32 = 0o040_000;
pub(super) const MODE_FILE: u32 = 0o100_000;
pub(super) const FILE_TYPE_REGULAR: u8 = 1;
pub(super) const FILE_TYPE_DIR: u8 = 2;
const EXTENT_FLAG_TREE_BLOCK: u64 = 1 << 1;
/// Index of the first entry of a folder; 0 and 1 stand for `.` and `..`.
pub(super) const FIRST_DIR_INDEX: u64 = 2;
pub(super) const ROOT_SUBVOL_RDONLY: u64 = 1;

pub(super) type Uuid = [u8; 16];

/// Appends fields in the format's order.
#[derive(Default)]
pub(super) struct Encoder(Vec<u8>);

impl Encoder {
    pub(super) fn u8(mut self, value: u8) -> Self {
        self.0.push(value);
        self
    }
    pub(super) fn u16(self, value: u16) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn u32(self, value: u32) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn u64(self, value: u64) -> Self {
        self.bytes(&value.to_le_bytes())
    }
    pub(super) fn bytes(mut self, value: &[u8]) -> Self {
        self.0.extend_from_slice(value);
        self
    }
    pub(super) fn zeros(mut self, count: usize) -> Self {
        self.0.resize(self.0.len() + count, 0);
        self
    }
    fn pad_to(mut self, length: usize) -> Self {
        self.0.resize(length, 0);
        self
    }
    pub(super) fn finish(self) -> Vec<u8> {
        self.0
    }
}

/// `struct btrfs_disk_key`; sorts as the trees do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Key {
    pub(super) objectid: u64,
    pub(super) kind: u8,
    pub(super) offset: u64,
}

impl Key {
    pub(super) fn new(objectid: u64, kind: u8, offset: u64) -> Key {
        Key {
            objectid,
            kind,
            offset,
        }
    }

    fn encode(&self) -> Vec<u8> {
        Encoder::default()
            .u64(self.objectid)
            .u8(self.kind)
            .u64(self.offset)
            .finish()
    }
}

/// Seconds since 1970; `struct btrfs_timespec` without nanoseconds.
#[derive(Debug, Clone, Copy)]
pub(super) struct Time(pub(super) u64);

impl Time {
    fn encode(self) -> Vec<u8> {
        Encoder::default().u64(self.0).u32(0).finish()
    }
}

/// `struct btrfs_inode_item`.
#[derive(Debug, Clone, Copy)]
pub(super) struct InodeItem {
    pub(super) generation: u64,
    pub(super) size: u64,
    pub(super) nbytes: u64,
    pub(super) mode: u32,
    pub(super) time: Time,
}

impl InodeItem {
    pub(super) fn encode(&self) -> Vec<u8> {
        let time = self.time.encode();
        Encoder::default()
            .u64(self.generation)
            .u64(0) // transid
            .u64(self.size)
            .u64(self.nbytes)
            .u64(0) // block_group
            .u32(1) // nlink
            .u32(0) // uid
            .u32(0) // gid
            .u32(self.mode)
            .u64(0) // rdev
            .u64(0) // flags
            .u64(0) // sequence
            .zeros(4 * 8)
            .bytes(&time) // atime
            .bytes(&time) // ctime
            .bytes(&time) // mtime
            .bytes(&time) // otime
            .finish()
    }
}

/// `struct btrfs_inode_ref`.
pub(super) fn inode_ref(index: u64, name: &str) -> Vec<u8> {
    Encoder::default()
        .u64(index)
        .u16(name.len() as u16)
        .bytes(name.as_bytes())
        .finish()
}

/// `struct btrfs_root_ref`.
pub(super) fn root_ref(dirid: u64, sequence: u64, name: &str) -> Vec<u8> {
    Encoder::default()
        .u64(dirid)
        .u64(sequence)
        .u16(name.len() as u16)
        .bytes(name.as_bytes())
        .finish()
}

/// `struct btrfs_dir_item`.
pub(super) fn dir_item(location: Key, kind: u8, name: &str) -> Vec<u8> {
    Encoder::default()
        .bytes(&location.encode())
        .u64(0) // transid
        .u16(0) // data_len
        .u16(name.len() as u16)
        .u8(kind)
        .bytes(name.as_bytes())
        .finish()
}

/// `struct btrfs_root_item`.
#[derive(Debug, Clone, Copy)]
pub(super) struct RootItem {
    pub(super) generation: u64,
    /// Inode of the tree's root folder; 0 in trees that hold no files.
    pub(super) root_dirid: u64,
    pub(super) bytenr: u64,
    pub(super) flags: u64,
    pub(super) uuid: Uuid,
    pub(super) time: Time,
}

impl RootItem {
    pub(super) fn encode(&self) -> Vec<u8> {
        let inode = InodeItem {
            generation: 1,
            size: 3,
            nbytes: NODE_SIZE as u64,
            mode: MODE_DIR | 0o755,
            time: Time(0),
        };
        Encoder::default()
            .bytes(&inode.encode())
            .u64(self.generation)
            .u64(self.root_dirid)
            .u64(self.bytenr)
            .u64(0) // byte_limit
            .u64(NODE_SIZE as u64) // bytes_used
            .u64(0) // last_snapshot
            .u64(self.flags)
            .u32(1) // refs
            .zeros(17) // drop_progress
            .u8(0) // drop_level
            .u8(0) // level
            .u64(self.generation) // generation_v2
            .bytes(&self.uuid)
            .zeros(16) // parent_uuid
            .zeros(16) // received_uuid
            .u64(0) // ctransid
            .u64(0) // otransid
            .zeros(2 * 8) // stransid, rtransid
            .bytes(&self.time.encode()) // ctime
            .bytes(&self.time.encode()) // otime
            .zeros(2 * 12) // stime, rtime
            .zeros(8 * 8)
            .finish()
    }
}

/// `struct btrfs_dev_item`.
#[derive(Debug, Clone, Copy)]
pub(super) struct DevItem {
    pub(super) devid: u64,
    pub(super) total_bytes: u64,
    pub(super) bytes_used: u64,
    pub(super) uuid: Uuid,
    pub(super) fsid: Uuid,
}

impl DevItem {
    pub(super) fn encode(&self) -> Vec<u8> {
        Encoder::default()
            .u64(self.devid)
            .u64(self.total_bytes)
            .u64(self.bytes_used)
            .u32(SECTOR_SIZE) // io_align
            .u32(SECTOR_SIZE) // io_width
            .u32(SECTOR_SIZE)
            .u64(0) // type
            .u64(0) // generation
            .u64(0) // start_offset
            .u32(0) // dev_group
            .u8(0) // seek_speed
            .u8(0) // bandwidth
            .bytes(&self.uuid)
            .bytes(&self.fsid)
            .finish()
    }
}

/// `struct btrfs_chunk` with two stripes on one device.
#[derive(Debug, Clone, Copy)]
pub(super) struct Chunk {
    pub(super) logical: u64,
    pub(super) length: u64,
    pub(super) flags: u64,
    pub(super) stripes: [u64; 2],
}

impl Chunk {
    pub(super) fn key(&self) -> Key {
        Key::new(objectid::FIRST_CHUNK_TREE, key_type::CHUNK_ITEM, self.logical)
    }

    pub(super) fn encode(&self, device: &DevItem) -> Vec<u8> {
        let head = Encoder::default()
            .u64(self.length)
            .u64(objectid::EXTENT_TREE) // owner
            .u64(STRIPE_LEN)
            .u64(self.flags)
            .u32(STRIPE_LEN as u32) // io_align
            .u32(STRIPE_LEN as u32) // io_width
            .u32(SECTOR_SIZE)
            .u16(self.stripes.len() as u16)
            .u16(1); // sub_stripes
        self.stripes
            .iter()
            .fold(head, |item, offset| {
                item.u64(device.devid).u64(*offset).bytes(&device.uuid)
            })
            .finish()
    }

    /// `struct btrfs_dev_extent` of each stripe.
    pub(super) fn dev_extent(&self, chunk_tree_uuid: &Uuid) -> Vec<u8> {
        Encoder::default()
            .u64(objectid::CHUNK_TREE)
            .u64(objectid::FIRST_CHUNK_TREE)
            .u64(self.logical)
            .u64(self.length)
            .bytes(chunk_tree_uuid)
            .finish()
    }

    /// `struct btrfs_block_group_item`.
    pub(super) fn block_group(&self, used: u64) -> Vec<u8> {
        Encoder::default()
            .u64(used)
            .u64(objectid::FIRST_CHUNK_TREE)
            .u64(self.flags)
            .finish()
    }
}

/// `struct btrfs_extent_item` of a tree block with its inline back reference.
pub(super) fn metadata_item(generation: u64, owner: u64) -> Vec<u8> {
    Encoder::default()
        .u64(1) // refs
        .u64(generation)
        .u64(EXTENT_FLAG_TREE_BLOCK)
        .u8(key_type::TREE_BLOCK_REF)
        .u64(owner)
        .finish()
}

/// What every block of one filesystem repeats.
#[derive(Debug, Clone, Copy)]
pub(super) struct Ids {
    pub(super) fsid: Uuid,
    pub(super) chunk_tree: Uuid,
    pub(super) generation: u64,
}

/// Encodes one leaf: `struct btrfs_header`, the items' heads, and their data from the end backwards.
/// `None` where the items do not fit.
pub(super) fn leaf(ids: &Ids, owner: u64, bytenr: u64, mut items: Vec<(Key, Vec<u8>)>) -> Option<Vec<u8>> {
    items.sort_by_key(|(key, _)| *key);
    let header = Encoder::default()
        .zeros(CSUM_SIZE)
        .bytes(&ids.fsid)
        .u64(bytenr)
        .u64(HEADER_FLAG_WRITTEN | HEADER_BACKREF_REVISION)
        .bytes(&ids.chunk_tree)
        .u64(ids.generation)
        .u64(owner)
        .u32(items.len() as u32)
        .u8(0); // level
    let mut end = NODE_SIZE - HEADER_SIZE;
    let mut heads = header;
    let mut data = Vec::new();
    // The first item's data lies last in the block.
    for (_, item) in items.iter().rev() {
        data.extend_from_slice(item);
    }
    for (key, item) in &items {
        end = end.checked_sub(item.len())?;
        heads = heads.bytes(&key.encode()).u32(end as u32).u32(item.len() as u32);
    }
    if items.len() * ITEM_SIZE > end {
        return None;
    }
    let mut block = heads.pad_to(NODE_SIZE - data.len()).bytes(&data).finish();
    seal(&mut block);
    Some(block)
}

/// The fields of `struct btrfs_super_block` that differ between filesystems.
#[derive(Debug, Clone)]
pub(super) struct Super<'a> {
    pub(super) ids: Ids,
    pub(super) label: &'a str,
    pub(super) root: u64,
    pub(super) chunk_root: u64,
    pub(super) bytes_used: u64,
    pub(super) incompat: u64,
    pub(super) device: DevItem,
    pub(super) system_chunk: Chunk,
}

impl Super<'_> {
    /// The copy that lies at `bytenr`.
    pub(super) fn encode(&self, bytenr: u64) -> Vec<u8> {
        let chunks = Encoder::default()
            .bytes(&self.system_chunk.key().encode())
            .bytes(&self.system_chunk.encode(&self.device))
            .finish();
        let label: Vec<u8> = self.label.bytes().take(LABEL_SIZE - 1).collect();
        let mut block = Encoder::default()
            .zeros(CSUM_SIZE)
            .bytes(&self.ids.fsid)
            .u64(bytenr)
            .u64(HEADER_FLAG_WRITTEN)
            .bytes(SUPER_MAGIC)
            .u64(self.ids.generation)
            .u64(self.root)
            .u64(self.chunk_root)
            .u64(0) // log_root
            .u64(0) // log_root_transid
            .u64(self.device.total_bytes)
            .u64(self.bytes_used)
            .u64(objectid::ROOT_TREE_DIR)
            .u64(1) // num_devices
            .u32(SECTOR_SIZE)
            .u32(NODE_SIZE as u32)
            .u32(NODE_SIZE as u32) // leafsize
            .u32(SECTOR_SIZE) // stripesize
            .u32(chunks.len() as u32)
            .u64(self.ids.generation) // chunk_root_generation
            .u64(0) // compat_flags
            .u64(0) // compat_ro_flags: the kernel makes the free space tree at the first mount
            .u64(self.incompat)
            .u16(0) // csum_type: crc32c
            .u8(0) // root_level
            .u8(0) // chunk_root_level
            .u8(0) // log_root_level
            .bytes(&self.device.encode())
            .bytes(&label)
            .pad_to(SUPER_LABEL_OFFSET + LABEL_SIZE)
            .u64(0) // cache_generation
            .u64(0) // uuid_tree_generation: the kernel makes that tree as well
            .bytes(&self.ids.fsid) // metadata_uuid
            .zeros(8 + 27 * 8) // nr_global_roots, reserved
            .bytes(&chunks)
            .zeros(SYS_CHUNK_ARRAY_SIZE - chunks.len())
            .pad_to(SUPER_SIZE) // backup roots
            .finish();
        seal(&mut block);
        block
    }
}

/// Writes the checksum of a block into its first bytes.
fn seal(block: &mut [u8]) {
    if let Some((sum, rest)) = block.split_at_mut_checked(CSUM_SIZE) {
        let crc = !crc32c(!0, rest);
        for (to, from) in sum.iter_mut().zip(crc.to_le_bytes()) {
            *to = from;
        }
    }
}

/// Key offset under which a folder's entry is found (`btrfs_name_hash`).
pub(super) fn name_hash(name: &str) -> u64 {
    u64::from(crc32c(!1, name.as_bytes()))
}

/// CRC-32C (Castagnoli, reflected) without the inversions at begin and end.
fn crc32c(seed: u32, bytes: &[u8]) -> u32 {
    const POLYNOMIAL: u32 = 0x82f6_3b78;
    bytes.iter().fold(seed, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |crc, _| {
            (crc >> 1) ^ (POLYNOMIAL & (crc & 1).wrapping_neg())
        })
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_checksum_is_that_of_the_standard_vector() {
        assert_eq!(!crc32c(!0, b"123456789"), 0xe306_9283);
    }

    #[test]
    fn the_name_hash_is_the_kernels() {
        assert_eq!(name_hash("default"), 2_378_154_706);
    }

    #[test]
    fn structures_have_the_sizes_of_the_kernel_header() {
        let time = Time(0);
        let inode = InodeItem {
            generation: 0,
            size: 0,
            nbytes: 0,
            mode: 0,
            time,
        };
        assert_eq!(inode.encode().len(), 160);
        let root = RootItem {
            generation: 0,
            root_dirid: 0,
            bytenr: 0,
            flags: 0,
            uuid: Uuid::default(),
            time,
        };
        assert_eq!(root.encode().len(), 439);
        let device = DevItem {
            devid: 1,
            total_bytes: 0,
            bytes_used: 0,
            uuid: Uuid::default(),
            fsid: Uuid::default(),
        };
        assert_eq!(device.encode().len(), 98);
        let chunk = Chunk {
            logical: 0,
            length: 0,
            flags: 0,
            stripes: [0; 2],
        };
        assert_eq!(chunk.encode(&device).len(), 112);
        assert_eq!(chunk.dev_extent(&Uuid::default()).len(), 48);
        assert_eq!(metadata_item(1, 5).len(), 33);
    }
}
