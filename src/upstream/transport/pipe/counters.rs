//! What happened on a pipe, for metrics; and how often it is worth a log line.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// Counts over all connections with an upstream, or all lives of its process; they only grow.
#[derive(Debug, Default)]
pub struct PipeCounters {
    /// Lines on stdout, frames and events that are no message: banners, blank lines, arrays, broken JSON.
    pub noise_lines: AtomicU64,
    /// Responses whose id no request had, or whose id could not be read.
    pub unmatched_answers: AtomicU64,
    /// Second responses to a request.
    pub duplicate_answers: AtomicU64,
    /// Responses to requests that nobody waits for any more.
    pub late_answers: AtomicU64,
    /// Messages longer than `max_message`.
    pub oversize: AtomicU64,
    /// Notices of requests and unasked messages that were dropped because too many waited.
    pub dropped_notices: AtomicU64,
    /// Cancellations and refusals that an upstream which does not read never got.
    pub dropped_asides: AtomicU64,
    /// Lines on a child's stderr.
    pub stderr_lines: AtomicU64,
    /// Bytes of a child's stderr that were not relayed to the log.
    pub stderr_dropped_bytes: AtomicU64,
    /// Bytes of messages read, not counting what came over HTTP.
    pub bytes_in: AtomicU64,
    /// Bytes of messages written, not counting what went over HTTP.
    pub bytes_out: AtomicU64,
}

pub fn count(counter: &AtomicU64) {
    add(counter, 1);
}

pub fn add(counter: &AtomicU64, n: u64) {
    counter.fetch_add(n, Ordering::Relaxed);
}

/// One of these per kind of oddity: the first is logged, then at most one a minute.
#[derive(Default)]
pub struct Sparse(Mutex<Option<Instant>>);

impl Sparse {
    const EVERY: Duration = Duration::from_secs(60);

    pub fn due(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let now = Instant::now();
        let due = last.is_none_or(|at| now >= at + Sparse::EVERY);
        if due {
            *last = Some(now);
        }
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_flood_is_one_line_a_minute() {
        let sparse = Sparse::default();
        assert!(sparse.due());
        assert!(!sparse.due());
        tokio::time::advance(Duration::from_secs(59)).await;
        assert!(!sparse.due());
        tokio::time::advance(Duration::from_secs(1)).await;
        assert!(sparse.due());
        assert!(!sparse.due());
    }
}
