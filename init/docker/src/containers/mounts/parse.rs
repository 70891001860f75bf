//! From `Binds`, `Mounts` and `VolumesFrom` to [`Wish`]es, with Docker's rules and texts.

use std::collections::BTreeMap;

use super::request::{MountRequest, TmpfsOptions, VolumeOptions};
use super::tmpfs;
use super::{Bind, Kind, Point, Propagation, VolumeUse};
use crate::containers::config::{is_zero, refuse};
use crate::http::{ApiError, Result};
use crate::volumes;

/// A mount that is asked for: where it names a volume that is not there, that is made as it says.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Wish {
    pub(crate) point: Point,
    pub(crate) labels: BTreeMap<String, String>,
    pub(crate) options: BTreeMap<String, String>,
    /// The source of a bind must be there by now.
    pub(crate) must_exist: bool,
}

impl Wish {
    pub(crate) fn of(point: Point) -> Self {
        Self {
            point,
            labels: BTreeMap::new(),
            options: BTreeMap::new(),
            must_exist: false,
        }
    }

    /// A volume without a name.
    pub(crate) fn anonymous(target: &str) -> Result<Self> {
        let wrong =
            |why: String| ApiError::bad_request(format!("invalid volume specification: '{target}': {why}"));
        Ok(Self::of(Point {
            destination: destination(target).map_err(wrong)?,
            mode: String::new(),
            read_only: false,
            kind: Kind::Volume(VolumeUse {
                copy: true,
                anonymous: true,
                ..VolumeUse::default()
            }),
        }))
    }
}

/// As Go's `filepath.Clean` does it for a path that begins with `/`.
pub(crate) fn clean(path: &str) -> String {
    let mut kept: Vec<&str> = Vec::new();
    for name in path.split('/') {
        match name {
            "" | "." => {}
            ".." => drop(kept.pop()),
            name => kept.push(name),
        }
    }
    format!("/{}", kept.join("/"))
}

/// Files of `/proc` that other files may be put over, as the OCI runtime has them.
const PROC_FILES: &[&str] = &[
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// A cleaned path in the container to mount on.
pub(crate) fn destination(target: &str) -> Result<String, String> {
    if target.is_empty() {
        return Err("field Target must not be empty".to_owned());
    }
    if !target.starts_with('/') {
        return Err(format!(
            "invalid mount path: '{target}' mount path must be absolute"
        ));
    }
    let path = clean(target);
    if path == "/" {
        return Err("invalid specification: destination can't be '/'".to_owned());
    }
    if (path == "/proc" || path.starts_with("/proc/")) && !PROC_FILES.contains(&path.as_str()) {
        return Err(format!("\"{path}\" cannot be mounted because it is inside /proc"));
    }
    // The container's own devices and terminals lie there; single ones can be put among them.
    if matches!(path.as_str(), "/dev" | "/dev/pts") {
        return Err(format!("{path} is made by the engine and cannot be mounted over"));
    }
    Ok(path)
}

/// The path of a bind in the node's own tree.
fn source(path: &str) -> Result<String, String> {
    if !path.starts_with('/') {
        return Err(format!(
            "invalid mount path: '{path}' mount path must be absolute"
        ));
    }
    let path = clean(path);
    if matches!(path.as_str(), "/var/run/docker.sock" | "/run/docker.sock") {
        return Err(
            "There is no Docker socket here: the engine answers over TLS only. Leave the mount out, and give the container DOCKER_HOST and a client certificate"
                .to_owned(),
        );
    }
    Ok(path)
}

/// What stands after the last colon of a bind.
#[derive(Debug, Default, PartialEq)]
struct Mode {
    read_only: bool,
    no_copy: bool,
    propagation: Option<Propagation>,
}

fn mode(text: &str) -> Result<Mode> {
    let wrong = || ApiError::bad_request(format!("invalid mode: {text}"));
    let mut mode = Mode::default();
    // Of each group one word at most.
    let mut seen: Vec<&str> = Vec::new();
    for word in text.split(',').filter(|_| !text.is_empty()) {
        let group = match word {
            "ro" | "rw" => {
                mode.read_only = word == "ro";
                "access"
            }
            "z" | "Z" => "label",
            "nocopy" => {
                mode.no_copy = true;
                "copy"
            }
            "consistent" | "cached" | "delegated" | "default" => "consistency",
            _ => {
                mode.propagation = Some(Propagation::parse(word).ok_or_else(wrong)?);
                "propagation"
            }
        };
        if seen.contains(&group) {
            return Err(wrong());
        }
        seen.push(group);
    }
    Ok(mode)
}

/// Not 404, as for a volume alone: docker's command would take the image for what is missing.
pub(super) fn driver(name: &str) -> Result<()> {
    volumes::check_driver(name).map_err(|error| ApiError::bad_request(error.message))
}

/// Whether a mode names a label of a security module that this kernel does not run.
pub(crate) fn has_label(mode: &str) -> bool {
    mode.split(',').any(|word| matches!(word, "z" | "Z"))
}

/// One of `Binds`: `SOURCE:TARGET[:MODE]`, `VOLUME:TARGET[:MODE]` or `TARGET`.
pub(crate) fn bind(raw: &str, volume_driver: &str) -> Result<Wish> {
    let spec = || ApiError::bad_request(format!("invalid volume specification: '{raw}'"));
    let because =
        |why: String| ApiError::bad_request(format!("invalid volume specification: '{raw}': {why}"));
    let (from, target, text) = match raw.split(':').collect::<Vec<_>>().as_slice() {
        ["", ..] => return Err(spec()),
        [target] => ("", *target, ""),
        // A volume without a name takes no mode.
        [_, word] if !word.is_empty() && mode(word).is_ok() => return Err(spec()),
        [from, target] => (*from, *target, ""),
        [from, target, mode] => (*from, *target, *mode),
        _ => return Err(spec()),
    };
    let Mode {
        read_only,
        no_copy,
        propagation,
    } = mode(text)?;
    let destination = destination(target).map_err(because)?;
    let kind = if from.starts_with('/') {
        if no_copy {
            return Err(ApiError::bad_request(format!("invalid mode: {text}")));
        }
        Kind::Bind(Bind {
            source: source(from).map_err(because)?,
            make: true,
            recursive: true,
            propagation: propagation.unwrap_or_default(),
            writable_below: false,
        })
    } else {
        if propagation.is_some() {
            return Err(ApiError::bad_request(format!("invalid mode: {text}")));
        }
        driver(volume_driver)?;
        if !from.is_empty() {
            volumes::check_name(from)?;
        }
        Kind::Volume(VolumeUse {
            name: from.to_owned(),
            anonymous: from.is_empty(),
            copy: !no_copy,
            subpath: String::new(),
        })
    };
    Ok(Wish::of(Point {
        destination,
        mode: text.to_owned(),
        read_only,
        kind,
    }))
}

/// One of `Mounts`.
pub(crate) fn mount(request: &MountRequest) -> Result<Wish> {
    let kind = request.kind.as_str();
    let wrong =
        |why: String| ApiError::bad_request(format!("invalid mount config for type \"{kind}\": {why}"));
    known_fields(request)?;
    if matches!(kind, "image" | "cluster" | "npipe") {
        return Err(refuse("HostConfig.Mounts", &format!(" of the type {kind}")));
    }
    if !matches!(kind, "bind" | "volume" | "tmpfs") {
        return Err(wrong("mount type unknown".to_owned()));
    }
    let extra = |field: &str| wrong(format!("field {field} must not be specified"));
    if !matches!(
        request.consistency.as_str(),
        "" | "default" | "consistent" | "cached" | "delegated"
    ) {
        return Err(wrong(format!("invalid consistency: {}", request.consistency)));
    }
    let destination = destination(&request.target).map_err(wrong)?;
    if kind != "bind" && request.bind_options.is_some() {
        return Err(extra("BindOptions"));
    }
    if kind != "volume" && request.volume_options.is_some() {
        return Err(extra("VolumeOptions"));
    }
    if kind != "tmpfs" && request.tmpfs_options.is_some() {
        return Err(extra("TmpfsOptions"));
    }
    let mut wish = Wish::of(Point {
        destination,
        mode: String::new(),
        read_only: request.read_only,
        kind: Kind::Tmpfs {
            options: String::new(),
        },
    });
    wish.point.kind = match kind {
        "bind" => {
            let (bind, must_exist) = bind_kind(request).map_err(wrong)?;
            wish.must_exist = must_exist;
            Kind::Bind(bind)
        }
        "volume" => {
            let options = request.volume_options.clone().unwrap_or_default();
            let kind = volume_kind(request, &options, wrong)?;
            wish.labels = options.labels;
            wish.options = options.driver_config.unwrap_or_default().options;
            Kind::Volume(kind)
        }
        _ => {
            if !request.source.is_empty() {
                return Err(extra("Source"));
            }
            let options = tmpfs_text(
                &request.tmpfs_options.clone().unwrap_or_default(),
                request.read_only,
            );
            tmpfs::parse(&request.target, &options)?;
            Kind::Tmpfs { options }
        }
    };
    Ok(wish)
}

fn known_fields(request: &MountRequest) -> Result<()> {
    let parts = [
        ("HostConfig.Mounts", Some(&request.rest)),
        ("BindOptions", request.bind_options.as_ref().map(|of| &of.rest)),
        (
            "VolumeOptions",
            request.volume_options.as_ref().map(|of| &of.rest),
        ),
        ("TmpfsOptions", request.tmpfs_options.as_ref().map(|of| &of.rest)),
    ];
    for (part, rest) in parts {
        let set = rest.into_iter().flatten().find(|(_, value)| !is_zero(value));
        if let Some((field, _)) = set {
            return Err(refuse(&format!("{part}.{field}"), " in a mount"));
        }
    }
    Ok(())
}

fn bind_kind(request: &MountRequest) -> Result<(Bind, bool), String> {
    if request.source.is_empty() {
        return Err("field Source must not be empty".to_owned());
    }
    let options = request.bind_options.clone().unwrap_or_default();
    let propagation = match options.propagation.as_str() {
        "" => Propagation::default(),
        text => Propagation::parse(text).ok_or_else(|| format!("invalid propagation mode: {text}"))?,
    };
    let (itself, everything) = (options.read_only_non_recursive, options.read_only_force_recursive);
    if (itself || everything) && !request.read_only {
        return Err("ReadOnlyNonRecursive and ReadOnlyForceRecursive need ReadOnly".to_owned());
    }
    if everything && (itself || options.non_recursive) {
        return Err("ReadOnlyForceRecursive excludes ReadOnlyNonRecursive and NonRecursive".to_owned());
    }
    let bind = Bind {
        source: source(&request.source)?,
        make: options.create_mountpoint,
        recursive: !options.non_recursive,
        propagation,
        writable_below: itself,
    };
    Ok((bind, !options.create_mountpoint))
}

fn volume_kind(
    request: &MountRequest,
    options: &VolumeOptions,
    wrong: impl Fn(String) -> ApiError,
) -> Result<VolumeUse> {
    let anonymous = request.source.is_empty();
    if !anonymous {
        volumes::check_name(&request.source)?;
    }
    if let Some(config) = &options.driver_config {
        driver(&config.name)?;
        volumes::check_options(&request.source, &config.options)?;
    }
    if anonymous && request.read_only {
        return Err(wrong(
            "must not set ReadOnly mode when using anonymous volumes".to_owned(),
        ));
    }
    let subpath = options.subpath.as_str();
    if !subpath.is_empty() {
        if anonymous {
            return Err(wrong(
                "must not set Subpath when using anonymous volumes".to_owned(),
            ));
        }
        if subpath.starts_with('/') || leaves(subpath) {
            return Err(wrong(
                "subpath must be a relative path within the volume".to_owned(),
            ));
        }
    }
    Ok(VolumeUse {
        name: request.source.clone(),
        anonymous,
        copy: !options.no_copy,
        subpath: subpath.to_owned(),
    })
}

/// Whether a relative path leads above where it begins.
fn leaves(path: &str) -> bool {
    let mut depth = 0i32;
    path.split('/').any(|name| {
        match name {
            "" | "." => {}
            ".." => depth -= 1,
            _ => depth += 1,
        }
        depth < 0
    })
}

fn tmpfs_text(options: &TmpfsOptions, read_only: bool) -> String {
    let mut words: Vec<String> = options.options.iter().map(|pair| pair.join("=")).collect();
    if options.size_bytes != 0 {
        words.push(format!("size={}", options.size_bytes));
    }
    if options.mode != 0 {
        words.push(format!("mode={:o}", options.mode));
    }
    if read_only {
        words.push("ro".to_owned());
    }
    words.join(",")
}

/// One of `VolumesFrom`: `CONTAINER[:MODE]`. Gives whether it is read-only, and the mode.
pub(crate) fn volumes_from(raw: &str) -> Result<(&str, bool, &str)> {
    let (container, text) = raw.split_once(':').unwrap_or((raw, ""));
    if container.is_empty() {
        return Err(ApiError::bad_request("malformed volumes-from specification"));
    }
    let wrong = || ApiError::bad_request(format!("invalid mode for volumes-from: {text}"));
    let mode = mode(text).map_err(|_| wrong())?;
    if mode.propagation.is_some() || mode.no_copy {
        return Err(wrong());
    }
    Ok((container, mode.read_only, text))
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn asked(request: Value) -> Result<Wish> {
        mount(&serde_json::from_value(request).unwrap())
    }

    #[test]
    fn a_bind_is_a_path_a_volume_or_nothing_but_its_target() {
        let point = |raw| bind(raw, "").unwrap().point;
        let path = point("/srv/../data/:/x//y:ro,rslave,z");
        assert_eq!((path.destination.as_str(), path.read_only), ("/x/y", true));
        let Kind::Bind(of) = path.kind else {
            panic!("no bind")
        };
        assert_eq!((of.source.as_str(), of.make, of.recursive), ("/data", true, true));
        assert_eq!(of.propagation.text(), "rslave");
        let Kind::Volume(named) = point("data:/x:nocopy").kind else {
            panic!("no volume")
        };
        assert_eq!(
            (named.name.as_str(), named.copy, named.anonymous),
            ("data", false, false)
        );
        let Kind::Volume(none) = point("/x").kind else {
            panic!("no volume")
        };
        assert!(none.anonymous && none.copy);
    }

    #[test]
    fn wrong_binds_are_refused_in_dockers_words() {
        for (raw, words) in [
            ("", "invalid volume specification: ''"),
            (":/x", "invalid volume specification: ':/x'"),
            ("/x:ro", "invalid volume specification: '/x:ro'"),
            ("a:b:c:d", "invalid volume specification: 'a:b:c:d'"),
            ("/a:/x:fast", "invalid mode: fast"),
            ("/a:/x:ro,rw", "invalid mode: ro,rw"),
            ("/a:/x:nocopy", "invalid mode: nocopy"),
            ("a1:/x:rshared", "invalid mode: rshared"),
            ("/a:/", "destination can't be '/'"),
            ("/a:x", "mount path must be absolute"),
            ("/a:/x/../proc/self", "inside /proc"),
            ("/a:/dev", "/dev is made by the engine"),
            ("../a:/x", "includes invalid characters for a local volume name"),
            ("a:/x", "volume name is too short"),
            ("/var/run/docker.sock:/x", "There is no Docker socket here"),
        ] {
            let error = bind(raw, "").unwrap_err();
            assert_eq!(error.status, hyper::StatusCode::BAD_REQUEST, "{raw}");
            assert!(error.message.contains(words), "{raw}: {}", error.message);
        }
        assert!(bind("/a:/proc/uptime", "").is_ok());
        assert!(bind("data:/x", "local").is_ok());
        let error = bind("data:/x", "nfs").unwrap_err();
        assert!(
            error.message.contains("plugin \"nfs\" not found"),
            "{}",
            error.message
        );
    }

    #[test]
    fn every_option_of_a_mount_has_its_place() {
        let wish = asked(json!({
            "Type": "bind", "Source": "/a", "Target": "/x", "ReadOnly": true,
            "BindOptions": {"Propagation": "rshared", "NonRecursive": true, "CreateMountpoint": true,
                "ReadOnlyNonRecursive": true},
        }))
        .unwrap();
        let Kind::Bind(bind) = &wish.point.kind else {
            panic!("no bind")
        };
        assert!(bind.make && !bind.recursive && bind.writable_below && wish.point.read_only);
        assert!(!wish.must_exist);
        assert_eq!(bind.propagation.text(), "rshared");
        let wish = asked(json!({
            "Type": "volume", "Source": "data", "Target": "/x",
            "VolumeOptions": {"NoCopy": true, "Labels": {"a": "b"}, "Subpath": "p/q",
                "DriverConfig": {"Name": "local", "Options": {}}},
        }))
        .unwrap();
        let Kind::Volume(volume) = &wish.point.kind else {
            panic!("no volume")
        };
        assert_eq!((volume.copy, volume.subpath.as_str()), (false, "p/q"));
        assert_eq!(wish.labels.get("a").map(String::as_str), Some("b"));
        let wish = asked(json!({
            "Type": "tmpfs", "Target": "/x", "ReadOnly": true,
            "TmpfsOptions": {"SizeBytes": 1024, "Mode": 448, "Options": [["exec"], ["uid", "7"]]},
        }))
        .unwrap();
        let Kind::Tmpfs { options } = wish.point.kind else {
            panic!("no tmpfs")
        };
        assert_eq!(options, "exec,uid=7,size=1024,mode=700,ro");
    }

    #[test]
    fn wrong_mounts_are_refused_in_dockers_words() {
        for (request, words) in [
            (
                json!({"Type": "bind", "Target": "/x"}),
                "type \"bind\": field Source must not be empty",
            ),
            (
                json!({"Type": "bind", "Source": "a", "Target": "/x"}),
                "mount path must be absolute",
            ),
            (
                json!({"Type": "volume"}),
                "type \"volume\": field Target must not be empty",
            ),
            (json!({"Type": "odd", "Target": "/x"}), "mount type unknown"),
            (
                json!({"Type": "tmpfs", "Source": "/a", "Target": "/x"}),
                "field Source must not be specified",
            ),
            (
                json!({"Type": "volume", "Target": "/x", "BindOptions": {}}),
                "field BindOptions must not be specified",
            ),
            (
                json!({"Type": "volume", "Target": "/x", "ReadOnly": true}),
                "must not set ReadOnly mode when using anonymous volumes",
            ),
            (
                json!({"Type": "volume", "Source": "data", "Target": "/x", "VolumeOptions": {"Subpath": "a/../.."}}),
                "subpath must be a relative path within the volume",
            ),
            (
                json!({"Type": "bind", "Source": "/a", "Target": "/x", "BindOptions": {"Propagation": "up"}}),
                "invalid propagation mode: up",
            ),
        ] {
            let error = asked(request.clone()).unwrap_err();
            assert_eq!(error.status, hyper::StatusCode::BAD_REQUEST, "{request}");
            assert!(error.message.contains(words), "{request}: {}", error.message);
        }
        for request in [
            json!({"Type": "image", "Source": "busybox", "Target": "/x"}),
            json!({"Type": "bind", "Source": "/a", "Target": "/x", "BindOptions": {"New": 1}}),
        ] {
            let error = asked(request).unwrap_err();
            assert_eq!(
                error.status,
                hyper::StatusCode::NOT_IMPLEMENTED,
                "{}",
                error.message
            );
        }
    }

    #[test]
    fn volumes_of_another_container_are_asked_for_with_a_mode() {
        assert_eq!(volumes_from("db").unwrap(), ("db", false, ""));
        assert_eq!(volumes_from("db:ro,z").unwrap(), ("db", true, "ro,z"));
        for bad in ["", ":ro", "db:nocopy", "db:odd", "db:rshared"] {
            assert!(volumes_from(bad).is_err(), "{bad}");
        }
    }
}
