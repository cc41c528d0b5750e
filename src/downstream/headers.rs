//! A request's head, as whoever serves its connection hands it on.
//!
//! Decided: headers stay where they were read, and are found by looking through them (2026-11-21).
//! A map of them cost each call a tenth of its instructions, mostly to hash names of which a dozen
//! are asked for once; a request has some ten.

use std::fmt;

use bytes::Bytes;
use hyper::header::{HeaderMap, HeaderName};
use hyper::http::Extensions;
use hyper::http::request::Parts;
use hyper::{Method, Uri, Version};

/// A request without its body.
#[derive(Debug)]
pub struct Head {
    /// Its method.
    pub method: Method,
    /// Its target.
    pub uri: Uri,
    /// Its version.
    pub version: Version,
    /// Its headers.
    pub headers: Headers,
    /// What its connection adds: see [`super::h1::Upgrade`].
    pub extensions: Extensions,
    /// Its connection keeps it for the next request: see `h1::again`.
    pub is_kept: bool,
}

impl Head {
    /// The same to be kept, with headers that lie in `text` where they lie in the text of this. Its
    /// `Content-Length` is that of this request and of no later one.
    #[must_use]
    pub fn kept(&self, text: &Bytes) -> Head {
        Head {
            method: self.method.clone(),
            uri: self.uri.clone(),
            version: self.version,
            headers: Headers { text: text.clone(), lines: self.headers.lines.clone() },
            extensions: Extensions::new(),
            is_kept: true,
        }
    }
}

impl From<Parts> for Head {
    fn from(parts: Parts) -> Head {
        let Parts { method, uri, version, headers, extensions, .. } = parts;
        let (headers, is_kept) = (Headers::from(&headers), false);
        Head { method, uri, version, headers, extensions, is_kept }
    }
}

/// Header lines in their order; names without regard to case (RFC 9110, 5.1).
#[derive(Default)]
pub struct Headers {
    // What they were read from.
    text: Bytes,
    lines: Vec<Line>,
}

impl fmt::Debug for Headers {
    // Values may be keys.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.all().map(|(name, _)| name)).finish()
    }
}

// Where in the text: heads are far below 4 GiB.
#[derive(Clone, Copy, Debug)]
struct Line {
    // See [`mark`].
    mark: u32,
    name: (u32, u32),
    value: (u32, u32),
}

// Whether two names are one. Mostly they are in the same case.
fn is_same(said: &[u8], name: &[u8]) -> bool {
    said == name || said.eq_ignore_ascii_case(name)
}

// What tells most names apart without reading them: their length, first and last letter.
fn mark(name: &[u8]) -> u32 {
    let letter = |b: Option<&u8>| u32::from(b.map_or(0, u8::to_ascii_lowercase));
    (name.len() as u32) << 16 | letter(name.first()) << 8 | letter(name.last())
}

impl Headers {
    /// Those that lie in `text` at these places: names, and values without the blanks around them.
    /// Both have been checked to be what they may be.
    pub fn of<'a>(text: &Bytes, lines: impl ExactSizeIterator<Item = (&'a str, &'a [u8])>) -> Self {
        let start = text.as_ptr() as usize;
        let place = |part: &[u8]| {
            // A value without a byte may lie anywhere.
            let from = (part.as_ptr() as usize).wrapping_sub(start).min(text.len());
            (from as u32, (from + part.len()).min(text.len()) as u32)
        };
        let mut out = Vec::with_capacity(lines.len());
        out.extend(lines.map(|(name, value)| {
            let name = name.as_bytes();
            Line { mark: mark(name), name: place(name), value: place(value) }
        }));
        Headers { text: text.clone(), lines: out }
    }

    fn part(&self, (from, to): (u32, u32)) -> &[u8] {
        &self.text[from as usize..to as usize]
    }

    /// The values of a header, in their order.
    pub fn get_all<'a>(&'a self, name: &HeaderName) -> impl Iterator<Item = &'a [u8]> {
        let name = name.as_str().as_bytes();
        let mark = mark(name);
        let mut lines = self.lines.iter();
        // Written out, or the compiler makes a call of each line.
        std::iter::from_fn(move || {
            for line in lines.by_ref() {
                if line.mark == mark && is_same(self.part(line.name), name) {
                    return Some(self.part(line.value));
                }
            }
            None
        })
    }

    /// Its first value.
    pub fn get(&self, name: &HeaderName) -> Option<&[u8]> {
        self.get_all(name).next()
    }

    /// Its first value, if that is text.
    pub fn text(&self, name: &HeaderName) -> Option<&str> {
        self.get(name).and_then(visible)
    }

    /// Whether it is there.
    pub fn contains(&self, name: &HeaderName) -> bool {
        self.get(name).is_some()
    }

    /// All of them, names in lower case.
    pub fn all(&self) -> impl Iterator<Item = (String, &[u8])> {
        self.lines.iter().map(|line| {
            let name = String::from_utf8_lossy(self.part(line.name)).to_ascii_lowercase();
            (name, self.part(line.value))
        })
    }

    /// The names that begin with `prefix`, in lower case.
    pub fn names(&self, prefix: &str) -> impl Iterator<Item = String> {
        self.lines.iter().filter_map(move |line| {
            let name = self.part(line.name);
            let begins = name.get(..prefix.len())?.eq_ignore_ascii_case(prefix.as_bytes());
            begins.then(|| String::from_utf8_lossy(name).to_ascii_lowercase())
        })
    }
}

/// A value as text: visible ASCII, blanks and tabs (RFC 9110, 5.5; what else may stand there is
/// opaque).
pub fn visible(value: &[u8]) -> Option<&str> {
    // All of it at once, which takes fewer steps than to stop at the first that is not.
    let is_visible = value.iter().fold(true, |all, b| all & matches!(b, b'\t' | b' '..=b'~'));
    if is_visible { std::str::from_utf8(value).ok() } else { None }
}

impl From<&HeaderMap> for Headers {
    fn from(map: &HeaderMap) -> Headers {
        map.iter().map(|(name, value)| (name.as_str(), value.as_bytes())).collect()
    }
}

impl<'a> FromIterator<(&'a str, &'a [u8])> for Headers {
    fn from_iter<I: IntoIterator<Item = (&'a str, &'a [u8])>>(lines: I) -> Headers {
        let mut text = Vec::new();
        let mut put = |part: &[u8]| {
            let from = text.len() as u32;
            text.extend_from_slice(part);
            (from, text.len() as u32)
        };
        let lines = lines
            .into_iter()
            .map(|(name, value)| {
                let name = name.as_bytes();
                Line { mark: mark(name), name: put(name), value: put(value) }
            })
            .collect();
        Headers { text: text.into(), lines }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use hyper::header::{ACCEPT, HOST, HeaderValue};

    fn said(headers: &Headers, name: &HeaderName) -> Vec<Vec<u8>> {
        headers.get_all(name).map(<[u8]>::to_vec).collect()
    }

    #[test]
    fn lines_are_found_where_they_were_read_and_where_they_were_copied() {
        let text =
            Bytes::from_static(b"HOST: a\r\naccept:  b \r\nAccept: \xe9\r\nhosts: c\r\nX:\r\n");
        let at = |from: usize, to: usize| &text[from..to];
        let name = |from, to| std::str::from_utf8(at(from, to)).unwrap_or_default();
        let lines = [
            (name(0, 4), at(6, 7)),
            (name(9, 15), at(18, 19)),
            (name(22, 28), at(30, 31)),
            (name(33, 38), at(40, 41)),
            (name(43, 44), &b""[..]),
        ];
        let mut map = HeaderMap::new();
        for (name, value) in lines {
            let name = HeaderName::from_bytes(name.as_bytes()).expect("a name");
            map.append(name, HeaderValue::from_bytes(value).expect("a value"));
        }
        for headers in [Headers::of(&text, lines.into_iter()), Headers::from(&map)] {
            assert_eq!(said(&headers, &HOST), [b"a"]);
            assert_eq!(said(&headers, &ACCEPT), [&b"b"[..], b"\xe9"]);
            assert_eq!(headers.text(&ACCEPT), Some("b"));
            let x = HeaderName::from_static("x");
            assert_eq!((headers.get(&x), headers.text(&x)), (Some(&b""[..]), Some("")));
            assert!(!headers.contains(&HeaderName::from_static("xx")));
            let names = |prefix| {
                let mut names: Vec<_> = headers.names(prefix).collect();
                names.sort();
                names
            };
            assert_eq!(names(""), ["accept", "accept", "host", "hosts", "x"]);
            assert!(headers.all().map(|(name, _)| name).eq(headers.names("")));
            assert_eq!(names("ho"), ["host", "hosts"]);
        }
    }

    #[test]
    fn what_is_text_is_what_the_types_of_http_say() {
        for byte in 0..=255u8 {
            let value = [b'a', byte];
            let theirs = HeaderValue::from_bytes(&value).ok();
            let theirs = theirs.as_ref().and_then(|value| value.to_str().ok());
            assert_eq!(visible(&value), theirs, "{byte}");
        }
    }
}
