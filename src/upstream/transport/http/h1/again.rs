//! A response's head that is the one before it again.
//!
//! Decided: a connection keeps the last head, and one that is the same but for the body's length is
//! not read again (2026-11-22). A server says the same lines with each answer, and its date changes
//! once a second.

use std::io;

use hyper::StatusCode;

use crate::wire::Said;

use super::head::{self, Framing, Head, Parsed};

/// Longest head that is kept: an idle connection holds it.
const KEPT_MAX: usize = 1 << 10;

/// Heads that are kept for nothing, one after the other, before no more are: some servers give each
/// answer a number of its own.
const TRIES_MAX: u8 = 8;

/// The last head of a connection.
#[derive(Debug, Default)]
pub struct Again {
    kept: Option<Box<(Said, Head)>>,
    // How many were kept since one was said again.
    tries: u8,
}

impl Again {
    /// As [`head::parse`], by way of the last head.
    ///
    /// # Errors
    /// The same.
    pub fn parse(&mut self, bytes: &[u8]) -> io::Result<Option<(Parsed, usize)>> {
        if let Some((said, head)) = self.kept.as_deref()
            && let Some((body, length)) = said.find(bytes)
        {
            self.tries = 0;
            let (head, framing) = (head.clone(), Framing::Length(body));
            return Ok(Some((Parsed { head, framing, reusable: true }, length)));
        }
        let parsed = head::parse(bytes)?;
        if let Some((parsed, length)) = &parsed {
            let tries = *length <= KEPT_MAX && self.tries < TRIES_MAX;
            self.kept = if tries { kept(parsed, &bytes[..*length]) } else { None };
            self.tries += u8::from(self.kept.is_some());
        }
        Ok(parsed)
    }
}

// Only what says nothing of this answer alone; the session's id is in each.
fn kept(parsed: &Parsed, text: &[u8]) -> Option<Box<(Said, Head)>> {
    let Parsed { head, framing: Framing::Length(_), reusable: true } = parsed else { return None };
    let Head { status: StatusCode::OK, location: None, retry_after: None, .. } = head else {
        return None;
    };
    Some(Box::new((Said::of(text)?, head.clone())))
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::super::head::Media;
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str =
        "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: 7\r\nDate: x\r\n\r\n";

    type Facts = (StatusCode, Media, [bool; 3], Framing, bool, usize);

    fn facts(read: io::Result<Option<(Parsed, usize)>>) -> Result<Option<Facts>, ()> {
        let read = read.map_err(drop)?;
        Ok(read.map(|(Parsed { head, framing, reusable }, length)| {
            let besides = [&head.location, &head.session, &head.retry_after].map(Option::is_some);
            (head.status, head.media, besides, framing, reusable, length)
        }))
    }

    #[test]
    fn only_what_says_nothing_of_its_answer_alone_is_kept() {
        for (from, to, is_kept) in [
            ("", "", true),
            ("application/json", "text/event-stream", true),
            ("200 OK", "404 Not Found", false),
            ("Date", "Location", false),
            ("Date", "Mcp-Session-Id", true),
            ("Date: x", "Retry-After: 1", false),
            ("Date: x", "Connection: close", false),
            ("Date: x", "Content-Length: 7", false),
            ("Date: x", "Transfer-Encoding: chunked", false),
            ("Content-Length: 7", "Transfer-Encoding: chunked", false),
            (": 7", ": 0", false),
            (": 7", ": 7, 7", false),
            ("x\r", &format!("{}\r", "x".repeat(KEPT_MAX)), false),
        ] {
            let text = HEAD.replace(from, to);
            let mut again = Again::default();
            let first = facts(again.parse(text.as_bytes()));
            assert_eq!(again.kept.is_some(), is_kept, "{text}");
            assert_eq!(facts(again.parse(text.as_bytes())), first);
        }
    }

    proptest! {
        // Whatever comes behind whatever: it is read as if nothing had come before.
        #[test]
        fn what_is_kept_changes_nothing(
            at in 0usize..HEAD.len(),
            byte in prop::sample::select(&b"\r\n 0179:,kP\xff"[..]),
            change: bool,
            length in "[0-9]{0,17}",
            cut in 0usize..HEAD.len() + 20,
        ) {
            let mut again = Again::default();
            again.parse(HEAD.as_bytes()).unwrap();
            let mut text = HEAD.replace(": 7", &format!(": {length}")).into_bytes();
            if change {
                text[at.min(HEAD.len() - 1)] = byte;
            }
            text.extend_from_slice(b"body");
            text.truncate(cut.max(text.len() / 2));
            prop_assert_eq!(facts(again.parse(&text)), facts(head::parse(&text)));
        }
    }
}
