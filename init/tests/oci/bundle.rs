//! Bundles and the runtime that runs them.

use std::fs::{self, File};
use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use serde_json::{Value, json};
use tempfile::TempDir;

/// No command and no container of a test takes as long, however busy the machine is.
pub(crate) const PATIENCE: Duration = Duration::from_secs(120);

/// A bundle as `crun spec` makes it, with a root of busybox, and a folder of states of its own. What is
/// left of its containers goes with it.
pub(crate) struct Bundle {
    pub(crate) dir: TempDir,
    pub(crate) config: Value,
}

/// What a command came to.
#[derive(Debug)]
pub(crate) struct Said {
    pub(crate) code: i32,
    pub(crate) out: String,
    pub(crate) err: String,
}

impl Said {
    fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    #[track_caller]
    pub(crate) fn good(self) -> String {
        assert_eq!(self.code, 0, "{self:?}");
        self.out
    }

    /// A refusal: an exit code and a sentence, which holds the words.
    #[track_caller]
    pub(crate) fn bad(self, words: &str) {
        assert_ne!(self.code, 0, "{self:?}");
        assert!(self.err.contains(words), "{words:?} is not in {self:?}");
    }
}

pub(crate) fn make_root(root: &Path) {
    tools::need(&["busybox-static"]);
    fs::create_dir_all(root.join("bin")).unwrap();
    fs::create_dir_all(root.join("tmp")).unwrap();
    fs::copy("/bin/busybox", root.join("bin/busybox")).unwrap();
    for applet in [
        "sh", "cat", "id", "sleep", "hostname", "stty", "grep", "true", "mount", "ls", "touch", "mknod",
        "head", "stat", "readlink", "ip", "echo", "tr", "wc", "kill",
    ] {
        symlink("busybox", root.join("bin").join(applet)).unwrap();
    }
}

/// A cgroup of no other test's: they all call their container the same.
pub(crate) fn own_cgroup() -> String {
    static NEXT: AtomicU32 = AtomicU32::new(0);
    let number = NEXT.fetch_add(1, Ordering::Relaxed);
    format!("test-{}-{number}", std::process::id())
}

impl Bundle {
    pub(crate) fn new(script: &str) -> Self {
        tools::need(&["crun"]);
        let dir = tempfile::tempdir().unwrap();
        make_root(&dir.path().join("rootfs"));
        let made = Command::new("crun").arg("spec").current_dir(dir.path()).status();
        assert!(made.unwrap().success(), "crun spec failed");
        let config = fs::read(dir.path().join("config.json")).unwrap();
        let mut config: Value = serde_json::from_slice(&config).unwrap();
        config["process"]["terminal"] = json!(false);
        config["process"]["env"] = json!(["PATH=/bin"]);
        config["process"]["args"] = json!(["sh", "-c", script]);
        config["linux"]["cgroupsPath"] = json!(own_cgroup());
        Self { dir, config }
    }

    pub(crate) fn path(&self) -> &Path {
        self.dir.path()
    }

    pub(crate) fn states(&self) -> PathBuf {
        self.path().join("states")
    }

    pub(crate) fn write(&self) -> &Self {
        fs::write(self.path().join("config.json"), self.config.to_string()).unwrap();
        self
    }

    /// With ids of its own: root is 1000000 outside.
    pub(crate) fn with_users(mut self) -> Self {
        let map = json!([{"containerID": 0, "hostID": 1_000_000, "size": 65_536}]);
        self.config["linux"]["uidMappings"] = map.clone();
        self.config["linux"]["gidMappings"] = map;
        self.add_namespace(json!({"type": "user"}));
        self.own_root(1_000_000);
        self
    }

    /// Gives the root to an id, as whoever unpacks one for a user namespace does.
    pub(crate) fn own_root(&self, id: u32) {
        let root = self.path().join("rootfs");
        for path in [root.clone(), root.join("bin"), root.join("tmp")] {
            std::os::unix::fs::chown(path, Some(id), Some(id)).unwrap();
        }
    }

    pub(crate) fn add_namespace(&mut self, namespace: Value) {
        let namespaces = self.config["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|there| there["type"] != namespace["type"]);
        namespaces.push(namespace);
    }

    pub(crate) fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_init"));
        command.arg("--root").arg(self.states());
        command.args(words).current_dir(self.path()).stdin(Stdio::null());
        command
    }

    /// Runs a command that leaves no process behind.
    pub(crate) fn say(&self, words: &[&str]) -> Said {
        Said::of(&self.command(words).output().unwrap())
    }

    /// Runs `create`, whose standard output and error become the container's: they go to a file.
    pub(crate) fn create(&self, id: &str) -> Said {
        self.create_with(&["create", "--bundle", ".", id])
    }

    pub(crate) fn create_with(&self, words: &[&str]) -> Said {
        self.write();
        let [out, err] = ["out", "err"].map(|name| self.path().join(name));
        let mut command = self.command(words);
        let (stdout, stderr) = (File::create(&out).unwrap(), File::create(&err).unwrap());
        let status = command.stdout(stdout).stderr(stderr).status().unwrap();
        Said {
            code: status.code().unwrap_or(-1),
            out: fs::read_to_string(out).unwrap(),
            err: fs::read_to_string(err).unwrap(),
        }
    }

    /// What the container has printed up to now.
    pub(crate) fn out(&self) -> String {
        fs::read_to_string(self.path().join("out")).unwrap()
    }

    pub(crate) fn state(&self, id: &str) -> Value {
        serde_json::from_str(&self.say(&["state", id]).good()).unwrap()
    }

    pub(crate) fn status(&self, id: &str) -> String {
        self.state(id)["status"].as_str().unwrap().to_owned()
    }

    /// Waits for the end of a container's process.
    pub(crate) fn wait(&self, id: &str) {
        let pid = self.state(id)["pid"].as_i64().unwrap();
        let Some(pid) = rustix::process::Pid::from_raw(pid as i32) else {
            return;
        };
        if let Ok(pidfd) = rustix::process::pidfd_open(pid, rustix::process::PidfdFlags::empty()) {
            let mut ended = [rustix::event::PollFd::new(&pidfd, rustix::event::PollFlags::IN)];
            let patience = rustix::time::Timespec::try_from(PATIENCE).unwrap();
            assert_eq!(
                rustix::event::poll(&mut ended, Some(&patience)),
                Ok(1),
                "it does not end"
            );
        }
    }

    /// The whole life of a container, and what it printed.
    pub(crate) fn run(&self) -> Said {
        self.write();
        let mut said = Said::of(&self.command(&["run", "one"]).output().unwrap());
        // What the test compares is what it printed.
        said.err = said.err.trim_end().to_owned();
        self.nothing_left();
        said
    }

    #[track_caller]
    pub(crate) fn nothing_left(&self) {
        let left = fs::read_dir(self.states()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "a container's folder is left");
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        for entry in fs::read_dir(self.states()).into_iter().flatten().flatten() {
            let id = entry.file_name().into_string().unwrap_or_default();
            let _ = self.say(&["delete", "--force", &id]);
        }
    }
}

/// Reads until a text has come.
pub(crate) fn read_until(mut from: impl Read, wanted: &str) -> String {
    let mut all = String::new();
    while !all.contains(wanted) {
        let mut buffer = [0; 4096];
        let read = from.read(&mut buffer).unwrap();
        assert_ne!(read, 0, "closed after {all:?}, before {wanted:?}");
        all.push_str(&String::from_utf8_lossy(&buffer[..read]));
    }
    all
}
