//! Which calls are tried at another replica, and that no write arrives twice.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::front::Front;
use crate::harness::scripted::{Arrival, Reply, Scripted, tool};
use crate::harness::{PATIENCE, call, upstream};
use crate::{named, over, ready, said};

const NEVER_OPEN: &str = "breaker = { enabled = false }\n";

#[tokio::test(flavor = "multi_thread")]
async fn what_reached_nobody_goes_to_another() {
    let (a, b) = (named("a").await, named("b").await);
    let mut front = Front::before(&a).await;
    // No retries: this is none.
    let more = format!(
        "{NEVER_OPEN}ejection = {{ first = \"1s\" }}\nretry = {{ attempts = 0 }}\nrefresh = \"1h\""
    );
    let weir = over(&[&front.url, &b.url], &more).await;
    assert_eq!(said(&call(&weir.url, "up__write", json!({})).await), "a");
    front.shut().await;
    for _ in 0..6 {
        assert_eq!(said(&call(&weir.url, "up__write", json!({})).await), "b");
    }
    assert_eq!((a.arrived("write"), b.arrived("write")), (1, 6));
    // The lists say what they said, and the upstream is as well as its best replica.
    let status = weir.until("one is down", |s| ready(s) == 1).await;
    assert_eq!(upstream(&status, "up")["state"], "ready");
    assert_eq!(upstream(&status, "up")["catalog"]["state"], "live");
    front.open();
    weir.until("both are back", |s| ready(s) == 2).await;
    // It failed often enough to be left out, and gets calls again when that time is over.
    let end = std::time::Instant::now() + PATIENCE;
    while said(&call(&weir.url, "up__write", json!({})).await) != "a" {
        assert!(std::time::Instant::now() < end, "it gets no calls again");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_may_have_arrived_goes_nowhere_else_if_it_writes() {
    let cut = async || {
        let schema = json!({"type": "object", "properties": {"key": {"type": "string"}}});
        let tools = [
            tool("write", false),
            tool("read", true),
            json!({"name": "keyed", "inputSchema": schema}),
        ];
        Scripted::start(&tools, |a: &Arrival| a.tool().map(|_| Reply::Cut(vec![]))).await
    };
    let (a, b) = (cut().await, cut().await);
    let more = format!(
        "{NEVER_OPEN}ejection = {{ consecutive = 100 }}\n\
         retry = {{ attempts = 1, backoff = \"1ms\", budget = 1.0 }}\n\
         [upstreams.up.tools.keyed]\nidempotency = {{ argument = \"key\" }}"
    );
    let weir = over(&[&a.url, &b.url], &more).await;
    let arrived = |tool: &str| (a.arrived(tool), b.arrived(tool));
    for n in 1..=4 {
        let answer = call(&weir.url, "up__write", json!({})).await;
        let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
        assert_eq!((said(&answer), &failure["outcome"]), ("connection_lost", &json!("unknown")));
        let (at_a, at_b) = arrived("write");
        assert_eq!(at_a + at_b, n, "once, at one of them");
    }
    // A read is tried at the other.
    call(&weir.url, "up__read", json!({})).await;
    assert_eq!(arrived("read"), (1, 1));
    // With a key a write is tried again, but only where the key is known.
    call(&weir.url, "up__keyed", json!({})).await;
    let (at_a, at_b) = arrived("keyed");
    assert_eq!((at_a.max(at_b), at_a.min(at_b)), (2, 0));
}

/// Replicas that come and go, hundreds of writes at once, and each of them accounted for.
#[tokio::test(flavor = "multi_thread")]
async fn no_write_arrives_twice_whatever_the_replicas_do() {
    let seen = Arc::new(AtomicUsize::new(0));
    // Every fifth answer is cut off somewhere, every seventh request not looked at.
    let flaky = async || {
        let seen = seen.clone();
        Scripted::start(&[tool("write", false)], move |a: &Arrival| {
            a.tool()?;
            match seen.fetch_add(1, Ordering::Relaxed) {
                n if n % 5 == 0 => {
                    let head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 500\r\n\r\n{";
                    Some(Reply::Cut(head[..n % head.len()].to_vec()))
                }
                n if n % 7 == 0 => Some(Reply::Http(503, vec![], String::new())),
                _ => None,
            }
        })
        .await
    };
    let (a, b) = (flaky().await, flaky().await);
    let mut fronts = [Front::before(&a).await, Front::before(&b).await];
    let more = format!(
        "{NEVER_OPEN}concurrency = {{ max = 32, queue = 1000 }}\n\
         ejection = {{ consecutive = 3, first = \"50ms\", longest = \"200ms\" }}\n\
         retry = {{ attempts = 3, backoff = \"10ms\", budget = 1.0 }}"
    );
    let weir = over(&[&fronts[0].url.clone(), &fronts[1].url.clone()], &more).await;
    let done = Arc::new(AtomicBool::new(false));
    let writes = async {
        let mut out = Vec::new();
        for round in 0..20 {
            let calls = (0..30).map(|n| call(&weir.url, "up__write", json!({"n": round * 30 + n})));
            out.extend(futures_util::future::join_all(calls).await);
        }
        done.store(true, Ordering::Relaxed);
        out
    };
    let doors = async {
        for n in (0..2).cycle() {
            if done.load(Ordering::Relaxed) {
                break;
            }
            fronts[n].shut().await;
            tokio::time::sleep(Duration::from_millis(60)).await;
            fronts[n].open();
            tokio::time::sleep(Duration::from_millis(40)).await;
        }
    };
    let (answers, ()) = tokio::join!(writes, doors);
    let mut arrived: BTreeMap<u64, usize> = BTreeMap::new();
    for arrival in a.arrivals().iter().chain(&b.arrivals()).filter(|a| a.tool().is_some()) {
        *arrived
            .entry(arrival.message["params"]["arguments"]["n"].as_u64().unwrap())
            .or_default() += 1;
    }
    let twice: Vec<_> = arrived.iter().filter(|(_, times)| **times > 1).collect();
    assert!(twice.is_empty(), "arrived more than once: {twice:?}");
    let (mut fine, mut unknown) = (0, 0);
    for (n, answer) in answers.iter().enumerate() {
        let times = arrived.get(&(n as u64)).copied().unwrap_or(0);
        match answer["result"]["_meta"]["io.weirkeeper/failure"]["outcome"].as_str() {
            None => {
                assert_eq!((said(answer), times), ("fine", 1), "{answer}");
                fine += 1;
            }
            Some("unknown") => unknown += 1,
            // Nobody there.
            Some(_) => assert_eq!(times, 0, "{answer}"),
        }
    }
    assert!(fine > 200 && unknown > 20, "{fine} {unknown}");
}
