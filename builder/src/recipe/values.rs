//! The values of a recipe that have a form of their own. Each type can only hold what is valid, and
//! a value that is not says which form was expected.

use std::fmt;
use std::str::FromStr;

use handover::Protocol;
use serde::de::{self, Deserializer, Visitor};
use serde::{Deserialize, Serialize, Serializer};

/// Reads a type from a TOML string by its `FromStr`; the error names the form.
macro_rules! from_text {
    ($type:ty, $form:expr) => {
        impl<'de> Deserialize<'de> for $type {
            fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
                struct Text;
                impl Visitor<'_> for Text {
                    type Value = $type;
                    fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                        formatter.write_str($form)
                    }
                    fn visit_str<E: de::Error>(self, text: &str) -> Result<$type, E> {
                        text.parse().map_err(|Malformed| {
                            E::custom(format_args!("invalid value {text:?}, expected {}", $form))
                        })
                    }
                }
                deserializer.deserialize_str(Text)
            }
        }
        impl Serialize for $type {
            fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
                serializer.collect_str(self)
            }
        }
    };
}

/// A text that has not the form of its type.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

/// A plain name: of the recipe, a package, a zone, a user.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Name(String);

impl Name {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Name {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let inner = |c: char| c.is_ascii_alphanumeric() || "+-._".contains(c);
        let valid = text.len() <= 128
            && text.chars().all(inner)
            && text.starts_with(|c: char| c.is_ascii_alphanumeric());
        valid.then(|| Self(text.to_owned())).ok_or(Malformed)
    }
}
from_text!(
    Name,
    "a name of letters, digits, `+`, `-`, `.` and `_` that starts with a letter or digit"
);

/// A kernel module's name, with `_` where its file may have `-`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct ModuleName(String);

impl ModuleName {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for ModuleName {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let valid = !text.is_empty()
            && text.len() <= 64
            && text
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || c == '_' || c == '-');
        valid.then(|| Self(text.replace('-', "_"))).ok_or(Malformed)
    }
}
from_text!(
    ModuleName,
    "a kernel module's name such as `virtio_net`, without folder or `.ko`"
);

/// The kernel command line.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CommandLine(String);

impl CommandLine {
    /// `COMMAND_LINE_SIZE` of x86, less the closing zero byte.
    const MAX: usize = 2047;

    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for CommandLine {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let valid = text.len() <= Self::MAX && text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
        valid.then(|| Self(text.to_owned())).ok_or(Malformed)
    }
}
from_text!(
    CommandLine,
    "one line of at most 2047 printable ASCII characters such as \"console=ttyS0 quiet\""
);

/// A number of bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

impl FromStr for ByteSize {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let digits = text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len());
        let (number, unit) = text.split_at(digits);
        let shift = match unit.trim_start() {
            "" | "B" => 0,
            "K" | "KiB" => 10,
            "M" | "MiB" => 20,
            "G" | "GiB" => 30,
            "T" | "TiB" => 40,
            _ => return Err(Malformed),
        };
        let number: u64 = number.parse().map_err(|_| Malformed)?;
        number
            .checked_mul(1 << shift)
            .filter(|bytes| *bytes > 0)
            .map(Self)
            .ok_or(Malformed)
    }
}

impl fmt::Display for ByteSize {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        let units = [(40, "T"), (30, "G"), (20, "M"), (10, "K")];
        match units
            .iter()
            .find(|(shift, _)| self.0 != 0 && self.0.is_multiple_of(1 << shift))
        {
            Some((shift, unit)) => write!(formatter, "{}{unit}", self.0 >> shift),
            None => write!(formatter, "{}", self.0),
        }
    }
}
from_text!(ByteSize, "a size such as \"512M\" or \"4G\" (powers of 1024)");

/// A number of CPUs, kept in billionths as Docker does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cpus(pub u64);

const CPUS_FORM: &str = "a number of CPUs such as 2 or 0.5";

impl<'de> Deserialize<'de> for Cpus {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct Number;
        impl Visitor<'_> for Number {
            type Value = Cpus;
            fn expecting(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(CPUS_FORM)
            }
            fn visit_i64<E: de::Error>(self, number: i64) -> Result<Cpus, E> {
                u32::try_from(number)
                    .map_err(|_| E::custom(format_args!("invalid value {number}, expected {CPUS_FORM}")))
                    .and_then(|number| self.visit_f64(f64::from(number)))
            }
            fn visit_f64<E: de::Error>(self, number: f64) -> Result<Cpus, E> {
                // Docker's own floor is a hundredth of a CPU.
                if !(0.01..=4096.0).contains(&number) {
                    return Err(E::custom(format_args!(
                        "invalid value {number}, expected {CPUS_FORM}"
                    )));
                }
                #[expect(
                    clippy::cast_possible_truncation,
                    clippy::cast_sign_loss,
                    reason = "the range was checked"
                )]
                Ok(Cpus((number * 1e9).round() as u64))
            }
        }
        deserializer.deserialize_any(Number)
    }
}

impl Serialize for Cpus {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_u64(self.0)
    }
}

/// `8080:80`, `80` (the same on both sides), `53:53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PortMapping {
    pub outer: u16,
    pub inner: u16,
    pub protocol: Protocol,
}

impl FromStr for PortMapping {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (ports, protocol) = protocol_of(text)?;
        let (outer, inner) = ports.split_once(':').unwrap_or((ports, ports));
        Ok(Self {
            outer: port(outer)?,
            inner: port(inner)?,
            protocol,
        })
    }
}

impl fmt::Display for PortMapping {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}:{}/{}", self.outer, self.inner, word(self.protocol))
    }
}
from_text!(PortMapping, "ports such as \"8080:80\", \"80\" or \"53:53/udp\"");

/// `80`, `80/tcp`, `53/udp`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct ExposedPort {
    pub port: u16,
    pub protocol: Protocol,
}

impl FromStr for ExposedPort {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (number, protocol) = protocol_of(text)?;
        Ok(Self {
            port: port(number)?,
            protocol,
        })
    }
}

impl fmt::Display for ExposedPort {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{}/{}", self.port, word(self.protocol))
    }
}
from_text!(ExposedPort, "a port such as \"80\", \"80/tcp\" or \"53/udp\"");

fn protocol_of(text: &str) -> Result<(&str, Protocol), Malformed> {
    match text.split_once('/') {
        None => Ok((text, Protocol::Tcp)),
        Some((ports, "tcp")) => Ok((ports, Protocol::Tcp)),
        Some((ports, "udp")) => Ok((ports, Protocol::Udp)),
        Some(_) => Err(Malformed),
    }
}

fn word(protocol: Protocol) -> &'static str {
    match protocol {
        Protocol::Tcp => "tcp",
        Protocol::Udp => "udp",
    }
}

fn port(text: &str) -> Result<u16, Malformed> {
    let digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    text.parse()
        .ok()
        .filter(|port| digits && *port != 0)
        .ok_or(Malformed)
}

/// An image's name and tag, such as `busybox:latest` or `localhost:5000/team/app:1.2`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Reference(String);

impl Reference {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// The part after the last colon.
    #[must_use]
    pub fn tag(&self) -> &str {
        self.0.rsplit_once(':').map_or("latest", |(_, tag)| tag)
    }
}

impl FromStr for Reference {
    type Err = Malformed;
    /// The grammar of the distribution project's references, without a digest.
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let (name, tag) = match text.rsplit_once(':') {
            Some((name, tag)) if !tag.contains('/') => (name, tag),
            _ => (text, "latest"),
        };
        let tag_valid = (1..=128).contains(&tag.len())
            && !tag.starts_with(['.', '-'])
            && tag
                .chars()
                .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c));
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (Some(first), path),
            _ => (None, name),
        };
        let component = |part: &str| {
            part.starts_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part.ends_with(|c: char| c.is_ascii_lowercase() || c.is_ascii_digit())
                && part
                    .chars()
                    .all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c))
        };
        let host_valid = registry.is_none_or(host);
        let valid = tag_valid && host_valid && name.len() <= 255 && path.split('/').all(component);
        valid.then(|| Self(format!("{name}:{tag}"))).ok_or(Malformed)
    }
}
from_text!(
    Reference,
    "an image's name and tag such as \"busybox:latest\" (lower case)"
);

/// A registry as `host` or `host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct RegistryHost(String);

impl FromStr for RegistryHost {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        host(text).then(|| Self(text.to_owned())).ok_or(Malformed)
    }
}
from_text!(
    RegistryHost,
    "a registry such as \"10.0.2.2\" or \"registry.lan:5000\", without `http://` and path"
);

/// `host` or `host:port`.
fn host(text: &str) -> bool {
    let (name, number) = text
        .split_once(':')
        .map_or((text, None), |(name, number)| (name, Some(number)));
    !name.is_empty()
        && name
            .chars()
            .all(|c| c.is_ascii_alphanumeric() || c == '.' || c == '-')
        && number.is_none_or(|number| port(number).is_ok())
}

/// Whom an image runs as: `user`, `uid`, `user:group` or `uid:gid`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RunAs(String);

impl FromStr for RunAs {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let named = |part: &str| {
            !part.is_empty()
                && part
                    .chars()
                    .all(|c| c.is_ascii_alphanumeric() || "._-".contains(c))
        };
        let (user, group) = text
            .split_once(':')
            .map_or((text, None), |(user, group)| (user, Some(group)));
        let valid = named(user) && group.is_none_or(named);
        valid.then(|| Self(text.to_owned())).ok_or(Malformed)
    }
}
from_text!(RunAs, "a user such as \"www-data\", \"33\" or \"33:33\"");

/// A signal by name.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SignalName(String);

impl FromStr for SignalName {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let known = SIGNALS.iter().any(|name| text.strip_prefix("SIG") == Some(name));
        known.then(|| Self(text.to_owned())).ok_or(Malformed)
    }
}
from_text!(
    SignalName,
    "a signal such as \"SIGTERM\", \"SIGINT\" or \"SIGQUIT\""
);

/// signal(7), without the numbered ones.
const SIGNALS: &[&str] = &[
    "ABRT", "ALRM", "BUS", "CHLD", "CONT", "FPE", "HUP", "ILL", "INT", "IO", "KILL", "PIPE", "PROF", "PWR",
    "QUIT", "SEGV", "STKFLT", "STOP", "SYS", "TERM", "TRAP", "TSTP", "TTIN", "TTOU", "URG", "USR1", "USR2",
    "VTALRM", "WINCH", "XCPU", "XFSZ",
];

/// A path inside an image: starts with `/`, has no `.`, `..` or empty part.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct AbsolutePath(String);

impl AbsolutePath {
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Without the leading slash.
    #[must_use]
    pub fn relative(&self) -> &str {
        self.0.trim_start_matches('/')
    }
}

impl FromStr for AbsolutePath {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let inner = text.strip_prefix('/').ok_or(Malformed)?.trim_end_matches('/');
        let valid = !text.contains('\0')
            && (inner.is_empty() || inner.split('/').all(|part| !matches!(part, "" | "." | "..")));
        valid.then(|| Self(format!("/{inner}"))).ok_or(Malformed)
    }
}
from_text!(
    AbsolutePath,
    "an absolute path such as \"/etc/motd\" without `.` and `..`"
);

/// Permission bits, written in octal.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mode(pub u32);

impl FromStr for Mode {
    type Err = Malformed;
    fn from_str(text: &str) -> Result<Self, Malformed> {
        let digits = (3..=5).contains(&text.len()) && text.bytes().all(|byte| byte.is_ascii_digit());
        u32::from_str_radix(text, 8)
            .ok()
            .filter(|mode| digits && *mode <= 0o7777)
            .map(Self)
            .ok_or(Malformed)
    }
}

impl fmt::Display for Mode {
    fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(formatter, "{:04o}", self.0)
    }
}
from_text!(Mode, "permissions in octal such as \"0644\"");

/// The texts that are kept as they were read.
macro_rules! shown_as_text {
    ($($type:ty),*) => { $(
        impl fmt::Display for $type {
            fn fmt(&self, formatter: &mut fmt::Formatter<'_>) -> fmt::Result {
                formatter.write_str(&self.0)
            }
        }
    )* };
}
shown_as_text!(
    Name,
    ModuleName,
    CommandLine,
    Reference,
    AbsolutePath,
    RegistryHost,
    RunAs,
    SignalName
);
