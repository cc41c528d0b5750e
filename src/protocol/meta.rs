//! Objects as ordered raw members, and the `_meta` of a request.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde::de::{Deserializer, MapAccess, Visitor};
use serde_json::value::RawValue;

use super::json::{self, Index};
use super::message::{Frame, MAX_DEPTH};
use super::revision::Revision;
use super::walk;

/// Keys of `_meta` that the specification reserves (2026-07-28 basic/index, "_meta").
pub mod key {
    /// The caller's token for progress notifications (all revisions).
    pub const PROGRESS_TOKEN: &str = "progressToken";
    /// The revision a request speaks.
    pub const PROTOCOL_VERSION: &str = "io.modelcontextprotocol/protocolVersion";
    /// What the client can be asked for during this request.
    pub const CLIENT_CAPABILITIES: &str = "io.modelcontextprotocol/clientCapabilities";
    /// Who the client says it is; never used for security.
    pub const CLIENT_INFO: &str = "io.modelcontextprotocol/clientInfo";
    /// From which level on the client wants log messages of this request.
    pub const LOG_LEVEL: &str = "io.modelcontextprotocol/logLevel";
    /// Who the server says it is, in results.
    pub const SERVER_INFO: &str = "io.modelcontextprotocol/serverInfo";
    /// Which listen request a notification belongs to.
    pub const SUBSCRIPTION_ID: &str = "io.modelcontextprotocol/subscriptionId";
    /// W3C trace context.
    pub const TRACEPARENT: &str = "traceparent";
    /// Every key of this prefix belongs to the newest revision's request metadata.
    pub const RESERVED_PREFIX: &str = "io.modelcontextprotocol/";
    /// Prefix of our own keys.
    pub const OWN_PREFIX: &str = "io.weirkeeper/";
}

/// The members of one JSON object in their order, values as raw text. A key that stands twice is
/// an error: two readers could disagree on which one counts.
#[derive(Default, Clone)]
pub struct Members<'a>(pub Vec<(Cow<'a, str>, &'a RawValue)>);

impl<'a> Members<'a> {
    /// Read the members of a raw object.
    pub fn read(raw: &'a [u8]) -> Result<Members<'a>, serde_json::Error> {
        serde_json::from_slice(raw)
    }

    /// The raw value of `key`.
    pub fn get(&self, key: &str) -> Option<&'a RawValue> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| *v)
    }

    /// The string value of `key`, if it is one.
    pub fn get_str(&self, key: &str) -> Option<Cow<'a, str>> {
        let raw = self.get(key)?.get();
        // Borrowed where the text has no escapes.
        serde_json::from_str::<CowStr<'a>>(raw).ok().map(|c| c.0)
    }
}

/// The raw value at a path in a raw object. Nothing beside the path is looked at, so a number that
/// no float holds hides nothing.
pub fn at<'a>(raw: &'a [u8], path: &[&str]) -> Option<&'a RawValue> {
    let (first, rest) = path.split_first()?;
    let value = Members::read(raw).ok()?.get(first)?;
    if rest.is_empty() { Some(value) } else { at(value.get().as_bytes(), rest) }
}

/// The raw id that a `notifications/cancelled` names (all revisions, basic/utilities/cancellation).
pub fn cancelled_id(notification: &Frame) -> Option<Bytes> {
    let params = notification.params()?;
    let members = Members::read(&params).ok()?;
    members.get("requestId").map(|id| Bytes::copy_from_slice(id.get().as_bytes()))
}

/// The raw params of a `notifications/cancelled` that names the request of this raw id.
pub fn cancelled_params(id: &[u8]) -> Vec<u8> {
    ObjectWriter::new().raw("requestId", id).finish()
}

struct CowStr<'a>(Cow<'a, str>);

impl<'de> Deserialize<'de> for CowStr<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = CowStr<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a string")
            }
            fn visit_borrowed_str<E>(self, v: &'de str) -> Result<Self::Value, E> {
                Ok(CowStr(Cow::Borrowed(v)))
            }
            fn visit_str<E>(self, v: &str) -> Result<Self::Value, E> {
                Ok(CowStr(Cow::Owned(v.to_owned())))
            }
        }
        d.deserialize_str(V)
    }
}

impl<'de> Deserialize<'de> for Members<'de> {
    fn deserialize<D: Deserializer<'de>>(d: D) -> Result<Self, D::Error> {
        struct V;
        impl<'de> Visitor<'de> for V {
            type Value = Members<'de>;
            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object")
            }
            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Self::Value, A::Error> {
                // Above this many members a quadratic check for doubles would cost; such objects
                // are not addressed by us anyway, so a set is built only then.
                const SMALL: usize = 32;
                let mut out: Vec<(Cow<'de, str>, &'de RawValue)> = Vec::new();
                let mut seen = std::collections::HashSet::new();
                while let Some(k) = map.next_key::<CowStr<'de>>()? {
                    let double = if out.len() < SMALL {
                        out.iter().any(|(o, _)| *o == k.0)
                    } else {
                        if seen.is_empty() {
                            seen.extend(out.iter().map(|(o, _)| o.to_string()));
                        }
                        !seen.insert(k.0.to_string())
                    };
                    if double {
                        return Err(serde::de::Error::custom(format_args!(
                            "duplicate key {:?}",
                            k.0
                        )));
                    }
                    out.push((k.0, map.next_value()?));
                }
                Ok(Members(out))
            }
        }
        d.deserialize_map(V)
    }
}

/// Room for what most objects hold that are written here.
const OBJECT_ROOM: usize = 64;

/// Writes a JSON object member by member from raw parts.
#[derive(Default)]
pub struct ObjectWriter {
    out: Vec<u8>,
}

impl ObjectWriter {
    /// An empty object.
    pub fn new() -> Self {
        let mut out = Vec::with_capacity(OBJECT_ROOM);
        out.push(b'{');
        ObjectWriter { out }
    }

    /// Add a member whose value is raw JSON.
    pub fn raw(&mut self, key: &str, value: &[u8]) -> &mut Self {
        if self.out.len() > 1 {
            self.out.push(b',');
        }
        json::write_string(&mut self.out, key);
        self.out.push(b':');
        self.out.extend_from_slice(value);
        self
    }

    /// Add a member whose value is a string.
    pub fn text(&mut self, key: &str, value: &str) -> &mut Self {
        self.raw(key, b"");
        json::write_string(&mut self.out, value);
        self
    }

    /// Add a member from any serialisable value.
    pub fn value(&mut self, key: &str, value: &impl serde::Serialize) -> &mut Self {
        let raw = serde_json::to_vec(value).expect("our own values serialise");
        self.raw(key, &raw)
    }

    /// The object's text.
    pub fn finish(&mut self) -> Vec<u8> {
        let mut out = std::mem::take(&mut self.out);
        out.push(b'}');
        out
    }
}

/// What the `_meta` of one request says that concerns us; everything else in it travels on.
#[derive(Clone, Default)]
pub struct RequestMeta {
    /// Raw text of the caller's progress token.
    pub progress_token: Option<Box<str>>,
    /// `…/protocolVersion` as text.
    pub protocol_version: Option<Box<str>>,
    /// Raw object of `…/clientCapabilities`.
    pub client_capabilities: Option<Box<str>>,
    /// Raw object of `…/clientInfo`.
    pub client_info: Option<Arc<str>>,
    /// `…/logLevel` as text.
    pub log_level: Option<Box<str>>,
    /// W3C `traceparent`.
    pub traceparent: Option<Box<str>>,
    /// All other members, raw, in order: they are carried on.
    pub rest: Vec<(Box<str>, Box<str>)>,
}

impl RequestMeta {
    /// Read a raw `_meta` object.
    pub fn read(raw: &[u8]) -> Result<RequestMeta, serde_json::Error> {
        if let Some(meta) = RequestMeta::quick(raw) {
            return Ok(meta);
        }
        let members = Members::read(raw)?;
        let mut meta = RequestMeta::default();
        for (k, v) in &members.0 {
            let text = || members.get_str(k).map(|c| Box::from(c.as_ref()));
            let raw = || Some(Box::from(v.get()));
            match k.as_ref() {
                key::PROGRESS_TOKEN => meta.progress_token = raw(),
                key::PROTOCOL_VERSION => meta.protocol_version = text(),
                key::CLIENT_CAPABILITIES => meta.client_capabilities = raw(),
                key::CLIENT_INFO => meta.client_info = Some(v.get().into()),
                key::LOG_LEVEL => meta.log_level = text(),
                key::TRACEPARENT => meta.traceparent = text(),
                other => meta.rest.push((other.into(), v.get().into())),
            }
        }
        Ok(meta)
    }

    /// Read that of a request's params, which must be an object. `None`: it has none.
    pub fn of(frame: &Frame) -> Option<Result<RequestMeta, serde_json::Error>> {
        let place = frame.part("_meta")?;
        let raw = &frame.bytes()[place.clone()];
        let known =
            frame.meta_index().and_then(|index| RequestMeta::known(raw, place.start, index));
        Some(known.map_or_else(|| RequestMeta::read(raw), Ok))
    }

    // The same in one pass, for what is simple.
    fn quick(raw: &[u8]) -> Option<RequestMeta> {
        RequestMeta::known(raw, 0, &json::index(raw, MAX_DEPTH)?)
    }

    // From an index whose places count from `start` bytes before the object.
    fn known(raw: &[u8], start: usize, index: &Index) -> Option<RequestMeta> {
        let all = std::str::from_utf8(raw).ok()?;
        let part = |at: Range<usize>| all.get(at.start - start..at.end - start);
        let mut meta = RequestMeta::default();
        for (k, v) in index.members() {
            let value = part(v.clone())?;
            let text = || walk::string(value.as_bytes()).map(|text| Box::from(&*text));
            match part(k.start + 1..k.end - 1)? {
                key::PROGRESS_TOKEN => meta.progress_token = Some(value.into()),
                key::PROTOCOL_VERSION => meta.protocol_version = text(),
                key::CLIENT_CAPABILITIES => meta.client_capabilities = Some(value.into()),
                key::CLIENT_INFO => meta.client_info = Some(value.into()),
                key::LOG_LEVEL => meta.log_level = text(),
                key::TRACEPARENT => meta.traceparent = text(),
                other => meta.rest.push((other.into(), value.into())),
            }
        }
        Some(meta)
    }

    /// The revision named, if it is one that we know.
    pub fn revision(&self) -> Option<Revision> {
        self.protocol_version.as_deref().and_then(Revision::parse)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn members_keep_order_and_number_text_and_refuse_doubles() {
        let m = Members::read(b"{\"b\":1.10,\"a\":{\"x\":[1e400]},\"\\u0063\":null}").unwrap();
        let keys: Vec<_> = m.0.iter().map(|(k, _)| k.as_ref()).collect();
        assert_eq!(keys, ["b", "a", "c"]);
        assert_eq!(m.get("b").unwrap().get(), "1.10");
        assert!(Members::read(b"{\"a\":1,\"\\u0061\":2}").is_err());
        let many = (0..100).map(|i| format!("\"k{i}\":1,")).collect::<Vec<_>>().concat();
        assert!(Members::read(format!("{{{many}\"k7\":2}}").as_bytes()).is_err());
        assert_eq!(Members::read(format!("{{{many}\"z\":2}}").as_bytes()).unwrap().0.len(), 101);
    }

    #[test]
    fn request_meta_takes_what_is_ours_and_keeps_the_rest() {
        let m = RequestMeta::read(
            br#"{"progressToken":7.0,"io.modelcontextprotocol/protocolVersion":"2026-07-28","x":{"y":1.50}}"#,
        )
        .unwrap();
        assert_eq!(m.progress_token.as_deref(), Some("7.0"));
        assert_eq!(m.revision(), Some(Revision::LATEST));
        assert_eq!(m.rest, [("x".into(), "{\"y\":1.50}".into())]);
    }

    #[test]
    fn written_objects_read_back() {
        let raw = ObjectWriter::new().raw("a\"b", b"1.0").value("c", &"d").finish();
        assert_eq!(raw, br#"{"a\"b":1.0,"c":"d"}"#);
        assert_eq!(ObjectWriter::new().finish(), b"{}");
    }
}
