//! Kernel parameters of a container: only those that a namespace of its own holds.

use zones::ParameterOf;

use crate::containers::config::HostConfig;
use crate::containers::modes::{Mode, Modes};
use crate::http::{ApiError, Result};

/// Refuses those that would change the machine, in the words of Docker's runtime.
pub(super) fn check_sysctls(host: &HostConfig, modes: &Modes) -> Result<()> {
    for key in host.sysctls.keys() {
        let refused = |text: String| Err(ApiError::bad_request(text));
        let host = |mode: &Mode| *mode == Mode::Host;
        match ParameterOf::name(key) {
            None => return refused(format!("sysctl {key:?} is not in a separate kernel namespace")),
            Some(ParameterOf::Network) if host(&modes.network) => {
                return refused(format!("sysctl {key:?} not allowed in host network namespace"));
            }
            Some(ParameterOf::Ipc) if host(&modes.ipc) => {
                return refused(format!("sysctl {key:?} not allowed in host ipc namespace"));
            }
            Some(ParameterOf::Uts) if host(&modes.uts) => {
                return refused(format!("sysctl {key:?} not allowed in host UTS namespace"));
            }
            Some(_) => {}
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
