//! The heads of requests and responses (RFC 9112, 3 to 6).

use std::io;
use std::mem::MaybeUninit;

use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use hyper::{Method, StatusCode, Uri};

use crate::protocol::header::SESSION_ID;
use crate::wire::{Seen, broken, decimal};

/// Most headers of a response.
const HEADERS_MAX: usize = 100;
/// Largest head of a response: cookies and security policies may be long, more is no use to us.
const HEAD_MAX: usize = 64 << 10;

/// One header of a request.
pub type Header = (HeaderName, HeaderValue);

/// What a body claims to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Media {
    /// One message.
    Json,
    /// Messages as events.
    Events,
    /// Nothing is claimed: small servers forget to, so the content decides.
    Unnamed,
    /// Something else.
    Other,
}

/// The media type of a response, whatever its case and parameters (RFC 9110, 8.3.1).
fn media(value: &[u8]) -> Media {
    // As most servers write it.
    match value {
        b"application/json" => return Media::Json,
        b"text/event-stream" => return Media::Events,
        _ => {}
    }
    let value = HeaderValue::from_bytes(value).ok();
    let text = value.as_ref().and_then(|value| value.to_str().ok()).unwrap_or("");
    let essence = text.split(';').next().unwrap_or("").trim();
    if essence.eq_ignore_ascii_case("application/json") {
        Media::Json
    } else if essence.eq_ignore_ascii_case("text/event-stream") {
        Media::Events
    } else {
        Media::Other
    }
}

/// What is looked at in a response. Of several headers with one name the first counts, others are
/// not kept.
#[derive(Clone, Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// What its `Content-Type` says.
    pub media: Media,
    /// Its `Location`.
    pub location: Option<HeaderValue>,
    /// Its `Mcp-Session-Id`, marked sensitive.
    pub session: Option<HeaderValue>,
    /// Its `Retry-After`.
    pub retry_after: Option<HeaderValue>,
}

impl Head {
    /// One that says nothing but its status.
    pub fn new(status: StatusCode) -> Head {
        let (location, session, retry_after) = (None, None, None);
        Head { status, media: Media::Unnamed, location, session, retry_after }
    }

    /// Keep a header, if it is one to look at.
    pub fn keep(&mut self, name: &str, value: &[u8]) {
        let is = |known: &HeaderName| name.eq_ignore_ascii_case(known.as_str());
        if is(&CONTENT_TYPE) {
            if self.media == Media::Unnamed {
                self.media = media(value);
            }
            return;
        }
        let place = if is(&SESSION_ID) {
            &mut self.session
        } else if is(&LOCATION) {
            &mut self.location
        } else if is(&RETRY_AFTER) {
            &mut self.retry_after
        } else {
            return;
        };
        if place.is_none() {
            *place = HeaderValue::from_bytes(value).ok();
        }
        if let Some(session) = &mut self.session {
            session.set_sensitive(true);
        }
    }
}

/// Where a body ends.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// After so many bytes.
    Length(u64),
    /// In chunks, of which the last is empty.
    Chunked,
    /// With the connection.
    UntilClose,
}

/// A response's head, and what follows.
#[derive(Debug)]
pub struct Parsed {
    /// The head.
    pub head: Head,
    /// Where the body ends.
    pub framing: Framing,
    /// The connection can carry another request afterwards.
    pub reusable: bool,
}

/// The head of a request, with room for its body. Of two headers with one name the later counts.
pub fn request(method: &Method, uri: &Uri, headers: &[&[Header]], body: &[u8]) -> Vec<u8> {
    let mut out = Vec::with_capacity(512 + body.len());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    for part in [method.as_str(), " ", path, " HTTP/1.1\r\nhost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    for (at, group) in headers.iter().enumerate() {
        for (place, (name, value)) in group.iter().enumerate() {
            let names = |group: &[Header]| group.iter().any(|(later, _)| later == name);
            if names(&group[place + 1..]) || headers[at + 1..].iter().any(|group| names(group)) {
                continue;
            }
            for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
                out.extend_from_slice(part);
            }
        }
    }
    if !body.is_empty() || method == Method::POST {
        out.extend_from_slice(b"content-length: ");
        decimal(&mut out, body.len() as u64);
        out.extend_from_slice(b"\r\n");
    }
    out.extend_from_slice(b"\r\n");
    out
}

/// The head at the beginning of `bytes`, and its length; `None` while it is not all there.
pub fn parse(bytes: &[u8]) -> io::Result<Option<(Parsed, usize)>> {
    if bytes.is_empty() {
        return Ok(None);
    }
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut response = httparse::Response::new(&mut []);
    let config = httparse::ParserConfig::default();
    let read = config.parse_response_with_uninit_headers(&mut response, bytes, &mut headers);
    let length = match read.map_err(|error| broken(error.to_string()))? {
        httparse::Status::Complete(length) => length,
        httparse::Status::Partial if bytes.len() > HEAD_MAX => {
            return Err(broken("the head of the response is too large"));
        }
        httparse::Status::Partial => return Ok(None),
    };
    let status = response.code.and_then(|code| StatusCode::from_u16(code).ok());
    let status = status.ok_or_else(|| broken("no such status"))?;
    // Nobody asked for another protocol.
    if status == StatusCode::SWITCHING_PROTOCOLS {
        return Err(broken("the upstream switches protocols"));
    }
    let mut seen = Seen::of(response.version == Some(1));
    // Whether the last transfer coding is `chunked`.
    let mut coding = None;
    let mut head = Head::new(status);
    for header in response.headers.iter() {
        let is = |name: &HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&CONTENT_LENGTH) {
            seen.length(header.value)?;
        } else if is(&TRANSFER_ENCODING) {
            coding = Some(last(header.value).eq_ignore_ascii_case(b"chunked"));
        } else if is(&CONNECTION) {
            seen.connection(header.value);
        } else {
            head.keep(header.name, header.value);
        }
    }
    let empty = status.is_informational()
        || matches!(status, StatusCode::NO_CONTENT | StatusCode::NOT_MODIFIED);
    let framing = match (coding, seen.length) {
        _ if empty => Framing::Length(0),
        (Some(true), _) => Framing::Chunked,
        (None, Some(length)) => Framing::Length(length),
        (Some(false), _) | (None, None) => Framing::UntilClose,
    };
    // Two lengths at once are how requests are smuggled; nothing of ours follows on that.
    let ambiguous = coding.is_some() && seen.length.is_some();
    let reusable = seen.alive() && !ambiguous && framing != Framing::UntilClose;
    Ok(Some((Parsed { head, framing, reusable }, length)))
}

fn last(list: &[u8]) -> &[u8] {
    list.rsplit(|b| *b == b',').next().unwrap_or_default().trim_ascii()
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn read(text: &str) -> io::Result<Option<(Parsed, usize)>> {
        parse(text.as_bytes())
    }

    #[test]
    fn where_a_body_ends_is_what_the_head_says() {
        let framed = |head: &str| {
            let text = format!("HTTP/1.1 {head}\r\n\r\nrest");
            let (parsed, length) = read(&text).unwrap().unwrap();
            assert_eq!(&text[length..], "rest");
            (parsed.framing, parsed.reusable)
        };
        use Framing::{Chunked, Length, UntilClose};
        for (head, want) in [
            ("200 OK\r\ncontent-length: 7", (Length(7), true)),
            ("200 OK\r\nContent-Length: 7, 7\r\ncontent-length:7", (Length(7), true)),
            ("200 OK\r\ncontent-length: 7\r\nconnection: close", (Length(7), false)),
            ("200 OK\r\ntransfer-encoding: chunked", (Chunked, true)),
            ("200 OK\r\ntransfer-encoding: gzip, Chunked", (Chunked, true)),
            ("200 OK\r\ntransfer-encoding: chunked\r\ncontent-length: 7", (Chunked, false)),
            ("200 OK\r\ntransfer-encoding: gzip", (UntilClose, false)),
            ("200 OK", (UntilClose, false)),
            ("204 No Content", (Length(0), true)),
            ("304 Not Modified\r\ncontent-length: 7", (Length(0), true)),
            ("200", (UntilClose, false)),
        ] {
            assert_eq!(framed(head), want, "{head}");
        }
        let old = |more: &str| {
            let text = format!("HTTP/1.0 200 OK\r\ncontent-length: 0{more}\r\n\r\n");
            read(&text).unwrap().unwrap().0.reusable
        };
        assert!(!old("") && old("\r\nConnection: Keep-Alive") && !old("\r\nconnection: x, close"));
    }

    #[test]
    fn media_types_are_parsed_and_not_searched() {
        for (value, wanted) in [
            ("application/json", Media::Json),
            ("Application/JSON; charset=utf-8", Media::Json),
            (" text/event-stream ;x=y", Media::Events),
            ("text/html; note=application/json", Media::Other),
            ("application/jsonl", Media::Other),
            ("application/json; x=\u{e9}", Media::Other),
            ("", Media::Other),
        ] {
            assert_eq!(media(value.as_bytes()), wanted, "{value:?}");
        }
    }

    #[test]
    fn what_is_not_clear_is_refused() {
        for head in [
            "200 OK\r\ncontent-length: 7\r\ncontent-length: 8",
            "200 OK\r\ncontent-length: +7",
            "200 OK\r\ncontent-length: ",
            "200 OK\r\ncontent-length: 99999999999999999999",
            "101 Switching Protocols",
            "200 OK\r\nbad header: x",
            "99 Low",
        ] {
            assert!(read(&format!("HTTP/1.1 {head}\r\n\r\n")).is_err(), "{head}");
        }
        assert!(read("SSH-2.0-x\r\n").is_err());
        assert!(read("").unwrap().is_none() && read("HTTP/1.1 200 OK\r\nx: ").unwrap().is_none());
        let long = format!("HTTP/1.1 200 OK\r\nx: {}", "y".repeat(HEAD_MAX));
        assert!(read(&long).is_err());
    }

    #[test]
    fn a_request_says_what_it_is_given_once() {
        let uri: Uri = "http://crm.example:8080/mcp?key=1".parse().unwrap();
        let line = |name, value| (HeaderName::from_static(name), HeaderValue::from_static(value));
        let configured = [line("x-team", "px"), line("mcp-name", "configured")];
        let own = [line("mcp-name", "a"), line("mcp-name", "b")];
        let head = request(&Method::POST, &uri, &[&configured, &[], &own], b"{}");
        insta::assert_snapshot!(String::from_utf8_lossy(&head).replace('\r', ""), @r"
        POST /mcp?key=1 HTTP/1.1
        host: crm.example:8080
        x-team: px
        mcp-name: b
        content-length: 2

        ");
        let head = request(&Method::GET, &uri, &[], b"");
        assert!(!String::from_utf8_lossy(&head).contains("content-length"));
    }
}
