//! Reading a log as it grows, woken by the kernel (inotify), until the machine has ended (pidfd).

use std::fs::File;
use std::io::{self, Read as _, Seek as _, SeekFrom};
use std::mem::MaybeUninit;
use std::ops::ControlFlow;
use std::path::Path;

use rustix::event::{PollFd, PollFlags, poll};
use rustix::fs::inotify;

use super::Process;

pub(super) fn follow(
    path: &Path,
    from: SeekFrom,
    process: Option<&Process>,
    mut take: impl FnMut(&[u8]) -> ControlFlow<()>,
) -> io::Result<()> {
    let mut file = File::open(path)?;
    file.seek(from)?;
    let changes = inotify::init(inotify::CreateFlags::CLOEXEC | inotify::CreateFlags::NONBLOCK)?;
    inotify::add_watch(&changes, path, inotify::WatchFlags::MODIFY)?;
    let mut buffer = vec![0; 16 << 10];
    loop {
        // Asked before reading, so that what it said last is read.
        let ended = process.is_none_or(|process| !process.is_alive());
        loop {
            let length = file.read(&mut buffer)?;
            let part = buffer.get(..length).unwrap_or_default();
            if part.is_empty() {
                break;
            }
            if take(part).is_break() {
                return Ok(());
            }
        }
        let Some(process) = process.filter(|_| !ended) else {
            return Ok(());
        };
        let mut fds = [
            PollFd::new(&changes, PollFlags::IN),
            PollFd::new(&process.fd, PollFlags::IN),
        ];
        match poll(&mut fds, None) {
            Ok(_) | Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
        drain(&changes);
    }
}

/// Takes the notices away; that there were any is all they tell.
fn drain(changes: &rustix::fd::OwnedFd) {
    let mut buffer = [MaybeUninit::<u8>::uninit(); 1024];
    let mut notices = inotify::Reader::new(changes, &mut buffer);
    while notices.next().is_ok() {}
}
