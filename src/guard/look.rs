//! What a call would meet, found out without making one: no token is taken, no place, no probe.
//!
//! The order is that of [`Guard::run`], and the refusals are made by the same functions.

use std::time::Duration;

use super::{Guard, GuardSnapshot, Limiter};
use crate::failure::Refusal;

/// A part of a guard that can refuse.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    /// The breaker.
    Breaker,
    /// The places and the line before them.
    Concurrency,
    /// The bucket of the tool's own.
    ToolRate,
    /// The upstream's bucket.
    Rate,
}

/// What a call would meet.
#[derive(Clone, Debug)]
pub struct Look {
    /// Which part would refuse it, and how.
    pub refused: Option<(Part, Refusal)>,
    /// For how long that has been so, where somebody keeps count.
    pub age: Option<Duration>,
    /// It would have to wait for a place; for how long depends on others.
    pub crowded: bool,
    /// How long it would wait for tokens.
    pub wait: Duration,
    /// How the guard stands.
    pub guard: GuardSnapshot,
    /// Tokens in the tool's own bucket.
    pub tool_tokens: Option<f64>,
}

impl Guard {
    /// What a call with this much time, and with this bucket of its tool's own, would meet now.
    pub fn look(&self, tool: Option<&Limiter>, time: Duration) -> Look {
        let guard = self.snapshot();
        let mut look = Look {
            refused: None,
            age: None,
            crowded: self.concurrency.is_full(),
            wait: Duration::ZERO,
            tool_tokens: tool.and_then(Limiter::tokens),
            guard,
        };
        if let Err(wait) = self.breaker.check() {
            look.refused = Some((Part::Breaker, self.resting(wait)));
            look.age = Some(look.guard.breaker.age);
            return look;
        }
        if look.crowded && self.concurrency.line_is_full() {
            look.refused = Some((Part::Concurrency, self.crowded()));
            return look;
        }
        let buckets = [(Part::ToolRate, tool), (Part::Rate, Some(&self.limiter))];
        for (part, bucket) in buckets {
            let Some(bucket) = bucket else { continue };
            match bucket.look(time) {
                Ok(wait) => look.wait = look.wait.max(wait),
                Err(dry) => {
                    look.age = bucket.paused_for().filter(|_| dry.paused);
                    look.refused = Some((part, self.dry(dry)));
                    return look;
                }
            }
        }
        look
    }
}
