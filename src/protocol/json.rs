//! One pass over JSON text: is it valid, and where do members stand?
//!
//! Every message is read by this once. Nothing is decoded and nothing is built: strings are
//! passed over by vector search, and what is inside a member is only looked at for being valid.
//! What it accepts the JSON library accepts (a property test holds that); what it does not accept
//! is given to the library, which says why.

use std::ops::Range;

/// Where a member's key, with its quotes, and its value stand.
pub type Member = (Range<usize>, Range<usize>);

/// Reads valid JSON only; stops at the first byte that is none.
pub struct Reader<'a> {
    text: &'a [u8],
    at: usize,
    max_depth: usize,
    /// A byte beyond ASCII was passed, inside a string: whether it is UTF-8 was not looked at.
    pub beyond_ascii: bool,
    /// A key with an escape was passed, since this was last put to `false`: what it says is not
    /// what it looks like.
    pub escaped_key: bool,
    /// A key was passed that may stand before a resource's URI.
    pub uri_key: bool,
}

/// Not valid, or nested too deep.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Broken;

/// Strings of up to so many words of eight bytes are passed word by word: setting up the vector
/// search costs more.
const SHORT: usize = 8;

// How many bytes of a word in a string, from its beginning on, need no look: neither quote nor
// backslash, control character or anything beyond ASCII. All eight are looked at together.
fn plain_bytes(word: [u8; 8]) -> usize {
    const ONES: u64 = u64::from_ne_bytes([1; 8]);
    const TOPS: u64 = u64::from_ne_bytes([0x80; 8]);
    let word = u64::from_le_bytes(word);
    // The top bit of each byte that is below `n`; beyond the first such byte it may err.
    let below = |word: u64, n: u8| word.wrapping_sub(ONES * u64::from(n)) & !word;
    let turned = |byte: u8| word ^ (ONES * u64::from(byte));
    // With this bit turned the quote stands where the blank does, right behind the control
    // characters, and the blank where the quote does.
    let low = below(turned(b'"' ^ b' '), b' ' + 1);
    let special = (word | low | below(turned(b'\\'), 1)) & TOPS;
    special.trailing_zeros() as usize / 8
}

impl<'a> Reader<'a> {
    /// Begin at the beginning. `max_depth` is at most 127.
    pub fn new(text: &'a [u8], max_depth: usize) -> Reader<'a> {
        let max_depth = max_depth.min(127);
        let (beyond_ascii, escaped_key, uri_key) = (false, false, false);
        Reader { text, at: 0, max_depth, beyond_ascii, escaped_key, uri_key }
    }

    /// Whether all of it was read, but for white space.
    pub fn is_at_end(&mut self) -> bool {
        self.space();
        self.at == self.text.len()
    }

    /// The next byte that is no white space; it is not passed.
    pub fn peek(&mut self) -> Option<u8> {
        self.space();
        self.text.get(self.at).copied()
    }

    /// Read an object, `depth` levels inside the text. `each` is given where a key stands, and
    /// must read the value with [`Reader::value`], [`Reader::object`] or the like.
    pub fn object(
        &mut self,
        depth: usize,
        mut each: impl FnMut(&mut Reader<'a>, Range<usize>) -> Result<(), Broken>,
    ) -> Result<Range<usize>, Broken> {
        if depth >= self.max_depth || self.peek() != Some(b'{') {
            return Err(Broken);
        }
        let start = self.at;
        self.at += 1;
        if self.peek() == Some(b'}') {
            self.at += 1;
            return Ok(start..self.at);
        }
        loop {
            let key = self.key()?;
            each(self, key)?;
            match self.peek() {
                Some(b',') => self.at += 1,
                Some(b'}') => {
                    self.at += 1;
                    return Ok(start..self.at);
                }
                _ => return Err(Broken),
            }
        }
    }

    /// Read any value, `depth` levels inside the text.
    pub fn value(&mut self, depth: usize) -> Result<Range<usize>, Broken> {
        self.space();
        let start = self.at;
        // One bit for each container that is open: an object or an array.
        let (mut open, mut objects) = (0usize, 0u128);
        loop {
            // A value begins here.
            match self.peek().ok_or(Broken)? {
                b'"' => self.string().map(drop)?,
                first @ (b'{' | b'[') => {
                    if depth + open >= self.max_depth {
                        return Err(Broken);
                    }
                    self.at += 1;
                    let object = first == b'{';
                    let close = if object { b'}' } else { b']' };
                    if self.peek() == Some(close) {
                        self.at += 1;
                    } else {
                        objects = objects << 1 | u128::from(object);
                        open += 1;
                        if object {
                            self.key()?;
                        }
                        continue;
                    }
                }
                b't' => self.word(b"true")?,
                b'f' => self.word(b"false")?,
                b'n' => self.word(b"null")?,
                _ => self.number()?,
            }
            // A value has ended here.
            loop {
                if open == 0 {
                    return Ok(start..self.at);
                }
                let object = objects & 1 == 1;
                match self.peek().ok_or(Broken)? {
                    b',' => {
                        self.at += 1;
                        if object {
                            self.key()?;
                        }
                        break;
                    }
                    b'}' if object => {}
                    b']' if !object => {}
                    _ => return Err(Broken),
                }
                self.at += 1;
                open -= 1;
                objects >>= 1;
            }
        }
    }

    // The key and its colon.
    fn key(&mut self) -> Result<Range<usize>, Broken> {
        if self.peek() != Some(b'"') {
            return Err(Broken);
        }
        let (key, escaped) = self.string()?;
        self.escaped_key |= escaped;
        self.uri_key |=
            escaped || matches!(&self.text[key.clone()], [b'"', .., b'r' | b'R', b'i', b'"']);
        if self.peek() != Some(b':') {
            return Err(Broken);
        }
        self.at += 1;
        Ok(key)
    }

    // Where it stands, and whether it holds an escape.
    fn string(&mut self) -> Result<(Range<usize>, bool), Broken> {
        let start = self.at;
        let mut escaped = false;
        self.at += 1;
        for _ in 0..SHORT {
            let Some(word) = self.text[self.at..].first_chunk::<8>() else { break };
            let n = plain_bytes(*word);
            self.at += n;
            if n < word.len() {
                if word[n] == b'"' {
                    self.at += 1;
                    return Ok((start..self.at, false));
                }
                break;
            }
        }
        loop {
            let rest = &self.text[self.at..];
            let n = memchr::memchr2(b'"', b'\\', rest).ok_or(Broken)?;
            // Counted from the blank on, control characters come last, and what is beyond ASCII
            // before them.
            let last = rest[..n].iter().fold(0, |last: u8, b| last.max(b.wrapping_sub(b' ')));
            if last >= 0u8.wrapping_sub(b' ') {
                return Err(Broken);
            }
            self.beyond_ascii |= last >= 0x80 - b' ';
            self.at += n + 1;
            if rest[n] == b'"' {
                return Ok((start..self.at, escaped));
            }
            escaped = true;
            let digits = match self.text.get(self.at).ok_or(Broken)? {
                b'"' | b'\\' | b'/' | b'b' | b'f' | b'n' | b'r' | b't' => 0,
                b'u' => 4,
                _ => return Err(Broken),
            };
            self.at += 1;
            let hex = self.text.get(self.at..self.at + digits).ok_or(Broken)?;
            if !hex.iter().all(u8::is_ascii_hexdigit) {
                return Err(Broken);
            }
            self.at += digits;
        }
    }

    fn number(&mut self) -> Result<(), Broken> {
        self.take(b'-');
        if !self.take(b'0') {
            self.digits()?;
        }
        if self.take(b'.') {
            self.digits()?;
        }
        if self.take(b'e') || self.take(b'E') {
            let _ = self.take(b'+') || self.take(b'-');
            self.digits()?;
        }
        Ok(())
    }

    fn digits(&mut self) -> Result<(), Broken> {
        let rest = &self.text[self.at..];
        let n = rest.iter().position(|b| !b.is_ascii_digit()).unwrap_or(rest.len());
        self.at += n;
        if n > 0 { Ok(()) } else { Err(Broken) }
    }

    fn take(&mut self, byte: u8) -> bool {
        let there = self.text.get(self.at) == Some(&byte);
        self.at += usize::from(there);
        there
    }

    fn word(&mut self, word: &[u8]) -> Result<(), Broken> {
        if !self.text[self.at..].starts_with(word) {
            return Err(Broken);
        }
        self.at += word.len();
        Ok(())
    }

    fn space(&mut self) {
        while let Some(b' ' | b'\n' | b'\r' | b'\t') = self.text.get(self.at) {
            self.at += 1;
        }
    }
}

/// Write a text as a string.
pub fn write_string(out: &mut Vec<u8>, text: &str) {
    // All of it is looked at at once, which takes fewer steps than to stop at the first that is not
    // written as it is.
    let plain = |b: u8| b >= b' ' && b != b'"' && b != b'\\';
    if text.bytes().fold(true, |all, b| all & plain(b)) {
        out.reserve(text.len() + 2);
        out.push(b'"');
        out.extend_from_slice(text.as_bytes());
        out.push(b'"');
    } else {
        serde_json::to_writer(out, text).expect("a string serialises, and memory takes it");
    }
}

/// Most members of an object that are remembered. Real params and results have a handful.
const MEMBERS_MAX: usize = 32;

/// The members of one object: each key once, none with an escape. What is not so simple has no
/// index, and is looked at by slower means.
#[derive(Clone, Default)]
pub struct Index(Vec<Member>);

impl Index {
    /// Read an object, `depth` levels inside the text, and remember its members. `None` if they
    /// are not simple.
    pub fn read(
        reader: &mut Reader<'_>,
        depth: usize,
    ) -> Result<(Range<usize>, Option<Index>), Broken> {
        Index::read_with(reader, depth, |reader, _| reader.value(depth + 1))
    }

    /// The same, where `value` reads the value behind a key.
    pub fn read_with<'a>(
        reader: &mut Reader<'a>,
        depth: usize,
        mut value: impl FnMut(&mut Reader<'a>, &Range<usize>) -> Result<Range<usize>, Broken>,
    ) -> Result<(Range<usize>, Option<Index>), Broken> {
        let mut members: Vec<Member> = Vec::with_capacity(4);
        let mut simple = true;
        reader.escaped_key = false;
        let place = reader.object(depth, |reader, key| {
            simple &= !reader.escaped_key;
            let value = value(reader, &key)?;
            // Of a nested key.
            reader.escaped_key = false;
            let text = reader.text;
            simple &= members.len() < MEMBERS_MAX
                && !members.iter().any(|(known, _)| text[known.clone()] == text[key.clone()]);
            if simple {
                members.push((key, value));
            }
            Ok(())
        })?;
        Ok((place, simple.then_some(Index(members))))
    }

    /// Where the value of `key` stands.
    pub fn find(&self, text: &[u8], key: &str) -> Option<Range<usize>> {
        let is = |at: &Range<usize>| &text[at.start + 1..at.end - 1] == key.as_bytes();
        self.0.iter().find(|(at, _)| is(at)).map(|(_, value)| value.clone())
    }

    /// The members in their order.
    pub fn members(&self) -> &[Member] {
        &self.0
    }
}

/// The members of a raw object, if it is valid and simple: see [`Index`].
pub fn index(raw: &[u8], max_depth: usize) -> Option<Index> {
    let mut reader = Reader::new(raw, max_depth);
    let (_, index) = Index::read(&mut reader, 0).ok()?;
    let clean = reader.is_at_end() && (!reader.beyond_ascii || std::str::from_utf8(raw).is_ok());
    index.filter(|_| clean)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;
    use serde_json::value::RawValue;

    use super::*;
    use crate::protocol::meta::Members;

    fn valid(text: &[u8]) -> bool {
        let mut reader = Reader::new(text, 100);
        reader.value(0).is_ok()
            && reader.is_at_end()
            && (!reader.beyond_ascii || std::str::from_utf8(text).is_ok())
    }

    #[test]
    fn the_grammar_is_json_s() {
        for text in [
            "{}",
            "[]",
            " [ 1 , {\"a\" : [ ] } ] ",
            "0",
            "-0",
            "10.5e-7",
            "1E+400",
            "\"\"",
            "\"\\u00e9\\ud800 \\/\"",
            "true",
            "null",
            "[[[[]]]]",
            "\"é\"",
            "\"a long string that is searched\"",
        ] {
            assert!(valid(text.as_bytes()), "{text}");
        }
        for text in [
            "",
            "{",
            "[1,]",
            "{\"a\":1,}",
            "{\"a\"}",
            "{a:1}",
            "01",
            "1.",
            ".5",
            "-",
            "1e",
            "+1",
            "\"",
            "\"\\x\"",
            "\"\\u12\"",
            "\"\n\"",
            "tru",
            "nulll",
            "[1 2]",
            "[}",
            "{]",
            "1 1",
            "\"a long string with a raw tab\tin it\"",
            "é",
            "\u{feff}1",
        ] {
            assert!(!valid(text.as_bytes()), "{text}");
        }
        assert!(!valid(b"\"\xff\"") && !valid(b"[\"a long string beyond ascii \xff\"]"));
        assert!(valid(format!("{}{}", "[".repeat(100), "]".repeat(100)).as_bytes()));
        assert!(!valid(format!("{}{}", "[".repeat(101), "]".repeat(101)).as_bytes()));
    }

    #[test]
    fn members_are_indexed_where_that_is_simple() {
        let raw = br#" {"a" : [1], "b":{"a":2} , "uri":null}"#;
        let found = index(raw, 100).unwrap();
        let text =
            |key: &str| found.find(raw, key).map(|at| std::str::from_utf8(&raw[at]).unwrap());
        assert_eq!(
            (text("a"), text("b"), text("uri")),
            (Some("[1]"), Some("{\"a\":2}"), Some("null"))
        );
        assert_eq!(text("c"), None);
        for other in [r#"{"a":1,"a":2}"#, r#"{"\u0061":1}"#, "[]", r#"{"a":1} x"#] {
            assert!(index(other.as_bytes(), 100).is_none(), "{other}");
        }
        let many = |n: usize| {
            let members: Vec<_> = (0..n).map(|n| format!("\"{n}\":0")).collect();
            format!("{{{}}}", members.join(","))
        };
        assert!(index(many(MEMBERS_MAX).as_bytes(), 100).is_some());
        assert!(index(many(MEMBERS_MAX + 1).as_bytes(), 100).is_none());
    }

    #[test]
    fn keys_that_may_name_a_resource_are_noticed() {
        let sees = |text: &str| {
            let mut reader = Reader::new(text.as_bytes(), 100);
            reader.object(0, |reader, _| reader.value(1).map(drop)).unwrap();
            (reader.uri_key, reader.escaped_key)
        };
        assert_eq!(sees(r#"{"a":[{"uri":1}]}"#), (true, false));
        assert_eq!(sees(r#"{"a":{"b":{"resourceUri":1}}}"#), (true, false));
        assert_eq!(sees(r#"{"a":{"\u0075ri":1}}"#), (true, true));
        assert_eq!(sees(r#"{"a":"uri","b":{"c":1}}"#), (false, false));
    }

    fn noise() -> impl Strategy<Value = Vec<u8>> {
        let bits = proptest::sample::select(vec![
            "{",
            "}",
            "[",
            "]",
            ",",
            ":",
            "\"a\"",
            "\"\\u00e9\"",
            "\"\\\"\"",
            "\"é\"",
            "1",
            "-0.5e1",
            "01",
            "true",
            "null",
            " ",
            "\n",
            "\"",
            "\\",
            "\u{1}",
            "x",
            "\"0123456789abcdefghij\"",
        ]);
        proptest::collection::vec(bits, 0..24).prop_map(|parts| parts.concat().into_bytes())
    }

    proptest! {
        #[test]
        fn it_accepts_what_the_library_accepts(text in noise()) {
            let library = serde_json::from_slice::<&RawValue>(&text).is_ok();
            prop_assert_eq!(valid(&text), library, "{}", String::from_utf8_lossy(&text));
        }

        #[test]
        fn any_bytes_are_survived(text in proptest::collection::vec(any::<u8>(), 0..64)) {
            let library = serde_json::from_slice::<&RawValue>(&text).is_ok();
            prop_assert_eq!(valid(&text), library);
        }

        #[test]
        fn an_index_says_what_the_library_reads(text in noise()) {
            if let Some(found) = index(&text, 100) {
                let read = Members::read(&text).unwrap();
                prop_assert_eq!(found.members().len(), read.0.len());
                for (key, value) in &read.0 {
                    let at = found.find(&text, key).unwrap();
                    prop_assert_eq!(&text[at], value.get().as_bytes());
                }
            }
        }
    }
}
