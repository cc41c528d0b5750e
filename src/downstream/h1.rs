//! HTTP/1.1 and 1.0 towards clients: one connection, its requests one after the other.
//!
//! Decided: written here, and not hyper's (2026-11-21). With hyper a quarter of a call's
//! instructions went into its connection (queues between reader, service and writer; a body that
//! is a channel; a timer set and cleared for each request), and each idle connection held 16 KiB
//! of buffers, most of what a session with an open stream may cost. Here one task reads, answers
//! and writes; a body that came with its head is a slice of what was read; nothing is held for a
//! connection that has nothing to say.
//!
//! *The risk weighed.* Framing is where servers are attacked, and hyper's is tried by many. So
//! lines are still read by `httparse`, as in hyper; names, values and targets are still checked by
//! the types of `http`; and what is ours is the smaller part, and narrower than what hyper takes:
//! one way to say where a body ends, or none ([`head::parse`]; the chunks are [`crate::wire`]'s,
//! which also reads those of upstreams). What hyper did besides, and who does it now:
//!
//! - limits on headers and their size: [`head::HEADERS_MAX`], [`head::HEAD_MAX`];
//! - time for a head and for an idle connection: [`Patience`];
//! - `100 Continue` when a body is asked for, and the end of a client that is gone: `io`;
//! - a response's framing, its date, `HEAD` and HTTP/1.0: [`head::write`], `send`;
//! - a body that breaks off is never ended as if it were whole: `send`.
//!
//! HTTP/2 stays with hyper (see [`super::listener`]), and so does the operators' port.

pub mod again;
pub mod body;
pub mod head;
mod io;
mod send;
#[cfg(test)]
mod tests;

use std::future::{Future, poll_fn};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll, Wake, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes, BytesMut};
use hyper::{Method, Response};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::oneshot;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, WaitForCancellationFuture};

use crate::place::in_place;
use crate::timer::Timer;
use crate::wire::Left;

use super::body::OutBody;
use super::headers::Head;
use super::{HALF_SAID, UNREAD_TIME};
use body::{InBody, LINGER_MAX, LINGER_TIME};
use head::{Parsed, Wrong};
use io::Shared;
use send::Sending;

/// Who answers the requests of a connection.
pub trait Answers {
    /// Answer one. Dropped when the client goes away.
    fn answer(
        &self,
        head: Arc<Head>,
        body: InBody,
    ) -> impl Future<Output = Response<OutBody>> + Send + 'static;

    /// Say why what came is not taken as a request.
    fn refuse(&self, wrong: Wrong) -> Response<OutBody>;

    /// Whether the client may be silent for long before its next request.
    fn may_rest(&self) -> bool {
        true
    }

    /// Whether the client may send its next request here; if not, it is told with each answer.
    fn goes_on(&self) -> bool {
        true
    }
}

/// Why a connection was given up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was closed, by either side.
    Closed,
    /// It broke, or an answer did.
    Broken,
    /// The client did not read.
    Unread,
}

/// In the extensions of a request that would become something else: the stream, once the response
/// has said so, and what was read of it.
pub struct Upgrade<S>(Arc<Mutex<Option<Coming<S>>>>);

type Coming<S> = oneshot::Receiver<(S, Bytes)>;

impl<S> Clone for Upgrade<S> {
    fn clone(&self) -> Upgrade<S> {
        Upgrade(self.0.clone())
    }
}

impl<S> Upgrade<S> {
    /// The stream to come, for the first who asks.
    pub fn take(&self) -> Option<Coming<S>> {
        self.0.lock().expect("no panic while held").take()
    }
}

/// How long a client is waited for.
#[derive(Clone, Copy, Debug)]
pub struct Patience {
    /// For a head, from its first byte.
    pub head: Duration,
    /// For the first byte of the next one.
    pub idle: Duration,
}

/// Serve a connection of which `begun` was read.
pub async fn serve<S, A>(
    stream: S,
    begun: BytesMut,
    stop: &CancellationToken,
    patience: Patience,
    answers: A,
) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    A: Answers,
{
    let io = Arc::new(Shared::new(stream, begun));
    let said = pin!(stop.cancelled());
    let mut stop = Stop::new(said);
    // One for all waits of the connection: a request costs it nothing.
    let mut timer = Timer::default();
    loop {
        let idle = if answers.may_rest() { patience.idle } else { patience.head };
        let mut wait = Wait { until: Instant::now() + idle, patience, fresh: true, begun: false };
        let heard = poll_fn(|cx| wait.poll(&io, &mut stop, &mut timer, cx)).await;
        let (mut sending, upgrade) = match heard {
            None => return Ended::Closed,
            Some(Err(wrong)) => {
                return Box::pin(refuse(&io, &mut timer, answers.refuse(wrong))).await;
            }
            Some(Ok(parsed)) => {
                let Parsed { mut head, keep, upgrades, .. } = parsed;
                let (version, is_head) = (head.version, head.method == Method::HEAD);
                let upgrade = Arc::get_mut(&mut head)
                    .filter(|_| upgrades)
                    .map(|head| offer(&mut head.extensions));
                let body = take_body(&io);
                let mut answering = in_place(|| answers.answer(head, body));
                let answered = poll_fn(|cx| {
                    if let Poll::Ready(response) = answering.as_mut().poll(cx) {
                        return Poll::Ready(Some(response));
                    }
                    io.lock().poll_gone(cx).map(|()| None)
                })
                .await;
                drop(answering);
                let Some(response) = answered else { return Ended::Closed };
                io.lock().begin_response();
                let keep = keep && answers.goes_on() && !stop.is_said() && io.can_go_on();
                (Sending::new(response, version, is_head, keep), upgrade)
            }
        };
        let switches = sending.switches();
        if let Err(ended) = poll_fn(|cx| poll_sent(&mut sending, &io, &mut timer, cx)).await {
            return ended;
        }
        let keep = sending.keep;
        drop(sending);
        if switches {
            if let (Some(upgrade), Some(io)) = (upgrade, Arc::into_inner(io)) {
                let _ = upgrade.send(io.into_parts());
            }
            return Ended::Closed;
        }
        let is_over = io.lock().left.is_over();
        let go_on = keep && (is_over || Box::pin(pass_over(&io)).await);
        if !go_on {
            return Box::pin(close(&io)).await;
        }
        io.lock().rest();
    }
}

// What a wait for a request ends with. Nothing: closed, for too long, or the gateway stops.
type Heard = Option<Result<Parsed, Wrong>>;

// The wait for a request's head.
struct Wait {
    until: Instant,
    patience: Patience,
    // There are bytes that nobody has looked at.
    fresh: bool,
    // There is a part of a head: it has a time of its own to become one.
    begun: bool,
}

impl Wait {
    fn poll<S>(
        &mut self,
        shared: &Shared<S>,
        stop: &mut Stop<'_, '_>,
        timer: &mut Timer,
        cx: &mut Context<'_>,
    ) -> Poll<Heard>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        if stop.flag.is_none() {
            stop.poll(cx);
        }
        let mut io = shared.lock();
        loop {
            if std::mem::take(&mut self.fresh) {
                let heard = head_of(&mut io).transpose();
                if heard.is_some() {
                    return Poll::Ready(heard);
                }
                if !self.begun && !io.unread.is_empty() {
                    self.begun = true;
                    self.until = Instant::now() + self.patience.head;
                }
            }
            let before = io.unread.len();
            match io.poll_fill(cx) {
                Poll::Pending => break,
                Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(None),
                Poll::Ready(Ok(_)) => {
                    let more = &io.unread[before..];
                    // Read again when another line is there: a head that comes byte by byte would
                    // cost its square.
                    self.fresh = before == 0
                        || io.unread.len() > head::HEAD_MAX
                        || memchr::memchr(b'\n', more).is_some();
                }
            }
        }
        let half_said = !io.unread.is_empty();
        drop(io);
        if stop.poll(cx) {
            if !half_said {
                return Poll::Ready(None);
            }
            self.until = self.until.min(stop.since() + HALF_SAID);
        }
        timer.poll(cx, self.until).map(|()| None)
    }
}

// The request at the beginning of what was read, if its head is there. Its body is left to
// [`take_body`].
fn head_of<S>(io: &mut io::Io<S>) -> Result<Option<Parsed>, Wrong> {
    // Clients of old put an empty line behind a body (RFC 9112, 2.2).
    let blank = io.unread.iter().take_while(|b| matches!(b, b'\r' | b'\n')).count();
    io.unread.advance(blank);
    if io.unread.is_empty() {
        return Ok(None);
    }
    let mut read = std::mem::take(&mut io.unread).freeze();
    let Some((parsed, length)) = io.again.parse(&read)? else {
        io.unread = BytesMut::from(read);
        return Ok(None);
    };
    read.advance(length);
    io.left = parsed.left;
    io.expects = parsed.expects;
    io.left_behind = false;
    io.behind = read;
    Ok(Some(parsed))
}

// The body of the request whose head was read last. Mostly it came with it; then it is a slice of
// what was read, and the connection has nothing more to do with it.
fn take_body<S>(shared: &Arc<Shared<S>>) -> InBody
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let mut io = shared.lock();
    let mut behind = std::mem::take(&mut io.behind);
    let body = match io.left {
        Left::Nothing => Some(None),
        Left::Length(length) if length <= behind.len() as u64 => {
            io.left = Left::Nothing;
            Some(Some(behind.split_to(length as usize)))
        }
        _ => None,
    };
    if !behind.is_empty() {
        io.unread = BytesMut::from(&behind[..]);
    }
    match body {
        Some(whole) => InBody::Whole(whole),
        None => InBody::rest(shared.clone()),
    }
}

fn offer<S: Send + 'static>(
    extensions: &mut hyper::http::Extensions,
) -> oneshot::Sender<(S, Bytes)> {
    let (tx, rx) = oneshot::channel();
    extensions.insert(Upgrade(Arc::new(Mutex::new(Some(rx)))));
    tx
}

impl<S> Shared<S> {
    // Whether another request can follow: the body was read, or is going to be.
    fn can_go_on(&self) -> bool {
        let io = self.lock();
        // Who waits for `100 Continue` and does not get it may send the body or not.
        io.left.is_over() || (io.left_behind && !io.expects)
    }
}

// Resolves when the client has taken the response, has gone, or has not read for too long.
fn poll_sent<S>(
    sending: &mut Sending,
    shared: &Shared<S>,
    timer: &mut Timer,
    cx: &mut Context<'_>,
) -> Poll<Result<(), Ended>>
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if let Poll::Ready(sent) = sending.poll(shared, cx) {
        return Poll::Ready(sent.map_err(|_| Ended::Broken));
    }
    let mut io = shared.lock();
    if io.poll_gone(cx).is_ready() {
        return Poll::Ready(Err(Ended::Closed));
    }
    let Some(since) = io.stuck else { return Poll::Pending };
    drop(io);
    timer.poll(cx, since + UNREAD_TIME).map(|()| Err(Ended::Unread))
}

// Let what is left of a body run out, if who answered wants that and it does not take too long.
async fn pass_over<S>(shared: &Shared<S>) -> bool
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if !shared.can_go_on() {
        return false;
    }
    let mut room = LINGER_MAX;
    let passed = poll_fn(|cx| {
        loop {
            match std::task::ready!(shared.lock().poll_pass_over(cx)) {
                None => return Poll::Ready(true),
                Some(Ok(n)) if n <= room => room -= n,
                Some(Ok(_) | Err(_)) => return Poll::Ready(false),
            }
        }
    });
    tokio::time::timeout(LINGER_TIME, passed).await.unwrap_or(false)
}

async fn refuse<S>(shared: &Shared<S>, timer: &mut Timer, response: Response<OutBody>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    // Where this request ends is not known, so it is the last one.
    shared.lock().unread.clear();
    shared.lock().left = Left::UntilClose;
    let mut sending = Sending::new(response, hyper::Version::HTTP_11, false, false);
    match poll_fn(|cx| poll_sent(&mut sending, shared, timer, cx)).await {
        Ok(()) => close(shared).await,
        Err(ended) => ended,
    }
}

// Say that it is over, and read on for a moment if something may be on its way: see
// [`InBody::leave`].
async fn close<S>(shared: &Shared<S>) -> Ended
where
    S: AsyncRead + AsyncWrite + Unpin,
{
    if poll_fn(|cx| shared.lock().poll_shutdown(cx)).await.is_err() {
        return Ended::Broken;
    }
    let all_read = {
        let io = shared.lock();
        io.left.is_over() && io.unread.is_empty()
    };
    if all_read {
        return Ended::Closed;
    }
    let mut room = LINGER_MAX;
    let ran_out = poll_fn(|cx| {
        let mut io = shared.lock();
        loop {
            io.unread.clear();
            match std::task::ready!(io.poll_fill(cx)) {
                Ok(n) if n > 0 && n <= room => room -= n,
                _ => return Poll::Ready(()),
            }
        }
    });
    let _ = tokio::time::timeout(LINGER_TIME, ran_out).await;
    Ended::Closed
}

// The gateway's stop, asked for without the lock that all who wait for it share: that is taken
// once, and again when it was said.
struct Stop<'a, 'b> {
    said: Pin<&'a mut WaitForCancellationFuture<'b>>,
    flag: Option<Arc<Flag>>,
    since: Option<Instant>,
}

struct Flag {
    woken: AtomicBool,
    task: Waker,
}

impl Wake for Flag {
    fn wake(self: Arc<Self>) {
        self.woken.store(true, Ordering::Release);
        self.task.wake_by_ref();
    }
}

impl<'a, 'b> Stop<'a, 'b> {
    fn new(said: Pin<&'a mut WaitForCancellationFuture<'b>>) -> Stop<'a, 'b> {
        Stop { said, flag: None, since: None }
    }

    // Whether it was said; who waits is woken when it is.
    fn poll(&mut self, cx: &mut Context<'_>) -> bool {
        if self.since.is_some() {
            return true;
        }
        let waits = self.flag.as_ref().is_some_and(|flag| {
            !flag.woken.load(Ordering::Acquire) && flag.task.will_wake(cx.waker())
        });
        if waits {
            return false;
        }
        let flag = Arc::new(Flag { woken: AtomicBool::new(false), task: cx.waker().clone() });
        let waker = Waker::from(flag.clone());
        self.flag = Some(flag);
        if self.said.as_mut().poll(&mut Context::from_waker(&waker)).is_ready() {
            self.since = Some(Instant::now());
        }
        self.since.is_some()
    }

    // Whether it was said, as far as can be told without asking.
    fn is_said(&self) -> bool {
        self.since.is_some() || self.flag.as_ref().is_some_and(|f| f.woken.load(Ordering::Acquire))
    }

    fn since(&self) -> Instant {
        self.since.unwrap_or_else(Instant::now)
    }
}
