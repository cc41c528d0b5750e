//! The bridge: upstreams that ask back in the middle of a call, and callers of either era.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod asks;
mod extensions;
mod followed;
mod inputs;
mod isolation;
mod newer;
mod older;
mod pages;
mod research;
mod resume;
mod roots;
mod same_ids;
mod sessions;
mod subscriptions;
mod task_news;
mod tasks;

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Got, Weir, modern, post, send};
use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;

/// An upstream of 2025-11-25 whose tools ask. `ask` asks what its argument `q` says (a list of
/// `{method, params}`), all at once, and returns the responses as text.
pub async fn asking() -> Scripted {
    asking_of("2025-11-25").await
}

/// The same of another revision.
pub async fn asking_of(revision: &'static str) -> Scripted {
    type Open = Arc<Mutex<HashMap<String, (Vec<Option<Value>>, mpsc::Sender<String>, Value)>>>;
    let open = Open::default();
    let sessions = Arc::new(std::sync::atomic::AtomicUsize::new(0));
    Scripted::start(&[tool("ask", false), tool("plain", false)], move |a| {
        if a.method() == "initialize" {
            let n = sessions.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
            let result = json!({"protocolVersion": revision, "capabilities": {"tools": {}, "logging": {}},
                "serverInfo": {"name": "asking", "version": "1"}});
            let headers = vec![("content-type", "application/json".into()), ("mcp-session-id", format!("s-{n}"))];
            return Some(Reply::Http(200, headers, a.result(&result)));
        }
        // A response to one of our questions.
        if a.message.get("method").is_none() && a.message["id"].is_string() {
            let id = a.message["id"].as_str().unwrap();
            let (call, n) = id.rsplit_once('/').unwrap();
            let mut open = open.lock().unwrap();
            let (answers, tx, call_id) = open.get_mut(call).unwrap();
            answers[n.parse::<usize>().unwrap()] =
                Some(a.message.get("result").or(a.message.get("error")).unwrap().clone());
            if answers.iter().all(Option::is_some) {
                let text = serde_json::to_string(answers).unwrap();
                let result = json!({"jsonrpc": "2.0", "id": call_id, "result": {"content": [{"type": "text", "text": text}]}});
                let _ = tx.try_send(result.to_string());
                open.remove(call);
            }
            return Some(Reply::Http(202, vec![], String::new()));
        }
        (a.tool()? == "ask").then(|| {
            let (tx, rx) = mpsc::channel(64);
            let questions = a.message["params"]["arguments"]["q"].as_array().unwrap().clone();
            let call = format!("{}-{}", a.headers.get("mcp-session-id").unwrap(), a.message["id"]);
            if let Some(token) = a.message["params"]["_meta"].get("progressToken") {
                let step = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": 1}});
                tx.try_send(step.to_string()).unwrap();
            }
            for (n, q) in questions.iter().enumerate() {
                let mut request = json!({"jsonrpc": "2.0", "id": format!("{call}/{n}"), "method": q["method"]});
                if !q["params"].is_null() {
                    request["params"] = q["params"].clone();
                }
                tx.try_send(request.to_string()).unwrap();
            }
            let entry = (vec![None; questions.len()], tx, a.message["id"].clone());
            open.lock().unwrap().insert(call, entry);
            Reply::Live(rx)
        })
    })
    .await
}

pub fn form(message: &str) -> Value {
    json!({"method": "elicitation/create", "params": {"mode": "form", "message": message,
        "requestedSchema": {"type": "object", "properties": {"n": {"type": "number"}}}}})
}

pub fn sampling() -> Value {
    json!({"method": "sampling/createMessage", "params": {"messages": [{"role": "user", "content": {"type": "text", "text": "hi"}}], "maxTokens": 10}})
}

pub fn roots() -> Value {
    json!({"method": "roots/list"})
}

pub fn everything() -> Value {
    json!({"elicitation": {"form": {}, "url": {}}, "sampling": {}, "roots": {}})
}

/// The same of a modern client that knows tasks.
pub fn extended() -> Value {
    let mut all = everything();
    all["extensions"] = json!({"io.modelcontextprotocol/tasks": {}});
    all
}

/// A request about a task of a modern client that knows tasks.
pub async fn modern_task(url: &str, key: Option<&str>, method: &str, id: &str) -> Value {
    let meta = json!({"io.modelcontextprotocol/clientCapabilities": extended()});
    modern(url, key, method, json!({"taskId": id, "_meta": meta})).await.answer()
}

/// What a host declares that shows the pages of apps.
pub fn pages() -> Value {
    json!({"extensions": {"io.modelcontextprotocol/ui": {"mimeTypes": ["text/html;profile=mcp-app"]}}})
}

/// A call of a modern client with these capabilities, and more members of the params.
pub async fn modern_call(
    url: &str,
    key: Option<&str>,
    capabilities: &Value,
    name: &str,
    params: Value,
) -> Value {
    let mut all = params;
    all["name"] = json!(name);
    all["_meta"]["io.modelcontextprotocol/clientCapabilities"] = capabilities.clone();
    modern(url, key, "tools/call", all).await.answer()
}

pub fn text(answer: &Value) -> Value {
    let text =
        answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"));
    serde_json::from_str(text).unwrap_or_else(|_| json!(text))
}

/// An old client with a session; it answers what it is asked.
pub struct Old {
    pub url: String,
    pub session: String,
    pub key: Option<String>,
}

impl Old {
    pub async fn open(url: &str, key: Option<&str>, revision: &str, capabilities: &Value) -> Old {
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": revision, "capabilities": capabilities, "clientInfo": {"name": "old", "version": "1"}}});
        let mut old = Old { url: url.into(), session: String::new(), key: key.map(Into::into) };
        let got = old.post(&hello).await;
        old.session = got.headers["mcp-session-id"].to_str().unwrap().into();
        old
    }

    fn headers(&self) -> Vec<(&str, &str)> {
        let mut headers = Vec::new();
        if !self.session.is_empty() {
            headers.push(("mcp-session-id", self.session.as_str()));
        }
        if let Some(key) = &self.key {
            headers.push(("x-api-key", key.as_str()));
        }
        headers
    }

    pub async fn post(&self, message: &Value) -> Got {
        post(&self.url, &self.headers(), message.to_string()).await
    }

    /// Call a tool; each request that comes is answered as `answer` says. All messages.
    pub async fn call(
        &self,
        name: &str,
        arguments: Value,
        answer: impl Fn(&Value) -> Option<Value>,
    ) -> Vec<Value> {
        let params = json!({"name": name, "arguments": arguments, "_meta": {"progressToken": "t"}});
        self.say(&json!("c"), "tools/call", &params, answer).await
    }

    /// Any request that asks nothing: its answer.
    pub async fn ask(&self, method: &str, params: Value) -> Value {
        static IDS: std::sync::atomic::AtomicU64 = std::sync::atomic::AtomicU64::new(1);
        let id = json!(IDS.fetch_add(1, std::sync::atomic::Ordering::Relaxed));
        self.say(&id, method, &params, |_| None).await.pop().unwrap()
    }

    /// Any request; each request that comes is answered as `answer` says. All messages.
    pub async fn say(
        &self,
        id: &Value,
        method: &str,
        params: &Value,
        answer: impl Fn(&Value) -> Option<Value>,
    ) -> Vec<Value> {
        let call = json!({"jsonrpc": "2.0", "id": id, "method": method, "params": params});
        let response = send(&self.url, &self.headers(), call.to_string()).await;
        let json = response.headers()["content-type"] == "application/json";
        let mut body = response.into_body();
        let (mut buffer, mut seen) = (String::new(), Vec::new());
        while let Some(Ok(frame)) = body.frame().await {
            let Some(data) = frame.data_ref() else { continue };
            buffer.push_str(std::str::from_utf8(data).unwrap());
            if json {
                continue;
            }
            while let Some((event, rest)) = buffer.split_once("\n\n") {
                let data = event.lines().find_map(|l| l.strip_prefix("data: ")).map(str::to_owned);
                buffer = String::from(rest);
                let Some(data) = data.filter(|d| !d.is_empty()) else { continue };
                let message: Value = serde_json::from_str(&data).unwrap();
                if message.get("method").is_some()
                    && message.get("id").is_some()
                    && let Some(mut reply) = answer(&message)
                {
                    reply["jsonrpc"] = json!("2.0");
                    reply["id"] = message["id"].clone();
                    assert_eq!(self.post(&reply).await.status, 202);
                }
                seen.push(message);
            }
        }
        if json {
            seen.push(serde_json::from_str(&buffer).unwrap());
        }
        seen
    }
}

pub fn capabilities_of(arrivals: &[Arrival]) -> Vec<Value> {
    arrivals
        .iter()
        .filter(|a| a.method() == "initialize")
        .map(|a| a.message["params"]["capabilities"].clone())
        .collect()
}

pub async fn weir(up: &Scripted, more: &str) -> Weir {
    let weir = Weir::start("", &up.section("up", more));
    weir.ready(&["up"]).await;
    weir
}
