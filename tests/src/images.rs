//! Container images for the tests, good and bad ones: layers put together entry by entry, written
//! as `docker save` or OCI archives; busybox from Debian's `busybox-static`; and a Debian root made by
//! debootstrap.

use std::fs::{self, File};
use std::io::Write as _;
use std::path::PathBuf;
use std::sync::OnceLock;
use std::time::Duration;

use anyhow::ensure;
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};
use tar::{Builder, EntryType, Header};

use crate::process::run;
use crate::setup::{cached, debian_release, tools};

/// `sha256:…` of some bytes.
#[must_use]
pub fn digest(bytes: &[u8]) -> String {
    let hash = Sha256::digest(bytes);
    hash.iter()
        .fold("sha256:".to_owned(), |text, byte| format!("{text}{byte:02x}"))
}

/// A layer: a tar archive that takes any name, also those that no honest layer has.
#[derive(Debug, Default)]
pub struct Layer {
    tar: Vec<u8>,
}

impl Layer {
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    #[must_use]
    pub fn file(self, name: &str, mode: u32, content: impl AsRef<[u8]>) -> Self {
        self.entry(EntryType::Regular, name, mode, "", content.as_ref())
    }

    #[must_use]
    pub fn folder(self, name: &str) -> Self {
        self.entry(EntryType::Directory, name, 0o755, "", b"")
    }

    #[must_use]
    pub fn symlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Symlink, name, 0o777, target, b"")
    }

    #[must_use]
    pub fn hardlink(self, name: &str, target: &str) -> Self {
        self.entry(EntryType::Link, name, 0o644, target, b"")
    }

    /// Names are written as they are; [`Header::set_path`] would refuse the bad ones.
    fn entry(mut self, kind: EntryType, name: &str, mode: u32, target: &str, content: &[u8]) -> Self {
        let mut header = Header::new_ustar();
        header.set_entry_type(kind);
        header.set_mode(mode);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_size(content.len() as u64);
        let old = header.as_old_mut();
        assert!(
            name.len() < old.name.len() && target.len() < old.linkname.len(),
            "a name is too long: {name}"
        );
        old.name
            .iter_mut()
            .zip(name.bytes())
            .for_each(|(to, byte)| *to = byte);
        old.linkname
            .iter_mut()
            .zip(target.bytes())
            .for_each(|(to, byte)| *to = byte);
        header.set_cksum();
        let mut builder = Builder::new(&mut self.tar);
        builder
            .append(&header, content)
            .expect("memory takes every entry");
        // Dropping the builder would write the archive's end.
        std::mem::forget(builder);
        self
    }

    /// The archive's bytes.
    #[must_use]
    pub fn bytes(&self) -> Vec<u8> {
        // Two blocks of zeros end a tar archive.
        [self.tar.as_slice(), &[0; 1024]].concat()
    }
}

/// An image: its layers from the lowest, and what is in its configuration's `config`.
#[derive(Debug, Clone)]
pub struct Image {
    pub reference: String,
    pub layers: Vec<Vec<u8>>,
    pub config: Value,
}

impl Image {
    #[must_use]
    pub fn new(reference: &str, layers: &[Layer]) -> Self {
        Self {
            reference: reference.to_owned(),
            layers: layers.iter().map(Layer::bytes).collect(),
            config: json!({"Env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"], "Cmd": ["sh"]}),
        }
    }

    /// With other fields in its configuration.
    #[must_use]
    pub fn with(mut self, field: &str, value: Value) -> Self {
        if let Some(config) = self.config.as_object_mut() {
            config.insert(field.to_owned(), value);
        }
        self
    }

    /// The image's configuration.
    #[must_use]
    pub fn config_json(&self) -> Vec<u8> {
        let diff_ids = self.layers.iter().map(|layer| digest(layer)).collect::<Vec<_>>();
        let config = json!({
            "architecture": "amd64", "os": "linux", "created": "2024-01-01T00:00:00Z", "config": self.config,
            "rootfs": {"type": "layers", "diff_ids": diff_ids},
            "history": vec![json!({"created": "2024-01-01T00:00:00Z", "created_by": "tests"}); diff_ids.len()],
        });
        config.to_string().into_bytes()
    }

    /// The image's id.
    #[must_use]
    pub fn id(&self) -> String {
        digest(&self.config_json())
    }

    /// As `docker save` wrote archives until 2023: `manifest.json`, a folder per layer.
    #[must_use]
    pub fn docker_archive(&self) -> Vec<u8> {
        let config = self.config_json();
        let config_name = format!("{}.json", digest(&config).trim_start_matches("sha256:"));
        let names = (0..self.layers.len())
            .map(|number| format!("layer{number}/layer.tar"))
            .collect::<Vec<_>>();
        let manifest = json!([{"Config": config_name, "RepoTags": [self.reference], "Layers": names}]);
        let archive = names
            .iter()
            .zip(&self.layers)
            .fold(Layer::new(), |archive, (name, layer)| {
                archive
                    .folder(name.trim_end_matches("layer.tar"))
                    .file(name, 0o644, layer)
            });
        archive
            .file(&config_name, 0o644, config)
            .file("manifest.json", 0o644, manifest.to_string())
            .bytes()
    }

    /// As an OCI layout in a tar archive, layers gzipped.
    #[must_use]
    pub fn oci_archive(&self) -> Vec<u8> {
        let layers = self.layers.iter().map(|layer| gzip(layer)).collect::<Vec<_>>();
        self.oci_archive_of(&layers)
    }

    /// As [`Self::oci_archive`], with these bytes as the layers' blobs; descriptors are made to match.
    #[must_use]
    pub fn oci_archive_of(&self, layers: &[Vec<u8>]) -> Vec<u8> {
        let config = self.config_json();
        let describe = |kind: &str, bytes: &[u8]| json!({"mediaType": format!("application/vnd.oci.image.{kind}"), "digest": digest(bytes), "size": bytes.len()});
        let manifest = json!({
            "schemaVersion": 2, "mediaType": "application/vnd.oci.image.manifest.v1+json",
            "config": describe("config.v1+json", &config),
            "layers": layers.iter().map(|layer| describe("layer.v1.tar+gzip", layer)).collect::<Vec<_>>(),
        });
        let manifest = manifest.to_string().into_bytes();
        let mut entry = describe("manifest.v1+json", &manifest);
        entry["annotations"] = json!({
            "io.containerd.image.name": self.reference,
            "org.opencontainers.image.ref.name": self.reference,
        });
        let blobs = layers.iter().chain([&config, &manifest]);
        let archive = Layer::new()
            .file("oci-layout", 0o644, r#"{"imageLayoutVersion":"1.0.0"}"#)
            .file(
                "index.json",
                0o644,
                json!({"schemaVersion": 2, "manifests": [entry]}).to_string(),
            )
            .folder("blobs/")
            .folder("blobs/sha256/");
        let archive = blobs.fold(archive, |archive, blob| {
            archive.file(&format!("blobs/{}", digest(blob).replace(':', "/")), 0o644, blob)
        });
        archive.bytes()
    }
}

/// Compressed as `gzip` does.
#[must_use]
pub fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(bytes)
        .and_then(|()| encoder.finish())
        .expect("memory takes all bytes")
}

/// A layer with busybox, its applets and a user.
///
/// # Panics
/// Debian's busybox-static cannot be had.
#[must_use]
pub fn busybox_layer() -> Layer {
    tools();
    let program = ["/bin/busybox", "/usr/bin/busybox"]
        .iter()
        .find_map(|path| fs::read(path).ok());
    let program = program.expect("Debian's busybox-static has no busybox");
    let layer = ["bin/", "etc/", "tmp/", "root/"]
        .iter()
        .fold(Layer::new(), |layer, name| layer.folder(name));
    let layer = layer
        .file("bin/busybox", 0o755, program)
        .file(
            "etc/passwd",
            0o644,
            "root:x:0:0:root:/root:/bin/sh\nnobody:x:65534:65534::/:/bin/false\n",
        )
        .file("etc/group", 0o644, "root:x:0:\nnogroup:x:65534:\n");
    let applets = run(Duration::from_secs(10), "busybox", ["--list"], &[], b"").ok();
    let applets = applets
        .lines()
        .filter(|applet| *applet != "busybox" && !applet.contains('/'));
    applets.fold(layer, |layer, applet| {
        layer.symlink(&format!("bin/{applet}"), "busybox")
    })
}

/// A busybox image under some name.
#[must_use]
pub fn busybox(reference: &str) -> Image {
    static LAYER: OnceLock<Vec<u8>> = OnceLock::new();
    let layer = LAYER.get_or_init(|| busybox_layer().bytes());
    Image {
        layers: vec![layer.clone()],
        ..Image::new(reference, &[])
    }
}

/// Folders of the Debian root whose content no test needs.
const SLIM: &[&str] = &[
    "usr/share/doc",
    "usr/share/man",
    "usr/share/locale",
    "usr/share/info",
    "var/lib/apt/lists",
    "var/cache/apt",
];

/// A tar archive of a minimal Debian, made by debootstrap once and kept.
///
/// # Panics
/// debootstrap fails.
#[must_use]
pub fn debian_rootfs() -> PathBuf {
    tools();
    cached("debian.tar", |unfinished| {
        let (code_name, archive) = debian_release()?;
        let folder = tempfile::tempdir()?;
        let root = folder.path().join("root");
        let limit = Duration::from_secs(600);
        let arguments = [
            "--variant=minbase".as_ref(),
            code_name.as_ref(),
            root.as_os_str(),
            archive.as_ref(),
        ];
        let made = run(limit, "debootstrap", arguments, &[], b"");
        ensure!(made.code == 0, "{made}");
        let excluded = SLIM.iter().map(|folder| format!("--exclude=./{folder}/*"));
        let arguments = ["--numeric-owner", "--sort=name", "-C"]
            .map(String::from)
            .into_iter();
        let places = [
            root.to_string_lossy().into_owned(),
            "-cf".into(),
            unfinished.to_string_lossy().into_owned(),
            ".".into(),
        ];
        let packed = run(limit, "tar", excluded.chain(arguments).chain(places), &[], b"");
        ensure!(packed.code == 0, "{packed}");
        Ok(())
    })
    .unwrap_or_else(|error| panic!("cannot make a Debian root: {error:#}"))
}

/// A `docker save` archive of a minimal Debian as `debian:test`, kept.
///
/// # Panics
/// As [`debian_rootfs`].
#[must_use]
pub fn debian_archive() -> PathBuf {
    let rootfs = debian_rootfs();
    cached("debian-image.tar", |unfinished| {
        let image = Image {
            layers: vec![fs::read(rootfs)?],
            ..Image::new("debian:test", &[])
        };
        let image = image.with("Cmd", json!(["bash"]));
        Ok(File::create(unfinished)?.write_all(&image.docker_archive())?)
    })
    .unwrap_or_else(|error| panic!("cannot pack the Debian root: {error:#}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `tar` lists what was put together.
    #[test]
    fn archives_are_read_by_other_programs() {
        let image = Image::new(
            "a/b:1",
            &[Layer::new().file("../x", 0o644, "y").symlink("l", "/etc")],
        );
        let listed = run(
            Duration::from_secs(10),
            "tar",
            ["-tPf", "-"],
            &[],
            &image.layers[0],
        )
        .ok();
        assert_eq!(listed, "../x\nl");
        let listed = run(
            Duration::from_secs(10),
            "tar",
            ["-tf", "-"],
            &[],
            &image.docker_archive(),
        )
        .ok();
        assert!(listed.ends_with("manifest.json"), "{listed}");
    }

    /// skopeo reads both forms, and finds the same configuration in them.
    #[test]
    fn both_forms_of_an_image_are_the_same_image() {
        let folder = tempfile::tempdir().unwrap();
        let image = busybox("a/b:1");
        for (transport, bytes) in [
            ("docker-archive", image.docker_archive()),
            ("oci-archive", image.oci_archive()),
        ] {
            let file = folder.path().join(transport);
            fs::write(&file, bytes).unwrap();
            let name = format!("{transport}:{}", file.display());
            let config = run(
                Duration::from_secs(30),
                "skopeo",
                ["inspect", "--config", "--raw", &name],
                &[],
                b"",
            )
            .ok();
            assert_eq!(digest(config.as_bytes()), image.id(), "{config}");
        }
    }
}
