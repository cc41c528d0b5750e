//! How many children start at once (`gateway.max_starting`).
//!
//! Fifty interpreters that start together take each other's processor, and all miss their
//! `connect_timeout`; a few at a time are there sooner. There are two lines: one for what is
//! started because it is configured, and one of as many places for what a call waits for, which
//! must not stand behind a gateway's whole start.
//!
//! A place is given back when the child has answered the handshake, or failed, and after its
//! `connect_timeout` in any case: what hangs, or is being installed, holds up the others so long
//! and no longer.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio_util::sync::{CancellationToken, DropGuard};

/// Why a child is started.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// It is configured.
    Configured,
    /// A call waits for it.
    Wanted,
}

/// The places of a gateway.
pub struct Starts {
    configured: Arc<Line>,
    wanted: Arc<Line>,
}

struct Line {
    state: Mutex<State>,
    freed: Notify,
}

struct State {
    taken: usize,
    max: usize,
}

/// A place, given back when this is dropped, or when its time is over.
pub struct Place(#[allow(dead_code, reason = "what counts is when it is dropped")] DropGuard);

struct Taken(Arc<Line>);

impl Drop for Taken {
    fn drop(&mut self) {
        self.0.lock().taken -= 1;
        self.0.freed.notify_one();
    }
}

impl Line {
    fn new(max: usize) -> Arc<Line> {
        Arc::new(Line { state: Mutex::new(State { taken: 0, max }), freed: Notify::new() })
    }

    fn try_take(self: &Arc<Self>) -> Option<Taken> {
        let mut state = self.lock();
        (state.taken < state.max).then(|| {
            state.taken += 1;
            Taken(self.clone())
        })
    }

    async fn take(self: &Arc<Self>) -> Taken {
        loop {
            let mut freed = std::pin::pin!(self.freed.notified());
            // In line before the look, so that no place falls in between.
            freed.as_mut().enable();
            if let Some(taken) = self.try_take() {
                return taken;
            }
            freed.await;
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Only counts change under it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Starts {
    /// `max` of either kind at once.
    pub fn new(max: usize) -> Starts {
        Starts { configured: Line::new(max), wanted: Line::new(max) }
    }

    /// Another number from now on. Those that are starting go on.
    pub fn resize(&self, max: usize) {
        for line in [&self.configured, &self.wanted] {
            line.lock().max = max;
            line.freed.notify_waiters();
        }
    }

    /// A place for `at_most` this long, if one is free.
    pub fn try_enter(&self, cause: Cause, at_most: Duration) -> Option<Place> {
        self.line(cause).try_take().map(|taken| Place::new(taken, at_most))
    }

    /// A place for `at_most` this long, waited for.
    pub async fn enter(&self, cause: Cause, at_most: Duration) -> Place {
        Place::new(self.line(cause).take().await, at_most)
    }

    fn line(&self, cause: Cause) -> &Arc<Line> {
        match cause {
            Cause::Configured => &self.configured,
            Cause::Wanted => &self.wanted,
        }
    }
}

impl Place {
    fn new(taken: Taken, at_most: Duration) -> Place {
        let done = CancellationToken::new();
        let given_back = done.clone();
        tokio::spawn(async move {
            let _taken = taken;
            let _ = tokio::time::timeout(at_most, given_back.cancelled()).await;
        });
        Place(done.drop_guard())
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use std::sync::atomic::{AtomicUsize, Ordering};

    use tokio::time::Instant;

    use super::*;

    const LIMIT: Duration = Duration::from_secs(10);
    const START: Duration = Duration::from_secs(2);

    /// Starts so many, each of which takes `START`; how many there were at once, and the time.
    async fn all(starts: &Arc<Starts>, count: usize, cause: Cause) -> (usize, Duration) {
        let began = Instant::now();
        let now = Arc::new(AtomicUsize::new(0));
        let most = Arc::new(AtomicUsize::new(0));
        let mut tasks = tokio::task::JoinSet::new();
        for _ in 0..count {
            let (starts, now, most) = (starts.clone(), now.clone(), most.clone());
            tasks.spawn(async move {
                let _place = starts.enter(cause, LIMIT).await;
                most.fetch_max(now.fetch_add(1, Ordering::Relaxed) + 1, Ordering::Relaxed);
                tokio::time::sleep(START).await;
                now.fetch_sub(1, Ordering::Relaxed);
            });
        }
        while tasks.join_next().await.is_some() {}
        (most.load(Ordering::Relaxed), began.elapsed())
    }

    #[tokio::test(start_paused = true)]
    async fn fifty_start_four_at_a_time() {
        let starts = Arc::new(Starts::new(4));
        let (most, took) = all(&starts, 50, Cause::Configured).await;
        assert_eq!((most, took.as_secs()), (4, 26));
    }

    #[tokio::test(start_paused = true)]
    async fn what_hangs_gives_its_place_back_in_time() {
        let starts = Arc::new(Starts::new(1));
        let _hangs = starts.enter(Cause::Configured, LIMIT).await;
        assert!(starts.try_enter(Cause::Configured, LIMIT).is_none());
        let (most, took) = all(&starts, 2, Cause::Configured).await;
        assert_eq!((most, took.as_secs()), (1, LIMIT.as_secs() + 2 * START.as_secs()));
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_call_waits_for_does_not_stand_behind_the_rest() {
        let starts = Arc::new(Starts::new(1));
        let _hangs = starts.enter(Cause::Configured, LIMIT).await;
        let (most, took) = all(&starts, 2, Cause::Wanted).await;
        assert_eq!((most, took), (1, 2 * START));
    }

    #[tokio::test(start_paused = true)]
    async fn who_leaves_the_line_keeps_nobody_waiting() {
        let starts = Arc::new(Starts::new(1));
        let first = starts.enter(Cause::Configured, LIMIT).await;
        let left = {
            let starts = starts.clone();
            tokio::spawn(async move { starts.enter(Cause::Configured, LIMIT).await })
        };
        tokio::time::sleep(START).await;
        let next = starts.enter(Cause::Configured, LIMIT);
        tokio::pin!(next);
        assert!(tokio::time::timeout(START, &mut next).await.is_err());
        left.abort();
        drop(first);
        assert!(tokio::time::timeout(START, next).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_number_holds_for_who_waits() {
        let starts = Arc::new(Starts::new(1));
        let first = starts.enter(Cause::Configured, LIMIT).await;
        starts.resize(3);
        let (most, _) = all(&starts, 6, Cause::Configured).await;
        assert_eq!(most, 3 - 1);
        starts.resize(1);
        drop(first);
        tokio::time::sleep(START).await;
        assert_eq!(all(&starts, 3, Cause::Configured).await.0, 1);
    }
}
