//! A root file system in memory: what a layer that is made here consists of.
//!
//! Keys are clean relative paths (`usr/bin/env`), so the order of the layer's entries is that of
//! the map, and a folder always comes before what is in it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use std::path::{Component, Path};

use anyhow::{Context, bail, ensure};

use super::Layer;
use crate::image::cache::Hashing;

/// One entry.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Node {
    pub(super) kind: Kind,
    pub(super) mode: u32,
    pub(super) uid: u64,
    pub(super) gid: u64,
    pub(super) mtime: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Kind {
    Folder,
    File(Vec<u8>),
    Symlink(String),
    /// Clean relative path of the file that it is another name of.
    Hardlink(String),
}

impl Node {
    pub(super) fn new(kind: Kind, mode: u32) -> Self {
        Self {
            kind,
            mode,
            uid: 0,
            gid: 0,
            mtime: 0,
        }
    }
}

/// Folders that are links into `/usr` on every current distribution.
const MERGED: &[&str] = &["bin", "lib", "lib32", "lib64", "libx32", "sbin"];

#[derive(Debug, Default)]
pub(super) struct Tree {
    nodes: BTreeMap<String, Node>,
}

impl Tree {
    pub(super) fn get(&self, path: &str) -> Option<&Node> {
        self.nodes.get(&merged(path))
    }

    /// Adds an entry and the folders above it. A later one takes the place of an earlier one, but
    /// a folder never loses what is in it.
    pub(super) fn add(&mut self, path: &str, node: Node) -> anyhow::Result<()> {
        let path = merged(path);
        ensure!(!path.is_empty(), "The root folder cannot be replaced");
        if MERGED.contains(&path.as_str()) && node.kind == Kind::Folder {
            return Ok(());
        }
        let mut end = 0;
        while let Some(length) = path.get(end..).and_then(|rest| rest.find('/')) {
            let above = path.get(..end + length).unwrap_or_default();
            let node = self
                .nodes
                .entry(above.to_owned())
                .or_insert_with(|| Node::new(Kind::Folder, 0o755));
            ensure!(
                node.kind == Kind::Folder,
                "/{path} cannot be made, because /{above} is not a folder"
            );
            end += length + 1;
        }
        let replaces_folder =
            node.kind != Kind::Folder && self.nodes.get(&path).is_some_and(|old| old.kind == Kind::Folder);
        ensure!(!replaces_folder, "/{path} is a folder already");
        self.nodes.insert(path, node);
        Ok(())
    }

    /// The links of [`MERGED`] for those folders that have something in them.
    pub(super) fn link_merged_folders(&mut self) -> anyhow::Result<()> {
        for name in MERGED {
            let target = format!("usr/{name}");
            if self.nodes.contains_key(&target) || *name == "bin" {
                self.nodes
                    .entry(target.clone())
                    .or_insert_with(|| Node::new(Kind::Folder, 0o755));
                self.nodes
                    .insert((*name).to_owned(), Node::new(Kind::Symlink(target), 0o777));
            }
        }
        self.nodes
            .entry("usr".to_owned())
            .or_insert_with(|| Node::new(Kind::Folder, 0o755));
        Ok(())
    }

    /// Adds the entries of a tar stream whose names `wanted` takes.
    pub(super) fn add_tar<R: Read>(
        &mut self,
        tar: &mut tar::Archive<R>,
        wanted: impl Fn(&str) -> bool,
    ) -> anyhow::Result<()> {
        for entry in tar.entries()? {
            let mut entry = entry?;
            let path = clean(&entry.path()?)?;
            if path.is_empty() || !wanted(&path) {
                continue;
            }
            let kind = match entry.header().entry_type() {
                tar::EntryType::Directory => Kind::Folder,
                tar::EntryType::Regular => {
                    let mut content = Vec::new();
                    entry.read_to_end(&mut content)?;
                    Kind::File(content)
                }
                tar::EntryType::Symlink => Kind::Symlink(link_target(&entry)?),
                tar::EntryType::Link => Kind::Hardlink(merged(&clean(Path::new(&link_target(&entry)?))?)),
                other => bail!("/{path} is of a kind that a package should not have: {other:?}"),
            };
            let header = entry.header();
            let node = Node {
                kind,
                mode: header.mode()? & 0o7777,
                uid: header.uid()?,
                gid: header.gid()?,
                mtime: header.mtime()?,
            };
            self.add(&path, node)?;
        }
        Ok(())
    }

    /// Writes the tree as a layer.
    pub(super) fn write(&self, path: &Path) -> anyhow::Result<Layer> {
        let file = File::create_new(path).with_context(|| format!("Cannot write {}", path.display()))?;
        let mut tar = tar::Builder::new(Hashing::new(BufWriter::new(file)));
        // A hard link's target must come before it, whatever their names are.
        let (links, others): (Vec<_>, Vec<_>) = self
            .nodes
            .iter()
            .partition(|(_, node)| matches!(node.kind, Kind::Hardlink(_)));
        for (path, node) in others.into_iter().chain(links) {
            append(&mut tar, path, node).with_context(|| format!("Cannot put /{path} into a layer"))?;
        }
        let (mut file, digest, size) = tar.into_inner()?.finish();
        file.flush()?;
        Ok(Layer {
            path: path.to_owned(),
            digest,
            size,
        })
    }
}

fn append<W: Write>(tar: &mut tar::Builder<W>, path: &str, node: &Node) -> anyhow::Result<()> {
    let mut header = tar::Header::new_gnu();
    header.set_mode(node.mode);
    header.set_uid(node.uid);
    header.set_gid(node.gid);
    header.set_mtime(node.mtime);
    header.set_size(0);
    match &node.kind {
        Kind::Folder => {
            header.set_entry_type(tar::EntryType::Directory);
            tar.append_data(&mut header, format!("{path}/"), std::io::empty())?;
        }
        Kind::File(content) => {
            header.set_entry_type(tar::EntryType::Regular);
            header.set_size(content.len() as u64);
            tar.append_data(&mut header, path, content.as_slice())?;
        }
        Kind::Symlink(target) => {
            header.set_entry_type(tar::EntryType::Symlink);
            tar.append_link(&mut header, path, target)?;
        }
        Kind::Hardlink(target) => {
            header.set_entry_type(tar::EntryType::Link);
            tar.append_link(&mut header, path, target)?;
        }
    }
    Ok(())
}

fn link_target<R: Read>(entry: &tar::Entry<'_, R>) -> anyhow::Result<String> {
    let target = entry.link_name()?.context("A link has no target")?;
    Ok(target
        .to_str()
        .context("A link's target is not UTF-8")?
        .to_owned())
}

/// `./usr//bin/` → `usr/bin`; `..` is an error.
fn clean(path: &Path) -> anyhow::Result<String> {
    let mut parts = Vec::new();
    for component in path.components() {
        match component {
            Component::Normal(part) => {
                parts.push(
                    part.to_str()
                        .with_context(|| format!("The name {} is not UTF-8", path.display()))?,
                );
            }
            Component::CurDir | Component::RootDir => {}
            Component::ParentDir | Component::Prefix(_) => {
                bail!("The name {} leaves its folder", path.display())
            }
        }
    }
    Ok(parts.join("/"))
}

/// Where a path lies once `/bin` is `/usr/bin` and so on.
fn merged(path: &str) -> String {
    let first = path.split('/').next().unwrap_or_default();
    if path.contains('/') && MERGED.contains(&first) {
        format!("usr/{path}")
    } else {
        path.to_owned()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn file(text: &str) -> Node {
        Node::new(Kind::File(text.into()), 0o644)
    }

    #[test]
    fn folders_above_are_made_and_bin_is_in_usr() {
        let mut tree = Tree::default();
        tree.add("bin/sh", file("x")).unwrap();
        tree.add("etc/a/b", file("x")).unwrap();
        tree.link_merged_folders().unwrap();
        let paths: Vec<_> = tree.nodes.keys().map(String::as_str).collect();
        assert_eq!(
            paths,
            ["bin", "etc", "etc/a", "etc/a/b", "usr", "usr/bin", "usr/bin/sh"]
        );
        assert_eq!(tree.get("bin/sh"), Some(&file("x")));
        assert_eq!(tree.nodes["bin"].kind, Kind::Symlink("usr/bin".to_owned()));
    }

    #[test]
    fn a_file_cannot_be_a_folder_too() {
        let mut tree = Tree::default();
        tree.add("a", file("x")).unwrap();
        assert!(
            tree.add("a/b", file("x"))
                .unwrap_err()
                .to_string()
                .contains("/a is not a folder")
        );
        tree.add("c/d", file("x")).unwrap();
        assert!(
            tree.add("c", file("x"))
                .unwrap_err()
                .to_string()
                .contains("/c is a folder already")
        );
    }

    #[test]
    fn a_name_that_leaves_its_folder_is_refused() {
        assert_eq!(clean(Path::new("./a//b/")).unwrap(), "a/b");
        assert_eq!(clean(Path::new("/a")).unwrap(), "a");
        assert!(clean(Path::new("a/../../b")).is_err());
    }

    #[test]
    fn a_layer_has_its_entries_in_order_and_hard_links_last() {
        let dir = tempfile::tempdir().unwrap();
        let mut tree = Tree::default();
        tree.add("a", Node::new(Kind::Hardlink("b".to_owned()), 0o644))
            .unwrap();
        tree.add("b", file("hello")).unwrap();
        tree.add(&format!("{}x", "long/".repeat(60)), file("deep"))
            .unwrap();
        let layer = tree.write(&dir.path().join("layer")).unwrap();
        let bytes = std::fs::read(&layer.path).unwrap();
        assert_eq!(bytes.len() as u64, layer.size);
        assert_eq!(crate::image::cache::sha256(&bytes), layer.digest);
        let mut again = Tree::default();
        again
            .add_tar(&mut tar::Archive::new(&bytes[..]), |_| true)
            .unwrap();
        assert!(again.nodes == tree.nodes, "what was written is read back");
    }
}
