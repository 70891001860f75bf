//! Kernel parameters (`/proc/sys`) that belong to a namespace, so that a zone with that namespace of
//! its own has values of its own.

/// Which namespace a parameter belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ParameterOf {
    Ipc,
    Network,
    Uts,
}

/// Names, with a final full stop for all below it (`ipc_namespaces(7)`, `network_namespaces(7)`).
const PARAMETERS: &[(&str, ParameterOf)] = &[
    ("fs.mqueue.", ParameterOf::Ipc),
    ("kernel.msgmax", ParameterOf::Ipc),
    ("kernel.msgmnb", ParameterOf::Ipc),
    ("kernel.msgmni", ParameterOf::Ipc),
    ("kernel.sem", ParameterOf::Ipc),
    ("kernel.shmall", ParameterOf::Ipc),
    ("kernel.shmmax", ParameterOf::Ipc),
    ("kernel.shmmni", ParameterOf::Ipc),
    ("kernel.shm_rmid_forced", ParameterOf::Ipc),
    ("net.", ParameterOf::Network),
    ("kernel.domainname", ParameterOf::Uts),
];

impl ParameterOf {
    /// The namespace of a parameter by its name, with full stops or slashes; none for one that is the
    /// machine's, or whose name is odd: it becomes a path.
    pub fn name(key: &str) -> Option<Self> {
        if key.split(['.', '/']).any(str::is_empty) || key.contains('\0') {
            return None;
        }
        let name = key.replace('/', ".");
        let matches = |known: &str| match known.strip_suffix('.') {
            Some(_) => name.starts_with(known),
            None => name == known,
        };
        let found = PARAMETERS.iter().find(|(known, _)| matches(known));
        found.map(|(_, namespace)| *namespace)
    }
}

#[cfg(test)]
mod tests {
    use super::ParameterOf;

    #[test]
    fn a_parameter_is_a_namespaces_or_the_machines() {
        for (key, namespace) in [
            ("net.ipv4.ip_forward", Some(ParameterOf::Network)),
            ("net/ipv4/conf/eth0.1/forwarding", Some(ParameterOf::Network)),
            ("fs.mqueue.msg_max", Some(ParameterOf::Ipc)),
            ("kernel.shmmax", Some(ParameterOf::Ipc)),
            ("kernel.domainname", Some(ParameterOf::Uts)),
            ("kernel.shmmax2", None),
            ("kernel.panic", None),
            ("net", None),
            ("net.", None),
            ("net/../kernel/panic", None),
            ("", None),
        ] {
            assert_eq!(ParameterOf::name(key), namespace, "{key}");
        }
    }
}
