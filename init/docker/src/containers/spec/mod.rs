//! From a container's record to what [`zones`] runs.
//!
//! Each part is a function of its own that the create request calls too, so that what cannot be done
//! is refused then, not at the start.

mod device_rules;
mod limits;
mod mounts;
mod names;
mod ports;
mod seccomp;
mod security;
mod signals;
mod sysctls;
#[cfg(test)]
mod testing;

use std::net::{IpAddr, Ipv4Addr};

use zones::{
    CapabilitySet, Device, MASKED_PATHS, Mount, ProcessSpec, READ_ONLY_PATHS, Seccomp, TerminalSize, ZoneSpec,
};

use device_rules::device_rules;
use limits::rlimits;
pub(crate) use limits::{check_limits, limits, warnings};
use mounts::paths;
use names::{extra_host, hosts, resolv_conf};
pub(crate) use ports::ports;
pub use security::seccomp_profile;
use security::{capabilities, security};
pub(crate) use signals::parse_signal;
use sysctls::check_sysctls;

use super::config::Wanted;
use super::container::Record;
use super::modes::{IPC_NONE, Mode, Modes, Resolved};
use crate::http::Result;
use crate::users::Found;

pub(crate) const DEFAULT_PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";
/// Docker's size of `/dev/shm`.
const DEFAULT_SHM: u64 = 64 << 20;

/// Checks everything that the functions below would refuse at the start.
pub(crate) fn check(wanted: &Wanted) -> Result<()> {
    capabilities(&wanted.host)?;
    security(&wanted.host)?;
    check_limits(&wanted.host)?;
    device_rules(&wanted.host)?;
    check_sysctls(&wanted.host, &Modes::of(&wanted.host)?)?;
    rlimits(&wanted.host)?;
    super::mounts::check(wanted)?;
    super::devices::check(&wanted.host)?;
    ports(&wanted.config, &wanted.host)?;
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
    pub(crate) addresses: Vec<IpAddr>,
    pub(crate) mounts: Vec<Mount>,
    pub(crate) devices: Vec<Device>,
    /// The host's `/etc/resolv.conf`.
    pub(crate) resolv_conf: Vec<u8>,
    /// Whether it has the name service of its networks.
    pub(crate) names: bool,
    /// The machine's own address on the bridge.
    pub(crate) gateway: Option<Ipv4Addr>,
    pub(crate) resolved: Resolved,
    /// What a container with an init runs as such.
    pub(crate) init: Option<String>,
}

pub(crate) fn zone(record: &Record, now: Circumstances) -> Result<ZoneSpec> {
    let (config, host) = (&record.config, &record.host);
    let Resolved {
        namespaces,
        shm,
        network_of,
        ..
    } = now.resolved;
    // Who has another's network has its names too.
    let named = network_of.as_ref().unwrap_or(record);
    let hostname = hostname(named);
    let mut mounts = now.mounts;
    let own_shm = shm.is_none() && host.ipc_mode != IPC_NONE;
    // Before a mount of the container's own that may lie in it.
    mounts.splice(0..0, shm);
    let (seccomp, no_new_privileges) = security(host)?;
    let usual = |usual| if host.privileged { &[][..] } else { usual };
    let protected = |asked_for, of_all| paths(asked_for, usual(of_all));
    let terminal = config.tty.then(|| match host.console_size.as_slice() {
        [rows, columns] if *rows > 0 && *columns > 0 => TerminalSize {
            rows: *rows,
            columns: *columns,
        },
        _ => TerminalSize::default(),
    });
    let mut files = vec![
        (
            "/etc/hosts".to_owned(),
            hosts(named, &hostname, &now.addresses, now.gateway)?,
        ),
        ("/etc/hostname".to_owned(), format!("{hostname}\n").into_bytes()),
        (
            "/etc/resolv.conf".to_owned(),
            resolv_conf(&named.host, now.resolv_conf, now.names),
        ),
    ];
    // A mount in a file's place goes before it.
    files.retain(|(path, _)| record.mounts.iter().all(|point| point.destination != *path));
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
            oom_score_adj: host.oom_score_adj,
        },
        hostname,
        domainname: Some(config.domainname.clone()).filter(|name| !name.is_empty()),
        ids: record.ids(),
        limits: limits(host)?,
        read_only_root: host.readonly_rootfs,
        mounts,
        system_files_writable: host.privileged,
        masked_paths: protected(host.masked_paths.as_deref(), MASKED_PATHS),
        read_only_paths: protected(host.readonly_paths.as_deref(), READ_ONLY_PATHS),
        devices: now.devices,
        nodes: super::devices::of_machine(host)?,
        device_rules: device_rules(host)?,
        files,
        namespaces,
        shm_size: own_shm.then(|| positive(host.shm_size).unwrap_or(DEFAULT_SHM)),
        init: now.init.filter(|_| host.init == Some(true)),
        sysctls: host.sysctls.clone().into_iter().collect(),
    })
}

/// A process that is added to the container.
pub(crate) struct Added<'a> {
    pub(crate) args: &'a [String],
    pub(crate) env: &'a [String],
    pub(crate) cwd: &'a str,
    pub(crate) user: Found,
    pub(crate) terminal: Option<TerminalSize>,
    pub(crate) stdin: bool,
    /// With all capabilities of the container's user namespace, and no filter.
    pub(crate) privileged: bool,
}

pub(crate) fn added(record: &Record, added: Added<'_>) -> Result<ProcessSpec> {
    let (mut seccomp, no_new_privileges) = security(&record.host)?;
    let mut capabilities = capabilities(&record.host)?;
    if added.privileged {
        (seccomp, capabilities) = (Seccomp::Unconfined, CapabilitySet::all());
    }
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
        capabilities,
        seccomp,
        no_new_privileges,
        rlimits: rlimits(&record.host)?,
        oom_score_adj: record.host.oom_score_adj,
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
        "" if of_machine(record) => {
            let name = rustix::system::uname();
            name.nodename().to_string_lossy().into_owned()
        }
        "" => record.id.chars().take(12).collect(),
        name => name.to_owned(),
    }
}

/// Whether it goes by the machine's name.
fn of_machine(record: &Record) -> bool {
    Modes::of(&record.host).is_ok_and(|modes| modes.uts == Mode::Host || modes.network == Mode::Host)
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_asked_for_goes_over_what_the_image_says() {
        let mut env = vec!["A=1".to_owned(), "B=2".to_owned()];
        merge_env(&mut env, &["A=3".to_owned(), "B".to_owned(), "C=".to_owned()]);
        assert_eq!(env, ["A=3", "C="]);
        let env = environment(&["PATH=/x".to_owned()], "h", true, Some("/root"));
        assert_eq!(env, ["PATH=/x", "HOSTNAME=h", "TERM=xterm", "HOME=/root"]);
    }
}
