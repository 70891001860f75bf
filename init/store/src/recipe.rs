//! How a layer's tar is made again from its tree: byte for byte, so that its digest is the same.
//!
//! A tree says nothing of the order, the headers and the padding of the archive that it came from. They are
//! kept in `store/recipes/HEX`, compressed, with a reference in place of each file's content. The recipe is
//! written while the layer is placed, and what it makes is held against the layer's digest whenever it is
//! used.

use std::fs::{self, File};
use std::io::{self, BufReader, BufWriter, Read, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::PathBuf;

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use sha2::{Digest as _, Sha256};

use crate::digest::{ChainId, Digest};
use crate::error::{During, Error, Result};
use crate::store::Store;

const RECIPES: &str = "recipes";
/// Bytes of the archive that are kept together.
const RAW: usize = 64 << 10;
/// What a part of a recipe is.
const KIND_RAW: u8 = 0;
const KIND_FILE: u8 = 1;
/// zstd's: what is kept is mostly zeros, and its making must not be felt.
const LEVEL: i32 = 1;
const BUFFER: usize = 128 << 10;

/// A recipe while its layer is placed.
pub(crate) struct Writer {
    out: zstd::Encoder<'static, BufWriter<File>>,
    raw: Vec<u8>,
    /// The file whose content is read at present: path in the tree, offset, and bytes so far.
    file: Option<(Vec<u8>, u64, u64)>,
    /// The archive cannot be made again from the tree.
    spoiled: bool,
    failure: Option<io::Error>,
}

impl Writer {
    fn new(file: File) -> io::Result<Writer> {
        Ok(Writer {
            out: zstd::Encoder::new(BufWriter::new(file), LEVEL)?,
            raw: Vec::new(),
            file: None,
            spoiled: false,
            failure: None,
        })
    }

    /// The next bytes of content are those of a file in the tree from an offset on.
    pub(crate) fn begin_file(&mut self, path: &[u8], offset: u64) {
        self.end_file();
        self.file = Some((path.to_vec(), offset, 0));
    }

    /// What follows is no file's content.
    pub(crate) fn end_file(&mut self) {
        if let Some((path, offset, length)) = self.file.take().filter(|(_, _, length)| *length > 0) {
            self.flush_raw();
            self.put(|out| {
                let name = u16::try_from(path.len()).map_err(io::Error::other)?;
                out.write_all(&[KIND_FILE])?;
                out.write_all(&offset.to_le_bytes())?;
                out.write_all(&length.to_le_bytes())?;
                out.write_all(&name.to_le_bytes())?;
                out.write_all(&path)
            });
        }
    }

    /// Takes bytes of the archive, in its order.
    pub(crate) fn take(&mut self, bytes: &[u8]) {
        if let Some((_, _, length)) = &mut self.file {
            *length += bytes.len() as u64;
            return;
        }
        for part in bytes.chunks(RAW) {
            if self.raw.len() + part.len() > RAW {
                self.flush_raw();
            }
            self.raw.extend_from_slice(part);
        }
    }

    /// A file that was placed is no longer in the tree as it was: the archive cannot be made again.
    pub(crate) fn spoil(&mut self) {
        self.spoiled = true;
    }

    fn flush_raw(&mut self) {
        if self.raw.is_empty() {
            return;
        }
        let raw = std::mem::take(&mut self.raw);
        self.put(|out| {
            out.write_all(&[KIND_RAW])?;
            out.write_all(&(raw.len() as u32).to_le_bytes())?;
            out.write_all(&raw)
        });
        self.raw = raw;
        self.raw.clear();
    }

    fn put(&mut self, write: impl FnOnce(&mut dyn Write) -> io::Result<()>) {
        if self.failure.is_none()
            && let Err(reason) = write(&mut self.out)
        {
            self.failure = Some(reason);
        }
    }

    fn finish(mut self) -> io::Result<()> {
        self.end_file();
        self.flush_raw();
        if let Some(reason) = self.failure {
            return Err(reason);
        }
        let mut file = self.out.finish()?;
        file.flush()
    }
}

/// A part of a recipe.
enum Part {
    Raw(Vec<u8>),
    File { path: Vec<u8>, offset: u64, length: u64 },
}

struct Reader(BufReader<zstd::Decoder<'static, BufReader<File>>>);

impl Reader {
    fn open(file: File) -> io::Result<Reader> {
        Ok(Reader(BufReader::new(zstd::Decoder::new(file)?)))
    }

    fn next(&mut self) -> io::Result<Option<Part>> {
        let mut kind = [0];
        if self.0.read(&mut kind)? == 0 {
            return Ok(None);
        }
        let mut word = [0; 8];
        match kind[0] {
            KIND_RAW => {
                self.0.read_exact(&mut word[..4])?;
                let length = u64::from_le_bytes(word) as usize;
                if length > RAW {
                    return Err(damaged());
                }
                let mut raw = vec![0; length];
                self.0.read_exact(&mut raw)?;
                Ok(Some(Part::Raw(raw)))
            }
            KIND_FILE => {
                self.0.read_exact(&mut word)?;
                let offset = u64::from_le_bytes(word);
                self.0.read_exact(&mut word)?;
                let length = u64::from_le_bytes(word);
                let mut name = [0; 2];
                self.0.read_exact(&mut name)?;
                let mut path = vec![0; usize::from(u16::from_le_bytes(name))];
                self.0.read_exact(&mut path)?;
                Ok(Some(Part::File { path, offset, length }))
            }
            _ => Err(damaged()),
        }
    }
}

fn damaged() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it is damaged")
}

impl Store {
    fn recipe_path(&self, chain: &ChainId) -> PathBuf {
        self.path().join("store").join(RECIPES).join(chain.hex())
    }

    /// Begins the recipe of a layer under construction, of the name of its draft.
    pub(crate) fn start_recipe(&self, draft: &str) -> Result<Writer> {
        let path = self.draft_recipe(draft);
        let made = File::create(&path).and_then(Writer::new);
        made.during("begin the recipe of a layer")
    }

    fn draft_recipe(&self, draft: &str) -> PathBuf {
        self.tmp_path().join(format!("{draft}.recipe"))
    }

    /// Ends a recipe and puts it in its place, before the layer is.
    pub(crate) fn keep_recipe(&self, recipe: Writer, draft: &str, chain: &ChainId) -> Result<()> {
        let (what, path) = ("keep the recipe of a layer", self.draft_recipe(draft));
        if recipe.spoiled {
            // The layer is good; only its archive cannot be had again.
            return fs::remove_file(&path).during(what);
        }
        recipe.finish().during(what)?;
        fs::rename(&path, self.recipe_path(chain)).during(what)
    }

    /// Removes what an unfinished layer has of a recipe.
    pub(crate) fn drop_recipe(&self, draft: &str) {
        let _ = fs::remove_file(self.draft_recipe(draft));
    }

    pub(crate) fn remove_recipe(&self, chain: &ChainId) -> Result<()> {
        match fs::remove_file(self.recipe_path(chain)) {
            Err(reason) if reason.kind() != io::ErrorKind::NotFound => {
                Err(Error::io(format!("remove the recipe of layer {chain}"), reason))
            }
            _ => Ok(()),
        }
    }

    /// Makes the folder of recipes, and removes those that no layer has.
    pub(crate) fn collect_recipes(&self, is_layer: impl Fn(&ChainId) -> bool) -> Result<()> {
        let folder = self.path().join("store").join(RECIPES);
        fs::create_dir_all(&folder).during("make the folder of recipes")?;
        for name in crate::store::names(&folder)? {
            if !Digest::from_hex(&name).is_some_and(|digest| is_layer(&ChainId(digest))) {
                fs::remove_file(folder.join(name)).during("remove a leftover recipe")?;
            }
        }
        Ok(())
    }

    /// Bytes of a layer's tar.
    ///
    /// # Errors
    /// As [`Store::pack_layer`].
    pub fn layer_tar_bytes(&self, chain: &ChainId) -> Result<u64> {
        let mut reader = self.recipe(chain)?;
        let mut total = 0;
        while let Some(part) = reader
            .next()
            .during(format!("read the recipe of layer {chain}"))?
        {
            total += match part {
                Part::Raw(raw) => raw.len() as u64,
                Part::File { length, .. } => length,
            };
        }
        Ok(total)
    }

    /// Bytes of a layer's files.
    pub(crate) fn layer_content_bytes(&self, chain: &ChainId) -> Result<u64> {
        let mut reader = self.recipe(chain)?;
        let mut total = 0;
        while let Some(part) = reader
            .next()
            .during(format!("read the recipe of layer {chain}"))?
        {
            if let Part::File { length, .. } = part {
                total += length;
            }
        }
        Ok(total)
    }

    /// Writes a layer's tar, the same bytes that it came as (uncompressed).
    ///
    /// # Errors
    /// The layer was made by a version that kept no recipe, or its archive named a file twice; a file is
    /// damaged; `to` takes no more.
    pub fn pack_layer(&self, chain: &ChainId, to: &mut dyn Write) -> Result<()> {
        let what = || format!("make the archive of layer {chain}");
        let layer = self.layer(chain).ok_or(Error::MissingLayer { chain: *chain })?;
        let mut reader = self.recipe(chain)?;
        let tree: OwnedFd = File::open(self.path().join("store/layers").join(chain.hex()))
            .during(what())?
            .into();
        let mut hash = Sha256::new();
        let mut buffer = vec![0; BUFFER];
        while let Some(part) = reader.next().during(what())? {
            match part {
                Part::Raw(raw) => {
                    hash.update(&raw);
                    to.write_all(&raw).during(what())?;
                }
                Part::File { path, offset, length } => {
                    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
                    let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_XDEV;
                    let file = openat2(&tree, path.as_slice(), flags, Mode::empty(), resolve);
                    let file = File::from(file.during(what())?);
                    let (mut at, end) = (offset, offset.saturating_add(length));
                    while at < end {
                        let wanted = buffer.len().min(usize::try_from(end - at).unwrap_or(usize::MAX));
                        let part = buffer.get_mut(..wanted).unwrap_or_default();
                        file.read_exact_at(part, at).during(what())?;
                        hash.update(&*part);
                        to.write_all(part).during(what())?;
                        at += wanted as u64;
                    }
                }
            }
        }
        let found = Digest::from_hash(hash);
        if found == layer.diff_id {
            return Ok(());
        }
        Err(Error::WrongDigest {
            expected: layer.diff_id,
            found,
        })
    }

    fn recipe(&self, chain: &ChainId) -> Result<Reader> {
        let file = File::open(self.recipe_path(chain)).map_err(|reason| match reason.kind() {
            io::ErrorKind::NotFound => Error::Refused(format!(
                "The archive of layer {chain} cannot be made again: it was not kept how, or it names a file twice. Build or pull its image anew."
            )),
            _ => Error::io(format!("open the recipe of layer {chain}"), reason),
        })?;
        Reader::open(file).during(format!("read the recipe of layer {chain}"))
    }
}
