//! A mounted pool as the disks that it lies on: how they fare, and their coming and going.
//!
//! How often a block is kept follows from the number of disks ([`Target::for_disks`]), and is made so
//! again whenever that changes. All of it happens under running zones; what takes long tells how far it
//! is. One operation at a time: the kernel refuses a second.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{RecvTimeoutError, channel};
use std::thread;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};
use sys::btrfs_devices::{self as devices, group};

use crate::disk::{self, Content, Disk};
use crate::encryption::{Mapping, Volume, behind, close_orphans};
use crate::error::{During, Error, Result};
use crate::luks::{DATA_OFFSET, Lock, Secret};
use crate::pool::LABEL;

/// How often a running operation is asked how far it is; the kernel has no event for it.
const TICK: Duration = Duration::from_millis(500);
/// More devices than these no pool has; a damaged count ends here.
const MAX_DEVICES: u64 = 1024;
/// Written while profiles are changed, because a kind of space that does not exist has no profile.
const PROFILE_FILE: &str = ".profile";

/// Told while something takes long: what is being done, how much of it, of how much.
pub type Progress<'a> = &'a mut dyn FnMut(&str, u64, u64);

/// How often each block is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Target {
    /// Bits of [`group`].
    data: u64,
    metadata: u64,
}

impl Target {
    /// One disk: data once, metadata twice on it. Two: everything on both. More: data on two of them,
    /// metadata on three.
    pub fn for_disks(count: usize) -> Target {
        match count {
            0 | 1 => Target {
                data: group::SINGLE,
                metadata: group::DUP,
            },
            2 => Target {
                data: group::RAID1,
                metadata: group::RAID1,
            },
            _ => Target {
                data: group::RAID1,
                metadata: group::RAID1C3,
            },
        }
    }
}

/// A pool's disks and what they promise.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct State {
    /// Which filesystem it is.
    pub uuid: String,
    pub members: Vec<Member>,
    /// `single`, `dup`, `raid1`, …; several while they are being changed.
    pub data: Vec<String>,
    pub metadata: Vec<String>,
    /// How many of the disks that are there may still be lost.
    pub survives: u32,
}

/// One disk of a pool.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Member {
    /// Its number in the pool, which no other ever gets.
    pub id: u64,
    /// `vda`; none where it was not there when the pool was opened.
    pub name: Option<String>,
    /// Empty where it is not known.
    pub serial: String,
    pub missing: bool,
    pub encrypted: bool,
    /// Bytes, and those of them that are given to data or metadata.
    pub size: u64,
    pub used: u64,
    pub errors: Errors,
}

/// What has gone wrong on a disk since it joined the pool.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Errors {
    pub read: u64,
    pub write: u64,
    pub flush: u64,
    /// Blocks that came back damaged or too old.
    pub damaged: u64,
}

/// What a scrub has found.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Scrub {
    /// Seconds since 1970.
    pub started: u64,
    pub seconds: u64,
    pub disks: Vec<ScrubbedDisk>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct ScrubbedDisk {
    pub id: u64,
    pub name: Option<String>,
    /// Bytes read.
    pub bytes: u64,
    pub read_errors: u64,
    pub damaged: u64,
    pub repaired: u64,
    pub lost: u64,
    /// Why this disk was not read to its end.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub failure: Option<String>,
}

/// A mounted pool.
#[derive(Debug)]
pub struct Members {
    root: File,
    path: PathBuf,
}

impl Members {
    /// The pool that is mounted at `path`.
    pub fn open(path: &Path) -> Result<Members> {
        Ok(Members {
            root: File::open(path).during(format!("open the pool at {}", path.display()))?,
            path: path.to_owned(),
        })
    }

    pub fn state(&self) -> Result<State> {
        let what = "ask for the pool's disks";
        let filesystem = devices::filesystem(&self.root).during(what)?;
        let uuid = crate::mkfs::uuid_text(&filesystem.fsid);
        let mut members = Vec::new();
        for id in 1..=filesystem.max_id.min(MAX_DEVICES) {
            if let Some(device) = devices::device(&self.root, id).during(what)? {
                members.push(self.member(&uuid, device));
            }
        }
        let spaces = devices::spaces(&self.root).during("ask for the pool's space")?;
        let of = |kind: u64| -> Vec<u64> {
            let spaces = spaces
                .iter()
                .filter(|space| space.kind & kind != 0 && space.total > 0);
            spaces.map(|space| space.kind & group::PROFILES).collect()
        };
        let (data, metadata) = (of(group::DATA), of(group::METADATA | group::SYSTEM));
        let missing = members.iter().filter(|member| member.missing).count();
        let tolerated = data.iter().chain(&metadata).map(|profile| tolerates(*profile));
        Ok(State {
            uuid,
            members,
            survives: tolerated.min().unwrap_or(0).saturating_sub(missing as u32),
            data: names(&data),
            metadata: names(&metadata),
        })
    }

    fn member(&self, uuid: &str, device: devices::Device) -> Member {
        let marked = fs::read_to_string(format!("/sys/fs/btrfs/{uuid}/devinfo/{}/missing", device.id));
        let marked = marked.is_ok_and(|text| text.trim() == "1");
        let errors = devices::errors(&self.root, device.id).unwrap_or_default();
        let node = device
            .path
            .and_then(|path| Some(path.file_name()?.to_string_lossy().into_owned()));
        let disk = node.as_deref().and_then(behind);
        let encrypted = disk.is_some();
        let name = disk.or(node);
        // A disk that is pulled out under the pool stays its device, and only its node goes away.
        let there = name
            .as_ref()
            .is_some_and(|name| Path::new("/dev").join(name).exists());
        Member {
            id: device.id,
            serial: name.as_deref().map(disk::serial).unwrap_or_default(),
            name,
            missing: marked || !there,
            encrypted,
            size: device.size,
            used: device.used,
            errors: Errors {
                read: errors.read,
                write: errors.write,
                flush: errors.flush,
                damaged: errors.corruption.saturating_add(errors.generation),
            },
        }
    }

    /// Takes disks in, whatever they bear, and spreads the pool over them.
    ///
    /// # Errors
    /// A disk is too small, in use, or cannot be written.
    pub fn add(&self, disks: &[&Disk], progress: Progress<'_>) -> Result<()> {
        let volume = Volume::of(&self.state()?)?;
        for disk in disks {
            self.take(disk, volume.as_ref())?;
        }
        self.settle(progress)
    }

    fn take(&self, disk: &Disk, volume: Option<&Volume>) -> Result<()> {
        check_size(disk, crate::mkfs::MIN_SIZE)?;
        let disk = prepare(disk, volume)?;
        let added = devices::add(&self.root, disk.data());
        added.during(format!("add {} to the pool", disk.path.display()))
    }

    /// Moves a pool that is in memory to disks, which are encrypted if there are `locks`.
    ///
    /// # Errors
    /// As [`Members::add`]; the pool stays where it is then, or on both.
    pub fn move_to(&self, disks: &[&Disk], locks: &[(Lock, Secret)], progress: Progress<'_>) -> Result<()> {
        let before = self.state()?.members;
        let volume = if locks.is_empty() {
            None
        } else {
            Some(Volume::new(locks)?)
        };
        for disk in disks {
            self.take(disk, volume.as_ref())?;
        }
        for member in before {
            self.let_go(&member, progress)?;
        }
        devices::set_label(&self.root, LABEL).during("name the pool")?;
        self.settle(progress)
    }

    /// Moves what lies on a disk to the others and lets the disk go.
    ///
    /// # Errors
    /// It is the last one, or the others are too small.
    pub fn remove(&self, id: u64, progress: Progress<'_>) -> Result<()> {
        let state = self.state()?;
        let member = state.find(id)?;
        let left = state.members.len() - 1;
        if left == 0 {
            return Err(Error::Refused(
                "The pool has no other disk: add one, or replace this one.".to_owned(),
            ));
        }
        if state.members.iter().any(|other| other.missing && other.id != id) {
            return Err(Error::Refused(
                "Another disk of the pool is missing: replace or remove that one first.".to_owned(),
            ));
        }
        self.convert(Target::for_disks(left), progress)?;
        self.let_go(member, progress)
    }

    fn let_go(&self, member: &Member, progress: Progress<'_>) -> Result<()> {
        let id = member.id;
        let removed = watch(
            || devices::remove(&self.root, id),
            || {
                let left = devices::device(&self.root, id).ok().flatten();
                let left = left.map_or(0, |device| device.used.min(member.used));
                progress("moving data to the other disks", member.used - left, member.used);
            },
        );
        removed.during(format!("remove {} from the pool", member.told()))?;
        forget(member)
    }

    /// Puts a disk, whatever it bears, in the place of a member, missing or not.
    ///
    /// # Errors
    /// The new one is smaller, in use, or cannot be written.
    pub fn replace(&self, id: u64, disk: &Disk, progress: Progress<'_>) -> Result<()> {
        let state = self.state()?;
        let member = state.find(id)?;
        let volume = Volume::of(&state)?;
        let header = if volume.is_some() { DATA_OFFSET } else { 0 };
        check_size(disk, member.size + header)?;
        let disk = prepare(disk, volume.as_ref())?;
        let replaced = watch(
            || devices::replace(&self.root, id, disk.data(), member.missing),
            || {
                let thousandths = devices::replace_progress(&self.root).unwrap_or(0);
                progress("copying to the new disk", thousandths, 1000);
            },
        );
        let what = || format!("replace {} by {}", member.told(), disk.path.display());
        replaced.during(what())?;
        forget(member)?;
        devices::use_whole(&self.root, id).during(what())?;
        self.settle(progress)
    }

    /// Keeps every block as often as the number of disks asks for, where that is not so yet: after a
    /// change, and after a time without one of the disks. Does nothing while one is missing.
    pub fn settle(&self, progress: Progress<'_>) -> Result<()> {
        let state = self.state()?;
        if state.members.iter().any(|member| member.missing) {
            return Ok(());
        }
        if state.settled() {
            return Ok(());
        }
        self.convert(Target::for_disks(state.members.len()), progress)
    }

    fn convert(&self, target: Target, progress: Progress<'_>) -> Result<()> {
        let what = "change how often the pool keeps its data";
        self.check_room(target)?;
        let path = self.path.join(PROFILE_FILE);
        // Longer than what btrfs keeps within its metadata.
        File::create(&path)
            .and_then(|mut file| file.write_all(&[1; 8192]).and_then(|()| file.sync_all()))
            .during(what)?;
        let converted = watch(
            || devices::convert(&self.root, target.data, target.metadata),
            || {
                if let Ok(Some((done, total))) = devices::balance_progress(&self.root) {
                    progress("spreading data over the disks", done, total);
                }
            },
        );
        let removed = fs::remove_file(&path);
        converted.during(what)?;
        removed.during(what)
    }

    /// The kernel gives up a filesystem (it becomes read-only) that has no room for new block groups in
    /// the midst of this, so it is not begun without.
    fn check_room(&self, target: Target) -> Result<()> {
        let members = self.state()?.members;
        // What btrfs gives to a block group of metadata, and as much again for the small ones.
        let needed = |size: u64| (size / 10).min(1 << 30) + (64 << 20);
        let roomy = |member: &&Member| member.size.saturating_sub(member.used) >= needed(member.size);
        let copies = tolerates(target.data).max(tolerates(target.metadata)) + 1;
        if members.iter().filter(roomy).count() >= copies as usize {
            return Ok(());
        }
        Err(Error::Refused(format!(
            "The pool's disks have too little room that is not given to anything yet: its data cannot be spread anew, which needs some on {copies} of them. Remove what is no longer needed, or add a larger disk."
        )))
    }

    /// Reads everything on every disk and repairs what is damaged.
    pub fn scrub(&self, progress: Progress<'_>) -> Result<Scrub> {
        let state = self.state()?;
        let now = || SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
        let started = now();
        let total = state.members.iter().map(|member| member.used).sum();
        let there: Vec<&Member> = state.members.iter().filter(|member| !member.missing).collect();
        let (sender, receiver) = channel::<()>();
        let disks = thread::scope(|scope| {
            let running: Vec<_> = there
                .iter()
                .map(|member| {
                    let sender = sender.clone();
                    scope.spawn(move || {
                        // Dropped at the end: the channel closes when all are done.
                        let _sender = sender;
                        devices::scrub(&self.root, member.id)
                    })
                })
                .collect();
            drop(sender);
            while receiver.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
                let done = there.iter().filter_map(|member| {
                    let progress = devices::scrub_progress(&self.root, member.id).ok().flatten();
                    progress.map(|progress| progress.bytes)
                });
                progress("reading all data", done.sum(), total);
            }
            let results = running
                .into_iter()
                .map(|thread| thread.join().unwrap_or_else(|_| Err(panicked())));
            let disks = there.iter().zip(results);
            disks.map(|(member, result)| scrubbed(member, result)).collect()
        });
        Ok(Scrub {
            started: started.as_secs(),
            seconds: now().saturating_sub(started).as_secs(),
            disks,
        })
    }
}

impl State {
    fn find(&self, id: u64) -> Result<&Member> {
        let found = self.members.iter().find(|member| member.id == id);
        found.ok_or_else(|| Error::Refused(format!("The pool has no disk {id}.")))
    }

    /// True where each block is kept as often as the number of disks asks for.
    pub fn settled(&self) -> bool {
        let target = Target::for_disks(self.members.len());
        // A pool that holds no data yet has no profile for it.
        let (data, metadata) = (name(target.data), name(target.metadata));
        self.data.iter().all(|profile| *profile == data)
            && self.metadata.iter().all(|profile| *profile == metadata)
    }

    /// True where the pool is not on any disk.
    pub fn in_memory(&self) -> bool {
        let in_loop = |member: &Member| member.name.as_ref().is_some_and(|name| name.starts_with("loop"));
        self.members.iter().all(in_loop)
    }

    /// What the disks promise, in words.
    pub fn promise(&self) -> String {
        if self.in_memory() {
            return "in memory: gone when the machine goes off".to_owned();
        }
        let missing = self.members.iter().any(|member| member.missing);
        match (self.survives, missing) {
            (0, false) => "does not survive the loss of a disk".to_owned(),
            (0, true) => "does not survive the loss of another disk".to_owned(),
            (1, false) => "survives the loss of one disk".to_owned(),
            (1, true) => "survives the loss of another disk".to_owned(),
            (more, _) => format!("survives the loss of {more} disks"),
        }
    }

    /// Sentences for whoever is to do something.
    pub fn warnings(&self) -> Vec<String> {
        let mut warnings = Vec::new();
        for member in &self.members {
            if member.missing {
                warnings.push(format!(
                    "The pool's {} is missing, and the pool {}. Put in a blank disk and replace the missing one by it (`monobloc pool replace`).",
                    member.told(),
                    self.promise()
                ));
            }
            let errors = member.errors;
            if errors != Errors::default() {
                warnings.push(format!(
                    "The pool's {} had {} read errors, {} write errors and {} damaged blocks. A scrub repairs what another disk still has (`monobloc pool scrub`); if the numbers grow, replace the disk.",
                    member.told(),
                    errors.read,
                    errors.write.saturating_add(errors.flush),
                    errors.damaged
                ));
            }
        }
        let whole = self.members.iter().all(|member| !member.missing);
        if whole && !self.settled() && !self.in_memory() {
            warnings.push(format!(
                "Not everything is kept as often yet as the pool's {} disks allow, so it {}.",
                self.members.len(),
                self.promise()
            ));
        }
        warnings
    }
}

impl Member {
    /// The disk as a person would speak of it.
    pub fn told(&self) -> String {
        let disk = match &self.name {
            Some(name) => format!("disk {name}"),
            None => format!("disk number {}", self.id),
        };
        match self.serial.as_str() {
            "" => disk,
            serial => format!("{disk} (serial number {serial})"),
        }
    }
}

fn scrubbed(member: &Member, result: io::Result<devices::Scrubbed>) -> ScrubbedDisk {
    let failure = result.as_ref().err().map(ToString::to_string);
    let found = result.unwrap_or_default();
    ScrubbedDisk {
        id: member.id,
        name: member.name.clone(),
        bytes: found.bytes,
        read_errors: found.read_errors,
        damaged: found.damaged.saturating_add(found.superblock_errors),
        repaired: found.corrected,
        lost: found.uncorrectable,
        failure,
    }
}

fn check_size(disk: &Disk, minimum: u64) -> Result<()> {
    if disk.size >= minimum {
        return Ok(());
    }
    Err(Error::TooSmall {
        path: disk.path.display().to_string(),
        size: disk.size,
        minimum,
    })
}

/// Erases what a disk bears, which the caller has been told to, and encrypts it where its pool is.
fn prepare(disk: &Disk, volume: Option<&Volume>) -> Result<Disk> {
    if let Some(user) = &disk.user {
        return Err(Error::Refused(format!(
            "{} is in use ({user}) and was not written to.",
            disk.path.display()
        )));
    }
    if disk.content != Content::Blank || disk.mapping.is_some() {
        disk::wipe(disk)?;
    }
    let disk = Disk {
        mapping: None,
        ..disk.clone()
    };
    volume.map_or(Ok(disk.clone()), |volume| volume.put_on(&disk))
}

/// Makes what a disk that has left the pool bears unreadable, where it is encrypted.
fn forget(member: &Member) -> Result<()> {
    let Some(name) = member.name.as_deref().filter(|_| member.encrypted) else {
        return Ok(());
    };
    if let Some(mapping) = Mapping::of(name) {
        mapping.close()?;
    }
    close_orphans();
    match disk::list()?.into_iter().find(|disk| disk.name == name) {
        // Without its header, which has the only copy of the key.
        Some(disk) if !member.missing => disk::wipe(&disk),
        _ => Ok(()),
    }
}

/// Names of profiles (bits of [`group`]), each once.
fn names(profiles: &[u64]) -> Vec<String> {
    let mut names: Vec<String> = profiles.iter().map(|profile| name(*profile)).collect();
    names.sort();
    names.dedup();
    names
}

fn name(profile: u64) -> String {
    match profile & group::PROFILES {
        0 => "single".to_owned(),
        group::DUP => "dup".to_owned(),
        group::RAID1 => "raid1".to_owned(),
        group::RAID1C3 => "raid1c3".to_owned(),
        other => format!("profile {other:#x}"),
    }
}

/// How many disks a profile may lose.
fn tolerates(profile: u64) -> u32 {
    match profile & group::PROFILES {
        group::RAID1 => 1,
        group::RAID1C3 => 2,
        _ => 0,
    }
}

fn panicked() -> io::Error {
    io::Error::other("its thread has panicked")
}

/// Runs what takes long on a thread of its own, and calls `tick` meanwhile.
fn watch<T: Send>(work: impl FnOnce() -> io::Result<T> + Send, mut tick: impl FnMut()) -> io::Result<T> {
    thread::scope(|scope| {
        let (sender, receiver) = channel::<()>();
        let running = scope.spawn(move || {
            // Dropped at the end, which closes the channel.
            let _sender = sender;
            work()
        });
        while receiver.recv_timeout(TICK) == Err(RecvTimeoutError::Timeout) {
            tick();
        }
        running.join().unwrap_or_else(|_| Err(panicked()))
    })
}
