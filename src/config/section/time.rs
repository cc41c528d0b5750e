//! Points in time, as TOML writes them or as RFC 3339 text.

use std::time::{Duration, SystemTime};

use toml::de::DeValue;
use toml::value::{Datetime, Offset};

use super::{Kind, Section};

impl Section<'_> {
    /// A date and time with its offset, or absent.
    pub fn time(&self, key: &'static str, doc: &'static str) -> Option<SystemTime> {
        const SAMPLE: &str = "write date, time and offset, such as 2026-12-24T18:00:00Z";
        let value = self.ask(key, Kind::Time, None, doc)?;
        let read = match value.get_ref() {
            DeValue::Datetime(at) => Some(*at),
            DeValue::String(text) => text.trim().parse().ok(),
            other => {
                self.mistyped(key, other, "a date and time, such as 2026-12-24T18:00:00Z");
                return None;
            }
        };
        let Some(at) = read else {
            self.wrong(key, "is no date and time", SAMPLE);
            return None;
        };
        if at.offset.is_none() || at.date.is_none() || at.time.is_none() {
            // Whose local time it would be nobody can tell from the file.
            self.wrong(key, "says not when: date, time and offset are needed", SAMPLE);
            return None;
        }
        let instant = instant(&at);
        if instant.is_none() {
            self.wrong(key, "is out of range", "write a time after 1970 and before 10000");
        }
        instant
    }
}

// `None` for what is not whole or lies before 1970.
fn instant(at: &Datetime) -> Option<SystemTime> {
    let (date, time) = (at.date?, at.time?);
    let minutes = match at.offset? {
        Offset::Z => 0,
        Offset::Custom { minutes } => i64::from(minutes),
    };
    let here = format!(
        "{:04}-{:02}-{:02}T{:02}:{:02}:{:02}Z",
        date.year,
        date.month,
        date.day,
        time.hour,
        time.minute,
        // A leap second is told as the second before it, as most clocks do.
        time.second.unwrap_or(0).min(59),
    );
    let here = humantime::parse_rfc3339(&here).ok()?;
    let shift = Duration::from_secs(minutes.unsigned_abs() * 60);
    let utc = if minutes > 0 { here.checked_sub(shift)? } else { here.checked_add(shift)? };
    (utc >= SystemTime::UNIX_EPOCH).then_some(utc)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    #[test]
    fn an_offset_is_taken_off() {
        for (text, utc) in [
            ("2026-12-24T18:00:00Z", Some("2026-12-24T18:00:00Z")),
            ("2026-12-24T18:00:00+01:30", Some("2026-12-24T16:30:00Z")),
            ("2026-12-24 22:00:00.5-05:00", Some("2026-12-25T03:00:00Z")),
            ("2028-02-29T00:30:00+01:00", Some("2028-02-28T23:30:00Z")),
            ("1970-01-01T00:30:00+01:00", None),
            ("2026-12-24T18:00:00", None),
        ] {
            let told = instant(&text.parse().unwrap());
            let told = told.map(|at| humantime::format_rfc3339_seconds(at).to_string());
            assert_eq!(told.as_deref(), utc, "{text}");
        }
    }
}
