//! From a specification to the program that the zone's first process runs.
//!
//! The order is the confinement: what needs the zone's full powers first, then the powers go, and the
//! image's own code comes last. Everything that the image can influence (its tree, with links and
//! odd mount points) is touched only from within the zone's namespaces, with the zone's ids.

use std::ffi::CString;
use std::os::fd::OwnedFd;

use rustix::process::{Resource, getrlimit};
use sys::program::{Fd, MountAttributes, Program, Step};
use sys::spawn::ResourceLimit;

use crate::devices::Node;
use crate::error::Error;
use crate::seccomp::{self, Seccomp};
use crate::spec::{INIT, Mount, Namespace, ProcessSpec, ZoneSpec};

/// Where the new root is attached in the zone's mount namespace until it is pivoted to.
pub const STAGING: &str = "/run/zone-root";

pub(crate) const DEVICES: &[&str] = &["null", "zero", "full", "random", "urandom", "tty"];
pub(crate) const DEVICE_LINKS: &[(&str, &str)] = &[
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/kcore", "/dev/core"),
];

pub(crate) const NO_SUID_EXEC: MountAttributes = MountAttributes::NO_SUID.with(MountAttributes::NO_EXEC);
const NO_SUID_DEV_EXEC: MountAttributes = NO_SUID_EXEC.with(MountAttributes::NO_DEV);
const HIDDEN: MountAttributes = NO_SUID_DEV_EXEC.with(MountAttributes::READ_ONLY);

/// Search path of a process without `PATH`, as Docker's.
const DEFAULT_PATH: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// A program with the descriptors that it names.
#[derive(Debug)]
pub(crate) struct Compiled {
    pub(crate) program: Program,
    pub(crate) fds: Vec<OwnedFd>,
    pub(crate) name: String,
    pub(crate) limits: Vec<ResourceLimit>,
    pub(crate) oom_score_adj: Option<i32>,
}

/// Ends of the channels to the process that go with its program.
pub(crate) struct ChildEnds {
    pub(crate) report: OwnedFd,
    pub(crate) gate: OwnedFd,
    pub(crate) stdio: ChildStdio,
}

pub(crate) enum ChildStdio {
    Pipes([OwnedFd; 3]),
    /// The socket that the terminal's master is sent over.
    Terminal(OwnedFd),
}

#[derive(Default)]
pub(crate) struct Builder {
    pub(crate) steps: Vec<Step>,
    pub(crate) fds: Vec<OwnedFd>,
}

impl Builder {
    pub(crate) fn fd(&mut self, fd: OwnedFd) -> Fd {
        self.fds.push(fd);
        Fd((self.fds.len() - 1) as u16)
    }

    pub(crate) fn add(&mut self, step: Step) {
        self.steps.push(step);
    }

    fn mount(
        &mut self,
        fstype: &str,
        options: &[(&str, &str)],
        attributes: MountAttributes,
        at: &str,
    ) -> Result<(), Error> {
        let options = options
            .iter()
            .map(|(key, value)| Ok((text(*key)?, text(*value)?)))
            .collect::<Result<_, Error>>()?;
        self.add(Step::Mount {
            fstype: text(fstype)?,
            options,
            attributes,
            at: text(at)?,
        });
        Ok(())
    }

    /// Sets the zone's kernel parameters and protects what it may not write.
    pub(crate) fn parameters(
        &mut self,
        sysctls: &[(String, String)],
        read_only_paths: &[String],
    ) -> Result<(), Error> {
        for (key, value) in sysctls {
            self.add(Step::WriteFile {
                path: text(format!("/proc/sys/{}", key.replace('.', "/")))?,
                data: value.clone().into_bytes(),
            });
        }
        // Only now: the parameters are written through /proc/sys.
        for path in read_only_paths {
            self.add(Step::ReadOnly { path: text(&**path)? });
        }
        Ok(())
    }
}

pub(crate) fn text(text: impl Into<String>) -> Result<CString, Error> {
    CString::new(text.into())
        .map_err(|error| Error::NullByte(String::from_utf8_lossy(&error.into_vec()).into_owned()))
}

/// The program of a zone's first process. `root` is its root as a detached mount.
pub(crate) fn zone(spec: ZoneSpec, root: OwnedFd, ends: ChildEnds) -> Result<Compiled, Error> {
    let mut b = Builder {
        steps: Vec::new(),
        fds: Vec::new(),
    };
    let report = b.fd(ends.report);
    let tree = b.fd(root);
    if matches!(spec.namespaces.cgroup, Namespace::Own) {
        b.add(Step::Unshare {
            flags: libc::CLONE_NEWCGROUP,
        });
    }
    b.add(Step::PrivateMounts);
    become_root(&mut b);
    b.add(Step::AttachRoot {
        tree,
        at: text(STAGING)?,
    });
    system_mounts(&mut b, &spec)?;
    for mount in spec.mounts {
        own_mount(&mut b, mount)?;
    }
    // After the mounts, one of which may lie over the folder that a file is in.
    if let Some(init) = &spec.init {
        b.add(Step::MakeFile { path: text(INIT)? });
        b.add(Step::BindHost {
            host: text(&**init)?,
            attributes: MountAttributes::READ_ONLY
                .with(MountAttributes::NO_SUID)
                .with(MountAttributes::NO_DEV),
            at: text(INIT)?,
        });
    }
    for (path, data) in &spec.files {
        b.add(Step::File {
            path: text(path)?,
            data: data.clone(),
        });
    }
    for path in &spec.masked_paths {
        b.add(Step::Mask { path: text(&**path)? });
    }
    b.add(Step::PivotRoot);
    if matches!(spec.namespaces.uts, Namespace::Own) {
        b.add(Step::HostName(text(&*spec.hostname)?));
        if let Some(name) = &spec.domainname {
            b.add(Step::DomainName(text(&**name)?));
        }
    }
    b.parameters(&spec.sysctls, &spec.read_only_paths)?;
    let gate = b.fd(ends.gate);
    connect(&mut b, ends.stdio, &spec.process, true);
    b.add(Step::WorkingDir {
        path: text(&*spec.process.cwd)?,
        create: true,
    });
    if spec.read_only_root {
        b.add(Step::ReadOnlyRoot);
    }
    let mut process = spec.process;
    if spec.init.is_some() {
        process.args.splice(0..0, [INIT.to_owned(), "--".to_owned()]);
    }
    finish(b, &process, report, gate)
}

/// The program of a process that joins a zone, which may have the machine's user namespace.
pub(crate) fn exec(
    process: &ProcessSpec,
    zone: OwnedFd,
    host_user: bool,
    ends: ChildEnds,
) -> Result<Compiled, Error> {
    let mut b = Builder {
        steps: Vec::new(),
        fds: Vec::new(),
    };
    let report = b.fd(ends.report);
    let pidfd = b.fd(zone);
    // setns(2): nobody may enter the user namespace that he is in.
    let user = if host_user { 0 } else { libc::CLONE_NEWUSER };
    let flags = user
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWUTS
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWNET
        | libc::CLONE_NEWCGROUP;
    b.add(Step::JoinNamespaces { pidfd, flags });
    become_root(&mut b);
    let gate = b.fd(ends.gate);
    connect(&mut b, ends.stdio, process, false);
    b.add(Step::WorkingDir {
        path: text(&*process.cwd)?,
        create: false,
    });
    finish(b, process, report, gate)
}

/// The process was born with the host's ids, which mean nothing in its user namespace, and with the
/// session keyring of process 1.
pub(crate) fn become_root(b: &mut Builder) {
    b.add(Step::Groups(Vec::new()));
    b.add(Step::Group(0));
    b.add(Step::User(0));
    b.add(Step::NewKeyring);
}

fn system_mounts(b: &mut Builder, spec: &ZoneSpec) -> Result<(), Error> {
    let of_system = if spec.system_files_writable {
        NO_SUID_DEV_EXEC
    } else {
        HIDDEN
    };
    b.mount("proc", &[], NO_SUID_DEV_EXEC, "/proc")?;
    b.mount("sysfs", &[], of_system, "/sys")?;
    b.add(Step::Mount {
        fstype: text("cgroup2")?,
        options: Vec::new(),
        attributes: of_system,
        at: text("/sys/fs/cgroup")?,
    });
    b.mount(
        "tmpfs",
        &[("mode", "755"), ("size", "65536k")],
        MountAttributes::NO_SUID,
        "/dev",
    )?;
    for device in DEVICES {
        let path = format!("/dev/{device}");
        b.add(Step::BindHostAnew {
            host: text(&*path)?,
            attributes: NO_SUID_EXEC,
            at: text(path)?,
        });
    }
    let pts = [
        ("newinstance", ""),
        ("ptmxmode", "0666"),
        ("mode", "0620"),
        ("gid", "5"),
    ];
    b.mount("devpts", &pts, NO_SUID_EXEC, "/dev/pts")?;
    b.mount("mqueue", &[], NO_SUID_DEV_EXEC, "/dev/mqueue")?;
    if let Some(size) = spec.shm_size {
        let size = size.to_string();
        b.mount(
            "tmpfs",
            &[("mode", "1777"), ("size", &size)],
            NO_SUID_DEV_EXEC,
            "/dev/shm",
        )?;
    }
    for (target, path) in DEVICE_LINKS {
        b.add(Step::Symlink {
            target: text(*target)?,
            path: text(*path)?,
        });
    }
    for node in &spec.nodes {
        b.add(make_node(node)?);
    }
    Ok(())
}

pub(crate) fn make_node(node: &Node) -> Result<Step, Error> {
    Ok(Step::MakeNode {
        path: text(&*node.path)?,
        mode: node.mode,
        device: node.device,
        uid: node.uid,
        gid: node.gid,
    })
}

pub(crate) fn own_mount(b: &mut Builder, mount: Mount) -> Result<(), Error> {
    match mount {
        Mount::Tmpfs {
            at,
            options,
            attributes,
        } => own_mount(
            b,
            Mount::New {
                fstype: "tmpfs".to_owned(),
                at,
                options,
                attributes,
            },
        ),
        Mount::New {
            fstype,
            at,
            options,
            attributes,
        } => {
            let options: Vec<(&str, &str)> = options
                .iter()
                .map(|(key, value)| (key.as_str(), value.as_str()))
                .collect();
            b.mount(&fstype, &options, attributes, &at)
        }
        Mount::Tree { tree, at, file } => {
            let tree = b.fd(tree);
            b.add(if file {
                Step::MakeFile { path: text(&*at)? }
            } else {
                Step::MakeDir {
                    path: text(&*at)?,
                    mode: 0o755,
                }
            });
            b.add(Step::AttachTree { tree, at: text(at)? });
            Ok(())
        }
    }
}

pub(crate) fn connect(b: &mut Builder, stdio: ChildStdio, process: &ProcessSpec, first: bool) {
    b.add(Step::NewSession);
    match stdio {
        ChildStdio::Pipes(pipes) => {
            let fds = pipes.map(|pipe| b.fd(pipe));
            b.add(Step::Stdio(fds));
        }
        ChildStdio::Terminal(socket) => {
            let to = b.fd(socket);
            let size = process.terminal.unwrap_or_default();
            b.add(Step::Terminal {
                to,
                owner: process.user.uid,
                rows: size.rows,
                columns: size.columns,
                console: first,
            });
        }
    }
}

/// From the zone's root to the image's program. The gate is the last thing before it, so that as little
/// as can be is left to do when it opens.
fn finish(mut b: Builder, process: &ProcessSpec, report: Fd, gate: Fd) -> Result<Compiled, Error> {
    let capabilities = process.capabilities;
    // A filter of somebody else's may not let the process read from the gate.
    let foreign = matches!(process.seccomp, Seccomp::Custom(_));
    if foreign {
        b.add(Step::Await(gate));
    }
    let filter = seccomp::filter(&process.seccomp, capabilities)?.map(Step::Seccomp);
    b.add(Step::CapabilityBounds(capabilities.bits()));
    b.add(Step::Groups(process.user.groups.clone()));
    b.add(Step::Group(process.user.gid));
    // Without no-new-privileges a filter needs CAP_SYS_ADMIN, which goes with the user.
    if process.no_new_privileges {
        b.add(Step::User(process.user.uid));
        b.add(Step::Capabilities(effective(process)));
        b.add(Step::NoNewPrivileges);
        b.steps.extend(filter);
    } else {
        b.steps.extend(filter);
        b.add(Step::User(process.user.uid));
        b.add(Step::Capabilities(effective(process)));
    }
    if !foreign {
        b.add(Step::Await(gate));
    }
    let name = process.args.first().cloned().unwrap_or_default();
    b.add(run(&name, process)?);
    Ok(Compiled {
        program: Program {
            steps: b.steps,
            report,
        },
        fds: b.fds,
        name,
        limits: limits(process),
        oom_score_adj: Some(process.oom_score_adj).filter(|score| *score != 0),
    })
}

/// The last step: the image's program.
pub(crate) fn run(name: &str, process: &ProcessSpec) -> Result<Step, Error> {
    let texts = |list: &[String]| list.iter().map(|entry| text(&**entry)).collect::<Result<_, _>>();
    Ok(Step::Exec {
        files: candidates(name, &process.env)
            .into_iter()
            .map(text)
            .collect::<Result<_, _>>()?,
        arguments: texts(&process.args)?,
        environment: texts(&process.env)?,
    })
}

/// Open files as Docker's own service allows them; a program may raise the first to the second.
const OPEN_FILES: (u64, u64) = (1024, 524_288);
/// The kernel's own defaults, which process 1 does not have: what its limits are when it makes a user
/// namespace, all zones together would have to share (user_namespaces(7), "ucounts").
const OWN_LIMITS: [(u32, u64); 3] = [
    (libc::RLIMIT_SIGPENDING, 65_536),
    (libc::RLIMIT_MSGQUEUE, 819_200),
    (libc::RLIMIT_MEMLOCK, 8 << 20),
];

/// The process's own limits; what is not among them is as in process 1, which has raised its open files.
fn limits(process: &ProcessSpec) -> Vec<ResourceLimit> {
    let mut limits = process.rlimits.clone();
    for (resource, most) in OWN_LIMITS {
        if limits.iter().all(|limit| limit.resource != resource) {
            limits.push(ResourceLimit {
                resource,
                soft: most,
                hard: most,
            });
        }
    }
    if limits.iter().all(|limit| limit.resource != libc::RLIMIT_NOFILE) {
        // This process has process 1's limit, which may be lower where it is not really process 1.
        let most = getrlimit(Resource::Nofile).maximum.unwrap_or(u64::MAX);
        let (soft, hard) = (OPEN_FILES.0.min(most), OPEN_FILES.1.min(most));
        limits.push(ResourceLimit {
            resource: libc::RLIMIT_NOFILE,
            soft,
            hard,
        });
    }
    limits
}

/// Only root keeps capabilities; another user has none until it runs a file that grants some.
fn effective(process: &ProcessSpec) -> u64 {
    if process.user.uid == 0 {
        process.capabilities.bits()
    } else {
        0
    }
}

/// The files that a program's name may mean, as execvp(3) tries them.
pub(crate) fn candidates(name: &str, env: &[String]) -> Vec<String> {
    if name.is_empty() || name.contains('/') {
        return vec![name.to_owned()];
    }
    let path = env
        .iter()
        .find_map(|entry| entry.strip_prefix("PATH="))
        .unwrap_or(DEFAULT_PATH);
    path.split(':')
        .map(|dir| {
            if dir.is_empty() {
                format!("./{name}")
            } else {
                format!("{dir}/{name}")
            }
        })
        .collect()
}

/// What a step does, for the sentence that says that it failed.
pub(crate) fn describe(step: Option<&Step>) -> String {
    let show = |path: &CString| path.to_string_lossy().into_owned();
    match step {
        Some(Step::AttachRoot { .. } | Step::PivotRoot) => "enter the zone's root".to_owned(),
        Some(Step::MakeDir { path, .. } | Step::MakeFile { path } | Step::Symlink { path, .. }) => {
            format!("make {} in the zone", show(path))
        }
        Some(Step::Mount { fstype, at, .. }) => format!("mount {} on {}", show(fstype), show(at)),
        Some(Step::AttachTree { at, .. } | Step::BindHost { at, .. } | Step::BindHostAnew { at, .. }) => {
            format!("mount on {}", show(at))
        }
        Some(Step::File { path, .. } | Step::WriteFile { path, .. }) => format!("write {}", show(path)),
        Some(Step::Mask { path } | Step::ReadOnly { path }) => format!("protect {}", show(path)),
        Some(Step::MakeNode { path, .. }) => format!("make the device {}", show(path)),
        Some(Step::CapabilityBounds(_) | Step::Capabilities(_) | Step::CapabilitySets(_)) => {
            "set the capabilities".to_owned()
        }
        Some(Step::LoopbackUp) => "bring the loopback device up".to_owned(),
        Some(Step::WorkingDir { path, .. }) => format!("chdir to cwd (\"{}\")", show(path)),
        Some(Step::JoinNamespaces { .. }) => "join the zone's namespaces".to_owned(),
        Some(Step::User(_) | Step::Group(_) | Step::Groups(_)) => "change to the user".to_owned(),
        Some(Step::Seccomp(_)) => "install the system call filter".to_owned(),
        Some(Step::Terminal { .. }) => "open a terminal in the zone".to_owned(),
        Some(other) => format!(
            "prepare the zone ({})",
            format!("{other:?}").split(['(', '{', ' ']).next().unwrap_or("")
        ),
        None => "prepare the zone".to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::candidates;

    #[test]
    fn a_name_without_a_slash_is_looked_up_in_the_zones_path() {
        let env = ["PATH=/a::/b".to_owned()];
        assert_eq!(candidates("sh", &env), ["/a/sh", "./sh", "/b/sh"]);
        assert_eq!(candidates("/bin/sh", &env), ["/bin/sh"]);
        assert_eq!(candidates("./x", &env), ["./x"]);
        assert!(candidates("sh", &[]).contains(&"/bin/sh".to_owned()));
    }
}
