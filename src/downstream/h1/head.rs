//! The heads of requests and responses (RFC 9112, 3 to 6).

use std::cell::RefCell;
use std::io::Write as _;
use std::mem::MaybeUninit;
use std::sync::{Arc, LazyLock};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use bytes::Bytes;
use hyper::{HeaderMap, Method, StatusCode, Uri, Version};

use crate::wire::{Left, Seen, decimal};

use super::super::headers::{Head, Headers};
use super::super::http::PATH;

/// Most headers of a request, as many as hyper takes: clients send a dozen.
pub const HEADERS_MAX: usize = 100;
/// Largest head of a request: room for the cookies of a browser and a long key, eight times what
/// common servers take.
pub const HEAD_MAX: usize = 64 << 10;

/// Why a head is refused: the status, and a sentence.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Wrong {
    /// HTTP status.
    pub status: u16,
    /// What is wrong.
    pub text: &'static str,
}

const fn wrong(status: u16, text: &'static str) -> Wrong {
    Wrong { status, text }
}

/// A request's head, and what follows.
#[derive(Debug)]
pub struct Parsed {
    /// The request without its body.
    pub head: Arc<Head>,
    /// Where the body ends.
    pub left: Left,
    /// The client wants the connection to go on.
    pub keep: bool,
    /// The client waits for `100 Continue` before it sends the body.
    pub expects: bool,
    /// The client would speak another protocol afterwards.
    pub upgrades: bool,
}

/// The head at the beginning of `bytes`, and its length; `None` while it is not all there. Values
/// are slices of `bytes`.
///
/// # Errors
/// What is no request, is framed in two ways or one that is not known, or is too large.
pub fn parse(bytes: &Bytes) -> Result<Option<(Parsed, usize)>, Wrong> {
    let mut headers = [const { MaybeUninit::uninit() }; HEADERS_MAX];
    let mut request = httparse::Request::new(&mut []);
    let length = match request.parse_with_uninit_headers(bytes, &mut headers) {
        Ok(httparse::Status::Complete(length)) if length > HEAD_MAX => return Err(too_large()),
        Ok(httparse::Status::Complete(length)) => length,
        Ok(httparse::Status::Partial) if bytes.len() > HEAD_MAX => return Err(too_large()),
        Ok(httparse::Status::Partial) => return Ok(None),
        Err(httparse::Error::TooManyHeaders) => return Err(too_large()),
        Err(httparse::Error::Version) => {
            return Err(wrong(505, "HTTP/1.0, HTTP/1.1 and HTTP/2 are served here"));
        }
        Err(_) => return Err(wrong(400, "this is no HTTP request")),
    };
    let is_new = request.version == Some(1);
    let mut seen = Seen::of(is_new);
    let mut chunked = false;
    let (mut expects, mut upgrades) = (false, false);
    for line in request.headers.iter() {
        let is = |name: &str| line.name.eq_ignore_ascii_case(name);
        if is("content-length") {
            seen.length(line.value)
                .map_err(|_| wrong(400, "Content-Length is not valid, or not one"))?;
        } else if is("transfer-encoding") {
            // Only the one that everybody reads alike, and said once.
            let coding = line.value.trim_ascii();
            if chunked || coding.rsplit(|b| *b == b',').next().is_none_or(is_not_chunked) {
                return Err(wrong(400, "Transfer-Encoding must be chunked"));
            }
            if is_not_chunked(coding) {
                return Err(wrong(501, "no Transfer-Encoding but chunked is served here"));
            }
            chunked = true;
        } else if is("connection") {
            seen.connection(line.value);
        } else if is("expect") {
            expects = is_new && line.value.eq_ignore_ascii_case(b"100-continue");
        } else if is("upgrade") {
            upgrades = is_new;
        }
    }
    // Two ways to tell the end are how requests are smuggled (RFC 9112, 6.1); HTTP/1.0 has one.
    if chunked && (seen.length.is_some() || !is_new) {
        return Err(wrong(400, "Transfer-Encoding goes with HTTP/1.1 and without Content-Length"));
    }
    let left = match seen.length {
        _ if chunked => Left::Size,
        None | Some(0) => Left::Nothing,
        Some(length) => Left::Length(length),
    };
    let method = request.method.unwrap_or_default();
    let method =
        Method::from_bytes(method.as_bytes()).map_err(|_| wrong(400, "the method is not valid"))?;
    let head = Head {
        method,
        uri: uri(bytes, request.path.unwrap_or_default())?,
        version: if is_new { Version::HTTP_11 } else { Version::HTTP_10 },
        headers: Headers::of(bytes, request.headers.iter().map(|line| (line.name, line.value))),
        extensions: hyper::http::Extensions::new(),
        is_kept: false,
    };
    let (head, expects) = (Arc::new(head), expects && !left.is_over());
    Ok(Some((Parsed { head, left, keep: seen.alive(), expects, upgrades }, length)))
}

fn too_large() -> Wrong {
    wrong(431, "the request's head is too large: 100 headers and 64 KiB are taken")
}

fn is_not_chunked(coding: &[u8]) -> bool {
    !coding.trim_ascii().eq_ignore_ascii_case(b"chunked")
}

fn uri(bytes: &Bytes, target: &str) -> Result<Uri, Wrong> {
    // Nearly all requests are for one target, which need not be read again each time.
    static ENDPOINT: LazyLock<Uri> = LazyLock::new(|| Uri::from_static(PATH));
    if target == PATH {
        return Ok(ENDPOINT.clone());
    }
    Uri::from_maybe_shared(bytes.slice_ref(target.as_bytes()))
        .map_err(|_| wrong(400, "the request's target is not valid"))
}

/// How a response's body is sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Sends {
    /// So many bytes in all.
    Length(u64),
    /// In chunks.
    Chunks,
    /// Until the connection ends.
    UntilClose,
    /// The head says so much, and no body follows: an answer to `HEAD`.
    HeadOnly(Option<u64>),
    /// Neither body nor length: 204, 304, 101.
    Nothing,
}

/// Write a response's head. The headers are those of a map, and lines that are written already.
pub fn write(
    out: &mut Vec<u8>,
    version: Version,
    status: StatusCode,
    (headers, besides): (&HeaderMap, &[u8]),
    sends: Sends,
    keep: bool,
) {
    let is_new = version != Version::HTTP_10;
    if status == StatusCode::OK && is_new {
        out.extend_from_slice(b"HTTP/1.1 200 OK\r\n");
    } else {
        out.extend_from_slice(if is_new { b"HTTP/1.1 " } else { b"HTTP/1.0 " });
        let reason = status.canonical_reason().unwrap_or("");
        for part in [status.as_str(), " ", reason, "\r\n"] {
            out.extend_from_slice(part.as_bytes());
        }
    }
    for (name, value) in headers {
        for part in [name.as_str().as_bytes(), b": ", value.as_bytes(), b"\r\n"] {
            out.extend_from_slice(part);
        }
    }
    out.extend_from_slice(besides);
    match sends {
        Sends::Length(length) | Sends::HeadOnly(Some(length)) => {
            out.extend_from_slice(b"content-length: ");
            decimal(out, length);
            out.extend_from_slice(b"\r\n");
        }
        Sends::Chunks => out.extend_from_slice(b"transfer-encoding: chunked\r\n"),
        Sends::UntilClose | Sends::HeadOnly(None) | Sends::Nothing => {}
    }
    if status != StatusCode::SWITCHING_PROTOCOLS {
        match (is_new, keep) {
            (true, true) | (false, false) => {}
            (true, false) => out.extend_from_slice(b"connection: close\r\n"),
            (false, true) => out.extend_from_slice(b"connection: keep-alive\r\n"),
        }
    }
    date(out);
    out.extend_from_slice(b"\r\n");
}

/// Write the line that says how long a chunk is.
pub fn chunk(out: &mut Vec<u8>, length: usize) {
    let _ = write!(out, "{length:x}\r\n");
}

// RFC 9110, 6.6.1. Made once a second on each thread.
fn date(out: &mut Vec<u8>) {
    thread_local! {
        static LINE: RefCell<(u64, Vec<u8>)> = const { RefCell::new((0, Vec::new())) };
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs());
    LINE.with_borrow_mut(|(second, line)| {
        if *second != now || line.is_empty() {
            *second = now;
            let time = UNIX_EPOCH + Duration::from_secs(now);
            *line = format!("date: {}\r\n", httpdate::fmt_http_date(time)).into_bytes();
        }
        out.extend_from_slice(line);
    });
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use crate::protocol::header;
    use hyper::header::{HeaderName, HeaderValue};

    fn read(text: &str) -> Result<Option<(Parsed, usize)>, Wrong> {
        parse(&Bytes::copy_from_slice(text.as_bytes()))
    }

    fn status(head: &str) -> u16 {
        match read(&format!("{head}\r\n\r\n")) {
            Ok(Some(_)) => 200,
            Ok(None) => 100,
            Err(wrong) => wrong.status,
        }
    }

    #[test]
    fn where_a_body_ends_is_said_in_one_way() {
        let framed = |more: &str| {
            let text = format!("POST /mcp HTTP/1.1\r\nHost: a\r\n{more}\r\n\r\nrest");
            let (parsed, length) = read(&text).unwrap().unwrap();
            assert_eq!(&text[length..], "rest");
            (parsed.left, parsed.keep)
        };
        for (head, want) in [
            ("X: y", (Left::Nothing, true)),
            ("Content-Length: 0", (Left::Nothing, true)),
            ("content-length: 7", (Left::Length(7), true)),
            ("Content-Length: 7, 7\r\ncontent-length:7", (Left::Length(7), true)),
            ("content-length: 7\r\nConnection: x, Close", (Left::Length(7), false)),
            ("connection: close\r\nconnection: keep-alive", (Left::Nothing, false)),
            ("Transfer-Encoding: Chunked ", (Left::Size, true)),
        ] {
            assert_eq!(framed(head), want, "{head}");
        }
    }

    #[test]
    fn what_two_readers_could_read_differently_is_refused() {
        let post = "POST /mcp HTTP/1.1\r\nHost: a\r\n";
        for (head, want) in [
            ("Transfer-Encoding: chunked\r\nContent-Length: 5", 400),
            ("Content-Length: 5\r\nTransfer-Encoding: chunked", 400),
            ("Content-Length: 5\r\nContent-Length: 6", 400),
            ("Content-Length: 5, 6", 400),
            ("Content-Length: +5", 400),
            ("Content-Length: 0x5", 400),
            ("Content-Length: ", 400),
            ("Content-Length: 99999999999999999999", 400),
            ("Transfer-Encoding: gzip, chunked", 501),
            ("Transfer-Encoding: chunked, chunked", 501),
            ("Transfer-Encoding: chunked, gzip", 400),
            ("Transfer-Encoding: identity", 400),
            ("Transfer-Encoding: xchunked", 400),
            ("Transfer-Encoding: chunked\r\nTransfer-Encoding: chunked", 400),
            ("Transfer-Encoding: ", 400),
            ("Transfer-Encoding : chunked", 400),
            ("X: a\r\n b", 400),
            ("X: a\rContent-Length: 5", 400),
            ("X: a\0b", 400),
            ("X\u{1}: a", 400),
            (" X: a", 400),
            (": a", 400),
        ] {
            assert_eq!(status(&format!("{post}{head}")), want, "{head:?}");
        }
        assert_eq!(status("POST /mcp HTTP/1.0\r\nTransfer-Encoding: chunked"), 400);
    }

    #[test]
    fn a_request_line_is_one_that_is_known() {
        for (line, want) in [
            ("GET /mcp HTTP/1.1", 200),
            ("GET /mcp HTTP/1.0", 200),
            ("GET http://a:1/mcp?x=y HTTP/1.1", 200),
            ("OPTIONS * HTTP/1.1", 200),
            ("CONNECT a:443 HTTP/1.1", 200),
            ("GET /mcp HTTP/2.0", 505),
            ("GET /mcp HTTP/1.2", 505),
            ("PRI * HTTP/2.0", 505),
            ("GET /mcp", 400),
            ("GET  /mcp HTTP/1.1", 400),
            ("GET /m cp HTTP/1.1", 505),
            ("G@T /mcp HTTP/1.1", 400),
            ("GET \u{e9} HTTP/1.1", 400),
        ] {
            assert_eq!(status(line), want, "{line}");
        }
        let (parsed, _) = read("\r\nGET /sse?s=1 HTTP/1.0\r\n\r\n").unwrap().unwrap();
        assert_eq!(parsed.head.uri, "/sse?s=1");
        assert_eq!((parsed.head.version, parsed.keep), (Version::HTTP_10, false));
        let (parsed, _) =
            read("GET /mcp HTTP/1.0\r\nConnection: Keep-Alive\r\n\r\n").unwrap().unwrap();
        assert!(parsed.keep && parsed.head.uri == PATH);
    }

    #[test]
    fn heads_are_bounded() {
        let lines = |n: usize| format!("GET / HTTP/1.1\r\n{}\r\n", "X: y\r\n".repeat(n));
        assert!(read(&lines(HEADERS_MAX)).unwrap().is_some());
        assert_eq!(read(&lines(HEADERS_MAX + 1)).unwrap_err().status, 431);
        let long = |n: usize| format!("GET / HTTP/1.1\r\nX: {}", "y".repeat(n));
        assert!(read(&long(HEAD_MAX - 100)).unwrap().is_none());
        assert_eq!(read(&long(HEAD_MAX)).unwrap_err().status, 431);
        assert_eq!(status(&long(HEAD_MAX)), 431);
        assert_eq!(read(&format!("GET /{}", "y".repeat(HEAD_MAX))).unwrap_err().status, 431);
    }

    #[test]
    fn names_are_read_without_regard_to_case() {
        let text =
            "GET / HTTP/1.1\r\nMCP-Method: a\r\nmcp-NAME: b\r\nx-Team: c\r\nX-TEAM: d\r\n\r\n";
        let (parsed, _) = read(text).unwrap().unwrap();
        let headers = &parsed.head.headers;
        assert_eq!(
            (headers.text(&header::METHOD), headers.text(&header::NAME)),
            (Some("a"), Some("b"))
        );
        assert_eq!(headers.get_all(&HeaderName::from_static("x-team")).count(), 2);
    }

    #[test]
    fn a_response_says_how_it_is_sent() {
        let head = |version, status: u16, sends, keep| {
            let mut out = Vec::new();
            let mut headers = HeaderMap::new();
            headers.insert("Content-Type", HeaderValue::from_static("a/b"));
            let status = StatusCode::from_u16(status).unwrap();
            write(&mut out, version, status, (&headers, b""), sends, keep);
            let text = String::from_utf8(out).unwrap();
            let dated = text.split("\r\n").filter(|line| line.starts_with("date: ")).count();
            assert_eq!((dated, text.ends_with("\r\n\r\n")), (1, true));
            let lines = text.split("\r\n").filter(|line| !line.starts_with("date: "));
            lines.collect::<Vec<_>>().join("|")
        };
        let (new, old) = (Version::HTTP_11, Version::HTTP_10);
        for (got, want) in [
            (
                head(new, 200, Sends::Length(1234), true),
                "HTTP/1.1 200 OK|content-type: a/b|content-length: 1234||",
            ),
            (
                head(new, 202, Sends::Length(0), true),
                "HTTP/1.1 202 Accepted|content-type: a/b|content-length: 0||",
            ),
            (
                head(new, 200, Sends::Chunks, false),
                "HTTP/1.1 200 OK|content-type: a/b|transfer-encoding: chunked|connection: close||",
            ),
            (head(new, 204, Sends::Nothing, true), "HTTP/1.1 204 No Content|content-type: a/b||"),
            (
                head(new, 405, Sends::HeadOnly(Some(9)), true),
                "HTTP/1.1 405 Method Not Allowed|content-type: a/b|content-length: 9||",
            ),
            (
                head(old, 200, Sends::Length(1), true),
                "HTTP/1.0 200 OK|content-type: a/b|content-length: 1|connection: keep-alive||",
            ),
            (head(old, 200, Sends::UntilClose, false), "HTTP/1.0 200 OK|content-type: a/b||"),
        ] {
            assert_eq!(got, want);
        }
        let mut out = Vec::new();
        chunk(&mut out, 0xabc);
        decimal(&mut out, u64::MAX);
        assert_eq!(out, b"abc\r\n18446744073709551615");
    }
}
