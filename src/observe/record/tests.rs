//! Each call is one line and one count, however it ends.

#![allow(clippy::unwrap_used)]

use std::io;
use std::sync::Mutex;

use serde_json::Value;
use tracing_subscriber::fmt::MakeWriter;

use crate::observe::metrics::Gathered;

use super::*;

#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<u8>>>);

impl io::Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().unwrap().extend_from_slice(bytes);
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'a> MakeWriter<'a> for Lines {
    type Writer = Lines;
    fn make_writer(&'a self) -> Lines {
        self.clone()
    }
}

/// Runs `work` and returns the log lines it caused.
async fn logged(work: impl Future<Output = ()>) -> Vec<Value> {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::fmt()
        .json()
        .flatten_event(true)
        .without_time()
        .with_writer(lines.clone())
        .finish();
    let _guard = tracing::subscriber::set_default(subscriber);
    work.await;
    let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
    text.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";

fn open(observe: &Arc<Observe>) -> Record {
    let consumer: Arc<str> = "sales".into();
    Record::open(observe, &consumer, "tools/call", "http", "2026-07-28", Some((PARENT, None)))
}

fn calls(observe: &Observe) -> String {
    let page = observe.render(Gathered::default());
    let calls = page.lines().filter(|l| l.starts_with("weir_calls_total"));
    // The zero that stands beside the first failure says nothing here.
    calls.filter(|l| !l.ends_with(" 0")).collect::<Vec<_>>().join("\n")
}

#[tokio::test(start_paused = true)]
async fn a_finished_call_is_one_line_with_everything() {
    let observe = Arc::new(Observe::quiet());
    let lines = logged(async {
        let tools = ["stripe__create_refund".into()];
        let series = observe.metrics.upstream(&"stripe".into(), &tools);
        let mut record = open(&observe);
        assert_eq!(record.traceparent(), Some(PARENT));
        record.bytes_in(120);
        record.route(&series, Some("stripe__create_refund"));
        tokio::time::advance(Duration::from_micros(42_500)).await;
        record.spent(Duration::from_millis(2), Duration::from_millis(10), 1);
        record.bytes_out(900);
        record.cause("the process ended with status 1");
        record.finish(Outcome::Fault(Reason::ConnectionLost));
    })
    .await;
    assert_eq!(lines.len(), 1);
    insta::assert_snapshot!(serde_json::to_string_pretty(&lines[0]).unwrap(), @r#"
    {
      "level": "WARN",
      "message": "call",
      "consumer": "sales",
      "method": "tools/call",
      "upstream": "stripe",
      "tool": "stripe__create_refund",
      "outcome": "fault",
      "reason": "connection_lost",
      "cause": "the process ended with status 1",
      "duration_ms": 42.5,
      "queued_ms": 2.0,
      "limited_ms": 10.0,
      "attempts": 1,
      "bytes_in": 120,
      "bytes_out": 900,
      "trace_id": "4bf92f3577b34da6a3ce929d0e0e4736",
      "revision": "2026-07-28",
      "transport": "http",
      "target": "weirkeeper::call"
    }
    "#);
    insta::assert_snapshot!(calls(&observe), @r#"weir_calls_total{upstream="stripe",method="tools/call",outcome="fault",reason="connection_lost"} 1"#);
}

#[tokio::test(start_paused = true)]
async fn a_call_that_is_dropped_was_cancelled() {
    let observe = Arc::new(Observe::quiet());
    let lines = logged(async {
        let record = open(&observe);
        let work = async move {
            std::future::pending::<()>().await;
            record.finish(Outcome::Ok);
        };
        let _ = tokio::time::timeout(Duration::from_secs(3), work).await;
    })
    .await;
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert_eq!(line["outcome"], "cancelled");
    assert_eq!(line["level"], "INFO");
    assert_eq!(line["duration_ms"], 3000.0);
    assert_eq!(line.get("upstream"), None);
    insta::assert_snapshot!(calls(&observe), @r#"weir_calls_total{upstream="_none",method="tools/call",outcome="cancelled",reason=""} 1"#);
}

#[tokio::test(start_paused = true)]
async fn who_has_to_act_decides_the_level() {
    let observe = Arc::new(Observe::quiet());
    for (outcome, level) in [
        (Outcome::Ok, "INFO"),
        (Outcome::ToolError, "INFO"),
        (Outcome::UpstreamError, "INFO"),
        (Outcome::Cancelled, "INFO"),
        (Outcome::Refused(Reason::QueueFull), "WARN"),
        (Outcome::Fault(Reason::Garbled), "WARN"),
    ] {
        let lines = logged(async { open(&observe).finish(outcome) }).await;
        assert_eq!(lines.len(), 1);
        assert_eq!(
            (&lines[0]["level"], &lines[0]["outcome"]),
            (&level.into(), &outcome.as_str().into())
        );
    }
}

#[tokio::test(start_paused = true)]
async fn a_tool_the_catalog_does_not_have_is_not_named() {
    let observe = Arc::new(Observe::quiet());
    let lines = logged(async {
        let series = observe.metrics.upstream(&"stripe".into(), &[]);
        let mut record = open(&observe);
        record.route(&series, Some("stripe__made_up"));
        record.finish(Outcome::Ok);
    })
    .await;
    assert_eq!(lines[0]["tool"], "_other");
}

#[test]
fn an_invalid_context_is_ignored() {
    let observe = Arc::new(Observe::quiet());
    let consumer: Arc<str> = "sales".into();
    let record = Record::open(
        &observe,
        &consumer,
        "ping",
        "stdio",
        "2025-11-25",
        Some(("junk", Some("a=1"))),
    );
    assert_eq!((record.traceparent(), record.tracestate()), (None, None));
}
