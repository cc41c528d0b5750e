//! Tasks at the client's edge. A task's public id is sealed: it says whose task it is and which
//! tool runs in it, so that nothing about tasks is kept here and nobody can name another's
//! (2025-11-25 basic/utilities/tasks, "security considerations").

use std::sync::Arc;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::call::{Call, Consumer, Form, TaskName, Terminal};
use crate::catalog::view::Route;
use crate::failure::Reason;
use crate::protocol::address::{UriHolder, map_uris};
use crate::protocol::message::{Frame, Kind, message};
use crate::protocol::meta::{Members, ObjectWriter, RequestMeta, key};
use crate::protocol::method::{AddressField, ListKind, Method};
use crate::protocol::revision::{Era, Revision};
use crate::protocol::splice::{Splice, range_of};
use crate::protocol::task::{self, Tasks};
use crate::seal::Purpose;
use crate::upstream::subscriptions::{Subject, TaskNews};

use super::Edge;
use super::refused::Refused;
use super::session::Session;

#[derive(Serialize, Deserialize)]
struct Sealed {
    upstream: Box<str>,
    tool: Box<str>,
    native: Box<str>,
    consumer: Box<str>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    owner: Option<Box<str>>,
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
    let asked = revision == Revision::R2025_11_25
        && frame.part_text("task").is_some_and(|task| task.starts_with(b"{"))
        // Who was not told that there are tasks gets none (2025-11-25 basic/utilities/tasks,
        // "task support and handling").
        && edge.gateway.current.load().view(consumer).has_tasks(revision);
    if asked { Tasks::Asked } else { Tasks::None }
}

/// Whoever names a task of the extension must have declared it.
///
/// # Errors
/// When it has not.
pub fn must_declare(meta: &RequestMeta) -> Result<(), Refused> {
    if declared(meta) {
        return Ok(());
    }
    let extensions = serde_json::json!({task::EXTENSION: {}});
    let text = format!("the client did not declare the extension {}", task::EXTENSION);
    Err(Refused::new(Reason::CapabilityMissing, text)
        .with("requiredCapabilities", serde_json::json!({"extensions": extensions})))
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
    if revision.era() == Era::Modern {
        must_declare(meta)?;
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
    let name = open(edge, consumer, &public).ok_or_else(unknown)?;
    let at = frame.params_span().expect("there are params").start;
    let place = range_of(&params, raw.get().as_bytes());
    let mut s = Splice::new();
    let native = serde_json::to_vec(&name.native).expect("a string serialises");
    s.replace(place.start + at..place.end + at, native);
    let frame = Frame::scan(s.apply(frame.bytes())).map_err(|_| unknown())?;
    Ok(Some((frame, name)))
}

/// The task that a public id stands for, if it is one of this consumer's, and its tool is still
/// the same upstream's and may be called.
pub fn open(edge: &Edge, consumer: &Consumer, public: &str) -> Option<TaskName> {
    let plain = edge.sealer.open(Purpose::Task, public)?;
    let sealed: Sealed = serde_json::from_slice(&plain).ok()?;
    let view = edge.gateway.current.load().view(consumer);
    let route = view.resolve(ListKind::Tools, &sealed.tool)?;
    let own = *sealed.consumer == *consumer.name && **route.upstream() == *sealed.upstream;
    let Sealed { tool, native, owner, .. } = sealed;
    own.then(|| TaskName { tool, native, owner, public: public.into() })
}

/// What an upstream says of a task, as the notification of the extension.
pub fn news(news: &TaskNews, public: &str, route: &Route, id: &[u8]) -> Option<Bytes> {
    let said = match news.form {
        Form::Canonical => news.said.clone(),
        Form::Plain => task::news_in_extension(&news.said)?.into(),
    };
    let said = map_uris(UriHolder::TaskResult, &said, &|native| route.public_uri(native));
    let members = Members::read(&said).ok()?;
    let mut params = ObjectWriter::new();
    for (key, value) in &members.0 {
        match &**key {
            "taskId" => params.value("taskId", &public),
            // The upstream's subscription is ours.
            "_meta" => continue,
            _ => params.raw(key, value.get().as_bytes()),
        };
    }
    params.raw("_meta", &ObjectWriter::new().raw(key::SUBSCRIPTION_ID, id).finish());
    Some(message(None, "notifications/tasks", Some(&params.finish())))
}

/// The same as the notification of 2025-11-25; `None` if it is none of that revision.
pub fn old_news(news: &TaskNews, public: &str) -> Option<Bytes> {
    if news.form == Form::Canonical {
        return None;
    }
    let (place, with) = task::id_edit(&news.said, public)?;
    let mut s = Splice::new();
    s.replace(place, with);
    Some(message(None, "notifications/tasks/status", Some(&s.apply(&news.said))))
}

/// The terminal of a call that became a task, with an id that its caller can use; and the task, if
/// it did.
pub fn sealed(edge: &Edge, call: &Call, terminal: Terminal) -> (Terminal, Option<TaskName>) {
    if call.tasks == Tasks::None {
        return (terminal, None);
    }
    let Terminal::Answer(frame, form) = terminal else { return (terminal, None) };
    match seal(edge, call, &frame) {
        Some((frame, name)) => (Terminal::Answer(frame, form), Some(name)),
        None => (Terminal::Answer(frame, form), None),
    }
}

/// Remember a session's task, so that its news are told.
pub fn remember(edge: &Edge, session: &Session, name: TaskName) {
    let view = edge.gateway.current.load().view(&session.consumer);
    let Some(route) = view.resolve(ListKind::Tools, &name.tool) else { return };
    let home = &edge.gateway.subscriptions;
    let native = Arc::from(&*name.native);
    if let Some(watch) = home.watch(Subject::Task, route.upstream(), &native) {
        session.began(watch, name);
    }
}

fn seal(edge: &Edge, call: &Call, frame: &Frame) -> Option<(Frame, TaskName)> {
    if frame.kind() != Kind::Result {
        return None;
    }
    let may_be = match call.tasks {
        Tasks::Welcome => frame.part_text("resultType") == Some(b"\"task\""),
        _ => frame.part("task").is_some(),
    };
    if !may_be {
        return None;
    }
    let outcome = frame.outcome();
    let (place, native) = task::created_id(&outcome, call.tasks == Tasks::Welcome)?;
    let params = call.frame.params()?;
    let tool: Box<str> = Members::read(&params).ok()?.get_str("name")?.as_ref().into();
    let consumer = (&*call.consumer.name).into();
    let view = edge.gateway.current.load().view(&call.consumer);
    let upstream = (&**view.resolve(ListKind::Tools, &tool)?.upstream()).into();
    let owner = call.owner.get().map(|owner| (&**owner).into());
    let sealed = Sealed { upstream, tool, native: native.into(), consumer, owner };
    let plain = serde_json::to_vec(&sealed).expect("our own values serialise");
    let public = edge.sealer.seal(Purpose::Task, &plain);
    let at = frame.outcome_span()?.start;
    let mut s = Splice::new();
    let raw = serde_json::to_vec(&public).expect("a string serialises");
    s.replace(place.start + at..place.end + at, raw);
    let Sealed { tool, native, owner, .. } = sealed;
    let name = TaskName { tool, native, owner, public: public.into() };
    Some((Frame::scan(s.apply(frame.bytes())).ok()?, name))
}
