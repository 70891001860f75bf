//! Rules of which devices the container may open, as the API writes them: `c 10:200 rwm`.

use zones::{DeviceAccess, DeviceKind, DeviceRule};

use crate::containers::config::HostConfig;
use crate::containers::devices::is_machines;
use crate::http::{ApiError, Result};

pub(super) fn device_rules(host: &HostConfig) -> Result<Vec<DeviceRule>> {
    // With the machine's own powers goes all that it has.
    if is_machines(host) {
        return Ok(vec![DeviceRule::ALL]);
    }
    let parse = |text: &String| {
        one(text).ok_or_else(|| ApiError::bad_request(format!("invalid device cgroup rule format: '{text}'")))
    };
    host.device_cgroup_rules.iter().map(parse).collect()
}

fn one(text: &str) -> Option<DeviceRule> {
    let words: Vec<&str> = text.split(' ').collect();
    let [kind, device, access] = words.as_slice() else {
        return None;
    };
    let (major, minor) = device.split_once(':')?;
    let number = |text: &str| match text {
        "*" => Some(None),
        digits => digits.parse::<u32>().ok().map(Some),
    };
    Some(DeviceRule {
        kind: match *kind {
            "a" => None,
            "c" => Some(DeviceKind::Character),
            "b" => Some(DeviceKind::Block),
            _ => return None,
        },
        major: number(major)?,
        minor: number(minor)?,
        access: DeviceAccess::parse(access)?,
    })
}

#[cfg(test)]
mod tests {
    use super::one;

    #[test]
    fn rules_have_dockers_form() {
        let rule = one("c 10:* rw").unwrap();
        assert_eq!((rule.major, rule.minor), (Some(10), None));
        assert!(rule.access.read && rule.access.write && !rule.access.make);
        assert_eq!(one("a *:* rwm").unwrap().kind, None);
        for bad in [
            "", "c 10:200", "x 1:1 r", "c 1 r", "c -1:1 r", "c 1:1 rx", "c 1:1  r",
        ] {
            assert!(one(bad).is_none(), "{bad}");
        }
    }
}
