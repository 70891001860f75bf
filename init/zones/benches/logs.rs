//! How fast a zone's words come into its log, beside the same words written to a file by the process
//! itself, which is what `crun run > FILE` does.
//!
//! The folder for both is that of temporary files; `TMPDIR` chooses another file system.

#![allow(clippy::unwrap_used, reason = "a benchmark fails by it")]

use std::fs::File;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use tokio::sync::watch;
use zones::log::{Life, Limits, Progress, Reader, Selection, Stream, Taken, Writer};

const ROUNDS: usize = 7;
const MEGABYTES: usize = 200;

fn main() {
    // `cargo test` runs benchmarks too, without this argument.
    if !std::env::args().any(|argument| argument == "--bench") {
        return;
    }
    let lines = [
        ("lines of 2 bytes", "yes"),
        ("lines of 100 bytes", "yes $(printf %099d 0)"),
    ];
    for (name, words) in lines {
        let script = format!("{words} | head -c {MEGABYTES}000000");
        let (mut files, mut logs, mut reads) = (Vec::new(), Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            let dir = tempfile::tempdir().unwrap();
            files.push(to_file(&script, &dir.path().join("file")));
            logs.push(to_log(&script, &dir.path().join("log")));
            reads.push(read(&dir.path().join("log")));
        }
        println!("{MEGABYTES} MB of {name}, megabytes each second, median of {ROUNDS}");
        report("the process to a file", &mut files);
        report("the process to its log", &mut logs);
        report("the log's entries read", &mut reads);
    }
}

fn shell(script: &str) -> Command {
    let mut shell = Command::new("sh");
    shell.args(["-c", script]).stdin(Stdio::null());
    shell
}

fn to_file(script: &str, path: &Path) -> Duration {
    let file = File::create(path).unwrap();
    let begin = Instant::now();
    assert!(shell(script).stdout(file).status().unwrap().success());
    begin.elapsed()
}

fn to_log(script: &str, path: &Path) -> Duration {
    let progress = watch::channel(Progress::default()).0;
    let mut writer = Writer::open(path, Limits::NONE, Life::New, progress).unwrap();
    let (reader, end) = std::io::pipe().unwrap();
    rustix::io::ioctl_fionbio(&reader, true).unwrap();
    let begin = Instant::now();
    let mut process = shell(script).stdout(end).spawn().unwrap();
    loop {
        match writer.take(Stream::Stdout, reader.as_fd()).unwrap() {
            Taken::Bytes(_) => {}
            Taken::Nothing => {
                let mut waiting = [PollFd::new(&reader, PollFlags::IN)];
                poll(&mut waiting, None).unwrap();
            }
            Taken::End => break,
        }
    }
    writer.finish().unwrap();
    process.wait().unwrap();
    begin.elapsed()
}

fn read(path: &Path) -> Duration {
    let all = Selection {
        stdout: true,
        stderr: true,
        ..Selection::default()
    };
    let begin = Instant::now();
    let mut reader = Reader::open(path, all).unwrap();
    let mut bytes = 0;
    loop {
        let entries = reader.entries().unwrap();
        if entries.is_empty() {
            break;
        }
        bytes += entries.iter().map(|entry| entry.bytes.len()).sum::<usize>();
    }
    assert_eq!(bytes, MEGABYTES * 1_000_000);
    begin.elapsed()
}

fn report(what: &str, times: &mut [Duration]) {
    times.sort_unstable();
    let median = times[times.len() / 2].as_secs_f64();
    println!("  {what:24} {:7.0}", MEGABYTES as f64 / median);
}
