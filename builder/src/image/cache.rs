//! The content-addressed cache: a thing that was made once from the same inputs is not made again.
//!
//! A file or folder lies under a name that is the digest of what it was made from, and it appears
//! there by one rename when it is complete. So whatever is found is whole, and builds that run at
//! the same time do not disturb each other: the one that ends later finds its work done.

use std::fs;
use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::Context;
use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

/// Differs between versions of the builder that may make different things of the same inputs.
const BUILDER: &str = env!("MONOBLOC_BUILDER_DIGEST");

/// A folder of finished things.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
}

impl Cache {
    pub(crate) fn open(root: &Path) -> anyhow::Result<Self> {
        fs::create_dir_all(root).with_context(|| {
            format!(
                "Cannot make the cache folder {}; set XDG_CACHE_HOME to one",
                root.display()
            )
        })?;
        // Programs that run elsewhere are given paths in it.
        let root = fs::canonicalize(root).with_context(|| format!("Cannot open {}", root.display()))?;
        Ok(Self { root })
    }

    /// Finds the folder `kind/key`, or lets `make` fill it.
    pub(crate) fn folder(
        &self,
        kind: &str,
        key: &str,
        make: impl FnOnce(&Path) -> anyhow::Result<()>,
    ) -> anyhow::Result<PathBuf> {
        let target = self.path(kind, key);
        if target.is_dir() {
            mark_as_used(&target);
            return Ok(target);
        }
        let scratch = self.scratch(kind)?;
        make(scratch.path())?;
        make_readable(scratch.path())?;
        place(scratch.path(), &target)?;
        Ok(target)
    }

    /// Finds the value `kind/key`, kept as JSON, or makes it. One that cannot be read is made again.
    pub(crate) fn value<T: Serialize + DeserializeOwned>(
        &self,
        kind: &str,
        key: &str,
        make: impl FnOnce() -> anyhow::Result<T>,
    ) -> anyhow::Result<T> {
        let target = self.path(kind, key);
        if let Some(value) = fs::read(&target)
            .ok()
            .and_then(|bytes| serde_json::from_slice(&bytes).ok())
        {
            return Ok(value);
        }
        let value = make()?;
        let scratch = self.scratch(kind)?;
        let made = scratch.path().join("made");
        fs::write(&made, serde_json::to_vec(&value)?)?;
        fs::rename(&made, &target).with_context(|| format!("Cannot write {}", target.display()))?;
        Ok(value)
    }

    pub(crate) fn path(&self, kind: &str, key: &str) -> PathBuf {
        self.root.join(kind).join(key)
    }

    /// An empty folder on the cache's file system that is deleted when dropped.
    pub(crate) fn scratch(&self, kind: &str) -> anyhow::Result<Scratch> {
        let dir = self.root.join(kind);
        fs::create_dir_all(&dir)
            .and_then(|()| Scratch::make(&dir))
            .with_context(|| format!("Cannot write in the cache folder {}", dir.display()))
    }

    /// Deletes what was not used for long, and what builds that were killed have left.
    pub(crate) fn tidy(&self, kinds: &[&str]) {
        for kind in kinds {
            let entries = fs::read_dir(self.root.join(kind)).into_iter().flatten().flatten();
            for entry in entries {
                let path = entry.path();
                let age = entry
                    .metadata()
                    .and_then(|data| data.modified())
                    .ok()
                    .and_then(|time| time.elapsed().ok());
                let limit = if Scratch::is_abandoned(&path) {
                    SCRATCH_AGE
                } else {
                    UNUSED_AGE
                };
                if age.is_some_and(|age| age > limit) {
                    // It is only a cache; what cannot be deleted now is tried again later.
                    let _ = if path.is_dir() {
                        fs::remove_dir_all(&path)
                    } else {
                        fs::remove_file(&path)
                    };
                }
            }
        }
    }
}

/// A finished thing that no build has wanted for so long is deleted.
const UNUSED_AGE: Duration = Duration::from_secs(30 * 24 * 3600);
/// An unlocked scratch folder may be one that was made a moment ago and is about to be locked.
const SCRATCH_AGE: Duration = Duration::from_secs(60);
const SCRATCH_PREFIX: &str = ".making-";

/// A folder for work under way. It is locked as long as it is in use, so what a killed build left
/// behind can be told from what another build is working on.
#[derive(Debug)]
pub(crate) struct Scratch {
    dir: tempfile::TempDir,
    _lock: fs::File,
}

impl Scratch {
    fn make(parent: &Path) -> io::Result<Self> {
        let dir = tempfile::Builder::new()
            .prefix(SCRATCH_PREFIX)
            .tempdir_in(parent)?;
        let lock = fs::File::open(dir.path())?;
        lock.lock()?;
        Ok(Self { dir, _lock: lock })
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    fn is_abandoned(path: &Path) -> bool {
        let named = path
            .file_name()
            .is_some_and(|name| name.to_string_lossy().starts_with(SCRATCH_PREFIX));
        named && fs::File::open(path).is_ok_and(|file| file.try_lock().is_ok())
    }
}

fn mark_as_used(path: &Path) {
    let now = fs::FileTimes::new().set_modified(SystemTime::now());
    // A cache that may only be read is no less a cache.
    let _ = fs::File::open(path).and_then(|file| file.set_times(now));
}

/// The temporary folder was only for its owner; what becomes part of the cache is for all.
fn make_readable(dir: &Path) -> io::Result<()> {
    use std::os::unix::fs::PermissionsExt as _;
    fs::set_permissions(dir, fs::Permissions::from_mode(0o755))
}

/// Renames into place; a finished thing that another build put there meanwhile is as good.
fn place(from: &Path, target: &Path) -> anyhow::Result<()> {
    match fs::rename(from, target) {
        Err(_) if target.exists() => Ok(()),
        done => done.with_context(|| format!("Cannot write {}", target.display())),
    }
}

/// The digest of everything that a thing is made from, as its name in the cache.
pub(crate) fn key(inputs: &impl Serialize) -> anyhow::Result<String> {
    let bytes = serde_json::to_vec(&(BUILDER, env!("CARGO_PKG_VERSION"), inputs))?;
    Ok(sha256(&bytes))
}

/// SHA-256 in hex.
pub(crate) fn sha256(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// SHA-256 of a file in hex.
pub(crate) fn sha256_of_file(path: &Path) -> io::Result<String> {
    let mut file = fs::File::open(path)?;
    let mut hasher = Hashing::new(io::sink());
    io::copy(&mut file, &mut hasher)?;
    Ok(hasher.finish().1)
}

/// A reader or writer that takes the SHA-256 of what passes.
pub(crate) struct Hashing<T> {
    inner: T,
    hasher: Sha256,
    length: u64,
}

impl<T> Hashing<T> {
    pub(crate) fn new(inner: T) -> Self {
        Self {
            inner,
            hasher: Sha256::new(),
            length: 0,
        }
    }

    /// The reader or writer itself, the digest in hex, and how many bytes have passed.
    pub(crate) fn finish(self) -> (T, String, u64) {
        (self.inner, hex(&self.hasher.finalize()), self.length)
    }
}

impl<R: Read> Read for Hashing<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let count = self.inner.read(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.length += count as u64;
        Ok(count)
    }
}

impl<W: io::Write> io::Write for Hashing<W> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(buffer)?;
        self.hasher.update(buffer.get(..count).unwrap_or_default());
        self.length += count as u64;
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write as _;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_made_once_and_a_failure_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let failed = cache.folder("things", "a", |path| {
            fs::write(path.join("half"), "x")?;
            anyhow::bail!("No more")
        });
        assert!(failed.is_err());
        assert_eq!(
            fs::read_dir(dir.path().join("things")).unwrap().count(),
            0,
            "nothing half-made stays"
        );

        let make = |path: &Path| Ok(fs::write(path.join("whole"), "x")?);
        let made = cache.folder("things", "a", make).unwrap();
        let found = cache
            .folder("things", "a", |_| anyhow::bail!("It was made already"))
            .unwrap();
        assert_eq!(made, found);
        assert_eq!(fs::read(found.join("whole")).unwrap(), b"x");
    }

    #[test]
    fn what_is_old_or_was_left_by_a_killed_build_is_deleted_and_the_rest_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let in_use = cache.scratch("things").unwrap();
        let fresh = cache.folder("things", "fresh", |_| Ok(())).unwrap();
        let old = cache.folder("things", "old", |_| Ok(())).unwrap();
        let left = dir.path().join("things/.making-left");
        fs::create_dir(&left).unwrap();
        let age = |path: &Path, age: Duration| {
            let times = fs::FileTimes::new().set_modified(SystemTime::now() - age);
            fs::File::open(path).unwrap().set_times(times).unwrap();
        };
        age(&old, UNUSED_AGE * 2);
        age(&left, SCRATCH_AGE * 2);
        age(in_use.path(), SCRATCH_AGE * 2);
        cache.tidy(&["things", "never-made"]);
        assert!(fresh.exists() && in_use.path().exists());
        assert!(!old.exists() && !left.exists());
    }

    #[test]
    fn what_is_found_counts_as_used() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        let made = cache.folder("things", "a", |_| Ok(())).unwrap();
        let long_ago = fs::FileTimes::new().set_modified(SystemTime::now() - UNUSED_AGE * 2);
        fs::File::open(&made).unwrap().set_times(long_ago).unwrap();
        cache
            .folder("things", "a", |_| anyhow::bail!("It was made already"))
            .unwrap();
        cache.tidy(&["things"]);
        assert!(made.exists());
    }

    #[test]
    fn a_damaged_value_is_made_again() {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(dir.path()).unwrap();
        assert_eq!(cache.value("v", "k", || Ok(7)).unwrap(), 7);
        assert_eq!(cache.value("v", "k", || Ok(8)).unwrap(), 7);
        fs::write(dir.path().join("v/k"), "{").unwrap();
        assert_eq!(cache.value("v", "k", || Ok(9)).unwrap(), 9);
    }

    #[test]
    fn digests_are_those_of_the_standard() {
        // FIPS 180-4, the example of one block.
        assert_eq!(
            sha256(b"abc"),
            "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
        );
        let mut reader = Hashing::new(&b"abc"[..]);
        io::copy(&mut reader, &mut io::sink()).unwrap();
        let (_, digest, length) = reader.finish();
        assert_eq!((digest, length), (sha256(b"abc"), 3));
    }
}
