//! Reads the stream of btrfs-send(8), version 1 (`fs/btrfs/send.h` of the kernel): commands, each with
//! attributes. Its own checksums are not looked at: the digest of the whole was right.

use std::io::{self, Read};

use sys::btrfs_snapshots::Uuid;

use super::invalid;

const MAGIC: &[u8; 13] = b"btrfs-stream\0";
const VERSION: u32 = 1;
/// The kernel's commands are of 64 KiB at most.
const MAX_COMMAND: u32 = 1 << 20;
const HEADER: usize = 10;
/// Kinds of attributes of this version, and the one that means nothing.
const KINDS: usize = 25;

/// `btrfs_send_cmd`.
mod command {
    pub(super) const SUBVOL: u16 = 1;
    pub(super) const SNAPSHOT: u16 = 2;
    pub(super) const MKFILE: u16 = 3;
    pub(super) const MKDIR: u16 = 4;
    pub(super) const MKNOD: u16 = 5;
    pub(super) const MKFIFO: u16 = 6;
    pub(super) const MKSOCK: u16 = 7;
    pub(super) const SYMLINK: u16 = 8;
    pub(super) const RENAME: u16 = 9;
    pub(super) const LINK: u16 = 10;
    pub(super) const UNLINK: u16 = 11;
    pub(super) const RMDIR: u16 = 12;
    pub(super) const SET_XATTR: u16 = 13;
    pub(super) const REMOVE_XATTR: u16 = 14;
    pub(super) const WRITE: u16 = 15;
    pub(super) const CLONE: u16 = 16;
    pub(super) const TRUNCATE: u16 = 17;
    pub(super) const CHMOD: u16 = 18;
    pub(super) const CHOWN: u16 = 19;
    pub(super) const UTIMES: u16 = 20;
    pub(super) const END: u16 = 21;
}

/// `BTRFS_SEND_A_*`.
mod attribute {
    pub(super) const UUID: usize = 1;
    pub(super) const SIZE: usize = 4;
    pub(super) const MODE: usize = 5;
    pub(super) const UID: usize = 6;
    pub(super) const GID: usize = 7;
    pub(super) const RDEV: usize = 8;
    pub(super) const MTIME: usize = 10;
    pub(super) const ATIME: usize = 11;
    pub(super) const XATTR_NAME: usize = 13;
    pub(super) const XATTR_DATA: usize = 14;
    pub(super) const PATH: usize = 15;
    pub(super) const PATH_TO: usize = 16;
    pub(super) const PATH_LINK: usize = 17;
    pub(super) const FILE_OFFSET: usize = 18;
    pub(super) const DATA: usize = 19;
    pub(super) const CLONE_UUID: usize = 20;
    pub(super) const CLONE_PATH: usize = 22;
    pub(super) const CLONE_OFFSET: usize = 23;
    pub(super) const CLONE_LEN: usize = 24;
}

/// Seconds and nanoseconds since 1970.
pub(super) type Moment = (i64, i64);

/// One step. Paths are relative to the subvolume's root, which is the empty one.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Step<'a> {
    /// The first: which subvolume this makes, and from which.
    Begin {
        uuid: Uuid,
        from: Option<Uuid>,
    },
    File(&'a [u8]),
    Folder(&'a [u8]),
    /// A device node; the mode has its kind.
    Node {
        path: &'a [u8],
        mode: u32,
        device: (u32, u32),
    },
    Fifo(&'a [u8]),
    Socket(&'a [u8]),
    Symlink {
        path: &'a [u8],
        target: &'a [u8],
    },
    Rename {
        path: &'a [u8],
        to: &'a [u8],
    },
    /// One more name of what `target` names.
    Link {
        path: &'a [u8],
        target: &'a [u8],
    },
    Unlink(&'a [u8]),
    RemoveFolder(&'a [u8]),
    SetXattr {
        path: &'a [u8],
        name: &'a [u8],
        value: &'a [u8],
    },
    RemoveXattr {
        path: &'a [u8],
        name: &'a [u8],
    },
    Write {
        path: &'a [u8],
        offset: u64,
        data: &'a [u8],
    },
    /// A part of a file of this subvolume, or of that which it is made from.
    Clone {
        path: &'a [u8],
        offset: u64,
        length: u64,
        source: Uuid,
        from: &'a [u8],
        from_offset: u64,
    },
    Truncate {
        path: &'a [u8],
        size: u64,
    },
    Mode {
        path: &'a [u8],
        mode: u32,
    },
    Owner {
        path: &'a [u8],
        uid: u32,
        gid: u32,
    },
    Times {
        path: &'a [u8],
        accessed: Moment,
        modified: Moment,
    },
    End,
}

/// Takes a stream apart.
pub(super) struct Steps<R> {
    from: R,
    buffer: Vec<u8>,
    /// Bytes that were read.
    pub(super) done: u64,
}

impl<R: Read> Steps<R> {
    pub(super) fn begin(mut from: R) -> io::Result<Steps<R>> {
        let mut magic = [0; MAGIC.len()];
        let mut version = [0; 4];
        from.read_exact(&mut magic)?;
        from.read_exact(&mut version)?;
        if magic != *MAGIC || u32::from_le_bytes(version) != VERSION {
            return Err(invalid("it is no btrfs stream of version 1"));
        }
        Ok(Steps {
            from,
            buffer: Vec::new(),
            done: (MAGIC.len() + 4) as u64,
        })
    }

    pub(super) fn next(&mut self) -> io::Result<Step<'_>> {
        let mut header = [0; HEADER];
        self.from.read_exact(&mut header)?;
        let [a, b, c, d, low, high, ..] = header;
        let length = u32::from_le_bytes([a, b, c, d]);
        if length > MAX_COMMAND {
            return Err(invalid("a command of its stream is too long"));
        }
        self.buffer.resize(length as usize, 0);
        self.from.read_exact(&mut self.buffer)?;
        self.done += HEADER as u64 + u64::from(length);
        step(u16::from_le_bytes([low, high]), &Attributes::read(&self.buffer)?)
    }

    /// Whether nothing comes after the last step.
    pub(super) fn nothing_follows(mut self) -> io::Result<bool> {
        Ok(self.from.read(&mut [0])? == 0)
    }
}

/// The attributes of one command, by kind.
struct Attributes<'a>([Option<&'a [u8]>; KINDS]);

impl<'a> Attributes<'a> {
    fn read(mut bytes: &'a [u8]) -> io::Result<Self> {
        let cut = || invalid("a command of its stream is cut off");
        let mut all = [None; KINDS];
        while let Some(([a, b, c, d], rest)) = bytes.split_first_chunk() {
            let (kind, length) = (u16::from_le_bytes([*a, *b]), u16::from_le_bytes([*c, *d]));
            let (value, rest) = rest.split_at_checked(length.into()).ok_or_else(cut)?;
            let known = all.get_mut(usize::from(kind));
            *known.ok_or_else(|| invalid(format!("its stream has an attribute {kind}")))? = Some(value);
            bytes = rest;
        }
        if bytes.is_empty() {
            Ok(Self(all))
        } else {
            Err(cut())
        }
    }

    fn bytes(&self, kind: usize) -> io::Result<&'a [u8]> {
        let value = self.0.get(kind).copied().flatten();
        value.ok_or_else(|| invalid(format!("a command of its stream lacks the attribute {kind}")))
    }

    fn array<const N: usize>(&self, kind: usize) -> io::Result<[u8; N]> {
        let bytes = self.bytes(kind)?;
        bytes
            .try_into()
            .map_err(|_| invalid(format!("an attribute {kind} of its stream has a wrong length")))
    }

    fn number(&self, kind: usize) -> io::Result<u64> {
        Ok(u64::from_le_bytes(self.array(kind)?))
    }

    fn small(&self, kind: usize) -> io::Result<u32> {
        u32::try_from(self.number(kind)?)
            .map_err(|_| invalid(format!("an attribute {kind} of its stream is too large")))
    }

    fn moment(&self, kind: usize) -> io::Result<Moment> {
        let [a, b, c, d, e, f, g, h, i, j, k, l] = self.array(kind)?;
        let seconds = i64::from_le_bytes([a, b, c, d, e, f, g, h]);
        Ok((seconds, i64::from(u32::from_le_bytes([i, j, k, l]))))
    }
}

fn step<'a>(kind: u16, all: &Attributes<'a>) -> io::Result<Step<'a>> {
    let path = || all.bytes(attribute::PATH);
    Ok(match kind {
        command::SUBVOL => Step::Begin {
            uuid: all.array(attribute::UUID)?,
            from: None,
        },
        command::SNAPSHOT => Step::Begin {
            uuid: all.array(attribute::UUID)?,
            from: Some(all.array(attribute::CLONE_UUID)?),
        },
        command::MKFILE => Step::File(path()?),
        command::MKDIR => Step::Folder(path()?),
        command::MKNOD => Step::Node {
            path: path()?,
            mode: all.small(attribute::MODE)?,
            device: device(all.number(attribute::RDEV)?),
        },
        command::MKFIFO => Step::Fifo(path()?),
        command::MKSOCK => Step::Socket(path()?),
        command::SYMLINK => Step::Symlink {
            path: path()?,
            target: all.bytes(attribute::PATH_LINK)?,
        },
        command::RENAME => Step::Rename {
            path: path()?,
            to: all.bytes(attribute::PATH_TO)?,
        },
        command::LINK => Step::Link {
            path: path()?,
            target: all.bytes(attribute::PATH_LINK)?,
        },
        command::UNLINK => Step::Unlink(path()?),
        command::RMDIR => Step::RemoveFolder(path()?),
        command::SET_XATTR => Step::SetXattr {
            path: path()?,
            name: all.bytes(attribute::XATTR_NAME)?,
            value: all.bytes(attribute::XATTR_DATA)?,
        },
        command::REMOVE_XATTR => Step::RemoveXattr {
            path: path()?,
            name: all.bytes(attribute::XATTR_NAME)?,
        },
        command::WRITE => Step::Write {
            path: path()?,
            offset: all.number(attribute::FILE_OFFSET)?,
            data: all.bytes(attribute::DATA)?,
        },
        command::CLONE => Step::Clone {
            path: path()?,
            offset: all.number(attribute::FILE_OFFSET)?,
            length: all.number(attribute::CLONE_LEN)?,
            source: all.array(attribute::CLONE_UUID)?,
            from: all.bytes(attribute::CLONE_PATH)?,
            from_offset: all.number(attribute::CLONE_OFFSET)?,
        },
        command::TRUNCATE => Step::Truncate {
            path: path()?,
            size: all.number(attribute::SIZE)?,
        },
        command::CHMOD => Step::Mode {
            path: path()?,
            mode: all.small(attribute::MODE)?,
        },
        command::CHOWN => Step::Owner {
            path: path()?,
            uid: all.small(attribute::UID)?,
            gid: all.small(attribute::GID)?,
        },
        command::UTIMES => Step::Times {
            path: path()?,
            accessed: all.moment(attribute::ATIME)?,
            modified: all.moment(attribute::MTIME)?,
        },
        command::END => Step::End,
        other => return Err(invalid(format!("its stream has a command {other}"))),
    })
}

/// Major and minor number, as `new_encode_dev` of the kernel packs them.
fn device(packed: u64) -> (u32, u32) {
    let packed = packed as u32;
    (
        (packed & 0xf_ff00) >> 8,
        (packed & 0xff) | ((packed >> 12) & 0xf_ff00),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn command(kind: u16, attributes: &[(u16, &[u8])]) -> Vec<u8> {
        let mut body = Vec::new();
        for (kind, value) in attributes {
            body.extend_from_slice(&kind.to_le_bytes());
            body.extend_from_slice(&(value.len() as u16).to_le_bytes());
            body.extend_from_slice(value);
        }
        let mut all = (body.len() as u32).to_le_bytes().to_vec();
        all.extend_from_slice(&kind.to_le_bytes());
        all.extend_from_slice(&[0; 4]);
        all.extend(body);
        all
    }

    fn stream(commands: &[Vec<u8>]) -> Vec<u8> {
        [MAGIC.as_slice(), &1_u32.to_le_bytes(), &commands.concat()].concat()
    }

    #[test]
    fn a_stream_is_taken_apart() {
        let bytes = stream(&[
            command(1, &[(15, b"x"), (1, &[7; 16]), (2, &[0; 8])]),
            command(15, &[(15, b"a/b"), (18, &4_u64.to_le_bytes()), (19, b"data")]),
            command(21, &[]),
        ]);
        let mut steps = Steps::begin(bytes.as_slice()).unwrap();
        assert_eq!(
            steps.next().unwrap(),
            Step::Begin {
                uuid: [7; 16],
                from: None
            }
        );
        assert_eq!(
            steps.next().unwrap(),
            Step::Write {
                path: b"a/b",
                offset: 4,
                data: b"data"
            }
        );
        assert_eq!(steps.next().unwrap(), Step::End);
        assert_eq!(steps.done, bytes.len() as u64);
        assert!(steps.nothing_follows().unwrap());
    }

    #[test]
    fn what_is_no_stream_is_refused_wherever_it_goes_wrong() {
        let whole = stream(&[command(3, &[(15, b"a")]), command(21, &[])]);
        for cut in 0..whole.len() {
            let taken = || -> io::Result<()> {
                let mut steps = Steps::begin(&whole[..cut])?;
                while steps.next()? != Step::End {}
                Ok(())
            };
            assert!(taken().is_err(), "{cut}");
        }
        for bad in [
            command(99, &[]),
            command(3, &[]),
            command(3, &[(99, b"a")]),
            command(17, &[(15, b"a"), (4, b"short")]),
            command(18, &[(15, b"a"), (5, &u64::MAX.to_le_bytes())]),
            [&[1, 0, 0, 0, 3, 0, 0, 0, 0, 0, 15][..]].concat(),
            vec![255; 10],
        ] {
            let bytes = stream(std::slice::from_ref(&bad));
            assert!(Steps::begin(bytes.as_slice()).unwrap().next().is_err(), "{bad:?}");
        }
    }

    #[test]
    fn device_numbers_are_unpacked() {
        assert_eq!(device(0), (0, 0));
        assert_eq!(device(0x0000_0801), (8, 1));
        assert_eq!(device(0x1230_4567), (0x45, 0x12367));
    }
}
