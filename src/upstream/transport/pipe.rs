//! A two-way connection with an upstream that carries messages and nothing else: which answer
//! belongs to which request is for the messages to say.
//!
//! ```text
//!  request ─► Outbox ─► what writes ─► the upstream ─► what reads ─► Table ─► the request's Slot
//!                                                                      └───► Unasked
//! ```
//!
//! Below it lies a child's stdin and stdout ([`super::stdio`]), a WebSocket ([`super::websocket`])
//! or an event stream with POSTs ([`super::sse`]). Whatever carries it has one task that owns its
//! end: that task says to all who wait why there is no connection any more.

mod counters;
mod glance;
mod slot;
mod table;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;

pub use counters::PipeCounters;
pub(super) use counters::{add, count};
pub(super) use glance::Glance;
pub(super) use slot::{Lost, Slot};
pub(super) use table::Table;

use super::{OnNotice, UNASKED_MAX, Unasked};
use crate::config::secret::Scrubber;
use crate::failure::Fault;
use crate::protocol::message::Frame;

/// Messages that wait to be written. Few: what waits here waits for an upstream that does not
/// read, and each may be as large as a request body. Further callers wait with their message.
const QUEUE_MAX: usize = 64;

/// Small messages of our own (cancellations, refusals) that wait to be written; they go first.
/// Beyond that they are dropped and counted.
const ASIDES_MAX: usize = 1024;

/// How long the last small messages may take once a pipe is closed: the upstream is still to hear
/// which calls nobody waits for.
pub(super) const LAST_WORDS: Duration = Duration::from_secs(1);

/// What came from an upstream.
pub(super) enum Heard {
    /// As it came.
    Whole(Bytes),
    /// Longer than allowed. It was read past and not kept.
    TooLong(Glance),
}

/// A message on its way out.
pub(super) struct Outgoing {
    /// The message.
    pub message: Bytes,
    /// Who waits for its answer, and under which id.
    pub awaited: Option<(u64, Arc<Slot>)>,
}

/// What waits to be written.
pub(super) struct Outbox {
    queue: mpsc::Receiver<Outgoing>,
    asides: mpsc::Receiver<Bytes>,
}

impl Outbox {
    /// The next message, whose writing counts as begun. Nothing is lost if the future is dropped.
    pub async fn next(&mut self) -> Outgoing {
        loop {
            let next = tokio::select! {
                biased;
                Some(message) = self.asides.recv() => Outgoing { message, awaited: None },
                Some(outgoing) = self.queue.recv() => outgoing,
                // The pipe is gone, and `closing` says so.
                else => std::future::pending().await,
            };
            // Otherwise nobody waits for it any more.
            if next.awaited.as_ref().is_none_or(|(_, slot)| slot.begin()) {
                return next;
            }
        }
    }

    /// The next small message of our own, if one waits.
    pub fn aside(&mut self) -> Option<Bytes> {
        self.asides.try_recv().ok()
    }

    /// Nothing is written any more. What still waits fails as not sent.
    pub fn close(self, table: &Table, lost: Lost) {
        // In this order: a message that still got into the queue has its slot in the table already.
        drop(self);
        table.fail_unsent(lost);
    }
}

/// The inner end of a pipe: what its tasks read from and report to.
pub(super) struct Inside {
    pub table: Arc<Table>,
    pub outbox: Outbox,
    /// Nobody needs the pipe any more.
    pub closing: CancellationToken,
    /// Set once, when all is over.
    pub ended: watch::Sender<Option<Lost>>,
    /// Set where the end is decided on and may still take its time: another is to take its place.
    pub doomed: watch::Sender<Option<Lost>>,
}

/// The way to one connected upstream. Cloning shares it; when the last clone is dropped, it is
/// closed as by [`Pipe::close`].
#[derive(Clone)]
pub struct Pipe(Arc<Shared>);

struct Shared {
    table: Arc<Table>,
    queue: mpsc::Sender<Outgoing>,
    closing: CancellationToken,
    ended: watch::Receiver<Option<Lost>>,
    doomed: watch::Receiver<Option<Lost>>,
}

impl Drop for Shared {
    fn drop(&mut self) {
        self.closing.cancel();
    }
}

impl Pipe {
    /// Both ends of a new pipe, and what the upstream will say unasked.
    pub(super) fn new(
        upstream: Arc<str>,
        max_message: usize,
        scrubber: Scrubber,
        counters: Arc<PipeCounters>,
    ) -> (Pipe, Inside, mpsc::Receiver<Unasked>) {
        let (unasked, to_owner) = mpsc::channel(UNASKED_MAX);
        let (asides, asides_end) = mpsc::channel(ASIDES_MAX);
        let (queue, queue_end) = mpsc::channel(QUEUE_MAX);
        let (ended_tx, ended) = watch::channel(None);
        let (doomed_tx, doomed) = watch::channel(None);
        let closing = CancellationToken::new();
        let table = Table::new(upstream, max_message, scrubber, counters, unasked, asides);
        let table = Arc::new(table);
        let inside = Inside {
            table: table.clone(),
            outbox: Outbox { queue: queue_end, asides: asides_end },
            closing: closing.clone(),
            ended: ended_tx,
            doomed: doomed_tx,
        };
        (Pipe(Arc::new(Shared { table, queue, closing, ended, doomed })), inside, to_owner)
    }

    /// Send the request `message`, whose id is `id`, and wait for its answer: a result or an
    /// error of the upstream's. `on_notice` gets, before that, each notification that names the
    /// request (progress whose token is `id`, what belongs to its subscription).
    ///
    /// Dropping the future before the answer forgets the request. If it was sent and is
    /// `cancellable` (everything but `initialize`), the upstream is told.
    ///
    /// Waits without a limit of its own for an upstream that does not read or answer.
    ///
    /// # Errors
    /// [`ConnectionLost`] and [`ConnectFailed`] when there is no connection any more,
    /// [`TooLarge`] and [`Garbled`] when its answer is no use, and over HTTP what its status says.
    /// `NotSent` only if not a byte of the message was written.
    ///
    /// [`ConnectionLost`]: crate::failure::Reason::ConnectionLost
    /// [`ConnectFailed`]: crate::failure::Reason::ConnectFailed
    /// [`TooLarge`]: crate::failure::Reason::TooLarge
    /// [`Garbled`]: crate::failure::Reason::Garbled
    pub async fn request(
        &self,
        id: u64,
        message: Bytes,
        cancellable: bool,
        on_notice: OnNotice<'_>,
    ) -> Result<Frame, Fault> {
        let ticket = self.0.table.enter(id, cancellable)?;
        let outgoing = Outgoing { message, awaited: Some((id, ticket.slot.clone())) };
        if self.0.queue.send(outgoing).await.is_err() {
            // The writer fails what it leaves behind, so the outcome is there or comes at once.
            self.0.table.fail_unsent(closing());
        }
        ticket.slot.outcome(on_notice).await
    }

    /// Send a notification or a response. Returns once it waits to be written, which may take as
    /// long as an upstream that does not read.
    ///
    /// # Errors
    /// There is no connection any more; nothing was sent.
    pub async fn notify(&self, message: Bytes) -> Result<(), Fault> {
        self.0.table.check()?;
        let outgoing = Outgoing { message, awaited: None };
        let sent = self.0.queue.send(outgoing).await;
        sent.map_err(|_| self.0.table.check().err().unwrap_or_else(|| closing().fault(false)))
    }

    /// From now on one call at a time goes over it, so that a log message is that call's, and
    /// comes before its answer.
    pub fn carries_one_call(&self) {
        self.0.table.carries_one_call();
    }

    /// Whether anything at all came from the upstream: a sign of life of a slow starter.
    pub fn saw_output(&self) -> bool {
        self.0.table.saw_output()
    }

    /// Wait until the connection is gone, and why it is.
    pub async fn ended(&self) -> Fault {
        let mut ended = self.0.ended.clone();
        match ended.wait_for(Option::is_some).await.as_deref() {
            Ok(Some(lost)) => lost.fault(true),
            // The runtime that carried it is being torn down.
            _ => closing().fault(true),
        }
    }

    /// Wait until it is decided that the connection ends although nobody closes it, and why. For
    /// ever where that is never so: see [`Pipe::ended`].
    pub async fn doomed(&self) -> Fault {
        let mut doomed = self.0.doomed.clone();
        if let Ok(Some(lost)) = doomed.wait_for(Option::is_some).await.as_deref() {
            return lost.fault(true);
        }
        std::future::pending().await
    }

    /// Begin to close.
    pub(super) fn begin_close(&self) {
        self.0.closing.cancel();
    }

    /// Close, and wait until all of it is gone.
    pub async fn close(&self) {
        self.begin_close();
        self.ended().await;
    }
}

/// As the last word of a pipe that is closed on purpose.
pub(super) fn closing() -> Lost {
    Lost::new("the connection to the upstream is being closed")
}
