//! Sending: the kernel's stream between a label and a digest.

use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;

use sys::{btrfs_quota, btrfs_snapshots};

use super::{END, Label, Sort, beginning, hex};
use crate::digest::Hasher;
use crate::error::{During, Error, Result};
use crate::snapshot::Of;
use crate::store::Store;

/// A snapshot that can be sent.
#[derive(Debug)]
pub struct Sending {
    snapshot: OwnedFd,
    /// Id of the subvolume that it is the difference to, and that itself: it must stay.
    from: Option<(u64, OwnedFd)>,
    beginning: Vec<u8>,
}

impl Store {
    /// Prepares to send a snapshot of a zone or volume that is called `name` elsewhere: whole, or what it
    /// differs in from the snapshot `from`.
    ///
    /// # Errors
    /// One of the snapshots is not there.
    pub fn sending(
        &self,
        of: Of<'_>,
        snapshot: &str,
        from: Option<&str>,
        name: &str,
        about: serde_json::Value,
    ) -> Result<Sending> {
        let subvolume = self.open_snapshot(of, snapshot)?;
        let from = match from {
            None => None,
            Some(from) => {
                let from = self.open_snapshot(of, from)?;
                let id = btrfs_quota::subvolume_id(&from).during("look at a snapshot")?;
                Some((id, from))
            }
        };
        let label = Label {
            kind: match of {
                Of::Zone(_) => Sort::Zone,
                Of::Volume(_) => Sort::Volume,
            },
            name: name.to_owned(),
            snapshot: snapshot.to_owned(),
            uuid: identity(&subvolume)?,
            from: from.as_ref().map(|(_, from)| identity(from)).transpose()?,
            about,
        };
        Ok(Sending {
            beginning: beginning(&label)?,
            snapshot: subvolume,
            from,
        })
    }
}

/// What a snapshot is known by on each machine.
pub(super) fn identity(snapshot: &OwnedFd) -> Result<String> {
    let info = btrfs_snapshots::info(snapshot).during("look at a snapshot")?;
    Ok(hex(&info.received.unwrap_or(info.uuid)))
}

impl Sending {
    /// All that comes before the content.
    pub fn beginning(&self) -> &[u8] {
        &self.beginning
    }

    /// Writes the whole to `to`, without its first `skip` bytes.
    ///
    /// # Errors
    /// The pool cannot be read, or `to` takes no more.
    pub fn write(self, skip: u64, to: impl Write) -> Result<()> {
        let mut to = Skipping {
            to,
            left: skip,
            hash: Hasher::default(),
        };
        let Sending {
            snapshot,
            from,
            beginning,
        } = self;
        to.put(&beginning).map_err(stopped)?;
        let (mut reader, writer) = io::pipe().during("make a pipe")?;
        let copied = std::thread::scope(|scope| {
            let sending = scope.spawn(move || {
                let from = from.as_ref().map(|(id, _)| *id);
                btrfs_snapshots::send(&snapshot, from, &writer)
            });
            let mut buffer = vec![0; 128 << 10];
            let copied = loop {
                match reader.read(&mut buffer) {
                    Ok(0) => break Ok(()),
                    Ok(count) => {
                        if let Err(error) = to.put(buffer.get(..count).unwrap_or_default()) {
                            break Err(error);
                        }
                    }
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => break Err(error),
                }
            };
            // The kernel stops where nobody reads.
            drop(reader);
            let sent = sending
                .join()
                .unwrap_or_else(|_| Err(io::Error::other("a thread of it panicked")));
            copied.map(|()| sent)
        });
        copied.map_err(stopped)?.during("read a snapshot")?;
        to.finish().map_err(stopped)
    }
}

fn stopped(error: io::Error) -> Error {
    Error::io("send a snapshot on", error)
}

/// Passes on what comes after the first bytes, and knows the digest of all.
struct Skipping<W> {
    to: W,
    left: u64,
    hash: Hasher,
}

impl<W: Write> Skipping<W> {
    fn put(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.hash.update(bytes);
        self.pass(bytes)
    }

    fn pass(&mut self, bytes: &[u8]) -> io::Result<()> {
        let skipped = usize::try_from(self.left).unwrap_or(usize::MAX).min(bytes.len());
        self.left -= skipped as u64;
        self.to.write_all(bytes.get(skipped..).unwrap_or_default())
    }

    fn finish(mut self) -> io::Result<()> {
        let (digest, _) = std::mem::take(&mut self.hash).finish();
        self.pass(END)?;
        self.pass(&digest.bytes())?;
        self.to.flush()
    }
}
