//! What the machine says of itself: one line per event on the console, with the time since the
//! kernel started. Both roles write here; a line is one `write(2)`, so lines never mix.

use std::fmt::Arguments;
use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Time since the kernel started.
pub(crate) fn uptime() -> Duration {
    let now = clock_gettime(ClockId::Boottime);
    Duration::new(
        u64::try_from(now.tv_sec).unwrap_or(0),
        u32::try_from(now.tv_nsec).unwrap_or(0),
    )
}

/// Bytes of memory that are in use: all of it less what could be had without swapping.
pub(crate) fn memory_in_use() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let field = |name: &str| {
        let line = text.lines().find_map(|line| line.strip_prefix(name))?;
        line.split_whitespace().next()?.parse::<u64>().ok()
    };
    field("MemTotal:")?
        .checked_sub(field("MemAvailable:")?)
        .map(|kib| kib << 10)
}

/// Writes one line to the console. A console that takes no line is no reason to stop.
pub(crate) fn line(text: Arguments<'_>) {
    let now = uptime();
    let line = format!(
        "[{:5}.{:03}] monobloc: {text}\n",
        now.as_secs(),
        now.subsec_millis()
    );
    let _ = rustix::io::write(rustix::stdio::stderr(), line.as_bytes());
}

macro_rules! say {
    ($($t:tt)*) => { $crate::console::line(format_args!($($t)*)) };
}
pub(crate) use say;
