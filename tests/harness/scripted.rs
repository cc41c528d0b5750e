//! An HTTP upstream that does as it is told: each request is kept as it arrived, and the answer is
//! what the test says, bytes included.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};

/// One request as it arrived.
#[derive(Clone, Debug)]
pub struct Arrival {
    /// `POST`, `GET` or `DELETE`.
    pub verb: String,
    /// Path and query.
    pub path: String,
    /// Names in lower case.
    pub headers: BTreeMap<String, String>,
    pub body: String,
    /// The body as JSON, `null` without one.
    pub message: Value,
}

impl Arrival {
    /// The method of the JSON-RPC message.
    pub fn method(&self) -> &str {
        self.message["method"].as_str().unwrap_or("")
    }

    /// The name of the tool that is called.
    pub fn tool(&self) -> Option<&str> {
        (self.method() == "tools/call").then(|| self.message["params"]["name"].as_str()).flatten()
    }

    /// The answer to this request.
    pub fn result(&self, result: &Value) -> String {
        json!({"jsonrpc": "2.0", "id": self.message["id"], "result": result}).to_string()
    }

    /// The answer with one text.
    pub fn text(&self, text: &str) -> Reply {
        Reply::Json(self.result(&json!({"content": [{"type": "text", "text": text}]})))
    }
}

/// What is sent back.
pub enum Reply {
    /// 200 with this JSON.
    Json(String),
    /// A whole response with these headers.
    Http(u16, Vec<(&'static str, String)>, String),
    /// These bytes, then the end of the connection.
    Cut(Vec<u8>),
    /// These bytes, then nothing for as long as the gateway likes.
    Hang(Vec<u8>),
    /// An event stream that goes on for as long as there are messages.
    Live(tokio::sync::mpsc::Receiver<String>),
    /// JSON in pieces as they come, for as long as there are any; `None` cuts the connection.
    Pieces(tokio::sync::mpsc::Receiver<Option<Vec<u8>>>),
    /// A pause, then another.
    After(Duration, Box<Reply>),
}

impl Reply {
    /// A whole event stream of these messages.
    pub fn events(messages: &[String]) -> Reply {
        let kind = vec![("content-type", "text/event-stream".to_owned())];
        let events: Vec<_> = messages.iter().map(|m| format!("data: {m}\n\n")).collect();
        Reply::Http(200, kind, events.concat())
    }
}

/// The upstream. It ends with the test.
pub struct Scripted {
    pub url: String,
    arrivals: Arc<Mutex<Vec<Arrival>>>,
}

type Handler = dyn Fn(&Arrival) -> Option<Reply> + Send + Sync;

impl Scripted {
    /// Answer as `handler` says; where it says nothing: the handshake of 2025-06-18, these tools,
    /// and `fine` to every call.
    pub async fn start(
        tools: &[Value],
        handler: impl Fn(&Arrival) -> Option<Reply> + Send + Sync + 'static,
    ) -> Scripted {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/mcp", listener.local_addr().unwrap());
        let arrivals: Arc<Mutex<Vec<Arrival>>> = Arc::default();
        let log = arrivals.clone();
        let (tools, handler): (Arc<[Value]>, Arc<Handler>) = (tools.into(), Arc::new(handler));
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                tokio::spawn(serve(stream, tools.clone(), handler.clone(), log.clone()));
            }
        });
        Scripted { url, arrivals }
    }

    /// The same on a fixed list of tools, all of them fine.
    pub async fn fine(names: &[&str]) -> Scripted {
        let tools: Vec<_> = names.iter().map(|n| tool(n, false)).collect();
        Scripted::start(&tools, |_| None).await
    }

    /// How often a tool was called.
    pub fn arrived(&self, tool: &str) -> usize {
        self.arrivals().iter().filter(|a| a.tool() == Some(tool)).count()
    }

    /// How often a method was called.
    pub fn asked(&self, method: &str) -> usize {
        self.arrivals().iter().filter(|a| a.method() == method).count()
    }

    /// Everything that has arrived.
    pub fn arrivals(&self) -> Vec<Arrival> {
        self.arrivals.lock().unwrap().clone()
    }

    /// A section for it, with more lines.
    pub fn section(&self, name: &str, more: &str) -> String {
        format!("[upstreams.{name}]\nurl = {:?}\n{more}\n", self.url)
    }
}

/// A tool without arguments.
pub fn tool(name: &str, read_only: bool) -> Value {
    json!({"name": name, "inputSchema": {"type": "object"}, "annotations": {"readOnlyHint": read_only}})
}

async fn serve(
    mut stream: TcpStream,
    tools: Arc<[Value]>,
    handler: Arc<Handler>,
    log: Arc<Mutex<Vec<Arrival>>>,
) {
    let mut buffer = Vec::new();
    while let Some(arrival) = read(&mut stream, &mut buffer).await {
        log.lock().unwrap().push(arrival.clone());
        let mut reply = handler(&arrival).unwrap_or_else(|| usual(&arrival, &tools));
        while let Reply::After(pause, next) = reply {
            tokio::time::sleep(pause).await;
            reply = *next;
        }
        let bytes = match reply {
            Reply::Json(json) => whole(200, &[("content-type", "application/json".into())], &json),
            Reply::Http(status, headers, body) => whole(status, &headers, &body),
            Reply::Cut(bytes) => {
                let _ = stream.write_all(&bytes).await;
                return;
            }
            Reply::Hang(bytes) => {
                let _ = stream.write_all(&bytes).await;
                // Until the gateway closes.
                let _ = stream.read_u8().await;
                return;
            }
            Reply::Live(mut messages) => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";
                let mut ok = stream.write_all(head.as_bytes()).await.is_ok();
                while ok {
                    let Some(message) = messages.recv().await else { return };
                    ok = stream.write_all(format!("data: {message}\n\n").as_bytes()).await.is_ok();
                }
                return;
            }
            Reply::Pieces(pieces) => match in_pieces(&mut stream, pieces).await {
                Some(()) => b"0\r\n\r\n".to_vec(),
                None => return,
            },
            Reply::After(..) => unreachable!("waited for above"),
        };
        if stream.write_all(&bytes).await.is_err() {
            return;
        }
    }
}

// `None`: the connection is of no more use; who feeds it sees that its way is closed.
async fn in_pieces(
    stream: &mut TcpStream,
    mut pieces: tokio::sync::mpsc::Receiver<Option<Vec<u8>>>,
) -> Option<()> {
    let head =
        "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n";
    stream.write_all(head.as_bytes()).await.ok()?;
    let (mut from, mut to) = stream.split();
    loop {
        let piece = tokio::select! {
            piece = pieces.recv() => piece,
            _ = from.read_u8() => return None,
        };
        let Some(piece) = piece else { return Some(()) };
        let piece = piece?;
        let sent = async {
            to.write_all(format!("{:x}\r\n", piece.len()).as_bytes()).await?;
            to.write_all(&piece).await?;
            to.write_all(b"\r\n").await
        };
        tokio::select! {
            sent = sent => sent.ok()?,
            _ = from.read_u8() => return None,
        }
    }
}

fn usual(arrival: &Arrival, tools: &[Value]) -> Reply {
    match (arrival.verb.as_str(), arrival.method()) {
        ("GET", _) => Reply::Http(405, vec![], String::new()),
        (_, "initialize") => Reply::Json(arrival.result(&json!({"protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}}, "serverInfo": {"name": "scripted", "version": "1"}}))),
        (_, "tools/list") => Reply::Json(arrival.result(&json!({"tools": tools}))),
        (_, "tools/call") => arrival.text("fine"),
        (_, method) if method.is_empty() || method.starts_with("notifications/") => {
            Reply::Http(202, vec![], String::new())
        }
        _ => Reply::Json(
            json!({"jsonrpc": "2.0", "id": arrival.message["id"], "error": {"code": -32601, "message": "no"}})
                .to_string(),
        ),
    }
}

fn whole(status: u16, headers: &[(&'static str, String)], body: &str) -> Vec<u8> {
    let headers: Vec<_> = headers.iter().map(|(k, v)| format!("{k}: {v}\r\n")).collect();
    let (length, headers) = (body.len(), headers.concat());
    format!("HTTP/1.1 {status} X\r\ncontent-length: {length}\r\n{headers}\r\n{body}").into_bytes()
}

async fn read(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> Option<Arrival> {
    loop {
        if let Some(end) = buffer.windows(4).position(|w| w == b"\r\n\r\n") {
            let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
            let mut lines = head.lines();
            let mut first = lines.next()?.split(' ').map(str::to_owned);
            let (verb, path) = (first.next()?, first.next()?);
            let headers: BTreeMap<_, _> = lines
                .filter_map(|l| l.split_once(": "))
                .map(|(k, v)| (k.to_lowercase(), v.trim().to_owned()))
                .collect();
            let length: usize = headers.get("content-length").map_or(0, |v| v.parse().unwrap());
            while buffer.len() < end + 4 + length {
                if stream.read_buf(buffer).await.ok()? == 0 {
                    return None;
                }
            }
            let body = String::from_utf8_lossy(&buffer[end + 4..end + 4 + length]).into_owned();
            buffer.drain(..end + 4 + length);
            let message = serde_json::from_str(&body).unwrap_or(Value::Null);
            return Some(Arrival { verb, path, headers, body, message });
        }
        if stream.read_buf(buffer).await.ok()? == 0 {
            return None;
        }
    }
}
