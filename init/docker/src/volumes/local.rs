//! Options of the `local` driver: what a volume is, if it is no folder of the pool.

use std::collections::BTreeMap;

use crate::containers::mounts::{Tmpfs, parse_tmpfs};
use crate::http::{ApiError, Result};
use crate::units;

/// Where what is in a volume lies.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum Backing {
    /// In the pool, of which it may have so many bytes.
    Pool { limit: Option<u64> },
    /// A path in the node's own tree.
    Host { path: String, read_only: bool },
    /// In memory, while some container uses it.
    Tmpfs(Tmpfs),
}

/// Reads the options `type`, `device` and `o`, as `mount(8)` takes them.
pub(crate) fn backing(name: &str, options: &BTreeMap<String, String>) -> Result<Backing> {
    if options.is_empty() {
        return Ok(Backing::Pool { limit: None });
    }
    let get = |key: &str| options.get(key).map(String::as_str).unwrap_or_default();
    let wrong = |why: String| ApiError::bad_request(format!("create {name}: {why}"));
    for key in options.keys() {
        match key.as_str() {
            "type" | "device" | "o" | "size" => {}
            other => return Err(wrong(format!("invalid option: \"{other}\""))),
        }
    }
    if let Some(size) = options.get("size") {
        if options.len() > 1 {
            return Err(wrong(
                "the option \"size\" is for a volume in the pool, without others".to_owned(),
            ));
        }
        let limit = units::bytes(size, 1024).ok_or_else(|| wrong(format!("invalid size: '{size}'")))?;
        return Ok(Backing::Pool { limit: Some(limit) });
    }
    for key in ["type", "device"] {
        if get(key).is_empty() {
            return Err(wrong(format!("missing required option: \"{key}\"")));
        }
    }
    match get("type") {
        // What is in a container's tmpfs is not run; what is in a volume may be.
        "tmpfs" => Ok(Backing::Tmpfs(parse_tmpfs(
            name,
            &format!("exec,suid,{}", get("o")),
        )?)),
        "none" => host(get("device"), get("o")).map_err(wrong),
        other => Err(ApiError::not_implemented(format!(
            "Monobloc does not mount volumes of the type {other:?} yet; tmpfs, and none with the option bind, are what there is."
        ))),
    }
}

/// Bytes that a volume with these options may have of the pool.
pub(crate) fn limit(name: &str, options: &BTreeMap<String, String>) -> Result<Option<u64>> {
    Ok(match backing(name, options)? {
        Backing::Pool { limit } => limit,
        Backing::Host { .. } | Backing::Tmpfs(_) => None,
    })
}

fn host(device: &str, words: &str) -> Result<Backing, String> {
    let (mut bound, mut read_only) = (false, false);
    for word in words.split(',').filter(|word| !word.is_empty()) {
        match word {
            "bind" | "rbind" => bound = true,
            "ro" => read_only = true,
            "rw" => read_only = false,
            other => return Err(format!("invalid option: \"{other}\" of a bind")),
        }
    }
    if !bound {
        return Err("a volume of the type none needs the option bind".to_owned());
    }
    if !device.starts_with('/') {
        return Err(format!(
            "invalid mount path: '{device}' mount path must be absolute"
        ));
    }
    Ok(Backing::Host {
        path: device.to_owned(),
        read_only,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(options: &[(&str, &str)]) -> Result<Backing> {
        let owned = |(key, value): &(&str, &str)| ((*key).to_owned(), (*value).to_owned());
        backing("v1", &options.iter().map(owned).collect())
    }

    #[test]
    fn a_volume_is_in_the_pool_the_nodes_tree_or_memory() {
        assert_eq!(read(&[]).unwrap(), Backing::Pool { limit: None });
        let limit = Some(10 << 20);
        assert_eq!(read(&[("size", "10m")]).unwrap(), Backing::Pool { limit });
        let path = "/srv/x".to_owned();
        assert_eq!(
            read(&[("type", "none"), ("device", "/srv/x"), ("o", "bind,ro")]).unwrap(),
            Backing::Host {
                path,
                read_only: true
            }
        );
        let memory = read(&[("type", "tmpfs"), ("device", "tmpfs"), ("o", "size=1m,uid=7")]).unwrap();
        assert!(matches!(memory, Backing::Tmpfs(tmpfs) if tmpfs.options.len() == 2));
    }

    #[test]
    fn what_cannot_be_a_volume_is_refused() {
        for (options, words) in [
            (&[("odd", "1")][..], "create v1: invalid option: \"odd\""),
            (&[("type", "tmpfs")], "missing required option: \"device\""),
            (&[("o", "bind")], "missing required option: \"type\""),
            (&[("type", "nfs"), ("device", ":/x")], "of the type \"nfs\""),
            (&[("size", "much")], "invalid size: 'much'"),
            (&[("size", "1g"), ("o", "uid=7")], "without others"),
            (&[("type", "none"), ("device", "/x")], "needs the option bind"),
            (
                &[("type", "none"), ("device", "x"), ("o", "bind")],
                "must be absolute",
            ),
            (
                &[("type", "tmpfs"), ("device", "tmpfs"), ("o", "odd")],
                "Invalid tmpfs option",
            ),
        ] {
            let error = read(options).unwrap_err();
            assert!(error.message.contains(words), "{options:?}: {}", error.message);
        }
    }
}
