#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::fs;
use std::io::{PipeReader, PipeWriter, Write};
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use tokio::sync::watch;

use super::format::MAX_ENTRY;
use super::*;

const ALL: Selection = Selection {
    stdout: true,
    stderr: true,
    tail: None,
    since: None,
    until: None,
};

/// A log and the process that it is of.
pub(super) struct Bench {
    _dir: tempfile::TempDir,
    path: PathBuf,
    progress: watch::Sender<Progress>,
    writer: Option<Writer>,
    pipes: [(PipeReader, PipeWriter); 2],
    limits: Limits,
}

pub(super) fn pipe() -> (PipeReader, PipeWriter) {
    let (reader, writer) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    (reader, writer)
}

impl Bench {
    fn new(limits: Limits) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("log");
        let progress = watch::channel(Progress::default()).0;
        let writer = Writer::open(&path, limits, Life::New, progress.clone()).unwrap();
        Self {
            _dir: dir,
            path,
            progress,
            writer: Some(writer),
            pipes: [pipe(), pipe()],
            limits,
        }
    }

    fn unlimited() -> Self {
        Self::new(Limits::NONE)
    }

    fn say(&mut self, stream: Stream, bytes: &[u8]) {
        let (reader, writer) = &mut self.pipes[stream as usize];
        for part in bytes.chunks(32 << 10) {
            writer.write_all(part).unwrap();
            let taking = self.writer.as_mut().unwrap();
            while taking.take(stream, reader.as_fd()).unwrap() != Taken::Nothing {}
        }
    }

    /// The supervisor is killed, and another comes.
    fn succeed(&mut self, life: Life) {
        self.writer = None;
        self.writer = Some(Writer::open(&self.path, self.limits, life, self.progress.clone()).unwrap());
    }

    fn finish(&mut self) {
        self.writer.take().unwrap().finish().unwrap();
    }

    fn read(&self, selection: Selection) -> Vec<String> {
        read(&self.path, selection)
    }
}

pub(super) fn entries(path: &Path, selection: Selection) -> Vec<Entry> {
    let mut reader = Reader::open(path, selection).unwrap();
    let mut all = Vec::new();
    loop {
        let entries = reader.entries().unwrap();
        if entries.is_empty() {
            return all;
        }
        all.extend(entries);
    }
}

fn read(path: &Path, selection: Selection) -> Vec<String> {
    let entries = entries(path, selection).into_iter();
    entries
        .map(|entry| String::from_utf8(entry.bytes).unwrap())
        .collect()
}

#[test]
fn lines_come_back_as_they_were_said_however_they_were_cut() {
    let mut bench = Bench::unlimited();
    for part in ["on", "e\ntw", "o\n", "three"] {
        bench.say(Stream::Stdout, part.as_bytes());
    }
    bench.say(Stream::Stderr, b"oh\n");
    assert_eq!(bench.read(ALL), ["one\n", "two\n", "oh\n"]);
    bench.finish();
    assert_eq!(bench.read(ALL), ["one\n", "two\n", "oh\n", "three"]);
    let stdout = Selection { stderr: false, ..ALL };
    assert_eq!(bench.read(stdout), ["one\n", "two\n", "three"]);
}

#[test]
fn bytes_that_are_no_text_come_back_as_they_were() {
    let mut bench = Bench::unlimited();
    let bytes: Vec<u8> = (0..=255).collect();
    bench.say(Stream::Stdout, &bytes);
    bench.finish();
    let read: Vec<u8> = entries(&bench.path, ALL)
        .into_iter()
        .flat_map(|entry| entry.bytes)
        .collect();
    assert_eq!(read, bytes);
}

#[test]
fn a_tail_is_found_over_many_pieces_and_segments() {
    let limits = Limits {
        max_size: Some(30_000),
        max_files: 1000,
        compress: false,
    };
    for limits in [Limits::NONE, limits] {
        let mut bench = Bench::new(limits);
        let all: Vec<String> = (0..5000).map(|n| format!("line {n}\n")).collect();
        for lines in all.chunks(7) {
            let text = lines.concat();
            // Cut within a line.
            let (first, second) = text.split_at(text.len() - 3);
            bench.say(Stream::Stdout, first.as_bytes());
            bench.say(Stream::Stderr, b"aside\n");
            bench.say(Stream::Stdout, second.as_bytes());
        }
        let stdout = Selection { stderr: false, ..ALL };
        for tail in [0, 1, 2, 1500, 4999, 5000, 6000] {
            let tail_only = Selection {
                tail: Some(tail),
                ..stdout
            };
            assert_eq!(bench.read(tail_only), all[5000 - tail.min(5000)..], "tail {tail}");
        }
        let none = Selection {
            tail: Some(3),
            stdout: false,
            stderr: false,
            ..ALL
        };
        assert!(bench.read(none).is_empty());
        let both = Selection { tail: Some(2), ..ALL };
        assert_eq!(bench.read(both), ["aside\n", "line 4999\n"]);
    }
}

#[test]
fn a_tail_holds_a_long_lines_last_parts_and_what_has_no_end_yet_comes_whole() {
    let mut bench = Bench::unlimited();
    let long = "x".repeat(3 * MAX_ENTRY + 5);
    bench.say(Stream::Stdout, b"before\n");
    bench.say(Stream::Stdout, long.as_bytes());
    let tail = |count| Selection {
        tail: Some(count),
        ..ALL
    };
    assert_eq!(bench.read(tail(1)), ["x".repeat(MAX_ENTRY)]);
    let mut following = Reader::open(&bench.path, tail(0)).unwrap();
    assert!(following.entries().unwrap().is_empty());
    bench.say(Stream::Stdout, b"!\n");
    let entry = following.entries().unwrap().pop().unwrap();
    assert_eq!(entry.bytes, b"xxxxx!\n");
    bench.finish();
    assert_eq!(
        bench.read(tail(2)),
        ["x".repeat(MAX_ENTRY), "xxxxx!\n".to_owned()]
    );
    assert_eq!(bench.read(ALL).concat(), format!("before\n{long}!\n"));
}

#[test]
fn since_and_until_select_by_time() {
    let mut bench = Bench::unlimited();
    bench.say(Stream::Stdout, b"early\n");
    std::thread::sleep(std::time::Duration::from_millis(2));
    let between = OffsetDateTime::now_utc().unix_timestamp_nanos();
    bench.say(Stream::Stdout, b"late\n");
    let since = Selection {
        since: Some(between),
        ..ALL
    };
    assert_eq!(bench.read(since), ["late\n"]);
    let until = Selection {
        until: Some(between),
        tail: Some(1),
        ..ALL
    };
    assert_eq!(bench.read(until), ["early\n"]);
}

#[test]
fn rotation_keeps_so_many_segments_and_a_follower_reads_across() {
    let limits = Limits {
        max_size: Some(10_000),
        max_files: 3,
        compress: false,
    };
    let mut bench = Bench::new(limits);
    let mut follower = Reader::open(&bench.path, ALL).unwrap();
    let mut followed = Vec::new();
    let all: Vec<String> = (0..20_000).map(|n| format!("line {n}\n")).collect();
    for lines in all.chunks(100) {
        bench.say(Stream::Stdout, lines.concat().as_bytes());
        loop {
            let entries = follower.entries().unwrap();
            if entries.is_empty() {
                break;
            }
            followed.extend(
                entries
                    .into_iter()
                    .map(|entry| String::from_utf8(entry.bytes).unwrap()),
            );
        }
    }
    assert_eq!(followed, all);
    let kept = bench.read(ALL);
    assert!(all.ends_with(&kept), "it keeps the last {}", kept.len());
    let files: Vec<u64> = fs::read_dir(&bench.path)
        .unwrap()
        .map(|entry| entry.unwrap().metadata().unwrap().len())
        .collect();
    assert_eq!(files.len(), 6);
    let total: u64 = files.iter().sum();
    let most = 3 * (10_000 + MAX_ENTRY as u64 + 4096);
    assert!((10_000..most).contains(&total), "{total}");
}

#[test]
fn an_entry_whose_beginning_was_rotated_away_is_left_out() {
    let limits = Limits {
        max_size: Some(1000),
        max_files: 1,
        compress: false,
    };
    let mut bench = Bench::new(limits);
    let text = format!("first\n{}", "y".repeat(40_000));
    bench.say(Stream::Stdout, text.as_bytes());
    bench.say(Stream::Stdout, b"\nlast\n");
    let kept = bench.read(ALL);
    assert_eq!(kept.last().unwrap(), "last\n");
    bench.say(Stream::Stdout, b"");
    bench.finish();
    assert_eq!(bench.read(ALL), kept);
    let parts = kept.len() - 1;
    assert!(
        kept[..parts]
            .iter()
            .all(|part| part.len() == MAX_ENTRY || part.ends_with('\n'))
    );
    assert!(!kept.concat().contains("first"));
}

#[test]
fn a_follower_that_sleeps_through_rotations_goes_on_and_a_listener_is_told() {
    let limits = Limits {
        max_size: Some(5000),
        max_files: 2,
        compress: false,
    };
    let mut bench = Bench::new(limits);
    bench.say(Stream::Stdout, b"one\n");
    let mut follower = Reader::open(&bench.path, ALL).unwrap();
    let mut listener = Listener::from_now(&bench.path).unwrap();
    assert_eq!(follower.entries().unwrap().len(), 1);
    for number in 0..5000 {
        bench.say(Stream::Stdout, format!("line {number}\n").as_bytes());
    }
    let mut last = Vec::new();
    loop {
        let entries = follower.entries().unwrap();
        let Some(entry) = entries.last() else { break };
        last.clone_from(&entry.bytes);
    }
    assert_eq!(last, b"line 4999\n");
    while !listener.pieces().unwrap().is_empty() {}
    assert_eq!(listener.state(), Hearing::Lost);
}

#[tokio::test]
async fn a_follower_is_told_of_what_comes_and_of_the_end() {
    let mut bench = Bench::unlimited();
    let mut watching = bench.progress.subscribe();
    let mut reader = Reader::open(&bench.path, ALL).unwrap();
    assert!(reader.entries().unwrap().is_empty());
    watching.mark_unchanged();
    bench.say(Stream::Stdout, b"news\n");
    watching.changed().await.unwrap();
    assert_eq!(reader.entries().unwrap()[0].bytes, b"news\n");
    bench.say(Stream::Stdout, b"no end");
    bench.finish();
    assert_eq!(reader.entries().unwrap()[0].bytes, b"no end");
    watching.wait_for(|progress| progress.ended).await.unwrap();
}

#[test]
fn a_listener_hears_from_its_place_to_the_end_of_the_life() {
    let mut bench = Bench::unlimited();
    bench.say(Stream::Stdout, b"old\n");
    bench.finish();
    let mut whole = Listener::from_first(&bench.path).unwrap();
    let mut now = Listener::from_now(&bench.path).unwrap();
    bench.succeed(Life::New);
    bench.say(Stream::Stdout, b"no line's end");
    bench.say(Stream::Stderr, b"err");
    bench.finish();
    bench.succeed(Life::New);
    bench.say(Stream::Stdout, b"another life\n");
    let heard = |listener: &mut Listener| {
        let mut text = String::new();
        loop {
            let pieces = listener.pieces().unwrap();
            if pieces.is_empty() {
                return text;
            }
            for piece in pieces {
                text.push_str(&format!(
                    "{:?}:{};",
                    piece.stream,
                    String::from_utf8(piece.bytes).unwrap()
                ));
            }
        }
    };
    assert_eq!(heard(&mut now), "Stdout:no line's end;Stderr:err;");
    assert_eq!(now.state(), Hearing::Ended);
    assert_eq!(heard(&mut whole), "Stdout:old\nno line's end;Stderr:err;");
    assert_eq!(whole.state(), Hearing::Ended);
}

#[test]
fn what_a_life_left_open_goes_on_with_a_successor_and_ends_with_a_new_life() {
    let mut bench = Bench::unlimited();
    bench.say(Stream::Stdout, b"one ");
    bench.succeed(Life::Continued);
    bench.say(Stream::Stdout, b"line\nopen");
    bench.succeed(Life::New);
    bench.say(Stream::Stdout, b"new\n");
    assert_eq!(bench.read(ALL), ["one line\n", "open", "new\n"]);
}

#[test]
fn data_that_was_not_noted_is_noted_by_the_successor() {
    let mut bench = Bench::unlimited();
    bench.say(Stream::Stdout, b"out\n");
    bench.say(Stream::Stderr, b"err\nmore");
    bench.writer = None;
    // The last record is lost, as if the kill had come just before it.
    let index = fs::OpenOptions::new()
        .write(true)
        .open(bench.path.join("1.index"))
        .unwrap();
    index.set_len(index.metadata().unwrap().len() - 32).unwrap();
    bench.succeed(Life::Continued);
    bench.finish();
    let entries: Vec<(Stream, Vec<u8>)> = entries(&bench.path, ALL)
        .into_iter()
        .map(|entry| (entry.stream, entry.bytes))
        .collect();
    let expected: [(Stream, &[u8]); 3] = [
        (Stream::Stdout, b"out\n"),
        (Stream::Stderr, b"err\n"),
        (Stream::Stderr, b"more"),
    ];
    assert_eq!(entries, expected.map(|(stream, bytes)| (stream, bytes.to_vec())));
}

#[test]
fn a_power_cut_at_any_byte_of_either_file_leaves_a_beginning_of_what_was_said() {
    let mut bench = Bench::unlimited();
    let mut said = String::new();
    for number in 0..12 {
        let line = format!("line {number}\n");
        bench.say(Stream::Stdout, line.as_bytes());
        said.push_str(&line);
    }
    bench.finish();
    let (data, index) = (bench.path.join("1.data"), bench.path.join("1.index"));
    let (whole_data, whole_index) = (fs::read(&data).unwrap(), fs::read(&index).unwrap());
    for data_left in 0..=whole_data.len() {
        for index_left in [0, 1, 31, 32, 33, 64, 200, 416, whole_index.len()] {
            fs::write(&data, &whole_data[..data_left]).unwrap();
            let mut cut = whole_index[..index_left].to_vec();
            if index_left == 416 {
                // Zeros where the file system knew of the length and not of the content.
                cut[320..].fill(0);
            }
            fs::write(&index, cut).unwrap();
            bench.succeed(Life::New);
            bench.say(Stream::Stdout, b"after\n");
            let read = bench.read(ALL).concat();
            assert_eq!(
                read,
                format!("{}after\n", &said[..data_left]),
                "{data_left} {index_left}"
            );
            let tail = Selection { tail: Some(1), ..ALL };
            assert_eq!(bench.read(tail), ["after\n"]);
        }
    }
}

#[test]
fn a_segment_without_its_index_begins_anew() {
    let limits = Limits {
        max_size: Some(2000),
        max_files: 2,
        compress: false,
    };
    let mut bench = Bench::new(limits);
    for number in 0..300 {
        bench.say(Stream::Stdout, format!("line {number}\n").as_bytes());
    }
    bench.writer = None;
    let last = segment::list(&bench.path).unwrap().pop().unwrap();
    fs::write(bench.path.join(format!("{}.data", last + 1)), b"").unwrap();
    fs::write(bench.path.join(format!("{}.index", last + 1)), b"").unwrap();
    bench.succeed(Life::Continued);
    bench.say(Stream::Stdout, b"goes on\n");
    let read = bench.read(ALL);
    assert_eq!(read[read.len() - 2..], ["line 299\n", "goes on\n"]);
}

#[test]
fn a_full_file_system_makes_the_process_wait_and_loses_nothing() {
    let dir = tempfile::tempdir().unwrap();
    let options = c"size=256k";
    rustix::mount::mount(
        "none",
        dir.path(),
        "tmpfs",
        rustix::mount::MountFlags::empty(),
        options,
    )
    .expect("a tmpfs; this test must run as root");
    let path = dir.path().join("log");
    let progress = watch::channel(Progress::default()).0;
    let mut writer = Writer::open(&path, Limits::NONE, Life::New, progress).unwrap();
    fs::write(dir.path().join("ballast"), vec![0; 128 << 10]).unwrap();
    let (reader, mut process) = pipe();
    let text: Vec<u8> = (0..30_000)
        .flat_map(|n: u32| format!("line {n}\n").into_bytes())
        .collect();
    let saying = {
        let text = text.clone();
        std::thread::spawn(move || process.write_all(&text).unwrap())
    };
    let mut refused = 0;
    loop {
        match writer.take(Stream::Stdout, reader.as_fd()) {
            Ok(Taken::End) => break,
            Ok(Taken::Nothing) => std::thread::yield_now(),
            Ok(Taken::Bytes(_)) => {}
            Err(error) => {
                assert_eq!(error.kind(), io::ErrorKind::StorageFull, "{error}");
                refused += 1;
                if refused == 3 {
                    fs::remove_file(dir.path().join("ballast")).unwrap();
                    let bigger = rustix::mount::MountFlags::empty();
                    rustix::mount::mount_remount(dir.path(), bigger, c"size=2m").unwrap();
                }
            }
        }
    }
    writer.finish().unwrap();
    saying.join().unwrap();
    let read: Vec<u8> = entries(&path, ALL)
        .into_iter()
        .flat_map(|entry| entry.bytes)
        .collect();
    drop(writer);
    rustix::mount::unmount(dir.path(), rustix::mount::UnmountFlags::DETACH).unwrap();
    assert!(refused >= 3 && read == text);
}
