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

use crate::config;
use log::LogHandle;
use metrics::{Gathered, Metrics};
use trace::Tracer;

/// How long the last spans and lines may take on their way out: a collector that is there needs
/// milliseconds, and one that is gone must not hold up a restart.
const SHUTDOWN_WAIT: Duration = Duration::from_secs(3);

/// The three ways of telling, handed to whoever opens records.
pub struct Observe {
    /// Counters, gauges, histograms.
    pub metrics: Metrics,
    /// Spans.
    pub tracer: Tracer,
    log: Option<LogHandle>,
}

impl Observe {
    /// Metrics that start at zero, with this tracing and this log. Needs a running tokio runtime
    /// if the settings name a collector. One that cannot be used is said and costs the spans
    /// only: agents' calls matter more than the pictures of them.
    pub fn new(settings: &config::Trace, log: Option<LogHandle>) -> Observe {
        let tracer = Tracer::new(settings).unwrap_or_else(|e| {
            tracing::error!("no spans will be exported: {e}");
            Tracer::off()
        });
        Observe { metrics: Metrics::new(), tracer, log }
    }

    /// Metrics only: no spans, and log lines go wherever a subscriber takes them.
    pub fn quiet() -> Observe {
        Observe { metrics: Metrics::new(), tracer: Tracer::off(), log: None }
    }

    /// Change the level of the log. One that cannot be read is said and changes nothing.
    pub fn log_level(&self, level: &str) {
        if let Some(log) = &self.log
            && let Err(bad) = log.set_level(level)
        {
            tracing::error!("the log level stays as it was: {bad}");
        }
    }

    /// The text of all metrics; `gathered` holds what is only known elsewhere. What the log and
    /// the tracer dropped is put in here.
    pub fn render(&self, mut gathered: Gathered) -> String {
        gathered.log_lines_dropped = self.log.as_ref().map_or(0, LogHandle::dropped);
        gathered.spans_dropped = self.tracer.dropped();
        self.metrics.render(&gathered)
    }

    /// Hand over what still waits before the process ends.
    pub async fn shutdown(&self) {
        self.flush(SHUTDOWN_WAIT).await;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_collector_that_cannot_be_used_costs_spans_only() {
        let settings = config::Trace {
            otlp_endpoint: Some("collector".into()),
            sample: 1.0,
            service_name: "weir".into(),
        };
        let observe = Observe::new(&settings, None);
        assert!(!observe.tracer.start(None).is_recorded());
    }

    #[tokio::test]
    async fn a_bad_level_changes_nothing_and_flushing_ends() {
        let log = log::init("info", config::LogFormat::Text);
        let settings =
            config::Trace { otlp_endpoint: None, sample: 1.0, service_name: "weir".into() };
        let observe = Observe::new(&settings, Some(log.clone()));
        observe.log_level("weirkeeper=loud");
        observe.log_level("off");
        observe.shutdown().await;
        assert_eq!(log.dropped(), 0);
    }
}
