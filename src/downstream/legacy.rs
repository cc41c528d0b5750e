//! An old client made to look canonical: the handshake, the session's own methods, its requests.

use std::future::{Future, poll_fn, ready};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::value::RawValue;
use tokio::runtime::Handle;
use tokio_util::task::TaskTracker;

use crate::call::heard::{self, Heard};
use crate::call::{Consumer, Notices, Offer, Terminal};
use crate::failure::Reason;
use crate::gateway::router;
use crate::gateway::subscriptions::Changes;
use crate::observe::record::{Outcome, Record};
use crate::place::in_place;
use crate::protocol::capability::Askable;
use crate::protocol::error::LEGACY_RESOURCE_NOT_FOUND;
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::meta::{Members, ObjectWriter, cancelled_id};
use crate::protocol::method::{self, Handling};
use crate::protocol::prepared::Prepared;
use crate::protocol::revision::Revision;
use crate::upstream::inbound::LOG_LEVELS;

use super::cancel::Cancel;
use super::canonical::{Opened, TraceHeaders, meta_of, open};
use super::refused::{Refused, label};
use super::render::{Said, render};
use super::session::{Hello, SESSION_CALLS_MAX, Session};
use super::{Edge, conversation, listen, tasks};

/// What became of a message.
pub enum Handled {
    /// There is nothing to say.
    Accepted,
    /// The answer is this message.
    Message(Bytes),
    /// The answer is this result, which others get too, and the request's id.
    Prepared(Prepared, Bytes),
    /// The answer is being made.
    Running(Running),
    /// A stream of notices (newest revision only).
    Listen(listen::Wish),
}

/// A call under way.
pub struct Running {
    /// Ends with the response message, or with nothing if it was cancelled.
    pub work: Work,
    /// The notices it causes meanwhile.
    pub notices: heard::Listener,
    // Whether the work is done, and its outcome while the last notices are still handed out.
    over: bool,
    end: Option<Said>,
}

/// The work of a call, done by whoever waits for it.
pub struct Work {
    future: Pin<Box<dyn Future<Output = Option<Said>> + Send>>,
    // Where it goes on when nobody waits any more. `None`: it ends then.
    goes_on: Option<TaskTracker>,
}

impl Work {
    /// Work that is cancelled by dropping it (2026-07-28 basic/patterns/cancellation).
    pub fn new<F>(make: impl FnOnce() -> F) -> Work
    where
        F: Future<Output = Option<Said>> + Send + 'static,
    {
        Work { future: in_place(make), goes_on: None }
    }

    /// Work that goes on by itself when it is dropped: an old client's lost connection does not
    /// cancel (2025-11-25 basic/transports). Until then it needs no task of its own, which each
    /// call would pay for.
    pub fn lasting<F>(tasks: &TaskTracker, make: impl FnOnce() -> F) -> Work
    where
        F: Future<Output = Option<Said>> + Send + 'static,
    {
        Work { future: in_place(make), goes_on: Some(tasks.clone()) }
    }
}

impl Future for Work {
    type Output = Option<Said>;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Said>> {
        let said = self.future.as_mut().poll(cx);
        if said.is_ready() {
            self.goes_on = None;
        }
        said
    }
}

impl Drop for Work {
    fn drop(&mut self) {
        let Some(tasks) = self.goes_on.take() else { return };
        // At the end of the process there is no runtime any more, and nothing goes on.
        let Ok(runtime) = Handle::try_current() else { return };
        let future = std::mem::replace(&mut self.future, Box::pin(ready(None)));
        tasks.spawn_on(future, &runtime);
    }
}

/// What a call says next.
pub enum Step {
    /// A notice.
    Notice(Bytes),
    /// The response message, or nothing if it was cancelled. Nothing comes behind it.
    End(Option<Said>),
}

impl Running {
    /// A call that has begun.
    pub fn new(work: Work, notices: heard::Listener) -> Running {
        Running { work, notices, over: false, end: None }
    }

    /// What it says next: its notices in their order, the end behind all of them, as a whole. Safe
    /// to drop and call again.
    pub async fn next(&mut self) -> Step {
        loop {
            match self.next_or_offer().await {
                Ok(step) => return step,
                Err(declined) => drop(declined),
            }
        }
    }

    /// The same; but the end may be offered in pieces instead.
    pub async fn next_or_offer(&mut self) -> Result<Step, Offer> {
        if !self.over
            && let Some(heard) = poll_fn(|cx| self.poll_work(cx)).await
        {
            return match heard {
                Heard::Notice(notice) => Ok(Step::Notice(notice)),
                Heard::Offer(offer) => Err(offer),
            };
        }
        Ok(match last_word(&mut self.notices).await {
            Some(notice) => Step::Notice(notice),
            None => Step::End(self.end.take()),
        })
    }

    // What the work says; nothing when it is over.
    fn poll_work(&mut self, cx: &mut Context<'_>) -> Poll<Option<Heard>> {
        // What it says while it is looked at is found below.
        self.notices.look_away();
        if let Poll::Ready(end) = Pin::new(&mut self.work).poll(cx) {
            (self.over, self.end) = (true, end);
            return Poll::Ready(None);
        }
        match self.notices.poll_recv(cx) {
            Poll::Ready(Some(heard)) => Poll::Ready(Some(heard)),
            Poll::Ready(None) | Poll::Pending => Poll::Pending,
        }
    }

    /// Whether the work is done, and only words are left.
    pub fn is_over(&self) -> bool {
        self.over
    }
}

/// How long the last words of a call that has ended may take. They are on their way already: it
/// is tasks of our own that hand them on, which takes no time but on a machine that is overloaded.
const LAST_WORDS: Duration = Duration::from_secs(5);

// A notice that a call left behind, such as the withdrawal of a question; `None` when there is no
// more to come.
async fn last_word(notices: &mut heard::Listener) -> Option<Bytes> {
    loop {
        // Mostly there are none, and nobody is left to say one.
        let heard = match poll_fn(|cx| Poll::Ready(notices.poll_recv(cx))).await {
            Poll::Ready(heard) => heard?,
            Poll::Pending => {
                let last = Box::pin(tokio::time::timeout(LAST_WORDS, notices.recv()));
                last.await.ok().flatten()?
            }
        };
        if let Heard::Notice(notice) = heard {
            return Some(notice);
        }
    }
}

/// Longest `clientInfo` that is kept, for as long as its session: names, versions, small icons.
/// A longer one is left out, as if the client had said nothing of itself.
const CLIENT_INFO_MAX: usize = 8 << 10;

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Initialize<'a> {
    protocol_version: String,
    #[serde(borrow, default)]
    client_info: Option<&'a RawValue>,
    #[serde(borrow, default)]
    capabilities: Option<&'a RawValue>,
}

/// Read `initialize`; an error text if its params are wrong.
pub fn hello(frame: &Frame) -> Result<Hello, String> {
    let params = frame.params().ok_or("params.protocolVersion is missing")?;
    let i: Initialize<'_> = serde_json::from_slice(&params).map_err(|e| format!("params: {e}"))?;
    let revision = Revision::negotiate(&i.protocol_version);
    let capabilities = i.capabilities.map_or("{}", RawValue::get);
    Ok(Hello {
        revision,
        askable: Askable::read(capabilities, revision),
        client_info: i
            .client_info
            .map(RawValue::get)
            .filter(|info| info.len() <= CLIENT_INFO_MAX)
            .map(Into::into),
    })
}

/// The answer to `initialize`, from memory (2025-11-25 basic/lifecycle).
pub fn welcome(edge: &Edge, session: &Session, id: &[u8]) -> Bytes {
    let snapshot = edge.gateway.current.load();
    let view = snapshot.view(&session.consumer);
    let mut out = ObjectWriter::new();
    out.value("protocolVersion", &session.revision.as_str())
        .raw("capabilities", &view.capabilities(session.revision))
        .raw("serverInfo", &router::server_info());
    if let Some(text) = router::instructions(&view, &snapshot.config.gateway) {
        out.value("instructions", &text);
    }
    response(id, Kind::Result, &out.finish())
}

/// What a session's client can know from now on: what there is now.
pub fn told_now(edge: &Edge, session: &Session) {
    let known = Changes::of(&edge.gateway, &session.consumer).known();
    *session.told.lock().expect("no panic while held") = Some(known);
}

/// Handle one message of a session.
pub async fn handle(
    edge: &Arc<Edge>,
    session: &Arc<Session>,
    transport: &'static str,
    frame: Frame,
    trace: TraceHeaders,
) -> Handled {
    match frame.kind() {
        Kind::Request => {
            let (id, method) = (frame.id().unwrap_or_default(), label(&frame));
            let handled = request(edge, session, transport, frame, trace).await;
            handled.unwrap_or_else(|refused| {
                let revision = session.revision.as_str();
                refused.note(edge, &session.consumer.name, method, transport, revision);
                Handled::Message(refused.message(&id))
            })
        }
        Kind::Notification => {
            match frame.method() {
                "notifications/cancelled" => cancel(session, &frame),
                "notifications/roots/list_changed" => {
                    edge.gateway.roots_changed(&session.consumer, &session.id);
                }
                _ => {}
            }
            Handled::Accepted
        }
        Kind::Result | Kind::Error => {
            conversation::answered(session, &frame);
            Handled::Accepted
        }
    }
}

// 2025-11-25 basic/utilities/cancellation: unknown and finished ids are ignored.
fn cancel(session: &Session, frame: &Frame) {
    if let Some(running) = cancelled_id(frame).and_then(|id| session.running.get(&id)) {
        running.cancel();
    }
}

async fn request(
    edge: &Arc<Edge>,
    session: &Arc<Session>,
    transport: &'static str,
    frame: Frame,
    trace: TraceHeaders,
) -> Result<Handled, Refused> {
    let id = frame.id().expect("a request has an id");
    let unknown = || Refused::unknown_method(frame.method());
    let method = method::find(frame.method(), session.revision).ok_or_else(unknown)?;
    let meta = meta_of(&frame).map_err(invalid)?;
    let done = || Handled::Message(response(&id, Kind::Result, b"{}"));
    match (method.handling, method.name) {
        (Handling::Edge, "ping") => return Ok(done()),
        (Handling::Edge, "logging/setLevel") => {
            return set_level(session, &frame).map(|()| done());
        }
        (Handling::Edge, "resources/subscribe" | "resources/unsubscribe") => {
            return subscribe(edge, session, &frame).map(|()| done());
        }
        (Handling::Edge, "initialize") => {
            return Err(Refused::new(Reason::InvalidMessage, "already initialized"));
        }
        (Handling::Edge | Handling::Listen | Handling::Discover, _) => return Err(unknown()),
        (Handling::List(_) | Handling::Forward, _) => {}
    }
    // The handshake and the session say what a modern request says of itself.
    let mut meta = meta.unwrap_or_default();
    meta.client_info.clone_from(&session.client_info);
    meta.client_capabilities = None;
    meta.protocol_version = None;
    meta.log_level.clone_from(&session.log_level.lock().expect("no panic while held"));
    let named = tasks::named(edge, &session.consumer, method, &frame, session.revision, &meta)?;
    let (frame, task) = named.map_or((frame, None), |(frame, task)| (frame, Some(task)));
    let wanted = tasks::wanted(edge, &session.consumer, method, &frame, session.revision, &meta);
    let Opened { mut call, record } = open(
        edge,
        transport,
        &session.consumer,
        method,
        frame,
        meta,
        session.revision,
        (session.askable, Some(session.id.clone())),
        trace,
    );
    call.task = task;
    call.asides = Some(session.asides.clone());
    call.tasks = wanted;
    if method.handling != Handling::Forward {
        let (none, gateway) = (Notices::none(), &edge.gateway);
        let terminal = Box::pin(gateway.handle(&call, record, &none)).await;
        return Ok(match terminal {
            Terminal::Prepared(prepared) => Handled::Prepared(prepared, id),
            other => Handled::Message(render(other, &id, method, session.revision).whole()),
        });
    }
    if session.running.len() >= SESSION_CALLS_MAX {
        let text = "as many requests of this session are under way as may be";
        return Ok(refused(record, &Refused::new(Reason::Overloaded, text), &id));
    }
    let token = Cancel::default();
    // 2025-11-25 basic: an id must not be used twice in a session. The first goes on.
    let free = match session.running.entry(id.clone()) {
        dashmap::Entry::Vacant(place) => {
            place.insert(token.clone());
            true
        }
        dashmap::Entry::Occupied(_) => false,
    };
    if !free {
        let text = "a request with this id is already under way";
        return Ok(refused(record, &Refused::new(Reason::DuplicateId, text), &id));
    }
    let (notices, notices_rx) = conversation::open(session);
    let (edge2, session2) = (edge.clone(), session.clone());
    let running = UnderWay { session: session.clone(), id: id.clone() };
    let work = || async move {
        let revision = session2.revision;
        // An answer that is there is given, but nothing begins that was taken back before.
        let out = tokio::select! {
            biased;
            () = std::future::ready(()), if token.is_cancelled() => None,
            terminal = edge2.gateway.handle(&call, record, &notices) => {
                let (terminal, task) = tasks::sealed(&edge2, &call, terminal);
                if let Some(task) = task {
                    tasks::remember(&edge2, &session2, task);
                }
                Some(render(terminal, &id, method, revision))
            }
            () = token.cancelled() => None,
        };
        drop(running);
        // Nothing more is said: whoever waits for the last words knows it at once.
        drop(notices);
        out
    };
    let work = Work::lasting(&edge.tasks, work);
    Ok(Handled::Running(Running::new(work, notices_rx)))
}

// A request of a session while it runs; forgotten when it has ended, however that came.
struct UnderWay {
    session: Arc<Session>,
    id: Bytes,
}

impl Drop for UnderWay {
    fn drop(&mut self) {
        self.session.running.remove(&self.id);
    }
}

fn invalid(text: impl Into<String>) -> Refused {
    Refused::new(Reason::InvalidParams, text)
}

// For a call that has its record already.
fn refused(record: Record, refused: &Refused, id: &[u8]) -> Handled {
    record.finish(Outcome::Refused(refused.reason));
    Handled::Message(refused.message(id))
}

// 2025-11-25 server/resources, "subscriptions". The answer does not wait for the upstream: it is
// told as soon as it is there.
fn subscribe(edge: &Edge, session: &Session, frame: &Frame) -> Result<(), Refused> {
    let uri = frame
        .params()
        .and_then(|p| Members::read(&p).ok()?.get_str("uri").map(std::borrow::Cow::into_owned))
        .ok_or_else(|| invalid("params.uri must be a string"))?;
    let mut watches = session.watches.lock().expect("no panic while held");
    if frame.method() == "resources/unsubscribe" {
        watches.retain(|_, (public, _)| **public != *uri);
        return Ok(());
    }
    if watches.len() >= listen::WATCHES_MAX {
        let text = format!("more than {} subscriptions in one session", listen::WATCHES_MAX);
        return Err(invalid(text));
    }
    let watch = listen::watch(edge, &session.consumer, &uri).map_err(|why| {
        if let listen::Unwatched::Full = why {
            let text = "as many resources of this server are watched as may be";
            return Refused::new(Reason::Overloaded, text);
        }
        let uri: String = uri.chars().take(128).collect();
        let text = format!("Resource not found, or its server tells of no changes: {uri}");
        Refused::with_code(Reason::UnknownName, LEGACY_RESOURCE_NOT_FOUND, text)
    })?;
    watches.insert(watch.what().clone(), (uri.into(), watch));
    Ok(())
}

fn set_level(session: &Session, frame: &Frame) -> Result<(), Refused> {
    let level = frame
        .params()
        .and_then(|p| Members::read(&p).ok()?.get_str("level").map(std::borrow::Cow::into_owned))
        .filter(|level| LOG_LEVELS.contains(&level.as_str()))
        .ok_or_else(|| invalid(format!("params.level must be one of {}", LOG_LEVELS.join(", "))))?;
    *session.log_level.lock().expect("no panic while held") = Some(level.into());
    Ok(())
}

/// A session for a process's own pipe: it has no id and nobody else can name it.
pub fn pipe_session(consumer: Arc<Consumer>, hello: Hello) -> Arc<Session> {
    static PIPES: AtomicU64 = AtomicU64::new(0);
    let id = format!("pipe {}", PIPES.fetch_add(1, Ordering::Relaxed));
    Arc::new(Session::new(id.into(), consumer, hello))
}
