//! Capabilities by name (capabilities(7)); their numbers are those of `linux/capability.h`.

use std::fmt;

/// One capability; the discriminant is its number.
macro_rules! capabilities {
    ($($name:ident = $text:literal),* $(,)?) => {
        #[derive(Debug, Clone, Copy, PartialEq, Eq)]
        #[repr(u8)]
        pub enum Capability { $($name),* }

        const ALL: &[(Capability, &str)] = &[$((Capability::$name, $text)),*];
    };
}

capabilities! {
    Chown = "CHOWN", DacOverride = "DAC_OVERRIDE", DacReadSearch = "DAC_READ_SEARCH", Fowner = "FOWNER",
    Fsetid = "FSETID", Kill = "KILL", Setgid = "SETGID", Setuid = "SETUID", Setpcap = "SETPCAP",
    LinuxImmutable = "LINUX_IMMUTABLE", NetBindService = "NET_BIND_SERVICE", NetBroadcast = "NET_BROADCAST",
    NetAdmin = "NET_ADMIN", NetRaw = "NET_RAW", IpcLock = "IPC_LOCK", IpcOwner = "IPC_OWNER",
    SysModule = "SYS_MODULE", SysRawio = "SYS_RAWIO", SysChroot = "SYS_CHROOT", SysPtrace = "SYS_PTRACE",
    SysPacct = "SYS_PACCT", SysAdmin = "SYS_ADMIN", SysBoot = "SYS_BOOT", SysNice = "SYS_NICE",
    SysResource = "SYS_RESOURCE", SysTime = "SYS_TIME", SysTtyConfig = "SYS_TTY_CONFIG", Mknod = "MKNOD",
    Lease = "LEASE", AuditWrite = "AUDIT_WRITE", AuditControl = "AUDIT_CONTROL", Setfcap = "SETFCAP",
    MacOverride = "MAC_OVERRIDE", MacAdmin = "MAC_ADMIN", Syslog = "SYSLOG", WakeAlarm = "WAKE_ALARM",
    BlockSuspend = "BLOCK_SUSPEND", AuditRead = "AUDIT_READ", Perfmon = "PERFMON", Bpf = "BPF",
    CheckpointRestore = "CHECKPOINT_RESTORE",
}

impl Capability {
    /// Reads `NET_ADMIN`, `net_admin` or `CAP_NET_ADMIN`.
    pub fn parse(text: &str) -> Option<Self> {
        let upper = text.to_ascii_uppercase();
        let name = upper.strip_prefix("CAP_").unwrap_or(&upper);
        ALL.iter()
            .find(|(_, known)| *known == name)
            .map(|(capability, _)| *capability)
    }

    const fn bit(self) -> u64 {
        1 << self as u8
    }
}

impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = ALL
            .iter()
            .find(|(known, _)| known == self)
            .map_or("", |(_, name)| name);
        write!(f, "CAP_{name}")
    }
}

/// A set of capabilities. All of them hold within the zone's own user namespace only.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CapabilitySet(u64);

impl CapabilitySet {
    pub const EMPTY: Self = Self(0);

    /// What Docker gives a container by default.
    pub const DEFAULT: Self = Self::EMPTY
        .with(Capability::Chown)
        .with(Capability::DacOverride)
        .with(Capability::Fsetid)
        .with(Capability::Fowner)
        .with(Capability::Mknod)
        .with(Capability::NetRaw)
        .with(Capability::Setgid)
        .with(Capability::Setuid)
        .with(Capability::Setfcap)
        .with(Capability::Setpcap)
        .with(Capability::NetBindService)
        .with(Capability::SysChroot)
        .with(Capability::Kill)
        .with(Capability::AuditWrite);

    pub fn all() -> Self {
        ALL.iter()
            .fold(Self::EMPTY, |set, (capability, _)| set.with(*capability))
    }

    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | capability.bit())
    }

    #[must_use]
    pub const fn without(self, capability: Capability) -> Self {
        Self(self.0 & !capability.bit())
    }

    pub const fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bit() != 0
    }

    /// Their names, such as `CAP_CHOWN`.
    pub fn names(self) -> Vec<String> {
        let all = ALL.iter().filter(|(capability, _)| self.contains(*capability));
        all.map(|(capability, _)| capability.to_string()).collect()
    }

    pub const fn bits(self) -> u64 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::{Capability, CapabilitySet};

    #[test]
    fn names_are_read_in_every_way_that_docker_takes() {
        for text in ["NET_ADMIN", "net_admin", "CAP_NET_ADMIN", "cap_net_admin"] {
            assert_eq!(Capability::parse(text), Some(Capability::NetAdmin), "{text}");
        }
        assert_eq!(Capability::parse("NET_ADMINS"), None);
        assert_eq!(Capability::NetAdmin.to_string(), "CAP_NET_ADMIN");
    }

    #[test]
    fn the_default_set_is_dockers() {
        // CapEff of a container of Docker's, as its /proc/self/status shows it.
        assert_eq!(CapabilitySet::DEFAULT.bits(), 0xa804_25fb);
        assert_eq!(CapabilitySet::all().bits(), 0x1ff_ffff_ffff);
    }
}
