//! Whether a failed attempt is followed by another, and after what pause.
//!
//! Two keys open it, and no setting of retries does: the call does nothing twice, since it changes
//! nothing or carries an idempotency key, so that it may be repeated whatever happened; or the fault
//! proves that the request never left us. Any other write that may have arrived is never repeated.
//!
//! Retries have a budget, not only a count: three attempts for each call are three times the
//! load just when the upstream can bear it least. Over the last ten seconds retries may be a
//! share of the calls that were sent; a few are always allowed, because a share of next to no
//! calls is nothing. Pauses double and are drawn at random from zero up ("full jitter"), so that
//! calls that failed together do not come back together.

use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;
use super::window::Window;
use crate::config::RetryConfig;
use crate::failure::{Delivery, Fault, Reason};

/// Over which time the budget is kept.
const BUDGET_WINDOW: Duration = Duration::from_secs(10);

/// Retries in [`BUDGET_WINDOW`] that need no calls to justify them, unless the budget is zero:
/// enough for one call to an idle upstream to use its attempts, too few to hurt anybody.
const RESERVE: u64 = 3;

/// A number in [0, 1) for the jitter. A plain function, so that tests say what it is.
pub(super) type Share = fn() -> f64;

/// The retries of one upstream.
#[derive(Debug)]
pub(super) struct Retry {
    /// A lock and not atomics, because a retry is allowed by comparing two counts and adding to
    /// one of them. Held for a few additions.
    inner: Mutex<Inner>,
    share: Share,
    retries: AtomicU64,
    denied: AtomicU64,
    hedges: AtomicU64,
    lost: AtomicU64,
    won: AtomicU64,
}

#[derive(Debug)]
struct Inner {
    config: RetryConfig,
    /// Calls, retries with the second attempts beside a first.
    window: Window<2>,
}

impl Retry {
    pub(super) fn new(config: RetryConfig, share: Share) -> Retry {
        let window = Window::new(BUDGET_WINDOW, Instant::now());
        Retry {
            inner: Mutex::new(Inner { config, window }),
            share,
            retries: AtomicU64::new(0),
            denied: AtomicU64::new(0),
            hedges: AtomicU64::new(0),
            won: AtomicU64::new(0),
            lost: AtomicU64::new(0),
        }
    }

    /// Take new settings; the budget's counts stay.
    pub(super) fn reconfigure(&self, config: RetryConfig) {
        lock(&self.inner).config = config;
    }

    /// A call is sent for the first time.
    pub(super) fn sent(&self, now: Instant) {
        lock(&self.inner).window.add(now, [1, 0]);
    }

    /// The pause before the next attempt, if rule and count allow one after `attempts` so far.
    /// Never shorter than the pause that the upstream asked for, nor than `at_least`.
    pub(super) fn pause(
        &self,
        fault: &Fault,
        repeatable: bool,
        attempts: u32,
        at_least: Duration,
    ) -> Option<Duration> {
        let config = lock(&self.inner).config;
        (may_repeat(fault, repeatable) && attempts <= config.attempts).then(|| {
            let most = ceiling(&config, attempts);
            let drawn = most.mul_f64((self.share)().clamp(0.0, 1.0));
            drawn.max(at_least).max(fault.retry_after.unwrap_or_default())
        })
    }

    /// Take a retry from the budget. One that is then cancelled during its pause is not put
    /// back; the window forgets it soon.
    pub(super) fn draw(&self) -> bool {
        self.draw_for(&self.retries)
    }

    /// Take a second attempt beside the first from the same budget.
    pub(super) fn draw_beside(&self) -> bool {
        self.draw_for(&self.hedges)
    }

    fn draw_for(&self, count: &AtomicU64) -> bool {
        let mut inner = lock(&self.inner);
        let now = Instant::now();
        let [calls, retries] = inner.window.sums(now);
        let budget = inner.config.budget;
        let reserve = if budget > 0.0 { RESERVE } else { 0 };
        let allowed = retries < reserve.max((budget * calls as f64) as u64);
        if allowed {
            inner.window.add(now, [0, 1]);
            count.fetch_add(1, Ordering::Relaxed);
        } else {
            self.denied.fetch_add(1, Ordering::Relaxed);
        }
        allowed
    }

    /// Retries so far.
    pub(super) fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// A call with a second attempt ended; whether that was the one that answered.
    pub(super) fn hedged(&self, won: bool) {
        let count = if won { &self.won } else { &self.lost };
        count.fetch_add(1, Ordering::Relaxed);
    }

    /// Second attempts so far.
    pub(super) fn hedges(&self) -> u64 {
        self.hedges.load(Ordering::Relaxed)
    }

    /// Of these, those that answered first.
    pub(super) fn hedges_won(&self) -> u64 {
        self.won.load(Ordering::Relaxed)
    }

    /// Those whose call ended otherwise.
    pub(super) fn hedges_lost(&self) -> u64 {
        self.lost.load(Ordering::Relaxed)
    }

    /// What only the budget forbade so far.
    pub(super) fn denied(&self) -> u64 {
        self.denied.load(Ordering::Relaxed)
    }
}

/// The operating system's randomness; without it, the longest pause.
pub(super) fn random_share() -> f64 {
    // 32 of the bits: all of them fit into the number.
    getrandom::u32().map_or(1.0, |bits| f64::from(bits) / 2f64.powi(32))
}

/// Whether a repetition can do no harm and may do good.
fn may_repeat(fault: &Fault, repeatable: bool) -> bool {
    let harmless = match fault.delivery {
        Delivery::NotSent => true,
        Delivery::Unknown | Delivery::Refused => repeatable,
    };
    harmless && may_help(fault.reason)
}

/// Whether another attempt could end otherwise. It could not where the same credential or the
/// same answer would meet the same wall, nor where there is nobody left to ask or to tell.
fn may_help(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::CredentialRefused
            | Reason::TooLarge
            | Reason::CapabilityMissing
            | Reason::HeaderMismatch
            | Reason::Cancelled
            | Reason::Retired
            | Reason::Draining
            | Reason::UpstreamDraining
            | Reason::Maintenance
            | Reason::DeadlineExceeded
    )
}

/// The longest pause after so many attempts.
fn ceiling(config: &RetryConfig, attempts: u32) -> Duration {
    let doubled = 1u32.checked_shl(attempts.saturating_sub(1)).unwrap_or(u32::MAX);
    config.backoff.saturating_mul(doubled).min(config.backoff_max)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests {
    use super::*;
    use tokio::time::advance;

    const S: Duration = Duration::from_secs(1);

    fn config() -> RetryConfig {
        RetryConfig { attempts: 9, backoff: S, backoff_max: 100 * S, budget: 1.0 }
    }

    fn fault(delivery: Delivery) -> Fault {
        Fault::new(Reason::ConnectionLost, delivery, "the connection ended")
    }

    fn pauses(config: RetryConfig, share: Share) -> Vec<Option<Duration>> {
        let retry = Retry::new(config, share);
        (1..6).map(|n| retry.pause(&fault(Delivery::NotSent), false, n, Duration::ZERO)).collect()
    }

    #[test]
    fn what_never_left_may_be_repeated_and_the_rest_only_if_it_changes_nothing() {
        for (delivery, repeatable, may) in [
            (Delivery::NotSent, false, true),
            (Delivery::NotSent, true, true),
            (Delivery::Unknown, false, false),
            (Delivery::Unknown, true, true),
            (Delivery::Refused, false, false),
            (Delivery::Refused, true, true),
        ] {
            assert_eq!(may_repeat(&fault(delivery), repeatable), may, "{delivery:?} {repeatable}");
        }
    }

    #[test]
    fn what_another_attempt_cannot_mend_is_not_repeated() {
        let hopeless: Vec<_> = Reason::ALL.into_iter().filter(|r| !may_help(*r)).collect();
        insta::assert_snapshot!(
            hopeless.iter().map(|r| r.as_str()).collect::<Vec<_>>().join(" "),
            @"retired deadline_exceeded draining upstream_draining maintenance too_large credential_refused cancelled capability_missing header_mismatch"
        );
        let fault = Fault::new(Reason::CredentialRefused, Delivery::Refused, "401");
        assert!(!may_repeat(&fault, true));
    }

    #[test]
    fn backoff_doubles_up_to_backoff_max() {
        let longest = pauses(RetryConfig { backoff_max: 5 * S, ..config() }, || 1.0);
        assert_eq!(longest, [S, 2 * S, 4 * S, 5 * S, 5 * S].map(Some));
        let slower = pauses(RetryConfig { backoff: 3 * S, ..config() }, || 1.0);
        assert_eq!(slower[..3], [3 * S, 6 * S, 12 * S].map(Some));
    }

    #[test]
    fn the_jitter_is_full() {
        assert_eq!(pauses(config(), || 0.0)[3], Some(Duration::ZERO));
        assert_eq!(pauses(config(), || 0.25)[3], Some(2 * S));
    }

    #[test]
    fn attempts_is_how_many_follow_the_first() {
        for attempts in 0..5 {
            let allowed = pauses(RetryConfig { attempts, ..config() }, || 1.0);
            assert_eq!(allowed.iter().flatten().count() as u32, attempts);
        }
    }

    #[test]
    fn many_attempts_do_not_overflow() {
        let config = RetryConfig { backoff: Duration::MAX, attempts: u32::MAX, ..config() };
        assert_eq!(ceiling(&config, u32::MAX), config.backoff_max);
    }

    #[test]
    fn a_pause_that_the_upstream_asked_for_is_the_least() {
        let retry = Retry::new(config(), || 0.0);
        let asked = fault(Delivery::NotSent).retry_after(Some(7 * S));
        assert_eq!(retry.pause(&asked, false, 1, Duration::ZERO), Some(7 * S));
        assert_eq!(retry.pause(&asked, false, 1, 8 * S), Some(8 * S));
    }

    #[tokio::test(start_paused = true)]
    async fn the_budget_is_a_share_of_the_calls_of_the_last_ten_seconds() {
        for (budget, calls, allowed) in
            [(0.2, 100, 20), (0.5, 100, 50), (0.5, 2, RESERVE), (1.0, 0, RESERVE), (0.0, 100, 0)]
        {
            let retry = Retry::new(RetryConfig { budget, ..config() }, || 1.0);
            for _ in 0..calls {
                retry.sent(Instant::now());
            }
            let drawn = (0..200).filter(|_| retry.draw()).count() as u64;
            assert_eq!(drawn, allowed, "{budget} of {calls}");
            assert_eq!((retry.retries(), retry.denied()), (allowed, 200 - allowed));
            advance(11 * S).await;
            assert_eq!(retry.draw(), budget > 0.0, "only the reserve is left");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn new_settings_hold_and_the_budget_keeps_its_counts() {
        let retry = Retry::new(RetryConfig { budget: 0.0, ..config() }, || 1.0);
        retry.sent(Instant::now());
        assert!(!retry.draw());
        retry.reconfigure(RetryConfig { budget: 1.0, attempts: 0, ..config() });
        assert!(retry.draw());
        assert_eq!(retry.pause(&fault(Delivery::NotSent), true, 1, Duration::ZERO), None);
    }

    #[test]
    fn the_systems_randomness_is_a_share() {
        let drawn: Vec<_> = (0..100).map(|_| random_share()).collect();
        assert!(drawn.iter().all(|s| (0.0..1.0).contains(s)));
        assert!(drawn.iter().any(|s| *s < 0.5) && drawn.iter().any(|s| *s >= 0.5));
    }
}
