//! What is mounted in the container beside what every zone has.

use zones::{Mount, MountAttributes};

use crate::containers::config::HostConfig;
use crate::http::{ApiError, Result};

pub(super) fn tmpfs(host: &HostConfig) -> Result<Vec<Mount>> {
    host.tmpfs
        .iter()
        .map(|(at, options)| one_tmpfs(at, options))
        .collect()
}

fn one_tmpfs(at: &str, text: &str) -> Result<Mount> {
    let mut options = Vec::new();
    let none = MountAttributes::NO_SUID
        .with(MountAttributes::NO_DEV)
        .with(MountAttributes::NO_EXEC);
    let mut read_only = false;
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match (option.split_once('='), option) {
            (Some((key @ ("size" | "mode" | "uid" | "gid" | "nr_inodes" | "nr_blocks"), value)), _) => {
                options.push((key.to_owned(), value.to_owned()));
            }
            (None, "ro") => read_only = true,
            (None, "rw") => read_only = false,
            // As every tmpfs is mounted here.
            (None, "nosuid" | "nodev" | "noexec" | "private" | "rprivate") => {}
            _ => {
                return Err(ApiError::not_implemented(format!(
                    "Monobloc does not do the option {option:?} of HostConfig.Tmpfs {at} yet; leave it out."
                )));
            }
        }
    }
    Ok(Mount::Tmpfs {
        at: at.to_owned(),
        options,
        attributes: if read_only {
            none.with(MountAttributes::READ_ONLY)
        } else {
            none
        },
    })
}

/// The paths that a client gives go in place of the usual ones, also where it gives none.
pub(super) fn paths(asked_for: Option<&[String]>, usual: &[&str]) -> Vec<String> {
    let usual = || usual.iter().map(|path| (*path).to_owned()).collect();
    asked_for.map_or_else(usual, <[String]>::to_vec)
}
