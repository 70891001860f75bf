//! Real zones on this machine, started by a keeper in a thread of the test.

#![allow(dead_code, reason = "not every test file uses all of it")]

use std::fs;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::io::unix::AsyncFd;
use zones::keeper::{Server, Turn};
use zones::{
    CapabilitySet, Cgroups, ExitStatus, IDS_PER_ZONE, IdMap, Limits, Namespaces, Process, ProcessSpec,
    Seccomp, StartError, Stdio, User, ZoneSpec, Zones, user_namespace,
};

pub(crate) const BUSYBOX: &str = "/bin/busybox";
pub(crate) const IDS: IdMap = IdMap {
    host: 1_000_000,
    count: IDS_PER_ZONE,
};

/// A keeper, the zones that it keeps, and a root file system of busybox.
pub(crate) struct Bench {
    pub(crate) zones: Zones,
    pub(crate) root: PathBuf,
    _dir: tempfile::TempDir,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

pub(crate) fn unique(name: &str) -> String {
    format!(
        "test-{}-{name}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The cgroup2 hierarchy of this machine, wherever it was mounted last.
pub(crate) fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .rfind(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(
        line.expect("a cgroup2 file system must be mounted")
            .split(' ')
            .nth(1)
            .unwrap(),
    )
}

pub(crate) fn serve(socket: OwnedFd) {
    let mut server = Server::new().unwrap();
    server.attach_supervisor(socket).unwrap();
    std::thread::spawn(move || while server.turn().unwrap() != Turn::SupervisorGone {});
}

pub(crate) async fn bench() -> Bench {
    let (ours, keepers) = sys::socket::pair().unwrap();
    serve(keepers);
    let cgroups = Cgroups::open(&hierarchy(), "monobloc-test").unwrap();
    let (zones, survivors, kept) = Zones::connect(ours, cgroups).await.unwrap();
    assert!(survivors.is_empty() && kept.is_empty());
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path().join("root");
    make_root(&root);
    fs::create_dir_all(zones::STAGING).unwrap();
    Bench {
        zones,
        root,
        _dir: dir,
    }
}

pub(crate) fn make_root(root: &Path) {
    tools::need(&["busybox-static"]);
    for dir in ["bin", "etc", "tmp"] {
        fs::create_dir_all(root.join(dir)).unwrap();
    }
    fs::copy(BUSYBOX, root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "id", "sleep", "hostname", "stty", "grep", "true", "mount", "ls", "touch", "mknod",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

impl Bench {
    /// The root as a detached mount with the zone's ids.
    pub(crate) fn tree(&self) -> OwnedFd {
        self.tree_for(IDS)
    }

    pub(crate) fn tree_for(&self, ids: IdMap) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, &self.root, flags).unwrap();
        sys::block::map_ids(&tree, user_namespace(ids).unwrap()).unwrap();
        tree
    }

    pub(crate) async fn start(&self, spec: ZoneSpec) -> Result<(Process, Stdio), StartError> {
        let tree = self.tree_for(spec.ids);
        self.zones.create(spec, tree).await?.release().await
    }

    /// Runs a shell script in a zone of its own and returns what it printed and how it ended.
    pub(crate) async fn sh(&self, script: &str) -> (String, ExitStatus) {
        self.run(spec(&["sh", "-c", script])).await
    }

    pub(crate) async fn run(&self, spec: ZoneSpec) -> (String, ExitStatus) {
        let (process, stdio) = self.start(spec).await.unwrap();
        let text = read_all(stdio).await;
        let exit = self.zones.exited(&process.key).await.unwrap();
        self.zones.acknowledge_zone(&process.key).await.unwrap();
        (text, exit)
    }
}

pub(crate) fn process(args: &[&str]) -> ProcessSpec {
    ProcessSpec {
        args: args.iter().map(|arg| (*arg).to_owned()).collect(),
        env: vec!["PATH=/bin".to_owned()],
        cwd: "/".to_owned(),
        user: User::default(),
        terminal: None,
        stdin: false,
        capabilities: CapabilitySet::DEFAULT,
        seccomp: Seccomp::Default,
        no_new_privileges: false,
        rlimits: Vec::new(),
        oom_score_adj: 0,
    }
}

pub(crate) fn spec(args: &[&str]) -> ZoneSpec {
    ZoneSpec {
        id: unique("zone"),
        hostname: "box".to_owned(),
        domainname: None,
        process: process(args),
        ids: IDS,
        limits: Limits::default(),
        read_only_root: false,
        system_files_writable: false,
        mounts: Vec::new(),
        masked_paths: owned(zones::MASKED_PATHS),
        read_only_paths: owned(zones::READ_ONLY_PATHS),
        devices: Vec::new(),
        nodes: Vec::new(),
        device_rules: Vec::new(),
        files: vec![("/etc/hosts".to_owned(), b"127.0.0.1 localhost\n".to_vec())],
        namespaces: Namespaces::default(),
        shm_size: Some(64 << 20),
        init: None,
        sysctls: Vec::new(),
    }
}

fn owned(paths: &[&str]) -> Vec<String> {
    paths.iter().map(|path| (*path).to_owned()).collect()
}

/// Standard output, then standard error; or what a terminal shows.
pub(crate) async fn read_all(stdio: Stdio) -> String {
    match stdio {
        Stdio::Pipes { stdout, stderr, .. } => drain(stdout).await + &drain(stderr).await,
        Stdio::Terminal(master) => drain(master).await,
    }
}

/// Reads until a text has come, and returns what came up to then.
pub(crate) async fn read_until(fd: &OwnedFd, wanted: &str) -> String {
    let fd = sys::readiness::watch(fd.try_clone().unwrap(), sys::readiness::Interest::READABLE).unwrap();
    let mut all = String::new();
    while !all.contains(wanted) {
        let mut buffer = [0; 4096];
        let read = fd
            .async_io(sys::readiness::Interest::READABLE, |fd| {
                Ok(rustix::io::read(fd, &mut buffer)?)
            })
            .await
            .unwrap();
        assert_ne!(read, 0, "closed after {all:?}, before {wanted:?}");
        all.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    all
}

pub(crate) async fn drain(fd: OwnedFd) -> String {
    let fd: AsyncFd<OwnedFd> = sys::readiness::watch(fd, sys::readiness::Interest::READABLE).unwrap();
    let mut all = Vec::new();
    loop {
        let mut buffer = [0; 4096];
        let read = fd
            .async_io(sys::readiness::Interest::READABLE, |fd| {
                Ok(rustix::io::read(fd, &mut buffer)?)
            })
            .await;
        match read {
            // A terminal whose other side has closed gives EIO.
            Ok(0) => break,
            Err(error) if error.raw_os_error() == Some(libc::EIO) => break,
            Err(error) => panic!("cannot read: {error}"),
            Ok(read) => all.extend_from_slice(&buffer[..read]),
        }
    }
    String::from_utf8_lossy(&all).into_owned()
}
