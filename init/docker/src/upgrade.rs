//! Another build of the supervisor in the place of the one that runs.
//!
//! A client uploads the program. It is kept in sealed memory, looked at, and asked whether it speaks
//! with this process 1 ([`introduction`]); then process 1 has it, and whichever supervisor comes next
//! is of this build, until the machine boots again. The zones go on all the while.

use std::fs::{File, Permissions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{FileExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use hyper::StatusCode;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{MemfdFlags, SealFlags, fcntl_add_seals, memfd_create};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use serde_json::json;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use zones::keeper;

use crate::engine::Engine;
use crate::http::{ApiError, Request, Response, Result, blocking, json};

/// First argument by which a build introduces itself instead of doing anything.
pub const PROTOCOL: &str = "protocol";
/// A program longer than this is none of ours.
const MAX_SIZE: usize = 128 << 20;
/// How long a program may take to introduce itself.
const LIMIT: Duration = Duration::from_secs(20);
/// Digits of the program's digest that tell builds apart.
const DIGITS: usize = 12;

/// What a build prints of itself: the protocol that it speaks with process 1, and its version.
pub fn introduction(version: &str) -> String {
    format!("{}{version}", speaks(keeper::PROTOCOL))
}

fn speaks(protocol: u64) -> String {
    format!("monobloc supervisor, protocol {protocol:016x}, version ")
}

/// `POST /monobloc/v1/supervisor`: the body is the program.
pub(crate) async fn upload(engine: &Engine, req: Request) -> Result<Response> {
    let (program, digest) = receive(req).await?;
    let (program, version) = blocking(move || {
        let program = seal(program)?;
        check_elf(&program)?;
        let version = ask(&program)?;
        Ok::<_, ApiError>((program, version))
    })
    .await?;
    let build = format!("{version} {digest}");
    engine.zones.keeper().replace(&build, program.as_fd()).await?;
    let message = format!(
        "The next supervisor is {build}. It stays until the machine boots: the packed one runs again then."
    );
    json(StatusCode::OK, &json!({"build": build, "message": message}))
}

/// Takes the body into memory that is no file of the machine; gives the digest's first digits with it.
async fn receive(req: Request) -> Result<(File, String)> {
    let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
    let file = File::from(memfd_create("supervisor", flags).map_err(no_memory)?);
    let mut body = Box::pin(req.into_reader());
    let mut hash = Sha256::new();
    let (mut block, mut size) = (vec![0; 64 << 10], 0);
    loop {
        let count = body
            .read(&mut block)
            .await
            .map_err(|error| ApiError::bad_request(format!("Cannot read the request's body: {error}.")))?;
        let bytes = block.get(..count).unwrap_or_default();
        if bytes.is_empty() {
            break;
        }
        if size + count > MAX_SIZE {
            return Err(ApiError::bad_request(format!(
                "A supervisor has at most {MAX_SIZE} bytes."
            )));
        }
        file.write_all_at(bytes, size as u64).map_err(no_memory)?;
        hash.update(bytes);
        size += count;
    }
    let digest: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    Ok((file, digest.chars().take(DIGITS).collect()))
}

fn no_memory(error: impl Into<io::Error>) -> ApiError {
    ApiError::internal(format!("Cannot keep the program in memory: {}.", error.into()))
}

/// Nobody can change it from here on, and it is open for reading alone, or it could not be run.
fn seal(file: File) -> Result<OwnedFd> {
    file.set_permissions(Permissions::from_mode(0o500))
        .map_err(no_memory)?;
    let seals = SealFlags::WRITE | SealFlags::GROW | SealFlags::SHRINK | SealFlags::SEAL;
    fcntl_add_seals(&file, seals).map_err(no_memory)?;
    let path = format!("/proc/self/fd/{}", file.as_raw_fd());
    Ok(File::open(path).map_err(no_memory)?.into())
}

/// A program for this machine that needs nothing else (System V gABI, chapters 4 and 5).
fn check_elf(program: &OwnedFd) -> Result<()> {
    const SEGMENTS: usize = 64;
    let refused = |what: &str| ApiError::bad_request(format!("This is no supervisor: {what}."));
    let file = File::from(program.try_clone().map_err(no_memory)?);
    let mut head = [0; 64];
    file.read_exact_at(&mut head, 0)
        .map_err(|_| refused("it is no program (ELF)"))?;
    // Class 64 bits, little-endian.
    if !head.starts_with(b"\x7fELF\x02\x01") {
        return Err(refused("it is no 64-bit program (ELF)"));
    }
    let half = |at: usize| u16::from_le_bytes([head[at], head[at + 1]]);
    if half(18) != MACHINE {
        return Err(refused("it is for another kind of machine"));
    }
    let mut start = [0; 8];
    start.copy_from_slice(&head[32..40]);
    let (start, size, count) = (u64::from_le_bytes(start), half(54), usize::from(half(56)));
    for number in 0..count.min(SEGMENTS) {
        let at = start.checked_add(number as u64 * u64::from(size));
        let mut kind = [0; 4];
        at.and_then(|at| file.read_exact_at(&mut kind, at).ok())
            .ok_or_else(|| refused("its program headers are cut off"))?;
        /// `PT_INTERP`
        const INTERPRETER: u32 = 3;
        if u32::from_le_bytes(kind) == INTERPRETER {
            return Err(refused("it wants a dynamic loader; it must be linked statically"));
        }
    }
    Ok(())
}

/// `e_machine` of this machine's own programs.
const MACHINE: u16 = if cfg!(target_arch = "aarch64") { 183 } else { 62 };

/// Has the program introduce itself; gives its version.
fn ask(program: &OwnedFd) -> Result<String> {
    let refused = |what: String| ApiError::bad_request(format!("This is no supervisor: {what}."));
    let mut child = Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg0("/init")
        .arg(PROTOCOL)
        .env_clear()
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .map_err(|error| refused(format!("it cannot be run ({error})")))?;
    // A pipe holds more than an introduction; whoever says more than that does not end.
    if !ends_within(child.id(), LIMIT) {
        let _ = child.kill();
        let _ = child.wait();
        return Err(refused(format!(
            "it did not introduce itself within {} s",
            LIMIT.as_secs()
        )));
    }
    let status = child.wait().map_err(no_memory)?;
    let mut said = Vec::new();
    if let Some(output) = child.stdout.take() {
        output.take(1024).read_to_end(&mut said).map_err(no_memory)?;
    }
    let said = String::from_utf8_lossy(&said);
    let line = said.lines().next().unwrap_or_default();
    match line.strip_prefix(&speaks(keeper::PROTOCOL)) {
        Some(version) if status.success() && is_version(version) => Ok(version.to_owned()),
        None if line.starts_with("monobloc supervisor, protocol ") => Err(ApiError::conflict(
            "This supervisor speaks another protocol than the process 1 that runs: it needs a boot of its own image.",
        )),
        _ => Err(refused(format!("it introduces itself as {line:?}"))),
    }
}

fn is_version(text: &str) -> bool {
    !text.is_empty() && text.len() <= 100 && text.chars().all(|c| c.is_ascii_graphic())
}

fn ends_within(pid: u32, limit: Duration) -> bool {
    let deadline = Instant::now() + limit;
    let Some(pidfd) = i32::try_from(pid)
        .ok()
        .and_then(Pid::from_raw)
        .and_then(|pid| pidfd_open(pid, PidfdFlags::empty()).ok())
    else {
        return false;
    };
    loop {
        let left = deadline.saturating_duration_since(Instant::now());
        let left = Timespec {
            tv_sec: left.as_secs() as i64,
            tv_nsec: left.subsec_nanos().into(),
        };
        match poll(&mut [PollFd::new(&pidfd, PollFlags::IN)], Some(&left)) {
            Err(rustix::io::Errno::INTR) => {}
            Ok(1..) => return true,
            _ => return false,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sealed(bytes: &[u8]) -> OwnedFd {
        let flags = MemfdFlags::CLOEXEC | MemfdFlags::ALLOW_SEALING;
        let file = File::from(memfd_create("test", flags).unwrap());
        file.write_all_at(bytes, 0).unwrap();
        seal(file).unwrap()
    }

    #[test]
    fn what_is_kept_can_be_run_and_not_changed() {
        let program = sealed(&std::fs::read("/proc/self/exe").unwrap());
        check_elf(&program).expect("the tests are linked statically, as everything here is");
        let path = format!("/proc/self/fd/{}", program.as_raw_fd());
        assert!(
            File::options()
                .write(true)
                .open(&path)
                .and_then(|f| f.set_len(0))
                .is_err()
        );
        // It runs, and says what no supervisor says.
        let error = ask(&program).unwrap_err();
        assert!(error.message.contains("introduces itself"), "{error}");
    }

    #[test]
    fn what_is_no_static_program_is_refused_with_the_reason() {
        let bash = std::fs::read("/bin/bash").unwrap();
        let mut foreign = bash.clone();
        foreign[18] = 0xff;
        for (bytes, reason) in [
            (&b"#!/bin/sh\n"[..], "no program"),
            (&[0; 4096], "no 64-bit program"),
            (&bash[..100], "cut off"),
            (&bash, "dynamic loader"),
            (&foreign, "another kind of machine"),
        ] {
            let error = check_elf(&sealed(bytes)).unwrap_err();
            assert!(error.message.contains(reason), "{error}");
        }
    }
}
