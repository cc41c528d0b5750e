//! A slow read is tried a second time beside the first, a write never.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Arrival, Reply, Scripted, tool};
use crate::harness::{PATIENCE, Weir, call, get, modern, upstream};
use crate::{over, said};

const HEDGED: &str = "hedge_after = \"150ms\"\nretry = { attempts = 0, budget = 1.0 }";
/// Longer than anything here waits.
const LONG: Duration = Duration::from_secs(20);

/// Two replicas, of which the one that gets a tool's first call takes very long, and any later one
/// answers at once.
async fn first_is_slow() -> (Scripted, Scripted) {
    let calls: Arc<[AtomicUsize; 2]> = Arc::default();
    let one = async |name: &'static str| {
        let calls = calls.clone();
        let tools = [tool("write", false), tool("read", true), tool("fails", true)];
        Scripted::start(&tools, move |a: &Arrival| {
            let which = a.tool()?;
            let write = usize::from(which == "write");
            let first = calls[write].fetch_add(1, Ordering::SeqCst) == 0;
            Some(match (which, first) {
                ("read", true) => Reply::After(LONG, Box::new(a.text(name))),
                ("write", true) => Reply::After(Duration::from_secs(1), Box::new(a.text(name))),
                // While the second one is under way.
                ("fails", true) => {
                    Reply::After(Duration::from_millis(400), Box::new(Reply::Cut(vec![])))
                }
                ("fails", false) => {
                    Reply::After(Duration::from_millis(800), Box::new(a.text(name)))
                }
                _ => a.text(name),
            })
        })
        .await
    };
    (one("a").await, one("b").await)
}

/// What the log says of the last call.
fn record(weir: &Weir) -> Value {
    let log = weir.log();
    let lines = log.lines().rev().filter_map(|l| serde_json::from_str::<Value>(l).ok());
    lines.into_iter().find(|l| l["attempts"].is_number()).unwrap_or_else(|| panic!("{log}"))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_slow_read_arrives_at_two_and_a_slow_write_at_one() {
    let (a, b) = first_is_slow().await;
    let weir = over(&[&a.url, &b.url], HEDGED).await;
    let began = Instant::now();
    let answer = call(&weir.url, "up__read", json!({})).await;
    assert!(began.elapsed() < LONG / 2, "the faster answer counts");
    assert_eq!((a.arrived("read"), b.arrived("read")), (1, 1));
    weir.logged("\"attempts\":2").await;
    assert_eq!(record(&weir)["tool"], "up__read", "{}", record(&weir));
    // The slow one is told that nobody waits for it, and the other one is not.
    let (slow, fast) = if said(&answer) == "b" { (&a, &b) } else { (&b, &a) };
    weir.until("cancelled", |_| slow.asked("notifications/cancelled") == 1).await;
    let of = |up: &Scripted, ok: fn(&Arrival) -> bool| up.arrivals().into_iter().find(ok).unwrap();
    let slow_call = of(slow, |a| a.tool().is_some());
    let cancelled = of(slow, |a| a.method() == "notifications/cancelled");
    assert_eq!(cancelled.message["params"]["requestId"], slow_call.message["id"]);
    assert_eq!(fast.asked("notifications/cancelled"), 0);
    weir.until("nothing is under way", |s| {
        let replicas = upstream(s, "up")["replicas"].as_array().unwrap();
        replicas.iter().all(|r| r["in_flight"] == 0)
    })
    .await;

    let metrics = weir.metrics().await;
    for line in ["outcome=\"won\"} 1", "outcome=\"lost\"} 0"] {
        let line = format!("weir_hedges_total{{upstream=\"up\",{line}\n");
        assert!(metrics.contains(&line), "{line}{metrics}");
    }
    for (tool, after) in [("read", json!(150)), ("write", json!(null))] {
        let path = format!("{}/why?consumer=anonymous&tool=up__{tool}", weir.admin);
        let why: Value = serde_json::from_str(&get(&path).await.1).unwrap();
        assert_eq!(why["hedge_after_ms"], after, "{why:#}");
    }

    said(&call(&weir.url, "up__write", json!({})).await);
    assert_eq!(a.arrived("write") + b.arrived("write"), 1, "the key has no effect on it");
}

#[tokio::test(flavor = "multi_thread")]
async fn if_the_first_fails_the_second_counts() {
    let (a, b) = first_is_slow().await;
    let weir = over(&[&a.url, &b.url], HEDGED).await;
    let answer = call(&weir.url, "up__fails", json!({})).await;
    assert!(["a", "b"].contains(&said(&answer)), "{answer}");
    assert_eq!((a.arrived("fails"), b.arrived("fails")), (1, 1));
}

/// An upstream whose reads take half a second.
async fn slow() -> Scripted {
    Scripted::start(&[tool("read", true)], |a: &Arrival| {
        a.tool().map(|_| Reply::After(Duration::from_millis(500), Box::new(a.text("slow"))))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn when_the_budget_is_spent_it_arrives_once() {
    let (a, b) = (slow().await, slow().await);
    let more = "hedge_after = \"100ms\"\nretry = { attempts = 0, budget = 0.01 }";
    let weir = over(&[&a.url, &b.url], more).await;
    let mut arrived = Vec::new();
    let mut before = 0;
    for _ in 0..5 {
        assert_eq!(said(&call(&weir.url, "up__read", json!({})).await), "slow");
        let now = a.arrived("read") + b.arrived("read");
        arrived.push(now - before);
        before = now;
    }
    // Three in ten seconds need no calls to justify them.
    assert_eq!(arrived, [2, 2, 2, 1, 1]);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_endpoint_gets_both_and_nobody_more_than_places_allow() {
    let up = slow().await;
    for (more, wanted) in [
        ("", 2),
        ("concurrency = { max = 1 }\n", 1),
        ("rate = { per_second = 0.001, burst = 1 }\n", 1),
    ] {
        let weir = Weir::start("", &up.section("up", &format!("{more}{HEDGED}")));
        weir.ready(&["up"]).await;
        let before = up.arrived("read");
        assert_eq!(said(&call(&weir.url, "up__read", json!({})).await), "slow");
        assert_eq!(up.arrived("read") - before, wanted, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_first_tells_of_its_progress() {
    let calls = Arc::new(AtomicUsize::new(0));
    let count = calls.clone();
    let up = Scripted::start(&[tool("read", true)], move |a: &Arrival| {
        a.tool()?;
        let number = count.fetch_add(1, Ordering::SeqCst) + 1;
        let (tx, rx) = mpsc::channel(8);
        let token = a.message["params"]["_meta"]["progressToken"].clone();
        let answer = a.result(&json!({"content": [{"type": "text", "text": format!("{number}")}]}));
        tokio::spawn(async move {
            for step in 1..=4 {
                let params = json!({"progressToken": token, "progress": step, "message": format!("of {number}")});
                let told = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": params});
                let _ = tx.send(told.to_string()).await;
                // The second one is as fast as it can be.
                let pause = if number == 1 { 200 } else { 100 };
                tokio::time::sleep(Duration::from_millis(pause)).await;
            }
            let _ = tx.send(answer).await;
        });
        Some(Reply::Live(rx))
    })
    .await;
    let weir = Weir::start("", &up.section("up", HEDGED));
    weir.ready(&["up"]).await;
    let params = json!({"name": "up__read", "arguments": {}, "_meta": {"progressToken": "p"}});
    let got = modern(&weir.url, None, "tools/call", params).await;
    assert_eq!((said(&got.answer()), up.arrived("read")), ("2", 2));
    let told: Vec<_> = got.messages();
    let told: Vec<_> = told.iter().filter(|m| m["method"] == "notifications/progress").collect();
    assert!(told.len() >= 2, "{told:?}");
    assert!(told.iter().all(|m| m["params"]["message"] == "of 1"), "{told:?}");
    let steps: Vec<_> = told.iter().map(|m| m["params"]["progress"].as_u64().unwrap()).collect();
    assert!(steps.is_sorted_by(|a, b| a < b), "{steps:?}");
}

/// Reads at two replicas, of which one takes as long as `slow` says of its `n`th call.
async fn beside_a_slow_one(
    slow: impl Fn(usize) -> Duration + Send + Sync + 'static,
) -> (Scripted, Scripted, Weir) {
    let calls = AtomicUsize::new(0);
    let tools = [tool("read", true)];
    let a = Scripted::start(&tools, move |a: &Arrival| {
        a.tool()?;
        let pause = slow(calls.fetch_add(1, Ordering::SeqCst));
        Some(Reply::After(pause, Box::new(a.text("slow"))))
    })
    .await;
    let b = Scripted::start(&tools, |a: &Arrival| a.tool().map(|_| a.text("fast"))).await;
    let more = "hedge_after = \"20ms\"\nretry = { attempts = 0, budget = 1.0 }\n\
                ejection = { consecutive = 2, first = \"500ms\", longest = \"10m\" }";
    let weir = over(&[&a.url, &b.url], more).await;
    (a, b, weir)
}

/// Whether the first replica gets no calls.
async fn is_left_out(weir: &Weir) -> bool {
    upstream(&weir.status().await, "up")["replicas"][0]["ejected_for_ms"].is_number()
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_never_answers_is_left_out_although_no_call_fails() {
    let (a, _b, weir) = beside_a_slow_one(|_| LONG).await;
    let end = Instant::now() + PATIENCE;
    while !is_left_out(&weir).await {
        assert!(Instant::now() < end, "{:#}", weir.status().await);
        let answer = call(&weir.url, "up__read", json!({})).await;
        assert_eq!(said(&answer), "fast", "no caller notices");
    }
    let status = weir.status().await;
    let told = &upstream(&status, "up")["replicas"][0];
    assert_eq!((&told["failures_in_a_row"], &told["in_flight"]), (&json!(0), &json!(0)));
    assert!(a.arrived("read") >= 6, "{}", a.arrived("read"));
    let ejections = "weir_replica_ejections_total{upstream=\"up\",replica=\"1\"} ";
    assert!(!weir.metrics().await.contains(&format!("{ejections}0")), "it is counted");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_is_only_slower_is_not_left_out() {
    // Of four calls it loses three.
    let time = |n: usize| if n % 4 == 3 { Duration::ZERO } else { Duration::from_millis(200) };
    let (a, _b, weir) = beside_a_slow_one(time).await;
    let begun = Instant::now();
    while a.arrived("read") < 40 || begun.elapsed() < Duration::from_millis(1500) {
        said(&call(&weir.url, "up__read", json!({})).await);
    }
    assert!(!is_left_out(&weir).await);
    assert!(
        weir.metrics()
            .await
            .contains("weir_replica_ejections_total{upstream=\"up\",replica=\"1\"} 0\n")
    );
}
