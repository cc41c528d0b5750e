//! The order of the four, and each rule and key where it shows to a caller.

use super::*;

use std::future::{pending, ready};
use std::num::NonZeroU32;
use std::sync::atomic::AtomicU32;

use tokio::task::{JoinHandle, yield_now};
use tokio::time::{Instant, advance, sleep};

use crate::config::{BreakerConfig, ConcurrencyConfig, RateConfig, RetryConfig, ThrottleConfig};

pub(super) const S: Duration = Duration::from_secs(1);

pub(super) const READ: Ask<'static> =
    Ask { repeatable: true, write: false, keyed: None, tool: None, hedge: None };
pub(super) const WRITE: Ask<'static> =
    Ask { repeatable: false, write: true, keyed: None, tool: None, hedge: None };

pub(super) fn n(n: u32) -> NonZeroU32 {
    NonZeroU32::new(n).unwrap()
}

/// Wide open; each test narrows what it is about.
fn open() -> GuardConfig {
    GuardConfig {
        concurrency: ConcurrencyConfig { max: n(100), queue: 100 },
        rate: None,
        breaker: BreakerConfig {
            enabled: true,
            window: 30 * S,
            min_calls: NonZeroU32::MAX,
            failure_share: 1.0,
            slow_call: 10 * S,
            slow_share: 1.0,
            consecutive: NonZeroU32::MAX,
            open_for: 30 * S,
            probes: n(1),
        },
        retry: RetryConfig { attempts: 0, backoff: S, backoff_max: 8 * S, budget: 1.0 },
        throttle: ThrottleConfig {
            texts: vec!["rate limit".into()],
            pause: 5 * S,
            pause_max: 60 * S,
        },
    }
}

fn with(change: impl FnOnce(&mut GuardConfig)) -> GuardConfig {
    let mut config = open();
    change(&mut config);
    config
}

/// A guard that draws the longest pauses.
pub(super) fn guard(change: impl FnOnce(&mut GuardConfig)) -> Arc<Guard> {
    Arc::new(Guard::with_jitter("stripe".into(), &with(change), || 1.0))
}

pub(super) fn rate(per_second: f64, burst: u32, max_wait: Duration) -> RateConfig {
    RateConfig { per_second, burst: n(burst), max_wait }
}

pub(super) fn soon() -> Deadline {
    Deadline::new(60 * S, 60 * S)
}

pub(super) fn lost(delivery: Delivery) -> Fault {
    Fault::new(Reason::ConnectionLost, delivery, "the connection ended")
}

pub(super) fn throttled(after: Option<Duration>) -> Fault {
    Fault::new(Reason::Throttled, Delivery::Refused, "status 429").retry_after(after)
}

/// Runs a call whose attempts end as listed, the last one for all further ones.
async fn script(
    guard: &Guard,
    ask: &Ask<'_>,
    script: &[Result<(), Fault>],
) -> (Result<(), Failure>, Spent) {
    let attempt = |i: u32| {
        let end = script[(i as usize).min(script.len()) - 1].clone();
        ready(end.map(Done::fine))
    };
    guard.run(ask, &soon(), attempt).await
}

async fn fine(guard: &Guard) -> (Result<(), Failure>, Spent) {
    script(guard, &READ, &[Ok(())]).await
}

async fn fail(guard: &Guard) -> Failure {
    script(guard, &WRITE, &[Err(lost(Delivery::Unknown))]).await.0.unwrap_err()
}

/// Starts a call that takes so long.
async fn busy(guard: &Arc<Guard>, time: Duration) -> JoinHandle<(Result<(), Failure>, Spent)> {
    let guard = guard.clone();
    let task = tokio::spawn(async move {
        guard
            .run(&WRITE, &soon(), |_| async {
                sleep(time).await;
                Ok(Done::fine(()))
            })
            .await
    });
    yield_now().await;
    task
}

async fn cancel<T: std::fmt::Debug>(task: JoinHandle<T>) {
    task.abort();
    assert!(task.await.unwrap_err().is_cancelled());
}

fn refused(guard: &Guard, reason: Reason) -> u64 {
    guard.snapshot().refused.iter().find(|(r, _)| *r == reason).unwrap().1
}

fn assert_refused(outcome: (Result<(), Failure>, Spent), reason: Reason) -> Failure {
    let (result, spent) = outcome;
    let failure = result.unwrap_err();
    assert_eq!(failure.reason, reason);
    assert_eq!(failure.upstream.as_deref(), Some("stripe"));
    assert!(!failure.fault && !failure.outcome_unknown);
    assert_eq!(spent.attempts, 0, "the upstream never saw it");
    failure
}

// --- the attempt and its deadline ------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn an_answer_is_handed_through() {
    let guard = guard(|_| {});
    let (result, spent) = guard.run(&READ, &soon(), |n| ready(Ok(Done::fine(n)))).await;
    assert_eq!(result.unwrap(), 1);
    assert_eq!(spent, Spent { attempts: 1, ..Spent::default() });
}

#[tokio::test(start_paused = true)]
async fn an_attempt_that_hangs_is_dropped_and_its_outcome_is_unknown() {
    for (ask, unknown) in [(WRITE, true), (READ, false)] {
        let guard = guard(|c| c.retry.attempts = 3);
        let witness = Arc::new(());
        let (result, spent) = guard
            .run(&ask, &soon(), |_| async {
                let _held = witness.clone();
                pending::<Result<Done<()>, Fault>>().await
            })
            .await;
        let failure = result.unwrap_err();
        assert_eq!(failure.reason, Reason::DeadlineExceeded);
        assert_eq!((failure.fault, failure.outcome_unknown), (true, unknown));
        assert_eq!(failure.upstream.as_deref(), Some("stripe"));
        assert_eq!(spent.attempts, 1);
        assert_eq!(Arc::strong_count(&witness), 1);
        assert_eq!(guard.snapshot().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn progress_keeps_an_attempt_alive() {
    let guard = guard(|_| {});
    let deadline = Deadline::new(2 * S, 10 * S);
    let (result, _) = guard
        .run(&WRITE, &deadline, |_| async {
            for _ in 0..5 {
                sleep(S).await;
                deadline.extend();
            }
            Ok(Done::fine(()))
        })
        .await;
    assert!(result.is_ok());
}

#[tokio::test(start_paused = true)]
async fn nothing_is_sent_after_the_deadline() {
    let guard = guard(|_| {});
    let deadline = Deadline::new(S, S);
    advance(S).await;
    let outcome = guard.run(&WRITE, &deadline, |_| ready(Ok(Done::fine(())))).await;
    assert_refused(outcome, Reason::DeadlineExceeded);
    assert_eq!(refused(&guard, Reason::DeadlineExceeded), 1);
}

#[tokio::test(start_paused = true)]
async fn a_call_can_run_in_a_task_of_its_own_and_borrow_what_it_needs() {
    struct Link(AtomicU32);
    impl Link {
        async fn send(&self, frame: &str, attempt: u32) -> Result<Done<usize>, Fault> {
            sleep(S).await;
            self.0.fetch_add(attempt, Ordering::Relaxed);
            Ok(Done::fine(frame.len()))
        }
    }
    let (guard, link) = (guard(|_| {}), Arc::new(Link(AtomicU32::new(0))));
    let tool = Arc::new(Limiter::new(Some(&rate(1.0, 1, S))));
    let task = {
        let link = link.clone();
        tokio::spawn(async move {
            let frame = String::from("{}");
            let ask = Ask { tool: Some(&tool), ..READ };
            guard.run(&ask, &soon(), |n| link.send(&frame, n)).await.0
        })
    };
    assert_eq!(task.await.unwrap().unwrap(), 2);
    assert_eq!(link.0.load(Ordering::Relaxed), 1);
}

// --- concurrency -----------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn concurrency_max_is_how_many_run_and_queue_how_many_wait() {
    for (max, queue) in [(1, 1), (2, 1), (1, 3)] {
        let guard = guard(|c| c.concurrency = ConcurrencyConfig { max: n(max), queue });
        let mut tasks = Vec::new();
        for _ in 0..max + queue {
            tasks.push(busy(&guard, S).await);
        }
        let s = guard.snapshot();
        assert_eq!((s.in_flight, s.queued), (max, queue));
        assert_refused(fine(&guard).await, Reason::QueueFull);
        assert_eq!(refused(&guard, Reason::QueueFull), 1);
        for (i, task) in tasks.into_iter().enumerate() {
            let (result, spent) = task.await.unwrap();
            assert!(result.is_ok());
            assert_eq!(spent.queued, (i as u32 / max) * S);
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_stands_in_line_until_the_deadline_was_never_sent() {
    let guard = guard(|c| c.concurrency = ConcurrencyConfig { max: n(1), queue: 1 });
    let _busy = busy(&guard, 50 * S).await;
    let deadline = Deadline::new(3 * S, 3 * S);
    let outcome = guard.run(&WRITE, &deadline, |_| ready(Ok(Done::fine(())))).await;
    assert_eq!(outcome.1.queued, 3 * S);
    assert_refused(outcome, Reason::DeadlineExceeded);
    assert_eq!(guard.snapshot().queued, 0);
}

#[tokio::test(start_paused = true)]
async fn the_place_is_kept_over_retries() {
    let guard = guard(|c| {
        c.concurrency = ConcurrencyConfig { max: n(1), queue: 0 };
        c.retry.attempts = 1;
    });
    let first = {
        let guard = guard.clone();
        let ends = [Err(lost(Delivery::NotSent)), Ok(())];
        tokio::spawn(async move { script(&guard, &WRITE, &ends).await })
    };
    yield_now().await;
    advance(S / 2).await;
    assert_refused(fine(&guard).await, Reason::QueueFull);
    assert!(first.await.unwrap().0.is_ok());
}

// --- limiter ---------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn rate_burst_and_max_wait_decide_who_waits_and_who_is_refused() {
    let guard = guard(|c| c.rate = Some(rate(2.0, 2, S)));
    let start = Instant::now();
    let waited: Vec<_> = [fine(&guard).await, fine(&guard).await, fine(&guard).await]
        .map(|(result, spent)| result.map(|()| spent.limited).unwrap())
        .into();
    assert_eq!(waited, [Duration::ZERO, Duration::ZERO, S / 2]);
    assert_eq!(start.elapsed(), S / 2);
    let s = guard.snapshot();
    assert_eq!((s.limiter_waits, s.limiter_waited, s.tokens), (1, S / 2, Some(0.0)));

    guard.reconfigure(&with(|c| c.rate = Some(rate(0.1, 2, S))));
    let failure = assert_refused(fine(&guard).await, Reason::RateLimited);
    assert_eq!(failure.retry_after, Some(10 * S));
    assert_eq!(refused(&guard, Reason::RateLimited), 1);
    assert_eq!(guard.snapshot().in_flight, 0);

    guard.reconfigure(&with(|c| c.rate = Some(rate(0.1, 2, 20 * S))));
    assert_eq!(fine(&guard).await.1.limited, 10 * S);
}

#[tokio::test(start_paused = true)]
async fn a_wait_for_tokens_does_not_pass_the_deadline() {
    let guard = guard(|c| c.rate = Some(rate(0.1, 1, 60 * S)));
    assert!(fine(&guard).await.0.is_ok());
    let (start, deadline) = (Instant::now(), Deadline::new(5 * S, 5 * S));
    let outcome = guard.run(&READ, &deadline, |_| ready(Ok(Done::fine(())))).await;
    assert_refused(outcome, Reason::RateLimited);
    assert_eq!(start.elapsed(), Duration::ZERO);
}

#[tokio::test(start_paused = true)]
async fn a_tool_has_a_bucket_of_its_own_besides() {
    let guard = guard(|c| c.rate = Some(rate(1.0, 10, S)));
    let tool = Limiter::new(Some(&rate(0.1, 1, S)));
    let ask = Ask { tool: Some(&tool), ..READ };
    assert!(script(&guard, &ask, &[Ok(())]).await.0.is_ok());
    let failure = assert_refused(script(&guard, &ask, &[Ok(())]).await, Reason::RateLimited);
    assert_eq!(failure.retry_after, Some(10 * S));
    assert_eq!(guard.snapshot().tokens, Some(9.0), "nothing was taken from the others");
    assert!(fine(&guard).await.0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_tool_gets_its_token_back_when_the_upstreams_bucket_is_empty() {
    let guard = guard(|c| c.rate = Some(rate(0.1, 1, S)));
    assert!(fine(&guard).await.0.is_ok());
    let tool = Limiter::new(Some(&rate(0.1, 1, S)));
    let ask = Ask { tool: Some(&tool), ..READ };
    assert_refused(script(&guard, &ask, &[Ok(())]).await, Reason::RateLimited);
    assert_eq!(tool.tokens(), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn each_attempt_takes_a_token() {
    let guard = guard(|c| {
        c.rate = Some(rate(0.001, 10, S));
        c.retry.attempts = 2;
    });
    let ends = [Err(lost(Delivery::NotSent)), Err(lost(Delivery::NotSent)), Ok(())];
    assert_eq!(script(&guard, &WRITE, &ends).await.1.attempts, 3);
    assert_eq!(guard.snapshot().tokens.map(f64::round), Some(7.0));
}

// --- throttling ------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_throttled_call_pauses_the_bucket_and_does_not_move_the_breaker() {
    // (what the upstream asks for, throttle.pause, throttle.pause_max, the pause)
    for (asked, pause, pause_max, kept) in [
        (Some(7 * S), 5 * S, 60 * S, 7 * S),
        (None, 5 * S, 60 * S, 5 * S),
        (None, 9 * S, 60 * S, 9 * S),
        (Some(3600 * S), 5 * S, 60 * S, 60 * S),
        (Some(3600 * S), 5 * S, 20 * S, 20 * S),
    ] {
        let guard = guard(|c| {
            c.breaker.consecutive = n(1);
            (c.throttle.pause, c.throttle.pause_max) = (pause, pause_max);
        });
        let failure = script(&guard, &WRITE, &[Err(throttled(asked))]).await.0.unwrap_err();
        assert_eq!(failure.reason, Reason::Throttled);
        assert_eq!(failure.retry_after, Some(asked.unwrap_or(kept)));
        assert!(failure.fault && !failure.outcome_unknown);
        let s = guard.snapshot();
        assert_eq!((s.breaker.state, s.paused), (State::Closed, Some(kept)));
        let failure = assert_refused(fine(&guard).await, Reason::Throttled);
        assert_eq!(failure.retry_after, Some(kept));
        assert_eq!(refused(&guard, Reason::Throttled), 1);
        advance(kept).await;
        assert!(fine(&guard).await.0.is_ok());
    }
}

#[tokio::test(start_paused = true)]
async fn a_text_that_means_throttling_is_handed_on_and_pauses_the_bucket() {
    let guard = guard(|c| c.breaker.consecutive = n(1));
    assert!(guard.means_throttling("Account Rate Limited: over the rate limit"));
    guard.reconfigure(&with(|c| c.throttle.texts = vec!["slow down".into()]));
    assert!(!guard.means_throttling("over the rate limit"));
    for (named, kept) in [(Some(3 * S), 3 * S), (None, 5 * S)] {
        let (result, _) = guard
            .run(&WRITE, &soon(), |_| async {
                Ok(Done { value: "slow down", signal: Signal::Throttled(named) })
            })
            .await;
        assert_eq!(result.unwrap(), "slow down");
        let s = guard.snapshot();
        assert_eq!((s.paused, s.breaker.state, s.breaker.calls), (Some(kept), State::Closed, 0));
        advance(kept).await;
    }
}

#[tokio::test(start_paused = true)]
async fn a_pause_shorter_than_max_wait_is_waited_for() {
    let guard = guard(|c| c.rate = Some(rate(10.0, 10, 6 * S)));
    guard.pause(4 * S);
    assert_eq!(fine(&guard).await.1.limited, 4 * S);
    guard.pause(3600 * S);
    assert_eq!(guard.snapshot().paused, Some(60 * S));
    assert_refused(fine(&guard).await, Reason::Throttled);
}

// --- breaker ---------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn each_breaker_key_opens_or_keeps_closed() {
    type Change = fn(&mut BreakerConfig);
    let base: Change = |b| {
        (b.min_calls, b.failure_share, b.slow_share) = (n(4), 0.5, 0.9);
    };
    // What happens: two fast successes, one slow one, ten quiet seconds, two failures.
    let cases: [(&str, Change, State); 8] = [
        ("as it is", |_| {}, State::Closed),
        ("failure_share", |b| b.failure_share = 0.4, State::Open),
        ("min_calls", |b| (b.failure_share, b.min_calls) = (0.4, n(6)), State::Closed),
        ("consecutive", |b| b.consecutive = n(2), State::Open),
        ("window", |b| (b.window, b.min_calls) = (10 * S, n(2)), State::Open),
        ("slow_share", |b| (b.slow_share, b.min_calls) = (0.33, n(3)), State::Open),
        (
            "slow_call",
            |b| (b.slow_share, b.min_calls, b.slow_call) = (0.33, n(3), 12 * S),
            State::Closed,
        ),
        ("enabled", |b| (b.consecutive, b.enabled) = (n(2), false), State::Closed),
    ];
    for (key, change, state) in cases {
        let guard = guard(|c| {
            base(&mut c.breaker);
            change(&mut c.breaker);
        });
        for time in [S, S, 11 * S] {
            assert!(busy(&guard, time).await.await.unwrap().0.is_ok());
        }
        advance(10 * S).await;
        if guard.snapshot().breaker.state == State::Closed {
            fail(&guard).await;
            fail(&guard).await;
        }
        assert_eq!(guard.snapshot().breaker.state, state, "{key}");
        if state == State::Open {
            assert_refused(fine(&guard).await, Reason::BreakerOpen);
            assert_eq!(refused(&guard, Reason::BreakerOpen), 1);
        } else {
            assert!(fine(&guard).await.0.is_ok());
        }
    }
}

#[tokio::test(start_paused = true)]
async fn open_for_and_probes_decide_the_way_back() {
    for (open_for, probes) in [(5 * S, 1), (30 * S, 2)] {
        let guard = guard(|c| {
            c.breaker.consecutive = n(2);
            (c.breaker.open_for, c.breaker.probes) = (open_for, n(probes));
        });
        fail(&guard).await;
        fail(&guard).await;
        let failure = assert_refused(fine(&guard).await, Reason::BreakerOpen);
        assert_eq!(failure.retry_after, Some(open_for));
        let s = guard.snapshot().breaker;
        assert_eq!((s.state, s.probe_in), (State::Open, Some(open_for)));
        insta::allow_duplicates! {
            insta::assert_snapshot!(
                s.why.unwrap(),
                @"2 calls in a row failed, the last: connection_lost"
            );
        }
        advance(open_for).await;
        let mut tasks = Vec::new();
        for _ in 0..probes {
            tasks.push(busy(&guard, S).await);
        }
        assert_eq!(guard.snapshot().breaker.state, State::HalfOpen);
        assert_refused(fine(&guard).await, Reason::BreakerOpen);
        for task in tasks {
            assert!(task.await.unwrap().0.is_ok());
        }
        let s = guard.snapshot().breaker;
        assert_eq!((s.state, s.opened, s.half_opened, s.closed), (State::Closed, 1, 1, 1));
    }
}

#[tokio::test(start_paused = true)]
async fn an_open_breaker_refuses_before_the_line() {
    let two = |c: &mut GuardConfig| {
        c.concurrency = ConcurrencyConfig { max: n(2), queue: 0 };
        c.breaker.consecutive = n(1);
    };
    let guard = guard(two);
    let _busy = busy(&guard, 50 * S).await;
    fail(&guard).await;
    guard.reconfigure(&with(|c| {
        two(c);
        c.concurrency.max = n(1);
    }));
    assert_refused(fine(&guard).await, Reason::BreakerOpen);
}

#[tokio::test(start_paused = true)]
async fn a_breaker_that_opens_while_a_call_is_in_line_refuses_it_without_a_wait_for_a_token() {
    let guard = guard(|c| {
        c.concurrency = ConcurrencyConfig { max: n(1), queue: 1 };
        c.breaker.consecutive = n(1);
        c.rate = Some(rate(0.1, 1, 60 * S));
    });
    let failing = {
        let guard = guard.clone();
        tokio::spawn(async move {
            guard
                .run(&WRITE, &soon(), |_| async {
                    sleep(S).await;
                    Err::<Done<()>, _>(lost(Delivery::Unknown))
                })
                .await
        })
    };
    yield_now().await;
    let outcome = fine(&guard).await;
    assert_eq!((outcome.1.queued, outcome.1.limited), (S, Duration::ZERO));
    assert_refused(outcome, Reason::BreakerOpen);
    assert!(failing.await.unwrap().0.unwrap_err().outcome_unknown);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_finds_the_probes_under_way_gives_its_token_back() {
    // Both pass the first look; the second comes late because it waits for its token.
    let guard = guard(|c| {
        c.breaker.consecutive = n(1);
        c.rate = Some(rate(1.0, 1, 60 * S));
    });
    fail(&guard).await;
    advance(29 * S + S / 2).await;
    guard.pause(S);
    advance(S / 2).await;
    let first = busy(&guard, 10 * S).await;
    let second = busy(&guard, 10 * S).await;
    let (result, spent) = second.await.unwrap();
    assert_eq!(result.unwrap_err().reason, Reason::BreakerOpen);
    assert_eq!((spent.limited, spent.attempts), (S + S / 2, 0));
    assert!(guard.snapshot().tokens.unwrap() > 0.9);
    assert!(first.await.unwrap().0.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_refused_credential_counts_and_a_timeout_counts() {
    for fault in
        [Some(Fault::new(Reason::CredentialRefused, Delivery::Refused, "status 401")), None]
    {
        let guard = guard(|c| c.breaker.consecutive = n(1));
        let (result, _) = guard
            .run(&READ, &soon(), |_| async {
                match fault.clone() {
                    Some(fault) => Err(fault),
                    None => pending::<Result<Done<()>, Fault>>().await,
                }
            })
            .await;
        assert!(result.is_err());
        assert_eq!(guard.snapshot().breaker.state, State::Open);
    }
}

// --- retry -----------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn only_what_changes_nothing_or_never_left_is_repeated() {
    let both = Ask { repeatable: true, ..WRITE };
    for (ask, delivery, attempts) in [
        (READ, Delivery::Unknown, 2),
        (READ, Delivery::Refused, 2),
        (READ, Delivery::NotSent, 2),
        (WRITE, Delivery::NotSent, 2),
        (WRITE, Delivery::Unknown, 1),
        (WRITE, Delivery::Refused, 1),
        // A write is a write, whatever else is claimed.
        (both, Delivery::Unknown, 1),
    ] {
        let guard = guard(|c| c.retry.attempts = 1);
        let (result, spent) = script(&guard, &ask, &[Err(lost(delivery)), Ok(())]).await;
        assert_eq!(spent.attempts, attempts, "{ask:?} {delivery:?}");
        match result {
            Ok(()) => assert_eq!(attempts, 2),
            Err(failure) => {
                assert_eq!(failure.outcome_unknown, delivery == Delivery::Unknown);
            }
        }
        assert_eq!(guard.snapshot().retries, u64::from(attempts - 1));
    }
}

#[tokio::test(start_paused = true)]
async fn a_write_with_a_key_is_repeated_and_its_doubt_stays() {
    use Delivery::{NotSent, Refused, Unknown};
    for (ends, unknown) in [
        (vec![Unknown, NotSent], true),
        (vec![Unknown, Refused], true),
        (vec![NotSent, Refused], false),
        (vec![Refused, Unknown], true),
    ] {
        let guard = guard(|c| c.retry.attempts = 1);
        let key = AtomicBool::new(true);
        let ask = Ask { keyed: Some(&key), ..WRITE };
        let ends: Vec<Result<(), Fault>> = ends.into_iter().map(|d| Err(lost(d))).collect();
        let (result, spent) = script(&guard, &ask, &ends).await;
        let failure = result.unwrap_err();
        assert_eq!((spent.attempts, failure.outcome_unknown), (2, unknown), "{ends:?}");
        let told = failure.sentence().contains("same idempotency key");
        assert_eq!((failure.keyed, told), (true, unknown));
    }
    // The answer to the first attempt has come, or nothing carried the key.
    let guard = guard(|c| c.retry.attempts = 1);
    let key = AtomicBool::new(false);
    let ask = Ask { keyed: Some(&key), ..WRITE };
    let (result, spent) = script(&guard, &ask, &[Err(lost(Unknown)), Ok(())]).await;
    assert_eq!((spent.attempts, result.unwrap_err().keyed), (1, false));
}

#[tokio::test(start_paused = true)]
async fn attempts_backoff_and_backoff_max_make_the_schedule() {
    for (attempts, backoff, backoff_max, total) in
        [(0, S, 8 * S, 0), (3, S, 8 * S, 7), (3, 2 * S, 8 * S, 14), (3, S, 2 * S, 5)]
    {
        let guard = guard(|c| {
            c.retry = RetryConfig { attempts, backoff, backoff_max, budget: 1.0 };
        });
        let start = Instant::now();
        let (result, spent) = script(&guard, &READ, &[Err(lost(Delivery::Unknown))]).await;
        assert_eq!(result.unwrap_err().reason, Reason::ConnectionLost);
        assert_eq!(spent.attempts, attempts + 1);
        assert_eq!(start.elapsed(), total * S);
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_bounds_retries_over_all_calls() {
    for (budget, retries) in [(0.0, 0), (0.2, 4), (0.5, 10)] {
        let guard = guard(|c| {
            c.retry = RetryConfig { attempts: 1, backoff: Duration::ZERO, backoff_max: S, budget };
        });
        for _ in 0..10 {
            assert!(fine(&guard).await.0.is_ok());
        }
        for _ in 0..10 {
            script(&guard, &READ, &[Err(lost(Delivery::Unknown))]).await.0.unwrap_err();
        }
        let s = guard.snapshot();
        assert_eq!((s.retries, s.retries_denied), (retries, 10 - retries));
    }
}

#[tokio::test(start_paused = true)]
async fn a_retry_waits_at_least_as_long_as_the_upstream_asked_for() {
    let guard = guard(|c| c.retry.attempts = 1);
    for (fault, wait) in [
        (throttled(Some(20 * S)), 20 * S),
        (throttled(None), 5 * S),
        (lost(Delivery::Unknown).retry_after(Some(9 * S)), 9 * S),
    ] {
        let start = Instant::now();
        assert!(script(&guard, &READ, &[Err(fault), Ok(())]).await.0.is_ok());
        assert_eq!(start.elapsed(), wait);
    }
}

#[tokio::test(start_paused = true)]
async fn no_retry_that_the_deadline_would_cut_off() {
    let guard = guard(|c| c.retry.attempts = 5);
    let start = Instant::now();
    let asked = throttled(Some(60 * S));
    let (result, spent) = script(&guard, &READ, &[Err(asked), Ok(())]).await;
    assert_eq!(result.unwrap_err().reason, Reason::Throttled);
    assert_eq!((spent.attempts, start.elapsed()), (1, Duration::ZERO));
    assert_eq!(guard.snapshot().retries_denied, 0, "nor does it cost budget");
}

#[tokio::test(start_paused = true)]
async fn no_retry_once_the_breaker_is_open() {
    let guard = guard(|c| {
        c.retry.attempts = 5;
        c.breaker.consecutive = n(2);
    });
    let (result, spent) = script(&guard, &READ, &[Err(lost(Delivery::Unknown))]).await;
    assert_eq!((result.unwrap_err().reason, spent.attempts), (Reason::ConnectionLost, 2));
    assert_eq!(guard.snapshot().retries, 1);
}

#[tokio::test(start_paused = true)]
async fn a_retry_that_is_refused_ends_with_the_fault_before() {
    // The bucket holds one token.
    let guard = guard(|c| {
        c.retry.attempts = 1;
        c.rate = Some(rate(0.001, 1, S));
    });
    let (result, spent) = script(&guard, &READ, &[Err(lost(Delivery::Unknown)), Ok(())]).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.reason, failure.fault), (Reason::ConnectionLost, true));
    assert_eq!(spent.attempts, 1);
    assert_eq!(refused(&guard, Reason::RateLimited), 0, "the call was not refused, it failed");
}

// --- dropped calls ---------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_dropped_call_leaves_nothing_behind_wherever_it_stands() {
    let guard = guard(|c| {
        c.concurrency = ConcurrencyConfig { max: n(2), queue: 1 };
        c.rate = Some(rate(0.1, 1, 60 * S));
        c.breaker.consecutive = n(1);
    });
    let at_work = busy(&guard, 50 * S).await;
    let for_a_token = busy(&guard, 50 * S).await;
    let for_a_place = busy(&guard, 50 * S).await;
    let s = guard.snapshot();
    assert_eq!((s.in_flight, s.queued, s.limited), (2, 1, 1));
    cancel(for_a_place).await;
    cancel(for_a_token).await;
    cancel(at_work).await;
    let s = guard.snapshot();
    assert_eq!((s.in_flight, s.queued, s.limited), (0, 0, 0));
    assert_eq!((s.breaker.state, s.breaker.calls), (State::Closed, 0));
}

#[tokio::test(start_paused = true)]
async fn a_dropped_probe_makes_room_for_another_and_proves_nothing() {
    let guard = guard(|c| c.breaker.consecutive = n(1));
    fail(&guard).await;
    advance(30 * S).await;
    let probe = busy(&guard, 50 * S).await;
    assert_refused(fine(&guard).await, Reason::BreakerOpen);
    cancel(probe).await;
    assert_eq!(guard.snapshot().breaker.state, State::HalfOpen);
    assert!(fine(&guard).await.0.is_ok());
    assert_eq!(guard.snapshot().breaker.state, State::Closed);
}

#[tokio::test(start_paused = true)]
async fn a_call_dropped_during_its_backoff_leaves_its_place() {
    let guard = guard(|c| c.retry.attempts = 1);
    let task = {
        let guard = guard.clone();
        tokio::spawn(async move { script(&guard, &READ, &[Err(lost(Delivery::Unknown))]).await })
    };
    yield_now().await;
    assert_eq!(guard.snapshot().in_flight, 1);
    cancel(task).await;
    assert_eq!(guard.snapshot().in_flight, 0);
}

// --- reload ----------------------------------------------------------------------------------

#[tokio::test(start_paused = true)]
async fn a_reload_keeps_breaker_tokens_waiters_and_counters() {
    let narrow = |c: &mut GuardConfig| {
        c.concurrency = ConcurrencyConfig { max: n(1), queue: 5 };
        c.rate = Some(rate(1.0, 5, S));
        c.breaker.consecutive = n(1);
    };
    let guard = guard(narrow);
    let first = busy(&guard, S).await;
    let second = busy(&guard, S).await;
    guard.reconfigure(&with(|c| {
        narrow(c);
        c.concurrency.max = n(2);
    }));
    yield_now().await;
    let s = guard.snapshot();
    assert_eq!((s.in_flight, s.queued, s.tokens), (2, 0, Some(3.0)));
    assert!(first.await.unwrap().0.is_ok() && second.await.unwrap().0.is_ok());
    fail(&guard).await;
    guard.reconfigure(&with(narrow));
    assert_refused(fine(&guard).await, Reason::BreakerOpen);
    assert_eq!(guard.snapshot().breaker.opened, 1);
}

#[tokio::test(start_paused = true)]
async fn a_reload_reaches_every_part() {
    let guard = guard(|_| {});
    guard.reconfigure(&with(|c| {
        c.concurrency = ConcurrencyConfig { max: n(1), queue: 0 };
        c.rate = Some(rate(1.0, 7, S));
        c.breaker.consecutive = n(2);
        c.retry.attempts = 1;
        c.throttle.pause_max = S;
    }));
    assert_eq!(guard.snapshot().tokens, Some(7.0));
    guard.pause(9 * S);
    assert_eq!(guard.snapshot().paused, Some(S));
    advance(S).await;
    let busy = busy(&guard, S).await;
    assert_refused(fine(&guard).await, Reason::QueueFull);
    assert!(busy.await.unwrap().0.is_ok());
    let (_, spent) = script(&guard, &READ, &[Err(lost(Delivery::Unknown))]).await;
    assert_eq!(spent.attempts, 2);
    assert_eq!(guard.snapshot().breaker.state, State::Open);
}

#[test]
fn what_the_agent_reads() {
    let guard = Guard::new("stripe".into(), &open());
    let mut said: Vec<_> = [guard.resting(12 * S), guard.late()]
        .map(|refusal| Failure::from(refusal).sentence())
        .into();
    said.push(Failure::from_fault(timed_out(&soon()), &guard.upstream, true).sentence());
    insta::assert_snapshot!(said.join("\n"), @"
    stripe: it was not called: it is given a rest after recent calls failed or were slow (reason: breaker_open, try again in 12.0 s)
    stripe: it was not called: the deadline passed while the call was waiting (reason: deadline_exceeded)
    stripe: no answer came in time; 0.0 s have passed (reason: deadline_exceeded). The outcome is unknown: the request may have taken effect. Check before you repeat it; the gateway did not repeat it.
    ");
}

fn maintenance() -> crate::config::upkeep::Upkeep {
    let state = crate::config::upkeep::UpkeepState::Maintenance;
    crate::config::upkeep::Upkeep { state, message: None, until: None }
}

#[tokio::test(start_paused = true)]
async fn maintenance_sends_away_who_waits_in_any_line_and_lets_finish_who_has_left() {
    for line in ["place", "token"] {
        let guard = guard(|c| match line {
            "place" => c.concurrency = ConcurrencyConfig { max: n(1), queue: 9 },
            _ => c.rate = Some(rate(0.1, 1, 60 * S)),
        });
        let work = |guard: Arc<Guard>| {
            tokio::spawn(async move {
                let attempt = |_| async {
                    sleep(5 * S).await;
                    Ok(Done::fine(()))
                };
                guard.run(&WRITE, &soon(), attempt).await
            })
        };
        let left = work(guard.clone());
        yield_now().await;
        let waits = work(guard.clone());
        yield_now().await;
        let before = guard.snapshot();
        assert_eq!(before.queued + before.limited, 1, "{line}");
        guard.keep_up(Some(&maintenance()));
        let (refused, spent) = waits.await.unwrap();
        let refused = refused.unwrap_err();
        assert_eq!((refused.reason, spent.attempts), (Reason::Maintenance, 0), "{line}");
        assert!(!refused.fault && !refused.outcome_unknown);
        assert!(left.await.unwrap().0.is_ok(), "{line}");
        let after = guard.snapshot();
        assert_eq!((after.queued, after.limited, after.breaker.failed), (0, 0, 0));
    }
}

#[tokio::test(start_paused = true)]
async fn draining_lets_finish_who_waits() {
    let guard = guard(|c| c.concurrency = ConcurrencyConfig { max: n(1), queue: 9 });
    let held = busy(&guard, 5 * S).await;
    let waits = {
        let guard = guard.clone();
        tokio::spawn(async move { script(&guard, &WRITE, &[Ok(())]).await.0 })
    };
    yield_now().await;
    let state = crate::config::upkeep::UpkeepState::Draining;
    guard.keep_up(Some(&crate::config::upkeep::Upkeep { state, ..maintenance() }));
    assert!(waits.await.unwrap().is_ok());
    assert!(held.await.unwrap().0.is_ok());
    assert_eq!(guard.barred(|| false).unwrap().reason, Reason::UpstreamDraining);
}

#[tokio::test(start_paused = true)]
async fn looking_says_what_a_call_meets_and_takes_nothing() {
    // Each part refuses in turn; the look must name it, twice the same, and the call must agree.
    let cases: [(&str, Part, Reason); 5] = [
        ("breaker", Part::Breaker, Reason::BreakerOpen),
        ("line", Part::Concurrency, Reason::QueueFull),
        ("tool", Part::ToolRate, Reason::RateLimited),
        ("rate", Part::Rate, Reason::RateLimited),
        ("pause", Part::Rate, Reason::Throttled),
    ];
    for (case, part, reason) in cases {
        let guard = guard(|c| match case {
            "breaker" => c.breaker.consecutive = n(1),
            "line" => c.concurrency = ConcurrencyConfig { max: n(1), queue: 0 },
            "rate" => c.rate = Some(rate(0.1, 1, Duration::ZERO)),
            _ => {}
        });
        let own = Limiter::new(Some(&rate(0.1, 1, Duration::ZERO)));
        let tool = (case == "tool").then_some(&own);
        let ask = Ask { tool, ..WRITE };
        let before = guard.look(tool, 60 * S);
        assert!(before.refused.is_none() && before.wait.is_zero(), "{case}");
        let mut held = None;
        match case {
            "breaker" => drop(fail(&guard).await),
            "line" => held = Some(busy(&guard, 5 * S).await),
            "pause" => guard.pause(5 * S),
            _ => assert!(script(&guard, &ask, &[Ok(())]).await.0.is_ok(), "{case}"),
        }
        advance(Duration::from_millis(10)).await;
        let counted = guard.snapshot().refused;
        let looks = [guard.look(tool, 60 * S), guard.look(tool, 60 * S)];
        for look in &looks {
            let (said, refusal) = look.refused.as_ref().unwrap();
            assert_eq!((*said, refusal.reason), (part, reason), "{case}");
        }
        assert_eq!(guard.snapshot().refused, counted, "a look is not counted");
        let aged = matches!(case, "breaker" | "pause");
        assert_eq!(looks[0].age.is_some(), aged, "{case}");
        let met = assert_refused(script(&guard, &ask, &[Ok(())]).await, reason);
        let refusal = &looks[1].refused.as_ref().unwrap().1;
        assert_eq!((&met.text, met.retry_after), (&refusal.text, refusal.retry_after), "{case}");
        drop(held);
    }
}

#[tokio::test(start_paused = true)]
async fn looking_uses_no_probe() {
    let guard = guard(|c| c.breaker.consecutive = n(1));
    fail(&guard).await;
    advance(31 * S).await;
    for _ in 0..3 {
        assert!(guard.look(None, 60 * S).refused.is_none());
    }
    let still = guard.snapshot().breaker;
    assert_eq!((still.state, still.half_opened), (State::Open, 0));
    assert!(fine(&guard).await.0.is_ok());
}
