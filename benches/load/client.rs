//! A plain MCP client, one request at a time: for handshakes and for finding out what is there.

use std::io::Write as _;
use std::net::{SocketAddr, TcpStream};
use std::time::Duration;

use serde_json::{Value, json};

use crate::job::{Era, Route};
use crate::mock::MARK;
use crate::wire::{self, Got, Inbox, Incoming};

/// How long anything may take here.
const PATIENCE: Duration = Duration::from_secs(10);
/// Most pages of a list.
const PAGES_MAX: usize = 100;

/// One connection to an endpoint.
pub struct Client {
    stream: TcpStream,
    addr: SocketAddr,
    path: String,
    key: Option<String>,
    era: Era,
    session: Option<String>,
    inbox: Inbox,
}

/// Headers of a request with this body.
pub fn request(
    (addr, path): (SocketAddr, &str),
    key: Option<&str>,
    session: Option<&str>,
    era: Era,
    named: Option<(&str, Option<&str>)>,
    body: &str,
) -> Vec<u8> {
    use std::fmt::Write as _;
    let mut head = format!(
        "POST {path} HTTP/1.1\r\nHost: {addr}\r\nContent-Type: application/json\r\n\
         Accept: application/json, text/event-stream\r\n"
    );
    if let Some(key) = key {
        let _ = write!(head, "Authorization: Bearer {key}\r\n");
    }
    if let Some(session) = session {
        let _ = write!(head, "Mcp-Session-Id: {session}\r\n");
    }
    if session.is_some() || era == Era::Modern {
        let _ = write!(head, "MCP-Protocol-Version: {}\r\n", era.revision());
    }
    if let Some((method, name)) = named.filter(|_| era == Era::Modern) {
        let _ = write!(head, "Mcp-Method: {method}\r\n");
        if let Some(name) = name {
            let _ = write!(head, "Mcp-Name: {name}\r\n");
        }
    }
    let _ = write!(head, "Content-Length: {}\r\n\r\n{body}", body.len());
    head.into_bytes()
}

/// Params with what a modern request says of itself.
pub fn params(era: Era, mut params: Value) -> Value {
    if era == Era::Modern {
        params["_meta"] = json!({
            "io.modelcontextprotocol/protocolVersion": era.revision(),
            "io.modelcontextprotocol/clientInfo": {"name": "load", "version": "1"},
            "io.modelcontextprotocol/clientCapabilities": {}});
    }
    params
}

impl Client {
    /// Connect, and shake hands where that is done.
    ///
    /// # Errors
    /// What went wrong.
    pub fn new(
        addr: SocketAddr,
        path: &str,
        key: Option<&str>,
        era: Era,
        from: u8,
    ) -> Result<Client, String> {
        let stream = wire::connect(addr, from).map_err(|e| format!("connect to {addr}: {e}"))?;
        stream.set_read_timeout(Some(PATIENCE)).map_err(|e| e.to_string())?;
        let mut client = Client {
            stream,
            addr,
            path: path.into(),
            key: key.map(Into::into),
            era,
            session: None,
            inbox: Inbox::default(),
        };
        if era == Era::Legacy {
            let hello = json!({"protocolVersion": era.revision(), "capabilities": {},
                "clientInfo": {"name": "load", "version": "1"}});
            client.ask("initialize", hello)?;
            client.send(&json!({"jsonrpc": "2.0", "method": "notifications/initialized"}), None)?;
        }
        Ok(client)
    }

    /// One request; its result.
    ///
    /// # Errors
    /// What went wrong, or the error that is the answer.
    pub fn ask(&mut self, method: &str, params: Value) -> Result<Value, String> {
        let message = self.raw(method, params)?;
        let mut answer: Value =
            serde_json::from_slice(&message).map_err(|e| format!("{method}: {e}"))?;
        match answer.get_mut("result") {
            Some(result) => Ok(result.take()),
            None => Err(format!("{method}: {answer}")),
        }
    }

    /// One request; the bytes of the response message.
    ///
    /// # Errors
    /// What went wrong.
    pub fn raw(&mut self, method: &str, params: Value) -> Result<Vec<u8>, String> {
        let body = json!({"jsonrpc": "2.0", "id": 1_000_000_000, "method": method,
            "params": self::params(self.era, params)});
        self.send(&body, Some(method))
    }

    fn send(&mut self, body: &Value, method: Option<&str>) -> Result<Vec<u8>, String> {
        let (key, session) = (self.key.as_deref(), self.session.as_deref());
        let named = method.map(|m| (m, None));
        let body = body.to_string();
        let bytes = request((self.addr, &self.path), key, session, self.era, named, &body);
        self.stream.write_all(&bytes).map_err(|e| format!("write: {e}"))?;
        let mut incoming = Incoming::default();
        loop {
            if let Some((answer, whole)) = incoming.next(self.inbox.bytes())? {
                let status = answer.head.status;
                let message = wire::message(&answer).to_vec();
                let session = answer.head.session.clone();
                self.session = session.or(self.session.take());
                self.inbox.consume(whole);
                if !(200..300).contains(&status) {
                    let text = String::from_utf8_lossy(&message);
                    return Err(format!("HTTP {status}: {text}"));
                }
                return Ok(message);
            }
            match self.inbox.read(&mut self.stream) {
                Ok(Got::Some) => {}
                Ok(Got::Later) => return Err("no answer".into()),
                Ok(Got::End) => return Err("the connection was closed".into()),
                Err(e) => return Err(format!("read: {e}")),
            }
        }
    }

    /// The session, if there is one.
    pub fn session(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The connection itself.
    pub fn into_stream(self) -> TcpStream {
        self.stream
    }

    /// The tools of mock servers that are there, whatever they are called.
    ///
    /// # Errors
    /// What went wrong.
    pub fn routes(&mut self) -> Result<Vec<Route>, String> {
        let mut out = Vec::new();
        let mut cursor = Value::Null;
        for _ in 0..PAGES_MAX {
            let params = if cursor.is_null() { json!({}) } else { json!({ "cursor": cursor }) };
            let page = self.ask("tools/list", params)?;
            for tool in page["tools"].as_array().into_iter().flatten() {
                let about = tool["description"].as_str().unwrap_or_default();
                let Some(about) = about.strip_prefix(MARK) else { continue };
                let upstream = about.split([' ', '.']).nth(2).unwrap_or_default();
                out.push(Route {
                    addr: self.addr,
                    path: self.path.clone(),
                    tool: tool["name"].as_str().unwrap_or_default().into(),
                    upstream: upstream.into(),
                });
            }
            cursor = page["nextCursor"].clone();
            if cursor.is_null() {
                break;
            }
        }
        Ok(out)
    }
}
