//! Docker's profile of system calls as JSON, read into what [`zones`] compiles.
//!
//! The format is that of Docker's own default profile (`profiles/seccomp/default.json` of its source).
//! What depends on the container (its capabilities) and on the machine (architecture, kernel release)
//! is decided here.

use serde::Deserialize;
use zones::seccomp::{Action, Comparison, Condition, Profile, Rule};
use zones::{Capability, CapabilitySet};

use crate::http::{ApiError, Result};

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Document {
    default_action: String,
    default_errno_ret: Option<u16>,
    #[serde(default)]
    architectures: Option<Vec<String>>,
    #[serde(default)]
    arch_map: Option<Vec<ArchMap>>,
    #[serde(default)]
    flags: Option<Vec<String>>,
    #[serde(default)]
    listener_path: String,
    #[serde(default)]
    syscalls: Option<Vec<Syscall>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct ArchMap {
    architecture: String,
    #[serde(default)]
    sub_architectures: Option<Vec<String>>,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Syscall {
    #[serde(default)]
    name: String,
    #[serde(default)]
    names: Option<Vec<String>>,
    action: String,
    errno_ret: Option<u16>,
    #[serde(default)]
    args: Option<Vec<Argument>>,
    #[serde(default)]
    includes: Filter,
    #[serde(default)]
    excludes: Filter,
}

#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Argument {
    index: u8,
    value: u64,
    #[serde(default)]
    value_two: u64,
    op: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Filter {
    caps: Option<Vec<String>>,
    arches: Option<Vec<String>>,
    min_kernel: Option<String>,
}

/// The machine's architecture in both ways in which profiles write it.
const ARCHITECTURE: &str = "SCMP_ARCH_X86_64";
const GO_ARCHITECTURE: &str = "amd64";

/// Reads a profile for a container with these capabilities, on a kernel of this release.
pub(super) fn read(text: &str, capabilities: CapabilitySet, release: &str) -> Result<Profile> {
    let document: Document = serde_json::from_str(text)
        .map_err(|error| wrong(format!("Decoding seccomp profile failed: {error}")))?;
    let (x86, x32) = architectures(&document)?;
    let default_errno = document.default_errno_ret;
    if !document.listener_path.is_empty() {
        return Err(wrong(
            "a seccomp profile with a listenerPath cannot be used".to_owned(),
        ));
    }
    // What speeds up and what every filter here has anyway.
    let harmless = ["SECCOMP_FILTER_FLAG_TSYNC", "SECCOMP_FILTER_FLAG_SPEC_ALLOW"];
    if let Some(flag) = document
        .flags
        .iter()
        .flatten()
        .find(|flag| !harmless.contains(&flag.as_str()))
    {
        return Err(wrong(format!("the seccomp flag {flag:?} cannot be set")));
    }
    let mut rules = Vec::new();
    for call in document.syscalls.into_iter().flatten() {
        if !applies(&call, capabilities, release)? {
            continue;
        }
        rules.push(Rule {
            action: action(&call.action, call.errno_ret.or(default_errno))?,
            conditions: call.args.iter().flatten().map(condition).collect::<Result<_>>()?,
            calls: names(call)?,
        });
    }
    Ok(Profile {
        default: action(&document.default_action, default_errno)?,
        x86,
        x32,
        rules,
    })
}

fn wrong(text: String) -> ApiError {
    ApiError::bad_request(text)
}

/// Whether programs of the 32-bit and the x32 table may run.
fn architectures(document: &Document) -> Result<(bool, bool)> {
    let (listed, mapped) = (
        document.architectures.as_deref().unwrap_or_default(),
        document.arch_map.as_deref().unwrap_or_default(),
    );
    if !listed.is_empty() && !mapped.is_empty() {
        return Err(wrong(
            "both 'architectures' and 'archMap' are specified in the seccomp profile, use either 'architectures' or 'archMap'".to_owned(),
        ));
    }
    let own = mapped.iter().find(|map| map.architecture == ARCHITECTURE);
    let subordinate = own.iter().flat_map(|map| map.sub_architectures.iter().flatten());
    let all: Vec<&str> = listed.iter().chain(subordinate).map(String::as_str).collect();
    Ok((all.contains(&"SCMP_ARCH_X86"), all.contains(&"SCMP_ARCH_X32")))
}

fn names(call: Syscall) -> Result<Vec<String>> {
    match (call.name.is_empty(), call.names) {
        (false, Some(names)) if !names.is_empty() => Err(wrong(
            "both 'name' and 'names' are specified in the seccomp profile, use either 'name' or 'names'"
                .to_owned(),
        )),
        (false, _) => Ok(vec![call.name]),
        (true, names) => Ok(names.unwrap_or_default()),
    }
}

/// Docker's rules: all that is included must be the case, and nothing that is excluded.
fn applies(call: &Syscall, capabilities: CapabilitySet, release: &str) -> Result<bool> {
    // One that the machine does not know is one that the container does not have.
    let has =
        |name: &String| Capability::parse(name).is_some_and(|capability| capabilities.contains(capability));
    let own = |list: &[String]| list.iter().any(|arch| arch == GO_ARCHITECTURE);
    let recent = |filter: &Filter| match &filter.min_kernel {
        None => Ok(None),
        Some(wanted) => at_least(release, wanted).map(Some),
    };
    let (includes, excludes) = (&call.includes, &call.excludes);
    let arches = |filter: &Filter| filter.arches.clone().unwrap_or_default();
    let (included, excluded) = (arches(includes), arches(excludes));
    Ok((included.is_empty() || own(&included))
        && !own(&excluded)
        && includes.caps.iter().flatten().all(has)
        && !excludes.caps.iter().flatten().any(has)
        && recent(includes)?.unwrap_or(true)
        && !recent(excludes)?.unwrap_or(false))
}

/// Whether a kernel's release, such as `6.12.9-amd64`, is not older than a version such as `4.8`.
fn at_least(release: &str, wanted: &str) -> Result<bool> {
    let version = |text: &str| -> Option<(u32, u32)> {
        let mut parts = text.split(|letter: char| !letter.is_ascii_digit());
        Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
    };
    let wanted = version(wanted).ok_or_else(|| {
        wrong(format!(
            "invalid kernel version in the seccomp profile: {wanted:?}"
        ))
    })?;
    Ok(version(release).is_none_or(|version| version >= wanted))
}

fn action(name: &str, errno: Option<u16>) -> Result<Action> {
    /// What a call fails with where the profile does not say.
    const EPERM: u16 = 1;
    let number = errno.unwrap_or(EPERM);
    Ok(match name {
        "SCMP_ACT_ALLOW" => Action::Allow,
        "SCMP_ACT_LOG" => Action::Log,
        "SCMP_ACT_ERRNO" => Action::Errno(number),
        "SCMP_ACT_TRAP" => Action::Trap,
        "SCMP_ACT_TRACE" => Action::Trace(number),
        "SCMP_ACT_KILL" | "SCMP_ACT_KILL_THREAD" => Action::KillThread,
        "SCMP_ACT_KILL_PROCESS" => Action::KillProcess,
        other => return Err(wrong(format!("the seccomp action {other:?} cannot be done"))),
    })
}

fn condition(argument: &Argument) -> Result<Condition> {
    /// System calls have six.
    const LAST: u8 = 5;
    let comparison = match argument.op.as_str() {
        "SCMP_CMP_NE" => Comparison::NotEqual,
        "SCMP_CMP_LT" => Comparison::Less,
        "SCMP_CMP_LE" => Comparison::LessOrEqual,
        "SCMP_CMP_EQ" => Comparison::Equal,
        "SCMP_CMP_GE" => Comparison::GreaterOrEqual,
        "SCMP_CMP_GT" => Comparison::Greater,
        "SCMP_CMP_MASKED_EQ" => Comparison::MaskedEqual { mask: argument.value },
        other => return Err(wrong(format!("unknown seccomp comparison {other:?}"))),
    };
    if argument.index > LAST {
        return Err(wrong(format!("a system call has no argument {}", argument.index)));
    }
    let masked = matches!(comparison, Comparison::MaskedEqual { .. });
    Ok(Condition {
        argument: argument.index,
        comparison,
        value: if masked {
            argument.value_two
        } else {
            argument.value
        },
        low_half: false,
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn profile(value: serde_json::Value) -> Result<Profile> {
        read(&value.to_string(), CapabilitySet::DEFAULT, "6.12.9-amd64")
    }

    #[test]
    fn a_profile_is_read_with_all_its_words() {
        let read = profile(json!({
            "defaultAction": "SCMP_ACT_ERRNO", "defaultErrnoRet": 38,
            "archMap": [{"architecture": "SCMP_ARCH_X86_64", "subArchitectures": ["SCMP_ARCH_X86"]}],
            "syscalls": [
                {"names": ["read", "write"], "action": "SCMP_ACT_ALLOW", "args": null, "comment": "plain"},
                {"name": "clone", "action": "SCMP_ACT_ALLOW",
                 "args": [{"index": 0, "value": 256, "valueTwo": 1, "op": "SCMP_CMP_MASKED_EQ"}]},
                {"names": ["mount"], "action": "SCMP_ACT_ALLOW", "includes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["chown"], "action": "SCMP_ACT_ERRNO", "errnoRet": 5, "excludes": {"caps": ["CAP_SYS_ADMIN"]}},
                {"names": ["ptrace"], "action": "SCMP_ACT_TRAP", "includes": {"minKernel": "4.8"}},
                {"names": ["kill"], "action": "SCMP_ACT_LOG", "includes": {"minKernel": "9.1"}},
                {"names": ["open"], "action": "SCMP_ACT_LOG", "includes": {"arches": ["arm64"]}}
            ]
        }))
        .unwrap();
        assert_eq!(
            (read.default, read.x86, read.x32),
            (Action::Errno(38), true, false)
        );
        let actions: Vec<(&str, Action)> = read
            .rules
            .iter()
            .map(|rule| (rule.calls[0].as_str(), rule.action))
            .collect();
        let wanted = [
            ("read", Action::Allow),
            ("clone", Action::Allow),
            ("chown", Action::Errno(5)),
            ("ptrace", Action::Trap),
        ];
        assert_eq!(actions, wanted);
        let condition = read.rules[1].conditions[0];
        assert_eq!(condition.comparison, Comparison::MaskedEqual { mask: 256 });
        assert_eq!(condition.value, 1);
    }

    #[test]
    fn what_is_no_profile_is_refused_with_the_reason() {
        let one =
            |syscall: serde_json::Value| json!({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [syscall]});
        for (value, text) in [
            (json!({}), "Decoding seccomp profile failed"),
            (json!({"defaultAction": "SCMP_ACT_NOTIFY"}), "SCMP_ACT_NOTIFY"),
            (
                json!({"defaultAction": "SCMP_ACT_ALLOW", "architectures": ["SCMP_ARCH_X86"],
                       "archMap": [{"architecture": "SCMP_ARCH_X86_64"}]}),
                "both 'architectures' and 'archMap'",
            ),
            (
                one(json!({"name": "a", "names": ["b"], "action": "SCMP_ACT_ALLOW"})),
                "both 'name' and 'names'",
            ),
            (
                one(json!({"names": ["a"], "action": "SCMP_ACT_ALLOW",
                           "args": [{"index": 6, "value": 0, "op": "SCMP_CMP_EQ"}]})),
                "no argument 6",
            ),
            (
                one(json!({"names": ["a"], "action": "SCMP_ACT_ALLOW",
                           "args": [{"index": 0, "value": 0, "op": "SCMP_CMP_XX"}]})),
                "SCMP_CMP_XX",
            ),
        ] {
            let error = profile(value).unwrap_err();
            assert!(error.message.contains(text), "{}", error.message);
        }
    }
}
