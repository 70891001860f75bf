//! Machines: an image booted in QEMU with a disk, an identity, forwarded ports and a console.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, Once, OnceLock, PoisonError, RwLock, RwLockReadGuard};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::Context as _;
use handover::Protocol;
use monobloc::qemu::{self, Acceleration, Forward, Qemu};
use tempfile::TempDir;

use crate::api;
use crate::client::{self, Docker, Endpoint};
use crate::host::free_port;
use crate::image::{Built, Kind, built};
use crate::process::{bound, spawn};
use crate::setup::tools;
use crate::site::Identity;
use crate::tpm::Tpm;
use crate::transcript::{Missed, Transcript};

/// How long a boot may take, emulated, with other tests beside it.
const BOOT: Duration = Duration::from_secs(120);
/// How long a machine may take to go down.
const DOWN: Duration = Duration::from_secs(90);
/// What the console says when the API listens.
const READY: &str = "monobloc: ready";
/// What QEMU says of a port of this machine that somebody else has.
const PORT_TAKEN: &str = "Could not set up host forwarding rule";
/// A test must go the same way everywhere, and QEMU's translation is safe on one thread in every version.
const ACCELERATION: Acceleration = Acceleration::EmulatedOnOneThread;
const MIB: u64 = 1 << 20;
/// Ports of the machine that are reached from here besides the API, for published ports.
const FORWARDED: [u16; 3] = [80, 8080, 8081];

/// A disk image in a temporary folder, sparse.
#[derive(Debug, Clone)]
pub struct Disk {
    path: PathBuf,
    _folder: Arc<TempDir>,
}

impl Disk {
    /// A disk of zeros.
    ///
    /// # Panics
    /// There is no place for it.
    #[must_use]
    pub fn blank(size: u64) -> Self {
        Self::beginning_with(b"", size)
    }

    /// A disk that begins with some bytes.
    ///
    /// # Panics
    /// As [`Disk::blank`].
    #[must_use]
    pub fn beginning_with(content: &[u8], size: u64) -> Self {
        let folder = tempfile::tempdir().expect("no temporary folder");
        let path = folder.path().join("disk.img");
        let file = File::create(&path)
            .and_then(|mut file| file.write_all(content).and_then(|()| file.set_len(size)));
        file.expect("cannot make a disk image");
        Self {
            path,
            _folder: Arc::new(folder),
        }
    }

    #[must_use]
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// What is booted, and in what machine.
#[derive(Debug, Clone)]
pub struct Boot {
    image: Kind,
    disk: Option<Disk>,
    more_disks: Vec<(String, Disk)>,
    memory: u64,
    firmware: bool,
    network: bool,
    identity: bool,
    restarts: bool,
    tpm: Option<Tpm>,
}

impl Boot {
    /// The image of `images/quickstart.toml`.
    #[must_use]
    pub fn quickstart() -> Self {
        Self {
            image: Kind::Quickstart,
            disk: None,
            more_disks: Vec::new(),
            memory: 1024 * MIB,
            firmware: false,
            network: true,
            identity: true,
            restarts: false,
            tpm: None,
        }
    }

    /// The image of `images/web.toml`.
    #[must_use]
    pub fn web() -> Self {
        Self {
            image: Kind::Web,
            ..Self::quickstart()
        }
    }

    /// The image of `images/quickstart.toml`, whose zones may have the machine's own namespaces.
    #[must_use]
    pub fn host_privilege() -> Self {
        Self {
            image: Kind::HostPrivilege,
            ..Self::quickstart()
        }
    }

    /// The image of `images/quickstart.toml`, which encrypts the disks that it claims.
    #[must_use]
    pub fn encrypting() -> Self {
        Self {
            image: Kind::Encrypting,
            ..Self::quickstart()
        }
    }

    /// With a TPM.
    #[must_use]
    pub fn tpm(self, tpm: &Tpm) -> Self {
        Self {
            tpm: Some(tpm.clone()),
            ..self
        }
    }

    /// With a blank disk of 4 GiB.
    #[must_use]
    pub fn blank_disk(self) -> Self {
        let disk = Disk::blank(4096 * MIB);
        self.disk(&disk)
    }

    #[must_use]
    pub fn disk(self, disk: &Disk) -> Self {
        Self {
            disk: Some(disk.clone()),
            ..self
        }
    }

    /// With so many bytes of memory.
    #[must_use]
    pub fn memory(self, memory: u64) -> Self {
        Self { memory, ..self }
    }

    /// With a further disk, which can be pulled out while the machine runs.
    #[must_use]
    pub fn another_disk(mut self, serial: &str, disk: &Disk) -> Self {
        self.more_disks.push((serial.to_owned(), disk.clone()));
        self
    }

    /// From the `.efi` file, by UEFI firmware.
    #[must_use]
    pub fn by_firmware(self) -> Self {
        Self {
            firmware: true,
            ..self
        }
    }

    /// Without a network card.
    #[must_use]
    pub fn without_network(self) -> Self {
        Self {
            network: false,
            ..self
        }
    }

    /// In a machine that starts anew when it resets; others end, so that a kernel's panic is not missed.
    #[must_use]
    pub fn restarting(self) -> Self {
        Self {
            restarts: true,
            ..self
        }
    }

    /// Without a node bundle.
    #[must_use]
    pub fn without_identity(self) -> Self {
        Self {
            identity: false,
            ..self
        }
    }

    /// The machine that this would boot, to boot something else in it. Its sockets lie in `folder`.
    ///
    /// # Errors
    /// The image cannot be built.
    pub fn imitated(&self, folder: &Path) -> anyhow::Result<Qemu> {
        imitated(self, built(self.image)?, folder, free_port(), None)
    }

    /// Boots, and waits until the API listens.
    ///
    /// # Panics
    /// The image cannot be built, or it does not come so far.
    #[must_use]
    #[track_caller]
    pub fn start(&self) -> Machine {
        loop {
            let machine = self.power_on();
            // The ports were free when they were chosen; others choose, too.
            if machine.is_ready(0).is_err() && machine.qemu_says().contains(PORT_TAKEN) {
                continue;
            }
            machine.wait_ready(0);
            return machine;
        }
    }

    /// Boots, and waits for nothing.
    ///
    /// # Panics
    /// The image cannot be built, or QEMU does not start.
    #[must_use]
    #[track_caller]
    pub fn power_on(&self) -> Machine {
        tools();
        show_consoles_of_failures();
        Machine::power_on(self.clone()).unwrap_or_else(|error| panic!("cannot boot: {error:#}"))
    }
}

/// A running machine; it ends when dropped, or with the process.
pub struct Machine {
    boot: Boot,
    qemu: Mutex<Child>,
    console: Transcript,
    endpoint: Endpoint,
    forwarded: BTreeMap<u16, u16>,
    docker: OnceLock<Docker>,
    /// Held by those whose connections a crash of the supervisor would cut.
    calm: RwLock<()>,
    /// When QEMU was started.
    started: Instant,
    /// Ends when QEMU does.
    tpm: Option<Child>,
    /// To the console, once something was typed.
    keyboard: OnceLock<UnixStream>,
    folder: TempDir,
}

impl Machine {
    fn power_on(boot: Boot) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let api = free_port();
        let tpm = boot
            .tpm
            .as_ref()
            .map(|tpm| tpm.start(folder.path()))
            .transpose()?;
        let (tpm, socket) = tpm.unzip();
        let imitated = imitated(&boot, built(boot.image)?, folder.path(), api, socket)?;
        let forwards = imitated.forwards.iter().flatten();
        let forwarded = forwards.map(|forward| (forward.guest, forward.host)).collect();
        let mut command = bound(qemu::PROGRAM);
        command.args(imitated.arguments());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("stderr"))?);
        let started = Instant::now();
        let mut qemu = spawn(command).context("Cannot start QEMU")?;
        let console = Transcript::follow("the console", qemu.stdout.take().context("QEMU has no console")?);
        consoles().push(console.clone());
        Ok(Self {
            boot,
            qemu: Mutex::new(qemu),
            console,
            endpoint: Endpoint {
                port: api,
                certificates: Identity::shared()?.client.clone(),
            },
            forwarded,
            docker: OnceLock::new(),
            calm: RwLock::default(),
            started,
            tpm,
            keyboard: OnceLock::new(),
            folder,
        })
    }

    /// Waits until the API listens, as the console tells it after `mark`.
    #[track_caller]
    pub fn wait_ready(&self, mark: usize) {
        if let Err(error) = self.is_ready(mark) {
            panic!("{error}\nQEMU says: {}", self.qemu_says());
        }
    }

    fn is_ready(&self, mark: usize) -> Result<(), Missed> {
        self.console.wait_after(mark, READY, BOOT).map(drop)
    }

    fn qemu_says(&self) -> String {
        fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default()
    }

    /// The serial console.
    #[must_use]
    pub fn console(&self) -> &Transcript {
        &self.console
    }

    /// Types at the serial console.
    #[track_caller]
    pub fn type_at_console(&self, text: &str) {
        // It stays open: QEMU forgets what has not reached the machine when its user hangs up.
        let console = self.keyboard.get_or_init(|| {
            let console = UnixStream::connect(self.folder.path().join("console"));
            let console = console.unwrap_or_else(|error| panic!("cannot reach the console: {error}"));
            // The machine waits for a user who does not listen.
            if let Ok(mut said) = console.try_clone() {
                thread::spawn(move || std::io::copy(&mut said, &mut std::io::sink()));
            }
            console
        });
        let typed = (&*console).write_all(text.as_bytes());
        typed.unwrap_or_else(|error| panic!("cannot type at the console: {error}"));
    }

    /// When QEMU was started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// The docker command of this suite.
    pub fn docker(&self) -> &Docker {
        self.docker.get_or_init(|| self.new_docker())
    }

    /// A docker command with a configuration of its own.
    #[must_use]
    pub fn new_docker(&self) -> Docker {
        Docker::new(&self.endpoint)
    }

    #[must_use]
    pub fn bollard(&self) -> bollard::Docker {
        client::bollard(&self.endpoint)
    }

    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }

    /// The port of this machine that leads to one of the booted machine.
    #[must_use]
    #[track_caller]
    pub fn forwarded(&self, port: u16) -> u16 {
        *self
            .forwarded
            .get(&port)
            .unwrap_or_else(|| panic!("port {port} is not forwarded"))
    }

    /// Sends a request to the API; gives the body of a good answer.
    #[track_caller]
    pub fn request(&self, method: &str, path: &str) -> String {
        match api::request(&self.endpoint, method, path) {
            Ok((200..300, body)) => body,
            Ok((status, body)) => panic!("{method} {path} was answered {status}: {body}"),
            Err(error) => panic!("{method} {path}: {error:#}"),
        }
    }

    /// Pulls out a disk of [`Boot::another_disk`] or [`Machine::plug`].
    #[track_caller]
    pub fn unplug(&self, serial: &str) {
        let done = qemu::disks::unplug(&self.folder.path().join("qmp"), serial);
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Plugs a disk in while the machine runs, which was started with [`Boot::another_disk`].
    #[track_caller]
    pub fn plug(&self, serial: &str, disk: &Disk) {
        let done = qemu::disks::plug(&self.folder.path().join("qmp"), serial, disk.path());
        done.unwrap_or_else(|error| panic!("{error}"));
    }

    /// Powers the machine off by its API and waits until it is.
    #[track_caller]
    pub fn power_off(self) {
        self.request("POST", "/monobloc/v1/poweroff");
        assert!(
            self.console.wait_end(DOWN),
            "the machine did not go off:\n{}",
            self.console.tail()
        );
    }

    /// Waits until the machine is off by itself.
    #[track_caller]
    pub fn wait_off(self) {
        assert!(
            self.console.wait_end(DOWN),
            "the machine did not go off:\n{}",
            self.console.tail()
        );
    }

    /// Reboots the machine by its API and waits until it answers again.
    #[track_caller]
    pub fn reboot(&self) {
        let mark = self.console.mark();
        self.request("POST", "/monobloc/v1/reboot");
        self.wait_ready(mark);
    }

    /// While the guard lives, no other test of the same machine has the supervisor crash.
    pub fn undisturbed(&self) -> RwLockReadGuard<'_, ()> {
        // A test that failed with it has told why.
        self.calm.read().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has the supervisor crash by its API, and waits until its successor is ready. There is no answer.
    /// The connections of all tests are cut, so it waits for those that are to be
    /// [`undisturbed`](Self::undisturbed).
    #[track_caller]
    pub fn crash_supervisor(&self) {
        let _alone = self.calm.write().unwrap_or_else(PoisonError::into_inner);
        let mark = self.console.mark();
        let _ = api::request(&self.endpoint, "POST", "/monobloc/v1/restart-supervisor");
        self.wait_ready(mark);
    }

    /// Cuts the machine's power.
    pub fn cut_power(self) {
        drop(self);
    }

    /// What was booted.
    #[must_use]
    pub fn boot(&self) -> &Boot {
        &self.boot
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let qemu = self.qemu.get_mut().unwrap_or_else(PoisonError::into_inner);
        let _ = qemu.kill();
        let _ = qemu.wait();
        if let Some(tpm) = &mut self.tpm {
            let _ = tpm.wait();
        }
        consoles().retain(|console| !console.is(&self.console));
    }
}

/// The machine that QEMU imitates, with its sockets in `folder`.
fn imitated(
    boot: &Boot,
    image: &Built,
    folder: &Path,
    api: u16,
    tpm: Option<PathBuf>,
) -> anyhow::Result<Qemu> {
    let start = if boot.firmware {
        let variables = folder.join("variables.fd");
        fs::copy(qemu::FIRMWARE_VARIABLES, &variables).context("Cannot copy the firmware's settings")?;
        qemu::Boot::Efi {
            image: image.efi.clone().context("The recipe makes no .efi file")?,
            variables,
        }
    } else {
        qemu::Boot::Direct {
            kernel: image.vmlinuz.clone(),
            initrd: image.initrd.clone(),
            command_line: image.cmdline.clone(),
        }
    };
    let identity = Identity::shared()?;
    Ok(Qemu {
        name: "test".to_owned(),
        acceleration: ACCELERATION,
        boot: start,
        memory: boot.memory,
        cpus: 2,
        tpm,
        disk: boot.disk.as_ref().map(|disk| disk.path().to_owned()),
        more_disks: boot
            .more_disks
            .iter()
            .map(|(serial, disk)| (serial.clone(), disk.path().to_owned()))
            .collect(),
        forwards: boot.network.then(|| forwards(api)),
        bundle: boot.identity.then(|| identity.bundle.clone()),
        // Our end of QEMU's standard output.
        log: "/proc/self/fd/1".into(),
        console: folder.join("console"),
        qmp: folder.join("qmp"),
        restarts: boot.restarts,
    })
}

fn forwards(api: u16) -> Vec<Forward> {
    let forward = |host, guest| Forward {
        protocol: Protocol::Tcp,
        host,
        guest,
    };
    let published = FORWARDED.iter().map(|guest| forward(free_port(), *guest));
    published.chain([forward(api, handover::API_PORT)]).collect()
}

/// The consoles of the machines that run.
fn consoles() -> MutexGuard<'static, Vec<Transcript>> {
    static CONSOLES: Mutex<Vec<Transcript>> = Mutex::new(Vec::new());
    CONSOLES.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Lets every panic be followed by the ends of the consoles of all machines that run.
fn show_consoles_of_failures() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let ordinary = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            ordinary(panic);
            for console in consoles().iter() {
                eprintln!("--- the end of a console ---\n{}\n---", console.tail());
            }
        }));
    });
}
