//! The request as the upstream gets it: the caller's bytes with only the address, the id and the
//! `_meta` exchanged.

use std::borrow::Cow;

use bytes::Bytes;

use crate::call::Call;
use crate::protocol::address::Parsed;
use crate::protocol::capability::{Askable, modern_capabilities};
use crate::protocol::exchange::Exchange;
use crate::protocol::meta::{ObjectWriter, key};
use crate::protocol::revision::{Era, Revision};
use crate::protocol::task::{self, Tasks};

use super::errand::Extra;
use super::idempotency::Key;

/// The W3C context that the upstream continues.
#[derive(Clone, Copy, Default)]
pub struct Trace<'a> {
    /// `traceparent`
    pub parent: Option<&'a str>,
    /// `tracestate`
    pub state: Option<&'a str>,
}

/// What we tell upstreams about ourselves when the caller did not say who it is.
pub fn client_info() -> Vec<u8> {
    ObjectWriter::new()
        .value("name", &"weirkeeper")
        .value("version", &env!("CARGO_PKG_VERSION"))
        .finish()
}

/// `_meta` of a request of our own in the newest revision. Nobody is there to be asked anything;
/// but lists should name the pages of apps, for those who show them, and what tasks tell is
/// passed on.
pub fn own_meta(method: &str) -> Vec<u8> {
    let mut capabilities = Askable::APPS.write(Revision::LATEST);
    if method == "subscriptions/listen" {
        capabilities = task::with_extension(&capabilities);
    }
    ObjectWriter::new()
        .value(key::PROTOCOL_VERSION, &Revision::LATEST.as_str())
        .raw(key::CLIENT_INFO, &client_info())
        .raw(key::CLIENT_CAPABILITIES, &capabilities)
        .finish()
}

/// The caller's `_meta` put in the upstream's words (2026-07-28 basic/index, "_meta"): our id is
/// the progress token, the newest revision's metadata is there for a modern upstream and only
/// for it, everything else stays.
fn meta_for<'a>(call: &Call, era: Era, id: &[u8], trace: Trace<'_>, tasks: bool) -> Cow<'a, [u8]> {
    let meta = &call.meta;
    let says_nothing = meta.progress_token.is_none() && meta.rest.is_empty();
    // Most calls between old ones.
    if era == Era::Legacy && says_nothing && trace.parent.is_none() {
        return Cow::Borrowed(b"{}");
    }
    let mut out = ObjectWriter::new();
    if meta.progress_token.is_some() {
        out.raw(key::PROGRESS_TOKEN, id);
    }
    if era == Era::Modern {
        out.text(key::PROTOCOL_VERSION, Revision::LATEST.as_str());
        match &meta.client_info {
            Some(info) => out.raw(key::CLIENT_INFO, info.as_bytes()),
            None => out.raw(key::CLIENT_INFO, &client_info()),
        };
        // Never more than this caller can serve: an upstream asks for what it sees here.
        let declared = meta.client_capabilities.as_deref();
        let mut capabilities = modern_capabilities(declared, call.askable, call.revision.era());
        if tasks {
            capabilities = task::with_extension(&capabilities).into();
        }
        out.raw(key::CLIENT_CAPABILITIES, &capabilities);
        if let Some(level) = &meta.log_level {
            out.text(key::LOG_LEVEL, level);
        }
    }
    if let Some(parent) = trace.parent {
        out.text(key::TRACEPARENT, parent);
        // One that came in `_meta` is among the rest already.
        if let (Some(state), None) = (trace.state, &meta.traceparent) {
            out.text("tracestate", state);
        }
    }
    for (k, v) in &meta.rest {
        out.raw(k, v.as_bytes());
    }
    out.finish().into()
}

/// `_meta` of a request of our own about a task of this call, which the caller knows nothing of.
pub fn meta_of_task(call: &Call) -> Vec<u8> {
    let declared = call.meta.client_capabilities.as_deref();
    let capabilities = modern_capabilities(declared, call.askable, call.revision.era());
    ObjectWriter::new()
        .value(key::PROTOCOL_VERSION, &Revision::LATEST.as_str())
        .raw(key::CLIENT_INFO, &client_info())
        .raw(key::CLIENT_CAPABILITIES, &task::with_extension(&capabilities))
        .finish()
}

/// The bytes for the upstream.
///
/// `native` replaces the address, `id` the caller's id. What is neither address, id nor `_meta`
/// is copied as it came, except the context of a completion, which upstreams older than
/// 2025-06-18 do not know. `extra` are members that are added to the
/// params, and `key` what the upstream knows the call by.
pub fn build(
    call: &Call,
    parsed: &Parsed,
    native: &str,
    revision: Revision,
    id: u64,
    trace: Trace<'_>,
    extra: &Extra,
    key: Option<&Key>,
) -> Bytes {
    let id = id.to_string();
    let meta = meta_for(call, revision.era(), id.as_bytes(), trace, extra.tasks);
    // A wish for a task counts only where it was checked (2025-11-25 basic/utilities/tasks).
    let unknown: &[&str] = match call.method.name {
        "tools/call" if call.tasks != Tasks::Asked && call.frame.part("task").is_some() => {
            &["task"]
        }
        "completion/complete" if revision < Revision::R2025_06_18 => &["context"],
        _ => &[],
    };
    Exchange {
        native,
        id: id.as_bytes(),
        meta: &meta,
        unknown,
        more: &extra.members,
        edit: key.and_then(Key::edit),
    }
    .apply(&call.frame, parsed)
}
