//! A real registry: Debian's `docker-registry` on loopback, unpacked from its package and not
//! installed, filled by skopeo; and a gate before it that does what registries do on bad days.

use std::fs::{self, File};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, Shutdown, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex};
use std::thread;

use serde_json::{Value, json};
use store::Digest;

use super::pool::spawn;

pub(crate) const USER: &str = "ali baba";
pub(crate) const PASSWORD: &str = "open sesame";
/// The password as `htpasswd -B` writes it.
const BCRYPT: &str = "$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";
/// User and password in basic authentication.
const BASIC: &str = "authorization: Basic YWxpIGJhYmE6b3BlbiBzZXNhbWU=";

fn run(command: &mut Command) {
    let command = command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let output = spawn(command).wait_with_output().unwrap();
    assert!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
}

/// Debian's registry, fetched once into the cache that all tests share.
pub(crate) fn program() -> PathBuf {
    let cache = tools::cache();
    fs::create_dir_all(&cache).unwrap();
    let lock = File::create(cache.join("unpacked-docker-registry.lock")).unwrap();
    lock.lock().unwrap();
    let unpacked = cache.join("unpacked-docker-registry");
    if !unpacked.exists() {
        let unfinished = tempfile::tempdir_in(&cache).unwrap();
        tools::update_lists();
        let mut fetch = Command::new("apt-get");
        fetch.args(["-o", "APT::Sandbox::User=root", "download", "docker-registry"]);
        run(fetch.current_dir(unfinished.path()));
        let file = fs::read_dir(unfinished.path())
            .unwrap()
            .next()
            .unwrap()
            .unwrap()
            .path();
        let files = unfinished.path().join("files");
        run(Command::new("dpkg-deb").arg("--extract").args([&file, &files]));
        fs::rename(files, &unpacked).unwrap();
    }
    unpacked.join("usr/bin/docker-registry")
}

/// A running registry.
pub(crate) struct Server {
    process: Child,
    pub(crate) port: u16,
    folder: Arc<tempfile::TempDir>,
}

impl Server {
    pub(crate) fn start() -> Self {
        Self::on(Arc::new(tempfile::tempdir().unwrap()), json!({}))
    }

    /// Another one with the same images, for those who know the password.
    pub(crate) fn with_password(&self) -> Self {
        let users = self.folder.path().join("htpasswd");
        fs::write(&users, format!("{USER}:{BCRYPT}\n")).unwrap();
        Self::on(
            self.folder.clone(),
            json!({"htpasswd": {"realm": "the test registry", "path": users}}),
        )
    }

    fn on(folder: Arc<tempfile::TempDir>, auth: Value) -> Self {
        let mut config = json!({
            "version": "0.1", "log": {"level": "info"},
            "storage": {"filesystem": {"rootdirectory": folder.path().join("storage")}},
            // The log tells which port it became.
            "http": {"addr": "127.0.0.1:0"},
        });
        if auth != json!({}) {
            config["auth"] = auth;
        }
        // JSON is YAML too.
        let file = tempfile::NamedTempFile::new_in(folder.path()).unwrap();
        fs::write(file.path(), config.to_string()).unwrap();
        let mut command = Command::new(program());
        command.arg("serve").arg(file.path());
        command
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = spawn(&mut command);
        let mut log = BufReader::new(process.stderr.take().unwrap())
            .lines()
            .map_while(Result::ok);
        let port = log.find_map(|line| {
            line.split_once("listening on 127.0.0.1:")?
                .1
                .split('"')
                .next()?
                .parse()
                .ok()
        });
        let port = port.expect("the registry did not start");
        thread::spawn(move || log.for_each(drop));
        Self {
            process,
            port,
            folder,
        }
    }

    /// Copies an image of an OCI layout into the registry.
    pub(crate) fn push(&self, layout: &Layout, name: &str) {
        tools::need(&["skopeo"]);
        run(Command::new("skopeo")
            .args([
                "copy",
                "--all",
                "--preserve-digests",
                "--insecure-policy",
                "--quiet",
                "--dest-tls-verify=false",
            ])
            .arg(format!("oci:{}:x", layout.folder.path().display()))
            .arg(format!("docker://127.0.0.1:{}/{name}", self.port)));
    }

    /// Changes a blob in the registry's storage, but not its length.
    pub(crate) fn damage(&self, digest: &Digest) {
        let hex = digest.hex();
        let blobs = self.folder.path().join("storage/docker/registry/v2/blobs/sha256");
        let file = blobs.join(&hex[..2]).join(&hex).join("data");
        let mut content = fs::read(&file).unwrap();
        let middle = content.len() / 2;
        content[middle] ^= 1;
        fs::write(file, content).unwrap();
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// An OCI image layout on disk with one image, called `x`.
pub(crate) struct Layout {
    folder: tempfile::TempDir,
    pub(crate) config: Digest,
    pub(crate) layers: Vec<Digest>,
    /// What `x` names.
    pub(crate) top: Digest,
}

impl Layout {
    /// An image with a layer for each content; every layer holds one file of that content.
    pub(crate) fn new(contents: &[&[u8]]) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let blobs = folder.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).unwrap();
        let add = |content: &[u8]| {
            let digest = Digest::of(content);
            fs::write(blobs.join(digest.hex()), content).unwrap();
            digest
        };
        let tars: Vec<Vec<u8>> = contents
            .iter()
            .enumerate()
            .map(|(n, content)| tar(n, content))
            .collect();
        let layers: Vec<Digest> = tars.iter().map(|tar| add(tar)).collect();
        let config = json!({
            "architecture": "amd64", "os": "linux", "config": {"Cmd": ["sh"]},
            "rootfs": {"type": "layers", "diff_ids": layers},
        });
        let config = config.to_string();
        let config_digest = add(config.as_bytes());
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let described: Vec<Value> = layers
            .iter()
            .zip(&tars)
            .map(|(digest, tar)| {
                json!({"mediaType": "application/vnd.oci.image.layer.v1.tar", "digest": digest, "size": tar.len()})
            })
            .collect();
        let manifest = json!({
            "schemaVersion": 2, "mediaType": kind, "layers": described,
            "config": {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": config_digest, "size": config.len()},
        });
        let manifest = manifest.to_string();
        let top = add(manifest.as_bytes());
        fs::write(
            folder.path().join("oci-layout"),
            r#"{"imageLayoutVersion":"1.0.0"}"#,
        )
        .unwrap();
        let layout = Self {
            folder,
            config: config_digest,
            layers,
            top,
        };
        layout.set_top(kind, manifest.len());
        layout
    }

    fn set_top(&self, kind: &str, size: usize) {
        let index = json!({"schemaVersion": 2, "manifests": [{
            "mediaType": kind, "digest": self.top, "size": size,
            "annotations": {"org.opencontainers.image.ref.name": "x"},
        }]});
        fs::write(self.folder.path().join("index.json"), index.to_string()).unwrap();
    }

    /// The same behind an index that names another platform first.
    pub(crate) fn with_platforms(mut self, ours: &str) -> Self {
        let blobs = self.folder.path().join("blobs/sha256");
        let kind = "application/vnd.oci.image.manifest.v1+json";
        let size = fs::metadata(blobs.join(self.top.hex())).unwrap().len();
        let index = json!({"schemaVersion": 2, "mediaType": "application/vnd.oci.image.index.v1+json", "manifests": [
            {"mediaType": kind, "digest": self.top, "size": size, "platform": {"os": "linux", "architecture": ours}},
        ]});
        let index = index.to_string();
        self.top = Digest::of(index.as_bytes());
        fs::write(blobs.join(self.top.hex()), &index).unwrap();
        self.set_top("application/vnd.oci.image.index.v1+json", index.len());
        self
    }
}

fn tar(number: usize, content: &[u8]) -> Vec<u8> {
    let mut builder = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(content.len() as u64);
    header.set_mode(0o644);
    header.set_cksum();
    builder
        .append_data(&mut header, format!("file{number}"), content)
        .unwrap();
    builder.into_inner().unwrap()
}

/// What a [`Gate`] does with what passes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Manner {
    /// Lets in who shows a token, which it gives for the password.
    Tokens,
    /// Cuts the first so many answers that hold a large blob, in their midst.
    Cuts(usize),
    /// Begins every large blob at the front, whatever is asked, and never ends one; the cut moves to
    /// and fro.
    Stuck,
    /// As `Tokens`, and sends to another port for blobs.
    Elsewhere(u16),
}

/// A server before a registry.
pub(crate) struct Gate {
    pub(crate) port: u16,
    /// Heads of the requests that came.
    pub(crate) heads: Arc<Mutex<Vec<String>>>,
}

/// Answers longer than this are cut.
const CUT_AT: usize = 300 << 10;

impl Gate {
    pub(crate) fn start(registry: &Server, manner: Manner) -> Self {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let gate = Self {
            port: listener.local_addr().unwrap().port(),
            heads: Arc::default(),
        };
        let (heads, own, behind) = (gate.heads.clone(), gate.port, registry.port);
        let cuts = Mutex::new(match manner {
            Manner::Cuts(count) => count,
            _ => 0,
        });
        thread::spawn(move || {
            for client in listener.incoming().flatten() {
                // A client that went away is its own test's concern.
                let _ = pass(client, own, behind, manner, &heads, &cuts);
            }
        });
        gate
    }
}

/// One request and its answer.
fn pass(
    mut client: TcpStream,
    own: u16,
    behind: u16,
    manner: Manner,
    heads: &Mutex<Vec<String>>,
    cuts: &Mutex<usize>,
) -> std::io::Result<()> {
    let mut head = String::new();
    let mut reader = BufReader::new(client.try_clone()?);
    while !head.ends_with("\r\n\r\n") && reader.read_line(&mut head)? > 0 {}
    heads.lock().unwrap().push(head.clone());
    let answer = |status: &str, body: &str| {
        let length = body.len();
        format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n{body}")
    };
    if matches!(manner, Manner::Tokens | Manner::Elsewhere(_)) {
        if head.starts_with("GET /token?") {
            let known = head.contains(BASIC);
            let body = if known {
                r#"{"access_token":"good"}"#
            } else {
                r#"{"token":"poor"}"#
            };
            return client.write_all(answer("200 OK", body).as_bytes());
        }
        if !head.contains("authorization: Bearer good") {
            let challenge = format!(
                "401 Unauthorized\r\nwww-authenticate: Bearer realm=\"http://127.0.0.1:{own}/token\",service=\"a, b\",scope=\"repository:box:pull\""
            );
            let body = r#"{"errors":[{"code":"UNAUTHORIZED","message":"authentication required"}]}"#;
            return client.write_all(answer(&challenge, body).as_bytes());
        }
    }
    if let Manner::Elsewhere(port) = manner
        && head.contains("/blobs/")
    {
        let path = head.split(' ').nth(1).unwrap_or_default();
        let there = format!("307 Temporary Redirect\r\nlocation: http://127.0.0.1:{port}{path}");
        return client.write_all(answer(&there, "").as_bytes());
    }
    let mut registry = TcpStream::connect((Ipv4Addr::LOCALHOST, behind))?;
    if manner == Manner::Stuck {
        head = head.replace("\r\nrange:", "\r\nx-range:");
    }
    registry.write_all(
        head.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n")
            .as_bytes(),
    )?;
    let mut content = Vec::new();
    registry.read_to_end(&mut content)?;
    let mut left = cuts.lock().unwrap();
    if *left > 0 && content.len() > CUT_AT {
        *left -= 1;
        content.truncate(CUT_AT);
    }
    if manner == Manner::Stuck && content.len() > CUT_AT {
        *left += 1;
        content.truncate(CUT_AT - (*left % 2) * (100 << 10));
    }
    client.write_all(&content)?;
    client.shutdown(Shutdown::Both)
}

/// Bytes that do not compress.
pub(crate) fn noise(length: usize) -> Vec<u8> {
    let mut content = vec![0; length];
    File::open(Path::new("/dev/urandom"))
        .unwrap()
        .read_exact(&mut content)
        .unwrap();
    content
}
