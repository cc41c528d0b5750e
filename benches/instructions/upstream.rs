//! The upstreams: MCP servers that answer at once, over HTTP in both eras and over pipes.

use std::io::{self, BufRead as _, Write as _};
use std::net::TcpListener;
use std::sync::Arc;
use std::thread;

use serde_json::{Value, json};

use super::http::{Heard, Wire};

/// How many tools each upstream has, besides the three that are called.
const TOOLS: usize = 197;
/// What makes a tool a kilobyte, as real ones are.
const WORDS: usize = 800;
/// The large answer.
pub const LARGE: usize = 64 << 10;

/// The era an upstream speaks.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Speaks {
    /// 2025-11-25, in a session.
    Old,
    /// 2026-07-28.
    New,
}

/// Serve at a port of its own until the process ends; the URL.
pub fn http(speaks: Speaks) -> io::Result<String> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let url = format!("http://{}/mcp", listener.local_addr()?);
    let tools = Arc::new(tools());
    thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let tools = tools.clone();
            // Errors are the gateway's connections ending.
            thread::spawn(move || Wire::new(stream).and_then(|wire| serve(wire, speaks, &tools)));
        }
    });
    Ok(url)
}

fn serve(mut wire: Wire, speaks: Speaks, tools: &Value) -> io::Result<()> {
    while let Some(request) = wire.next()? {
        let response = respond(&request, speaks, tools);
        wire.send(&response)?;
    }
    Ok(())
}

fn respond(request: &Heard, speaks: Speaks, tools: &Value) -> Vec<u8> {
    let whole = |status: &str, kind: &str, body: &str| {
        let session = match speaks {
            Speaks::Old => "mcp-session-id: 0123456789abcdef\r\n",
            Speaks::New => "",
        };
        let length = body.len();
        format!(
            "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\n{session}content-length: {length}\r\n\r\n{body}"
        )
        .into_bytes()
    };
    if !request.says("POST") {
        return whole("405 Method Not Allowed", "text/plain", "");
    }
    let message: Value = serde_json::from_slice(&request.body).unwrap_or_default();
    match answer(&message, speaks, tools) {
        None => whole("202 Accepted", "text/plain", ""),
        Some(text) if message["params"]["name"] == "events" => {
            whole("200 OK", "text/event-stream", &format!("event: message\ndata: {text}\n\n"))
        }
        Some(text) => whole("200 OK", "application/json", &text),
    }
}

/// Serve over stdin and stdout, as the gateway's child.
pub fn stdio() -> io::Result<()> {
    let tools = tools();
    let mut out = io::stdout().lock();
    for line in io::stdin().lock().lines() {
        let message: Value = serde_json::from_str(&line?).unwrap_or_default();
        if let Some(text) = answer(&message, Speaks::Old, &tools) {
            out.write_all(format!("{text}\n").as_bytes())?;
            out.flush()?;
        }
    }
    Ok(())
}

fn answer(message: &Value, speaks: Speaks, tools: &Value) -> Option<String> {
    let id = message.get("id")?;
    let params = &message["params"];
    let result = match (message["method"].as_str()?, speaks) {
        ("initialize", Speaks::Old) => json!({"protocolVersion": "2025-11-25",
            "capabilities": {"tools": {}}, "serverInfo": {"name": "bench", "version": "1"}}),
        ("server/discover", Speaks::New) => {
            json!({"resultType": "complete", "ttlMs": 0, "cacheScope": "private",
                "supportedVersions": ["2026-07-28"], "capabilities": {"tools": {}}})
        }
        ("tools/list", Speaks::Old) => json!({"tools": tools}),
        ("tools/list", Speaks::New) => {
            json!({"resultType": "complete", "ttlMs": 0, "cacheScope": "private", "tools": tools})
        }
        ("tools/call", _) => {
            let text = match params["name"].as_str() {
                Some("large") => "x".repeat(LARGE),
                _ => params["arguments"]["text"].as_str().unwrap_or_default().to_owned(),
            };
            let content = json!([{"type": "text", "text": text}]);
            match speaks {
                Speaks::Old => json!({"content": content}),
                Speaks::New => json!({"resultType": "complete", "content": content}),
            }
        }
        ("ping", _) => json!({}),
        _ => {
            let error = json!({"code": -32601, "message": "not here"});
            return Some(json!({"jsonrpc": "2.0", "id": id, "error": error}).to_string());
        }
    };
    Some(json!({"jsonrpc": "2.0", "id": id, "result": result}).to_string())
}

fn tools() -> Value {
    let many = (0..TOOLS).map(|n| format!("tool_{n:03}"));
    let all = ["echo", "large", "events"].map(str::to_owned).into_iter().chain(many);
    all.map(|name| {
        json!({"name": name, "description": "word ".repeat(WORDS / 5), "inputSchema": {
            "type": "object", "properties": {"text": {"type": "string"}}, "required": ["text"]}})
    })
    .collect()
}
