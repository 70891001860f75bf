//! What a zone has said, kept so that no byte is lost or doubled, whoever is killed.
//!
//! A log is a folder of *segments*, numbered; rotation begins a new one and removes the oldest. A
//! segment is two files: the *data*, which is what the process wrote and nothing else, and the
//! *index*, whose records tell of each piece of it the stream, the time, and how many entries end in
//! it ([`format`]). The text of Docker's json-file is made of it when it is read.
//!
//! **A kill of the supervisor.** Process 1 keeps the pipes. [`Writer::take`] moves a pipe's bytes into
//! the data file by `splice(2)`: they are in the pipe or in the file and never in this process, and a
//! kill cannot come between, as the kernel ends a process only on its way back from a system call.
//! After that the record is written. A successor that finds data without a record writes it then;
//! whose bytes they are is noted in the index before they come, and when they came is the file's own
//! time. So all that a kill can cost is that the times of two pieces are one. A terminal's master is
//! no pipe; what it says goes through one that process 1 keeps too ([`Zones::relay`](crate::Zones::relay)).
//!
//! **A power cut** takes what the file system had not written. Of the two files either may be behind
//! then; [`Writer::open`] cuts the index where the data ends, or adds a record for the rest. Data that
//! no record tells of counts for the stream that was taken last.
//!
//! **Order.** Of what lies in both pipes at one time nobody knows which came first; between takes the
//! order is that of the writes.
//!
//! **A full pool, a slow disk.** [`Writer::take`] fails, or waits; the pipe fills and the process
//! waits, as it would for any slow reader. Nothing is dropped. Memory is that of the pipe and the page
//! cache, however much is said.
//!
//! **Attached clients** read the data file too ([`Listener`]), as do those who ask for logs: a client
//! that does not read costs no memory, and does not hold the process up as it does with Docker's
//! engine. Only where rotation would remove what it has not read ([`Writer::removal`]) is it for the
//! caller to wait for it, or to let it go. One who follows a log is not waited for.
//!
//! **Rotation** is by the weight of both files. A segment may go beyond its limit by some kilobytes to
//! end with an entry's end; where it cannot, an entry lies in two segments, and is left out by readers
//! once the first of them is gone.

mod cursor;
mod format;
mod reader;
mod segment;
mod writer;

#[cfg(test)]
mod kill_tests;
#[cfg(test)]
mod tests;

use std::io;
use std::os::fd::{AsFd, BorrowedFd};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use time::OffsetDateTime;

pub use reader::{Hearing, Listener, Reader};
pub use writer::{Taken, Writer};

/// Number of a log's first segment.
const FIRST_SEGMENT: u64 = 1;
/// Bytes taken from a terminal at a time.
const TERMINAL_PIECE: usize = 16 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stream {
    Stdout = 0,
    Stderr = 1,
}

impl Stream {
    pub const BOTH: [Self; 2] = [Self::Stdout, Self::Stderr];
}

/// How much a log may grow.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Bytes of a segment; none is no limit, and no rotation.
    pub max_size: Option<u64>,
    /// Segments, at least one.
    pub max_files: u32,
    /// Whether the file system is to compress what is said; it must be btrfs then.
    pub compress: bool,
}

impl Limits {
    pub const NONE: Self = Self {
        max_size: None,
        max_files: 1,
        compress: false,
    };
}

/// Whose words are written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Life {
    /// Those of a process that is about to start: what an earlier one left open is ended.
    New,
    /// Those of a process that runs: what it left open goes on.
    Continued,
}

/// One line, or a part of a long one; the line's end belongs to it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Entry {
    pub stream: Stream,
    /// When its end was read, nanoseconds since the epoch.
    pub time: i64,
    pub bytes: Vec<u8>,
}

impl Entry {
    /// The time as [`timestamp`] has it.
    pub fn timestamp(&self) -> String {
        let time = OffsetDateTime::from_unix_timestamp_nanos(i128::from(self.time));
        timestamp(time.unwrap_or(OffsetDateTime::UNIX_EPOCH))
    }
}

/// Something that the process said, as it was read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Piece {
    pub stream: Stream,
    pub bytes: Vec<u8>,
}

/// What of a log is wanted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Selection {
    pub stdout: bool,
    pub stderr: bool,
    /// Only this many entries of those that are there, the last ones.
    pub tail: Option<usize>,
    /// Nanoseconds since the epoch.
    pub since: Option<i128>,
    pub until: Option<i128>,
}

/// How far a log has come; what a following reader waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Counts the appends.
    pub appends: u64,
    /// Nothing more comes in this life of the zone.
    pub ended: bool,
}

/// The present time as log entries have it: nine digits of the second, always.
pub fn now() -> String {
    timestamp(OffsetDateTime::now_utc())
}

/// A time as log entries have it.
pub fn timestamp(at: OffsetDateTime) -> String {
    let (year, month, day) = at.to_calendar_date();
    let (hour, minute, second, nano) = at.to_hms_nano();
    format!(
        "{year:04}-{:02}-{day:02}T{hour:02}:{minute:02}:{second:02}.{nano:09}Z",
        u8::from(month)
    )
}

/// Moves what a terminal shows into its relay, some of it. Both must be in non-blocking mode, and the
/// relay be empty, so that it has room.
///
/// # Errors
/// Those of `splice(2)`.
pub fn relay(master: BorrowedFd<'_>, relay: BorrowedFd<'_>) -> io::Result<Taken> {
    let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
    match splice(master, None, relay.as_fd(), None, TERMINAL_PIECE, flags) {
        // EIO: the other side of the terminal is closed.
        Ok(0) | Err(Errno::IO) => Ok(Taken::End),
        Ok(count) => Ok(Taken::Bytes(count)),
        Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::Nothing),
        Err(error) => Err(error.into()),
    }
}
