//! Bounds on what is held: quota groups of the pool's file system (`sys::btrfs_quota`).
//!
//! ```text
//! 1/ID   a volume with a limit, and the subvolumes that zones make in it; or a root with one that was
//!        rolled back, with what was its subvolume before
//! 0/ID   each subvolume; a zone's root has its limit here
//! ```
//! The kernel refuses what goes over a bound to whoever writes it, and to nobody else. An extent counts for
//! the subvolume in which it was written, as long as anything has it: what only a snapshot still has counts
//! for the zone or volume that the snapshot is of.
//!
//! A group goes with its subvolume, but not before the last extent that was written in it, which a
//! snapshot of it may still have: what is left then is removed when the store is opened.

use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use sys::btrfs;
use sys::btrfs_devices as devices;
use sys::btrfs_quota::{self as quota, Group};

use crate::error::{During, Error, Result};
use crate::folder;
use crate::mkfs;

/// Level of the groups of volumes.
const VOLUME: u16 = 1;
/// What overlayfs needs to begin, whatever a root holds.
const SLACK: u64 = 8 << 20;
/// The least limit: the file system's own records of an empty root or volume fit in.
pub const LEAST_LIMIT: u64 = 1 << 20;

/// What is held, and what may be; in bytes, of data and of the file system's records of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Held {
    /// With what is still on its way to the disk.
    pub used: u64,
    pub limit: Option<u64>,
}

/// The quotas of a pool, or none: everything works without, and nothing is bounded.
#[derive(Debug)]
pub(crate) struct Quotas {
    root: OwnedFd,
    /// Where the kernel shows one folder a group; else why it does not count.
    groups: Result<PathBuf, String>,
}

impl Quotas {
    /// Begins to count in the pool whose top is open as `root`.
    pub(crate) fn open(root: &OwnedFd) -> Result<Quotas> {
        let quotas = Quotas {
            root: root.try_clone().during("open the pool")?,
            groups: Err(String::new()),
        };
        let groups = quotas.begin().map_err(|reason| {
            let why = match Errno::from_io_error(&reason) {
                Some(Errno::INVAL | Errno::NOTTY | Errno::OPNOTSUPP) => {
                    "the kernel has no simple quotas of btrfs (Linux has them since 6.7)".to_owned()
                }
                _ => reason.to_string(),
            };
            format!("Nothing bounds what containers and volumes hold: {why}.")
        });
        Ok(Quotas { groups, ..quotas })
    }

    fn begin(&self) -> io::Result<PathBuf> {
        quota::enable(&self.root)?;
        let uuid = mkfs::uuid_text(&devices::filesystem(&self.root)?.fsid);
        Ok(PathBuf::from(format!("/sys/fs/btrfs/{uuid}/qgroups")))
    }

    /// The sentence that says why there are no quotas, where there are none.
    pub(crate) fn missing(&self) -> Option<&str> {
        self.groups.as_ref().err().map(String::as_str)
    }

    /// Checks a limit that somebody asks for.
    ///
    /// # Errors
    /// There are no quotas, or nothing fits in.
    pub(crate) fn check(&self, limit: Option<u64>) -> Result<()> {
        match (limit, &self.groups) {
            (Some(_), Err(why)) => Err(Error::NoQuotas { why: why.clone() }),
            (Some(limit), Ok(_)) if limit < LEAST_LIMIT => Err(Error::LimitTooSmall { limit }),
            _ => Ok(()),
        }
    }

    /// Makes an empty subvolume. The limit does not hold for subvolumes in it.
    pub(crate) fn create(&self, dir: &OwnedFd, name: &str, limit: Option<u64>) -> io::Result<()> {
        btrfs::create_subvolume(dir, name)?;
        if limit.is_none() || self.groups.is_err() {
            return Ok(());
        }
        let id = quota::subvolume_id(folder::open(dir, name)?)?;
        quota::set_limit(&self.root, Group::of(id), limit)
    }

    /// Makes an empty subvolume in which zones may make more: the limit holds for all of them, because
    /// a new subvolume counts for the groups of the one in which it is made.
    pub(crate) fn create_volume(&self, dir: &OwnedFd, name: &str, limit: Option<u64>) -> io::Result<()> {
        btrfs::create_subvolume(dir, name)?;
        self.bind(&folder::open(dir, name)?, limit)
    }

    /// Gives a subvolume that has no limit one in a group above it.
    pub(crate) fn bind(&self, subvolume: &OwnedFd, limit: Option<u64>) -> io::Result<()> {
        if limit.is_none() || self.groups.is_err() {
            return Ok(());
        }
        let id = quota::subvolume_id(subvolume)?;
        quota::create_group(&self.root, volume(id))?;
        quota::set_limit(&self.root, volume(id), limit)?;
        quota::assign(&self.root, Group::of(id), volume(id))
    }

    /// Has what is written in `other` count for the limit of `subvolume` too, where that has one.
    pub(crate) fn join(&self, other: &OwnedFd, subvolume: &OwnedFd) -> io::Result<()> {
        if self.groups.is_err() {
            return Ok(());
        }
        let own = Group::of(quota::subvolume_id(subvolume)?);
        let held = self.held(subvolume)?;
        let above = match (self.bound(own)?, held.and_then(|held| held.limit)) {
            (above, _) if above != own => above,
            (_, None) => return Ok(()),
            (_, limit) => {
                self.bind(subvolume, limit)?;
                volume(own.number)
            }
        };
        // The limit is the group's alone from here on.
        quota::set_limit(&self.root, own, None)?;
        quota::assign(&self.root, Group::of(quota::subvolume_id(other)?), above)
    }

    /// The group whose limit holds for a subvolume: one above it, else its own.
    fn bound(&self, own: Group) -> io::Result<Group> {
        Ok(quota::group_above(&self.root, own)?.unwrap_or(own))
    }

    /// Removes a subvolume, which has no others in it, and the group above it.
    pub(crate) fn remove(&self, dir: &OwnedFd, name: &str) -> io::Result<()> {
        let own = Group::of(quota::subvolume_id(folder::open(dir, name)?)?);
        let above = match self.groups {
            Ok(_) => quota::group_above(&self.root, own)?,
            Err(_) => None,
        };
        btrfs::destroy_subvolume(dir, name)?;
        if let Some(above) = above {
            // What cannot be removed now is removed when the store is opened.
            let _ =
                quota::release(&self.root, own, above).and_then(|()| quota::remove_group(&self.root, above));
        }
        Ok(())
    }

    /// Takes a subvolume out of the group above it: what is removed must not need room for that.
    pub(crate) fn unbind(&self, subvolume: &OwnedFd) -> io::Result<()> {
        if self.groups.is_err() {
            return Ok(());
        }
        let own = Group::of(quota::subvolume_id(subvolume)?);
        match quota::group_above(&self.root, own)? {
            Some(above) => quota::release(&self.root, own, above),
            None => Ok(()),
        }
    }

    /// Runs `work` on a root that may meanwhile hold a little more than its limit. Nobody else writes to it;
    /// the caller sees to it that this is done once at a time.
    pub(crate) fn with_slack<T>(&self, root: &OwnedFd, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let what = "widen the limit of a root";
        let Some(Held {
            limit: Some(limit), ..
        }) = self.held(root).during(what)?
        else {
            return work();
        };
        self.limit_root(root, limit, true).during(what)?;
        let done = work();
        self.limit_root(root, limit, false)
            .during("restore the limit of a root")?;
        done
    }

    /// Sets the limit of a root, with or without the slack.
    pub(crate) fn limit_root(&self, subvolume: &OwnedFd, limit: u64, room: bool) -> io::Result<()> {
        if self.groups.is_err() {
            return Ok(());
        }
        let group = self.bound(Group::of(quota::subvolume_id(subvolume)?))?;
        let slack = if room { SLACK } else { 0 };
        quota::set_limit(&self.root, group, Some(limit.saturating_add(slack)))
    }

    /// What a subvolume holds, or all of the group that bounds it; none without quotas.
    pub(crate) fn held(&self, subvolume: &OwnedFd) -> io::Result<Option<Held>> {
        let Ok(groups) = &self.groups else {
            return Ok(None);
        };
        let group = self.bound(Group::of(quota::subvolume_id(subvolume)?))?;
        let written = number(groups, group, "referenced")?;
        Ok(Some(Held {
            used: written.saturating_add(number(groups, group, "rsv_data")?),
            limit: limit(groups, group)?,
        }))
    }

    /// Removes the groups whose subvolumes are gone.
    pub(crate) fn sweep(&self) -> Result<()> {
        let Ok(groups) = &self.groups else {
            return Ok(());
        };
        let what = "remove the quota groups of what is gone";
        let mut gone = Vec::new();
        for entry in std::fs::read_dir(groups).during(what)? {
            let name = entry.during(what)?.file_name();
            gone.extend(name.to_str().and_then(group_of_folder));
        }
        // One that has members stays, so they go first.
        gone.sort_unstable();
        for group in gone {
            if quota::subvolume_exists(&self.root, group.number).during(what)? {
                continue;
            }
            match quota::remove_group(&self.root, group) {
                // Some of it is still there: in a snapshot, or the kernel has not come to it.
                Err(reason) if reason.raw_os_error() == Some(Errno::BUSY.raw_os_error()) => {}
                Err(reason) if reason.kind() == io::ErrorKind::NotFound => {}
                other => other.during(what)?,
            }
        }
        Ok(())
    }
}

const fn volume(id: u64) -> Group {
    Group {
        level: VOLUME,
        number: id,
    }
}

fn shown(groups: &Path, group: Group) -> PathBuf {
    groups.join(format!("{}_{}", group.level, group.number))
}

/// What the kernel shows of a group.
fn number(groups: &Path, group: Group, name: &str) -> io::Result<u64> {
    let text = std::fs::read_to_string(shown(groups, group).join(name))?;
    text.trim()
        .parse()
        .map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn limit(groups: &Path, group: Group) -> io::Result<Option<u64>> {
    let limit = number(groups, group, "max_referenced")?;
    // Never set, and set to none.
    Ok((limit != 0 && limit != u64::MAX).then_some(limit))
}

/// Reads the name of a group's folder.
fn group_of_folder(name: &str) -> Option<Group> {
    let (level, number) = name.split_once('_')?;
    Some(Group {
        level: level.parse().ok()?,
        number: number.parse().ok()?,
    })
}
