//! Tasks at the client's edge. A task's public id is sealed: it says whose task it is and which
//! tool runs in it, so that nothing about tasks is kept here and nobody can name another's
//! (2025-11-25 basic/utilities/tasks, "security considerations").

use serde::{Deserialize, Serialize};

use crate::call::{Call, Consumer, TaskName, Terminal};
use crate::failure::Reason;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::{Members, RequestMeta};
use crate::protocol::method::{AddressField, ListKind, Method};
use crate::protocol::revision::{Era, Revision};
use crate::protocol::splice::{Splice, range_of};
use crate::protocol::task::{self, Tasks};
use crate::seal::Purpose;

use super::Edge;
use super::refused::Refused;

#[derive(Serialize, Deserialize)]
struct Sealed {
    tool: Box<str>,
    native: Box<str>,
    consumer: Box<str>,
}

/// What a client makes of it if its `tools/call` becomes a task.
pub fn wanted(
    edge: &Edge,
    consumer: &Consumer,
    method: &Method,
    frame: &Frame,
    revision: Revision,
    meta: &RequestMeta,
) -> Tasks {
    if method.name != "tools/call" {
        return Tasks::None;
    }
    if revision.era() == Era::Modern {
        return if declared(meta) { Tasks::Welcome } else { Tasks::None };
    }
    let asks = |params: &[u8]| {
        Members::read(params).is_ok_and(|m| m.get("task").is_some_and(|t| t.get().starts_with('{')))
    };
    let asked = revision == Revision::R2025_11_25
        && frame.params().is_some_and(|params| asks(&params))
        // Who was not told that there are tasks gets none (2025-11-25 basic/utilities/tasks,
        // "task support and handling").
        && edge.gateway.current.load().view(consumer).has_tasks(revision);
    if asked { Tasks::Asked } else { Tasks::None }
}

fn declared(meta: &RequestMeta) -> bool {
    let raw = meta.client_capabilities.as_deref().unwrap_or_default();
    task::has_extension(raw.as_bytes(), task::EXTENSION)
}

/// Read the task that a request names: the request with the upstream's own id, and the names.
/// `None` for a method that names no task.
///
/// # Errors
/// When there are no tasks for this client, or it names none of its own.
pub fn named(
    edge: &Edge,
    consumer: &Consumer,
    method: &Method,
    frame: &Frame,
    revision: Revision,
    meta: &RequestMeta,
) -> Result<Option<(Frame, TaskName)>, Refused> {
    if method.address != AddressField::Task {
        return Ok(None);
    }
    let view = edge.gateway.current.load().view(consumer);
    if !view.has_tasks(revision) {
        return Err(Refused::unknown_method(frame.method()));
    }
    if revision.era() == Era::Modern && !declared(meta) {
        let extensions = serde_json::json!({task::EXTENSION: {}});
        let text = format!("the client did not declare the extension {}", task::EXTENSION);
        return Err(Refused::new(Reason::CapabilityMissing, text)
            .with("requiredCapabilities", serde_json::json!({"extensions": extensions})));
    }
    let params = frame.params().unwrap_or_default();
    let wrong = |text: &str| Refused::new(Reason::InvalidParams, text);
    let members = Members::read(&params).map_err(|e| wrong(&format!("params: {e}")))?;
    let missing = || wrong("params.taskId must be a string");
    let public = members.get_str("taskId").ok_or_else(missing)?;
    let raw = members.get("taskId").ok_or_else(missing)?;
    // Unknown, damaged, somebody else's, and of a tool that the client may not call any more are
    // one answer.
    let unknown = || wrong("Unknown task");
    let plain = edge.sealer.open(Purpose::Task, &public).ok_or_else(unknown)?;
    let sealed: Sealed = serde_json::from_slice(&plain).map_err(|_| unknown())?;
    if *sealed.consumer != *consumer.name || view.resolve(ListKind::Tools, &sealed.tool).is_none() {
        return Err(unknown());
    }
    let at = frame.params_span().expect("there are params").start;
    let place = range_of(&params, raw.get().as_bytes());
    let mut s = Splice::new();
    let native = serde_json::to_vec(&sealed.native).expect("a string serialises");
    s.replace(place.start + at..place.end + at, native);
    let frame = Frame::scan(s.apply(frame.bytes())).map_err(|_| unknown())?;
    let name =
        TaskName { tool: sealed.tool, native: sealed.native, public: public.as_ref().into() };
    Ok(Some((frame, name)))
}

/// The terminal of a call that became a task, with an id that its caller can use.
pub fn sealed(edge: &Edge, call: &Call, terminal: Terminal) -> Terminal {
    if call.tasks == Tasks::None {
        return terminal;
    }
    let Terminal::Answer(frame, form) = terminal else { return terminal };
    match seal(edge, call, &frame) {
        Some(frame) => Terminal::Answer(frame, form),
        None => Terminal::Answer(frame, form),
    }
}

fn seal(edge: &Edge, call: &Call, frame: &Frame) -> Option<Frame> {
    if frame.kind() != Kind::Result {
        return None;
    }
    let outcome = frame.outcome();
    let (place, native) = task::created_id(&outcome)?;
    let params = call.frame.params()?;
    let tool = Members::read(&params).ok()?.get_str("name")?.as_ref().into();
    let consumer = (&*call.consumer.name).into();
    let plain = serde_json::to_vec(&Sealed { tool, native: native.into(), consumer });
    let public = edge.sealer.seal(Purpose::Task, &plain.expect("our own values serialise"));
    let at = frame.outcome_span()?.start;
    let mut s = Splice::new();
    let public = serde_json::to_vec(&public).expect("a string serialises");
    s.replace(place.start + at..place.end + at, public);
    Frame::scan(s.apply(frame.bytes())).ok()
}
