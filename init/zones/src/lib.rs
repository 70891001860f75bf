//! Zones: isolated processes with namespaces, cgroups, capabilities and system call filters of their
//! own, started by process 1 and driven by the supervisor.
//!
//! A [`ZoneSpec`] is compiled into a program ([`sys::program`]) that the zone's first process runs
//! before the image's own. The [`keeper`] in process 1 starts it and holds its exit status;
//! [`Zones`] is the supervisor's handle to all of this. Zones that nobody keeps are [`direct`]. Nothing here knows of HTTP, of images or of
//! how a root file system is made.

#![forbid(unsafe_code)]

pub mod capabilities;
mod cgroup;
mod compile;
mod device_rules;
pub mod devices;
pub mod direct;
mod error;
mod freezer;
pub mod keeper;
pub mod log;
mod parameters;
mod runtime;
pub mod seccomp;
pub mod spec;
pub mod stats;
mod stdio;

pub use capabilities::{Capability, CapabilitySet};
pub use cgroup::{Cgroups, Most, open_for_another as open_cgroup_for_another, remove_tree as remove_cgroup};
pub use compile::STAGING;
pub use device_rules::DeviceRule;
pub use devices::{Device, DeviceAccess, DeviceKind, Node};
pub use error::{Error, StartError};
pub use parameters::ParameterOf;
pub use runtime::{ExitStatus, Pending, Process, Survivor, Zones};
pub use seccomp::Seccomp;
pub use spec::{
    CpuLimit, DeviceNumber, IDS_PER_ZONE, INIT, IdMap, IoLimit, Limits, MASKED_PATHS, Mount, MountAttributes,
    Namespace, Namespaces, ProcessSpec, READ_ONLY_PATHS, ResourceLimit, TerminalSize, User, ZoneSpec,
};
pub use stdio::{Stdio, resize};
pub use sys::spawn::user_namespace;
