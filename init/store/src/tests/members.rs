//! Pools over several disks: loop devices over sparse files, by this machine's own kernel.

use std::fs::{self, File};
use std::path::PathBuf;

use sys::loopdev::LoopDevice;

use crate::disk::{self, Content, Disk};
use crate::members::Members;
use crate::pool::{LABEL, Pool};
use crate::{mkfs, testing};

const MIB: u64 = 1 << 20;

/// Disks that are loop devices, and a pool that is mounted over some of them.
struct Bench {
    dir: tempfile::TempDir,
    devices: Vec<LoopDevice>,
    pool: Option<Pool>,
}

impl Bench {
    /// As many disks as there are sizes, and a pool on the first.
    fn new(sizes: &[u64]) -> Bench {
        let dir = tempfile::tempdir().unwrap();
        let mut bench = Bench {
            dir,
            devices: Vec::new(),
            pool: None,
        };
        for (index, size) in sizes.iter().enumerate() {
            let path = bench.image(index);
            File::create(&path).unwrap().set_len(*size).unwrap();
            bench.devices.push(attach(&path));
        }
        let first = bench.devices[0].path().to_owned();
        mkfs::write(&first, LABEL).unwrap();
        bench.pool = Some(Pool::mount(&first, &bench.at()).unwrap());
        bench
    }

    fn image(&self, index: usize) -> PathBuf {
        self.dir.path().join(format!("disk{index}"))
    }

    fn at(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    fn members(&self) -> Members {
        Members::open(&self.at()).unwrap()
    }

    fn disk(&self, index: usize) -> Disk {
        let device = &self.devices[index];
        let size = sys::block::size(device.file()).unwrap();
        Disk {
            path: device.path().to_owned(),
            name: device.path().file_name().unwrap().to_string_lossy().into_owned(),
            size,
            model: String::new(),
            serial: String::new(),
            bus: String::new(),
            read_only: false,
            removable: false,
            boot: false,
            mapping: None,
            user: None,
            content: disk::inspect(device.file(), size),
        }
    }

    fn unmount(&mut self) {
        if let Some(pool) = self.pool.take() {
            let _turn = testing::turn();
            pool.unmount().unwrap();
        }
    }

    /// Mounts the pool anew from these disks alone, as a boot does that finds only them.
    fn remount(&mut self, indexes: &[usize]) {
        self.unmount();
        let present: Vec<PathBuf> = indexes.iter().map(|index| self.image(*index)).collect();
        {
            let _turn = testing::turn();
            self.devices.clear();
        }
        // The kernel remembers devices that it has seen; they are gone with their loop devices.
        self.devices = present.iter().map(|path| attach(path)).collect();
        let disks: Vec<Disk> = (0..indexes.len()).map(|index| self.disk(index)).collect();
        let members = disks
            .iter()
            .filter(|disk| matches!(disk.content, Content::Pool(_)));
        let disks: Vec<&Disk> = members.collect();
        self.pool = Some(Pool::mount_members(&disks, &self.at()).unwrap());
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let _turn = testing::turn();
            if let Err(reason) = pool.unmount() {
                eprintln!("{reason}");
            }
        }
    }
}

fn attach(path: &std::path::Path) -> LoopDevice {
    let file = File::options().read(true).write(true).open(path).unwrap();
    LoopDevice::attach(&file).expect("Cannot attach a loop device")
}

fn silent() -> impl FnMut(&str, u64, u64) {
    |_, _, _| {}
}

/// Bytes that no compression or zero detection makes less.
fn noise(len: usize) -> Vec<u8> {
    let mut state = 7u64;
    let next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
        (state >> 56) as u8
    };
    std::iter::repeat_with(next).take(len).collect()
}

#[test]
fn a_pool_keeps_more_copies_with_every_disk_and_fewer_again() {
    let bench = Bench::new(&[2048 * MIB; 3]);
    let members = bench.members();
    let content = noise(8 * MIB as usize);
    fs::write(bench.at().join("file"), &content).unwrap();
    let told = || {
        let state = members.state().unwrap();
        (state.data.join(" "), state.metadata.join(" "), state.promise())
    };
    let words = |data: &str, metadata: &str, promise: &str| {
        (data.to_owned(), metadata.to_owned(), promise.to_owned())
    };
    let state = members.state().unwrap();
    assert_eq!((state.members.len(), state.survives), (1, 0));
    assert!(state.warnings().is_empty());
    members.add(&[&bench.disk(1)], &mut silent()).unwrap();
    let two = members.state().unwrap();
    assert_eq!(
        (two.data.as_slice(), two.survives),
        (["raid1".to_owned()].as_slice(), 1)
    );
    members.add(&[&bench.disk(2)], &mut silent()).unwrap();
    assert_eq!(told().0, words("raid1", "raid1c3", "").0);
    assert_eq!(told().1, "raid1c3");
    for (left, data, metadata, survives) in [(2, "raid1", "raid1", 1), (1, "single", "dup", 0)] {
        let last = members.state().unwrap().members.last().unwrap().id;
        members.remove(last, &mut silent()).unwrap();
        let state = members.state().unwrap();
        assert_eq!(state.members.len(), left);
        assert_eq!(
            (told().0.as_str(), told().1.as_str(), state.survives),
            (data, metadata, survives)
        );
    }
    let refusal = members.remove(1, &mut silent()).unwrap_err().to_string();
    assert!(refusal.contains("no other disk"), "{refusal}");
    assert_eq!(fs::read(bench.at().join("file")).unwrap(), content);
    // A disk that was let go bears nothing of the pool any more.
    assert!(!matches!(bench.disk(2).content, Content::Pool(_)));
}

#[test]
fn a_pool_without_one_of_its_disks_goes_on_and_takes_a_blank_one_in_its_place() {
    let mut bench = Bench::new(&[4096 * MIB, 4096 * MIB, 4200 * MIB]);
    let content = noise(8 * MIB as usize);
    bench.members().add(&[&bench.disk(1)], &mut silent()).unwrap();
    fs::write(bench.at().join("before"), &content).unwrap();
    bench.remount(&[0, 2]);
    let state = bench.members().state().unwrap();
    assert_eq!((state.members.len(), state.survives), (2, 0));
    let warnings = state.warnings();
    assert!(
        warnings[0].contains("is missing")
            && warnings[0].contains("does not survive the loss of another disk"),
        "{warnings:?}"
    );
    fs::write(bench.at().join("without"), &content).unwrap();
    let missing = state.members.iter().find(|member| member.missing).unwrap().id;
    let blank = bench.disk(1);
    bench.members().replace(missing, &blank, &mut silent()).unwrap();
    let state = bench.members().state().unwrap();
    assert_eq!(
        (state.data.join(" "), state.metadata.join(" "), state.survives),
        ("raid1".into(), "raid1".into(), 1)
    );
    assert!(state.warnings().is_empty(), "{:?}", state.warnings());
    assert_eq!(state.members[1].size, 4200 * MIB);
    // The new disk alone has everything.
    bench.remount(&[2]);
    for name in ["before", "without"] {
        assert_eq!(fs::read(bench.at().join(name)).unwrap(), content);
    }
}

#[test]
fn a_scrub_repairs_what_was_overwritten_and_counts_it() {
    use std::os::unix::fs::FileExt;
    let mut bench = Bench::new(&[512 * MIB, 512 * MIB]);
    bench.members().add(&[&bench.disk(1)], &mut silent()).unwrap();
    let content = noise(16 * MIB as usize);
    fs::write(bench.at().join("file"), &content).unwrap();
    bench.unmount();
    let image = File::options().write(true).open(bench.image(1)).unwrap();
    // All but the first superblock, by which the disk is known.
    image.write_all_at(&noise(300 * MIB as usize), MIB).unwrap();
    bench.remount(&[0, 1]);
    let report = bench.members().scrub(&mut silent()).unwrap();
    let second = report.disks.iter().find(|disk| disk.id == 2).unwrap();
    assert!(
        second.repaired > 0 && second.lost == 0 && second.failure.is_none(),
        "{report:?}"
    );
    let again = bench.members().scrub(&mut silent()).unwrap();
    assert!(again.disks.iter().all(|disk| disk.damaged == 0), "{again:?}");
    bench.remount(&[1]);
    assert_eq!(fs::read(bench.at().join("file")).unwrap(), content);
}

#[test]
fn a_pool_moves_to_disks_under_its_users() {
    let bench = Bench::new(&[256 * MIB, 512 * MIB, 512 * MIB]);
    let open = File::create(bench.at().join("file")).unwrap();
    fs::write(bench.at().join("file"), b"kept").unwrap();
    let (one, two) = (bench.disk(1), bench.disk(2));
    bench
        .members()
        .move_to(&[&one, &two], &[], &mut silent())
        .unwrap();
    drop(open);
    let state = bench.members().state().unwrap();
    let names: Vec<Option<String>> = state.members.iter().map(|member| member.name.clone()).collect();
    assert_eq!(names, [Some(one.name), Some(two.name)]);
    assert_eq!(state.survives, 1);
    assert_eq!(fs::read(bench.at().join("file")).unwrap(), b"kept");
    assert!(
        matches!(bench.disk(1).content, Content::Pool(member) if member.label == LABEL && member.devices == 2)
    );
}

#[test]
fn a_disk_that_is_too_small_or_in_use_is_not_written() {
    let bench = Bench::new(&[512 * MIB, 64 * MIB, 512 * MIB]);
    let small = bench.disk(1);
    assert!(bench.members().add(&[&small], &mut silent()).is_err());
    let used = Disk {
        user: Some("data in use".to_owned()),
        ..bench.disk(2)
    };
    let refusal = bench
        .members()
        .add(&[&used], &mut silent())
        .unwrap_err()
        .to_string();
    assert!(refusal.contains("was not written to"), "{refusal}");
    assert_eq!(
        (bench.disk(1).content, bench.disk(2).content),
        (Content::Blank, Content::Blank)
    );
}

#[test]
fn what_a_disk_bore_is_not_found_again_once_it_is_taken() {
    let bench = Bench::new(&[512 * MIB, 512 * MIB]);
    tools::need(&["gdisk"]);
    let made = testing::output(
        std::process::Command::new("sgdisk")
            .args(["-n", "1:0:0"])
            .arg(bench.image(1)),
    );
    assert!(made.status.success());
    let disk = bench.disk(1);
    assert!(
        matches!(&disk.content, Content::Foreign(what) if what.contains("GPT")),
        "{disk:?}"
    );
    bench.members().add(&[&disk], &mut silent()).unwrap();
    let id = bench.members().state().unwrap().members[1].id;
    bench.members().remove(id, &mut silent()).unwrap();
    let told = testing::output(std::process::Command::new("blkid").arg("-p").arg(bench.image(1)));
    assert!(told.stdout.is_empty(), "{told:?}");
}
