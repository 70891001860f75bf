//! Signals by name and number (signal(7)).

use crate::http::{ApiError, Result};

/// Reads a signal by name or number.
pub(crate) fn parse_signal(text: &str) -> Result<i32> {
    sys::signals::parse(text).ok_or_else(|| ApiError::bad_request(format!("Invalid signal: {text}")))
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
