//! Zones on this machine: real processes, started by a keeper in a thread of the test.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU32, Ordering};

use rustix::mount::{OpenTreeFlags, open_tree};
use tokio::io::unix::AsyncFd;
use zones::keeper::{Server, Turn};
use zones::{
    Capability, CapabilitySet, Cgroups, ExitStatus, IDS_PER_ZONE, IdMap, Limits, Process, ProcessSpec,
    Seccomp, StartError, Stdio, TerminalSize, User, ZoneSpec, Zones, user_namespace,
};

const BUSYBOX: &str = "/bin/busybox";
const IDS: IdMap = IdMap {
    host: 1_000_000,
    count: IDS_PER_ZONE,
};

/// A keeper, the zones that it keeps, and a root file system of busybox.
struct Bench {
    zones: Zones,
    root: PathBuf,
    _dir: tempfile::TempDir,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

fn unique(name: &str) -> String {
    format!(
        "test-{}-{name}-{}",
        std::process::id(),
        NEXT.fetch_add(1, Ordering::Relaxed)
    )
}

/// The cgroup2 hierarchy of this machine, wherever it is mounted.
fn hierarchy() -> PathBuf {
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let line = mounts
        .lines()
        .find(|line| line.split(' ').nth(2) == Some("cgroup2"));
    PathBuf::from(
        line.expect("a cgroup2 file system must be mounted")
            .split(' ')
            .nth(1)
            .unwrap(),
    )
}

fn serve(socket: OwnedFd) {
    let mut server = Server::new().unwrap();
    server.attach_supervisor(socket).unwrap();
    std::thread::spawn(move || while server.turn().unwrap() != Turn::SupervisorGone {});
}

async fn bench() -> Bench {
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

fn make_root(root: &Path) {
    assert!(
        Path::new(BUSYBOX).exists(),
        "{BUSYBOX} is missing: apt-get install busybox-static"
    );
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
    fn tree(&self) -> OwnedFd {
        let flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC;
        let tree = open_tree(rustix::fs::CWD, &self.root, flags).unwrap();
        sys::block::map_ids(&tree, user_namespace(IDS).unwrap()).unwrap();
        tree
    }

    async fn start(&self, spec: ZoneSpec) -> Result<(Process, Stdio), StartError> {
        self.zones.create(spec, self.tree()).await?.release().await
    }

    /// Runs a shell script in a zone of its own and returns what it printed and how it ended.
    async fn sh(&self, script: &str) -> (String, ExitStatus) {
        self.run(spec(&["sh", "-c", script])).await
    }

    async fn run(&self, spec: ZoneSpec) -> (String, ExitStatus) {
        let (process, stdio) = self.start(spec).await.unwrap();
        let text = read_all(stdio).await;
        let exit = self.zones.exited(&process.key).await.unwrap();
        self.zones.acknowledge_zone(&process.key).await.unwrap();
        (text, exit)
    }
}

fn process(args: &[&str]) -> ProcessSpec {
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
    }
}

fn spec(args: &[&str]) -> ZoneSpec {
    ZoneSpec {
        id: unique("zone"),
        hostname: "box".to_owned(),
        domainname: None,
        process: process(args),
        ids: IDS,
        limits: Limits::default(),
        read_only_root: false,
        mounts: Vec::new(),
        files: vec![("/etc/hosts".to_owned(), b"127.0.0.1 localhost\n".to_vec())],
        shm_size: 64 << 20,
        sysctls: Vec::new(),
    }
}

/// Standard output, then standard error; or what a terminal shows.
async fn read_all(stdio: Stdio) -> String {
    match stdio {
        Stdio::Pipes { stdout, stderr, .. } => drain(stdout).await + &drain(stderr).await,
        Stdio::Terminal(master) => drain(master).await,
    }
}

async fn drain(fd: OwnedFd) -> String {
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

#[tokio::test]
async fn a_zone_runs_its_program_and_its_exit_code_comes_back() {
    let bench = bench().await;
    let (text, exit) = bench
        .sh("echo out; echo err >&2; hostname; id -u; cat /etc/hosts; exit 7")
        .await;
    assert_eq!(text, "out\nbox\n0\n127.0.0.1 localhost\nerr\n");
    assert_eq!(exit.code, 7);
    assert!(!exit.oom_killed);
}

#[tokio::test]
async fn a_program_that_is_not_there_or_may_not_be_run_is_told_apart() {
    let bench = bench().await;
    let failure = |args: &'static [&'static str]| async {
        let started = bench.start(spec(args)).await;
        started.expect_err("must not start")
    };
    let missing = failure(&["nothing-such"]).await;
    assert!(matches!(missing, StartError::NotInPath { .. }), "{missing}");
    assert_eq!(missing.exit_code(), 127);
    let missing = failure(&["/bin/nothing-such"]).await;
    assert!(matches!(missing, StartError::NotFound { .. }), "{missing}");
    let refused = failure(&["/etc/hosts"]).await;
    assert!(
        matches!(refused, StartError::PermissionDenied { .. }),
        "{refused}"
    );
    assert_eq!(refused.exit_code(), 126);
}

#[tokio::test]
async fn a_signal_ends_a_zone_with_128_and_its_number() {
    let bench = bench().await;
    let (process, _stdio) = bench.start(spec(&["sleep", "1000"])).await.unwrap();
    process.signal(libc::SIGKILL).unwrap();
    assert_eq!(bench.zones.exited(&process.key).await.unwrap().code, 137);
    bench.zones.acknowledge_zone(&process.key).await.unwrap();
    assert!(!bench.zones.cgroups().path(&process.key).exists());
}

#[tokio::test]
async fn an_added_process_shares_the_zones_namespaces() {
    let bench = bench().await;
    let zone_spec = spec(&["sleep", "1000"]);
    let id = zone_spec.id.clone();
    let (zone, _stdio) = bench.start(zone_spec).await.unwrap();
    let script = "hostname; cat /proc/1/cmdline; id -u; cat /proc/self/uid_map; ls /proc/self/ns";
    let key = unique("exec");
    let (added, stdio) = bench
        .zones
        .exec(
            &id,
            zone.pidfd.as_fd(),
            &key,
            &process(&["sh", "-c", script]),
            IDS,
        )
        .await
        .unwrap();
    let text = read_all(stdio).await;
    assert!(text.starts_with("box\nsleep\u{0}1000\u{0}0\n"), "{text:?}");
    assert!(text.contains("1000000"), "{text:?}");
    assert_eq!(bench.zones.exited(&added.key).await.unwrap().code, 0);
    for namespace in ["user", "pid", "mnt", "uts", "ipc", "net", "cgroup"] {
        let of = |pid: i32| fs::read_link(format!("/proc/{pid}/ns/{namespace}")).unwrap();
        assert_ne!(
            of(zone.pid),
            of(std::process::id() as i32),
            "{namespace} must be the zone's own"
        );
    }
    zone.signal(libc::SIGKILL).unwrap();
    bench.zones.exited(&zone.key).await.unwrap();
}

#[tokio::test]
async fn a_terminal_has_its_size_and_is_the_controlling_one() {
    let bench = bench().await;
    let mut with_terminal = spec(&["sh", "-c", "stty size; echo hello > /dev/tty; ls /dev/console"]);
    with_terminal.process.terminal = Some(TerminalSize {
        rows: 30,
        columns: 100,
    });
    let (text, exit) = bench.run(with_terminal).await;
    assert_eq!(
        (text.as_str(), exit.code),
        ("30 100\r\nhello\r\n/dev/console\r\n", 0)
    );
}

#[tokio::test]
async fn a_user_of_the_zone_has_no_capabilities_and_its_root_has_the_default_ones() {
    let bench = bench().await;
    let script = "id -u; id -g; id -G; grep CapEff /proc/self/status; grep CapBnd /proc/self/status";
    let mut as_user = spec(&["sh", "-c", script]);
    as_user.process.user = User {
        uid: 1000,
        gid: 100,
        groups: vec![7],
    };
    let (text, _) = bench.run(as_user).await;
    assert_eq!(
        text,
        "1000\n100\n100 7\nCapEff:\t0000000000000000\nCapBnd:\t00000000a80425fb\n"
    );
    let (text, _) = bench.sh("grep CapEff /proc/self/status").await;
    assert_eq!(text, "CapEff:\t00000000a80425fb\n");
}

#[tokio::test]
async fn forbidden_calls_fail_and_allowed_ones_do_not() {
    let bench = bench().await;
    let (text, exit) = bench.sh("mount -t tmpfs none /tmp").await;
    assert_ne!(exit.code, 0);
    assert!(text.contains("permission denied"), "{text}");
    let mut admin = spec(&["sh", "-c", "mount -t tmpfs none /tmp && echo mounted"]);
    admin.process.capabilities = CapabilitySet::DEFAULT.with(Capability::SysAdmin);
    let (text, exit) = bench.run(admin).await;
    assert_eq!((text.as_str(), exit.code), ("mounted\n", 0));
}

#[tokio::test]
async fn what_a_zone_writes_bears_the_images_own_ids_on_the_disk() {
    let bench = bench().await;
    let (text, exit) = bench.sh("touch /tmp/here && ls /tmp").await;
    assert_eq!((text.as_str(), exit.code), ("here\n", 0));
    assert_eq!(owner(&bench.root.join("tmp/here")), 0, "root of the image");
}

fn owner(path: &Path) -> u32 {
    std::os::unix::fs::MetadataExt::uid(&fs::metadata(path).unwrap())
}

#[tokio::test]
async fn what_tells_of_the_host_is_masked_and_kernel_parameters_are_read_only() {
    let bench = bench().await;
    let (text, _) = bench
        .sh("cat /proc/keys | grep -c . ; echo x > /proc/sys/kernel/hostname; ls /sys/firmware")
        .await;
    assert!(text.starts_with("0\n"), "{text}");
    assert!(text.contains("Read-only file system"), "{text}");
    let (text, _) = bench.sh("cat /proc/sys/kernel/hostname").await;
    assert_eq!(text, "box\n");
}

#[tokio::test]
async fn a_link_in_the_image_cannot_lead_a_mount_out_of_the_root() {
    let bench = bench().await;
    let outside = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink(outside.path(), bench.root.join("proc")).unwrap();
    let (text, exit) = bench
        .sh("cat /proc/self/cmdline >/dev/null; ls -d /proc/self >/dev/null && echo fine")
        .await;
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    // The link was followed within the root, where the folder that it names was made.
    assert_eq!((text.as_str(), exit.code), ("fine\n", 0));
}

#[tokio::test]
async fn a_read_only_root_takes_no_files() {
    let bench = bench().await;
    let mut read_only = spec(&["touch", "/tmp/x"]);
    read_only.read_only_root = true;
    let (text, exit) = bench.run(read_only).await;
    assert_eq!(exit.code, 1);
    assert!(text.contains("Read-only file system"), "{text}");
}

#[tokio::test]
async fn a_supervisor_that_returns_finds_zones_statuses_and_pipes() {
    let (first, keepers) = sys::socket::pair().unwrap();
    let mut server = Server::new().unwrap();
    server.attach_supervisor(keepers).unwrap();
    let (second, replacement) = sys::socket::pair().unwrap();
    std::thread::spawn(move || {
        while server.turn().unwrap() != Turn::SupervisorGone {}
        server.attach_supervisor(replacement).unwrap();
        while server.turn().unwrap() != Turn::SupervisorGone {}
    });
    let helper = bench().await;
    let cgroups = Cgroups::open(&hierarchy(), "monobloc-test").unwrap();

    let mut asleep = spec(&["sh", "-c", "echo before; cat; echo after"]);
    asleep.process.stdin = true;
    let ended = spec(&["sh", "-c", "exit 3"]);
    let (asleep_id, ended_id) = (asleep.id.clone(), ended.id.clone());
    // The first supervisor lives in a runtime of its own and dies with it.
    let (tree_a, tree_b) = (helper.tree(), helper.tree());
    let first_cgroups = cgroups.clone();
    std::thread::spawn(move || {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .unwrap();
        runtime.block_on(async {
            let (zones, _, _) = Zones::connect(first, first_cgroups).await.unwrap();
            let started = zones
                .create(asleep, tree_a)
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
            let (process, _) = zones
                .create(ended, tree_b)
                .await
                .unwrap()
                .release()
                .await
                .unwrap();
            zones.exited(&process.key).await.unwrap();
            drop(started);
        });
    })
    .join()
    .unwrap();

    let (zones, mut survivors, _) = Zones::connect(second, cgroups).await.unwrap();
    survivors.sort_by_key(|survivor| survivor.exit.is_none());
    let [gone, alive] = survivors.try_into().unwrap();
    assert_eq!(
        (gone.key.as_str(), gone.exit.unwrap().code),
        (ended_id.as_str(), 3)
    );
    assert_eq!((alive.key.as_str(), alive.exit), (asleep_id.as_str(), None));
    let Some(Stdio::Pipes { stdin, stdout, .. }) = alive.stdio else {
        panic!("the pipes must be kept")
    };
    zones.acknowledge_zone(&ended_id).await.unwrap();
    rustix::io::write(stdin.unwrap(), b"between\n").unwrap();
    // The keeper still holds a copy of the standard input, so the end is made by a signal.
    let mut text = String::new();
    let mut pipe = fs::File::from(stdout);
    rustix::io::ioctl_fionbio(&pipe, false).unwrap();
    let mut buffer = [0; 64];
    while !text.contains("between\n") {
        let read = pipe.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "closed after {text:?}");
        text.push_str(std::str::from_utf8(&buffer[..read]).unwrap());
    }
    assert_eq!(text, "before\nbetween\n");
    alive.process.signal(libc::SIGKILL).unwrap();
    assert_eq!(zones.exited(&asleep_id).await.unwrap().code, 137);
    zones.acknowledge_zone(&asleep_id).await.unwrap();
}

#[tokio::test]
async fn no_descriptor_of_the_supervisor_reaches_a_zone() {
    let bench = bench().await;
    let (text, _) = bench.sh("ls /proc/self/fd").await;
    // 3 is the folder that ls reads.
    assert_eq!(text, "0\n1\n2\n3\n");
}
