//! What a zone is, before it runs.

use std::os::fd::OwnedFd;

pub use sys::program::MountAttributes;
pub use sys::spawn::{IdMap, ResourceLimit};

use crate::capabilities::CapabilitySet;
use crate::devices::Device;
use crate::seccomp::Seccomp;

/// Ids of one zone: its root is `host`, and it has this many.
pub const IDS_PER_ZONE: u32 = 65_536;

/// Docker's lists of what is hidden from a zone and what it may only read, unless told otherwise: what
/// tells of or reaches into the machine.
pub const MASKED_PATHS: &[&str] = &[
    "/proc/asound",
    "/proc/acpi",
    "/proc/interrupts",
    "/proc/kcore",
    "/proc/keys",
    "/proc/latency_stats",
    "/proc/timer_list",
    "/proc/timer_stats",
    "/proc/sched_debug",
    "/proc/scsi",
    "/sys/firmware",
    "/sys/devices/virtual/powercap",
];
/// See [`MASKED_PATHS`].
pub const READ_ONLY_PATHS: &[&str] = &[
    "/proc/bus",
    "/proc/fs",
    "/proc/irq",
    "/proc/sys",
    "/proc/sysrq-trigger",
];

/// A zone: its first process and what surrounds it.
#[derive(Debug)]
pub struct ZoneSpec {
    /// Unique among the zones of the machine; also the name of its cgroup.
    pub id: String,
    pub hostname: String,
    pub domainname: Option<String>,
    pub process: ProcessSpec,
    pub ids: IdMap,
    pub limits: Limits,
    pub read_only_root: bool,
    /// Beside those that every zone has (`/proc`, `/sys`, `/dev`, …), in order.
    pub mounts: Vec<Mount>,
    /// Hidden behind an empty folder or file where they are there, such as [`MASKED_PATHS`].
    pub masked_paths: Vec<String>,
    /// Made read-only where they are there, such as [`READ_ONLY_PATHS`].
    pub read_only_paths: Vec<String>,
    /// Devices beside those that every zone has (`/dev/null`, …); their nodes are among the mounts.
    pub devices: Vec<Device>,
    /// Small files of the zone's own, put over those of the image: path and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// Bytes of `/dev/shm`.
    pub shm_size: u64,
    /// Namespaced kernel parameters, such as `net.ipv4.ip_forward`.
    pub sysctls: Vec<(String, String)>,
}

/// A process in a zone: its first one or one that is added.
#[derive(Debug, Clone)]
pub struct ProcessSpec {
    /// Program and arguments; the program is looked up in `PATH` of `env` if it has no slash.
    pub args: Vec<String>,
    /// `NAME=value`.
    pub env: Vec<String>,
    /// Absolute path in the zone.
    pub cwd: String,
    pub user: User,
    /// A terminal instead of three pipes.
    pub terminal: Option<TerminalSize>,
    /// Whether anything may ever be written to its standard input.
    pub stdin: bool,
    pub capabilities: CapabilitySet,
    pub seccomp: Seccomp,
    pub no_new_privileges: bool,
    pub rlimits: Vec<ResourceLimit>,
}

/// Ids within the zone.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct User {
    pub uid: u32,
    pub gid: u32,
    /// Supplementary groups.
    pub groups: Vec<u32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TerminalSize {
    pub rows: u16,
    pub columns: u16,
}

impl Default for TerminalSize {
    fn default() -> Self {
        Self {
            rows: 24,
            columns: 80,
        }
    }
}

/// Limits of the zone's cgroup; none means no limit.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes of swap beside the memory; none with a limit of memory means no swap at all.
    pub swap: Option<u64>,
    /// Billionths of a CPU.
    pub nano_cpus: Option<u64>,
    /// Docker's shares, 2 to 262144, 1024 by default.
    pub cpu_shares: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
}

/// A mount beside the usual ones.
#[derive(Debug)]
pub enum Mount {
    Tmpfs {
        at: String,
        /// Of the file system (`tmpfs(5)`); one without a value is a flag.
        options: Vec<(String, String)>,
        attributes: MountAttributes,
    },
    /// A detached mount (`open_tree(2)`), already idmapped to the zone's ids.
    Tree { tree: OwnedFd, at: String, file: bool },
}
