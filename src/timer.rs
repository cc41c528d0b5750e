//! Timers that are used again.
//!
//! Decided: a wait that hardly ever lasts long takes a timer that runs already (2026-11-21). Each
//! call has two such waits; with timers of their own it paid some two thousand instructions for
//! setting them and for taking them back, and next to none ever rang. One that is left running is
//! set anew only when it rings, or for an earlier time.

use std::future::Future as _;
use std::ops::{Deref, DerefMut};
use std::pin::Pin;
use std::task::{Context, Poll, ready};

use crossbeam_queue::ArrayQueue;
use tokio::time::{Instant, Sleep, sleep_until};

/// Most timers that are kept for the next wait. More waits than this at once are rare, and a timer
/// more costs what one costs.
const KEPT_MAX: usize = 128;

/// A timer for one wait after the other. It is left running when nobody waits any more; when it
/// rings then, who waited last is woken once for nothing.
#[derive(Debug, Default)]
pub struct Timer(Option<Pin<Box<Sleep>>>);

impl Timer {
    /// Resolves at `until`.
    pub fn poll(&mut self, cx: &mut Context<'_>, until: Instant) -> Poll<()> {
        let sleep = self.0.get_or_insert_with(|| Box::pin(sleep_until(until)));
        loop {
            if sleep.deadline() > until || sleep.is_elapsed() {
                if Instant::now() >= until {
                    return Poll::Ready(());
                }
                sleep.as_mut().reset(until);
            }
            ready!(sleep.as_mut().poll(cx));
        }
    }
}

/// Timers that nobody waits for now.
#[derive(Debug)]
pub struct Timers(ArrayQueue<Timer>);

impl Default for Timers {
    fn default() -> Timers {
        Timers(ArrayQueue::new(KEPT_MAX))
    }
}

impl Timers {
    /// One of them, or a new one.
    pub fn take(&self) -> Taken<'_> {
        Taken { home: self, timer: self.0.pop().unwrap_or_default() }
    }
}

/// A timer that goes back when it is dropped.
#[derive(Debug)]
pub struct Taken<'a> {
    home: &'a Timers,
    timer: Timer,
}

impl Deref for Taken<'_> {
    type Target = Timer;

    fn deref(&self) -> &Timer {
        &self.timer
    }
}

impl DerefMut for Taken<'_> {
    fn deref_mut(&mut self) -> &mut Timer {
        &mut self.timer
    }
}

impl Drop for Taken<'_> {
    fn drop(&mut self) {
        // One that never ran is nothing to keep.
        if self.timer.0.is_some() {
            let _ = self.home.0.push(std::mem::take(&mut self.timer));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::future::poll_fn;
    use std::time::Duration;

    async fn rings(timer: &mut Taken<'_>, at: Instant) {
        poll_fn(|cx| timer.poll(cx, at)).await;
        let late = Instant::now() - at;
        assert!(late < Duration::from_millis(5), "{late:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_rings_at_the_time_that_is_asked_for_last() {
        let start = Instant::now();
        let mut timer = Timer::default();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Asked for and given up, then a later time, an earlier one, and one that is over.
        for (asked, then) in [(10, 15), (40, 20), (22, 25), (3, 25)] {
            let first = tokio::time::timeout(
                Duration::from_millis(1),
                poll_fn(|cx| timer.poll(cx, at(asked))),
            );
            assert_eq!(first.await.is_ok(), asked == 3);
            poll_fn(|cx| timer.poll(cx, at(then))).await;
            let late = Instant::now() - at(then);
            assert!(late < Duration::from_millis(5), "{late:?}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_timer_that_is_used_again_rings_in_time() {
        let timers = Timers::default();
        let start = Instant::now();
        let at = |seconds| start + Duration::from_secs(seconds);
        // Given back running for later, for earlier, and rung; then asked for another time.
        for (asked, then) in [(10, 5), (7, 8), (20, 9), (30, 40), (50, 45)] {
            let wait = async {
                let mut timer = timers.take();
                rings(&mut timer, at(asked)).await;
            };
            let _ = tokio::time::timeout(Duration::from_millis(10), wait).await;
            let mut timer = timers.take();
            rings(&mut timer, at(then)).await;
            drop(timer);
            assert_eq!(timers.0.len(), 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn two_waits_at_once_have_a_timer_each() {
        let timers = Timers::default();
        let soon = Instant::now() + Duration::from_secs(1);
        let (mut one, mut two) = (timers.take(), timers.take());
        tokio::join!(rings(&mut one, soon), rings(&mut two, soon + Duration::from_secs(1)));
        drop((one, two));
        assert_eq!(timers.0.len(), 2);
    }
}
