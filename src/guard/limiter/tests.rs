use super::*;

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Waker};

use proptest::prelude::*;
use tokio::task::{JoinHandle, yield_now};
use tokio::time::advance;

const S: Duration = Duration::from_secs(1);

fn rate(per_second: f64, burst: u32, max_wait: Duration) -> RateConfig {
    RateConfig { per_second, burst: NonZeroU32::new(burst).unwrap(), max_wait }
}

fn limiter(per_second: f64, burst: u32, max_wait: Duration) -> Arc<Limiter> {
    Arc::new(Limiter::new(Some(&rate(per_second, burst, max_wait))))
}

/// Far enough away to be no matter.
fn some_day() -> Instant {
    Instant::now() + 3600 * S
}

/// Takes and spends a token in a task; says how long it waited.
async fn taker(limiter: &Arc<Limiter>) -> JoinHandle<Result<Duration, Dry>> {
    let limiter = limiter.clone();
    let task = tokio::spawn(async move {
        let token = limiter.take(some_day()).await?;
        let waited = token.waited;
        token.spend();
        Ok(waited)
    });
    yield_now().await;
    task
}

async fn takers(limiter: &Arc<Limiter>, n: usize) -> Vec<JoinHandle<Result<Duration, Dry>>> {
    let mut tasks = Vec::new();
    for _ in 0..n {
        tasks.push(taker(limiter).await);
    }
    tasks
}

async fn waits(tasks: Vec<JoinHandle<Result<Duration, Dry>>>) -> Vec<Result<Duration, Dry>> {
    let mut waits = Vec::new();
    for task in tasks {
        waits.push(task.await.unwrap());
    }
    waits
}

#[tokio::test(start_paused = true)]
async fn burst_goes_at_once_and_the_rest_at_the_rate() {
    for (per_second, burst, expected) in
        [(1.0, 1, [0, 1000, 2000, 3000]), (2.0, 1, [0, 500, 1000, 1500]), (1.0, 3, [0, 0, 0, 1000])]
    {
        let limiter = limiter(per_second, burst, 60 * S);
        let tasks = takers(&limiter, 4).await;
        let expected = expected.map(|ms| Ok(Duration::from_millis(ms)));
        assert_eq!(waits(tasks).await, expected);
        assert_eq!(limiter.waiting(), 0);
    }
}

#[tokio::test(start_paused = true)]
async fn a_wait_longer_than_max_wait_is_refused_at_once() {
    for (max_wait, refused_at) in [(Duration::ZERO, 1), (S, 2), (3 * S, 4)] {
        let limiter = limiter(1.0, 1, max_wait);
        let start = Instant::now();
        let tasks = takers(&limiter, refused_at).await;
        let dry = limiter.take(some_day()).await.unwrap_err();
        let retry_after = refused_at as u32 * S;
        assert_eq!(dry, Dry { retry_after, paused: false, waited: Duration::ZERO });
        assert_eq!(start.elapsed(), Duration::ZERO);
        assert!(waits(tasks).await.iter().all(Result::is_ok));
    }
}

#[tokio::test(start_paused = true)]
async fn nobody_waits_past_its_deadline() {
    let limiter = limiter(1.0, 1, 60 * S);
    limiter.take(some_day()).await.unwrap().spend();
    let start = Instant::now();
    assert!(limiter.take(start + S / 2).await.is_err());
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert!(limiter.take(start + S).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn who_cancels_makes_room_for_all_behind() {
    let limiter = limiter(1.0, 1, 60 * S);
    let mut tasks = takers(&limiter, 6).await;
    // One in the middle of the line, and the first in line.
    for i in [3, 1] {
        let task = tasks.remove(i);
        task.abort();
        assert!(task.await.unwrap_err().is_cancelled());
    }
    assert_eq!(limiter.waiting(), 3);
    assert_eq!(waits(tasks).await, [0, 1, 2, 3].map(|s| Ok(s * S)));
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_not_spent_is_given_back() {
    let limiter = limiter(1.0, 2, Duration::ZERO);
    drop(limiter.take(some_day()).await.unwrap());
    assert_eq!(limiter.tokens(), Some(2.0));
    // Given back while somebody waits: that one goes at once.
    let limiter = Arc::new(Limiter::new(Some(&rate(0.1, 1, 60 * S))));
    let token = limiter.take(some_day()).await.unwrap();
    let next = taker(&limiter).await;
    advance(S).await;
    drop(token);
    assert_eq!(next.await.unwrap(), Ok(S));
}

#[tokio::test(start_paused = true)]
async fn a_token_given_back_after_others_were_taken_is_lost() {
    let limiter = limiter(1.0, 3, Duration::ZERO);
    let token = limiter.take(some_day()).await.unwrap();
    limiter.try_take().unwrap();
    drop(token);
    assert_eq!(limiter.tokens(), Some(1.0));
}

#[tokio::test(start_paused = true)]
async fn a_quota_says_how_long() {
    let limiter = limiter(2.0, 2, Duration::ZERO);
    assert_eq!(limiter.try_take(), Ok(()));
    assert_eq!(limiter.try_take(), Ok(()));
    assert_eq!(limiter.try_take(), Err(S / 2));
    assert_eq!(limiter.try_take(), Err(S / 2), "asking costs nothing");
    advance(S / 2).await;
    assert_eq!(limiter.try_take(), Ok(()));
}

#[tokio::test(start_paused = true)]
async fn a_pause_holds_everyone_back() {
    let limiter = limiter(1.0, 2, 60 * S);
    limiter.pause(10 * S);
    limiter.pause(5 * S);
    assert_eq!(limiter.paused(), Some(10 * S), "the longer one holds");
    assert_eq!(limiter.try_take(), Err(10 * S));
    let tasks = takers(&limiter, 3).await;
    assert_eq!(waits(tasks).await, [10, 10, 11].map(|s| Ok(s * S)));
    assert_eq!(limiter.paused(), None);
}

#[tokio::test(start_paused = true)]
async fn a_pause_longer_than_max_wait_refuses_also_who_waits_already() {
    let limiter = limiter(1.0, 1, 5 * S);
    let mut tasks = takers(&limiter, 4).await;
    advance(S / 2).await;
    limiter.pause(30 * S);
    let dry = |waited| Dry { retry_after: 30 * S, paused: true, waited };
    let newcomer = limiter.take(some_day()).await.unwrap_err();
    assert!(newcomer.paused && newcomer.waited.is_zero());
    assert_eq!(tasks.remove(0).await.unwrap(), Ok(Duration::ZERO));
    let start = Instant::now();
    assert_eq!(waits(tasks).await, vec![Err(dry(S / 2)); 3]);
    assert_eq!(start.elapsed(), Duration::ZERO);
    assert_eq!(limiter.waiting(), 0);
}

#[tokio::test(start_paused = true)]
async fn no_rate_is_no_limit_but_can_be_paused() {
    let limiter = Arc::new(Limiter::new(None));
    assert!(waits(takers(&limiter, 1000).await).await.iter().all(|w| *w == Ok(Duration::ZERO)));
    assert_eq!(limiter.tokens(), None);
    limiter.pause(S);
    let dry = Dry { retry_after: S, paused: true, waited: Duration::ZERO };
    assert_eq!(limiter.take(some_day()).await.unwrap_err(), dry);
    advance(S).await;
    assert!(limiter.take(some_day()).await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_new_rate_holds_for_who_waits_already() {
    let limiter = limiter(0.1, 1, 600 * S);
    let tasks = takers(&limiter, 4).await;
    advance(5 * S).await;
    // Half a token is there; the other half takes half a second at the new rate.
    limiter.reconfigure(Some(&rate(1.0, 1, 600 * S)));
    let expected = [0, 5500, 6500, 7500].map(|ms| Ok(Duration::from_millis(ms)));
    assert_eq!(waits(tasks).await, expected);
}

#[tokio::test(start_paused = true)]
async fn a_rate_taken_away_lets_all_go() {
    let limiter = limiter(0.1, 1, 600 * S);
    let tasks = takers(&limiter, 4).await;
    limiter.reconfigure(None);
    assert_eq!(waits(tasks).await, vec![Ok(Duration::ZERO); 4]);
    limiter.reconfigure(Some(&rate(1.0, 3, S)));
    assert_eq!(limiter.tokens(), Some(3.0), "the first limit starts with a full bucket");
}

#[tokio::test(start_paused = true)]
async fn a_new_burst_keeps_the_tokens_there_are() {
    let limiter = limiter(1.0, 4, S);
    limiter.try_take().unwrap();
    limiter.reconfigure(Some(&rate(1.0, 10, S)));
    assert_eq!(limiter.tokens(), Some(3.0));
    limiter.reconfigure(Some(&rate(1.0, 2, S)));
    assert_eq!(limiter.tokens(), Some(2.0));
    advance(60 * S).await;
    limiter.reconfigure(Some(&rate(5.0, 2, S)));
    assert_eq!(limiter.tokens(), Some(2.0));
}

type Taking<'a> = Pin<Box<dyn Future<Output = Result<Token<'a>, Dry>> + 'a>>;

/// Looks once whether the wait is over.
fn look<'a>(taking: &mut Taking<'a>) -> Poll<Result<Token<'a>, Dry>> {
    taking.as_mut().poll(&mut Context::from_waker(Waker::noop()))
}

fn has_token(look: &Poll<Result<Token<'_>, Dry>>) -> bool {
    matches!(look, Poll::Ready(Ok(_)))
}

#[tokio::test(start_paused = true)]
async fn nobody_slips_past_a_waiter_that_has_not_noticed_its_token_yet() {
    let limiter = limiter(1.0, 3, 60 * S);
    for _ in 0..3 {
        limiter.try_take().unwrap();
    }
    let mut waiter: Taking<'_> = Box::pin(limiter.take(some_day()));
    assert!(look(&mut waiter).is_pending());
    advance(3 * S).await;
    let mut newcomer: Taking<'_> = Box::pin(limiter.take(some_day()));
    assert!(look(&mut newcomer).is_pending());
    assert!(has_token(&look(&mut waiter)));
    assert!(has_token(&look(&mut newcomer)));
}

#[tokio::test(start_paused = true)]
async fn patience_that_ends_in_the_tick_of_the_turn_is_enough() {
    let ms = Duration::from_millis(1);
    let limiter = limiter(2000.0, 2, ms);
    limiter.try_take().unwrap();
    limiter.try_take().unwrap();
    // Their tokens come after half a millisecond and after one; both hear of it after one.
    let mut first: Taking<'_> = Box::pin(limiter.take(some_day()));
    let mut second: Taking<'_> = Box::pin(limiter.take(some_day()));
    assert!(look(&mut first).is_pending() && look(&mut second).is_pending());
    advance(ms).await;
    assert!(look(&mut second).is_pending(), "it is not its turn, but it will be");
    let Poll::Ready(Ok(token)) = look(&mut first) else { panic!("no token for the first") };
    token.spend();
    assert!(has_token(&look(&mut second)));
}

#[tokio::test(start_paused = true)]
async fn extreme_rates_do_no_harm() {
    for per_second in [f64::MIN_POSITIVE, 1e-9, 1e12, f64::MAX] {
        let limiter = limiter(per_second, u32::MAX, Duration::MAX);
        limiter.pause(Duration::MAX);
        assert!(limiter.try_take().is_err());
        limiter.reconfigure(Some(&rate(per_second, 1, Duration::MAX)));
        assert!(limiter.take(some_day()).await.is_err());
    }
    for nonsense in [0.0, -1.0, f64::NAN] {
        let slowest = Rate::from(&rate(nonsense, 1, S)).interval.get();
        assert_eq!(slowest, INTERVAL_MAX as u64, "{nonsense}");
    }
}

/// One who comes at `at`, goes away again after `patience` and may be dropped before.
#[derive(Clone, Debug)]
struct Visitor {
    at: u64,
    drop_after: Option<u64>,
}

/// What became of a visitor, in milliseconds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Started(u64),
    Refused { at: u64, retry_after: u64 },
    Dropped,
}

/// The reference: time goes by in single milliseconds, each of which puts one drop into the bucket; a
/// token is `interval` drops. Those in line are a list.
#[derive(Clone)]
struct Model {
    interval: u64,
    burst: u64,
    max_wait: u64,
    drops: u64,
    now: u64,
    line: Vec<usize>,
}

impl Model {
    fn pass_a_millisecond(&mut self, fates: &mut [Option<Fate>]) {
        self.now += 1;
        self.drops = (self.drops + 1).min(self.burst * self.interval);
        self.serve(fates);
    }

    fn serve(&mut self, fates: &mut [Option<Fate>]) {
        while self.drops >= self.interval && !self.line.is_empty() {
            self.drops -= self.interval;
            fates[self.line.remove(0)] = Some(Fate::Started(self.now));
        }
    }

    fn arrive(&mut self, who: usize, fates: &mut [Option<Fate>]) {
        let came = self.now;
        let mut future = self.clone();
        future.line.push(who);
        let mut imagined = fates.to_vec();
        future.serve(&mut imagined);
        while imagined[who].is_none() {
            future.pass_a_millisecond(&mut imagined);
        }
        let wait = future.now - came;
        if wait > self.max_wait {
            fates[who] = Some(Fate::Refused { at: came, retry_after: wait });
        } else {
            self.line.push(who);
            self.serve(fates);
        }
    }
}

/// Lets the same visitors loose on the model and on the limiter.
async fn compare(interval: u64, burst: u32, max_wait: u64, visitors: &[Visitor]) {
    let mut model = Model {
        interval,
        burst: burst.into(),
        max_wait,
        drops: interval * u64::from(burst),
        now: 0,
        line: Vec::new(),
    };
    let mut expected = vec![None; visitors.len()];

    let max_wait = Duration::from_millis(max_wait);
    let limiter = Limiter::new(Some(&rate(1000.0 / interval as f64, burst, max_wait)));
    let start = Instant::now();
    let mut found: Vec<Option<Fate>> = vec![None; visitors.len()];
    let mut line: Vec<(usize, Taking<'_>)> = Vec::new();

    // Poll everyone in turn until nobody moves any more.
    fn settle(line: &mut Vec<(usize, Taking<'_>)>, found: &mut [Option<Fate>], now: u64) {
        loop {
            let before = line.len();
            line.retain_mut(|(who, taking)| match look(taking) {
                Poll::Pending => true,
                Poll::Ready(Ok(token)) => {
                    token.spend();
                    found[*who] = Some(Fate::Started(now));
                    false
                }
                Poll::Ready(Err(dry)) => {
                    let retry_after = dry.retry_after.as_millis() as u64;
                    found[*who] = Some(Fate::Refused { at: now, retry_after });
                    false
                }
            });
            if line.len() == before {
                return;
            }
        }
    }

    let end = visitors.iter().map(|v| v.at).max().unwrap_or(0);
    for now in 0.. {
        if now > 0 {
            model.pass_a_millisecond(&mut expected);
            advance(Duration::from_millis(1)).await;
            settle(&mut line, &mut found, now);
        }
        for (who, visitor) in visitors.iter().enumerate() {
            if visitor.drop_after.map(|after| visitor.at + after) == Some(now) {
                if model.line.contains(&who) {
                    model.line.retain(|w| *w != who);
                    expected[who] = Some(Fate::Dropped);
                }
                if line.iter().any(|(w, _)| *w == who) {
                    line.retain(|(w, _)| *w != who);
                    found[who] = Some(Fate::Dropped);
                    settle(&mut line, &mut found, now);
                }
            }
        }
        for (who, visitor) in visitors.iter().enumerate() {
            if visitor.at == now {
                model.arrive(who, &mut expected);
                line.push((who, Box::pin(limiter.take(start + 3600 * S))));
                settle(&mut line, &mut found, now);
            }
        }
        assert_eq!(limiter.waiting() as usize, line.len());
        if now >= end && line.is_empty() && model.line.is_empty() {
            break;
        }
    }
    assert_eq!(found, expected);

    // Said once more without the model: what a limiter is for.
    let started = |fate: &Option<Fate>| match fate {
        Some(Fate::Started(at)) => Some(*at),
        _ => None,
    };
    let mut starts: Vec<u64> = found.iter().filter_map(started).collect();
    starts.sort_unstable();
    for (i, from) in starts.iter().enumerate() {
        for (j, to) in starts.iter().enumerate().skip(i) {
            let most = u64::from(burst) + (to - from) / interval;
            assert!((j - i + 1) as u64 <= most, "too many starts in {from}..={to}");
        }
    }
    let mut order: Vec<_> = (0..visitors.len())
        .filter_map(|who| started(&found[who]).map(|at| (visitors[who].at, who, at)))
        .collect();
    order.sort_unstable();
    assert!(order.is_sorted_by_key(|(.., at)| *at), "someone was overtaken");
}

proptest! {
    #[test]
    fn the_limiter_does_what_the_model_does(
        interval in 1u64..40,
        burst in 1u32..6,
        max_wait in 0u64..200,
        visitors in prop::collection::vec(
            (0u64..300, prop::option::weighted(0.3, 1u64..100))
                .prop_map(|(at, drop_after)| Visitor { at, drop_after }),
            0..40,
        ),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_time()
            .start_paused(true)
            .build()
            .unwrap();
        runtime.block_on(compare(interval, burst, max_wait, &visitors));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn without_a_limit_nobody_ever_waits_however_many_come_at_once() {
    let limiter = std::sync::Arc::new(Limiter::new(None));
    let far = Instant::now() + Duration::from_secs(3600);
    let callers: Vec<_> = (0..16)
        .map(|_| {
            let limiter = limiter.clone();
            tokio::spawn(async move {
                for _ in 0..2000 {
                    let token = limiter.take(far).await.expect("there is no limit");
                    assert!(token.waited.is_zero());
                    token.spend();
                }
            })
        })
        .collect();
    for caller in callers {
        caller.await.unwrap();
    }
}
