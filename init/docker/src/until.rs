//! The filter `until` of what is pruned: a moment, or how long before now.

use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use crate::http::{ApiError, Result};
use crate::query::Filters;

const SECOND: f64 = 1e9;

/// The moment that the filter says; what is newer stays.
pub(crate) fn of(filters: &Filters) -> Result<Option<OffsetDateTime>> {
    match filters.get("until") {
        [] => Ok(None),
        [text] => match moment(text, OffsetDateTime::now_utc()) {
            Some(moment) => Ok(Some(moment)),
            None => Err(ApiError::bad_request(format!(
                "invalid value for 'until' filter: {text:?} is neither a time nor a duration such as 1h30m"
            ))),
        },
        _ => Err(ApiError::bad_request("more than one until filter specified")),
    }
}

/// Whether something of this time (RFC 3339) came after `until`; what has no time did not.
pub(crate) fn is_after(created: &str, until: OffsetDateTime) -> bool {
    OffsetDateTime::parse(created, &Rfc3339).is_ok_and(|created| created > until)
}

/// Reads what Docker reads: RFC 3339 with as much of it as is wanted (UTC where no zone is said), seconds
/// since 1970, or a duration back from `now`.
fn moment(text: &str, now: OffsetDateTime) -> Option<OffsetDateTime> {
    if let Some(seconds) = text.parse().ok().filter(|seconds: &f64| seconds.is_finite()) {
        return OffsetDateTime::from_unix_timestamp_nanos((seconds * SECOND) as i128).ok();
    }
    if let Some(nanoseconds) = duration(text) {
        return now.checked_sub(time::Duration::nanoseconds(nanoseconds));
    }
    // What is left out from the right on is zero.
    let (start, zone) = match text
        .char_indices()
        .skip(10)
        .find(|(_, c)| matches!(c, 'Z' | '+' | '-'))
    {
        Some((at, _)) => text.split_at_checked(at)?,
        None => (text, "Z"),
    };
    let rest = "0000-00-00T00:00:00".get(start.len()..).unwrap_or_default();
    OffsetDateTime::parse(&format!("{start}{rest}{zone}"), &Rfc3339).ok()
}

/// Nanoseconds of a duration as Go writes them: `300ms`, `1.5h`, `2h45m`.
fn duration(text: &str) -> Option<i64> {
    let mut rest = text;
    let mut sum = 0.0;
    while !rest.is_empty() {
        let (number, more) = rest.split_at(rest.find(|c: char| !c.is_ascii_digit() && c != '.')?);
        let (unit, more) = more.split_at(more.find(|c: char| c.is_ascii_digit()).unwrap_or(more.len()));
        let unit = match unit {
            "ns" => 1.0,
            "us" | "µs" | "μs" => 1e3,
            "ms" => 1e6,
            "s" => SECOND,
            "m" => 60.0 * SECOND,
            "h" => 3600.0 * SECOND,
            _ => return None,
        };
        sum += number.parse::<f64>().ok()? * unit;
        rest = more;
    }
    (!text.is_empty()).then_some(sum as i64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn moments_are_read_in_all_forms_that_docker_reads() {
        let now = OffsetDateTime::from_unix_timestamp(1_000_000).unwrap();
        for (text, seconds) in [
            ("10m", 1_000_000 - 600),
            ("1h30m", 1_000_000 - 5400),
            ("1.5h", 1_000_000 - 5400),
            ("2000ms", 1_000_000 - 2),
            ("1234", 1234),
            ("1970-01-02", 86400),
            ("1970-01-02T03", 86400 + 3 * 3600),
            ("1970-01-01T00:10", 600),
            ("1970-01-01T00:10:05", 605),
            ("1970-01-01T00:10:05.5Z", 605),
            ("1970-01-02T00:00:00+01:00", 86400 - 3600),
        ] {
            let read = moment(text, now).unwrap_or_else(|| panic!("{text}"));
            assert_eq!(read.unix_timestamp(), seconds, "{text}");
        }
        for wrong in ["", "yesterday", "1x", "h", "1970-13-01", "nan"] {
            assert_eq!(moment(wrong, now), None, "{wrong}");
        }
        assert!(is_after("1970-02-01T00:00:00Z", now) && !is_after("1970-01-01T00:00:00Z", now));
    }
}
