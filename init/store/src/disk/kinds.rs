//! What Debian's own tools leave on a disk is told by its name, one test a kind; and whatever it is
//! keeps a disk from being taken for a blank one.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use super::{Content, inspect};

const MIB: u64 = 1 << 20;
/// Packages of the tools.
const TOOLS: [&str; 12] = [
    "bcache-tools",
    "btrfs-progs",
    "cryptsetup-bin",
    "dosfstools",
    "e2fsprogs",
    "fdisk",
    "gdisk",
    "lvm2",
    "mdadm",
    "util-linux",
    "xfsprogs",
    "xorriso",
];

struct Image {
    dir: tempfile::TempDir,
    file: File,
}

impl Image {
    fn new(size: u64) -> Self {
        tools::need(&TOOLS);
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("disk");
        File::create(&path).unwrap().set_len(size).unwrap();
        let file = File::options().read(true).write(true).open(path).unwrap();
        Self { dir, file }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("disk")
    }

    /// Runs a shell command in which `$DISK` is the image.
    fn with(self, command: &str) -> Self {
        let path = self.path();
        self.run(command, path)
    }

    /// The same with a loop device over the image, for those who take no file.
    fn with_device(self, command: &str) -> Self {
        let device = sys::loopdev::LoopDevice::attach(&self.file).unwrap();
        self.run(command, device.path().to_owned())
    }

    fn run(self, command: &str, disk: PathBuf) -> Self {
        let output = crate::testing::spawn(
            Command::new("sh")
                .args(["-ec", command])
                .env("DISK", disk)
                .current_dir(self.dir.path())
                .stdin(Stdio::null())
                .stdout(Stdio::piped())
                .stderr(Stdio::piped()),
        )
        .wait_with_output()
        .unwrap();
        assert!(output.status.success(), "{command}: {output:?}");
        self
    }

    fn written(self, offset: u64, bytes: &[u8]) -> Self {
        self.file.write_all_at(bytes, offset).unwrap();
        self
    }

    /// What libblkid takes it for.
    fn by_blkid(&self) -> String {
        let output = crate::testing::output(
            Command::new("blkid")
                .args(["-p", "-o", "export"])
                .arg(self.path()),
        );
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn bears(&self, text: &str) {
        let size = self.file.metadata().unwrap().len();
        assert_eq!(inspect(&self.file, size), Content::Foreign(text.to_owned()));
    }
}

#[test]
fn the_ext_filesystems_are_told_apart() {
    for kind in ["ext2", "ext3", "ext4"] {
        Image::new(64 * MIB)
            .with(&format!("mkfs.{kind} -q -L data $DISK"))
            .bears(&format!("an {kind} filesystem called `data`"));
    }
}

#[test]
fn an_xfs_is_told() {
    Image::new(320 * MIB)
        .with("mkfs.xfs -q -L data $DISK")
        .bears("an XFS filesystem called `data`");
}

#[test]
fn a_fat_is_told() {
    for bits in [12, 16, 32] {
        let size = if bits == 12 { 8 } else { 64 };
        Image::new(size * MIB)
            .with(&format!("mkfs.vfat -F {bits} -n BOOT $DISK"))
            .bears("a FAT filesystem called `BOOT`");
    }
}

#[test]
fn a_btrfs_of_others_is_told() {
    Image::new(256 * MIB)
        .with("mkfs.btrfs -q -L data $DISK")
        .bears("a btrfs filesystem called `data`");
}

#[test]
fn an_iso_is_told() {
    let image = Image::new(8 * MIB).with("mkdir in; echo x > in/x; xorriso -outdev new.iso -volid CD -map in / 2>&1; dd if=new.iso of=$DISK conv=notrunc");
    image.bears("an ISO 9660 filesystem called `CD`");
}

#[test]
fn swap_is_told_for_every_size_of_pages() {
    for page in [4096, 65_536] {
        Image::new(64 * MIB)
            .with(&format!("mkswap -p {page} -L old $DISK 2>&1"))
            .bears("swap space called `old`");
    }
}

#[test]
fn an_lvm_volume_is_told() {
    Image::new(64 * MIB)
        .with_device(
            "pvcreate -y --config 'devices{use_devicesfile=0 filter=[\"a|.*|\"]} global{event_activation=0}' $DISK 2>&1",
        )
        .bears("an LVM physical volume");
}

#[test]
fn luks_is_told_in_both_versions_and_without_its_first_header() {
    let format = |version: u8| {
        Image::new(64 * MIB).with(&format!(
            "printf secret | cryptsetup luksFormat --type luks{version} --pbkdf-force-iterations 1000 $([ {version} = 2 ] && echo --pbkdf pbkdf2 --label safe) -q $DISK -"
        ))
    };
    format(1).bears("LUKS 1 encrypted data");
    format(2).bears("LUKS 2 encrypted data called `safe`");
    format(2).written(0, &[0; 4096]).bears("LUKS encrypted data");
}

#[test]
fn a_bcache_is_told() {
    Image::new(64 * MIB)
        .with_device("make-bcache -B $DISK")
        .bears("a part of a bcache");
}

#[test]
fn partition_tables_are_told_with_what_is_in_them() {
    Image::new(64 * MIB)
        .with("sgdisk -n 1:0:+8M -n 2:0:0 $DISK; truncate -s 8M swap; mkswap -q swap; dd if=swap of=$DISK bs=1M seek=1 conv=notrunc")
        .bears("a GPT partition table with 2 partitions (swap space)");
    Image::new(64 * MIB)
        .with("sgdisk -o $DISK")
        .bears("a GPT partition table without partitions");
    Image::new(64 * MIB)
        .with("echo '2048,,L' | sfdisk -q $DISK; mkfs.ext4 -q -E offset=1048576 $DISK 32M")
        .bears("an MBR partition table with 1 partition (an ext4 filesystem)");
}

#[test]
fn a_zeroed_gpt_with_a_live_backup_is_told() {
    let image = Image::new(64 * MIB)
        .with("sgdisk -n 1:0:0 $DISK")
        .written(0, &[0; 1 << 20]);
    image.bears("the backup of a GPT partition table with 1 partition");
}

/// mdadm writes superblocks only through the kernel's driver, which a build machine need not have:
/// they are made by hand here (linux/raid/md_p.h), and mdadm reads them.
#[test]
fn a_raid_is_told_in_every_version_of_its_superblock() {
    const SIZE: u64 = 64 * MIB;
    const MAGIC: [u8; 4] = [0xfc, 0x4e, 0x2b, 0xa9];
    let version_1 = |at: u64| {
        let mut block = vec![0u8; 256 + 2 * 2];
        block[..4].copy_from_slice(&MAGIC);
        block[4] = 1;
        block[16..32].copy_from_slice(&[7; 16]);
        block[32..36].copy_from_slice(b"test");
        block[72] = 1; // level
        block[80..88].copy_from_slice(&100_000u64.to_le_bytes());
        block[92] = 2; // disks
        let data = if at == 0 || at == 4096 { 2048u64 } else { 0 };
        block[128..136].copy_from_slice(&data.to_le_bytes());
        block[136..144].copy_from_slice(&100_000u64.to_le_bytes());
        block[144..152].copy_from_slice(&(at / 512).to_le_bytes());
        block[220] = 2; // roles
        block[258] = 1;
        let sum: u64 = block
            .chunks(4)
            .map(|word| u64::from(u32::from_le_bytes(word.try_into().unwrap())))
            .sum();
        let sum = (sum as u32).wrapping_add((sum >> 32) as u32);
        block[216..220].copy_from_slice(&sum.to_le_bytes());
        block
    };
    for at in [0, 4096, SIZE - 8192] {
        let image = Image::new(SIZE).written(at, &version_1(at));
        let told = crate::testing::output(Command::new("mdadm").arg("--examine").arg(image.path()));
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        assert!(
            told.contains("raid1") && !told.contains("expected"),
            "{at}: {told}"
        );
        image.bears("a part of a RAID");
    }
    let mut version_0 = vec![0u8; 4096];
    version_0[..4].copy_from_slice(&MAGIC);
    version_0[8] = 90;
    Image::new(SIZE)
        .written(SIZE - (64 << 10), &version_0)
        .bears("a part of a RAID");
    // Made by a machine of the other byte order.
    Image::new(SIZE)
        .written(SIZE - (64 << 10), &[0xa9, 0x2b, 0x4e, 0xfc])
        .bears("a part of a RAID");
}

/// A ZFS label by hand (ZFS on-disk format, chapter 1); libblkid is the judge.
#[test]
fn a_zfs_is_told_by_any_of_its_four_labels() {
    const SIZE: u64 = 64 * MIB;
    const LABEL: u64 = 256 << 10;
    for big_endian in [false, true] {
        let word = |value: u64| {
            if big_endian {
                value.to_be_bytes()
            } else {
                value.to_le_bytes()
            }
        };
        let uberblock = [word(0x00ba_b10c), word(5000), word(4), word(0), word(0)].concat();
        let ring = |image: Image, label: u64| {
            (0..8).fold(image, |image, slot| {
                image.written(label + (128 << 10) + slot * 1024, &uberblock)
            })
        };
        for label in [0, LABEL, SIZE - 2 * LABEL, SIZE - LABEL] {
            let image = ring(Image::new(SIZE), label);
            image.bears("a part of a ZFS pool");
            let told = image.by_blkid();
            assert!(told.contains("zfs_member"), "{label}: {told}");
        }
    }
}

#[test]
fn hostile_content_is_foreign_and_leads_nowhere() {
    // Tables whose numbers lead out of the disk, overflow, or go round in circles.
    let mut header = vec![0xff; 512];
    header[..8].copy_from_slice(b"EFI PART");
    for (first, count, size) in [
        (u64::MAX, u32::MAX, 128u32),
        (1, u32::MAX, 4096),
        (0, 1, u32::MAX),
        (1, 4, 0),
    ] {
        header[72..80].copy_from_slice(&first.to_le_bytes());
        header[80..84].copy_from_slice(&count.to_le_bytes());
        header[84..88].copy_from_slice(&size.to_le_bytes());
        let image = Image::new(8 * MIB).written(512, &header);
        assert!(matches!(inspect(&image.file, 8 * MIB), Content::Foreign(text) if text.contains("GPT")));
    }
    // Noise, of which every seed must be taken for something.
    let mut state = 1u64;
    for _ in 0..32 {
        let noise: Vec<u8> = (0..2 * MIB as usize)
            .map(|_| {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
                (state >> 56) as u8
            })
            .collect();
        let image = Image::new(4 * MIB).written(0, &noise).written(2 * MIB, &noise);
        assert!(matches!(inspect(&image.file, 4 * MIB), Content::Foreign(_)));
    }
}
