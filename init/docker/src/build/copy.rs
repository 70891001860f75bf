//! `COPY` and `ADD`: files of the client's, of another stage or image, or from the network become a layer.
//!
//! The layer is a tar of just these files, placed on the stage's tree by the same code that places the
//! layers of any image.

use std::io::{self, BufWriter};
use std::path::Path;

use store::{
    Digest, Group, Layer, Part, Shape, Store, Unpacking, Workspace, ZoneFiles, digest_groups, pack_groups,
};

use super::dockerfile::Instruction;
use super::stage::Stage;
use super::words::{word, words};
use crate::containers::clean;
use crate::http::{ApiError, Result};
use crate::users::Databases;

/// Beyond this an archive's kind need not be looked for.
const BEGINNING: u64 = 512;
/// Of an archive that is added.
const MAX_ARCHIVE: u64 = 4 << 30;

/// Files to copy, and how they are.
pub(super) struct Copy<'a> {
    sources: Vec<(Source<'a>, Vec<Part>, Shape)>,
}

enum Source<'a> {
    Tree(&'a ZoneFiles),
    Own(Workspace),
}

impl Source<'_> {
    fn files(&self) -> &ZoneFiles {
        match self {
            Self::Tree(files) => files,
            Self::Own(workspace) => workspace.files(),
        }
    }
}

/// What `COPY` and `ADD` have in common.
pub(super) struct Plan<'a> {
    pub(super) instruction: &'a Instruction,
    pub(super) escape: char,
    pub(super) stage: &'a Stage,
    /// The stage's tree; none on `scratch`.
    pub(super) tree: Option<&'a ZoneFiles>,
    /// Where sources are.
    pub(super) from: Option<&'a ZoneFiles>,
    pub(super) store: &'a std::sync::Arc<Store>,
    /// Gets a file from the network.
    pub(super) fetch: &'a dyn Fn(&str) -> Result<Vec<u8>>,
}

impl<'a> Plan<'a> {
    /// Finds everything; gives also the instruction's words with variables replaced.
    pub(super) fn copy(&self) -> Result<(Copy<'a>, String)> {
        let adds = self.instruction.name == "ADD";
        let known: &[&str] = if adds {
            &["chown", "chmod"]
        } else {
            &["from", "chown", "chmod", "link"]
        };
        self.instruction
            .only_flags(known)
            .map_err(ApiError::bad_request)?;
        let mut paths = self.paths()?;
        let target = paths.pop().unwrap_or_default();
        if paths.is_empty() {
            return Err(ApiError::bad_request(format!(
                "{} requires at least two arguments",
                self.instruction.name
            )));
        }
        let shown = format!("{} {target}", paths.join(" "));
        let mut copy = Copy { sources: Vec::new() };
        let shape = self.shape()?;
        let whole = clean(&self.stage.absolute(&target));
        let ends_as_folder = target.ends_with('/') || target == "." || target.ends_with("/.");
        let many = paths.len() > 1 || paths.iter().any(|path| is_pattern(path));
        let is_folder = ends_as_folder || self.tree.is_some_and(|tree| tree.is_folder(&whole));
        if many && !ends_as_folder {
            return Err(ApiError::bad_request(format!(
                "When using {} with more than one source file, the destination must be a directory and end with a /",
                self.instruction.name
            )));
        }
        let place = Place {
            whole: &whole,
            is_folder,
            shape,
        };
        for path in &paths {
            self.one(path, &place, adds, &mut copy)?;
        }
        Ok((copy, shown))
    }

    fn paths(&self) -> Result<Vec<String>> {
        let lookup = |name: &str| self.stage.variable(name);
        match self.instruction.list() {
            Some(list) => list
                .iter()
                .map(|path| word(path, self.escape, &lookup).map_err(ApiError::bad_request))
                .collect(),
            None => words(&self.instruction.rest, self.escape, &lookup).map_err(ApiError::bad_request),
        }
    }

    fn shape(&self) -> Result<Shape> {
        let lookup = |name: &str| self.stage.variable(name);
        let flag = |name: &str| {
            let value = self
                .instruction
                .flag(name)
                .map(|value| word(value, self.escape, &lookup));
            value.transpose().map_err(ApiError::bad_request)
        };
        let mode = match flag("chmod")? {
            Some(text) => Some(u32::from_str_radix(&text, 8).ok().filter(|mode| *mode <= 0o7777).ok_or_else(|| {
                ApiError::bad_request(format!("invalid chmod parameter: '{text}'. it should be octal string and between 0 and 07777"))
            })?),
            None => None,
        };
        let owner = match flag("chown")? {
            Some(text) => {
                let databases = self
                    .tree
                    .map_or_else(Databases::default, |tree| Databases::read(tree.root()));
                let user = databases.find(&text, &[])?.user;
                // As Docker: without a group it is the number of the user.
                let gid = if text.contains(':') { user.gid } else { user.uid };
                Some((user.uid, gid))
            }
            None => Some((0, 0)),
        };
        Ok(Shape {
            owner,
            mode,
            timeless: false,
        })
    }

    fn one(&self, path: &str, place: &Place<'_>, adds: bool, copy: &mut Copy<'a>) -> Result<()> {
        if let Some(mark) = path.strip_prefix("<<") {
            return self.heredoc(mark, place, copy);
        }
        if adds && (path.starts_with("http://") || path.starts_with("https://")) {
            return self.fetched(path, place, copy);
        }
        let files = self.from.ok_or_else(|| {
            ApiError::bad_request("there is no build context to copy from: give `docker build` a folder")
        })?;
        let found = matching(files, path)?;
        if found.is_empty() {
            return Err(ApiError::bad_request(format!(
                "{} failed: file not found in build context or excluded by .dockerignore: stat {path}: file does not exist",
                self.instruction.name
            )));
        }
        let mut parts = Vec::new();
        for from in found {
            if files.is_folder(&from) {
                let to = place.whole.to_owned();
                parts.push(Part {
                    from: format!("{from}/"),
                    to,
                });
            } else if adds && is_archive(files, &from)? {
                copy.sources.push(self.unpacked(files, &from, place)?);
            } else {
                let to = place.of(&from);
                parts.push(Part { from, to });
            }
        }
        copy.sources.push((Source::Tree(files), parts, place.shape));
        Ok(())
    }

    fn unpacked(
        &self,
        files: &ZoneFiles,
        path: &str,
        place: &Place<'_>,
    ) -> Result<(Source<'a>, Vec<Part>, Shape)> {
        let workspace = Workspace::new(self.store)?;
        workspace
            .files()
            .unpack("/", files.stream(path, MAX_ARCHIVE)?, Unpacking::default())?;
        let part = Part {
            from: "/".to_owned(),
            to: place.whole.to_owned(),
        };
        // What is unpacked keeps its owners, unless they are asked for.
        let owner = self.instruction.flag("chown").and(place.shape.owner);
        Ok((
            Source::Own(workspace),
            vec![part],
            Shape {
                owner,
                ..Shape::default()
            },
        ))
    }

    fn heredoc(&self, mark: &str, place: &Place<'_>, copy: &mut Copy<'a>) -> Result<()> {
        let name = mark.trim_start_matches('-').trim_matches(['"', '\'']);
        let found = self
            .instruction
            .heredocs
            .iter()
            .find(|heredoc| heredoc.name == name);
        let heredoc =
            found.ok_or_else(|| ApiError::bad_request(format!("the here-document {name} is not there")))?;
        let content = if heredoc.expands {
            let lookup = |name: &str| self.stage.variable(name);
            // Only variables are replaced in it: quotes are content.
            let quoted = heredoc.content.replace('"', "\\\"");
            word(&format!("\"{quoted}\""), self.escape, &lookup).map_err(ApiError::bad_request)?
        } else {
            heredoc.content.clone()
        };
        self.put(name, content.as_bytes(), place, copy)
    }

    fn fetched(&self, url: &str, place: &Place<'_>, copy: &mut Copy<'a>) -> Result<()> {
        let path = url.split(['?', '#']).next().unwrap_or(url);
        let name = path.rsplit('/').next().filter(|name| !name.is_empty());
        let name =
            name.ok_or_else(|| ApiError::bad_request(format!("cannot determine filename from url: {url}")))?;
        let content = (self.fetch)(url)?;
        self.put(name, &content, place, copy)
    }

    fn put(&self, name: &str, content: &[u8], place: &Place<'_>, copy: &mut Copy<'a>) -> Result<()> {
        let workspace = Workspace::new(self.store)?;
        workspace.put(name, content)?;
        let part = Part {
            from: name.to_owned(),
            to: place.of(name),
        };
        copy.sources
            .push((Source::Own(workspace), vec![part], place.shape));
        Ok(())
    }
}

/// Where files go, and how they are there.
struct Place<'a> {
    whole: &'a str,
    is_folder: bool,
    shape: Shape,
}

impl Place<'_> {
    fn of(&self, from: &str) -> String {
        if !self.is_folder {
            return self.whole.to_owned();
        }
        let name = Path::new(from).file_name().unwrap_or_default().to_string_lossy();
        format!("{}/{name}", self.whole)
    }
}

impl Copy<'_> {
    fn groups(&self) -> Vec<Group<'_>> {
        let mut groups = Vec::new();
        for (source, parts, shape) in &self.sources {
            groups.push(Group {
                files: source.files(),
                parts,
                shape: *shape,
            });
        }
        groups
    }

    /// Of the content, for the cache.
    pub(super) fn digest(&self) -> store::Result<Digest> {
        digest_groups(&self.groups())
    }

    pub(super) fn layer(&self, store: &Store, stage: &Stage) -> Result<Layer> {
        let groups = self.groups();
        let (reader, writer) =
            io::pipe().map_err(|error| ApiError::internal(format!("Cannot make a pipe: {error}.")))?;
        let (made, packed) = std::thread::scope(|scope| {
            let packing = scope.spawn(move || pack_groups(&groups, BufWriter::new(writer)));
            let made = store.add_layer(stage.chain.as_ref(), reader);
            (made, packing.join())
        });
        packed.map_err(|_| ApiError::internal("Packing the files failed."))??;
        Ok(made?)
    }
}

fn is_pattern(path: &str) -> bool {
    path.contains(['*', '?', '['])
}

/// Paths in a tree that fit a pattern, part by part; sorted.
fn matching(files: &ZoneFiles, pattern: &str) -> Result<Vec<String>> {
    let whole = clean(pattern);
    let mut found = vec![String::new()];
    for part in whole.split('/').filter(|part| !part.is_empty()) {
        let mut next = Vec::new();
        for folder in &found {
            if is_pattern(part) {
                let names = if files.is_folder(folder) {
                    files.list(folder)?
                } else {
                    Vec::new()
                };
                let fitting = names
                    .into_iter()
                    .filter(|name| fits(part.as_bytes(), name.as_bytes()));
                next.extend(fitting.map(|name| format!("{folder}/{name}")));
            } else {
                let path = format!("{folder}/{part}");
                match files.stat(&path) {
                    Ok(_) => next.push(path),
                    Err(store::Error::NoSuchPath { .. } | store::Error::NotADirectory { .. }) => {}
                    Err(error) => return Err(error.into()),
                }
            }
        }
        found = next;
    }
    Ok(found
        .into_iter()
        .map(|path| if path.is_empty() { "/".to_owned() } else { path })
        .collect())
}

/// Go's `filepath.Match` within one part of a path.
fn fits(pattern: &[u8], name: &[u8]) -> bool {
    match pattern.split_first() {
        None => name.is_empty(),
        Some((b'*', rest)) => (0..=name.len()).any(|taken| fits(rest, name.get(taken..).unwrap_or_default())),
        Some((b'[', rest)) => {
            let Some(end) = rest.iter().position(|byte| *byte == b']') else {
                return false;
            };
            let (set, after) = rest.split_at(end);
            let (negated, set) = set.strip_prefix(b"^").map_or((false, set), |set| (true, set));
            let Some((byte, name)) = name.split_first() else {
                return false;
            };
            in_set(set, *byte) != negated && fits(after.get(1..).unwrap_or_default(), name)
        }
        Some((b'\\', rest)) => match (rest.split_first(), name.split_first()) {
            (Some((wanted, rest)), Some((byte, name))) => wanted == byte && fits(rest, name),
            _ => false,
        },
        Some((wanted, rest)) => match name.split_first() {
            Some((byte, name)) => (*wanted == b'?' || wanted == byte) && fits(rest, name),
            None => false,
        },
    }
}

fn in_set(mut set: &[u8], byte: u8) -> bool {
    while let Some((first, rest)) = set.split_first() {
        match rest {
            [b'-', last, after @ ..] => {
                if (*first..=*last).contains(&byte) {
                    return true;
                }
                set = after;
            }
            _ => {
                if *first == byte {
                    return true;
                }
                set = rest;
            }
        }
    }
    false
}

/// Whether `ADD` unpacks a file: by its first bytes, as Docker does.
fn is_archive(files: &ZoneFiles, path: &str) -> Result<bool> {
    let start = files.beginning(path, BEGINNING)?;
    let has = |at: usize, magic: &[u8]| start.get(at..).is_some_and(|rest| rest.starts_with(magic));
    Ok(has(0, &[0x1f, 0x8b])
        || has(0, &[0x28, 0xb5, 0x2f, 0xfd])
        || has(257, b"ustar")
        || has(0, b"BZh")
        || has(0, b"\xfd7zXZ"))
}

#[cfg(test)]
mod tests {
    use super::fits;

    #[test]
    fn patterns_match_as_gos_do() {
        for (pattern, name, expected) in [
            ("*.txt", "a.txt", true),
            ("*.txt", "a.tx", false),
            ("a?c", "abc", true),
            ("[a-c]x", "bx", true),
            ("[^a-c]x", "bx", false),
            ("\\*", "*", true),
            ("*", "", true),
            ("[", "[", false),
        ] {
            assert_eq!(
                fits(pattern.as_bytes(), name.as_bytes()),
                expected,
                "{pattern} {name}"
            );
        }
    }
}
