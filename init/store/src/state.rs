//! One JSON file per object, so that each acknowledged change survives a power cut.
//!
//! A file is written beside its place, flushed, then renamed: a reader sees the old or the new
//! content, never a part. What begins with `.` is a write that was interrupted;
//! [`collect_leftovers`] removes it when the store is opened, before anyone writes.

use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::error::{During, Error, Result};

const SUFFIX: &str = ".json";
const MAX_NAME: usize = 200;
/// Makes the names of concurrent writers' temporary files differ.
static SERIAL: AtomicU64 = AtomicU64::new(0);

/// The folder of one kind of objects.
#[derive(Debug, Clone)]
pub struct StateDir {
    kind: String,
    path: PathBuf,
}

impl StateDir {
    pub(crate) fn open(parent: &Path, kind: &str) -> Result<StateDir> {
        check_name(kind)?;
        let path = parent.join(kind);
        fs::create_dir_all(&path).during(format!("create the folder of {kind}"))?;
        Ok(StateDir {
            kind: kind.to_owned(),
            path,
        })
    }

    /// Names of all objects, sorted.
    pub fn list(&self) -> Result<Vec<String>> {
        let mut names: Vec<String> = self
            .file_names()?
            .iter()
            .filter(|name| !name.starts_with('.'))
            .filter_map(|name| name.strip_suffix(SUFFIX))
            .map(str::to_owned)
            .collect();
        names.sort();
        Ok(names)
    }

    /// # Errors
    /// [`Error::NoSuchObject`], or [`Error::BadState`] where the file is not what `T` expects.
    pub fn read<T: DeserializeOwned>(&self, name: &str) -> Result<T> {
        let path = self.file(name)?;
        let content = match fs::read(&path) {
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => {
                return Err(Error::NoSuchObject {
                    kind: self.kind.clone(),
                    name: name.to_owned(),
                });
            }
            other => other.during(format!("read the state of {} {name}", self.kind))?,
        };
        serde_json::from_slice(&content).map_err(|reason| Error::BadState {
            kind: self.kind.clone(),
            name: name.to_owned(),
            reason: reason.to_string(),
        })
    }

    /// Returns when the new content would survive a power cut.
    pub fn write<T: Serialize + ?Sized>(&self, name: &str, value: &T) -> Result<()> {
        let path = self.file(name)?;
        let what = format!("write the state of {} {name}", self.kind);
        let content = serde_json::to_vec(value)
            .map_err(|reason| Error::io(&what, io::Error::new(io::ErrorKind::InvalidData, reason)))?;
        let spare = self
            .path
            .join(format!(".{name}.{}", SERIAL.fetch_add(1, Ordering::Relaxed)));
        let written = (|| {
            let mut file = File::create_new(&spare)?;
            file.write_all(&content)?;
            file.sync_all()?;
            fs::rename(&spare, &path)?;
            File::open(&self.path)?.sync_all()
        })();
        if written.is_err() {
            // The first error is the one to report; a leftover is collected at the next open.
            let _ = fs::remove_file(&spare);
        }
        written.during(what)
    }

    /// Removing what is not there succeeds.
    pub fn remove(&self, name: &str) -> Result<()> {
        let what = || format!("remove the state of {} {name}", self.kind);
        match fs::remove_file(self.file(name)?) {
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => return Ok(()),
            other => other.during(what())?,
        }
        File::open(&self.path)
            .and_then(|dir| dir.sync_all())
            .during(what())
    }

    fn file(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        Ok(self.path.join(format!("{name}{SUFFIX}")))
    }

    fn file_names(&self) -> Result<Vec<String>> {
        let what = || format!("list the objects of {}", self.kind);
        let mut names = Vec::new();
        for entry in fs::read_dir(&self.path).during(what())? {
            names.push(entry.during(what())?.file_name().to_string_lossy().into_owned());
        }
        Ok(names)
    }
}

/// Removes what interrupted writes have left in the folders of all kinds. Only for a moment when
/// nobody writes: a write under way looks the same.
pub(crate) fn collect_leftovers(parent: &Path) -> Result<()> {
    fs::create_dir_all(parent).during("create the folder of states")?;
    for kind in fs::read_dir(parent).during("list the states")? {
        let dir = StateDir {
            kind: String::new(),
            path: kind.during("list the states")?.path(),
        };
        for name in dir.file_names()?.iter().filter(|name| name.starts_with('.')) {
            fs::remove_file(dir.path.join(name)).during(format!("remove the leftover {name}"))?;
        }
    }
    Ok(())
}

/// Object names become file names, so they may hold nothing that means something in a path.
pub(crate) fn check_name(name: &str) -> Result<()> {
    let good = !name.is_empty()
        && name.len() <= MAX_NAME
        && !name.starts_with('.')
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-'));
    if good {
        Ok(())
    } else {
        Err(Error::BadName {
            name: name.to_owned(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_object_is_read_as_it_was_written_and_is_gone_after_removal() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), "things").unwrap();
        state.write("a", &vec![1, 2]).unwrap();
        state.write("a", &vec![3]).unwrap();
        state.write("b", &vec![4]).unwrap();
        assert_eq!(state.list().unwrap(), ["a", "b"]);
        assert_eq!(state.read::<Vec<u32>>("a").unwrap(), [3]);
        state.remove("a").unwrap();
        state.remove("a").unwrap();
        assert!(state.read::<Vec<u32>>("a").unwrap_err().is_not_found());
    }

    #[test]
    fn an_interrupted_write_is_collected() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), "things").unwrap();
        state.write("a", &1).unwrap();
        fs::write(dir.path().join("things/.a.7"), "{").unwrap();
        assert_eq!(state.list().unwrap(), ["a"]);
        collect_leftovers(dir.path()).unwrap();
        assert!(!dir.path().join("things/.a.7").exists());
        assert_eq!(state.list().unwrap(), ["a"]);
    }

    #[test]
    fn opening_a_folder_leaves_a_write_under_way_alone() {
        let dir = tempfile::tempdir().unwrap();
        StateDir::open(dir.path(), "things").unwrap();
        fs::write(dir.path().join("things/.a.7"), "{").unwrap();
        StateDir::open(dir.path(), "things").unwrap();
        assert!(dir.path().join("things/.a.7").exists());
    }

    #[test]
    fn a_name_cannot_leave_its_folder() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), "things").unwrap();
        for name in ["", "..", "../x", "a/b", ".hidden", "a\0b"] {
            assert!(state.write(name, &1).is_err(), "`{name}` was accepted");
        }
        assert!(state.write("a.b_c-1", &1).is_ok());
    }

    #[test]
    fn a_damaged_object_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let state = StateDir::open(dir.path(), "things").unwrap();
        fs::write(dir.path().join("things/a.json"), "{").unwrap();
        let error = state.read::<Vec<u32>>("a").unwrap_err().to_string();
        assert!(error.contains("things `a`"), "{error}");
    }
}
