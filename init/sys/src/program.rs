//! What a new process does between `clone3(2)` and `execve(2)`, as plain data.
//!
//! A [`Program`] is compiled by whoever knows what the process is for, may travel over a socket with
//! its descriptors, and is run by `run` in the child. The child is a copy of one thread of its
//! parent, so the interpreter allocates nothing and calls nothing that could wait for a lock that
//! another thread of the parent held: bare system calls only, on data that was prepared before.
//!
//! Descriptors are named by their place in the list that comes with the program ([`Fd`]). Paths of
//! steps that work on the new root are resolved with `openat2(2)` and `RESOLVE_IN_ROOT`: no symbolic
//! link in the tree leads out of it.

use std::ffi::{CStr, CString, c_int, c_long, c_uint};
use std::io;
use std::os::fd::RawFd;
use std::ptr;

use serde::{Deserialize, Serialize};

/// A descriptor of the program, by its place in the list that comes with it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fd(pub u16);

/// The steps of a process, and where it reports a step that fails.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Program {
    pub steps: Vec<Step>,
    /// A pipe or socket that is closed by a successful `execve` and otherwise gets one [`Failure`].
    pub report: Fd,
}

/// A step that failed; the process has ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Failure {
    /// Which one, as an index into [`Program::steps`]; the number of steps where the parent failed.
    pub step: usize,
    pub errno: i32,
}

impl Failure {
    /// Bytes of a report.
    pub const LEN: usize = 8;

    fn to_bytes(self) -> [u8; Self::LEN] {
        let mut bytes = [0; Self::LEN];
        bytes[..4].copy_from_slice(&(self.step as u32).to_ne_bytes());
        bytes[4..].copy_from_slice(&self.errno.to_ne_bytes());
        bytes
    }

    pub fn from_bytes(bytes: [u8; Self::LEN]) -> Self {
        let [a, b, c, d, e, f, g, h] = bytes;
        Self {
            step: u32::from_ne_bytes([a, b, c, d]) as usize,
            errno: i32::from_ne_bytes([e, f, g, h]),
        }
    }
}

/// Attributes of a mount, `MOUNT_ATTR_*` of `mount_setattr(2)`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct MountAttributes(pub u64);

impl MountAttributes {
    pub const READ_ONLY: Self = Self(libc::MOUNT_ATTR_RDONLY);
    pub const NO_SUID: Self = Self(libc::MOUNT_ATTR_NOSUID);
    pub const NO_DEV: Self = Self(libc::MOUNT_ATTR_NODEV);
    pub const NO_EXEC: Self = Self(libc::MOUNT_ATTR_NOEXEC);

    pub const fn with(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }
}

/// One step. A path is in the new root, except where it says *host*.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// Waits for one byte; ends the process quietly when the other side closes instead.
    Await(Fd),
    /// `setns(2)` with a pidfd; `CLONE_NEW*` flags.
    JoinNamespaces {
        pidfd: Fd,
        flags: i32,
    },
    /// `unshare(2)`; `CLONE_NEW*` flags.
    Unshare {
        flags: i32,
    },
    /// Makes every mount private, so that nothing done here is seen outside.
    PrivateMounts,
    /// Attaches a detached mount at a *host* path; it is the new root from here on.
    AttachRoot {
        tree: Fd,
        at: CString,
    },
    /// Makes a folder and those above it, where missing.
    MakeDir {
        path: CString,
        mode: u32,
    },
    /// Makes an empty file to mount on, and the folders above it, where missing.
    MakeFile {
        path: CString,
    },
    /// Makes a symbolic link; one that is there already is left alone.
    Symlink {
        target: CString,
        path: CString,
    },
    /// A new file system, mounted on a folder.
    Mount {
        fstype: CString,
        options: Vec<(CString, CString)>,
        attributes: MountAttributes,
        at: CString,
    },
    /// Puts a small file over the one at a path (made where missing). It lies on the zone's `/dev`,
    /// which must be mounted, without a name.
    File {
        path: CString,
        data: Vec<u8>,
    },
    /// Attaches a detached mount that came with the program.
    AttachTree {
        tree: Fd,
        at: CString,
    },
    /// Binds a *host* file or folder.
    BindHost {
        host: CString,
        attributes: MountAttributes,
        at: CString,
    },
    /// Hides a file behind `/dev/null`, a folder behind an empty read-only tmpfs; skips what is not there.
    Mask {
        path: CString,
    },
    /// Makes what is below a path read-only, with the attributes it has; skips what is not there.
    ReadOnly {
        path: CString,
    },
    /// Makes the root itself read-only; what is mounted below it stays as it is. After `PivotRoot`.
    ReadOnlyRoot,
    /// Makes the new root the root, and detaches the old one.
    PivotRoot,
    HostName(CString),
    DomainName(CString),
    /// `setrlimit(2)`; the resource's number (`RLIMIT_*`).
    ResourceLimit {
        resource: u32,
        soft: u64,
        hard: u64,
    },
    /// Writes to a file that is there; the path is that of the process, without links.
    WriteFile {
        path: CString,
        data: Vec<u8>,
    },
    /// Standard input, output and error.
    Stdio([Fd; 3]),
    NewSession,
    /// Opens a terminal in the zone's own devpts, makes it standard input, output and error and the
    /// session's controlling terminal, gives it to the user, and sends its master over a socket.
    Terminal {
        to: Fd,
        owner: u32,
        rows: u16,
        columns: u16,
        console: bool,
    },
    /// Enters a folder, made where missing if `create`.
    WorkingDir {
        path: CString,
        create: bool,
    },
    Groups(Vec<u32>),
    Group(u32),
    User(u32),
    /// Keeps only these in the bounding set.
    CapabilityBounds(u64),
    /// Sets permitted and effective, and clears inheritable and ambient.
    Capabilities(u64),
    NoNewPrivileges,
    /// A filter of `struct sock_filter` entries.
    Seccomp(Vec<SockFilter>),
    /// Replaces the process by the first of the files that can be run. Everything but standard input,
    /// output and error is closed.
    Exec {
        files: Vec<CString>,
        arguments: Vec<CString>,
        environment: Vec<CString>,
    },
}

/// `struct sock_filter`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[repr(C)]
pub struct SockFilter {
    pub code: u16,
    pub jt: u8,
    pub jf: u8,
    pub k: u32,
}

/// A program made ready to run without allocating: argument vectors with their final null.
pub(crate) struct Prepared<'a> {
    program: &'a Program,
    fds: &'a [RawFd],
    arguments: Vec<*const libc::c_char>,
    environment: Vec<*const libc::c_char>,
}

impl<'a> Prepared<'a> {
    /// Errors: a step that names a descriptor that did not come with it, or no `Exec` at the end.
    pub(crate) fn new(program: &'a Program, fds: &'a [RawFd]) -> io::Result<Self> {
        let known = |fd: Fd| usize::from(fd.0) < fds.len();
        let complete = known(program.report) && program.steps.iter().all(|step| step.fds().all(known));
        let Some(Step::Exec {
            arguments,
            environment,
            ..
        }) = program.steps.last()
        else {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "The program has no final exec step",
            ));
        };
        if !complete {
            return Err(io::Error::new(
                io::ErrorKind::InvalidInput,
                "The program lacks a descriptor",
            ));
        }
        let vector = |list: &[CString]| {
            list.iter()
                .map(|text| text.as_ptr())
                .chain([ptr::null()])
                .collect::<Vec<_>>()
        };
        Ok(Self {
            program,
            fds,
            arguments: vector(arguments),
            environment: vector(environment),
        })
    }

    /// Runs the steps; returns only through `_exit`.
    pub(crate) fn run(&self) -> ! {
        let mut child = Child {
            fds: self.fds,
            root: -1,
            prepared: self,
        };
        for (index, step) in self.program.steps.iter().enumerate() {
            if let Err(errno) = child.step(step) {
                let report = Failure { step: index, errno }.to_bytes();
                // SAFETY: writes a local array to a descriptor, then ends this process.
                unsafe {
                    libc::write(
                        child.fd(self.program.report),
                        report.as_ptr().cast(),
                        report.len(),
                    )
                };
                exit_now();
            }
        }
        exit_now()
    }
}

fn exit_now() -> ! {
    // SAFETY: ends this process without running anything of the parent's (no atexit handlers).
    unsafe { libc::_exit(127) }
}

impl Step {
    fn fds(&self) -> impl Iterator<Item = Fd> {
        let found: [Option<Fd>; 3] = match self {
            Step::Await(fd)
            | Step::JoinNamespaces { pidfd: fd, .. }
            | Step::AttachRoot { tree: fd, .. }
            | Step::AttachTree { tree: fd, .. }
            | Step::Terminal { to: fd, .. } => [Some(*fd), None, None],
            Step::Stdio([a, b, c]) => [Some(*a), Some(*b), Some(*c)],
            _ => [None; 3],
        };
        found.into_iter().flatten()
    }
}

type Done = Result<(), i32>;

fn errno() -> i32 {
    io::Error::last_os_error().raw_os_error().unwrap_or(libc::EIO)
}

fn check(result: c_int) -> Result<c_int, i32> {
    if result < 0 { Err(errno()) } else { Ok(result) }
}

fn check_long(result: c_long) -> Result<c_int, i32> {
    if result < 0 {
        Err(errno())
    } else {
        Ok(result as c_int)
    }
}

/// The process while it runs its program.
struct Child<'a> {
    fds: &'a [RawFd],
    /// The new root, `O_PATH`; -1 while there is none, and the process's own root then.
    root: RawFd,
    prepared: &'a Prepared<'a>,
}

impl Child<'_> {
    fn fd(&self, fd: Fd) -> RawFd {
        self.fds.get(usize::from(fd.0)).copied().unwrap_or(-1)
    }

    fn step(&mut self, step: &Step) -> Done {
        // SAFETY (for every block below): bare system calls on descriptors of this process and on
        // strings and arrays that outlive the call; no memory is handed to the kernel to keep.
        match step {
            Step::Await(fd) => self.wait_for(self.fd(*fd)),
            Step::JoinNamespaces { pidfd, flags } => {
                // SAFETY: as above.
                check(unsafe { libc::setns(self.fd(*pidfd), *flags) }).map(drop)
            }
            // SAFETY: as above.
            Step::Unshare { flags } => check(unsafe { libc::unshare(*flags) }).map(drop),
            Step::PrivateMounts => {
                let (none, root) = (ptr::null(), c"/".as_ptr());
                // SAFETY: as above.
                check(unsafe { libc::mount(none, root, none, libc::MS_REC | libc::MS_PRIVATE, ptr::null()) })
                    .map(drop)
            }
            Step::AttachRoot { tree, at } => self.attach_root(self.fd(*tree), at),
            Step::MakeDir { path, mode } => self.make_dirs(path, *mode, false),
            Step::MakeFile { path } => self.make_file(path),
            Step::Symlink { target, path } => self.symlink(target, path),
            Step::Mount {
                fstype,
                options,
                attributes,
                at,
            } => {
                let tree = new_mount(fstype, options, *attributes)?;
                self.attach(tree, at)
            }
            Step::File { path, data } => self.file(path, data),
            Step::ReadOnlyRoot => read_only_root(),
            Step::AttachTree { tree, at } => self.attach(self.fd(*tree), at),
            Step::BindHost { host, attributes, at } => {
                let tree = clone_tree(libc::AT_FDCWD, host, 0)?;
                set_attributes(tree, 0, *attributes)?;
                self.attach(tree, at)
            }
            Step::Mask { path } => self.mask(path),
            Step::ReadOnly { path } => self.read_only(path),
            Step::PivotRoot => self.pivot_root(),
            // SAFETY: as above.
            Step::HostName(name) => {
                check(unsafe { libc::sethostname(name.as_ptr(), name.as_bytes().len()) }).map(drop)
            }
            // SAFETY: as above.
            Step::DomainName(name) => {
                check(unsafe { libc::setdomainname(name.as_ptr(), name.as_bytes().len()) }).map(drop)
            }
            Step::ResourceLimit { resource, soft, hard } => {
                let limit = libc::rlimit {
                    rlim_cur: *soft,
                    rlim_max: *hard,
                };
                // SAFETY: as above.
                check(unsafe { libc::setrlimit(*resource, &limit) }).map(drop)
            }
            Step::WriteFile { path, data } => write_file(path, data),
            Step::Stdio(fds) => self.stdio(fds.map(|fd| self.fd(fd))),
            // SAFETY: as above.
            Step::NewSession => check(unsafe { libc::setsid() }).map(drop),
            Step::Terminal {
                to,
                owner,
                rows,
                columns,
                console,
            } => self.terminal(self.fd(*to), *owner, (*rows, *columns), *console),
            Step::WorkingDir { path, create } => self.working_dir(path, *create),
            // The raw calls: glibc's wrappers would signal the parent's other threads to follow,
            // which do not exist here.
            // SAFETY: as above.
            Step::Groups(groups) => {
                check_long(unsafe { libc::syscall(libc::SYS_setgroups, groups.len(), groups.as_ptr()) })
                    .map(drop)
            }
            // SAFETY: as above.
            Step::Group(gid) => {
                check_long(unsafe { libc::syscall(libc::SYS_setresgid, *gid, *gid, *gid) }).map(drop)
            }
            // SAFETY: as above.
            Step::User(uid) => {
                check_long(unsafe { libc::syscall(libc::SYS_setresuid, *uid, *uid, *uid) }).map(drop)
            }
            Step::CapabilityBounds(kept) => bound_capabilities(*kept),
            Step::Capabilities(set) => set_capabilities(*set),
            // SAFETY: as above.
            Step::NoNewPrivileges => {
                check(unsafe { libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) }).map(drop)
            }
            Step::Seccomp(filter) => install_filter(filter),
            Step::Exec { files, .. } => self.exec(files),
        }
    }

    fn wait_for(&self, fd: RawFd) -> Done {
        let mut byte = 0u8;
        // SAFETY: reads one byte into a local.
        match check_long(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } as c_long)? {
            1 => Ok(()),
            // Whoever held the gate is gone; nobody waits for a report.
            _ => exit_now(),
        }
    }

    fn attach_root(&mut self, tree: RawFd, at: &CStr) -> Done {
        move_mount(tree, libc::AT_FDCWD, at, 0)?;
        // SAFETY: opens a path of the parent's prepared string.
        self.root =
            check(unsafe { libc::open(at.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
        Ok(())
    }

    /// Opens a path in the new root, following links within it only.
    fn open(&self, path: &CStr, flags: c_int, mode: u32) -> Result<RawFd, i32> {
        if self.root < 0 {
            // SAFETY: opens a path of the process's own root.
            return check(unsafe { libc::open(path.as_ptr(), flags | libc::O_CLOEXEC, mode) });
        }
        self.open_below(path, flags, mode)
    }

    fn open_below(&self, path: &CStr, flags: c_int, mode: u32) -> Result<RawFd, i32> {
        // SAFETY: an all-zero `open_how` is valid.
        let mut how: libc::open_how = unsafe { std::mem::zeroed() };
        how.flags = (flags | libc::O_CLOEXEC) as u64;
        how.mode = u64::from(mode);
        how.resolve = libc::RESOLVE_IN_ROOT | libc::RESOLVE_NO_MAGICLINKS;
        // SAFETY: `how` and the path outlive the call.
        check_long(unsafe {
            libc::syscall(
                libc::SYS_openat2,
                self.root,
                path.as_ptr(),
                &how,
                size_of::<libc::open_how>(),
            )
        })
    }

    fn make_file(&self, path: &CStr) -> Done {
        if let Ok(fd) = self.open(path, libc::O_PATH, 0) {
            close(fd);
            return Ok(());
        }
        self.make_dirs(path, 0o755, true)?;
        let fd = self.open(path, libc::O_CREAT | libc::O_RDONLY | libc::O_NONBLOCK, 0o644)?;
        close(fd);
        Ok(())
    }

    /// Makes the folders of a path one below the other; without the last name if `parents_only`.
    fn make_dirs(&self, path: &CStr, mode: u32, parents_only: bool) -> Done {
        let bytes = path.to_bytes();
        let mut buffer = [0u8; libc::PATH_MAX as usize];
        if bytes.len() >= buffer.len() {
            return Err(libc::ENAMETOOLONG);
        }
        let mut from = 0;
        loop {
            while bytes.get(from) == Some(&b'/') {
                from += 1;
            }
            if from >= bytes.len() {
                return Ok(());
            }
            let to = bytes[from..]
                .iter()
                .position(|byte| *byte == b'/')
                .map_or(bytes.len(), |n| from + n);
            let last = bytes[to..].iter().all(|byte| *byte == b'/');
            if last && parents_only {
                return Ok(());
            }
            let (parent, name) = (&bytes[..from], &bytes[from..to]);
            self.make_dir_in(&mut buffer, parent, name, mode)?;
            from = to;
        }
    }

    fn make_dir_in(
        &self,
        buffer: &mut [u8; libc::PATH_MAX as usize],
        parent: &[u8],
        name: &[u8],
        mode: u32,
    ) -> Done {
        let parent = if parent.is_empty() { b"." } else { parent };
        let dir = self.open(terminated(buffer, parent)?, libc::O_PATH | libc::O_DIRECTORY, 0)?;
        // SAFETY: a terminated name in a local buffer.
        let made = check(unsafe { libc::mkdirat(dir, terminated(buffer, name)?.as_ptr(), mode) });
        if made.is_ok() {
            // The mode is meant as it is said, whatever the umask.
            // SAFETY: as above.
            unsafe { libc::fchmodat(dir, terminated(buffer, name)?.as_ptr(), mode, 0) };
        }
        close(dir);
        match made {
            Ok(_) | Err(libc::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    fn symlink(&self, target: &CStr, path: &CStr) -> Done {
        self.make_dirs(path, 0o755, true)?;
        let bytes = path.to_bytes();
        let cut = bytes
            .iter()
            .rposition(|byte| *byte == b'/')
            .map_or(0, |at| at + 1);
        let mut buffer = [0u8; libc::PATH_MAX as usize];
        let parent = if cut == 0 { b"." as &[u8] } else { &bytes[..cut] };
        let dir = self.open(
            terminated(&mut buffer, parent)?,
            libc::O_PATH | libc::O_DIRECTORY,
            0,
        )?;
        let name = terminated(&mut buffer, &bytes[cut..])?;
        // SAFETY: terminated strings and an open folder.
        let made = check(unsafe { libc::symlinkat(target.as_ptr(), dir, name.as_ptr()) });
        close(dir);
        match made {
            Ok(_) | Err(libc::EEXIST) => Ok(()),
            Err(error) => Err(error),
        }
    }

    /// Attaches a detached mount on a path that is there.
    fn attach(&self, tree: RawFd, at: &CStr) -> Done {
        let target = self.open(at, libc::O_PATH, 0)?;
        let moved = move_mount(tree, target, c"", libc::MOVE_MOUNT_T_EMPTY_PATH);
        close(target);
        moved
    }

    fn file(&self, path: &CStr, data: &[u8]) -> Done {
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
        close(fd);
        let source = self.open(NAME, libc::O_PATH, 0)?;
        let tree = clone_tree(source, c"", libc::AT_EMPTY_PATH)?;
        self.make_file(path)?;
        self.attach(tree, path)?;
        close(tree);
        close(source);
        let dev = self.open(c"/dev", libc::O_PATH | libc::O_DIRECTORY, 0)?;
        // SAFETY: removes the name just made; the mount keeps the file.
        let removed = check(unsafe { libc::unlinkat(dev, c".file".as_ptr(), 0) });
        close(dev);
        removed.map(drop)
    }

    fn mask(&self, path: &CStr) -> Done {
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

    fn read_only(&self, path: &CStr) -> Done {
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

    /// `pivot_root(2)`, notes: with "." twice the old root lies over the new one and is detached.
    fn pivot_root(&mut self) -> Done {
        let dot = c".".as_ptr();
        // SAFETY: system calls on the current folder, which is the new root.
        unsafe {
            check(libc::fchdir(self.root))?;
            check_long(libc::syscall(libc::SYS_pivot_root, dot, dot))?;
            check(libc::umount2(dot, libc::MNT_DETACH))?;
            check(libc::chdir(c"/".as_ptr()))?;
        }
        close(self.root);
        self.root = -1;
        Ok(())
    }

    fn stdio(&self, fds: [RawFd; 3]) -> Done {
        for (number, fd) in fds.into_iter().enumerate() {
            // SAFETY: `dup2` clears close-on-exec; the descriptors are this process's copies.
            check(unsafe { libc::dup2(fd, number as c_int) })?;
        }
        Ok(())
    }

    fn terminal(&self, to: RawFd, owner: u32, size: (u16, u16), console: bool) -> Done {
        let master = self.open(c"/dev/pts/ptmx", libc::O_RDWR | libc::O_NOCTTY, 0)?;
        let unlocked: c_int = 0;
        let winsize = libc::winsize {
            ws_row: size.0,
            ws_col: size.1,
            ws_xpixel: 0,
            ws_ypixel: 0,
        };
        // SAFETY: ioctls of pty(7) and ioctl_tty(2) on the descriptor just opened, with locals.
        let terminal = unsafe {
            check(libc::ioctl(master, libc::TIOCSPTLCK, &unlocked))?;
            let flags = libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC;
            let terminal = check(libc::ioctl(master, libc::TIOCGPTPEER, flags))?;
            check(libc::ioctl(terminal, libc::TIOCSWINSZ, &winsize))?;
            check_long(libc::syscall(libc::SYS_fchown, terminal, owner, u32::MAX))?;
            check(libc::ioctl(terminal, libc::TIOCSCTTY, 0))?;
            terminal
        };
        self.stdio([terminal; 3])?;
        if console {
            let tree = clone_tree(terminal, c"", libc::AT_EMPTY_PATH)?;
            self.make_file(c"/dev/console")?;
            self.attach(tree, c"/dev/console")?;
            close(tree);
        }
        send_descriptor(to, master)?;
        close(master);
        close(terminal);
        Ok(())
    }

    fn working_dir(&self, path: &CStr, create: bool) -> Done {
        // SAFETY: a prepared string.
        match check(unsafe { libc::chdir(path.as_ptr()) }) {
            Err(libc::ENOENT) if create => {
                self.make_dirs(path, 0o755, false)?;
                // SAFETY: as above.
                check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
            }
            other => other.map(drop),
        }
    }

    fn exec(&self, files: &[CString]) -> Done {
        // SAFETY: marks every descriptor from 3 on to be closed by the exec.
        check_long(unsafe {
            libc::syscall(
                libc::SYS_close_range,
                3 as c_uint,
                c_uint::MAX,
                libc::CLOSE_RANGE_CLOEXEC,
            )
        })?;
        // As execvp(3): a file that may not be run is remembered, one that is not there passed over.
        let mut worst = libc::ENOENT;
        for file in files {
            // SAFETY: both vectors end with a null and point to strings that outlive the call.
            unsafe {
                libc::execve(
                    file.as_ptr(),
                    self.prepared.arguments.as_ptr(),
                    self.prepared.environment.as_ptr(),
                )
            };
            match errno() {
                libc::ENOENT | libc::ENOTDIR => {}
                libc::EACCES => worst = libc::EACCES,
                other => return Err(other),
            }
        }
        Err(worst)
    }
}

/// Copies a name into the buffer and ends it with a null.
fn terminated<'b>(buffer: &'b mut [u8; libc::PATH_MAX as usize], name: &[u8]) -> Result<&'b CStr, i32> {
    let room = buffer.get_mut(..=name.len()).ok_or(libc::ENAMETOOLONG)?;
    room[..name.len()].copy_from_slice(name);
    room[name.len()] = 0;
    CStr::from_bytes_with_nul(room).map_err(|_| libc::EINVAL)
}

fn close(fd: RawFd) {
    // SAFETY: closes a descriptor that this process opened and does not use again.
    unsafe { libc::close(fd) };
}

fn is_dir(fd: RawFd) -> Result<bool, i32> {
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

fn new_mount(
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

fn clone_tree(dir: RawFd, path: &CStr, flags: c_int) -> Result<RawFd, i32> {
    let flags = OPEN_TREE_CLONE | libc::O_CLOEXEC as c_uint | flags as c_uint;
    // SAFETY: a prepared string.
    check_long(unsafe { libc::syscall(libc::SYS_open_tree, dir, path.as_ptr(), flags) })
}

fn move_mount(tree: RawFd, dir: RawFd, at: &CStr, flags: c_uint) -> Done {
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

fn set_attributes(tree: RawFd, flags: c_int, attributes: MountAttributes) -> Done {
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

fn read_only_root() -> Done {
    // SAFETY: opens the root of this process.
    let root = check(unsafe { libc::open(c"/".as_ptr(), libc::O_PATH | libc::O_CLOEXEC) })?;
    let done = set_attributes(root, 0, MountAttributes::READ_ONLY);
    close(root);
    done
}

fn write_file(path: &CStr, data: &[u8]) -> Done {
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

/// One past the highest capability that `capability.h` could ever number in a 64-bit set.
const CAPABILITIES: c_int = 64;

fn bound_capabilities(kept: u64) -> Done {
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

fn set_capabilities(set: u64) -> Done {
    let header = CapabilityHeader {
        version: CAPABILITY_VERSION_3,
        pid: 0,
    };
    let half = |bits: u32| CapabilityData {
        effective: bits,
        permitted: bits,
        inheritable: 0,
    };
    let data = [half(set as u32), half((set >> 32) as u32)];
    // SAFETY: structures of capget(2), version 3, which outlive the calls.
    unsafe {
        check(libc::prctl(
            libc::PR_CAP_AMBIENT,
            libc::PR_CAP_AMBIENT_CLEAR_ALL,
            0,
            0,
            0,
        ))?;
        check_long(libc::syscall(libc::SYS_capset, &header, data.as_ptr())).map(drop)
    }
}

/// `SECCOMP_SET_MODE_FILTER` of seccomp(2).
const SECCOMP_SET_MODE_FILTER: c_uint = 1;

fn install_filter(filter: &[SockFilter]) -> Done {
    let program = libc::sock_fprog {
        len: u16::try_from(filter.len()).map_err(|_| libc::EINVAL)?,
        filter: filter.as_ptr().cast_mut().cast(),
    };
    // SAFETY: the kernel copies the filter; `SockFilter` has the layout of `struct sock_filter`.
    check_long(unsafe { libc::syscall(libc::SYS_seccomp, SECCOMP_SET_MODE_FILTER, 0, &program) }).map(drop)
}

/// Sends one descriptor over a socket (unix(7), `SCM_RIGHTS`).
fn send_descriptor(to: RawFd, fd: RawFd) -> Done {
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
