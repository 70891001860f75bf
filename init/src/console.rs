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
