//! A client of the newest revision: each request says everything itself.

use std::sync::Arc;

use crate::call::{Consumer, Notices, Strays, Terminal};
use crate::failure::Reason;
use crate::protocol::capability::Askable;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::RequestMeta;
use crate::protocol::method::{self, Handling};
use crate::protocol::revision::{Era, Revision};

use super::Edge;
use super::canonical::{Opened, TraceHeaders, open};
use super::legacy::{Handled, Running, Work};
use super::refused::Refused;
use super::render::render;
use super::{listen, park, tasks};

/// Whether a request is of the newest era: its `_meta` names a revision, or only that era has
/// its method (2026-07-28 basic/versioning).
pub fn is_modern(frame: &Frame, meta: Option<&RequestMeta>) -> bool {
    meta.is_some_and(|m| m.protocol_version.is_some())
        || matches!(frame.method(), "server/discover" | "subscriptions/listen")
}

/// The metadata that every request must carry, and the revision it names. `agrees` says whether
/// the carrier names the same one; that is asked before whether it is served.
///
/// # Errors
/// When something is missing, differs, or is not served.
pub fn checked(
    meta: Result<Option<RequestMeta>, String>,
    agrees: impl FnOnce(&RequestMeta) -> Result<(), Refused>,
) -> Result<(RequestMeta, Revision), Refused> {
    let meta = meta.map_err(|text| Refused::new(Reason::InvalidParams, text))?;
    let meta = required(meta)?;
    agrees(&meta)?;
    let revision = served(&meta)?;
    Ok((meta, revision))
}

// 2026-07-28 basic/index, "_meta".
fn required(meta: Option<RequestMeta>) -> Result<RequestMeta, Refused> {
    let missing =
        |key: &str| Refused::new(Reason::InvalidParams, format!("params._meta lacks {key}"));
    let meta = meta.ok_or_else(|| missing("io.modelcontextprotocol/protocolVersion"))?;
    if meta.protocol_version.is_none() {
        return Err(missing("io.modelcontextprotocol/protocolVersion"));
    }
    match &meta.client_capabilities {
        Some(raw) if raw.starts_with('{') => Ok(meta),
        _ => Err(missing("io.modelcontextprotocol/clientCapabilities (an object)")),
    }
}

// 2026-07-28 basic/versioning.
fn served(meta: &RequestMeta) -> Result<Revision, Refused> {
    match meta.revision() {
        Some(revision) if revision.era() == Era::Modern => Ok(revision),
        _ => Err(Refused::new(Reason::UnsupportedVersion, "Unsupported protocol version")
            .with("supported", serde_json::json!([Revision::LATEST.as_str()]))
            .with("requested", serde_json::json!(meta.protocol_version))),
    }
}

/// Handle one request whose metadata was checked.
pub async fn handle(
    edge: &Arc<Edge>,
    consumer: &Arc<Consumer>,
    transport: &'static str,
    frame: Frame,
    meta: RequestMeta,
    revision: Revision,
    trace: TraceHeaders,
    strays: Strays,
) -> Result<Handled, Refused> {
    if frame.kind() != Kind::Request {
        return Ok(Handled::Accepted);
    }
    let id = frame.id().expect("a request has an id");
    let unknown = || Refused::unknown_method(frame.method());
    let method = method::find(frame.method(), revision).ok_or_else(unknown)?;
    match method.handling {
        Handling::Edge => return Err(unknown()),
        Handling::Listen => {
            let wish =
                listen::wished(&frame).map_err(|e| Refused::new(Reason::InvalidParams, e))?;
            if !wish.tasks.is_empty() {
                tasks::must_declare(&meta)?;
            }
            return Ok(Handled::Listen(wish));
        }
        Handling::Discover | Handling::List(_) | Handling::Forward => {}
    }
    let askable = match &meta.client_capabilities {
        Some(raw) => Askable::read(raw, revision),
        None => Askable::default(),
    };
    let asks = matches!(method.name, "tools/call" | "prompts/get" | "resources/read");
    let mut earlier = None;
    let frame = if asks {
        match park::state_of(edge, consumer, &frame)? {
            park::State::None => frame,
            park::State::Unwrapped(frame, left) => {
                earlier = left;
                frame
            }
            park::State::Parked(parked) => {
                return Ok(Handled::Running(park::resume(edge, parked, id, &frame, meta)));
            }
        }
    } else {
        frame
    };
    let named = tasks::named(edge, consumer, method, &frame, revision, &meta)?;
    let (frame, task) = named.map_or((frame, None), |(frame, task)| (frame, Some(task)));
    let wanted = tasks::wanted(edge, consumer, method, &frame, revision, &meta);
    let Opened { mut call, record } =
        open(edge, transport, consumer, method, frame, meta, revision, (askable, None), trace);
    call.strays = strays;
    call.task = task;
    call.earlier = earlier;
    call.tasks = wanted;
    if method.handling != Handling::Forward {
        let (none, gateway) = (Notices::none(), &edge.gateway);
        let terminal = Box::pin(gateway.handle(&call, record, &none)).await;
        if let Terminal::Prepared(prepared) = terminal {
            return Ok(Handled::Prepared(prepared, id));
        }
        let said = render(terminal, &id, method, revision);
        if said.code.is_none() {
            return Ok(Handled::Message(said.whole()));
        }
        // An error may have a status, which only the end of a call hands on.
        let (_, silent) = Notices::channel();
        return Ok(Handled::Running(Running::new(
            Work::new(|| std::future::ready(Some(said))),
            silent,
        )));
    }
    if asks && !askable.is_nothing() {
        return Ok(Handled::Running(park::begin(edge, call, record, id)));
    }
    let (notices, notices_rx) = Notices::channel();
    let edge = edge.clone();
    let work = Work::new(|| async move {
        let terminal = edge.gateway.handle(&call, record, &notices).await;
        let terminal = park::wrapped(&edge, &call, terminal);
        let (terminal, _) = tasks::sealed(&edge, &call, terminal);
        Some(render(terminal, &id, method, revision))
    });
    Ok(Handled::Running(Running::new(work, notices_rx)))
}

/// The HTTP status of an error of our own, or of the one error of an upstream that is about the
/// caller (2026-07-28 basic/transports/streamable-http): an unknown method is 404, errors of the
/// request's form are 400, all others travel with 200.
pub fn status_of(code: i32) -> u16 {
    use crate::protocol::error as e;
    match code {
        e::METHOD_NOT_FOUND => 404,
        e::PARSE_ERROR
        | e::INVALID_REQUEST
        | e::HEADER_MISMATCH
        | e::MISSING_CLIENT_CAPABILITY
        | e::UNSUPPORTED_PROTOCOL_VERSION => 400,
        _ => 200,
    }
}
