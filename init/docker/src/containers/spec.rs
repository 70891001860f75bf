//! From a container's record to what [`zones`] runs.
//!
//! Each part is a function of its own that the create request calls too, so that what cannot be done
//! is refused then, not at the start.

use std::net::Ipv4Addr;

use handover::Protocol;
use network::Port;
use zones::{
    Capability, CapabilitySet, Limits, MASKED_PATHS, Mount, MountAttributes, ProcessSpec, READ_ONLY_PATHS,
    ResourceLimit, Seccomp, TerminalSize, ZoneSpec,
};

use super::config::{HostConfig, Wanted};
use super::container::Record;
use crate::http::{ApiError, Result};
use crate::users::Found;

pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's size of `/dev/shm`.
const DEFAULT_SHM: u64 = 64 << 20;
/// Period that a quota is a part of where none is said, in microseconds.
const DEFAULT_PERIOD: i64 = 100_000;

/// Checks everything that the functions below would refuse at the start.
pub(crate) fn check(wanted: &Wanted) -> Result<()> {
    capabilities(&wanted.host)?;
    security(&wanted.host)?;
    rlimits(&wanted.host)?;
    tmpfs(&wanted.host)?;
    ports(wanted)?;
    for entry in &wanted.host.extra_hosts {
        extra_host(entry)?;
    }
    if let Some(signal) = &wanted.config.stop_signal {
        parse_signal(signal)?;
    }
    Ok(())
}

/// What is known only at the start.
pub(crate) struct Circumstances {
    pub(crate) user: Found,
    pub(crate) address: Option<Ipv4Addr>,
    /// The host's `/etc/resolv.conf`.
    pub(crate) resolv_conf: Vec<u8>,
}

pub(crate) fn zone(record: &Record, now: Circumstances) -> Result<ZoneSpec> {
    let (config, host) = (&record.config, &record.host);
    let hostname = hostname(record);
    let (seccomp, no_new_privileges) = security(host)?;
    let terminal = config.tty.then(|| match host.console_size.as_slice() {
        [rows, columns] if *rows > 0 && *columns > 0 => TerminalSize {
            rows: *rows,
            columns: *columns,
        },
        _ => TerminalSize::default(),
    });
    let files = vec![
        ("/etc/hosts".to_owned(), hosts(record, &hostname, now.address)?),
        ("/etc/hostname".to_owned(), format!("{hostname}\n").into_bytes()),
        ("/etc/resolv.conf".to_owned(), resolv_conf(host, now.resolv_conf)),
    ];
    Ok(ZoneSpec {
        id: record.id.clone(),
        process: ProcessSpec {
            args: record.command(),
            env: environment(&config.env, &hostname, config.tty, now.user.home.as_deref()),
            cwd: directory(&config.working_dir),
            user: now.user.user,
            terminal,
            stdin: config.open_stdin,
            capabilities: capabilities(host)?,
            seccomp,
            no_new_privileges,
            rlimits: rlimits(host)?,
        },
        hostname,
        domainname: Some(config.domainname.clone()).filter(|name| !name.is_empty()),
        ids: record.ids(),
        limits: limits(host),
        read_only_root: host.readonly_rootfs,
        mounts: tmpfs(host)?,
        masked_paths: paths(host.masked_paths.as_deref(), MASKED_PATHS),
        read_only_paths: paths(host.readonly_paths.as_deref(), READ_ONLY_PATHS),
        devices: Vec::new(),
        files,
        shm_size: positive(host.shm_size).unwrap_or(DEFAULT_SHM),
        sysctls: host.sysctls.clone().into_iter().collect(),
    })
}

/// The paths that a client gives go in place of the usual ones, also where it gives none.
fn paths(asked_for: Option<&[String]>, usual: &[&str]) -> Vec<String> {
    let usual = || usual.iter().map(|path| (*path).to_owned()).collect();
    asked_for.map_or_else(usual, <[String]>::to_vec)
}

/// A process that is added to the container.
pub(crate) struct Added<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) user: Found,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) stdin: bool,
}

pub(crate) fn added(record: &Record, added: Added<'_>) -> Result<ProcessSpec> {
    let (seccomp, no_new_privileges) = security(&record.host)?;
    let mut env = record.config.env.clone();
    merge_env(&mut env, added.env);
    let cwd = if added.cwd.is_empty() {
        &record.config.working_dir
    } else {
        added.cwd
    };
    let tty = added.terminal.is_some();
    Ok(ProcessSpec {
        args: added.args.to_vec(),
        env: environment(&env, &hostname(record), tty, added.user.home.as_deref()),
        cwd: directory(cwd),
        user: added.user.user,
        terminal: added.terminal,
        stdin: added.stdin,
        capabilities: capabilities(&record.host)?,
        seccomp,
        no_new_privileges,
        rlimits: rlimits(&record.host)?,
    })
}

fn directory(path: &str) -> String {
    if path.is_empty() {
        "/".to_owned()
    } else {
        path.to_owned()
    }
}

pub(crate) fn hostname(record: &Record) -> String {
    match record.config.hostname.as_str() {
        "" => record.id.chars().take(12).collect(),
        name => name.to_owned(),
    }
}

fn positive(number: i64) -> Option<u64> {
    u64::try_from(number).ok().filter(|number| *number > 0)
}

/// Docker's order: what the engine sets comes first, what was asked for goes over it.
fn environment(own: &[String], hostname: &str, tty: bool, home: Option<&str>) -> Vec<String> {
    let mut env = vec![DEFAULT_PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if tty {
        env.push("TERM=xterm".to_owned());
    }
    merge_env(&mut env, own);
    if !env.iter().any(|entry| entry.starts_with("HOME=")) {
        env.push(format!("HOME={}", home.unwrap_or("/")));
    }
    env
}

/// Puts `over` over `env`; an entry without `=` takes the variable away.
pub(crate) fn merge_env(env: &mut Vec<String>, over: &[String]) {
    for entry in over {
        let (name, _) = entry.split_once('=').unwrap_or((entry, ""));
        let same = |known: &String| known.split('=').next() == Some(name);
        match (entry.contains('='), env.iter().position(same)) {
            (true, Some(at)) => env[at] = entry.clone(),
            (true, None) => env.push(entry.clone()),
            (false, Some(at)) => drop(env.remove(at)),
            (false, None) => {}
        }
    }
}

fn capabilities(host: &HostConfig) -> Result<CapabilitySet> {
    let parse = |name: &String| {
        Capability::parse(name).ok_or_else(|| {
            ApiError::bad_request(format!("invalid capability: unknown capability: \"{name}\""))
        })
    };
    let all = |names: &[String]| names.iter().any(|name| name.eq_ignore_ascii_case("ALL"));
    let (add, drop) = (
        host.cap_add.as_deref().unwrap_or_default(),
        host.cap_drop.as_deref().unwrap_or_default(),
    );
    let mut set = match (all(add), all(drop)) {
        (true, _) => CapabilitySet::all(),
        (false, true) => CapabilitySet::EMPTY,
        (false, false) => CapabilitySet::DEFAULT,
    };
    let named = |names: &[String]| -> Result<Vec<Capability>> {
        let one = |name: &&String| !name.eq_ignore_ascii_case("ALL");
        names.iter().filter(one).map(parse).collect()
    };
    // Named ones go before ALL of the other list; of two that name the same, adding wins.
    for capability in named(drop)? {
        set = set.without(capability);
    }
    for capability in named(add)? {
        set = set.with(capability);
    }
    Ok(set)
}

fn security(host: &HostConfig) -> Result<(Seccomp, bool)> {
    let (mut seccomp, mut no_new_privileges) = (Seccomp::Default, false);
    for option in &host.security_opt {
        match option.as_str() {
            "no-new-privileges" | "no-new-privileges:true" | "no-new-privileges=true" => {
                no_new_privileges = true
            }
            "no-new-privileges:false" | "no-new-privileges=false" => no_new_privileges = false,
            "seccomp=unconfined" | "seccomp:unconfined" => seccomp = Seccomp::Unconfined,
            "seccomp=builtin" => seccomp = Seccomp::Default,
            // There are no such modules here.
            "apparmor=unconfined" | "apparmor:unconfined" | "label=disable" | "label:disable" => {}
            other => {
                return Err(ApiError::not_implemented(format!(
                    "Monobloc does not do HostConfig.SecurityOpt {other:?} yet; leave it out."
                )));
            }
        }
    }
    Ok((seccomp, no_new_privileges))
}

/// Names of `ulimit`, with their numbers.
const RLIMITS: &[(&str, u32)] = &[
    ("cpu", 0),
    ("fsize", 1),
    ("data", 2),
    ("stack", 3),
    ("core", 4),
    ("rss", 5),
    ("nproc", 6),
    ("nofile", 7),
    ("memlock", 8),
    ("as", 9),
    ("locks", 10),
    ("sigpending", 11),
    ("msgqueue", 12),
    ("nice", 13),
    ("rtprio", 14),
    ("rttime", 15),
];

fn rlimits(host: &HostConfig) -> Result<Vec<ResourceLimit>> {
    let one = |limit: &super::config::Ulimit| {
        let known = RLIMITS.iter().find(|(name, _)| *name == limit.name);
        let (_, resource) =
            known.ok_or_else(|| ApiError::bad_request(format!("invalid ulimit type: {}", limit.name)))?;
        // -1 is no limit.
        let amount = |value: i64| u64::try_from(value).unwrap_or(u64::MAX);
        let (soft, hard) = (amount(limit.soft), amount(limit.hard));
        if soft > hard {
            return Err(ApiError::bad_request(format!(
                "ulimit soft limit must be less than or equal to hard limit: {soft} > {hard}"
            )));
        }
        Ok(ResourceLimit {
            resource: *resource,
            soft,
            hard,
        })
    };
    host.ulimits.iter().map(one).collect()
}

fn limits(host: &HostConfig) -> Limits {
    let memory = positive(host.memory);
    // Memory and swap together; unset is twice the memory, -1 is no limit.
    let swap = match (memory, host.memory_swap) {
        (Some(memory), 0) => Some(memory),
        (Some(_), ..=-1) => Some(u64::MAX),
        (Some(memory), together) => positive(together).map(|together| together.saturating_sub(memory)),
        (None, _) => None,
    };
    let quota = positive(host.cpu_quota).map(|quota| {
        let period = positive(host.cpu_period).unwrap_or(DEFAULT_PERIOD as u64);
        quota.saturating_mul(1_000_000_000) / period
    });
    Limits {
        memory,
        swap,
        nano_cpus: positive(host.nano_cpus).or(quota),
        cpu_shares: positive(host.cpu_shares),
        pids: host.pids_limit.and_then(positive),
    }
}

fn tmpfs(host: &HostConfig) -> Result<Vec<Mount>> {
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

/// The ports to publish.
pub(crate) fn ports(wanted: &Wanted) -> Result<Vec<Port>> {
    let mut ports = Vec::new();
    let empty = [super::config::PortBinding::default()];
    for (key, bindings) in &wanted.host.port_bindings {
        let (zone_port, protocol) = port(key)?;
        let bindings = bindings
            .as_deref()
            .filter(|list| !list.is_empty())
            .unwrap_or(&empty);
        for binding in bindings {
            let bad = |what: &str, value: &str| {
                ApiError::bad_request(format!(
                    "Port binding of {key}: {value:?} is no {what}; leave it out or correct it"
                ))
            };
            let host_ip = match binding.host_ip.as_str() {
                "" | "0.0.0.0" => None,
                // All addresses: those of IPv6 are none here.
                "::" => continue,
                address => Some(address.parse().map_err(|_| bad("IPv4 address", address))?),
            };
            let host_port = match binding.host_port.as_str() {
                "" | "0" => None,
                number => Some(number.parse().map_err(|_| bad("single port", number))?),
            };
            ports.push(Port {
                protocol,
                host_ip,
                host_port,
                zone_port,
            });
        }
    }
    if wanted.host.publish_all_ports {
        for key in wanted.config.exposed_ports.keys() {
            let (zone_port, protocol) = port(key)?;
            if !ports
                .iter()
                .any(|port| (port.zone_port, port.protocol) == (zone_port, protocol))
            {
                ports.push(Port {
                    protocol,
                    host_ip: None,
                    host_port: None,
                    zone_port,
                });
            }
        }
    }
    Ok(ports)
}

/// Reads `80/tcp`, `53/udp` or `80`.
fn port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        other => {
            return Err(ApiError::not_implemented(format!(
                "Monobloc does not publish {other} ports ({text}); tcp and udp are what there is."
            )));
        }
    };
    match number.parse() {
        Ok(number) if number > 0 => Ok((number, protocol)),
        _ => Err(ApiError::bad_request(format!(
            "invalid port specification: {text:?}"
        ))),
    }
}

/// Reads a signal by name or number.
pub(crate) fn parse_signal(text: &str) -> Result<i32> {
    const NAMES: &[&str] = &[
        "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
        "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    /// The real-time signals; below them are the C library's own two.
    const FIRST_REAL_TIME: i32 = 34;
    const LAST: i32 = 64;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().position(|known| !known.is_empty() && *known == name);
    // `RTMIN`, `RTMIN+3`, `RTMAX-2`, `RTMAX`.
    let from_end = |end: &str, sign: char| match name.strip_prefix(end)? {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let real_time = from_end("RTMIN", '+')
        .map(|offset| FIRST_REAL_TIME + offset)
        .or_else(|| from_end("RTMAX", '-').map(|offset| LAST - offset))
        .filter(|number| *number >= FIRST_REAL_TIME);
    let number = known
        .and_then(|at| i32::try_from(at).ok())
        .or(real_time)
        .or_else(|| text.parse().ok());
    number
        .filter(|number| (1..=LAST).contains(number))
        .ok_or_else(|| ApiError::bad_request(format!("Invalid signal: {text}")))
}

fn extra_host(entry: &str) -> Result<(&str, &str)> {
    let parts = entry.split_once(['=', ':']);
    match parts {
        Some((name, address)) if !name.is_empty() && address.parse::<std::net::IpAddr>().is_ok() => {
            Ok((address, name))
        }
        _ => Err(ApiError::bad_request(format!(
            "invalid extra host {entry:?}: expected NAME:ADDRESS"
        ))),
    }
}

fn hosts(record: &Record, hostname: &str, address: Option<Ipv4Addr>) -> Result<Vec<u8>> {
    let mut text = "127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n".to_owned();
    for entry in &record.host.extra_hosts {
        let (address, name) = extra_host(entry)?;
        text.push_str(&format!("{address}\t{name}\n"));
    }
    if let Some(address) = address {
        match record.config.domainname.as_str() {
            "" => text.push_str(&format!("{address}\t{hostname}\n")),
            domain => text.push_str(&format!("{address}\t{hostname}.{domain} {hostname}\n")),
        }
    }
    Ok(text.into_bytes())
}

fn resolv_conf(host: &HostConfig, of_host: Vec<u8>) -> Vec<u8> {
    let line = |keyword: &str, words: &[String]| match words {
        [] => String::new(),
        words => format!("{keyword} {}\n", words.join(" ")),
    };
    if host.dns.is_empty() && host.dns_search.is_empty() && host.dns_options.is_empty() {
        return of_host;
    }
    let of_host = String::from_utf8_lossy(&of_host);
    let kept = |keyword: &str, replaced: bool| -> String {
        let lines = of_host
            .lines()
            .filter(|line| !replaced && line.starts_with(keyword));
        lines.map(|line| format!("{line}\n")).collect()
    };
    let servers: String = host
        .dns
        .iter()
        .map(|server| format!("nameserver {server}\n"))
        .collect();
    [
        kept("nameserver", !host.dns.is_empty()),
        servers,
        kept("search", !host.dns_search.is_empty()),
        line("search", &host.dns_search),
        kept("options", !host.dns_options.is_empty()),
        line("options", &host.dns_options),
    ]
    .concat()
    .into_bytes()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::containers::config;

    fn wanted(host: serde_json::Value) -> Wanted {
        config::parse(json!({"Image": "x", "HostConfig": host, "ExposedPorts": {"90/tcp": {}}})).unwrap()
    }

    #[test]
    fn what_is_asked_for_goes_over_what_the_image_says() {
        let mut env = vec!["A=1".to_owned(), "B=2".to_owned()];
        merge_env(&mut env, &["A=3".to_owned(), "B".to_owned(), "C=".to_owned()]);
        assert_eq!(env, ["A=3", "C="]);
        let env = environment(&["PATH=/x".to_owned()], "h", true, Some("/root"));
        assert_eq!(env, ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "HOME=/root"]);
    }

    #[test]
    fn capabilities_are_added_and_dropped() {
        let set = |host| capabilities(&wanted(host).host).unwrap();
        assert!(set(json!({"CapAdd": ["NET_ADMIN"]})).contains(Capability::NetAdmin));
        assert!(!set(json!({"CapDrop": ["CHOWN"]})).contains(Capability::Chown));
        let only = set(json!({"CapDrop": ["ALL"], "CapAdd": ["CAP_KILL"]}));
        assert_eq!(only, CapabilitySet::EMPTY.with(Capability::Kill));
        assert!(!set(json!({"CapAdd": ["ALL"], "CapDrop": ["SYS_ADMIN"]})).contains(Capability::SysAdmin));
        assert!(capabilities(&wanted(json!({"CapAdd": ["FLY"]})).host).is_err());
    }

    #[test]
    fn ports_are_read_and_wrong_ones_refused() {
        let read = ports(&wanted(
            json!({"PortBindings": {"80/tcp": [{"HostPort": "8080"}], "53/udp": [{"HostIp": "127.0.0.1"}]}}),
        ))
        .unwrap();
        assert_eq!(read.len(), 2);
        assert_eq!((read[1].zone_port, read[1].host_port), (80, Some(8080)));
        assert_eq!(
            (read[0].host_ip, read[0].host_port),
            (Some(Ipv4Addr::LOCALHOST), None)
        );
        let all = ports(&wanted(json!({"PublishAllPorts": true}))).unwrap();
        assert_eq!((all.len(), all[0].zone_port), (1, 90));
        for bindings in [
            json!({"80/sctp": []}),
            json!({"x/tcp": []}),
            json!({"80/tcp": [{"HostPort": "80-90"}]}),
        ] {
            assert!(ports(&wanted(json!({"PortBindings": bindings}))).is_err());
        }
    }

    #[test]
    fn limits_follow_dockers_meaning() {
        let limits = |host| limits(&wanted(host).host);
        let memory = limits(json!({"Memory": 100 << 20}));
        assert_eq!((memory.memory, memory.swap), (Some(100 << 20), Some(100 << 20)));
        assert_eq!(
            limits(json!({"Memory": 100 << 20, "MemorySwap": 100 << 20})).swap,
            Some(0)
        );
        assert_eq!(
            limits(json!({"Memory": 100 << 20, "MemorySwap": -1})).swap,
            Some(u64::MAX)
        );
        assert_eq!(limits(json!({"CpuQuota": 50_000})).nano_cpus, Some(500_000_000));
        assert_eq!(limits(json!({"PidsLimit": -1})).pids, None);
    }

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigint", 2),
            ("28", 28),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number);
        }
        for bad in [
            "", "SIG", "0", "65", "-9", "NOPE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMIN+",
        ] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn name_servers_of_the_container_replace_those_of_the_host() {
        let host = wanted(json!({"Dns": ["9.9.9.9"]})).host;
        let text = resolv_conf(&host, b"nameserver 1.1.1.1\nsearch home\n".to_vec());
        assert_eq!(text, b"nameserver 9.9.9.9\nsearch home\n");
    }
}
