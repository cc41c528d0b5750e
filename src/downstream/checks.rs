//! What is checked of an HTTP request before its message counts.

use std::net::{IpAddr, SocketAddr};

use hyper::Version;
use hyper::header::{ACCEPT, AUTHORIZATION, CONTENT_TYPE, HOST, HeaderName, ORIGIN};

use crate::config::Gateway as Settings;
use crate::failure::Reason;
use crate::protocol::header;
use crate::protocol::message::Frame;
use crate::protocol::meta::{Members, RequestMeta};
use crate::protocol::walk;

use super::headers::{Head, Headers, visible};
use super::refused::Refused;

/// Whether `Host` (or the authority of HTTP/2) is ours (any revision, "DNS rebinding").
pub fn host(settings: &Settings, headers: &Headers, authority: Option<&str>) -> bool {
    host_at(&settings.allowed_hosts, settings.listen.ip(), headers, authority)
}

/// The same for a listener at `ip` that has these names besides.
pub fn host_at(allowed: &[String], ip: IpAddr, headers: &Headers, authority: Option<&str>) -> bool {
    // Twice: two readers could disagree on which one counts (RFC 9112, section 3.2).
    let Ok(host) = single(headers, &HOST) else { return false };
    let Some(host) = host.or(authority) else { return false };
    let name = host_name(host);
    if allowed.iter().any(|a| a == "*" || a.eq_ignore_ascii_case(name)) {
        return true;
    }
    if is_loopback_name(name) {
        return ip.is_loopback() || ip.is_unspecified();
    }
    name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|named| named == ip)
}

/// Whether `Origin` is allowed; none comes from no browser.
pub fn origin(settings: &Settings, headers: &Headers) -> bool {
    let Some(origin) = headers.get(&ORIGIN) else { return true };
    let Some(origin) = visible(origin) else { return false };
    if settings.allowed_origins.iter().any(|a| a == "*" || a.eq_ignore_ascii_case(origin)) {
        return true;
    }
    let Some((_, rest)) = origin.split_once("://") else { return false };
    settings.listen.ip().is_loopback() && is_loopback_name(host_name(rest))
}

fn host_name(host: &str) -> &str {
    if let Some(end) = host.find(']') {
        return &host[..=end];
    }
    host.rsplit_once(':').map_or(host, |(name, _)| name)
}

fn is_loopback_name(name: &str) -> bool {
    name.eq_ignore_ascii_case("localhost")
        || name.trim_matches(['[', ']']).parse::<IpAddr>().is_ok_and(|ip| ip.is_loopback())
}

/// The key a caller presents.
pub fn key(headers: &Headers) -> Option<&str> {
    if let Some(value) = headers.get(&AUTHORIZATION) {
        let (scheme, key) = visible(value)?.split_once(' ')?;
        return scheme.eq_ignore_ascii_case("bearer").then(|| key.trim());
    }
    headers.text(&header::API_KEY).map(str::trim)
}

/// Whether the media type is JSON, whatever its parameters.
pub fn is_json(headers: &Headers) -> bool {
    let Some(value) = headers.get(&CONTENT_TYPE) else { return false };
    // As nearly all clients write it.
    value == b"application/json"
        || visible(value)
            .and_then(|text| text.split(';').next())
            .is_some_and(|t| t.trim().eq_ignore_ascii_case("application/json"))
}

/// What the client accepts. A missing header accepts all.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Accepts {
    /// `application/json`
    pub json: bool,
    /// `text/event-stream`
    pub events: bool,
    /// A body of no known length, whose end can be told from its being broken off. HTTP/1.0 has
    /// none.
    pub pieces: bool,
}

/// Read all `Accept` lines, with wildcards; `q=0` means no.
pub fn accepts(version: Version, headers: &Headers) -> Accepts {
    let pieces = version >= Version::HTTP_11;
    let mut out = Accepts { json: false, events: false, pieces };
    let mut any = false;
    for line in headers.get_all(&ACCEPT) {
        // As the protocol's own clients write it.
        if line == b"application/json, text/event-stream" {
            return Accepts { json: true, events: true, pieces };
        }
        let Some(line) = visible(line) else { continue };
        for part in line.split(',') {
            any = true;
            let mut pieces = part.split(';').map(str::trim);
            let kind = pieces.next().unwrap_or("").to_ascii_lowercase();
            let refused = pieces.any(|p| {
                p.strip_prefix("q=").and_then(|q| q.parse::<f32>().ok()).is_some_and(|q| q <= 0.0)
            });
            if refused {
                continue;
            }
            out.json |= matches!(kind.as_str(), "*/*" | "application/*" | "application/json");
            out.events |= matches!(kind.as_str(), "*/*" | "text/*" | "text/event-stream");
        }
    }
    if any { out } else { Accepts { json: true, events: true, pieces } }
}

/// Whether an address may call without a key: only this machine.
pub fn is_local(peer: &SocketAddr) -> bool {
    peer.ip().to_canonical().is_loopback()
}

/// A header stands twice, or is not text.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct NotSingle;

/// The single value of a header; an error if it stands twice or is not text.
pub fn single<'a>(headers: &'a Headers, name: &HeaderName) -> Result<Option<&'a str>, NotSingle> {
    let mut all = headers.get_all(name);
    match (all.next(), all.next()) {
        (None, _) => Ok(None),
        (Some(v), None) => visible(v).map(|v| Some(v.trim_ascii())).ok_or(NotSingle),
        _ => Err(NotSingle),
    }
}

/// What the headers of a `POST` say to whoever serves it, whatever its body says.
pub struct Told {
    /// `Accept`
    pub accepts: Accepts,
    /// Whether the body is said to be JSON.
    pub is_json: bool,
    /// Whether there is an `Origin`.
    pub has_origin: bool,
    /// Whether there is a `traceparent`.
    pub is_traced: bool,
    /// `MCP-Protocol-Version`
    pub version: Result<Option<Box<str>>, NotSingle>,
    /// `Mcp-Session-Id`, if it can be read.
    pub session: Option<Box<str>>,
}

impl Told {
    /// Look at all of them.
    pub fn of(head: &Head) -> Told {
        let headers = &head.headers;
        let text = |name| single(headers, name).map(|text| text.map(Box::from));
        Told {
            accepts: accepts(head.version, headers),
            is_json: is_json(headers),
            has_origin: headers.contains(&ORIGIN),
            is_traced: headers.contains(&header::TRACEPARENT),
            version: text(&header::PROTOCOL_VERSION),
            session: text(&header::SESSION_ID).ok().flatten(),
        }
    }
}

pub(super) fn mismatch(text: impl Into<String>) -> Refused {
    Refused::new(Reason::HeaderMismatch, text)
}

/// The version header of a modern request equals its body's
/// (2026-07-28 basic/transports/streamable-http).
pub fn version(headers: &Headers, meta: &RequestMeta) -> Result<(), Refused> {
    match single(headers, &header::PROTOCOL_VERSION) {
        Ok(Some(v)) if Some(v) == meta.protocol_version.as_deref() => Ok(()),
        Ok(None) => Err(mismatch("the header MCP-Protocol-Version is missing")),
        _ => Err(mismatch("the header MCP-Protocol-Version differs from params._meta")),
    }
}

/// `Mcp-Method` and `Mcp-Name` mirror the body (2026-07-28 basic/transports/streamable-http).
/// Returns what the body names, if it names something and that can be read.
pub fn mirrored(headers: &Headers, frame: &Frame) -> Result<Option<String>, Refused> {
    match single(headers, &header::METHOD) {
        Ok(Some(v)) if v == frame.method() => {}
        Ok(None) => return Err(mismatch("the header Mcp-Method is missing")),
        _ => return Err(mismatch("the header Mcp-Method differs from the body's method")),
    }
    let field = match frame.method() {
        "tools/call" | "prompts/get" => "name",
        "resources/read" => "uri",
        "tasks/get" | "tasks/update" | "tasks/cancel" => "taskId",
        _ => return Ok(None),
    };
    let body = if frame.index().is_some() {
        frame.part_text(field).and_then(walk::string).map(std::borrow::Cow::into_owned)
    } else {
        let params = frame.params().unwrap_or_default();
        let members = Members::read(&params).ok();
        members.and_then(|m| m.get_str(field).map(std::borrow::Cow::into_owned))
    };
    // Without a readable name the params are wrong, and that is said later.
    let Some(body) = body else { return Ok(None) };
    match single(headers, &header::NAME) {
        Ok(Some(v)) => match header::decode(v) {
            Some(name) if name == body => Ok(Some(body)),
            Some(_) => Err(mismatch(format!("the header Mcp-Name differs from params.{field}"))),
            None => Err(mismatch("the header Mcp-Name has a bad base64 value")),
        },
        Ok(None) => Err(mismatch("the header Mcp-Name is missing")),
        Err(NotSingle) => Err(mismatch("the header Mcp-Name stands twice or is not text")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> Headers {
        pairs.iter().map(|(name, value)| (*name, value.as_bytes())).collect()
    }

    #[test]
    fn accept_is_parsed_and_not_searched() {
        let a = |v: &[&str]| {
            let pairs: Vec<_> = v.iter().map(|v| ("accept", *v)).collect();
            accepts(Version::HTTP_11, &headers(&pairs))
        };
        assert!(!accepts(Version::HTTP_10, &headers(&[])).pieces);
        assert_eq!(a(&[]), Accepts { json: true, events: true, pieces: true });
        assert_eq!(a(&["*/*"]), Accepts { json: true, events: true, pieces: true });
        assert_eq!(
            a(&["application/json;q=0.9", "Text/Event-Stream"]),
            Accepts { json: true, events: true, pieces: true }
        );
        assert_eq!(
            a(&["text/event-stream;q=0, application/json"]),
            Accepts { json: true, events: false, pieces: true }
        );
        assert_eq!(a(&["text/html"]), Accepts { json: false, events: false, pieces: true });
        assert_eq!(
            a(&["application/json-seq"]),
            Accepts { json: false, events: false, pieces: true }
        );
    }

    #[test]
    fn json_is_a_media_type_with_or_without_parameters() {
        for (v, yes) in [
            ("application/json", true),
            ("Application/JSON; charset=utf-8", true),
            ("text/plain", false),
            ("application/jsonp", false),
        ] {
            assert_eq!(is_json(&headers(&[("content-type", v)])), yes, "{v}");
        }
    }

    #[test]
    fn keys_come_in_two_headers() {
        assert_eq!(key(&headers(&[("authorization", "Bearer k")])), Some("k"));
        assert_eq!(key(&headers(&[("authorization", "bearer  k ")])), Some("k"));
        assert_eq!(key(&headers(&[("authorization", "Basic k")])), None);
        assert_eq!(key(&headers(&[("x-api-key", "k")])), Some("k"));
        assert_eq!(key(&headers(&[])), None);
    }
}
