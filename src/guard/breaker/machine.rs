//! The judgement of the breaker, free of lock, clock and log.

use std::time::Duration;

use tokio::time::Instant;

use super::{BreakerSnapshot, State, Why};
use crate::config::BreakerConfig;
use crate::failure::Reason;
use crate::guard::window::Window;

/// What a call that finds all probes under way is told to wait at most. How long they take
/// cannot be known; a second is soon enough to try again and too long to be a storm.
const PROBE_HINT: Duration = Duration::from_secs(1);

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

/// Whether a fault with this reason says that the upstream is broken. Throttling says that it is
/// well and busy, and pauses the bucket instead; the others are ours or the client's doing.
pub(super) fn counts(reason: Reason) -> bool {
    !matches!(
        reason,
        Reason::Throttled
            | Reason::Cancelled
            | Reason::Overloaded
            | Reason::QueueFull
            // It works; the answer is more than we keep. One caller's wish for it is nobody
            // else's trouble.
            | Reason::TooLarge
            | Reason::CapabilityMissing
            | Reason::HeaderMismatch
            | Reason::Draining
            | Reason::UpstreamDraining
            | Reason::Maintenance
            // The keeper knows it already, and tells calls without asking the breaker.
            | Reason::Dormant
            | Reason::UpstreamDown
            | Reason::Retired
    )
}

/// How a call ended.
#[derive(Clone, Copy, Debug)]
pub(super) enum Verdict {
    Success,
    Failure(Reason),
}

/// What an admitted call remembers.
#[derive(Clone, Copy, Debug)]
pub(super) struct Ticket {
    period: u64,
    pub(super) begun: Instant,
}

/// A transition, to be logged.
#[derive(Debug)]
pub(super) struct Move {
    pub(super) from: State,
    pub(super) to: State,
    pub(super) why: String,
}

/// State, window and counters.
#[derive(Debug)]
pub(super) struct Machine {
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

impl Machine {
    pub(super) fn new(config: BreakerConfig, now: Instant) -> Machine {
        Machine {
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

    pub(super) fn reconfigure(&mut self, config: BreakerConfig, now: Instant) -> Option<Move> {
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

    pub(super) fn is_closed(&self) -> bool {
        self.state == State::Closed
    }

    pub(super) fn check(&self, now: Instant) -> Result<(), Duration> {
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

    pub(super) fn admit(&mut self, now: Instant) -> (Result<Ticket, Duration>, Option<Move>) {
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

    pub(super) fn finish(
        &mut self,
        ticket: Ticket,
        verdict: Option<Verdict>,
        now: Instant,
    ) -> Option<Move> {
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

    pub(super) fn snapshot(&self, now: Instant) -> BreakerSnapshot {
        let [calls, failed, slow] = self.window.sums(now);
        BreakerSnapshot {
            state: self.state,
            age: now.saturating_duration_since(self.since),
            why: self.why,
            probe_in: (self.state == State::Open).then(|| self.rest(now)),
            calls,
            failed,
            slow,
            in_a_row: self.in_a_row,
            opened: self.opened,
            half_opened: self.half_opened,
            closed: self.closed,
        }
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used)]
mod tests;
