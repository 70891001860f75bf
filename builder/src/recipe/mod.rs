//! Recipes: what an image is made of, as a TOML file under `images/`.
//!
//! A recipe is untrusted text. It is read into the types below, which can only hold values that
//! make sense by themselves; [`check`] then looks at what must fit together (a zone names an image
//! of the recipe, and so on). Every mistake is an error with file, line and the form that was
//! expected. Paths in a recipe are relative to the folder of its file.

mod check;
mod error;
#[cfg(test)]
mod tests;
mod values;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use handover::{PoolEncryption, PoolPolicy};
use serde::{Deserialize, Serialize};
use toml::Spanned;

pub use error::RecipeError;
pub use values::{
    AbsolutePath, ByteSize, CommandLine, Cpus, ExposedPort, Mode, ModuleName, Name, PortMapping, Reference,
    RegistryHost, RunAs, SignalName,
};

/// A whole recipe.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Recipe {
    /// Folder that the recipe's relative paths start from; not part of the file.
    #[serde(skip)]
    pub dir: PathBuf,
    /// Names the image and its files.
    pub name: Name,
    #[serde(default)]
    pub description: String,
    pub kernel: Kernel,
    #[serde(default)]
    pub modules: Modules,
    #[serde(default)]
    pub initramfs: Initramfs,
    #[serde(default)]
    pub pool: Pool,
    #[serde(default)]
    pub registry: Registry,
    #[serde(default, rename = "image")]
    pub images: Vec<Image>,
    #[serde(default, rename = "zone")]
    pub zones: Vec<Zone>,
    #[serde(default, rename = "zones")]
    pub zone_rules: ZoneRules,
    #[serde(default)]
    pub qemu: Qemu,
    #[serde(default)]
    pub output: Output,
}

/// `[kernel]`: where the kernel comes from and what it is told.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Kernel {
    pub provider: KernelProvider,
    /// Debian package of the kernel, or one that depends on it.
    pub package: Name,
    pub command_line: CommandLine,
    /// What the kernel's configuration must have; without it the project's own list is taken.
    #[serde(default)]
    pub required_config: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum KernelProvider {
    /// A package of the Debian release that this machine's apt knows.
    Debian,
}

/// `[modules]`: kernel modules by name; what they depend on comes along.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Modules {
    /// Loaded at boot in this order, whether a device asks or not.
    pub always: Vec<Spanned<ModuleName>>,
    /// In the image for the devices that ask for them.
    pub by_device: Vec<Spanned<ModuleName>>,
    /// In the image for what needs them, which loads them then: encryption of disks, for one.
    pub on_demand: Vec<Spanned<ModuleName>>,
    /// Soft dependencies (what a module uses if it is there) that the image goes without.
    pub without: Vec<Spanned<ModuleName>>,
    /// Whether modules keep the signature of who built the kernel. A kernel that was started by
    /// Secure Boot loads no others; any other kernel only spends time on it.
    pub signatures: bool,
}

impl Default for Modules {
    fn default() -> Self {
        Self {
            always: Vec::new(),
            by_device: Vec::new(),
            on_demand: Vec::new(),
            without: Vec::new(),
            signatures: true,
        }
    }
}

/// `[initramfs]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Initramfs {
    #[serde(default)]
    pub compression: Compression,
    /// zstd: 1 to 19, gzip: 1 to 9; without it the strongest that still decompresses as fast.
    #[serde(default)]
    pub level: Option<Spanned<u32>>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    #[default]
    Zstd,
    Gzip,
    None,
}

/// `[pool]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Pool {
    #[serde(default)]
    pub policy: PoolPolicy,
    /// Where the key of disks that are claimed is; without it they are not encrypted.
    #[serde(default)]
    pub encryption: Option<PoolEncryption>,
}

/// `[registry]`
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Registry {
    /// `host` or `host:port` of registries that are spoken to over plain HTTP.
    #[serde(default)]
    pub insecure: Vec<RegistryHost>,
}

/// `[[image]]`: a container image that the appliance has from the start.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Image {
    pub reference: Spanned<Reference>,
    pub source: Source,
    /// Only for images that are made here (`packages` and `rootfs`).
    #[serde(default)]
    pub config: ImageConfig,
    /// Files that are added to an image that is made here.
    #[serde(default, rename = "file")]
    pub files: Vec<ExtraFile>,
    /// Users of an image that is made of packages; root is always there.
    #[serde(default, rename = "user")]
    pub users: Vec<User>,
}

/// What an image is made of; exactly one of these.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Source {
    /// Tar file with an OCI layout in it, plain, gzip or zstd.
    OciArchive(PathBuf),
    /// Folder with an OCI layout.
    OciLayout(PathBuf),
    /// What `docker save` writes, plain, gzip or zstd.
    DockerArchive(PathBuf),
    /// Tar file of a root file system, plain, gzip, zstd or xz.
    Rootfs(PathBuf),
    /// Debian packages, unpacked (their scripts are not run).
    Packages(Packages),
}

#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Packages {
    pub names: Vec<Name>,
    /// Whether what they depend on comes along (the first of alternatives, no recommendations).
    #[serde(default)]
    pub dependencies: bool,
    /// Packages that are left out although something depends on them.
    #[serde(default)]
    pub without: Vec<Name>,
    /// Whether documentation, manual pages and translations are left out.
    #[serde(default = "yes")]
    pub slim: bool,
    /// A busybox in the image that gets a symbolic link for each of its applets.
    #[serde(default)]
    pub applets: Option<AbsolutePath>,
}

/// `[image.config]`: how the image runs, as in a Dockerfile.
#[derive(Debug, Clone, Default, PartialEq, Eq, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ImageConfig {
    #[serde(default)]
    pub entrypoint: Vec<String>,
    #[serde(default)]
    pub cmd: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `80/tcp`
    #[serde(default)]
    pub exposed_ports: Vec<ExposedPort>,
    #[serde(default)]
    pub workdir: Option<AbsolutePath>,
    /// `user`, `uid`, `user:group` or `uid:gid`
    #[serde(default)]
    pub user: Option<RunAs>,
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
    /// `SIGTERM`, `SIGQUIT`, …
    #[serde(default)]
    pub stop_signal: Option<SignalName>,
    #[serde(default)]
    pub volumes: Vec<AbsolutePath>,
}

/// `[[image.file]]`: a file, link or folder; exactly one of `content`, `source`, `link`, `folder`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct ExtraFile {
    pub path: Spanned<AbsolutePath>,
    /// The file's text.
    #[serde(default)]
    pub content: Option<String>,
    /// A file of this machine.
    #[serde(default)]
    pub source: Option<PathBuf>,
    /// The target of a symbolic link.
    #[serde(default)]
    pub link: Option<String>,
    /// Whether it is a folder.
    #[serde(default)]
    pub folder: bool,
    /// Octal, `"0644"`.
    #[serde(default)]
    pub mode: Option<Mode>,
    #[serde(default)]
    pub uid: u32,
    #[serde(default)]
    pub gid: u32,
}

/// `[[image.user]]`: a user and a group of the same name and number.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct User {
    pub name: Name,
    pub uid: u32,
    #[serde(default)]
    pub home: Option<AbsolutePath>,
    #[serde(default)]
    pub shell: Option<AbsolutePath>,
}

/// `[zones]`: what holds for all zones, those that start at boot and those that clients make.
#[derive(Debug, Clone, Copy, Default, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct ZoneRules {
    /// Lets a zone have the machine's own namespaces (`--userns=host`) if it asks for them. Its root is
    /// then the machine's, and no other zone is safe from it.
    pub allow_host_privilege: bool,
}

/// `[[zone]]`: a zone that starts at boot; the fields are those of `docker run`.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case")]
pub struct Zone {
    pub name: Name,
    /// Reference of one of the recipe's images.
    pub image: Spanned<Reference>,
    #[serde(default)]
    pub command: Vec<String>,
    #[serde(default)]
    pub env: BTreeMap<String, String>,
    /// `"80"`, `"8080:80"`, `"53:53/udp"`: port of the appliance, port of the zone.
    #[serde(default)]
    pub ports: Vec<Spanned<PortMapping>>,
    #[serde(default)]
    pub memory: Option<ByteSize>,
    #[serde(default)]
    pub cpus: Option<Cpus>,
    #[serde(default)]
    pub pids: Option<u64>,
}

/// `[qemu]`: what `up` gives the machine unless told otherwise.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Qemu {
    pub memory: ByteSize,
    pub cpus: u32,
    /// Size of the blank disk that the machine gets; none without it.
    pub disk: Option<ByteSize>,
    /// `"8080:80"`: port of this machine, port of the appliance.
    pub forwards: Vec<PortMapping>,
}

impl Default for Qemu {
    fn default() -> Self {
        Self {
            memory: ByteSize(1 << 30),
            cpus: 2,
            disk: None,
            forwards: Vec::new(),
        }
    }
}

/// `[output]`: which files are made; `vmlinuz` and `initrd` always are.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields, rename_all = "kebab-case", default)]
pub struct Output {
    /// One PE file that UEFI firmware starts.
    pub efi: bool,
}

impl Default for Output {
    fn default() -> Self {
        Self { efi: true }
    }
}

fn yes() -> bool {
    true
}

impl Recipe {
    /// Reads and checks a recipe file.
    ///
    /// # Errors
    /// The file cannot be read, or it has a mistake: then with its line and what was expected.
    pub fn load(path: &Path) -> Result<Self, RecipeError> {
        let text = fs::read_to_string(path).map_err(|source| RecipeError::Unreadable {
            path: path.to_owned(),
            source,
        })?;
        let mut recipe = Self::parse(&text, path)?;
        let dir = path
            .parent()
            .filter(|dir| !dir.as_os_str().is_empty())
            .unwrap_or(Path::new("."));
        dir.clone_into(&mut recipe.dir);
        Ok(recipe)
    }

    /// Reads a recipe's text; `path` is for the error's sake.
    ///
    /// # Errors
    /// As [`Recipe::load`].
    pub fn parse(text: &str, path: &Path) -> Result<Self, RecipeError> {
        let recipe: Self = toml::from_str(text).map_err(|error| error::from_toml(path, text, &error))?;
        check::check(&recipe).map_err(|mistake| error::at(path, text, mistake.span, mistake.message))?;
        Ok(recipe)
    }

    /// A path of the recipe, as this machine sees it.
    #[must_use]
    pub fn resolve(&self, path: &Path) -> PathBuf {
        self.dir.join(path)
    }
}
