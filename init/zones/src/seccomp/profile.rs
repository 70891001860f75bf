//! The default profile: which system calls a zone may make, and under which capability more.
//!
//! It is Docker's, for programs of all three call tables of an x86-64 kernel.

use crate::capabilities::{Capability, CapabilitySet};

use super::rules::{Action, Comparison, Condition, Profile, Rule};

/// Allowed whatever the arguments and capabilities.
const ALWAYS: &str = "\
    _llseek _newselect accept accept4 access adjtimex alarm arch_prctl bind brk cachestat capget capset \
    chdir chmod chown chown32 clock_adjtime clock_adjtime64 clock_getres clock_getres_time64 \
    clock_gettime clock_gettime64 clock_nanosleep clock_nanosleep_time64 close close_range connect \
    copy_file_range creat dup dup2 dup3 epoll_create epoll_create1 epoll_ctl epoll_ctl_old epoll_pwait \
    epoll_pwait2 epoll_wait epoll_wait_old eventfd eventfd2 execve execveat exit exit_group faccessat \
    faccessat2 fadvise64 fadvise64_64 fallocate fanotify_mark fchdir fchmod fchmodat fchmodat2 fchown \
    fchown32 fchownat fcntl fcntl64 fdatasync fgetxattr flistxattr flock fork fremovexattr fsetxattr \
    fstat fstat64 fstatat64 fstatfs fstatfs64 fsync ftruncate ftruncate64 futex futex_requeue \
    futex_time64 futex_wait futex_waitv futex_wake futimesat get_robust_list get_thread_area getcpu \
    getcwd getdents getdents64 getegid getegid32 geteuid geteuid32 getgid getgid32 getgroups getgroups32 \
    getitimer getpeername getpgid getpgrp getpid getppid getpriority getrandom getresgid getresgid32 \
    getresuid getresuid32 getrlimit getrusage getsid getsockname getsockopt gettid gettimeofday getuid \
    getuid32 getxattr getxattrat inotify_add_watch inotify_init inotify_init1 inotify_rm_watch io_cancel \
    io_destroy io_getevents io_pgetevents io_pgetevents_time64 io_setup io_submit ioctl ioprio_get \
    ioprio_set ipc kill landlock_add_rule landlock_create_ruleset landlock_restrict_self lchown lchown32 \
    lgetxattr link linkat listen listmount listxattr listxattrat llistxattr lremovexattr lseek lsetxattr \
    lstat lstat64 madvise map_shadow_stack membarrier memfd_create memfd_secret mincore mkdir mkdirat \
    mknod mknodat mlock mlock2 mlockall mmap mmap2 modify_ldt mprotect mq_getsetattr mq_notify mq_open \
    mq_timedreceive mq_timedreceive_time64 mq_timedsend mq_timedsend_time64 mq_unlink mremap mseal \
    msgctl msgget msgrcv msgsnd msync munlock munlockall munmap name_to_handle_at nanosleep newfstatat \
    open openat openat2 pause pidfd_open pidfd_send_signal pipe pipe2 pkey_alloc pkey_free pkey_mprotect \
    poll ppoll ppoll_time64 prctl pread64 preadv preadv2 prlimit64 process_mrelease process_vm_readv \
    process_vm_writev pselect6 pselect6_time64 ptrace pwrite64 pwritev pwritev2 read readahead readlink \
    readlinkat readv recvfrom recvmmsg recvmmsg_time64 recvmsg remap_file_pages removexattr \
    removexattrat rename renameat renameat2 restart_syscall rmdir rseq rt_sigaction rt_sigpending \
    rt_sigprocmask rt_sigqueueinfo rt_sigreturn rt_sigsuspend rt_sigtimedwait rt_sigtimedwait_time64 \
    rt_tgsigqueueinfo sched_get_priority_max sched_get_priority_min sched_getaffinity sched_getattr \
    sched_getparam sched_getscheduler sched_rr_get_interval sched_rr_get_interval_time64 \
    sched_setaffinity sched_setattr sched_setparam sched_setscheduler sched_yield seccomp select semctl \
    semget semop semtimedop semtimedop_time64 sendfile sendfile64 sendmmsg sendmsg sendto \
    set_robust_list set_thread_area set_tid_address setfsgid setfsgid32 setfsuid setfsuid32 setgid \
    setgid32 setgroups setgroups32 setitimer setpgid setpriority setregid setregid32 setresgid \
    setresgid32 setresuid setresuid32 setreuid setreuid32 setrlimit setsid setsockopt setuid setuid32 \
    setxattr setxattrat shmat shmctl shmdt shmget shutdown sigaltstack signalfd signalfd4 sigprocmask \
    sigreturn socketcall socketpair splice stat stat64 statfs statfs64 statmount statx symlink symlinkat \
    sync sync_file_range syncfs sysinfo tee tgkill time timer_create timer_delete timer_getoverrun \
    timer_gettime timer_gettime64 timer_settime timer_settime64 timerfd_create timerfd_gettime \
    timerfd_gettime64 timerfd_settime timerfd_settime64 times tkill truncate truncate64 ugetrlimit umask \
    uname unlink unlinkat uretprobe utime utimensat utimensat_time64 utimes vfork vmsplice wait4 waitid \
    waitpid write writev";

/// Allowed with a capability.
const WITH_CAPABILITY: &[(Capability, &str)] = &[
    (Capability::Bpf, "bpf"),
    (Capability::DacReadSearch, "open_by_handle_at"),
    (Capability::Perfmon, "perf_event_open"),
    (Capability::Syslog, "syslog"),
    (
        Capability::SysAdmin,
        "\
         bpf clone clone3 fanotify_init fsconfig fsmount fsopen fspick lookup_dcookie \
         lsm_get_self_attr lsm_list_modules lsm_set_self_attr mount mount_setattr move_mount \
         open_tree perf_event_open quotactl quotactl_fd setdomainname sethostname setns syslog \
         umount umount2 unshare",
    ),
    (Capability::SysBoot, "reboot"),
    (Capability::SysChroot, "chroot"),
    (Capability::SysModule, "delete_module finit_module init_module"),
    (
        Capability::SysNice,
        "get_mempolicy mbind set_mempolicy set_mempolicy_home_node",
    ),
    (Capability::SysPacct, "acct"),
    (
        Capability::SysPtrace,
        "kcmp pidfd_getfd process_madvise process_vm_readv process_vm_writev ptrace",
    ),
    (Capability::SysRawio, "ioperm iopl"),
    (
        Capability::SysTime,
        "clock_settime clock_settime64 settimeofday stime",
    ),
    (Capability::SysTtyConfig, "vhangup"),
];

/// All namespace flags of `clone(2)` but `CLONE_NEWTIME`, which shares its bit with the exit signal.
const CLONE_NAMESPACES: u64 = 0x7e02_0000;
/// personality(2): Linux, with 32-bit uname, without address randomisation, both, and the query.
const PERSONALITIES: &[u64] = &[0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];
/// All address families but `AF_ALG` (38) and `AF_VSOCK` (40): the kernel's crypto and the hypervisor are
/// none of a zone's business.
const FAMILIES: [(Comparison, u64); 3] = [
    (Comparison::Less, 38),
    (Comparison::Equal, 39),
    (Comparison::Greater, 40),
];

/// The profile of a zone with these capabilities.
pub(super) fn default(capabilities: CapabilitySet) -> Profile {
    let mut rules = vec![allow(words(ALWAYS), Vec::new())];
    for (comparison, family) in FAMILIES {
        rules.push(allow(vec!["socket".to_owned()], vec![first(comparison, family)]));
    }
    for personality in PERSONALITIES {
        rules.push(allow(
            vec!["personality".to_owned()],
            vec![first(Comparison::Equal, *personality)],
        ));
    }
    for (capability, calls) in WITH_CAPABILITY {
        if capabilities.contains(*capability) {
            rules.push(allow(words(calls), Vec::new()));
        }
    }
    if !capabilities.contains(Capability::SysAdmin) {
        let without_namespaces = first(
            Comparison::MaskedEqual {
                mask: CLONE_NAMESPACES,
            },
            0,
        );
        rules.push(allow(vec!["clone".to_owned()], vec![without_namespaces]));
        // Its flags lie in memory, where no filter can look: C libraries then take clone.
        rules.push(Rule {
            calls: vec!["clone3".to_owned()],
            action: Action::Errno(libc::ENOSYS as u16),
            conditions: Vec::new(),
        });
    }
    Profile {
        default: Action::Errno(libc::EPERM as u16),
        x86: true,
        x32: true,
        rules,
    }
}

fn words(calls: &str) -> Vec<String> {
    calls.split_whitespace().map(str::to_owned).collect()
}

fn allow(calls: Vec<String>, conditions: Vec<Condition>) -> Rule {
    Rule {
        calls,
        action: Action::Allow,
        conditions,
    }
}

/// On the low half of the first argument: the kernel takes an int, and does not look at the other half.
fn first(comparison: Comparison, value: u64) -> Condition {
    Condition {
        argument: 0,
        comparison,
        value,
        low_half: true,
    }
}
