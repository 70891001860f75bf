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

/// Docker's own profile, where the folder with the reference data is beside the project.
const REFERENCE: &str = concat!(
    env!("CARGO_MANIFEST_DIR"),
    "/../../../shared/docker-api/seccomp-default.json"
);

/// Names that x86-64 has no call for: those of 32-bit and other machines' tables.
const NOT_HERE: &[&str] = &[
    "_llseek",
    "_newselect",
    "chown32",
    "clock_adjtime64",
    "clock_getres_time64",
    "clock_gettime64",
    "clock_nanosleep_time64",
    "clock_settime64",
    "fadvise64_64",
    "fchown32",
    "fcntl64",
    "fstat64",
    "fstatat64",
    "fstatfs64",
    "ftruncate64",
    "futex_time64",
    "getegid32",
    "geteuid32",
    "getgid32",
    "getgroups32",
    "getresgid32",
    "getresuid32",
    "getuid32",
    "io_pgetevents_time64",
    "ipc",
    "lchown32",
    "lstat64",
    "mmap2",
    "mq_timedreceive_time64",
    "mq_timedsend_time64",
    "nice",
    "oldfstat",
    "oldlstat",
    "oldstat",
    "olduname",
    "ppoll_time64",
    "pselect6_time64",
    "readdir",
    "recv",
    "riscv_hwprobe",
    "recvmmsg_time64",
    "rt_sigtimedwait_time64",
    "sched_rr_get_interval_time64",
    "semtimedop_time64",
    "send",
    "sendfile64",
    "setfsgid32",
    "setfsuid32",
    "setgid32",
    "setgroups32",
    "setregid32",
    "setresgid32",
    "setresuid32",
    "setreuid32",
    "setuid32",
    "sigaction",
    "signal",
    "sigpending",
    "sigprocmask",
    "sigreturn",
    "sigsuspend",
    "socketcall",
    "stat64",
    "statfs64",
    "stime",
    "timer_gettime64",
    "timer_settime64",
    "timerfd_gettime64",
    "timerfd_settime64",
    "truncate64",
    "ugetrlimit",
    "umount",
    "utimensat_time64",
    "waitpid",
];

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
    // A call and the capability that it takes, if any; rules on arguments are tested above.
    let mut theirs = std::collections::BTreeSet::new();
    for rule in reference["syscalls"].as_array().unwrap() {
        let arches = strings(&rule["includes"]["arches"]);
        let here = arches.is_empty() || arches.iter().any(|arch| arch == "amd64");
        if !here || rule["action"] != "SCMP_ACT_ALLOW" || !rule["args"].as_array().is_none_or(Vec::is_empty) {
            continue;
        }
        let mut capabilities: Vec<Option<String>> =
            strings(&rule["includes"]["caps"]).into_iter().map(Some).collect();
        if capabilities.is_empty() {
            capabilities.push(None);
        }
        for name in strings(&rule["names"]) {
            if !NOT_HERE.contains(&name.as_str()) {
                theirs.extend(
                    capabilities
                        .iter()
                        .map(|capability| (name.clone(), capability.clone())),
                );
            }
        }
    }
    let name = |call: &profile::Call| {
        let name = call.0.trim_start_matches("SYS_");
        name.to_owned()
    };
    let always = profile::ALWAYS.iter().chain(profile::ALWAYS_BY_NUMBER);
    let mut ours: std::collections::BTreeSet<_> = always.map(|call| (name(call), None)).collect();
    for (capability, calls) in profile::WITH_CAPABILITY {
        ours.extend(
            calls
                .iter()
                .map(|call| (name(call), Some(capability.to_string()))),
        );
    }
    assert_eq!(
        ours.difference(&theirs).collect::<Vec<_>>(),
        Vec::<&(String, Option<String>)>::new()
    );
    assert_eq!(
        theirs.difference(&ours).collect::<Vec<_>>(),
        Vec::<&(String, Option<String>)>::new()
    );
}
