//! Whose namespaces a container has: `PidMode`, `IpcMode`, `UTSMode`, `UsernsMode`, `CgroupnsMode` and
//! `NetworkMode`.
//!
//! A container that joins another's namespaces runs in that one's user namespace, with its ids; see
//! [`zones::Namespaces`] for why. So two containers whose namespaces are joined by a third must share a user
//! namespace themselves. The machine's own namespaces are for containers with the machine's user namespace,
//! whose root is the machine's; they need a permission in the recipe.

use std::os::fd::OwnedFd;
use std::sync::Arc;

use zones::{IdMap, Mount, Namespace, Namespaces, Process};

use super::config::HostConfig;
use super::container::{Container, Record};
use crate::engine::Engine;
use crate::http::{ApiError, Result, blocking};

/// Whose one namespace is.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) enum Mode {
    #[default]
    Own,
    Host,
    /// That of another container, by its id, or its name as long as it is only asked for.
    Container(String),
}

/// All of a container's.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Modes {
    pub(crate) user: Mode,
    pub(crate) pid: Mode,
    pub(crate) ipc: Mode,
    pub(crate) uts: Mode,
    pub(crate) cgroup: Mode,
    pub(crate) network: Mode,
}

/// What a container without a `/dev/shm` says.
pub(crate) const IPC_NONE: &str = "none";
/// What a container says whose System V objects and `/dev/shm` others may share.
const IPC_SHAREABLE: &str = "shareable";

impl Modes {
    /// Reads them; 400 for words that Docker does not know.
    pub(crate) fn of(host: &HostConfig) -> Result<Self> {
        let wrong = |what: &str, mode: &str| ApiError::bad_request(format!("invalid {what} mode: {mode}"));
        let mode = |what: &str, text: &str, own: &[&str], joins: bool| match text.split_once(':') {
            Some(("container", "")) => Err(wrong(what, text)),
            Some(("container", name)) if joins => Ok(Mode::Container(name.to_owned())),
            _ if text.is_empty() || own.contains(&text) => Ok(Mode::Own),
            _ if text == "host" => Ok(Mode::Host),
            _ => Err(wrong(what, text)),
        };
        Ok(Self {
            user: mode("userns", &host.userns_mode, &["private"], false)?,
            pid: mode("PID", &host.pid_mode, &["private"], true)?,
            ipc: mode("IPC", &host.ipc_mode, &["private", IPC_SHAREABLE, IPC_NONE], true)?,
            uts: mode("UTS", &host.uts_mode, &["private"], false)?,
            cgroup: mode("cgroup namespace", &host.cgroupns_mode, &["private"], false)?,
            network: match host.network_mode.as_str() {
                special if special == "host" || special.starts_with("container:") => {
                    mode("network", special, &[], true)?
                }
                // A network's name or id.
                _ => Mode::Own,
            },
        })
    }

    fn with_names(&self) -> [(&Mode, &'static str); 5] {
        [
            (&self.pid, "PID"),
            (&self.ipc, "IPC"),
            (&self.uts, "UTS"),
            (&self.cgroup, "cgroup"),
            (&self.network, "network"),
        ]
    }

    /// Whether anything of the machine's own is asked for.
    fn of_machine(&self) -> Option<&'static str> {
        let of_machine = |(mode, name): &(&Mode, &'static str)| (**mode == Mode::Host).then_some(*name);
        match self.user {
            Mode::Host => Some("user"),
            _ => self.with_names().iter().find_map(of_machine),
        }
    }

    /// The containers whose namespaces are joined, with the word for what is joined.
    fn joined(&self) -> impl Iterator<Item = (&str, &'static str)> {
        self.with_names()
            .into_iter()
            .filter_map(|(mode, name)| match mode {
                Mode::Container(id) => Some((id.as_str(), name)),
                _ => None,
            })
    }
}

/// Refuses what contradicts itself, in Docker's words, and what the machine's operator does not permit.
pub(crate) fn check(host: &HostConfig, hostname: &str, host_privilege: bool) -> Result<()> {
    let modes = Modes::of(host)?;
    let bad = |text: &str| Err(ApiError::bad_request(text));
    if let (Some(name), false) = (modes.of_machine(), host_privilege) {
        return Err(ApiError::forbidden(format!(
            "A container with the machine's own {name} namespace could reach into every other one, and this \
             machine does not permit it: its recipe would have to say allow-host-privilege = true in [zones]."
        )));
    }
    if modes.user != Mode::Host {
        match modes.of_machine() {
            Some("network") => {
                return bad("cannot share the host's network namespace when user namespaces are enabled");
            }
            Some("PID") => {
                return bad("cannot share the host PID namespace when user namespaces are enabled");
            }
            Some(name) => {
                return Err(ApiError::bad_request(format!(
                    "cannot share the host's {name} namespace when user namespaces are enabled"
                )));
            }
            None => {}
        }
    }
    if host.oom_score_adj < LEAST_OOM_SCORE && !host_privilege {
        return Err(ApiError::forbidden(format!(
            "An OomScoreAdj below {LEAST_OOM_SCORE} would have the kernel kill the engine before the container, \
             and this machine does not permit it: its recipe would have to say allow-host-privilege = true in [zones]."
        )));
    }
    if modes.uts == Mode::Host && !hostname.is_empty() {
        return bad("conflicting options: hostname and the UTS mode");
    }
    if let Mode::Container(_) = modes.network {
        let conflicts = [
            (!hostname.is_empty(), "hostname and the network mode"),
            (
                !host.extra_hosts.is_empty(),
                "custom host-to-IP mapping and the network mode",
            ),
            (!host.dns.is_empty(), "dns and the network mode"),
            (
                !host.port_bindings.is_empty() || host.publish_all_ports,
                "port publishing and the container type network mode",
            ),
        ];
        if let Some((_, what)) = conflicts.iter().find(|(is_so, _)| *is_so) {
            return Err(ApiError::bad_request(format!("conflicting options: {what}")));
        }
    }
    Ok(())
}

/// Above the supervisor's own, -900.
const LEAST_OOM_SCORE: i32 = -800;

/// Puts the ids of the containers that are joined in place of their names, which may change.
pub(crate) async fn name_by_id(engine: &Engine, host: &mut HostConfig) -> Result<()> {
    for field in [&mut host.network_mode, &mut host.pid_mode, &mut host.ipc_mode] {
        if let Some(name) = field.strip_prefix("container:") {
            let found = engine.containers().await?.find(name)?;
            *field = format!("container:{}", found.id);
        }
    }
    Ok(())
}

/// The containers whose namespaces are joined.
pub(crate) fn joined_ids(host: &HostConfig) -> Vec<String> {
    let modes = Modes::of(host).unwrap_or_default();
    modes.joined().map(|(id, _)| id.to_owned()).collect()
}

/// The namespaces of a container that is about to start.
#[derive(Default)]
pub(crate) struct Resolved {
    pub(crate) namespaces: Namespaces,
    /// Its ids, where they are not its own.
    pub(crate) ids: Option<IdMap>,
    /// The `/dev/shm` that belongs to the IPC namespace that it joins.
    pub(crate) shm: Option<Mount>,
    /// Whose network it has.
    pub(crate) network_of: Option<Record>,
}

struct Donor {
    container: Arc<Container>,
    process: Arc<Process>,
    record: Record,
}

/// Finds the namespaces that are joined; those who have them must run.
pub(crate) async fn resolve(engine: &Engine, record: &Record) -> Result<Resolved> {
    let modes = Modes::of(&record.host)?;
    let mut donors: Vec<(Donor, &'static str)> = Vec::new();
    for (id, name) in modes.joined() {
        donors.push((donor(engine, record, id, name).await?, name));
    }
    let mut resolved = Resolved::default();
    let Some((first, _)) = donors.first() else {
        resolved.namespaces = namespaces(&modes, &|_| Ok(Namespace::Own))?;
        return Ok(resolved);
    };
    let ids = first.record.ids();
    if donors.iter().any(|(donor, _)| donor.record.ids() != ids) {
        return Err(ApiError::bad_request(
            "The namespaces of two containers cannot be joined: each has a user namespace of its own. Let one of them join the other first.",
        ));
    }
    if (ids == IdMap::HOST) != (modes.user == Mode::Host) {
        return Err(ApiError::bad_request(
            "A container must have the same UsernsMode as the one whose namespaces it joins.",
        ));
    }
    resolved.namespaces = namespaces(&modes, &|id| {
        let donor = donors.iter().find(|(donor, _)| donor.container.id == id);
        let (donor, _) = donor.ok_or_else(|| ApiError::not_found(format!("No such container: {id}")))?;
        pidfd(donor)
    })?;
    if ids != IdMap::HOST {
        resolved.namespaces.user = pidfd(first)?;
    }
    resolved.ids = Some(ids);
    for (donor, name) in &donors {
        match *name {
            "network" => resolved.network_of = Some(donor.record.clone()),
            "IPC" => resolved.shm = Some(shm(donor).await?),
            _ => {}
        }
    }
    Ok(resolved)
}

async fn donor(engine: &Engine, record: &Record, id: &str, name: &str) -> Result<Donor> {
    let container = engine.containers().await?.find(id)?;
    if container.id == record.id {
        return Err(ApiError::bad_request(format!(
            "a container cannot join its own {name} namespace"
        )));
    }
    let process = container.process().ok_or_else(|| {
        ApiError::conflict(format!(
            "cannot join {name} namespace of a non running container: {id}"
        ))
    })?;
    let donor = container.record();
    if name == "IPC" && Modes::of(&donor.host)?.ipc == Mode::Own && donor.host.ipc_mode != IPC_SHAREABLE {
        return Err(ApiError::bad_request(format!(
            "cannot join IPC of a container: container {id}: non-shareable IPC (hint: use IpcMode:shareable for the donor container)"
        )));
    }
    Ok(Donor {
        container,
        process,
        record: donor,
    })
}

fn pidfd(donor: &Donor) -> Result<Namespace> {
    copy(donor).map(Namespace::Of)
}

fn copy(donor: &Donor) -> Result<OwnedFd> {
    let copied = donor.process.pidfd.try_clone();
    copied.map_err(|error| ApiError::internal(format!("Cannot copy a pidfd: {error}.")))
}

fn namespaces(modes: &Modes, of: &dyn Fn(&str) -> Result<Namespace>) -> Result<Namespaces> {
    let one = |mode: &Mode| match mode {
        Mode::Own => Ok(Namespace::Own),
        Mode::Host => Ok(Namespace::Host),
        Mode::Container(id) => of(id),
    };
    Ok(Namespaces {
        user: one(&modes.user)?,
        pid: one(&modes.pid)?,
        ipc: one(&modes.ipc)?,
        network: one(&modes.network)?,
        uts: one(&modes.uts)?,
        cgroup: one(&modes.cgroup)?,
    })
}

/// The donor's `/dev/shm`, which goes with its IPC namespace.
async fn shm(donor: &Donor) -> Result<Mount> {
    const SHM: &str = "/dev/shm";
    let pidfd = copy(donor)?;
    let tree = blocking(move || {
        sys::mounts::clone_from(&pidfd, c"/dev/shm")
            .map_err(|error| ApiError::internal(format!("Cannot share {SHM}: {error}.")))
    });
    Ok(Mount::Tree {
        tree: tree.await?,
        at: SHM.to_owned(),
        file: false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn host(value: serde_json::Value) -> HostConfig {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn modes_are_read_and_unknown_ones_refused() {
        let modes = Modes::of(&host(json!({
            "PidMode": "container:abc", "IpcMode": "shareable", "NetworkMode": "host", "CgroupnsMode": "private"
        })))
        .unwrap();
        assert_eq!(modes.pid, Mode::Container("abc".to_owned()));
        assert_eq!((modes.ipc, modes.network), (Mode::Own, Mode::Host));
        for bad in [
            json!({"PidMode": "container:"}),
            json!({"PidMode": "none"}),
            json!({"IpcMode": "public"}),
            json!({"UTSMode": "container:abc"}),
            json!({"UsernsMode": "keep-id"}),
            json!({"CgroupnsMode": "maybe"}),
        ] {
            let error = Modes::of(&host(bad.clone())).unwrap_err();
            assert!(error.message.contains("invalid"), "{bad}: {}", error.message);
        }
    }

    #[test]
    fn the_machines_namespaces_need_its_permission_and_its_user_namespace() {
        for mode in [
            "PidMode",
            "IpcMode",
            "UTSMode",
            "UsernsMode",
            "NetworkMode",
            "CgroupnsMode",
        ] {
            let one = host(json!({mode: "host"}));
            let error = check(&one, "", false).unwrap_err();
            assert_eq!(error.status, hyper::StatusCode::FORBIDDEN, "{mode}");
            if mode != "UsernsMode" {
                let error = check(&one, "", true).unwrap_err();
                assert!(
                    error.message.contains("when user namespaces are enabled"),
                    "{mode}"
                );
            }
            check(&host(json!({mode: "host", "UsernsMode": "host"})), "", true).unwrap();
        }
        check(
            &host(json!({"PidMode": "container:abc", "Privileged": true})),
            "",
            false,
        )
        .unwrap();
        assert!(check(&host(json!({"OomScoreAdj": -900})), "", false).is_err());
        check(&host(json!({"OomScoreAdj": -500})), "", false).unwrap();
    }

    #[test]
    fn a_shared_network_has_no_name_and_no_ports_of_its_own() {
        let shared = |more: serde_json::Value| {
            let mut value = json!({"NetworkMode": "container:abc"});
            value
                .as_object_mut()
                .unwrap()
                .extend(more.as_object().unwrap().clone());
            host(value)
        };
        check(&shared(json!({})), "", false).unwrap();
        assert!(check(&shared(json!({})), "name", false).is_err());
        for more in [
            json!({"PublishAllPorts": true}),
            json!({"ExtraHosts": ["a:1.2.3.4"]}),
            json!({"Dns": ["1.1.1.1"]}),
        ] {
            let error = check(&shared(more), "", false).unwrap_err();
            assert!(error.message.contains("conflicting options"), "{}", error.message);
        }
    }
}
