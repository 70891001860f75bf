//! What a fuzzer calls: placing a layer beside files that no layer may reach.

use std::fs;
use std::os::unix::fs::{MetadataExt, symlink};
use std::path::{Path, PathBuf};

use crate::extract::{Extractor, Placing};
use crate::tarball::Tarball;

/// A folder with a place for layers, and beside it one that must stay as it is.
pub struct Jail {
    root: PathBuf,
    outside: PathBuf,
    before: Vec<Seen>,
}

/// A file of what must stay: path, mode, links, length and content.
type Seen = (PathBuf, u32, u64, u64, Vec<u8>);

impl Jail {
    /// Makes one in `dir`, which is empty.
    pub fn new(dir: &Path) -> Jail {
        let (root, outside) = (dir.join("root"), dir.join("outside"));
        fs::create_dir_all(outside.join("folder")).expect("no folder");
        fs::write(outside.join("file"), "untouched").expect("no file");
        fs::write(outside.join("folder/file"), "untouched too").expect("no file");
        symlink("folder", outside.join("link")).expect("no link");
        let before = seen(&outside);
        Jail {
            root,
            outside,
            before,
        }
    }

    /// The folder outside, as a path.
    pub fn outside(&self) -> &Path {
        &self.outside
    }

    /// Places a tar, whatever it is; true where it was taken as a whole.
    ///
    /// # Panics
    /// Something outside has changed, or a link of it is inside.
    pub fn place(&self, tar: &[u8]) -> bool {
        let _ = fs::remove_dir_all(&self.root);
        fs::create_dir(&self.root).expect("no folder");
        let root = fs::File::open(&self.root).expect("no folder");
        let placed = Extractor::new(root.into(), Placing::Layer).run(&mut Tarball::new(tar));
        assert_eq!(seen(&self.outside), self.before, "something outside has changed");
        placed.is_ok()
    }
}

fn seen(folder: &Path) -> Vec<Seen> {
    let mut found = Vec::new();
    let mut pending = vec![folder.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).expect("it is gone");
        let content = if meta.is_file() {
            fs::read(&path).expect("it cannot be read")
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            let entries = fs::read_dir(&path).expect("it cannot be read");
            pending.extend(entries.flatten().map(|entry| entry.path()));
        }
        // The folders' own lengths are the file system's affair.
        let length = if meta.is_dir() { 0 } else { meta.len() };
        found.push((path, meta.mode(), meta.nlink(), length, content));
    }
    found.sort();
    found
}
