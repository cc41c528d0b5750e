//! Stop calling an upstream that is broken, and find out when it no longer is.
//!
//! ```text
//!            tripped                    rested
//!  ┌────────┐ ───────────▶ ┌──────┐ ───────────────▶ ┌───────────┐
//!  │ closed │              │ open │                  │ half-open │
//!  └────────┘              └──────┘ ◀─────────────── └───────────┘
//!      ▲                              relapsed             │
//!      └───────────────────────────────────────────────────┘
//!                            recovered
//! ```
//!
//! *Closed* is passing, *open* is refusing, *half-open* lets a few calls through as probes.
//! What trips it: a share of failures or of slow calls over a sliding window, or failures in a
//! row. A call that succeeds quickly never trips it, whatever the window says. There is no
//! timer: an open breaker becomes half-open when the first call comes after `open_for`.
//!
//! The pure part is [`Core`]: no lock, no clock, no log; it is tested against a model that
//! remembers everything.
//!
//! Decided:
//! - `open_for` stays constant. A growing pause would keep a business system out for minutes
//!   after it is back; a probe every `open_for` costs a broken upstream nothing.
//! - A call counts in the period in which it was admitted. A result that arrives after the
//!   breaker has moved on is news about the past and changes nothing.
//! - A probe that succeeds slowly is a success: the window, with many calls, judges slowness; one
//!   long report that happens to be the probe must not keep an upstream out.

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use super::lock;
use super::window::Window;
use crate::config::BreakerConfig;
use crate::failure::Reason;

/// What a call that finds all probes under way is told to wait at most. How long they take
/// cannot be known; a second is soon enough to try again and too long to be a storm.
const PROBE_HINT: Duration = Duration::from_secs(1);

/// What the breaker does.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum State {
    /// Calls pass.
    Closed,
    /// Calls are refused.
    Open,
    /// A few calls pass as probes, the others are refused.
    HalfOpen,
}

/// What moves it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Event {
    /// Too many failures or slow calls.
    Tripped,
    /// A call came after `open_for`.
    Rested,
    /// Enough probes succeeded.
    Recovered,
    /// A probe failed.
    Relapsed,
    /// A reload set `enabled = false`.
    SwitchedOff,
}

impl State {
    /// All, for metrics.
    pub const ALL: [State; 3] = [State::Closed, State::Open, State::HalfOpen];

    /// The word.
    pub fn as_str(self) -> &'static str {
        match self {
            State::Closed => "closed",
            State::Open => "open",
            State::HalfOpen => "half_open",
        }
    }

    /// The state machine. `None`: the event means nothing there.
    const fn next(self, event: Event) -> Option<State> {
        match (self, event) {
            (State::Closed, Event::Tripped) | (State::HalfOpen, Event::Relapsed) => {
                Some(State::Open)
            }
            (State::Open, Event::Rested) => Some(State::HalfOpen),
            (State::HalfOpen, Event::Recovered)
            | (State::Open | State::HalfOpen, Event::SwitchedOff) => Some(State::Closed),
            _ => None,
        }
    }
}

impl fmt::Display for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// Why it opened, with the figures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Why {
    /// Failures in a row.
    InARow {
        /// How many.
        failures: u32,
        /// How the last one failed.
        last: Reason,
    },
    /// Share of failures over the window.
    FailureShare {
        /// Failures in the window.
        failed: u64,
        /// Calls in the window.
        calls: u64,
        /// How the last one failed.
        last: Reason,
    },
    /// Share of slow calls over the window.
    SlowShare {
        /// Slow calls in the window.
        slow: u64,
        /// Calls in the window.
        calls: u64,
        /// What slow means.
        slow_call: Duration,
    },
    /// A probe failed.
    ProbeFailed {
        /// How.
        last: Reason,
    },
}

impl fmt::Display for Why {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Why::InARow { failures, last } => {
                write!(f, "{failures} calls in a row failed, the last: {last}")
            }
            Why::FailureShare { failed, calls, last } => {
                write!(f, "{failed} of the last {calls} calls failed, the last: {last}")
            }
            Why::SlowShare { slow, calls, slow_call } => {
                write!(f, "{slow} of the last {calls} calls took longer than {slow_call:?}")
            }
            Why::ProbeFailed { last } => write!(f, "a probe failed: {last}"),
        }
    }
}

/// How it stands.
#[derive(Clone, Debug)]
pub struct BreakerSnapshot {
    /// What it does.
    pub state: State,
    /// For how long it has done so.
    pub age: Duration,
    /// Why it opened last; `None`: it never did.
    pub why: Option<Why>,
    /// While open: time until it lets a probe through.
    pub probe_in: Option<Duration>,
    /// Calls in the window.
    pub calls: u64,
    /// Failures in the window.
    pub failed: u64,
    /// Slow calls in the window.
    pub slow: u64,
    /// How often it has opened.
    pub opened: u64,
    /// How often it has become half-open.
    pub half_opened: u64,
    /// How often it has closed.
    pub closed: u64,
}

/// The breaker of one upstream.
#[derive(Debug)]
pub(super) struct Breaker {
    upstream: Arc<str>,
    /// A lock and not atomics, because a result changes the window, the row and perhaps the
    /// state, and two results at once must not both open it. Held for a few additions.
    core: Mutex<Core>,
}

/// Leave to call. Dropping it without a verdict counts for nothing and frees the probe's place:
/// the caller went away, or the answer says nothing about the upstream's health.
#[derive(Debug)]
#[must_use]
pub(super) struct Admission<'a> {
    breaker: &'a Breaker,
    ticket: Ticket,
    verdict: Option<Verdict>,
}

impl Breaker {
    pub(super) fn new(upstream: Arc<str>, config: BreakerConfig) -> Breaker {
        Breaker { upstream, core: Mutex::new(Core::new(config, Instant::now())) }
    }

    /// Take new settings; state, window and counters stay, unless it is switched off.
    pub(super) fn reconfigure(&self, config: BreakerConfig) {
        let moved = lock(&self.core).reconfigure(config, Instant::now());
        self.log(moved.as_ref());
    }

    /// Whether a call would be let through now; otherwise when to ask again. Takes no probe's
    /// place: for refusing early.
    pub(super) fn check(&self) -> Result<(), Duration> {
        lock(&self.core).check(Instant::now())
    }

    /// Let a call through, or say when to ask again.
    pub(super) fn admit(&self) -> Result<Admission<'_>, Duration> {
        let (ticket, moved) = lock(&self.core).admit(Instant::now());
        self.log(moved.as_ref());
        ticket.map(|ticket| Admission { breaker: self, ticket, verdict: None })
    }

    pub(super) fn snapshot(&self) -> BreakerSnapshot {
        lock(&self.core).snapshot(Instant::now())
    }

    /// Outside the lock, because a log line may be slow.
    fn log(&self, moved: Option<&Move>) {
        let Some(Move { from, to, why }) = moved else { return };
        let upstream = &*self.upstream;
        if *to == State::Open {
            tracing::warn!(upstream, %from, %to, %why, "the breaker of {upstream} opened");
        } else {
            tracing::info!(upstream, %from, %to, %why, "the breaker of {upstream} is {to}");
        }
    }
}

impl Admission<'_> {
    /// The call ended well.
    pub(super) fn succeeded(mut self) {
        self.verdict = Some(Verdict::Success);
    }

    /// The call failed; counts if that is the upstream's doing.
    pub(super) fn failed(mut self, reason: Reason) {
        self.verdict = counts(reason).then_some(Verdict::Failure(reason));
    }
}

impl Drop for Admission<'_> {
    fn drop(&mut self) {
        let breaker = self.breaker;
        let moved = lock(&breaker.core).finish(self.ticket, self.verdict, Instant::now());
        breaker.log(moved.as_ref());
    }
}

/// Whether a fault with this reason says that the upstream is broken. Throttling says that it is
/// well and busy, and pauses the bucket instead; the others are ours or the client's doing.
fn counts(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Throttled
            | Reason::Cancelled
            | Reason::CapabilityMissing
            | Reason::Draining
            | Reason::Retired
    )
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
enum Verdict {
    Success,
    Failure(Reason),
}

/// What an admitted call remembers.
#[derive(Clone, Copy, Debug)]
struct Ticket {
    period: u64,
    begun: Instant,
}

/// A transition, to be logged.
#[derive(Debug)]
struct Move {
    from: State,
    to: State,
    why: String,
}

/// State, window and counters.
#[derive(Debug)]
struct Core {
    config: BreakerConfig,
    state: State,
    since: Instant,
    /// Number of the current state's period; tells late results from current ones.
    period: u64,
    /// Calls, failures, slow calls.
    window: Window<3>,
    in_a_row: u32,
    /// Probes under way.
    probing: u32,
    /// Probes that succeeded.
    recovered: u32,
    why: Option<Why>,
    opened: u64,
    half_opened: u64,
    closed: u64,
}

impl Core {
    fn new(config: BreakerConfig, now: Instant) -> Core {
        Core {
            config,
            state: State::Closed,
            since: now,
            period: 0,
            window: Window::new(config.window, now),
            in_a_row: 0,
            probing: 0,
            recovered: 0,
            why: None,
            opened: 0,
            half_opened: 0,
            closed: 0,
        }
    }

    fn reconfigure(&mut self, config: BreakerConfig, now: Instant) -> Option<Move> {
        self.config = config;
        self.window.resize(config.window, now);
        if !config.enabled {
            self.window.clear();
            self.in_a_row = 0;
            return self.go(Event::SwitchedOff, now, "switched off".into());
        }
        // Fewer probes may be asked for than have succeeded; no further one would come to tell.
        if self.state == State::HalfOpen && self.recovered >= config.probes.get() {
            return self.close(now);
        }
        None
    }

    fn check(&self, now: Instant) -> Result<(), Duration> {
        match self.state {
            State::Closed => Ok(()),
            State::Open => match self.rest(now) {
                Duration::ZERO => Ok(()),
                rest => Err(rest),
            },
            // Never more probes than successes are missing.
            State::HalfOpen if self.probing + self.recovered < self.config.probes.get() => Ok(()),
            State::HalfOpen => Err(PROBE_HINT.min(self.config.open_for)),
        }
    }

    fn admit(&mut self, now: Instant) -> (Result<Ticket, Duration>, Option<Move>) {
        if let Err(wait) = self.check(now) {
            return (Err(wait), None);
        }
        let moved = match self.state {
            State::Open => {
                let why = format!("it was open for {:?}", self.config.open_for);
                self.go(Event::Rested, now, why)
            }
            _ => None,
        };
        if self.state == State::HalfOpen {
            self.probing += 1;
        }
        (Ok(Ticket { period: self.period, begun: now }), moved)
    }

    fn finish(&mut self, ticket: Ticket, verdict: Option<Verdict>, now: Instant) -> Option<Move> {
        if ticket.period != self.period {
            return None;
        }
        match (self.state, verdict) {
            (State::Closed, Some(verdict)) if self.config.enabled => {
                let took = now.saturating_duration_since(ticket.begun);
                self.count(verdict, took > self.config.slow_call, now)
            }
            (State::HalfOpen, verdict) => {
                self.probing -= 1;
                match verdict {
                    None => None,
                    Some(Verdict::Failure(last)) => {
                        self.open(Event::Relapsed, Why::ProbeFailed { last }, now)
                    }
                    Some(Verdict::Success) => {
                        self.recovered += 1;
                        if self.recovered < self.config.probes.get() {
                            return None;
                        }
                        self.close(now)
                    }
                }
            }
            _ => None,
        }
    }

    fn count(&mut self, verdict: Verdict, slow: bool, now: Instant) -> Option<Move> {
        let failed = matches!(verdict, Verdict::Failure(_));
        self.in_a_row = if failed { self.in_a_row.saturating_add(1) } else { 0 };
        self.window.add(now, [1, failed.into(), slow.into()]);
        let why = self.judge(verdict, slow, now)?;
        self.open(Event::Tripped, why, now)
    }

    /// Whether the call just counted is one too many.
    fn judge(&self, verdict: Verdict, slow: bool, now: Instant) -> Option<Why> {
        let config = &self.config;
        let [calls, all_failed, all_slow] = self.window.sums(now);
        let proven = calls >= config.min_calls.get().into();
        // A division, so that 11 of 20 is exactly the 0.55 that someone wrote.
        let share = |part: u64| part as f64 / calls as f64;
        if let Verdict::Failure(last) = verdict {
            if self.in_a_row >= config.consecutive.get() {
                return Some(Why::InARow { failures: self.in_a_row, last });
            }
            if proven && share(all_failed) >= config.failure_share {
                return Some(Why::FailureShare { failed: all_failed, calls, last });
            }
        }
        (slow && proven && share(all_slow) >= config.slow_share).then_some(Why::SlowShare {
            slow: all_slow,
            calls,
            slow_call: config.slow_call,
        })
    }

    fn open(&mut self, event: Event, why: Why, now: Instant) -> Option<Move> {
        self.why = Some(why);
        self.go(event, now, why.to_string())
    }

    fn close(&mut self, now: Instant) -> Option<Move> {
        let why = format!("{} of {} probes succeeded", self.recovered, self.config.probes);
        self.go(Event::Recovered, now, why)
    }

    /// The one place where the state changes.
    fn go(&mut self, event: Event, now: Instant, why: String) -> Option<Move> {
        let (from, to) = (self.state, self.state.next(event)?);
        self.state = to;
        self.since = now;
        self.period += 1;
        self.window.clear();
        (self.in_a_row, self.probing, self.recovered) = (0, 0, 0);
        match to {
            State::Closed => self.closed += 1,
            State::Open => self.opened += 1,
            State::HalfOpen => self.half_opened += 1,
        }
        Some(Move { from, to, why })
    }

    /// How long it still stays open.
    fn rest(&self, now: Instant) -> Duration {
        self.config.open_for.saturating_sub(now.saturating_duration_since(self.since))
    }

    fn snapshot(&self, now: Instant) -> BreakerSnapshot {
        let [calls, failed, slow] = self.window.sums(now);
        BreakerSnapshot {
            state: self.state,
            age: now.saturating_duration_since(self.since),
            why: self.why,
            probe_in: (self.state == State::Open).then(|| self.rest(now)),
            calls,
            failed,
            slow,
            opened: self.opened,
            half_opened: self.half_opened,
            closed: self.closed,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
