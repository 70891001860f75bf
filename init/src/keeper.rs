//! Process 1: the first boot phases, then the keeper of the zones' processes, for ever.
//!
//! Nothing here may end, panic or wait for a disk, a zone or the network. The supervisor is a child
//! like any other; when it ends another one is started.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use rustix::process::{WaitOptions, waitpid};
use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime,
};
use sys::signals;
use zones::keeper::{Server, Turn};

use crate::boot::{self, Phase};
use crate::console::say;
use crate::power::{End, end_machine};
use crate::{SUPERVISOR, mounts};

const PHASES: &[Phase] = &[
    Phase {
        name: "root",
        run: mounts::leave_initramfs,
    },
    Phase {
        name: "mounts",
        run: mounts::mount_all,
    },
    Phase {
        name: "console",
        run: console,
    },
    Phase {
        name: "clock",
        run: clock,
    },
    Phase {
        name: "memory",
        run: memory,
    },
    Phase {
        name: "entropy",
        run: entropy,
    },
];

/// Tokens of the descriptors that process 1 itself waits for.
const SIGNALS: u64 = 1;
const RESTART: u64 = 2;

/// A supervisor that lived shorter than this waits as long for its successor.
const SHORT_LIFE: Duration = Duration::from_secs(1);

/// Boots and keeps. Does not return.
pub(crate) fn run() -> ExitCode {
    boot::run(PHASES);
    loop {
        // A panic is a defect; process 1 goes on without what it was doing then.
        let ended = catch_unwind(AssertUnwindSafe(|| {
            Keeper::start().and_then(|mut keeper| keeper.serve())
        }));
        match ended {
            Ok(Ok(end)) => end_machine(end),
            Ok(Err(error)) => say!("process 1: {error:#}; starting over"),
            Err(_) => say!("process 1 panicked; starting over"),
        }
        std::thread::sleep(SHORT_LIFE);
    }
}

struct Keeper {
    server: Server,
    signals: OwnedFd,
    timer: OwnedFd,
    supervisor: Option<i32>,
    started: Instant,
}

impl Keeper {
    fn start() -> anyhow::Result<Self> {
        let signals = signals::catch(&[
            signals::SIGCHLD,
            signals::SIGINT,
            signals::SIGTERM,
            signals::SIGPWR,
            signals::SIGUSR1,
            signals::SIGUSR2,
        ])?;
        let timer = timerfd_create(
            TimerfdClockId::Monotonic,
            TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK,
        )?;
        // Ctrl-Alt-Del comes as SIGINT instead of ending the machine at once.
        let _ = rustix::system::reboot(rustix::system::RebootCommand::CadOff);
        let server = Server::new()?;
        server.watch(signals.as_fd(), SIGNALS)?;
        server.watch(timer.as_fd(), RESTART)?;
        let mut keeper = Self {
            server,
            signals,
            timer,
            supervisor: None,
            started: Instant::now(),
        };
        keeper.start_supervisor();
        Ok(keeper)
    }

    fn serve(&mut self) -> anyhow::Result<End> {
        loop {
            match self.server.turn()? {
                Turn::Own => {}
                // Its end comes as SIGCHLD too; whichever it is, there is one successor.
                Turn::SupervisorGone => self.stop_supervisor(),
                Turn::Power { restart } => return Ok(if restart { End::Reboot } else { End::PowerOff }),
                Turn::Caller(SIGNALS) => {
                    while let Some(signal) = signals::next(&self.signals) {
                        if let Some(end) = self.signal(signal) {
                            return Ok(end);
                        }
                    }
                }
                Turn::Caller(_) => {
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                    self.start_supervisor();
                }
            }
        }
    }

    /// Asks the supervisor for an orderly end; without one the machine ends at once.
    fn signal(&mut self, signal: i32) -> Option<End> {
        let end = match signal {
            signals::SIGCHLD => {
                self.reap();
                return None;
            }
            signals::SIGINT | signals::SIGTERM => End::Reboot,
            _ => End::PowerOff,
        };
        (!self.server.ask_for_end(end == End::Reboot)).then_some(end)
    }

    /// Takes the status of every child that has ended: processes of zones, the supervisor, and
    /// orphans, which are nobody's.
    fn reap(&mut self) {
        while let Ok(Some((pid, status))) = waitpid(None, WaitOptions::NOHANG) {
            let raw = pid.as_raw_nonzero().get();
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            if self.server.reaped(raw, code.unwrap_or(255)) {
                continue;
            }
            if self.supervisor == Some(raw) {
                self.supervisor = None;
                self.server.detach_supervisor();
                self.schedule_successor();
            }
        }
    }

    /// A supervisor that has closed its socket but still runs is of no use.
    fn stop_supervisor(&mut self) {
        if let Some(pid) = self.supervisor.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn schedule_successor(&mut self) {
        if self.started.elapsed() >= SHORT_LIFE {
            say!("the supervisor ended; starting another");
            self.start_supervisor();
            return;
        }
        say!(
            "the supervisor ended at once; starting another in {} s",
            SHORT_LIFE.as_secs()
        );
        let once = Itimerspec {
            it_interval: Timespec {
                tv_sec: 0,
                tv_nsec: 0,
            },
            it_value: Timespec {
                tv_sec: SHORT_LIFE.as_secs() as i64,
                tv_nsec: 0,
            },
        };
        if timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_err() {
            self.start_supervisor();
        }
    }

    fn start_supervisor(&mut self) {
        self.started = Instant::now();
        if let Err(error) = self.try_start_supervisor() {
            say!("cannot start the supervisor: {error:#}");
            self.schedule_successor();
        }
    }

    fn try_start_supervisor(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = sys::socket::pair()?;
        // The one descriptor that it inherits; it closes it on its own execs again.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        let number = theirs.as_raw_fd().to_string();
        let child = Command::new("/init").args([SUPERVISOR, &number]).spawn()?;
        self.supervisor = i32::try_from(child.id()).ok();
        self.server.attach_supervisor(ours)?;
        Ok(())
    }
}

/// Standard input, output and error are the console from here on, whatever the kernel gave.
fn console() -> anyhow::Result<String> {
    use rustix::fs::{Mode, OFlags, open};
    let console = open("/dev/console", OFlags::RDWR | OFlags::NOCTTY, Mode::empty())?;
    rustix::stdio::dup2_stdin(&console)?;
    rustix::stdio::dup2_stdout(&console)?;
    rustix::stdio::dup2_stderr(&console)?;
    Ok(format!(
        "Linux {}",
        rustix::system::uname().release().to_string_lossy()
    ))
}

/// The kernel has set the clock from the machine's own, if it has one (`CONFIG_RTC_HCTOSYS`).
fn clock() -> anyhow::Result<String> {
    /// 2025-01-01; no machine that runs this is older.
    const EARLIEST: u64 = 1_735_689_600;
    let now = std::time::SystemTime::now()
        .duration_since(std::time::UNIX_EPOCH)?
        .as_secs();
    anyhow::ensure!(
        now >= EARLIEST,
        "The machine's clock is not set, so TLS certificates will look invalid; set it in the firmware"
    );
    Ok(String::new())
}

/// A small machine has better uses for the memory that the kernel holds back for large ones
/// (sysctl/vm.rst): the reserve of 45 MB that transparent huge pages raise `min_free_kbytes` to becomes
/// the square root of 16 times the memory in KiB again, and the lists of free pages of each CPU, which
/// may take an eighth of the memory, a small part of it.
fn memory() -> anyhow::Result<String> {
    /// From here on, what is held back does not matter.
    const LARGE_KIB: u64 = 8 << 20;
    let kib = rustix::system::sysinfo().totalram >> 10;
    if kib < LARGE_KIB {
        std::fs::write("/proc/sys/vm/min_free_kbytes", (kib * 16).isqrt().to_string())?;
        std::fs::write("/proc/sys/vm/percpu_pagelist_high_fraction", "512")?;
    }
    Ok(String::new())
}

/// Keys need randomness; a kernel without any yet would have TLS wait for it.
fn entropy() -> anyhow::Result<String> {
    use rustix::rand::{GetRandomFlags, getrandom};
    let mut bytes = [0u8; 16];
    Ok(match getrandom(&mut bytes, GetRandomFlags::NONBLOCK) {
        Ok(_) => String::new(),
        Err(_) => "not ready yet; the first TLS connection may wait for it".to_owned(),
    })
}
