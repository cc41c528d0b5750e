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
//! This file is the outside: the words, the lock, the log. `machine.rs` is the judgement: no
//! lock, no clock, no log, so that it can be tested against a model that remembers everything.
//!
//! Decided:
//! - `open_for` stays constant. A growing pause would keep a business system out for minutes
//!   after it is back; a probe every `open_for` costs a broken upstream nothing.
//! - A call counts in the period in which it was admitted. A result that arrives after the
//!   breaker has moved on is news about the past and changes nothing.
//! - A probe that succeeds slowly is a success: the window, with many calls, judges slowness; one
//!   long report that happens to be the probe must not keep an upstream out.

mod machine;

use std::fmt;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use tokio::time::Instant;

use machine::{Machine, Move, Ticket, Verdict, counts};

use super::lock;
use crate::config::BreakerConfig;
use crate::failure::Reason;

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
    /// Failures since the last success.
    pub in_a_row: u32,
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
    machine: Mutex<Machine>,
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
        Breaker { upstream, machine: Mutex::new(Machine::new(config, Instant::now())) }
    }

    /// Take new settings; state, window and counters stay, unless it is switched off.
    pub(super) fn reconfigure(&self, config: BreakerConfig) {
        let moved = lock(&self.machine).reconfigure(config, Instant::now());
        self.log(moved.as_ref());
    }

    /// Whether a call would be let through now; otherwise when to ask again. Takes no probe's
    /// place: for refusing early.
    pub(super) fn check(&self) -> Result<(), Duration> {
        let machine = lock(&self.machine);
        // Mostly; then the time does not matter.
        if machine.is_closed() { Ok(()) } else { machine.check(Instant::now()) }
    }

    /// Let a call through, or say when to ask again.
    pub(super) fn admit(&self, now: Instant) -> Result<Admission<'_>, Duration> {
        let (ticket, moved) = lock(&self.machine).admit(now);
        self.log(moved.as_ref());
        ticket.map(|ticket| Admission { breaker: self, ticket, verdict: None })
    }

    pub(super) fn snapshot(&self) -> BreakerSnapshot {
        lock(&self.machine).snapshot(Instant::now())
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
    /// When it was given.
    pub(super) fn begun(&self) -> Instant {
        self.ticket.begun
    }

    /// The call ended well, and was waiting for its own caller for so long.
    pub(super) fn succeeded(mut self, rested: Duration) {
        self.ticket.begun += rested;
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
        let moved = lock(&breaker.machine).finish(self.ticket, self.verdict, Instant::now());
        breaker.log(moved.as_ref());
    }
}
