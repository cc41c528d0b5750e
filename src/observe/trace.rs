//! W3C trace context in and out, and one span per call.
//!
//! Without a collector nothing is decided here: the caller's context goes to the upstream as it
//! came. With one, each call of a sampled trace becomes a span; the upstream gets the span as
//! its parent. Where no span is made the context again passes as it came, so that no trace
//! points at a parent nobody has seen.

mod context;
mod export;

use std::time::{Duration, SystemTime};

use opentelemetry::trace::{
    SpanContext as OtelContext, SpanId, SpanKind, Status, TraceFlags, TraceId, TraceState,
};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::trace::{IdGenerator, RandomIdGenerator, SpanData, SpanEvents, SpanLinks};

use crate::config;

pub use context::{Context, TRACESTATE_MAX};
use export::Exporter;
pub use export::{BATCH_MAX, TraceError, WAITING_MAX};

/// The flag that says that a trace is recorded.
const SAMPLED: u8 = 1;
/// The flag that says that the lower seven bytes of the trace id are random (trace-context
/// level 2, "random trace id flag").
const RANDOM: u8 = 2;

/// Gives each call its span.
pub struct Tracer(Option<Exporting>);

struct Exporting {
    exporter: Exporter,
    /// A trace that begins here is recorded when the lower 56 bits of its id are below this.
    below: u64,
    scope: InstrumentationScope,
}

/// The trace context of one call, on its way to the upstream.
#[derive(Debug, Default)]
pub struct SpanContext {
    traceparent: Option<Box<str>>,
    tracestate: Option<Box<str>>,
    span: Option<Span>,
}

#[derive(Debug)]
struct Span {
    trace: TraceId,
    id: SpanId,
    parent: Option<SpanId>,
    flags: u8,
}

/// What a finished call says of itself in its span.
pub struct Finished<'a> {
    /// The method, which is the span's name too.
    pub method: &'static str,
    /// How long the call took until now.
    pub took: Duration,
    /// Outcome.
    pub outcome: &'static str,
    /// Reason of a refusal or fault; its presence makes the span one that failed.
    pub reason: Option<&'static str>,
    /// Upstream, if it got one.
    pub upstream: Option<&'a str>,
    /// Exposed tool name, if it is about one.
    pub tool: Option<&'a str>,
}

impl Tracer {
    /// Makes no spans and hands contexts on.
    pub fn off() -> Tracer {
        Tracer(None)
    }

    /// A tracer for these settings. Needs a running tokio runtime if they name an endpoint: a
    /// task of its own sends the spans.
    ///
    /// # Errors
    /// An endpoint that is no URL, or no root certificates for an `https` one.
    pub fn new(settings: &config::Trace) -> Result<Tracer, TraceError> {
        let Some(endpoint) = &settings.otlp_endpoint else { return Ok(Tracer::off()) };
        let exporter = Exporter::start(endpoint, &settings.service_name)?;
        let scope = InstrumentationScope::builder(env!("CARGO_PKG_NAME"))
            .with_version(env!("CARGO_PKG_VERSION"))
            .build();
        Ok(Tracer(Some(Exporting { exporter, below: share_of_ids(settings.sample), scope })))
    }

    /// Begin the span of a call whose caller has this context.
    pub fn start(&self, parent: Option<Context>) -> SpanContext {
        let Some(Exporting { below, .. }) = &self.0 else { return SpanContext::unchanged(parent) };
        match parent {
            Some(parent) if !parent.sampled() => SpanContext::unchanged(Some(parent)),
            Some(parent) => SpanContext::begin(Span {
                trace: TraceId::from_bytes(parent.trace_id()),
                id: RandomIdGenerator::default().new_span_id(),
                parent: Some(SpanId::from_bytes(parent.span_id())),
                flags: SAMPLED | parent.flags() & RANDOM,
            })
            .with_state(parent.into_tracestate()),
            None => {
                let ids = RandomIdGenerator::default();
                let trace = ids.new_trace_id();
                let sampled = low_bits(trace) < *below;
                let flags = if sampled { RANDOM | SAMPLED } else { RANDOM };
                let span = Span { trace, id: ids.new_span_id(), parent: None, flags };
                if sampled { SpanContext::begin(span) } else { SpanContext::decided_against(&span) }
            }
        }
    }

    /// End the span of a call.
    pub fn finish(&self, context: SpanContext, call: &Finished<'_>) {
        let (Some(exporting), Some(span)) = (&self.0, context.span) else { return };
        exporting.exporter.export(exporting.data(&span, call));
    }

    /// Spans that were dropped because the collector was slow or gone.
    pub fn dropped(&self) -> u64 {
        self.0.as_ref().map_or(0, |e| e.exporter.dropped())
    }

    /// Wait until the spans so far are sent, `bound` at most. `false`: they are not.
    pub async fn flush(&self, bound: Duration) -> bool {
        match &self.0 {
            Some(e) => e.exporter.flush(bound).await,
            None => true,
        }
    }
}

impl Exporting {
    fn data(&self, span: &Span, call: &Finished<'_>) -> SpanData {
        let now = SystemTime::now();
        let mut attributes = vec![
            KeyValue::new("mcp.method.name", call.method),
            KeyValue::new("weir.outcome", call.outcome),
        ];
        let owned = |key, value: &str| KeyValue::new(key, value.to_owned());
        attributes.extend(call.upstream.map(|u| owned("weir.upstream", u)));
        attributes.extend(call.tool.map(|t| owned("weir.tool", t)));
        attributes.extend(call.reason.map(|r| KeyValue::new("weir.reason", r)));
        SpanData {
            span_context: OtelContext::new(
                span.trace,
                span.id,
                TraceFlags::new(span.flags),
                false,
                TraceState::NONE,
            ),
            parent_span_id: span.parent.unwrap_or(SpanId::INVALID),
            parent_span_is_remote: span.parent.is_some(),
            span_kind: SpanKind::Server,
            name: call.method.into(),
            start_time: now.checked_sub(call.took).unwrap_or(now),
            end_time: now,
            attributes,
            dropped_attributes_count: 0,
            events: SpanEvents::default(),
            links: SpanLinks::default(),
            status: call.reason.map_or(Status::Unset, Status::error),
            instrumentation_scope: self.scope.clone(),
        }
    }
}

impl SpanContext {
    fn unchanged(context: Option<Context>) -> SpanContext {
        let Some(context) = context else { return SpanContext::default() };
        let (traceparent, tracestate) = context.into_text();
        SpanContext { traceparent: Some(traceparent), tracestate, span: None }
    }

    fn begin(span: Span) -> SpanContext {
        let context = SpanContext::decided_against(&span);
        SpanContext { span: Some(span), ..context }
    }

    /// Nothing is recorded, and whoever comes after us is told so.
    fn decided_against(span: &Span) -> SpanContext {
        let text = context::format(span.trace.to_bytes(), span.id.to_bytes(), span.flags);
        SpanContext { traceparent: Some(text), ..SpanContext::default() }
    }

    fn with_state(mut self, tracestate: Option<Box<str>>) -> SpanContext {
        self.tracestate = tracestate;
        self
    }

    /// `traceparent` for the upstream.
    pub fn traceparent(&self) -> Option<&str> {
        self.traceparent.as_deref()
    }

    /// `tracestate` for the upstream.
    pub fn tracestate(&self) -> Option<&str> {
        self.tracestate.as_deref()
    }

    /// The trace's id in hex digits, for the log.
    pub fn trace_id(&self) -> Option<&str> {
        self.traceparent()?.get(3..35)
    }

    /// Whether a span is made of this call.
    pub fn is_recorded(&self) -> bool {
        self.span.is_some()
    }
}

/// The share of 56 random bits.
fn share_of_ids(share: f64) -> u64 {
    (share.clamp(0.0, 1.0) * (1u64 << 56) as f64) as u64
}

fn low_bits(id: TraceId) -> u64 {
    let bytes = id.to_bytes();
    u64::from_be_bytes(bytes[8..].try_into().expect("eight of 16 bytes")) & ((1 << 56) - 1)
}

#[cfg(test)]
#[path = "trace/tests.rs"]
mod tests;
