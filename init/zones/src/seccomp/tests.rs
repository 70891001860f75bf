use super::*;
use crate::capabilities::Capability;

/// Runs a filter as the kernel would, on a call with its first argument.
fn run(filter: &[SockFilter], arch: u32, number: u32, argument: u32) -> u32 {
    let (mut at, mut loaded) = (0usize, 0u32);
    loop {
        let step = filter[at];
        at += 1;
        match step.code {
            LOAD => {
                loaded = match step.k {
                    DATA_NR => number,
                    DATA_ARCH => arch,
                    DATA_ARGS => argument,
                    other => panic!("loads from {other}"),
                }
            }
            JUMP => at += step.k as usize,
            RETURN => return step.k,
            code => {
                let holds = match code {
                    IF_EQUAL => loaded == step.k,
                    IF_AT_LEAST => loaded >= step.k,
                    IF_ANY_BIT => loaded & step.k != 0,
                    other => panic!("operation {other:#x}"),
                };
                at += usize::from(if holds { step.jt } else { step.jf });
            }
        }
    }
}

const ALLOWED: u32 = RET_ALLOW;
const REFUSED: u32 = RET_ERRNO | libc::EPERM as u32;
const ABSENT: u32 = RET_ERRNO | libc::ENOSYS as u32;

fn default_filter(capabilities: CapabilitySet) -> Vec<SockFilter> {
    filter(Seccomp::Default, capabilities).unwrap()
}

#[test]
fn every_number_gets_the_verdict_of_the_profile() {
    let wanted = verdicts(CapabilitySet::DEFAULT);
    let filter = default_filter(CapabilitySet::DEFAULT);
    assert!(
        filter.len() < 4096,
        "the kernel takes 4,096 instructions, not {}",
        filter.len()
    );
    for number in 0..600 {
        let expected = match wanted.get(&number) {
            Some(Verdict::Allow) => ALLOWED,
            Some(Verdict::Errno(errno)) => RET_ERRNO | u32::from(*errno),
            Some(_) => continue,
            None if number > profile::HIGHEST as u32 => ABSENT,
            None => REFUSED,
        };
        assert_eq!(run(&filter, ARCH_X86_64, number, 0), expected, "call {number}");
    }
}

#[test]
fn arguments_decide_where_the_call_alone_does_not() {
    let filter = default_filter(CapabilitySet::DEFAULT);
    let call = |number: i64, argument| run(&filter, ARCH_X86_64, number as u32, argument);
    assert_eq!(call(libc::SYS_socket, libc::AF_INET as u32), ALLOWED);
    assert_eq!(call(libc::SYS_socket, libc::AF_VSOCK as u32), REFUSED);
    assert_eq!(call(libc::SYS_personality, 0xffff_ffff), ALLOWED);
    assert_eq!(call(libc::SYS_personality, 1), REFUSED);
    assert_eq!(call(libc::SYS_clone, libc::SIGCHLD as u32), ALLOWED);
    assert_eq!(call(libc::SYS_clone, libc::CLONE_NEWUSER as u32), REFUSED);
    assert_eq!(call(libc::SYS_clone3, 0), ABSENT);
}

#[test]
fn a_capability_opens_its_calls_and_no_others() {
    let plain = default_filter(CapabilitySet::DEFAULT);
    let admin = default_filter(CapabilitySet::DEFAULT.with(Capability::SysAdmin));
    let mount = libc::SYS_mount as u32;
    assert_eq!(run(&plain, ARCH_X86_64, mount, 0), REFUSED);
    assert_eq!(run(&admin, ARCH_X86_64, mount, 0), ALLOWED);
    assert_eq!(run(&admin, ARCH_X86_64, libc::SYS_reboot as u32, 0), REFUSED);
}

#[test]
fn other_call_tables_are_absent() {
    let filter = default_filter(CapabilitySet::all());
    let i386 = 0x4000_0003;
    assert_eq!(run(&filter, i386, 3, 0), ABSENT);
    assert_eq!(run(&filter, ARCH_X86_64, 0x4000_0000, 0), ABSENT);
    assert_eq!(run(&filter, ARCH_X86_64, libc::SYS_read as u32, 0), ALLOWED);
}
