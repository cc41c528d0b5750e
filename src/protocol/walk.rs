//! Walk over JSON text that is known to be valid and remember places.
//!
//! Results are looked at by the ten thousand and are mostly text; one pass with a fast search for
//! the end of each string finds the few places that concern us. Nothing is decoded, so odd
//! numbers, lone surrogates and doubled keys in what we only carry are no errors here. What an
//! agent asks for is read strictly instead, by [`super::meta::Members`].

use std::borrow::Cow;
use std::ops::Range;

use memchr::memmem;

/// A place in JSON text.
///
/// The text comes out of a [`super::message::Frame`], which has checked it. On other text the walk
/// still ends and stays inside the text, but what it finds means nothing.
pub struct Walk<'a> {
    text: &'a [u8],
    at: usize,
}

impl<'a> Walk<'a> {
    /// Start at the beginning of `text`.
    pub fn new(text: &'a [u8]) -> Walk<'a> {
        Walk { text, at: 0 }
    }

    /// The first byte of what comes next; white space and commas are passed over.
    pub fn peek(&mut self) -> Option<u8> {
        while let Some(&b) = self.text.get(self.at) {
            if !matches!(b, b' ' | b'\t' | b'\n' | b'\r' | b',') {
                return Some(b);
            }
            self.at += 1;
        }
        None
    }

    /// Step into an object (`{`) or array (`[`) if one comes next.
    pub fn enter(&mut self, open: u8) -> bool {
        let there = self.peek() == Some(open);
        self.at += usize::from(there);
        there
    }

    /// Inside an object: where the next key stands, quotes included; its value comes next.
    /// `None` at the object's end, which is passed.
    pub fn key(&mut self) -> Option<Range<usize>> {
        match self.peek()? {
            b'"' => {
                let key = self.skip();
                if self.peek() == Some(b':') {
                    self.at += 1;
                    return Some(key);
                }
            }
            b'}' => {
                self.at += 1;
                return None;
            }
            _ => {}
        }
        self.at = self.text.len();
        None
    }

    /// Inside an array: whether another item comes; otherwise the array's end is passed.
    pub fn item(&mut self) -> bool {
        match self.peek() {
            Some(b']') => {
                self.at += 1;
                false
            }
            Some(b'}' | b':') => {
                self.at = self.text.len();
                false
            }
            next => next.is_some(),
        }
    }

    /// Pass over the next value and say where it stands.
    pub fn skip(&mut self) -> Range<usize> {
        let first = self.peek();
        let start = self.at;
        match first {
            Some(b'"') => self.string(),
            Some(b'{' | b'[') => self.nested(),
            _ => {
                let rest = &self.text[start..];
                let len = rest
                    .iter()
                    .position(|b| matches!(b, b',' | b'}' | b']' | b':' | b' ' | b'\t'..=b'\r'))
                    .unwrap_or(rest.len());
                // No scalar at all: not JSON. Ending here keeps every loop over us finite.
                self.at = if len == 0 { self.text.len() } else { start + len };
            }
        }
        start..self.at
    }

    fn string(&mut self) {
        self.at += 1;
        while let Some(n) = memchr::memchr2(b'"', b'\\', &self.text[self.at..]) {
            if self.text[self.at + n] == b'"' {
                self.at += n + 1;
                return;
            }
            self.at = (self.at + n + 2).min(self.text.len());
        }
        self.at = self.text.len();
    }

    fn nested(&mut self) {
        let mut depth = 0usize;
        while let Some(&b) = self.text.get(self.at) {
            match b {
                b'"' => {
                    self.string();
                    continue;
                }
                b'{' | b'[' => depth += 1,
                b'}' | b']' => depth -= 1,
                _ => {}
            }
            self.at += 1;
            if depth == 0 {
                return;
            }
        }
    }
}

/// Where the members of a raw object stand: (key with its quotes, value). Empty for anything else.
pub fn members(raw: &[u8]) -> Vec<(Range<usize>, Range<usize>)> {
    let mut walk = Walk::new(raw);
    let mut out = Vec::new();
    if walk.enter(b'{') {
        while let Some(key) = walk.key() {
            out.push((key, walk.skip()));
        }
    }
    out
}

/// Whether `word` can stand in `text`, plain or escaped, as a key or a string that says it. What
/// cannot need not be walked for, which settles most messages.
pub fn may_hold(text: &[u8], word: &str) -> bool {
    memmem::find(text, word.as_bytes()).is_some() || memmem::find(text, b"\\u").is_some()
}

/// Whether the JSON string `raw`, with its quotes, says `text`.
pub fn says(raw: &[u8], text: &str) -> bool {
    match raw {
        [b'"', inner @ .., b'"'] if inner == text.as_bytes() => true,
        _ => memchr::memchr(b'\\', raw).is_some() && string(raw).is_some_and(|s| s == text),
    }
}

/// What the JSON string `raw`, with its quotes, says; `None` if it is none, or says no text
/// (a lone surrogate).
pub fn string(raw: &[u8]) -> Option<Cow<'_, str>> {
    match raw {
        [b'"', inner @ .., b'"'] if memchr::memchr(b'\\', inner).is_none() => {
            std::str::from_utf8(inner).ok().map(Cow::Borrowed)
        }
        _ => serde_json::from_slice::<String>(raw).ok().map(Cow::Owned),
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn members_are_found_where_they_stand() {
        let raw = br#" { "a" : [1,{"b":"}\""}] ,"\u0062":-1e5, "c":"" , "d":{} } "#;
        let found: Vec<_> = members(raw)
            .into_iter()
            .map(|(k, v)| {
                (string(&raw[k]).unwrap().into_owned(), std::str::from_utf8(&raw[v]).unwrap())
            })
            .collect();
        let want = [("a", r#"[1,{"b":"}\""}]"#), ("b", "-1e5"), ("c", "\"\""), ("d", "{}")];
        assert_eq!(found, want.map(|(k, v)| (k.to_owned(), v)));
        assert!(members(b"[1]").is_empty() && members(b"").is_empty());
    }

    #[test]
    fn strings_are_compared_by_what_they_say() {
        assert!(says(br#""uri""#, "uri") && says(br#""\u0075ri""#, "uri"));
        assert!(!says(br#""\ud800""#, "uri") && string(br#""\ud800""#).is_none());
        assert!(!says(b"uri", "uri") && !says(b"\"", "") && says(b"\"\"", ""));
    }

    proptest! {
        #[test]
        fn any_bytes_are_survived(raw in proptest::collection::vec(
            prop_oneof![3 => proptest::sample::select(b"{}[]\",:\\ 1".to_vec()), 1 => any::<u8>()], 0..40))
        {
            for (k, v) in members(&raw) {
                prop_assert!(k.end <= raw.len() && v.end <= raw.len() && v.start <= v.end);
            }
            let mut walk = Walk::new(&raw);
            if walk.enter(b'[') {
                while walk.item() {
                    walk.skip();
                }
            }
        }
    }
}
