//! Filters of system calls, compiled to the kernel's classic BPF (seccomp(2)).
//!
//! The numbers that a profile allows are turned into runs, and the filter finds the run of a call by
//! bisection: some ten instructions a call instead of one for each call of the list. Numbers of the
//! 32-bit and x32 tables are answered as missing (`ENOSYS`).

mod profile;

use std::collections::BTreeMap;

use sys::program::SockFilter;

use crate::capabilities::CapabilitySet;

/// What a zone may call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Seccomp {
    /// Docker's default profile, by the zone's capabilities.
    #[default]
    Default,
    Unconfined,
}

/// What becomes of a call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    Allow,
    Errno(u16),
    /// Allowed if the low half of an argument is one of these.
    OneOf(u8, &'static [u32]),
    /// Allowed if the low half of an argument is none of these.
    NoneOf(u8, &'static [u32]),
    /// Allowed if the low half of an argument has none of these bits.
    Without(u8, u32),
}

const FORBIDDEN: Verdict = Verdict::Errno(libc::EPERM as u16);
const MISSING: Verdict = Verdict::Errno(libc::ENOSYS as u16);

/// All namespace flags of `clone(2)` but `CLONE_NEWTIME`, which shares its bit with the exit signal.
const CLONE_NAMESPACES: u32 = 0x7e02_0000;
/// personality(2): Linux, with 32-bit uname, without address randomisation, both, and the query.
const PERSONALITIES: &[u32] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// `AF_ALG` and `AF_VSOCK`: the kernel's crypto and the hypervisor are none of a zone's business.
const FAMILIES_REFUSED: &[u32] = &[38, 40];

/// The filter for a zone, or none.
pub(crate) fn filter(profile: Seccomp, capabilities: CapabilitySet) -> Option<Vec<SockFilter>> {
    match profile {
        Seccomp::Unconfined => None,
        Seccomp::Default => Some(compile(&verdicts(capabilities))),
    }
}

fn verdicts(capabilities: CapabilitySet) -> BTreeMap<u32, Verdict> {
    let mut verdicts = BTreeMap::new();
    let number = |call: i64| u32::try_from(call).ok();
    let always = profile::ALWAYS.iter().chain(profile::ALWAYS_BY_NUMBER);
    verdicts.extend(always.filter_map(|call| Some((number(call.1)?, Verdict::Allow))));
    let special = [
        (libc::SYS_socket, Verdict::NoneOf(0, FAMILIES_REFUSED)),
        (libc::SYS_personality, Verdict::OneOf(0, PERSONALITIES)),
        (libc::SYS_clone, Verdict::Without(0, CLONE_NAMESPACES)),
        (libc::SYS_clone3, MISSING),
    ];
    verdicts.extend(
        special
            .into_iter()
            .filter_map(|(call, verdict)| Some((number(call)?, verdict))),
    );
    for (capability, calls) in profile::WITH_CAPABILITY {
        if capabilities.contains(*capability) {
            verdicts.extend(
                calls
                    .iter()
                    .filter_map(|call| Some((number(call.1)?, Verdict::Allow))),
            );
        }
    }
    verdicts
}

/// A run of numbers from `first` up to the next run, all with one verdict.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    first: u32,
    verdict: Verdict,
}

fn runs(verdicts: &BTreeMap<u32, Verdict>) -> Vec<Run> {
    let mut runs = vec![Run {
        first: 0,
        verdict: FORBIDDEN,
    }];
    let mut add = |first: u32, verdict: Verdict| match runs.last_mut() {
        Some(last) if last.verdict == verdict => {}
        Some(last) if last.first == first => last.verdict = verdict,
        _ => runs.push(Run { first, verdict }),
    };
    let mut next = 0;
    for (number, verdict) in verdicts {
        if *number > next {
            add(next, FORBIDDEN);
        }
        add(*number, *verdict);
        next = number + 1;
    }
    add(next, FORBIDDEN);
    add(profile::HIGHEST as u32 + 1, MISSING);
    runs
}

/// Offsets in `struct seccomp_data`.
const DATA_NR: u32 = 0;
const DATA_ARCH: u32 = 4;
const DATA_ARGS: u32 = 16;
/// `AUDIT_ARCH_X86_64` (`linux/audit.h`).
const ARCH_X86_64: u32 = 0xc000_003e;

/// Operation codes of classic BPF (`linux/bpf_common.h`).
const LOAD: u16 = 0x20;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_AT_LEAST: u16 = 0x35;
const IF_ANY_BIT: u16 = 0x45;
const RETURN: u16 = 0x06;
/// `SECCOMP_RET_*` (`linux/seccomp.h`).
const RET_ALLOW: u32 = 0x7fff_0000;
const RET_ERRNO: u32 = 0x0005_0000;

fn compile(verdicts: &BTreeMap<u32, Verdict>) -> Vec<SockFilter> {
    let mut filter = vec![
        instruction(LOAD, DATA_ARCH),
        branch(IF_EQUAL, ARCH_X86_64, 1, 0),
        instruction(RETURN, RET_ERRNO | libc::ENOSYS as u32),
        instruction(LOAD, DATA_NR),
    ];
    filter.extend(bisect(&runs(verdicts)));
    filter
}

fn bisect(runs: &[Run]) -> Vec<SockFilter> {
    let (left, right) = runs.split_at(runs.len() / 2);
    let Some(middle) = right.first() else {
        return Vec::new();
    };
    if left.is_empty() {
        return decide(middle.verdict);
    }
    let below = bisect(left);
    let above = bisect(right);
    // The jump over the lower half may be longer than a condition's offset can say.
    let mut code = match u8::try_from(below.len()) {
        Ok(offset) => vec![branch(IF_AT_LEAST, middle.first, offset, 0)],
        Err(_) => {
            vec![
                branch(IF_AT_LEAST, middle.first, 0, 1),
                instruction(JUMP, below.len() as u32),
            ]
        }
    };
    code.extend(below);
    code.extend(above);
    code
}

fn decide(verdict: Verdict) -> Vec<SockFilter> {
    let allow = instruction(RETURN, RET_ALLOW);
    let forbid = instruction(RETURN, RET_ERRNO | libc::EPERM as u32);
    let argument = |index: u8| instruction(LOAD, DATA_ARGS + 8 * u32::from(index));
    match verdict {
        Verdict::Allow => vec![allow],
        Verdict::Errno(errno) => vec![instruction(RETURN, RET_ERRNO | u32::from(errno))],
        Verdict::Without(index, bits) => vec![argument(index), branch(IF_ANY_BIT, bits, 1, 0), allow, forbid],
        Verdict::OneOf(index, values) => among(argument(index), values, allow, forbid),
        Verdict::NoneOf(index, values) => among(argument(index), values, forbid, allow),
    }
}

/// `found` if the loaded value is among the values, else `other`.
fn among(load: SockFilter, values: &[u32], found: SockFilter, other: SockFilter) -> Vec<SockFilter> {
    let mut code = vec![load];
    for (index, value) in values.iter().enumerate() {
        let to_found = u8::try_from(values.len() - index).unwrap_or(u8::MAX);
        code.push(branch(IF_EQUAL, *value, to_found, 0));
    }
    code.extend([other, found]);
    code
}

const fn instruction(code: u16, k: u32) -> SockFilter {
    SockFilter {
        code,
        jt: 0,
        jf: 0,
        k,
    }
}

const fn branch(code: u16, k: u32, jt: u8, jf: u8) -> SockFilter {
    SockFilter { code, jt, jf, k }
}

#[cfg(test)]
mod tests;
