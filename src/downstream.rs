//! Where clients come in: the listener, streamable HTTP in both eras, stdin and stdout.
//!
//! The edges know eras, HTTP and sessions so that nothing behind them has to. A message becomes a
//! [`crate::call::Call`] here and a terminal becomes a message again.

pub mod access;
pub mod body;
pub mod caller;
mod cancel;
pub mod canonical;
pub mod checks;
pub mod conversation;
pub mod h1;
pub mod headers;
pub mod http;
pub mod jobs;
mod lazy;
pub mod legacy;
pub mod listen;
pub mod listener;
mod mirror;
pub mod modern;
pub mod park;
pub mod pipe;
pub mod refused;
pub mod render;
pub mod replay;
mod reply;
pub mod session;
pub mod sse;
pub mod stall;
pub mod stdio;
mod tasks;
pub mod websocket;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::call::Consumer;
use crate::gateway::Gateway;
use crate::seal::Sealer;
use crate::timer::Timers;
use park::Parks;
use session::{Found, Sessions};

/// How long a client may leave unread what is written to it. Longer than any network takes to
/// recover by itself; after it the client is gone, and what was kept for it is given back.
pub const UNREAD_TIME: Duration = Duration::from_secs(30);

/// How long a request that has only begun to come may take when the gateway stops.
const HALF_SAID: Duration = Duration::from_millis(500);

/// What all edges share.
pub struct Edge {
    /// The heart.
    pub gateway: Arc<Gateway>,
    /// Sessions of old clients.
    pub sessions: Sessions,
    /// Open streams of HTTP+SSE clients, by the secret in their endpoint.
    pub doors: sse::Doors,
    /// Calls whose caller was asked something and has not come back yet.
    pub parks: Parks,
    /// What session ids and request states are sealed with.
    pub sealer: Sealer,
    /// Calls of old clients, which outlive their connection.
    pub tasks: TaskTracker,
    /// Connections, which are given time to send what they have when the gateway stops.
    pub served: TaskTracker,
    /// Bytes kept for clients of old sessions that come back for the rest of a stream.
    pub kept_bytes: Arc<AtomicUsize>,
    /// For what has to be said in time.
    pub timers: Timers,
    /// Answers that their clients have not read yet.
    pub unread: body::Unread,
    /// Set when the gateway is about to stop: clients are asked to go elsewhere.
    pub leave: CancellationToken,
    /// Set when the gateway stops.
    pub stop: CancellationToken,
    /// Open notification streams.
    pub streams: Arc<AtomicUsize>,
    /// Open connections.
    pub connections: Arc<AtomicUsize>,
}

impl Edge {
    /// Edges of one gateway.
    pub fn new(gateway: Arc<Gateway>, sealer: Sealer) -> Arc<Edge> {
        Arc::new(Edge {
            gateway,
            sessions: Sessions::default(),
            doors: sse::Doors::default(),
            parks: Parks::default(),
            sealer,
            tasks: TaskTracker::new(),
            served: TaskTracker::new(),
            kept_bytes: Arc::default(),
            timers: Timers::default(),
            unread: body::Unread::default(),
            leave: CancellationToken::new(),
            stop: CancellationToken::new(),
            streams: Arc::default(),
            connections: Arc::default(),
        })
    }

    /// The session of this id, if it is this consumer's.
    pub fn session(&self, id: &str, consumer: &Arc<Consumer>) -> Found {
        let max = || self.gateway.current.load().config.gateway.max_sessions;
        self.sessions.find(&self.sealer, id, consumer, max)
    }

    /// Ask clients to go elsewhere; calls that come all the same are answered.
    pub fn leave(&self) {
        self.gateway.leave();
        self.leave.cancel();
    }

    /// A place among the open streams; `None` if all are taken.
    pub fn stream_slot(&self) -> Option<Slot> {
        let max = self.gateway.current.load().config.gateway.max_streams;
        Slot::take(&self.streams, max)
    }
}

/// A counted place that is given back when dropped.
pub struct Slot(Arc<AtomicUsize>);

impl Slot {
    /// Take one of `max`.
    pub fn take(count: &Arc<AtomicUsize>, max: usize) -> Option<Slot> {
        let taken = count.fetch_add(1, Ordering::Relaxed);
        let slot = Slot(count.clone());
        (taken < max).then_some(slot)
    }
}

impl Drop for Slot {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}
