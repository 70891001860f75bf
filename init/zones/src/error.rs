//! What goes wrong with zones.

use std::io;

/// A failure of the runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("{0:?} holds a null byte, which no kernel interface takes; remove it")]
    NullByte(String),
    #[error("Cannot {action}")]
    Io {
        action: String,
        #[source]
        source: io::Error,
    },
    #[error("Process 1 does not answer; the supervisor will be restarted")]
    KeeperGone,
    #[error("Process 1 cannot start the process: {0}")]
    NotCloned(String),
    #[error(
        "The profile of system calls is too long: {0} instructions, and the kernel takes 4096; make it simpler"
    )]
    FilterTooLong(usize),
    #[error("The zone is not running")]
    NotRunning,
}

impl Error {
    pub(crate) fn io(action: impl Into<String>) -> impl FnOnce(io::Error) -> Self {
        let action = action.into();
        |source| Self::Io { action, source }
    }
}

/// Why a process did not come to run its program.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    /// Docker's exit code 127.
    #[error("exec: \"{program}\": executable file not found in $PATH")]
    NotInPath { program: String },
    /// Docker's exit code 127.
    #[error("exec: \"{program}\": stat {program}: no such file or directory")]
    NotFound { program: String },
    /// Docker's exit code 126.
    #[error("exec: \"{program}\": permission denied")]
    PermissionDenied { program: String },
    /// Docker's exit code 126.
    #[error("exec: \"{program}\": exec format error: the file is no program for this machine")]
    NotExecutable { program: String },
    #[error("Cannot {step}")]
    Step {
        step: String,
        #[source]
        source: io::Error,
    },
    #[error("The process ended before it could run \"{program}\"")]
    Killed { program: String },
    #[error(transparent)]
    Other(#[from] Error),
}

impl StartError {
    /// What an error of execve(2) means.
    pub(crate) fn from_exec(program: String, errno: i32) -> Self {
        match errno {
            libc::ENOENT | libc::ENOTDIR if program.contains('/') => Self::NotFound { program },
            libc::ENOENT | libc::ENOTDIR => Self::NotInPath { program },
            libc::EACCES | libc::EPERM => Self::PermissionDenied { program },
            libc::ENOEXEC => Self::NotExecutable { program },
            _ => Self::Step {
                step: format!("run \"{program}\""),
                source: io::Error::from_raw_os_error(errno),
            },
        }
    }

    /// The exit code that Docker gives such a failure.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::NotInPath { .. } | Self::NotFound { .. } => 127,
            Self::PermissionDenied { .. } | Self::NotExecutable { .. } => 126,
            _ => 128,
        }
    }
}
