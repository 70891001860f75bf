//! The interpreter: what the child does with the steps.

use std::ffi::{CStr, CString, c_int, c_long, c_uint};
use std::io;
use std::os::fd::RawFd;
use std::ptr;

use super::calls::*;
use super::{Failure, Fd, Program, Step};

/// A program made ready to run without allocating: argument vectors with their final null.
pub(crate) struct Prepared<'a> {
    program: &'a Program,
    fds: &'a [RawFd],
    /// The descriptors in rising order.
    kept: Vec<RawFd>,
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
        let mut kept = fds.to_vec();
        kept.sort_unstable();
        Ok(Self {
            program,
            fds,
            kept,
            arguments: vector(arguments),
            environment: vector(environment),
        })
    }

    /// Closes what the process has of its parent beside standard input, output and error, the
    /// program's descriptors and one more.
    pub(crate) fn close_others(&self, one_more: RawFd) {
        let mut from = 3;
        let mut rest = self.kept.as_slice();
        let mut one_more = Some(one_more);
        loop {
            // The next descriptor to be kept, in rising order.
            let next = match (rest.first(), one_more) {
                (Some(first), Some(more)) if more < *first => one_more.take(),
                (Some(first), _) => {
                    rest = &rest[1..];
                    Some(*first)
                }
                (None, _) => one_more.take(),
            };
            let to = next.map_or(c_uint::MAX, |fd| (fd as c_uint).saturating_sub(1));
            if from <= to {
                // SAFETY: closes descriptors of this process that nothing here uses.
                unsafe { libc::syscall(libc::SYS_close_range, from, to, 0) };
            }
            match next {
                Some(fd) => from = from.max(fd as c_uint + 1),
                None => return,
            }
        }
    }

    /// Runs the steps; returns only through `_exit`.
    pub(crate) fn run(&self) -> ! {
        let mut child = Child {
            fds: self.fds,
            root: -1,
            inherited: 0,
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

/// The process while it runs its program.
pub(super) struct Child<'a> {
    fds: &'a [RawFd],
    /// The new root, `O_PATH`; -1 while there is none, and the process's own root then.
    pub(super) root: RawFd,
    /// Descriptors after standard error that the exec leaves open.
    inherited: c_uint,
    prepared: &'a Prepared<'a>,
}

impl Child<'_> {
    fn fd(&self, fd: Fd) -> RawFd {
        self.fds.get(usize::from(fd.0)).copied().unwrap_or(-1)
    }

    fn step(&mut self, step: &Step) -> Done {
        match step {
            Step::Await(fd) => self.wait_for(self.fd(*fd)),
            Step::Tell(fd) => write_byte(self.fd(*fd)),
            Step::JoinNamespaces { pidfd, flags } => join_namespaces(self.fd(*pidfd), *flags),
            Step::Unshare { flags } => unshare(*flags),
            Step::PrivateMounts => private_mounts(),
            Step::AttachRoot { tree, at } => self.attach_root(self.fd(*tree), at),
            Step::MakeDir { path, mode } => self.make_dirs(path.to_bytes(), *mode),
            Step::MakeFile { path } => self.make_file(path.to_bytes()),
            Step::Symlink { target, path } => self.symlink(target, path),
            Step::Mount {
                fstype,
                options,
                attributes,
                at,
            } => {
                let tree = new_mount(fstype, options, *attributes)?;
                self.attach_on_dir(tree, at)
            }
            Step::File { path, data } => self.file(path, data),
            Step::MakeNode {
                path,
                mode,
                device,
                uid,
                gid,
            } => self.make_node(path, *mode, *device, (*uid, *gid)),
            Step::RootPropagation(flags) => root_propagation(*flags),
            Step::LoopbackUp => loopback_up(),
            Step::ReadOnlyRoot => read_only_root(),
            Step::AttachTree { tree, at } => self.attach(self.fd(*tree), at),
            Step::BindHost { host, attributes, at } => {
                let tree = clone_tree(libc::AT_FDCWD, host, 0)?;
                set_attributes(tree, 0, *attributes)?;
                self.attach(tree, at)
            }
            Step::BindHostAnew { host, attributes, at } => {
                let tree = clone_tree(libc::AT_FDCWD, host, 0)?;
                set_attributes(tree, 0, *attributes)?;
                self.attach_on_new_file(tree, at)
            }
            Step::Mask { path } => self.mask(path),
            Step::ReadOnly { path } => self.read_only(path),
            Step::PivotRoot => self.pivot_root(),
            Step::HostName(name) => set_host_name(name),
            Step::DomainName(name) => set_domain_name(name),
            Step::WriteFile { path, data } => write_file(path, data),
            Step::Stdio(fds) => self.stdio(fds.map(|fd| self.fd(fd))),
            Step::NewSession => new_session(),
            Step::NewKeyring => new_keyring(),
            Step::Terminal {
                to,
                owner,
                rows,
                columns,
                console,
            } => self.terminal(self.fd(*to), *owner, (*rows, *columns), *console),
            Step::WorkingDir { path, create } => self.working_dir(path, *create),
            Step::Groups(groups) => set_groups(groups),
            Step::Group(gid) => set_group(*gid),
            Step::User(uid) => set_user(*uid),
            Step::CapabilityBounds(kept) => bound_capabilities(*kept),
            Step::Capabilities(set) => set_capabilities(*set),
            Step::KeepCapabilities => keep_capabilities(),
            Step::CapabilitySets(sets) => set_capability_sets(*sets),
            Step::Umask(mask) => umask(*mask),
            Step::Personality(number) => personality(*number),
            Step::Executable { files } => self.executable(files),
            Step::Inherit(count) => {
                self.inherited = *count;
                (3..count.saturating_add(3)).try_for_each(|number| keep_open(number as RawFd))
            }
            Step::NoNewPrivileges => no_new_privileges(),
            Step::Seccomp(filter) => install_filter(filter),
            Step::Exec { files, .. } => self.exec(files),
        }
    }

    fn wait_for(&self, fd: RawFd) -> Done {
        let mut byte = 0u8;
        // SAFETY: reads one byte into a local.
        match check_long(unsafe { libc::read(fd, (&raw mut byte).cast(), 1) } as c_long)? {
            1 => Ok(()),
            // Whoever held the gate is gone.
            _ => Err(libc::ECANCELED),
        }
    }

    fn attach_root(&mut self, tree: RawFd, at: &CStr) -> Done {
        move_mount(tree, libc::AT_FDCWD, at, 0)?;
        // SAFETY: opens a path of the parent's prepared string.
        self.root =
            check(unsafe { libc::open(at.as_ptr(), libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC) })?;
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
            self.make_file(b"/dev/console")?;
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
                self.make_dirs(path.to_bytes(), 0o755)?;
                // SAFETY: as above.
                check(unsafe { libc::chdir(path.as_ptr()) }).map(drop)
            }
            other => other.map(drop),
        }
    }

    /// Whether the exec will find something to run, as far as a caller who may do all can tell.
    fn executable(&self, files: &[CString]) -> Done {
        let mut worst = libc::ENOENT;
        for file in files {
            match executable(file) {
                Ok(()) => return Ok(()),
                Err(libc::ENOENT | libc::ENOTDIR) => {}
                Err(error) => worst = error,
            }
        }
        Err(worst)
    }

    fn exec(&self, files: &[CString]) -> Done {
        // SAFETY: marks every descriptor from 3 on, or after the inherited ones, to be closed by the exec.
        check_long(unsafe {
            libc::syscall(
                libc::SYS_close_range,
                self.inherited.saturating_add(3),
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
