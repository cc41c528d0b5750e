//! Response bodies: bytes at hand, or an event stream that does its own work.
//!
//! A body is read by its client, or not. What is larger than a moment's worth, and every stream,
//! is [`Held`]: known to the edge, which takes back what a client leaves unread for too long. On
//! a connection that carries many responses nothing else would end a single one.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::{Context, Poll, ready};

use bytes::Bytes;
use dashmap::DashMap;
use hyper::body::{Body, Frame, SizeHint};
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio::time::{Duration, Instant};

use crate::call::Piece;

/// Events that wait for the socket; the work behind them waits then.
const EVENTS_MAX: usize = 16;

/// How much is given to the connection at a time: what it holds itself, beyond our reach. Smaller
/// bodies are not worth watching.
const CHUNK: usize = 16 << 10;

/// A response body.
pub enum OutBody {
    /// All of it.
    Full(Option<Bytes>),
    /// All of it in two pieces, neither of them empty.
    Two(Bytes, Bytes),
    /// Events as they come.
    Events(Events),
    /// An answer that is too large to be kept, as it comes.
    Pieces(Pieces),
    /// Any of them, watched by the edge.
    Held(Held),
}

/// An event stream and the work that writes it. The work runs as part of the body: when the
/// client goes away hyper drops the body, and with it the work and the call behind it. That is
/// what cancellation means in the newest revision (2026-07-28 basic/patterns/cancellation).
pub struct Events {
    work: Option<Pin<Box<dyn Future<Output = ()> + Send>>>,
    rx: mpsc::Receiver<Bytes>,
}

impl Events {
    /// A stream written by `work`, which gets the sending end.
    pub fn new<F>(work: impl FnOnce(mpsc::Sender<Bytes>) -> F) -> Events
    where
        F: Future<Output = ()> + Send + 'static,
    {
        let (tx, rx) = mpsc::channel(EVENTS_MAX);
        Events { work: Some(Box::pin(work(tx))), rx }
    }

    /// The same, ended by `end` at the latest. What `end` holds is held as long as the stream.
    #[must_use]
    pub fn until(self, end: impl Future<Output = ()> + Send + 'static) -> Events {
        let Events { work, rx } = self;
        let work = work.map(|work| {
            Box::pin(async move {
                tokio::select! {
                    () = work => {}
                    () = end => {}
                }
            }) as Pin<Box<dyn Future<Output = ()> + Send>>
        });
        Events { work, rx }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<Option<Bytes>> {
        if self.work.as_mut().is_some_and(|work| work.as_mut().poll(cx).is_ready()) {
            self.work = None;
        }
        self.rx.poll_recv(cx)
    }
}

/// An answer in pieces. The call behind it goes on by itself, so that its time runs also while
/// the client reads nothing, and ends with the body at the latest.
pub struct Pieces {
    call: JoinHandle<()>,
    rx: mpsc::Receiver<Piece>,
    // Of the last piece, what was not given yet.
    rest: Bytes,
    over: bool,
}

impl Pieces {
    /// An answer whose pieces come while `call` runs.
    pub fn new<T>(
        call: impl Future<Output = T> + Send + 'static,
        rx: mpsc::Receiver<Piece>,
    ) -> Pieces {
        let call = tokio::spawn(async move { drop(call.await) });
        Pieces { call, rx, rest: Bytes::new(), over: false }
    }

    // At most so much at a time.
    fn poll(&mut self, cx: &mut Context<'_>, max: usize) -> Poll<Option<io::Result<Bytes>>> {
        if self.rest.is_empty() && !self.over {
            match ready!(self.rx.poll_recv(cx)) {
                Some(Piece::Bytes(bytes)) => self.rest = bytes,
                Some(Piece::End) => self.over = true,
                // The end of the connection is all that says so now.
                None => {
                    let text = "the answer was broken off";
                    return Poll::Ready(Some(Err(io::Error::other(text))));
                }
            }
        }
        if self.over {
            // It is written down before the client sees the end.
            let _ = ready!(Pin::new(&mut self.call).poll(cx));
            return Poll::Ready(None);
        }
        Poll::Ready(Some(Ok(self.rest.split_to(max.min(self.rest.len())))))
    }
}

impl Drop for Pieces {
    // Nobody reads any more: the call is cancelled, upstream too.
    fn drop(&mut self) {
        self.call.abort();
    }
}

/// Bodies whose clients have not read all of them.
#[derive(Default)]
pub struct Unread {
    held: Arc<DashMap<u64, Arc<Cell>>>,
    next: AtomicU64,
}

/// A body that is in the edge's hands until its connection asks for it.
pub struct Held {
    cell: Arc<Cell>,
    // Its place in the edge's book.
    place: (Arc<DashMap<u64, Arc<Cell>>>, u64),
}

struct Cell(Mutex<State>);

struct State {
    rest: Rest,
    // Since when the connection has not asked for what there is: from the beginning, or from what
    // was given last. `None`: it asked, and there was nothing.
    given: Option<Instant>,
}

enum Rest {
    // And what comes behind them.
    Bytes(Bytes, Option<Bytes>),
    Events(Events),
    Pieces(Pieces),
    Done,
    // Taken back: the client did not read.
    Forfeit,
}

impl Cell {
    fn lock(&self) -> MutexGuard<'_, State> {
        // A panic in a stream's work leaves a stream that is given up.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        self.place.0.remove(&self.place.1);
    }
}

impl Unread {
    /// Watch a body, if it is worth it: on a connection that carries many, where nothing else
    /// would end a single one.
    pub fn watch(&self, body: OutBody) -> OutBody {
        let rest = match body {
            OutBody::Full(Some(bytes)) if bytes.len() > CHUNK => Rest::Bytes(bytes, None),
            OutBody::Two(head, rest) if rest.len() > CHUNK => Rest::Bytes(head, Some(rest)),
            OutBody::Events(events) => Rest::Events(events),
            OutBody::Pieces(pieces) => Rest::Pieces(pieces),
            small => return small,
        };
        let cell = Arc::new(Cell(Mutex::new(State { rest, given: Some(Instant::now()) })));
        let number = self.next.fetch_add(1, Ordering::Relaxed);
        self.held.insert(number, cell.clone());
        OutBody::Held(Held { cell, place: (self.held.clone(), number) })
    }

    /// Take back what has been left unread for longer than `time`, with the work behind it;
    /// returns how many there were.
    pub fn take_back(&self, time: Duration) -> u64 {
        let mut taken = 0;
        for cell in self.held.iter() {
            let mut state = cell.lock();
            if state.given.is_some_and(|since| since.elapsed() > time) {
                state.given = None;
                let rest = std::mem::replace(&mut state.rest, Rest::Forfeit);
                drop(state);
                drop(rest);
                taken += 1;
            }
        }
        taken
    }
}

impl Held {
    fn poll(&self, cx: &mut Context<'_>) -> Poll<Option<io::Result<Bytes>>> {
        let mut state = self.cell.lock();
        state.given = None;
        let found = match &mut state.rest {
            Rest::Bytes(bytes, _) if bytes.len() > CHUNK => Some(bytes.split_to(CHUNK)),
            Rest::Bytes(bytes, behind) => {
                let last = std::mem::take(bytes);
                let Some(behind) = behind.take() else {
                    state.rest = Rest::Done;
                    return Poll::Ready(Some(Ok(last)));
                };
                state.rest = Rest::Bytes(behind, None);
                Some(last)
            }
            Rest::Events(events) => match events.poll(cx) {
                Poll::Pending => return Poll::Pending,
                Poll::Ready(found) => found,
            },
            Rest::Pieces(pieces) => match ready!(pieces.poll(cx, CHUNK)) {
                Some(Ok(bytes)) => Some(bytes),
                Some(Err(error)) => {
                    state.rest = Rest::Done;
                    return Poll::Ready(Some(Err(error)));
                }
                None => None,
            },
            Rest::Done => None,
            Rest::Forfeit => {
                let error = io::Error::new(io::ErrorKind::TimedOut, "the client did not read");
                return Poll::Ready(Some(Err(error)));
            }
        };
        match found {
            Some(bytes) => {
                state.given = Some(Instant::now());
                Poll::Ready(Some(Ok(bytes)))
            }
            None => {
                state.rest = Rest::Done;
                Poll::Ready(None)
            }
        }
    }

    fn size_hint(&self) -> SizeHint {
        match &self.cell.lock().rest {
            Rest::Bytes(bytes, behind) => {
                SizeHint::with_exact((bytes.len() + behind.as_ref().map_or(0, Bytes::len)) as u64)
            }
            Rest::Done => SizeHint::with_exact(0),
            Rest::Events(_) | Rest::Pieces(_) | Rest::Forfeit => SizeHint::default(),
        }
    }
}

impl OutBody {
    /// No content.
    pub fn empty() -> OutBody {
        OutBody::Full(None)
    }
}

impl From<Bytes> for OutBody {
    fn from(bytes: Bytes) -> OutBody {
        OutBody::Full((!bytes.is_empty()).then_some(bytes))
    }
}

impl Body for OutBody {
    type Data = Bytes;
    type Error = io::Error;

    fn poll_frame(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, io::Error>>> {
        let body = self.get_mut();
        if let OutBody::Two(head, rest) = body {
            let (head, rest) = (std::mem::take(head), std::mem::take(rest));
            *body = OutBody::from(rest);
            return Poll::Ready(Some(Ok(Frame::data(head))));
        }
        match body {
            OutBody::Full(bytes) => Poll::Ready(bytes.take().map(|b| Ok(Frame::data(b)))),
            OutBody::Two(..) => unreachable!("given above"),
            OutBody::Events(events) => events.poll(cx).map(|b| b.map(|b| Ok(Frame::data(b)))),
            OutBody::Pieces(pieces) => {
                pieces.poll(cx, usize::MAX).map(|b| b.map(|b| b.map(Frame::data)))
            }
            OutBody::Held(held) => held.poll(cx).map(|b| b.map(|b| b.map(Frame::data))),
        }
    }

    fn is_end_stream(&self) -> bool {
        match self {
            OutBody::Full(bytes) => bytes.is_none(),
            OutBody::Two(..) | OutBody::Events(_) | OutBody::Pieces(_) => false,
            OutBody::Held(held) => matches!(held.cell.lock().rest, Rest::Done),
        }
    }

    fn size_hint(&self) -> SizeHint {
        match self {
            OutBody::Full(bytes) => {
                SizeHint::with_exact(bytes.as_ref().map_or(0, |b| b.len() as u64))
            }
            OutBody::Two(head, rest) => SizeHint::with_exact((head.len() + rest.len()) as u64),
            OutBody::Events(_) | OutBody::Pieces(_) => SizeHint::default(),
            OutBody::Held(held) => held.size_hint(),
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    use http_body_util::BodyExt as _;

    const TIME: Duration = Duration::from_secs(30);

    #[tokio::test(start_paused = true)]
    async fn all_of_a_large_body_comes_in_pieces() {
        let unread = Unread::default();
        let bytes: Vec<u8> = (0..CHUNK * 2 + 5).map(|n| n as u8).collect();
        let body = unread.watch(Bytes::from(bytes.clone()).into());
        assert_eq!(body.size_hint().exact(), Some(bytes.len() as u64));
        assert_eq!(body.collect().await.unwrap().to_bytes(), bytes);
        assert!(unread.held.is_empty());
        assert!(matches!(unread.watch(Bytes::from_static(b"small").into()), OutBody::Full(_)));
    }

    #[tokio::test(start_paused = true)]
    async fn two_pieces_come_one_after_the_other_and_are_not_copied() {
        let unread = Unread::default();
        for size in [1, CHUNK * 2 + 5] {
            let (head, rest) = (Bytes::from_static(b"head"), Bytes::from(vec![7; size]));
            let whole = [&head[..], &rest[..]].concat();
            for watched in [false, true] {
                let mut body = OutBody::Two(head.clone(), rest.clone());
                if watched {
                    body = unread.watch(body);
                }
                assert_eq!(body.size_hint().exact(), Some(whole.len() as u64));
                let first = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(body.size_hint().exact(), Some((whole.len() - first.len()) as u64));
                let next = body.frame().await.unwrap().unwrap().into_data().unwrap();
                assert_eq!(next.as_ptr(), rest.as_ptr());
                let end = body.collect().await.unwrap().to_bytes();
                assert_eq!([&first[..], &next, &end].concat(), whole);
            }
        }
        assert!(unread.held.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_left_unread_is_taken_back_and_what_has_nothing_to_say_is_not() {
        let unread = Unread::default();
        let dropped = Arc::new(());
        let (alive, quiet) = (Arc::downgrade(&dropped), Arc::new(()));
        let mut stalled = unread.watch(OutBody::Events(Events::new(|tx| async move {
            while tx.send(Bytes::from_static(b"x")).await.is_ok() {}
            drop(dropped);
        })));
        let mut idle = unread.watch(OutBody::Events(Events::new(|tx| async move {
            std::future::pending::<()>().await;
            drop((tx, quiet));
        })));
        let never = unread.watch(Bytes::from(vec![0; CHUNK + 1]).into());
        assert!(stalled.frame().await.unwrap().is_ok());
        let nothing = tokio::time::timeout(Duration::from_secs(1), idle.frame()).await;
        assert!(nothing.is_err());
        assert_eq!(unread.take_back(TIME), 0);
        tokio::time::advance(TIME + Duration::from_millis(1)).await;
        assert_eq!((unread.take_back(TIME), unread.take_back(TIME)), (2, 0));
        assert!(alive.upgrade().is_none(), "the work went with it");
        assert!(stalled.frame().await.unwrap().is_err());
        drop((stalled, idle, never));
        assert!(unread.held.is_empty());
    }
}
