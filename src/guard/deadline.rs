//! The instant at which a call must end, and the one way to move it.
//!
//! Progress moves the end to a full timeout from now, never past the hard maximum. The end only
//! ever moves later, so whoever waits need not be woken by a move: it looks again when its alarm
//! rings. That makes an extension one atomic store.

use std::future::poll_fn;
use std::pin::pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Poll, ready};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;
use crate::timer::Timer;

/// When a call must end. Cloning shares it: the link that hears progress extends the deadline
/// that the guard waits for.
#[derive(Clone, Debug)]
pub struct Deadline(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    start: Instant,
    timeout: u64,
    hard_max: u64,
    /// The end, in nanoseconds after `start`.
    end: AtomicU64,
    /// Rare, and only of calls that ask back.
    rest: Mutex<Rest>,
}

/// Time in which the clock stood still.
#[derive(Debug, Default)]
struct Rest {
    /// How many hold it; the clock stands still while any does.
    holders: u32,
    since: Option<Instant>,
    total: Duration,
    /// Time in which the clock ran and the upstream was not at work.
    aside: Duration,
}

impl Rest {
    fn so_far(&self) -> Duration {
        self.total + self.since.map_or(Duration::ZERO, |since| since.elapsed())
    }
}

/// The clock stands still until this is dropped.
#[derive(Debug)]
pub struct Paused(Deadline, bool);

impl Paused {
    /// Whether nobody else held it when this began.
    pub fn first(&self) -> bool {
        self.1
    }
}

impl Drop for Paused {
    fn drop(&mut self) {
        let mut rest = lock(&self.0.0.rest);
        rest.holders -= 1;
        if rest.holders == 0 {
            rest.total = rest.so_far();
            rest.since = None;
        }
    }
}

/// While the clock stands still, this is how often it is looked at again.
const LOOK_AGAIN: Duration = Duration::from_millis(100);

/// The deadline passed first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the deadline passed")]
pub struct Elapsed;

impl Deadline {
    /// A deadline `timeout` from now that can be extended up to `hard_max` from now. The smaller
    /// of the two holds where they contradict each other.
    pub fn new(timeout: Duration, hard_max: Duration) -> Deadline {
        let (timeout, hard_max) = (nanos(timeout), nanos(hard_max));
        Deadline(Arc::new(Shared {
            start: Instant::now(),
            timeout,
            hard_max,
            end: AtomicU64::new(timeout.min(hard_max)),
            rest: Mutex::default(),
        }))
    }

    /// The upstream showed that it is alive: the end moves to a full timeout from now, never
    /// past the hard maximum and never earlier.
    pub fn extend(&self) {
        let end = nanos(self.age().saturating_sub(self.stood_still()))
            .saturating_add(self.0.timeout)
            .min(self.0.hard_max);
        self.0.end.fetch_max(end, Ordering::Relaxed);
    }

    /// The clock stands still while the caller is asked something: that time is not the
    /// upstream's. Whoever asks sets a limit of its own.
    #[must_use]
    pub fn pause(&self) -> Paused {
        let mut rest = lock(&self.0.rest);
        rest.holders += 1;
        rest.since.get_or_insert_with(Instant::now);
        let first = rest.holders == 1;
        Paused(self.clone(), first)
    }

    /// So much of the time was not the upstream's, although the clock ran.
    pub fn set_aside(&self, time: Duration) {
        lock(&self.0.rest).aside += time;
    }

    /// How much of the time was not the upstream's.
    pub fn rested(&self) -> Duration {
        let rest = lock(&self.0.rest);
        rest.so_far() + rest.aside
    }

    fn stood_still(&self) -> Duration {
        lock(&self.0.rest).so_far()
    }

    /// The end as it stands.
    pub fn end(&self) -> Instant {
        let rest = lock(&self.0.rest);
        let end =
            self.0.start + Duration::from_nanos(self.0.end.load(Ordering::Relaxed)) + rest.so_far();
        // A clock that stands still never reaches its end.
        if rest.since.is_some() { end.max(Instant::now() + LOOK_AGAIN) } else { end }
    }

    /// Time left; zero once it has passed.
    pub fn remaining(&self) -> Duration {
        self.end().saturating_duration_since(Instant::now())
    }

    /// Time since it was set.
    pub fn age(&self) -> Duration {
        self.0.start.elapsed()
    }

    /// Wait for `work`, but not past the end, wherever that has moved meanwhile. `work` is
    /// dropped when the deadline passes; when both happen at once, `work` wins.
    pub async fn run<F: Future>(&self, work: F) -> Result<F::Output, Elapsed> {
        self.run_by(&mut Timer::default(), work).await
    }

    /// The same by a timer that others used before.
    pub async fn run_by<F: Future>(
        &self,
        timer: &mut Timer,
        work: F,
    ) -> Result<F::Output, Elapsed> {
        let mut work = pin!(work);
        poll_fn(|cx| {
            if let Poll::Ready(output) = work.as_mut().poll(cx) {
                return Poll::Ready(Ok(output));
            }
            loop {
                let end = self.end();
                ready!(timer.poll(cx, end));
                if self.end() <= end {
                    return Poll::Ready(Err(Elapsed));
                }
            }
        })
        .await
    }
}

/// As nanoseconds; what is longer than 584 years is as good as that.
fn nanos(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::pending;
    use tokio::time::{advance, sleep};

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_in_time_is_returned() {
        let deadline = Deadline::new(2 * S, 10 * S);
        assert_eq!(deadline.run(sleep(S)).await, Ok(()));
        assert_eq!(deadline.remaining(), S);
    }

    #[tokio::test(start_paused = true)]
    async fn the_clock_stands_still_while_it_is_held() {
        let deadline = Deadline::new(2 * S, 3 * S);
        advance(S).await;
        let (one, two) = (deadline.pause(), deadline.pause());
        advance(10 * S).await;
        drop(one);
        advance(10 * S).await;
        assert!(!deadline.remaining().is_zero());
        drop(two);
        assert_eq!((deadline.remaining(), deadline.rested()), (S, 20 * S));
        deadline.extend();
        assert_eq!(deadline.remaining(), 2 * S, "up to the hard maximum, without the rest");
        let held = deadline.clone();
        let asks = async move {
            let _held = held.pause();
            sleep(60 * S).await;
        };
        assert_eq!(deadline.run(asks).await, Ok(()));
        assert_eq!(deadline.run(pending::<()>()).await, Err(Elapsed));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_is_done_at_the_very_end_wins() {
        let deadline = Deadline::new(S, S);
        assert_eq!(deadline.run(sleep(S)).await, Ok(()));
    }

    #[tokio::test(start_paused = true)]
    async fn work_that_hangs_is_dropped_at_the_end() {
        let start = Instant::now();
        let deadline = Deadline::new(2 * S, 10 * S);
        let witness = Arc::new(());
        let held = witness.clone();
        let hang = async move {
            pending::<()>().await;
            drop(held);
        };
        assert_eq!(deadline.run(hang).await, Err(Elapsed));
        assert_eq!(start.elapsed(), 2 * S);
        assert_eq!(Arc::strong_count(&witness), 1, "the work is gone with what it held");
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_during_the_wait_is_honoured_up_to_the_hard_maximum() {
        let start = Instant::now();
        let deadline = Deadline::new(4 * S, 9 * S);
        let link = deadline.clone();
        let progress = tokio::spawn(async move {
            for _ in 0..4 {
                sleep(3 * S).await;
                link.extend();
            }
        });
        // Without progress it would end after 4 s, with each one after 7 s, 10 s, …
        assert_eq!(deadline.run(pending::<()>()).await, Err(Elapsed));
        assert_eq!(start.elapsed(), 9 * S);
        progress.abort();
    }

    #[tokio::test(start_paused = true)]
    async fn an_extension_never_moves_the_end_earlier() {
        let deadline = Deadline::new(10 * S, 10 * S);
        deadline.extend();
        advance(S).await;
        deadline.extend();
        assert_eq!(deadline.remaining(), 9 * S);
        assert_eq!(deadline.age(), S);
        advance(20 * S).await;
        assert_eq!(deadline.remaining(), Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn a_hard_maximum_below_the_timeout_holds() {
        assert_eq!(Deadline::new(10 * S, 3 * S).remaining(), 3 * S);
    }

    #[tokio::test(start_paused = true)]
    async fn an_absurd_timeout_does_no_harm() {
        let deadline = Deadline::new(Duration::MAX, Duration::MAX);
        advance(S).await;
        deadline.extend();
        assert_eq!(deadline.run(async { 7 }).await, Ok(7));
    }
}
