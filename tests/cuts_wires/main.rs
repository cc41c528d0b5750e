//! Writes whose connection is cut behind some hundred bytes of request and answer, over each wire
//! that `tests/cuts` does not have: TLS with HTTP/1.1 and HTTP/2, HTTP+SSE, WebSocket. No write
//! arrives twice, each caller has the result or knows what is known, and that is true; a cut costs
//! what was under way on its connection, and the next write works.
//!
//! `WEIR_CUTS=all cargo test --test cuts_wires -- --nocapture` cuts behind each byte.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;
#[path = "../harness/relay.rs"]
mod relay;

mod crowd;
mod judge;
mod peer;
mod stage;
mod sweep;

use judge::{Counts, Writes, wrongs};
use peer::{Peer, Wire};

/// Some or all bytes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Extent {
    Some,
    All,
}

impl Extent {
    fn asked() -> Extent {
        if std::env::var("WEIR_CUTS").is_ok_and(|v| v == "all") {
            Extent::All
        } else {
            Extent::Some
        }
    }
}

/// All that was said fits what the peer wrote down, and what was seen besides is nothing.
#[allow(clippy::print_stderr)] // The figures are for whoever wants to see them.
fn conclude(peer: &Peer, story: &str, writes: &Writes, mut seen: Vec<String>) {
    eprintln!("{:?}, {story}: {}", peer.wire, Counts::of(writes));
    seen.extend(wrongs(writes, &peer.ledger));
    assert!(seen.is_empty(), "{:?}, {story}:\n{}", peer.wire, seen.join("\n"));
}

async fn each_promise_is_kept(wire: Wire) {
    let peer = Peer::start(wire).await;
    sweep::run(&peer, Extent::asked()).await;
    crowd::run(&peer).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_http_1() {
    each_promise_is_kept(Wire::Http1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_tls_with_http_2() {
    each_promise_is_kept(Wire::Http2).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_http_with_sse() {
    each_promise_is_kept(Wire::Sse).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_websocket() {
    each_promise_is_kept(Wire::WebSocket).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn over_a_websocket_with_tls() {
    each_promise_is_kept(Wire::Wss).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn where_the_server_says_goodbye() {
    for wire in [Wire::Http1, Wire::Http2] {
        crowd::goodbyes(&Peer::start(wire).await).await;
    }
}
