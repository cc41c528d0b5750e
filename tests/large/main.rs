//! Answers that are larger than the gateway keeps, behind the built program: every byte of them,
//! how much memory they take, and every way in which they end early.
#![allow(clippy::unwrap_used, clippy::print_stdout, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod breaks;
mod passes;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::mpsc;

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Weir, modern_request, post};

pub const MIB: usize = 1 << 20;

/// A call that waits for the pieces of its answer.
pub struct Asked {
    pub id: Value,
    pub to: mpsc::Sender<Option<Vec<u8>>>,
}

impl Asked {
    pub async fn say(&self, piece: impl Into<Vec<u8>>) {
        self.to.send(Some(piece.into())).await.unwrap();
    }

    /// So many mebibytes of it.
    pub async fn fill(&self, mebibytes: usize) {
        for _ in 0..mebibytes {
            self.say(filling()).await;
        }
    }

    pub async fn cut(self) {
        self.to.send(None).await.unwrap();
    }
}

/// A mebibyte of a JSON string, with characters of one to four bytes and escapes.
pub fn filling() -> Vec<u8> {
    let unit = "0123456789 abcdefghij é € 😀 \\\" \\u00e9 {[ \"]} ";
    let unit = unit.replace(" \"]}", " \\\\]}");
    let mut out = unit.repeat(MIB / unit.len()).into_bytes();
    out.resize(MIB, b'.');
    out
}

pub enum Era {
    Modern,
    Old,
}

/// An upstream whose tool `big` and whose resources answer in pieces.
pub async fn upstream(era: Era) -> (Scripted, mpsc::Receiver<Asked>) {
    let (calls, asked) = mpsc::channel(8);
    let handler = move |a: &Arrival| {
        let id = a.message["id"].clone();
        match a.method() {
            "tools/call" | "resources/read" if a.tool() != Some("small") => {
                let (to, pieces) = mpsc::channel(1);
                calls.try_send(Asked { id, to }).ok()?;
                Some(Reply::Pieces(pieces))
            }
            method => {
                let capabilities = json!({"tools": {}, "resources": {}});
                let result = match (method, &era) {
                    ("server/discover", Era::Modern) => {
                        json!({"resultType": "complete", "ttlMs": 0,
                        "cacheScope": "private", "supportedVersions": ["2026-07-28"], "capabilities": capabilities})
                    }
                    ("initialize", Era::Old) => json!({"protocolVersion": "2025-06-18",
                        "capabilities": capabilities, "serverInfo": {"name": "big", "version": "1"}}),
                    ("tools/list", Era::Modern) => json!({"resultType": "complete", "ttlMs": 0,
                        "cacheScope": "private", "tools": [tool("big", true), tool("write", false), tool("small", true)]}),
                    ("resources/list", _) => json!({"resultType": "complete", "ttlMs": 0,
                        "cacheScope": "private", "resources": [{"uri": "file:///a", "name": "a"}]}),
                    _ => return None,
                };
                Some(Reply::Json(a.result(&result)))
            }
        }
    };
    let tools = [tool("big", true), tool("write", false), tool("small", true)];
    (Scripted::start(&tools, handler).await, asked)
}

pub async fn gateway(up: &Scripted, more: &str) -> Weir {
    let weir = Weir::start("", &up.section("up", more));
    weir.ready(&["up"]).await;
    weir
}

/// The request for `up__big`, or what `params` say.
pub fn asks(weir: &Weir, method: &str, params: Value) -> Request<Full<Bytes>> {
    let (headers, body) = modern_request(None, method, params);
    let mut request = Request::post(&weir.url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream");
    for (k, v) in headers {
        request = request.header(k, v);
    }
    request.body(Full::new(body.into())).unwrap()
}

pub fn big() -> Value {
    json!({"name": "up__big", "arguments": {}})
}

fn address(weir: &Weir) -> &str {
    weir.url.trim_start_matches("http://").trim_end_matches("/mcp")
}

/// Send on a connection of its own, of either version of HTTP.
pub async fn ask(weir: &Weir, request: Request<Full<Bytes>>, h2: bool) -> Response<Incoming> {
    let io = TokioIo::new(TcpStream::connect(address(weir)).await.unwrap());
    if h2 {
        let (mut sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        return sender.send_request(request).await.unwrap();
    }
    let (mut sender, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(connection);
    sender.send_request(request).await.unwrap()
}

/// The whole body, or how much of it came before it broke.
pub async fn read(response: Response<Incoming>) -> Result<Bytes, usize> {
    assert_eq!(response.status(), 200);
    let mut body = response.into_body();
    let mut got = Vec::new();
    while let Some(frame) = body.frame().await {
        let Ok(frame) = frame else { return Err(got.len()) };
        got.extend_from_slice(frame.data_ref().unwrap_or(&Bytes::new()));
    }
    Ok(got.into())
}

/// A session of an old client, and a call in it.
pub async fn ask_in_session(weir: &Weir, revision: &str, params: Value) -> Response<Incoming> {
    let hello = json!({"jsonrpc": "2.0", "id": 0, "method": "initialize", "params": {
        "protocolVersion": revision, "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}});
    let got = post(&weir.url, &[], hello.to_string()).await;
    let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let call = json!({"jsonrpc": "2.0", "id": "mine", "method": "tools/call", "params": params});
    let request = Request::post(&weir.url)
        .header("content-type", "application/json")
        .header("accept", "application/json, text/event-stream")
        .header("mcp-session-id", session)
        .body(Full::new(call.to_string().into()))
        .unwrap();
    ask(weir, request, false).await
}

/// Memory of the gateway: what it holds now, and the most since the last [`Memory::begin`].
pub struct Memory {
    pid: u32,
    before: usize,
}

impl Memory {
    pub fn begin(weir: &Weir) -> Memory {
        let pid = weir.pid();
        // The high-water mark falls to what is held now (proc(5), "clear_refs").
        std::fs::write(format!("/proc/{pid}/clear_refs"), "5").unwrap();
        Memory { pid, before: field(pid, "VmRSS:") }
    }

    /// Growth at its highest, in bytes.
    pub fn growth(&self) -> usize {
        field(self.pid, "VmHWM:").saturating_sub(self.before)
    }
}

fn field(pid: u32, name: &str) -> usize {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix(name)).unwrap();
    line.trim().trim_end_matches(" kB").parse::<usize>().unwrap() << 10
}
