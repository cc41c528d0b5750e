//! The listening socket: HTTP/1.1 and HTTP/2 cleartext on one port, every wait bounded.

use std::io::{self, Cursor};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use hyper::Request;
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::io::AsyncReadExt as _;
use tokio::net::{TcpListener, TcpStream};

use crate::call::Counted;
use crate::failure::Reason;
use crate::observe::metrics::ConnectionRefusal;

use super::body::OutBody;
use super::caller::LastCaller;
use super::h1::body::InBody;
use super::h1::head::Wrong;
use super::h1::{self, Answers, Ended, Patience};
use super::headers::Head;
use super::refused::NOBODY;
use super::reply::{Out, complete, deny};
use super::stall::Impatient;
use super::{Edge, HALF_SAID, Slot, http};

/// Most requests at once on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 256;
/// Bytes of one response that are taken from it before the client has room for them.
const H2_SEND_BUFFER: usize = 16 << 10;
/// Pause after a failed accept: it fails when descriptors run out, and comes back when some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// Bytes of answers that the system may hold for one client; it doubles that. Small enough that
/// a client which reads steadily, however slowly, is seen to read within [`super::UNREAD_TIME`].
const SEND_BUFFER: usize = 128 << 10;
/// When a silent connection is probed, how often, and how many probes in a row may be lost: two
/// minutes in all, as long as load balancers give.
const PROBE_AFTER: Duration = Duration::from_secs(60);
/// See [`PROBE_AFTER`].
const PROBE_EVERY: Duration = Duration::from_secs(15);
/// See [`PROBE_AFTER`].
const PROBES_MAX: u32 = 4;
/// Room for the first bytes of a connection: a request, mostly.
const FIRST: usize = 4 << 10;
/// The first bytes of an HTTP/2 connection with prior knowledge.
const H2_PREFACE: &[u8] = b"PRI";

/// Accept connections until the edge stops, then let open ones finish their requests. A socket that
/// is `shared` with another gateway is left to it as soon as this one is leaving.
pub async fn run(edge: Arc<Edge>, listener: TcpListener, shared: bool) {
    let end = if shared { edge.leave.clone() } else { edge.stop.clone() };
    loop {
        // What the system has given us is served; what is asked for first is whether to go on.
        let accepted = tokio::select! {
            biased;
            () = end.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let (stream, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                edge.gateway.observe.metrics.connection_refused(ConnectionRefusal::AcceptFailed);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let max = edge.gateway.current.load().config.gateway.max_connections;
        let Some(slot) = Slot::take(&edge.connections, max) else {
            // Closed at once: a client sees that it is not served, and we hold nothing for it.
            edge.gateway.observe.metrics.connection_refused(ConnectionRefusal::Limit);
            continue;
        };
        let (tasks, edge) = (edge.served.clone(), edge.clone());
        tasks.spawn(async move {
            let _slot = slot;
            connection(edge, stream, peer).await;
        });
    }
}

async fn connection(edge: Arc<Edge>, mut stream: TcpStream, peer: SocketAddr) {
    // Answers are written whole; waiting for more would add 40 ms (delayed acknowledgement).
    let _ = stream.set_nodelay(true);
    keep_alive(&stream);
    let (patience, idle) = {
        let settings = &edge.gateway.current.load().config.gateway;
        (settings.header_timeout, settings.idle_timeout)
    };
    let begun = tokio::select! {
        begun = tokio::time::timeout(patience, begin(&mut stream)) => begun,
        () = edge.stop.cancelled() => return,
    };
    let Ok(Some(begun)) = begun else { return };
    if begun.starts_with(H2_PREFACE) {
        return Box::pin(http2(edge, stream, begun, peer, patience)).await;
    }
    let stop = edge.stop.clone();
    let metrics = edge.clone();
    let client = Client { edge, peer, last: Arc::default() };
    // Clients go away in many ways and none is worth a line; that one does not read is counted.
    if h1::serve(stream, begun, &stop, Patience { head: patience, idle }, client).await
        == Ended::Unread
    {
        metrics.gateway.observe.metrics.unread_dropped(1);
    }
}

// Who calls on a connection of HTTP/1.
struct Client {
    edge: Arc<Edge>,
    peer: SocketAddr,
    last: Arc<LastCaller>,
}

impl Answers for Client {
    fn answer(&self, head: Arc<Head>, body: InBody) -> impl Future<Output = Out> + Send + 'static {
        http::serve(self.edge.clone(), self.peer, self.last.clone(), head, body)
    }

    fn refuse(&self, wrong: Wrong) -> Out {
        let reason = if wrong.status == 431 { Reason::TooLarge } else { Reason::InvalidMessage };
        let denied = deny(wrong.status, reason, wrong.text);
        denied.refused.note(&self.edge, NOBODY, denied.method, "http", "");
        denied.out()
    }

    // Who has shown no key holds a place for a moment only.
    fn may_rest(&self) -> bool {
        self.last.is_known() || self.edge.gateway.current.load().config.consumers.is_empty()
    }

    fn goes_on(&self) -> bool {
        !self.edge.gateway.is_leaving()
    }
}

async fn http2(
    edge: Arc<Edge>,
    stream: TcpStream,
    begun: BytesMut,
    peer: SocketAddr,
    patience: Duration,
) {
    let busy = Arc::<AtomicU64>::default();
    let last = Arc::<LastCaller>::default();
    let service = {
        let (edge, busy) = (edge.clone(), busy.clone());
        service_fn(move |request: Request<Incoming>| {
            let (edge, held) = (edge.clone(), Counted::new(&busy));
            let last = last.clone();
            async move {
                let (parts, body) = request.into_parts();
                let body = InBody::Hyper(body);
                let mut out = http::serve(edge, peer, last, Arc::new(parts.into()), body).await;
                complete(&mut out);
                Ok::<_, std::convert::Infallible>(out.map(|body| Tracked { body, _held: held }))
            }
        })
    };
    let (rest, writer) = stream.into_split();
    let writing = Arc::<AtomicBool>::default();
    let writer = Impatient::new(writer, writing.clone());
    let io = tokio::io::join(Cursor::new(begun).chain(rest), writer);
    let mut builder = http2::Builder::new(TokioExecutor::new());
    builder
        .timer(TokioTimer::new())
        .max_concurrent_streams(H2_STREAMS_MAX)
        .max_send_buf_size(H2_SEND_BUFFER)
        .keep_alive_interval(patience)
        .keep_alive_timeout(patience);
    let served = builder.serve_connection(TokioIo::new(io), service);
    tokio::pin!(served);
    let mut ended = tokio::select! {
        ended = served.as_mut() => Some(ended),
        () = edge.leave.cancelled() => None,
    };
    if ended.is_none() {
        served.as_mut().graceful_shutdown();
        ended = tokio::select! {
            ended = served.as_mut() => Some(ended),
            () = edge.stop.cancelled() => None,
        };
    }
    let ended = match ended {
        Some(ended) => ended,
        None => tokio::select! {
            ended = served => ended,
            () = idle(&busy, &writing) => Ok(()),
        },
    };
    note_end(&edge, ended);
}

// Resolves when nobody waits for anything on the connection: no request is being answered, no
// answer is on its way. What is only half said gets a moment to become a request.
async fn idle(busy: &AtomicU64, writing: &AtomicBool) {
    loop {
        tokio::time::sleep(HALF_SAID).await;
        if busy.load(Ordering::Acquire) == 0 && !writing.load(Ordering::Acquire) {
            return;
        }
    }
}

// Of a request that is being answered, until the last byte of its answer was taken.
struct Tracked {
    body: OutBody,
    _held: Counted,
}

impl Body for Tracked {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        Pin::new(&mut self.body).poll_frame(cx)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

// Clients go away in many ways and none is worth a line; that one does not read is counted.
fn note_end(edge: &Edge, ended: Result<(), hyper::Error>) {
    let Err(error) = ended else { return };
    let cause = std::error::Error::source(&error).and_then(|e| e.downcast_ref::<io::Error>());
    if cause.is_some_and(|cause| cause.kind() == io::ErrorKind::TimedOut) {
        edge.gateway.observe.metrics.unread_dropped(1);
    }
}

// A client that vanished without a word is noticed although nothing is written to it. What the
// system refuses is no reason not to serve.
fn keep_alive(stream: &TcpStream) {
    use rustix::net::sockopt;
    let _ = sockopt::set_socket_send_buffer_size(stream, SEND_BUFFER);
    let _ = sockopt::set_socket_keepalive(stream, true);
    let _ = sockopt::set_tcp_keepidle(stream, PROBE_AFTER);
    let _ = sockopt::set_tcp_keepintvl(stream, PROBE_EVERY);
    let _ = sockopt::set_tcp_keepcnt(stream, PROBES_MAX);
}

// The first bytes, as many as it takes to tell HTTP/2's preface from anything else; `None` if the
// client closes before that. Who has said nothing yet holds no memory.
async fn begin(stream: &mut TcpStream) -> Option<BytesMut> {
    let mut head = BytesMut::new();
    loop {
        stream.readable().await.ok()?;
        let mut room = [0u8; FIRST];
        match stream.try_read(&mut room) {
            Ok(0) => return None,
            Ok(n) => head.extend_from_slice(&room[..n]),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(_) => return None,
        }
        if head.len() >= H2_PREFACE.len() || !H2_PREFACE.starts_with(&head) {
            return Some(head);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn size<A, B, C, F>(_: fn(A, B, C) -> F) -> usize {
        size_of::<F>()
    }

    #[test]
    fn a_connection_is_small() {
        // What it holds while it is idle, or a stream is open: its task, the part of it that the
        // body of a request could share, a timer, and no buffer.
        let connection = size(connection);
        assert!(connection <= 1536, "{connection}");
    }
}
