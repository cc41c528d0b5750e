//! The pooled client of one upstream.

use std::sync::OnceLock;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_rustls::{ConfigBuilderExt as _, HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{self, Error};
use hyper_util::rt::{TokioExecutor, TokioTimer};

use crate::config::HttpConfig;
use crate::failure::{Delivery, Fault, Reason};

/// Most idle connections that are kept per upstream.
const IDLE_MAX: usize = 256;

type Tls = rustls::ClientConfig;

/// A pool of connections to one upstream.
pub struct Client {
    pool: legacy::Client<HttpsConnector<HttpConnector>, Full<Bytes>>,
    dial_timeout: Duration,
}

// The system's roots, read once: reading them takes tens of milliseconds.
fn tls() -> Result<Tls, Fault> {
    static ROOTS: OnceLock<Result<Tls, String>> = OnceLock::new();
    ROOTS
        .get_or_init(|| {
            let provider = rustls::crypto::ring::default_provider();
            rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .map_err(|e| e.to_string())?
                .with_native_roots()
                .map_err(|e| e.to_string())
                .map(|roots| roots.with_no_client_auth())
        })
        .clone()
        .map_err(|e| {
            Fault::new(
                Reason::ConnectFailed,
                Delivery::NotSent,
                "the system's certificate roots cannot be read; install ca-certificates",
            )
            .because(e)
        })
}

impl Client {
    /// A client; connects when used. `https` needs the system's roots.
    pub fn new(upstream: &str, config: &HttpConfig, https: bool) -> Result<Client, Fault> {
        let mut tcp = HttpConnector::new();
        tcp.set_nodelay(true);
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(config.dial_timeout));
        let tls = if https {
            tls()?
        } else {
            let provider = rustls::crypto::ring::default_provider();
            rustls::ClientConfig::builder_with_provider(provider.into())
                .with_safe_default_protocol_versions()
                .expect("ring has the default versions")
                .with_root_certificates(rustls::RootCertStore::empty())
                .with_no_client_auth()
        };
        let connector = HttpsConnectorBuilder::new()
            .with_tls_config(tls)
            .https_or_http()
            .enable_http1()
            .enable_http2()
            .wrap_connector(tcp);
        let pool = legacy::Client::builder(TokioExecutor::new())
            .pool_timer(TokioTimer::new())
            .pool_idle_timeout(config.pool_idle)
            .pool_max_idle_per_host(IDLE_MAX)
            .build(connector);
        tracing::trace!(upstream, "client built");
        Ok(Client { pool, dial_timeout: config.dial_timeout })
    }

    /// Send a request and wait for the head of its response.
    pub async fn send(&self, request: Request<Full<Bytes>>) -> Result<Response<Incoming>, Fault> {
        let _ = self.dial_timeout;
        self.pool.request(request).await.map_err(|e| fault(&e))
    }
}

fn fault(error: &Error) -> Fault {
    // Sources are named for the log; none of them holds a header or a body.
    let mut cause = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(s) = source {
        cause = format!("{cause}: {s}");
        source = s.source();
    }
    if error.is_connect() {
        return Fault::new(
            Reason::ConnectFailed,
            Delivery::NotSent,
            "the upstream cannot be reached",
        )
        .because(cause);
    }
    Fault::new(
        Reason::ConnectionLost,
        Delivery::Unknown,
        "the connection to the upstream ended before it answered",
    )
    .because(cause)
}
