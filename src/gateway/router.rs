//! Which plan answers a call: the method table × what the consumer sees.

use bytes::Bytes;

use crate::call::{Call, Form, Terminal};
use crate::catalog::view::{Route, View};
use crate::config::Gateway as Settings;
use crate::failure::{Reason, Refusal};
use crate::protocol::address::Parsed;
use crate::protocol::meta::{Members, ObjectWriter, key};
use crate::protocol::method::{AddressField, Handling, ListKind, Method};
use crate::protocol::revision::Revision;

/// What is to be done.
pub enum Plan {
    /// It is answered from memory.
    Answer(Terminal),
    /// Its owner answers. Holding the route is the permission.
    Forward(Route, Parsed),
}

/// Why there is no plan, and what the request named, as far as that could be read.
pub struct Unplanned {
    /// Why.
    pub refusal: Refusal,
    /// The name or URI; empty if there is none.
    pub name: String,
}

impl From<Refusal> for Unplanned {
    fn from(refusal: Refusal) -> Unplanned {
        Unplanned { refusal, name: String::new() }
    }
}

/// Decide.
///
/// # Errors
/// When the params are wrong, or what they name is not there for this consumer.
pub fn plan(view: &View, call: &Call, settings: &Settings) -> Result<Plan, Unplanned> {
    // A method that nobody here declared is none (2026-07-28 basic/transports/streamable-http).
    if !view.serves(call.method, None) {
        let text = format!("Method not found: {}", call.method.name);
        return Err(Refusal::new(Reason::UnknownMethod, text).into());
    }
    match call.method.handling {
        Handling::Discover => Ok(answer(discover(view, settings).into(), Form::Canonical)),
        Handling::List(kind) => {
            let params = call.frame.params().unwrap_or_default();
            let cursor = cursor(&params)?;
            let page = view.page(kind, cursor.as_deref(), settings.page_size, call.form).map_err(
                |_| {
                    Refusal::new(
                        Reason::InvalidParams,
                        "the cursor is not valid; list again from the start",
                    )
                },
            )?;
            Ok(Plan::Answer(Terminal::Prepared(page)))
        }
        Handling::Forward => {
            let parsed = Parsed::of(call.method, &call.frame)
                .map_err(|e| Refusal::new(Reason::InvalidParams, e.to_string()))?;
            if let Some(task) = &call.task {
                // Whoever may call the tool may have what became of the call.
                let route = view.resolve(ListKind::Tools, &task.tool).ok_or_else(|| Unplanned {
                    refusal: Refusal::new(Reason::InvalidParams, "Unknown task"),
                    name: task.tool.to_string(),
                })?;
                return Ok(Plan::Forward(route, parsed));
            }
            let Some(address) = &parsed.address else {
                return Err(Refusal::new(Reason::InvalidParams, "the request names nothing").into());
            };
            let route = view.resolve(address.kind, &address.value);
            if let Some(route) = route.filter(|r| view.serves(call.method, Some(r.upstream()))) {
                return Ok(Plan::Forward(route, parsed));
            }
            let refusal = no_route(view, call.method, &address.value);
            Err(Unplanned { refusal, name: address.value.clone() })
        }
        Handling::Edge | Handling::Listen => {
            Err(Refusal::new(Reason::UnknownMethod, "this method is not for here").into())
        }
    }
}

/// What is said of a name that leads nowhere in this view.
pub fn no_route(view: &View, method: &Method, name: &str) -> Refusal {
    if let Some(upstream) = view.unseen_owner(name) {
        let text = "nothing is known of this upstream yet: it is being started, or has not \
                    answered since it was configured";
        return Refusal::new(Reason::UpstreamDown, text).at(upstream);
    }
    // Unknown and not visible are one answer on purpose.
    Refusal::new(Reason::UnknownName, unknown(method.address, name))
}

fn unknown(field: AddressField, name: &str) -> String {
    // A name is echoed, so cut: the caller sent it and may have sent a megabyte.
    let name: String = name.chars().take(128).collect();
    match field {
        AddressField::ToolName => format!("Unknown tool: {name}"),
        AddressField::PromptName => format!("Unknown prompt: {name}"),
        AddressField::Uri => format!("Resource not found: {name}"),
        _ => format!("Unknown reference: {name}"),
    }
}

fn answer(result: Bytes, form: Form) -> Plan {
    Plan::Answer(Terminal::Own(result, form))
}

fn cursor(params: &[u8]) -> Result<Option<String>, Refusal> {
    let wrong = || Refusal::new(Reason::InvalidParams, "params.cursor must be a string");
    if params.is_empty() {
        return Ok(None);
    }
    let members = Members::read(params)
        .map_err(|e| Refusal::new(Reason::InvalidParams, format!("params: {e}")))?;
    match members.get("cursor").map(serde_json::value::RawValue::get) {
        None | Some("null") => Ok(None),
        Some(_) => members.get_str("cursor").map(|c| Some(c.into_owned())).ok_or_else(wrong),
    }
}

/// Who we are, as `initialize` and `server/discover` say it.
pub fn server_info() -> Vec<u8> {
    ObjectWriter::new()
        .value("name", &"weirkeeper")
        .value("title", &"Weirkeeper")
        .value("version", &env!("CARGO_PKG_VERSION"))
        .finish()
}

/// What upstreams and we ourselves tell agents, as one text.
pub fn instructions(view: &View, settings: &Settings) -> Option<String> {
    let text = view.instructions(settings.instructions.then_some(settings.instructions_max));
    (!text.is_empty()).then_some(text)
}

/// How long a client may keep the answer to discover: capabilities change with the configuration
/// only, and a client hears of that on its listen stream.
const DISCOVER_TTL_MS: u64 = 30_000;

/// The result of `server/discover` (2026-07-28 server/discover). Only modern revisions are named:
/// a modern client could not use the others without a handshake.
pub fn discover(view: &View, settings: &Settings) -> Vec<u8> {
    let mut out = ObjectWriter::new();
    out.value("resultType", &"complete")
        .value("supportedVersions", &[Revision::LATEST.as_str()])
        .raw("capabilities", &view.capabilities(Revision::LATEST));
    if let Some(text) = instructions(view, settings) {
        out.value("instructions", &text);
    }
    let meta = ObjectWriter::new().raw(key::SERVER_INFO, &server_info()).finish();
    out.value("ttlMs", &DISCOVER_TTL_MS)
        .value("cacheScope", &"private")
        .raw("_meta", &meta)
        .finish()
}
