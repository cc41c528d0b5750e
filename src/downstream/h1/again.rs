//! A head that is said again.
//!
//! Decided: a connection keeps the last head, and one that is the same but for the body's length is
//! not read again (2026-11-22). Most clients say the same with each request; to read its dozen
//! lines anew, and to find out again what they mean, took a call a tenth of its instructions. Who
//! says something else each time costs one comparison, and after some tries not even that.

use std::sync::Arc;

use bytes::Bytes;
use hyper::{Method, Version};

use crate::wire::{Left, Said};

use super::super::headers::Head;
use super::super::http::PATH;
use super::head::{self, Parsed, Wrong};

/// Longest head that is kept: twice that of a client with a long key and the id of a session. An
/// idle connection holds it, where its lines are and what they mean.
const KEPT_MAX: usize = 2 << 10;
/// Heads that are kept for nothing, one after the other, before no more are: who changes its head
/// that often, as one that traces its calls does, will go on so.
const TRIES_MAX: u8 = 8;

/// The last head of a connection.
#[derive(Default)]
pub struct Again {
    kept: Option<Box<Kept>>,
    // How many were kept since one was said again.
    tries: u8,
}

struct Kept {
    head: Arc<Head>,
    said: Said,
}

impl Again {
    /// As [`head::parse`], by way of the last head.
    ///
    /// # Errors
    /// The same.
    pub fn parse(&mut self, bytes: &Bytes) -> Result<Option<(Parsed, usize)>, Wrong> {
        if let Some(found) = self.kept.as_ref().and_then(|kept| kept.find(bytes)) {
            self.tries = 0;
            return Ok(Some(found));
        }
        let parsed = head::parse(bytes)?;
        if let Some((parsed, length)) = &parsed
            && self.tries < TRIES_MAX
        {
            self.kept = Kept::of(parsed, &bytes[..*length]).map(Box::new);
            self.tries += u8::from(self.kept.is_some());
        } else if parsed.is_some() {
            self.kept = None;
        }
        Ok(parsed)
    }
}

impl Kept {
    // Only what leaves nothing open but the body's length, which is said once and in digits.
    fn of(parsed: &Parsed, text: &[u8]) -> Option<Kept> {
        let Parsed { head, left: Left::Length(_), keep: true, expects: false, upgrades: false } =
            parsed
        else {
            return None;
        };
        let plain = head.method == Method::POST
            && head.version == Version::HTTP_11
            && head.uri == PATH
            && text.len() <= KEPT_MAX;
        if !plain {
            return None;
        }
        let said = Said::of(text)?;
        Some(Kept { head: Arc::new(head.kept(said.text())), said })
    }

    // The same head at the beginning of `bytes`, and its length.
    fn find(&self, bytes: &[u8]) -> Option<(Parsed, usize)> {
        let (left, length) = self.said.find(bytes)?;
        let (head, left) = (self.head.clone(), Left::Length(left));
        Some((Parsed { head, left, keep: true, expects: false, upgrades: false }, length))
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const HEAD: &str = "POST /mcp HTTP/1.1\r\nHost: a\r\nContent-Length: 7\r\nX-Key: k\r\n\r\n";

    fn read(again: &mut Again, text: &str) -> Option<(Arc<Head>, Left, bool, usize)> {
        let (parsed, length) = again.parse(&Bytes::copy_from_slice(text.as_bytes())).ok()??;
        Some((parsed.head, parsed.left, parsed.keep, length))
    }

    #[test]
    fn a_head_is_the_same_but_for_the_length_of_the_body() {
        let mut again = Again::default();
        let first = read(&mut again, HEAD).unwrap();
        assert!(!first.0.is_kept);
        let second = read(&mut again, &format!("{HEAD}1234567")).unwrap();
        let third = read(&mut again, &HEAD.replace(": 7", ": 12345")).unwrap();
        assert!(second.0.is_kept && Arc::ptr_eq(&second.0, &third.0));
        assert_eq!((second.1, second.3), (Left::Length(7), HEAD.len()));
        assert_eq!((third.1, third.3), (Left::Length(12345), HEAD.len() + 4));
        let key = hyper::header::HeaderName::from_static("x-key");
        assert_eq!(third.0.headers.text(&key), Some("k"));
        for (from, to) in [("k", "l"), ("Host: a", "Host: b"), ("Host", "host"), ("/mcp", "/sse")] {
            let mut again = Again::default();
            read(&mut again, HEAD).unwrap();
            assert!(!read(&mut again, &HEAD.replace(from, to)).unwrap().0.is_kept, "{from}");
        }
    }

    #[test]
    fn no_key_is_shown() {
        let mut again = Again::default();
        let text = HEAD.replace("X-Key: k", "Authorization: Bearer weir_1234");
        for _ in 0..2 {
            let parsed = again.parse(&Bytes::copy_from_slice(text.as_bytes())).unwrap().unwrap();
            let shown = format!("{parsed:?}");
            assert!(shown.contains("authorization") && !shown.contains("1234"), "{shown}");
        }
    }

    #[test]
    fn what_leaves_something_open_is_read_each_time() {
        for head in [
            HEAD.replace("Content-Length: 7\r\n", ""),
            HEAD.replace(": 7", ": 0"),
            HEAD.replace(": 7", ": 07"),
            HEAD.replace(": 7", ": 7, 7"),
            HEAD.replace("X-Key: k", "Content-Length: 7"),
            HEAD.replace("X-Key: k", "Connection: close"),
            HEAD.replace("X-Key: k", "Expect: 100-continue"),
            HEAD.replace("X-Key: k", "Upgrade: x"),
            HEAD.replace("Content-Length: 7", "Transfer-Encoding: chunked"),
            HEAD.replace("HTTP/1.1", "HTTP/1.0"),
            HEAD.replace("POST", "GET"),
            HEAD.replace('k', &"k".repeat(KEPT_MAX)),
        ] {
            let mut again = Again::default();
            for _ in 0..3 {
                assert!(!read(&mut again, &head).unwrap().0.is_kept, "{head}");
            }
            assert!(again.kept.is_none());
        }
        let mut again = Again::default();
        read(&mut again, HEAD).unwrap();
        for length in ["0", "07", "+7", "7,7", "", "99999999999999999999"] {
            let text = HEAD.replace(": 7", &format!(": {length}"));
            let fresh =
                read(&mut Again::default(), &text).map(|(_, left, keep, n)| (left, keep, n));
            let mut again = Again::default();
            read(&mut again, HEAD).unwrap();
            let found = read(&mut again, &text);
            assert!(found.as_ref().is_none_or(|found| !found.0.is_kept), "{length}");
            assert_eq!(found.map(|(_, left, keep, n)| (left, keep, n)), fresh, "{length}");
        }
    }

    #[test]
    fn who_never_says_the_same_is_not_waited_for() {
        let mut again = Again::default();
        for n in 0..2 * TRIES_MAX {
            let text = HEAD.replace('k', &n.to_string());
            assert!(!read(&mut again, &text).unwrap().0.is_kept);
            assert_eq!(again.kept.is_some(), n < TRIES_MAX, "{n}");
        }
    }

    proptest! {
        // Whatever comes behind whatever: it is read as if nothing had come before.
        #[test]
        fn what_is_kept_changes_nothing(
            cut in 0usize..HEAD.len() + 4,
            at in 0usize..HEAD.len(),
            byte in prop::sample::select(&b"\r\n 0179:,kP\xff"[..]),
            length in "[0-9]{0,17}",
        ) {
            let mut again = Again::default();
            read(&mut again, HEAD).unwrap();
            let mut text = HEAD.replace(": 7", &format!(": {length}")).into_bytes();
            for change in [false, true] {
                if change {
                    let at = at.min(text.len() - 1);
                    text[at] = byte;
                }
                let mut text = [&text[..], b"body"].concat();
                text.truncate(cut.max(text.len() / 2));
                let text = Bytes::from(text);
                let facts = |read: Result<Option<(Parsed, usize)>, Wrong>| {
                    read.map(|read| read.map(|(parsed, length)| {
                        let Parsed { head, left, keep, expects, upgrades } = parsed;
                        let key = hyper::header::HeaderName::from_static("x-key");
                        let key = head.headers.get(&key).map(<[u8]>::to_vec);
                        let head = (head.method.clone(), head.uri.clone(), head.version, key);
                        (head, left, keep, expects, upgrades, length)
                    }))
                };
                prop_assert_eq!(facts(again.parse(&text)), facts(head::parse(&text)));
            }
        }
    }
}
