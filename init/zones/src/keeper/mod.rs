//! Between the supervisor and process 1: who starts processes, who holds their exit statuses.
//!
//! The *keeper* ([`Server`]) runs in process 1. It starts processes for the supervisor, is their
//! parent, and keeps of each its pidfd, the descriptors that the supervisor asked it to keep, and the
//! exit status until the supervisor has acknowledged it. The supervisor ([`Client`]) may die at any
//! time; its successor gets all of this back. They speak in packets over one socket, one message
//! each, in postcard encoding.

mod client;
mod server;

use serde::{Deserialize, Serialize};
use sys::program::{self, Program};
use sys::spawn::{IdMap, ResourceLimit};

pub(crate) use client::NewProcess;
pub use client::{Client, Restored, RestoredProcess};
pub use server::{Build, Server, Turn};

/// Tells what process 1 and a supervisor must agree on: it is made of the sources that say what they
/// send each other, so that no change of these goes unnoticed. A supervisor of another build than
/// process 1 may follow only if both have the same.
pub const PROTOCOL: u64 = program::fingerprint(include_str!("mod.rs"), program::FORM);

/// From the supervisor. Descriptors go along in the order in which they are named.
#[derive(Debug, Serialize, Deserialize)]
enum Request {
    /// Descriptors: those of the program, then as the flags say the cgroup, the pidfd of the zone in
    /// whose PID namespace to be born, those whose namespaces are entered, and those to keep.
    Spawn(Box<SpawnRequest>),
    /// Keeps one descriptor under a name, in place of one of the same name; until it is released, or
    /// its process forgotten if it is said to be one's.
    Keep { process: Option<String>, name: String },
    /// Closes what is kept under a name.
    Release { process: Option<String>, name: String },
    /// The exit status is written down; process and descriptors are forgotten.
    Acknowledge { key: String },
    /// Asks for everything that is kept.
    Restore,
    /// Ends the machine; the zones are stopped by now.
    Power { restart: bool },
    /// The supervisor answers its clients.
    Serves,
    /// The next supervisors are of another build. Descriptor: its program.
    Replace { build: String },
    /// A process that has ended has another key from now on, so that one with its old key can come.
    Rename { from: String, to: String },
}

#[derive(Debug, Serialize, Deserialize)]
struct SpawnRequest {
    serial: u64,
    /// The process's name, unique among those that are not acknowledged.
    key: String,
    program: Program,
    program_fds: u16,
    namespaces: u64,
    has_cgroup: bool,
    joins: bool,
    /// Namespaces to be born in, `CLONE_NEW*`; for each a pidfd.
    enters: Vec<i32>,
    ids: Option<IdMap>,
    limits: Vec<ResourceLimit>,
    oom_score_adj: Option<i32>,
    /// Names of descriptors to keep with the process.
    keep: Vec<String>,
}

/// From process 1.
#[derive(Debug, Serialize, Deserialize)]
enum Event {
    /// Descriptor: the pidfd.
    Spawned {
        serial: u64,
        pid: i32,
    },
    NotSpawned {
        serial: u64,
        error: String,
    },
    Exited {
        key: String,
        exit: RawExit,
    },
    /// A process that the supervisor's predecessor started. Descriptors: pidfd, then those kept.
    Process {
        key: String,
        pid: i32,
        exit: Option<RawExit>,
        kept: Vec<String>,
    },
    /// A descriptor that the predecessor asked to keep.
    Kept {
        name: String,
    },
    /// All has been said that was kept.
    RestoreEnd,
    /// Somebody asked process 1 by a signal to end the machine.
    EndAsked {
        restart: bool,
    },
}

/// How a process ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct RawExit {
    /// 0 to 255, or 128 and the signal's number.
    pub code: i32,
    /// Microseconds since the epoch.
    pub at: u64,
}
