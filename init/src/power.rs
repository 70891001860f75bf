//! The end of the machine: every process gone, disks written and unmounted, then the kernel's call.

use std::fs;
use std::sync::mpsc;
use std::thread;
use std::time::Duration;

use rustix::mount::{UnmountFlags, unmount};
use rustix::process::{Pid, Signal, WaitOptions, kill_process, wait};
use rustix::system::RebootCommand;

use crate::console::say;

/// How long the file systems may take to be written before the machine goes down all the same.
const LIMIT: Duration = Duration::from_secs(20);

/// What becomes of the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    PowerOff,
    Reboot,
}

/// Ends the machine. The supervisor has stopped the zones by now, or is dead.
///
/// A disk that no longer answers would hold `sync(2)` for ever, so that part runs in a thread of its
/// own that has a limit.
pub(crate) fn end_machine(end: End) -> ! {
    let (done, finished) = mpsc::channel();
    let quiesce = thread::Builder::new().spawn(move || {
        kill_everything();
        rustix::fs::sync();
        unmount_all();
        let _ = done.send(());
    });
    if quiesce.is_err() || finished.recv_timeout(LIMIT).is_err() {
        say!(
            "the disks did not finish within {} s; going down without them",
            LIMIT.as_secs()
        );
    }
    let (word, command) = match end {
        End::PowerOff => ("power off", RebootCommand::PowerOff),
        End::Reboot => ("reboot", RebootCommand::Restart),
    };
    say!("{word}");
    loop {
        if let Err(error) = rustix::system::reboot(command) {
            say!("cannot {word}: {error}");
        }
        thread::park();
    }
}

/// Ends all processes but this one and waits for them.
fn kill_everything() {
    let Ok(entries) = fs::read_dir("/proc") else {
        return;
    };
    let me = rustix::process::getpid();
    let others = entries.flatten().filter_map(|entry| {
        let pid = entry.file_name().to_str()?.parse::<i32>().ok()?;
        // A kernel thread has no command line and cannot be killed.
        let user = fs::read(entry.path().join("cmdline")).is_ok_and(|text| !text.is_empty());
        Pid::from_raw(pid).filter(|pid| user && *pid != me)
    });
    for pid in others {
        let _ = kill_process(pid, Signal::KILL);
    }
    while let Ok(Some(_)) = wait(WaitOptions::empty()) {}
}

/// Unmounts everything that lies on a disk, the last mounted first.
fn unmount_all() {
    let Ok(mounts) = fs::read_to_string("/proc/self/mounts") else {
        return;
    };
    let on_disk = mounts
        .lines()
        .filter_map(|line| {
            let mut fields = line.split(' ');
            let (_, target, fstype) = (fields.next()?, fields.next()?, fields.next()?);
            matches!(fstype, "btrfs" | "overlay").then_some(target)
        })
        .collect::<Vec<_>>();
    for target in on_disk.into_iter().rev() {
        if let Err(error) = unmount(target, UnmountFlags::empty()) {
            say!("cannot unmount {target}: {error}");
        }
    }
}
