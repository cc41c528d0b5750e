//! Upstreams that fail in every way we know of, behind the whole gateway: what the caller reads,
//! what the upstream saw, and that the neighbours notice nothing.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod gone;
mod http;
mod lists;
mod stdio;
mod told;

use serde_json::Value;

pub const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

pub fn failure(answer: &Value) -> &Value {
    let told = &answer["result"]["_meta"]["io.weirkeeper/failure"];
    if told.is_null() { &answer["error"]["data"] } else { told }
}

pub fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or("")
}

/// A stdio upstream in Python: `on_call(m)` decides what comes of `tools/call`.
pub fn child(dir: &tempfile::TempDir, name: &str, on_call: &str, more: &str) -> String {
    let script = format!(
        r"
import json, os, sys, time
def out(x): sys.stdout.write(x + '\n'); sys.stdout.flush()
def result(m, r): out(json.dumps({{'jsonrpc': '2.0', 'id': m['id'], 'result': r}}))
def text(m, t): result(m, {{'content': [{{'type': 'text', 'text': t}}]}})
{on_call}
for line in sys.stdin:
    m = json.loads(line)
    k = m.get('method')
    if 'id' not in m or k is None: continue
    if k == 'initialize': result(m, {{'protocolVersion': '2025-06-18', 'capabilities': {{'tools': {{}}}}, 'serverInfo': {{'name': 'p', 'version': '1'}}}})
    elif k == 'tools/list': result(m, {{'tools': [{{'name': n, 'inputSchema': {{'type': 'object'}}}} for n in ('act', 'fine')]}})
    elif k == 'tools/call':
        if m['params']['name'] == 'fine': text(m, 'fine')
        else: on_call(m)
    else: out(json.dumps({{'jsonrpc': '2.0', 'id': m['id'], 'error': {{'code': -32601, 'message': 'no'}}}}))
"
    );
    let path = dir.path().join(format!("{name}.py"));
    std::fs::write(&path, script).unwrap();
    format!(
        "[upstreams.{name}]\ncommand = \"python3\"\nargs = [\"-u\", \"{}\"]\n{more}\n",
        path.display()
    )
}
