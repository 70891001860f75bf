//! `HostConfig.Devices`: devices of the machine in a container's `/dev`.
//!
//! A node in the machine's `/dev` belongs to the machine's own ids and cannot be shown with others, so
//! each container gets nodes of its own, made by the store. A block device that the machine itself uses
//! is not given away: whoever writes to it writes to every container's files.
//!
//! A privileged container in the machine's user namespace has all of them, as with Docker, and makes the
//! nodes itself. One in its own has besides those of Docker's list only what knows of namespaces and is of
//! use there: what it does with another device it would do to the whole machine.

use std::os::fd::BorrowedFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::Path;

use rustix::fs::{Mode, OFlags, major, minor};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};
use store::{NodeSpec, Store};
use zones::{Device, DeviceAccess, DeviceKind, Mount, Node};

use super::config::HostConfig;
use crate::http::{ApiError, Result};

const DEV: &str = "/dev/";
/// Folders below this many are not looked through.
const MAX_DEPTH: usize = 8;

#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "PascalCase", default)]
pub(crate) struct DeviceMapping {
    pub(crate) path_on_host: String,
    pub(crate) path_in_container: String,
    /// Of the letters `r`, `w` and `m`; empty is all.
    pub(crate) cgroup_permissions: String,
}

impl DeviceMapping {
    fn of(path: &str) -> Self {
        Self {
            path_on_host: path.to_owned(),
            ..Self::default()
        }
    }

    fn in_container(&self) -> &str {
        match self.path_in_container.as_str() {
            "" => &self.path_on_host,
            path => path,
        }
    }

    fn access(&self) -> Result<DeviceAccess> {
        match self.cgroup_permissions.as_str() {
            "" => Ok(DeviceAccess::ALL),
            text => DeviceAccess::parse(text)
                .ok_or_else(|| ApiError::bad_request(format!("invalid device mode: {text}"))),
        }
    }
}

/// What a container that is privileged in its own user namespace is given where the machine has it: file
/// systems and interfaces that it makes are its own.
const NAMESPACED: &[&str] = &["/dev/fuse", "/dev/net/tun"];
/// What is not the machine's in `/dev`, but a file system of each container's own.
const OWN: &[&str] = &["console", "fd", "mqueue", "pts", "shm"];

/// Whether it has all powers that the machine has.
pub(crate) fn is_machines(host: &HostConfig) -> bool {
    host.privileged && host.userns_mode == "host"
}

/// The nodes of all devices, for a container that may have them; none for others. Blocks.
pub(crate) fn of_machine(host: &HostConfig) -> Result<Vec<Node>> {
    let mut nodes = Vec::new();
    if is_machines(host) {
        let failed = |error| ApiError::internal(format!("Cannot list the machine's devices: {error}."));
        all_below(Path::new(DEV), 0, &mut nodes).map_err(failed)?;
    }
    Ok(nodes)
}

/// What comes and goes meanwhile may be missing.
fn all_below(folder: &Path, depth: usize, nodes: &mut Vec<Node>) -> std::io::Result<()> {
    for entry in std::fs::read_dir(folder)? {
        let entry = entry?;
        let (path, name) = (entry.path(), entry.file_name());
        let (Some(text), Ok(meta)) = (path.to_str(), std::fs::symlink_metadata(&path)) else {
            continue;
        };
        let kind = meta.file_type();
        let own = depth == 0 && OWN.iter().any(|own| name == *own);
        if own {
            continue;
        } else if kind.is_dir() && depth < MAX_DEPTH {
            all_below(&path, depth + 1, nodes)?;
        } else if kind.is_char_device() || kind.is_block_device() {
            nodes.push(Node {
                path: text.to_owned(),
                mode: meta.mode(),
                device: meta.rdev(),
                uid: meta.uid(),
                gid: meta.gid(),
            });
        }
    }
    Ok(())
}

/// Checks what needs no look at the devices.
pub(crate) fn check(host: &HostConfig) -> Result<()> {
    for mapping in host.devices.iter().flatten() {
        mapping.access()?;
        for path in [mapping.path_on_host.as_str(), mapping.in_container()] {
            if !path.starts_with('/') || path.split('/').any(|name| name == "..") {
                return Err(ApiError::bad_request(format!(
                    "invalid device path: {path:?} must be absolute, without \"..\""
                )));
            }
        }
    }
    Ok(())
}

/// The devices that a container is given, and the mounts that put their nodes into it. Blocks.
pub(crate) fn attach(
    store: &Store,
    host: &HostConfig,
    userns: BorrowedFd<'_>,
) -> Result<(Vec<Device>, Vec<Mount>)> {
    let (mut devices, mut mounts) = (Vec::new(), Vec::new());
    let namespaced = NAMESPACED.iter().filter(|path| {
        let wanted = host.privileged && !is_machines(host);
        wanted && Path::new(path).exists()
    });
    let namespaced: Vec<DeviceMapping> = namespaced.map(|path| DeviceMapping::of(path)).collect();
    for mapping in host.devices.iter().flatten().chain(&namespaced) {
        for (device, node) in found(mapping)? {
            mounts.push(Mount::Tree {
                tree: store.device_node(node, userns)?,
                at: device.path.clone(),
                file: true,
            });
            devices.push(device);
        }
    }
    Ok((devices, mounts))
}

/// The devices of a mapping: one, or all that are in a folder.
fn found(mapping: &DeviceMapping) -> Result<Vec<(Device, NodeSpec)>> {
    let path = mapping.path_on_host.as_str();
    let failed = |why: &str| {
        ApiError::bad_request(format!(
            "error gathering device information while adding custom device \"{path}\": {why}"
        ))
    };
    let real = std::fs::canonicalize(path).map_err(|error| match error.kind() {
        std::io::ErrorKind::NotFound => failed("no such file or directory"),
        _ => failed(&error.to_string()),
    })?;
    if !real.starts_with(DEV) {
        return Err(failed("not a device node"));
    }
    let access = mapping.access()?;
    let mut all = Vec::new();
    look(&real, mapping.in_container(), access, 0, &mut all)?;
    if all.is_empty() {
        return Err(failed("not a device node"));
    }
    Ok(all)
}

fn look(
    real: &Path,
    path: &str,
    access: DeviceAccess,
    depth: usize,
    all: &mut Vec<(Device, NodeSpec)>,
) -> Result<()> {
    let cannot =
        |error: std::io::Error| ApiError::internal(format!("Cannot look at {}: {error}.", real.display()));
    let meta = std::fs::symlink_metadata(real).map_err(cannot)?;
    let kind = meta.file_type();
    if kind.is_dir() && depth < MAX_DEPTH {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(real).map_err(cannot)? {
            names.push(entry.map_err(cannot)?.file_name());
        }
        names.sort();
        for name in names {
            // What is no text is no device's name.
            if let Some(name) = name.to_str() {
                look(
                    &real.join(name),
                    &format!("{path}/{name}"),
                    access,
                    depth + 1,
                    all,
                )?;
            }
        }
        return Ok(());
    }
    if !kind.is_char_device() && !kind.is_block_device() {
        return Ok(());
    }
    let host = real.to_string_lossy().into_owned();
    if kind.is_block_device() && is_in_use(real) {
        return Err(ApiError::conflict(format!(
            "The device {host} is in use by this machine and cannot be given to a container; name another one."
        )));
    }
    let (major, minor) = (major(meta.rdev()), minor(meta.rdev()));
    let device = Device {
        host,
        path: path.to_owned(),
        kind: if kind.is_block_device() {
            DeviceKind::Block
        } else {
            DeviceKind::Character
        },
        major,
        minor,
        access,
    };
    let node = NodeSpec {
        block: kind.is_block_device(),
        major,
        minor,
        mode: meta.mode() & 0o7777,
        uid: meta.uid(),
        gid: meta.gid(),
    };
    all.push((device, node));
    Ok(())
}

/// Whether the block device holds a mounted file system or is part of something (open(2), `O_EXCL`
/// without `O_CREAT`).
fn is_in_use(device: &Path) -> bool {
    let flags = OFlags::RDONLY | OFlags::EXCL | OFlags::NONBLOCK | OFlags::CLOEXEC;
    matches!(rustix::fs::open(device, flags, Mode::empty()), Err(Errno::BUSY))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn mapping(host: &str, container: &str, permissions: &str) -> DeviceMapping {
        DeviceMapping {
            path_on_host: host.to_owned(),
            path_in_container: container.to_owned(),
            cgroup_permissions: permissions.to_owned(),
        }
    }

    #[test]
    fn a_device_is_found_with_its_numbers_and_what_is_none_is_refused() {
        let all = found(&mapping("/dev/zero", "/dev/z", "rw")).unwrap();
        let [(device, node)] = all.as_slice() else {
            panic!("{all:?}")
        };
        assert_eq!(
            (device.path.as_str(), device.kind, device.major, device.minor),
            ("/dev/z", DeviceKind::Character, 1, 5)
        );
        assert!(device.access.read && device.access.write && !device.access.make);
        assert_eq!((node.mode, node.block), (0o666, false));
        for (path, why) in [
            ("/dev/absent", "no such file or directory"),
            ("/etc/passwd", "not a device node"),
            ("/proc/self/environ", "not a device node"),
        ] {
            let error = found(&mapping(path, "", "")).unwrap_err();
            let text =
                format!("error gathering device information while adding custom device \"{path}\": {why}");
            assert_eq!(error.message, text);
        }
    }

    #[test]
    fn wrong_mappings_are_refused() {
        let host = |mapping| HostConfig {
            devices: Some(vec![mapping]),
            ..HostConfig::default()
        };
        assert!(check(&host(mapping("/dev/zero", "", "rwm"))).is_ok());
        for bad in [
            mapping("dev/zero", "", ""),
            mapping("/dev/../etc/passwd", "", ""),
            mapping("/dev/zero", "zero", ""),
            mapping("/dev/zero", "", "x"),
        ] {
            assert!(check(&host(bad.clone())).is_err(), "{bad:?}");
        }
    }
}
