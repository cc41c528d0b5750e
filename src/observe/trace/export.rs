//! Spans to a collector: a bounded queue, and one task that sends batches as OTLP over HTTP.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use hyper::Uri;
use opentelemetry_http::hyper::HyperClient;
use opentelemetry_otlp::{Protocol, SpanExporter, WithExportConfig, WithHttpConfig};
use opentelemetry_sdk::Resource;
use opentelemetry_sdk::error::OTelSdkResult;
use opentelemetry_sdk::trace::{SpanData, SpanExporter as _};
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, sleep_until, timeout};

/// Most spans that wait to be sent: some ten seconds of a busy gateway while a collector
/// restarts. One more is dropped and counted.
pub const WAITING_MAX: usize = 8192;
/// Most spans in one request; keeps it well below the few MiB that collectors accept.
pub const BATCH_MAX: usize = 512;
/// How long a span waits for others to be sent with.
const BATCH_WAIT: Duration = Duration::from_secs(2);
/// Time for one request to the collector, its retries included.
const EXPORT_WAIT: Duration = Duration::from_secs(10);
/// The path of traces (OTLP/HTTP, "request"), for an endpoint that names none.
const PATH: &str = "/v1/traces";

/// Why spans cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum TraceError {
    /// The endpoint is not an `http` or `https` URL.
    #[error("`{0}` is not an http or https URL")]
    Endpoint(String),
    /// The system has no root certificates.
    #[error("the system's root certificates cannot be read: {0}")]
    Roots(std::io::Error),
    /// The exporter says no.
    #[error("the exporter cannot be built: {0}")]
    Build(#[from] opentelemetry_otlp::ExporterBuildError),
}

pub(super) struct Exporter {
    tx: mpsc::Sender<Item>,
    dropped: Arc<AtomicU64>,
}

// A span is what nearly every item is; boxing it would cost each an allocation.
#[allow(clippy::large_enum_variant)]
enum Item {
    Span(SpanData),
    Flush(oneshot::Sender<()>),
}

impl Exporter {
    pub(super) fn start(endpoint: &str, service: &str) -> Result<Exporter, TraceError> {
        let exporter = build(endpoint, service)?;
        let (tx, rx) = mpsc::channel(WAITING_MAX);
        let dropped = Arc::<AtomicU64>::default();
        tokio::spawn(send_batches(rx, exporter, dropped.clone()));
        Ok(Exporter { tx, dropped })
    }

    pub(super) fn export(&self, span: SpanData) {
        if self.tx.try_send(Item::Span(span)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }

    pub(super) async fn flush(&self, bound: Duration) -> bool {
        let (done, wait) = oneshot::channel();
        let flushed = async { self.tx.send(Item::Flush(done)).await.is_ok() && wait.await.is_ok() };
        timeout(bound, flushed).await.unwrap_or(false)
    }
}

fn build(endpoint: &str, service: &str) -> Result<SpanExporter, TraceError> {
    let no_url = || TraceError::Endpoint(endpoint.to_owned());
    let url: Uri = endpoint.parse().map_err(|_| no_url())?;
    let builder = SpanExporter::builder().with_http();
    let builder = match url.scheme_str() {
        Some("http") => {
            builder.with_http_client(HyperClient::with_default_connector(EXPORT_WAIT, None))
        }
        Some("https") => {
            let tls = hyper_rustls::HttpsConnectorBuilder::new()
                .with_provider_and_native_roots(rustls::crypto::ring::default_provider())
                .map_err(TraceError::Roots)?
                .https_only()
                .enable_http1()
                .build();
            builder.with_http_client(HyperClient::new(tls, EXPORT_WAIT, None))
        }
        _ => return Err(no_url()),
    };
    let full = match url.path() {
        "" | "/" => format!("{}{PATH}", endpoint.trim_end_matches('/')),
        _ => endpoint.to_owned(),
    };
    let mut exporter = builder
        .with_protocol(Protocol::HttpBinary)
        .with_timeout(EXPORT_WAIT)
        .with_endpoint(full)
        .build()?;
    exporter.set_resource(
        &Resource::builder()
            .with_service_name(service.to_owned())
            .with_attribute(opentelemetry::KeyValue::new(
                "service.version",
                env!("CARGO_PKG_VERSION"),
            ))
            .build(),
    );
    Ok(exporter)
}

/// The task. Ends when the last sender is gone.
async fn send_batches(
    mut rx: mpsc::Receiver<Item>,
    exporter: SpanExporter,
    dropped: Arc<AtomicU64>,
) {
    let mut batch = Vec::new();
    let mut waiters = Vec::new();
    let mut reachable = true;
    let mut open = true;
    while open {
        let mut due: Option<Instant> = None;
        while batch.len() < BATCH_MAX && waiters.is_empty() {
            let item = tokio::select! {
                item = rx.recv() => item,
                () = sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => break,
            };
            match item {
                Some(Item::Span(span)) => {
                    batch.push(span);
                    due.get_or_insert_with(|| Instant::now() + BATCH_WAIT);
                }
                Some(Item::Flush(done)) => waiters.push(done),
                None => {
                    open = false;
                    break;
                }
            }
        }
        let spans = std::mem::take(&mut batch);
        if !spans.is_empty() {
            let count = spans.len() as u64;
            let sent = timeout(EXPORT_WAIT, exporter.export(spans)).await;
            if !matches!(sent, Ok(Ok(()))) {
                dropped.fetch_add(count, Ordering::Relaxed);
            }
            reachable = tell(reachable, sent.ok());
        }
        for done in waiters.drain(..) {
            let _ = done.send(());
        }
    }
}

/// Say it when the collector goes or comes back, not for each batch.
fn tell(reachable: bool, sent: Option<OTelSdkResult>) -> bool {
    match sent {
        Some(Ok(())) => {
            if !reachable {
                tracing::info!("spans reach the collector again");
            }
            true
        }
        failed => {
            if reachable {
                let why = match failed {
                    Some(Err(e)) => e.to_string(),
                    _ => format!("no answer within {} s", EXPORT_WAIT.as_secs()),
                };
                tracing::warn!("spans do not reach the collector and are dropped: {why}");
            }
            false
        }
    }
}
