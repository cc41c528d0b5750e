//! A client of HTTP/1.1 on one connection, and the words that it says.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Longer than any answer of a drill may take.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A connection that is kept as long as the gateway wants.
pub struct Client {
    pub at: SocketAddr,
    stream: Option<TcpStream>,
    buffer: Vec<u8>,
}

/// An answer.
#[derive(Debug)]
pub struct Answer {
    pub status: u16,
    pub head: String,
    pub body: Vec<u8>,
}

impl Answer {
    /// A header's value.
    pub fn header(&self, name: &str) -> Option<&str> {
        let mut lines = self.head.lines().filter_map(|l| l.split_once(':'));
        lines.find(|(k, _)| k.eq_ignore_ascii_case(name)).map(|(_, v)| v.trim())
    }

    /// The message in it: the body, or the last event.
    pub fn message(&self) -> Value {
        let text = String::from_utf8_lossy(&self.body);
        let data = text.lines().filter_map(|l| l.strip_prefix("data:")).map(str::trim);
        let last = data.rev().find(|d| !d.is_empty());
        serde_json::from_str(last.unwrap_or(&text)).unwrap_or(Value::Null)
    }
}

impl Client {
    /// A client that connects when it has something to say.
    pub fn new(at: SocketAddr) -> Client {
        Client { at, stream: None, buffer: Vec::new() }
    }

    /// Whether the connection is open, as far as can be told without waiting.
    pub fn is_open(&self) -> bool {
        let Some(stream) = &self.stream else { return false };
        let mut room = [0; 1];
        matches!(stream.try_read(&mut room), Err(e) if e.kind() == io::ErrorKind::WouldBlock)
    }

    /// Its connection, if nothing of an answer is left on it.
    pub fn into_stream(self) -> Option<TcpStream> {
        self.stream.filter(|_| self.buffer.is_empty())
    }

    /// Send a request and read its answer. A connection that the gateway has closed meanwhile is
    /// made anew, as every client does; one that breaks during the request is an error.
    pub async fn ask(&mut self, request: &[u8]) -> io::Result<Answer> {
        if !self.is_open() {
            self.buffer.clear();
            let stream = TcpStream::connect(self.at).await?;
            stream.set_nodelay(true)?;
            self.stream = Some(stream);
        }
        let asked = tokio::time::timeout(PATIENCE, self.exchange(request)).await;
        let answer = asked.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()));
        let closes = |a: &Answer| a.header("connection").is_some_and(|v| v.contains("close"));
        if answer.as_ref().map_or(true, closes) {
            self.stream = None;
        }
        answer
    }

    async fn exchange(&mut self, request: &[u8]) -> io::Result<Answer> {
        let stream = self.stream.as_mut().ok_or(io::ErrorKind::NotConnected)?;
        stream.write_all(request).await?;
        let buffer = &mut self.buffer;
        let end = loop {
            if let Some(at) = memchr::memmem::find(buffer, b"\r\n\r\n") {
                break at + 4;
            }
            more(stream, buffer).await?;
        };
        let head = String::from_utf8_lossy(&buffer[..end]).into_owned();
        buffer.drain(..end);
        let status = head.get(9..12).and_then(|s| s.parse().ok()).unwrap_or(0);
        let mut answer = Answer { status, head, body: Vec::new() };
        if let Some(length) = answer.header("content-length").and_then(|v| v.parse().ok()) {
            while buffer.len() < length {
                more(stream, buffer).await?;
            }
            answer.body = buffer.drain(..length).collect();
        } else if answer.header("transfer-encoding").is_some() {
            loop {
                let line = loop {
                    if let Some(at) = memchr::memmem::find(buffer, b"\r\n") {
                        break at;
                    }
                    more(stream, buffer).await?;
                };
                let size = std::str::from_utf8(&buffer[..line]).ok();
                let size = size.and_then(|s| usize::from_str_radix(s, 16).ok());
                let size = size.ok_or(io::ErrorKind::InvalidData)?;
                while buffer.len() < line + 2 + size + 2 {
                    more(stream, buffer).await?;
                }
                answer.body.extend_from_slice(&buffer[line + 2..line + 2 + size]);
                buffer.drain(..line + 2 + size + 2);
                if size == 0 {
                    break;
                }
            }
        }
        Ok(answer)
    }
}

async fn more(stream: &mut TcpStream, buffer: &mut Vec<u8>) -> io::Result<()> {
    if stream.read_buf(buffer).await? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(())
}

/// A GET of the operators' port.
pub async fn get(at: SocketAddr, path: &str) -> io::Result<Answer> {
    let request = format!("GET {path} HTTP/1.1\r\nhost: {at}\r\nconnection: close\r\n\r\n");
    Client::new(at).ask(request.as_bytes()).await
}

/// A request of 2026-07-28; without a name `arguments` is a part of the parameters, with its comma.
pub fn modern(at: SocketAddr, method: &str, name: &str, arguments: &str) -> Vec<u8> {
    let named = if name.is_empty() {
        arguments.to_owned()
    } else {
        format!("\"name\":\"{name}\",\"arguments\":{arguments},")
    };
    let body = format!(
        "{{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"{method}\",\"params\":{{{named}\"_meta\":{{\
         \"io.modelcontextprotocol/protocolVersion\":\"2026-07-28\",\
         \"io.modelcontextprotocol/clientCapabilities\":{{}},\
         \"io.modelcontextprotocol/clientInfo\":{{\"name\":\"drill\",\"version\":\"1\"}}}}}}}}"
    );
    let named = if name.is_empty() { String::new() } else { format!("mcp-name: {name}\r\n") };
    let headers = format!("mcp-protocol-version: 2026-07-28\r\nmcp-method: {method}\r\n{named}");
    post(at, &headers, &body)
}

/// A call of a tool, which says which it is.
pub fn call(at: SocketAddr, tool: &str, id: &str) -> Vec<u8> {
    modern(at, "tools/call", tool, &format!("{{\"id\":\"{id}\"}}"))
}

/// The wish to hear of changed tools.
pub fn listen(at: SocketAddr) -> Vec<u8> {
    modern(at, "subscriptions/listen", "", "\"notifications\":{\"toolsListChanged\":true},")
}

/// A request of an old session; none without an id.
pub fn old(at: SocketAddr, session: &str, body: &str) -> Vec<u8> {
    let named = if session.is_empty() {
        String::new()
    } else {
        format!("mcp-session-id: {session}\r\nmcp-protocol-version: 2025-06-18\r\n")
    };
    post(at, &named, body)
}

/// The handshake of an old session.
pub fn hello(at: SocketAddr) -> Vec<u8> {
    old(
        at,
        "",
        "{\"jsonrpc\":\"2.0\",\"id\":1,\"method\":\"initialize\",\"params\":{\"protocolVersion\":\
         \"2025-06-18\",\"capabilities\":{},\"clientInfo\":{\"name\":\"drill\",\"version\":\"1\"}}}",
    )
}

fn post(at: SocketAddr, headers: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!(
        "POST /mcp HTTP/1.1\r\nhost: {at}\r\n{headers}content-type: application/json\r\n\
         accept: application/json, text/event-stream\r\ncontent-length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

/// The text of a good answer.
pub fn text(message: &Value) -> Option<&str> {
    let result = message.get("result").filter(|r| r["isError"] != true)?;
    result["content"][0]["text"].as_str()
}

/// Reason and outcome of one that is none.
pub fn failure(message: &Value) -> Option<(&str, &str)> {
    let data = match message.get("error") {
        Some(error) => &error["data"],
        None => &message["result"]["_meta"]["io.weirkeeper/failure"],
    };
    Some((data["reason"].as_str()?, data["outcome"].as_str().unwrap_or("")))
}
