//! `GET /why?consumer=NAME&tool=NAME`: why a consumer can or cannot call a tool now.

use std::fmt::Write as _;

use crate::gateway::{Gateway, why};

/// How it is asked for.
pub const USAGE: &str = "ask with ?consumer=NAME&tool=NAME, both percent-encoded\n";

/// The answer to a query as JSON; `None`: it is not asked as it should be.
pub fn answer(gateway: &Gateway, query: Option<&str>) -> Option<String> {
    let (consumer, tool) = read(query?)?;
    let answer = why::of(gateway, &consumer, &tool);
    Some(serde_json::to_string_pretty(&answer).expect("our own values") + "\n")
}

/// Path and query of a question.
pub fn path(consumer: &str, tool: &str) -> String {
    format!("/why?consumer={}&tool={}", encoded(consumer), encoded(tool))
}

// Everything but what may stand in any part of a URI (RFC 3986, "unreserved").
fn encoded(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) {
            out.push(byte.into());
        } else {
            let _ = write!(out, "%{byte:02X}");
        }
        out
    })
}

fn read(query: &str) -> Option<(String, String)> {
    let of = |wanted: &str| {
        let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
        pairs.find(|(key, _)| *key == wanted).and_then(|(_, value)| decoded(value))
    };
    Some((of("consumer")?, of("tool")?))
}

fn decoded(text: &str) -> Option<String> {
    let mut out = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        rest = after;
        if *first != b'%' {
            out.push(*first);
            continue;
        }
        let (digits, after) = rest.split_at_checked(2)?;
        let digits = std::str::from_utf8(digits).ok()?;
        out.push(u8::from_str_radix(digits, 16).ok()?);
        rest = after;
    }
    String::from_utf8(out).ok()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_is_asked_is_what_is_read(consumer in any::<String>(), tool in any::<String>()) {
            let path = path(&consumer, &tool);
            prop_assert!(path.parse::<hyper::Uri>().is_ok());
            prop_assert_eq!(read(path.split_once('?').unwrap().1), Some((consumer, tool)));
        }

        #[test]
        fn nothing_that_is_sent_does_harm(query in ".{0,40}") {
            let _ = read(&query);
        }
    }

    #[test]
    fn both_are_needed_and_whole() {
        for query in ["", "consumer=a", "tool=b", "consumer=a&tool=%4", "consumer=%ff&tool=b"] {
            assert_eq!(read(query), None, "{query}");
        }
    }
}
