//! How sure we are of what an upstream offers, and how a client is told.

use std::sync::Arc;
use std::time::{SystemTime, UNIX_EPOCH};

use serde_json::json;

use crate::protocol::meta::key::OWN_PREFIX;

/// How sure we are of a slice.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Freshness {
    /// As the upstream says it now.
    Live,
    /// As the upstream said it once; it cannot be asked now.
    Stale {
        /// Since when it cannot.
        since: SystemTime,
        /// Why, for the agent: no secret and no internal address.
        why: String,
    },
    /// Nothing is known.
    Missing {
        /// Since when.
        since: SystemTime,
        /// Why, for the agent: no secret and no internal address.
        why: String,
    },
}

/// The members `_meta` and its value that tell which of `upstreams` are not live, as raw JSON.
/// `None` if all are.
///
/// The specification has no word for a list that lacks a part, and a client that takes such a
/// list for the whole forgets tools for as long as it caches.
pub(super) fn degraded_meta<'a>(
    upstreams: impl Iterator<Item = (&'a Arc<str>, &'a Freshness)>,
) -> Option<String> {
    let not_live: Vec<_> = upstreams
        .filter_map(|(upstream, freshness)| {
            let (state, since, why) = match freshness {
                Freshness::Live => return None,
                Freshness::Stale { since, why } => ("stale", since, why),
                Freshness::Missing { since, why } => ("missing", since, why),
            };
            Some(json!({
                "upstream": **upstream,
                "state": state,
                "since": rfc3339(*since),
                "reason": why,
            }))
        })
        .collect();
    let meta = json!({ format!("{OWN_PREFIX}degraded"): not_live });
    (!not_live.is_empty()).then(|| meta.to_string())
}

/// An instant as RFC 3339 text in UTC, to the second; what lies before 1970 is told as 1970.
pub fn rfc3339(at: SystemTime) -> String {
    let seconds = at.duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (mut day, second) = (seconds / 86_400, seconds % 86_400);
    // The calendar repeats every 400 years; within them the years are counted off.
    const CYCLE: u64 = 146_097;
    let mut year = 1970 + 400 * (day / CYCLE);
    day %= CYCLE;
    let leap = |y: u64| y.is_multiple_of(4) && (!y.is_multiple_of(100) || y.is_multiple_of(400));
    while day >= 365 + u64::from(leap(year)) {
        day -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if day < length {
            break;
        }
        day -= length;
        month += 1;
    }
    format!(
        "{year:04}-{month:02}-{:02}T{:02}:{:02}:{:02}Z",
        day + 1,
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn instants_are_told_by_the_calendar() {
        for (seconds, text) in [
            (0, "1970-01-01T00:00:00Z"),
            (951_782_399, "2000-02-28T23:59:59Z"),
            (951_782_400, "2000-02-29T00:00:00Z"),
            (951_868_800, "2000-03-01T00:00:00Z"),
            (1_798_761_599, "2026-12-31T23:59:59Z"),
            (4_107_542_400, "2100-03-01T00:00:00Z"),
            (13_574_563_200, "2400-02-29T00:00:00Z"),
            (253_402_300_799, "9999-12-31T23:59:59Z"),
        ] {
            assert_eq!(rfc3339(UNIX_EPOCH + Duration::from_secs(seconds)), text);
        }
        assert_eq!(rfc3339(UNIX_EPOCH - Duration::from_secs(1)), "1970-01-01T00:00:00Z");
    }

    #[test]
    fn only_what_is_not_live_is_told() {
        let names: [Arc<str>; 3] = ["crm".into(), "erp".into(), "bank".into()];
        let since = UNIX_EPOCH + Duration::from_secs(1_798_761_599);
        let states = [
            Freshness::Live,
            Freshness::Stale { since, why: "the connection ended".into() },
            Freshness::Missing { since, why: "never \"seen\"".into() },
        ];
        insta::assert_snapshot!(degraded_meta(names.iter().zip(&states)).unwrap(), @r#"{"io.weirkeeper/degraded":[{"upstream":"erp","state":"stale","since":"2026-12-31T23:59:59Z","reason":"the connection ended"},{"upstream":"bank","state":"missing","since":"2026-12-31T23:59:59Z","reason":"never \"seen\""}]}"#);
        assert_eq!(degraded_meta(names.iter().zip(&states[..1])), None);
    }
}
