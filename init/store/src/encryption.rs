//! Encrypted disks of a pool: unlocked with the secrets that [`Keys`] has, and read through the device
//! mapper (`dm-crypt`) from then on. What lies above, btrfs, sees the opened device only.

use std::fs::{self, File};
use std::path::{Path, PathBuf};

use sys::dm;
use zeroize::Zeroize;

use crate::disk::{self, Content, Disk};
use crate::error::{During, Error, Result};
use crate::luks::{DATA_OFFSET, Header, Key, Lock, Secret};
use crate::members::State;

/// Names of opened devices begin with this; the header's UUID follows.
const NAME: &str = "monobloc-";
const TARGET: &str = "crypt";
/// What encrypted data begin after on the disk, in the unit of the device mapper.
const DM_SECTOR: u64 = 512;

/// Where the secret of a new pool is to be kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protection {
    /// In the node's bundle.
    Bundle,
    /// In the machine's TPM.
    Tpm,
}

/// Who has secrets.
pub trait Keys: Send + Sync {
    /// Called before a disk is opened or encrypted: the kernel must know by then how.
    ///
    /// # Errors
    /// It does not; a sentence.
    fn prepare(&self) -> Result<(), String>;

    /// The secret for a lock of the disk `disk`, waited for if a person has to give it; `refused` says
    /// that the last one was wrong.
    ///
    /// # Errors
    /// It cannot be had; a sentence.
    fn secret(&self, lock: &Lock, disk: &str, refused: bool) -> Result<Secret, String>;

    /// A new lock with its secret.
    ///
    /// # Errors
    /// This machine has none of the kind; a sentence.
    fn make(&self, protection: Protection) -> Result<(Lock, Secret), String>;
}

/// What all encrypted disks of a pool have in common.
pub(crate) struct Volume {
    header: Header,
    key: Key,
}

impl Volume {
    /// A new one, which each of the secrets opens.
    pub(crate) fn new(locks: &[(Lock, Secret)]) -> Result<Volume> {
        let (header, key) = Header::new(0, locks)?;
        Ok(Volume { header, key })
    }

    /// That of a mounted pool, if it is encrypted.
    pub(crate) fn of(state: &State) -> Result<Option<Volume>> {
        let there = state.members.iter().filter(|member| !member.missing);
        for name in there.filter_map(|member| member.name.as_deref()) {
            let Some(mapping) = Mapping::of(name) else {
                continue;
            };
            let what = format!("read the key of disk {name}");
            let mut target = dm::target(&mapping.name).during(&what)?;
            // `aes-xts-plain64 KEY TWEAK DEVICE OFFSET …`
            let key = target.parameters.split(' ').nth(1).and_then(Key::from_hex);
            target.parameters.zeroize();
            let disk = File::open(Path::new("/dev").join(name)).during(&what)?;
            if let (Some(key), Some(header)) = (key, Header::read(&disk).during(&what)?) {
                return Ok(Some(Volume { header, key }));
            }
        }
        // A disk that joins must never be the one that is not encrypted.
        if state.members.iter().any(|member| member.encrypted) {
            return Err(Error::Refused(
                "The pool is encrypted, and none of its disks that are there shows how. Start the machine again.".to_owned(),
            ));
        }
        Ok(None)
    }

    /// Writes the header to a disk that was made blank and opens it; gives the disk as it is then.
    pub(crate) fn put_on(&self, disk: &Disk) -> Result<Disk> {
        let minimum = crate::mkfs::MIN_SIZE + DATA_OFFSET;
        if disk.size < minimum {
            return Err(Error::TooSmall {
                path: disk.path.display().to_string(),
                size: disk.size,
                minimum,
            });
        }
        let header = self.header.for_disk(disk.size)?;
        let file =
            disk::open_alone(&disk.path, true).during(format!("open {} for writing", disk.path.display()))?;
        header.write(&file)?;
        drop(file);
        open(disk, &header, &self.key)
    }
}

/// Makes the data of an encrypted disk readable; gives the disk as it is then.
fn open(disk: &Disk, header: &Header, key: &Key) -> Result<Disk> {
    let path = disk.path.display();
    let layout = header.layout().ok_or_else(|| {
        Error::Refused(format!(
            "{path} is encrypted in a way that this version does not know."
        ))
    })?;
    let sectors = disk.size.saturating_sub(DATA_OFFSET) / layout.sector * (layout.sector / DM_SECTOR);
    let mut target = dm::Target {
        sectors,
        kind: TARGET.to_owned(),
        parameters: format!(
            "aes-xts-plain64 {} {} {path} {} 1 sector_size:{}",
            key.hex().as_str(),
            layout.tweak,
            DATA_OFFSET / DM_SECTOR,
            layout.sector
        ),
    };
    let name = format!("{NAME}{}", header.uuid);
    // As cryptsetup names its own, so that its `status` and `close` know them.
    let uuid = format!("CRYPT-LUKS2-{}-{name}", header.uuid.replace('-', ""));
    let what = format!("open the encrypted disk {path}");
    let made = dm::create(&name, &uuid, &target);
    target.parameters.zeroize();
    let minor = made.during(what)?;
    Ok(Disk {
        mapping: Some(PathBuf::from(format!("/dev/dm-{minor}"))),
        ..disk.clone()
    })
}

/// An encrypted disk that is open.
pub(crate) struct Mapping {
    name: String,
    pub(crate) path: PathBuf,
}

impl Mapping {
    /// That of the disk of a name such as `vda`.
    pub(crate) fn of(disk: &str) -> Option<Mapping> {
        let block = Path::new(disk::SYS_BLOCK);
        disk::entries(&block.join(disk).join("holders"))
            .into_iter()
            .find_map(|holder| {
                let name = fs::read_to_string(block.join(&holder).join("dm/name")).ok()?;
                let name = name.trim_end().to_owned();
                name.starts_with(NAME).then(|| Mapping {
                    name,
                    path: Path::new("/dev").join(&holder),
                })
            })
    }

    /// Forgets the key; data that is still in use stays readable until its last user is gone.
    pub(crate) fn close(&self) -> Result<()> {
        dm::remove(&self.name).during(format!("close the encrypted disk {}", self.path.display()))
    }
}

/// Forgets the keys of disks that were pulled out; their devices go when nobody uses them any more.
pub(crate) fn close_orphans() {
    let block = Path::new(disk::SYS_BLOCK);
    for device in disk::entries(block) {
        let Ok(name) = fs::read_to_string(block.join(&device).join("dm/name")) else {
            continue;
        };
        let gone = behind(&device).is_none_or(|disk| !block.join(disk).exists());
        if name.starts_with(NAME) && gone {
            let _ = dm::remove(name.trim_end());
        }
    }
}

/// The disk behind a device such as `dm-0`; none where it is no opened disk.
pub(crate) fn behind(device: &str) -> Option<String> {
    let slaves = Path::new(disk::SYS_BLOCK).join(device).join("slaves");
    disk::entries(&slaves).into_iter().next()
}

/// Opens encrypted disks as they are found.
pub(crate) struct Unlocking<'a> {
    keys: &'a dyn Keys,
    /// Volume keys that have been found; the disks of one pool have the same.
    found: Vec<Key>,
    /// Disks that could not be opened, by name, and why.
    pub(crate) failed: Vec<(String, String)>,
}

impl Unlocking<'_> {
    pub(crate) fn new(keys: &dyn Keys) -> Unlocking<'_> {
        Unlocking {
            keys,
            found: Vec::new(),
            failed: Vec::new(),
        }
    }

    /// Opens what can be opened of `disks`; true where something was, so that they must be listed anew.
    pub(crate) fn open_all(&mut self, disks: &[Disk]) -> bool {
        let mut opened = false;
        for disk in disks {
            let tried = self.failed.iter().any(|(name, _)| *name == disk.name);
            if disk.content != Content::Encrypted || tried {
                continue;
            }
            match self.open(disk) {
                Ok(_) => opened = true,
                Err(reason) => self.failed.push((disk.name.clone(), reason.to_string())),
            }
        }
        opened
    }

    fn open(&mut self, disk: &Disk) -> Result<Disk> {
        self.keys.prepare().map_err(Error::Refused)?;
        let what = format!("read the header of {}", disk.path.display());
        let file = File::open(&disk.path).during(&what)?;
        let header = Header::read(&file).during(&what)?;
        let header = header.ok_or_else(|| Error::Refused("Its header has gone.".to_owned()))?;
        if let Some(key) = self.found.iter().find(|key| header.opens(key)) {
            return open(disk, &header, key);
        }
        let mut reasons = Vec::new();
        for lock in header.locks() {
            match self.try_lock(&header, &lock, &disk.name) {
                Ok(key) => {
                    let opened = open(disk, &header, &key)?;
                    self.found.push(key);
                    return Ok(opened);
                }
                Err(reason) => reasons.push(reason),
            }
        }
        Err(Error::Refused(format!("It is encrypted. {}", reasons.join(" "))))
    }

    fn try_lock(&self, header: &Header, lock: &Lock, disk: &str) -> Result<Key, String> {
        let mut refused = false;
        loop {
            let secret = self.keys.secret(lock, disk, refused)?;
            if let Some(key) = header.unlock(lock, &secret) {
                return Ok(key);
            }
            // Only a person may have another try.
            match lock {
                Lock::Passphrase => refused = true,
                Lock::Bundle => {
                    return Err(
                        "The key in the node's bundle is not the one that it was made with.".to_owned(),
                    );
                }
                Lock::Tpm(_) => return Err("What the TPM has unsealed does not open it.".to_owned()),
            }
        }
    }
}
