//! The envelope scanner beside a full parse, and what is exchanged in a message beside what is not.

use std::borrow::Cow;
use std::ops::Range;

use bytes::Bytes;
use serde_json::Value;
use serde_json::value::RawValue;

use crate::protocol::address::{AddressError, Parsed, UriHolder, map_uris};
use crate::protocol::error::{INVALID_REQUEST, PARSE_ERROR};
use crate::protocol::exchange::Exchange;
use crate::protocol::form::{to_canonical, to_plain};
use crate::protocol::message::{Frame, Kind, MAX_DEPTH, one_line};
use crate::protocol::meta::{Members, RequestMeta, cancelled_id};
use crate::protocol::method;
use crate::protocol::revision::Revision;
use crate::protocol::walk;

/// Panics if something does not hold for `data`.
pub fn holds(data: &[u8]) {
    let wanted = model(data);
    let frame = match (Frame::scan(Bytes::copy_from_slice(data)), &wanted) {
        (Ok(frame), Ok(_)) => frame,
        (Err(error), Err(why)) => {
            let code = if *why == Why::Shape { INVALID_REQUEST } else { PARSE_ERROR };
            assert!(*why == Why::Either || error.code() == code, "{error}, but {why:?}");
            return;
        }
        (Ok(_), Err(why)) => panic!("accepted what is {why:?}"),
        (Err(error), Ok(_)) => panic!("refused a message: {error}"),
    };
    let wanted = wanted.expect("was looked at");
    let text = std::str::from_utf8(frame.bytes()).expect("a message is text");
    assert_eq!(frame.kind(), wanted.kind);
    assert_eq!(frame.method(), wanted.method.as_deref().unwrap_or(""));
    for (span, member) in [
        (frame.id_span(), wanted.id),
        (frame.params_span(), wanted.params),
        (frame.outcome_span(), wanted.outcome),
    ] {
        // `get` is `None` outside the text and between the bytes of a letter.
        let found = span.map(|span| text.get(span).expect("a span stands on letters"));
        assert_eq!(found, member);
    }
    assert_eq!(frame.id().as_deref(), wanted.id.map(str::as_bytes));
    assert_eq!(frame.params().as_deref(), wanted.params.map(str::as_bytes));
    assert_eq!(&frame.outcome()[..], wanted.outcome.unwrap_or("").as_bytes());

    // Scanned once more it is the same, on one line too.
    assert!(same(&frame, frame.bytes()));
    let line = one_line(frame.bytes());
    assert!(!line.contains(&b'\n') && !line.contains(&b'\r') && line.len() == text.len());
    let lined = Frame::scan(line).expect("a message on one line is one");
    assert_eq!((lined.kind(), lined.method()), (frame.kind(), frame.method()));

    match frame.kind() {
        Kind::Request => request(&frame, text),
        Kind::Notification => {
            cancelled_id(&frame);
        }
        Kind::Result | Kind::Error => response(&frame, text),
    }
    if let Some(params) = wanted.params {
        objects(params);
    }
}

fn same(frame: &Frame, bytes: &Bytes) -> bool {
    Frame::scan(bytes.clone()).is_ok_and(|again| {
        again.bytes() == frame.bytes()
            && again.kind() == frame.kind()
            && again.id_span() == frame.id_span()
            && again.params_span() == frame.params_span()
            && again.outcome_span() == frame.outcome_span()
            && again.method() == frame.method()
    })
}

/// Why bytes are no message.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Why {
    /// Not JSON, or not to be read in one way only.
    Text,
    /// JSON, and no message.
    Shape,
    /// Refused for sure, for whichever reason is seen first.
    Either,
}

/// A message as a full parse sees it.
struct Message<'a> {
    kind: Kind,
    method: Option<String>,
    id: Option<&'a str>,
    params: Option<&'a str>,
    outcome: Option<&'a str>,
}

// The rules in their plainest form: all members by name, then one question after another.
fn model(data: &[u8]) -> Result<Message<'_>, Why> {
    let data = data.strip_prefix(b"\xef\xbb\xbf").unwrap_or(data).trim_ascii();
    let Ok(text) = std::str::from_utf8(data) else { return Err(Why::Text) };
    if !text.starts_with('{') {
        return Err(Why::Either);
    }
    let all: &RawValue = serde_json::from_str(text).map_err(|_| Why::Text)?;
    if depth(all.get()) > MAX_DEPTH {
        return Err(Why::Text);
    }
    let Some(members) = pairs(all.get()) else { return Err(Why::Text) };
    let find = |name: &str| {
        let mut found = members.iter().filter(|(key, _)| key == name).map(|(_, v)| v.get());
        let first = found.next();
        if found.next().is_some() { Err(Why::Text) } else { Ok(first) }
    };
    let (version, id, method) = (find("jsonrpc")?, find("id")?, find("method")?);
    let (params, result, error) = (find("params")?, find("result")?, find("error")?);
    if version != Some("\"2.0\"") {
        return Err(Why::Shape);
    }
    if id.is_some_and(|id| id.len() > 1024 || id.starts_with(['{', '[', 't', 'f'])) {
        return Err(Why::Shape);
    }
    let (null, id) = (id == Some("null"), id.filter(|id| *id != "null"));
    let kind = match (method, result, error) {
        (Some(_), None, None) if id.is_some() => Kind::Request,
        (Some(_), None, None) if !null => Kind::Notification,
        (None, Some(_), None) if id.is_some() => Kind::Result,
        (None, None, Some(_)) => Kind::Error,
        _ => return Err(Why::Shape),
    };
    let method = method.map(serde_json::from_str).transpose().map_err(|_| Why::Shape)?;
    if params.is_some_and(|p| !p.starts_with('{') && !p.starts_with('[')) {
        return Err(Why::Shape);
    }
    Ok(Message { kind, method, id, params, outcome: result.or(error) })
}

// How deep arrays and objects are nested in valid JSON.
fn depth(json: &str) -> usize {
    let (mut depth, mut most, mut quoted, mut escaped) = (0, 0, false, false);
    for c in json.chars() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            '"' => quoted = !quoted,
            '{' | '[' if !quoted => depth += 1,
            '}' | ']' if !quoted => depth -= 1,
            _ => {}
        }
        most = most.max(depth);
    }
    most
}

type Pair<'a> = (String, &'a RawValue);

// All members of an object in their order, doubles too; `None` if it is none.
fn pairs(json: &str) -> Option<Vec<Pair<'_>>> {
    struct Pairs<'a>(Vec<Pair<'a>>);
    struct Visit;
    impl<'de> serde::de::Visitor<'de> for Visit {
        type Value = Pairs<'de>;
        fn expecting(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            f.write_str("an object")
        }
        fn visit_map<A: serde::de::MapAccess<'de>>(
            self,
            mut map: A,
        ) -> Result<Pairs<'de>, A::Error> {
            let mut out = Vec::new();
            while let Some(pair) = map.next_entry()? {
                out.push(pair);
            }
            Ok(Pairs(out))
        }
    }
    impl<'de> serde::Deserialize<'de> for Pairs<'de> {
        fn deserialize<D: serde::Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
            d.deserialize_map(Visit)
        }
    }
    serde_json::from_str::<Pairs<'_>>(json).ok().map(|p| p.0)
}

fn doubled(pairs: &[Pair<'_>]) -> bool {
    pairs.iter().enumerate().any(|(n, (key, _))| pairs[..n].iter().any(|(other, _)| other == key))
}

/// The text with some ranges replaced: put together from the right, so that places stay true.
fn replaced(text: &str, mut edits: Vec<(Range<usize>, Cow<'_, str>)>) -> String {
    edits.sort_by_key(|(range, _)| (range.start, range.end));
    let mut out = text.to_owned();
    for (range, with) in edits.into_iter().rev() {
        out.replace_range(range, &with);
    }
    out
}

// The readers of objects agree with one another and with the full parse.
fn objects(raw: &str) {
    let members = Members::read(raw.as_bytes());
    let Some(pairs) = pairs(raw) else {
        assert!(members.is_err(), "members of what is no object");
        return;
    };
    let walked = walk::members(raw.as_bytes());
    assert_eq!(walked.len(), pairs.len());
    for ((key, value), (name, text)) in walked.iter().zip(&pairs) {
        assert!(walk::says(&raw.as_bytes()[key.clone()], name));
        assert_eq!(raw.get(value.clone()), Some(text.get()));
    }
    let Ok(members) = members else {
        assert!(doubled(&pairs), "members that stand once were refused");
        return;
    };
    assert!(!doubled(&pairs), "a key that stands twice was accepted");
    for ((key, value), (name, text)) in members.0.iter().zip(&pairs) {
        assert_eq!((key.as_ref(), value.get()), (name.as_str(), text.get()));
        let said = serde_json::from_str::<String>(text.get()).ok();
        assert_eq!(members.get_str(name).as_deref(), said.as_deref());
    }
    if let Some(meta) = members.get("_meta") {
        // Nothing in it is lost: what is not known is carried on.
        if let (Ok(read), Some(inner)) =
            (RequestMeta::read(meta.get().as_bytes()), self::pairs(meta.get()))
        {
            for (key, value) in &read.rest {
                assert!(inner.iter().any(|(k, v)| **k == **key && v.get() == &**value));
            }
            assert!(read.rest.len() <= inner.len() && inner.len() <= read.rest.len() + 6);
        }
    }
}

const NEW_ID: &str = "4294967296";
const NEW_NAME: &str = "a \"quoted\" \\ name ü";

// Each way in which a request is sent on, for each method that has an address.
fn request(frame: &Frame, text: &str) {
    let id = frame.id_span().expect("a request has an id");
    let with_id = frame.with_id(NEW_ID.as_bytes());
    assert_eq!(with_id, replaced(text, vec![(id.clone(), NEW_ID.into())]));
    assert_eq!(
        Frame::scan(with_id).expect("still a message").id().as_deref(),
        Some(NEW_ID.as_bytes())
    );

    let named = [Revision::LATEST, Revision::LATEST_LEGACY]
        .into_iter()
        .find_map(|revision| method::find(frame.method(), revision));
    let spare = ["ping", "tools/call", "completion/complete"]
        .into_iter()
        .filter_map(|name| method::find(name, Revision::LATEST_LEGACY));
    let params = frame.params_span().map(|span| &text[span]);
    for method in spare.chain(named) {
        let parsed = match Parsed::read(method, params.map(str::as_bytes)) {
            Ok(parsed) => parsed,
            Err(AddressError::Object("params", _)) => {
                let all = params.and_then(pairs);
                assert!(all.is_none_or(|all| doubled(&all)), "the params could be read");
                continue;
            }
            Err(_) => continue,
        };
        if let Some(address) = &parsed.address {
            let raw = params.expect("an address stands in params");
            let raw = raw.get(address.span.clone()).expect("an address stands on letters");
            assert_eq!(serde_json::from_str::<String>(raw).ok().as_deref(), Some(&*address.value));
        }
        let answers = [("inputResponses", Bytes::from_static(b"{\"q\":{\"n\":1.50}}"))];
        for meta in ["{}", "{\"progressToken\":1.0}"] {
            for answers in [&[][..], &answers[..]] {
                exchanged(frame, text, &parsed, meta, answers);
            }
        }
    }
}

fn exchanged(
    frame: &Frame,
    text: &str,
    parsed: &Parsed,
    meta: &str,
    answers: &[(&'static str, Bytes)],
) {
    let exchange = Exchange {
        native: NEW_NAME,
        id: NEW_ID.as_bytes(),
        meta: meta.as_bytes(),
        unknown: &[],
        more: answers,
        edit: None,
    };
    let sent = Frame::scan(exchange.apply(frame, parsed)).expect("what is sent on is a message");
    assert_eq!((sent.kind(), sent.method()), (Kind::Request, frame.method()));
    assert_eq!(sent.id().as_deref(), Some(NEW_ID.as_bytes()));
    let sent_text = std::str::from_utf8(sent.bytes()).expect("a message is text");
    let Some(params) = frame.params_span() else {
        let made = sent.params().expect("params were made");
        let made = std::str::from_utf8(&made).expect("params are text");
        let made: Vec<_> = pairs(made).expect("made params are an object");
        assert_eq!(made[0].1.get(), meta);
        assert_eq!(made.len(), 1 + answers.len());
        return;
    };
    // Two parts that are known to differ, and every other byte as it was.
    let name = serde_json::to_string(NEW_NAME).expect("a string serialises");
    let shift = |r: &Range<usize>| r.start + params.start..r.end + params.start;
    let mut edits: Vec<(Range<usize>, Cow<'_, str>)> = Vec::new();
    edits.push((frame.id_span().expect("a request has an id"), NEW_ID.into()));
    if let Some(address) = &parsed.address {
        edits.push((shift(&address.span), name.as_str().into()));
    }
    let mut more: Vec<String> = Vec::new();
    for (key, value) in answers {
        more.push(format!("\"{key}\":{}", std::str::from_utf8(value).expect("ours is text")));
    }
    match &parsed.meta {
        Some(span) => edits.push((shift(span), meta.into())),
        None if meta == "{}" => {}
        None => more.push(format!("\"_meta\":{meta}")),
    }
    let old = pairs(&text[params.clone()]).expect("params that were addressed are an object");
    if !more.is_empty() {
        let comma = if old.is_empty() { "" } else { "," };
        let begin = params.start + 1;
        edits.push((begin..begin, format!("{}{comma}", more.join(",")).into()));
    }
    assert_eq!(sent_text, replaced(text, edits));
    // Read again, each member is what it was or what was put there.
    let new = pairs(&sent_text[sent.params_span().expect("params stay")]).expect("still an object");
    assert_eq!(new.len(), old.len() + more.len());
    for ((key, value), (was_key, was)) in new[more.len()..].iter().zip(&old) {
        assert_eq!(key, was_key);
        let touched = key == "_meta"
            || parsed.address.is_some() && ["name", "uri", "ref"].contains(&key.as_str());
        assert!(touched || value.get() == was.get(), "{key} was touched");
    }
}

fn response(frame: &Frame, text: &str) {
    let answered = frame.with_id(b"\"new\"");
    if let Some(id) = frame.id_span() {
        assert_eq!(answered, replaced(text, vec![(id, "\"new\"".into())]));
    }
    let answered = Frame::scan(answered).expect("with another id it is still a message");
    assert_eq!(answered.id().as_deref(), Some(b"\"new\"".as_slice()));
    assert_eq!((answered.kind(), answered.outcome()), (frame.kind(), frame.outcome()));
    if frame.kind() == Kind::Error {
        let full: Option<Value> = serde_json::from_slice(&frame.outcome()).ok();
        let code = full.as_ref().and_then(|v| v.get("code")).and_then(Value::as_i64);
        // What cannot be read in full, or says its code twice, has none for the scanner or one.
        if let (Some(code), Some(found)) = (code, frame.error_code()) {
            assert_eq!(code, found);
        }
        return;
    }
    let result = frame.outcome();
    let result_text = std::str::from_utf8(&result).expect("a result is text");
    forms(&result, result_text);
    for holder in [UriHolder::ToolResult, UriHolder::PromptResult, UriHolder::ReadResult] {
        assert_eq!(map_uris(holder, &result, &|_| None), result, "nothing was to be exchanged");
        let mapped = map_uris(holder, &result, &|uri| Some(format!("up+{uri}")));
        valid(&mapped);
        // What is read as text afterwards has as many letters more as prefixes were put there.
        assert!(mapped.len() >= result.len() || result.contains(&b'\\'));
    }
}

// A result in the words of either era says the same beside the three members that differ.
fn forms(result: &Bytes, text: &str) {
    for cacheable in [true, false] {
        let canonical = to_canonical(result, cacheable);
        valid(&canonical);
        assert_eq!(to_canonical(&canonical, cacheable), canonical, "twice is once");
        let plain = to_plain(&canonical);
        valid(&plain);
        assert_eq!(to_plain(&plain), plain, "twice is once");
        let (Some(old), Ok(new)) = (pairs(text), std::str::from_utf8(&plain)) else { continue };
        let kept = |(key, _): &&Pair<'_>| !["resultType", "ttlMs", "cacheScope"].contains(&&**key);
        let rest: Vec<_> = old.iter().filter(kept).map(|(k, v)| (k.as_str(), v.get())).collect();
        let new = pairs(new).expect("an object stays one");
        let new: Vec<_> = new.iter().map(|(k, v)| (k.as_str(), v.get())).collect();
        assert_eq!(new, rest);
    }
}

fn valid(json: &[u8]) {
    assert!(serde_json::from_slice::<&RawValue>(json).is_ok(), "no longer JSON");
}
