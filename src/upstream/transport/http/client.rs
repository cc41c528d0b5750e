//! The pooled HTTP client of one upstream: how connections are made and kept, and what an error
//! of theirs proves. Without TLS it is [`super::h1`]; with TLS, which may bring HTTP/2, hyper's.
//!
//! Decided: hyper-util's own repetition stays on (`retry_canceled_requests`). It repeats a request
//! only if hyper hands the request *back*, and hyper does so only while the request is still in
//! the queue of a pooled connection that turned out to be closed: it gives the message up when the
//! first byte is encoded (`hyper::client::dispatch`, `message: Some(..)`). So a request that may
//! have reached the upstream is never sent twice, and an upstream that closes idle connections
//! costs no call. What is left after the last connection failed so, or was never had, is
//! [`Delivery::NotSent`]; every other error leaves open what the upstream got.

use std::error::Error as StdError;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, OnceLock};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::{Method, Request, Uri};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy;
use hyper_util::client::legacy::connect::{HttpConnector, capture_connection};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use rustls::{ClientConfig, RootCertStore};
use tower_service::Service;

use crate::config::HttpConfig;
use crate::failure::{Delivery, Fault, Reason};

use super::body::Body;
use super::h1::{Failed, Head, Header, Pool};

/// Most idle connections kept. More calls than this at once are rare, and a connection more costs
/// one dial.
const IDLE_MAX: usize = 128;
/// Silence on a TCP connection before it is probed: a stream may be silent for hours, and one
/// whose peer has vanished must be noticed.
const TCP_PROBE: Duration = Duration::from_secs(30);
/// Silence on an HTTP/2 connection with requests before it is probed. All requests to an upstream
/// share one connection then, so a dead one would hold up every call until its deadline.
const H2_PROBE: Duration = Duration::from_secs(15);
/// How long the answer to such a probe may take.
const H2_PROBE_TIMEOUT: Duration = Duration::from_secs(10);

/// A pool of connections to one upstream.
pub(super) struct Client {
    way: Way,
    address: Arc<str>,
}

enum Way {
    Plain(Pool),
    // And how long a request waits for a connection. The pool lets one that came while another
    // dialled wait for that one's connection, also when it ends before it is there.
    Tls(Box<legacy::Client<Dialer, Full<Bytes>>>, Duration),
}

impl Client {
    /// A client that connects when used. `address` is how the log calls the upstream. Without
    /// `tls` it is one for `http`.
    pub fn new(config: &HttpConfig, tls: Option<ClientConfig>, address: Arc<str>) -> Client {
        let Some(tls) = tls else {
            let pool = Pool::new(tcp(config), config.dial_timeout, config.pool_idle);
            return Client { way: Way::Plain(pool), address };
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_all_versions()
            .wrap_connector(tcp(config));
        let pool = legacy::Client::builder(TokioExecutor::new())
            .timer(TokioTimer::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.pool_idle)
            .pool_max_idle_per_host(IDLE_MAX)
            .http2_keep_alive_interval(H2_PROBE)
            .http2_keep_alive_timeout(H2_PROBE_TIMEOUT)
            .build(Dialer { connector, timeout: config.dial_timeout });
        // One dial that fails, and one more.
        Client { way: Way::Tls(Box::new(pool), config.dial_timeout * 2), address }
    }

    /// Send a request and wait for the head of its response. Dropping the future takes the request
    /// back: its connection is closed, or its HTTP/2 stream reset.
    /// Of two headers with one name the later counts.
    pub async fn send(
        &self,
        method: &Method,
        uri: &Uri,
        headers: &[&[Header]],
        body: &Bytes,
    ) -> Result<(Head, Body), Fault> {
        let (pool, patience) = match &self.way {
            Way::Plain(pool) => {
                return match pool.send(method, uri, headers, body).await {
                    Ok((head, body)) => Ok((head, Body::Own(body))),
                    Err(failed) => Err(self.plain_fault(failed)),
                };
            }
            Way::Tls(pool, patience) => (pool, patience),
        };
        let mut request = Request::new(Full::new(body.clone()));
        *request.method_mut() = method.clone();
        *request.uri_mut() = uri.clone();
        for (name, value) in headers.iter().copied().flatten() {
            request.headers_mut().insert(name, value.clone());
        }
        let mut connected = capture_connection(&mut request);
        let mut sending = Box::pin(pool.request(request));
        let early = tokio::select! {
            biased;
            sent = &mut sending => Some(sent),
            _ = connected.wait_for_connection_metadata() => None,
            () = tokio::time::sleep(*patience) => {
                let text = "the upstream cannot be reached";
                let why = format_args!("{}: no connection within {patience:?}", self.address);
                return Err(Fault::new(Reason::ConnectFailed, Delivery::NotSent, text).because(why));
            }
        };
        let sent = match early {
            Some(sent) => sent,
            None => sending.await,
        };
        let had_connection = || connected.connection_metadata().is_some();
        let (parts, body) = sent.map_err(|e| self.fault(&e, had_connection()))?.into_parts();
        let mut head = Head::new(parts.status);
        for (name, value) in &parts.headers {
            head.keep(name.as_str(), value.as_bytes());
        }
        Ok((head, Body::Hyper(body)))
    }

    fn plain_fault(&self, failed: Failed) -> Fault {
        match failed {
            Failed::Connect(why) => {
                let text = "the upstream cannot be reached";
                Fault::new(Reason::ConnectFailed, Delivery::NotSent, text)
                    .because(format_args!("{}: {why}", self.address))
            }
            Failed::NotSent(error) => {
                let text = "the connection to the upstream ended before the request was sent";
                Fault::new(Reason::ConnectionLost, Delivery::NotSent, text)
                    .because(format_args!("{}: {error}", self.address))
            }
            Failed::Lost(error) => {
                let text = "the connection to the upstream ended before it answered";
                Fault::new(Reason::ConnectionLost, Delivery::Unknown, text)
                    .because(format_args!("{}: {error}", self.address))
            }
        }
    }

    fn fault(&self, error: &legacy::Error, had_connection: bool) -> Fault {
        let handed_back = || {
            let source = error.source().and_then(|e| e.downcast_ref::<hyper::Error>());
            source.is_some_and(hyper::Error::is_canceled)
        };
        // A connection that ends while HTTP is being agreed on is no connect error of hyper's,
        // but the request had not got one yet.
        let fault = if error.is_connect() || !had_connection {
            let text = "the upstream cannot be reached";
            Fault::new(Reason::ConnectFailed, Delivery::NotSent, text)
        } else if handed_back() {
            let text = "the connection to the upstream ended before the request was sent";
            Fault::new(Reason::ConnectionLost, Delivery::NotSent, text)
        } else {
            let text = "the connection to the upstream ended before it answered";
            Fault::new(Reason::ConnectionLost, Delivery::Unknown, text)
        };
        fault.because(format_args!("{}: {}", self.address, chain(error)))
    }
}

fn tcp(config: &HttpConfig) -> HttpConnector {
    let mut tcp = HttpConnector::new();
    tcp.enforce_http(false);
    tcp.set_nodelay(true);
    tcp.set_keepalive(Some(TCP_PROBE));
    // Divided among the addresses of a name, so that a dead one leaves time for the next.
    tcp.set_connect_timeout(Some(config.dial_timeout));
    tcp
}

/// A connection outside any pool, for something else than HTTP to be spoken on after an upgrade.
pub type Dialled = TokioIo<<HttpsConnector<HttpConnector> as Service<Uri>>::Response>;

/// Dial it, within `dial_timeout`.
pub async fn dial(config: &HttpConfig, tls: ClientConfig, to: Uri) -> Result<Dialled, Fault> {
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(tls)
        .https_or_http()
        .enable_http1()
        .wrap_connector(tcp(config));
    let mut dialer = Dialer { connector, timeout: config.dial_timeout };
    dialer.call(to).await.map(TokioIo::new).map_err(|error| {
        let text = "the upstream cannot be reached";
        Fault::new(Reason::ConnectFailed, Delivery::NotSent, text).because(chain(&*error))
    })
}

/// An error with its causes. hyper's and rustls's texts hold no header, path or body.
pub fn chain(error: &(dyn StdError + 'static)) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(error) = source {
        let next = error.to_string();
        if !text.ends_with(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        source = error.source();
    }
    text
}

/// Dials within a time limit that covers the name, TCP and TLS. It holds as well for a dial that
/// the pool goes on with when another connection came free first, so none hangs for ever.
#[derive(Clone)]
struct Dialer {
    connector: HttpsConnector<HttpConnector>,
    timeout: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("no connection within {0:?}")]
struct DialTimeout(Duration);

impl Service<Uri> for Dialer {
    type Response = <HttpsConnector<HttpConnector> as Service<Uri>>::Response;
    type Error = Box<dyn StdError + Send + Sync>;
    type Future = Pin<Box<dyn Future<Output = Result<Self::Response, Self::Error>> + Send>>;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.connector.poll_ready(context)
    }

    fn call(&mut self, to: Uri) -> Self::Future {
        let (dial, timeout) = (self.connector.call(to), self.timeout);
        Box::pin(async move {
            match tokio::time::timeout(timeout, dial).await {
                Ok(dialled) => dialled,
                Err(_) => Err(DialTimeout(timeout).into()),
            }
        })
    }
}

/// TLS that trusts `roots`.
pub fn tls_with(roots: RootCertStore) -> ClientConfig {
    builder().with_root_certificates(roots).with_no_client_auth()
}

/// TLS that trusts what the system trusts. Read from disk once per process, which takes tens of
/// milliseconds; a failure is not kept, since the certificates may be installed later.
pub(super) fn tls_with_system_roots() -> Result<ClientConfig, Fault> {
    static SYSTEM: OnceLock<ClientConfig> = OnceLock::new();
    if let Some(config) = SYSTEM.get() {
        return Ok(config.clone());
    }
    let config = builder().with_native_roots().map_err(|error| {
        let text = "the gateway's system has no TLS root certificates";
        Fault::new(Reason::ConnectFailed, Delivery::NotSent, text).because(error)
    })?;
    Ok(SYSTEM.get_or_init(|| config.with_no_client_auth()).clone())
}

fn builder() -> rustls::ConfigBuilder<ClientConfig, rustls::WantsVerifier> {
    let ring = Arc::new(rustls::crypto::ring::default_provider());
    ClientConfig::builder_with_provider(ring)
        .with_safe_default_protocol_versions()
        .expect("ring has the default versions")
}
