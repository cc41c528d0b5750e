//! How many calls run at once, and how many may wait.
//!
//! A semaphore that is fair in the order of arrival, with a bounded line before it and a size
//! that can change. Making it smaller takes back what is free at once; what is in use becomes a
//! debt that ending calls pay by not returning their permit. So a smaller number holds as soon
//! as it can without breaking off a running call.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Duration;

use tokio::sync::{Semaphore, SemaphorePermit};
use tokio::time::Instant;

use super::deadline::Deadline;
use super::lock;
use crate::config::ConcurrencyConfig;

/// The places of one upstream.
#[derive(Debug)]
pub(super) struct Concurrency {
    permits: Semaphore,
    /// Permits to take out of circulation: free + held - debt = max.
    debt: AtomicU32,
    /// A lock and not an atomic, because two reloads at once must not both apply a difference to
    /// the same old number. Calls never touch it.
    max: Mutex<u32>,
    queue: AtomicU32,
    queued: AtomicU32,
    in_flight: AtomicU32,
}

/// Why there is no place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Crowded {
    /// As many wait as may.
    QueueFull,
    /// The deadline passed while waiting, after this time.
    Late(Duration),
}

/// A place; dropping it gives it to the next in line.
#[derive(Debug)]
pub(super) struct Permit<'a> {
    home: &'a Concurrency,
    held: Option<SemaphorePermit<'a>>,
    /// Time in the line.
    pub(super) waited: Duration,
}

impl Concurrency {
    pub(super) fn new(config: ConcurrencyConfig) -> Concurrency {
        Concurrency {
            permits: Semaphore::new(config.max.get() as usize),
            debt: AtomicU32::new(0),
            max: Mutex::new(config.max.get()),
            queue: AtomicU32::new(config.queue),
            queued: AtomicU32::new(0),
            in_flight: AtomicU32::new(0),
        }
    }

    /// Take new sizes. More places go to those in line at once; a shorter line sends nobody away
    /// who stands in it.
    pub(super) fn reconfigure(&self, config: ConcurrencyConfig) {
        self.queue.store(config.queue, Ordering::Relaxed);
        let mut max = lock(&self.max);
        let (old, new) = (*max, config.max.get());
        *max = new;
        if new < old {
            self.debt.fetch_add(old - new, Ordering::AcqRel);
        } else {
            let mut more = new - old;
            // First what is still owed: new permits would go to those in line at once.
            while more > 0 && self.owe_less() {
                more -= 1;
            }
            self.permits.add_permits(more as usize);
        }
    }

    /// Wait for a place, in order of arrival, until the deadline.
    pub(super) async fn acquire(&self, deadline: &Deadline) -> Result<Permit<'_>, Crowded> {
        if self.debt.load(Ordering::Acquire) > 0 {
            self.settle();
        }
        if let Ok(permit) = self.permits.try_acquire() {
            return Ok(self.permit(permit, Duration::ZERO));
        }
        let _slot = self.line_up().ok_or(Crowded::QueueFull)?;
        let since = Instant::now();
        match deadline.run(self.permits.acquire()).await {
            Ok(permit) => {
                let permit = permit.expect("the semaphore is never closed");
                Ok(self.permit(permit, since.elapsed()))
            }
            Err(_) => Err(Crowded::Late(since.elapsed())),
        }
    }

    /// Give a place to others for as long as its call waits for its own caller: a person who is
    /// asked takes minutes, and the upstream is idle meanwhile. Taking it back does not wait, so
    /// that for a moment more may run than `max`.
    pub(super) fn lend(&self) -> Lent<'_> {
        self.in_flight.fetch_sub(1, Ordering::Relaxed);
        self.permits.add_permits(1);
        Lent(self)
    }

    /// Calls that hold a place. After the size was lowered it may be above it for a while.
    pub(super) fn in_flight(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    /// Calls in line.
    pub(super) fn queued(&self) -> u32 {
        self.queued.load(Ordering::Relaxed)
    }

    /// Whether a call that comes now has to wait.
    pub(super) fn is_full(&self) -> bool {
        self.permits.available_permits() <= self.debt.load(Ordering::Acquire) as usize
    }

    /// Whether one that has to is refused.
    pub(super) fn line_is_full(&self) -> bool {
        self.queued() >= self.queue.load(Ordering::Relaxed)
    }

    fn permit<'a>(&'a self, permit: SemaphorePermit<'a>, waited: Duration) -> Permit<'a> {
        self.in_flight.fetch_add(1, Ordering::Relaxed);
        Permit { home: self, held: Some(permit), waited }
    }

    fn line_up(&self) -> Option<Slot<'_>> {
        let most = self.queue.load(Ordering::Relaxed);
        self.queued
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n < most).then_some(n + 1))
            .ok()
            .map(|_| Slot(self))
    }

    /// Pay debt from what is free.
    fn settle(&self) {
        while self.owe_less() {
            let Ok(permit) = self.permits.try_acquire() else {
                self.debt.fetch_add(1, Ordering::AcqRel);
                return;
            };
            permit.forget();
        }
    }

    /// Strike one off the debt, if there is any.
    fn owe_less(&self) -> bool {
        self.debt
            .fetch_update(Ordering::AcqRel, Ordering::Acquire, |debt| debt.checked_sub(1))
            .is_ok()
    }
}

impl Drop for Permit<'_> {
    fn drop(&mut self) {
        self.home.in_flight.fetch_sub(1, Ordering::Relaxed);
        if self.home.owe_less()
            && let Some(permit) = self.held.take()
        {
            permit.forget();
        }
    }
}

/// A place that was lent; dropping it takes it back.
#[derive(Debug)]
pub struct Lent<'a>(&'a Concurrency);

impl Drop for Lent<'_> {
    fn drop(&mut self) {
        self.0.in_flight.fetch_add(1, Ordering::Relaxed);
        self.0.debt.fetch_add(1, Ordering::AcqRel);
        self.0.settle();
    }
}

/// A place in the line.
struct Slot<'a>(&'a Concurrency);

impl Drop for Slot<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use std::num::NonZeroU32;
    use std::sync::Arc;
    use tokio::task::{JoinHandle, yield_now};
    use tokio::time::sleep;

    const S: Duration = Duration::from_secs(1);

    fn config(max: u32, queue: u32) -> ConcurrencyConfig {
        ConcurrencyConfig { max: NonZeroU32::new(max).unwrap(), queue }
    }

    fn places(max: u32, queue: u32) -> Arc<Concurrency> {
        Arc::new(Concurrency::new(config(max, queue)))
    }

    fn long() -> Deadline {
        Deadline::new(60 * S, 60 * S)
    }

    /// Takes a place, keeps it for a second, and says how long it waited.
    async fn visit(places: &Arc<Concurrency>) -> JoinHandle<Result<Duration, Crowded>> {
        let places = places.clone();
        let task = tokio::spawn(async move {
            let permit = places.acquire(&long()).await?;
            sleep(S).await;
            Ok(permit.waited)
        });
        yield_now().await;
        task
    }

    #[tokio::test(start_paused = true)]
    async fn a_lent_place_is_used_by_others_and_comes_back() {
        let places = places(1, 9);
        let mine = places.acquire(&long()).await.unwrap();
        let lent = places.lend();
        assert_eq!(visit(&places).await.await.unwrap(), Ok(Duration::ZERO));
        drop(lent);
        assert_eq!(places.in_flight(), 1);
        let waiting = visit(&places).await;
        assert_eq!(places.queued(), 1, "taken back");
        sleep(S).await;
        drop(mine);
        assert_eq!(waiting.await.unwrap(), Ok(S));
        // Taken back while another has it: one more runs for a moment, then as many as before.
        let mine = places.acquire(&long()).await.unwrap();
        let lent = places.lend();
        let other = places.acquire(&long()).await.unwrap();
        drop(lent);
        assert_eq!(places.in_flight(), 2);
        drop((mine, other));
        let one = places.acquire(&long()).await.unwrap();
        let second = visit(&places).await;
        assert_eq!(places.queued(), 1);
        drop(one);
        assert!(second.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn max_is_how_many_run_and_the_rest_wait_in_order() {
        for (max, waits) in [(1, [0, 1, 2, 3]), (2, [0, 0, 1, 1])] {
            let places = places(max, 9);
            let mut visits = Vec::new();
            for _ in 0..4 {
                visits.push(visit(&places).await);
            }
            assert_eq!((places.in_flight(), places.queued()), (max, 4 - max));
            for (visit, wait) in visits.into_iter().zip(waits) {
                assert_eq!(visit.await.unwrap(), Ok(wait * S));
            }
            assert_eq!((places.in_flight(), places.queued()), (0, 0));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn queue_is_how_many_wait() {
        for queue in [0, 1, 3] {
            let places = places(1, queue);
            let mut visits = Vec::new();
            for _ in 0..=queue {
                visits.push(visit(&places).await);
            }
            assert_eq!(places.acquire(&long()).await.unwrap_err(), Crowded::QueueFull);
            for visit in visits {
                assert!(visit.await.unwrap().is_ok());
            }
            assert!(places.acquire(&long()).await.is_ok());
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_wait_ends_at_the_deadline_and_leaves_the_line() {
        let places = places(1, 1);
        let _held = places.acquire(&long()).await.unwrap();
        let short = Deadline::new(3 * S, 3 * S);
        assert_eq!(places.acquire(&short).await.unwrap_err(), Crowded::Late(3 * S));
        assert_eq!(places.queued(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_in_line_or_at_work_leaves_its_place() {
        let places = places(1, 1);
        let at_work = visit(&places).await;
        let in_line = visit(&places).await;
        in_line.abort();
        assert!(in_line.await.unwrap_err().is_cancelled());
        assert_eq!((places.in_flight(), places.queued()), (1, 0));
        at_work.abort();
        assert!(at_work.await.unwrap_err().is_cancelled());
        assert_eq!((places.in_flight(), places.queued()), (0, 0));
        assert_eq!(places.acquire(&long()).await.unwrap().waited, Duration::ZERO);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_dropped_when_already_called_up_passes_the_place_on() {
        let places = places(1, 2);
        let held = places.acquire(&long()).await.unwrap();
        let first = visit(&places).await;
        let second = visit(&places).await;
        // The permit is assigned to the first, which does not get to run before it is dropped.
        drop(held);
        first.abort();
        assert!(second.await.unwrap().is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn a_larger_max_lets_waiters_in_at_once() {
        let places = places(1, 9);
        let mut visits = Vec::new();
        for _ in 0..4 {
            visits.push(visit(&places).await);
        }
        places.reconfigure(config(3, 9));
        yield_now().await;
        assert_eq!((places.in_flight(), places.queued()), (3, 1));
        for (visit, wait) in visits.into_iter().zip([0, 0, 0, 1]) {
            assert_eq!(visit.await.unwrap(), Ok(wait * S));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_smaller_max_holds_as_soon_as_running_calls_end() {
        let places = places(3, 9);
        let mut visits = Vec::new();
        for _ in 0..6 {
            visits.push(visit(&places).await);
        }
        places.reconfigure(config(1, 9));
        assert_eq!(places.in_flight(), 3, "nobody is sent away");
        for (visit, wait) in visits.into_iter().zip([0, 0, 0, 1, 2, 3]) {
            assert_eq!(visit.await.unwrap(), Ok(wait * S));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_smaller_max_takes_free_places_at_once() {
        let places = places(3, 0);
        places.reconfigure(config(2, 0));
        let a = places.acquire(&long()).await.unwrap();
        let _b = places.acquire(&long()).await.unwrap();
        assert_eq!(places.acquire(&long()).await.unwrap_err(), Crowded::QueueFull);
        drop(a);
        assert!(places.acquire(&long()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn sizes_that_go_down_and_up_again_add_up() {
        let places = places(4, 0);
        let held: Vec<_> = [
            places.acquire(&long()).await.unwrap(),
            places.acquire(&long()).await.unwrap(),
            places.acquire(&long()).await.unwrap(),
        ]
        .into();
        for max in [1, 3, 2, 5] {
            places.reconfigure(config(max, 0));
        }
        drop(held);
        let mut all = Vec::new();
        while let Ok(permit) = places.acquire(&long()).await {
            all.push(permit);
        }
        assert_eq!(all.len(), 5);
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_in_line_does_not_slip_in_while_sizes_go_down_and_up() {
        let places = places(3, 9);
        let mut visits = Vec::new();
        for _ in 0..5 {
            visits.push(visit(&places).await);
        }
        places.reconfigure(config(1, 9));
        places.reconfigure(config(3, 9));
        yield_now().await;
        assert_eq!((places.in_flight(), places.queued()), (3, 2));
        for (visit, wait) in visits.into_iter().zip([0, 0, 0, 1, 1]) {
            assert_eq!(visit.await.unwrap(), Ok(wait * S));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_queue_holds_for_the_next_to_come() {
        let places = places(1, 0);
        let _held = places.acquire(&long()).await.unwrap();
        places.reconfigure(config(1, 1));
        let _waits = visit(&places).await;
        assert_eq!(places.queued(), 1);
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 4)]
    async fn nothing_is_lost_when_sizes_change_under_load() {
        let places = places(4, 1000);
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let places = places.clone();
            tasks.push(tokio::spawn(async move {
                for _ in 0..200 {
                    let permit = places.acquire(&long()).await.unwrap();
                    yield_now().await;
                    drop(permit);
                }
            }));
        }
        for max in (1..=6).cycle().take(600) {
            places.reconfigure(config(max, 1000));
            yield_now().await;
        }
        for task in tasks {
            task.await.unwrap();
        }
        assert_eq!((places.in_flight(), places.queued()), (0, 0));
        places.reconfigure(config(3, 0));
        let mut all = Vec::new();
        while let Ok(permit) = places.acquire(&long()).await {
            all.push(permit);
        }
        assert_eq!(all.len(), 3);
    }
}
