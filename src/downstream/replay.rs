//! What was said on the streams of an old session's calls, kept for a client that comes back for
//! the rest (2025-11-25 basic/transports, "resumability and redelivery").
//!
//! A call of an old client goes on when its connection breaks. What it says goes into a [`Stream`]
//! here and a connection only reads it, so another connection can read on where one ended. Each
//! event's id names its stream and its place in it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::Notify;
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::protocol::message::{Frame, Kind};
use crate::protocol::sse;

use super::Edge;
use super::body::Events;
use super::legacy::{Running, Step};

/// Streams of one session that are kept, the open ones among them. Further calls have streams
/// that end with their connection.
const STREAMS_MAX: usize = 64;
/// Bytes of notices kept of one stream for a client that is away; the oldest go first. Where one
/// reads, the call's notices wait for it beyond that. Answers and questions are kept in any case.
const NOTICES_BYTES_MAX: usize = 1 << 20;
/// Events kept of one stream, the places of dropped ones among them.
const EVENTS_MAX: usize = 100_000;
/// Bytes kept of all streams of all sessions. Beyond it an absent client's notices are not kept.
const BYTES_MAX: usize = 128 << 20;
/// How long a stream that has ended is kept for a client that has not read it to its end. Clients
/// come back within seconds, or were closed.
const KEPT_TIME: Duration = Duration::from_secs(120);
/// The same for one that has been read to its end: the last bytes may have been lost on the way.
const READ_TIME: Duration = Duration::from_secs(5);
/// How long a client should wait before it comes back.
const RETRY: Duration = Duration::from_secs(1);

/// The streams of one session.
#[derive(Default)]
pub struct Replay(Mutex<Streams>);

#[derive(Default)]
struct Streams {
    next: u64,
    kept: BTreeMap<u64, Arc<Stream>>,
}

/// What one call has said so far.
pub struct Stream {
    number: u64,
    state: Mutex<State>,
    news: Notify,
    // A reader has read on, or is gone.
    drained: Notify,
    // Of all streams.
    bytes: Arc<AtomicUsize>,
}

struct State {
    // The place of the first event that is still kept; ids count from 1.
    first: u64,
    events: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
    // A reader has had all of it.
    read: bool,
    // The place of the first event that no reader has had.
    unread: u64,
    // Notices that nobody will get.
    dropped: u64,
    touched: Instant,
    // The newest reader's; older ones are connections that died unseen.
    reader: Option<u64>,
    readers: u64,
}

/// A connection that reads a stream.
pub struct Reader {
    stream: Arc<Stream>,
    number: u64,
    next: u64,
}

impl Replay {
    /// Keep a stream for a call; `None` if as many are kept as may be.
    fn open(&self, bytes: &Arc<AtomicUsize>) -> Option<Arc<Stream>> {
        let mut streams = lock(&self.0);
        if streams.kept.len() >= STREAMS_MAX {
            let first = |ok: fn(&State) -> bool| {
                streams.kept.iter().find(|(_, s)| ok(&lock(&s.state))).map(|(n, _)| *n)
            };
            let over = first(|s| s.ended && s.read).or_else(|| first(|s| s.ended))?;
            streams.kept.remove(&over);
        }
        streams.next += 1;
        let stream = Arc::new(Stream {
            number: streams.next,
            state: Mutex::new(State {
                first: 1,
                events: VecDeque::new(),
                bytes: 0,
                ended: false,
                read: false,
                unread: 1,
                dropped: 0,
                touched: Instant::now(),
                reader: None,
                readers: 0,
            }),
            news: Notify::new(),
            drained: Notify::new(),
            bytes: bytes.clone(),
        });
        streams.kept.insert(stream.number, stream.clone());
        Some(stream)
    }

    /// Read on behind the event of this id; `None` if nothing is known of it.
    pub fn resume(&self, last_event_id: &str) -> Option<Reader> {
        let (stream, seen) = last_event_id.split_once('-')?;
        let (stream, seen): (u64, u64) = (stream.parse().ok()?, seen.parse().ok()?);
        let next = seen.checked_add(1)?;
        let stream = lock(&self.0).kept.get(&stream)?.clone();
        Some(stream.read(next))
    }

    /// Forget what nobody came back for.
    pub fn expire(&self) {
        lock(&self.0).kept.retain(|_, stream| {
            let state = lock(&stream.state);
            let time = if state.read { READ_TIME } else { KEPT_TIME };
            !state.ended || state.touched.elapsed() < time
        });
    }
}

impl Stream {
    fn push(&self, event: Bytes, last: bool) {
        let mut state = lock(&self.state);
        state.touched = Instant::now();
        state.ended |= last;
        let keep = last
            || state.reader.is_some()
            || self.bytes.load(Ordering::Relaxed) < BYTES_MAX
            || is_question(&event);
        if keep {
            self.bytes.fetch_add(event.len(), Ordering::Relaxed);
            state.bytes += event.len();
        } else {
            state.dropped += 1;
        }
        // The place is counted all the same: a gap is a gap.
        state.events.push_back(if keep { event } else { Bytes::new() });
        if !last {
            self.make_room(&mut state);
        }
        drop(state);
        self.news.notify_waiters();
    }

    // The oldest notices go, those that were read first of all, since they are the oldest.
    fn make_room(&self, state: &mut State) {
        let mut at = 0;
        while state.bytes > NOTICES_BYTES_MAX && at + 1 < state.events.len() {
            let place = state.first + at as u64;
            if state.reader.is_some() && place >= state.unread {
                break;
            }
            let event = &mut state.events[at];
            if !event.is_empty() && !is_question(event) {
                let gone = std::mem::take(event).len();
                state.dropped += u64::from(place >= state.unread);
                state.bytes -= gone;
                self.bytes.fetch_sub(gone, Ordering::Relaxed);
            }
            at += 1;
        }
        while state.events.len() > 1
            && (state.events[0].is_empty() || state.events.len() > EVENTS_MAX)
        {
            let gone = state.events.pop_front().map_or(0, |event| event.len());
            state.first += 1;
            state.bytes -= gone;
            self.bytes.fetch_sub(gone, Ordering::Relaxed);
        }
    }

    // Resolves when a notice more would be kept for the reader, or there is none.
    async fn room(&self) {
        loop {
            let drained = self.drained.notified();
            tokio::pin!(drained);
            drained.as_mut().enable();
            {
                let state = lock(&self.state);
                let behind = state.first + state.events.len() as u64 > state.unread;
                if state.reader.is_none() || state.bytes <= NOTICES_BYTES_MAX || !behind {
                    return;
                }
            }
            drained.await;
        }
    }

    fn end(&self) {
        lock(&self.state).ended = true;
        self.news.notify_waiters();
    }

    fn read(self: &Arc<Self>, next: u64) -> Reader {
        let mut state = lock(&self.state);
        state.readers += 1;
        state.reader = Some(state.readers);
        let number = state.readers;
        drop(state);
        // A reader before this one is told that it is none any more.
        self.news.notify_waiters();
        Reader { stream: self.clone(), number, next }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.bytes.fetch_sub(lock(&self.state).bytes, Ordering::Relaxed);
    }
}

impl Reader {
    /// The next event and its id; `None` at the end, or when another connection reads on.
    pub async fn next(&mut self) -> Option<(String, Bytes)> {
        loop {
            let news = self.stream.news.notified();
            tokio::pin!(news);
            // From here on no news is missed, also what comes between the look and the wait.
            news.as_mut().enable();
            {
                let mut state = lock(&self.stream.state);
                if state.reader != Some(self.number) {
                    return None;
                }
                state.touched = Instant::now();
                self.next = self.next.max(state.first);
                let at = usize::try_from(self.next - state.first).unwrap_or(usize::MAX);
                if let Some(event) = state.events.get(at).cloned() {
                    let id = format!("{}-{}", self.stream.number, self.next);
                    self.next += 1;
                    state.unread = state.unread.max(self.next);
                    drop(state);
                    self.stream.drained.notify_waiters();
                    if event.is_empty() {
                        continue;
                    }
                    return Some((id, event));
                }
                if state.ended {
                    state.read = true;
                    return None;
                }
            }
            news.await;
        }
    }

    /// The id from which all is still to come.
    fn origin(&self) -> String {
        format!("{}-{}", self.stream.number, self.next - 1)
    }

    /// The rest as an event stream. `primed`: it begins with an id, for clients that know what
    /// that is (2025-11-25 and later).
    pub fn events(mut self, edge: &Arc<Edge>, primed: bool) -> Events {
        let edge = edge.clone();
        Events::new(move |tx| async move {
            let first =
                if primed { sse::priming(&self.origin(), Some(RETRY)) } else { sse::comment("") };
            if tx.send(first).await.is_err() {
                return;
            }
            let mut tick = interval(edge.gateway.current.load().config.gateway.keep_alive);
            tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
            tick.reset();
            loop {
                let event = tokio::select! {
                    biased;
                    next = self.next() => match next {
                        Some((id, event)) => sse::event_with(&event, Some(&id), Some(sse::MESSAGE)),
                        None => return,
                    },
                    _ = tick.tick() => sse::comment(""),
                };
                if tx.send(event).await.is_err() {
                    return;
                }
            }
        })
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        let mut state = lock(&self.stream.state);
        if state.reader == Some(self.number) {
            state.reader = None;
            state.touched = Instant::now();
        }
        drop(state);
        self.stream.drained.notify_waiters();
    }
}

// A question must reach its caller: the upstream waits for the answer.
fn is_question(event: &Bytes) -> bool {
    // Most are progress, which is told apart without a scan.
    memchr::memmem::find(event, b"notifications/").is_none()
        && Frame::scan(event.clone()).is_ok_and(|frame| frame.kind() == Kind::Request)
}

/// Let a call go on by itself, what it says being kept; gives back what it was given if there is no
/// room for that. `first` is a notice that was taken from the call already.
pub fn keep(
    edge: &Edge,
    replay: &Replay,
    running: Running,
    first: Option<Bytes>,
) -> Result<Reader, (Running, Option<Bytes>)> {
    let Some(stream) = replay.open(&edge.kept_bytes) else { return Err((running, first)) };
    let reader = stream.read(1);
    if let Some(first) = first {
        stream.push(first, false);
    }
    let gateway = edge.gateway.clone();
    edge.tasks.spawn(async move {
        pump(running, &stream).await;
        gateway.observe.metrics.notices_dropped(lock(&stream.state).dropped);
    });
    Ok(reader)
}

async fn pump(mut running: Running, stream: &Stream) {
    loop {
        // Waits for a reader that is behind: what finds no room in the call's own queue is counted
        // there. The call itself runs in a task of its own.
        stream.room().await;
        match running.next().await {
            Step::Notice(notice) => stream.push(notice, false),
            Step::End(Some(said)) => return stream.push(said.whole(), true),
            Step::End(None) => return stream.end(),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // What happens under these locks only moves and counts.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;

    fn bytes(n: usize) -> Bytes {
        vec![b'x'; n].into()
    }

    #[tokio::test(start_paused = true)]
    async fn another_connection_reads_on_where_one_ended() {
        let (replay, all) = (Replay::default(), Arc::<AtomicUsize>::default());
        let stream = replay.open(&all).unwrap();
        let mut first = stream.read(1);
        assert_eq!(first.origin(), "1-0");
        for text in ["a", "b", "c"] {
            stream.push(Bytes::from(text), text == "c");
        }
        assert_eq!(first.next().await.unwrap(), ("1-1".into(), "a".into()));
        // A second reader takes over; the first is let go although there is more.
        let mut second = replay.resume("1-1").unwrap();
        assert!(first.next().await.is_none());
        assert_eq!(second.next().await.unwrap(), ("1-2".into(), "b".into()));
        drop((first, second));
        let mut third = replay.resume("1-2").unwrap();
        assert_eq!(third.next().await.unwrap().1, "c");
        assert!(third.next().await.is_none());
        for unknown in ["2-1", "1", "x-1", "1-x", "", "-"] {
            assert!(replay.resume(unknown).is_none(), "{unknown:?}");
        }
        drop((third, stream));
        tokio::time::advance(KEPT_TIME).await;
        replay.expire();
        assert!(replay.resume("1-2").is_none());
        assert_eq!(all.load(Ordering::Relaxed), 0, "its bytes are given back");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_kept_is_bounded_and_the_answer_stays() {
        let (replay, all) = (Replay::default(), Arc::<AtomicUsize>::default());
        let stream = replay.open(&all).unwrap();
        for _ in 0..10 {
            stream.push(bytes(NOTICES_BYTES_MAX / 4), false);
        }
        assert!(all.load(Ordering::Relaxed) <= NOTICES_BYTES_MAX);
        stream.push(bytes(NOTICES_BYTES_MAX * 2), true);
        let mut reader = replay.resume("1-0").unwrap();
        let mut sizes = Vec::new();
        while let Some((_, event)) = reader.next().await {
            sizes.push(event.len());
        }
        assert_eq!(sizes.last(), Some(&(NOTICES_BYTES_MAX * 2)));
        assert_eq!(sizes.len(), 5, "the newest notices and the answer: {sizes:?}");
        drop(reader);
        // Too many streams: the oldest that has ended makes room; where none has, there is none.
        for _ in 1..STREAMS_MAX {
            replay.open(&all).unwrap();
        }
        assert!(replay.open(&all).is_some() && replay.resume("1-0").is_none());
        assert!(replay.open(&all).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn where_all_is_full_what_nobody_reads_is_not_kept() {
        let (replay, all) = (Replay::default(), Arc::new(AtomicUsize::new(BYTES_MAX)));
        let stream = replay.open(&all).unwrap();
        stream.push(bytes(9), false);
        let mut reader = replay.resume("1-0").unwrap();
        stream.push(bytes(7), true);
        assert_eq!(reader.next().await.unwrap(), ("1-2".into(), bytes(7)));
        assert!(reader.next().await.is_none());
        assert_eq!(all.load(Ordering::Relaxed), BYTES_MAX + 7);
        // An answer is kept also for who is away, and what was read goes soon.
        drop(reader);
        let stream = replay.open(&all).unwrap();
        let question = Bytes::from(r#"{"jsonrpc":"2.0","id":1,"method":"roots/list"}"#);
        stream.push(question.clone(), false);
        stream.push(bytes(3), true);
        tokio::time::advance(READ_TIME).await;
        replay.expire();
        assert!(replay.resume("1-0").is_none());
        let mut reader = replay.resume("2-0").unwrap();
        assert_eq!(reader.next().await.unwrap().1, question);
        assert_eq!(reader.next().await.unwrap().1, bytes(3));
        assert!(replay.resume("2-18446744073709551615").is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn nothing_is_dropped_under_a_reader_who_is_slow() {
        let (replay, all) = (Replay::default(), Arc::<AtomicUsize>::default());
        let stream = replay.open(&all).unwrap();
        let mut reader = stream.read(1);
        for n in 0..2 {
            stream.room().await;
            stream.push(bytes(NOTICES_BYTES_MAX / 2 + 1 + n), false);
        }
        let waits = tokio::time::timeout(RETRY, stream.room()).await;
        assert!(waits.is_err(), "the next one waits for the reader");
        for n in 0..2 {
            assert_eq!(reader.next().await.unwrap().1.len(), NOTICES_BYTES_MAX / 2 + 1 + n);
        }
        stream.room().await;
        assert_eq!(lock(&stream.state).dropped, 0);
    }
}
