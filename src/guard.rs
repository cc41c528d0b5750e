//! What stands between a call and its upstream.
//!
//! One [`Guard`] for each upstream, so that a bad one hurts nobody else: no lock, line or budget
//! is shared. It outlives reloads: [`Guard::reconfigure`] changes the numbers and keeps breaker
//! state, tokens, lines and counters. It knows nothing of what a call says or where it goes; it is
//! handed the attempt as a closure, and others read its counters when they want to.
//!
//! [`Guard::run`] asks in this order, and this is why:
//!
//! ```text
//!  breaker, a look      An open breaker refuses before anybody waits in a line for nothing.
//!     ▼
//!  concurrency          The line for a place comes before the tokens: a token that is held while
//!     ▼                 its call waits would be missing elsewhere and be used too late.
//!  breaker, a look   ◀┐ It may have opened while the call stood in line.
//!     ▼               │
//!  tool's limiter     │ The narrower bucket first: a call that its tool's limit turns away must
//!     ▼               │ not take a token from the other tools.
//!  upstream's limiter │ Waits up to `max_wait`; refuses at once if it would take longer, or if
//!     ▼               │ the upstream asked for a pause that lasts longer.
//!  breaker, admission │ Last, because a half-open breaker counts who really goes as its probe.
//!     ▼               │
//!  the attempt        │ Under the deadline, which is one for all that stands here. A slow one
//!     ▼               │ of a read may get another beside it (`hedge.rs`).
//!  retry ─────────────┘ Keeps the place, needs new tokens and a new admission.
//! ```
//!
//! Everything taken is given back by dropping it: a caller that drops the future leaves its
//! place in any line, its permit, its unspent tokens and its probe's place, and counts neither
//! as success nor as failure.

mod breaker;
mod concurrency;
mod deadline;
mod hedge;
mod limiter;
mod look;
mod retry;
mod throttle;
mod upkeep;
mod window;

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwap;
use tokio::time::Instant;

pub use breaker::{BreakerSnapshot, State, Why};
pub use concurrency::Lent;
pub use deadline::{Deadline, Elapsed, Paused};
pub use hedge::Hedge;
pub use limiter::{Dry, Limiter, Rate, Token};
pub use look::{Look, Part};
pub use upkeep::{Term, Upkeep};

use breaker::{Admission, Breaker};
use concurrency::{Concurrency, Crowded, Permit};
use retry::Retry;
use throttle::Throttle;

use crate::config::{GuardConfig, RateConfig};
use crate::failure::{Delivery, Failure, Fault, Reason, Refusal};
use crate::timer::Timers;

/// The guard of one upstream.
#[derive(Debug)]
pub struct Guard {
    upstream: Arc<str>,
    breaker: Breaker,
    concurrency: Concurrency,
    limiter: Arc<Limiter>,
    retry: Retry,
    throttle: ArcSwap<Throttle>,
    upkeep: Upkeep,
    timers: Timers,
    tally: Tally,
}

/// What the guard must know of a call.
#[derive(Clone, Copy, Debug, Default)]
pub struct Ask<'a> {
    /// It may be repeated whatever happened to it, because it changes nothing. Without effect on
    /// a write.
    pub repeatable: bool,
    /// It may change something: it is never sent twice unless the first request provably never
    /// left or `keyed` says so, and its outcome is unknown when no answer came.
    pub write: bool,
    /// It carries a key by which the upstream knows it again: whether it may be repeated although
    /// it is a write, as things stand.
    pub keyed: Option<&'a AtomicBool>,
    /// The bucket of the tool's own, besides the upstream's.
    pub tool: Option<&'a Limiter>,
    /// When it gets a second attempt beside the first. Without effect on a write.
    pub hedge: Option<&'a Hedge>,
}

/// What an attempt brought back.
#[derive(Clone, Copy, Debug)]
pub struct Done<T> {
    /// The answer.
    pub value: T,
    /// What the answer says about the upstream.
    pub signal: Signal,
}

/// What an answer says about the upstream.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Signal {
    /// It is well.
    Fine,
    /// The answer's text means throttling; it goes to the caller as it is, but the bucket
    /// pauses, for this long if the text says so. No verdict for the breaker.
    Throttled(Option<Duration>),
    /// It broke off when its caller had got a part of it: a failure like any other, but nothing
    /// may be repeated.
    Broken(Reason),
}

impl<T> Done<T> {
    /// An answer from an upstream that is well.
    pub fn fine(value: T) -> Done<T> {
        Done { value, signal: Signal::Fine }
    }
}

/// What a call cost besides its attempts.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Spent {
    /// Time in line for a place.
    pub queued: Duration,
    /// Time in line for tokens, over all attempts.
    pub limited: Duration,
    /// Attempts made; 0: the upstream never saw the call.
    pub attempts: u32,
    /// Why it is not known what became of an earlier attempt, where a later one was answered.
    pub doubt: Option<Reason>,
}

/// How a guard stands. Counters run from its making.
#[derive(Clone, Debug)]
pub struct GuardSnapshot {
    /// State, reason and counters of the breaker.
    pub breaker: BreakerSnapshot,
    /// Calls that hold a place.
    pub in_flight: u32,
    /// Calls in line for a place.
    pub queued: u32,
    /// Calls in line for a token of the upstream's bucket.
    pub limited: u32,
    /// Tokens in the upstream's bucket; `None`: no limit.
    pub tokens: Option<f64>,
    /// How long the upstream's wish for a pause still holds, if there is one.
    pub paused: Option<Duration>,
    /// Calls refused, by reason.
    pub refused: [(Reason, u64); REFUSALS.len()],
    /// Waits for tokens.
    pub limiter_waits: u64,
    /// Time in these waits.
    pub limiter_waited: Duration,
    /// Retries made.
    pub retries: u64,
    /// Retries and second attempts that only the budget forbade.
    pub retries_denied: u64,
    /// Second attempts made beside a slow first one.
    pub hedges: u64,
    /// Of these, those whose answer was the first.
    pub hedges_won: u64,
    /// And those whose call ended otherwise: the first answered, or neither did.
    pub hedges_lost: u64,
}

/// The reasons for which a guard refuses.
pub const REFUSALS: [Reason; 5] = [
    Reason::BreakerOpen,
    Reason::QueueFull,
    Reason::RateLimited,
    Reason::Throttled,
    Reason::DeadlineExceeded,
];

impl Guard {
    /// The guard of `upstream`, closed, idle and with a full bucket.
    pub fn new(upstream: Arc<str>, config: &GuardConfig) -> Guard {
        Guard::with_jitter(upstream, config, retry::random_share)
    }

    fn with_jitter(upstream: Arc<str>, config: &GuardConfig, jitter: retry::Share) -> Guard {
        Guard {
            breaker: Breaker::new(upstream.clone(), config.breaker),
            concurrency: Concurrency::new(config.concurrency),
            limiter: Arc::new(Limiter::new(config.rate.as_ref())),
            retry: Retry::new(config.retry, jitter),
            throttle: ArcSwap::from_pointee(Throttle::new(&config.throttle)),
            upkeep: Upkeep::default(),
            timers: Timers::default(),
            tally: Tally::default(),
            upstream,
        }
    }

    /// What counts the calls to the upstream; its successor goes on with it.
    pub fn limiter(&self) -> &Arc<Limiter> {
        &self.limiter
    }

    /// Go on with the tokens and the pause of another instance, at this rate.
    pub fn limit_by(&mut self, limiter: Arc<Limiter>, rate: Option<&RateConfig>) {
        limiter.reconfigure(rate);
        self.limiter = limiter;
    }

    /// Take new settings. Breaker state, tokens, waiters and counters are kept; each part says
    /// what a change means for who is already in it.
    pub fn reconfigure(&self, config: &GuardConfig) {
        self.breaker.reconfigure(config.breaker);
        self.concurrency.reconfigure(config.concurrency);
        self.limiter.reconfigure(config.rate.as_ref());
        self.retry.reconfigure(config.retry);
        self.throttle.store(Arc::new(Throttle::new(&config.throttle)));
    }

    /// Take what the upstream's operators say of it.
    pub fn keep_up(&self, settings: Option<&crate::config::upkeep::Upkeep>) {
        self.upkeep.set(&self.upstream, settings);
    }

    /// The time without calls that its operators set, if it is now.
    pub fn upkeep(&self) -> Option<Term> {
        self.upkeep.now(&self.upstream)
    }

    /// Why the operators let a call not through. One that `goes_on` began before: draining lets it
    /// end. For callers that have reasons of their own to refuse; [`Guard::run`] asks only about
    /// what it has let in.
    pub fn barred(&self, goes_on: impl FnOnce() -> bool) -> Option<Refusal> {
        self.upkeep.refusal(&self.upstream, goes_on)
    }

    /// Take a call to the upstream, if it is let through, and again where that is sound.
    ///
    /// `attempt` is given the number of the attempt, from 1. It is dropped when the deadline
    /// passes; whatever it sent must then be cancelled by its drop. A retry that is not let
    /// through any more ends with the fault that called for it.
    ///
    /// Decided: a closure that returns a future, and not an async closure, whose futures the
    /// compiler cannot yet show to be `Send` for every lifetime; no call could run in a task.
    pub async fn run<T, F: Future<Output = Result<Done<T>, Fault>>>(
        &self,
        ask: &Ask<'_>,
        deadline: &Deadline,
        attempt: impl FnMut(u32) -> F,
    ) -> (Result<T, Failure>, Spent) {
        let mut spent = Spent::default();
        let outcome = self.walk(ask, deadline, attempt, &mut spent).await;
        (outcome, spent)
    }

    async fn walk<T, F: Future<Output = Result<Done<T>, Fault>>>(
        &self,
        ask: &Ask<'_>,
        deadline: &Deadline,
        mut attempt: impl FnMut(u32) -> F,
        spent: &mut Spent,
    ) -> Result<T, Failure> {
        self.breaker.check().map_err(|wait| self.refuse(self.resting(wait)))?;
        let _permit = self.place(deadline, spent).await.map_err(|refusal| self.refuse(refusal))?;
        let mut last: Option<Failure> = None;
        // A write that carries a key is repeated when it may have arrived; what a later attempt
        // proves of itself proves nothing of the earlier one.
        let mut doubt = None;
        loop {
            let admission = match self.admit(ask, deadline, spent).await {
                Ok(admission) => admission,
                Err(refusal) => return Err(last.unwrap_or_else(|| self.refuse(refusal))),
            };
            spent.attempts += 1;
            if spent.attempts == 1 {
                self.retry.sent(admission.begun());
            }
            let hedge = ask.hedge.filter(|_| spent.attempts == 1 && !ask.write);
            let (ended, admission) = match hedge {
                None => {
                    let mut timer = self.timers.take();
                    (deadline.run_by(&mut timer, attempt(spent.attempts)).await, admission)
                }
                // Boxed, since most calls have none.
                Some(hedge) => {
                    let ask = (ask, hedge);
                    Box::pin(self.hedged(ask, deadline, &mut attempt, admission, spent)).await
                }
            };
            if matches!(ended, Ok(Ok(_))) {
                spent.doubt = doubt;
            }
            let mut fault = match ended {
                Ok(Ok(Done { value, signal: Signal::Fine })) => {
                    admission.succeeded(deadline.rested());
                    return Ok(value);
                }
                Ok(Ok(Done { value, signal: Signal::Throttled(how_long) })) => {
                    self.throttled(how_long);
                    return Ok(value);
                }
                Ok(Ok(Done { value, signal: Signal::Broken(reason) })) => {
                    admission.failed(reason);
                    return Ok(value);
                }
                Ok(Err(fault)) => fault,
                Err(Elapsed) => timed_out(deadline),
            };
            let at_least = self.failed(admission, &mut fault);
            let keyed = ask.keyed.is_some_and(|keyed| keyed.load(Ordering::Relaxed));
            let repeatable = ask.repeatable && !ask.write || keyed;
            if fault.delivery == Delivery::Unknown {
                doubt.get_or_insert(fault.reason);
            }
            let pause = self
                .retry
                .pause(&fault, repeatable, spent.attempts, at_least)
                .filter(|pause| *pause < deadline.remaining())
                .filter(|_| self.breaker.check().is_ok())
                // Last, because it takes from the budget.
                .filter(|_| self.retry.draw());
            let reason = fault.reason;
            let mut failure = Failure::from_fault(fault, &self.upstream, ask.write);
            failure.outcome_unknown = ask.write && doubt.is_some();
            failure.keyed = ask.keyed.is_some() && spent.attempts > 1;
            let Some(pause) = pause else { return Err(failure) };
            tracing::debug!(
                upstream = &*self.upstream,
                attempt = spent.attempts,
                %reason,
                pause_ms = pause.as_millis() as u64,
                "a call to {} is repeated", self.upstream,
            );
            last = Some(failure);
            Box::pin(tokio::time::sleep(pause)).await;
        }
    }

    // What a failed attempt says of the upstream; the least pause before the next.
    fn failed(&self, admission: Admission<'_>, fault: &mut Fault) -> Duration {
        // A status that says no to this request says nothing of the next.
        if fault.reason != Reason::UpstreamStatus || fault.delivery != Delivery::Refused {
            admission.failed(fault.reason);
        }
        let mut at_least = Duration::ZERO;
        if fault.reason == Reason::Throttled {
            at_least = self.throttled(fault.retry_after);
            fault.retry_after.get_or_insert(at_least);
        }
        at_least
    }

    /// The call asks its caller something: its place serves others and its clock stands still
    /// until what is returned is dropped.
    pub fn asking(&self, deadline: &Deadline) -> (Option<Lent<'_>>, Paused) {
        let paused = deadline.pause();
        // A call has one place, however many questions are open at once.
        (paused.first().then(|| self.lend()), paused)
    }

    /// The call waits for something that is not the upstream: its place serves others until what
    /// is returned is dropped.
    pub fn lend(&self) -> Lent<'_> {
        self.concurrency.lend()
    }

    /// The upstream asked for a pause, outside any call. Capped by `throttle.pause_max`.
    pub fn pause(&self, how_long: Duration) {
        self.throttled(Some(how_long));
    }

    /// Whether a text in an answer means throttling, by the configured texts.
    pub fn means_throttling(&self, text: &str) -> bool {
        self.throttle.load().means_throttling(text)
    }

    /// How it stands.
    pub fn snapshot(&self) -> GuardSnapshot {
        GuardSnapshot {
            breaker: self.breaker.snapshot(),
            in_flight: self.concurrency.in_flight(),
            queued: self.concurrency.queued(),
            limited: self.limiter.waiting(),
            tokens: self.limiter.tokens(),
            paused: self.limiter.paused(),
            refused: std::array::from_fn(|i| {
                (REFUSALS[i], self.tally.refused[i].load(Ordering::Relaxed))
            }),
            limiter_waits: self.tally.waits.load(Ordering::Relaxed),
            limiter_waited: Duration::from_nanos(self.tally.waited.load(Ordering::Relaxed)),
            retries: self.retry.retries(),
            retries_denied: self.retry.denied(),
            hedges: self.retry.hedges(),
            hedges_won: self.retry.hedges_won(),
            hedges_lost: self.retry.hedges_lost(),
        }
    }

    /// A place among the calls in flight.
    async fn place(&self, deadline: &Deadline, spent: &mut Spent) -> Result<Permit<'_>, Refusal> {
        let place = tokio::select! {
            biased;
            place = self.concurrency.acquire(deadline) => place,
            refusal = self.upkeep.halt(&self.upstream) => return Err(refusal),
        };
        match place {
            Ok(permit) => {
                spent.queued = permit.waited;
                Ok(permit)
            }
            Err(Crowded::QueueFull) => Err(self.crowded()),
            Err(Crowded::Late(waited)) => {
                spent.queued = waited;
                Err(self.late())
            }
        }
    }

    /// Leave for one attempt; spends its tokens.
    async fn admit(
        &self,
        ask: &Ask<'_>,
        deadline: &Deadline,
        spent: &mut Spent,
    ) -> Result<Admission<'_>, Refusal> {
        if let Some(refusal) = self.upkeep.halted(&self.upstream) {
            return Err(refusal);
        }
        self.breaker.check().map_err(|wait| self.resting(wait))?;
        let own = match ask.tool {
            Some(tool) => Some(self.token(tool, deadline, spent).await?),
            None => None,
        };
        let shared = self.token(&self.limiter, deadline, spent).await?;
        // Nothing may be sent when it is too late to hear the answer.
        let now = Instant::now();
        if deadline.end() <= now {
            return Err(self.late());
        }
        let admission = self.breaker.admit(now).map_err(|wait| self.resting(wait))?;
        if let Some(own) = own {
            own.spend();
        }
        shared.spend();
        Ok(admission)
    }

    async fn token<'l>(
        &self,
        limiter: &'l Limiter,
        deadline: &Deadline,
        spent: &mut Spent,
    ) -> Result<Token<'l>, Refusal> {
        let outcome = tokio::select! {
            biased;
            outcome = limiter.take(deadline.end()) => outcome,
            refusal = self.upkeep.halt(&self.upstream) => return Err(refusal),
        };
        let waited = match &outcome {
            Ok(token) => token.waited,
            Err(dry) => dry.waited,
        };
        if !waited.is_zero() {
            spent.limited += waited;
            self.tally.waits.fetch_add(1, Ordering::Relaxed);
            self.tally.waited.fetch_add(waited.as_nanos() as u64, Ordering::Relaxed);
        }
        outcome.map_err(|dry| self.dry(dry))
    }

    /// Pause the bucket for as long as was asked, or else as configured; returns the pause.
    fn throttled(&self, how_long: Option<Duration>) -> Duration {
        let pause = self.throttle.load().pause(how_long);
        self.limiter.pause(pause);
        pause
    }

    fn refusal(&self, reason: Reason, text: &str) -> Refusal {
        Refusal::new(reason, text).at(&self.upstream)
    }

    fn resting(&self, wait: Duration) -> Refusal {
        let text = "it was not called: it is given a rest after recent calls failed or were slow";
        self.refusal(Reason::BreakerOpen, text).retry_after(wait)
    }

    fn crowded(&self) -> Refusal {
        let text = "it was not called: as many calls are waiting for it as may";
        self.refusal(Reason::QueueFull, text)
    }

    fn dry(&self, dry: Dry) -> Refusal {
        let refusal = if dry.paused {
            self.refusal(Reason::Throttled, "it was not called: it asked for a pause")
        } else {
            let text = "it was not called: its rate limit leaves no room for the call in time";
            self.refusal(Reason::RateLimited, text)
        };
        refusal.retry_after(dry.retry_after)
    }

    fn late(&self) -> Refusal {
        let text = "it was not called: the deadline passed while the call was waiting";
        self.refusal(Reason::DeadlineExceeded, text)
    }

    /// The end of a call that never reached the upstream.
    fn refuse(&self, refusal: Refusal) -> Failure {
        if let Some(i) = REFUSALS.iter().position(|reason| *reason == refusal.reason) {
            self.tally.refused[i].fetch_add(1, Ordering::Relaxed);
        }
        refusal.into()
    }
}

/// What is counted here and nowhere below.
#[derive(Debug, Default)]
struct Tally {
    /// In the order of [`REFUSALS`].
    refused: [AtomicU64; REFUSALS.len()],
    waits: AtomicU64,
    /// In nanoseconds.
    waited: AtomicU64,
}

fn timed_out(deadline: &Deadline) -> Fault {
    // The request may have been sent before the attempt began to hang.
    let text = format!("no answer came in time; {:.1} s have passed", deadline.age().as_secs_f64());
    Fault::new(Reason::DeadlineExceeded, Delivery::Unknown, text)
}

/// Lock what cannot be left half-changed by a panic: the sections in this module only add,
/// compare and store.
fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
