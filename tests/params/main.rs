//! Parameters that a tool wants mirrored in headers (`x-mcp-header`), on both sides of the gateway.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod callers;
mod catalog;
mod upstreams;

use std::collections::BTreeMap;

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Got, Weir, modern_request, post};
use serde_json::{Value, json};

/// A tool that mirrors three of its parameters, one of them nested.
pub fn mirroring() -> Value {
    json!({"name": "pay", "inputSchema": {"type": "object", "properties": {
        "region": {"type": "string", "x-mcp-header": "Region"},
        "note": {"type": "string"},
        "to": {"type": "object", "properties": {"account": {"type": "integer", "x-mcp-header": "Account"}}},
        "now": {"type": "boolean", "x-mcp-header": "Now"}}}})
}

/// An upstream of the newest revision that does as `act` says where that says something.
pub async fn newest(
    tools: impl Fn() -> Vec<Value> + Send + Sync + 'static,
    act: impl Fn(&Arrival) -> Option<Reply> + Send + Sync + 'static,
) -> Scripted {
    Scripted::start(&[], move |a| {
        let complete = |mut result: Value| {
            result["resultType"] = json!("complete");
            Some(Reply::Json(a.result(&result)))
        };
        act(a).or_else(|| match a.method() {
            "server/discover" => complete(json!({"supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}}, "ttlMs": 0, "cacheScope": "private"})),
            "tools/list" => {
                complete(json!({"tools": tools(), "ttlMs": 0, "cacheScope": "private"}))
            }
            "tools/call" => complete(json!({"content": [{"type": "text", "text": "done"}]})),
            _ => None,
        })
    })
    .await
}

/// One with the mirroring tool and a plain one.
pub async fn fine() -> Scripted {
    newest(|| vec![mirroring(), tool("plain", false)], |_| None).await
}

pub async fn weir(up: &Scripted) -> Weir {
    let weir = Weir::start("builtin = false", &up.section("up", ""));
    weir.ready(&["up"]).await;
    weir
}

/// A modern call with these headers besides the usual ones.
pub async fn call_with(weir: &Weir, name: &str, arguments: Value, with: &[(&str, &str)]) -> Got {
    let params = json!({"name": name, "arguments": arguments});
    let (headers, body) = modern_request(None, "tools/call", params);
    let mut headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    headers.extend_from_slice(with);
    post(&weir.url, &headers, body).await
}

/// The `Mcp-Param-…` headers that the upstream got with each call of a tool.
pub fn mirrored(up: &Scripted, tool: &str) -> Vec<BTreeMap<String, String>> {
    let of = |a: &Arrival| {
        let params = a.headers.iter().filter(|(k, _)| k.starts_with("mcp-param-"));
        params.map(|(k, v)| (k["mcp-param-".len()..].to_owned(), v.clone())).collect()
    };
    up.arrivals().iter().filter(|a| a.tool() == Some(tool)).map(of).collect()
}

pub fn pairs(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
    pairs.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect()
}
