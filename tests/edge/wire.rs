//! Requests as bytes, sessions of old clients, and streams that are read event by event.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty, Full};
use hyper::body::Incoming;
use hyper::{Method, Request, Response};
use hyper_util::client::legacy::Client;
use hyper_util::rt::TokioExecutor;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::harness::{Got, PATIENCE, Weir, post};

/// `127.0.0.1:PORT`
pub fn address(weir: &Weir) -> &str {
    weir.url.trim_start_matches("http://").trim_end_matches("/mcp")
}

pub async fn connect(weir: &Weir) -> TcpStream {
    TcpStream::connect(address(weir)).await.unwrap()
}

/// Read until the gateway closes.
pub async fn rest(stream: &mut TcpStream) -> String {
    let mut out = Vec::new();
    // A reset after the answer is a close too.
    let read = stream.read_to_end(&mut out);
    let _ = tokio::time::timeout(PATIENCE, read).await.expect("the gateway closes");
    String::from_utf8_lossy(&out).into_owned()
}

/// Send these bytes on a connection of their own and read until the gateway closes.
pub async fn raw(weir: &Weir, request: impl AsRef<[u8]>) -> String {
    let mut stream = connect(weir).await;
    // The gateway may answer and close before it has read everything.
    let _ = stream.write_all(request.as_ref()).await;
    rest(&mut stream).await
}

/// Send a request on a connection that is kept, and read its response, which says how long it is.
pub async fn exchange(stream: &mut TcpStream, request: &str) -> String {
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut out = Vec::new();
    loop {
        let text = String::from_utf8_lossy(&out);
        if let Some((head, body)) = text.split_once("\r\n\r\n") {
            let lines = head.lines().filter_map(|line| line.split_once(": "));
            let length = lines.filter(|(name, _)| name.eq_ignore_ascii_case("content-length"));
            let length: usize = length.map(|(_, v)| v.parse().unwrap()).next().unwrap();
            if body.len() >= length {
                return text.into_owned();
            }
        }
        let read = tokio::time::timeout(PATIENCE, stream.read_buf(&mut out)).await.unwrap();
        assert_ne!(read.unwrap(), 0, "closed: {}", String::from_utf8_lossy(&out));
    }
}

/// The status of a response that was read as text.
#[track_caller]
pub fn status(response: &str) -> u16 {
    response
        .strip_prefix("HTTP/1.1 ")
        .and_then(|r| r.get(..3)?.parse().ok())
        .unwrap_or_else(|| panic!("no status: {response:?}"))
}

/// Any method, nothing but these headers.
pub async fn request(url: &str, method: &str, headers: &[(&str, &str)], body: &str) -> Got {
    let method = Method::from_bytes(method.as_bytes()).unwrap();
    let mut request = Request::builder().method(method).uri(url);
    for (k, v) in headers {
        request = request.header(*k, *v);
    }
    let client = Client::builder(TokioExecutor::new()).build_http();
    let request = request.body(Full::new(Bytes::copy_from_slice(body.as_bytes()))).unwrap();
    let (parts, body) = client.request(request).await.unwrap().into_parts();
    let body = body.collect().await.unwrap().to_bytes();
    Got {
        status: parts.status.as_u16(),
        headers: parts.headers,
        body: String::from_utf8(body.to_vec()).unwrap(),
    }
}

/// The reason in an error's data.
pub fn reason(got: &Got) -> String {
    got.answer()["error"]["data"]["reason"].as_str().unwrap_or("").to_owned()
}

pub fn code(got: &Got) -> i64 {
    got.answer()["error"]["code"].as_i64().unwrap_or(0)
}

/// The session of an old client.
pub struct Old {
    pub url: String,
    pub session: String,
    pub revision: String,
    pub key: Option<String>,
}

pub fn initialize(revision: &str) -> String {
    json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": revision, "capabilities": {},
        "clientInfo": {"name": "old", "version": "1"}}})
    .to_string()
}

impl Old {
    pub async fn open(url: &str, revision: &str) -> Old {
        Old::open_as(url, revision, None).await
    }

    pub async fn open_as(url: &str, revision: &str, key: Option<&str>) -> Old {
        let bearer = key.map(|k| format!("Bearer {k}"));
        let headers: Vec<_> = bearer.iter().map(|b| ("authorization", b.as_str())).collect();
        let got = post(url, &headers, initialize(revision)).await;
        assert_eq!(got.status, 200, "{}", got.body);
        let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
        let revision = got.answer()["result"]["protocolVersion"].as_str().unwrap().to_owned();
        let old = Old { url: url.into(), session, revision, key: key.map(Into::into) };
        let initialized = r#"{"jsonrpc":"2.0","method":"notifications/initialized"}"#;
        assert_eq!(old.post(initialized).await.status, 202);
        old
    }

    pub async fn post(&self, body: &str) -> Got {
        let bearer = self.key.as_ref().map(|k| format!("Bearer {k}"));
        let mut headers = vec![("mcp-session-id", self.session.as_str())];
        // Revisions before 2025-06-18 had no such header.
        if self.revision.as_str() >= "2025-06-18" {
            headers.push(("mcp-protocol-version", self.revision.as_str()));
        }
        headers.extend(bearer.iter().map(|b| ("authorization", b.as_str())));
        post(&self.url, &headers, body.to_owned()).await
    }

    pub async fn ask(&self, method: &str, params: Value) -> Got {
        let body = json!({"jsonrpc": "2.0", "id": 5, "method": method, "params": params});
        self.post(&body.to_string()).await
    }

    pub async fn tools(&self) -> Vec<String> {
        let answer = self.ask("tools/list", json!({})).await.answer();
        let tools = answer["result"]["tools"].as_array().unwrap_or_else(|| panic!("{answer}"));
        tools.iter().map(|t| t["name"].as_str().unwrap().to_owned()).collect()
    }

    pub async fn delete(&self) -> u16 {
        request(&self.url, "DELETE", &[("mcp-session-id", &self.session)], "").await.status
    }

    /// Open the GET stream.
    pub async fn listen(&self) -> Stream {
        let request = Request::get(&self.url)
            .header("accept", "text/event-stream")
            .header("mcp-session-id", &self.session)
            .body(Empty::<Bytes>::new())
            .unwrap();
        let client = Client::builder(TokioExecutor::new()).build_http();
        let mut stream = Stream::of(client.request(request).await.unwrap());
        // The newest of the old revisions is given an id to come back to.
        let first = stream.next().await.unwrap();
        let primed = self.revision == "2025-11-25" && first.starts_with("id: g");
        assert!(primed || first == ": open", "{first}");
        stream
    }
}

/// An event stream, read event by event.
pub struct Stream {
    body: Incoming,
    buffer: String,
    pub status: u16,
    pub kind: String,
}

impl Stream {
    pub fn of(response: Response<Incoming>) -> Stream {
        let kind = response.headers().get("content-type");
        Stream {
            status: response.status().as_u16(),
            kind: kind.map_or(String::new(), |k| k.to_str().unwrap().to_owned()),
            body: response.into_body(),
            buffer: String::new(),
        }
    }

    /// The next event or comment as text; `None` at the end.
    pub async fn next(&mut self) -> Option<String> {
        tokio::time::timeout(PATIENCE, async {
            loop {
                if let Some((event, rest)) = self.buffer.split_once("\n\n") {
                    let event = event.to_owned();
                    self.buffer = String::from(rest);
                    return Some(event);
                }
                let frame = self.body.frame().await?.ok()?;
                self.buffer.push_str(std::str::from_utf8(frame.data_ref()?).unwrap());
            }
        })
        .await
        .expect("an event or the end")
    }

    /// The next message; comments are passed over.
    pub async fn message(&mut self) -> Option<Value> {
        loop {
            let event = self.next().await?;
            let data = event.lines().filter_map(|l| l.strip_prefix("data: ")).collect::<String>();
            if !data.is_empty() {
                return Some(serde_json::from_str(&data).unwrap());
            }
        }
    }

    /// What comes within `time`, if anything but comments does.
    pub async fn message_within(&mut self, time: Duration) -> Option<Value> {
        tokio::time::timeout(time, self.message()).await.ok().flatten()
    }
}
