//! An upstream whose operators let no calls through for a while.
//!
//! It is asked before everything else and moves nothing: no token is taken, no verdict reaches
//! the breaker. Once `until` has passed it lets calls through again, whoever looks first; a timer
//! only sees to it that the log says so also when nobody looks.

use std::fmt;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Weak};
use std::time::{Duration, SystemTime};

use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep_until};

use super::lock;
use crate::config::upkeep::{self, UpkeepState};
use crate::failure::Refusal;

/// How often the wall clock is looked at while a time is waited for: it can be set, or go on
/// while the machine sleeps, and the timer's clock does neither.
const LOOK_EVERY: Duration = Duration::from_secs(60);

/// What an upstream's operators say of it.
#[derive(Default)]
pub struct Upkeep(Arc<Inner>);

#[derive(Default)]
struct Inner {
    // Asked by each call, so that an upstream in use costs no more than this.
    on: AtomicBool,
    term: Mutex<Option<Term>>,
    changed: Notify,
    timer: Mutex<Option<AbortHandle>>,
}

/// A time without calls.
#[derive(Clone, Debug)]
pub struct Term {
    /// Its settings.
    pub settings: upkeep::Upkeep,
    /// When it began.
    pub since: SystemTime,
    // `until` by the clock that cannot be set.
    ends: Option<Instant>,
}

impl Term {
    fn is_over(&self) -> bool {
        self.ends.is_some_and(|ends| Instant::now() >= ends)
            || self.settings.until.is_some_and(|until| SystemTime::now() >= until)
    }

    /// How long it still takes, where that is known.
    pub fn left(&self) -> Option<Duration> {
        let ends = self.ends?;
        Some(ends.saturating_duration_since(Instant::now()))
    }

    fn refusal(&self, upstream: &Arc<str>) -> Refusal {
        let state = match self.settings.state {
            UpkeepState::Draining => "it takes no new calls",
            UpkeepState::Maintenance => "it is under maintenance",
        };
        let text = match &self.settings.message {
            Some(message) => format!("{state}: {message}"),
            None => state.to_owned(),
        };
        let refusal = Refusal::new(self.settings.state.reason(), text)
            .at(upstream)
            .until(self.settings.until);
        match self.left() {
            Some(left) => refusal.retry_after(left),
            None => refusal,
        }
    }
}

impl Upkeep {
    /// Take what the file says now. What is as it was goes on from when it began.
    pub fn set(&self, upstream: &Arc<str>, settings: Option<&upkeep::Upkeep>) {
        let inner = &self.0;
        let mut term = lock(&inner.term);
        if term.as_ref().map(|t| &t.settings) == settings {
            return;
        }
        if let Some(timer) = lock(&inner.timer).take() {
            timer.abort();
        }
        let was = term.take();
        let new = settings.map(|settings| Term {
            settings: settings.clone(),
            // The same state with other words is the same time without calls.
            since: was
                .as_ref()
                .filter(|was| was.settings.state == settings.state)
                .map_or_else(SystemTime::now, |was| was.since),
            ends: settings.until.and_then(|until| {
                let left = until.duration_since(SystemTime::now()).unwrap_or_default();
                Instant::now().checked_add(left)
            }),
        });
        match &new {
            Some(new) if new.is_over() => {
                tracing::info!(
                    upstream = &**upstream,
                    state = new.settings.state.as_str(),
                    "{upstream} takes calls: the time until which it was not to has passed"
                );
            }
            Some(new) => {
                tracing::warn!(
                    upstream = &**upstream,
                    state = new.settings.state.as_str(),
                    until = new.settings.until.map(told),
                    why = new.settings.message.as_deref(),
                    "{upstream} takes no new calls"
                );
                if new.ends.is_some() {
                    let timer = tokio::spawn(ended(Arc::downgrade(inner), upstream.clone()));
                    *lock(&inner.timer) = Some(timer.abort_handle());
                }
            }
            None if inner.on.load(Ordering::Relaxed) => {
                tracing::info!(upstream = &**upstream, "{upstream} takes calls again");
            }
            None => {}
        }
        let on = new.as_ref().is_some_and(|new| !new.is_over());
        *term = new;
        inner.on.store(on, Ordering::Release);
        drop(term);
        inner.changed.notify_waiters();
    }

    /// The time without calls, if it is now.
    pub fn now(&self, upstream: &Arc<str>) -> Option<Term> {
        if !self.0.on.load(Ordering::Acquire) {
            return None;
        }
        self.0.look(upstream)
    }

    /// Why a call is refused now, if it is. One that `goes_on` began before: draining lets it end.
    pub fn refusal(&self, upstream: &Arc<str>, goes_on: impl FnOnce() -> bool) -> Option<Refusal> {
        let term = self.now(upstream)?;
        (term.settings.state == UpkeepState::Maintenance || !goes_on())
            .then(|| term.refusal(upstream))
    }

    /// Why a call that was let in must not leave, if it must not.
    pub(super) fn halted(&self, upstream: &Arc<str>) -> Option<Refusal> {
        self.refusal(upstream, || true)
    }

    /// Resolves when calls that were let in must not leave any more.
    pub(super) async fn halt(&self, upstream: &Arc<str>) -> Refusal {
        loop {
            let mut changed = std::pin::pin!(self.0.changed.notified());
            // From here on no change is missed.
            changed.as_mut().enable();
            if let Some(refusal) = self.halted(upstream) {
                return refusal;
            }
            changed.await;
        }
    }
}

impl Inner {
    // What is over is noted here, by whoever comes first, once.
    fn look(&self, upstream: &Arc<str>) -> Option<Term> {
        let term = lock(&self.term);
        let now = term.as_ref()?;
        if !now.is_over() {
            return Some(now.clone());
        }
        if self.on.swap(false, Ordering::AcqRel) {
            tracing::info!(
                upstream = &**upstream,
                state = now.settings.state.as_str(),
                until = now.settings.until.map(told),
                "{upstream} takes calls again: the time until which it was not to has passed"
            );
        }
        None
    }
}

async fn ended(inner: Weak<Inner>, upstream: Arc<str>) {
    loop {
        let Some(term) = inner.upgrade().and_then(|inner| inner.look(&upstream)) else { return };
        let soon = Instant::now() + LOOK_EVERY;
        sleep_until(term.ends.map_or(soon, |ends| ends.min(soon))).await;
    }
}

fn told(at: SystemTime) -> String {
    humantime::format_rfc3339_seconds(at).to_string()
}

impl Drop for Inner {
    fn drop(&mut self) {
        if let Some(timer) = lock(&self.timer).take() {
            timer.abort();
        }
    }
}

impl fmt::Debug for Upkeep {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Upkeep").field(&lock(&self.0.term)).finish()
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::time::{advance, sleep};

    const HOUR: Duration = Duration::from_secs(3600);

    fn bank() -> Arc<str> {
        "bank".into()
    }

    fn settings(state: UpkeepState, left: Option<Duration>) -> upkeep::Upkeep {
        let until = left.map(|left| SystemTime::now() + left);
        upkeep::Upkeep { state, message: Some("it moves".into()), until }
    }

    #[tokio::test(start_paused = true)]
    async fn what_began_before_ends_while_draining_and_nothing_leaves_in_maintenance() {
        for (state, goes_on, reason) in [
            (UpkeepState::Draining, true, None),
            (UpkeepState::Draining, false, Some("upstream_draining")),
            (UpkeepState::Maintenance, true, Some("maintenance")),
            (UpkeepState::Maintenance, false, Some("maintenance")),
        ] {
            let upkeep = Upkeep::default();
            upkeep.set(&bank(), Some(&settings(state, None)));
            let refusal = upkeep.refusal(&bank(), || goes_on);
            assert_eq!(refusal.as_ref().map(|r| r.reason.as_str()), reason);
            assert!(refusal.is_none_or(|r| r.text.ends_with(": it moves") && r.until.is_none()));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn it_ends_by_itself_at_its_time() {
        let upkeep = Upkeep::default();
        upkeep.set(&bank(), Some(&settings(UpkeepState::Maintenance, Some(HOUR))));
        let told = upkeep.refusal(&bank(), || false).unwrap();
        assert!(told.until.is_some());
        let left = told.retry_after.unwrap();
        assert!(left <= HOUR && left > HOUR - Duration::from_secs(5), "{left:?}");
        advance(HOUR - Duration::from_secs(5)).await;
        assert!(upkeep.refusal(&bank(), || false).is_some());
        advance(Duration::from_secs(6)).await;
        assert!(upkeep.refusal(&bank(), || false).is_none());
        // The file still says it: a reload of the same does not begin it anew.
        let term = lock(&upkeep.0.term).clone().unwrap();
        upkeep.set(&bank(), Some(&term.settings));
        assert!(upkeep.now(&bank()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_notes_the_end_when_nobody_looks() {
        let upkeep = Upkeep::default();
        upkeep.set(&bank(), Some(&settings(UpkeepState::Draining, Some(HOUR))));
        assert!(upkeep.0.on.load(Ordering::Relaxed));
        sleep(HOUR + LOOK_EVERY).await;
        assert!(!upkeep.0.on.load(Ordering::Relaxed));
    }

    #[tokio::test(start_paused = true)]
    async fn other_words_do_not_begin_it_anew_and_another_state_does() {
        let upkeep = Upkeep::default();
        upkeep.set(&bank(), Some(&settings(UpkeepState::Draining, Some(HOUR))));
        let began = upkeep.now(&bank()).unwrap().since;
        upkeep.set(&bank(), Some(&settings(UpkeepState::Draining, None)));
        assert_eq!(upkeep.now(&bank()).unwrap().since, began);
        // The first time is forgotten with its words.
        advance(2 * HOUR).await;
        assert!(upkeep.now(&bank()).is_some());
        upkeep.set(&bank(), Some(&settings(UpkeepState::Maintenance, None)));
        assert!(upkeep.now(&bank()).unwrap().since > began);
        upkeep.set(&bank(), None);
        assert!(upkeep.now(&bank()).is_none());
    }

    #[tokio::test(start_paused = true)]
    async fn a_time_that_has_passed_never_begins() {
        let upkeep = Upkeep::default();
        let mut past = settings(UpkeepState::Maintenance, None);
        past.until = Some(SystemTime::now() - HOUR);
        upkeep.set(&bank(), Some(&past));
        assert!(upkeep.now(&bank()).is_none());
    }
}
