//! Devices of the machine that a zone is given, as plain data.
//!
//! Who makes a [`ZoneSpec`](crate::ZoneSpec) also puts each device's node into the zone's `/dev`, by a
//! [`Mount::Tree`](crate::Mount). What is said here is what the zone's cgroup is to let through: a node
//! alone does not open a device that its rules forbid.

/// What a device is to the kernel (`makedev(3)`: the numbers of the two kinds are apart).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum DeviceKind {
    Character,
    Block,
}

/// What may be done with a device, as the kernel's device controller tells accesses apart
/// (`Documentation/admin-guide/cgroup-v1/devices.rst`).
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct DeviceAccess {
    /// `r`
    pub read: bool,
    /// `w`
    pub write: bool,
    /// `m`: make its node (`mknod(2)`).
    pub make: bool,
}

impl DeviceAccess {
    pub const ALL: Self = Self {
        read: true,
        write: true,
        make: true,
    };

    /// Reads letters such as `rw`; none where there is another letter, or none at all.
    pub fn parse(text: &str) -> Option<Self> {
        let mut access = Self::default();
        for letter in text.chars() {
            match letter {
                'r' => access.read = true,
                'w' => access.write = true,
                'm' => access.make = true,
                _ => return None,
            }
        }
        Some(access).filter(|access| *access != Self::default())
    }
}

/// A device that a zone is given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Device {
    /// Its node on the machine, such as `/dev/kvm`.
    pub host: String,
    /// Its node in the zone.
    pub path: String,
    pub kind: DeviceKind,
    pub major: u32,
    pub minor: u32,
    pub access: DeviceAccess,
}

/// A device node that a zone's first process makes itself: nobody can in a user namespace of his own.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Node {
    pub path: String,
    /// As of mknod(2): type and permissions.
    pub mode: u32,
    /// As of makedev(3).
    pub device: u64,
    pub uid: u32,
    pub gid: u32,
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn accesses_are_read_from_their_letters() {
        assert_eq!(DeviceAccess::parse("mrw"), Some(DeviceAccess::ALL));
        let reading = DeviceAccess {
            read: true,
            ..DeviceAccess::default()
        };
        assert_eq!(DeviceAccess::parse("r"), Some(reading));
        for bad in ["", "x", "rwx", "R"] {
            assert_eq!(DeviceAccess::parse(bad), None, "{bad}");
        }
    }
}
