//! Bare system calls of the interpreter: no allocation, no lock, no buffer that the kernel keeps.

use std::ffi::{CStr, CString, c_int, c_long, c_uint};
use std::io;
use std::os::fd::RawFd;
use std::ptr;

use super::{CapabilitySets, MountAttributes, SockFilter};

pub(super) type Done = Result<(), i32>;

pub(super) fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

pub(super) fn check(result: c_int) -> Result<c_int, i32> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

pub(super) fn check_long(result: c_long) -> Result<c_int, i32> {
    if result < 0 {
        Err(errno())
    } else {
        Ok(result as c_int)
    }
}

pub(super) fn close(fd: RawFd) {
    // SAFETY: closes a descriptor that this process opened and does not use again.
    unsafe { libc::close(fd) };
}

pub(super) fn is_dir(fd: RawFd) -> Result<bool, i32> {
    // SAFETY: an all-zero `stat` is valid and is filled by the kernel.
    let mut stat: libc::stat = unsafe { std::mem::zeroed() };
    // SAFETY: as above.
    check(unsafe { libc::fstat(fd, &mut stat) })?;
    Ok(stat.st_mode & libc::S_IFMT == libc::S_IFDIR)
}

/// `fsconfig(2)` commands (`linux/mount.h`).
const FSCONFIG_SET_STRING: c_uint = 1;
const FSCONFIG_SET_FLAG: c_uint = 0;
const FSCONFIG_CMD_CREATE: c_uint = 6;
const FSOPEN_CLOEXEC: c_uint = 1;
const FSMOUNT_CLOEXEC: c_uint = 1;
const MOVE_MOUNT_F_EMPTY_PATH: c_uint = 4;
const OPEN_TREE_CLONE: c_uint = 1;

pub(super) fn new_mount(
    fstype: &CStr,
    options: &[(CString, CString)],
    attributes: MountAttributes,
) -> Result<RawFd, i32> {
    // SAFETY: prepared strings; the descriptors are this process's own.
    unsafe {
        let context = check_long(libc::syscall(libc::SYS_fsopen, fstype.as_ptr(), FSOPEN_CLOEXEC))?;
        for (key, value) in options {
            let (command, value) = if value.is_empty() {
                (FSCONFIG_SET_FLAG, ptr::null())
            } else {
                (FSCONFIG_SET_STRING, value.as_ptr())
            };
            check_long(libc::syscall(
                libc::SYS_fsconfig,
                context,
                command,
                key.as_ptr(),
                value,
                0,
            ))?;
        }
        let none = ptr::null::<libc::c_char>();
        check_long(libc::syscall(
            libc::SYS_fsconfig,
            context,
            FSCONFIG_CMD_CREATE,
            none,
            none,
            0,
        ))?;
        let tree = check_long(libc::syscall(
            libc::SYS_fsmount,
            context,
            FSMOUNT_CLOEXEC,
            attributes.0 as c_uint,
        ));
        close(context);
        tree
    }
}

pub(super) fn clone_tree(dir: RawFd, path: &CStr, flags: c_int) -> Result<RawFd, i32> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as c_uint | flags as c_uint;
    // SAFETY: a prepared string.
    check_long(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

pub(super) fn move_mount(tree: RawFd, dir: RawFd, at: &CStr, flags: c_uint) -> Done {
    // SAFETY: prepared strings.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            tree,
            c"".as_ptr(),
            dir,
            at.as_ptr(),
            MOVE_MOUNT_F_EMPTY_PATH | flags,
        )
    })
    .map(drop)
}

pub(super) fn set_attributes(tree: RawFd, flags: c_int, attributes: MountAttributes) -> Done {
    if attributes.0 == 0 {
        return Ok(());
    }
    // SAFETY: an all-zero `mount_attr` changes nothing.
    let mut change: libc::mount_attr = unsafe { std::mem::zeroed() };
    change.attr_set = attributes.0;
    // SAFETY: the structure outlives the call.
    check_long(unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree,
            c"".as_ptr(),
            libc::AT_EMPTY_PATH | flags,
            &change,
            size_of::<libc::mount_attr>(),
        )
    })
    .map(drop)
}

pub(super) fn read_only_root() -> Done {
    // SAFETY: opens the root of this process.
    let root = check(unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })?;
    let done = set_attributes(root, 0, MountAttributes::READ_ONLY);
    close(root);
    done
}

pub(super) fn write_file(path: &CStr, data: &[u8]) -> Done {
    // SAFETY: a prepared string and slice.
    unsafe {
        let fd = check(libc::open(
            path.as_ptr(),
            libc::O_WRONLY | libc::O_CLOEXEC | libc::O_NOFOLLOW,
        ))?;
        let written = check_long(libc::write(fd, data.as_ptr().cast(), data.len()) as c_long);
        close(fd);
        if written? as usize == data.len() {
            Ok(())
        } else {
            Err(libc::EIO)
        }
    }
}

pub(super) fn write_byte(fd: RawFd) -> Done {
    // SAFETY: writes one byte of a local.
    check_long(unsafe { libc::write(fd, [1u8].as_ptr().cast(), 1) } as c_long).map(drop)
}

/// Clears the mark by which an exec would close a descriptor.
pub(super) fn keep_open(fd: RawFd) -> Done {
    // SAFETY: a plain number.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, 0) }).map(drop)
}

/// An error of execve(2) that can be told beforehand.
pub(super) fn executable(file: &CStr) -> Done {
    // SAFETY: a prepared string; the descriptor is closed again.
    unsafe {
        let fd = check(libc::open(file.as_ptr(), libc::O_PATH | libc::O_CLOEXEC))?;
        let mut stat: libc::stat = std::mem::zeroed();
        let known = check(libc::fstat(fd, &mut stat));
        close(fd);
        known?;
        // Whatever the user: one of the bits must be set, even for root.
        if stat.st_mode & libc::S_IFMT == libc::S_IFREG && stat.st_mode & 0o111 != 0 {
            Ok(())
        } else {
            Err(libc::EACCES)
        }
    }
}

pub(super) fn umask(mask: u32) -> Done {
    // SAFETY: a plain number; it cannot fail.
    unsafe { libc::umask(mask) };
    Ok(())
}

pub(super) fn personality(number: u64) -> Done {
    // SAFETY: a plain number.
    check(unsafe { libc::personality(number as libc::c_ulong) }).map(drop)
}

/// ioctls of netdevice(7).
pub(super) fn loopback_up() -> Done {
    // SAFETY: an all-zero `ifreq` is valid; the kernel reads and fills it, and it outlives the calls.
    unsafe {
        let socket = check(libc::socket(
            libc::AF_INET,
            libc::SOCK_DGRAM | libc::SOCK_CLOEXEC,
            0,
        ))?;
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        let read = check(libc::ioctl(socket, libc::SIOCGIFFLAGS, &mut request));
        request.ifr_ifru.ifru_flags |= libc::IFF_UP as libc::c_short;
        let set = read.and_then(|_| check(libc::ioctl(socket, libc::SIOCSIFFLAGS, &request)));
        close(socket);
        set.map(drop)
    }
}

/// `setns(2)`
pub(super) fn join_namespaces(pidfd: RawFd, flags: c_int) -> Done {
    // SAFETY: plain numbers.
    check(unsafe { libc::setns(pidfd, flags) }).map(drop)
}

pub(super) fn unshare(flags: c_int) -> Done {
    // SAFETY: a plain number.
    check(unsafe { libc::unshare(flags) }).map(drop)
}

pub(super) fn private_mounts() -> Done {
    let (none, root) = (ptr::null(), c"/".as_ptr());
    // SAFETY: constant strings.
    check(unsafe { libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, ptr::null()) }).map(drop)
}

pub(super) fn root_propagation(flags: u64) -> Done {
    let (none, root) = (ptr::null(), c"/".as_ptr());
    // SAFETY: constant strings.
    check(unsafe { libc::mount(none, root, none, flags as libc::c_ulong, ptr::null()) }).map(drop)
}

pub(super) fn set_host_name(name: &CStr) -> Done {
    // SAFETY: a prepared string with its length.
    check(unsafe { libc::sethostname(name.as_ptr(), name.count_bytes()) }).map(drop)
}

pub(super) fn set_domain_name(name: &CStr) -> Done {
    // SAFETY: a prepared string with its length.
    check(unsafe { libc::setdomainname(name.as_ptr(), name.count_bytes()) }).map(drop)
}

pub(super) fn new_session() -> Done {
    // SAFETY: no arguments.
    check(unsafe { libc::setsid() }).map(drop)
}

pub(super) fn new_keyring() -> Done {
    /// `KEYCTL_JOIN_SESSION_KEYRING` (`linux/keyctl.h`); without a name it is a new one.
    const JOIN_SESSION_KEYRING: c_int = 1;
    let none: *const libc::c_char = ptr::null();
    // SAFETY: a plain number and no name.
    match check_long(unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, none) }) {
        Ok(_) | Err(libc::ENOSYS) => Ok(()),
        Err(error) => Err(error),
    }
}

// Ids by the raw calls: glibc's wrappers would have the parent's other threads follow, which do not
// exist here.

pub(super) fn set_groups(groups: &[u32]) -> Done {
    // SAFETY: an array with its length.
    check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) }).map(drop)
}

pub(super) fn set_group(gid: u32) -> Done {
    // SAFETY: plain numbers.
    check_long(unsafe { libc::syscall(libc::SYS_setresgid, gid, gid, gid) }).map(drop)
}

pub(super) fn set_user(uid: u32) -> Done {
    // SAFETY: plain numbers.
    check_long(unsafe { libc::syscall(libc::SYS_setresuid, uid, uid, uid) }).map(drop)
}

pub(super) fn no_new_privileges() -> Done {
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
}

/// One past the highest capability that `capability.h` could ever number in a 64-bit set.
const CAPABILITIES: c_int = 64;

pub(super) fn bound_capabilities(kept: u64) -> Done {
    for capability in (0..CAPABILITIES).filter(|number| kept & (1 << number) == 0) {
        // SAFETY: plain numbers.
        match check(unsafe { libc::prctl(libc::PR_CAPBSET_DROP, capability, 0, 0, 0) }) {
            Ok(_) => {}
            // The kernel knows no such capability, nor any above it.
            Err(libc::EINVAL) => break,
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: c_int,
}

#[repr(C)]
#[derive(Clone, Copy)]
struct CapabilityData {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// `_LINUX_CAPABILITY_VERSION_3`.
const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

pub(super) fn set_capabilities(set: u64) -> Done {
    set_capability_sets(CapabilitySets {
        effective: set,
        permitted: set,
        inheritable: 0,
        ambient: 0,
    })
}

pub(super) fn set_capability_sets(sets: CapabilitySets) -> Done {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |shift: u32| CapabilityData {
        effective: (sets.effective >> shift) as u32,
        permitted: (sets.permitted >> shift) as u32,
        inheritable: (sets.inheritable >> shift) as u32,
    };
    let data = [half(0), half(32)];
    // SAFETY: structures of capget(2), version 3, which outlive the calls.
    unsafe {
        check(libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        ))?;
        check_long(libc::syscall(libc::SYS_capset, &header, data.as_ptr()))?;
    }
    for capability in (0..CAPABILITIES).filter(|number| sets.ambient & (1 << number) != 0) {
        // SAFETY: plain numbers.
        check(unsafe { libc::prctl(libc::PR_CAP_AMBIENT, libc::PR_CAP_AMBIENT_RAISE, capability, 0, 0) })?;
    }
    Ok(())
}

pub(super) fn keep_capabilities() -> Done {
    // SAFETY: plain numbers.
    check(unsafe { libc::prctl(libc::PR_SET_KEEPCAPS, 1, 0, 0, 0) }).map(drop)
}

/// `SECCOMP_SET_MODE_FILTER` of seccomp(2).
const SECCOMP_SET_MODE_FILTER: c_uint = 1;

pub(super) fn install_filter(filter: &[SockFilter]) -> Done {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| libc::EINVAL)?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies the filter; `SockFilter` has the layout of `struct sock_filter`.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) }).map(drop)
}

/// Sends one descriptor over a socket (unix(7), `SCM_RIGHTS`).
pub(super) fn send_descriptor(to: RawFd, fd: RawFd) -> Done {
    #[repr(C)]
    union Buffer {
        header: libc::cmsghdr,
        bytes: [u8; 32],
    }
    let mut buffer = Buffer { bytes: [0; 32] };
    let mut byte = 0u8;
    let mut data = libc::iovec {
        iov_base: (&raw mut byte).cast(),
        iov_len: 1,
    };
    // SAFETY: the control buffer is aligned for and larger than one header with one descriptor
    // (`CMSG_SPACE(4)` is 24), and everything outlives the call.
    unsafe {
        let mut message: libc::msghdr = std::mem::zeroed();
        message.msg_iov = &mut data;
        message.msg_iovlen = 1;
        message.msg_control = (&raw mut buffer).cast();
        message.msg_controllen = libc::CMSG_SPACE(size_of::<c_int>() as c_uint) as usize;
        let header = libc::CMSG_FIRSTHDR(&message);
        (*header).cmsg_level = libc::SOL_SOCKET;
        (*header).cmsg_type = libc::SCM_RIGHTS;
        (*header).cmsg_len = libc::CMSG_LEN(size_of::<c_int>() as c_uint) as usize;
        libc::CMSG_DATA(header).cast::<c_int>().write_unaligned(fd);
        check_long(libc::sendmsg(to, &message, libc::MSG_NOSIGNAL) as c_long).map(drop)
    }
}
