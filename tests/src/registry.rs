//! A real registry: Debian's `docker-registry` on a free loopback port with storage in a temporary
//! folder. The appliance reaches it at 10.0.2.2, QEMU's name for this machine.

use std::fs;
use std::path::Path;
use std::process::{Child, Stdio};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use anyhow::Context as _;
use tempfile::TempDir;

use crate::images::Image;
use crate::process::{bound, run, spawn};
use crate::setup::{tools, unpacked};
use crate::token::{ISSUER, SERVICE, TokenService};
use crate::transcript::Transcript;

/// The only user that a registry with passwords, or its token service, knows.
pub const USER: &str = "ali baba";
pub const PASSWORD: &str = "open sesame";
/// [`PASSWORD`] as `htpasswd -B` writes it.
const BCRYPT: &str = "$2y$05$abcdefghijklmnopqrstuupx2xBUC4954936wVIjyyPHmUBFu0wCW";
/// This machine as a QEMU guest with user networking sees it.
pub const HOST_OF_GUEST: &str = "10.0.2.2";

const LIMIT: Duration = Duration::from_secs(60);

/// Whom a registry serves.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    Anyone,
    /// [`USER`] by basic authentication.
    Password,
    /// Holders of a token: [`USER`] for all, anyone for `public/…`.
    Token,
}

/// A running registry.
pub struct Registry {
    port: u16,
    process: Child,
    log: Transcript,
    tokens: Option<TokenService>,
    storage: Arc<TempDir>,
    _folder: TempDir,
}

impl Registry {
    /// Starts a registry without images.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn start(access: Access) -> Self {
        Self::on(
            Arc::new(tempfile::tempdir().expect("no temporary folder")),
            access,
        )
    }

    /// Another registry over the same images.
    ///
    /// # Panics
    /// It cannot be started.
    #[must_use]
    pub fn beside(&self, access: Access) -> Self {
        Self::on(Arc::clone(&self.storage), access)
    }

    fn on(storage: Arc<TempDir>, access: Access) -> Self {
        Self::try_on(storage, access).unwrap_or_else(|error| panic!("cannot start a registry: {error:#}"))
    }

    fn try_on(storage: Arc<TempDir>, access: Access) -> anyhow::Result<Self> {
        let folder = tempfile::tempdir()?;
        let tokens = (access == Access::Token).then(TokenService::start).transpose()?;
        let config = folder.path().join("config.yml");
        fs::write(
            &config,
            configuration(folder.path(), storage.path(), access, tokens.as_ref())?,
        )?;
        let mut command = bound(unpacked("docker-registry").join("usr/bin/docker-registry"));
        command
            .arg("serve")
            .arg(&config)
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped());
        let mut process = spawn(command)?;
        let log = Transcript::follow("docker-registry", process.stderr.take().context("no log")?);
        let (_, told) = log.wait_after(0, "listening on 127.0.0.1:", LIMIT)?;
        let (line, _) = log.wait_after(told, "\" ", LIMIT)?;
        let port = line
            .split_once("127.0.0.1:")
            .and_then(|(_, rest)| rest.split('"').next()?.parse().ok());
        let port = port.with_context(|| format!("The registry names no port: {line}"))?;
        Ok(Self {
            port,
            process,
            log,
            tokens,
            storage,
            _folder: folder,
        })
    }

    /// `host:port` as the appliance says it.
    #[must_use]
    pub fn address(&self) -> String {
        format!("{HOST_OF_GUEST}:{}", self.port)
    }

    /// Puts an image into a registry for [`Access::Anyone`], as `name` with its tag, by skopeo.
    /// Gives the digest of its manifest.
    #[track_caller]
    pub fn push(&self, name: &str, image: &Image) -> String {
        tools();
        let folder = tempfile::tempdir().expect("no temporary folder");
        let file = folder.path().join("image.tar");
        fs::write(&file, image.oci_archive()).expect("cannot write the image");
        let digest = folder.path().join("digest");
        let from = format!("oci-archive:{}", file.display());
        let to = format!("docker://127.0.0.1:{}/{name}", self.port);
        let digest_file = digest.to_string_lossy();
        let options = [
            "copy",
            "--insecure-policy",
            "--quiet",
            "--dest-tls-verify=false",
            "--digestfile",
            &digest_file,
        ];
        run(
            LIMIT,
            "skopeo",
            options.into_iter().chain([from.as_str(), &to]),
            &[],
            b"",
        )
        .ok();
        fs::read_to_string(digest)
            .expect("skopeo wrote no digest")
            .trim()
            .to_owned()
    }

    /// The file that holds a blob, to be damaged.
    #[must_use]
    pub fn blob_file(&self, digest: &str) -> std::path::PathBuf {
        let hex = digest.trim_start_matches("sha256:");
        let start = hex.get(..2).unwrap_or_default();
        self.storage
            .path()
            .join("docker/registry/v2/blobs/sha256")
            .join(start)
            .join(hex)
            .join("data")
    }

    /// The registry's log.
    #[must_use]
    pub fn log(&self) -> &Transcript {
        &self.log
    }

    /// What the token service was asked, and by which authenticated user.
    #[must_use]
    pub fn tokens_asked(&self) -> Vec<(String, Option<String>)> {
        let asked = self
            .tokens
            .as_ref()
            .map(|tokens| Arc::clone(&tokens.asked))
            .unwrap_or_else(|| Arc::new(Mutex::default()));
        asked.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Drop for Registry {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The configuration file (YAML, of which JSON is a part).
fn configuration(
    folder: &Path,
    storage: &Path,
    access: Access,
    tokens: Option<&TokenService>,
) -> anyhow::Result<String> {
    let mut config = serde_json::json!({
        "version": "0.1",
        "log": {"level": "info"},
        "storage": {"filesystem": {"rootdirectory": storage}, "delete": {"enabled": true}},
        // The log tells which port it became.
        "http": {"addr": "127.0.0.1:0"},
    });
    if access == Access::Password {
        let users = folder.join("htpasswd");
        fs::write(&users, format!("{USER}:{BCRYPT}\n"))?;
        config["auth"] = serde_json::json!({"htpasswd": {"realm": "the test registry", "path": users}});
    }
    if let Some(tokens) = tokens {
        let certificate = folder.join("token.pem");
        fs::write(&certificate, &tokens.certificate)?;
        let realm = format!("http://{HOST_OF_GUEST}:{}/token", tokens.port);
        let token = serde_json::json!({"realm": realm, "service": SERVICE, "issuer": ISSUER, "rootcertbundle": certificate});
        config["auth"] = serde_json::json!({"token": token});
    }
    Ok(config.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::host::get_with;
    use crate::images::busybox;

    fn inspect(registry: &Registry, name: &str, credentials: &[&str]) -> crate::Outcome {
        let name = format!("docker://127.0.0.1:{}/{name}", registry.port);
        let options = ["inspect", "--tls-verify=false"]
            .into_iter()
            .chain(credentials.iter().copied());
        run(LIMIT, "skopeo", options.chain([name.as_str()]), &[], b"")
    }

    #[test]
    fn what_was_pushed_is_there_for_those_who_may_see_it() {
        let open = Registry::start(Access::Anyone);
        let digest = open.push("box:1", &busybox("box:1"));
        assert!(inspect(&open, "box:1", &[]).ok().contains(&digest));
        assert!(open.blob_file(&digest).exists());
        let closed = open.beside(Access::Password);
        inspect(&closed, "box:1", &[]).failed();
        inspect(&closed, "box:1", &["--creds", &format!("{USER}:{PASSWORD}")]).ok();
    }

    #[test]
    fn tokens_open_public_images_to_anyone_and_others_to_the_user() {
        use base64::Engine as _;

        let open = Registry::start(Access::Anyone);
        let closed = open.beside(Access::Token);
        let tokens = closed.tokens.as_ref().unwrap().port;
        let basic = base64::prelude::BASE64_STANDARD.encode(format!("{USER}:{PASSWORD}"));
        for (name, credentials, opens) in [
            ("public/box", String::new(), true),
            ("private/box", String::new(), false),
            ("private/box", format!("Authorization: Basic {basic}\r\n"), true),
        ] {
            open.push(&format!("{name}:1"), &busybox("box:1"));
            let answer = get_with(
                tokens,
                &format!("/token?service=x&scope=repository:{name}:pull"),
                &credentials,
            )
            .unwrap();
            let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
            let bearer = format!(
                "Authorization: Bearer {}\r\nAccept: */*\r\n",
                answer["token"].as_str().unwrap()
            );
            let tags = get_with(closed.port, &format!("/v2/{name}/tags/list"), &bearer);
            assert_eq!(tags.is_ok(), opens, "{name}: {tags:?}\n{}", closed.log.tail());
        }
    }
}
