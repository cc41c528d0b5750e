//! When a child that nobody uses is stopped (`idle_stop`), and what starts it again.
//!
//! ```text
//!  ready ── quiet for idle_stop ──► idle ── a call, a subscription, the setting taken out ──► starting
//! ```
//!
//! Its lists stay as they are and confirmed: a program that does not run changes nothing. Nobody
//! asks it for them either, so a refresh starts nothing.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a child is taken for used after it made a task. It works at that unasked, and what it
/// says meanwhile may be nothing; who asks for the result sooner or later is in a call again.
const TASK_TIME: Duration = Duration::from_secs(3600);
/// Looks per `idle_stop`: a child is stopped a tenth of it late at most.
const LOOKS: u32 = 10;
/// Least and longest pause between two looks.
const LOOK_EVERY: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(30));

/// What is known of the use of one upstream. Written to only where `idle_stop` is set.
#[derive(Default)]
pub struct Uses {
    count: AtomicU64,
    task: Mutex<Option<Instant>>,
    woken: Notify,
}

impl Uses {
    /// It is used.
    pub fn add(&self) {
        self.count.fetch_add(1, Ordering::Relaxed);
    }

    /// It made a task.
    pub fn task(&self) {
        *self.task.lock().expect("no panic while held") = Some(Instant::now());
    }

    /// Somebody waits for it, or its settings are others.
    pub fn wake(&self) {
        self.woken.notify_one();
    }

    /// Wait until [`Uses::wake`] was called, since the last time too.
    pub async fn woken(&self) {
        self.woken.notified().await;
    }

    fn works_at_a_task(&self) -> bool {
        let task = *self.task.lock().expect("no panic while held");
        task.is_some_and(|at| at.elapsed() < TASK_TIME)
    }
}

/// How long nobody has used it.
pub struct Quiet {
    since: Instant,
    count: u64,
}

impl Quiet {
    /// Since now.
    pub fn new(uses: &Uses) -> Quiet {
        Quiet { since: Instant::now(), count: uses.count.load(Ordering::Relaxed) }
    }

    /// Whether it has lasted for `limit`. `busy`: it is in use at this moment.
    pub fn has_lasted(&mut self, uses: &Uses, busy: bool, limit: Duration) -> bool {
        let count = uses.count.load(Ordering::Relaxed);
        if busy || count != self.count || uses.works_at_a_task() {
            *self = Quiet { since: Instant::now(), count };
        }
        self.since.elapsed() >= limit
    }
}

/// How long to wait before the next look.
pub fn pause(limit: Duration) -> Duration {
    (limit / LOOKS).clamp(LOOK_EVERY.0, LOOK_EVERY.1)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIMIT: Duration = Duration::from_secs(600);

    /// Looks as often as it should until the quiet has lasted; how long that took.
    async fn lasted(quiet: &mut Quiet, uses: &Uses) -> Duration {
        let began = Instant::now();
        while !quiet.has_lasted(uses, false, LIMIT) {
            tokio::time::advance(pause(LIMIT)).await;
        }
        began.elapsed()
    }

    #[tokio::test(start_paused = true)]
    async fn it_begins_anew_with_each_use() {
        let uses = Uses::default();
        let mut quiet = Quiet::new(&uses);
        assert_eq!(lasted(&mut quiet, &uses).await, LIMIT);
        let mut quiet = Quiet::new(&uses);
        tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
        uses.add();
        assert!(!quiet.has_lasted(&uses, false, LIMIT));
        tokio::time::advance(LIMIT - Duration::from_secs(1)).await;
        assert!(!quiet.has_lasted(&uses, true, LIMIT), "in use");
        let more = lasted(&mut quiet, &uses).await;
        assert!(more >= LIMIT && more <= LIMIT + pause(LIMIT), "{more:?}");
        // A shorter limit holds at once.
        let mut quiet = Quiet::new(&uses);
        tokio::time::advance(Duration::from_secs(5)).await;
        assert!(quiet.has_lasted(&uses, false, Duration::from_secs(5)));
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_is_given_its_time() {
        let uses = Uses::default();
        let mut quiet = Quiet::new(&uses);
        uses.task();
        let took = lasted(&mut quiet, &uses).await;
        assert!(took >= TASK_TIME + LIMIT - pause(LIMIT), "{took:?}");
        assert!(took <= TASK_TIME + LIMIT + pause(LIMIT), "{took:?}");
    }

    #[test]
    fn looks_are_neither_rare_nor_many() {
        let s = Duration::from_secs;
        assert_eq!(
            [s(10), s(3600), Duration::from_nanos(1)].map(pause),
            [s(1), LOOK_EVERY.1, LOOK_EVERY.0]
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_wake_is_not_lost() {
        let uses = Uses::default();
        uses.wake();
        assert!(tokio::time::timeout(LIMIT, uses.woken()).await.is_ok());
        assert!(tokio::time::timeout(LIMIT, uses.woken()).await.is_err(), "and heard once");
    }
}
