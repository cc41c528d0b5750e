//! Calls that become tasks (2025-11-25 basic/utilities/tasks; the newest revision's extension
//! `io.modelcontextprotocol/tasks`).
//!
//! Caller and upstream of one dialect talk past us, but for the ids. A caller that knows no tasks
//! gets the result: the task is followed here until it has one. A caller of the newest revision
//! gets the tasks of an old upstream in its own words.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::call::{Call, Form, Terminal};
use crate::failure::{Delivery, Fault, Reason};
use crate::guard::{Deadline, Done, Lent, Signal};
use crate::protocol::error::{
    ErrorObject, INTERNAL_ERROR, INVALID_PARAMS, MISSING_CLIENT_CAPABILITY,
};
use crate::protocol::message::{Frame, Kind, message, response};
use crate::protocol::meta::{Members, ObjectWriter};
use crate::protocol::revision::Era;
use crate::protocol::splice::Splice;
use crate::protocol::task::{self, Glance, Status, TaskSupport, Tasks};

use super::Upstream;
use super::asking::{ASKS_MAX, Asking};
use super::errand::{self, Errand, Extra, Way};
use super::inbound::{self, Arrived};
use super::link::{Link, Unanswered};
use super::outbound;
use super::transport::Unasked;

/// How long to wait before asking how a task is, if it does not say; and the limits of what it
/// may say: less would be a flood, more would keep a caller waiting for what is done.
const POLL: Duration = Duration::from_secs(1);
const POLL_MIN: Duration = Duration::from_millis(100);
const POLL_MAX: Duration = Duration::from_secs(15);

/// How long telling an upstream that nobody wants a task any more may take.
const CANCEL_TIME: Duration = Duration::from_secs(2);

/// What a call says besides, so that its tool runs: one of 2025-11-25 that only runs as a task is
/// asked for one, also for a caller that knows none.
pub fn extra(errand: &Errand<'_>) -> Extra {
    let call = errand.asking.call;
    let mut extra = Extra::default();
    if call.method.name == "tools/call"
        && call.tasks != Tasks::Asked
        && errand.route.task() == TaskSupport::Required
    {
        extra.members.push(("task", Bytes::from_static(b"{}")));
    }
    extra
}

/// Whether a refused call may be made again with tasks declared: the upstream runs the tool in no
/// other way, and the caller, who cannot declare that, waits for the result
/// (`io.modelcontextprotocol/tasks`, "required capabilities").
pub fn wants_tasks(call: &Call, arrived: &Arrived) -> bool {
    let Terminal::Answer(frame, _) = &arrived.terminal else { return false };
    if call.form != Form::Plain
        || call.method.name != "tools/call"
        || frame.error_code() != Some(i64::from(MISSING_CLIENT_CAPABILITY))
    {
        return false;
    }
    let outcome = frame.outcome();
    let needed = || {
        let error = Members::read(&outcome).ok()?;
        let data = Members::read(error.get("data")?.get().as_bytes()).ok()?;
        let needed = data.get("requiredCapabilities")?.get().as_bytes();
        // That, and nothing else.
        let only = Members::read(needed).ok()?.0.len() == 1;
        Some(only && task::has_extension(needed, task::EXTENSION))
    };
    needed().unwrap_or(false)
}

/// What becomes of a call that became a task.
///
/// # Errors
/// When a task that is followed has no result.
pub async fn became(
    upstream: &Upstream,
    errand: &Errand<'_>,
    way: &Way,
    arrived: Arrived,
    created: Glance,
) -> Result<Arrived, Fault> {
    match (errand.asking.call.tasks, way.link().era()) {
        (Tasks::None, _) => follow(upstream, errand, way, created).await,
        (Tasks::Welcome, Era::Legacy) => {
            let Terminal::Answer(frame, _) = &arrived.terminal else { return Ok(arrived) };
            let said = task::created_in_extension(&frame.outcome()).ok_or_else(unreadable)?;
            Ok(Arrived { terminal: made(Kind::Result, &said, Form::Canonical)?, ..arrived })
        }
        _ => Ok(arrived),
    }
}

/// The task that a call became, if its answer says so. `asked`: for a task, by us.
///
/// # Errors
/// When what is said of the task cannot be read.
pub fn created(
    call: &Call,
    link: &Link,
    terminal: &Terminal,
    asked: bool,
) -> Result<Option<Glance>, Fault> {
    let Terminal::Answer(frame, _) = terminal else { return Ok(None) };
    if call.method.name != "tools/call" || frame.kind() != Kind::Result {
        return Ok(None);
    }
    let is_modern = link.era() == Era::Modern;
    let may_be = if is_modern {
        frame.part_text("resultType") == Some(b"\"task\"")
    } else {
        (asked || call.tasks == Tasks::Asked) && frame.part("task").is_some()
    };
    let outcome = frame.outcome();
    if !may_be || task::created_id(&outcome, is_modern).is_none() {
        return Ok(None);
    }
    let task = task::created(&outcome, is_modern).ok_or_else(unreadable)?;
    Glance::read(&task).map(Some).ok_or_else(unreadable)
}

fn unreadable() -> Fault {
    Fault::new(Reason::Garbled, Delivery::Unknown, "what the upstream says of a task is not valid")
}

// A message in the place of an upstream's.
fn made(kind: Kind, body: &[u8], form: Form) -> Result<Terminal, Fault> {
    let frame = Frame::scan(response(b"0", kind, body)).map_err(|_| unreadable())?;
    Ok(Terminal::Answer(frame, form))
}

/// A task that its caller knows nothing of: given up when the caller goes away.
struct Followed {
    link: Arc<Link>,
    id: String,
    cancel: Option<Bytes>,
}

impl Drop for Followed {
    fn drop(&mut self) {
        let Some(params) = self.cancel.take() else { return };
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (link, id) = (self.link.clone(), std::mem::take(&mut self.id));
        runtime.spawn(async move {
            let told = one(&link, "tasks/cancel", Some(&id), params);
            let _ = tokio::time::timeout(CANCEL_TIME, told).await;
        });
    }
}

/// A call that waits for a task: nothing of its own is under way meanwhile, so its place serves
/// others, and the upstream is not slow.
struct Waits<'a> {
    _lent: Lent<'a>,
    deadline: &'a Deadline,
    began: Instant,
    rested: Duration,
}

impl<'a> Waits<'a> {
    fn new(asking: &Asking<'a>) -> Waits<'a> {
        let deadline = asking.deadline;
        let rested = deadline.rested();
        Waits { _lent: asking.guard.lend(), deadline, began: Instant::now(), rested }
    }
}

impl Drop for Waits<'_> {
    fn drop(&mut self) {
        // Time in which the caller was asked counts already.
        let asked = self.deadline.rested().saturating_sub(self.rested);
        self.deadline.set_aside(self.began.elapsed().saturating_sub(asked));
    }
}

/// Questions in the life of one task that is followed: more is an upstream that goes in a circle.
const QUESTIONS_MAX: usize = 64;

// A task's whole life, for a caller that waits for the result.
async fn follow(
    upstream: &Upstream,
    errand: &Errand<'_>,
    way: &Way,
    mut task: Glance,
) -> Result<Arrived, Fault> {
    let link = way.link();
    way.goes_on();
    let id = task.id.clone();
    let asking = Asking { task: Some(&id), ..errand.asking };
    let deadline = asking.deadline;
    let _waits = Waits::new(&asking);
    let meta = outbound::meta_of_task(asking.call);
    let params = |more: Option<(&str, &[u8])>| {
        let mut params = ObjectWriter::new();
        params.value("taskId", &id);
        if let Some((key, raw)) = more {
            params.raw(key, raw);
        }
        if link.era() == Era::Modern {
            params.raw("_meta", &meta);
        }
        Bytes::from(params.finish())
    };
    let get = params(None);
    let mut followed = Followed { link: link.clone(), id: id.clone(), cancel: Some(get.clone()) };
    // A task may go on naming a question for a moment after it was answered.
    let mut answered = HashSet::new();
    let arrived = loop {
        match task.status {
            Status::Working => tokio::time::sleep(pause(&task, deadline)).await,
            _ if link.era() == Era::Legacy => {
                break result(upstream, errand, &asking, way, &id).await?;
            }
            Status::InputRequired if !answered.is_empty() => {
                tokio::time::sleep(pause(&task, deadline)).await;
            }
            // Its questions, or its last words, are fetched.
            _ => {}
        }
        let frame = one(link, "tasks/get", Some(&id), get.clone()).await?;
        if frame.kind() == Kind::Error {
            let text = "the upstream does not say any more how the task is that the call became";
            let code = frame.error_code().unwrap_or(0);
            return Err(Fault::new(Reason::Garbled, Delivery::Unknown, text)
                .because(format_args!("code {code}")));
        }
        deadline.extend();
        let outcome = frame.outcome();
        task = Glance::read(&outcome).ok_or_else(unreadable)?;
        if link.era() == Era::Legacy {
            continue;
        }
        let members = Members::read(&outcome).map_err(|_| unreadable())?;
        let part = |key: &str| members.get(key).map(|raw| raw.get().as_bytes());
        match task.status {
            Status::Working => {}
            Status::InputRequired => {
                let asked = part("inputRequests").map(Members::read);
                let Some(Ok(asked)) = asked else { continue };
                let mut new = ObjectWriter::new();
                let mut any = false;
                for (key, question) in &asked.0 {
                    if answered.insert(key.to_string()) {
                        any = true;
                        new.raw(key, question.get().as_bytes());
                    }
                }
                if answered.len() > QUESTIONS_MAX {
                    let text = "the upstream's task asks again and again";
                    return Err(Fault::new(Reason::Garbled, Delivery::Unknown, text));
                }
                if !any {
                    continue;
                }
                let answers = asking.answers(&new.finish()).await?;
                let update = params(Some(("inputResponses", &answers)));
                let taken = one(link, "tasks/update", Some(&id), update).await?;
                if taken.kind() == Kind::Error {
                    let text = "the upstream's task does not take the answers that it asked for";
                    return Err(Fault::new(Reason::Garbled, Delivery::Unknown, text));
                }
            }
            Status::Completed => {
                let result = part("result").ok_or_else(unreadable)?;
                let Terminal::Answer(frame, _) = made(Kind::Result, result, Form::Canonical)?
                else {
                    return Err(unreadable());
                };
                let guard = errand.asking.guard;
                break inbound::accept(
                    errand.asking.call,
                    guard,
                    errand.route,
                    Era::Modern,
                    frame,
                )?;
            }
            Status::Failed => {
                let error = part("error").ok_or_else(unreadable)?;
                break plain(made(Kind::Error, error, Form::Canonical)?);
            }
            Status::Cancelled => {
                let error = ErrorObject::new(INTERNAL_ERROR, "the server cancelled the task");
                let error = error.to_raw();
                break plain(made(Kind::Error, error.get().as_bytes(), Form::Canonical)?);
            }
        }
    };
    followed.cancel = None;
    way.ended();
    Ok(arrived)
}

fn plain(terminal: Terminal) -> Arrived {
    Arrived { terminal, tool_error: false, asks: false, signal: Signal::Fine }
}

// As long as the task wishes, within bounds; but what shows that the upstream is alive must come
// before the call gives up.
fn pause(task: &Glance, deadline: &Deadline) -> Duration {
    let own = task.poll_ms.map_or(POLL, Duration::from_millis).clamp(POLL_MIN, POLL_MAX);
    own.min(deadline.remaining() / 3).max(POLL_MIN)
}

// One small request about a task.
async fn one(
    link: &Arc<Link>,
    method: &str,
    name: Option<&str>,
    params: Bytes,
) -> Result<Frame, Fault> {
    let id = link.mint();
    let message = message(Some(id.to_string().as_bytes()), method, Some(&params));
    let answered = link.exchange(id, method, name, message, &|_| {}, None).await;
    answered.map(|answered| answered.frame).map_err(|unanswered| lost(link, unanswered))
}

// 2025-11-25 basic/transports, "session management".
fn lost(link: &Link, unanswered: Unanswered) -> Fault {
    if unanswered.status == Some(404) && link.agreed.session.is_some() {
        link.lost();
    }
    unanswered.fault
}

// `tasks/result` waits until there is one, and the questions of the task come on its stream.
async fn result(
    upstream: &Upstream,
    errand: &Errand<'_>,
    asking: &Asking<'_>,
    way: &Way,
    native: &str,
) -> Result<Arrived, Fault> {
    let link = way.link();
    let id = link.mint();
    let params = ObjectWriter::new().value("taskId", &native).finish();
    let request = message(Some(id.to_string().as_bytes()), "tasks/result", Some(&params));
    let (asks, asked) = mpsc::channel::<Unasked>(ASKS_MAX);
    if let Some(hearing) = way.hearing() {
        hearing.begin(asks.clone());
    }
    let on_notice = |frame: Frame| {
        asking.deadline.extend();
        match inbound::notice(asking.call, &link.upstream, &frame) {
            Some(message) => asking.notices.send(message),
            None => upstream.heard(link, frame),
        }
    };
    let get: Bytes = ObjectWriter::new().value("taskId", &native).finish().into();
    let alive = async {
        // As long as the upstream knows the task and works at it, it is not slow.
        loop {
            let pause = POLL_MAX.min(asking.deadline.remaining() / 3).max(POLL_MIN);
            tokio::time::sleep(pause).await;
            if let Ok(frame) = one(link, "tasks/get", None, get.clone()).await
                && frame.kind() == Kind::Result
            {
                asking.deadline.extend();
            }
        }
    };
    let answered = tokio::select! {
        biased;
        answered = link.exchange(id, "tasks/result", None, request, &on_notice, Some(&asks)) => answered,
        () = asking.serve(link, asked) => unreachable!("it ends with the call"),
        () = alive => unreachable!("it ends with the call"),
    };
    let mut frame = answered.map_err(|unanswered| lost(link, unanswered))?.frame;
    if asking.call.task.is_none() {
        // A caller that knows of no task need not hear of one.
        let said = task::related(&frame.outcome(), None);
        frame = with_outcome(frame, &said);
    }
    inbound::accept(asking.call, asking.guard, errand.route, link.era(), frame)
}

/// Make one attempt at a request that names a task.
///
/// # Errors
/// When the upstream fails.
pub async fn attempt(
    upstream: &Upstream,
    errand: &Errand<'_>,
) -> Result<Done<(Terminal, bool)>, Fault> {
    let call = errand.asking.call;
    let Some(task) = &call.task else { return Err(unreadable()) };
    let turn = call.method.name == "tasks/result";
    let way = errand::way(upstream, errand, turn).await?;
    let arrived = match (way.link().era(), call.form, call.method.name) {
        (Era::Legacy, Form::Canonical, "tasks/get") => {
            old_get(upstream, errand, &way, &task.native).await
        }
        (Era::Legacy, Form::Canonical, "tasks/cancel") => old_cancel(&way, &task.native).await,
        (Era::Legacy, Form::Canonical, _) => {
            let params = call.frame.params().unwrap_or_default();
            let answers = Members::read(&params).ok().and_then(|m| m.get("inputResponses"));
            let answers = answers.map_or("{}", |answers| answers.get());
            let heard = upstream.inputs.answer(way.link(), &task.native, answers.as_bytes()).await;
            let text =
                "no question of this task is open here: get the task, and answer what it asks";
            Ok(plain(if heard { done()? } else { refused(INVALID_PARAMS, text)? }))
        }
        (Era::Legacy, Form::Plain, "tasks/result") => {
            // Who gives up waiting does not give up the task; what that asks then is refused.
            way.ended();
            let asking = Asking { task: Some(&task.native), ..errand.asking };
            let _waits = Waits::new(&asking);
            result(upstream, errand, &asking, &way, &task.native).await
        }
        // It was made when the upstream spoke the other dialect.
        (Era::Modern, Form::Plain, _) => Ok(plain(refused(INVALID_PARAMS, "Unknown task")?)),
        _ => errand::carry(upstream, &way, errand, &[], &Extra::default()).await,
    };
    way.ended();
    let arrived = arrived?;
    Ok(Done { value: (arrived.terminal, arrived.tool_error), signal: arrived.signal })
}

fn refused(code: i32, text: &str) -> Result<Terminal, Fault> {
    made(Kind::Error, ErrorObject::new(code, text).to_raw().get().as_bytes(), Form::Canonical)
}

fn done() -> Result<Terminal, Fault> {
    made(Kind::Result, br#"{"resultType":"complete"}"#, Form::Canonical)
}

// How long a task's question may wait for its conversation to be free before the caller is told
// to come again.
const TURN_TIME: Duration = Duration::from_millis(500);

async fn old_get(
    upstream: &Upstream,
    errand: &Errand<'_>,
    way: &Way,
    native: &str,
) -> Result<Arrived, Fault> {
    let link = way.link();
    let params: Bytes = ObjectWriter::new().value("taskId", &native).finish().into();
    let frame = one(link, "tasks/get", None, params.clone()).await?;
    if frame.kind() == Kind::Error {
        return Ok(plain(Terminal::Answer(frame, Form::Canonical)));
    }
    let said = frame.outcome();
    let glance = Glance::read(&said).ok_or_else(unreadable)?;
    let mut came: Option<(&str, Bytes)> = None;
    let mut status = None;
    if matches!(glance.status, Status::Completed | Status::Failed) {
        // It does not wait any more.
        let end = one(link, "tasks/result", None, params).await?;
        if end.kind() == Kind::Error {
            came = Some(("error", end.outcome()));
            status = Some("failed");
        } else {
            // That a tool says `isError` is a result like any other in the extension.
            came = Some(("result", task::related(&end.outcome(), None)));
            status = Some("completed");
        }
    }
    if glance.status == Status::InputRequired {
        if !upstream.inputs.hears(link, native) {
            let turn = tokio::time::timeout(TURN_TIME, errand::way(upstream, errand, true)).await;
            if let Ok(turn) = turn {
                let consumer = &errand.asking.call.consumer.name;
                upstream.inputs.hear(native, consumer, turn?);
            }
        }
        match upstream.inputs.requests(link, native).await {
            Some(requests) => came = Some(("inputRequests", requests)),
            // There is nothing to answer yet.
            None => status = Some("working"),
        }
    }
    let came = came.as_ref().map(|(key, raw)| (*key, &raw[..]));
    let said = task::in_extension(&said, came, status).ok_or_else(unreadable)?;
    let Terminal::Answer(frame, _) = made(Kind::Result, &said, Form::Canonical)? else {
        return Err(unreadable());
    };
    inbound::accept(errand.asking.call, errand.asking.guard, errand.route, Era::Modern, frame)
}

// One that is over is cancelled as well as it can be (`io.modelcontextprotocol/tasks`,
// "cancellation"); 2025-11-25 calls that an error.
async fn old_cancel(way: &Way, native: &str) -> Result<Arrived, Fault> {
    let link = way.link();
    let params: Bytes = ObjectWriter::new().value("taskId", &native).finish().into();
    let frame = one(link, "tasks/cancel", None, params.clone()).await?;
    if frame.kind() == Kind::Error {
        let now = one(link, "tasks/get", None, params).await?;
        let over = now.kind() == Kind::Result
            && Glance::read(&now.outcome()).is_some_and(|task| task.is_over());
        if !over {
            return Ok(plain(Terminal::Answer(frame, Form::Canonical)));
        }
    }
    Ok(plain(done()?))
}

/// What an answer says of the call's task, with the caller's id of it.
pub fn renamed(call: &Call, frame: Frame) -> Frame {
    let Some(task) = &call.task else { return frame };
    let outcome = frame.outcome();
    let mut said = task::related(&outcome, Some(&task.public));
    if let Some((range, with)) = task::id_edit(&said, &task.public)
        && task::id_of(&said).as_deref() == Some(&*task.native)
    {
        let mut s = Splice::new();
        s.replace(range, with);
        said = s.apply(&said);
    }
    with_outcome(frame, &said)
}

fn with_outcome(frame: Frame, said: &Bytes) -> Frame {
    if *said == frame.outcome() {
        return frame;
    }
    let mut s = Splice::new();
    s.replace(frame.outcome_span().expect("an answer has an outcome"), said.to_vec());
    Frame::scan(s.apply(frame.bytes())).unwrap_or(frame)
}
