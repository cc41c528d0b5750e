//! Each key of the configuration, through the file and the running program: at one value and at
//! another, and the difference that its users see.
#![allow(clippy::unwrap_used, missing_docs)]

#[path = "../harness/mod.rs"]
mod harness;

mod child;
mod complete;
mod gateway;
mod guard;
mod lists;
mod observe;
mod upkeep;
mod upstream;

use std::time::{Duration, Instant};

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{Weir, call, reason};
use serde_json::{Value, json};

pub fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or_else(|| panic!("{answer}"))
}

/// An upstream whose tools do what they are called: `ok`, `fail` (500), `busy` (429), `slow` (a
/// second), `hang`, `broke` (an error of its own that speaks of quota), `progress` (a second with
/// progress all along).
pub async fn acting() -> Scripted {
    let names = ["ok", "fail", "busy", "slow", "hang", "broke", "progress"];
    let tools: Vec<_> = names.iter().map(|n| tool(n, false)).collect();
    Scripted::start(&tools, act).await
}

fn act(a: &Arrival) -> Option<Reply> {
    Some(match a.tool()? {
        "fail" => Reply::Http(500, vec![], String::new()),
        "busy" => Reply::Http(429, vec![], String::new()),
        "slow" => Reply::After(Duration::from_secs(1), Box::new(a.text("slow"))),
        "hang" => Reply::Hang(vec![]),
        "broke" => {
            let result = json!({"isError": true, "content": [{"type": "text", "text": "Quota Exhausted, come back"}]});
            Reply::Json(a.result(&result))
        }
        "progress" => {
            let (tx, rx) = tokio::sync::mpsc::channel(8);
            let done = a.result(&json!({"content": [{"type": "text", "text": "done"}]}));
            let token = a.message["params"]["_meta"]["progressToken"].clone();
            tokio::spawn(async move {
                for n in 0..8 {
                    tokio::time::sleep(Duration::from_millis(250)).await;
                    let step = json!({"jsonrpc": "2.0", "method": "notifications/progress", "params": {"progressToken": token, "progress": n}});
                    let _ = tx.send(step.to_string()).await;
                }
                let _ = tx.send(done).await;
            });
            Reply::Live(rx)
        }
        _ => return None,
    })
}

/// A gateway over one upstream called `up`, ready.
pub async fn over(up: &Scripted, gateway: &str, more: &str) -> Weir {
    let weir = Weir::start(gateway, &up.section("up", more));
    weir.ready(&["up"]).await;
    weir
}

/// The reasons of these calls, one after the other.
pub async fn reasons(weir: &Weir, tools: &[&str]) -> Vec<String> {
    let mut out = Vec::new();
    for tool in tools {
        out.push(reason(&call(&weir.url, &format!("up__{tool}"), json!({})).await).to_owned());
    }
    out
}

/// Wait until something holds.
pub async fn until(what: &str, ok: impl Fn() -> bool) {
    let end = Instant::now() + harness::PATIENCE;
    while !ok() {
        assert!(Instant::now() < end, "not seen: {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}
