//! What is asked and what is answered, the same on both wires.

use serde_json::{Value, json, value::RawValue};

/// What a request is about.
#[derive(Clone, Debug, Default)]
pub struct Asked {
    /// The method; `GET` for the stream of an HTTP client, empty for an answer.
    pub method: String,
    /// The tool that is called.
    pub tool: String,
    /// The id as it was written; empty for a notification.
    pub id: String,
    /// `arguments.id` of a call: which write it is.
    pub write: String,
    /// `arguments.key` of a call: what it is known again by.
    pub key: String,
    /// `arguments.fault` of a call: what is to go wrong with it.
    pub fault: String,
    /// The token of its progress, as it was written.
    pub token: Option<String>,
}

#[derive(serde::Deserialize)]
struct Envelope<'a> {
    #[serde(borrow, default)]
    id: Option<&'a RawValue>,
    #[serde(borrow, default)]
    method: Option<&'a str>,
    #[serde(borrow, default)]
    params: Option<Params<'a>>,
}

#[derive(serde::Deserialize)]
struct Params<'a> {
    #[serde(borrow, default)]
    name: Option<&'a str>,
    #[serde(borrow, default)]
    arguments: Option<&'a RawValue>,
    #[serde(borrow, default, rename = "_meta")]
    meta: Option<&'a RawValue>,
}

impl Asked {
    /// What this message asks.
    pub fn read(message: &[u8]) -> Asked {
        let Ok(envelope) = serde_json::from_slice::<Envelope>(message) else {
            return Asked::default();
        };
        let mut asked = Asked {
            method: envelope.method.unwrap_or_default().to_owned(),
            id: envelope.id.map(|id| id.get().to_owned()).unwrap_or_default(),
            ..Asked::default()
        };
        let Some(params) = envelope.params else { return asked };
        params.name.unwrap_or_default().clone_into(&mut asked.tool);
        if let Some(arguments) = params.arguments {
            asked.write = between(arguments.get(), "\"id\":\"");
            asked.key = between(arguments.get(), "\"key\":\"");
            asked.fault = between(arguments.get(), "\"fault\":\"");
        }
        let meta = params.meta.and_then(|m| serde_json::from_str::<Value>(m.get()).ok());
        asked.token = meta
            .map(|m| m["progressToken"].clone())
            .filter(|t| !t.is_null())
            .map(|t| t.to_string());
        asked
    }

    /// What the beginning of a message asks, if the end is not there yet.
    pub fn guess(bytes: &[u8]) -> Asked {
        let text = String::from_utf8_lossy(bytes);
        let arguments = text.find("\"arguments\":{").map_or("", |at| &text[at..]);
        Asked {
            method: between(&text, "\"method\":\""),
            tool: between(&text, "\"name\":\""),
            write: between(arguments, "\"id\":\""),
            key: between(arguments, "\"key\":\""),
            fault: between(arguments, "\"fault\":\""),
            ..Asked::default()
        }
    }

    /// The answer.
    pub fn answer(&self, tools: usize) -> String {
        let result = match self.method.as_str() {
            "initialize" => json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {},
                "logging": {}}, "serverInfo": {"name": "faulty", "version": "1"}})
            .to_string(),
            "tools/list" => {
                let named = (0..tools).map(|n| match n {
                    0 => tool("echo", true),
                    1 => tool("pay", false),
                    n => tool(&format!("t{n}"), true),
                });
                json!({"tools": named.collect::<Vec<_>>()}).to_string()
            }
            "tools/call" => {
                format!("{{\"content\":[{{\"type\":\"text\",\"text\":\"{}\"}}]}}", self.write)
            }
            "ping" | "logging/setLevel" => "{}".to_owned(),
            _ => {
                return format!(
                    "{{\"jsonrpc\":\"2.0\",\"id\":{},\"error\":{{\"code\":-32601,\"message\":\"no\"}}}}",
                    self.id
                );
            }
        };
        format!("{{\"jsonrpc\":\"2.0\",\"id\":{},\"result\":{result}}}", self.id)
    }

    /// The answer that says no.
    pub fn refusal(&self, code: u16) -> String {
        format!(
            "{{\"jsonrpc\":\"2.0\",\"id\":{},\"error\":{{\"code\":{code},\"message\":\"no\"}}}}",
            self.id
        )
    }

    /// Whether an answer is waited for.
    pub fn is_request(&self) -> bool {
        !self.id.is_empty() && !self.method.is_empty()
    }
}

fn tool(name: &str, read_only: bool) -> Value {
    json!({"name": name,
        "inputSchema": {"type": "object", "properties": {"key": {"type": "string"}}},
        "annotations": {"readOnlyHint": read_only}})
}

fn between(text: &str, before: &str) -> String {
    let found = text.find(before).map(|at| &text[at + before.len()..]);
    found.and_then(|rest| rest.split('"').next()).unwrap_or_default().to_owned()
}

/// One notification of a flood; they differ, for what is the same could be put together.
pub fn notice(n: u64) -> String {
    match n % 4 {
        0 => format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/message\",\"params\":{{\"level\":\"info\",\"data\":\"flood {n}\"}}}}"
        ),
        1 => format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/progress\",\"params\":{{\"progressToken\":\"none-{n}\",\"progress\":{n}}}}}"
        ),
        2 => format!(
            "{{\"jsonrpc\":\"2.0\",\"method\":\"notifications/resources/updated\",\"params\":{{\"uri\":\"flood://{n}\"}}}}"
        ),
        _ => "{\"jsonrpc\":\"2.0\",\"method\":\"notifications/tools/list_changed\"}".to_owned(),
    }
}

/// What is no message.
pub const GARBAGE: &str = "{\"jsonrpc\":\"2.0\",\"id\":\u{0}\u{1f}]}<html>\u{fffd}";
