//! Makes an empty btrfs filesystem: one device, metadata twice, data once.
//!
//! The appliance carries no `mkfs.btrfs`. Eight tree blocks and a superblock are all that an empty
//! filesystem is; the kernel adds the free space tree, the UUID tree and the first data chunk when it
//! mounts it. A read-only subvolume [`TEMPLATE`] is part of every pool: it is the tree that the first
//! layer of an image starts from, and it holds one file whose inode number is [`LAYER_INODES`]. What is
//! created in a snapshot of it gets higher numbers, while a zone's own subvolume counts from 257. So
//! the two halves of a zone's overlay, which is one filesystem to overlayfs, never show the same inode
//! number for different files; `tar` and `find` would take these for one file.

mod format;

use std::fs::OpenOptions;
use std::io;
use std::os::unix::fs::{FileExt, FileTypeExt};
use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::rand::{GetRandomFlags, getrandom};

use self::format::*;
use crate::error::{During, Error, Result};

/// Name of the subvolume that layers start from.
pub const TEMPLATE: &str = "template";
/// The file in it that keeps the inode numbers high; a layer does not show it.
pub const INODE_MARK: &str = ".inode-numbers";
/// Layers' inode numbers are above this. Within 32 bits, for programs that know no more.
pub const LAYER_INODES: u64 = 1 << 31;
/// The smallest device that gets a pool, in bytes.
pub const MIN_SIZE: u64 = 128 << 20;

/// Before the first chunk: boot code and the first superblock.
const RESERVED: u64 = 1 << 20;
const SYSTEM_CHUNK: u64 = 8 << 20;
const SMALL_METADATA_CHUNK: u64 = 32 << 20;
const METADATA_CHUNK: u64 = 256 << 20;
/// Devices from this size on get the large metadata chunk.
const LARGE_DEVICE: u64 = 4 << 30;
const GENERATION: u64 = 1;
const DEVID: u64 = 1;
const TEMPLATE_ID: u64 = objectid::FIRST_FREE;

/// The metadata trees in the order of their blocks.
const TREES: [u64; 7] = [
    objectid::ROOT_TREE,
    objectid::EXTENT_TREE,
    objectid::DEV_TREE,
    objectid::FS_TREE,
    objectid::CSUM_TREE,
    objectid::DATA_RELOC_TREE,
    TEMPLATE_ID,
];

/// What an empty filesystem consists of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    /// Blocks with the device offset that each belongs at.
    pub blocks: Vec<(u64, Vec<u8>)>,
    /// The superblock and its copies: written after all else is on the disk.
    pub supers: Vec<(u64, Vec<u8>)>,
}

/// What differs between two filesystems of one size.
#[derive(Debug, Clone, Copy)]
pub struct Identity {
    pub fsid: [u8; 16],
    pub device: [u8; 16],
    pub chunk_tree: [u8; 16],
    pub subvolume: [u8; 16],
    /// Seconds since 1970.
    pub time: u64,
}

impl Identity {
    /// Random (version 4) UUIDs and the present time.
    pub fn random() -> Result<Identity> {
        let uuid = || -> Result<[u8; 16]> {
            let mut bytes = [0u8; 16];
            getrandom(&mut bytes, GetRandomFlags::empty()).during("draw a random UUID")?;
            bytes[6] = bytes[6] & 0x0f | 0x40;
            bytes[8] = bytes[8] & 0x3f | 0x80;
            Ok(bytes)
        };
        let time = SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |since| since.as_secs());
        Ok(Identity {
            fsid: uuid()?,
            device: uuid()?,
            chunk_tree: uuid()?,
            subvolume: uuid()?,
            time,
        })
    }
}

/// Writes an empty filesystem to a block device or file.
pub fn write(path: &Path, label: &str) -> Result<()> {
    let shown = path.display();
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .open(path)
        .during(format!("open {shown} to format it"))?;
    let meta = file.metadata().during(format!("ask for the kind of {shown}"))?;
    let size = if meta.file_type().is_block_device() {
        sys::block::size(&file).during(format!("ask for the size of {shown}"))?
    } else {
        meta.len()
    };
    let plan = plan(size, label, &Identity::random()?).ok_or_else(|| Error::TooSmall {
        path: shown.to_string(),
        size,
        minimum: MIN_SIZE,
    })?;
    let write_all = |blocks: &[(u64, Vec<u8>)]| -> io::Result<()> {
        for (offset, block) in blocks {
            file.write_all_at(block, *offset)?;
        }
        file.sync_all()
    };
    let what = format!("write a filesystem to {shown}");
    write_all(&plan.blocks).during(&what)?;
    write_all(&plan.supers).during(&what)
}

/// Computes an empty filesystem for a device of `size` bytes; `None` where that is too little.
pub fn plan(size: u64, label: &str, identity: &Identity) -> Option<Plan> {
    if size < MIN_SIZE {
        return None;
    }
    let layout = Layout::new(size, identity);
    let mut blocks = Vec::new();
    let mut put = |chunk: &Chunk, bytenr: u64, owner: u64, items| -> Option<()> {
        let block = leaf(&layout.ids, owner, bytenr, items)?;
        for stripe in chunk.stripes {
            blocks.push((stripe + (bytenr - chunk.logical), block.clone()));
        }
        Some(())
    };
    put(
        &layout.system,
        layout.system.logical,
        objectid::CHUNK_TREE,
        layout.chunk_tree(),
    )?;
    for tree in TREES {
        let items = match tree {
            objectid::ROOT_TREE => layout.root_tree(),
            objectid::EXTENT_TREE => layout.extent_tree(),
            objectid::DEV_TREE => layout.dev_tree(),
            objectid::FS_TREE => layout.fs_tree(),
            objectid::DATA_RELOC_TREE => layout.folder(0, 0),
            TEMPLATE_ID => layout.template_tree(),
            _ => Vec::new(),
        };
        put(&layout.metadata, layout.block_of(tree), tree, items)?;
    }
    // What was in the first sectors before (a boot record, another filesystem) is gone for good.
    blocks.push((0, vec![0; STRIPE_LEN as usize]));
    let superblock = Super {
        ids: layout.ids,
        label,
        root: layout.block_of(objectid::ROOT_TREE),
        chunk_root: layout.system.logical,
        bytes_used: (TREES.len() as u64 + 1) * NODE_SIZE as u64,
        incompat: incompat::MIXED_BACKREF
            | incompat::BIG_METADATA
            | incompat::EXTENDED_IREF
            | incompat::SKINNY_METADATA
            | incompat::NO_HOLES,
        device: layout.device,
        system_chunk: layout.system,
    };
    let fits = |offset: &u64| offset + SUPER_SIZE as u64 <= layout.device.total_bytes;
    let supers = SUPER_OFFSETS
        .into_iter()
        .filter(fits)
        .map(|at| (at, superblock.encode(at)))
        .collect();
    Some(Plan { blocks, supers })
}

/// UUID and label, where `block` (the 4096 bytes at 64 KiB) is a btrfs superblock.
pub(crate) fn recognise(block: &[u8]) -> Option<(String, String)> {
    let magic = block.get(SUPER_MAGIC_OFFSET..)?.get(..SUPER_MAGIC.len())?;
    if magic != SUPER_MAGIC {
        return None;
    }
    let uuid = block.get(SUPER_FSID_OFFSET..)?.get(..16)?;
    let label = block.get(SUPER_LABEL_OFFSET..)?.get(..LABEL_SIZE)?;
    let label = label.split(|byte| *byte == 0).next().unwrap_or_default();
    Some((uuid_text(uuid), String::from_utf8_lossy(label).into_owned()))
}

/// A UUID as it is written.
pub(crate) fn uuid_text(uuid: &[u8]) -> String {
    let mut text = String::new();
    for (index, byte) in uuid.iter().enumerate() {
        if matches!(index, 4 | 6 | 8 | 10) {
            text.push('-');
        }
        text.push_str(&format!("{byte:02x}"));
    }
    text
}

/// Offset of the first superblock.
pub(crate) const SUPER_OFFSET: u64 = SUPER_OFFSETS[0];
pub(crate) const SUPER_BYTES: usize = SUPER_SIZE;

type Items = Vec<(Key, Vec<u8>)>;

/// Where everything lies.
struct Layout {
    ids: Ids,
    subvolume: Uuid,
    time: Time,
    device: DevItem,
    system: Chunk,
    metadata: Chunk,
}

impl Layout {
    fn new(size: u64, identity: &Identity) -> Layout {
        let metadata_size = if size >= LARGE_DEVICE {
            METADATA_CHUNK
        } else {
            SMALL_METADATA_CHUNK
        };
        let system = Chunk {
            logical: RESERVED,
            length: SYSTEM_CHUNK,
            flags: block_group::SYSTEM | block_group::DUP,
            stripes: [RESERVED, RESERVED + SYSTEM_CHUNK],
        };
        let start = RESERVED + 2 * SYSTEM_CHUNK;
        let metadata = Chunk {
            logical: RESERVED + SYSTEM_CHUNK,
            length: metadata_size,
            flags: block_group::METADATA | block_group::DUP,
            stripes: [start, start + metadata_size],
        };
        let device = DevItem {
            devid: DEVID,
            total_bytes: size / u64::from(SECTOR_SIZE) * u64::from(SECTOR_SIZE),
            bytes_used: 2 * (system.length + metadata.length),
            uuid: identity.device,
            fsid: identity.fsid,
        };
        let ids = Ids {
            fsid: identity.fsid,
            chunk_tree: identity.chunk_tree,
            generation: GENERATION,
        };
        Layout {
            ids,
            subvolume: identity.subvolume,
            time: Time(identity.time),
            device,
            system,
            metadata,
        }
    }

    /// Logical address of the one block of `tree`.
    fn block_of(&self, tree: u64) -> u64 {
        let index = TREES.iter().position(|other| *other == tree).unwrap_or_default();
        self.metadata.logical + (index * NODE_SIZE) as u64
    }

    fn chunk_tree(&self) -> Items {
        let device = Key::new(objectid::DEV_ITEMS, key_type::DEV_ITEM, DEVID);
        vec![
            (device, self.device.encode()),
            (self.system.key(), self.system.encode(&self.device)),
            (self.metadata.key(), self.metadata.encode(&self.device)),
        ]
    }

    fn dev_tree(&self) -> Items {
        [&self.system, &self.metadata]
            .into_iter()
            .flat_map(|chunk| {
                chunk.stripes.map(|offset| {
                    let key = Key::new(DEVID, key_type::DEV_EXTENT, offset);
                    (key, chunk.dev_extent(&self.ids.chunk_tree))
                })
            })
            .collect()
    }

    fn extent_tree(&self) -> Items {
        let block_group = |chunk: &Chunk, blocks: usize| {
            let key = Key::new(chunk.logical, key_type::BLOCK_GROUP_ITEM, chunk.length);
            (key, chunk.block_group((blocks * NODE_SIZE) as u64))
        };
        let tree_block = |bytenr: u64, owner: u64| {
            (
                Key::new(bytenr, key_type::METADATA_ITEM, 0),
                metadata_item(GENERATION, owner),
            )
        };
        let mut items = vec![
            block_group(&self.system, 1),
            block_group(&self.metadata, TREES.len()),
            tree_block(self.system.logical, objectid::CHUNK_TREE),
        ];
        items.extend(TREES.map(|tree| tree_block(self.block_of(tree), tree)));
        items
    }

    fn root_tree(&self) -> Items {
        let mut items = Items::new();
        for tree in TREES.into_iter().filter(|tree| *tree != objectid::ROOT_TREE) {
            let has_files = matches!(tree, objectid::FS_TREE | objectid::DATA_RELOC_TREE | TEMPLATE_ID);
            let item = RootItem {
                generation: GENERATION,
                root_dirid: if has_files { objectid::FIRST_FREE } else { 0 },
                bytenr: self.block_of(tree),
                flags: if tree == TEMPLATE_ID {
                    ROOT_SUBVOL_RDONLY
                } else {
                    0
                },
                uuid: match tree {
                    TEMPLATE_ID => self.subvolume,
                    objectid::FS_TREE => self.ids.fsid,
                    _ => Uuid::default(),
                },
                time: if has_files { self.time } else { Time(0) },
            };
            items.push((Key::new(tree, key_type::ROOT_ITEM, 0), item.encode()));
        }
        let (dir, name) = (objectid::ROOT_TREE_DIR, "default");
        let fs_tree = Key::new(objectid::FS_TREE, key_type::ROOT_ITEM, u64::MAX);
        items.push((Key::new(dir, key_type::INODE_ITEM, 0), self.folder_inode(0)));
        items.push((Key::new(dir, key_type::INODE_REF, dir), inode_ref(0, "..")));
        items.push((
            Key::new(dir, key_type::DIR_ITEM, name_hash(name)),
            dir_item(fs_tree, FILE_TYPE_DIR, name),
        ));
        items.push((
            Key::new(objectid::FS_TREE, key_type::INODE_REF, dir),
            inode_ref(0, name),
        ));
        let reference = root_ref(objectid::FIRST_FREE, FIRST_DIR_INDEX, TEMPLATE);
        items.push((
            Key::new(objectid::FS_TREE, key_type::ROOT_REF, TEMPLATE_ID),
            reference.clone(),
        ));
        items.push((
            Key::new(TEMPLATE_ID, key_type::ROOT_BACKREF, objectid::FS_TREE),
            reference,
        ));
        items
    }

    fn fs_tree(&self) -> Items {
        let location = Key::new(TEMPLATE_ID, key_type::ROOT_ITEM, u64::MAX);
        let mut items = self.folder(TEMPLATE.len(), NODE_SIZE as u64);
        items.extend(Self::entry(location, FILE_TYPE_DIR, TEMPLATE));
        items
    }

    fn template_tree(&self) -> Items {
        let location = Key::new(LAYER_INODES, key_type::INODE_ITEM, 0);
        let file = InodeItem {
            generation: GENERATION,
            size: 0,
            nbytes: 0,
            mode: MODE_FILE | 0o400,
            time: self.time,
        };
        let mut items = self.folder(INODE_MARK.len(), NODE_SIZE as u64);
        items.extend(Self::entry(location, FILE_TYPE_REGULAR, INODE_MARK));
        items.push((location, file.encode()));
        let back = Key::new(LAYER_INODES, key_type::INODE_REF, objectid::FIRST_FREE);
        items.push((back, inode_ref(FIRST_DIR_INDEX, INODE_MARK)));
        items
    }

    /// The root folder of a tree, with one entry whose name has `name_len` bytes, or none for 0.
    fn folder(&self, name_len: usize, nbytes: u64) -> Items {
        let dir = objectid::FIRST_FREE;
        let inode = InodeItem {
            generation: GENERATION,
            // A folder's size counts each name twice.
            size: 2 * name_len as u64,
            nbytes,
            mode: MODE_DIR | 0o755,
            time: self.time,
        };
        vec![
            (Key::new(dir, key_type::INODE_ITEM, 0), inode.encode()),
            (Key::new(dir, key_type::INODE_REF, dir), inode_ref(0, "..")),
        ]
    }

    fn folder_inode(&self, size: u64) -> Vec<u8> {
        InodeItem {
            generation: GENERATION,
            size,
            nbytes: NODE_SIZE as u64,
            mode: MODE_DIR | 0o755,
            time: self.time,
        }
        .encode()
    }

    fn entry(location: Key, kind: u8, name: &str) -> [(Key, Vec<u8>); 2] {
        let dir = objectid::FIRST_FREE;
        let item = dir_item(location, kind, name);
        [
            (Key::new(dir, key_type::DIR_ITEM, name_hash(name)), item.clone()),
            (Key::new(dir, key_type::DIR_INDEX, FIRST_DIR_INDEX), item),
        ]
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::process::Command;

    use super::*;

    const IDENTITY: Identity = Identity {
        fsid: [1; 16],
        device: [2; 16],
        chunk_tree: [3; 16],
        subvolume: [4; 16],
        time: 1_700_000_000,
    };

    fn run(program: &str, arguments: &[&str]) -> String {
        let output = crate::testing::output(Command::new(program).args(arguments));
        let text =
            String::from_utf8_lossy(&output.stdout).into_owned() + &String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{program} {arguments:?} failed:\n{text}");
        text
    }

    #[test]
    fn btrfs_check_finds_no_fault_in_any_size() {
        for size in [MIN_SIZE, 200 << 20, (1 << 30) + 12_345, 5 << 30, 300 << 30] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("image");
            File::create(&path).unwrap().set_len(size).unwrap();
            write(&path, "monobloc").unwrap();
            let image = path.to_str().unwrap();
            let text = run("btrfs", &["check", "--check-data-csum", image]);
            assert!(text.contains("no error found"), "{text}");
            let dump = run("btrfs", &["inspect-internal", "dump-super", "-a", image]);
            let copies = SUPER_OFFSETS.iter().filter(|at| **at < size).count();
            assert_eq!(dump.matches("[match]\nbytenr").count(), copies, "{dump}");
            assert!(dump.contains("label\t\t\tmonobloc"), "{dump}");
        }
    }

    #[test]
    fn a_filesystem_is_recognised_by_its_superblock() {
        let plan = plan(MIN_SIZE, "monobloc-a", &IDENTITY).unwrap();
        let (uuid, label) = recognise(&plan.supers[0].1).unwrap();
        assert_eq!(
            (uuid.as_str(), label.as_str()),
            ("01010101-0101-0101-0101-010101010101", "monobloc-a")
        );
        assert_eq!(recognise(&[0; SUPER_SIZE]), None);
        assert_eq!(recognise(&[]), None);
    }

    #[test]
    fn one_identity_gives_one_filesystem() {
        assert_eq!(plan(1 << 30, "a", &IDENTITY), plan(1 << 30, "a", &IDENTITY));
    }

    #[test]
    fn a_device_that_is_too_small_is_refused() {
        assert_eq!(plan(MIN_SIZE - 1, "a", &IDENTITY), None);
    }
}
