//! What happened, told once: a call's [`record::Record`] becomes one log line, one span and the
//! moves of the metrics, so the three cannot disagree.
//!
//! - [`log`]: the lines, on stderr, behind a bounded queue.
//! - [`record`]: the life of one call, from opening to its outcome.
//! - [`metrics`]: every series, declared once.
//! - [`trace`]: W3C trace context in and out, spans to a collector.
//!
//! This module is given plain words and numbers. It never sees arguments, results or secrets,
//! and nothing here waits for a reader: what does not fit is dropped and counted.

pub mod log;
pub mod metrics;
pub mod record;
pub mod trace;

use std::time::Duration;

use crate::config::secret::Scrubber;

use log::LogHandle;
use metrics::{Gathered, Metrics};
use trace::Tracer;

/// The three ways of telling, handed to whoever opens records.
pub struct Observe {
    /// Counters, gauges, histograms.
    pub metrics: Metrics,
    /// Spans.
    pub tracer: Tracer,
    log: Option<LogHandle>,
}

impl Observe {
    /// Metrics that start at zero, with this tracer and this log.
    pub fn new(tracer: Tracer, log: Option<LogHandle>) -> Observe {
        Observe { metrics: Metrics::new(), tracer, log }
    }

    /// Metrics only: no spans, and log lines go wherever a subscriber takes them.
    pub fn quiet() -> Observe {
        Observe::new(Tracer::off(), None)
    }

    /// Change the level of the log. One that cannot be read is said and changes nothing.
    pub fn log_level(&self, level: &str) {
        if let Some(log) = &self.log
            && let Err(bad) = log.set_level(level)
        {
            tracing::error!("the log level stays as it was: {bad}");
        }
    }

    /// From now on take these secrets out of every log line.
    pub fn scrub(&self, scrubber: Scrubber) {
        if let Some(log) = &self.log {
            log.scrub(scrubber);
        }
    }

    /// The text of all metrics; `gathered` holds what is only known elsewhere. What the log and
    /// the tracer dropped is put in here.
    pub fn render(&self, mut gathered: Gathered) -> String {
        gathered.log_lines_dropped = self.log.as_ref().map_or(0, LogHandle::dropped);
        gathered.spans_dropped = self.tracer.dropped();
        self.metrics.render(&gathered)
    }

    /// Hand over what still waits, spans first; takes `bound` at most.
    pub async fn flush(&self, bound: Duration) {
        let began = tokio::time::Instant::now();
        self.tracer.flush(bound).await;
        if let Some(log) = self.log.clone() {
            let rest = bound.saturating_sub(began.elapsed());
            // The log's queue is emptied by a thread, and waiting for it blocks one.
            let _ = tokio::task::spawn_blocking(move || log.flush(rest)).await;
        }
    }
}
