//! Signals by name and number (signal(7)).

use crate::http::{ApiError, Result};

/// Reads a signal by name or number.
pub(crate) fn parse_signal(text: &str) -> Result<i32> {
    const NAMES: &[&str] = &[
        "", "HUP", "INT", "QUIT", "ILL", "TRAP", "ABRT", "BUS", "FPE", "KILL", "USR1", "SEGV", "USR2",
        "PIPE", "ALRM", "TERM", "STKFLT", "CHLD", "CONT", "STOP", "TSTP", "TTIN", "TTOU", "URG", "XCPU",
        "XFSZ", "VTALRM", "PROF", "WINCH", "IO", "PWR", "SYS",
    ];
    /// The real-time signals; below them are the C library's own two.
    const FIRST_REAL_TIME: i32 = 34;
    const LAST: i32 = 64;
    let upper = text.to_ascii_uppercase();
    let name = upper.strip_prefix("SIG").unwrap_or(&upper);
    let known = NAMES.iter().position(|known| !known.is_empty() && *known == name);
    // `RTMIN`, `RTMIN+3`, `RTMAX-2`, `RTMAX`.
    let from_end = |end: &str, sign: char| match name.strip_prefix(end)? {
        "" => Some(0),
        rest => rest.strip_prefix(sign)?.parse::<u8>().ok().map(i32::from),
    };
    let real_time = from_end("RTMIN", '+')
        .map(|offset| FIRST_REAL_TIME + offset)
        .or_else(|| from_end("RTMAX", '-').map(|offset| LAST - offset))
        .filter(|number| *number >= FIRST_REAL_TIME);
    let number = known
        .and_then(|at| i32::try_from(at).ok())
        .or(real_time)
        .or_else(|| text.parse().ok());
    number
        .filter(|number| (1..=LAST).contains(number))
        .ok_or_else(|| ApiError::bad_request(format!("Invalid signal: {text}")))
}

#[cfg(test)]
mod tests {

    use super::*;

    #[test]
    fn signals_have_names_and_numbers() {
        for (text, number) in [
            ("KILL", 9),
            ("SIGTERM", 15),
            ("sigint", 2),
            ("28", 28),
            ("SIGRTMIN+3", 37),
            ("RTMIN", 34),
            ("RTMAX-1", 63),
        ] {
            assert_eq!(parse_signal(text).unwrap(), number);
        }
        for bad in [
            "", "SIG", "0", "65", "-9", "NOPE", "RTMIN+31", "RTMAX-31", "RTMIN-1", "RTMIN+",
        ] {
            assert!(parse_signal(bad).is_err(), "{bad}");
        }
    }
}
