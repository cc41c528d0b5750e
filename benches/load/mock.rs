//! A light MCP server without its transport: what it has, and what it answers.
//!
//! The road of `tools/call` looks only for the few fields that it needs and puts the answer
//! together from bytes that are ready; everything else is rare and is read properly.

use memchr::memmem;
use serde_json::{Value, json};

use crate::job::{Era, Mock};
use crate::wire::Pattern;

/// Every tool's description begins so; the number and the server's name follow.
pub const MARK: &str = "mock tool ";

/// A server.
pub struct Server {
    mock: Mock,
    list: Vec<u8>,
    changes: usize,
    pattern: Pattern,
}

/// What it says.
pub enum Said {
    /// A response message, and how it is to be sent.
    Message {
        /// As an event stream.
        sse: bool,
        /// After so long.
        delay_ms: u64,
    },
    /// The answer to `initialize`, with which a session begins.
    Welcome,
    /// A message that has no answer.
    Nothing,
    /// An error that wants this status over HTTP.
    Refusal(u16),
}

impl Server {
    /// A server that behaves as told.
    pub fn new(mock: Mock) -> Server {
        let mut server = Server { mock, list: Vec::new(), changes: 0, pattern: Pattern::default() };
        server.write_list();
        server
    }

    /// Describe the last tool anew, as [`changed`] says; what to tell clients.
    pub fn change(&mut self) -> &'static [u8] {
        self.changes += 1;
        self.write_list();
        br#"{"jsonrpc":"2.0","method":"notifications/tools/list_changed"}"#
    }

    fn write_list(&mut self) {
        let mock = &self.mock;
        let mut tools: Vec<Value> = (0..mock.tools).map(|n| tool(&mock.name, n)).collect();
        if let Some(last) = tools.last_mut().filter(|_| self.changes > 0) {
            let about = last["description"].as_str().unwrap_or_default();
            last["description"] = json!(format!("{about}{}", changed(self.changes)));
        }
        let mut list = json!({ "tools": tools });
        if mock.era == Era::Modern {
            list["resultType"] = json!("complete");
            list["ttlMs"] = json!(60_000);
            list["cacheScope"] = json!("private");
        }
        self.list = list.to_string().into_bytes();
    }

    /// Whether a client may open a stream for what comes unasked.
    pub fn streams(&self) -> bool {
        self.mock.era == Era::Legacy
    }

    /// Answer one message; a response message is appended to `out`.
    pub fn answer(&self, message: &[u8], out: &mut Vec<u8>) -> Said {
        if memmem::find(message, b"\"method\":\"tools/call\"").is_some()
            && let Some(id) = field(message, b"\"id\":")
        {
            let nonce = field(message, b"\"nonce\":\"").unwrap_or_default();
            let size = field(message, b"\"size\":").and_then(number).unwrap_or(0);
            let sse = memmem::find(message, b"\"sse\":true").is_some();
            let delay_ms = field(message, b"\"delay_ms\":").and_then(number).unwrap_or(0) as u64;
            self.echo(id, nonce, size, out);
            return Said::Message { sse, delay_ms };
        }
        self.seldom(message, out)
    }

    fn echo(&self, id: &[u8], nonce: &[u8], size: usize, out: &mut Vec<u8>) {
        out.reserve(size + 256);
        out.extend_from_slice(b"{\"jsonrpc\":\"2.0\",\"id\":");
        out.extend_from_slice(id);
        out.extend_from_slice(b",\"result\":{");
        if self.mock.era == Era::Modern {
            out.extend_from_slice(b"\"resultType\":\"complete\",");
        }
        out.extend_from_slice(b"\"content\":[{\"type\":\"text\",\"text\":\"");
        out.extend_from_slice(self.mock.name.as_bytes());
        out.push(b' ');
        out.extend_from_slice(nonce);
        out.push(b' ');
        for piece in self.pattern.pieces(nonce, size) {
            out.extend_from_slice(piece);
        }
        out.extend_from_slice(b"\"}],\"isError\":false}}");
    }

    fn seldom(&self, message: &[u8], out: &mut Vec<u8>) -> Said {
        let message: Value = serde_json::from_slice(message).unwrap_or_default();
        let (method, id) = (message["method"].as_str().unwrap_or_default(), &message["id"]);
        if id.is_null() {
            return Said::Nothing;
        }
        let info = json!({"name": self.mock.name, "version": "1"});
        let mut result = |text: &[u8]| {
            out.extend_from_slice(
                format!("{{\"jsonrpc\":\"2.0\",\"id\":{id},\"result\":").as_bytes(),
            );
            out.extend_from_slice(text);
            out.push(b'}');
        };
        match (method, self.mock.era) {
            ("initialize", Era::Legacy) => {
                let hello = json!({"protocolVersion": Era::Legacy.revision(),
                    "capabilities": {"tools": {"listChanged": true}}, "serverInfo": info});
                result(hello.to_string().as_bytes());
                return Said::Welcome;
            }
            ("server/discover", Era::Modern) => {
                let found = json!({"resultType": "complete",
                    "supportedVersions": [Era::Modern.revision()], "capabilities": {"tools": {}},
                    "ttlMs": 0, "cacheScope": "private",
                    "_meta": {"io.modelcontextprotocol/serverInfo": info}});
                result(found.to_string().as_bytes());
            }
            ("tools/list", _) => result(&self.list),
            ("ping", Era::Legacy) => result(b"{}"),
            _ => {
                let error = json!({"jsonrpc": "2.0", "id": id,
                    "error": {"code": -32601, "message": "Method not found"}});
                out.extend_from_slice(error.to_string().as_bytes());
                return Said::Refusal(if self.mock.era == Era::Modern { 404 } else { 400 });
            }
        }
        Said::Message { sse: false, delay_ms: 0 }
    }
}

/// How the nth change shows.
pub fn changed(n: usize) -> String {
    format!("Changed {n} times.")
}

// About a kilobyte, as tools of real servers are.
fn tool(server: &str, n: usize) -> Value {
    let words =
        "Answers with the name of its server, the nonce and as much text as was asked for. ";
    let about = format!("{MARK}{n} of {server}. {}", words.repeat(5));
    json!({
        "name": if n == 0 { "echo".to_owned() } else { format!("echo_{n}") },
        "description": about,
        "inputSchema": {
            "type": "object",
            "properties": {
                "nonce": {"type": "string", "description": "Comes back as it is, before the text."},
                "size": {"type": "integer", "description": "Bytes of text in the answer.",
                    "minimum": 0},
                "sse": {"type": "boolean", "description": "Whether to answer as an event stream."},
                "delay_ms": {"type": "integer", "minimum": 0,
                    "description": "How long to wait before the answer."}
            },
            "required": ["nonce", "size"]
        },
        "annotations": {"title": "Echo", "readOnlyHint": true}
    })
}

/// What stands behind `name` until the value's end; `name` ends with the quote of a string.
pub fn field<'a>(message: &'a [u8], name: &[u8]) -> Option<&'a [u8]> {
    let rest = &message[memmem::find(message, name)? + name.len()..];
    let end = if name.ends_with(b":\"") {
        memchr::memchr(b'"', rest)?
    } else if rest.first() == Some(&b'"') {
        memchr::memchr(b'"', &rest[1..])? + 2
    } else {
        rest.iter().position(|b| matches!(b, b',' | b'}'))?
    };
    Some(&rest[..end])
}

fn number(text: &[u8]) -> Option<usize> {
    std::str::from_utf8(text).ok()?.trim().parse().ok()
}
