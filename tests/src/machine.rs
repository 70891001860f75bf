//! Machines: an image booted in QEMU with a disk, an identity, forwarded ports and a console.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, Once, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use tempfile::TempDir;

use crate::api;
use crate::client::{self, Docker, Endpoint};
use crate::host::free_port;
use crate::image::{Built, Kind, built};
use crate::process::{bound, spawn};
use crate::setup::tools;
use crate::transcript::Transcript;

/// How long a boot may take, emulated, with other tests beside it.
const BOOT: Duration = Duration::from_secs(240);
/// How long a machine may take to go down.
const DOWN: Duration = Duration::from_secs(90);
/// What the console says when the API listens.
const READY: &str = "monobloc: ready";
/// Emulated, because a test must go the same way everywhere; and on one thread: QEMU before 8.2 can run
/// code that another virtual CPU has just patched away, and the guest's kernel dies of it now and then
/// ("Oops: int3").
const ACCELERATION: &str = "tcg,thread=single";
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
    memory: u64,
    firmware: bool,
    network: bool,
    identity: bool,
}

impl Boot {
    /// The image of `images/quickstart.toml`.
    #[must_use]
    pub fn quickstart() -> Self {
        Self {
            image: Kind::Quickstart,
            disk: None,
            memory: 1024 * MIB,
            firmware: false,
            network: true,
            identity: true,
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

    /// Without a node bundle.
    #[must_use]
    pub fn without_identity(self) -> Self {
        Self {
            identity: false,
            ..self
        }
    }

    /// QEMU's arguments for the machine that it is to imitate, without what it boots.
    #[must_use]
    pub fn hardware(&self) -> Vec<String> {
        hardware(self)
    }

    /// Boots, and waits until the API listens.
    ///
    /// # Panics
    /// The image cannot be built, or it does not come so far.
    #[must_use]
    #[track_caller]
    pub fn start(&self) -> Machine {
        let machine = self.power_on();
        machine.wait_ready(0);
        machine
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
    /// When QEMU was started.
    started: Instant,
    folder: TempDir,
}

impl Machine {
    fn power_on(boot: Boot) -> anyhow::Result<Self> {
        let image = built(boot.image)?;
        let folder = tempfile::tempdir()?;
        let site = crate::site::Identity::shared()?;
        let api = free_port();
        let forwarded = FORWARDED
            .map(|port| (port, free_port()))
            .into_iter()
            .collect::<BTreeMap<_, _>>();
        let mut command = bound("qemu-system-x86_64");
        command.args(hardware(&boot));
        command.args(start_from(&boot, image, folder.path())?);
        if boot.identity {
            command.arg("-fw_cfg").arg(format!(
                "name={},file={}",
                handover::FW_CFG_BUNDLE,
                site.bundle.display()
            ));
        }
        if boot.network {
            let forwards = forwarded
                .iter()
                .map(|(guest, host)| (*host, *guest))
                .chain([(api, handover::API_PORT)]);
            let forwards = forwards.map(|(host, guest)| format!(",hostfwd=tcp:127.0.0.1:{host}-:{guest}"));
            command.args(["-netdev", &format!("user,id=net{}", forwards.collect::<String>())]);
            command.args(["-device", "virtio-net-pci,netdev=net"]);
        }
        command.arg("-qmp").arg(format!(
            "unix:{},server=on,wait=off",
            folder.path().join("qmp").display()
        ));
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(File::create(folder.path().join("stderr"))?);
        let started = Instant::now();
        let mut qemu = spawn(command).context("Cannot start QEMU")?;
        let console = Transcript::follow("the console", qemu.stdout.take().context("QEMU has no console")?);
        remember(&console);
        Ok(Self {
            boot,
            qemu: Mutex::new(qemu),
            console,
            endpoint: Endpoint {
                port: api,
                certificates: site.client.clone(),
            },
            forwarded,
            docker: OnceLock::new(),
            started,
            folder,
        })
    }

    /// Waits until the API listens, as the console tells it after `mark`.
    #[track_caller]
    pub fn wait_ready(&self, mark: usize) {
        if let Err(error) = self.console.wait_after(mark, READY, BOOT) {
            let said = fs::read_to_string(self.folder.path().join("stderr")).unwrap_or_default();
            panic!("{error}\nQEMU says: {said}");
        }
    }

    /// The serial console.
    #[must_use]
    pub fn console(&self) -> &Transcript {
        &self.console
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

    /// Has the supervisor crash by its API, and waits until its successor is ready. There is no answer.
    #[track_caller]
    pub fn crash_supervisor(&self) {
        let mark = self.console.mark();
        let _ = api::request(&self.endpoint, "POST", "/monobloc/v1/restart-supervisor");
        self.wait_ready(mark);
    }

    /// Cuts the machine's power.
    pub fn cut_power(self) {
        drop(self);
    }

    /// Gives QEMU's monitor a command.
    ///
    /// # Errors
    /// QEMU does not take it.
    pub fn monitor(&self, command: &str) -> anyhow::Result<()> {
        use std::io::{BufRead as _, BufReader};
        let mut socket = UnixStream::connect(self.folder.path().join("qmp"))?;
        let mut answers = BufReader::new(socket.try_clone()?).lines();
        answers.next().context("QEMU's monitor is closed")??;
        for (execute, arguments) in [
            ("qmp_capabilities", serde_json::json!({})),
            (
                "human-monitor-command",
                serde_json::json!({"command-line": command}),
            ),
        ] {
            writeln!(
                socket,
                "{}",
                serde_json::json!({"execute": execute, "arguments": arguments})
            )?;
            let answer = answers
                .by_ref()
                .find(|line| line.as_ref().map_or(true, |line| !line.contains("\"event\"")));
            let answer = answer.context("QEMU's monitor was closed")??;
            ensure!(answer.contains("\"return\""), "QEMU refuses {command}: {answer}");
        }
        Ok(())
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
    }
}

/// The machine that QEMU imitates.
fn hardware(boot: &Boot) -> Vec<String> {
    let memory = format!("{}M", boot.memory / MIB);
    let mut arguments = vec![
        "-nodefaults",
        "-no-user-config",
        "-display",
        "none",
        "-machine",
        "q35",
        "-accel",
        ACCELERATION,
        "-cpu",
        "max",
        "-smp",
        "2",
        "-m",
        &memory,
        "-serial",
        "stdio",
        "-device",
        "virtio-rng-pci",
    ]
    .into_iter()
    .map(String::from)
    .collect::<Vec<_>>();
    if let Some(disk) = &boot.disk {
        let drive = format!(
            "if=none,id=disk,format=raw,discard=unmap,file={}",
            disk.path().display()
        );
        arguments.extend([
            "-drive".into(),
            drive,
            "-device".into(),
            "virtio-blk-pci,drive=disk".into(),
        ]);
    }
    arguments
}

/// What the machine starts from.
fn start_from(boot: &Boot, image: &Built, folder: &Path) -> anyhow::Result<Vec<String>> {
    if !boot.firmware {
        let (kernel, initrd) = (
            image.vmlinuz.display().to_string(),
            image.initrd.display().to_string(),
        );
        return Ok(vec![
            "-kernel".into(),
            kernel,
            "-initrd".into(),
            initrd,
            "-append".into(),
            image.cmdline.clone(),
        ]);
    }
    let efi = image.efi.as_ref().context("The recipe makes no .efi file")?;
    let esp = folder.join("esp/EFI/BOOT");
    fs::create_dir_all(&esp)?;
    fs::copy(efi, esp.join("BOOTX64.EFI"))?;
    let variables = folder.join("vars.fd");
    fs::copy("/usr/share/OVMF/OVMF_VARS_4M.fd", &variables)?;
    let drives = [
        "if=pflash,format=raw,readonly=on,file=/usr/share/OVMF/OVMF_CODE_4M.fd".to_owned(),
        format!("if=pflash,format=raw,file={}", variables.display()),
        format!(
            "if=virtio,format=raw,file=fat:rw:{}",
            folder.join("esp").display()
        ),
    ];
    Ok(drives
        .into_iter()
        .flat_map(|drive| ["-drive".to_owned(), drive])
        .collect())
}

type Consoles = Mutex<Vec<Transcript>>;
static CONSOLES: Consoles = Mutex::new(Vec::new());

fn remember(console: &Transcript) {
    CONSOLES
        .lock()
        .unwrap_or_else(PoisonError::into_inner)
        .push(console.clone());
}

/// Lets every panic be followed by the ends of the consoles: of those machines that still run, or of the
/// last one if none does.
fn show_consoles_of_failures() {
    static HOOK: Once = Once::new();
    HOOK.call_once(|| {
        let ordinary = std::panic::take_hook();
        std::panic::set_hook(Box::new(move |panic| {
            ordinary(panic);
            let consoles = CONSOLES.lock().unwrap_or_else(PoisonError::into_inner);
            for console in consoles.iter() {
                eprintln!("--- the end of the console ---\n{}\n---", console.tail());
            }
        }));
    });
}
