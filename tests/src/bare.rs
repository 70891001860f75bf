//! The least that a kernel can boot: an initramfs whose one program powers the machine off. What the
//! appliance's boot is measured beside.

use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use monobloc::qemu;

use crate::machine::Boot;
use crate::process::{bound, spawn};
use crate::transcript::Transcript;

const LIMIT: Duration = Duration::from_secs(120);

/// `reboot(2)`: first and second magic number, and the command to power off.
const MAGIC1: u32 = 0xfee1_dead;
const MAGIC2: u32 = 0x2812_1969;
const POWER_OFF: u32 = 0x4321_fedc;
/// x86-64's number of `reboot(2)`.
const REBOOT: u32 = 169;

/// Where the program lies in memory.
const ADDRESS: u64 = 0x0040_0000;
const EHDR_SIZE: u64 = 64;
const PHDR_SIZE: u64 = 56;

/// A static ELF program that powers the machine off (System V ABI, gABI chapters 4 and 5).
#[must_use]
pub fn power_off_program() -> Vec<u8> {
    let mut code = vec![0xb8]; // mov eax, imm32
    code.extend(REBOOT.to_le_bytes());
    code.push(0xbf); // mov edi, imm32
    code.extend(MAGIC1.to_le_bytes());
    code.push(0xbe); // mov esi, imm32
    code.extend(MAGIC2.to_le_bytes());
    code.push(0xba); // mov edx, imm32
    code.extend(POWER_OFF.to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xeb, 0xfe]); // jmp to itself
    program(&code)
}

/// A program that writes a text to its standard output and ends well; given an argument that does not
/// begin with `p`, it waits for ever instead if it is to be `patient`.
#[must_use]
pub fn speaking_program(text: &str, patient: bool) -> Vec<u8> {
    let mut code = Vec::new();
    if patient {
        code.extend([0x48, 0x8b, 0x44, 0x24, 0x10]); // mov rax, [rsp+16]: the first argument
        code.extend([0x80, 0x38, b'p']); // cmp byte [rax], 'p'
        code.extend([0x74, 0x09]); // je over what follows
        code.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05]); // mov eax, 34 (pause); syscall
        code.extend([0xeb, 0xf7]); // jmp back to it
    }
    code.extend([0xb8, 1, 0, 0, 0, 0xbf, 1, 0, 0, 0]); // mov eax, 1 (write); mov edi, 1
    code.extend([0x48, 0x8d, 0x35, 16, 0, 0, 0]); // lea rsi, [rip+16]: the text
    code.push(0xba); // mov edx, imm32
    code.extend((text.len() as u32).to_le_bytes());
    code.extend([0x0f, 0x05]); // syscall
    code.extend([0xb8, 60, 0, 0, 0, 0x31, 0xff, 0x0f, 0x05]); // mov eax, 60 (exit); xor edi, edi; syscall
    code.extend(text.as_bytes());
    program(&code)
}

/// A program that opens `/dev/null` until it is let no more, and then waits for ever.
#[must_use]
pub fn opening_program() -> Vec<u8> {
    let mut code = vec![0xb8, 2, 0, 0, 0]; // mov eax, 2 (open)
    code.extend([0x48, 0x8d, 0x3d, 17, 0, 0, 0]); // lea rdi, [rip+17]: the path
    code.extend([0x31, 0xf6, 0x0f, 0x05]); // xor esi, esi; syscall
    code.extend([0x85, 0xc0, 0x79, 0xec]); // test eax, eax; jns to the beginning
    code.extend([0xb8, 34, 0, 0, 0, 0x0f, 0x05, 0xeb, 0xf7]); // mov eax, 34 (pause); syscall; jmp back to it
    code.extend(b"/dev/null\0");
    program(&code)
}

/// A static ELF program of some machine code.
fn program(code: &[u8]) -> Vec<u8> {
    let size = EHDR_SIZE + PHDR_SIZE + code.len() as u64;

    // 64 bits, little-endian, version 1.
    let mut elf = b"\x7fELF\x02\x01\x01\0\0\0\0\0\0\0\0\0".to_vec();
    elf.extend([2_u16.to_le_bytes(), 62_u16.to_le_bytes()].concat()); // executable, x86-64
    elf.extend(1_u32.to_le_bytes());
    for word in [ADDRESS + EHDR_SIZE + PHDR_SIZE, EHDR_SIZE, 0] {
        elf.extend(word.to_le_bytes()); // entry, program headers, no sections
    }
    elf.extend(0_u32.to_le_bytes());
    for half in [EHDR_SIZE as u16, PHDR_SIZE as u16, 1, 0, 0, 0] {
        elf.extend(half.to_le_bytes());
    }
    elf.extend(1_u32.to_le_bytes()); // to be loaded
    elf.extend(5_u32.to_le_bytes()); // readable, executable
    for word in [0, ADDRESS, ADDRESS, size, size, 0x1000] {
        elf.extend(word.to_le_bytes());
    }
    elf.extend(code);
    elf
}

/// An initramfs with that program as `/init` (kernel, `Documentation/driver-api/early-userspace/buffer-format`).
#[must_use]
pub fn initramfs() -> Vec<u8> {
    let mut archive = Vec::new();
    for (name, mode, content) in [
        ("init", 0o100_755, power_off_program()),
        ("TRAILER!!!", 0, Vec::new()),
    ] {
        let fields = [1, mode, 0, 0, 1, 0, content.len(), 0, 0, 0, 0, name.len() + 1, 0];
        archive.extend(b"070701");
        archive.extend(
            fields
                .iter()
                .flat_map(|field| format!("{field:08x}").into_bytes()),
        );
        archive.extend(name.bytes().chain([0]));
        archive.resize(archive.len().next_multiple_of(4), 0);
        archive.extend(content);
        archive.resize(archive.len().next_multiple_of(4), 0);
    }
    archive
}

/// Boots the kernel of `boot` with that initramfs, in the same machine, until the machine is off; gives
/// the time from QEMU's start to its end.
///
/// # Errors
/// The machine does not go off.
pub fn boot(boot: &Boot) -> anyhow::Result<Duration> {
    let folder = tempfile::tempdir()?;
    let path = folder.path().join("initrd");
    fs::write(&path, initramfs())?;
    let mut machine = boot.imitated(folder.path())?;
    if let qemu::Boot::Direct { initrd, .. } = &mut machine.boot {
        *initrd = path;
    }
    let mut command = bound(qemu::PROGRAM);
    command.args(machine.arguments());
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::inherit());
    let started = Instant::now();
    let mut qemu = spawn(command)?;
    let console = Transcript::follow("the console", qemu.stdout.take().context("QEMU has no console")?);
    let off = console.wait_end(LIMIT);
    let took = started.elapsed();
    let _ = qemu.kill();
    let _ = qemu.wait();
    ensure!(off, "the machine did not go off:\n{}", console.tail());
    Ok(took)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::process::run;

    #[test]
    fn the_program_is_one_that_other_programs_read() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("init");
        fs::write(&file, power_off_program()).unwrap();
        let told = run(
            Duration::from_secs(10),
            "readelf",
            ["-hl".as_ref(), file.as_os_str()],
            &[],
            b"",
        )
        .ok();
        assert!(
            told.contains("Advanced Micro Devices X86-64") && told.contains("LOAD"),
            "{told}"
        );
        assert!(told.contains("0x400078"), "{told}");
    }

    #[test]
    fn the_initramfs_holds_the_program() {
        let listed = run(
            Duration::from_secs(10),
            "cpio",
            ["-itv", "--quiet"],
            &[],
            &initramfs(),
        )
        .ok();
        assert!(
            listed.starts_with("-rwxr-xr-x") && listed.ends_with("init"),
            "{listed}"
        );
    }
}
