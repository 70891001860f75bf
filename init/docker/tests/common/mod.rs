//! A whole engine on this machine: real zones by a keeper in a thread, a pool in a file, a bridge in a
//! network namespace of the test's own, TLS, and the docker command line against it.

#![allow(dead_code, reason = "each suite uses a part of it")]

use std::fs;
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::fd::{AsFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::{Duration, Instant};

use docker::{Engine, EngineConfig};
use handover::{NodeBundle, RegistryConfig};
use network::{Bridge, Cidr, Networks};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, ExtendedKeyUsagePurpose, IsCa, KeyPair};
use serde_json::Value;
use store::Protection;
use store::luks::{Lock, Secret};
use store::{Pool, Store};
use sys::netlink::{new_namespace, run_in};
use zones::keeper::{Server, Turn};
use zones::{Cgroups, Zones};

/// Bytes of the pool's file, which is sparse.
const POOL: u64 = 2 << 30;

/// A site: its CA, and certificates that it signs.
pub(crate) struct Site {
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Site {
    pub(crate) fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        Self { issuer }
    }

    pub(crate) fn ca(&self) -> String {
        self.issuer.pem()
    }

    fn sign(&self, usage: ExtendedKeyUsagePurpose) -> (String, String) {
        let mut params =
            CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        params.extended_key_usages = vec![usage];
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    pub(crate) fn client(&self) -> (String, String) {
        self.sign(ExtendedKeyUsagePurpose::ClientAuth)
    }

    pub(crate) fn node(&self) -> NodeBundle {
        let (certificate, key) = self.sign(ExtendedKeyUsagePurpose::ServerAuth);
        NodeBundle {
            name: "node".to_owned(),
            ca: self.ca(),
            certificate,
            key,
            pool_key: None,
        }
    }
}

/// A running engine and what its clients need.
pub(crate) struct Machine {
    pub engine: Arc<Engine>,
    pub port: u16,
    pub dir: PathBuf,
    program: PathBuf,
}

static NEXT: AtomicU32 = AtomicU32::new(0);

/// Process 1's part, for one supervisor after another.
fn serve_keeper() -> Sender<OwnedFd> {
    let (sender, sockets) = channel();
    let mut server = Server::new().unwrap();
    std::thread::spawn(move || {
        for socket in sockets {
            server.attach_supervisor(socket).unwrap();
            while server.turn().unwrap() != Turn::SupervisorGone {}
        }
    });
    sender
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

/// Runs `test` with a machine of its own.
pub(crate) fn with_machine(test: impl Fn(&Machine) + Sync) {
    with_supervisors(&[&test]);
}

/// Runs each of `tests` with a supervisor of its own; all of them are one machine's.
pub(crate) fn with_supervisors(tests: &[&(dyn Fn(&Machine) + Sync)]) {
    // Before the namespace, which has no way to a mirror.
    tools::need(&["busybox-static", "bsdutils", "curl", "openssl"]);
    let program = docker_program();
    let namespace = new_namespace().expect("a network namespace; these tests must run as root");
    run_in(namespace.as_fd(), || {
        network::links::Links::open().unwrap().set_up("lo").unwrap();
        let dir = tempfile::tempdir().unwrap();
        let pool = Pool::in_memory(&dir.path().join("memory"), POOL, &dir.path().join("pool"))
            .expect("a pool on a loop device; these tests must run as root");
        let keeper = serve_keeper();
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let cgroup = format!("docker-test-{}-{number}", std::process::id());
        let mut outcome = Ok(());
        for (turn, test) in tests.iter().enumerate() {
            let runtime = tokio::runtime::Builder::new_multi_thread()
                .worker_threads(2)
                .enable_all()
                .build()
                .unwrap();
            let (ours, keepers) = sys::socket::pair().unwrap();
            keeper.send(keepers).unwrap();
            let machine = runtime.block_on(machine(ours, &cgroup, dir.path(), pool.path(), program.clone()));
            outcome = catch_unwind(AssertUnwindSafe(|| test(&machine)));
            if turn + 1 == tests.len() || outcome.is_err() {
                runtime.block_on(machine.engine.stop_all_zones(Duration::ZERO));
            }
            drop(machine);
            runtime.shutdown_timeout(Duration::from_secs(5));
            if outcome.is_err() {
                break;
            }
        }
        // What a failed test has left running keeps both busy; so does, for a moment, a process that
        // another test starts: until its exec it holds copies of all descriptors.
        let mounted = pool.path().to_owned();
        if pool.unmount().is_err() {
            let _ = rustix::mount::unmount(&mounted, rustix::mount::UnmountFlags::DETACH);
        }
        let _ = fs::remove_dir(hierarchy().join(&cgroup));
        if let Err(panic) = outcome {
            resume_unwind(panic);
        }
    })
    .unwrap();
}

/// A machine that knows no secret.
struct NoKeys;

impl store::Keys for NoKeys {
    fn prepare(&self) -> Result<(), String> {
        Ok(())
    }

    fn secret(&self, _: &Lock, _: &str, _: bool) -> Result<Secret, String> {
        Err("There is none.".to_owned())
    }

    fn make(&self, _: Protection) -> Result<(Lock, Secret), String> {
        Err("This machine has no TPM.".to_owned())
    }
}

async fn machine(keeper: OwnedFd, cgroup: &str, dir: &Path, pool: &Path, program: PathBuf) -> Machine {
    fs::create_dir_all(zones::STAGING).unwrap();
    let cgroups = Cgroups::open(&hierarchy(), cgroup).unwrap();
    let (zones, survivors, kept) = Zones::connect(keeper, cgroups).await.unwrap();
    let config = EngineConfig {
        name: "node".to_owned(),
        version: "0.0.0".to_owned(),
        build: None,
        fell_back: None,
        registry: RegistryConfig::default(),
        allow_host_privilege: false,
        zone_init: None,
        power: Box::new(|_| {}),
        keys: Arc::new(NoKeys),
        unlock: Box::new(|_| Err("No pool waits for a passphrase.".to_owned())),
        pool_kind: Box::new(|| "memory".to_owned()),
    };
    let engine = Engine::new(zones, survivors, kept, config);
    let site = Site::new();
    let listener = tokio::net::TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let tls = docker::tls::server_config(&site.node()).unwrap();
    tokio::spawn(docker::serve(listener, tls, engine.clone()));
    let network = Networks::open(Bridge::new("mono0", Cidr::new(Ipv4Addr::new(172, 17, 0, 1), 16))).unwrap();
    engine.set_network(Arc::new(network));
    let store = Store::open(pool).unwrap();
    if store.images().is_empty() {
        import_busybox(&store);
    }
    engine.set_store(Arc::new(store));
    let (certificate, key) = site.client();
    for (file, text) in [("ca.pem", site.ca()), ("cert.pem", certificate), ("key.pem", key)] {
        fs::write(dir.join(file), text).unwrap();
    }
    Machine {
        engine,
        port,
        dir: dir.to_owned(),
        program,
    }
}

/// The docker command: `MONOBLOC_TEST_DOCKER`, or Debian's, unpacked and not installed, as its package
/// would start a daemon.
fn docker_program() -> PathBuf {
    static TURN: Mutex<()> = Mutex::new(());
    if let Some(program) = std::env::var_os("MONOBLOC_TEST_DOCKER") {
        return program.into();
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    let unpacked = tools::cache().join("unpacked-docker.io");
    let program = unpacked.join("usr/bin/docker");
    if !program.exists() {
        tools::update_lists();
        let dir = tempfile::tempdir_in(tools::cache()).unwrap();
        let run = |command: &mut Command| {
            let output = command.current_dir(dir.path()).output().unwrap();
            assert!(
                output.status.success(),
                "{command:?}: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        };
        let script =
            "apt-get -o APT::Sandbox::User=root download docker.io && dpkg-deb -x docker.io_*.deb files";
        run(Command::new("sh").args(["-c", script]));
        if !program.exists() {
            fs::rename(dir.path().join("files"), &unpacked).unwrap();
        }
    }
    program
}

/// The image `busybox:latest`, of this machine's own busybox.
fn import_busybox(store: &Store) {
    let dir = tempfile::tempdir().unwrap();
    let root = dir.path();
    for folder in ["bin", "etc", "tmp", "root"] {
        fs::create_dir(root.join(folder)).unwrap();
    }
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "echo", "sleep", "id", "hostname", "wc", "stty", "true", "nc", "httpd", "ip", "env",
        "pwd", "head", "sync",
    ] {
        std::os::unix::fs::symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
    fs::write(
        root.join("etc/passwd"),
        "root:x:0:0:root:/root:/bin/sh\nweb:x:33:34::/tmp:/bin/sh\n",
    )
    .unwrap();
    fs::write(root.join("etc/group"), "root:x:0:\nwww:x:34:\nlog:x:4:web\n").unwrap();
    fs::write(root.join("etc/noprogram"), "").unwrap();
    let tar = Command::new("tar")
        .arg("-C")
        .arg(root)
        .args(["-c", "."])
        .output()
        .unwrap();
    assert!(tar.status.success());
    let config = store::ImageConfig {
        architecture: "amd64".to_owned(),
        os: "linux".to_owned(),
        config: store::ContainerConfig {
            cmd: Some(vec!["sh".to_owned()]),
            ..Default::default()
        },
        ..Default::default()
    };
    let reference = "busybox:latest".parse().unwrap();
    store.import(&tar.stdout[..], config, Some(&reference)).unwrap();
}

impl Machine {
    pub(crate) fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.program);
        command
            .env("DOCKER_HOST", format!("tcp://127.0.0.1:{}", self.port))
            .env("DOCKER_TLS_VERIFY", "1")
            .env("DOCKER_CERT_PATH", &self.dir)
            .env("DOCKER_CONFIG", self.dir.join("config"))
            .args(args)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// Runs `docker ARGS` to its end.
    pub(crate) fn docker(&self, args: &[&str]) -> Output {
        self.command(args).output().unwrap()
    }

    /// What `docker ARGS` prints; it must succeed.
    pub(crate) fn out(&self, args: &[&str]) -> String {
        let output = self.docker(args);
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "docker {args:?}: {text}{}",
            String::from_utf8_lossy(&output.stderr)
        );
        text.trim_end().to_owned()
    }

    /// As [`Self::out`] with something on the standard input.
    pub(crate) fn feed(&self, args: &[&str], input: &[u8]) -> String {
        let mut child = self.command(args).stdin(Stdio::piped()).spawn().unwrap();
        child.stdin.take().unwrap().write_all(input).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(
            output.status.success(),
            "docker {args:?}: {}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8_lossy(&output.stdout).trim_end().to_owned()
    }

    /// The exit code of `docker ARGS`, and what it complains of.
    pub(crate) fn fails(&self, args: &[&str]) -> (i32, String) {
        let output = self.docker(args);
        (
            output.status.code().unwrap(),
            String::from_utf8_lossy(&output.stderr).into_owned(),
        )
    }

    /// `docker ARGS` in a terminal of this size.
    pub(crate) fn terminal(&self, args: &[&str], rows: u16, columns: u16) -> Terminal {
        let docker = self.command(args);
        let words = std::iter::once(docker.get_program()).chain(docker.get_args());
        let line: Vec<String> = words
            .map(|word| format!("'{}'", word.to_string_lossy()))
            .collect();
        let line = format!("stty rows {rows} cols {columns}; exec {}", line.join(" "));
        let mut child = Command::new("script")
            .args(["-qec", &line, "/dev/null"])
            .envs(docker.get_envs().filter_map(|(key, value)| Some((key, value?))))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said: Arc<(Mutex<(String, bool)>, Condvar)> = Arc::default();
        let (mut output, sink) = (child.stdout.take().unwrap(), said.clone());
        std::thread::spawn(move || {
            let mut buffer = [0; 4096];
            loop {
                let count = output.read(&mut buffer).unwrap_or(0);
                let mut heard = sink.0.lock().unwrap();
                heard.0.push_str(&String::from_utf8_lossy(&buffer[..count]));
                heard.1 |= count == 0;
                sink.1.notify_all();
                if count == 0 {
                    return;
                }
            }
        });
        Terminal {
            input: child.stdin.take(),
            child,
            said,
        }
    }

    /// A request at a path.
    pub(crate) fn curl(&self, method: &str, path: &str) -> Command {
        let file = |name: &str| self.dir.join(name);
        let mut command = Command::new("curl");
        // Without a look at the certificate: the harness gives its authority and its node one name, which
        // curl takes for one certificate.
        command
            .args(["-sSk", "-X", method, "--cert"])
            .arg(file("cert.pem"))
            .arg("--key")
            .arg(file("key.pem"))
            .arg(format!("https://127.0.0.1:{}/{path}", self.port));
        command
    }

    /// Sends a request below `/monobloc/v1/`; gives the status and the answer's JSON documents.
    pub(crate) fn ask(&self, method: &str, path: &str, body: &Value) -> (u32, Vec<Value>) {
        self.ask_at(method, &format!("monobloc/v1/{path}"), body)
    }

    /// As [`Self::ask`], at any path.
    pub(crate) fn ask_at(&self, method: &str, path: &str, body: &Value) -> (u32, Vec<Value>) {
        self.upload(method, path, body.to_string().as_bytes())
    }

    /// As [`Self::ask_at`] with any body.
    pub(crate) fn upload(&self, method: &str, path: &str, body: &[u8]) -> (u32, Vec<Value>) {
        let mut command = self.curl(method, path);
        command.args(["-w", "\n%{http_code}", "--data-binary", "@-"]);
        let mut child = command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        child.stdin.take().unwrap().write_all(body).unwrap();
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{output:?}");
        let text = String::from_utf8(output.stdout).unwrap();
        let (answer, status) = text.rsplit_once('\n').unwrap();
        let documents = serde_json::Deserializer::from_str(answer).into_iter();
        (
            status.parse().unwrap(),
            documents.map(|document| document.unwrap()).collect(),
        )
    }

    /// Waits until something holds that nobody tells of.
    pub(crate) fn until(&self, holds: impl Fn() -> bool) {
        let deadline = Instant::now() + LIMIT;
        while !holds() {
            assert!(Instant::now() < deadline, "it does not come to be");
            std::thread::sleep(Duration::from_millis(50));
        }
    }
}

const LIMIT: Duration = Duration::from_secs(20);

/// A docker command in a terminal.
pub(crate) struct Terminal {
    child: Child,
    input: Option<ChildStdin>,
    said: Arc<(Mutex<(String, bool)>, Condvar)>,
}

impl Terminal {
    pub(crate) fn wait_for(&self, text: &str) {
        let heard = self.said.0.lock().unwrap();
        let missing = |heard: &mut (String, bool)| !heard.0.contains(text) && !heard.1;
        let (heard, _) = self.said.1.wait_timeout_while(heard, LIMIT, missing).unwrap();
        assert!(heard.0.contains(text), "no {text:?} in {:?}", heard.0);
    }

    pub(crate) fn send(&mut self, text: &str) {
        let input = self.input.as_mut().unwrap();
        input.write_all(text.as_bytes()).unwrap();
        input.flush().unwrap();
    }

    /// Waits for its end: exit code and all that it said.
    pub(crate) fn finish(mut self) -> (i32, String) {
        let heard = self.said.0.lock().unwrap();
        let (heard, _) = self
            .said
            .1
            .wait_timeout_while(heard, LIMIT, |heard| !heard.1)
            .unwrap();
        if !heard.1 {
            let _ = self.child.kill();
            panic!("it does not end: {:?}", heard.0);
        }
        (self.child.wait().unwrap().code().unwrap(), heard.0.clone())
    }
}
