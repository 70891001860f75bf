//! Work on the new root, whose tree nobody trusts.

use std::ffi::{CStr, c_int, c_long};
use std::os::fd::RawFd;

use super::MountAttributes;
use super::calls::{
    Done, check, check_long, clone_tree, close, is_dir, move_mount, new_mount, set_attributes,
};
use super::interpreter::Child;

impl Child<'_> {
    /// Opens a path in the new root, following links within it only.
    pub(super) fn open(&self, path: &CStr, flags: c_int, mode: u32) -> Result<RawFd, i32> {
        if self.root < 0 {
            // SAFETY: opens a path of the process's own root.
            return check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) });
        }
        self.open_below(path, flags, mode)
    }

    pub(super) fn open_below(&self, path: &CStr, flags: c_int, mode: u32) -> Result<RawFd, i32> {
        // SAFETY: an all-zero `open_how` is valid.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.mode = u64::from(mode);
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        // A rename elsewhere may disturb the kernel's look at `..`; it wants to be asked again then.
        const ATTEMPTS: usize = 100;
        let mut opened = Err(libc::EAGAIN);
        for _ in 0..ATTEMPTS {
            // SAFETY: `how` and the path outlive the call.
            opened = check_long(unsafe {
                libc::syscall(
                    libc::SYS_openat2,
                    self.root,
                    path.as_ptr(),
                    &how,
                    size_of::<libc::open_how>(),
                )
            });
            if opened != Err(libc::EAGAIN) {
                break;
            }
        }
        opened
    }

    fn open_bytes(&self, path: &[u8], flags: c_int, mode: u32) -> Result<RawFd, i32> {
        self.open(PathBuffer::new(path)?.as_c()?, flags, mode)
    }

    /// Makes an empty file where there is nothing, and the folders above it. A link that leads to
    /// nothing is followed: the file is made where it points to.
    pub(super) fn make_file(&self, path: &[u8]) -> Done {
        self.make_file_through(path, 0)
    }

    fn make_file_through(&self, path: &[u8], links: usize) -> Done {
        if let Ok(fd) = self.open_bytes(path, libc::O_PATH, 0) {
            close(fd);
            return Ok(());
        }
        let (parent, name) = split(path);
        self.make_dirs_through(parent, 0o755, links)?;
        match self.open_bytes(path, libc::O_CREAT | libc::O_RDONLY | libc::O_NONBLOCK, 0o644) {
            Ok(fd) => {
                close(fd);
                Ok(())
            }
            Err(libc::ENOENT) => {
                let target = self.link_target(parent, name, links)?;
                self.make_file_through(target.bytes(), links + 1)
            }
            Err(error) => Err(error),
        }
    }

    /// Makes the folders of a path that are missing, one below the other; links are followed as in
    /// [`make_file`](Self::make_file).
    pub(super) fn make_dirs(&self, path: &[u8], mode: u32) -> Done {
        self.make_dirs_through(path, mode, 0)
    }

    fn make_dirs_through(&self, path: &[u8], mode: u32, links: usize) -> Done {
        if self.is_there(path)? {
            return Ok(());
        }
        let ends = path
            .iter()
            .enumerate()
            .filter(|(at, byte)| **byte == b'/' && *at > 0)
            .map(|(at, _)| at);
        for end in ends.chain([path.len()]) {
            let prefix = &path[..end];
            if !self.is_there(prefix)? {
                self.make_dir(prefix, mode, links)?;
            }
        }
        Ok(())
    }

    fn is_there(&self, dir: &[u8]) -> Result<bool, i32> {
        match self.open_bytes(dir, libc::O_PATH | libc::O_DIRECTORY, 0) {
            Ok(fd) => {
                close(fd);
                Ok(true)
            }
            Err(libc::ENOENT) => Ok(false),
            Err(error) => Err(error),
        }
    }

    fn make_dir(&self, path: &[u8], mode: u32, links: usize) -> Done {
        let (parent, name) = split(path);
        let dir = self.open_bytes(parent, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        let name_buffer = PathBuffer::new(name)?;
        let name_text = name_buffer.as_c()?.as_ptr();
        // SAFETY: a terminated name and an open folder.
        let made = check(unsafe { libc::mkdirat(dir, name_text, mode) });
        if made.is_ok() {
            // SAFETY: as above. The mode is meant as it is said, whatever the umask.
            unsafe { libc::fchmodat(dir, name_text, mode, 0) };
        }
        close(dir);
        match made {
            Ok(_) => Ok(()),
            Err(libc::EEXIST) => {
                let target = self.link_target(parent, name, links)?;
                self.make_dirs_through(target.bytes(), mode, links + 1)
            }
            Err(error) => Err(error),
        }
    }

    /// Where a link points to, as a path in the root.
    fn link_target(&self, parent: &[u8], name: &[u8], links: usize) -> Result<PathBuffer, i32> {
        if links >= MAX_LINKS {
            return Err(libc::ELOOP);
        }
        let dir = self.open_bytes(parent, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        let name = PathBuffer::new(name)?;
        let mut target = PathBuffer::new(b"")?;
        // SAFETY: a terminated name, and a buffer with its size less the final null.
        let length = check_long(unsafe {
            libc::readlinkat(
                dir,
                name.as_c()?.as_ptr(),
                target.bytes.as_mut_ptr().cast(),
                target.bytes.len() - 1,
            )
        } as c_long);
        close(dir);
        target.length = length? as usize;
        if target.bytes().first() == Some(&b'/') {
            return Ok(target);
        }
        let mut joined = PathBuffer::new(parent)?;
        joined.push(b"/")?;
        joined.push(target.bytes())?;
        Ok(joined)
    }

    pub(super) fn symlink(&self, target: &CStr, path: &CStr) -> Done {
        let (parent, name) = split(path.to_bytes());
        let dir = self.open_or_make_dir(parent)?;
        let name = PathBuffer::new(name)?;
        // SAFETY: terminated strings and an open folder.
        let made = check(unsafe { libc::symlinkat(target.as_ptr(), dir, name.as_c()?.as_ptr()) });
        close(dir);
        match made {
            Ok(_) | Err(libc::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    pub(super) fn make_node(&self, path: &CStr, mode: u32, device: u64, owner: (u32, u32)) -> Done {
        let (parent, name) = split(path.to_bytes());
        self.make_dirs(parent, 0o755)?;
        let dir = self.open_bytes(parent, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        let name = PathBuffer::new(name)?;
        let text = name.as_c()?.as_ptr();
        // SAFETY: a terminated name and an open folder. The mode is meant as it is said, whatever the
        // umask, and whoever the folder's group is.
        let made = unsafe {
            check(libc::mknodat(dir, text, mode, device)).and_then(|_| {
                check_long(libc::syscall(
                    libc::SYS_fchownat,
                    dir,
                    text,
                    owner.0,
                    owner.1,
                    libc::AT_SYMLINK_NOFOLLOW,
                ))?;
                check(libc::fchmodat(dir, text, mode & 0o7777, 0))
            })
        };
        close(dir);
        match made {
            Ok(_) | Err(libc::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Attaches a detached mount on a path that is there.
    pub(super) fn attach(&self, tree: RawFd, at: &CStr) -> Done {
        attach_on(tree, self.open(at, libc::O_PATH, 0)?)
    }

    /// Attaches a detached mount on a folder, made where missing.
    pub(super) fn attach_on_dir(&self, tree: RawFd, at: &CStr) -> Done {
        attach_on(tree, self.open_or_make_dir(at.to_bytes())?)
    }

    /// Attaches a detached mount on a file that is made for it.
    pub(super) fn attach_on_new_file(&self, tree: RawFd, at: &CStr) -> Done {
        attach_on(
            tree,
            self.open(at, libc::O_CREAT | libc::O_EXCL | libc::O_RDONLY, 0o644)?,
        )
    }

    /// Most folders are there: looking first would be a call more for each.
    fn open_or_make_dir(&self, path: &[u8]) -> Result<RawFd, i32> {
        let open = || self.open_bytes(path, libc::O_PATH | libc::O_DIRECTORY, 0);
        match open() {
            Err(libc::ENOENT) => {
                self.make_dirs(path, 0o755)?;
                open()
            }
            other => other,
        }
    }

    pub(super) fn file(&self, path: &CStr, data: &[u8]) -> Done {
        const NAME: &CStr = c"/dev/.file";
        let fd = self.open(NAME, libc::O_CREAT | libc::O_EXCL | libc::O_WRONLY, 0o644)?;
        // SAFETY: writes a prepared slice; the mode is meant as it is said, whatever the umask.
        unsafe {
            check(libc::fchmod(fd, 0o644))?;
            if check_long(libc::write(fd, data.as_ptr().cast(), data.len()) as c_long)? as usize != data.len()
            {
                return Err(libc::ENOSPC);
            }
        }
        let tree = clone_tree(fd, c"", libc::AT_EMPTY_PATH)?;
        close(fd);
        self.make_file(path.to_bytes())?;
        self.attach(tree, path)?;
        close(tree);
        let dev = self.open(c"/dev", libc::O_PATH | libc::O_DIRECTORY, 0)?;
        // SAFETY: removes the name just made; the mount keeps the file.
        let removed = check(unsafe { libc::unlinkat(dev, c".file".as_ptr(), 0) });
        close(dev);
        removed.map(drop)
    }

    pub(super) fn mask(&self, path: &CStr) -> Done {
        let target = match self.open(path, libc::O_PATH, 0) {
            Ok(fd) => fd,
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            Err(error) => return Err(error),
        };
        let tree = if is_dir(target)? {
            new_mount(c"tmpfs", &[], MountAttributes::READ_ONLY)?
        } else {
            clone_tree(libc::AT_FDCWD, c"/dev/null", 0)?
        };
        move_mount(tree, target, c"", libc::MOVE_MOUNT_T_EMPTY_PATH)?;
        close(tree);
        close(target);
        Ok(())
    }

    pub(super) fn read_only(&self, path: &CStr) -> Done {
        let target = match self.open(path, libc::O_PATH, 0) {
            Ok(fd) => fd,
            Err(libc::ENOENT | libc::ENOTDIR) => return Ok(()),
            Err(error) => return Err(error),
        };
        let tree = clone_tree(target, c"", libc::AT_EMPTY_PATH | libc::AT_RECURSIVE)?;
        set_attributes(tree, libc::AT_RECURSIVE, MountAttributes::READ_ONLY)?;
        move_mount(tree, target, c"", libc::MOVE_MOUNT_T_EMPTY_PATH)?;
        close(tree);
        close(target);
        Ok(())
    }
}

fn attach_on(tree: RawFd, target: RawFd) -> Done {
    let moved = move_mount(tree, target, c"", libc::MOVE_MOUNT_T_EMPTY_PATH);
    close(target);
    moved
}

/// Links that lead to nothing that are followed one after the other.
const MAX_LINKS: usize = 8;

/// A path of at most `PATH_MAX` bytes, on the stack.
struct PathBuffer {
    bytes: [u8; libc::PATH_MAX as usize],
    length: usize,
}

impl PathBuffer {
    fn new(path: &[u8]) -> Result<Self, i32> {
        let mut buffer = Self {
            bytes: [0; libc::PATH_MAX as usize],
            length: 0,
        };
        buffer.push(path)?;
        Ok(buffer)
    }

    fn push(&mut self, more: &[u8]) -> Done {
        let end = self.length + more.len();
        // One byte stays for the final null.
        if end >= self.bytes.len() {
            return Err(libc::ENAMETOOLONG);
        }
        self.bytes[self.length..end].copy_from_slice(more);
        self.length = end;
        Ok(())
    }

    fn bytes(&self) -> &[u8] {
        &self.bytes[..self.length]
    }

    fn as_c(&self) -> Result<&CStr, i32> {
        CStr::from_bytes_with_nul(&self.bytes[..=self.length]).map_err(|_| libc::EINVAL)
    }
}

/// The folder that a path is in, and its last name.
fn split(path: &[u8]) -> (&[u8], &[u8]) {
    let end = path.iter().rposition(|byte| *byte != b'/').map_or(0, |at| at + 1);
    let path = &path[..end];
    match path.iter().rposition(|byte| *byte == b'/') {
        None => (b".", path),
        Some(0) => (b"/", &path[1..]),
        Some(at) => (&path[..at], &path[at + 1..]),
    }
}
