//! The JSON-RPC envelope: read the address, keep the bytes.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;

use bytes::{BufMut, Bytes, BytesMut};
use serde::Deserialize;
use serde_json::value::RawValue;

use super::error::{ErrorObject, INVALID_REQUEST, PARSE_ERROR};
use super::json::{Broken, Index, Reader};
use super::method;
use super::splice::{Edit, Splice, edited, range_of};
use super::walk;

/// Deepest nesting of arrays and objects that a message may have. The JSON reader refuses more
/// than 128 where it descends; this counts where it only skips. Real tool schemas stay below 30.
pub const MAX_DEPTH: usize = 120;

/// One JSON-RPC message: its bytes and where its members stand in them.
///
/// Cloning shares the bytes. All spans are offsets into [`Frame::bytes`].
#[derive(Clone)]
pub struct Frame {
    bytes: Bytes,
    kind: Kind,
    id: Option<Range<usize>>,
    method: Option<Cow<'static, str>>,
    params: Option<Range<usize>>,
    outcome: Option<Range<usize>>,
    // The members of the params, result or error, where they are simple.
    index: Option<Index>,
    // And those of the params' `_meta`.
    meta: Option<Index>,
    names_uris: bool,
}

/// What a message is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Has a method and an id.
    Request,
    /// Has a method and no id.
    Notification,
    /// Has a result.
    Result,
    /// Has an error; its id may be missing or null.
    Error,
}

/// Why bytes are not a JSON-RPC message.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// Not JSON, or a key that must be unique stands twice.
    #[error("not valid JSON: {0}")]
    Json(String),
    /// JSON, but no JSON-RPC message.
    #[error("not a JSON-RPC 2.0 message: {0}")]
    Shape(&'static str),
}

impl FrameError {
    /// The JSON-RPC code for it.
    pub fn code(&self) -> i32 {
        match self {
            FrameError::Json(_) => PARSE_ERROR,
            FrameError::Shape(_) => INVALID_REQUEST,
        }
    }
}

/// Fewer bytes than this are copied sooner than they are shared and written on their own.
const SHARED_MIN: usize = 4 << 10;

/// Longest id in bytes. It is kept and echoed as long as its request lives; clients count, or
/// make identifiers of some dozen letters.
const ID_MAX: usize = 1024;

// Known members are borrowed as raw text. A known key that stands twice is an error of serde's
// derive ("duplicate field"): two readers could disagree on which one counts.
#[derive(Deserialize)]
struct Scan<'a> {
    #[serde(borrow, default, deserialize_with = "present")]
    jsonrpc: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    id: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    method: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    params: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    result: Option<&'a RawValue>,
    #[serde(borrow, default, deserialize_with = "present")]
    error: Option<&'a RawValue>,
}

// `null` is a value that is there, and not the same as a member that is missing.
fn present<'de, D: serde::Deserializer<'de>>(d: D) -> Result<Option<&'de RawValue>, D::Error> {
    <&RawValue>::deserialize(d).map(Some)
}

impl Frame {
    /// Read the envelope of one message.
    ///
    /// A UTF-8 byte order mark and white space around the message are tolerated.
    pub fn scan(bytes: Bytes) -> Result<Frame, FrameError> {
        let bytes = trim(bytes);
        match Frame::quick(&bytes) {
            Some(parts) => Ok(Frame { bytes, ..parts }),
            None => Frame::scan_with_library(bytes),
        }
    }

    // One pass; the bytes themselves are left to the caller. `None` for whatever is not plain and
    // right: the library decides on that, and finds the words for it.
    fn quick(bytes: &[u8]) -> Option<Frame> {
        let mut reader = Reader::new(bytes, MAX_DEPTH);
        let [mut jsonrpc, mut id, mut method, mut params, mut result, mut error] =
            [const { None::<Range<usize>> }; 6];
        let (mut index, mut meta) = (None, None);
        let whole = reader.object(0, |reader, key| {
            let asks = &bytes[key.clone()] == b"\"params\"";
            let place = match &bytes[key] {
                b"\"jsonrpc\"" => &mut jsonrpc,
                b"\"id\"" => &mut id,
                b"\"method\"" => &mut method,
                b"\"params\"" => &mut params,
                b"\"result\"" => &mut result,
                b"\"error\"" => &mut error,
                _ if reader.escaped_key => return Err(Broken),
                _ => return reader.value(1).map(drop),
            };
            if place.is_some() {
                return Err(Broken);
            }
            *place = Some(if reader.peek() == Some(b'{') {
                let (at, members) = Index::read_with(reader, 1, |reader, key| {
                    let is_meta = asks && &bytes[key.clone()] == b"\"_meta\"";
                    if !is_meta || reader.peek() != Some(b'{') {
                        return reader.value(2);
                    }
                    let (at, members) = Index::read(reader, 2)?;
                    meta = members;
                    Ok(at)
                })?;
                index = members;
                at
            } else {
                reader.value(1)?
            });
            Ok(())
        });
        if whole.is_err() || !reader.is_at_end() {
            return None;
        }
        if reader.beyond_ascii && std::str::from_utf8(bytes).is_err() {
            return None;
        }
        let is = |at: &Range<usize>, first: fn(u8) -> bool| first(bytes[at.start]);
        if &bytes[jsonrpc?] != b"\"2.0\"" {
            return None;
        }
        if let Some(id) = &id
            && !(is(id, |b| b == b'"' || b == b'-' || b.is_ascii_digit()) && id.len() <= ID_MAX)
        {
            return None;
        }
        let method = match method {
            Some(at) => Some(plain_method(&bytes[at])?),
            None => None,
        };
        let kind = match (&method, &params, &result, &error, &id) {
            (Some(_), _, None, None, None) => Kind::Notification,
            (Some(_), _, None, None, Some(_)) => Kind::Request,
            (None, None, Some(_), None, Some(_)) => Kind::Result,
            (None, None, None, Some(_), Some(_)) => Kind::Error,
            _ => return None,
        };
        if params.as_ref().is_some_and(|at| !is(at, |b| b == b'{' || b == b'[')) {
            return None;
        }
        let (outcome, names_uris) = (result.or(error), reader.uri_key);
        let bytes = Bytes::new();
        Some(Frame { bytes, kind, id, method, params, outcome, index, meta, names_uris })
    }

    fn scan_with_library(bytes: Bytes) -> Result<Frame, FrameError> {
        check_depth(&bytes)?;
        let text = std::str::from_utf8(&bytes).map_err(|e| FrameError::Json(e.to_string()))?;
        if text.starts_with('[') {
            return Err(FrameError::Shape("an array (batch) is not accepted here"));
        }
        let scan: Scan<'_> = serde_json::from_str(text).map_err(|e| {
            if e.is_data() && !e.to_string().contains("duplicate") {
                FrameError::Shape("a message is an object")
            } else {
                FrameError::Json(e.to_string())
            }
        })?;
        if scan.jsonrpc.is_none_or(|v| v.get() != "\"2.0\"") {
            return Err(FrameError::Shape("member \"jsonrpc\" must be \"2.0\""));
        }
        let span = |raw: Option<&RawValue>| raw.map(|r| range_of(&bytes, r.get().as_bytes()));
        let id = scan.id.filter(|r| r.get() != "null");
        if let Some(raw) = id {
            let first = raw.get().as_bytes()[0];
            if first != b'"' && first != b'-' && !first.is_ascii_digit() {
                return Err(FrameError::Shape("member \"id\" must be a string or a number"));
            }
            if raw.get().len() > ID_MAX {
                return Err(FrameError::Shape("member \"id\" is longer than 1024 bytes"));
            }
        }
        let method = scan
            .method
            .map(|raw| serde_json::from_str::<Box<str>>(raw.get()))
            .transpose()
            .map_err(|_| FrameError::Shape("member \"method\" must be a string"))?;
        let kind = match (&method, scan.result, scan.error) {
            (Some(_), None, None) if scan.id.is_none() => Kind::Notification,
            (Some(_), None, None) if id.is_some() => Kind::Request,
            (Some(_), None, None) => {
                return Err(FrameError::Shape("member \"id\" must not be null in a request"));
            }
            (None, Some(_), None) if id.is_some() => Kind::Result,
            (None, Some(_), None) => return Err(FrameError::Shape("a result needs an id")),
            (None, None, Some(_)) => Kind::Error,
            _ => {
                return Err(FrameError::Shape("exactly one of method, result and error is needed"));
            }
        };
        if scan.params.is_some_and(|p| !p.get().starts_with(['{', '['])) {
            return Err(FrameError::Shape("member \"params\" must be an object"));
        }
        Ok(Frame {
            id: span(id),
            params: span(scan.params),
            outcome: span(scan.result.or(scan.error)),
            kind,
            method: method.map(|method| Cow::Owned(method.into())),
            bytes: bytes.clone(),
            index: None,
            meta: None,
            names_uris: true,
        })
    }

    /// What this message is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The whole message as it came.
    pub fn bytes(&self) -> &Bytes {
        &self.bytes
    }

    /// The raw text of the id: `7`, `"7"`, `1.0`. `None` if absent or null.
    pub fn id(&self) -> Option<Bytes> {
        self.id.clone().map(|r| self.bytes.slice(r))
    }

    /// Where the id stands.
    pub fn id_span(&self) -> Option<Range<usize>> {
        self.id.clone()
    }

    /// The method of a request or notification; empty for the others.
    pub fn method(&self) -> &str {
        self.method.as_deref().unwrap_or("")
    }

    /// The raw params.
    pub fn params(&self) -> Option<Bytes> {
        self.params.clone().map(|r| self.bytes.slice(r))
    }

    /// Where the params stand.
    pub fn params_span(&self) -> Option<Range<usize>> {
        self.params.clone()
    }

    /// The raw `result` or `error` of a response; empty for the others.
    pub fn outcome(&self) -> Bytes {
        self.outcome.clone().map_or_else(Bytes::new, |r| self.bytes.slice(r))
    }

    /// Where `result` or `error` stands.
    pub fn outcome_span(&self) -> Option<Range<usize>> {
        self.outcome.clone()
    }

    /// Where the value of a member of the params, the result or the error stands in the message.
    /// Of a member that stands twice, the first.
    pub fn part(&self, key: &str) -> Option<Range<usize>> {
        if let Some(index) = &self.index {
            return index.find(&self.bytes, key);
        }
        let body = self.params.clone().or_else(|| self.outcome.clone())?;
        let raw = &self.bytes[body.clone()];
        let members = walk::members(raw);
        let (_, at) = members.into_iter().find(|(k, _)| walk::says(&raw[k.clone()], key))?;
        Some(at.start + body.start..at.end + body.start)
    }

    /// The raw value of such a member.
    pub fn part_text(&self, key: &str) -> Option<&[u8]> {
        self.part(key).map(|at| &self.bytes[at])
    }

    /// The members of the params, the result or the error, if that is an object with few of them,
    /// each key stands once, and none has an escape: most messages. Places are those in the
    /// message.
    pub fn index(&self) -> Option<&Index> {
        self.index.as_ref()
    }

    /// The members of the `_meta` of what has an [`Frame::index`], if they are as simple.
    pub fn meta_index(&self) -> Option<&Index> {
        self.index.as_ref().and(self.meta.as_ref())
    }

    /// Whether a key stands anywhere in it that may be one of a resource's URI.
    pub fn may_name_uris(&self) -> bool {
        self.names_uris
    }

    /// The same message with another id; nothing else changes. A response that had no id (an
    /// error may lack one) is written anew around its outcome.
    #[must_use]
    pub fn with_id(&self, id: &[u8]) -> Bytes {
        match self.id {
            Some(_) => self.with_id_and(id, []),
            None => response(id, self.kind, &self.outcome()),
        }
    }

    /// A message with another id, and edits elsewhere in it.
    ///
    /// # Panics
    /// If it has no id.
    #[must_use]
    pub fn with_id_and(&self, id: &[u8], edits: impl IntoIterator<Item = Edit>) -> Bytes {
        self.spliced(id, edits).apply(&self.bytes)
    }

    /// The same in two pieces, of which the second is shared with this message; it is empty if
    /// there is not much behind the last edit.
    ///
    /// # Panics
    /// If it has no id.
    pub fn with_id_in_two(
        &self,
        id: &[u8],
        edits: impl IntoIterator<Item = Edit>,
    ) -> (Bytes, Bytes) {
        self.spliced(id, edits).apply_in_two(&self.bytes, SHARED_MIN)
    }

    fn spliced<'a>(&self, id: &'a [u8], edits: impl IntoIterator<Item = Edit>) -> Splice<'a> {
        let mut s = Splice::new();
        s.replace(self.id.clone().expect("it has an id"), id);
        for (at, with) in edits {
            s.replace(at, with);
        }
        s
    }

    /// The same message with edits on its params, whose ranges count from where those begin.
    ///
    /// # Errors
    /// When it is no message any more.
    pub fn edit_params(&self, edits: impl IntoIterator<Item = Edit>) -> Result<Frame, FrameError> {
        self.edit(self.params.as_ref(), edits)
    }

    /// The same with edits on its `result` or `error`.
    ///
    /// # Errors
    /// See [`Frame::edit_params`].
    pub fn edit_outcome(&self, edits: impl IntoIterator<Item = Edit>) -> Result<Frame, FrameError> {
        self.edit(self.outcome.as_ref(), edits)
    }

    fn edit(
        &self,
        part: Option<&Range<usize>>,
        edits: impl IntoIterator<Item = Edit>,
    ) -> Result<Frame, FrameError> {
        let at = part.map_or(0, |part| part.start);
        let shifted = edits.into_iter().map(|(r, with)| (r.start + at..r.end + at, with));
        Frame::scan(edited(&self.bytes, shifted))
    }

    /// The error code, if this is an error response with a readable one.
    pub fn error_code(&self) -> Option<i64> {
        #[derive(Deserialize)]
        struct Code {
            code: i64,
        }
        (self.kind == Kind::Error)
            .then(|| serde_json::from_slice::<Code>(&self.outcome()).ok().map(|c| c.code))
            .flatten()
    }
}

impl fmt::Debug for Frame {
    // Arguments and results are nobody's business in a log: only the shape is shown.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Frame")
            .field("kind", &self.kind)
            .field("method", &self.method())
            .field("len", &self.bytes.len())
            .finish_non_exhaustive()
    }
}

// The method without escapes; one that we know is not copied.
fn plain_method(raw: &[u8]) -> Option<Cow<'static, str>> {
    let [b'"', text @ .., b'"'] = raw else { return None };
    if memchr::memchr(b'\\', text).is_some() {
        return None;
    }
    let text = std::str::from_utf8(text).ok()?;
    Some(match method::METHODS.iter().find(|known| known.name == text) {
        Some(known) => Cow::Borrowed(known.name),
        None => Cow::Owned(text.to_owned()),
    })
}

/// A response around a raw `result` or `error`.
pub fn response(id: &[u8], kind: Kind, outcome: &[u8]) -> Bytes {
    let member: &[u8] = if kind == Kind::Error { b",\"error\":" } else { b",\"result\":" };
    let mut out = BytesMut::with_capacity(outcome.len() + id.len() + 40);
    out.put_slice(b"{\"jsonrpc\":\"2.0\"");
    // A response to something whose id could not be read has none (2025-11-25 and later);
    // older clients, which want `null` there, are served by the edge.
    if !id.is_empty() {
        out.put_slice(b",\"id\":");
        out.put_slice(id);
    }
    out.put_slice(member);
    out.put_slice(outcome);
    out.put_u8(b'}');
    out.freeze()
}

/// An error response.
pub fn error_response(id: &[u8], error: &ErrorObject) -> Bytes {
    response(id, Kind::Error, error.to_raw().get().as_bytes())
}

/// A request (with an id) or a notification (without).
pub fn message(id: Option<&[u8]>, method: &str, params: Option<&[u8]>) -> Bytes {
    let mut out = BytesMut::with_capacity(params.map_or(0, <[u8]>::len) + method.len() + 64);
    out.put_slice(b"{\"jsonrpc\":\"2.0\"");
    if let Some(id) = id {
        out.put_slice(b",\"id\":");
        out.put_slice(id);
    }
    out.put_slice(b",\"method\":");
    out.put_slice(serde_json::to_string(method).expect("a string serialises").as_bytes());
    if let Some(params) = params {
        out.put_slice(b",\"params\":");
        out.put_slice(params);
    }
    out.put_u8(b'}');
    out.freeze()
}

/// The message on one line: raw line breaks can only stand between JSON tokens, so a space does
/// as well. Shared when there are none.
pub fn one_line(bytes: &Bytes) -> Bytes {
    if memchr::memchr2(b'\n', b'\r', bytes).is_none() {
        return bytes.clone();
    }
    bytes.iter().map(|b| if matches!(b, b'\n' | b'\r') { b' ' } else { *b }).collect()
}

fn trim(bytes: Bytes) -> Bytes {
    let mut start = 0;
    if bytes.starts_with(b"\xef\xbb\xbf") {
        start = 3;
    }
    let mut end = bytes.len();
    while start < end && bytes[start].is_ascii_whitespace() {
        start += 1;
    }
    while end > start && bytes[end - 1].is_ascii_whitespace() {
        end -= 1;
    }
    if end - start == bytes.len() { bytes } else { bytes.slice(start..end) }
}

// Skipping a raw value recurses in the JSON reader without its depth limit being of use to what
// we hand on; a peer's parser may recurse too. One pass over the brackets outside strings.
fn check_depth(bytes: &[u8]) -> Result<(), FrameError> {
    let mut depth = 0usize;
    let mut at = 0;
    while let Some(&b) = bytes.get(at) {
        match b {
            b'"' => {
                at += 1;
                loop {
                    match memchr::memchr2(b'"', b'\\', &bytes[at.min(bytes.len())..]) {
                        None => return Ok(()), // unterminated: the reader says so
                        Some(n) if bytes[at + n] == b'"' => {
                            at += n;
                            break;
                        }
                        Some(n) => at += n + 2,
                    }
                }
            }
            b'{' | b'[' => {
                depth += 1;
                if depth > MAX_DEPTH {
                    return Err(FrameError::Json(format!("nested deeper than {MAX_DEPTH} levels")));
                }
            }
            b'}' | b']' => depth = depth.saturating_sub(1),
            _ => {}
        }
        at += 1;
    }
    Ok(())
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn messages() -> impl Strategy<Value = String> {
        let member = proptest::sample::select(vec![
            r#""jsonrpc":"2.0""#,
            r#""jsonrpc":"1.0""#,
            r#""id":1"#,
            r#""id": "a\"b""#,
            r#""id":null"#,
            r#""id":{}"#,
            r#""\u0069d":2"#,
            r#""method":"tools/call""#,
            r#""method":"\u0074""#,
            r#""method":7"#,
            r#""method":"x/y""#,
            r#""params":{"name":"a","_meta":{"uri":1.50}}"#,
            r#""params":{"a":1,"a":2}"#,
            r#""params":[]"#,
            r#""params":3"#,
            r#""params":{"\u0061":1}"#,
            r#""result":{"content":[],"isError":false}"#,
            r#""result":7"#,
            r#""error":{"code":1}"#,
            r#""x":"é""#,
            r#""x":[01]"#,
            r#""y":{"z":null}"#,
        ]);
        let members = proptest::collection::vec(member, 0..6);
        // Most of them with what makes a message.
        (members, any::<bool>(), "[ \n]{0,1}").prop_map(|(mut members, whole, space)| {
            if whole {
                members.push(r#""jsonrpc":"2.0""#);
            }
            format!("{space}{{{space}{}}}{space}", members.join(&format!("{space},")))
        })
    }

    proptest! {
        // The quick way and the library's read the same, or the library decides.
        #[test]
        fn both_ways_of_reading_agree(text in messages()) {
            let bytes = trim(Bytes::from(text.into_bytes()));
            let library = Frame::scan_with_library(bytes.clone());
            let Some(quick) = Frame::quick(&bytes) else {
                return Ok(());
            };
            let quick = Frame { bytes, ..quick };
            let library = library.unwrap();
            prop_assert_eq!(quick.kind(), library.kind());
            prop_assert_eq!(quick.method(), library.method());
            prop_assert_eq!(quick.id(), library.id());
            prop_assert_eq!(quick.params_span(), library.params_span());
            prop_assert_eq!(quick.outcome_span(), library.outcome_span());
            for key in ["name", "_meta", "content", "isError", "a", "code", "nothing"] {
                prop_assert_eq!(quick.part(key), library.part(key), "{}", key);
            }
        }
    }

    #[test]
    fn what_is_plain_is_read_the_quick_way() {
        for (text, indexed) in [
            (r#"{"jsonrpc":"2.0","id":7,"method":"tools/call","params":{"name":"a"}}"#, true),
            (r#"{"jsonrpc":"2.0","id":"é","result":{}}"#, true),
            (r#"{"jsonrpc":"2.0","method":"x"}"#, false),
            (r#"{"jsonrpc":"2.0","id":7,"method":"a","params":{"a":1,"a":2}}"#, false),
        ] {
            let frame = Frame::quick(text.as_bytes()).unwrap();
            assert_eq!(frame.index().is_some(), indexed, "{text}");
        }
        for text in [r#"{"jsonrpc":"2.0","id":7,"\u006dethod":"a"}"#, "{}", "[]"] {
            assert!(Frame::quick(text.as_bytes()).is_none(), "{text}");
        }
    }

    fn scan(text: &str) -> Result<Frame, FrameError> {
        Frame::scan(Bytes::copy_from_slice(text.as_bytes()))
    }

    #[test]
    fn a_request_keeps_its_bytes_and_its_id_text() {
        let f = scan("\u{feff} {\"jsonrpc\":\"2.0\", \"id\": 1.0 ,\"method\":\"tools\\/call\",\"params\":{\"n\":1.10},\"x\":1}\n").unwrap();
        assert_eq!(f.kind(), Kind::Request);
        assert_eq!(&f.id().unwrap()[..], b"1.0");
        assert_eq!(f.method(), "tools/call");
        assert_eq!(&f.params().unwrap()[..], b"{\"n\":1.10}");
        assert_eq!(
            &f.with_id(b"\"a\"")[..],
            b"{\"jsonrpc\":\"2.0\", \"id\": \"a\" ,\"method\":\"tools\\/call\",\"params\":{\"n\":1.10},\"x\":1}"
        );
    }

    #[test]
    fn shapes_that_are_no_message_are_named() {
        for (text, code) in [
            ("{", PARSE_ERROR),
            ("", PARSE_ERROR),
            ("nonsense", PARSE_ERROR),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"id\":2,\"method\":\"a\"}", PARSE_ERROR),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\"} {}", PARSE_ERROR),
            ("[]", INVALID_REQUEST),
            ("3", INVALID_REQUEST),
            ("{\"id\":1,\"method\":\"a\"}", INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":null,\"method\":\"a\"}", INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":{},\"method\":\"a\"}", INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":7}", INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":1}", INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"result\":{},\"error\":{}}", INVALID_REQUEST),
            ("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"params\":3}", INVALID_REQUEST),
        ] {
            assert_eq!(scan(text).unwrap_err().code(), code, "{text}");
        }
    }

    #[test]
    fn an_error_may_lack_its_id() {
        let f =
            scan("{\"jsonrpc\":\"2.0\",\"id\":null,\"error\":{\"code\":-32600,\"message\":\"m\"}}")
                .unwrap();
        assert_eq!((f.kind(), f.id(), f.error_code()), (Kind::Error, None, Some(-32600)));
        let g = Frame::scan(f.with_id(b"9")).unwrap();
        assert_eq!((&g.id().unwrap()[..], g.outcome()), (&b"9"[..], f.outcome()));
    }

    #[test]
    fn deep_nesting_is_refused_without_recursion() {
        let deep = |n: usize| {
            format!(
                "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"params\":{}{}}}",
                "[".repeat(n),
                "]".repeat(n)
            )
        };
        assert!(scan(&deep(MAX_DEPTH - 1)).is_ok());
        assert_eq!(scan(&deep(100_000)).unwrap_err().code(), PARSE_ERROR);
        assert!(
            scan("{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"a\",\"params\":{\"s\":\"[[[\\\"[\"}}")
                .is_ok()
        );
    }

    #[test]
    fn line_breaks_between_tokens_become_spaces() {
        let b = Bytes::from_static(b"{\r\n\"a\":\"x\\ny\"\n}");
        assert_eq!(&one_line(&b)[..], b"{  \"a\":\"x\\ny\" }");
    }
}
