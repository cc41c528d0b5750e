//! Several endpoints that stand for one another: where calls go, what happens when one fails, and
//! that a write arrives once all the same.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod conversations;
mod failover;
mod front;
mod hedging;
mod updates;

use std::time::Duration;

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Weir, call, reason, upstream};
use serde_json::{Value, json};

/// An upstream whose tools do what they are called, and say whose they are.
pub async fn named(name: &'static str) -> Scripted {
    let tools = [tool("write", false), tool("read", true), tool("slow", false), tool("cut", false)];
    Scripted::start(&tools, move |a: &Arrival| {
        Some(match a.tool()? {
            "slow" => Reply::After(Duration::from_millis(700), Box::new(a.text(name))),
            "cut" => Reply::Cut(vec![]),
            _ => a.text(name),
        })
    })
    .await
}

/// A gateway over these replicas of an upstream called `up`, all of them ready.
pub async fn over(urls: &[&str], more: &str) -> Weir {
    let weir = Weir::start("", &format!("[upstreams.up]\nurls = {urls:?}\n{more}\n"));
    all_ready(&weir, urls.len()).await;
    weir
}

pub async fn all_ready(weir: &Weir, number: usize) {
    weir.ready(&["up"]).await;
    weir.until("all replicas ready", |s| ready(s) == number).await;
}

/// How many replicas are ready.
pub fn ready(status: &Value) -> usize {
    let all = upstream(status, "up")["replicas"].as_array().cloned().unwrap_or_default();
    all.iter().filter(|r| r["state"] == "ready").count()
}

/// The text of an answer, or its reason.
pub fn said(answer: &Value) -> &str {
    match reason(answer) {
        "" => answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}")),
        reason => reason,
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_go_to_the_least_busy_and_all_is_shown() {
    let (a, b) = (named("a").await, named("b").await);
    let secret = format!("{}?key=hunter2", b.url);
    let weir = over(&[&a.url, &secret], "").await;
    // One catalog, and not twice.
    let names = harness::tool_names(&weir.url, None).await;
    assert_eq!(names.iter().filter(|n| n.starts_with("up__")).count(), 4, "{names:?}");
    let calls = (0..4).map(|_| call(&weir.url, "up__slow", json!({})));
    let all = futures_util::future::join_all(calls);
    let looks = async {
        tokio::time::sleep(Duration::from_millis(350)).await;
        (weir.status().await, weir.metrics().await)
    };
    let (answers, (status, metrics)) = tokio::join!(all, looks);
    assert_eq!(answers.iter().filter(|answer| said(answer) == "a").count(), 2, "{answers:?}");
    assert_eq!((a.arrived("slow"), b.arrived("slow")), (2, 2));
    for (n, at) in [(0, &a.url), (1, &b.url)] {
        let shown = &upstream(&status, "up")["replicas"][n];
        assert_eq!((&shown["replica"], &shown["in_flight"]), (&json!(n + 1), &json!(2)));
        assert_eq!(shown["at"], at.trim_end_matches("/mcp"));
        for line in ["replica_up{", "replica_ejected{", "replica_calls_in_flight{"] {
            let line = format!("weir_{line}upstream=\"up\",replica=\"{}\"}}", n + 1);
            assert!(metrics.contains(&line), "{line} is not in\n{metrics}");
        }
    }
    // Agents see how replicas are, and not where.
    let told = call(&weir.url, "weir__status", json!({})).await.to_string();
    assert!(told.contains("failures_in_a_row") && !told.contains("127.0.0.1"), "{told}");
    let (log, status) = (weir.log(), weir.status().await.to_string());
    assert!(!(log + &status + &weir.metrics().await + &told).contains("hunter2"));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_catalog_of_one_that_is_well_is_shown() {
    let b = named("b").await;
    let nobody = format!("http://127.0.0.1:{}/mcp", harness::free_port());
    let weir = Weir::start("", &format!("[upstreams.up]\nurls = [{nobody:?}, {:?}]\n", b.url));
    weir.ready(&["up"]).await;
    let status = weir.status().await;
    assert_eq!((ready(&status), &upstream(&status, "up")["state"]), (1, &json!("ready")));
    for _ in 0..4 {
        assert_eq!(said(&call(&weir.url, "up__write", json!({})).await), "b");
    }
    // Another list of replicas: the calls go there, and those under way end.
    let c = named("c").await;
    let slow = call(&weir.url, "up__slow", json!({}));
    let reload = async {
        tokio::time::sleep(Duration::from_millis(200)).await;
        weir.rewrite("", &format!("[upstreams.up]\nurls = [{:?}, {nobody:?}]\n", c.url));
        weir.logged("the new instance has taken over").await;
    };
    let (slow, ()) = tokio::join!(slow, reload);
    assert_eq!(said(&slow), "b");
    assert_eq!(said(&call(&weir.url, "up__write", json!({})).await), "c");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_fails_is_left_out_for_a_while() {
    let well = named("well").await;
    let bad = Scripted::start(&[tool("write", false)], |a: &Arrival| {
        a.tool().map(|_| Reply::Http(500, vec![], String::new()))
    })
    .await;
    let ejection = "breaker = { enabled = false }\nejection = { consecutive = 2, first = \"1s\", longest = \"1m\" }";
    let weir = over(&[&bad.url, &well.url], ejection).await;
    let write = async || said(&call(&weir.url, "up__write", json!({})).await).to_owned();
    let until_ejected = async |failures: usize| {
        let from = bad.arrived("write");
        for _ in 0..20 {
            write().await;
        }
        assert_eq!(bad.arrived("write") - from, failures, "and then no more");
        let status = weir.status().await;
        let left = upstream(&status, "up")["replicas"][0]["ejected_for_ms"].as_u64();
        assert!(left.is_some(), "{status:#}");
    };
    until_ejected(2).await;
    assert!(weir.metrics().await.contains("weir_replica_ejected{upstream=\"up\",replica=\"1\"} 1"));
    // On trial once the time is over, and one failure suffices then.
    tokio::time::sleep(Duration::from_millis(1100)).await;
    until_ejected(1).await;
    assert!(
        weir.metrics()
            .await
            .contains("weir_replica_ejections_total{upstream=\"up\",replica=\"1\"} 2")
    );
    assert_eq!(upstream(&weir.status().await, "up")["replicas"][1]["failures_in_a_row"], 0);
}
