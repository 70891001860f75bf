//! Programs of the kernel's extended BPF (bpf(2)) that decide which devices a cgroup may open.

use std::io;
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// `struct bpf_insn`: operation, registers (destination in the low half), offset, immediate value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(C)]
pub struct Instruction {
    pub code: u8,
    pub registers: u8,
    pub offset: i16,
    pub immediate: i32,
}

/// `BPF_PROG_LOAD`, `BPF_PROG_ATTACH`; `BPF_PROG_TYPE_CGROUP_DEVICE`; `BPF_CGROUP_DEVICE` (`linux/bpf.h`).
const PROGRAM_LOAD: libc::c_int = 5;
const PROGRAM_ATTACH: libc::c_int = 8;
const TYPE_CGROUP_DEVICE: u32 = 15;
const ATTACH_CGROUP_DEVICE: u32 = 6;

/// The first fields of `union bpf_attr` for a load; the kernel takes the rest as zero.
#[repr(C)]
struct Load {
    program_type: u32,
    count: u32,
    instructions: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log: u64,
    kernel_version: u32,
    flags: u32,
}

#[repr(C)]
struct Attach {
    target: u32,
    program: u32,
    attach_type: u32,
    flags: u32,
}

fn bpf<T>(command: libc::c_int, attributes: &T) -> io::Result<libc::c_long> {
    // SAFETY: a structure of the command's form with its size; what it points to outlives the call.
    match unsafe {
        libc::syscall(
            libc::SYS_bpf,
            command,
            std::ptr::from_ref(attributes),
            size_of::<T>(),
        )
    } {
        -1 => Err(io::Error::last_os_error()),
        result => Ok(result),
    }
}

/// Loads a program of the type `BPF_PROG_TYPE_CGROUP_DEVICE`, which the kernel verifies.
pub fn load_device_program(program: &[Instruction]) -> io::Result<OwnedFd> {
    let attributes = Load {
        program_type: TYPE_CGROUP_DEVICE,
        count: u32::try_from(program.len()).map_err(io::Error::other)?,
        instructions: program.as_ptr() as u64,
        license: c"".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log: 0,
        kernel_version: 0,
        flags: 0,
    };
    let fd = bpf(PROGRAM_LOAD, &attributes)?;
    // SAFETY: the kernel has just made this descriptor for us.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has a program decide for a cgroup and those below it, in place of one that did; it stays for as long
/// as the cgroup.
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let attributes = Attach {
        target: cgroup.as_fd().as_raw_fd() as u32,
        program: program.as_fd().as_raw_fd() as u32,
        attach_type: ATTACH_CGROUP_DEVICE,
        flags: 0,
    };
    bpf(PROGRAM_ATTACH, &attributes).map(drop)
}
