//! What a zone is, before it runs.

use std::os::fd::OwnedFd;

pub use sys::program::MountAttributes;
pub use sys::spawn::{IdMap, ResourceLimit};

use crate::capabilities::CapabilitySet;
use crate::device_rules::DeviceRule;
use crate::devices::{Device, Node};
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

/// Where the program of [`ZoneSpec::init`] lies in the zone, as in Docker's.
pub const INIT: &str = "/sbin/docker-init";

/// Whose a namespace of a zone is.
#[derive(Debug, Default)]
pub enum Namespace {
    #[default]
    Own,
    /// That of the machine.
    Host,
    /// That of another zone, by the pidfd of its first process.
    Of(OwnedFd),
}

/// The namespaces of a zone beside its mounts, which are always its own.
///
/// A namespace belongs to a user namespace, and only who has powers in that one may mount what shows it
/// (`/proc`, `/sys`, `mqueue`), bind its low ports or set its parameters. So a zone that joins another's
/// namespaces must be in its user namespace too, with its ids; and one that is in the machine's must have
/// the machine's user namespace, which makes its root the machine's.
#[derive(Debug, Default)]
pub struct Namespaces {
    pub user: Namespace,
    pub pid: Namespace,
    pub ipc: Namespace,
    pub network: Namespace,
    pub uts: Namespace,
    pub cgroup: Namespace,
}

/// A zone: its first process and what surrounds it.
#[derive(Debug)]
pub struct ZoneSpec {
    /// Unique among the zones of the machine; also the name of its cgroup.
    pub id: String,
    pub hostname: String,
    pub domainname: Option<String>,
    pub process: ProcessSpec,
    /// [`IdMap::HOST`] in the machine's user namespace; those of the other zone in another's.
    pub ids: IdMap,
    pub namespaces: Namespaces,
    pub limits: Limits,
    pub read_only_root: bool,
    /// `/sys` and the cgroup's files may be written as far as the kernel lets the zone's users.
    pub system_files_writable: bool,
    /// Beside those that every zone has (`/proc`, `/sys`, `/dev`, …), in order.
    pub mounts: Vec<Mount>,
    /// Hidden behind an empty folder or file where they are there, such as [`MASKED_PATHS`].
    pub masked_paths: Vec<String>,
    /// Made read-only where they are there, such as [`READ_ONLY_PATHS`].
    pub read_only_paths: Vec<String>,
    /// Devices beside those that every zone has (`/dev/null`, …); their nodes are among the mounts.
    pub devices: Vec<Device>,
    /// Nodes that it makes itself, which takes the machine's user namespace.
    pub nodes: Vec<Node>,
    /// What the zone may open beside those: rules for nodes that it makes or is given later.
    pub device_rules: Vec<DeviceRule>,
    /// Small files of the zone's own, put over those of the image: path and content.
    pub files: Vec<(String, Vec<u8>)>,
    /// Bytes of `/dev/shm`; none for a zone without one, or with another's among its mounts.
    pub shm_size: Option<u64>,
    /// A program of the machine that runs as the zone's process 1 and has its program as a child, such as
    /// process 1's own file, which does that as [`INIT`].
    pub init: Option<String>,
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
    /// How likely the kernel kills it for want of memory, -1000 (never) to 1000; 0 is as any other.
    pub oom_score_adj: i32,
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
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Limits {
    /// Bytes.
    pub memory: Option<u64>,
    /// Bytes that are taken from the zone only when there is nothing else to take.
    pub memory_reservation: Option<u64>,
    /// Bytes of swap beside the memory; none with a limit of memory means no swap at all.
    pub swap: Option<u64>,
    pub cpu: Option<CpuLimit>,
    /// Docker's shares, 2 to 262144, 1024 by default.
    pub cpu_shares: Option<u64>,
    /// CPUs that it may run on, as the kernel writes a list: `0-2,7`.
    pub cpus: Option<String>,
    /// NUMA nodes that its memory may lie on, as a list.
    pub memory_nodes: Option<String>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Docker's weight, 10 to 1000, 500 being its middle.
    pub io_weight: Option<u16>,
    pub io_weight_devices: Vec<(DeviceNumber, u16)>,
    /// One for each device.
    pub io: Vec<IoLimit>,
}

/// CPU time in each period, both in microseconds; no quota is no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CpuLimit {
    pub quota: Option<u64>,
    pub period: u64,
}

impl CpuLimit {
    /// Docker's and the kernel's period where none is said.
    pub const PERIOD: u64 = 100_000;

    /// A number of CPUs, in billionths.
    pub fn of_nano_cpus(cpus: u64) -> Self {
        /// The kernel's least quota.
        const LEAST: u64 = 1_000;
        Self {
            quota: Some((cpus.saturating_mul(Self::PERIOD) / 1_000_000_000).max(LEAST)),
            period: Self::PERIOD,
        }
    }
}

/// Major and minor number of a block device.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct DeviceNumber {
    pub major: u32,
    pub minor: u32,
}

/// What a zone may do in a second with a block device; none means no limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IoLimit {
    pub device: DeviceNumber,
    pub read_bytes: Option<u64>,
    pub written_bytes: Option<u64>,
    pub reads: Option<u64>,
    pub writes: Option<u64>,
}

impl IoLimit {
    pub const fn none(device: DeviceNumber) -> Self {
        Self {
            device,
            read_bytes: None,
            written_bytes: None,
            reads: None,
            writes: None,
        }
    }
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
    /// A new mount of any file system.
    New {
        fstype: String,
        at: String,
        /// Of the file system; one without a value is a flag.
        options: Vec<(String, String)>,
        attributes: MountAttributes,
    },
    /// A detached mount (`open_tree(2)`), already idmapped to the zone's ids.
    Tree { tree: OwnedFd, at: String, file: bool },
}
