//! The program of a zone that nobody keeps: the order is that of [`crate::compile`], what is in it is
//! all said by the caller.

use std::os::fd::OwnedFd;

use sys::program::{CapabilitySets, Program, Step};
use sys::spawn::{IdMaps, NEW_CGROUP, NEW_NET, NEW_USER};

use super::{Added, DirectStdio, DirectZone};
use crate::compile::{
    Builder, ChildStdio, DEVICE_LINKS, DEVICES, NO_SUID_EXEC, become_root, connect, make_node, own_mount,
    run, text,
};
use crate::error::Error;
use crate::seccomp;
use crate::spec::ProcessSpec;

/// The process's ends of its channels.
pub(super) struct Ends {
    pub(super) report: OwnedFd,
    pub(super) gate: OwnedFd,
    pub(super) tells: OwnedFd,
    pub(super) hears: OwnedFd,
}

pub(super) struct Compiled {
    pub(super) program: Program,
    pub(super) fds: Vec<OwnedFd>,
    pub(super) name: String,
    pub(super) enters: Vec<(OwnedFd, libc::c_int)>,
    pub(super) ids: Option<IdMaps>,
}

pub(super) fn program(zone: DirectZone, ends: Ends) -> Result<Compiled, Error> {
    let mut b = Builder::default();
    let inherited = u32::try_from(zone.inherited.len()).unwrap_or(u32::MAX);
    for fd in zone.inherited {
        b.fd(fd);
    }
    let report = b.fd(ends.report);
    let (tells, hears, gate) = (b.fd(ends.tells), b.fd(ends.hears), b.fd(ends.gate));
    let tree = b.fd(zone.root);
    let (new, own) = (zone.namespaces.new, zone.namespaces.own());
    if new & NEW_CGROUP != 0 {
        b.add(Step::Unshare {
            flags: libc::CLONE_NEWCGROUP,
        });
    }
    b.add(Step::PrivateMounts);
    // While it still has the machine's ids, whose folder it is that the root is attached at.
    b.add(Step::AttachRoot {
        tree,
        at: text(zone.staging)?,
    });
    become_root(&mut b);
    for mount in zone.mounts {
        own_mount(&mut b, mount)?;
    }
    // Nobody can make a node in a user namespace of his own.
    let bound = own & NEW_USER != 0;
    if zone.usual_devices {
        usual_devices(&mut b, bound)?;
    }
    for node in zone.nodes {
        if bound {
            bind_device(&mut b, &node.path)?;
        } else {
            b.add(make_node(&node)?);
        }
    }
    for path in &zone.masked_paths {
        b.add(Step::Mask { path: text(&**path)? });
    }
    b.add(Step::Tell(tells));
    b.add(Step::Await(hears));
    b.add(Step::PivotRoot);
    if let Some(name) = &zone.hostname {
        b.add(Step::HostName(text(&**name)?));
    }
    if let Some(name) = &zone.domainname {
        b.add(Step::DomainName(text(&**name)?));
    }
    b.parameters(&zone.sysctls, &zone.read_only_paths)?;
    if new & NEW_NET != 0 {
        b.add(Step::LoopbackUp);
    }
    connect(&mut b, zone.stdio.into(), &zone.process, true);
    b.add(Step::WorkingDir {
        path: text(&*zone.process.cwd)?,
        create: true,
    });
    if let Some(flags) = zone.root_propagation {
        b.add(Step::RootPropagation(flags));
    }
    if zone.read_only_root {
        b.add(Step::ReadOnlyRoot);
    }
    let name = zone.process.args.first().cloned().unwrap_or_default();
    let last = run(&name, &zone.process)?;
    if let Step::Exec { files, .. } = &last {
        b.add(Step::Executable { files: files.clone() });
    }
    b.add(Step::Tell(tells));
    b.add(Step::Await(gate));
    b.add(Step::Umask(zone.umask));
    if let Some(number) = zone.personality {
        b.add(Step::Personality(number));
    }
    powers(&mut b, &zone.process, zone.capabilities)?;
    b.add(Step::Inherit(inherited));
    b.add(last);
    Ok(Compiled {
        program: Program {
            steps: b.steps,
            report,
        },
        fds: b.fds,
        name,
        enters: zone
            .namespaces
            .joined
            .into_iter()
            // All `CLONE_NEW*` of setns(2) are ints.
            .map(|(namespace, kind)| (namespace, kind as libc::c_int))
            .collect(),
        ids: zone.namespaces.ids,
    })
}

/// The program of a process that joins a zone, all of whose namespaces but that of process ids are left
/// to it.
pub(super) fn added(
    added: Added<'_>,
    zone: OwnedFd,
    namespaces: u64,
    report: OwnedFd,
) -> Result<Compiled, Error> {
    let mut b = Builder::default();
    let inherited = u32::try_from(added.inherited.len()).unwrap_or(u32::MAX);
    for fd in added.inherited {
        b.fd(fd);
    }
    let (report, pidfd) = (b.fd(report), b.fd(zone));
    let flags = libc::c_int::try_from(namespaces).map_err(|_| Error::NotRunning)?;
    b.add(Step::JoinNamespaces { pidfd, flags });
    become_root(&mut b);
    connect(&mut b, added.stdio.into(), &added.process, false);
    b.add(Step::WorkingDir {
        path: text(&*added.process.cwd)?,
        create: false,
    });
    b.add(Step::Umask(added.umask));
    powers(&mut b, &added.process, added.capabilities)?;
    b.add(Step::Inherit(inherited));
    let name = added.process.args.first().cloned().unwrap_or_default();
    b.add(run(&name, &added.process)?);
    Ok(Compiled {
        program: Program {
            steps: b.steps,
            report,
        },
        fds: b.fds,
        name,
        enters: Vec::new(),
        ids: None,
    })
}

impl From<DirectStdio> for ChildStdio {
    fn from(stdio: DirectStdio) -> Self {
        match stdio {
            DirectStdio::Given(fds) => Self::Pipes(fds),
            DirectStdio::Terminal(socket) => Self::Terminal(socket),
        }
    }
}

fn bind_device(b: &mut Builder, path: &str) -> Result<(), Error> {
    b.add(Step::MakeFile { path: text(path)? });
    b.add(Step::BindHost {
        host: text(path)?,
        attributes: NO_SUID_EXEC,
        at: text(path)?,
    });
    Ok(())
}

/// Numbers of the usual devices (`Documentation/admin-guide/devices.txt`).
const NUMBERS: &[(&str, (u32, u32))] = &[
    ("null", (1, 3)),
    ("zero", (1, 5)),
    ("full", (1, 7)),
    ("random", (1, 8)),
    ("urandom", (1, 9)),
    ("tty", (5, 0)),
];

fn usual_devices(b: &mut Builder, bound: bool) -> Result<(), Error> {
    for device in DEVICES {
        let path = format!("/dev/{device}");
        let number = NUMBERS.iter().find(|(name, _)| name == device);
        match number {
            Some((_, (major, minor))) if !bound => b.add(Step::MakeNode {
                path: text(path)?,
                mode: libc::S_IFCHR | 0o666,
                device: rustix::fs::makedev(*major, *minor),
                uid: 0,
                gid: 0,
            }),
            _ => bind_device(b, &path)?,
        }
    }
    for (target, path) in DEVICE_LINKS {
        b.add(Step::Symlink {
            target: text(*target)?,
            path: text(*path)?,
        });
    }
    Ok(())
}

/// From the zone's root to the user, its capabilities and the filter.
fn powers(b: &mut Builder, process: &ProcessSpec, capabilities: CapabilitySets) -> Result<(), Error> {
    let filter = seccomp::filter(&process.seccomp, process.capabilities)?.map(Step::Seccomp);
    let mut filter = filter.into_iter();
    // Without no-new-privileges a filter needs CAP_SYS_ADMIN, which goes with the capabilities.
    if !process.no_new_privileges {
        b.steps.extend(filter.by_ref());
    }
    b.add(Step::CapabilityBounds(process.capabilities.bits()));
    b.add(Step::Groups(process.user.groups.clone()));
    b.add(Step::Group(process.user.gid));
    b.add(Step::KeepCapabilities);
    b.add(Step::User(process.user.uid));
    b.add(Step::CapabilitySets(capabilities));
    if process.no_new_privileges {
        b.add(Step::NoNewPrivileges);
    }
    b.steps.extend(filter);
    Ok(())
}
