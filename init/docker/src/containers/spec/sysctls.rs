//! Kernel parameters of a container: only those that a namespace of its own holds.

use crate::containers::config::HostConfig;
use crate::containers::modes::{Mode, Modes};
use crate::http::{ApiError, Result};

/// Parameters of an IPC namespace (`ipc_namespaces(7)`), with a final full stop for all below it.
const IPC: &[&str] = &[
    "fs.mqueue.",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];
const NETWORK: &[&str] = &["net."];
const UTS: &[&str] = &["kernel.domainname"];

/// Refuses those that would change the machine, in the words of Docker's runtime.
pub(super) fn check_sysctls(host: &HostConfig, modes: &Modes) -> Result<()> {
    for key in host.sysctls.keys() {
        let name = key.replace('/', ".");
        let among = |list: &[&str]| {
            list.iter().any(|known| match known.strip_suffix('.') {
                Some(_) => name.starts_with(known) && name.len() > known.len(),
                None => name == *known,
            })
        };
        // A name is a path below /proc/sys.
        let odd = key.split(['.', '/']).any(str::is_empty) || key.contains('\0');
        let refused = |text: String| Err(ApiError::bad_request(text));
        if odd || !(among(IPC) || among(NETWORK) || among(UTS)) {
            return refused(format!("sysctl {key:?} is not in a separate kernel namespace"));
        }
        if among(NETWORK) && modes.network == Mode::Host {
            return refused(format!("sysctl {key:?} not allowed in host network namespace"));
        }
        if among(IPC) && modes.ipc == Mode::Host {
            return refused(format!("sysctl {key:?} not allowed in host ipc namespace"));
        }
        if among(UTS) && modes.uts == Mode::Host {
            return refused(format!("sysctl {key:?} not allowed in host UTS namespace"));
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::testing::wanted;
    use super::*;

    fn checked(host: serde_json::Value) -> Result<()> {
        let host = wanted(host).host;
        check_sysctls(&host, &Modes::of(&host)?)
    }

    #[test]
    fn only_parameters_of_the_containers_own_namespaces_may_be_set() {
        for key in [
            "net.ipv4.ip_forward",
            "net.ipv4.conf.eth0/1.forwarding",
            "kernel.shmmax",
            "kernel.msgmni",
            "fs.mqueue.msg_max",
            "kernel.domainname",
        ] {
            checked(json!({"Sysctls": {key: "1"}})).unwrap();
        }
        for key in [
            "vm.swappiness",
            "kernel.panic",
            "kernel.hostname",
            "net.",
            "net",
            "net..kernel.panic",
            "kernel.shmmax2",
            "net./../kernel",
            "",
        ] {
            let error = checked(json!({"Sysctls": {key: "1"}})).unwrap_err();
            assert!(
                error.message.contains("is not in a separate kernel namespace"),
                "{key}"
            );
        }
        let error =
            checked(json!({"Sysctls": {"net.core.somaxconn": "1"}, "NetworkMode": "host"})).unwrap_err();
        assert!(error.message.contains("not allowed in host network namespace"));
    }
}
