//! What a zone uses, as the files of its cgroup tell (`Documentation/admin-guide/cgroup-v2.rst`), and
//! which processes it has (proc(5)).

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::path::Path;

use crate::cgroup::Cgroups;
use crate::error::Error;

/// Everything at one moment. None where the hierarchy lacks the controller.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Stats {
    pub cpu: CpuStats,
    pub memory: Option<MemoryStats>,
    pub pids: Option<PidsStats>,
    /// One for each device that the zone has used.
    pub io: Vec<IoStats>,
}

/// `cpu.stat`; times in microseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct CpuStats {
    pub usage: u64,
    pub user: u64,
    pub system: u64,
    /// Periods of the quota that have passed while the zone wanted to run.
    pub periods: u64,
    /// Those of them in which it was held back.
    pub throttled_periods: u64,
    pub throttled: u64,
}

/// Bytes.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct MemoryStats {
    pub usage: u64,
    /// The most since the zone started; none before Linux 5.19.
    pub peak: Option<u64>,
    /// None is no limit.
    pub limit: Option<u64>,
    pub swap: u64,
    pub swap_limit: Option<u64>,
    /// The lines of `memory.stat`: bytes, or counts of events, by the kernel's names.
    pub details: BTreeMap<String, u64>,
    /// The lines of `memory.events`: `low`, `high`, `max`, `oom`, `oom_kill`.
    pub events: BTreeMap<String, u64>,
}

/// Processes and threads.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct PidsStats {
    pub current: u64,
    /// None is no limit.
    pub limit: Option<u64>,
}

/// A line of `io.stat`.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct IoStats {
    pub major: u32,
    pub minor: u32,
    pub read_bytes: u64,
    pub written_bytes: u64,
    pub reads: u64,
    pub writes: u64,
    pub discarded_bytes: u64,
    pub discards: u64,
}

/// A process of a zone, by `/proc/PID/stat`, `status` and `cmdline`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ProcessInfo {
    /// As the supervisor's PID namespace numbers it.
    pub pid: i32,
    /// As the supervisor's PID namespace numbers it; 0 for a parent outside that namespace.
    pub parent: i32,
    /// As the process's own PID namespace numbers it.
    pub inner_pid: i32,
    /// Effective user, as the supervisor's user namespace numbers it.
    pub uid: u32,
    pub gid: u32,
    /// The kernel's letter: `R`, `S`, `D`, `Z`, `T`, …
    pub state: char,
    /// At most 15 bytes, in `[brackets]` nowhere.
    pub name: String,
    /// Empty for a zombie.
    pub arguments: Vec<String>,
    /// Device number of the controlling terminal (`tty_nr` of proc_pid_stat(5)); 0 for none.
    pub terminal: i32,
    pub nice: i64,
    pub threads: u64,
    /// Clock ticks (`sysconf(_SC_CLK_TCK)`, 100 a second) of CPU time, in user and kernel mode.
    pub cpu_ticks: u64,
    /// Clock ticks from the machine's boot to the process's start.
    pub started_ticks: u64,
    /// Bytes.
    pub virtual_size: u64,
    /// Bytes.
    pub resident: u64,
}

impl Cgroups {
    /// What a zone uses now.
    ///
    /// # Errors
    /// The zone has no cgroup: it does not run.
    pub fn stats(&self, id: &str) -> Result<Stats, Error> {
        let dir = self.path(id);
        let cpu = fs::read_to_string(dir.join("cpu.stat"));
        let cpu = cpu.map_err(Error::io(format!("read the statistics of the zone {id}")))?;
        Ok(Stats {
            cpu: cpu_stats(&cpu),
            memory: memory_stats(&dir),
            pids: pids_stats(&dir),
            io: io_stats(&read(&dir, "io.stat").unwrap_or_default()),
        })
    }

    /// All processes of a zone, as the supervisor's PID namespace numbers them.
    ///
    /// # Errors
    /// The zone has no cgroup: it does not run.
    pub fn pids(&self, id: &str) -> Result<Vec<i32>, Error> {
        let text = fs::read_to_string(self.path(id).join("cgroup.procs"));
        let text = text.map_err(Error::io(format!("list the processes of the zone {id}")))?;
        Ok(text.lines().filter_map(|line| line.parse().ok()).collect())
    }

    /// All processes of a zone with what is known of each; one that ends meanwhile is left out.
    ///
    /// # Errors
    /// As [`pids`](Self::pids).
    pub fn processes(&self, id: &str) -> Result<Vec<ProcessInfo>, Error> {
        Ok(self.pids(id)?.into_iter().filter_map(process).collect())
    }
}

fn read(dir: &Path, file: &str) -> Option<String> {
    fs::read_to_string(dir.join(file)).ok()
}

fn number(dir: &Path, file: &str) -> Option<u64> {
    read(dir, file)?.trim().parse().ok()
}

/// Lines of a name and a number.
fn pairs(text: &str) -> impl Iterator<Item = (&str, u64)> {
    text.lines().filter_map(|line| {
        let (name, value) = line.split_once(' ')?;
        Some((name, value.trim().parse().ok()?))
    })
}

fn cpu_stats(text: &str) -> CpuStats {
    let mut stats = CpuStats::default();
    for (name, value) in pairs(text) {
        match name {
            "usage_usec" => stats.usage = value,
            "user_usec" => stats.user = value,
            "system_usec" => stats.system = value,
            "nr_periods" => stats.periods = value,
            "nr_throttled" => stats.throttled_periods = value,
            "throttled_usec" => stats.throttled = value,
            _ => {}
        }
    }
    stats
}

fn memory_stats(dir: &Path) -> Option<MemoryStats> {
    let lines = |file| -> BTreeMap<String, u64> {
        let text = read(dir, file).unwrap_or_default();
        pairs(&text)
            .map(|(name, value)| (name.to_owned(), value))
            .collect()
    };
    Some(MemoryStats {
        usage: number(dir, "memory.current")?,
        peak: number(dir, "memory.peak"),
        limit: number(dir, "memory.max"),
        swap: number(dir, "memory.swap.current").unwrap_or(0),
        swap_limit: number(dir, "memory.swap.max"),
        details: lines("memory.stat"),
        events: lines("memory.events"),
    })
}

fn pids_stats(dir: &Path) -> Option<PidsStats> {
    Some(PidsStats {
        current: number(dir, "pids.current")?,
        limit: number(dir, "pids.max"),
    })
}

fn io_stats(text: &str) -> Vec<IoStats> {
    let line = |line: &str| {
        let mut words = line.split(' ');
        let (major, minor) = words.next()?.split_once(':')?;
        let mut stats = IoStats {
            major: major.parse().ok()?,
            minor: minor.parse().ok()?,
            ..IoStats::default()
        };
        for (name, value) in words.filter_map(|word| word.split_once('=')) {
            let field = match name {
                "rbytes" => &mut stats.read_bytes,
                "wbytes" => &mut stats.written_bytes,
                "rios" => &mut stats.reads,
                "wios" => &mut stats.writes,
                "dbytes" => &mut stats.discarded_bytes,
                "dios" => &mut stats.discards,
                _ => continue,
            };
            *field = value.parse().unwrap_or(0);
        }
        Some(stats)
    };
    text.lines().filter_map(line).collect()
}

fn process(pid: i32) -> Option<ProcessInfo> {
    let dir = Path::new("/proc").join(pid.to_string());
    let text = |file: &str| -> io::Result<String> {
        Ok(String::from_utf8_lossy(&fs::read(dir.join(file))?).into_owned())
    };
    let (stat, status) = (text("stat").ok()?, text("status").ok()?);
    let mut info = by_stat(&stat)?;
    by_status(&mut info, &status);
    info.pid = pid;
    let arguments = text("cmdline").unwrap_or_default();
    info.arguments = arguments.split_terminator('\0').map(str::to_owned).collect();
    Some(info)
}

/// Reads `/proc/PID/stat`; a name may hold blanks and brackets.
fn by_stat(text: &str) -> Option<ProcessInfo> {
    let (head, rest) = text.rsplit_once(')')?;
    let (_, name) = head.split_once('(')?;
    // The first of these is field 3 of proc_pid_stat(5).
    let fields: Vec<&str> = rest.split_whitespace().collect();
    let field = |number: usize| fields.get(number - 3).copied();
    let amount = |number| {
        field(number)
            .and_then(|text| text.parse::<u64>().ok())
            .unwrap_or(0)
    };
    Some(ProcessInfo {
        state: field(3)?.chars().next()?,
        parent: field(4)?.parse().ok()?,
        terminal: field(7)?.parse().ok()?,
        cpu_ticks: amount(14).saturating_add(amount(15)),
        nice: field(19)?.parse().ok()?,
        threads: amount(20),
        started_ticks: amount(22),
        virtual_size: amount(23),
        resident: amount(24).saturating_mul(rustix::param::page_size() as u64),
        name: name.to_owned(),
        ..ProcessInfo::default()
    })
}

fn by_status(info: &mut ProcessInfo, text: &str) {
    for (name, values) in text.lines().filter_map(|line| line.split_once(':')) {
        let mut values = values.split_whitespace();
        match name {
            // Real, effective, saved, file system's.
            "Uid" => info.uid = values.nth(1).and_then(|id| id.parse().ok()).unwrap_or(0),
            "Gid" => info.gid = values.nth(1).and_then(|id| id.parse().ok()).unwrap_or(0),
            // The innermost namespace's is the last.
            "NSpid" => info.inner_pid = values.last().and_then(|id| id.parse().ok()).unwrap_or(0),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_lines_become_numbers() {
        let text = "usage_usec 70\nuser_usec 50\nsystem_usec 20\nnice_usec 0\ncore_sched.force_idle_usec 0\n\
                    nr_periods 9\nnr_throttled 4\nthrottled_usec 300\nnr_bursts 0\nburst_usec 0\n";
        let cpu = cpu_stats(text);
        assert_eq!((cpu.usage, cpu.user, cpu.system), (70, 50, 20));
        assert_eq!((cpu.periods, cpu.throttled_periods, cpu.throttled), (9, 4, 300));
        let io = io_stats("8:0 rbytes=1 wbytes=2 rios=3 wios=4 dbytes=5 dios=6\n7:1 \nodd\n");
        assert_eq!(io.len(), 2);
        assert_eq!((io[0].major, io[0].written_bytes, io[0].discards), (8, 2, 6));
        assert_eq!((io[1].major, io[1].minor, io[1].reads), (7, 1, 0));
    }

    #[test]
    fn a_process_is_read_whatever_its_name() {
        let text = "42 (a) b (c) S 7 42 42 34816 42 4194560 1 2 3 4 10 5 6 7 20 -5 3 0 1234 8192 2 0";
        let info = by_stat(text).unwrap();
        assert_eq!((info.name.as_str(), info.state, info.parent), ("a) b (c", 'S', 7));
        assert_eq!((info.terminal, info.cpu_ticks, info.nice), (34816, 15, -5));
        assert_eq!(
            (info.threads, info.started_ticks, info.virtual_size),
            (3, 1234, 8192)
        );
        assert!(by_stat("42 (x) S").is_none() && by_stat("").is_none());
    }

    #[test]
    fn this_very_process_can_be_read() {
        let own = process(i32::try_from(std::process::id()).unwrap()).unwrap();
        assert!(own.resident > 0 && own.threads > 0 && !own.arguments.is_empty());
        assert_eq!(own.inner_pid, own.pid, "{own:?}");
    }
}
