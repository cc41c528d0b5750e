//! Who waits for what, and whose each message from an upstream is.
//!
//! Never waits for anybody: the reader of a pipe calls it, and all requests on that pipe share
//! the reader.
//!
//! Rules, since an upstream may write anything:
//! - An answer belongs to the request whose id, written in decimal, *is* the answer's id. We send
//!   numbers only, so `"7"` and `7.0` are nobody's: a server that changes ids cannot be trusted
//!   with whose answer is whose.
//! - An error without an id belongs to the one request under way, if there is exactly one.
//! - An answer that cannot be read, or is too long, but says whose it is, fails that request at
//!   once. One that does not say is skipped and counted; its request runs into its deadline.
//! - A log message belongs to the one request under way where one call at a time goes over the
//!   pipe; elsewhere it is nobody's.
//! - Everything else that is no message is skipped and counted.

use std::collections::{HashMap, VecDeque};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use tokio::sync::mpsc::{self, error::TrySendError};

use super::Heard;
use super::counters::{PipeCounters, Sparse, count};
use super::glance::{Glance, number};
use super::slot::{Lost, Slot};
use crate::config::secret::Scrubber;
use crate::failure::{Delivery, Fault, Reason};
use crate::protocol::error::{ErrorObject, INTERNAL_ERROR};
use crate::protocol::message::{Frame, FrameError, Kind, message, response};
use crate::protocol::meta::{Members, key};
use crate::upstream::transport::Unasked;

/// How many finished requests are remembered, to tell a second or late answer from a wrong one.
/// Only the words of a counter hang on it.
const RECENT_MAX: usize = 256;

/// How much of what is no message is shown in the log.
const NOISE_SHOWN: usize = 200;

/// The requests under way on one pipe. Bounded by the callers: each entry is removed when its
/// `request` future ends.
pub struct Table {
    upstream: Arc<str>,
    max_message: usize,
    scrubber: Scrubber,
    pub counters: Arc<PipeCounters>,
    unasked: mpsc::Sender<Unasked>,
    asides: mpsc::Sender<Bytes>,
    inner: Mutex<Inner>,
    saw_output: AtomicBool,
    one_call: AtomicBool,
    noise: Sparse,
    strays: Sparse,
    oversize: Sparse,
    floods: Sparse,
}

#[derive(Default)]
struct Inner {
    waiting: HashMap<u64, Arc<Slot>>,
    recent: VecDeque<(u64, Finish)>,
    lost: Option<Lost>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Finish {
    Answered,
    Abandoned,
}

impl Inner {
    fn finish(&mut self, id: u64, how: Finish) -> Option<Arc<Slot>> {
        let slot = self.waiting.remove(&id)?;
        if self.recent.len() >= RECENT_MAX {
            self.recent.pop_front();
        }
        self.recent.push_back((id, how));
        Some(slot)
    }
}

impl Table {
    pub fn new(
        upstream: Arc<str>,
        max_message: usize,
        scrubber: Scrubber,
        counters: Arc<PipeCounters>,
        unasked: mpsc::Sender<Unasked>,
        asides: mpsc::Sender<Bytes>,
    ) -> Table {
        Table {
            upstream,
            max_message,
            scrubber,
            counters,
            unasked,
            asides,
            inner: Mutex::default(),
            saw_output: AtomicBool::new(false),
            one_call: AtomicBool::new(false),
            noise: Sparse::default(),
            strays: Sparse::default(),
            oversize: Sparse::default(),
            floods: Sparse::default(),
        }
    }

    pub fn saw_output(&self) -> bool {
        self.saw_output.load(Ordering::Relaxed)
    }

    /// See [`super::Pipe::carries_one_call`].
    pub fn carries_one_call(&self) {
        self.one_call.store(true, Ordering::Relaxed);
    }

    /// Whether messages can still be sent, as the fault of one that cannot.
    pub fn check(&self) -> Result<(), Fault> {
        self.lock().lost.as_ref().map_or(Ok(()), |lost| Err(lost.fault(false)))
    }

    /// Wait for the answer to `id`, until the ticket is dropped.
    pub fn enter(&self, id: u64, cancellable: bool) -> Result<Ticket<'_>, Fault> {
        let mut inner = self.lock();
        if let Some(lost) = &inner.lost {
            return Err(lost.fault(false));
        }
        let slot = Arc::<Slot>::default();
        if inner.waiting.contains_key(&id) {
            // The caller's mistake. The earlier request keeps its place.
            let text = format!("request id {id} is already under way");
            return Err(Fault::new(Reason::ConnectFailed, Delivery::NotSent, text));
        }
        inner.waiting.insert(id, slot.clone());
        Ok(Ticket { table: self, id, slot, cancellable })
    }

    /// The connection is gone: fail all that wait, and whoever still comes.
    pub fn fail_all(&self, lost: Lost) {
        let mut inner = self.lock();
        let slots: Vec<_> = inner.waiting.drain().map(|(_, slot)| slot).collect();
        for slot in &slots {
            slot.fail(&lost);
        }
        inner.lost = Some(lost);
    }

    /// Nothing is written any more: fail all that were not begun; the others may be answered yet.
    pub fn fail_unsent(&self, lost: Lost) {
        let mut inner = self.lock();
        inner.waiting.retain(|_, slot| {
            let sent = slot.withdraw();
            if !sent {
                slot.fail(&lost);
            }
            sent
        });
        inner.lost.get_or_insert(lost);
    }

    /// Something came. `false`: nobody had asked for it, and no call is concerned.
    pub fn take(&self, heard: Heard) -> bool {
        self.saw_output.store(true, Ordering::Relaxed);
        match heard {
            Heard::TooLong(glance) => self.too_long(&glance),
            Heard::Whole(bytes) => match Frame::scan(bytes.clone()) {
                Ok(frame) => self.message(frame),
                Err(error) => self.no_message(&bytes, &error),
            },
        }
    }

    fn message(&self, frame: Frame) -> bool {
        match frame.kind() {
            Kind::Request => self.request(frame),
            Kind::Notification => self.notification(frame),
            Kind::Result | Kind::Error => self.answer(frame),
        }
    }

    fn answer(&self, frame: Frame) -> bool {
        let mut inner = self.lock();
        let id = match frame.id() {
            Some(raw) => number(&raw),
            None => only_sent(&inner.waiting),
        };
        let known = id.filter(|id| inner.waiting.get(id).is_some_and(|slot| slot.is_sent()));
        if let Some(slot) = known.and_then(|id| inner.finish(id, Finish::Answered)) {
            drop(inner);
            slot.answer(Ok(frame));
            return true;
        }
        let before = inner.recent.iter().rev().find(|(done, _)| Some(*done) == id).map(|r| r.1);
        drop(inner);
        let (counter, what) = match before {
            Some(Finish::Answered) => (&self.counters.duplicate_answers, "a second answer"),
            Some(Finish::Abandoned) => (&self.counters.late_answers, "a late answer"),
            None => (&self.counters.unmatched_answers, "an answer to no request"),
        };
        count(counter);
        // Late answers are a matter of course: a cancellation and an answer may cross.
        if before != Some(Finish::Abandoned) && self.strays.due() {
            tracing::warn!(upstream = %self.upstream, bytes = frame.bytes().len(), "{what} was dropped");
        }
        before == Some(Finish::Abandoned)
    }

    fn request(&self, frame: Frame) -> bool {
        if let Err(TrySendError::Full(unasked) | TrySendError::Closed(unasked)) =
            self.unasked.try_send(Unasked::Request(frame))
        {
            self.flooded();
            // Without an answer the upstream might wait for ever.
            if let Unasked::Request(frame) = unasked {
                let error = ErrorObject::new(INTERNAL_ERROR, "too many requests to the client");
                let id = frame.id().unwrap_or_default();
                self.aside(response(&id, Kind::Error, error.to_raw().get().as_bytes()));
            }
        }
        false
    }

    fn notification(&self, frame: Frame) -> bool {
        let owner = {
            let inner = self.lock();
            let id = concerns(&frame).or_else(|| {
                // It names no request, and between many it would be anybody's.
                let one = frame.method() == "notifications/message"
                    && self.one_call.load(Ordering::Relaxed);
                one.then(|| only_sent(&inner.waiting)).flatten()
            });
            id.and_then(|id| inner.waiting.get(&id).cloned())
        };
        let concerned = owner.is_some();
        let kept = match owner {
            Some(slot) => slot.notice(frame),
            None => self.unasked.try_send(Unasked::Notification(frame)).is_ok(),
        };
        if !kept {
            self.flooded();
        }
        concerned
    }

    fn flooded(&self) {
        count(&self.counters.dropped_notices);
        if self.floods.due() {
            tracing::warn!(
                upstream = %self.upstream,
                "the upstream says more than is looked at; messages were dropped"
            );
        }
    }

    fn too_long(&self, glance: &Glance) -> bool {
        count(&self.counters.oversize);
        let limit = self.max_message;
        let whose = glance.answers();
        let told = whose.is_some_and(|id| {
            let text = format!("the answer is larger than {limit} bytes");
            self.fail_one(id, Fault::new(Reason::TooLarge, Delivery::Unknown, text))
        });
        if self.oversize.due() {
            tracing::warn!(
                upstream = %self.upstream, limit, answer_failed = told,
                "a message larger than max_message was skipped"
            );
        }
        told
    }

    fn no_message(&self, line: &[u8], error: &FrameError) -> bool {
        count(&self.counters.noise_lines);
        if line.iter().all(u8::is_ascii_whitespace) {
            return false;
        }
        if let Some(id) = Glance::at(line).answers() {
            let text = "the answer is not a valid message";
            // What serde says of JSON may quote it, and results are nobody's business in a log.
            let fault = Fault::new(Reason::Garbled, Delivery::Unknown, text).because(kind(error));
            if self.fail_one(id, fault) {
                return true;
            }
        }
        if self.noise.due() {
            let text = String::from_utf8_lossy(line);
            let shown = if text.trim_start().starts_with(['{', '[']) {
                "(not shown)".into()
            } else {
                let clean = self.scrubber.scrub(&text).replace(char::is_control, " ");
                clean.chars().take(NOISE_SHOWN).collect::<String>()
            };
            tracing::warn!(
                upstream = %self.upstream, bytes = line.len(), why = kind(error), line = shown,
                "what the upstream sent is no message and was skipped"
            );
        }
        false
    }

    /// This one request comes to nothing; `false`: it does not wait any more.
    pub fn fail_one(&self, id: u64, fault: Fault) -> bool {
        let mut inner = self.lock();
        let known = inner.waiting.get(&id).is_some_and(|slot| slot.is_sent());
        let slot = known.then(|| inner.finish(id, Finish::Answered)).flatten();
        drop(inner);
        slot.inspect(|slot| slot.answer(Err(fault))).is_some()
    }

    fn aside(&self, line: Bytes) {
        if self.asides.try_send(line).is_err() {
            count(&self.counters.dropped_asides);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn only_sent(waiting: &HashMap<u64, Arc<Slot>>) -> Option<u64> {
    let mut sent = waiting.iter().filter(|(_, slot)| slot.is_sent());
    match (sent.next(), sent.next()) {
        (Some((id, _)), None) => Some(*id),
        _ => None,
    }
}

fn kind(error: &FrameError) -> &'static str {
    match error {
        FrameError::Json(_) => "not valid JSON",
        FrameError::Shape(what) => what,
    }
}

/// The request that a notification names: by its progress token, which is the request's id, or
/// by the subscription it belongs to (2026-07-28 basic/patterns/subscriptions).
fn concerns(frame: &Frame) -> Option<u64> {
    let params = frame.params()?;
    let params = Members::read(&params).ok()?;
    let named = if frame.method() == "notifications/progress" {
        params.get(key::PROGRESS_TOKEN)?
    } else {
        let meta = params.get("_meta")?;
        Members::read(meta.get().as_bytes()).ok()?.get(key::SUBSCRIPTION_ID)?
    };
    number(named.get().as_bytes())
}

/// A place in the table. Dropped before the answer came, it tells the upstream.
pub struct Ticket<'a> {
    table: &'a Table,
    id: u64,
    pub slot: Arc<Slot>,
    cancellable: bool,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        self.slot.abandon();
        let mut inner = self.table.lock();
        // Gone from the table: answered, or failed.
        let Some(slot) = inner.finish(self.id, Finish::Abandoned) else { return };
        drop(inner);
        if slot.withdraw() && self.cancellable {
            let params =
                format!(r#"{{"requestId":{},"reason":"the caller no longer waits"}}"#, self.id);
            self.table.aside(message(None, "notifications/cancelled", Some(params.as_bytes())));
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
