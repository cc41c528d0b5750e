//! One conversation with an upstream: ids, session, what was agreed.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use bytes::Bytes;
use hyper::header::HeaderValue;
use tokio::sync::{Notify, mpsc};
use tokio_util::sync::CancellationToken;

use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::capability::Askable;
use crate::protocol::header;
use crate::protocol::message::{Frame, Kind, message};
use crate::protocol::meta::at;
use crate::protocol::revision::{Era, Revision};

use super::mirror::Header;
use super::transport::http::{self, HttpWire, Large, Outgoing, RequestError};
use super::transport::pipe::Pipe;
use super::transport::{OnNotice, Unasked};

/// The wire under a link.
pub enum Wire {
    /// A child process, a WebSocket, or HTTP+SSE: a connection that all messages share.
    Pipe(Pipe),
    /// Streamable HTTP.
    Http(HttpWire),
}

impl Wire {
    /// Whether what the upstream says comes all on one way, whomever it is for.
    pub fn is_pipe(&self) -> bool {
        matches!(self, Wire::Pipe(_))
    }
}

/// What the two sides agreed on.
#[derive(Clone)]
pub struct Agreement {
    /// The revision spoken.
    pub revision: Revision,
    /// `capabilities` of the upstream, raw.
    pub capabilities: Box<str>,
    /// `serverInfo` of the upstream, raw.
    pub server_info: Option<Box<str>>,
    /// Its instructions.
    pub instructions: Option<String>,
    /// `Mcp-Session-Id`, if it gave one.
    pub session: Option<HeaderValue>,
    /// It is spoken over HTTP+SSE.
    pub sse: bool,
}

impl Agreement {
    /// Whether the upstream declared `capability` (a dotted path such as `tools.listChanged`
    /// means a truthy leaf).
    pub fn offers(&self, capability: &str) -> bool {
        let path: Vec<&str> = capability.split('.').collect();
        at(self.capabilities.as_bytes(), &path)
            .is_some_and(|value| !matches!(value.get(), "null" | "false"))
    }
}

/// A live conversation.
pub struct Link {
    /// The upstream's name.
    pub upstream: Arc<str>,
    /// What carries it.
    pub wire: Wire,
    /// What was agreed.
    pub agreed: Agreement,
    // The headers that go with each of its messages.
    standing: Vec<Header>,
    /// What the upstream may ask on it; nothing on a shared one.
    pub askable: Askable,
    /// Whose it is, if it is not everybody's: a consumer or a session, and what can be asked.
    pub owner: Option<Arc<str>>,
    ids: Arc<AtomicU64>,
    unasked: mpsc::Sender<Unasked>,
    lost: CancellationToken,
    doubt: Notify,
    // Rank of the most verbose log level that was asked for on it.
    log_level: AtomicUsize,
}

/// An answer, and what its HTTP status said.
pub struct Answered {
    /// The answer.
    pub frame: Frame,
    /// HTTP status; 200 on other wires.
    pub status: u16,
    /// `Mcp-Session-Id` of the answer.
    pub session: Option<HeaderValue>,
}

/// What comes of a request.
pub enum Came {
    /// The answer.
    Answered(Answered),
    /// The beginning of a large one.
    Large(Large),
}

/// A request that got no answer, and what its HTTP status said.
#[derive(Debug)]
pub struct Unanswered {
    /// What went wrong.
    pub fault: Fault,
    /// HTTP status, if there was one.
    pub status: Option<u16>,
}

impl Answered {
    /// One that was large and was read to its end after all.
    pub fn whole(frame: Frame) -> Answered {
        Answered { frame, status: 200, session: None }
    }
}

impl From<http::Answer> for Answered {
    fn from(answer: http::Answer) -> Answered {
        let http::Answer { frame, status, session, rest } = answer;
        // The answer need not wait for the end of its stream, which gives the connection back to
        // the pool; the wait is short and bounded.
        if let Some(rest) = rest {
            tokio::spawn(rest.drain());
        }
        Answered { frame, status, session }
    }
}

impl From<http::Came> for Came {
    fn from(came: http::Came) -> Came {
        match came {
            http::Came::Answer(answer) => Came::Answered(answer.into()),
            http::Came::Large(large) => Came::Large(large),
        }
    }
}

impl From<RequestError> for Unanswered {
    fn from(error: RequestError) -> Self {
        Unanswered { status: error.status(), fault: error.into_fault() }
    }
}

impl From<Fault> for Unanswered {
    fn from(fault: Fault) -> Self {
        Unanswered { fault, status: None }
    }
}

impl Link {
    /// A conversation over `wire`. `unasked` takes what an HTTP response stream carries besides.
    pub fn new(
        upstream: Arc<str>,
        wire: Wire,
        agreed: Agreement,
        askable: Askable,
        ids: Arc<AtomicU64>,
        unasked: mpsc::Sender<Unasked>,
    ) -> Link {
        Link {
            upstream,
            wire,
            standing: standing_headers(&agreed),
            agreed,
            askable,
            owner: None,
            ids,
            unasked,
            lost: CancellationToken::new(),
            doubt: Notify::new(),
            log_level: AtomicUsize::new(usize::MAX),
        }
    }

    /// The era spoken.
    pub fn era(&self) -> Era {
        self.agreed.revision.era()
    }

    /// The upstream no longer knows this conversation: the keeper makes a new one.
    pub fn lost(&self) {
        self.lost.cancel();
    }

    /// Whether [`Link::lost`] was called.
    pub fn is_lost(&self) -> bool {
        self.lost.is_cancelled()
    }

    /// Resolves when [`Link::lost`] was called.
    pub async fn when_lost(&self) {
        self.lost.cancelled().await;
    }

    /// A call found nobody there: the keeper should look.
    pub fn doubt(&self) {
        self.doubt.notify_one();
    }

    /// Resolves when [`Link::doubt`] was called.
    pub async fn doubted(&self) {
        self.doubt.notified().await;
    }

    /// The way to whoever hears what the upstream says unasked.
    pub fn unasked(&self) -> mpsc::Sender<Unasked> {
        self.unasked.clone()
    }

    /// A fresh id: a counter that never repeats during the life of the upstream, so a late
    /// answer of an earlier conversation can't be taken for one of this.
    pub fn mint(&self) -> u64 {
        self.ids.fetch_add(1, Ordering::Relaxed)
    }

    /// Send a request that was built with `id` and wait for its answer. `name` is the native
    /// name or URI, mirrored in a header for a modern HTTP upstream. `asks` takes the requests
    /// that come on the answer's own stream, if they are for somebody else than the link's owner.
    pub async fn exchange(
        &self,
        id: u64,
        method: &str,
        name: Option<&str>,
        message: Bytes,
        on_notice: OnNotice<'_>,
        asks: Option<&mpsc::Sender<Unasked>>,
    ) -> Result<Answered, Unanswered> {
        match self
            .exchange_with(id, method, name, (&[], None), message, on_notice, asks, false)
            .await?
        {
            Came::Answered(answered) => Ok(answered),
            Came::Large(large) => Ok(Answered::whole(large.whole().await?)),
        }
    }

    /// The same with headers that mirror `params` for a modern HTTP upstream
    /// (2026-07-28 basic/transports/streamable-http), which others don't get, and one that carries the
    /// call's key, which any HTTP upstream gets. `large`: an answer that is
    /// large may be handed over when it has begun.
    pub async fn exchange_with(
        &self,
        id: u64,
        method: &str,
        name: Option<&str>,
        (params, key): (&[Header], Option<&Header>),
        message: Bytes,
        on_notice: OnNotice<'_>,
        asks: Option<&mpsc::Sender<Unasked>>,
        large: bool,
    ) -> Result<Came, Unanswered> {
        let unasked = asks.unwrap_or(&self.unasked);
        let wire = match &self.wire {
            Wire::Http(wire) => wire,
            Wire::Pipe(pipe) => {
                let frame = pipe.request(id, message, true, on_notice).await?;
                return Ok(Came::Answered(Answered { frame, status: 200, session: None }));
            }
        };
        let modern = self.era() == Era::Modern;
        let mut headers = own_headers(&self.agreed, method, name);
        headers.extend(key.cloned());
        if modern {
            headers.extend_from_slice(params);
        }
        let given_up = (!modern).then(|| GivenUp { wire, agreed: &self.agreed, id });
        let out = Outgoing { id, message, standing: &self.standing, headers: &headers };
        let came = wire.begin(out, on_notice, unasked, large).await;
        let came = match came {
            Err(RequestError::StreamEnded(end)) if !modern && end.last_event_id.is_some() => {
                let status = end.status;
                let standing = &self.standing;
                let resumed = Box::pin(wire.resume(id, standing, end, on_notice, unasked)).await;
                resumed.map(|frame| Came::Answered(Answered { frame, status, session: None }))
            }
            came => came.map(Came::from),
        };
        // Answered or failed: there is nothing left to cancel.
        std::mem::forget(given_up);
        came.map_err(Unanswered::from)
    }

    /// A request of our own: `params` without `_meta`, which is added as the era needs it.
    pub async fn ask(&self, method: &str, params: &[(&str, Bytes)]) -> Result<Frame, Fault> {
        let id = self.mint();
        let message = own_request(self.era(), id, method, params);
        let answered =
            self.exchange(id, method, None, message, &|_| {}, None).await.map_err(|u| {
                // 2025-11-25 basic/transports, "session management".
                if u.status == Some(404) && self.agreed.session.is_some() {
                    self.lost();
                }
                u.fault
            })?;
        Ok(answered.frame)
    }

    /// See to it that an old upstream sends log messages of this rank (0: the most verbose). One
    /// conversation has one level, so it is the most verbose that anybody wants; who wants less
    /// gets less (2025-11-25 server/utilities/logging). A call waits a moment for it, so that its
    /// first messages come, and no longer.
    pub async fn want_logs(self: &Arc<Self>, rank: usize, level: &str) {
        if self.era() == Era::Modern
            || !self.agreed.offers("logging")
            || self.log_level.load(Ordering::Relaxed) <= rank
            || self.log_level.fetch_min(rank, Ordering::Relaxed) <= rank
        {
            return;
        }
        let level = serde_json::to_vec(level).expect("a string serialises");
        let link = self.clone();
        let asked = tokio::spawn(async move {
            let params = [("level", level.into())];
            let answer = link.ask("logging/setLevel", &params);
            if !matches!(tokio::time::timeout(LEVEL_TIME, answer).await, Ok(Ok(_))) {
                tracing::debug!(upstream = %link.upstream, "the log level was not taken");
                // Whoever wants logs next tries again.
                link.log_level.store(usize::MAX, Ordering::Relaxed);
            }
        });
        let _ = tokio::time::timeout(LEVEL_WAIT, asked).await;
    }

    /// Send a notification or a response.
    ///
    /// # Errors
    /// When it cannot be sent, or an upstream that does not read has not taken it in time.
    pub async fn notify(&self, message: Bytes) -> Result<(), Fault> {
        let told = notify(&self.wire, &self.agreed, message);
        tokio::time::timeout(NOTIFY_TIME, told).await.unwrap_or_else(|_| {
            let text = "the upstream does not take what it is told";
            Err(Fault::new(Reason::DeadlineExceeded, Delivery::Unknown, text))
        })
    }

    /// The headers of whatever belongs to this conversation.
    pub fn headers(&self) -> &[Header] {
        &self.standing
    }

    /// End the conversation: the session on HTTP, the process on stdio, else the connection.
    pub async fn close(&self) {
        match &self.wire {
            Wire::Pipe(pipe) => pipe.close().await,
            Wire::Http(wire) => {
                if self.agreed.session.is_some() {
                    wire.delete(&self.standing).await;
                }
            }
        }
    }
}

/// A request of our own in the words of an era.
pub fn own_request(era: Era, id: u64, method: &str, params: &[(&str, Bytes)]) -> Bytes {
    let mut out = crate::protocol::meta::ObjectWriter::new();
    for (k, v) in params {
        out.raw(k, v);
    }
    if era == Era::Modern {
        out.raw("_meta", &super::outbound::own_meta(method));
    }
    message(Some(id.to_string().as_bytes()), method, Some(&out.finish()))
}

/// The headers that an agreement asks for with each message (2026-07-28
/// basic/transports/streamable-http, "standard headers"; 2025-06-18 basic/transports, "Protocol
/// Version Header").
fn standing_headers(agreed: &Agreement) -> Vec<Header> {
    let mut out = Vec::new();
    if agreed.revision >= Revision::R2025_06_18 {
        out.push((header::PROTOCOL_VERSION, HeaderValue::from_static(agreed.revision.as_str())));
    }
    if let Some(session) = &agreed.session
        && agreed.revision.era() == Era::Legacy
    {
        out.push((header::SESSION_ID, session.clone()));
    }
    out
}

// And those of one message.
fn own_headers(agreed: &Agreement, method: &str, name: Option<&str>) -> Vec<Header> {
    if agreed.revision.era() == Era::Legacy {
        return Vec::new();
    }
    let mut out = Vec::with_capacity(2);
    if let Ok(v) = HeaderValue::from_str(method) {
        out.push((header::METHOD, v));
    }
    if let Some(v) = name.and_then(|n| HeaderValue::from_str(&header::encode(n)).ok()) {
        out.push((header::NAME, v));
    }
    out
}

/// Both, for what is said before there is a conversation.
pub fn headers_for(agreed: &Agreement, method: &str, name: Option<&str>) -> Vec<Header> {
    let mut out = standing_headers(agreed);
    out.extend(own_headers(agreed, method, name));
    out
}

/// One request over a wire, before there is a conversation.
pub async fn exchange(
    wire: &Wire,
    headers: &[Header],
    id: u64,
    message: Bytes,
    cancellable: bool,
    on_notice: OnNotice<'_>,
    unasked: &mpsc::Sender<Unasked>,
) -> Result<Answered, Unanswered> {
    match wire {
        Wire::Pipe(pipe) => {
            let frame = pipe.request(id, message, cancellable, on_notice).await?;
            Ok(Answered { frame, status: 200, session: None })
        }
        Wire::Http(wire) => {
            let out = Outgoing { id, message, standing: &[], headers };
            let answer = wire.request(out, on_notice, unasked).await;
            answer.map(Answered::from).map_err(Unanswered::from)
        }
    }
}

/// How long a message without an answer may take to be taken.
const NOTIFY_TIME: std::time::Duration = std::time::Duration::from_secs(10);
/// How long an upstream may take to answer a wish for log messages.
const LEVEL_TIME: std::time::Duration = std::time::Duration::from_secs(10);
/// How long a call waits for it: a healthy upstream answers within a round trip.
const LEVEL_WAIT: std::time::Duration = std::time::Duration::from_millis(250);

/// How long telling an old HTTP upstream that nobody waits any more may take: as long as any
/// message without an answer, since work that is not stopped costs more than the wait.
const CANCEL_TIME: std::time::Duration = NOTIFY_TIME;

/// A request whose caller may go away. An old HTTP upstream does not take a closed stream for
/// that (2025-11-25 basic/transports, "sending messages to the server"): it is told.
struct GivenUp<'a> {
    wire: &'a HttpWire,
    agreed: &'a Agreement,
    id: u64,
}

impl Drop for GivenUp<'_> {
    fn drop(&mut self) {
        // At the end of the process there is no runtime any more, and nobody to tell.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let (wire, headers) = (self.wire.clone(), standing_headers(self.agreed));
        let params = format!(r#"{{"requestId":{}}}"#, self.id);
        runtime.spawn(async move {
            let message = message(None, "notifications/cancelled", Some(params.as_bytes()));
            let told = wire.notify(Outgoing { id: 0, message, standing: &headers, headers: &[] });
            let _ = tokio::time::timeout(CANCEL_TIME, told).await;
        });
    }
}

/// One notification over a wire.
pub async fn notify(wire: &Wire, agreed: &Agreement, message: Bytes) -> Result<(), Fault> {
    match wire {
        Wire::Pipe(pipe) => pipe.notify(message).await,
        Wire::Http(wire) => {
            let method = Frame::scan(message.clone()).map(|f| f.method().to_owned());
            let headers = headers_for(agreed, method.as_deref().unwrap_or(""), None);
            let out = Outgoing { id: 0, message, standing: &[], headers: &headers };
            wire.notify(out).await.map_err(Fault::from)
        }
    }
}

/// The result of an answer, or the fault that its error amounts to for a request of our own.
pub fn result_of(frame: &Frame, what: &str) -> Result<Bytes, Fault> {
    if frame.kind() == Kind::Result {
        return Ok(frame.outcome());
    }
    Err(Fault::new(
        Reason::Garbled,
        Delivery::Refused,
        format!("the upstream answers {what} with an error"),
    )
    .because(format_args!("code {}", frame.error_code().unwrap_or(0))))
}
