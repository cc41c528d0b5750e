//! What commands show, as plain values; how it looks is the command line's business.

use std::fmt::Write as _;
use std::net::SocketAddr;

use serde::Serialize;

use crate::config::UpstreamConfig;
use crate::gateway::snapshot::Snapshot;

/// One upstream.
#[derive(Clone, Debug, Serialize)]
pub struct UpstreamReport {
    /// Its name.
    pub name: String,
    /// Its state.
    pub state: String,
    /// The revision agreed on.
    pub revision: Option<String>,
    /// Why it is not ready.
    pub why: Option<String>,
    /// The same with what only operators are told, where there is more.
    pub cause: Option<String>,
    /// Its lists.
    pub lists: Vec<ListReport>,
}

/// One list of an upstream.
#[derive(Clone, Debug, Serialize)]
pub struct ListReport {
    /// `tools`, `prompts`, `resources`, `templates`.
    pub kind: String,
    /// How many entries.
    pub entries: usize,
    /// Their size as served, in bytes.
    pub bytes: usize,
}

/// `weir catalog`.
#[derive(Clone, Debug, Serialize)]
pub struct CatalogReport {
    /// What each sees.
    pub consumers: Vec<ConsumerReport>,
    /// What each offers.
    pub upstreams: Vec<UpstreamReport>,
}

/// What one consumer sees.
#[derive(Clone, Debug, Serialize)]
pub struct ConsumerReport {
    /// Its name.
    pub name: String,
    /// Its view.
    pub view: Option<String>,
    /// Public tool names.
    pub tools: Vec<String>,
    /// Public prompt names.
    pub prompts: Vec<String>,
    /// Public URIs.
    pub resources: Vec<String>,
    /// Public URI templates.
    pub templates: Vec<String>,
    /// Public URIs of skills.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub skills: Vec<String>,
}

/// `weir call`.
#[derive(Clone, Debug, Serialize)]
pub struct CallReport {
    /// The raw result or error.
    pub body: String,
    /// Whether the call failed.
    pub failed: bool,
}

// What a start makes of an upstream.
fn at_start(config: &UpstreamConfig) -> String {
    match &config.dormant {
        _ if !config.enabled => "disabled".to_owned(),
        Some(why) => format!("dormant: {why}"),
        None => "starting".to_owned(),
    }
}

/// The same as one line of JSON, for logs that machines read.
pub fn banner_line(snapshot: &Snapshot, listen: SocketAddr, admin: Option<SocketAddr>) -> String {
    let states: serde_json::Map<String, serde_json::Value> = snapshot
        .config
        .upstreams
        .iter()
        .map(|c| (c.name.to_string(), at_start(c).into()))
        .collect();
    let now = humantime::format_rfc3339_micros(std::time::SystemTime::now());
    let line = serde_json::json!({
        "timestamp": now.to_string(),
        "level": "INFO",
        "message": "serving",
        "url": format!("http://{listen}/mcp"),
        "admin": admin.map(|admin| format!("http://{admin}")),
        "upstreams": states,
        "target": "weirkeeper::app",
    });
    format!("{line}\n")
}

/// What a starting gateway says: what it serves, what is dormant and why, where, and how to
/// connect.
pub fn banner(snapshot: &Snapshot, listen: SocketAddr, admin: Option<SocketAddr>) -> String {
    let mut out = String::from("Weirkeeper serves\n");
    for c in &snapshot.config.upstreams {
        let _ = writeln!(out, "  {:<16} {}", c.name, at_start(c));
    }
    if snapshot.config.gateway.builtin {
        let _ = writeln!(out, "  {:<16} ready: the gateway's own tools", "weir");
    }
    let _ = writeln!(out, "at http://{listen}/mcp");
    if let Some(admin) = admin {
        let _ = writeln!(out, "with metrics and state at http://{admin}/metrics and /status");
    }
    let key = if snapshot.config.consumers.is_empty() {
        ""
    } else {
        ",\n      \"headers\": { \"Authorization\": \"Bearer YOUR_KEY\" }"
    };
    let _ = write!(
        out,
        "\nPaste into an MCP client:\n{{\n  \"mcpServers\": {{\n    \"weir\": {{\n      \
         \"type\": \"http\",\n      \"url\": \"http://{listen}/mcp\"{key}\n    }}\n  }}\n}}\n"
    );
    out
}
