//! What a zone has said, in Docker's json-file form: one JSON object a line.
//!
//! The [`Writer`] cuts what comes from the process into lines and appends them to a file; a
//! [`Reader`] gives the entries back and, following, waits for a notification of the writer. A reader
//! that finds half a line at the end of the file takes it for not yet written.

use std::fs::{File, OpenOptions};
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tokio::sync::watch;

/// A line longer than this is written in parts, as Docker does.
const MAX_LINE: usize = 16 << 10;
/// Bytes read at a time.
const BLOCK: usize = 64 << 10;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Stream {
    Stdout,
    Stderr,
}

/// One line, or a part of a long one; the line's end belongs to it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Entry {
    pub log: String,
    pub stream: Stream,
    /// RFC 3339 with nanoseconds, UTC.
    pub time: String,
}

impl Entry {
    /// Nanoseconds since the epoch; zero where the time is not readable.
    pub fn nanoseconds(&self) -> i128 {
        OffsetDateTime::parse(&self.time, &Rfc3339).map_or(0, OffsetDateTime::unix_timestamp_nanos)
    }
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

/// How far a log has come; what a following reader waits for.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    /// Counts the appends.
    pub appends: u64,
    /// Nothing more comes in this life of the zone.
    pub ended: bool,
}

/// Appends to a log.
#[derive(Debug)]
pub struct Writer {
    file: File,
    partial: [Vec<u8>; 2],
    progress: watch::Sender<Progress>,
}

impl Writer {
    /// Opens the file at its end. A half-written line, left by a power cut, is closed first.
    pub fn open(path: &Path, progress: watch::Sender<Progress>) -> io::Result<Self> {
        let mut file = OpenOptions::new()
            .read(true)
            .append(true)
            .create(true)
            .open(path)?;
        if file.metadata()?.len() > 0 {
            file.seek(SeekFrom::End(-1))?;
            let mut last = [0];
            file.read_exact(&mut last)?;
            if last != *b"\n" {
                file.write_all(b"\n")?;
            }
        }
        progress.send_modify(|progress| progress.ended = false);
        Ok(Self {
            file,
            partial: [Vec::new(), Vec::new()],
            progress,
        })
    }

    /// Takes what the process wrote; whole lines are in the file when it returns.
    pub fn append(&mut self, stream: Stream, bytes: &[u8]) -> io::Result<()> {
        let mut text = Vec::new();
        let partial = &mut self.partial[stream as usize];
        let mut rest = bytes;
        while !rest.is_empty() {
            let line = rest
                .iter()
                .position(|byte| *byte == b'\n')
                .map_or(rest.len(), |at| at + 1);
            let room = MAX_LINE.saturating_sub(partial.len()).max(1);
            let (now, later) = rest.split_at(line.min(room));
            partial.extend_from_slice(now);
            rest = later;
            if partial.ends_with(b"\n") || partial.len() >= MAX_LINE {
                encode(&mut text, stream, partial)?;
                partial.clear();
            }
        }
        self.write(&text)
    }

    /// Writes lines that had no end, and tells the readers that nothing more comes; so does dropping
    /// it, without telling of errors.
    pub fn finish(mut self) -> io::Result<()> {
        self.write_rest()
    }

    fn write_rest(&mut self) -> io::Result<()> {
        let mut text = Vec::new();
        for stream in [Stream::Stdout, Stream::Stderr] {
            let partial = std::mem::take(&mut self.partial[stream as usize]);
            if !partial.is_empty() {
                encode(&mut text, stream, &partial)?;
            }
        }
        self.write(&text)
    }

    fn write(&mut self, text: &[u8]) -> io::Result<()> {
        if text.is_empty() {
            return Ok(());
        }
        self.file.write_all(text)?;
        self.progress.send_modify(|progress| progress.appends += 1);
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        let _ = self.write_rest();
        self.progress.send_modify(|progress| progress.ended = true);
    }
}

fn encode(text: &mut Vec<u8>, stream: Stream, line: &[u8]) -> io::Result<()> {
    let entry = Entry {
        log: String::from_utf8_lossy(line).into_owned(),
        stream,
        time: now(),
    };
    text.extend_from_slice(&serde_json::to_vec(&entry)?);
    text.push(b'\n');
    Ok(())
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

/// Reads a log from its place on.
#[derive(Debug)]
pub struct Reader {
    path: PathBuf,
    file: Option<File>,
    pending: Vec<u8>,
    selection: Selection,
    /// An entry later than `until` was met.
    done: bool,
}

impl Reader {
    /// A log that is not there yet is empty.
    pub fn open(path: &Path, selection: Selection) -> io::Result<Self> {
        let mut reader = Self {
            path: path.to_owned(),
            file: None,
            pending: Vec::new(),
            selection,
            done: false,
        };
        if let (Some(file), Some(tail)) = (reader.open_file()?, selection.tail) {
            let start = tail_start(file, tail, selection)?;
            file.seek(SeekFrom::Start(start))?;
        }
        Ok(reader)
    }

    fn open_file(&mut self) -> io::Result<Option<&mut File>> {
        if self.file.is_none() {
            self.file = match File::open(&self.path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => None,
                opened => Some(opened?),
            };
        }
        Ok(self.file.as_mut())
    }

    /// The next entries, some at a time; none if there are no more for now.
    pub fn entries(&mut self) -> io::Result<Vec<Entry>> {
        let mut block = vec![0; BLOCK];
        loop {
            if self.done {
                return Ok(Vec::new());
            }
            let Some(file) = self.open_file()? else {
                return Ok(Vec::new());
            };
            let count = file.read(&mut block)?;
            if count == 0 {
                return Ok(Vec::new());
            }
            self.pending.extend_from_slice(&block[..count]);
            let entries = self.take_entries();
            if !entries.is_empty() {
                return Ok(entries);
            }
        }
    }

    fn take_entries(&mut self) -> Vec<Entry> {
        let Some(last) = self.pending.iter().rposition(|byte| *byte == b'\n') else {
            return Vec::new();
        };
        let rest = self.pending.split_off(last + 1);
        let lines = std::mem::replace(&mut self.pending, rest);
        let mut entries = Vec::new();
        for entry in lines.split(|byte| *byte == b'\n').filter_map(parse) {
            if wanted(&entry, &self.selection) {
                if self
                    .selection
                    .until
                    .is_some_and(|until| entry.nanoseconds() > until)
                {
                    self.done = true;
                    break;
                }
                entries.push(entry);
            }
        }
        entries
    }

    /// Whether nothing can come any more, however long one follows.
    pub fn is_done(&self) -> bool {
        self.done
    }
}

/// A line that was cut by a power failure is no entry.
fn parse(line: &[u8]) -> Option<Entry> {
    serde_json::from_slice(line).ok()
}

fn wanted(entry: &Entry, selection: &Selection) -> bool {
    let stream = match entry.stream {
        Stream::Stdout => selection.stdout,
        Stream::Stderr => selection.stderr,
    };
    stream && selection.since.is_none_or(|since| entry.nanoseconds() >= since)
}

/// Where the last `tail` wanted entries begin; read backwards, block by block.
fn tail_start(file: &mut File, tail: usize, selection: Selection) -> io::Result<u64> {
    let end = file.seek(SeekFrom::End(0))?;
    let mut start = end;
    let mut held: Vec<u8> = Vec::new();
    let mut left = tail;
    // `held` begins at `start`; its lines are looked at from the last to the first.
    let mut line_end = end;
    while left > 0 {
        let newline = held.get(..(line_end - start) as usize).and_then(|part| {
            part.strip_suffix(b"\n")
                .unwrap_or(part)
                .iter()
                .rposition(|b| *b == b'\n')
        });
        let line_start = match newline {
            Some(at) => start + at as u64 + 1,
            None if start == 0 => 0,
            None => {
                let size = (BLOCK as u64).min(start);
                start -= size;
                file.seek(SeekFrom::Start(start))?;
                let mut block = vec![0; size as usize];
                file.read_exact(&mut block)?;
                block.extend_from_slice(&held[..(line_end - start - size) as usize]);
                held = block;
                continue;
            }
        };
        let line = &held[(line_start - start) as usize..(line_end - start) as usize];
        let whole = line.strip_suffix(b"\n");
        if whole
            .and_then(parse)
            .is_some_and(|entry| wanted(&entry, &selection))
        {
            left -= 1;
        }
        line_end = line_start;
        if line_start == 0 {
            break;
        }
    }
    Ok(line_end)
}

#[cfg(test)]
mod tests {
    use super::*;

    const ALL: Selection = Selection {
        stdout: true,
        stderr: true,
        tail: None,
        since: None,
        until: None,
    };

    fn log() -> (tempfile::TempDir, PathBuf, watch::Sender<Progress>) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        (dir, path, watch::channel(Progress::default()).0)
    }

    fn read(path: &Path, selection: Selection) -> Vec<String> {
        let mut reader = Reader::open(path, selection).unwrap();
        let mut lines = Vec::new();
        loop {
            let entries = reader.entries().unwrap();
            if entries.is_empty() {
                return lines;
            }
            lines.extend(entries.into_iter().map(|entry| entry.log));
        }
    }

    #[test]
    fn lines_come_back_as_they_were_said_however_they_were_cut() {
        let (_dir, path, progress) = log();
        let mut writer = Writer::open(&path, progress).unwrap();
        for part in ["on", "e\ntw", "o\n", "three"] {
            writer.append(Stream::Stdout, part.as_bytes()).unwrap();
        }
        writer.append(Stream::Stderr, b"oh\n").unwrap();
        assert_eq!(read(&path, ALL), ["one\n", "two\n", "oh\n"]);
        writer.finish().unwrap();
        assert_eq!(read(&path, ALL), ["one\n", "two\n", "oh\n", "three"]);
        let stdout = Selection { stderr: false, ..ALL };
        assert_eq!(read(&path, stdout), ["one\n", "two\n", "three"]);
    }

    #[test]
    fn a_tail_is_found_over_many_blocks() {
        let (_dir, path, progress) = log();
        let mut writer = Writer::open(&path, progress).unwrap();
        let all: Vec<String> = (0..5000).map(|n| format!("line {n}\n")).collect();
        writer.append(Stream::Stdout, all.concat().as_bytes()).unwrap();
        for tail in [0, 1, 2, 1500, 4999, 5000, 6000] {
            let selection = Selection {
                tail: Some(tail),
                ..ALL
            };
            assert_eq!(
                read(&path, selection),
                all[5000 - tail.min(5000)..],
                "tail {tail}"
            );
        }
        let none = Selection {
            tail: Some(3),
            stdout: false,
            ..ALL
        };
        assert!(read(&path, none).is_empty());
    }

    #[test]
    fn a_long_line_is_cut_into_parts_that_make_it_whole() {
        let (_dir, path, progress) = log();
        let mut writer = Writer::open(&path, progress).unwrap();
        let long = "x".repeat(3 * MAX_LINE + 5) + "\n";
        writer.append(Stream::Stdout, long.as_bytes()).unwrap();
        let parts = read(&path, ALL);
        assert_eq!((parts.len(), parts.concat()), (4, long));
    }

    #[test]
    fn since_and_until_select_by_time() {
        let (_dir, path, progress) = log();
        let mut writer = Writer::open(&path, progress).unwrap();
        writer.append(Stream::Stdout, b"early\n").unwrap();
        std::thread::sleep(std::time::Duration::from_millis(2));
        let between = OffsetDateTime::now_utc().unix_timestamp_nanos();
        writer.append(Stream::Stdout, b"late\n").unwrap();
        let since = Selection {
            since: Some(between),
            ..ALL
        };
        assert_eq!(read(&path, since), ["late\n"]);
        let until = Selection {
            until: Some(between),
            ..ALL
        };
        assert_eq!(read(&path, until), ["early\n"]);
    }

    #[tokio::test]
    async fn a_follower_is_told_of_what_comes_and_of_the_end() {
        let (_dir, path, progress) = log();
        let mut watching = progress.subscribe();
        let mut writer = Writer::open(&path, progress).unwrap();
        let mut reader = Reader::open(&path, ALL).unwrap();
        assert!(reader.entries().unwrap().is_empty());
        watching.mark_unchanged();
        writer.append(Stream::Stdout, b"news\n").unwrap();
        watching.changed().await.unwrap();
        assert_eq!(reader.entries().unwrap()[0].log, "news\n");
        writer.append(Stream::Stdout, b"no end").unwrap();
        drop(writer);
        assert_eq!(reader.entries().unwrap()[0].log, "no end");
        watching.wait_for(|progress| progress.ended).await.unwrap();
    }

    #[test]
    fn a_line_that_a_power_cut_halved_harms_no_other() {
        let (_dir, path, progress) = log();
        std::fs::write(&path, "{\"log\":\"ha").unwrap();
        let mut writer = Writer::open(&path, progress).unwrap();
        writer.append(Stream::Stdout, b"whole\n").unwrap();
        assert_eq!(read(&path, ALL), ["whole\n"]);
    }
}
