//! When a second attempt is made, whose answer counts, and what becomes of the other.

use std::cell::RefCell;

use tokio::time::{Instant, sleep};

use super::super::tests::{READ, S, WRITE, guard, lost, n, rate, soon, throttled};
use super::*;
use crate::config::{ConcurrencyConfig, GuardConfig};
use crate::failure::{Delivery, Failure, Reason};

/// How an attempt goes: after so long, with this end.
type Script = (Duration, Result<Signal, Fault>);

/// What happened to attempts, in order, and at which second.
#[derive(Default)]
struct Log {
    began: Option<Instant>,
    lines: RefCell<Vec<String>>,
}

impl Log {
    fn new() -> Log {
        Log { began: Some(Instant::now()), ..Log::default() }
    }

    fn say(&self, what: &str, number: u32) {
        let at = self.began.unwrap().elapsed().as_secs();
        self.lines.borrow_mut().push(format!("{at}: {number} {what}"));
    }

    fn text(&self) -> String {
        self.lines.borrow().join(", ")
    }
}

/// An attempt that is under way; says so when it is dropped.
struct Under<'a>(&'a Log, u32, bool);

impl Drop for Under<'_> {
    fn drop(&mut self) {
        if !self.2 {
            self.0.say("dropped", self.1);
        }
    }
}

const FINE: Result<Signal, Fault> = Ok(Signal::Fine);

/// Runs a call that is hedged after a second; its attempts go as listed, in order.
async fn run(
    guard: &Guard,
    ask: &Ask<'_>,
    hedge: &Hedge,
    scripts: &[Script],
) -> (Result<u32, Failure>, Spent, String) {
    let log = Log::new();
    let attempt = |number: u32| {
        let (time, end) = scripts[number as usize - 1].clone();
        let log = &log;
        async move {
            log.say("made", number);
            let mut under = Under(log, number, false);
            sleep(time).await;
            under.2 = true;
            log.say("ended", number);
            end.map(|signal| Done { value: number, signal })
        }
    };
    let ask = Ask { hedge: Some(hedge), ..*ask };
    let (result, spent) = guard.run(&ask, &soon(), attempt).await;
    (result, spent, log.text())
}

async fn read(scripts: &[Script]) -> (Result<u32, Failure>, Spent, String) {
    run(&guard(|_| ()), &READ, &Hedge::new(S), scripts).await
}

#[tokio::test(start_paused = true)]
async fn a_fast_one_is_made_once() {
    let guard = guard(|_| ());
    let (result, spent, log) = run(&guard, &READ, &Hedge::new(2 * S), &[(S, FINE)]).await;
    assert_eq!((result.unwrap(), spent.attempts), (1, 1));
    assert_eq!(log, "0: 1 made, 1: 1 ended");
    assert_eq!((guard.snapshot().hedges, guard.snapshot().in_flight), (0, 0));
}

#[tokio::test(start_paused = true)]
async fn whoever_answers_first_wins_and_the_other_is_dropped() {
    let guard = guard(|_| ());
    let scripts = [(9 * S, FINE), (S, FINE)];
    let (result, spent, log) = run(&guard, &READ, &Hedge::new(S), &scripts).await;
    assert_eq!((result.unwrap(), spent.attempts), (2, 2));
    assert_eq!(log, "0: 1 made, 1: 2 made, 2: 2 ended, 2: 1 dropped");
    let s = guard.snapshot();
    assert_eq!((s.hedges, s.hedges_won, s.retries, s.in_flight), (1, 1, 0, 0));
    // The one that was dropped is no verdict of the breaker.
    assert_eq!((s.breaker.calls, s.breaker.failed), (1, 0));

    let scripts = [(3 * S, FINE), (9 * S, FINE)];
    let (result, _, log) = run(&guard, &READ, &Hedge::new(S), &scripts).await;
    assert_eq!(result.unwrap(), 1);
    assert_eq!(log, "0: 1 made, 1: 2 made, 3: 1 ended, 3: 2 dropped");
    let s = guard.snapshot();
    assert_eq!((s.hedges, s.hedges_won, s.hedges_lost), (2, 1, 1));
}

#[tokio::test(start_paused = true)]
async fn if_one_fails_the_other_counts() {
    let fails = |time| (time, Err(lost(Delivery::Unknown)));
    let (result, spent, log) = read(&[fails(2 * S), (4 * S, FINE)]).await;
    assert_eq!((result.unwrap(), spent.attempts), (2, 2));
    assert_eq!(log, "0: 1 made, 1: 2 made, 2: 1 ended, 5: 2 ended");
    let (result, _, log) = read(&[(5 * S, FINE), fails(S)]).await;
    assert_eq!(result.unwrap(), 1);
    assert_eq!(log, "0: 1 made, 1: 2 made, 2: 2 ended, 5: 1 ended");
    // An answer that means throttling is worse than one that may still come.
    let slow_down = (S, Ok(Signal::Throttled(None)));
    assert_eq!(read(&[(5 * S, FINE), slow_down]).await.0.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn if_both_fail_the_call_does_and_each_is_told_of() {
    let guard = guard(|_| ());
    let fails = |time| (time, Err(lost(Delivery::Unknown)));
    let (result, spent, log) = run(&guard, &READ, &Hedge::new(S), &[fails(3 * S), fails(S)]).await;
    let failure = result.unwrap_err();
    assert_eq!((failure.reason, failure.outcome_unknown), (Reason::ConnectionLost, false));
    assert_eq!((spent.attempts, &*log), (2, "0: 1 made, 1: 2 made, 2: 2 ended, 3: 1 ended"));
    assert_eq!(guard.snapshot().breaker.failed, 2);
}

#[tokio::test(start_paused = true)]
async fn it_counts_as_an_attempt_and_is_made_once_for_each_call() {
    let guard = guard(|c| c.retry.attempts = 2);
    let fails = |time| (time, Err(lost(Delivery::Unknown)));
    let scripts = [fails(2 * S), fails(2 * S), (50 * S, FINE)];
    let (result, spent, log) = run(&guard, &READ, &Hedge::new(S), &scripts).await;
    assert_eq!((result.unwrap(), spent.attempts), (3, 3));
    // The pause after two attempts is two seconds.
    assert_eq!(log, "0: 1 made, 1: 2 made, 2: 1 ended, 3: 2 ended, 5: 3 made, 55: 3 ended");
}

#[tokio::test(start_paused = true)]
async fn a_write_never_gets_one() {
    for ask in [WRITE, Ask { repeatable: true, ..WRITE }] {
        let guard = guard(|_| ());
        let (result, spent, log) = run(&guard, &ask, &Hedge::new(S), &[(9 * S, FINE)]).await;
        assert_eq!((result.unwrap(), spent.attempts), (1, 1));
        assert_eq!((&*log, guard.snapshot().hedges), ("0: 1 made, 9: 1 ended", 0));
    }
}

#[tokio::test(start_paused = true)]
async fn what_would_have_to_wait_is_not_made() {
    let narrow: [fn(&mut GuardConfig); 3] = [
        |c| c.concurrency = ConcurrencyConfig { max: n(1), queue: 9 },
        |c| c.rate = Some(rate(0.001, 1, 9 * S)),
        |c| c.retry.budget = 0.0,
    ];
    for (which, narrow) in narrow.into_iter().enumerate() {
        let guard = guard(narrow);
        let (result, spent, log) = run(&guard, &READ, &Hedge::new(S), &[(9 * S, FINE)]).await;
        assert_eq!((result.unwrap(), spent.attempts), (1, 1), "{which}");
        assert_eq!(log, "0: 1 made, 9: 1 ended", "{which}");
        let s = guard.snapshot();
        assert_eq!((s.in_flight, s.queued, s.limited), (0, 0, 0), "{which}");
        assert_eq!(s.retries_denied, u64::from(which == 2));
    }
}

#[tokio::test(start_paused = true)]
async fn the_budget_is_the_one_of_retries() {
    let guard = guard(|c| c.retry.budget = 0.1);
    let mut hedges = Vec::new();
    for _ in 0..5 {
        let scripts = [(3 * S / 2, FINE), (9 * S, FINE)];
        let (_, spent, _) = run(&guard, &READ, &Hedge::new(S), &scripts).await;
        hedges.push(spent.attempts - 1);
    }
    // Three that need no calls to justify them.
    assert_eq!(hedges, [1, 1, 1, 0, 0]);
    assert!(!guard.retry.draw(), "nor is there one left for a retry");
}

#[tokio::test(start_paused = true)]
async fn both_are_given_up_at_the_deadline_as_one_call() {
    let guard = guard(|_| ());
    let scripts = [(90 * S, FINE), (90 * S, FINE)];
    let (result, spent, log) = run(&guard, &READ, &Hedge::new(S), &scripts).await;
    assert_eq!((result.unwrap_err().reason, spent.attempts), (Reason::DeadlineExceeded, 2));
    assert_eq!(log, "0: 1 made, 1: 2 made, 60: 2 dropped, 60: 1 dropped");
    let s = guard.snapshot();
    assert_eq!((s.breaker.failed, s.in_flight), (1, 0));
}

#[tokio::test(start_paused = true)]
async fn what_goes_alone_has_none_beside_it() {
    // Said before the second is due, by the first while both run, and by the second.
    for (who, at, wanted) in [(1, S / 2, (1, 1)), (1, 2 * S, (1, 2)), (2, S / 2, (2, 2))] {
        let (guard, hedge) = (guard(|_| ()), Hedge::new(S));
        let attempt = |number: u32| {
            let hedge = &hedge;
            async move {
                assert_eq!(hedge.is_beside(number), number == 2);
                sleep(at).await;
                if number == who {
                    hedge.goes_alone(number);
                    sleep(20 * S).await;
                }
                sleep(5 * S).await;
                Ok(Done::fine(number))
            }
        };
        let ask = Ask { hedge: Some(&hedge), ..READ };
        let (result, spent) = guard.run(&ask, &soon(), attempt).await;
        assert_eq!((result.unwrap(), spent.attempts), wanted, "{who} after {at:?}");
        assert_eq!(guard.snapshot().in_flight, 0);
    }
}

#[tokio::test(start_paused = true)]
async fn the_upstreams_wish_for_a_pause_is_heard_from_either() {
    let guard = guard(|c| c.rate = Some(rate(100.0, 9, S)));
    let scripts = [(5 * S, FINE), (S, Err(throttled(Some(30 * S))))];
    let (result, ..) = run(&guard, &READ, &Hedge::new(S), &scripts).await;
    assert_eq!((result.unwrap(), guard.snapshot().paused), (1, Some(27 * S)));
}

#[tokio::test(start_paused = true)]
async fn who_drops_the_call_drops_both() {
    let (guard, hedge) = (guard(|_| ()), Hedge::new(S));
    let log = Log::new();
    let attempt = |number: u32| {
        let under = Under(&log, number, false);
        async move {
            let _under = under;
            std::future::pending::<Result<Done<()>, Fault>>().await
        }
    };
    let (ask, deadline) = (Ask { hedge: Some(&hedge), ..READ }, soon());
    let call = guard.run(&ask, &deadline, attempt);
    assert!(tokio::time::timeout(3 * S, call).await.is_err());
    assert_eq!(log.text(), "3: 1 dropped, 3: 2 dropped");
    let s = guard.snapshot();
    assert_eq!((s.in_flight, s.breaker.failed), (0, 0));
}
