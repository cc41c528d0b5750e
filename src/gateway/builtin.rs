//! The gateway's own read-only tools, as an upstream called `weir`: what is wrong, and where is
//! the tool I need? They show a caller only what its view shows.

use std::sync::Arc;

use bytes::Bytes;
use serde_json::{Value, json};

use crate::call::{Call, Form, Terminal};
use crate::catalog::freshness::rfc3339;
use crate::catalog::slice::{About, Slice, SliceBuilder};
use crate::catalog::view::View;
use crate::failure::{Reason, Refusal};
use crate::protocol::meta::{Members, at};
use crate::protocol::method::ListKind;
use crate::protocol::revision::Revision;

use crate::upstream::replicas::Standing;

use super::Gateway;
use super::snapshot::Snapshot;

/// Its name; no configured upstream may have it.
pub const NAME: &str = "weir";

/// The tool that says why another cannot be called.
pub const WHY: &str = "why";

/// Most hits of a search: a model reads them all.
const HITS_MAX: usize = 25;

/// What it offers.
pub fn slice() -> Arc<Slice> {
    let tools = json!({"tools": [
        {
            "name": "status",
            "title": "Gateway status",
            "description": "Shows each upstream server behind this gateway: its state, since when, \
                and why it is not available if so. Call it when a tool is missing or fails.",
            "inputSchema": {"type": "object", "properties": {}, "additionalProperties": false},
            "annotations": {"readOnlyHint": true, "openWorldHint": false},
        },
        {
            "name": "search",
            "title": "Search tools",
            "description": "Finds tools, prompts and resources of this gateway by words in their \
                names and descriptions.",
            "inputSchema": {
                "type": "object",
                "properties": {"query": {"type": "string", "description": "Words to look for"}},
                "required": ["query"],
                "additionalProperties": false,
            },
            "annotations": {"readOnlyHint": true, "openWorldHint": false},
        },
        {
            "name": WHY,
            "title": "Why a tool cannot be called",
            "description": "Says whether you can call a tool now; if not, what refuses it, since \
                when, and what would change it; if so, which limits apply and how near they are. \
                It calls nothing and costs nothing.",
            "inputSchema": {
                "type": "object",
                "properties": {"tool": {"type": "string", "description": "Name of the tool"}},
                "required": ["tool"],
                "additionalProperties": false,
            },
            "annotations": {"readOnlyHint": true, "openWorldHint": false},
        },
    ]});
    let about = About {
        revision: Revision::LATEST,
        capabilities: Bytes::from_static(br#"{"tools":{"listChanged":true}}"#),
        server_info: None,
        instructions: None,
        sse: false,
    };
    let mut builder = SliceBuilder::new(about, 16);
    let tools = Bytes::from(serde_json::to_vec(&tools).expect("our own values"));
    builder.add_page(ListKind::Tools, &tools).expect("our own tools are valid");
    Arc::new(builder.finish())
}

/// Answer a call of one of them.
pub fn call(
    gateway: &Gateway,
    snapshot: &Snapshot,
    view: &View,
    call: &Call,
    tool: &str,
) -> Result<(Terminal, bool), Refusal> {
    let value = match tool {
        "status" => status(gateway, snapshot, view, false),
        "search" => {
            let Some(query) = argument(call, "query") else {
                return Ok((text("search needs the argument `query`, a string", true), true));
            };
            search(view, &query)
        }
        _ => return Err(Refusal::new(Reason::UnknownName, "Unknown tool")),
    };
    let pretty = serde_json::to_string_pretty(&value).expect("our own values");
    Ok((text(&pretty, false), false))
}

/// A string among the arguments of a call.
pub(super) fn argument(call: &Call, name: &str) -> Option<String> {
    let params = call.frame.params().unwrap_or_default();
    let members = Members::read(&params).ok()?;
    let arguments: Value = serde_json::from_str(members.get("arguments")?.get()).ok()?;
    Some(arguments.get(name)?.as_str()?.to_owned())
}

/// A result with this text.
pub(super) fn text(text: &str, is_error: bool) -> Terminal {
    let result = json!({
        "resultType": "complete",
        "content": [{"type": "text", "text": text}],
        "isError": is_error,
    });
    Terminal::Own(
        Bytes::from(serde_json::to_vec(&result).expect("our own values")),
        Form::Canonical,
    )
}

/// Each upstream that the view shows, as JSON; also the heart of the admin's `/status`, which tells
/// of the disabled ones too.
pub fn status(gateway: &Gateway, snapshot: &Snapshot, view: &View, disabled: bool) -> Value {
    let upstreams: Vec<Value> = snapshot
        .config
        .upstreams
        .iter()
        .filter(|c| view.sees(&c.name) || (disabled && !c.enabled))
        .map(|c| upstream_status(snapshot, &c.name))
        .collect();
    json!({"draining": gateway.is_draining(), "upstreams": upstreams})
}

/// One upstream as JSON.
pub fn upstream_status(snapshot: &Snapshot, name: &Arc<str>) -> Value {
    let Some(upstream) = snapshot.upstreams.get(name) else {
        return json!({"upstream": **name, "state": "disabled"});
    };
    let condition = upstream.condition();
    let guard = upstream.guard();
    let mut out = json!({
        "upstream": **name,
        "state": condition.state.as_str(),
        "since": condition.since_text(),
        "crash_loop": condition.crash_loop,
        "breaker": guard.breaker.state.as_str(),
        "in_flight": guard.in_flight,
        "queued": guard.queued,
        "restarts": upstream.restarts.load(std::sync::atomic::Ordering::Relaxed),
    });
    let set = |out: &mut Value, key: &str, value: Value| {
        out.as_object_mut().expect("an object").insert(key.into(), value);
    };
    if let Some(term) = upstream.upkeep() {
        // What callers meet goes before what the gateway sees; that stands beside it.
        set(&mut out, "state", term.settings.state.as_str().into());
        set(&mut out, "since", rfc3339(term.since).into());
        set(&mut out, "connection", condition.state.as_str().into());
        if let Some(message) = &term.settings.message {
            set(&mut out, "message", (**message).into());
        }
        if let Some(until) = term.settings.until {
            set(&mut out, "until", rfc3339(until).into());
        }
    }
    if !condition.why.is_empty() {
        set(&mut out, "why", (*condition.why).into());
    }
    if let Some(after) = condition.next_try_in() {
        set(&mut out, "next_try_in_ms", (after.as_millis() as u64).into());
    }
    if guard.breaker.state != crate::guard::State::Closed
        && let Some(why) = &guard.breaker.why
    {
        set(&mut out, "breaker_why", why.to_string().into());
        if let Some(after) = guard.breaker.probe_in {
            set(&mut out, "breaker_probe_in_ms", (after.as_millis() as u64).into());
        }
    }
    if let Some(pause) = guard.paused {
        set(&mut out, "paused_for_ms", (pause.as_millis() as u64).into());
    }
    if let Some(link) = &condition.link {
        set(&mut out, "revision", link.agreed.revision.as_str().into());
    }
    let replicas: Vec<Value> = upstream.standings().iter().map(replica_status).collect();
    if !replicas.is_empty() {
        set(&mut out, "replicas", replicas.into());
    }
    if let Some(freshness) = snapshot.catalog.freshness(name) {
        set(&mut out, "catalog", freshness.to_json());
    }
    let entries: serde_json::Map<String, Value> = ListKind::ALL
        .iter()
        .map(|k| (k.as_str().to_owned(), snapshot.catalog.facts(name, *k).0.into()))
        .collect();
    set(&mut out, "entries", entries.into());
    out
}

// Without its address, which is for operators.
fn replica_status(replica: &Standing) -> Value {
    let mut out = json!({
        "replica": replica.number,
        "state": replica.condition.state.as_str(),
        "in_flight": replica.facts.in_flight,
        "failures_in_a_row": replica.facts.failing,
    });
    if let Some(left) = replica.facts.ejected_for {
        out["ejected_for_ms"] = (left.as_millis() as u64).into();
    }
    if !replica.condition.why.is_empty() {
        out["why"] = (*replica.condition.why).into();
    }
    out
}

fn search(view: &View, query: &str) -> Value {
    let words: Vec<String> = query.to_lowercase().split_whitespace().map(str::to_owned).collect();
    let mut hits: Vec<(usize, Value)> = Vec::new();
    for kind in ListKind::ALL {
        for (name, raw) in view.items(kind) {
            // A skill says what it is for in its frontmatter.
            let field = |k: &str| {
                let said = at(raw, &[k]).or_else(|| at(raw, &["frontmatter", k]));
                said.and_then(|v| serde_json::from_str::<String>(v.get()).ok()).unwrap_or_default()
            };
            let hay = format!("{name} {} {}", field("title"), field("description")).to_lowercase();
            let score = words.iter().filter(|w| hay.contains(w.as_str())).count();
            if score > 0 {
                let description: String = field("description").chars().take(200).collect();
                hits.push((
                    score,
                    json!({"kind": kind.as_str(), "name": name, "description": description}),
                ));
            }
        }
    }
    // A stable sort: the catalog's order decides between equals.
    hits.sort_by_key(|(score, _)| std::cmp::Reverse(*score));
    let found = hits.len();
    let hits: Vec<Value> = hits.into_iter().take(HITS_MAX).map(|(_, v)| v).collect();
    json!({"found": found, "hits": hits})
}
