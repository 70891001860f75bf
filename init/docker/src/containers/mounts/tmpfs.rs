//! Options of a tmpfs, as `--tmpfs` and mounts of the type tmpfs take them.

use zones::MountAttributes;

use crate::http::{ApiError, Result};

/// A tmpfs to be made: options of the file system (a flag has no value) and attributes of its mount.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Tmpfs {
    pub(crate) options: Vec<(String, String)>,
    pub(crate) attributes: MountAttributes,
    /// Devices are asked for, which the kernel opens on no tmpfs of a user namespace.
    pub(crate) dev: bool,
}

/// Docker's own, unless other options come.
const DEFAULT: MountAttributes = MountAttributes::NO_SUID
    .with(MountAttributes::NO_DEV)
    .with(MountAttributes::NO_EXEC);

/// Reads options such as `size=64m,exec`; of two that contradict each other the later one counts.
pub(crate) fn parse(at: &str, text: &str) -> Result<Tmpfs> {
    let mut tmpfs = Tmpfs {
        options: Vec::new(),
        attributes: DEFAULT,
        dev: false,
    };
    for option in text.split(',').filter(|option| !option.is_empty()) {
        match option.split_once('=') {
            Some((key, value)) => {
                if !is_value(key, value) {
                    return Err(invalid(option));
                }
                tmpfs.options.retain(|(known, _)| known != key);
                tmpfs.options.push((key.to_owned(), value.to_owned()));
            }
            None => flag(&mut tmpfs, at, option)?,
        }
    }
    Ok(tmpfs)
}

fn invalid(option: &str) -> ApiError {
    ApiError::bad_request(format!("Invalid tmpfs option {option:?}"))
}

fn is_value(key: &str, value: &str) -> bool {
    let digits = |text: &str| !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    match key {
        "size" | "nr_inodes" | "nr_blocks" => {
            let suffixes: &[char] = match key {
                "size" => &['k', 'm', 'g', 't', 'K', 'M', 'G', 'T', '%'],
                _ => &['k', 'm', 'g', 't', 'K', 'M', 'G', 'T'],
            };
            digits(value.strip_suffix(suffixes).unwrap_or(value))
        }
        "mode" => digits(value) && u32::from_str_radix(value, 8).is_ok_and(|mode| mode <= 0o7777),
        "uid" | "gid" => digits(value) && value.parse::<u32>().is_ok(),
        _ => false,
    }
}

fn flag(tmpfs: &mut Tmpfs, at: &str, option: &str) -> Result<()> {
    const TIMES: MountAttributes = MountAttributes::NO_ACCESS_TIME.with(MountAttributes::STRICT_ACCESS_TIME);
    let now = tmpfs.attributes;
    let set = |attribute| now.with(attribute);
    let clear = |attribute| now.without(attribute);
    tmpfs.attributes = match option {
        "ro" => set(MountAttributes::READ_ONLY),
        "rw" => clear(MountAttributes::READ_ONLY),
        "exec" => clear(MountAttributes::NO_EXEC),
        "noexec" => set(MountAttributes::NO_EXEC),
        "suid" => clear(MountAttributes::NO_SUID),
        "nosuid" => set(MountAttributes::NO_SUID),
        "dev" => clear(MountAttributes::NO_DEV),
        "nodev" => set(MountAttributes::NO_DEV),
        "noatime" => clear(TIMES).with(MountAttributes::NO_ACCESS_TIME),
        "strictatime" => clear(TIMES).with(MountAttributes::STRICT_ACCESS_TIME),
        "atime" | "relatime" => clear(TIMES),
        "nodiratime" => set(MountAttributes::NO_FOLDER_ACCESS_TIME),
        "diratime" => clear(MountAttributes::NO_FOLDER_ACCESS_TIME),
        // Every tmpfs is so: nobody else has a copy of it, and nothing of it is ever behind.
        "private" | "rprivate" | "sync" | "dirsync" | "async" => now,
        "shared" | "rshared" | "slave" | "rslave" | "unbindable" | "runbindable" => {
            return Err(ApiError::not_implemented(format!(
                "Monobloc does not do the option {option:?} of the tmpfs at {at} yet: nobody else sees it; leave it out."
            )));
        }
        _ => return Err(invalid(option)),
    };
    tmpfs.dev = tmpfs.attributes.without(MountAttributes::NO_DEV) == tmpfs.attributes;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_go_to_the_file_system_or_to_its_mount() {
        let tmpfs = parse("/x", "size=1m,mode=750,exec,ro,size=2m,uid=33").unwrap();
        let options: Vec<String> = tmpfs
            .options
            .iter()
            .map(|(key, value)| format!("{key}={value}"))
            .collect();
        assert_eq!(options, ["mode=750", "size=2m", "uid=33"]);
        let wanted = MountAttributes::NO_SUID
            .with(MountAttributes::NO_DEV)
            .with(MountAttributes::READ_ONLY);
        assert_eq!(tmpfs.attributes, wanted);
        assert!(!tmpfs.dev && parse("/x", "dev").unwrap().dev && !parse("/x", "dev,nodev").unwrap().dev);
        assert_eq!(parse("/x", "").unwrap().attributes, DEFAULT);
        let times = parse("/x", "noatime,strictatime").unwrap().attributes;
        assert_eq!(times, DEFAULT.with(MountAttributes::STRICT_ACCESS_TIME));
    }

    #[test]
    fn what_is_no_option_is_refused() {
        for bad in [
            "size=",
            "size=x",
            "mode=9",
            "mode=77777",
            "uid=root",
            "colour=red",
            "remount",
            "bind",
            "size",
            "exec=1",
        ] {
            let error = parse("/x", bad).unwrap_err();
            assert_eq!(error.message, format!("Invalid tmpfs option {bad:?}"));
        }
        assert_eq!(
            parse("/x", "rshared").unwrap_err().status,
            hyper::StatusCode::NOT_IMPLEMENTED
        );
    }
}
