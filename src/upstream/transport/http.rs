//! Streamable HTTP towards an upstream: one POST per message, the answer as JSON or as events
//! (2025-03-26 basic/transports to 2026-07-28 basic/transports/streamable-http).
//!
//! ```text
//!  Outgoing ─► redirect ─► client ─► response ─┬─ JSON ────► answer ─┐
//!              (same origin only)              ├─ events ──► events ─┼─► Answer | RequestError
//!                                              └─ not 2xx ─► answer ─┘
//! ```
//!
//! Each upstream has a client and a pool of its own, so one that hangs cannot use up another's.
//! Dropping a request's future closes its response stream; for a modern upstream that *is* the
//! cancellation. No task is started here. What is sent twice, and what is not, is decided in
//! `client` and `redirect`.
//!
//! No content coding is asked for: compressed events are held back by what compresses them, and a
//! small compressed body could grow without bound.

mod answer;
mod body;
mod client;
mod events;
pub mod h1;
mod large;
mod outcome;
mod redirect;
mod resume;
mod retry_after;
mod sse;

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use hyper::header::{
    ACCEPT, ACCEPT_ENCODING, AUTHORIZATION, CONNECTION, CONTENT_LENGTH, CONTENT_TYPE, HOST,
    HeaderName, HeaderValue, TE, TRAILER, TRANSFER_ENCODING, UPGRADE, USER_AGENT,
};
use hyper::{HeaderMap, Method, StatusCode, Uri};
use tokio::sync::mpsc;

use crate::config::HttpConfig;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR};
use crate::protocol::header::LAST_EVENT_ID;
use crate::protocol::message::{Frame, Kind, response};

use super::{OnNotice, Unasked};
use answer::Read;
use body::Body;
use client::Client;
use events::Events;
use h1::{Head, Media};

pub(super) use answer::of_status;
pub(super) use client::{Dialled, chain, dial};
pub(super) use redirect::{follow, is_redirect};

pub use events::{EventStream, Rest};
pub use h1::Header;
pub use large::Large;
pub use outcome::{Answer, Came, HttpFault, RequestError, StreamEnd, StreamRefused};

/// How long the end of a session may take: nobody needs what comes of it.
const DELETE_TIME: Duration = Duration::from_secs(2);

/// How long a word besides the requests may take to be sent.
const ASIDE_TIME: Duration = Duration::from_secs(2);

const EVENTS: HeaderValue = HeaderValue::from_static("text/event-stream");

/// What goes with each message that is posted.
static POSTED: [Header; 2] = [
    (CONTENT_TYPE, HeaderValue::from_static("application/json")),
    (ACCEPT, HeaderValue::from_static("application/json, text/event-stream")),
];

/// Headers that the wire sets itself or that belong to one connection. A configured value would
/// break the framing or the reading of answers.
const OWN_HEADERS: [HeaderName; 11] = [
    ACCEPT,
    ACCEPT_ENCODING,
    CONNECTION,
    CONTENT_LENGTH,
    CONTENT_TYPE,
    HOST,
    TE,
    TRAILER,
    TRANSFER_ENCODING,
    UPGRADE,
    LAST_EVENT_ID,
];

/// What a wire has counted; they outlive it, so that they never fall.
#[derive(Debug, Default)]
pub struct HttpCounters {
    /// Bytes of message bodies sent.
    pub sent_bytes: AtomicU64,
    /// Bytes of response bodies received.
    pub received_bytes: AtomicU64,
    /// Answers on an event stream to what was not asked there.
    pub unmatched_answers: AtomicU64,
    /// Notifications that came with an answer.
    pub notices: AtomicU64,
    /// Requests of the upstream that found no room.
    pub dropped_messages: AtomicU64,
    /// Events on a session's stream that were no message.
    pub garbled_messages: AtomicU64,
}

fn add(counter: &AtomicU64, n: usize) {
    counter.fetch_add(n as u64, Ordering::Relaxed);
}

/// The way to one endpoint. Cloning shares the connections.
#[derive(Clone)]
pub struct HttpWire(Arc<Inner>);

struct Inner {
    upstream: Arc<str>,
    client: Client,
    uri: Uri,
    configured: Vec<Header>,
    max_message: usize,
    counters: Arc<HttpCounters>,
}

impl fmt::Debug for HttpWire {
    // Path and query may hold a key.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("HttpWire").field("upstream", &self.0.upstream).finish_non_exhaustive()
    }
}

/// One message on its way out, and what goes with it.
pub struct Outgoing<'a> {
    /// The id in the message; of no meaning to [`HttpWire::notify`].
    pub id: u64,
    /// The message.
    pub message: Bytes,
    /// Headers of the whole conversation: revision, session. They go before configured ones of the
    /// same name.
    pub standing: &'a [Header],
    /// Headers of this message: mirrored fields. They go before all others.
    pub headers: &'a [Header],
}

impl HttpWire {
    /// A wire to the configured endpoint, which connects when used.
    ///
    /// # Errors
    /// When the URL or a header is not valid with what was put in for its references, or the
    /// endpoint is `https` and the system has no root certificates.
    pub fn new(
        upstream: Arc<str>,
        config: &HttpConfig,
        max_message: usize,
        counters: Arc<HttpCounters>,
    ) -> Result<HttpWire, Fault> {
        let uri = endpoint(config)?;
        let tls = if is_https(&uri) { Some(tls_for(&uri)?) } else { None };
        HttpWire::build(upstream, config, max_message, counters, tls)
    }

    /// The same, trusting only `roots`.
    #[cfg(test)]
    fn with_roots(
        upstream: Arc<str>,
        config: &HttpConfig,
        max_message: usize,
        counters: Arc<HttpCounters>,
        roots: rustls::RootCertStore,
    ) -> Result<HttpWire, Fault> {
        HttpWire::build(upstream, config, max_message, counters, Some(client::tls_with(roots)))
    }

    fn build(
        upstream: Arc<str>,
        config: &HttpConfig,
        max_message: usize,
        counters: Arc<HttpCounters>,
        tls: Option<rustls::ClientConfig>,
    ) -> Result<HttpWire, Fault> {
        let uri = endpoint(config)?;
        let configured = configured_headers(config)?;
        let configured = configured.iter().map(|(k, v)| (k.clone(), v.clone())).collect();
        let client = Client::new(config, tls, address_of(&uri));
        Ok(HttpWire(Arc::new(Inner { upstream, client, uri, configured, max_message, counters })))
    }

    /// Send one request and wait for its answer, which ends the reading: what follows on the same
    /// stream is not looked at. Notifications before it go to `on_notice`, requests to `unasked`;
    /// one that finds no room there is dropped and counted.
    ///
    /// The time is the caller's to limit. Dropping the future cancels a modern request.
    pub async fn request(
        &self,
        out: Outgoing<'_>,
        on_notice: OnNotice<'_>,
        unasked: &mpsc::Sender<Unasked>,
    ) -> Result<Answer, RequestError> {
        match self.begin(out, on_notice, unasked, false).await? {
            Came::Answer(answer) => Ok(answer),
            Came::Large(large) => {
                let failed = |fault| HttpFault { fault, status: Some(StatusCode::OK.as_u16()) };
                let frame = large.whole().await.map_err(failed)?;
                Ok(Answer { frame, status: 200, session: None, rest: None })
            }
        }
    }

    /// The same; but, with `large`, an answer in JSON that is large is handed over as soon as that
    /// shows.
    pub async fn begin(
        &self,
        out: Outgoing<'_>,
        on_notice: OnNotice<'_>,
        unasked: &mpsc::Sender<Unasked>,
        large: bool,
    ) -> Result<Came, RequestError> {
        let inner = &*self.0;
        let enough = if large { large::LARGE } else { usize::MAX };
        let (id, own) = (out.id, [out.standing, out.headers]);
        let ((mut head, body), _) = inner.post(&out).await?;
        let status = head.status.as_u16();
        let session = head.session.take();
        let answer = |frame, rest| Came::Answer(Answer { frame, status, session, rest });
        if !head.status.is_success() {
            let refused = answer::refused_request(id, &head, body, &inner.counters);
            return Ok(answer(Box::pin(refused).await?, None));
        }
        let failed = |fault| HttpFault { fault, status: Some(status) };
        match head.media {
            Media::Json | Media::Unnamed => {
                let (max, counters) = (inner.max_message, &inner.counters);
                let read = answer::read_some(body, max, enough, counters).await;
                match read.map_err(failed)? {
                    Read::All(bytes) => {
                        Ok(answer(answer::from_json(bytes, id).map_err(failed)?, None))
                    }
                    Read::Some(head, body) => {
                        let (seen, counters) = (head.len(), counters.clone());
                        Ok(Came::Large(Large { id, head, body, seen, max, counters }))
                    }
                }
            }
            Media::Events => {
                let mut events = Events::new(body, inner.max_message, inner.counters.clone());
                let found = inner.await_answer(&mut events, id, own, on_notice, unasked).await;
                match found.map_err(failed)? {
                    Some(frame) => Ok(answer(frame, events.into_rest())),
                    None => Err(RequestError::StreamEnded(StreamEnd {
                        last_event_id: events.last_event_id,
                        retry: events.retry,
                        status,
                        broken: events.broken,
                    })),
                }
            }
            Media::Other => {
                let text = "the upstream's answer is neither JSON nor an event stream";
                Err(failed(answer::garbled(text)).into())
            }
        }
    }

    /// Send a message that has no answer: a notification, or our response to a request of the
    /// upstream. Any success will do; what else the response holds is not looked at.
    pub async fn notify(&self, out: Outgoing<'_>) -> Result<(), HttpFault> {
        let inner = &*self.0;
        let ((head, body), _) = inner.post(&out).await?;
        if head.status.is_success() {
            return Ok(());
        }
        Err(answer::refused(&head, body, &inner.counters).await)
    }

    /// Open the stream of an old session, on which the upstream speaks unasked; with an event id,
    /// the stream on which that event came, from there on (2025-11-25 basic/transports,
    /// "listening for messages", "resumability and redelivery").
    pub async fn stream(
        &self,
        headers: &[Header],
        last_event_id: Option<&str>,
    ) -> Result<EventStream, StreamRefused> {
        let inner = &*self.0;
        let fault = StreamRefused::Fault;
        let mut own = vec![(ACCEPT, EVENTS)];
        if let Some(id) = last_event_id {
            // Event ids may hold any text; bytes beyond ASCII are legal in a header value.
            let value = HeaderValue::from_bytes(id.as_bytes());
            let value = value.map_err(|_| {
                fault(answer::garbled("the upstream's event id cannot be sent back").into())
            })?;
            own.push((LAST_EVENT_ID, value));
        }
        let nothing = Bytes::new();
        let sent = inner.send_to(Method::GET, &inner.uri, [&own, headers, &[]], &nothing).await;
        let ((head, body), _) = sent.map_err(fault)?;
        match head.status {
            StatusCode::METHOD_NOT_ALLOWED | StatusCode::NO_CONTENT => {
                Err(StreamRefused::NotOffered)
            }
            status if !status.is_success() => {
                Err(fault(answer::refused(&head, body, &inner.counters).await))
            }
            _ if head.media == Media::Events => {
                Ok(EventStream::new(Events::new(body, inner.max_message, inner.counters.clone())))
            }
            status => Err(fault(HttpFault {
                fault: answer::garbled("the upstream's event stream is none"),
                status: Some(status.as_u16()),
            })),
        }
    }

    /// End a session, within two seconds; what comes of it is not looked at.
    pub async fn delete(&self, headers: &[Header]) {
        let (inner, nothing) = (&*self.0, Bytes::new());
        let sent = inner.send_to(Method::DELETE, &inner.uri, [headers, &[], &[]], &nothing);
        let _ = tokio::time::timeout(DELETE_TIME, sent).await;
    }
}

// The response, and from where it came if that is not where it was asked for.
type Sent = Result<((Head, Body), Option<Uri>), HttpFault>;

impl Inner {
    fn post(&self, out: &Outgoing<'_>) -> impl Future<Output = Sent> + Send {
        let headers = [&POSTED, out.standing, out.headers];
        self.send_to(Method::POST, &self.uri, headers, &out.message)
    }

    async fn send_to(
        &self,
        method: Method,
        uri: &Uri,
        [first, second, last]: [&[Header]; 3],
        body: &Bytes,
    ) -> Sent {
        let headers = [&self.configured, first, second, last];
        let mut moved = None;
        let mut hops = 0;
        loop {
            add(&self.counters.sent_bytes, body.len());
            let uri = moved.as_ref().unwrap_or(uri);
            let response = self.client.send(&method, uri, &headers, body).await?;
            let status = response.0.status;
            if !redirect::is_redirect(status) {
                return Ok((response, moved));
            }
            let location = response.0.location.as_ref();
            let next = redirect::follow(&method, status, uri, location, hops)
                .map_err(|fault| HttpFault { fault, status: Some(status.as_u16()) })?;
            moved = Some(next);
            hops += 1;
        }
    }

    // The answer among the messages of its stream; `None` if the stream ends without it.
    async fn await_answer(
        &self,
        events: &mut Events,
        id: u64,
        own: [&[Header]; 2],
        on_notice: OnNotice<'_>,
        unasked: &mpsc::Sender<Unasked>,
    ) -> Result<Option<Frame>, Fault> {
        while let Some(data) = events.next().await.map_err(events::too_large)? {
            let frame = answer::scan(data)?;
            match frame.kind() {
                Kind::Notification => {
                    add(&self.counters.notices, 1);
                    events.unasked();
                    on_notice(frame);
                }
                Kind::Request => {
                    let asked = frame.id();
                    if let (Err(error), Some(asked)) =
                        (unasked.try_send(Unasked::Request(frame)), asked)
                    {
                        add(&self.counters.dropped_messages, 1);
                        tracing::debug!(upstream = %self.upstream, %error, "request dropped");
                        Box::pin(self.turn_away(own, &asked)).await;
                    }
                }
                Kind::Result | Kind::Error if answer::answers(&frame, id) => {
                    return Ok(Some(frame));
                }
                Kind::Result | Kind::Error => add(&self.counters.unmatched_answers, 1),
            }
        }
        Ok(None)
    }
}

impl Inner {
    // Say no to a request for which there is no room, so that the upstream does not wait for ever.
    // Only the call that it floods waits for that.
    async fn turn_away(&self, [standing, headers]: [&[Header]; 2], id: &[u8]) {
        let error = ErrorObject::new(INTERNAL_ERROR, "too many questions at once");
        let message = response(id, Kind::Error, error.to_raw().get().as_bytes());
        let out = Outgoing { id: 0, message, standing, headers };
        let _ = tokio::time::timeout(ASIDE_TIME, self.post(&out)).await;
    }
}

/// TLS that trusts what the system trusts, if this is `https`.
pub(super) fn tls_for(uri: &Uri) -> Result<rustls::ClientConfig, Fault> {
    if is_https(uri) {
        client::tls_with_system_roots()
    } else {
        Ok(client::tls_with(rustls::RootCertStore::empty()))
    }
}

fn is_https(uri: &Uri) -> bool {
    uri.scheme_str() == Some("https")
}

fn not_configured(text: String) -> Fault {
    Fault::new(Reason::ConnectFailed, Delivery::NotSent, text)
}

/// What one connection for WebSocket needs: where to dial, and what else goes with the upgrade.
/// `address` is how the log calls the upstream.
pub(super) struct ForUpgrade {
    pub uri: Uri,
    pub headers: HeaderMap,
    pub address: Arc<str>,
}

/// From settings whose URL is one of WebSocket, which is dialled as HTTP is.
pub(super) fn for_upgrade(config: &HttpConfig) -> Result<ForUpgrade, Fault> {
    let (scheme, rest) = config.url.expose().split_once("://").unwrap_or_default();
    let scheme = if scheme.eq_ignore_ascii_case("wss") { "https" } else { "http" };
    let uri = parse_endpoint(&format!("{scheme}://{rest}"))
        .ok_or_else(|| not_configured("the configured url is not a valid ws or wss URL".into()))?;
    let address = address_of(&uri);
    Ok(ForUpgrade { uri, headers: configured_headers(config)?, address })
}

fn address_of(uri: &Uri) -> Arc<str> {
    let default_port = if uri.scheme_str() == Some("https") { 443 } else { 80 };
    let port = uri.port_u16().unwrap_or(default_port);
    format!("{}:{port}", uri.host().unwrap_or("")).into()
}

// The file's own check saw the text before the references were put in.
fn endpoint(config: &HttpConfig) -> Result<Uri, Fault> {
    parse_endpoint(config.url.expose())
        .ok_or_else(|| not_configured("the configured url is not a valid http or https URL".into()))
}

fn parse_endpoint(url: &str) -> Option<Uri> {
    let uri: Option<Uri> = url.parse().ok();
    uri.filter(|uri| {
        matches!(uri.scheme_str(), Some("http" | "https"))
            && uri.authority().is_some_and(|a| !a.as_str().contains('@') && !a.host().is_empty())
    })
}

fn configured_headers(config: &HttpConfig) -> Result<HeaderMap, Fault> {
    let value_of = |name: &str, text: &str| {
        let value = HeaderValue::from_str(text);
        let mut value = value.map_err(|_| {
            not_configured(format!("the configured {name} holds bytes that no header may"))
        })?;
        value.set_sensitive(true);
        Ok::<_, Fault>(value)
    };
    let mut headers = HeaderMap::new();
    let agent = concat!("weirkeeper/", env!("CARGO_PKG_VERSION"));
    headers.insert(USER_AGENT, HeaderValue::from_static(agent));
    for (written, text) in &config.headers {
        let name: Option<HeaderName> = written.parse().ok();
        let name = name.filter(|name| !OWN_HEADERS.contains(name)).ok_or_else(|| {
            not_configured(format!("the configured header {written:?} cannot be sent"))
        })?;
        let value = value_of(&format!("header {written:?}"), text.expose())?;
        headers.insert(name, value);
    }
    if let Some(token) = &config.bearer {
        headers.insert(AUTHORIZATION, value_of("bearer", &format!("Bearer {}", token.expose()))?);
    }
    Ok(headers)
}

#[cfg(test)]
mod tests;
