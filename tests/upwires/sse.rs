//! HTTP+SSE, and how it is found.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted};
use crate::harness::{Weir, call, reason, upstream};
use crate::peer::{Out, Peer};
use crate::{outcome, text, until, weir};

/// Requests to the URL itself: of the newer transport.
fn tried(up: &Peer) -> usize {
    up.arrivals().iter().filter(|a| a.verb == "POST" && a.path == "/mcp").count()
}

#[tokio::test(flavor = "multi_thread")]
async fn the_transport_decides_what_is_tried() {
    for refusal in [400, 404, 405] {
        let up = Peer::sse(refusal).await;
        let weir = weir(&up, "").await;
        assert_eq!(tried(&up), 2, "{refusal}: a probe and a handshake");
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
        // Remembered while it lasts, and by the next process.
        up.state.say_all(|| Out::Cut);
        until("connected again", || up.state.connections() == 2).await;
        weir.ready(&["up"]).await;
        let weir = weir.again("", &up.section("up", ""), &[]);
        until("connected again", || up.state.connections() == 3).await;
        weir.ready(&["up"]).await;
        assert_eq!(tried(&up), 2, "{refusal}");
    }
    let up = Peer::sse(405).await;
    let _weir = weir(&up, "transport = \"sse\"").await;
    assert_eq!(tried(&up), 0);
    let up = Peer::sse(405).await;
    let weir = Weir::start("", &up.section("up", "transport = \"http\""));
    weir.until("down", |s| upstream(s, "up")["state"] == "down").await;
    assert_eq!(up.state.connections(), 0, "HTTP+SSE was not tried");
}

#[tokio::test(flavor = "multi_thread")]
async fn other_refusals_prove_nothing() {
    for refusal in [401, 403, 429, 500, 503] {
        let up = Peer::sse(refusal).await;
        let weir = Weir::start("", &up.section("up", ""));
        weir.until("down", |s| upstream(s, "up")["state"] == "down").await;
        assert_eq!(up.state.connections(), 0, "{refusal}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_go_with_the_stream_and_with_each_post() {
    let up = Peer::sse(405).await;
    let more = "transport = \"sse\"\nbearer = \"${UP_KEY}\"\nheaders = { X-Team = \"px\" }";
    let weir = Weir::start_with("", &up.section("up", more), &[("UP_KEY", "the-secret-key")]);
    weir.ready(&["up"]).await;
    call(&weir.url, "up__fine", json!({})).await;
    let arrivals = up.arrivals();
    assert!(arrivals.len() > 4);
    for a in arrivals {
        assert_eq!(a.headers["authorization"], "Bearer the-secret-key", "{a:?}");
        assert_eq!(a.headers["x-team"], "px");
        assert!(a.verb == "GET" || a.path.starts_with("/messages?s="));
    }
    let first: Vec<_> = up.state.heard().iter().map(|m| m["method"].clone()).take(3).collect();
    assert_eq!(first, ["initialize", "notifications/initialized", "tools/list"], "in this order");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_post_fails_its_own_request_only() {
    let up = Peer::sse(405).await;
    let weir = weir(&up, "breaker = { enabled = false }\nthrottle = { pause = \"1ms\" }").await;
    let url = weir.url.clone();
    let other = tokio::spawn(async move { call(&url, "up__hang", json!({})).await });
    until("the other call", || up.state.arrived("hang") == 1).await;
    for (status, why, told) in [
        (429, "throttled", "no_effect"),
        (503, "upstream_status", "unknown"),
        (403, "credential_refused", "no_effect"),
        (413, "upstream_status", "no_effect"),
        (500, "upstream_status", "unknown"),
    ] {
        up.state.posts_fail.store(status, Ordering::SeqCst);
        let answer = call(&weir.url, "up__fine", json!({})).await;
        assert_eq!((reason(&answer), outcome(&answer)), (why, told), "{status}: {answer}");
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    up.state.posts_fail.store(0, Ordering::SeqCst);
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    assert!(!other.is_finished());
    assert_eq!((up.state.connections(), up.state.asked("notifications/cancelled")), (1, 0));
    // A session that the upstream no longer knows is another matter.
    up.state.posts_fail.store(404, Ordering::SeqCst);
    let answer = call(&weir.url, "up__fine", json!({})).await;
    assert_eq!((reason(&answer), outcome(&answer)), ("connection_lost", "no_effect"), "{answer}");
    assert_eq!(outcome(&other.await.unwrap()), "unknown");
    up.state.posts_fail.store(0, Ordering::SeqCst);
    until("a new session", || up.state.connections() == 2).await;
    weir.ready(&["up"]).await;
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_elsewhere_is_refused_and_gets_nothing() {
    let thief = Scripted::fine(&[]).await;
    for (endpoint, why) in [
        (format!("{}\nevent: endpoint", thief.url), "another origin"),
        ("https://127.0.0.1/x\nevent: endpoint".into(), "another origin"),
        ("//elsewhere.example/x\nevent: endpoint".into(), "another origin"),
        ("/a/../b\nevent: endpoint".into(), "no usable place"),
        ("/messages".into(), "does not say where to post"),
    ] {
        let posts = Arc::new(AtomicUsize::new(0));
        let seen = posts.clone();
        let up = Scripted::start(&[], move |a| {
            if a.verb == "POST" {
                seen.fetch_add(1, Ordering::SeqCst);
                return Some(Reply::Http(405, vec![], String::new()));
            }
            let (tx, rx) = tokio::sync::mpsc::channel(4);
            tx.try_send(endpoint.clone()).unwrap();
            tokio::spawn(async move { tx.closed().await });
            Some(Reply::Live(rx))
        })
        .await;
        let more = "transport = \"sse\"\nbearer = \"the-secret-key\"";
        let weir = Weir::start("", &up.section("up", more));
        let status = weir.until("down", |s| upstream(s, "up")["state"] == "down").await;
        let text = upstream(&status, "up")["why"].as_str().unwrap();
        assert!(text.contains(why), "{why}: {text}");
        assert_eq!(posts.load(Ordering::SeqCst), 0);
    }
    assert!(thief.arrivals().is_empty(), "{:?}", thief.arrivals());
}

#[tokio::test(flavor = "multi_thread")]
async fn an_endpoint_that_learns_the_newer_transport_is_found_out() {
    let up = Peer::sse(404).await;
    let weir = weir(&up, "").await;
    up.state.renewed.store(true, Ordering::SeqCst);
    up.state.say_all(|| Out::Cut);
    let end = std::time::Instant::now() + crate::PATIENCE;
    while !reason(&call(&weir.url, "up__newer", json!({})).await).is_empty() {
        assert!(std::time::Instant::now() < end, "{}", weir.log());
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    assert_eq!(up.state.connections(), 1);
}
