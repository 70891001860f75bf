use std::sync::Arc;

use super::compile::*;
use super::*;
use crate::capabilities::Capability;

/// Runs a filter as the kernel would, on a call with its first argument.
fn run(filter: &[SockFilter], arch: u32, number: u32, argument: u64) -> u32 {
    let (mut at, mut loaded) = (0usize, 0u32);
    loop {
        let step = filter[at];
        at += 1;
        match step.code {
            LOAD => {
                loaded = match step.k {
                    DATA_NR => number,
                    DATA_ARCH => arch,
                    DATA_ARGS => argument as u32,
                    other if other == DATA_ARGS + 4 => (argument >> 32) as u32,
                    _ => 0,
                }
            }
            AND => loaded &= step.k,
            JUMP => at += step.k as usize,
            RETURN => return step.k,
            code => {
                let holds = match code {
                    IF_EQUAL => loaded == step.k,
                    IF_GREATER => loaded > step.k,
                    IF_AT_LEAST => loaded >= step.k,
                    other => panic!("operation {other:#x}"),
                };
                at += usize::from(if holds { step.jt } else { step.jf });
            }
        }
    }
}

fn allowed() -> u32 {
    code(Action::Allow)
}

fn refused() -> u32 {
    code(Action::Errno(libc::EPERM as u16))
}

fn absent() -> u32 {
    code(Action::Errno(libc::ENOSYS as u16))
}

fn default_filter(capabilities: CapabilitySet) -> Vec<SockFilter> {
    filter(&Seccomp::Default, capabilities).unwrap().unwrap()
}

fn custom(profile: Profile) -> Vec<SockFilter> {
    filter(&Seccomp::Custom(Arc::new(profile)), CapabilitySet::DEFAULT)
        .unwrap()
        .unwrap()
}

#[test]
fn calls_are_allowed_in_all_three_tables() {
    let filter = default_filter(CapabilitySet::DEFAULT);
    assert!(filter.len() < 1_500, "{} instructions", filter.len());
    for (arch, number, verdict) in [
        (ARCH_X86_64, libc::SYS_read as u32, allowed()),
        (ARCH_X86_64, libc::SYS_mount as u32, refused()),
        (ARCH_X86_64, libc::SYS_mseal as u32, allowed()),
        (ARCH_X86_64, 2_000, absent()),
        // read, socketcall, mount, and the time of 64 bits, of i386
        (ARCH_I386, 3, allowed()),
        (ARCH_I386, 102, allowed()),
        (ARCH_I386, 21, refused()),
        (ARCH_I386, 403, allowed()),
        (ARCH_I386, 2_000, absent()),
        // read, execve, mount, kexec_load of x32
        (ARCH_X86_64, 0x4000_0000, allowed()),
        (ARCH_X86_64, 0x4000_0000 + 520, allowed()),
        (ARCH_X86_64, 0x4000_0000 + 165, refused()),
        (ARCH_X86_64, 0x4000_0000 + 528, refused()),
        (ARCH_X86_64, 0x4000_0000 + 548, absent()),
        (0xc000_00b7, 0, code(Action::KillProcess)),
    ] {
        assert_eq!(run(&filter, arch, number, 0), verdict, "{arch:#x} {number}");
    }
}

#[test]
fn arguments_decide_where_the_call_alone_does_not() {
    let filter = default_filter(CapabilitySet::DEFAULT);
    let call = |number: i64, argument| run(&filter, ARCH_X86_64, number as u32, argument);
    assert_eq!(call(libc::SYS_socket, libc::AF_INET as u64), allowed());
    assert_eq!(call(libc::SYS_socket, libc::AF_VSOCK as u64), refused());
    // The kernel looks at the low half only, and so must the filter.
    assert_eq!(call(libc::SYS_socket, 1 << 32 | libc::AF_VSOCK as u64), refused());
    assert_eq!(call(libc::SYS_personality, 0xffff_ffff), allowed());
    assert_eq!(call(libc::SYS_personality, 1), refused());
    assert_eq!(call(libc::SYS_clone, libc::SIGCHLD as u64), allowed());
    assert_eq!(call(libc::SYS_clone, libc::CLONE_NEWUSER as u64), refused());
    assert_eq!(call(libc::SYS_clone3, 0), absent());
}

#[test]
fn a_capability_opens_its_calls_and_no_others() {
    let plain = default_filter(CapabilitySet::DEFAULT);
    let admin = default_filter(CapabilitySet::DEFAULT.with(Capability::SysAdmin));
    for (number, argument) in [
        (libc::SYS_mount, 0),
        (libc::SYS_clone, libc::CLONE_NEWUSER as u64),
    ] {
        let on = |filter| run(filter, ARCH_X86_64, number as u32, argument);
        assert_eq!((on(&plain), on(&admin)), (refused(), allowed()), "{number}");
    }
    assert_eq!(run(&admin, ARCH_X86_64, libc::SYS_clone3 as u32, 0), allowed());
    assert_eq!(run(&admin, ARCH_X86_64, libc::SYS_reboot as u32, 0), refused());
}

/// A profile that forbids nothing but what one rule on `close` says.
fn about_close(action: Action, conditions: Vec<Condition>) -> Profile {
    Profile {
        default: Action::Allow,
        x86: false,
        x32: false,
        rules: vec![Rule {
            calls: vec!["close".to_owned(), "no_such_call".to_owned()],
            action,
            conditions,
        }],
    }
}

#[test]
fn every_comparison_is_that_of_64_bits() {
    const BIG: u64 = 5 << 32 | 7;
    let around = [0, 6, 7, 8, BIG - 1, BIG, BIG + 1, 4 << 32 | 9, 6 << 32 | 1];
    let mask = 0xf_0000_000f;
    type Holds = fn(u64, u64) -> bool;
    let comparisons: [(Comparison, Holds); 7] = [
        (Comparison::NotEqual, |a, b| a != b),
        (Comparison::Less, |a, b| a < b),
        (Comparison::LessOrEqual, |a, b| a <= b),
        (Comparison::Equal, |a, b| a == b),
        (Comparison::GreaterOrEqual, |a, b| a >= b),
        (Comparison::Greater, |a, b| a > b),
        (Comparison::MaskedEqual { mask }, |a, b| a & 0xf_0000_000f == b),
    ];
    for (comparison, holds) in comparisons {
        for value in [7, BIG] {
            let condition = Condition {
                argument: 0,
                comparison,
                value,
                low_half: false,
            };
            let filter = custom(about_close(Action::Errno(1), vec![condition]));
            for argument in around {
                let got = run(&filter, ARCH_X86_64, libc::SYS_close as u32, argument);
                let wanted = if holds(argument, value) {
                    refused()
                } else {
                    allowed()
                };
                assert_eq!(got, wanted, "{argument:#x} {comparison:?} {value:#x}");
            }
        }
    }
}

#[test]
fn every_action_has_its_code_and_other_tables_are_killed_where_not_named() {
    for action in [
        Action::Log,
        Action::Errno(77),
        Action::Trap,
        Action::Trace(5),
        Action::KillThread,
        Action::KillProcess,
    ] {
        let filter = custom(about_close(action, Vec::new()));
        let close = run(&filter, ARCH_X86_64, libc::SYS_close as u32, 0);
        assert_eq!(close, code(action));
        assert_eq!(run(&filter, ARCH_X86_64, libc::SYS_read as u32, 0), allowed());
        // Newer than the profile knows: allowed, as by default.
        assert_eq!(run(&filter, ARCH_X86_64, 999, 0), allowed());
        for (arch, number) in [(ARCH_I386, 3), (ARCH_X86_64, 0x4000_0000)] {
            assert_eq!(run(&filter, arch, number, 0), code(Action::KillProcess));
        }
    }
}

#[test]
fn two_conditions_on_one_argument_are_alternatives_and_on_two_hold_together() {
    let equal = |argument, value| Condition {
        argument,
        comparison: Comparison::Equal,
        value,
        low_half: false,
    };
    let close = libc::SYS_close as u32;
    let either = custom(about_close(Action::Errno(1), vec![equal(0, 3), equal(0, 4)]));
    for (argument, verdict) in [(3, refused()), (4, refused()), (5, allowed())] {
        assert_eq!(run(&either, ARCH_X86_64, close, argument), verdict);
    }
    // The second argument is 0 here.
    let both = custom(about_close(Action::Errno(1), vec![equal(0, 3), equal(1, 0)]));
    assert_eq!(run(&both, ARCH_X86_64, close, 3), refused());
    let never = custom(about_close(Action::Errno(1), vec![equal(0, 3), equal(1, 1)]));
    assert_eq!(run(&never, ARCH_X86_64, close, 3), allowed());
}

/// Docker's own profile, where the folder with the reference data is beside the project.
const REFERENCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../../shared/docker-api/seccomp-default.json"
);

#[test]
fn the_profile_allows_what_dockers_does_and_no_more() {
    let Ok(text) = std::fs::read_to_string(REFERENCE) else {
        println!("skipped: {REFERENCE} is not there to compare with");
        return;
    };
    let reference: serde_json::Value = serde_json::from_str(&text).unwrap();
    let strings = |value: &serde_json::Value| -> Vec<String> {
        let list = value.as_array().into_iter().flatten();
        list.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    };
    // For each set of capabilities the calls that are allowed without a look at their arguments.
    let everything = [
        CapabilitySet::DEFAULT,
        CapabilitySet::EMPTY,
        CapabilitySet::all(),
        CapabilitySet::DEFAULT.with(Capability::SysAdmin),
        CapabilitySet::DEFAULT.with(Capability::SysPtrace),
    ];
    for capabilities in everything {
        let mut theirs = std::collections::BTreeSet::new();
        for rule in reference["syscalls"].as_array().unwrap() {
            let arches = strings(&rule["includes"]["arches"]);
            let here = arches.is_empty() || arches.iter().any(|arch| arch == "amd64");
            let has = |name: &String| capabilities.contains(Capability::parse(name).unwrap());
            let included = strings(&rule["includes"]["caps"]).iter().all(has);
            let excluded = strings(&rule["excludes"]["caps"]).iter().any(has);
            let plain = rule["args"].as_array().is_none_or(Vec::is_empty);
            if here && included && !excluded && plain && rule["action"] == "SCMP_ACT_ALLOW" {
                let names = strings(&rule["names"]);
                theirs.extend(names.into_iter().filter(|name| known(name)));
            }
        }
        let ours: std::collections::BTreeSet<String> = profile::default(capabilities)
            .rules
            .into_iter()
            .filter(|rule| rule.conditions.is_empty() && rule.action == Action::Allow)
            .flat_map(|rule| rule.calls)
            .collect();
        let none: Vec<&String> = Vec::new();
        assert_eq!(ours.difference(&theirs).collect::<Vec<_>>(), none, "too many");
        assert_eq!(theirs.difference(&ours).collect::<Vec<_>>(), none, "too few");
    }
}

fn known(name: &str) -> bool {
    table::CALLS.iter().any(|call| call.0 == name)
}
