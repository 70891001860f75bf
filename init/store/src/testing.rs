//! Helpers of the tests: a pool on a loop device over a sparse file, and user namespaces.

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Mutex, PoisonError};

use crate::encryption::{Keys, Protection};
use crate::luks::{Lock, Secret};
use crate::mkfs;
use crate::pool::Pool;
use crate::store::Store;

/// Held while a process is started and while a pool is unmounted: between `fork` and `exec` a child
/// holds copies of all descriptors, and a mount with an open one cannot be unmounted.
static STARTING: Mutex<()> = Mutex::new(());

pub(crate) fn turn() -> std::sync::MutexGuard<'static, ()> {
    STARTING.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(crate) fn spawn(command: &mut Command) -> Child {
    let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
    command
        .spawn()
        .unwrap_or_else(|e| panic!("Cannot run {command:?} ({e}); install it."))
}

/// Runs a program to its end.
pub(crate) fn output(command: &mut Command) -> Output {
    {
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        tools::need(&["btrfs-progs", "skopeo"]);
    }
    let piped = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    spawn(piped).wait_with_output().unwrap()
}

/// A machine that knows no secret.
pub(crate) struct NoKeys;

impl Keys for NoKeys {
    fn prepare(&self) -> Result<(), String> {
        Ok(())
    }

    fn secret(&self, _: &Lock, _: &str, _: bool) -> Result<Secret, String> {
        Err("There is none.".to_owned())
    }

    fn make(&self, _: Protection) -> Result<(Lock, Secret), String> {
        Err("There is none.".to_owned())
    }
}

/// A mounted pool that is unmounted when the test ends, however it ends.
pub(crate) struct TestPool {
    dir: tempfile::TempDir,
    pool: Option<Pool>,
}

impl TestPool {
    pub(crate) fn new(size: u64) -> TestPool {
        let dir = tempfile::tempdir().unwrap();
        File::create(dir.path().join("image"))
            .unwrap()
            .set_len(size)
            .unwrap();
        mkfs::write(&dir.path().join("image"), "monobloc-test").unwrap();
        let mut pool = TestPool { dir, pool: None };
        pool.mount();
        pool
    }

    /// The device's content as it is now: what a power cut would leave.
    pub(crate) fn copy(&self) -> PathBuf {
        let copy = self.dir.path().join("copy");
        std::fs::copy(self.image(), &copy).unwrap();
        copy
    }

    pub(crate) fn replace_image(&self, copy: PathBuf) {
        std::fs::rename(copy, self.image()).unwrap();
    }

    pub(crate) fn image(&self) -> PathBuf {
        self.dir.path().join("image")
    }

    pub(crate) fn path(&self) -> PathBuf {
        self.dir.path().join("pool")
    }

    pub(crate) fn mount(&mut self) {
        let backing = File::options().read(true).write(true).open(self.image()).unwrap();
        let device = sys::loopdev::LoopDevice::attach(&backing)
            .expect("Cannot attach a loop device; run the tests as root on a kernel with the loop driver.");
        self.pool = Some(Pool::mount(device.path(), &self.path()).unwrap());
    }

    pub(crate) fn unmount(&mut self) {
        if let Some(pool) = self.pool.take() {
            let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
            pool.unmount().unwrap();
        }
    }

    pub(crate) fn store(&self) -> Store {
        Store::open(&self.path()).unwrap()
    }
}

impl Drop for TestPool {
    fn drop(&mut self) {
        let Some(pool) = self.pool.take() else { return };
        let _turn = STARTING.lock().unwrap_or_else(PoisonError::into_inner);
        if let Err(reason) = pool.unmount() {
            eprintln!("{reason}");
        }
    }
}

/// A user namespace whose ids 0 to 65535 are `start` and the following ones, kept by a child process.
pub(crate) struct UserNamespace {
    child: Child,
    pub(crate) fd: OwnedFd,
}

impl UserNamespace {
    pub(crate) fn new(start: u32) -> UserNamespace {
        let mut child = spawn(
            Command::new("unshare")
                .args(["--user", "sh", "-c", "echo ready; exec cat"])
                .stdin(Stdio::piped())
                .stdout(Stdio::piped()),
        );
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert_eq!(line, "ready\n");
        let pid = child.id();
        for map in ["uid_map", "gid_map"] {
            std::fs::write(format!("/proc/{pid}/{map}"), format!("0 {start} 65536\n")).unwrap();
        }
        let fd = File::open(format!("/proc/{pid}/ns/user")).unwrap().into();
        UserNamespace { child, fd }
    }
}

impl Drop for UserNamespace {
    fn drop(&mut self) {
        drop(self.child.stdin.take());
        let _ = self.child.wait();
    }
}

/// Builds tars for the tests; the names go in as they are, checked by nobody.
#[derive(Default)]
pub(crate) struct TarMaker {
    bytes: Vec<u8>,
}

impl TarMaker {
    pub(crate) fn entry(mut self, kind: tar::EntryType, name: &str, link: &str, content: &[u8]) -> TarMaker {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_size(content.len() as u64);
        header.set_mode(if kind == tar::EntryType::Directory {
            0o755
        } else {
            0o644
        });
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1_700_000_000);
        if let Some(gnu) = header.as_gnu_mut() {
            gnu.name[..name.len()].copy_from_slice(name.as_bytes());
            gnu.linkname[..link.len()].copy_from_slice(link.as_bytes());
        }
        header.set_cksum();
        self.bytes.extend_from_slice(header.as_bytes());
        self.bytes.extend_from_slice(content);
        self.bytes.resize(self.bytes.len().next_multiple_of(512), 0);
        self
    }

    pub(crate) fn file(self, name: &str, content: &[u8]) -> TarMaker {
        self.entry(tar::EntryType::Regular, name, "", content)
    }

    pub(crate) fn dir(self, name: &str) -> TarMaker {
        self.entry(tar::EntryType::Directory, name, "", b"")
    }

    pub(crate) fn symlink(self, name: &str, target: &str) -> TarMaker {
        self.entry(tar::EntryType::Symlink, name, target, b"")
    }

    pub(crate) fn hardlink(self, name: &str, target: &str) -> TarMaker {
        self.entry(tar::EntryType::Link, name, target, b"")
    }

    /// Without the archive's end.
    pub(crate) fn entries(self) -> Vec<u8> {
        self.bytes
    }

    pub(crate) fn finish(mut self) -> Vec<u8> {
        self.bytes.resize(self.bytes.len() + 1024, 0);
        self.bytes
    }
}
