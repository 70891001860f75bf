//! The device mapper (`linux/dm-ioctl.h`): block devices made of others by a table of targets. Here
//! each has one target.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;

const CONTROL: &str = "/dev/mapper/control";
/// `_IOWR(DM_IOCTL, 0, struct dm_ioctl)`; the command is the lowest byte.
const REQUEST: libc::c_ulong = 0xc138_fd00;
const DEV_CREATE: u8 = 3;
const DEV_REMOVE: u8 = 4;
const DEV_SUSPEND: u8 = 6;
const TABLE_LOAD: u8 = 9;
const TABLE_STATUS: u8 = 12;
const VERSION: [u32; 3] = [4, 0, 0];
/// The parameters are asked for rather than the state.
const STATUS_TABLE: u32 = 1 << 4;
/// The kernel wipes its copy of what is handed over.
const SECURE_DATA: u32 = 1 << 15;
/// A device in use goes away when its last user does.
const DEFERRED_REMOVE: u32 = 1 << 17;
const BUFFER_FULL: u32 = 1 << 8;
/// `DM_NAME_LEN`, `DM_UUID_LEN`
const NAME: usize = 128;
const UUID: usize = 129;
const HEADER: usize = 312;
const SPEC: usize = 40;
/// More than any table of one target.
const ANSWER: usize = 16 << 10;

/// `struct dm_ioctl`
#[repr(C)]
struct Header {
    version: [u32; 3],
    data_size: u32,
    data_start: u32,
    target_count: u32,
    open_count: i32,
    flags: u32,
    event_nr: u32,
    padding: u32,
    dev: u64,
    name: [u8; NAME],
    uuid: [u8; UUID],
    data: [u8; 7],
}

const _: () = assert!(size_of::<Header>() == HEADER);

/// The one target of a device.
#[derive(Clone, PartialEq, Eq)]
pub struct Target {
    /// Its length, in sectors of 512 bytes.
    pub sectors: u64,
    /// `crypt`, `linear`, …
    pub kind: String,
    /// In the words of the target (the kernel's `Documentation/admin-guide/device-mapper`).
    pub parameters: String,
}

/// Makes a device and lets it work; gives its minor number, `N` of `/dev/dm-N`.
///
/// # Errors
/// `EBUSY` where the name is taken; `ENOENT` where the kernel has no device mapper; `EINVAL` where it does
/// not know the target or its parameters.
pub fn create(name: &str, uuid: &str, target: &Target) -> io::Result<u32> {
    let control = control()?;
    let device = call(&control, DEV_CREATE, request(name, uuid, 0)?, &mut [])?;
    let made = load(&control, name, target).and_then(|()| {
        // Without the flag DM_SUSPEND this is the opposite.
        call(&control, DEV_SUSPEND, request(name, "", 0)?, &mut []).map(drop)
    });
    if let Err(reason) = made {
        let _ = remove(name);
        return Err(reason);
    }
    // The kernel's encoding of a device number: the low 8 bits of the minor, 12 of the major, the rest.
    let minor = (device.dev & 0xff) | ((device.dev >> 12) & 0xfff_ff00);
    u32::try_from(minor).map_err(|_| io::Error::from(io::ErrorKind::InvalidData))
}

fn load(control: &File, name: &str, target: &Target) -> io::Result<()> {
    let kind = target.kind.as_bytes();
    if kind.len() >= 16 || target.parameters.as_bytes().contains(&0) {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    let mut data = vec![0; (SPEC + target.parameters.len() + 1).next_multiple_of(8)];
    data[8..16].copy_from_slice(&target.sectors.to_ne_bytes());
    data[24..24 + kind.len()].copy_from_slice(kind);
    data[SPEC..SPEC + target.parameters.len()].copy_from_slice(target.parameters.as_bytes());
    let mut request = request(name, "", SECURE_DATA)?;
    request.target_count = 1;
    let loaded = call(control, TABLE_LOAD, request, &mut data).map(drop);
    data.fill(0);
    loaded
}

/// Removes a device; one in use goes away with its last user.
///
/// # Errors
/// `ENXIO` where there is none of the name.
pub fn remove(name: &str) -> io::Result<()> {
    call(
        &control()?,
        DEV_REMOVE,
        request(name, "", DEFERRED_REMOVE)?,
        &mut [],
    )
    .map(drop)
}

/// The target of a device, with all its parameters: keys too.
///
/// # Errors
/// `ENXIO` where there is no device of the name; `EINVAL` where it has not one target.
pub fn target(name: &str) -> io::Result<Target> {
    let bad = || io::Error::from(io::ErrorKind::InvalidData);
    let mut data = vec![0; ANSWER];
    let flags = STATUS_TABLE | SECURE_DATA;
    let header = call(&control()?, TABLE_STATUS, request(name, "", flags)?, &mut data)?;
    if header.target_count != 1 || header.flags & BUFFER_FULL != 0 {
        return Err(bad());
    }
    let text = |bytes: &[u8]| -> io::Result<String> {
        let end = bytes.iter().position(|byte| *byte == 0).ok_or_else(bad)?;
        String::from_utf8(bytes[..end].to_vec()).map_err(|_| bad())
    };
    let sectors = data[8..16].first_chunk().ok_or_else(bad)?;
    let target = Target {
        sectors: u64::from_ne_bytes(*sectors),
        kind: text(&data[24..SPEC])?,
        parameters: text(&data[SPEC..])?,
    };
    data.fill(0);
    Ok(target)
}

fn control() -> io::Result<File> {
    OpenOptions::new().read(true).write(true).open(CONTROL)
}

fn request(name: &str, uuid: &str, flags: u32) -> io::Result<Header> {
    let mut header = Header {
        version: VERSION,
        data_size: 0,
        data_start: HEADER as u32,
        target_count: 0,
        open_count: 0,
        flags,
        event_nr: 0,
        padding: 0,
        dev: 0,
        name: [0; NAME],
        uuid: [0; UUID],
        data: [0; 7],
    };
    if name.is_empty() || name.len() >= NAME || uuid.len() >= UUID {
        return Err(io::Error::from(io::ErrorKind::InvalidInput));
    }
    header.name[..name.len()].copy_from_slice(name.as_bytes());
    header.uuid[..uuid.len()].copy_from_slice(uuid.as_bytes());
    Ok(header)
}

/// Sends a request with what follows it, and takes both as the kernel has changed them.
fn call(control: &File, command: u8, mut header: Header, data: &mut [u8]) -> io::Result<Header> {
    let bytes = HEADER + data.len();
    header.data_size = u32::try_from(bytes).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    // Words, so that the buffer is aligned as the structure at its beginning.
    let mut buffer = vec![0u64; bytes.div_ceil(8)];
    let start = buffer.as_mut_ptr();
    // SAFETY: the buffer has room for the structure and the data behind it, and the alignment of the
    // structure; none of the three overlap.
    unsafe {
        start.cast::<Header>().write(header);
        start
            .cast::<u8>()
            .add(HEADER)
            .copy_from(data.as_ptr(), data.len());
    }
    let request = REQUEST | libc::c_ulong::from(command);
    // SAFETY: the request reads and writes `data_size` bytes from the structure's beginning, all of which
    // belong to the buffer, during the call only; the descriptor is open.
    let result = unsafe { libc::ioctl(control.as_raw_fd(), request, start) };
    let failure = io::Error::last_os_error();
    // SAFETY: the buffer still begins with the structure, all bit patterns of which are valid, and has the
    // data behind it.
    let header = unsafe {
        data.as_mut_ptr()
            .copy_from(start.cast::<u8>().add(HEADER), data.len());
        start.cast::<Header>().read()
    };
    buffer.fill(0);
    if result < 0 { Err(failure) } else { Ok(header) }
}
