//! Capabilities, the system call filter and the options of `SecurityOpt`.

use std::sync::Arc;

use zones::{Capability, CapabilitySet, Seccomp};

use crate::containers::config::HostConfig;
use crate::http::{ApiError, Result};

pub(super) fn capabilities(host: &HostConfig) -> Result<CapabilitySet> {
    if host.privileged {
        return Ok(CapabilitySet::all());
    }
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

/// The options of `SecurityOpt`: the filter of system calls, and whether programs may gain privileges.
pub(super) fn security(host: &HostConfig) -> Result<(Seccomp, bool)> {
    let (mut seccomp, mut no_new_privileges) = (Seccomp::Default, false);
    if host.privileged {
        seccomp = Seccomp::Unconfined;
    }
    for option in &host.security_opt {
        let invalid = || ApiError::bad_request(format!("invalid --security-opt 2: {option:?}"));
        if option == "no-new-privileges" {
            no_new_privileges = true;
            continue;
        }
        let (name, value) = option.split_once(['=', ':']).ok_or_else(invalid)?;
        match (name, value) {
            ("no-new-privileges", value) => no_new_privileges = value.parse().map_err(|_| invalid())?,
            ("seccomp", "unconfined") => seccomp = Seccomp::Unconfined,
            ("seccomp", "builtin") => seccomp = Seccomp::Default,
            ("seccomp", profile) => seccomp = custom(profile, capabilities(host)?)?,
            // There are no such modules here, so that nothing is what is asked for.
            ("apparmor", "unconfined" | "") | ("label", "disable") => {}
            ("apparmor", _) => {
                return Err(ApiError::bad_request(
                    "AppArmor is not enabled on the system, so that no profile of it can be applied; leave the option apparmor out",
                ));
            }
            ("label", _) => {
                return Err(ApiError::bad_request(
                    "SELinux is not enabled on the system, so that a label would mean nothing; leave the option label out",
                ));
            }
            _ => return Err(invalid()),
        }
    }
    Ok((seccomp, no_new_privileges))
}

fn custom(profile: &str, capabilities: CapabilitySet) -> Result<Seccomp> {
    let release = rustix::system::uname().release().to_string_lossy().into_owned();
    let profile = super::seccomp::read(profile, capabilities, &release)?;
    Ok(Seccomp::Custom(Arc::new(profile)))
}

/// Reads a profile of system calls in Docker's form, of which that of the OCI runtime-spec is a part,
/// for a process with these capabilities.
///
/// # Errors
/// What is wrong with it.
pub fn seccomp_profile(profile: &str, capabilities: CapabilitySet) -> std::result::Result<Seccomp, String> {
    custom(profile, capabilities).map_err(|error| error.message)
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

    #[test]
    fn security_options_are_read_in_both_spellings_and_unknown_ones_refused() {
        let read = |option: &str| security(&wanted(json!({"SecurityOpt": [option]})).host);
        for option in [
            "no-new-privileges",
            "no-new-privileges:true",
            "no-new-privileges=true",
        ] {
            assert!(read(option).unwrap().1, "{option}");
        }
        assert!(!read("no-new-privileges:false").unwrap().1);
        assert_eq!(read("seccomp=unconfined").unwrap().0, Seccomp::Unconfined);
        let custom = read(r#"seccomp={"defaultAction": "SCMP_ACT_ALLOW"}"#).unwrap().0;
        assert!(matches!(custom, Seccomp::Custom(_)), "{custom:?}");
        assert!(read("apparmor=unconfined").is_ok() && read("label=disable").is_ok());
        for option in [
            "apparmor=docker-default",
            "label=type:container_t",
            "seccomp=/a/file",
            "systempaths",
            "no-new-privileges=maybe",
        ] {
            assert!(read(option).is_err(), "{option}");
        }
    }

    #[test]
    fn a_privileged_container_has_all_capabilities_and_no_filter() {
        let privileged = wanted(json!({"Privileged": true, "CapDrop": ["ALL"]})).host;
        assert_eq!(capabilities(&privileged).unwrap(), CapabilitySet::all());
        assert_eq!(security(&privileged).unwrap().0, Seccomp::Unconfined);
    }
}
