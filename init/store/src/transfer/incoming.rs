//! What comes from another machine, until it is whole: a file a transfer, `store/incoming/ID`, which goes
//! on where it was cut off, after a boot too. One that nobody goes on with is removed in a week.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek, SeekFrom, Write};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use super::{DIGEST, END, Label, bad, read_beginning, transfer_id};
use crate::blob::BlobReader;
use crate::digest::{Digest, Hasher};
use crate::error::{During, Error, Result};
use crate::store::{Store, names};

const INCOMING: &str = "store/incoming";
const KEPT: Duration = Duration::from_secs(7 * 24 * 3600);

/// How much of a transfer is on the disk for certain, in decimal digits. Its length does not tell: btrfs
/// may keep that before the bytes, and a power cut between the two leaves zeros in their place.
const CERTAIN: &str = "user.monobloc.certain";
/// Bytes between two waits for the disk; so much at most is sent again after a power cut.
const STEP: u64 = 4 << 20;

/// A transfer that somebody goes on with, who is the only one.
#[derive(Debug)]
pub struct Incoming {
    file: File,
    /// Its length, and how much of it is on the disk for certain.
    length: u64,
    certain: u64,
    _turn: Turn,
}

/// Held by the one who has to do with a transfer.
#[derive(Debug)]
struct Turn {
    all: Arc<Mutex<BTreeSet<String>>>,
    id: String,
}

impl Turn {
    fn take(store: &Store, id: &str) -> Result<Turn> {
        let mut all = store.receiving.lock().unwrap_or_else(PoisonError::into_inner);
        if !all.insert(id.to_owned()) {
            return Err(Error::Refused(
                "Another client goes on with this transfer; wait for it, or stop it.".to_owned(),
            ));
        }
        Ok(Turn {
            all: store.receiving.clone(),
            id: id.to_owned(),
        })
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut all = self.all.lock().unwrap_or_else(PoisonError::into_inner);
        all.remove(&self.id);
    }
}

/// A transfer that has come whole and undamaged.
#[derive(Debug)]
pub struct Arrived {
    pub label: Label,
    pub(super) file: File,
    /// Where the content begins and ends.
    pub(super) content: (u64, u64),
    path: PathBuf,
    _turn: Turn,
}

impl Store {
    fn transfer_path(&self, id: &str) -> Result<PathBuf> {
        if Digest::from_hex(id).is_none() {
            return Err(Error::BadName { name: id.to_owned() });
        }
        Ok(self.path().join(INCOMING).join(id))
    }

    /// Bytes that have come of a transfer.
    pub fn received(&self, id: &str) -> Result<u64> {
        match fs::metadata(self.transfer_path(id)?) {
            Ok(about) => Ok(about.len()),
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(0),
            Err(reason) => Err(Error::io("look for a transfer", reason)),
        }
    }

    /// Transfers that are not whole, with what has come of each.
    pub fn transfers(&self) -> Result<Vec<(String, u64)>> {
        let found = names(&self.path().join(INCOMING))?;
        found
            .into_iter()
            .map(|id| Ok((id.clone(), self.received(&id)?)))
            .collect()
    }

    /// Goes on with a transfer at byte `offset`, which is where it was cut off.
    ///
    /// # Errors
    /// [`Error::Refused`] where that is elsewhere, or somebody else goes on with it.
    pub fn receive(&self, id: &str, offset: u64) -> Result<Incoming> {
        let path = self.transfer_path(id)?;
        let turn = Turn::take(self, id)?;
        let what = "open the file of a transfer";
        let open = || File::options().append(true).create(true).open(&path);
        let file = open().during(what)?;
        let length = file.metadata().during(what)?.len();
        if length != offset {
            return Err(Error::Refused(format!(
                "{length} bytes of this transfer have come; go on from there."
            )));
        }
        Ok(Incoming {
            file,
            length,
            certain: certain(&path)?,
            _turn: turn,
        })
    }

    /// Checks that a transfer is whole.
    ///
    /// # Errors
    /// [`Error::BadStream`] where it is not; one that is damaged is removed.
    pub fn arrived(&self, id: &str, tell: &mut dyn FnMut(u64, u64)) -> Result<Arrived> {
        let path = self.transfer_path(id)?;
        let turn = Turn::take(self, id)?;
        let what = "read a transfer";
        let file = File::options().read(true).write(true).open(&path).during(what)?;
        match check(&file, id, tell) {
            Ok((label, content)) => Ok(Arrived {
                label,
                file,
                content,
                path,
                _turn: turn,
            }),
            Err(error) => {
                if matches!(error, Error::BadStream { .. }) && is_ended(&file).unwrap_or(false) {
                    // It would never come right.
                    fs::remove_file(&path).during("remove a damaged transfer")?;
                }
                Err(error)
            }
        }
    }

    /// Removes what has come of a transfer. Removing what is not there succeeds.
    pub fn forget_transfer(&self, id: &str) -> Result<()> {
        let path = self.transfer_path(id)?;
        let _turn = Turn::take(self, id)?;
        match fs::remove_file(path) {
            Err(reason) if reason.kind() == io::ErrorKind::NotFound => Ok(()),
            other => other.during("remove a transfer"),
        }
    }

    /// Removes what nobody has gone on with for long, and of the others what a power cut may have spoilt.
    pub(crate) fn collect_transfers(&self) -> Result<()> {
        let what = "remove old transfers";
        let dir = self.path().join(INCOMING);
        fs::create_dir_all(&dir).during(what)?;
        for name in names(&dir)? {
            let path = dir.join(&name);
            let changed = fs::metadata(&path)
                .and_then(|about| about.modified())
                .during(what)?;
            let age = SystemTime::now().duration_since(changed).unwrap_or_default();
            if age > KEPT || Digest::from_hex(&name).is_none() {
                fs::remove_file(&path).during(what)?;
                continue;
            }
            let file = File::options().write(true).open(&path).during(what)?;
            file.set_len(certain(&path)?).during(what)?;
        }
        Ok(())
    }
}

/// Bytes of a transfer that are on the disk for certain.
fn certain(path: &Path) -> Result<u64> {
    let mut value = [0; 20];
    let length = match rustix::fs::getxattr(path, CERTAIN, &mut value[..]) {
        Ok(length) => length,
        Err(rustix::io::Errno::NODATA) => return Ok(0),
        Err(reason) => return Err(Error::io("see what is whole of a transfer", reason)),
    };
    let digits = value.get(..length).and_then(|digits| str::from_utf8(digits).ok());
    Ok(digits.and_then(|digits| digits.parse().ok()).unwrap_or(0))
}

impl Write for Incoming {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        let count = self.file.write(buffer)?;
        self.length += count as u64;
        if self.length - self.certain >= STEP {
            self.settle()?;
        }
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Whoever goes on begins here, after a power cut too.
impl Drop for Incoming {
    fn drop(&mut self) {
        // Where that fails, what is certain is what was so before.
        let _ = self.settle();
    }
}

impl Incoming {
    /// Waits until all that has come is on the disk, and keeps that it is.
    fn settle(&mut self) -> io::Result<()> {
        if self.certain == self.length {
            return Ok(());
        }
        self.file.sync_data()?;
        let value = self.length.to_string();
        let flags = rustix::fs::XattrFlags::empty();
        rustix::fs::fsetxattr(&self.file, CERTAIN, value.as_bytes(), flags)?;
        self.file.sync_all()?;
        self.certain = self.length;
        Ok(())
    }

    /// # Errors
    /// The pool is full.
    pub fn put(&mut self, bytes: &[u8]) -> Result<()> {
        self.write_all(bytes).during("keep what comes of a transfer")
    }
}

impl Arrived {
    pub(super) fn reader(&self) -> Result<impl Read> {
        let file = self.file.try_clone().during("read a transfer")?;
        let (begin, end) = self.content;
        let part = BlobReader::part(Arc::new(file), begin, end - begin);
        Ok(BufReader::with_capacity(256 << 10, part))
    }

    /// It is in its place: what came of it goes.
    ///
    /// # Errors
    /// It cannot be removed.
    pub fn done(self) -> Result<()> {
        fs::remove_file(&self.path).during("remove a transfer that is done")
    }
}

fn ending(file: &File) -> io::Result<([u8; END.len()], [u8; DIGEST], u64)> {
    let length = file.metadata()?.len();
    let end = length
        .checked_sub((END.len() + DIGEST) as u64)
        .ok_or(io::ErrorKind::UnexpectedEof)?;
    let (mut mark, mut digest) = ([0; END.len()], [0; DIGEST]);
    file.read_exact_at(&mut mark, end)?;
    file.read_exact_at(&mut digest, end + END.len() as u64)?;
    Ok((mark, digest, end))
}

fn is_ended(file: &File) -> io::Result<bool> {
    Ok(ending(file)?.0 == *END)
}

fn check(mut file: &File, id: &str, tell: &mut dyn FnMut(u64, u64)) -> Result<(Label, (u64, u64))> {
    let cut = || bad("it was cut off; send it once more, and it goes on where it was");
    let (mark, promised, end) = ending(file).map_err(|_| cut())?;
    if mark != *END {
        return Err(cut());
    }
    let what = "read a transfer";
    file.seek(SeekFrom::Start(0)).during(what)?;
    let (label, begin) = read_beginning(&mut file)?;
    if transfer_id(&label) != id {
        return Err(bad("its label is another's"));
    }
    file.seek(SeekFrom::Start(0)).during(what)?;
    let mut hash = Hasher::default();
    let mut rest = file.take(end);
    let mut buffer = vec![0; 256 << 10];
    let mut done = 0;
    loop {
        let count = rest.read(&mut buffer).during(what)?;
        if count == 0 {
            break;
        }
        hash.update(buffer.get(..count).unwrap_or_default());
        done += count as u64;
        tell(done, end);
    }
    let (found, length) = hash.finish();
    if found.bytes() != promised || length != end || begin > end {
        return Err(bad(
            "its digest is another than was promised: it was damaged on the way",
        ));
    }
    Ok((Label::parse(&label)?, (begin, end)))
}
