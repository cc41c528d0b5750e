//! Spans on the wire, read as a collector reads them.

#![allow(clippy::unwrap_used)]

use std::sync::{Arc, Mutex};

use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::common::v1::any_value::Value;
use prost::Message as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;

const PARENT: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
const PARENT_UNSAMPLED: &str = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-00";
const BOUND: Duration = Duration::from_secs(30);

type Received = Arc<Mutex<Vec<(String, ExportTraceServiceRequest)>>>;

/// A collector: keeps what it is sent, with the request line.
async fn collector(status: &'static str) -> (String, Received) {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let received = Received::default();
    let theirs = received.clone();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            let received = theirs.clone();
            tokio::spawn(async move {
                let mut bytes = Vec::new();
                while stream.read_buf(&mut bytes).await.unwrap() > 0 {
                    let Some(head) = bytes.windows(4).position(|w| w == b"\r\n\r\n") else {
                        continue;
                    };
                    let text = String::from_utf8(bytes[..head].to_vec()).unwrap().to_lowercase();
                    let length = text.split("content-length: ").nth(1).unwrap();
                    let length: usize = length.split("\r\n").next().unwrap().parse().unwrap();
                    if bytes.len() < head + 4 + length {
                        continue;
                    }
                    let body = &bytes[head + 4..head + 4 + length];
                    let line = text.lines().next().unwrap().to_owned();
                    let request = ExportTraceServiceRequest::decode(body).unwrap();
                    received.lock().unwrap().push((line, request));
                    bytes.drain(..head + 4 + length);
                    let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
                    stream.write_all(answer.as_bytes()).await.unwrap();
                }
            });
        }
    });
    (url, received)
}

fn tracer(endpoint: Option<String>, sample: f64) -> Tracer {
    let settings =
        config::Trace { otlp_endpoint: endpoint, sample, service_name: "weir-test".into() };
    Tracer::new(&settings).unwrap()
}

fn finished(reason: Option<&'static str>) -> Finished<'static> {
    Finished {
        method: "tools/call",
        took: Duration::from_millis(250),
        outcome: if reason.is_some() { "fault" } else { "ok" },
        reason,
        upstream: Some("stripe"),
        tool: Some("stripe__create_refund"),
    }
}

fn parent(text: &str, state: Option<&str>) -> Context {
    Context::parse(text, state).unwrap()
}

#[test]
fn without_a_collector_the_context_passes_as_it_came() {
    let tracer = tracer(None, 1.0);
    let odd = "cc-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01-later";
    let context = tracer.start(Some(parent(odd, Some("a=1"))));
    assert_eq!(context.traceparent(), Some(odd));
    assert_eq!(context.tracestate(), Some("a=1"));
    assert_eq!(context.trace_id(), Some("4bf92f3577b34da6a3ce929d0e0e4736"));
    assert_eq!(tracer.start(None).traceparent(), None);
}

#[tokio::test]
async fn the_callers_decision_wins_and_else_the_share() {
    let (url, _) = collector("200 OK").await;
    for sample in [0.0, 1.0] {
        let tracer = tracer(Some(url.clone()), sample);
        assert!(tracer.start(Some(parent(PARENT, None))).is_recorded());
        let not = tracer.start(Some(parent(PARENT_UNSAMPLED, Some("a=1"))));
        assert!(!not.is_recorded());
        assert_eq!((not.traceparent(), not.tracestate()), (Some(PARENT_UNSAMPLED), Some("a=1")));
        let own = tracer.start(None);
        assert_eq!(own.is_recorded(), sample > 0.5);
        let told = Context::parse(own.traceparent().unwrap(), None).unwrap();
        assert_eq!(told.sampled(), sample > 0.5);
    }
    let tracer = tracer(Some(url), 0.25);
    let recorded = (0..4000).filter(|_| tracer.start(None).is_recorded()).count();
    assert!((800..1200).contains(&recorded), "{recorded}");
}

#[tokio::test]
async fn spans_arrive_with_the_right_parent() {
    let (url, received) = collector("200 OK").await;
    let tracer = tracer(Some(url), 1.0);
    let child = tracer.start(Some(parent(PARENT, Some("a=1"))));
    let sent = Context::parse(child.traceparent().unwrap(), child.tracestate()).unwrap();
    assert_eq!(child.tracestate(), Some("a=1"));
    tracer.finish(child, &finished(Some("connection_lost")));
    let root = tracer.start(None);
    let root_sent = Context::parse(root.traceparent().unwrap(), None).unwrap();
    tracer.finish(root, &finished(None));
    assert!(tracer.flush(BOUND).await);

    let received = received.lock().unwrap();
    let [(line, request)] = &received[..] else { panic!("{} requests", received.len()) };
    assert_eq!(line, "post /v1/traces http/1.1");
    let resource = &request.resource_spans[0];
    let service = &resource.resource.as_ref().unwrap().attributes;
    assert!(service.iter().any(|a| a.key == "service.name"
        && a.value.clone().unwrap().value == Some(Value::StringValue("weir-test".into()))));
    let spans = &resource.scope_spans[0].spans;
    assert_eq!(spans.len(), 2);
    assert_eq!(spans[0].trace_id, sent.trace_id());
    assert_eq!(spans[0].span_id, sent.span_id());
    assert_eq!(spans[0].parent_span_id, parent(PARENT, None).span_id());
    assert_eq!(spans[1].trace_id, root_sent.trace_id());
    assert_eq!(spans[1].span_id, root_sent.span_id());
    assert!(spans[1].parent_span_id.is_empty());
    assert_eq!(spans[0].end_time_unix_nano - spans[0].start_time_unix_nano, 250_000_000);
    let mut told: Vec<String> = spans[0]
        .attributes
        .iter()
        .map(|a| match a.value.clone().unwrap().value {
            Some(Value::StringValue(v)) => format!("{}={v}", a.key),
            other => panic!("{other:?}"),
        })
        .collect();
    told.sort();
    insta::assert_snapshot!(told.join("\n"), @r"
    mcp.method.name=tools/call
    weir.outcome=fault
    weir.reason=connection_lost
    weir.tool=stripe__create_refund
    weir.upstream=stripe
    ");
    assert_eq!(spans[0].status.as_ref().unwrap().message, "connection_lost");
    assert_eq!(tracer.dropped(), 0);
}

#[tokio::test]
async fn an_endpoint_with_a_path_is_taken_as_it_is() {
    let (url, received) = collector("200 OK").await;
    let tracer = tracer(Some(format!("{url}/otlp/traces")), 1.0);
    tracer.finish(tracer.start(None), &finished(None));
    assert!(tracer.flush(BOUND).await);
    assert_eq!(received.lock().unwrap()[0].0, "post /otlp/traces http/1.1");
}

#[tokio::test]
async fn a_collector_that_refuses_costs_spans_only() {
    let (url, received) = collector("400 Bad Request").await;
    let tracer = tracer(Some(url), 1.0);
    for _ in 0..3 {
        tracer.finish(tracer.start(None), &finished(None));
    }
    assert!(tracer.flush(BOUND).await);
    assert_eq!(received.lock().unwrap().len(), 1);
    assert_eq!(tracer.dropped(), 3);
}

#[tokio::test]
async fn a_collector_that_hangs_fills_the_queue_and_no_more() {
    // Accepts and never answers.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let tracer = tracer(Some(format!("http://{}", listener.local_addr().unwrap())), 1.0);
    // No await in between: the sending task does not run, so the queue alone decides.
    for _ in 0..WAITING_MAX + 10 {
        tracer.finish(tracer.start(None), &finished(None));
    }
    assert_eq!(tracer.dropped(), 10);
    assert!(!tracer.flush(Duration::from_millis(1)).await);
}

#[test]
fn an_endpoint_must_be_a_url() {
    for bad in ["collector:4318", "ftp://x", "http://", ""] {
        let settings = config::Trace {
            otlp_endpoint: Some(bad.into()),
            sample: 1.0,
            service_name: "weir".into(),
        };
        assert!(matches!(Tracer::new(&settings), Err(TraceError::Endpoint(_))), "{bad}");
    }
}
