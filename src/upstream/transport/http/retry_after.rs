//! `Retry-After` in its two forms (RFC 9110, 10.2.3).

use std::time::{Duration, SystemTime};

/// Longest pause that is read; a longer one means this. It keeps sums of instants and pauses in
/// range; what pause is obeyed is the guard's to say.
pub(super) const PAUSE_MAX: Duration = Duration::from_secs(365 * 24 * 3600);

/// The pause that a value asks for: seconds, or the time until a date. A date that has passed
/// asks for none.
pub(super) fn parse(value: &str, now: SystemTime) -> Option<Duration> {
    let value = value.trim();
    let pause = if !value.is_empty() && value.bytes().all(|b| b.is_ascii_digit()) {
        // More digits than fit are a long time, not nonsense.
        Duration::from_secs(value.parse().unwrap_or(u64::MAX))
    } else {
        httpdate::parse_http_date(value).ok()?.duration_since(now).unwrap_or(Duration::ZERO)
    };
    Some(pause.min(PAUSE_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seconds_and_the_three_forms_of_a_date() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(784_111_777);
        for (value, wanted) in [
            ("0", Some(0)),
            (" 120 ", Some(120)),
            ("Sun, 06 Nov 1994 08:49:47 GMT", Some(10)),
            ("Sunday, 06-Nov-94 08:49:47 GMT", Some(10)),
            ("Sun Nov  6 08:49:47 1994", Some(10)),
            ("Sun, 06 Nov 1994 08:00:00 GMT", Some(0)),
            ("Fri, 31 Dec 9999 23:59:59 GMT", Some(PAUSE_MAX.as_secs())),
            ("99999999999999999999999", Some(PAUSE_MAX.as_secs())),
            ("", None),
            ("-1", None),
            ("1.5", None),
            ("soon", None),
        ] {
            assert_eq!(parse(value, now), wanted.map(Duration::from_secs), "{value:?}");
        }
    }
}
