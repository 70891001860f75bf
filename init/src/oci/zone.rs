//! From a bundle's configuration to the zone that it describes.

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::Path;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;
use sys::program::CapabilitySets;
use sys::spawn::{
    IdMaps, IdRange, NEW_CGROUP, NEW_IPC, NEW_MOUNT, NEW_NET, NEW_PID, NEW_TIME, NEW_USER, NEW_UTS,
};
use zones::Node;
use zones::direct::{DirectStdio, DirectZone, Namespaces};
use zones::{
    Capability, CapabilitySet, ParameterOf, ProcessSpec, ResourceLimit, Seccomp, TerminalSize, User,
};

use super::config::{Config, Device, IdMapping, Linux, NamespaceKind, Personality, Process};
use super::mounts::{self, Ownership};

/// Where the process's standard streams and further descriptors come from.
pub(super) struct Streams {
    pub(super) stdio: DirectStdio,
    pub(super) inherited: Vec<OwnedFd>,
}

/// The zone of a bundle; its root is attached at `staging` on its way.
pub(super) fn zone(
    config: &Config,
    process: &Process,
    bundle: &Path,
    staging: &Path,
    streams: Streams,
) -> anyhow::Result<DirectZone> {
    let linux = &config.linux;
    let namespaces = namespaces(linux)?;
    let own = namespaces.own();
    for (what, name, kind) in [
        ("hostname", config.hostname.is_some(), NEW_UTS),
        ("domainname", config.domainname.is_some(), NEW_UTS),
    ] {
        ensure!(
            !name || own & kind != 0,
            "config.json has a {what} but no uts namespace, so it would be the machine's"
        );
    }
    let with_users = own & NEW_USER != 0;
    let ownership = Ownership {
        foreign_network: with_users && namespaces.new & NEW_NET == 0,
        foreign_cgroups: with_users && namespaces.new & NEW_CGROUP == 0,
    };
    let root = config.root.as_ref().context("config.json has no root")?;
    let mounts = config
        .mounts
        .iter()
        .map(|mount| mounts::mount(mount, bundle, ownership))
        .collect::<anyhow::Result<Vec<_>>>()?;
    // A folder of the machine's has its own devices.
    let usual_devices = !mounts
        .iter()
        .any(|mount| matches!(mount, zones::Mount::Tree { at, .. } if at.trim_end_matches('/') == "/dev"));
    check_sysctls(linux, own)?;
    let (spec, capabilities) = self::process(process, linux.seccomp.as_ref())?;
    Ok(DirectZone {
        process: spec,
        capabilities,
        oom_score_adj: process.oom_score_adj,
        umask: process.user.umask.unwrap_or(0o022),
        personality: linux.personality.as_ref().map(personality).transpose()?,
        root: mounts::root(&bundle.join(&root.path), &linux.rootfs_propagation)?,
        staging: staging.to_str().context("--root is no UTF-8")?.to_owned(),
        read_only_root: root.readonly,
        root_propagation: root_propagation(&linux.rootfs_propagation)?,
        namespaces,
        hostname: config.hostname.clone(),
        domainname: config.domainname.clone(),
        mounts,
        usual_devices,
        nodes: linux.devices.iter().map(node).collect::<anyhow::Result<_>>()?,
        masked_paths: linux.masked_paths.clone(),
        read_only_paths: linux.readonly_paths.clone(),
        sysctls: linux.sysctl.clone().into_iter().collect(),
        stdio: streams.stdio,
        inherited: streams.inherited,
    })
}

/// The process itself, and its sets of capabilities beside the bounding set.
pub(super) fn process(
    process: &Process,
    seccomp: Option<&Value>,
) -> anyhow::Result<(ProcessSpec, CapabilitySets)> {
    let wanted = process.capabilities.as_ref();
    let set = |names: Option<&Vec<String>>| capability_set(names.map_or(&[], Vec::as_slice));
    let bounding = set(wanted.map(|sets| &sets.bounding))?;
    let mut sets = CapabilitySets {
        effective: set(wanted.map(|sets| &sets.effective))?.bits(),
        permitted: set(wanted.map(|sets| &sets.permitted))?.bits(),
        inheritable: set(wanted.map(|sets| &sets.inheritable))?.bits(),
        ambient: set(wanted.map(|sets| &sets.ambient))?.bits(),
    };
    // The kernel lets none be ambient that is not both; stock bundles name more, as other runtimes do
    // not mind.
    sets.ambient &= sets.permitted & sets.inheritable;
    let size = process
        .console_size
        .map_or(TerminalSize::default(), |size| TerminalSize {
            rows: size.height,
            columns: size.width,
        });
    let spec = ProcessSpec {
        args: process.args.clone(),
        env: process.env.clone(),
        cwd: process.cwd.clone(),
        user: User {
            uid: process.user.uid,
            gid: process.user.gid,
            groups: process.user.additional_gids.clone(),
        },
        terminal: process.terminal.then_some(size),
        stdin: true,
        capabilities: bounding,
        seccomp: seccomp.map_or(Ok(Seccomp::Unconfined), |profile| profile_of(profile, bounding))?,
        no_new_privileges: process.no_new_privileges,
        rlimits: rlimits(process)?,
        oom_score_adj: process.oom_score_adj.unwrap_or(0),
    };
    Ok((spec, sets))
}

/// The specification's form is a part of Docker's.
fn profile_of(profile: &Value, capabilities: CapabilitySet) -> anyhow::Result<Seccomp> {
    docker::seccomp_profile(&profile.to_string(), capabilities)
        .map_err(|error| anyhow::anyhow!("Cannot use linux.seccomp of config.json: {error}"))
}

fn capability_set(names: &[String]) -> anyhow::Result<CapabilitySet> {
    names.iter().try_fold(CapabilitySet::EMPTY, |set, name| {
        let capability = Capability::parse(name).filter(|_| name.starts_with("CAP_"));
        let capability = capability.with_context(|| format!("There is no capability {name:?}"))?;
        Ok(set.with(capability))
    })
}

fn rlimits(process: &Process) -> anyhow::Result<Vec<ResourceLimit>> {
    let mut limits: Vec<ResourceLimit> = Vec::new();
    for wanted in &process.rlimits {
        let name = wanted.name.strip_prefix("RLIMIT_").unwrap_or("").to_lowercase();
        let resource = sys::spawn::resource(&name)
            .with_context(|| format!("There is no resource limit {:?}", wanted.name))?;
        ensure!(
            limits.iter().all(|limit| limit.resource != resource),
            "The resource limit {} is there twice",
            wanted.name
        );
        ensure!(
            wanted.soft <= wanted.hard,
            "The soft limit of {} is above its hard limit",
            wanted.name
        );
        limits.push(ResourceLimit {
            resource,
            soft: wanted.soft,
            hard: wanted.hard,
        });
    }
    Ok(limits)
}

fn flag(kind: NamespaceKind) -> u64 {
    match kind {
        NamespaceKind::Pid => NEW_PID,
        NamespaceKind::Network => NEW_NET,
        NamespaceKind::Mount => NEW_MOUNT,
        NamespaceKind::Ipc => NEW_IPC,
        NamespaceKind::Uts => NEW_UTS,
        NamespaceKind::User => NEW_USER,
        NamespaceKind::Cgroup => NEW_CGROUP,
        NamespaceKind::Time => NEW_TIME,
    }
}

fn namespaces(linux: &Linux) -> anyhow::Result<Namespaces> {
    let mut namespaces = Namespaces::default();
    for wanted in &linux.namespaces {
        let kind = flag(wanted.kind);
        let name = format!("{:?}", wanted.kind).to_lowercase();
        ensure!(
            namespaces.own() & kind == 0,
            "The {name} namespace is there twice in config.json"
        );
        match wanted.path.as_deref().filter(|path| !path.is_empty()) {
            None => namespaces.new |= kind,
            Some(path) => {
                let file =
                    File::open(path).with_context(|| format!("Cannot open the {name} namespace {path}"))?;
                namespaces.joined.push((file.into(), kind));
            }
        }
    }
    ensure!(
        namespaces.new & NEW_MOUNT != 0,
        "config.json has no new mount namespace, without which a zone has no root of its own"
    );
    // Whoever has entered another user namespace has no right to the machine's other namespaces.
    namespaces.joined.sort_by_key(|(_, kind)| *kind == NEW_USER);
    let maps = IdMaps {
        users: ranges(&linux.uid_mappings),
        groups: ranges(&linux.gid_mappings),
    };
    let mapped = !maps.users.is_empty() && !maps.groups.is_empty();
    if namespaces.new & NEW_USER != 0 {
        ensure!(
            mapped,
            "config.json has a new user namespace but no uidMappings and gidMappings"
        );
        namespaces.ids = Some(maps);
    } else if namespaces.own() & NEW_USER == 0 && maps != IdMaps::default() {
        bail!("config.json has uidMappings or gidMappings but no user namespace");
    }
    Ok(namespaces)
}

fn ranges(mappings: &[IdMapping]) -> Vec<IdRange> {
    mappings
        .iter()
        .map(|mapping| IdRange {
            inside: mapping.container_id,
            outside: mapping.host_id,
            count: mapping.size,
        })
        .collect()
}

fn node(device: &Device) -> anyhow::Result<Node> {
    let kind = match device.kind.as_str() {
        "c" | "u" => libc_mode::CHARACTER,
        "b" => libc_mode::BLOCK,
        "p" => libc_mode::PIPE,
        other => bail!(
            "The device {} has the type {other:?}; c, b and p are what there is",
            device.path
        ),
    };
    ensure!(
        device.path.starts_with('/'),
        "The path {:?} of a device is not absolute",
        device.path
    );
    Ok(Node {
        path: device.path.clone(),
        mode: kind | (device.file_mode.unwrap_or(0o666) & 0o7777),
        device: rustix::fs::makedev(device.major, device.minor),
        uid: device.uid,
        gid: device.gid,
    })
}

/// `S_IF*` of inode(7).
mod libc_mode {
    pub(super) const CHARACTER: u32 = 0o020_000;
    pub(super) const BLOCK: u32 = 0o060_000;
    pub(super) const PIPE: u32 = 0o010_000;
}

/// `MS_*` of mount(2).
const MS_REC: u64 = 1 << 14;
const MS_UNBINDABLE: u64 = 1 << 17;
const MS_SHARED: u64 = 1 << 20;

fn root_propagation(text: &str) -> anyhow::Result<Option<u64>> {
    Ok(match text {
        "" | "private" | "rprivate" | "slave" | "rslave" => None,
        "shared" => Some(MS_SHARED),
        "rshared" => Some(MS_SHARED | MS_REC),
        "unbindable" => Some(MS_UNBINDABLE),
        "runbindable" => Some(MS_UNBINDABLE | MS_REC),
        other => bail!("The rootfsPropagation {other:?} of config.json is none"),
    })
}

/// `PER_LINUX` and `PER_LINUX32` of personality(2).
fn personality(wanted: &Personality) -> anyhow::Result<u64> {
    ensure!(
        wanted.flags.is_empty(),
        "Monobloc does not do linux.personality.flags of config.json; leave them out"
    );
    match wanted.domain.as_str() {
        "LINUX" => Ok(0),
        "LINUX32" => Ok(8),
        other => bail!("The personality {other:?} is unknown; LINUX and LINUX32 are what there is"),
    }
}

/// Parameters of the machine are none of a zone's business.
fn check_sysctls(linux: &Linux, own: u64) -> anyhow::Result<()> {
    for key in linux.sysctl.keys() {
        let (namespace, kind) = match ParameterOf::name(key) {
            Some(ParameterOf::Ipc) => ("ipc", NEW_IPC),
            Some(ParameterOf::Network) => ("network", NEW_NET),
            Some(ParameterOf::Uts) => ("uts", NEW_UTS),
            None => bail!("The kernel parameter {key:?} is the machine's, not a zone's; leave it out"),
        };
        ensure!(
            own & kind != 0,
            "The kernel parameter {key:?} needs a {namespace} namespace of the zone's own"
        );
    }
    Ok(())
}
