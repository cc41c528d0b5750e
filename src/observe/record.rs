//! What happened to one call, from its arrival to its end.
//!
//! ```text
//!  open ── bytes_in ─ route ─ spent ─ cause ─ bytes_out ──┬─ finish(outcome)
//!                                                          └─ dropped: the client went away
//! ```
//!
//! Either end happens exactly once and is one log line, one span and one move of the metrics.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::failure::Reason;

use super::Observe;
use super::metrics::{ToolSeries, UpstreamSeries};
use super::trace::{Context, Finished, SpanContext};

/// How a call ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// With a result.
    Ok,
    /// With a tool's result that says it is an error; the upstream did what it should.
    ToolError,
    /// With a JSON-RPC error of the upstream, which was passed on.
    UpstreamError,
    /// We said no.
    Refused(Reason),
    /// The upstream failed us.
    Fault(Reason),
    /// The client went away or cancelled.
    Cancelled,
}

impl Outcome {
    /// How many different ones there are, reasons included.
    pub(super) const COUNT: usize = 4 + 2 * Reason::ALL.len();

    /// A word.
    pub fn as_str(self) -> &'static str {
        match self {
            Outcome::Ok => "ok",
            Outcome::ToolError => "tool_error",
            Outcome::UpstreamError => "upstream_error",
            Outcome::Refused(_) => "refused",
            Outcome::Fault(_) => "fault",
            Outcome::Cancelled => "cancelled",
        }
    }

    /// Why, if it was refused or failed.
    pub fn reason(self) -> Option<Reason> {
        match self {
            Outcome::Refused(reason) | Outcome::Fault(reason) => Some(reason),
            _ => None,
        }
    }

    /// A place in a list of [`Outcome::COUNT`].
    pub(super) fn index(self) -> usize {
        match self {
            Outcome::Ok => 0,
            Outcome::ToolError => 1,
            Outcome::UpstreamError => 2,
            Outcome::Cancelled => 3,
            Outcome::Refused(reason) => 4 + reason as usize,
            Outcome::Fault(reason) => 4 + Reason::ALL.len() + reason as usize,
        }
    }

    /// All, in the order of their places.
    pub(super) fn all() -> impl Iterator<Item = Outcome> {
        [Outcome::Ok, Outcome::ToolError, Outcome::UpstreamError, Outcome::Cancelled]
            .into_iter()
            .chain(Reason::ALL.into_iter().map(Outcome::Refused))
            .chain(Reason::ALL.into_iter().map(Outcome::Fault))
    }
}

/// Most characters of a name in a log line; the longest tool names have 64.
const NAME_MAX: usize = 128;

/// The record of one call. Dropped unfinished, it ends as [`Outcome::Cancelled`].
pub struct Record {
    observe: Arc<Observe>,
    consumer: Arc<str>,
    method: &'static str,
    transport: &'static str,
    revision: &'static str,
    began: Instant,
    context: SpanContext,
    upstream: Option<Arc<UpstreamSeries>>,
    tool: Option<Arc<ToolSeries>>,
    name: Option<Arc<str>>,
    queued: Duration,
    limited: Duration,
    attempts: u32,
    bytes_in: usize,
    bytes_out: usize,
    cause: Option<Box<str>>,
    unknown: bool,
    finished: bool,
}

impl Record {
    /// A call arrived. `method` is a name of the method table, or `_other`; `context` is the
    /// `traceparent` and `tracestate` it brought, and is ignored if it is not valid.
    pub fn open(
        observe: &Arc<Observe>,
        consumer: &Arc<str>,
        method: &'static str,
        transport: &'static str,
        revision: &'static str,
        context: Option<(&str, Option<&str>)>,
    ) -> Record {
        let parent = context.and_then(|(parent, state)| Context::parse(parent, state));
        Record {
            context: observe.tracer.start(parent),
            observe: observe.clone(),
            consumer: consumer.clone(),
            method,
            transport,
            revision,
            began: Instant::now(),
            upstream: None,
            tool: None,
            name: None,
            queued: Duration::ZERO,
            limited: Duration::ZERO,
            attempts: 0,
            bytes_in: 0,
            bytes_out: 0,
            cause: None,
            unknown: false,
            finished: false,
        }
    }

    /// What the call names, for the log line only: a caller can name anything, so it is cut.
    pub fn name(&mut self, name: &str) {
        let end = name.char_indices().nth(NAME_MAX).map_or(name.len(), |(at, _)| at);
        self.name = (end > 0).then(|| name[..end].into());
    }

    /// The same, where the catalog has the name.
    pub fn named(&mut self, name: &Arc<str>) {
        if (1..=NAME_MAX).contains(&name.len()) {
            self.name = Some(name.clone());
        } else {
            self.name(name);
        }
    }

    /// Where the call goes; `tool` is the exposed name of the tool it calls.
    pub fn route(&mut self, upstream: &Arc<UpstreamSeries>, tool: Option<&str>) {
        self.tool = tool.map(|exposed| upstream.tool(exposed));
        self.upstream = Some(upstream.clone());
    }

    /// Whose the call would be, where it goes nowhere.
    pub fn upstream(&mut self, upstream: &Arc<UpstreamSeries>) {
        self.upstream = Some(upstream.clone());
    }

    /// What the guard spent: time in the queue, time for the rate limit, attempts in all.
    pub fn spent(&mut self, queued: Duration, limited: Duration, attempts: u32) {
        self.queued = queued;
        self.limited = limited;
        self.attempts = attempts;
    }

    /// Size of the request as it came.
    pub fn bytes_in(&mut self, bytes: usize) {
        self.bytes_in = bytes;
    }

    /// Size of the answer as it goes.
    pub fn bytes_out(&mut self, bytes: usize) {
        self.bytes_out = bytes;
    }

    /// What lies behind a fault, for the log line only. Holds no secret.
    pub fn cause(&mut self, cause: &str) {
        self.cause = Some(cause.into());
    }

    /// Nobody knows whether the call took effect.
    pub fn unknown(&mut self) {
        self.unknown = true;
    }

    /// `traceparent` for the upstream: our span's if there is one, else the caller's.
    pub fn traceparent(&self) -> Option<&str> {
        self.context.traceparent()
    }

    /// `tracestate` for the upstream.
    pub fn tracestate(&self) -> Option<&str> {
        self.context.tracestate()
    }

    /// The call ended.
    pub fn finish(mut self, outcome: Outcome) {
        self.end(outcome);
    }

    fn end(&mut self, outcome: Outcome) {
        if std::mem::replace(&mut self.finished, true) {
            return;
        }
        let took = self.began.elapsed();
        self.count(outcome, took);
        self.line(outcome, took);
        let context = std::mem::take(&mut self.context);
        let finished = Finished {
            method: self.method,
            took,
            outcome: outcome.as_str(),
            reason: outcome.reason().map(Reason::as_str),
            upstream: self.upstream.as_ref().map(|u| &**u.name()),
            tool: self.tool.as_ref().map(|t| &**t.name()),
        };
        self.observe.tracer.finish(context, &finished);
    }

    fn count(&self, outcome: Outcome, took: Duration) {
        let Some(upstream) = &self.upstream else {
            self.observe.metrics.nobody().ended(self.method, outcome, took);
            return;
        };
        upstream.ended(self.method, outcome, took);
        upstream.spent(self.limited, self.attempts);
        if let (true, Some(reason)) = (self.unknown, outcome.reason()) {
            upstream.unknown(reason);
        }
        if let (Some(tool), false) = (&self.tool, matches!(outcome, Outcome::Refused(_))) {
            tool.ended(took);
        }
    }

    fn line(&self, outcome: Outcome, took: Duration) {
        let tool = (self.method == "tools/call")
            .then(|| self.name.as_deref().or(self.tool.as_ref().map(|t| &**t.name())))
            .flatten();
        let name = self.name.as_deref().filter(|_| tool.is_none());
        // The macro wants the level as a constant, so the fields stand in a macro of their own.
        macro_rules! line {
            ($level:ident) => {
                tracing::$level!(
                    target: "weirkeeper::call",
                    consumer = &*self.consumer,
                    method = self.method,
                    upstream = self.upstream.as_ref().map(|u| &**u.name()),
                    tool,
                    name,
                    outcome = outcome.as_str(),
                    reason = outcome.reason().map(Reason::as_str),
                    effect = self.unknown.then_some("unknown"),
                    cause = self.cause.as_deref(),
                    duration_ms = milliseconds(took),
                    queued_ms = milliseconds(self.queued),
                    limited_ms = milliseconds(self.limited),
                    attempts = self.attempts,
                    bytes_in = self.bytes_in,
                    bytes_out = self.bytes_out,
                    trace_id = self.context.trace_id(),
                    revision = self.revision,
                    transport = self.transport,
                    "call"
                )
            };
        }
        match outcome {
            Outcome::Refused(_) | Outcome::Fault(_) => line!(warn),
            _ => line!(info),
        }
    }
}

/// With three digits behind the point; more is noise in a log.
fn milliseconds(time: Duration) -> f64 {
    // Without the detour over 128 bits that `as_micros` takes.
    (time.as_secs() * 1_000_000 + u64::from(time.subsec_micros())) as f64 / 1000.0
}

impl Drop for Record {
    fn drop(&mut self) {
        self.end(Outcome::Cancelled);
    }
}

#[cfg(test)]
#[path = "record/tests.rs"]
mod tests;
