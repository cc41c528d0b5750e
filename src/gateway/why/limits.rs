//! The limits on the way of a call, and how near they are.

use crate::config::RateConfig;
use crate::config::section::show_duration;
use crate::guard::Look;

use super::{Case, Limit};
use crate::gateway::Room;
use crate::upstream::outlook::Terms;

impl Case<'_> {
    /// Those that hold whatever is called. What all consumers do together is for operators.
    pub(super) fn general_limits(&self, operator: bool) -> Vec<Limit> {
        let mut out = Vec::new();
        let config = &self.snapshot.config;
        let (room, (all, own)) = (Room::of(config), self.under_way());
        let key = "gateway.max_calls";
        if operator {
            let says = format!("{all} of {} calls under way", room.max);
            out.push(limit(key, all as f64, room.max as f64, says));
        }
        if room.share < room.max {
            let says = format!("{own} of {} calls of this consumer under way", room.share);
            out.push(limit(key, own as f64, room.share as f64, says));
        }
        let name = &self.consumer.name;
        let rate = config.consumers.iter().find(|c| c.name == *name).and_then(|c| c.rate);
        let quota = self.snapshot.identity.named(name).and_then(|m| m.quota.as_ref());
        if let (Some(rate), Some(tokens)) = (rate, quota.and_then(|q| q.tokens())) {
            out.push(bucket(format!("consumers.{name}.rate"), &rate, tokens));
        }
        out
    }
}

/// Those of an upstream.
pub(super) fn upstream(
    config: &crate::config::UpstreamConfig,
    terms: &Terms<'_>,
    look: &Look,
) -> Vec<Limit> {
    let (guard, settings) = (&look.guard, &config.guard);
    let at = |key: &str| format!("upstreams.{}.{key}", config.name);
    let mut out = Vec::new();
    let b = &settings.breaker;
    if b.enabled {
        let (row, most) = (guard.breaker.in_a_row, b.consecutive);
        let says = format!("{row} of {most} failures in a row");
        out.push(limit(at("breaker.consecutive"), row.into(), most.get().into(), says));
        let calls = guard.breaker.calls;
        let window = show_duration(b.window);
        for (key, part, share, what) in [
            ("breaker.failure_share", guard.breaker.failed, b.failure_share, "failed"),
            ("breaker.slow_share", guard.breaker.slow, b.slow_share, "were slow"),
        ] {
            let says = format!(
                "{part} of {calls} calls {what} in {window}; opens at {share} of at least {}",
                b.min_calls
            );
            // Fewer calls than that prove nothing, so none is near.
            let used = part as f64 / calls.max(b.min_calls.get().into()) as f64;
            out.push(limit(at(key), used, share, says));
        }
    }
    let c = settings.concurrency;
    let says = format!("{} of {} places taken", guard.in_flight, c.max);
    out.push(limit(at("concurrency.max"), guard.in_flight.into(), c.max.get().into(), says));
    let says = format!("{} of {} wait for a place", guard.queued, c.queue);
    out.push(limit(at("concurrency.queue"), guard.queued.into(), c.queue.into(), says));
    if let (Some(rule), Some(tokens)) = (terms.rule, look.tool_tokens)
        && let Some(rate) = &rule.rate
    {
        out.push(bucket(at(&format!("tools.{:?}.rate", rule.pattern)), rate, tokens));
    }
    if let (Some(rate), Some(tokens)) = (&settings.rate, guard.tokens) {
        out.push(bucket(at("rate"), rate, tokens));
    }
    out
}

fn bucket(key: String, rate: &RateConfig, tokens: f64) -> Limit {
    let burst = f64::from(rate.burst.get());
    let left = tokens.clamp(0.0, burst);
    let mut says = format!("{left:.1} of {burst} tokens left, {} a second", rate.per_second);
    if !rate.max_wait.is_zero() {
        says = format!("{says}, waits up to {}", show_duration(rate.max_wait));
    }
    limit(key, burst - left, burst, says)
}

fn limit(key: impl Into<String>, used: f64, max: f64, says: String) -> Limit {
    // More digits would only say that time passes.
    Limit { key: key.into(), used: (used * 100.0).round() / 100.0, max, says }
}
