//! Streamable HTTP at `/mcp`, both eras at one URL.
//!
//! The order of checks is the protocol notes' and the conformance suite's: host and origin, key,
//! method, body, then the era that the message itself shows. Inside a session an error travels
//! with HTTP 200, because 404 there means "the session is gone"; a modern request gets the status
//! that its error asks for.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http_body_util::BodyExt as _;
use hyper::body::Body as _;
use hyper::header::{EXPECT, HeaderName, HeaderValue, ORIGIN, VARY};
use hyper::{Method, StatusCode, Version};

use crate::call::Consumer;
use crate::config::Gateway as Settings;
use crate::failure::{Reason, Refusal};
use crate::gateway::memory::SMALL;
use crate::gateway::snapshot::Snapshot;
use crate::observe::metrics::OTHER;
use crate::protocol::error::PARSE_ERROR;
use crate::protocol::header;
use crate::protocol::message::{Frame, Kind};
use crate::protocol::meta::RequestMeta;
use crate::protocol::revision::{Era, Revision};

use super::access::Access;
use super::body::Events;
use super::caller::{LastCaller, Words, words};
use super::canonical::{TraceHeaders, meta_of};
use super::h1::body::InBody;
use super::headers::Head;
use super::lazy::lazily;
use super::legacy::{self, Handled, Running};
use super::listen::{Feed, Listener};
use super::refused::{NOBODY, Refused, label};
use super::render::Said;
use super::replay::Reader;
use super::reply::{
    Denied, Out, busy, deny, draining, empty, events, json, not_allowed, overloaded, shared,
};
use super::session::{Found, Session};
use super::{Edge, Slot, checks, mirror, modern, park, sse, websocket};

/// The path of the endpoint.
pub const PATH: &str = "/mcp";

/// Most messages in one batch (2025-03-26 only): a batch is answered as a whole, so it is a bound
/// on memory.
const BATCH_MAX: usize = 100;

/// How often, and how many times, a session's second stream looks whether the first one's place is
/// free.
const TAKEOVER_LOOK: Duration = Duration::from_millis(10);
/// See [`TAKEOVER_LOOK`].
const TAKEOVER_TRIES: u32 = 20;

/// Answer one HTTP request. Never fails: everything has an answer.
pub async fn serve(
    edge: Arc<Edge>,
    peer: SocketAddr,
    last: Arc<LastCaller>,
    parts: Arc<Head>,
    body: InBody,
) -> Out {
    let snapshot = edge.gateway.current.load();
    let mut body = Some(body);
    let mut consumer = None;
    let caller = (peer, &*last);
    let answered = answer(&edge, &snapshot, caller, &parts, &mut body, &mut consumer).await;
    let mut out = answered.unwrap_or_else(|denied| {
        let who = consumer.as_ref().map_or(NOBODY, |c: &Arc<Consumer>| &*c.name);
        denied.refused.note(&edge, who, denied.method, "http", "");
        denied.out()
    });
    // Who waits for `100 Continue` has sent nothing yet.
    if let Some(body) = body
        && !body.is_end_stream()
        && !parts.headers.contains(&EXPECT)
    {
        body.leave();
    }
    if let Some(origin) = parts.headers.get(&ORIGIN)
        && out.status() != StatusCode::FORBIDDEN
        && let Ok(origin) = HeaderValue::from_bytes(origin)
    {
        allow_browser(&mut out, origin);
    }
    // On HTTP/1.1 a connection that is not read ends as a whole.
    if parts.version == Version::HTTP_2 { out.map(|body| edge.unread.watch(body)) } else { out }
}

fn allow_browser(out: &mut Out, origin: HeaderValue) {
    let headers = out.headers_mut();
    headers.insert(HeaderName::from_static("access-control-allow-origin"), origin);
    headers.insert(VARY, HeaderValue::from_static("Origin"));
    headers.insert(
        HeaderName::from_static("access-control-expose-headers"),
        HeaderValue::from_static("Mcp-Session-Id, WWW-Authenticate, Retry-After"),
    );
}

// `who` is set as soon as it is known.
async fn answer(
    edge: &Arc<Edge>,
    snapshot: &Snapshot,
    (peer, last): (SocketAddr, &LastCaller),
    parts: &Arc<Head>,
    body: &mut Option<InBody>,
    who: &mut Option<Arc<Consumer>>,
) -> Result<Out, Denied> {
    let settings = &snapshot.config.gateway;
    let headers = &parts.headers;
    let authority = parts.uri.authority().map(hyper::http::uri::Authority::as_str);
    let (told, mut known) = last.told(snapshot.number, parts);
    let said_before = known.is_some();
    let said = if said_before { None } else { words(headers, authority) };
    known = known.or_else(|| said.and_then(|said| last.find(snapshot.number, said)));
    if known.is_none() && !checks::host(settings, headers, authority) {
        let text = "this Host is not served here; add it to gateway.allowed_hosts";
        return Err(deny(403, Reason::HostNotAllowed, text));
    }
    if told.has_origin && !checks::origin(settings, headers) {
        let text = "this Origin is not allowed here; add it to gateway.allowed_origins";
        return Err(deny(403, Reason::OriginNotAllowed, text));
    }
    let path = parts.uri.path();
    let old_door = matches!(path, sse::STREAM | sse::MESSAGES);
    if path != PATH && path.strip_suffix('/') != Some(PATH) && !old_door {
        let text = "the endpoint is /mcp (/sse for clients of 2024-11-05)";
        return Err(deny(404, Reason::UnknownPath, text));
    }
    if parts.method == Method::OPTIONS {
        return Ok(preflight());
    }
    let consumer = &*who.insert(match known {
        Some(consumer) => consumer,
        None => identify(snapshot, peer, (last, said), parts)?,
    });
    if !said_before && said.is_some() && !snapshot.config.consumers.is_empty() {
        last.says(snapshot.number, parts, &told, consumer);
    }
    // What belongs to something under way still comes in; what would begin something does not.
    if edge.gateway.is_draining() && parts.method == Method::GET {
        let resumes = parts.headers.contains(&header::LAST_EVENT_ID);
        if old_door || websocket::wanted(parts) || !resumes {
            return Err(draining());
        }
    }
    if old_door {
        return Box::pin(through_old_door(edge, snapshot, consumer, parts, body)).await;
    }
    match parts.method {
        Method::GET if websocket::wanted(parts) => {
            let slot = edge.stream_slot().ok_or_else(busy)?;
            let access = Access::new(&edge.gateway, consumer, headers);
            websocket::upgrade(edge, access, parts, slot)
                .map_err(|text| deny(400, Reason::InvalidUpgrade, text))
        }
        Method::POST => post(edge, snapshot, consumer, (parts, &told), body).await,
        Method::GET => Box::pin(get(edge, consumer, parts)).await,
        Method::DELETE => delete(edge, consumer, parts),
        _ => Err(not_allowed()),
    }
}

fn identify(
    snapshot: &Snapshot,
    peer: SocketAddr,
    (last, said): (&LastCaller, Option<Words<'_>>),
    parts: &Head,
) -> Result<Arc<Consumer>, Denied> {
    let refused = |text| deny(401, Reason::Unauthenticated, text);
    let key = checks::key(&parts.headers);
    let member = snapshot.identity.identify(key).map_err(|refusal| refused(refusal.text))?;
    // Belt and braces: without consumers the listener is on loopback, and stays for its callers.
    if snapshot.config.consumers.is_empty() && !checks::is_local(&peer) {
        return Err(refused("anonymous callers are served on loopback only".into()));
    }
    if let Some(said) = said.filter(|_| !snapshot.config.consumers.is_empty()) {
        last.keep(snapshot.number, said, &member.consumer);
    }
    Ok(member.consumer.clone())
}

fn preflight() -> Out {
    let mut out = empty(204);
    let headers = out.headers_mut();
    headers.insert(
        HeaderName::from_static("access-control-allow-methods"),
        HeaderValue::from_static("POST, GET, DELETE"),
    );
    headers.insert(
        HeaderName::from_static("access-control-allow-headers"),
        // `*` for `Mcp-Param-…`, whose names tools choose; it covers neither `Authorization` nor
        // requests with cookies, so the others are named.
        HeaderValue::from_static(
            "Authorization, X-API-Key, Content-Type, Accept, MCP-Protocol-Version, \
             Mcp-Session-Id, Mcp-Method, Mcp-Name, Last-Event-ID, *",
        ),
    );
    headers
        .insert(HeaderName::from_static("access-control-max-age"), HeaderValue::from_static("600"));
    out
}

// The body of a request whose sender may still send it: a body may take its time, and a key may be
// revoked meanwhile.
async fn received(
    edge: &Edge,
    snapshot: &Snapshot,
    consumer: &Consumer,
    parts: &Head,
    body: &mut Option<InBody>,
) -> Result<Bytes, Denied> {
    // Mostly it came with its head: there is nothing to wait for.
    if let Some(InBody::Whole(whole)) = body {
        let settings = &snapshot.config.gateway;
        let whole = whole.take().unwrap_or_default();
        if whole.len() > settings.max_body {
            return Err(too_large(settings.max_body));
        }
        if whole.len() > SMALL {
            let admitted = edge.gateway.memory.admit(whole.len() as u64, settings.max_memory);
            admitted.map_err(overloaded)?;
        }
        return Ok(whole);
    }
    Box::pin(async {
        let bytes = read(edge, body, &snapshot.config.gateway).await?;
        still_known(edge, snapshot, consumer, parts)?;
        Ok(bytes)
    })
    .await
}

fn too_large(max: usize) -> Denied {
    let text = format!("the body is larger than {max} bytes (gateway.max_body)");
    Denied::new(413, Refused::too_large(text))
}

fn still_known(
    edge: &Edge,
    snapshot: &Snapshot,
    consumer: &Consumer,
    parts: &Head,
) -> Result<(), Denied> {
    let now = edge.gateway.current.load();
    if now.number == snapshot.number {
        return Ok(());
    }
    let found = now.identity.identify(checks::key(&parts.headers));
    match found {
        Ok(member) if member.consumer.name == consumer.name => Ok(()),
        Ok(_) => Err(deny(401, Reason::Unauthenticated, "the key is another's now")),
        Err(refusal) => Err(deny(401, Reason::Unauthenticated, refusal.text)),
    }
}

async fn post(
    edge: &Arc<Edge>,
    snapshot: &Snapshot,
    consumer: &Arc<Consumer>,
    (parts, told): (&Head, &checks::Told),
    body: &mut Option<InBody>,
) -> Result<Out, Denied> {
    let accepts = told.accepts;
    if !accepts.json && !accepts.events {
        let text = "Accept must list application/json and text/event-stream";
        return Err(deny(406, Reason::NotAcceptable, text));
    }
    if !told.is_json {
        return Err(deny(415, Reason::NotJson, "Content-Type must be application/json"));
    }
    let bytes = received(edge, snapshot, consumer, parts, body).await?;
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        return Box::pin(batch(edge, consumer, parts, &bytes)).await;
    }
    let frame = Frame::scan(bytes).map_err(|e| Denied::new(400, e.into()))?;
    // A retry of a parked call ends something, it begins nothing.
    if edge.gateway.is_draining() && frame.kind() == Kind::Request && !park::may_resume(&frame) {
        return Err(draining().to(&frame));
    }
    let trace = if told.is_traced { trace_headers(parts) } else { None };
    let meta = meta_of(&frame);
    let version = told.version.as_ref().map(Option::as_deref).map_err(|other| *other);
    let modern_header = matches!(version, Ok(Some(v))
        if Revision::parse(v).is_none_or(|r| r.era() == Era::Modern));
    let session_id = told.session.as_deref();
    let readable = meta.as_ref().ok().and_then(Option::as_ref);
    // The header alone makes no handshake modern, and no request of a session either.
    if modern::is_modern(&frame, readable)
        || (modern_header && frame.method() != "initialize" && session_id.is_none())
    {
        return modern_post(edge, consumer, parts, accepts, frame, meta, trace).await;
    }
    if frame.method() == "initialize" && frame.kind() == Kind::Request {
        return initialize(edge, snapshot, consumer, &frame);
    }
    let Some(id) = session_id else {
        let text =
            "a session is needed: send `initialize` first, or the 2026-07-28 request metadata";
        return Err(deny(400, Reason::NoSession, text).to(&frame));
    };
    let session = session(edge, id, consumer).map_err(|denied| denied.to(&frame))?;
    session_version(version).map_err(|denied| denied.to(&frame))?;
    Ok(match legacy::handle(edge, &session, "http", frame, trace).await {
        Handled::Accepted | Handled::Listen(_) => empty(202),
        Handled::Message(message) => json(200, message),
        Handled::Prepared(prepared, id) => shared(&prepared, &id),
        Handled::Running(running) => {
            lazily(edge, running, accepts, session.revision, Some(&session)).await
        }
    })
}

fn session(edge: &Edge, id: &str, consumer: &Arc<Consumer>) -> Result<Arc<Session>, Denied> {
    match edge.session(id, consumer) {
        Found::Session(session) => Ok(session),
        // The session is good, and there is no room for it: not «gone», or the client would begin
        // a new one.
        Found::NoRoom => Err(busy()),
        Found::Unknown => {
            let text = "the session is not known; initialize again";
            Err(deny(404, Reason::UnknownSession, text))
        }
    }
}

// 2025-06-18 basic/transports, "protocol version header": one that is not served is 400, a
// missing one means what the session agreed on.
fn session_version(said: Result<Option<&str>, checks::NotSingle>) -> Result<(), Denied> {
    match said {
        Ok(None) => Ok(()),
        Ok(Some(v)) if Revision::parse(v).is_some_and(|r| r.era() == Era::Legacy) => Ok(()),
        _ => {
            let text = "this MCP-Protocol-Version is not served in a session";
            let refused = Refused::with_code(
                Reason::UnsupportedVersion,
                crate::protocol::error::INVALID_REQUEST,
                text,
            );
            Err(Denied::new(400, refused))
        }
    }
}

async fn modern_post(
    edge: &Arc<Edge>,
    consumer: &Arc<Consumer>,
    parts: &Head,
    accepts: checks::Accepts,
    frame: Frame,
    meta: Result<Option<RequestMeta>, String>,
    trace: TraceHeaders,
) -> Result<Out, Denied> {
    // Nothing but a notification may come besides; there is nothing harmful in any of them.
    match frame.kind() {
        Kind::Request => {}
        Kind::Notification => return Ok(empty(202)),
        Kind::Result | Kind::Error => {
            let text = "responses are not sent in this revision";
            return Err(deny(400, Reason::InvalidMessage, text));
        }
    }
    let id = frame.id().unwrap_or_default();
    let checked =
        modern::checked(meta, |meta| checks::version(&parts.headers, meta)).and_then(|found| {
            let name = checks::mirrored(&parts.headers, &frame)?;
            let name = name.as_deref();
            Ok((found, mirror::params(edge, consumer, &parts.headers, &frame, name)?))
        });
    let ((meta, revision), strays) =
        checked.map_err(|refused| Denied::new(400, refused).to(&frame))?;
    // For what is refused below.
    let asked = (id.clone(), label(&frame));
    match modern::handle(edge, consumer, "http", frame, meta, revision, trace, strays).await {
        Ok(Handled::Accepted) => Ok(empty(202)),
        Ok(Handled::Message(message)) => Ok(json(200, message)),
        Ok(Handled::Prepared(prepared, id)) => Ok(shared(&prepared, &id)),
        Ok(Handled::Running(running)) => Ok(lazily(edge, running, accepts, revision, None).await),
        Ok(Handled::Listen(wish)) => {
            let slot = edge.stream_slot().ok_or_else(|| busy().of(asked))?;
            let access = Access::new(&edge.gateway, consumer, &parts.headers);
            let feed = Feed::of_request(edge, access, &id, wish);
            Ok(events(Listener { feed, ends: vec![], slot }.stream(edge)))
        }
        Err(refused) => Err(Denied::new(modern::status_of(refused.code()), refused).of(asked)),
    }
}

fn initialize(
    edge: &Edge,
    snapshot: &Snapshot,
    consumer: &Arc<Consumer>,
    frame: &Frame,
) -> Result<Out, Denied> {
    let id = frame.id().expect("a request has an id");
    let hello =
        legacy::hello(frame).map_err(|text| deny(200, Reason::InvalidParams, text).to(frame))?;
    let max = snapshot.config.gateway.max_sessions;
    let session = edge
        .sessions
        .open(&edge.sealer, consumer.clone(), hello, max)
        .ok_or_else(|| busy().to(frame))?;
    legacy::told_now(edge, &session);
    let mut out = json(200, legacy::welcome(edge, &session, &id));
    if let Ok(value) = HeaderValue::from_str(&session.id) {
        out.headers_mut().insert(header::SESSION_ID, value);
    }
    Ok(out)
}

// HTTP+SSE (2024-11-05 basic/transports).
async fn through_old_door(
    edge: &Arc<Edge>,
    snapshot: &Snapshot,
    consumer: &Arc<Consumer>,
    parts: &Head,
    body: &mut Option<InBody>,
) -> Result<Out, Denied> {
    match (parts.uri.path(), &parts.method) {
        (sse::STREAM, &Method::GET) => {
            let slot = edge.stream_slot().ok_or_else(busy)?;
            let access = Access::new(&edge.gateway, consumer, &parts.headers);
            Ok(events(sse::open(edge, access, slot)))
        }
        (sse::MESSAGES, &Method::POST) => {
            let bytes = received(edge, snapshot, consumer, parts, body).await?;
            if sse::deliver(edge, consumer, parts.uri.query(), bytes).await {
                return Ok(empty(202));
            }
            let text = "no such stream; open one with GET /sse";
            Err(deny(404, Reason::UnknownSession, text))
        }
        _ => Err(not_allowed()),
    }
}

async fn get(edge: &Arc<Edge>, consumer: &Arc<Consumer>, parts: &Head) -> Result<Out, Denied> {
    let Some(id) = checks::single(&parts.headers, &header::SESSION_ID).ok().flatten() else {
        let text = "GET opens the stream of a session: send its Mcp-Session-Id, or POST";
        return Err(deny(405, Reason::MethodNotAllowed, text));
    };
    let session = session(edge, id, consumer)?;
    session_version(checks::single(&parts.headers, &header::PROTOCOL_VERSION))?;
    if !checks::accepts(parts.version, &parts.headers).events {
        let text = "Accept must list text/event-stream";
        return Err(deny(406, Reason::NotAcceptable, text));
    }
    // 2025-11-25 basic/transports, "resumability and redelivery": an event id names a stream, and
    // only what belongs to that stream is sent.
    let last = checks::single(&parts.headers, &header::LAST_EVENT_ID).ok().flatten();
    if let Some(last) = last.filter(|last| !last.is_empty() && !last.starts_with('g')) {
        let slot = edge.stream_slot().ok_or_else(busy)?;
        let reader = session.replay.resume(last).ok_or_else(|| {
            let text =
                "nothing is kept of the stream of this event; open one without Last-Event-ID";
            deny(400, Reason::InvalidMessage, text)
        })?;
        return Ok(events(resumed(edge, session, reader, slot)));
    }
    if edge.gateway.is_draining() {
        return Err(draining());
    }
    // A second stream takes over: the first is most likely a connection that died unseen.
    let token = tokio_util::sync::CancellationToken::new();
    let old =
        std::mem::replace(&mut *session.stream.lock().expect("no panic while held"), token.clone());
    // It had not ended: what it was told may have gone to nobody.
    let untold = session.streams.load(Ordering::Relaxed) > 0 && !old.is_cancelled();
    old.cancel();
    // The first one's place is free as soon as it has ended.
    let mut tries = 0;
    let slot = loop {
        match edge.stream_slot() {
            Some(slot) => break slot,
            None if tries < TAKEOVER_TRIES && session.streams.load(Ordering::Relaxed) > 0 => {
                tries += 1;
                tokio::time::sleep(TAKEOVER_LOOK).await;
            }
            None => return Err(busy()),
        }
    };
    let access = Access::new(&edge.gateway, consumer, &parts.headers);
    let missed = untold || last.is_some_and(|last| session.has_more_than(last));
    let feed = Feed::of_session(edge, access, &session, missed);
    let listener = Listener { feed, ends: vec![token, session.ended.clone()], slot };
    let edge = edge.clone();
    Ok(events(Events::new(|tx| async move {
        let _open = OpenStream::new(session);
        listener.events(edge, tx).await;
    })))
}

fn resumed(edge: &Arc<Edge>, session: Arc<Session>, reader: Reader, slot: Slot) -> Events {
    let primed = session.revision >= Revision::R2025_11_25;
    let (ended, open) = (session.ended.clone(), OpenStream::new(session));
    reader.events(edge, primed).until(async move {
        let _held = (slot, open);
        ended.cancelled().await;
    })
}

struct OpenStream(Arc<Session>);

impl OpenStream {
    fn new(session: Arc<Session>) -> OpenStream {
        session.streams.fetch_add(1, Ordering::Relaxed);
        OpenStream(session)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

fn delete(edge: &Edge, consumer: &Arc<Consumer>, parts: &Head) -> Result<Out, Denied> {
    let id = checks::single(&parts.headers, &header::SESSION_ID).ok().flatten();
    let session = session(edge, id.ok_or_else(not_allowed)?, consumer)?;
    edge.sessions.end(&session.id);
    Ok(empty(204))
}

// 2025-03-26 basic, "batching": sent in one array, answered in one array. Every other revision
// has none.
async fn batch(
    edge: &Arc<Edge>,
    consumer: &Arc<Consumer>,
    parts: &Head,
    bytes: &Bytes,
) -> Result<Out, Denied> {
    let invalid = |text: &str| deny(400, Reason::InvalidMessage, text);
    let only = "a batch is accepted in a 2025-03-26 session only";
    let id = checks::single(&parts.headers, &header::SESSION_ID).ok().flatten();
    let session = session(edge, id.ok_or_else(|| invalid(only))?, consumer)?;
    if session.revision != Revision::R2025_03_26 {
        return Err(invalid(only));
    }
    session_version(checks::single(&parts.headers, &header::PROTOCOL_VERSION))?;
    if edge.gateway.is_draining() {
        return Err(draining());
    }
    let items: Vec<&serde_json::value::RawValue> = serde_json::from_slice(bytes).map_err(|e| {
        Denied::new(400, Refused::with_code(Reason::InvalidMessage, PARSE_ERROR, e.to_string()))
    })?;
    if items.is_empty() || items.len() > BATCH_MAX {
        return Err(invalid("a batch holds 1 to 100 messages"));
    }
    let mut running = Vec::new();
    let mut answers: Vec<Bytes> = Vec::new();
    for item in items {
        let frame = match Frame::scan(Bytes::copy_from_slice(item.get().as_bytes())) {
            Ok(frame) => frame,
            Err(e) => {
                let refused = Refused::from(e);
                refused.note(edge, &consumer.name, OTHER, "http", session.revision.as_str());
                answers.push(refused.message(b"null"));
                continue;
            }
        };
        match legacy::handle(edge, &session, "http", frame, trace_headers(parts)).await {
            Handled::Accepted | Handled::Listen(_) => {}
            Handled::Message(message) => answers.push(message),
            Handled::Prepared(prepared, id) => answers.push(prepared.whole(&id)),
            Handled::Running(r) => running.push(r),
        }
    }
    // Their notices have no stream to go to.
    let works = running.into_iter().map(|Running { work, .. }| work);
    let said = futures_util::future::join_all(works).await;
    answers.extend(said.into_iter().flatten().map(Said::whole));
    if answers.is_empty() {
        return Ok(empty(202));
    }
    let mut out = vec![b'['];
    for (i, message) in answers.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(message);
    }
    out.push(b']');
    Ok(json(200, out.into()))
}

// The body as it is left: taken, unless the rest of it is to be let run out.
async fn read(
    edge: &Edge,
    body: &mut Option<InBody>,
    settings: &Settings,
) -> Result<Bytes, Denied> {
    let (max, time) = (settings.max_body, settings.body_timeout);
    let room = |bytes| edge.gateway.memory.admit(bytes, settings.max_memory);
    let mut incoming = body.take().expect("a body is read once");
    if incoming.size_hint().lower() > max as u64 {
        *body = Some(incoming);
        return Err(too_large(max));
    }
    let whole = tokio::select! {
        // Mostly it is there; then nothing needs to be waited for.
        biased;
        whole = tokio::time::timeout(time, collected(&mut incoming, max, room)) => whole,
        () = edge.stop.cancelled() => return Err(draining()),
    };
    match whole {
        Ok(Ok(whole)) => Ok(whole),
        Ok(Err(Unread::TooLarge)) => {
            *body = Some(incoming);
            Err(too_large(max))
        }
        Ok(Err(Unread::NoRoom(refusal))) => {
            *body = Some(incoming);
            Err(overloaded(refusal))
        }
        Ok(Err(Unread::Broken)) => Err(deny(400, Reason::BrokenBody, "the body ended early")),
        Err(_) => {
            let text = "the body did not arrive in time (gateway.body_timeout)";
            Err(deny(408, Reason::SlowBody, text))
        }
    }
}

enum Unread {
    TooLarge,
    NoRoom(Refusal),
    Broken,
}

// All of a body, not copied if it comes in one piece. `room`: whether there is room for so many
// bytes more; asked for each piece, since who announces a body may take its time.
async fn collected(
    body: &mut InBody,
    max: usize,
    room: impl Fn(u64) -> Result<(), Refusal>,
) -> Result<Bytes, Unread> {
    let mut whole: Option<Bytes> = None;
    let mut joined = BytesMut::new();
    while let Some(frame) = body.frame().await {
        let Ok(piece) = frame.map_err(|_| Unread::Broken)?.into_data() else { continue };
        let so_far = whole.as_ref().map_or(0, Bytes::len) + joined.len();
        if so_far + piece.len() > max {
            return Err(Unread::TooLarge);
        }
        if so_far + piece.len() > SMALL {
            room(piece.len() as u64).map_err(Unread::NoRoom)?;
        }
        if let Some(first) = whole.take() {
            let announced = body.size_hint().lower().min(max as u64) as usize;
            joined.reserve(first.len() + piece.len() + announced);
            joined.extend_from_slice(&first);
        }
        if so_far == 0 {
            whole = Some(piece);
        } else {
            joined.extend_from_slice(&piece);
        }
        if body.is_end_stream() {
            break;
        }
    }
    Ok(whole.unwrap_or_else(|| joined.freeze()))
}

fn trace_headers(parts: &Head) -> TraceHeaders {
    let text = |name: &HeaderName| parts.headers.text(name).map(Box::from);
    let parent = text(&header::TRACEPARENT)?;
    Some((parent, text(&header::TRACESTATE)))
}
