//! The event streams of an upstream: of one answer, and of an old session.

use std::future::Future;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::BodyExt as _;

use crate::failure::Fault;
use crate::protocol::message::Frame;
use crate::protocol::sse::{Event, EventTooLarge, Parser};
use crate::upstream::transport::pace::Pace;

use super::body::Body;
use super::retry_after::PAUSE_MAX;
use super::{HttpCounters, add};

/// The messages of an event stream, and what it said about resuming.
pub struct Events {
    body: Body,
    parser: Parser,
    pace: Pace,
    counters: Arc<HttpCounters>,
    pub last_event_id: Option<String>,
    pub retry: Option<Duration>,
    pub broken: Option<String>,
}

impl Events {
    pub fn new(body: Body, max_message: usize, counters: Arc<HttpCounters>) -> Events {
        Events {
            body,
            parser: Parser::new(max_message),
            pace: Pace::default(),
            counters,
            last_event_id: None,
            retry: None,
            broken: None,
        }
    }

    /// The next message, `None` at the end. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Result<Option<Bytes>, EventTooLarge> {
        while let Some(event) = self.next_event().await? {
            if event.is_message() && !event.data.trim_ascii().is_empty() {
                return Ok(Some(event.data));
            }
        }
        Ok(None)
    }

    /// The next event of any type; otherwise the same.
    pub async fn next_event(&mut self) -> Result<Option<Event>, EventTooLarge> {
        loop {
            // An upstream that writes faster than we read would else never let go of the task,
            // and the deadline around us would never be looked at.
            tokio::task::coop::consume_budget().await;
            if let Some(mut event) = self.parser.next()? {
                if let Some(id) = event.id.take() {
                    self.last_event_id = Some(id).filter(|id| !id.is_empty());
                }
                self.retry = event.retry.map(|pause| pause.min(PAUSE_MAX)).or(self.retry);
                return Ok(Some(event));
            }
            self.pace.rest().await;
            match self.body.frame().await {
                None => return Ok(None),
                Some(Err(error)) => {
                    self.broken = Some(super::client::chain(&error));
                    return Ok(None);
                }
                Some(Ok(frame)) => {
                    // The other kind is trailers, which mean nothing here.
                    if let Ok(chunk) = frame.into_data() {
                        add(&self.counters.received_bytes, chunk.len());
                        self.parser.feed(chunk);
                    }
                }
            }
        }
    }

    /// The last message was nothing that was waited for. Who says many such is listened to less.
    pub fn unasked(&mut self) {
        self.pace.count();
    }

    /// What is left after the answer: nothing, if the end has arrived already.
    // Looks without waiting; upstreams mostly send the end together with the answer.
    pub fn into_rest(self) -> Option<Rest> {
        let mut rest = Rest { body: self.body, counters: self.counters, seen: 0 };
        let mut context = Context::from_waker(Waker::noop());
        let ended = matches!(pin!(rest.read_on()).poll(&mut context), Poll::Ready(()));
        (!ended).then_some(rest)
    }
}

/// What an upstream sends behind an answer.
pub struct Rest {
    body: Body,
    counters: Arc<HttpCounters>,
    seen: usize,
}

impl std::fmt::Debug for Rest {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Rest")
    }
}

/// How much is read behind an answer: an upstream that has more to say than the end of the stream
/// has not understood that the request is over.
const REST_MAX: usize = 16 << 10;
/// How long the end is waited for. Upstreams that end the stream do so right behind the answer; a
/// new connection costs less than a longer wait would.
const REST_TIME: Duration = Duration::from_millis(250);

impl Rest {
    /// Read to the end of the stream, so that the connection can serve the next request. Gives up,
    /// and closes the connection, after a quarter of a second or 16 KiB.
    ///
    /// Worth a task of its own: the answer need not wait for it.
    pub async fn drain(mut self) {
        let _ = tokio::time::timeout(REST_TIME, self.read_on()).await;
    }

    // Or to where it is too much; both leave nothing to wait for.
    async fn read_on(&mut self) {
        while self.seen <= REST_MAX {
            let Some(Ok(frame)) = self.body.frame().await else { return };
            let n = frame.data_ref().map_or(0, Bytes::len);
            add(&self.counters.received_bytes, n);
            self.seen += n;
        }
    }
}

/// The stream of an old session: what the upstream says unasked, or, on a resumed stream, the
/// rest of an answer.
pub struct EventStream {
    pub(super) events: Events,
}

impl EventStream {
    pub(super) fn new(events: Events) -> EventStream {
        EventStream { events }
    }

    /// The next message, of whatever kind; `None` when the stream has ended or broken. What is no
    /// message is counted and passed over: the next one may be good. Nothing is lost if the future
    /// is dropped.
    ///
    /// # Errors
    /// When a message is larger than may be kept; the stream cannot be read further.
    pub async fn next(&mut self) -> Result<Option<Frame>, Fault> {
        loop {
            let Some(data) = self.events.next().await.map_err(too_large)? else { return Ok(None) };
            self.events.unasked();
            if let Ok(frame) = Frame::scan(data) {
                return Ok(Some(frame));
            }
            add(&self.events.counters.garbled_messages, 1);
        }
    }

    /// The last event id seen; without one the stream cannot be resumed.
    pub fn last_event_id(&self) -> Option<&str> {
        self.events.last_event_id.as_deref()
    }

    /// The pause that the upstream wants before the stream is opened again; a year at most.
    pub fn retry(&self) -> Option<Duration> {
        self.events.retry
    }
}

/// The fault of a message that is larger than may be kept. The upstream has done its work by then.
pub(super) fn too_large(error: EventTooLarge) -> Fault {
    super::answer::too_large(error.0)
}
