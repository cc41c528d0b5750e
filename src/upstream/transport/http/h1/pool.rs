//! Idle connections, kept without a lock: each call takes one and gives one back.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use crossbeam_queue::ArrayQueue;
use tokio::time::Instant;

use super::Connection;

/// Most idle connections kept. More calls than this at once are rare, and a connection more costs
/// one dial.
const IDLE_MAX: usize = 128;
/// How often idle connections are looked at, while there are any: one that the upstream has closed
/// holds a descriptor on both sides.
const LOOK_EVERY: Duration = Duration::from_secs(1);

/// The idle connections of one pool.
#[derive(Debug)]
pub(in super::super) struct Idle {
    kept: ArrayQueue<(Connection, Instant)>,
    time: Duration,
    watched: AtomicBool,
}

impl Idle {
    /// None yet; each is kept for `time`.
    pub fn new(time: Duration) -> Idle {
        Idle { kept: ArrayQueue::new(IDLE_MAX), time, watched: AtomicBool::new(false) }
    }

    /// One that can be used.
    pub fn take(&self) -> Option<Connection> {
        while let Some((connection, since)) = self.kept.pop() {
            if since.elapsed() < self.time && connection.is_quiet() {
                return Some(connection);
            }
        }
        None
    }

    /// Whether none is kept.
    #[cfg(test)]
    pub fn is_empty(&self) -> bool {
        self.kept.is_empty()
    }

    /// Keep one. It is closed if there are enough.
    pub fn keep(self: &Arc<Self>, connection: Connection) {
        if self.kept.push((connection, Instant::now())).is_err() {
            return;
        }
        if self.watched.load(Ordering::Relaxed) || self.watched.swap(true, Ordering::AcqRel) {
            return;
        }
        // At the end of the process there is no runtime any more, and nothing to watch.
        let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
        let pool = Arc::downgrade(self);
        let pause = LOOK_EVERY.min(self.time);
        runtime.spawn(async move {
            loop {
                tokio::time::sleep(pause).await;
                let Some(pool) = pool.upgrade() else { return };
                if pool.look() {
                    return;
                }
            }
        });
    }

    // Close what is not to be kept. True: there is nothing left to watch.
    fn look(&self) -> bool {
        for _ in 0..self.kept.len() {
            let Some((connection, since)) = self.kept.pop() else { break };
            if since.elapsed() < self.time && connection.is_quiet() {
                let _ = self.kept.push((connection, since));
            }
        }
        if !self.kept.is_empty() {
            return false;
        }
        self.watched.store(false, Ordering::Release);
        // One that came in between saw a watcher, and there is none any more.
        self.kept.is_empty() || self.watched.swap(true, Ordering::AcqRel)
    }
}
