//! Capabilities, the system call filter and the options of `SecurityOpt`.

use zones::{Capability, CapabilitySet, Seccomp};

use crate::containers::config::HostConfig;
use crate::http::{ApiError, Result};

pub(super) fn capabilities(host: &HostConfig) -> Result<CapabilitySet> {
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

pub(super) fn security(host: &HostConfig) -> Result<(Seccomp, bool)> {
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

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::wanted;
    use super::*;

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
}
