//! What a new process does between `clone3(2)` and `execve(2)`, as plain data.
//!
//! A [`Program`] is compiled by whoever knows what the process is for, may travel over a socket with
//! its descriptors, and is run by `run` in the child. The child is a copy of one thread of its
//! parent, so the interpreter allocates nothing and calls nothing that could wait for a lock that
//! another thread of the parent held: bare system calls only, on data that was prepared before.
//!
//! Descriptors are named by their place in the list that comes with the program ([`Fd`]). Paths of
//! steps that work on the new root are resolved with `openat2(2)` and `RESOLVE_IN_ROOT`: no symbolic
//! link in the tree leads out of it.

mod calls;
mod interpreter;
mod root;

use std::ffi::CString;

use serde::{Deserialize, Serialize};

pub(crate) use interpreter::Prepared;

/// Tells the form in which a [`Program`] travels: it is made of this file.
pub const FORM: u64 = fingerprint(include_str!("program.rs"), FNV_OFFSET);

const FNV_OFFSET: u64 = 0xcbf2_9ce4_8422_2325;
const FNV_PRIME: u64 = 0x0000_0100_0000_01b3;

/// FNV-1a (64 bits) of a source text without its comments and white space, going on from `seed`.
pub const fn fingerprint(source: &str, seed: u64) -> u64 {
    let bytes = source.as_bytes();
    let (mut hash, mut at) = (seed, 0);
    while at < bytes.len() {
        if bytes[at] == b'/' && at + 1 < bytes.len() && bytes[at + 1] == b'/' {
            while at < bytes.len() && bytes[at] != b'\n' {
                at += 1;
            }
        } else {
            if !bytes[at].is_ascii_whitespace() {
                hash = (hash ^ bytes[at] as u64).wrapping_mul(FNV_PRIME);
            }
            at += 1;
        }
    }
    hash
}

/// A descriptor of the program, by its place in the list that comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub u16);

/// The steps of a process, and where it reports a step that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub steps: Vec<Step>,
    /// A pipe or socket that is closed by a successful `execve` and otherwise gets one [`Failure`].
    pub report: Fd,
}

/// A step that failed; the process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Which one, as an index into [`Program::steps`]; the number of steps where the parent failed.
    pub step: usize,
    pub errno: i32,
}

impl Failure {
    /// Bytes of a report.
    pub const LEN: usize = 8;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&(self.step as u32).to_ne_bytes());
        bytes[4..].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            step: u32::from_ne_bytes([a, b, c, d]) as usize,
            errno: i32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// Attributes of a mount, `MOUNT_ATTR_*` of `mount_setattr(2)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttributes(pub u64);

impl MountAttributes {
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);
    pub const NO_ACCESS_TIME: Self = Self(libc::MOUNT_ATTR_NOATIME);
    pub const STRICT_ACCESS_TIME: Self = Self(libc::MOUNT_ATTR_STRICTATIME);
    pub const NO_FOLDER_ACCESS_TIME: Self = Self(libc::MOUNT_ATTR_NODIRATIME);
    pub const NO_SYMLINK_FOLLOW: Self = Self(libc::MOUNT_ATTR_NOSYMFOLLOW);
    /// The bits of the kinds of access times, of which a mount has one.
    pub const ACCESS_TIMES: Self = Self(libc::MOUNT_ATTR__ATIME);

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    pub const fn without(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }
}

/// One step. A path is in the new root, except where it says *host*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Waits for one byte; fails with `ECANCELED` when the other side closes instead.
    Await(Fd),
    /// Writes one byte: the other side learns that this step is reached.
    Tell(Fd),
    /// `setns(2)` with a pidfd; `CLONE_NEW*` flags.
    JoinNamespaces {
        pidfd: Fd,
        flags: i32,
    },
    /// `unshare(2)`; `CLONE_NEW*` flags.
    Unshare {
        flags: i32,
    },
    /// Makes every mount private, so that nothing done here is seen outside.
    PrivateMounts,
    /// Attaches a detached mount at a *host* path; it is the new root from here on.
    AttachRoot {
        tree: Fd,
        at: CString,
    },
    /// Makes a folder and those above it, where missing.
    MakeDir {
        path: CString,
        mode: u32,
    },
    /// Makes an empty file to mount on, and the folders above it, where missing.
    MakeFile {
        path: CString,
    },
    /// Makes a symbolic link; one that is there already is left alone.
    Symlink {
        target: CString,
        path: CString,
    },
    /// A new file system, mounted on a folder that is made where missing (mode 755).
    Mount {
        fstype: CString,
        options: Vec<(CString, CString)>,
        attributes: MountAttributes,
        at: CString,
    },
    /// Puts a small file over the one at a path (made where missing). It lies on the zone's `/dev`,
    /// which must be mounted, without a name.
    File {
        path: CString,
        data: Vec<u8>,
    },
    /// Attaches a detached mount that came with the program.
    AttachTree {
        tree: Fd,
        at: CString,
    },
    /// Binds a *host* file or folder.
    BindHost {
        host: CString,
        attributes: MountAttributes,
        at: CString,
    },
    /// Binds a *host* file on one that is made for it, in a folder that is there; nothing may be at the
    /// path yet.
    BindHostAnew {
        host: CString,
        attributes: MountAttributes,
        at: CString,
    },
    /// Hides a file behind `/dev/null`, a folder behind an empty read-only tmpfs; skips what is not there.
    Mask {
        path: CString,
    },
    /// Makes what is below a path read-only, with the attributes it has; skips what is not there.
    ReadOnly {
        path: CString,
    },
    /// Makes a device node with its type, mode and owner; one that is there already is left alone.
    MakeNode {
        path: CString,
        /// As of mknod(2): type and permissions.
        mode: u32,
        /// As of makedev(3).
        device: u64,
        uid: u32,
        gid: u32,
    },
    /// Sets the propagation (`MS_SHARED` and the like, with `MS_REC`) of the root. After `PivotRoot`.
    RootPropagation(u64),
    /// Brings up the loopback device of the process's network namespace.
    LoopbackUp,
    /// Makes the root itself read-only; what is mounted below it stays as it is. After `PivotRoot`.
    ReadOnlyRoot,
    /// Makes the new root the root, and detaches the old one.
    PivotRoot,
    HostName(CString),
    DomainName(CString),
    /// Writes to a file that is there; the path is that of the process, without links.
    WriteFile {
        path: CString,
        data: Vec<u8>,
    },
    /// Standard input, output and error.
    Stdio([Fd; 3]),
    NewSession,
    /// Joins a session keyring of its own (keyrings(7)), where the kernel has keyrings.
    NewKeyring,
    /// Opens a terminal in the zone's own devpts, makes it standard input, output and error and the
    /// session's controlling terminal, gives it to the user, and sends its master over a socket.
    Terminal {
        to: Fd,
        owner: u32,
        rows: u16,
        columns: u16,
        console: bool,
    },
    /// Enters a folder, made where missing if `create`.
    WorkingDir {
        path: CString,
        create: bool,
    },
    Groups(Vec<u32>),
    Group(u32),
    User(u32),
    /// Keeps only these in the bounding set.
    CapabilityBounds(u64),
    /// Sets permitted and effective, and clears inheritable and ambient.
    Capabilities(u64),
    /// Keeps the permitted capabilities over a change of the user (`PR_SET_KEEPCAPS`).
    KeepCapabilities,
    CapabilitySets(CapabilitySets),
    /// umask(2)
    Umask(u32),
    /// personality(2)
    Personality(u64),
    /// Fails as `Exec` would if none of the files could be run.
    Executable {
        files: Vec<CString>,
    },
    /// `Exec` leaves this many descriptors after standard error open.
    Inherit(u32),
    NoNewPrivileges,
    /// A filter of `struct sock_filter` entries.
    Seccomp(Vec<SockFilter>),
    /// Replaces the process by the first of the files that can be run. Everything but standard input,
    /// output and error is closed.
    Exec {
        files: Vec<CString>,
        arguments: Vec<CString>,
        environment: Vec<CString>,
    },
}

/// The sets of capabilities(7) beside the bounding set, one bit each.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct CapabilitySets {
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct SockFilter {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

impl Step {
    fn fds(&self) -> impl Iterator<Item = Fd> {
        let found: [Option<Fd>; 3] = match self {
            Step::Await(fd)
            | Step::Tell(fd)
            | Step::JoinNamespaces { pidfd: fd, .. }
            | Step::AttachRoot { tree: fd, .. }
            | Step::AttachTree { tree: fd, .. }
            | Step::Terminal { to: fd, .. } => [Some(*fd), None, None],
            Step::Stdio([a, b, c]) => [Some(*a), Some(*b), Some(*c)],
            _ => [None; 3],
        };
        found.into_iter().flatten()
    }
}
