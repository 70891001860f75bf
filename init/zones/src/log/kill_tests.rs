//! A supervisor that is killed again and again while it takes what a process says.

#![allow(clippy::unwrap_used, reason = "it is how a test fails")]

use std::io::{PipeReader, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;

use super::tests::{entries, pipe};
use super::*;

/// Tells the test's own binary that it is the supervisor.
const ROLE: &str = "MONOBLOC_TEST_LOG";
const KILLS: u64 = 200;
/// Many rotations come between the kills, and nothing is removed.
const LIMITS: Limits = Limits {
    max_size: Some(300_000),
    max_files: 10_000,
    compress: false,
};

/// Takes both streams to their ends.
fn supervise(path: &Path, ends: [BorrowedFd<'_>; 2]) {
    let progress = watch::channel(Progress::default()).0;
    let mut writer = Writer::open(path, LIMITS, Life::Continued, progress).unwrap();
    let mut open = Stream::BOTH.to_vec();
    while !open.is_empty() {
        let mut waiting: Vec<PollFd<'_>> = open
            .iter()
            .map(|stream| PollFd::from_borrowed_fd(ends[*stream as usize], PollFlags::IN))
            .collect();
        poll(&mut waiting, None).unwrap();
        open.retain(|stream| writer.take(*stream, ends[*stream as usize]).unwrap() != Taken::End);
    }
    writer.finish().unwrap();
}

/// Not a test by itself: the other role of the one below. Its pipes are its standard input and its
/// standard error.
#[test]
#[ignore = "it is run by another test"]
fn supervisor() {
    let path = PathBuf::from(std::env::var_os(ROLE).unwrap());
    supervise(&path, [std::io::stdin().as_fd(), std::io::stderr().as_fd()]);
}

fn start(path: &Path, ends: &[PipeReader; 2]) -> Child {
    let copy = |end: &PipeReader| Stdio::from(OwnedFd::from(end.try_clone().unwrap()));
    Command::new(std::env::current_exe().unwrap())
        .args([
            "--exact",
            "log::kill_tests::supervisor",
            "--ignored",
            "--nocapture",
        ])
        .env(ROLE, path)
        .stdin(copy(&ends[0]))
        .stdout(Stdio::null())
        .stderr(copy(&ends[1]))
        .spawn()
        .unwrap()
}

/// What a stream says, without end: lines of all lengths, some longer than an entry.
fn words(stream: Stream) -> impl Iterator<Item = Vec<u8>> {
    (0u64..).map(move |number| {
        let length = match number % 97 {
            0 => 40_000,
            1..=3 => 3_000,
            _ => number % 60,
        };
        let mut line = format!("{stream:?} {number} ").into_bytes();
        line.resize(line.len() + length as usize, b'a' + (number % 26) as u8);
        line.push(b'\n');
        line
    })
}

/// A seeded order of small numbers (xorshift), so that a failure can be had again.
fn next(seed: &mut u64) -> u64 {
    *seed ^= *seed << 13;
    *seed ^= *seed >> 7;
    *seed ^= *seed << 17;
    *seed
}

#[test]
fn a_supervisor_that_is_killed_200_times_loses_and_doubles_no_byte() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("log");
    let [(out, out_end), (err, err_end)] = [pipe(), pipe()];
    let ends = [out, err];
    let (stop, stopping) = watch::channel(false);
    // The process: it says on until it is told to end; what it said is what must be found.
    let talkers = [(Stream::Stdout, out_end), (Stream::Stderr, err_end)].map(|(stream, mut end)| {
        let stopping = stopping.clone();
        std::thread::spawn(move || {
            let mut said = 0;
            for line in words(stream) {
                end.write_all(&line).unwrap();
                said += 1;
                if *stopping.borrow() {
                    return said;
                }
            }
            said
        })
    });
    let mut seed = 0x9e37_79b9_7f4a_7c15;
    for _ in 0..KILLS {
        let mut supervisor = start(&path, &ends);
        std::thread::sleep(Duration::from_micros(2_000 + next(&mut seed) % 12_000));
        supervisor.kill().unwrap();
        supervisor.wait().unwrap();
    }
    stop.send_replace(true);
    let mut last = start(&path, &ends);
    let counts = talkers.map(|talker| talker.join().unwrap());
    drop(ends);
    assert!(last.wait().unwrap().success());
    let mut read: [Vec<u8>; 2] = Default::default();
    let all = Selection {
        stdout: true,
        stderr: true,
        ..Selection::default()
    };
    let entries = entries(&path, all);
    for entry in &entries {
        read[entry.stream as usize].extend_from_slice(&entry.bytes);
    }
    for (stream, count) in Stream::BOTH.into_iter().zip(counts) {
        let said: Vec<u8> = words(stream).take(count).flatten().collect();
        let read = &read[stream as usize];
        let differs = said.iter().zip(read).position(|(said, read)| said != read);
        assert_eq!((read.len(), differs), (said.len(), None), "{stream:?}");
        eprintln!("{stream:?}: {} bytes in {count} lines", said.len());
    }
    // The entries are what they would be without a kill, and so are the tails.
    let last: Vec<_> = entries.iter().rev().take(1000).rev().cloned().collect();
    let tail = Selection {
        tail: Some(1000),
        ..all
    };
    assert!(super::tests::entries(&path, tail) == last);
}
