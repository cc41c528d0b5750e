//! The listening socket: HTTP/1.1 and HTTP/2 cleartext on one port, every wait bounded.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hyper::server::conn::{http1, http2};
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use tokio::net::{TcpListener, TcpStream};

use crate::observe::metrics::ConnectionRefusal;

use super::{Edge, Slot, http};

/// Most requests at once on one HTTP/2 connection.
const H2_STREAMS_MAX: u32 = 256;
/// Pause after a failed accept: it fails when descriptors run out, and comes back when some close.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// The first bytes of an HTTP/2 connection with prior knowledge.
const H2_PREFACE: &[u8] = b"PRI";

/// Accept connections until the edge stops, then let open ones finish their requests.
pub async fn run(edge: Arc<Edge>, listener: TcpListener) {
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = edge.stop.cancelled() => return,
        };
        let (stream, peer) = match accepted {
            Ok(pair) => pair,
            Err(error) => {
                tracing::warn!(%error, "a connection could not be accepted");
                edge.gateway.observe.metrics.connection_refused(ConnectionRefusal::AcceptFailed);
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let max = edge.gateway.current.load().config.gateway.max_connections;
        let Some(slot) = Slot::take(&edge.connections, max) else {
            // Closed at once: a client sees that it is not served, and we hold nothing for it.
            edge.gateway.observe.metrics.connection_refused(ConnectionRefusal::Limit);
            continue;
        };
        let edge = edge.clone();
        tokio::spawn(async move {
            let _slot = slot;
            connection(edge, stream, peer).await;
        });
    }
}

async fn connection(edge: Arc<Edge>, stream: TcpStream, peer: SocketAddr) {
    // Answers are written whole; waiting for more would add 40 ms (delayed acknowledgement).
    let _ = stream.set_nodelay(true);
    let patience = edge.gateway.current.load().config.gateway.header_timeout;
    let Ok(Some(h2)) = tokio::time::timeout(patience, speaks_h2(&stream)).await else { return };
    let service = {
        let edge = edge.clone();
        service_fn(move |request| {
            let edge = edge.clone();
            async move { Ok::<_, std::convert::Infallible>(http::serve(edge, peer, request).await) }
        })
    };
    let io = TokioIo::new(stream);
    let stop = edge.stop.clone();
    if h2 {
        let mut builder = http2::Builder::new(TokioExecutor::new());
        builder
            .timer(TokioTimer::new())
            .max_concurrent_streams(H2_STREAMS_MAX)
            .keep_alive_interval(patience)
            .keep_alive_timeout(patience);
        let served = builder.serve_connection(io, service);
        tokio::pin!(served);
        tokio::select! {
            _ = served.as_mut() => {}
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                let _ = served.await;
            }
        }
    } else {
        let mut builder = http1::Builder::new();
        builder.timer(TokioTimer::new()).header_read_timeout(patience);
        let served = builder.serve_connection(io, service);
        tokio::pin!(served);
        tokio::select! {
            _ = served.as_mut() => {}
            () = stop.cancelled() => {
                served.as_mut().graceful_shutdown();
                let _ = served.await;
            }
        }
    }
}

// Whether the client begins with HTTP/2's preface; `None` if it closes before it says.
async fn speaks_h2(stream: &TcpStream) -> Option<bool> {
    let mut head = [0u8; H2_PREFACE.len()];
    loop {
        let n = stream.peek(&mut head).await.ok()?;
        if n == 0 {
            return None;
        }
        if head[..n] != H2_PREFACE[..n] {
            return Some(false);
        }
        if n == H2_PREFACE.len() {
            return Some(true);
        }
        // One or two bytes so far. A peek does not wait for more; the caller bounds this.
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
}
