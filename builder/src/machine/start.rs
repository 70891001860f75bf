//! Starting a machine: its disk, its identity, its ports, and QEMU in the background.

use std::fs::{self, File, OpenOptions};
use std::io::Write as _;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::thread::available_parallelism;
use std::time::{SystemTime, UNIX_EPOCH};

use anyhow::{Context, ensure};
use handover::{API_PORT, Protocol};

use super::{Machine, Process, Record, ports};
use crate::command::{self, CommandError};
use crate::image::BuiltImage;
use crate::qemu::{self, Acceleration, Boot, Forward, Qemu};
use crate::recipe::Recipe;
use crate::site::Site;

/// The names by which this machine reaches one of its own.
const NAMES: [&str; 2] = ["127.0.0.1", "localhost"];
/// A port can be taken between the look at it and QEMU's start.
const ATTEMPTS: usize = 3;
/// QEMU's words for that.
const PORT_TAKEN: &str = "Could not set up host forwarding rule";
/// Bytes of a socket's path that the kernel takes, `sun_path` less its end (unix(7)).
const MAX_SOCKET_PATH: usize = 107;

/// What a machine is started with.
#[derive(Clone, Copy)]
pub struct Start<'a> {
    pub recipe: &'a Recipe,
    /// The recipe's file.
    pub path: &'a Path,
    pub image: &'a BuiltImage,
    pub site: &'a Site,
    pub acceleration: Acceleration,
    /// Whether UEFI firmware starts the `.efi` file, instead of the kernel at once.
    pub efi: bool,
    /// Disks beside the recipe's, with their serial numbers, which can be pulled out while it runs.
    pub more_disks: &'a [(String, PathBuf)],
}

/// A machine that was just started.
#[derive(Debug)]
pub struct Started {
    pub record: Record,
    pub process: Process,
    /// Whether it got a new disk.
    pub new_disk: bool,
}

impl Machine {
    /// Starts QEMU in the background; what it boots is not waited for. The caller holds the lock.
    ///
    /// # Errors
    /// The machine's folder cannot be written, or QEMU does not start. What was made is gone again.
    pub fn start(&self, start: Start<'_>) -> anyhow::Result<Started> {
        let first = self.record().is_none();
        let new_disk = start.recipe.qemu.disk.is_some() && !self.disk().exists();
        let started = self.try_start(start);
        if started.is_err() {
            self.clean_up();
            if first {
                let _ = fs::remove_dir_all(&self.dir);
            } else if new_disk {
                let _ = fs::remove_file(self.disk());
            }
        }
        let (record, process) = started?;
        Ok(Started {
            record,
            process,
            new_disk,
        })
    }

    fn try_start(&self, start: Start<'_>) -> anyhow::Result<(Record, Process)> {
        let socket = self.console();
        ensure!(
            socket.as_os_str().len() <= MAX_SOCKET_PATH,
            "The path {} is too long for a socket; set XDG_STATE_HOME to a shorter one",
            socket.display()
        );
        let disk = self.provide_disk(start.recipe)?;
        self.write_bundle(start.site)?;
        let mut attempt = 1;
        loop {
            let record = record(start)?;
            self.write_record(&record)?;
            match self.run(start, &record, disk.clone()) {
                Ok(()) => break self.take_over(record),
                Err(CommandError::Failed { stderr, .. })
                    if attempt < ATTEMPTS && stderr.contains(PORT_TAKEN) => {}
                Err(error) => return Err(error).context("Cannot start the machine"),
            }
            attempt += 1;
        }
    }

    fn take_over(&self, record: Record) -> anyhow::Result<(Record, Process)> {
        // QEMU has read it, and a key that lies nowhere is read by nobody.
        fs::remove_file(self.bundle()).context("Cannot delete the node bundle")?;
        let process = self.process().with_context(|| {
            format!(
                "QEMU ended as soon as it was started; see {}",
                self.log().display()
            )
        })?;
        Ok((record, process))
    }

    fn run(&self, start: Start<'_>, record: &Record, disk: Option<PathBuf>) -> Result<(), CommandError> {
        let boot = match (&start.image.efi, start.efi) {
            (Some(image), true) => Boot::Efi {
                image: image.clone(),
                variables: self.variables(),
            },
            _ => Boot::Direct {
                kernel: start.image.vmlinuz.clone(),
                initrd: start.image.initrd.clone(),
                command_line: start.image.cmdline.clone(),
            },
        };
        let api = Forward {
            protocol: Protocol::Tcp,
            host: record.api_port,
            guest: API_PORT,
        };
        let qemu = Qemu {
            name: format!("monobloc-{}", self.name),
            acceleration: record.acceleration,
            boot,
            memory: record.memory,
            cpus: record.cpus,
            disk,
            more_disks: start.more_disks.to_vec(),
            tpm: None,
            forwards: Some([&[api], record.forwards.as_slice()].concat()),
            bundle: Some(self.bundle()),
            log: self.log(),
            console: self.console(),
            qmp: self.qmp(),
            // A host that crashes comes back.
            restarts: true,
        };
        // It forks, lives in a session of its own, and the first process ends when the machine runs.
        let mut command = Command::new(qemu::PROGRAM);
        command.args(qemu.arguments()).arg("-daemonize");
        command::run(command.arg("-pidfile").arg(self.pid_file())).map(|_| ())
    }

    /// The machine's disk, sparse; one that is there keeps its size and what it holds.
    fn provide_disk(&self, recipe: &Recipe) -> anyhow::Result<Option<PathBuf>> {
        let Some(size) = recipe.qemu.disk else {
            return Ok(None);
        };
        let path = self.disk();
        if !path.exists() {
            File::create_new(&path)
                .and_then(|file| file.set_len(size.0))
                .with_context(|| format!("Cannot make the disk {}", path.display()))?;
        }
        Ok(Some(path))
    }

    fn write_bundle(&self, site: &Site) -> anyhow::Result<()> {
        let path = self.bundle();
        let bundle = serde_json::to_vec(&site.node_bundle(&self.name, &NAMES)?)?;
        let _ = fs::remove_file(&path);
        let file = OpenOptions::new()
            .write(true)
            .create_new(true)
            .mode(0o600)
            .open(&path);
        file.and_then(|mut file| file.write_all(&bundle))
            .with_context(|| format!("Cannot write {}", path.display()))
    }

    fn write_record(&self, record: &Record) -> anyhow::Result<()> {
        let path = self.record_path();
        let new = path.with_extension("new");
        fs::write(&new, serde_json::to_vec_pretty(record)?)
            .and_then(|()| fs::rename(&new, &path))
            .with_context(|| format!("Cannot write {}", path.display()))
    }

    fn variables(&self) -> PathBuf {
        self.dir.join("variables.fd")
    }

    /// Gives the machine firmware settings of its own, for a start by UEFI.
    ///
    /// # Errors
    /// They cannot be copied.
    pub fn provide_variables(&self) -> anyhow::Result<()> {
        let path = self.variables();
        if !path.exists() {
            fs::create_dir_all(&self.dir)
                .and_then(|()| fs::copy(qemu::FIRMWARE_VARIABLES, &path))
                .with_context(|| format!("Cannot copy the firmware's settings to {}", path.display()))?;
        }
        Ok(())
    }
}

fn record(start: Start<'_>) -> anyhow::Result<Record> {
    let mut given = Vec::new();
    let mut free = |protocol, wanted| {
        let port = ports::free(protocol, wanted, &given).context("This machine has no free port")?;
        given.push((protocol, port));
        anyhow::Ok(port)
    };
    let api_port = free(Protocol::Tcp, API_PORT)?;
    let forwards = start.recipe.qemu.forwards.iter().map(|wanted| {
        let host = free(wanted.protocol, wanted.outer)?;
        Ok(Forward {
            protocol: wanted.protocol,
            host,
            guest: wanted.inner,
        })
    });
    let forwards = forwards.collect::<anyhow::Result<_>>()?;
    let processors = available_parallelism().map_or(1, |count| u32::try_from(count.get()).unwrap_or(1));
    Ok(Record {
        recipe: start.path.to_owned(),
        image: start.image.dir.clone(),
        api_port,
        forwards,
        memory: start.recipe.qemu.memory.0,
        cpus: start.recipe.qemu.cpus.clamp(1, processors),
        acceleration: start.acceleration,
        started: SystemTime::now()
            .duration_since(UNIX_EPOCH)
            .map_or(0, |time| time.as_secs()),
    })
}
