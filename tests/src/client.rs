//! The clients of the Docker API: Debian's docker command, unmodified, and bollard.

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::{Child, Stdio};
use std::time::Duration;

use tempfile::TempDir;

use crate::process::{Outcome, bound, run, spawn, words};
use crate::setup::docker_program;
use crate::terminal::Terminal;
use crate::transcript::Transcript;

/// How long one docker command may take in an emulated machine.
const LIMIT: Duration = Duration::from_secs(120);

/// Where an API is, and who asks.
#[derive(Debug, Clone)]
pub struct Endpoint {
    /// Port on this machine's loopback.
    pub port: u16,
    /// Folder with `ca.pem`, `cert.pem` and `key.pem`, as docker wants it.
    pub certificates: PathBuf,
}

/// One person's docker command, with a configuration folder of its own.
pub struct Docker {
    host: String,
    certificates: PathBuf,
    home: TempDir,
    limit: Duration,
}

impl Docker {
    /// # Panics
    /// There is no place for temporary files.
    #[must_use]
    pub fn new(endpoint: &Endpoint) -> Self {
        Self {
            host: format!("tcp://127.0.0.1:{}", endpoint.port),
            certificates: endpoint.certificates.clone(),
            home: tempfile::tempdir().expect("no temporary folder"),
            limit: LIMIT,
        }
    }

    /// With another limit for each command.
    #[must_use]
    pub fn with_limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    fn environment(&self) -> [(&str, &OsStr); 6] {
        [
            ("DOCKER_HOST", self.host.as_ref()),
            ("DOCKER_TLS_VERIFY", "1".as_ref()),
            ("DOCKER_CERT_PATH", self.certificates.as_ref()),
            ("DOCKER_CONFIG", self.home.path().as_ref()),
            ("HOME", self.home.path().as_ref()),
            ("TERM", "dumb".as_ref()),
        ]
    }

    /// Runs `docker LINE` to its end with something on its standard input.
    #[track_caller]
    #[must_use]
    pub fn outcome_of(&self, line: &str, stdin: &[u8]) -> Outcome {
        run(
            self.limit,
            docker_program(),
            words(line),
            &self.environment(),
            stdin,
        )
    }

    /// Runs `docker LINE`, which must succeed; gives what it wrote to standard output.
    #[track_caller]
    pub fn ok(&self, line: &str) -> String {
        self.outcome_of(line, b"").ok()
    }

    /// Runs `docker LINE`, which must fail; gives all that it said.
    #[track_caller]
    pub fn fails(&self, line: &str) -> String {
        self.outcome_of(line, b"").failed()
    }

    /// Starts `docker LINE` on a terminal.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    #[must_use]
    pub fn terminal(&self, line: &str) -> Terminal {
        Terminal::start(docker_program().as_os_str(), words(line), &self.environment())
            .unwrap_or_else(|error| panic!("{error:#}"))
    }

    /// Starts `docker LINE` without input; its output is waited on as it comes.
    ///
    /// # Panics
    /// It cannot be started.
    #[track_caller]
    #[must_use]
    pub fn follow(&self, line: &str) -> Follow {
        let mut command = bound(docker_program());
        command.args(words(line)).envs(self.environment());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::null());
        let mut child = spawn(command).unwrap_or_else(|error| panic!("cannot start docker: {error}"));
        let stdout = child.stdout.take().expect("the output is a pipe");
        Follow {
            output: Transcript::follow(&format!("`docker {line}`"), stdout),
            child,
            limit: self.limit,
        }
    }
}

/// A docker command that runs on, such as `logs -f`; killed when dropped.
pub struct Follow {
    output: Transcript,
    child: Child,
    limit: Duration,
}

impl Follow {
    /// Waits until `text` has been written; gives its line.
    #[track_caller]
    pub fn expect(&self, text: &str) -> String {
        self.output
            .wait_for(text, self.limit)
            .unwrap_or_else(|error| panic!("{error}"))
    }

    /// All that has been written yet.
    #[must_use]
    pub fn so_far(&self) -> String {
        self.output.text()
    }

    /// Waits for the command to end by itself; gives its exit code and its whole output.
    #[track_caller]
    pub fn end(mut self) -> (i32, String) {
        assert!(
            self.output.wait_end(self.limit),
            "the command did not end:\n{}",
            self.output.tail()
        );
        let status = self
            .child
            .wait()
            .unwrap_or_else(|error| panic!("the command is lost: {error}"));
        (status.code().unwrap_or(-1), self.output.text())
    }
}

impl Drop for Follow {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Seconds that bollard waits for an answer.
const BOLLARD_LIMIT: u64 = 120;

/// A bollard client.
///
/// # Panics
/// The certificates cannot be read.
#[must_use]
pub fn bollard(endpoint: &Endpoint) -> bollard::Docker {
    // Whoever is first installs it; all install the same.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = |name: &str| endpoint.certificates.join(name);
    bollard::Docker::connect_with_ssl(
        &format!("tcp://127.0.0.1:{}", endpoint.port),
        &file("key.pem"),
        &file("cert.pem"),
        &file("ca.pem"),
        BOLLARD_LIMIT,
        bollard::API_DEFAULT_VERSION,
    )
    .unwrap_or_else(|error| panic!("bollard cannot use the site's certificates: {error}"))
}
