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
use tokio::sync::{Notify, mpsc};
use tokio::time::{Instant, MissedTickBehavior, interval};

use crate::protocol::sse;

use super::Edge;
use super::body::Events;
use super::legacy::{Running, last_word};

/// Streams of one session that are kept, the open ones among them. Further calls have streams
/// that end with their connection.
const STREAMS_MAX: usize = 64;
/// Bytes of notices kept of one stream; the oldest go first. An answer is kept whatever its size.
const NOTICES_BYTES_MAX: usize = 1 << 20;
/// Bytes kept of all streams of all sessions that nobody reads. Beyond it, what an absent client
/// would have got is not kept.
const BYTES_MAX: usize = 128 << 20;
/// How long a stream that has ended is kept for a client that has not read it to its end. Clients
/// come back within seconds, or were closed.
const KEPT_TIME: Duration = Duration::from_secs(120);
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
    // Of all streams.
    bytes: Arc<AtomicUsize>,
}

struct State {
    // The place of the first event that is still kept; ids count from 1.
    first: u64,
    events: VecDeque<Bytes>,
    bytes: usize,
    ended: bool,
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
            let ended = streams.kept.iter().find(|(_, s)| lock(&s.state).ended).map(|(n, _)| *n)?;
            streams.kept.remove(&ended);
        }
        streams.next += 1;
        let stream = Arc::new(Stream {
            number: streams.next,
            state: Mutex::new(State {
                first: 1,
                events: VecDeque::new(),
                bytes: 0,
                ended: false,
                touched: Instant::now(),
                reader: None,
                readers: 0,
            }),
            news: Notify::new(),
            bytes: bytes.clone(),
        });
        streams.kept.insert(stream.number, stream.clone());
        Some(stream)
    }

    /// Read on behind the event of this id; `None` if nothing is known of it.
    pub fn resume(&self, last_event_id: &str) -> Option<Reader> {
        let (stream, seen) = last_event_id.split_once('-')?;
        let (stream, seen): (u64, u64) = (stream.parse().ok()?, seen.parse().ok()?);
        let stream = lock(&self.0).kept.get(&stream)?.clone();
        Some(stream.read(seen + 1))
    }

    /// Forget what nobody came back for.
    pub fn expire(&self) {
        lock(&self.0).kept.retain(|_, stream| {
            let state = lock(&stream.state);
            !state.ended || state.touched.elapsed() < KEPT_TIME
        });
    }
}

impl Stream {
    fn push(&self, event: Bytes, last: bool) {
        let mut state = lock(&self.state);
        state.touched = Instant::now();
        state.ended |= last;
        let room = state.reader.is_some() || self.bytes.load(Ordering::Relaxed) < BYTES_MAX;
        if room {
            self.bytes.fetch_add(event.len(), Ordering::Relaxed);
            state.bytes += event.len();
        }
        // The place is counted all the same: a gap is a gap.
        state.events.push_back(if room { event } else { Bytes::new() });
        while !last && state.bytes > NOTICES_BYTES_MAX && state.events.len() > 1 {
            let gone = state.events.pop_front().map_or(0, |event| event.len());
            state.first += 1;
            state.bytes -= gone;
            self.bytes.fetch_sub(gone, Ordering::Relaxed);
        }
        drop(state);
        self.news.notify_waiters();
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
                    if event.is_empty() {
                        continue;
                    }
                    return Some((id, event));
                }
                if state.ended {
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
    }
}

/// Let a call go on by itself, what it says being kept; gives back the call if there is no room
/// for that. `first` is a notice that was taken from it already.
pub fn keep(
    edge: &Edge,
    replay: &Replay,
    running: Running,
    first: Option<Bytes>,
) -> Result<Reader, Running> {
    let Some(stream) = replay.open(&edge.kept_bytes) else { return Err(running) };
    let reader = stream.read(1);
    if let Some(first) = first {
        stream.push(first, false);
    }
    edge.tasks.spawn(pump(running, stream));
    Ok(reader)
}

async fn pump(running: Running, stream: Arc<Stream>) {
    let Running { mut work, mut notices } = running;
    let end = loop {
        tokio::select! {
            biased;
            Some(notice) = notices.recv() => stream.push(notice, false),
            end = &mut work => break end,
        }
    };
    drain(&mut notices, &stream).await;
    match end {
        Some(said) => stream.push(said.message, true),
        None => stream.end(),
    }
}

async fn drain(notices: &mut mpsc::Receiver<Bytes>, stream: &Stream) {
    while let Some(notice) = last_word(notices).await {
        stream.push(notice, false);
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
    }
}
