//! The filesystem under the store: found, made, mounted.
//!
//! A pool is a whole disk with the project's own btrfs on it, told by its label. Where there is none
//! and none may be claimed, it is a sparse file on a tmpfs behind a loop device: the same code above,
//! and gone with the power.

use std::fs::{self, File};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MountFlags, MoveMountFlags, UnmountFlags, fsconfig_create,
    fsconfig_set_flag, fsconfig_set_string, fsmount, fsopen, mount, move_mount, unmount,
};
use sys::loopdev::LoopDevice;

use crate::disk::{self, Content, Disk, Membership};
use crate::encryption::{Keys, Protection, Unlocking, Volume};
use crate::error::{During, Error, Result};
use crate::members::Members;
use crate::mkfs;

/// Labels of pools begin with this.
pub(crate) const LABEL: &str = "monobloc";
/// Where the tmpfs of a pool in memory is mounted.
const MEMORY_DIR: &str = "/run/monobloc/memory";
const MOUNTS: &str = "/proc/self/mountinfo";
/// How long a disk of a pool may take to be found once others of it are there.
const SLOW_DISKS: Duration = Duration::from_secs(10);
/// A kernel that has found no device of any kind for so long has found all of them, as far as one can tell:
/// a pool that can do without the disk that it lacks does not wait for it any longer. Drivers look for
/// their devices while they are loaded, which has been waited for.
const AT_REST: Duration = Duration::from_millis(1500);
const MEMORY_FILE: &str = "pool";

/// A mounted pool; it stays mounted when this is dropped.
#[derive(Debug)]
pub struct Pool {
    path: PathBuf,
}

/// What may become the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Policy {
    /// The wholly blank disks may be formatted where no disk is a pool.
    pub claim_blank: bool,
    /// How disks that are formatted are encrypted, if they are.
    pub encryption: Option<Protection>,
    /// No disk is looked at.
    pub memory_only: bool,
    /// Bytes that a pool in memory may grow to; half of the memory where `None`.
    pub memory_size: Option<u64>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Kind {
    Disks {
        names: Vec<String>,
        /// Bytes of all of them.
        size: u64,
        formatted_now: bool,
    },
    Memory {
        size: u64,
    },
}

/// The outcome of [`Pool::choose`].
#[derive(Debug)]
pub struct Opened {
    pub pool: Pool,
    pub kind: Kind,
    /// Sentences for the console: what was passed over, and why.
    pub notes: Vec<String>,
}

impl Policy {
    /// Encrypts the first disk of a new pool, if disks are to be encrypted.
    fn prepare(&self, disk: &Disk, keys: &dyn Keys) -> Result<Disk> {
        let Some(protection) = self.encryption else {
            return Ok(disk.clone());
        };
        keys.prepare().map_err(Error::Refused)?;
        let lock = keys.make(protection).map_err(Error::Refused)?;
        Volume::new(&[lock])?.put_on(disk)
    }
}

impl Pool {
    /// Writes an empty pool to `device`, whatever it bears: the caller has asked [`disk::list`].
    pub fn format(device: &Path, label: &str) -> Result<()> {
        mkfs::write(device, label)
    }

    /// Mounts the pool on `device` at `at` (created if missing).
    pub fn mount(device: &Path, at: &Path) -> Result<Pool> {
        Pool::mount_with(device, at, false)
    }

    /// The same; `degraded` allows devices of the pool to be missing.
    fn mount_with(device: &Path, at: &Path, degraded: bool) -> Result<Pool> {
        let what = format!("mount the pool on {} at {}", device.display(), at.display());
        fs::create_dir_all(at).during(&what)?;
        let context = fsopen("btrfs", FsOpenFlags::FSOPEN_CLOEXEC).during(&what)?;
        let fs = context.as_fd();
        fsconfig_set_string(fs, "source", device).during(&what)?;
        fsconfig_set_string(fs, "space_cache", "v2").during(&what)?;
        if degraded {
            fsconfig_set_flag(fs, "degraded").during(&what)?;
        }
        fsconfig_create(fs).during(&what)?;
        // Nothing of the pool is run or opened as a device through this mount; zones get their own.
        let attributes = MountAttrFlags::MOUNT_ATTR_NOATIME
            | MountAttrFlags::MOUNT_ATTR_NODEV
            | MountAttrFlags::MOUNT_ATTR_NOSUID;
        let mounted = fsmount(fs, FsMountFlags::FSMOUNT_CLOEXEC, attributes).during(&what)?;
        attach(mounted.as_fd(), at).during(&what)?;
        Ok(Pool { path: at.to_owned() })
    }

    /// Mounts a pool of several devices, without those of them that are missing where it must be.
    pub(crate) fn mount_members(members: &[&Disk], at: &Path) -> Result<Pool> {
        for member in members {
            sys::btrfs_devices::scan(member.data())
                .during(format!("tell the kernel of {}", member.path.display()))?;
        }
        // The first is the one that was written to last.
        let newest = members
            .first()
            .ok_or_else(|| Error::Refused("The pool has no disk.".to_owned()))?;
        Pool::mount(newest.data(), at).or_else(|reason| {
            // The first refusal is the one that tells; the second only says that this is no way either.
            Pool::mount_with(newest.data(), at, true).map_err(|_| reason)
        })
    }

    fn take_in(&self, disks: &[Disk]) -> Result<()> {
        if disks.is_empty() {
            return Ok(());
        }
        let disks: Vec<&Disk> = disks.iter().collect();
        Members::open(&self.path)?.add(&disks, &mut |_, _, _| {})
    }

    /// A new pool in a sparse file of `size` bytes in `dir` (on a tmpfs), mounted at `at`.
    pub fn in_memory(dir: &Path, size: u64, at: &Path) -> Result<Pool> {
        let path = dir.join(MEMORY_FILE);
        let what = format!("make a pool in memory at {}", path.display());
        fs::create_dir_all(dir).during(&what)?;
        let file = File::options()
            .read(true)
            .write(true)
            .create(true)
            .truncate(true)
            .open(&path)
            .during(&what)?;
        file.set_len(size).during(&what)?;
        let filled = (|| {
            mkfs::write(&path, &format!("{LABEL}-memory"))?;
            let device = LoopDevice::attach(&file).during(&what)?;
            Pool::mount(device.path(), at)
        })();
        // The loop device holds the file; without its name the memory is free after the unmount.
        fs::remove_file(&path).during(&what)?;
        filled
    }

    /// Takes a disk that is a pool already, else as `policy` allows a blank one, else memory. Encrypted
    /// ones are opened with what `keys` has.
    pub fn choose(policy: Policy, keys: &dyn Keys, at: &Path) -> Result<Opened> {
        // A supervisor that follows another finds the pool as that has left it.
        if let Some(kind) = mounted_already(at)? {
            return Ok(Opened {
                pool: Pool { path: at.to_owned() },
                kind,
                notes: Vec::new(),
            });
        }
        let mut notes = Vec::new();
        if !policy.memory_only {
            let mut joining: Vec<Disk> = Vec::new();
            let mut unlocking = Unlocking::new(keys);
            let mut patience = Patience {
                quiet: AT_REST,
                limit: SLOW_DISKS,
            };
            let found = loop {
                let (disks, whole) = complete_list(patience, &mut unlocking)?;
                notes.clear();
                let failed = unlocking.failed.iter();
                notes.extend(failed.map(|(name, why)| format!("/dev/{name} was passed over. {why}")));
                let found = claim(&disks, policy.claim_blank, &mut notes, &mut |disks, format| {
                    let Some((first, others)) = disks.split_first() else {
                        return Err(Error::Refused("There is no disk.".to_owned()));
                    };
                    if format {
                        let first = policy.prepare(first, keys)?;
                        Pool::format(first.data(), LABEL)?;
                        joining = others.iter().map(|disk| (*disk).clone()).collect();
                        return Pool::mount(first.data(), at);
                    }
                    Pool::mount_members(disks, at)
                });
                if found.is_some() || whole || patience.quiet == SLOW_DISKS {
                    break found;
                }
                // It cannot do without the one that it lacks.
                patience.quiet = SLOW_DISKS;
            };
            if let Some((pool, _)) = &found
                && let Err(reason) = pool.take_in(&joining)
            {
                notes.push(reason.to_string());
            }
            if let Some((pool, kind)) = found {
                return Ok(Opened { pool, kind, notes });
            }
        }
        let size = match policy.memory_size {
            Some(size) => size,
            None => (memory_bytes()? / 2).max(mkfs::MIN_SIZE),
        };
        let dir = Path::new(MEMORY_DIR);
        let what = "mount a tmpfs for the pool in memory";
        fs::create_dir_all(dir).during(what)?;
        let options = std::ffi::CString::new(format!("mode=0700,size={size}"))
            .map_err(|reason| Error::io(what, reason))?;
        let flags = MountFlags::NODEV | MountFlags::NOSUID | MountFlags::NOEXEC;
        mount("tmpfs", dir, "tmpfs", flags, Some(options.as_c_str())).during(what)?;
        let pool = Pool::in_memory(dir, size, at)?;
        Ok(Opened {
            pool,
            kind: Kind::Memory { size },
            notes,
        })
    }

    /// Where it is mounted.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Flushes and unmounts.
    pub fn unmount(self) -> Result<()> {
        // The node's tree is a mount of its own where zones share mounts in it.
        let _ = unmount(self.path.join(crate::volume::HOST), UnmountFlags::DETACH);
        unmount(&self.path, UnmountFlags::empty())
            .during(format!("unmount the pool at {}", self.path.display()))
    }
}

pub(crate) fn attach(mounted: std::os::fd::BorrowedFd<'_>, at: &Path) -> rustix::io::Result<()> {
    move_mount(
        mounted,
        "",
        rustix::fs::CWD,
        at,
        MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH,
    )
}

/// What is mounted at `at`, where that is a btrfs.
fn mounted_already(at: &Path) -> Result<Option<Kind>> {
    let what = format!("find out what is mounted at {}", at.display());
    let text = fs::read_to_string(MOUNTS).during(&what)?;
    let Some(source) = text.lines().rev().find_map(|line| btrfs_source(line, at)) else {
        return Ok(None);
    };
    let device = File::open(source).during(&what)?;
    let size = sys::block::size(&device).during(&what)?;
    if source.starts_with("/dev/loop") {
        return Ok(Some(Kind::Memory { size }));
    }
    let members = Members::open(at)?.state()?.members;
    Ok(Some(Kind::Disks {
        size: members.iter().map(|member| member.size).sum(),
        names: members.into_iter().filter_map(|member| member.name).collect(),
        formatted_now: false,
    }))
}

/// The device of a line of mountinfo (`proc(5)`) that mounts a btrfs at `at`.
fn btrfs_source<'a>(line: &'a str, at: &Path) -> Option<&'a str> {
    let (mount, filesystem) = line.split_once(" - ")?;
    let mut fields = filesystem.split(' ');
    let here = Path::new(mount.split(' ').nth(4)?) == at;
    let btrfs = fields.next()? == "btrfs";
    fields.next().filter(|_| here && btrfs)
}

/// How long disks that a pool lacks are waited for.
#[derive(Debug, Clone, Copy)]
struct Patience {
    /// Since the last device was found.
    quiet: Duration,
    /// In all.
    limit: Duration,
}

/// All disks, waited for until every pool that has one here has all of its own, or patience is at its end;
/// and whether they have.
fn complete_list(patience: Patience, unlocking: &mut Unlocking<'_>) -> Result<(Vec<Disk>, bool)> {
    let mut last = Instant::now();
    let mut deadline = last + patience.limit;
    let changes = disk::Changes::watch()?;
    loop {
        let mut disks = disk::list()?;
        if unlocking.open_all(&disks) {
            disks = disk::list()?;
            // A person may have been waited for.
            last = Instant::now();
            deadline = last + patience.limit;
        }
        let whole = groups(&disks).iter().all(|group| {
            let expected = group
                .first()
                .and_then(|disk| Some(member(disk)?.devices))
                .unwrap_or(0);
            group.len() as u64 >= expected
        });
        let names = disk::names()?;
        loop {
            if whole || !changes.wait_for_any(deadline.min(last + patience.quiet))? {
                return Ok((disks, whole));
            }
            last = Instant::now();
            // Not everything that is found is a disk.
            if disk::names()? != names {
                break;
            }
        }
    }
}

fn member(disk: &Disk) -> Option<&Membership> {
    match &disk.content {
        Content::Pool(member) => Some(member),
        _ => None,
    }
}

/// The disks of each pool, the last written first.
fn groups(disks: &[Disk]) -> Vec<Vec<&Disk>> {
    let mut groups: Vec<(&str, Vec<&Disk>)> = Vec::new();
    for disk in disks {
        let Some(uuid) = member(disk).map(|member| member.uuid.as_str()) else {
            continue;
        };
        match groups.iter_mut().find(|(other, _)| *other == uuid) {
            Some((_, group)) => group.push(disk),
            None => groups.push((uuid, vec![disk])),
        }
    }
    for (_, group) in &mut groups {
        group.sort_by_key(|disk| std::cmp::Reverse(member(disk).map(|member| member.generation)));
    }
    groups.into_iter().map(|(_, group)| group).collect()
}

/// Tries the disks that are pools, then (where allowed) the blank ones. A pool that does not
/// mount rules the blank disks out: its owner would find a new and empty store in place of his own.
fn claim<T>(
    disks: &[Disk],
    claim_blank: bool,
    notes: &mut Vec<String>,
    take: &mut dyn FnMut(&[&Disk], bool) -> Result<T>,
) -> Option<(T, Kind)> {
    let told = |disks: &[&Disk]| -> String {
        let paths: Vec<String> = disks.iter().map(|disk| disk.path.display().to_string()).collect();
        paths.join(", ")
    };
    let kind = |disks: &[&Disk], formatted_now| Kind::Disks {
        names: disks.iter().map(|disk| disk.name.clone()).collect(),
        size: disks.iter().map(|disk| disk.size).sum(),
        formatted_now,
    };
    let foreign = disks.iter().filter_map(|disk| match &disk.content {
        Content::Foreign(what) => Some((disk, what)),
        _ => None,
    });
    notes.extend(
        foreign.map(|(disk, what)| format!("{} was passed over: it bears {what}.", disk.path.display())),
    );
    let mut pool_failed = disks.iter().any(|disk| disk.content == Content::Encrypted);
    for group in groups(disks) {
        match take(&group, false) {
            Ok(taken) => return Some((taken, kind(&group, false))),
            Err(reason) => {
                pool_failed = true;
                notes.push(format!("{} was passed over. {reason}", told(&group)));
            }
        }
    }
    let usable = |disk: &&Disk| {
        disk.content == Content::Blank
            && !disk.read_only
            && !disk.removable
            && !disk.boot
            && disk.size >= mkfs::MIN_SIZE
    };
    let blank: Vec<&Disk> = disks.iter().filter(usable).collect();
    if blank.is_empty() {
        return None;
    }
    if !claim_blank || pool_failed {
        let (verb, why) = (
            if blank.len() == 1 { "is" } else { "are" },
            if claim_blank {
                ", because a disk that is a pool could not be used"
            } else {
                ""
            },
        );
        let was = if blank.len() == 1 { "was" } else { "were" };
        notes.push(format!(
            "{} {verb} blank and {was} not claimed{why}.",
            told(&blank)
        ));
        return None;
    }
    match take(&blank, true) {
        Ok(taken) => Some((taken, kind(&blank, true))),
        Err(reason) => {
            notes.push(format!("{} was passed over. {reason}", told(&blank)));
            None
        }
    }
}

fn memory_bytes() -> Result<u64> {
    let what = "ask for the size of the memory";
    let text = fs::read_to_string("/proc/meminfo").during(what)?;
    let kilobytes = text
        .lines()
        .find_map(|line| line.strip_prefix("MemTotal:"))
        .and_then(|rest| rest.trim().strip_suffix("kB"))
        .and_then(|number| number.trim().parse::<u64>().ok())
        .ok_or_else(|| Error::io(what, std::io::Error::from(std::io::ErrorKind::InvalidData)))?;
    Ok(kilobytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::testing::{NoKeys, TestPool};

    fn disk(name: &str, content: Content) -> Disk {
        Disk {
            path: Path::new("/dev").join(name),
            name: name.to_owned(),
            size: 1 << 30,
            model: String::new(),
            serial: String::new(),
            bus: String::new(),
            boot: false,
            user: None,
            mapping: None,
            read_only: false,
            removable: false,
            content,
        }
    }

    fn pool_disk(name: &str) -> Disk {
        pool_member(name, "a", 1)
    }

    fn pool_member(name: &str, uuid: &str, generation: u64) -> Disk {
        let member = Membership {
            uuid: uuid.to_owned(),
            label: LABEL.to_owned(),
            generation,
            devices: 1,
            device: 1,
        };
        disk(name, Content::Pool(member))
    }

    fn chosen(disks: &[Disk], claim_blank: bool) -> Option<(String, bool)> {
        claim(disks, claim_blank, &mut Vec::new(), &mut |disks, format| {
            let names: Vec<&str> = disks.iter().map(|disk| disk.name.as_str()).collect();
            Ok((names.join(" "), format))
        })
        .map(|(taken, _)| taken)
    }

    #[test]
    fn the_disks_of_one_pool_are_taken_together_and_blank_ones_all() {
        let disks = [
            pool_member("vda", "a", 5),
            pool_member("vdb", "b", 9),
            pool_member("vdc", "a", 7),
            disk("vdd", Content::Blank),
            disk("vde", Content::Blank),
        ];
        assert_eq!(chosen(&disks, true), Some(("vdc vda".to_owned(), false)));
        assert_eq!(chosen(&disks[3..], true), Some(("vdd vde".to_owned(), true)));
    }

    #[test]
    fn a_pool_goes_before_a_blank_disk_and_nothing_foreign_is_taken() {
        let foreign = disk("vda", Content::Foreign("ext4".to_owned()));
        let blank = disk("vdb", Content::Blank);
        let disks = [foreign.clone(), blank.clone(), pool_disk("vdc")];
        assert_eq!(chosen(&disks, true), Some(("vdc".to_owned(), false)));
        assert_eq!(chosen(&disks[..2], true), Some(("vdb".to_owned(), true)));
        assert_eq!(chosen(&disks[..2], false), None);
        assert_eq!(chosen(&[foreign], true), None);
        let removable = Disk {
            removable: true,
            ..blank.clone()
        };
        assert_eq!(
            chosen(
                &[
                    removable,
                    Disk {
                        boot: true,
                        ..blank.clone()
                    },
                    Disk {
                        read_only: true,
                        ..blank
                    }
                ],
                true
            ),
            None
        );
    }

    #[test]
    fn no_blank_disk_is_claimed_beside_a_pool_that_fails() {
        let disks = [pool_disk("vda"), disk("vdb", Content::Blank)];
        let mut notes = Vec::new();
        let taken = claim(&disks, true, &mut notes, &mut |disks, _| match disks[0].content {
            Content::Blank => Ok(()),
            _ => Err(Error::io(
                "mount",
                std::io::Error::from(std::io::ErrorKind::InvalidData),
            )),
        });
        assert!(taken.is_none());
        assert!(
            notes[1].contains("/dev/vdb is blank and was not claimed"),
            "{notes:?}"
        );
    }

    #[test]
    fn a_pool_in_memory_takes_files_and_its_memory_is_given_back() {
        let dir = tempfile::tempdir_in("/dev/shm").unwrap();
        let at = dir.path().join("mount");
        let pool = Pool::in_memory(&dir.path().join("file"), 256 << 20, &at).unwrap();
        fs::write(at.join("a"), "kept").unwrap();
        assert_eq!(fs::read_to_string(at.join("a")).unwrap(), "kept");
        pool.unmount().unwrap();
        assert_eq!(fs::read_dir(dir.path().join("file")).unwrap().count(), 0);
    }

    #[test]
    fn a_pool_that_is_mounted_already_is_taken_over() {
        let pool = TestPool::new(256 << 20);
        let opened = Pool::choose(
            Policy {
                memory_only: true,
                ..Policy::default()
            },
            &NoKeys,
            &pool.path(),
        )
        .unwrap();
        assert_eq!(opened.kind, Kind::Memory { size: 256 << 20 });
        let at = Path::new("/pool");
        let line = |place: &str, kind: &str| {
            format!("36 35 0:40 / {place} rw,noatime shared:1 - {kind} /dev/vda rw,subvol=/")
        };
        assert_eq!(btrfs_source(&line("/pool", "btrfs"), at), Some("/dev/vda"));
        assert_eq!(btrfs_source(&line("/pool", "ext4"), at), None);
        assert_eq!(btrfs_source(&line("/pool/store/mount", "btrfs"), at), None);
    }

    #[test]
    fn btrfs_check_finds_no_fault_after_the_kernel_has_used_the_filesystem() {
        let mut pool = TestPool::new(256 << 20);
        fs::write(pool.path().join("a"), vec![7; 1 << 20]).unwrap();
        pool.unmount();
        pool.mount();
        assert_eq!(fs::read(pool.path().join("a")).unwrap().len(), 1 << 20);
        pool.unmount();
        let check =
            crate::testing::output(std::process::Command::new("btrfs").arg("check").arg(pool.image()));
        let text = String::from_utf8_lossy(&check.stderr).into_owned();
        assert!(check.status.success(), "{text}");
        assert!(!text.to_lowercase().contains("warning"), "{text}");
    }
}
