//! Upstreams that are reached otherwise than over streamable HTTP or as a child: WebSocket and
//! HTTP+SSE. What can be done is the same for both, so most tests do it over each.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod all;
mod peer;
mod real;
mod sse;
mod websocket;

use std::time::Duration;

use harness::{PATIENCE, Weir, modern, post, send};
use http_body_util::BodyExt as _;
use peer::Peer;
use serde_json::{Value, json};

pub async fn weir(up: &Peer, more: &str) -> Weir {
    let weir = Weir::start("", &up.section("up", more));
    weir.ready(&["up"]).await;
    weir
}

pub fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// What stands in a failure besides its reason.
pub fn outcome(answer: &Value) -> &str {
    let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
    failure["outcome"].as_str().or(answer["error"]["data"]["outcome"].as_str()).unwrap_or("")
}

pub async fn until(what: &str, ok: impl Fn() -> bool) {
    let end = std::time::Instant::now() + PATIENCE;
    while !ok() {
        assert!(std::time::Instant::now() < end, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// A call of a modern client that can be asked, with more members of the params.
pub async fn asked_call(url: &str, name: &str, more: Value) -> Value {
    let mut params = more;
    params["name"] = json!(name);
    params["_meta"] =
        json!({"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}});
    modern(url, None, "tools/call", params).await.answer()
}

/// An old client with a session, which can be asked.
pub struct Old {
    url: String,
    session: String,
}

impl Old {
    pub async fn open(url: &str) -> Old {
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-11-25", "capabilities": {"elicitation": {}},
            "clientInfo": {"name": "old", "version": "1"}}});
        let got = post(url, &[], hello.to_string()).await;
        let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
        Old { url: url.to_owned(), session }
    }

    pub async fn post(&self, message: &Value) -> u16 {
        let headers = [("mcp-session-id", self.session.as_str())];
        post(&self.url, &headers, message.to_string()).await.status
    }

    /// Call a tool, accept what is asked; all messages on the call's stream.
    pub async fn call(&self, name: &str) -> Vec<Value> {
        let call = json!({"jsonrpc": "2.0", "id": "c", "method": "tools/call",
            "params": {"name": name, "arguments": {}, "_meta": {"progressToken": "t"}}});
        let headers = [("mcp-session-id", self.session.as_str())];
        let mut body = send(&self.url, &headers, call.to_string()).await.into_body();
        let (mut buffer, mut seen) = (String::new(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            buffer.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((event, rest)) = buffer.split_once("\n\n") {
                let data = event.lines().find_map(|l| l.strip_prefix("data: ")).map(str::to_owned);
                buffer = String::from(rest);
                let Some(data) = data.filter(|d| !d.is_empty()) else { continue };
                let message: Value = serde_json::from_str(&data).unwrap();
                if message.get("method").is_some() && message.get("id").is_some() {
                    let answer = json!({"jsonrpc": "2.0", "id": message["id"],
                        "result": {"action": "accept", "content": {"n": 1}}});
                    assert_eq!(self.post(&answer).await, 202);
                }
                seen.push(message);
            }
        }
        if seen.is_empty() {
            seen.push(serde_json::from_str(&buffer).unwrap_or_else(|_| panic!("{buffer}")));
        }
        seen
    }
}
