//! This machine: what it must have for an image to be built and booted, and how it gets it.
//!
//! Everything comes from Debian's packages. As root, or where `sudo` asks for no password, what is
//! missing is installed; otherwise the one command that does it is told and nothing is touched.

pub mod dirs;

use std::env;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde::Serialize;

use crate::command::{self, CommandError};
use crate::progress::Progress;

/// Something that this machine must have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Need {
    /// What proves that it is there.
    pub proof: Proof,
    /// The Debian package that brings it.
    pub package: &'static str,
    /// What it is for.
    pub purpose: &'static str,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Proof {
    /// A program in the search path.
    Program(&'static str),
    /// A file, by its absolute path.
    File(&'static str),
}

impl Proof {
    /// The program's or the file's name.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Program(name) | Self::File(name) => name,
        }
    }
}

pub const QEMU: Need = Need {
    proof: Proof::Program("qemu-system-x86_64"),
    package: "qemu-system-x86",
    purpose: "runs the machine",
};
pub const FIRMWARE: Need = Need {
    proof: Proof::File(crate::qemu::FIRMWARE_CODE),
    package: "ovmf",
    purpose: "boots .efi files (`up --efi`)",
};
/// What the builder calls; on Debian it is always there.
pub const PACKAGE_TOOLS: [Need; 3] = [
    Need {
        proof: Proof::Program("apt-get"),
        package: "apt",
        purpose: "fetches and verifies the kernel",
    },
    Need {
        proof: Proof::Program("apt-cache"),
        package: "apt",
        purpose: "finds the kernel",
    },
    Need {
        proof: Proof::Program("dpkg-deb"),
        package: "dpkg",
        purpose: "unpacks the kernel",
    },
];

/// Why this machine does not get what it must have.
#[derive(Debug, thiserror::Error)]
pub enum HostError {
    #[error(
        "This machine lacks {packages} and has no apt-get to install it with. Monobloc takes QEMU and the kernel from \
         Debian's packages; run it on Debian, or in a container of it"
    )]
    NotDebian { packages: String },
    #[error("This machine lacks {packages}. Run this, and then the same command again:\n\n    {install}\n")]
    NotAllowed { packages: String, install: String },
    #[error("Cannot install {packages} from Debian's packages; check the network and the room on the disk")]
    Failed { packages: String, source: CommandError },
    #[error("{name} is still missing although its package {package} is installed")]
    StillMissing {
        name: &'static str,
        package: &'static str,
    },
}

/// Whether something is there, for a report.
#[derive(Debug, Clone, Serialize)]
pub struct Finding {
    pub name: String,
    pub there: bool,
    /// Whether `up` works without it.
    pub optional: bool,
    /// Where it is, or what to do about it.
    pub note: String,
}

impl Need {
    #[must_use]
    pub fn is_there(&self) -> bool {
        match self.proof {
            Proof::Program(name) => program(name).is_some(),
            Proof::File(path) => Path::new(path).is_file(),
        }
    }

    #[must_use]
    pub fn finding(&self, optional: bool) -> Finding {
        let found = match self.proof {
            Proof::Program(name) => program(name),
            Proof::File(path) => Some(PathBuf::from(path)).filter(|path| path.is_file()),
        };
        Finding {
            name: self.proof.name().to_owned(),
            there: found.is_some(),
            optional,
            note: match found {
                Some(path) => format!("{} ({})", self.purpose, path.display()),
                None => format!("{}; apt-get install {}", self.purpose, self.package),
            },
        }
    }
}

/// Finds a program in the search path.
#[must_use]
pub fn program(name: &str) -> Option<PathBuf> {
    program_in(name, &env::var_os("PATH")?)
}

fn program_in(name: &str, path: &OsStr) -> Option<PathBuf> {
    env::split_paths(path)
        .map(|folder| folder.join(name))
        .find(|file| {
            fs::metadata(file).is_ok_and(|data| data.is_file() && data.permissions().mode() & 0o111 != 0)
        })
}

/// Makes sure that all of this is there.
///
/// # Errors
/// Something is missing and cannot, or may not, be installed; the error says what to do.
pub fn provide(needs: &[Need], progress: &dyn Progress) -> Result<(), HostError> {
    let missing: Vec<&Need> = needs.iter().filter(|need| !need.is_there()).collect();
    let mut packages: Vec<&str> = missing.iter().map(|need| need.package).collect();
    packages.dedup();
    if packages.is_empty() {
        return Ok(());
    }
    let list = packages.join(" ");
    if program("apt-get").is_none() {
        return Err(HostError::NotDebian { packages: list });
    }
    let Some(prefix) = privilege() else {
        return Err(HostError::NotAllowed {
            install: command_line(&packages),
            packages: list,
        });
    };
    let step = progress.step(&format!("install {list}"));
    install(prefix, &packages).map_err(|source| HostError::Failed {
        packages: list,
        source,
    })?;
    step.finish();
    match missing.iter().find(|need| !need.is_there()) {
        Some(need) => Err(HostError::StillMissing {
            name: need.proof.name(),
            package: need.package,
        }),
        None => Ok(()),
    }
}

/// What a person types to install packages.
#[must_use]
pub fn command_line(packages: &[&str]) -> String {
    let sudo = if rustix::process::geteuid().is_root() {
        ""
    } else {
        "sudo "
    };
    let update = if lists_are_there() {
        String::new()
    } else {
        format!("{sudo}apt-get update && ")
    };
    format!(
        "{update}{sudo}apt-get install --yes --no-install-recommends {}",
        packages.join(" ")
    )
}

/// What stands before a command that needs root, if this user may have one run without being asked.
fn privilege() -> Option<&'static [&'static str]> {
    const SUDO: &[&str] = &["sudo", "-n"];
    if rustix::process::geteuid().is_root() {
        return Some(&[]);
    }
    // Exactly what stands before apt-get afterwards.
    let asked = Command::new("sudo")
        .args(["-n", "env", "true"])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .status();
    asked.is_ok_and(|status| status.success()).then_some(SUDO)
}

fn install(prefix: &[&str], packages: &[&str]) -> Result<(), CommandError> {
    let mut updated = false;
    if !lists_are_there() {
        apt_get(prefix, &["update"])?;
        updated = true;
    }
    let arguments = [&["install", "--yes", "--no-install-recommends"], packages].concat();
    match apt_get(prefix, &arguments) {
        // Lists that are too old name versions that have left the archive.
        Err(_) if !updated => {
            apt_get(prefix, &["update"])?;
            apt_get(prefix, &arguments)
        }
        ended => ended,
    }
}

fn apt_get(prefix: &[&str], arguments: &[&str]) -> Result<(), CommandError> {
    // Another apt may be at work; and the variable must be set behind sudo, which drops it.
    let tail = [
        "env",
        "DEBIAN_FRONTEND=noninteractive",
        "apt-get",
        "-o",
        "DPkg::Lock::Timeout=300",
        "--quiet=2",
    ];
    let words = [prefix, &tail, arguments].concat();
    let (program, rest) = words.split_first().unwrap_or((&"apt-get", &[]));
    command::run(Command::new(program).args(rest)).map(|_| ())
}

/// Whether apt has any package lists; a fresh container of Debian has none.
fn lists_are_there() -> bool {
    let listed = command::run(Command::new("apt-get").args([
        "indextargets",
        "--format",
        "$(FILENAME)",
        "Created-By: Packages",
    ]));
    listed.is_ok_and(|output| {
        String::from_utf8_lossy(&output)
            .lines()
            .any(|file| Path::new(file).exists())
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::progress::Silent;

    #[test]
    fn a_program_is_found_only_where_it_can_be_run() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("tool");
        fs::write(&file, "").unwrap();
        let path = env::join_paths(["/nowhere".as_ref(), folder.path()]).unwrap();
        assert_eq!(program_in("tool", &path), None);
        fs::set_permissions(&file, fs::Permissions::from_mode(0o755)).unwrap();
        assert_eq!(program_in("tool", &path), Some(file));
    }

    #[test]
    fn what_is_there_is_not_installed() {
        provide(&PACKAGE_TOOLS, &Silent).unwrap();
    }

    #[test]
    fn the_command_to_run_names_the_packages() {
        assert!(command_line(&["qemu-system-x86", "ovmf"]).ends_with("qemu-system-x86 ovmf"));
    }

    #[test]
    fn a_package_that_does_not_bring_what_it_is_for_is_told() {
        let odd = Need {
            proof: Proof::Program("no-such-program"),
            package: "dpkg",
            purpose: "nothing",
        };
        if !rustix::process::geteuid().is_root() {
            println!("skipped: only root installs packages without being asked");
            return;
        }
        let error = provide(&[odd], &Silent).unwrap_err();
        assert!(matches!(error, HostError::StillMissing { .. }), "{error}");
    }
}
