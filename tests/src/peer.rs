//! The machine that the appliance is measured beside: Debian with its docker.io, on the same hardware. It
//! is no part of the product. Made once by debootstrap and apt, and kept.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use anyhow::{Context as _, ensure};
use monobloc::qemu;
use monobloc::site::Site;
use serde_json::json;
use tempfile::TempDir;

use crate::client::Endpoint;
use crate::images::{Image, debian_rootfs};
use crate::machine::Boot;
use crate::process::{bound, run, spawn};
use crate::setup::{cached, workspace};
use crate::transcript::Transcript;

/// Making it fetches and unpacks some hundred packages.
const MAKING: Duration = Duration::from_secs(900);
const BOOT: Duration = Duration::from_secs(240);
const READY: &str = "peer: ready";
const COMMAND_LINE: &str = "root=/dev/vda rw console=ttyS0 quiet loglevel=3 panic=1";

/// The running machine; it ends when dropped.
pub struct Peer {
    qemu: Child,
    console: Transcript,
    endpoint: Endpoint,
    _folder: TempDir,
}

impl Peer {
    /// Boots it, with a disk of `disk` bytes, in the machine that `boot` would boot the appliance in.
    ///
    /// # Errors
    /// It cannot be made, or does not come so far.
    pub fn start(boot: &Boot, disk: u64) -> anyhow::Result<Self> {
        let made = made()?;
        let folder = tempfile::tempdir()?;
        let own = folder.path().join("disk.img");
        let copy = ["--sparse=always".into(), made.join("disk.img"), own.clone()];
        ensure!(
            run(MAKING, "cp", copy, &[], b"").code == 0,
            "cannot copy the peer's disk"
        );
        File::options().write(true).open(&own)?.set_len(disk)?;
        let mut machine = boot.imitated(folder.path())?;
        machine.boot = qemu::Boot::Direct {
            kernel: made.join("vmlinuz"),
            initrd: made.join("initrd.img"),
            command_line: COMMAND_LINE.to_owned(),
        };
        machine.disk = Some(own);
        machine.bundle = None;
        let port = machine
            .forwards
            .iter()
            .flatten()
            .find(|forward| forward.guest == handover::API_PORT)
            .context("The machine has no port for the API")?
            .host;
        let mut command = bound(qemu::PROGRAM);
        command
            .args(machine.arguments())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::inherit());
        let mut qemu = spawn(command).context("Cannot start QEMU")?;
        let console = Transcript::follow("the peer", qemu.stdout.take().context("QEMU has no console")?);
        let peer = Self {
            qemu,
            console,
            endpoint: Endpoint {
                port,
                certificates: made.join("client"),
            },
            _folder: folder,
        };
        peer.console.wait_for(READY, BOOT)?;
        Ok(peer)
    }

    #[must_use]
    pub fn endpoint(&self) -> &Endpoint {
        &self.endpoint
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// The folder with the machine's disk, kernel, initrd and the client's certificates.
fn made() -> anyhow::Result<PathBuf> {
    cached("docker-peer", |unfinished| {
        fs::create_dir_all(unfinished)?;
        let work = tempfile::tempdir()?;
        let root = debian(work.path())?;
        in_root(&root, "machine.sh")?;
        certify(&root, unfinished)?;
        for name in ["vmlinuz", "initrd.img"] {
            fs::copy(root.join(name), unfinished.join(name))
                .with_context(|| format!("The peer has no {name}"))?;
        }
        let disk = unfinished.join("disk.img");
        File::create(&disk)?.set_len(16 << 30)?;
        let options = ["-q", "-d"].map(PathBuf::from).into_iter();
        let options = options.chain([root, "-E".into(), "lazy_itable_init=0,lazy_journal_init=0".into()]);
        let made = run(MAKING, "mkfs.ext4", options.chain([disk]), &[], b"");
        ensure!(made.code == 0, "{made}");
        Ok(())
    })
}

/// A minimal Debian that knows the packages which this machine knows.
fn debian(work: &Path) -> anyhow::Result<PathBuf> {
    let root = work.join("root");
    fs::create_dir_all(&root)?;
    let unpack = ["-xpf".into(), debian_rootfs(), "-C".into(), root.clone()];
    let unpacked = run(MAKING, "tar", unpack, &[], b"");
    ensure!(unpacked.code == 0, "{unpacked}");
    fs::remove_dir_all(root.join("etc/apt"))?;
    for path in ["etc/apt", "etc/resolv.conf"] {
        let from = Path::new("/").join(path);
        let _ = fs::remove_file(root.join(path));
        let copied = run(MAKING, "cp", ["-aL".into(), from, root.join(path)], &[], b"");
        ensure!(copied.code == 0, "{copied}");
    }
    Ok(root)
}

/// Runs one of the scripts beside this in the root, with mounts of its own.
fn in_root(root: &Path, script: &str) -> anyhow::Result<()> {
    fs::copy(
        workspace().join("tests/peer").join(script),
        root.join("tmp/script"),
    )?;
    let options = ["--mount", "--pid", "--fork", "chroot"]
        .map(PathBuf::from)
        .into_iter();
    let command = options.chain([root.to_owned(), "/bin/sh".into(), "/tmp/script".into()]);
    let done = run(MAKING, "unshare", command, &[], b"");
    ensure!(done.code == 0, "{done}");
    Ok(fs::remove_file(root.join("tmp/script"))?)
}

/// Gives dockerd a certificate, and the client one that it trusts.
fn certify(root: &Path, made: &Path) -> anyhow::Result<()> {
    let folder = tempfile::tempdir()?;
    let site = Site::open_or_create(&folder.path().join("site"))?;
    let node = site.node_bundle("peer", &["127.0.0.1", "localhost"])?;
    let place = root.join("etc/docker");
    for (name, text) in [
        ("ca.pem", &node.ca),
        ("cert.pem", &node.certificate),
        ("key.pem", &node.key),
    ] {
        fs::write(place.join(name), text)?;
    }
    let client = made.join("client");
    fs::create_dir_all(&client)?;
    for name in ["ca.pem", "cert.pem", "key.pem"] {
        fs::copy(site.client_dir().join(name), client.join(name))?;
    }
    Ok(())
}

/// An image of some 300 MB in three layers, with fio in it.
///
/// # Errors
/// Its packages cannot be had.
pub fn large_image(reference: &str) -> anyhow::Result<Image> {
    let layers = cached("large-layers", |unfinished| {
        fs::create_dir_all(unfinished)?;
        let work = tempfile::tempdir()?;
        let root = debian(work.path())?;
        let script = workspace().join("tests/peer/image.sh");
        let command = ["--mount", "sh"].map(PathBuf::from).into_iter();
        let command = command.chain([script, root, work.path().to_owned()]);
        let done = run(MAKING, "unshare", command, &[], b"");
        ensure!(done.code == 0, "{done}");
        for name in ["fio.tar", "compiler.tar"] {
            fs::copy(work.path().join(name), unfinished.join(name))?;
        }
        Ok(())
    })?;
    let mut image = Image::new(reference, &[]).with("Cmd", json!(["sleep", "1000"]));
    image.layers = vec![
        fs::read(debian_rootfs())?,
        fs::read(layers.join("fio.tar"))?,
        fs::read(layers.join("compiler.tar"))?,
    ];
    Ok(image)
}
