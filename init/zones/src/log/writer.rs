//! Takes what a process says into its log.

use std::fs;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};

use rustix::io::Errno;
use rustix::pipe::{SpliceFlags, splice};
use time::OffsetDateTime;
use tokio::sync::watch;

use super::segment::{self, Segment};
use super::{FIRST_SEGMENT, Life, Limits, Progress, Stream, format};

/// Bytes taken at a time at most: what a pipe holds by default.
const PIECE: u64 = 64 << 10;
/// Bytes taken at a time when a segment is full or nearly so.
const SMALL_PIECE: u64 = 4 << 10;
/// How far a segment may go beyond its limit to end with an entry's end.
const GRACE: u64 = format::MAX_ENTRY as u64;

/// What came of a try to take something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Taken {
    /// So many bytes are in the log now, and gone from the pipe.
    Bytes(usize),
    /// There is nothing at present.
    Nothing,
    /// The process has closed its end, and all that it said was taken.
    End,
}

/// The one that writes a log. There is one at a time.
#[derive(Debug)]
pub struct Writer {
    dir: PathBuf,
    limits: Limits,
    segment: Segment,
    progress: watch::Sender<Progress>,
}

impl Writer {
    /// Opens a log, makes it if it is not there, and puts right what a crash has left. Blocks.
    ///
    /// # Errors
    /// Those of the file system; a full one refuses a log that is not there yet.
    pub fn open(
        dir: &Path,
        limits: Limits,
        life: Life,
        progress: watch::Sender<Progress>,
    ) -> io::Result<Self> {
        fs::create_dir_all(dir)?;
        let segments = segment::list(dir)?;
        let segment = match segments.as_slice() {
            [] => Segment::create(dir, FIRST_SEGMENT, [0, 0], limits.compress)?,
            [.., last] => Segment::open(dir, *last, || left_open(dir, &segments))?,
        };
        let mut writer = Self {
            dir: dir.to_owned(),
            limits,
            segment,
            progress,
        };
        if life == Life::New {
            writer.segment.end_life(now())?;
        }
        writer.progress.send_modify(|progress| progress.ended = false);
        Ok(writer)
    }

    /// Takes what the pipe holds, some of it. The pipe must be in non-blocking mode. Blocks while the
    /// disk is busy.
    ///
    /// # Errors
    /// Those of the file system. Nothing is lost by one: what was not taken is in the pipe, and the
    /// same call may be made again.
    pub fn take(&mut self, stream: Stream, pipe: BorrowedFd<'_>) -> io::Result<Taken> {
        self.settle()?;
        // Only for something that comes: the last segment is not given up for an empty one.
        let length = match rustix::io::ioctl_fionread(pipe)? {
            0 => SMALL_PIECE,
            _ => self.make_room()?,
        };
        self.aim(stream)?;
        let mut end = self.segment.size;
        let flags = SpliceFlags::NONBLOCK | SpliceFlags::MOVE;
        let data = self.segment.data.as_fd();
        match splice(pipe, None, data, Some(&mut end), length as usize, flags) {
            Ok(0) => Ok(Taken::End),
            Ok(count) => {
                self.segment.size += count as u64;
                self.settle()?;
                Ok(Taken::Bytes(count))
            }
            Err(Errno::AGAIN | Errno::INTR) => Ok(Taken::Nothing),
            Err(error) => Err(error.into()),
        }
    }

    /// Notes what was taken and is not noted: a full file system may have had room for the one and not
    /// for the other.
    fn settle(&mut self) -> io::Result<()> {
        if self.segment.size > self.segment.last.end {
            self.segment.note(self.segment.taking, now())?;
            self.progress.send_modify(|progress| progress.appends += 1);
        }
        Ok(())
    }

    /// The last of the segments that the next [`take`](Self::take) removes, if it removes any.
    pub fn removal(&self) -> Option<u64> {
        let next = self.segment.number + 1;
        let last = next.saturating_sub(u64::from(self.limits.max_files.max(1)));
        (last >= FIRST_SEGMENT && self.room() == 0).then_some(last)
    }

    /// How much the present segment may still take; nothing if it is full.
    fn room(&self) -> u64 {
        let Some(most) = self.limits.max_size else {
            return PIECE;
        };
        let weight = self.segment.weight();
        let open = self.segment.last.open != [0, 0];
        match most.checked_sub(weight) {
            Some(room) if room > 0 => room.clamp(SMALL_PIECE, PIECE),
            _ if open && weight < most.saturating_add(GRACE) => SMALL_PIECE,
            _ => 0,
        }
    }

    /// How much may be taken; begins a new segment if this one is full.
    fn make_room(&mut self) -> io::Result<u64> {
        let room = self.room();
        if room > 0 {
            return Ok(room);
        }
        let open = self.segment.last.open;
        // Those that are too many go first: on a full file system they make the room.
        let next = self.segment.number + 1;
        let first_kept = next.saturating_sub(u64::from(self.limits.max_files.max(1)) - 1);
        for number in segment::list(&self.dir)? {
            if number < first_kept && number != self.segment.number {
                segment::remove(&self.dir, number)?;
            }
        }
        let before = self.segment.number;
        self.segment = Segment::create(&self.dir, next, open, self.limits.compress)?;
        if before < first_kept {
            segment::remove(&self.dir, before)?;
        }
        Ok(self.room())
    }

    /// Notes whose bytes come next, before they come.
    fn aim(&mut self, stream: Stream) -> io::Result<()> {
        use std::os::unix::fs::FileExt;
        if self.segment.taking != stream {
            self.segment.index.write_all_at(&[stream as u8], format::TAKING)?;
            self.segment.taking = stream;
        }
        Ok(())
    }

    /// The process has ended and all that it said was taken: what has no line's end is an entry now.
    /// May be called again after an error.
    pub fn finish(&mut self) -> io::Result<()> {
        self.settle()?;
        self.segment.end_life(now())
    }
}

impl Drop for Writer {
    /// Tells the readers that nothing more comes.
    fn drop(&mut self) {
        self.progress.send_modify(|progress| {
            progress.appends += 1;
            progress.ended = true;
        });
    }
}

/// What the segment before the last left open.
fn left_open(dir: &Path, segments: &[u64]) -> [u16; 2] {
    let [.., before, _] = segments else {
        return [0, 0];
    };
    Segment::open(dir, *before, || [0, 0]).map_or([0, 0], |segment| segment.last.open)
}

/// Nanoseconds since the epoch.
fn now() -> i64 {
    i64::try_from(OffsetDateTime::now_utc().unix_timestamp_nanos()).unwrap_or(i64::MAX)
}
