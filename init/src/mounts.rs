//! The early namespace: what is mounted where, as a table, and the move out of the initramfs.
//!
//! The kernel starts `/init` on its initramfs, which can be neither unmounted nor pivoted away
//! from (`pivot_root(2)`), yet every zone pivots. So the first thing is a tmpfs that takes the
//! place of the root, with what the appliance needs of the initramfs bound below it.

use std::fs;
use std::io;
use std::os::unix::fs::symlink;
use std::path::Path;

use anyhow::Context;
use rustix::mount::{MountFlags, mount, mount_move};

struct Entry {
    source: &'static str,
    target: &'static str,
    fstype: &'static str,
    flags: MountFlags,
    data: &'static str,
}

const NO_SUID_DEV_EXEC: MountFlags = MountFlags::NOSUID
    .union(MountFlags::NODEV)
    .union(MountFlags::NOEXEC);

/// In order: a later target may lie within an earlier one.
const MOUNTS: &[Entry] = &[
    Entry {
        source: "proc",
        target: "/proc",
        fstype: "proc",
        flags: NO_SUID_DEV_EXEC,
        data: "",
    },
    Entry {
        source: "sysfs",
        target: "/sys",
        fstype: "sysfs",
        flags: NO_SUID_DEV_EXEC,
        data: "",
    },
    Entry {
        source: "devtmpfs",
        target: "/dev",
        fstype: "devtmpfs",
        flags: MountFlags::NOSUID,
        data: "mode=0755",
    },
    Entry {
        source: "devpts",
        target: "/dev/pts",
        fstype: "devpts",
        flags: MountFlags::NOSUID.union(MountFlags::NOEXEC),
        data: "mode=0620,ptmxmode=0666",
    },
    Entry {
        source: "shm",
        target: "/dev/shm",
        fstype: "tmpfs",
        flags: NO_SUID_DEV_EXEC,
        data: "mode=1777",
    },
    Entry {
        source: "mqueue",
        target: "/dev/mqueue",
        fstype: "mqueue",
        flags: NO_SUID_DEV_EXEC,
        data: "",
    },
    Entry {
        source: "cgroup2",
        target: "/sys/fs/cgroup",
        fstype: "cgroup2",
        flags: NO_SUID_DEV_EXEC,
        data: "nsdelegate",
    },
    Entry {
        source: "run",
        target: "/run",
        fstype: "tmpfs",
        flags: MountFlags::NOSUID.union(MountFlags::NODEV),
        data: "mode=0755",
    },
];

/// Folders and files of the initramfs that the appliance goes on using.
const CARRIED: &[&str] = &["/init", "/etc", "/images", "/lib"];
const NEW_ROOT: &str = "/new-root";

/// Puts a tmpfs in the place of the initramfs.
///
/// Nothing is copied: what is used further stays on the initramfs and is bound below the new root at
/// the same path; modules and images are deleted there when they have been used.
pub(crate) fn leave_initramfs() -> anyhow::Result<String> {
    fs::create_dir_all(NEW_ROOT)?;
    mount("root", NEW_ROOT, "tmpfs", MountFlags::NOSUID, c"mode=0755")
        .context("Cannot mount a tmpfs for the root")?;
    for path in CARRIED.iter().filter(|path| Path::new(path).exists()) {
        carry(path).with_context(|| format!("Cannot move {path} to the new root"))?;
    }
    std::env::set_current_dir(NEW_ROOT)?;
    mount_move(".", "/").context("Cannot move the new root into place")?;
    rustix::process::chroot(".").context("Cannot enter the new root")?;
    std::env::set_current_dir("/")?;
    Ok(String::new())
}

/// Binds a file or folder of the initramfs at the same path below the new root.
fn carry(path: &str) -> io::Result<()> {
    let target = format!("{NEW_ROOT}{path}");
    if Path::new(path).is_dir() {
        fs::create_dir_all(&target)?;
    } else {
        fs::File::create(&target)?;
    }
    Ok(rustix::mount::mount_bind(path, &target)?)
}

/// Mounts the table. One file system that is missing does not keep the others away.
pub(crate) fn mount_all() -> anyhow::Result<String> {
    let mut failed = Vec::new();
    for entry in MOUNTS {
        let data = std::ffi::CString::new(entry.data)?;
        let done = fs::create_dir_all(entry.target).and_then(|()| {
            mount(
                entry.source,
                entry.target,
                entry.fstype,
                entry.flags,
                data.as_c_str(),
            )
            .map_err(io::Error::from)
        });
        if let Err(error) = done {
            failed.push(format!("{}: {error}", entry.target));
        }
    }
    for (target, link) in [
        ("/proc/self/fd", "/dev/fd"),
        ("/proc/self/fd/0", "/dev/stdin"),
        ("/proc/self/fd/1", "/dev/stdout"),
        ("/proc/self/fd/2", "/dev/stderr"),
        ("pts/ptmx", "/dev/ptmx"),
    ] {
        let _ = fs::remove_file(link);
        let _ = symlink(target, link);
    }
    for dir in ["/etc", "/pool", "/tmp"] {
        fs::create_dir_all(dir)?;
    }
    anyhow::ensure!(failed.is_empty(), "Not mounted: {}", failed.join("; "));
    Ok(String::new())
}
