//! Loop devices (`linux/loop.h`): a block device over a file.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsRawFd;
use std::path::PathBuf;

const CONTROL: &str = "/dev/loop-control";
const LOOP_CTL_GET_FREE: libc::c_ulong = 0x4c82;
const LOOP_CONFIGURE: libc::c_ulong = 0x4c0a;
/// Detach when the last user closes the device.
const LO_FLAGS_AUTOCLEAR: u32 = 4;
/// Another process may take the free device between asking and configuring.
const ATTEMPTS: usize = 64;

/// `struct loop_info64`.
#[repr(C)]
#[derive(Clone, Copy)]
struct LoopInfo64 {
    device: u64,
    inode: u64,
    rdevice: u64,
    offset: u64,
    size_limit: u64,
    number: u32,
    encrypt_type: u32,
    encrypt_key_size: u32,
    flags: u32,
    file_name: [u8; 64],
    crypt_name: [u8; 64],
    encrypt_key: [u8; 32],
    init: [u64; 2],
}

/// `struct loop_config`.
#[repr(C)]
struct LoopConfig {
    fd: u32,
    block_size: u32,
    info: LoopInfo64,
    reserved: [u64; 8],
}

const _: () = assert!(size_of::<LoopInfo64>() == 232 && size_of::<LoopConfig>() == 304);

/// A loop device that goes away when this and every other user (such as a mount) have let go of it.
#[derive(Debug)]
pub struct LoopDevice {
    path: PathBuf,
    file: File,
}

impl LoopDevice {
    /// Makes `backing` a block device. The device keeps the file; the descriptor may be closed.
    ///
    /// # Errors
    /// `ENOENT` where the kernel has no loop driver.
    pub fn attach(backing: &File) -> io::Result<LoopDevice> {
        let control = OpenOptions::new().read(true).write(true).open(CONTROL)?;
        let mut last = io::Error::from_raw_os_error(libc::EBUSY);
        for _ in 0..ATTEMPTS {
            // SAFETY: the request has no argument; the descriptor is open.
            let number = unsafe { libc::ioctl(control.as_raw_fd(), LOOP_CTL_GET_FREE) };
            if number < 0 {
                return Err(io::Error::last_os_error());
            }
            let path = PathBuf::from(format!("/dev/loop{number}"));
            let file = OpenOptions::new().read(true).write(true).open(&path)?;
            match configure(&file, backing) {
                Ok(()) => return Ok(LoopDevice { path, file }),
                Err(reason) if reason.raw_os_error() == Some(libc::EBUSY) => last = reason,
                Err(reason) => return Err(reason),
            }
        }
        Err(last)
    }

    pub fn path(&self) -> &std::path::Path {
        &self.path
    }

    pub fn file(&self) -> &File {
        &self.file
    }
}

fn configure(device: &File, backing: &File) -> io::Result<()> {
    let info = LoopInfo64 {
        device: 0,
        inode: 0,
        rdevice: 0,
        offset: 0,
        size_limit: 0,
        number: 0,
        encrypt_type: 0,
        encrypt_key_size: 0,
        flags: LO_FLAGS_AUTOCLEAR,
        file_name: [0; 64],
        crypt_name: [0; 64],
        encrypt_key: [0; 32],
        init: [0; 2],
    };
    let fd = u32::try_from(backing.as_raw_fd()).map_err(|_| io::Error::from(io::ErrorKind::InvalidInput))?;
    let mut config = LoopConfig {
        fd,
        block_size: 0,
        info,
        reserved: [0; 8],
    };
    // SAFETY: the request reads a `loop_config`, which `config` is (size asserted above), during the
    // call only; both descriptors are open.
    let result = unsafe { libc::ioctl(device.as_raw_fd(), LOOP_CONFIGURE, &raw mut config) };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Read, Seek, SeekFrom, Write};

    /// Needs root and the loop driver, as the store's own tests do.
    #[test]
    fn a_file_is_read_through_its_loop_device() {
        let path = std::env::temp_dir().join(format!("loopdev-{}", std::process::id()));
        let mut file = OpenOptions::new()
            .read(true)
            .write(true)
            .create_new(true)
            .open(&path)
            .unwrap();
        std::fs::remove_file(&path).unwrap();
        file.set_len(1 << 20).unwrap();
        file.seek(SeekFrom::Start(4096)).unwrap();
        file.write_all(b"seen").unwrap();
        let device = LoopDevice::attach(&file).unwrap();
        let mut read = OpenOptions::new().read(true).open(device.path()).unwrap();
        let mut content = [0; 4];
        read.seek(SeekFrom::Start(4096)).unwrap();
        read.read_exact(&mut content).unwrap();
        assert_eq!(&content, b"seen");
        assert_eq!(crate::block::size(device.file()).unwrap(), 1 << 20);
    }
}
