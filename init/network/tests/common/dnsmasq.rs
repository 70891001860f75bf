//! Debian's dnsmasq as a DHCP server in a namespace.

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, channel};
use std::sync::{Mutex, OnceLock};
use std::time::{Duration, Instant};

use super::Namespace;

/// A running server; it ends with the value.
pub(crate) struct Dnsmasq {
    process: Child,
    lines: Receiver<String>,
    seen: Mutex<Vec<String>>,
    _files: tempfile::TempDir,
}

impl Dnsmasq {
    /// Starts it on the link `link` with these options beside the usual ones, and returns when
    /// it serves.
    pub(crate) fn start(namespace: &Namespace, link: &str, options: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let leases = files.path().join("leases");
        let mut command = Command::new(binary());
        command
            .args(["--keep-in-foreground", "--conf-file=/dev/null", "--port=0"])
            .args(["--user=root", "--group=root", "--pid-file", "--log-dhcp"])
            .args(["--log-facility=-", "--dhcp-authoritative", "--no-ping"])
            .arg(format!("--interface={link}"))
            .arg(format!("--dhcp-leasefile={}", leases.display()))
            .args(options)
            .stderr(Stdio::piped());
        let mut process = namespace.run(|| command.spawn()).unwrap();
        let (sender, lines) = channel();
        let stderr = BufReader::new(process.stderr.take().unwrap());
        std::thread::spawn(move || {
            for line in stderr.lines().map_while(Result::ok) {
                if sender.send(line).is_err() {
                    return;
                }
            }
        });
        let this = Self {
            process,
            lines,
            seen: Mutex::default(),
            _files: files,
        };
        this.wait_for("DHCP, IP range");
        this
    }

    /// Waits until the log has a line with this text.
    pub(crate) fn wait_for(&self, text: &str) {
        let deadline = Instant::now() + Duration::from_secs(20);
        loop {
            if self.count(text) > 0 {
                return;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.lines.recv_timeout(left) {
                Ok(line) => self.seen.lock().unwrap().push(line),
                Err(_) => panic!(
                    "dnsmasq did not say {text:?} but:\n{}",
                    self.seen.lock().unwrap().join("\n")
                ),
            }
        }
    }

    /// How many lines of the log have this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        let mut seen = self.seen.lock().unwrap();
        seen.extend(self.lines.try_iter());
        seen.iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The installed program, or one unpacked from its package beside the tests.
fn binary() -> &'static Path {
    static BINARY: OnceLock<PathBuf> = OnceLock::new();
    BINARY.get_or_init(|| {
        let installed = Path::new("/usr/sbin/dnsmasq");
        if installed.exists() {
            return installed.to_owned();
        }
        let folder = Path::new(env!("CARGO_TARGET_TMPDIR")).join("dnsmasq");
        let unpacked = folder.join("usr/sbin/dnsmasq");
        if !unpacked.exists() {
            std::fs::create_dir_all(&folder).unwrap();
            let script = "apt-get download dnsmasq-base && dpkg-deb -x dnsmasq-base_*.deb .";
            let output = Command::new("sh")
                .args(["-ec", script])
                .current_dir(&folder)
                .output()
                .unwrap();
            assert!(
                output.status.success(),
                "dnsmasq is needed as a DHCP server; run `apt-get install dnsmasq-base`: {}",
                String::from_utf8_lossy(&output.stderr)
            );
        }
        let version = Command::new(&unpacked).arg("--version").output();
        assert!(
            version.is_ok_and(|output| output.status.success()),
            "dnsmasq lacks libraries; run `apt-get install dnsmasq-base`"
        );
        unpacked
    })
}
