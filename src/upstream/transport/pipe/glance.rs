//! What a message that cannot be kept or read says about itself: enough to tell whose answer it
//! was.
//!
//! Fed piece by piece, so that one of any length costs a few bytes. The id may stand at either
//! end of a message: some servers write the result first.

use crate::wire;

/// Longest key and id that are looked at; ours are numbers of at most 20 digits.
const KEPT: usize = 24;

/// A reader of the members of one JSON object, without its values.
#[derive(Default)]
pub struct Glance {
    at: At,
    escaped: bool,
    in_string: bool,
    depth: usize,
    text: Vec<u8>,
    is_id: bool,
    id: Option<u64>,
    ids: usize,
    has_method: bool,
    has_outcome: bool,
    has_version: bool,
}

#[derive(Default, Clone, Copy, PartialEq, Eq)]
enum At {
    #[default]
    Start,
    Key,
    InKey,
    Colon,
    Value,
    InScalar,
    InString,
    InNested,
    AfterValue,
    End,
}

impl Glance {
    /// Of all there is.
    pub fn at(line: &[u8]) -> Glance {
        let mut glance = Glance::default();
        glance.feed(line);
        glance
    }

    /// Read on.
    pub fn feed(&mut self, mut bytes: &[u8]) {
        while let Some(&b) = bytes.first() {
            let quiet = self.quiet(bytes);
            if quiet == 0 {
                self.step(b);
            }
            bytes = &bytes[quiet.max(1)..];
        }
    }

    // How many bytes say nothing: most of a long message is the inside of a string, and behind what
    // is no object there is nothing to know.
    fn quiet(&self, bytes: &[u8]) -> usize {
        let in_text = match self.at {
            At::End => return bytes.len(),
            At::InString => true,
            At::InNested => self.in_string,
            _ => false,
        };
        if !in_text || self.escaped {
            return 0;
        }
        memchr::memchr2(b'"', b'\\', bytes).unwrap_or(bytes.len())
    }

    /// The id, if the text is meant as a response and names one number. A server that logs its
    /// JSON to stdout may well have an `id` in it, so the other members must fit too.
    pub fn answers(&self) -> Option<u64> {
        let response = self.has_version && self.has_outcome && !self.has_method && self.ids == 1;
        self.id.filter(|_| response)
    }

    fn step(&mut self, b: u8) {
        let space = b.is_ascii_whitespace();
        match self.at {
            At::Start | At::Key | At::Colon | At::Value if space => {}
            At::Start if matches!(b, 0xef | 0xbb | 0xbf) => {}
            At::Start if b == b'{' => self.at = At::Key,
            At::Key if b == b',' => {}
            At::Key if b == b'"' => {
                self.text.clear();
                self.at = At::InKey;
            }
            At::InKey => match b {
                _ if self.escaped => self.escaped = false,
                b'\\' => {
                    self.escaped = true;
                    self.keep(b);
                }
                b'"' => self.key(),
                _ => self.keep(b),
            },
            At::Colon if b == b':' => self.at = At::Value,
            At::Value => match b {
                b'"' => self.at = At::InString,
                b'{' | b'[' => {
                    self.depth = 1;
                    self.at = At::InNested;
                }
                _ => {
                    self.text.clear();
                    self.keep(b);
                    self.at = At::InScalar;
                }
            },
            At::InScalar if space || matches!(b, b',' | b'}') => {
                if self.is_id {
                    self.id = number(&self.text);
                }
                self.at = after(b);
            }
            At::InScalar => self.keep(b),
            At::InString if self.escaped => self.escaped = false,
            At::InString => match b {
                b'\\' => self.escaped = true,
                b'"' => self.at = At::AfterValue,
                _ => {}
            },
            At::InNested => self.nested(b),
            At::AfterValue if space || matches!(b, b',' | b'}') => self.at = after(b),
            At::Start | At::Key | At::Colon | At::AfterValue | At::End => self.at = At::End,
        }
    }

    fn nested(&mut self, b: u8) {
        match (self.in_string, b) {
            (true, _) if self.escaped => self.escaped = false,
            (true, b'\\') => self.escaped = true,
            (_, b'"') => self.in_string = !self.in_string,
            (false, b'{' | b'[') => self.depth += 1,
            (false, b'}' | b']') => {
                self.depth -= 1;
                if self.depth == 0 {
                    self.at = At::AfterValue;
                }
            }
            _ => {}
        }
    }

    fn keep(&mut self, b: u8) {
        // One more than is kept, so that a longer text is never taken for a shorter one.
        if self.text.len() <= KEPT {
            self.text.push(b);
        }
    }

    fn key(&mut self) {
        self.is_id = self.text == b"id";
        match &self.text[..] {
            b"id" => self.ids += 1,
            b"method" => self.has_method = true,
            b"result" | b"error" => self.has_outcome = true,
            b"jsonrpc" => self.has_version = true,
            _ => {}
        }
        self.at = At::Colon;
    }
}

fn after(b: u8) -> At {
    match b {
        b',' => At::Key,
        b'}' => At::End,
        _ => At::AfterValue,
    }
}

/// The number whose decimal text this is, exactly: no sign, no leading zero, no fraction.
pub fn number(text: &[u8]) -> Option<u64> {
    let leads_with_zero = text.len() > 1 && text[0] == b'0';
    wire::number(text).filter(|_| !leads_with_zero)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn whose_answer_a_line_was() {
        for (line, id) in [
            (r#"{"jsonrpc":"2.0","id":7,"result":{"id":8}}"#, Some(7)),
            (r#"{"result":{"a":["}\"{"]},"jsonrpc":"2.0","id": 7 }"#, Some(7)),
            (r#"{"error":{},"jsonrpc":"2.0","id":7,"rest":"cut he"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":7,"result":{"id":8"#, Some(7)),
            (r#"{"jsonrpc":"2.0","id":"7","result":{}}"#, None),
            (r#"{"jsonrpc":"2.0","id":7.0,"result":{}}"#, None),
            (r#"{"jsonrpc":"2.0","id":07,"result":{}}"#, None),
            (r#"{"jsonrpc":"2.0","id":null,"error":{}}"#, None),
            (r#"{"jsonrpc":"2.0","id":7,"method":"ping","result":1}"#, None),
            (r#"{"jsonrpc":"2.0","id":7,"id":8,"result":{}}"#, None),
            (r#"{"level":"info","id":7,"error":"none"}"#, None),
            (r#"{"jsonrpc":"2.0","x\"id":7,"result":{}}"#, None),
            (r#"[{"jsonrpc":"2.0","id":7,"result":{}}]"#, None),
            ("Server listening on port 7", None),
            ("", None),
        ] {
            assert_eq!(Glance::at(line.as_bytes()).answers(), id, "{line}");
        }
        assert_eq!(number(b"18446744073709551615"), Some(u64::MAX));
        assert_eq!(number(b"18446744073709551616"), None);
        assert_eq!(number(b""), None);
    }

    fn json() -> impl Strategy<Value = serde_json::Value> {
        let leaf = prop_oneof![
            Just(serde_json::Value::Null),
            any::<bool>().prop_map(Into::into),
            any::<i64>().prop_map(Into::into),
            "[ -~]{0,12}".prop_map(Into::into),
        ];
        leaf.prop_recursive(3, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Into::into),
                prop::collection::hash_map("[a-z\"\\\\]{0,4}", inner, 0..4)
                    .prop_map(|m| m.into_iter().collect::<serde_json::Map<_, _>>().into()),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_response_is_known_wherever_its_id_stands(
            id in any::<u64>(), value in json(), last in any::<bool>(), cut in 1usize..9,
        ) {
            let line = if last {
                format!(r#"{{"result":{value},"jsonrpc":"2.0","id":{id}}}"#)
            } else {
                format!(r#"{{"jsonrpc":"2.0","id":{id},"result":{value}}}"#)
            };
            let mut glance = Glance::default();
            for piece in line.as_bytes().chunks(cut) {
                glance.feed(piece);
            }
            prop_assert_eq!(glance.answers(), Some(id));
        }

        #[test]
        fn no_bytes_upset_it(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            Glance::at(&bytes).answers();
        }
    }
}
