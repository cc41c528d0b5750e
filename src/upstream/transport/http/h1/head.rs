//! The heads of requests and responses (RFC 9112, 3 to 6).

use std::io;
use std::mem::MaybeUninit;

use bytes::{Bytes, BytesMut};
use hyper::header::{
    CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HeaderName, HeaderValue, LOCATION, RETRY_AFTER,
    TRANSFER_ENCODING,
};
use hyper::{HeaderMap, Method, StatusCode, Uri};

use crate::protocol::header::SESSION_ID;
use crate::wire::{Seen, broken};

/// Most headers of a response.
const HEADERS_MAX: usize = 100;
/// Largest head of a response: cookies and security policies may be long, more is no use to us.
const HEAD_MAX: usize = 64 << 10;

/// What is looked at in a response. Other headers are not kept.
#[derive(Debug)]
pub struct Head {
    /// Its status.
    pub status: StatusCode,
    /// Its `Content-Type`, `Location`, `Mcp-Session-Id` and `Retry-After`.
    pub headers: HeaderMap,
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

/// The head of a request, with room for its body.
pub fn request(
    method: &Method,
    uri: &Uri,
    configured: &HeaderMap,
    headers: &[(HeaderName, HeaderValue)],
    body: &Bytes,
) -> BytesMut {
    let mut out = BytesMut::with_capacity(512 + body.len());
    let path = uri.path_and_query().map_or("/", |path| path.as_str());
    let host = uri.authority().map_or("", |authority| authority.as_str());
    for part in [method.as_str(), " ", path, " HTTP/1.1\r\nhost: ", host, "\r\n"] {
        out.extend_from_slice(part.as_bytes());
    }
    let mut line = |name: &HeaderName, value: &[u8]| {
        for part in [name.as_str().as_bytes(), b": ", value, b"\r\n"] {
            out.extend_from_slice(part);
        }
    };
    for (name, value) in configured {
        if !headers.iter().any(|(own, _)| own == name) {
            line(name, value.as_bytes());
        }
    }
    for (at, (name, value)) in headers.iter().enumerate() {
        // Of two with one name the later counts.
        if !headers[at + 1..].iter().any(|(later, _)| later == name) {
            line(name, value.as_bytes());
        }
    }
    if !body.is_empty() || method == Method::POST {
        line(&CONTENT_LENGTH, body.len().to_string().as_bytes());
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
    let mut kept = HeaderMap::new();
    for header in response.headers.iter() {
        let is = |name: &HeaderName| header.name.eq_ignore_ascii_case(name.as_str());
        if is(&CONTENT_LENGTH) {
            seen.length(header.value)?;
        } else if is(&TRANSFER_ENCODING) {
            coding = Some(last(header.value).eq_ignore_ascii_case(b"chunked"));
        } else if is(&CONNECTION) {
            seen.connection(header.value);
        } else if let Some(name) =
            [CONTENT_TYPE, SESSION_ID, RETRY_AFTER, LOCATION].into_iter().find(is)
            && let Ok(value) = HeaderValue::from_bytes(header.value)
        {
            // As hyper's map does, the first one counts where somebody asks for one.
            kept.append(name, value);
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
    Ok(Some((Parsed { head: Head { status, headers: kept }, framing, reusable }, length)))
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
        let mut configured = HeaderMap::new();
        configured.insert("x-team", HeaderValue::from_static("px"));
        configured.insert("mcp-name", HeaderValue::from_static("configured"));
        let name = HeaderName::from_static("mcp-name");
        let own =
            [(name.clone(), HeaderValue::from_static("a")), (name, HeaderValue::from_static("b"))];
        let head = request(&Method::POST, &uri, &configured, &own, &Bytes::from_static(b"{}"));
        insta::assert_snapshot!(String::from_utf8_lossy(&head).replace('\r', ""), @r"
        POST /mcp?key=1 HTTP/1.1
        host: crm.example:8080
        x-team: px
        mcp-name: b
        content-length: 2

        ");
        let head = request(&Method::GET, &uri, &HeaderMap::new(), &[], &Bytes::new());
        assert!(!String::from_utf8_lossy(&head).contains("content-length"));
    }
}
