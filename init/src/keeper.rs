//! Process 1: the first boot phases, then the keeper of the zones' processes, for ever.
//!
//! Nothing here may end, panic or wait for a disk, a zone or the network. The supervisor is a child
//! like any other; when it ends another one is started.

use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::process::CommandExt as _;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::Context as _;
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
        name: "limits",
        run: limits,
    },
    Phase {
        name: "entropy",
        run: entropy,
    },
];

/// Tokens of the descriptors that process 1 itself waits for.
const SIGNALS: u64 = 1;
const RESTART: u64 = 2;

/// The packed supervisor.
const PACKED: &str = "/init";
/// A supervisor that ends sooner than this has failed.
const SHORT_LIFE: Duration = Duration::from_millis(200);
/// One of another build has, if it ends sooner than this.
const TRIAL: Duration = Duration::from_secs(10);
/// So many may fail in a row before one of another build is given up ...
const TRIES: u32 = 3;
/// ... and so many before the next has to wait.
const QUICK: u32 = 5;
const PAUSE: Duration = Duration::from_secs(1);
/// Within this time one of another build must serve.
const SERVE_LIMIT: Duration = Duration::from_secs(30);

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
        std::thread::sleep(PAUSE);
    }
}

struct Keeper {
    server: Server,
    signals: OwnedFd,
    /// For the pause before a start, or for the time within which one of another build must serve.
    timer: OwnedFd,
    supervisor: Option<Life>,
    /// How many supervisors in a row have failed.
    failures: u32,
    /// Why the packed supervisor runs although another was wanted; empty if none was.
    fell_back: String,
}

/// A supervisor that runs.
struct Life {
    pid: i32,
    started: Instant,
    serves: bool,
    /// Its build, if it is not the packed one.
    build: Option<String>,
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
            failures: 0,
            fell_back: String::new(),
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
                Turn::Serves => self.serves(),
                Turn::Caller(SIGNALS) => {
                    while let Some(signal) = signals::next(&self.signals) {
                        if let Some(end) = self.signal(signal) {
                            return Ok(end);
                        }
                    }
                }
                Turn::Caller(_) => {
                    let _ = rustix::io::read(&self.timer, &mut [0; 8]);
                    self.time_is_up();
                }
            }
        }
    }

    /// Asks the supervisor for an orderly end; without one the machine ends at once.
    fn signal(&mut self, signal: i32) -> Option<End> {
        let end = match signal {
            signals::SIGCHLD => return self.reap(),
            signals::SIGINT | signals::SIGTERM => End::Reboot,
            _ => End::PowerOff,
        };
        (!self.server.ask_for_end(end == End::Reboot)).then_some(end)
    }

    /// Takes the status of every child that has ended: processes of zones, the supervisor, and
    /// orphans, which are nobody's.
    fn reap(&mut self) -> Option<End> {
        while let Ok(Some((pid, status))) = waitpid(None, WaitOptions::NOHANG) {
            let raw = pid.as_raw_nonzero().get();
            let code = status
                .exit_status()
                .or_else(|| status.terminating_signal().map(|signal| 128 + signal));
            if self.server.reaped(raw, code.unwrap_or(255)) {
                continue;
            }
            if let Some(life) = self.supervisor.take_if(|life| life.pid == raw) {
                // Its last words may be that the machine is to end.
                if let Turn::Power { restart } = self.server.bury_supervisor() {
                    return Some(if restart { End::Reboot } else { End::PowerOff });
                }
                self.succeed(&life);
            }
        }
        None
    }

    /// A supervisor that has closed its socket but still runs is of no use.
    fn stop_supervisor(&mut self) {
        let pid = self.supervisor.as_ref().map(|life| life.pid);
        if let Some(pid) = pid.and_then(rustix::process::Pid::from_raw) {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn serves(&mut self) {
        if let Some(life) = &mut self.supervisor {
            life.serves = true;
            self.set_timer(Duration::ZERO);
        }
    }

    /// Sees to a successor: at once, unless one after the other has failed.
    fn succeed(&mut self, life: &Life) {
        let enough = if life.build.is_some() { TRIAL } else { SHORT_LIFE };
        let failed = !life.serves || life.started.elapsed() < enough;
        self.failures = if failed { self.failures + 1 } else { 0 };
        if self.next_build() != life.build {
            self.failures = 0;
        }
        if self.next_build().is_some() && self.failures >= TRIES {
            self.fall_back(format!("it ended {TRIES} times within {} s", TRIAL.as_secs()));
        }
        if self.failures < QUICK {
            say!("the supervisor ended; starting another");
            self.start_supervisor();
        } else {
            say!(
                "the supervisor ended at once, {} times in a row; starting another in {} s",
                self.failures,
                PAUSE.as_secs()
            );
            if !self.set_timer(PAUSE) {
                self.start_supervisor();
            }
        }
    }

    fn next_build(&self) -> Option<String> {
        self.server.build.as_ref().map(|build| build.name.clone())
    }

    /// The packed supervisor is the next again.
    fn fall_back(&mut self, reason: String) {
        let name = self.next_build().unwrap_or_default();
        self.fell_back = format!("The supervisor {name} was given up: {reason}.");
        say!("{} Going back to the packed one.", self.fell_back);
        self.server.build = None;
        self.failures = 0;
    }

    fn time_is_up(&mut self) {
        match &self.supervisor {
            None => self.start_supervisor(),
            // The packed one may take its time: there is nothing to go back to.
            Some(life) if life.serves || life.build.is_none() => {}
            Some(life) => {
                if life.build == self.next_build() {
                    self.fall_back(format!("it did not serve within {} s", SERVE_LIMIT.as_secs()));
                }
                self.stop_supervisor();
            }
        }
    }

    /// Zero stops the timer. False if it cannot be set.
    fn set_timer(&self, after: Duration) -> bool {
        let zero = Timespec {
            tv_sec: 0,
            tv_nsec: 0,
        };
        let once = Itimerspec {
            it_interval: zero,
            it_value: Timespec {
                tv_sec: after.as_secs() as i64,
                tv_nsec: after.subsec_nanos().into(),
            },
        };
        timerfd_settime(&self.timer, TimerfdTimerFlags::empty(), &once).is_ok()
    }

    fn start_supervisor(&mut self) {
        if self.server.build.is_some() {
            match self.try_start_supervisor() {
                Ok(()) => {
                    self.fell_back.clear();
                    self.set_timer(SERVE_LIMIT);
                    return;
                }
                Err(error) => self.fall_back(format!("it cannot be started ({error:#})")),
            }
        }
        if let Err(error) = self.try_start_supervisor() {
            say!("cannot start the supervisor: {error:#}");
            self.set_timer(PAUSE);
        }
    }

    fn try_start_supervisor(&mut self) -> anyhow::Result<()> {
        let (ours, theirs) = sys::socket::pair()?;
        // The one descriptor that it inherits; it closes it on its own execs again.
        rustix::io::fcntl_setfd(&theirs, rustix::io::FdFlags::empty())?;
        let number = theirs.as_raw_fd().to_string();
        let program = match &self.server.build {
            Some(build) => format!("/proc/self/fd/{}", build.program.as_raw_fd()),
            None => PACKED.to_owned(),
        };
        let build = self.next_build();
        let name = build.as_deref().unwrap_or_default();
        let started = Instant::now();
        self.server.attach_supervisor(ours)?;
        let child = Command::new(program)
            .arg0(PACKED)
            .args([SUPERVISOR, &number, name, &self.fell_back])
            .spawn()
            .inspect_err(|_| self.server.detach_supervisor())?;
        self.supervisor = Some(Life {
            pid: i32::try_from(child.id())?,
            started,
            serves: false,
            build,
        });
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

/// What the kernel counts for the whole machine, or for all user namespaces of one maker together, one
/// zone could use up for all. It is not counted so: what such things cost is memory, which is counted
/// and limited for each zone.
fn limits() -> anyhow::Result<String> {
    use rustix::process::{Resource, Rlimit, setrlimit};
    /// Largest values that the kernel takes (sysctl/kernel.rst, sysctl/fs.rst).
    const SETTINGS: &[(&str, &str)] = &[
        ("kernel/pid_max", "4194304"),
        ("fs/file-max", "9223372036854775807"),
        ("fs/inotify/max_user_instances", "1048576"),
    ];
    for (name, value) in SETTINGS {
        std::fs::write(format!("/proc/sys/{name}"), value).with_context(|| format!("Cannot set {name}"))?;
    }
    for resource in [
        Resource::Nproc,
        Resource::Sigpending,
        Resource::Msgqueue,
        Resource::Memlock,
    ] {
        let unlimited = Rlimit {
            current: None,
            maximum: None,
        };
        setrlimit(resource, unlimited).with_context(|| format!("Cannot lift the limit {resource:?}"))?;
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
