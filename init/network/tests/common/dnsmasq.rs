//! Debian's dnsmasq as a DHCP server in a namespace.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use super::Namespace;

/// A running server; it ends with the value.
pub(crate) struct Dnsmasq {
    process: Child,
    lines: Mutex<Receiver<String>>,
    seen: Mutex<Vec<String>>,
    _files: tempfile::TempDir,
}

impl Dnsmasq {
    /// Starts it on the link `link` with these options beside the usual ones, and returns when
    /// it serves.
    pub(crate) fn start(namespace: &Namespace, link: &str, options: &[&str]) -> Self {
        let files = tempfile::tempdir().unwrap();
        let leases = files.path().join("leases");
        // The program alone; the service is another package.
        tools::need(&["dnsmasq-base"]);
        let mut command = Command::new("/usr/sbin/dnsmasq");
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
            lines: Mutex::new(lines),
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
            match self.lines.lock().unwrap().recv_timeout(left) {
                Ok(line) => self.seen.lock().unwrap().push(line),
                Err(_) => panic!(
                    "dnsmasq did not say {text:?} but:\n{}",
                    self.seen.lock().unwrap().join("\n")
                ),
            }
        }
    }

    /// All that it said.
    pub(crate) fn log(&self) -> String {
        self.count("");
        self.seen.lock().unwrap().join("\n")
    }

    /// How many lines of the log have this text.
    pub(crate) fn count(&self, text: &str) -> usize {
        let mut seen = self.seen.lock().unwrap();
        seen.extend(self.lines.lock().unwrap().try_iter());
        seen.iter().filter(|line| line.contains(text)).count()
    }
}

impl Drop for Dnsmasq {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}
