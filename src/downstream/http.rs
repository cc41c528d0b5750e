//! Streamable HTTP at `/mcp`, both eras at one URL.
//!
//! The order of checks is the protocol notes' and the conformance suite's: host and origin, key,
//! method, body, then the era that the message itself shows. Inside a session an error travels
//! with HTTP 200, because 404 there means "the session is gone"; a modern request gets the status
//! that its error asks for.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt as _, Limited};
use hyper::body::{Body as _, Incoming};
use hyper::header::{
    ALLOW, CACHE_CONTROL, CONTENT_TYPE, EXPECT, HeaderName, HeaderValue, ORIGIN, RETRY_AFTER, VARY,
    WWW_AUTHENTICATE,
};
use hyper::http::request::Parts;
use hyper::{Method, Request, Response, StatusCode};

use crate::call::Consumer;
use crate::failure::{Reason, Refusal};
use crate::gateway::snapshot::Snapshot;
use crate::protocol::error::{
    ErrorObject, INTERNAL_ERROR, INVALID_PARAMS, INVALID_REQUEST, PARSE_ERROR,
};
use crate::protocol::header;
use crate::protocol::message::{Frame, Kind, response};
use crate::protocol::revision::{Era, Revision};

use super::body::{Events, OutBody};
use super::canonical::{TraceHeaders, meta_of};
use super::lazy::lazily;
use super::legacy::{self, Handled, Running};
use super::listen::{Feed, Listener, Wish};
use super::session::Session;
use super::{Edge, checks, mirror, modern, sse, websocket};

/// A response of the endpoint.
pub(super) type Out = Response<OutBody>;

/// The path of the endpoint.
pub const PATH: &str = "/mcp";

/// Most messages in one batch (2025-03-26 only): a batch is answered as a whole, so it is a bound
/// on memory.
const BATCH_MAX: usize = 100;

/// How much of a refused request's body is still read, and for how long: enough for an honest
/// client that had begun to send, little for one that goes on.
const LINGER_MAX: usize = 1 << 20;
/// See [`LINGER_MAX`].
const LINGER_TIME: std::time::Duration = std::time::Duration::from_secs(1);

/// Answer one HTTP request. Never fails: everything has an answer.
pub async fn serve(edge: Arc<Edge>, peer: SocketAddr, request: Request<Incoming>) -> Out {
    let snapshot = edge.gateway.current.load();
    let origin = request.headers().get(ORIGIN).cloned();
    let (parts, body) = request.into_parts();
    let mut body = Some(body);
    let mut out = answer(&edge, &snapshot, peer, &parts, &mut body).await;
    // Who waits for `100 Continue` has sent nothing yet.
    if let Some(body) = body
        && !body.is_end_stream()
        && !parts.headers.contains_key(EXPECT)
    {
        tokio::spawn(tokio::time::timeout(LINGER_TIME, linger(body)));
    }
    if let Some(origin) = origin
        && out.status() != StatusCode::FORBIDDEN
    {
        allow_browser(&mut out, origin);
    }
    out
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

async fn answer(
    edge: &Arc<Edge>,
    snapshot: &Snapshot,
    peer: SocketAddr,
    parts: &Parts,
    body: &mut Option<Incoming>,
) -> Out {
    let settings = &snapshot.config.gateway;
    let headers = &parts.headers;
    if !checks::host(
        settings,
        headers,
        parts.uri.authority().map(hyper::http::uri::Authority::as_str),
    ) {
        return plain_error(
            403,
            INVALID_REQUEST,
            "this Host is not served here; add it to gateway.allowed_hosts",
            "host_not_allowed",
        );
    }
    if !checks::origin(settings, headers) {
        return plain_error(
            403,
            INVALID_REQUEST,
            "this Origin is not allowed here; add it to gateway.allowed_origins",
            "origin_not_allowed",
        );
    }
    let path = parts.uri.path();
    let old_door = matches!(path, sse::STREAM | sse::MESSAGES);
    if path != PATH && path.strip_suffix('/') != Some(PATH) && !old_door {
        return plain_error(
            404,
            INVALID_REQUEST,
            "the endpoint is /mcp (/sse for clients of 2024-11-05)",
            "unknown_path",
        );
    }
    if parts.method == Method::OPTIONS {
        return preflight();
    }
    let consumer = match identify(snapshot, peer, parts) {
        Ok(consumer) => consumer,
        Err(refusal) => return unauthenticated(edge, &refusal),
    };
    if edge.gateway.is_draining() {
        let mut out =
            plain_error(503, INTERNAL_ERROR, "the gateway is stopping", Reason::Draining.as_str());
        out.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("1"));
        return out;
    }
    if old_door {
        return through_old_door(edge, snapshot, &consumer, parts, body).await;
    }
    match parts.method {
        Method::GET if websocket::wanted(parts) => match edge.stream_slot() {
            Some(slot) => websocket::upgrade(edge, &consumer, parts, slot)
                .unwrap_or_else(|text| plain_error(400, INVALID_REQUEST, text, "invalid_upgrade")),
            None => busy(b""),
        },
        Method::POST => post(edge, snapshot, &consumer, parts, body).await,
        Method::GET => get(edge, &consumer, parts),
        Method::DELETE => delete(edge, &consumer, parts),
        _ => not_allowed(),
    }
}

fn identify(
    snapshot: &Snapshot,
    peer: SocketAddr,
    parts: &Parts,
) -> Result<Arc<Consumer>, Refusal> {
    let member = snapshot.identity.identify(checks::key(&parts.headers))?;
    // Belt and braces: without consumers the listener is on loopback, and stays for its callers.
    if snapshot.config.consumers.is_empty() && !checks::is_local(&peer) {
        return Err(Refusal::new(
            Reason::Unauthenticated,
            "anonymous callers are served on loopback only",
        ));
    }
    Ok(member.consumer.clone())
}

fn unauthenticated(edge: &Edge, refusal: &Refusal) -> Out {
    crate::observe::record::Record::open(
        &edge.gateway.observe,
        &"_unknown".into(),
        "_other",
        "http",
        "",
        None,
    )
    .finish(crate::observe::record::Outcome::Refused(refusal.reason));
    let mut out = plain_error(401, INVALID_REQUEST, &refusal.text, refusal.reason.as_str());
    out.headers_mut()
        .insert(WWW_AUTHENTICATE, HeaderValue::from_static("Bearer realm=\"weirkeeper\""));
    out
}

fn not_allowed() -> Out {
    let mut out = plain_error(
        405,
        INVALID_REQUEST,
        "this HTTP method is not served here",
        "method_not_allowed",
    );
    out.headers_mut().insert(ALLOW, HeaderValue::from_static("POST, GET, DELETE, OPTIONS"));
    out
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

async fn post(
    edge: &Arc<Edge>,
    snapshot: &Snapshot,
    consumer: &Arc<Consumer>,
    parts: &Parts,
    body: &mut Option<Incoming>,
) -> Out {
    let accepts = checks::accepts(&parts.headers);
    if !accepts.json && !accepts.events {
        return plain_error(
            406,
            INVALID_REQUEST,
            "Accept must list application/json and text/event-stream",
            "not_acceptable",
        );
    }
    if !checks::is_json(&parts.headers) {
        return plain_error(
            415,
            INVALID_REQUEST,
            "Content-Type must be application/json",
            "not_json",
        );
    }
    let settings = &snapshot.config.gateway;
    let bytes = match read(body, settings.max_body, settings.body_timeout).await {
        Ok(bytes) => bytes,
        Err(out) => return out,
    };
    if bytes.iter().find(|b| !b.is_ascii_whitespace()) == Some(&b'[') {
        return batch(edge, consumer, parts, &bytes).await;
    }
    let frame = match Frame::scan(bytes) {
        Ok(frame) => frame,
        Err(e) => return plain_error(400, e.code(), &e.to_string(), "invalid_message"),
    };
    let trace = trace_headers(parts);
    let meta = meta_of(&frame);
    let version = checks::single(&parts.headers, &header::PROTOCOL_VERSION);
    let modern_header = matches!(version, Ok(Some(v))
        if Revision::parse(v).is_none_or(|r| r.era() == Era::Modern));
    let session_id = checks::single(&parts.headers, &header::SESSION_ID).ok().flatten();
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
        return error_with_id(
            400,
            frame.id(),
            INVALID_REQUEST,
            "a session is needed: send `initialize` first, or the 2026-07-28 request metadata",
            "no_session",
        );
    };
    let Some(session) = edge.session(id, consumer) else {
        return error_with_id(
            404,
            frame.id(),
            INVALID_REQUEST,
            "the session is not known; initialize again",
            "unknown_session",
        );
    };
    if let Err(out) = session_version(&parts.headers) {
        return out;
    }
    match legacy::handle(edge, &session, "http", frame, trace).await {
        Handled::Accepted | Handled::Listen(_) => empty(202),
        Handled::Message(message) => json(200, message),
        Handled::Running(running) => lazily(edge, running, accepts, session.revision).await,
    }
}

// 2025-06-18 basic/transports, "protocol version header": one that is not served is 400, a
// missing one means what the session agreed on.
fn session_version(headers: &hyper::HeaderMap) -> Result<(), Out> {
    match checks::single(headers, &header::PROTOCOL_VERSION) {
        Ok(None) => Ok(()),
        Ok(Some(v)) if Revision::parse(v).is_some_and(|r| r.era() == Era::Legacy) => Ok(()),
        _ => Err(plain_error(
            400,
            INVALID_REQUEST,
            "this MCP-Protocol-Version is not served in a session",
            "unsupported_version",
        )),
    }
}

async fn modern_post(
    edge: &Arc<Edge>,
    consumer: &Arc<Consumer>,
    parts: &Parts,
    accepts: checks::Accepts,
    frame: Frame,
    meta: Result<Option<crate::protocol::meta::RequestMeta>, String>,
    trace: TraceHeaders,
) -> Out {
    let id = frame.id().unwrap_or_default();
    let refuse = |status: u16, error: &ErrorObject| {
        json(status, response(&id, Kind::Error, error.to_raw().get().as_bytes()))
    };
    if frame.kind() != Kind::Request {
        // Nothing but a notification may come; there is nothing harmful in any of them.
        return if frame.kind() == Kind::Notification {
            empty(202)
        } else {
            plain_error(
                400,
                INVALID_REQUEST,
                "responses are not sent in this revision",
                "invalid_message",
            )
        };
    }
    let meta =
        match meta.map_err(|e| ErrorObject::new(INVALID_PARAMS, e)).and_then(modern::required) {
            Ok(meta) => meta,
            Err(e) => return refuse(400, &e),
        };
    if let Err(e) = checks::version(&parts.headers, &meta) {
        return refuse(400, &e);
    }
    let revision = match modern::served(&meta) {
        Ok(revision) => revision,
        Err(e) => return refuse(400, &e),
    };
    if let Err(e) = checks::mirrored(&parts.headers, &frame) {
        return refuse(400, &e);
    }
    let strays = match mirror::params(edge, consumer, &parts.headers, &frame) {
        Ok(strays) => strays,
        Err(e) => return refuse(400, &e),
    };
    match modern::handle(edge, consumer, "http", frame, meta, revision, trace, strays).await {
        Ok(Handled::Accepted) => empty(202),
        Ok(Handled::Message(message)) => json(modern::status(&message), message),
        Ok(Handled::Running(running)) => lazily(edge, running, accepts, revision).await,
        Ok(Handled::Listen(wish)) => listen(edge, consumer, &id, wish),
        Err(e) => refuse(modern::status_of(e.code), &e),
    }
}

fn listen(edge: &Arc<Edge>, consumer: &Arc<Consumer>, id: &Bytes, wish: Wish) -> Out {
    let Some(slot) = edge.stream_slot() else {
        return busy(id);
    };
    let feed = Feed::of_request(edge, consumer, id, wish);
    let listener = Listener { feed, ends: vec![], slot };
    let edge = edge.clone();
    events(Events::new(|tx| listener.events(edge, tx)))
}

fn busy(id: &[u8]) -> Out {
    let failure = crate::failure::Failure::from(
        Refusal::new(Reason::Overloaded, "as many streams are open as may be")
            .retry_after(std::time::Duration::from_secs(5)),
    );
    let mut out =
        json(503, response(id, Kind::Error, failure.to_error().to_raw().get().as_bytes()));
    out.headers_mut().insert(RETRY_AFTER, HeaderValue::from_static("5"));
    out
}

fn initialize(edge: &Edge, snapshot: &Snapshot, consumer: &Arc<Consumer>, frame: &Frame) -> Out {
    let id = frame.id().expect("a request has an id");
    let hello = match legacy::hello(frame) {
        Ok(hello) => hello,
        Err(text) => return json(200, legacy::error(&id, INVALID_PARAMS, text)),
    };
    let max = snapshot.config.gateway.max_sessions;
    let Some(session) = edge.sessions.open(&edge.sealer, consumer.clone(), hello, max) else {
        return busy(&id);
    };
    let mut out = json(200, legacy::welcome(edge, &session, &id));
    if let Ok(value) = HeaderValue::from_str(&session.id) {
        out.headers_mut().insert(header::SESSION_ID, value);
    }
    out
}

// HTTP+SSE (2024-11-05 basic/transports).
async fn through_old_door(
    edge: &Arc<Edge>,
    snapshot: &Snapshot,
    consumer: &Arc<Consumer>,
    parts: &Parts,
    body: &mut Option<Incoming>,
) -> Out {
    let settings = &snapshot.config.gateway;
    match (parts.uri.path(), &parts.method) {
        (sse::STREAM, &Method::GET) => match edge.stream_slot() {
            Some(slot) => events(sse::open(edge, consumer, slot)),
            None => busy(b""),
        },
        (sse::MESSAGES, &Method::POST) => {
            let bytes = match read(body, settings.max_body, settings.body_timeout).await {
                Ok(bytes) => bytes,
                Err(out) => return out,
            };
            if sse::deliver(edge, consumer, parts.uri.query(), bytes).await {
                return empty(202);
            }
            plain_error(
                404,
                INVALID_REQUEST,
                "no such stream; open one with GET /sse",
                "unknown_session",
            )
        }
        _ => not_allowed(),
    }
}

fn get(edge: &Arc<Edge>, consumer: &Arc<Consumer>, parts: &Parts) -> Out {
    let Some(id) = checks::single(&parts.headers, &header::SESSION_ID).ok().flatten() else {
        return not_allowed();
    };
    let Some(session) = edge.session(id, consumer) else {
        return plain_error(
            404,
            INVALID_REQUEST,
            "the session is not known; initialize again",
            "unknown_session",
        );
    };
    if let Err(out) = session_version(&parts.headers) {
        return out;
    }
    if !checks::accepts(&parts.headers).events {
        return plain_error(
            406,
            INVALID_REQUEST,
            "Accept must list text/event-stream",
            "not_acceptable",
        );
    }
    let Some(slot) = edge.stream_slot() else { return busy(b"") };
    // A second stream takes over: the first is most likely a connection that died unseen.
    let token = tokio_util::sync::CancellationToken::new();
    let old =
        std::mem::replace(&mut *session.stream.lock().expect("no panic while held"), token.clone());
    old.cancel();
    let listener = Listener {
        feed: Feed::of_session(edge, &session),
        ends: vec![token, session.ended.clone()],
        slot,
    };
    let edge = edge.clone();
    events(Events::new(|tx| async move {
        let _open = OpenStream::new(session);
        listener.events(edge, tx).await;
    }))
}

struct OpenStream(Arc<Session>);

impl OpenStream {
    fn new(session: Arc<Session>) -> OpenStream {
        session.streams.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        OpenStream(session)
    }
}

impl Drop for OpenStream {
    fn drop(&mut self) {
        self.0.streams.fetch_sub(1, std::sync::atomic::Ordering::Relaxed);
    }
}

fn delete(edge: &Edge, consumer: &Arc<Consumer>, parts: &Parts) -> Out {
    let Some(id) = checks::single(&parts.headers, &header::SESSION_ID).ok().flatten() else {
        return not_allowed();
    };
    match edge.session(id, consumer) {
        Some(session) => {
            edge.sessions.end(&session.id);
            empty(204)
        }
        None => plain_error(404, INVALID_REQUEST, "the session is not known", "unknown_session"),
    }
}

// 2025-03-26 basic, "batching": sent in one array, answered in one array. Every other revision
// has none.
async fn batch(edge: &Arc<Edge>, consumer: &Arc<Consumer>, parts: &Parts, bytes: &Bytes) -> Out {
    let session = checks::single(&parts.headers, &header::SESSION_ID)
        .ok()
        .flatten()
        .and_then(|id| edge.session(id, consumer));
    let Some(session) = session.filter(|s| s.revision == Revision::R2025_03_26) else {
        return plain_error(
            400,
            INVALID_REQUEST,
            "a batch is accepted in a 2025-03-26 session only",
            "invalid_message",
        );
    };
    let parsed: Result<Vec<&serde_json::value::RawValue>, _> = serde_json::from_slice(bytes);
    let items = match parsed {
        Ok(items) if !items.is_empty() && items.len() <= BATCH_MAX => items,
        Ok(_) => {
            return plain_error(
                400,
                INVALID_REQUEST,
                "a batch holds 1 to 100 messages",
                "invalid_message",
            );
        }
        Err(e) => return plain_error(400, PARSE_ERROR, &e.to_string(), "invalid_message"),
    };
    let mut running = Vec::new();
    let mut answers: Vec<Bytes> = Vec::new();
    for item in items {
        let frame = match Frame::scan(Bytes::copy_from_slice(item.get().as_bytes())) {
            Ok(frame) => frame,
            Err(e) => {
                answers.push(legacy::error(b"null", e.code(), e.to_string()));
                continue;
            }
        };
        match legacy::handle(edge, &session, "http", frame, trace_headers(parts)).await {
            Handled::Accepted | Handled::Listen(_) => {}
            Handled::Message(message) => answers.push(message),
            Handled::Running(r) => running.push(r),
        }
    }
    // All are under way, each in its own task; their notices have no stream to go to.
    for Running { work, notices } in running {
        drop(notices);
        answers.extend(work.await);
    }
    if answers.is_empty() {
        return empty(202);
    }
    let mut out = vec![b'['];
    for (i, message) in answers.iter().enumerate() {
        if i > 0 {
            out.push(b',');
        }
        out.extend_from_slice(message);
    }
    out.push(b']');
    json(200, out.into())
}

// The body as it is left: taken, unless the rest of it is to be let run out.
async fn read(
    body: &mut Option<Incoming>,
    max: usize,
    time: std::time::Duration,
) -> Result<Bytes, Out> {
    let too_large = || {
        plain_error(
            413,
            INVALID_REQUEST,
            &format!("the body is larger than {max} bytes (gateway.max_body)"),
            Reason::TooLarge.as_str(),
        )
    };
    let mut incoming = body.take().expect("a body is read once");
    if incoming.size_hint().lower() > max as u64 {
        *body = Some(incoming);
        return Err(too_large());
    }
    match tokio::time::timeout(time, Limited::new(&mut incoming, max).collect()).await {
        Ok(Ok(collected)) => Ok(collected.to_bytes()),
        Ok(Err(e)) if e.is::<http_body_util::LengthLimitError>() => {
            *body = Some(incoming);
            Err(too_large())
        }
        Ok(Err(_)) => Err(plain_error(400, INVALID_REQUEST, "the body ended early", "broken_body")),
        Err(_) => Err(plain_error(
            408,
            INVALID_REQUEST,
            "the body did not arrive in time (gateway.body_timeout)",
            "slow_body",
        )),
    }
}

// Read on for a while after a refusal, and keep nothing. A connection that is closed with bytes
// unread is reset, and the reset can overtake the answer: the client would see a broken
// connection and not why.
async fn linger(mut body: Incoming) {
    let mut left = LINGER_MAX;
    while let Some(Ok(frame)) = body.frame().await {
        let Some(rest) = left.checked_sub(frame.data_ref().map_or(0, Bytes::len)) else { return };
        left = rest;
    }
}

fn trace_headers(parts: &Parts) -> TraceHeaders {
    let text = |name: &'static str| parts.headers.get(name).and_then(|v| v.to_str().ok());
    text("traceparent").map(|p| (p.into(), text("tracestate").map(Into::into)))
}

pub(super) fn json(status: u16, message: Bytes) -> Out {
    let mut out = Response::new(OutBody::from(message));
    *out.status_mut() = StatusCode::from_u16(status).expect("a status of ours");
    out.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    // What a consumer gets depends on its key.
    out.headers_mut().insert(CACHE_CONTROL, HeaderValue::from_static("no-store"));
    out
}

pub(super) fn events(events: Events) -> Out {
    let mut out = Response::new(OutBody::Events(events));
    let headers = out.headers_mut();
    headers.insert(CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
    headers.insert(CACHE_CONTROL, HeaderValue::from_static("no-cache"));
    // Proxies in front must not collect events.
    headers.insert(HeaderName::from_static("x-accel-buffering"), HeaderValue::from_static("no"));
    out
}

fn empty(status: u16) -> Out {
    let mut out = Response::new(OutBody::empty());
    *out.status_mut() = StatusCode::from_u16(status).expect("a status of ours");
    out
}

fn plain_error(status: u16, code: i32, text: &str, reason: &str) -> Out {
    error_with_id(status, None, code, text, reason)
}

fn error_with_id(status: u16, id: Option<Bytes>, code: i32, text: &str, reason: &str) -> Out {
    let error = ErrorObject::new(code, text).with_data(serde_json::json!({"reason": reason}));
    json(status, response(&id.unwrap_or_default(), Kind::Error, error.to_raw().get().as_bytes()))
}
