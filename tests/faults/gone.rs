//! Endpoints that are gone, and upstreams that leave small things unanswered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, modern, reason, tool_names, upstream};
use crate::text;

#[tokio::test(flavor = "multi_thread")]
async fn the_first_call_that_finds_nobody_tells_all() {
    let gone = Arc::new(AtomicBool::new(false));
    let asks = Arc::new(AtomicUsize::new(0));
    let up = {
        let (gone, asks) = (gone.clone(), asks.clone());
        Scripted::start(&[tool("read", true)], move |_| {
            let away = gone.load(Ordering::SeqCst);
            asks.fetch_add(usize::from(away), Ordering::SeqCst);
            // Closed without a word, as a dead process behind a port forward.
            away.then(|| Reply::Cut(vec![]))
        })
        .await
    };
    let weir = Weir::start("", &up.section("up", "refresh = \"1h\""));
    weir.ready(&["up"]).await;
    assert_eq!(text(&call(&weir.url, "up__read", json!({})).await), "fine");
    gone.store(true, Ordering::SeqCst);
    let failed = call(&weir.url, "up__read", json!({})).await;
    assert_eq!(failed["result"]["isError"], true, "{failed}");
    weir.until("known to be down", |s| upstream(s, "up")["state"] == "down").await;
    assert!(weir.metrics().await.contains("weir_upstream_up{upstream=\"up\"} 0"));
    // The tool is still listed, and the list says what is wrong with it.
    let list = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert!(list.to_string().contains("up__read"), "{list}");
    assert!(list["result"]["_meta"].to_string().contains("\"up\""), "{list}");
    // From now on calls are refused without trying.
    let refused = call(&weir.url, "up__read", json!({})).await;
    assert_eq!(reason(&refused), "upstream_down", "{refused}");
    // Tries are few, however many calls come.
    let before = asks.load(Ordering::SeqCst);
    for _ in 0..50 {
        call(&weir.url, "up__read", json!({})).await;
    }
    assert!(asks.load(Ordering::SeqCst) <= before + 6, "{before} {asks:?}");
    gone.store(false, Ordering::SeqCst);
    weir.ready(&["up"]).await;
    assert_eq!(text(&call(&weir.url, "up__read", json!({})).await), "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_upstream_s_own_errors_travel_with_200() {
    let up = Scripted::start(&[tool("odd", false)], |a| {
        a.tool()?;
        let code = a.message["params"]["arguments"]["code"].clone();
        let error = json!({"jsonrpc": "2.0", "id": a.message["id"], "error": {"code": code, "message": "mine"}});
        Some(Reply::Json(error.to_string()))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    for code in [-32601, -32600, -32700, -32603, 7] {
        let params = json!({"name": "up__odd", "arguments": {"code": code}});
        let got = modern(&weir.url, None, "tools/call", params).await;
        assert_eq!(
            (got.status, &got.answer()["error"]["code"]),
            (200, &json!(code)),
            "{}",
            got.body
        );
    }
    // Our own word on the method is another thing.
    let own = modern(&weir.url, None, "tools/fly", json!({})).await;
    assert_eq!((own.status, &own.answer()["error"]["code"]), (404, &json!(-32601)));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_log_level_that_is_never_acknowledged_delays_no_call() {
    let up = Scripted::start(&[tool("t", false)], |a| match a.method() {
        "initialize" => Some(Reply::Json(a.result(&json!({"protocolVersion": "2025-06-18",
            "capabilities": {"tools": {}, "logging": {}}, "serverInfo": {"name": "s", "version": "1"}})))),
        "logging/setLevel" => Some(Reply::Hang(vec![])),
        _ => None,
    })
    .await;
    // Less than the upstream takes for the level, more than a call needs.
    let weir = Weir::start("", &up.section("up", "call_timeout = \"3s\""));
    weir.ready(&["up"]).await;
    let params = json!({"name": "up__t", "arguments": {},
        "_meta": {"io.modelcontextprotocol/logLevel": "debug"}});
    let answer = modern(&weir.url, None, "tools/call", params).await.answer();
    assert_eq!(text(&answer), "fine", "{answer}");
    assert_eq!(up.asked("logging/setLevel"), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_is_refused_for_now_is_asked_for_when_it_wants() {
    let tries = Arc::new(AtomicUsize::new(0));
    let up = {
        let tries = tries.clone();
        Scripted::start(&[tool("t", false)], move |a| {
            (a.verb == "GET").then(|| match tries.fetch_add(1, Ordering::SeqCst) {
                0 => Reply::Http(429, vec![("retry-after", "1".into())], String::new()),
                _ => {
                    let (tx, rx) = tokio::sync::mpsc::channel(1);
                    tokio::spawn(async move {
                        tokio::time::sleep(Duration::from_secs(60)).await;
                        drop(tx);
                    });
                    Reply::Live(rx)
                }
            })
        })
        .await
    };
    let throttle = "[upstreams.up.throttle]\npause_max = \"500ms\"";
    let weir = Weir::start("", &up.section("up", throttle));
    weir.ready(&["up"]).await;
    weir.until("asked again", |_| tries.load(Ordering::SeqCst) == 2).await;
    // The lists were fetched at the start, and once more for what was said meanwhile.
    weir.until("fetched", |_| up.asked("tools/list") == 2).await;
    tokio::time::sleep(Duration::from_secs(1)).await;
    assert_eq!((up.asked("tools/list"), tries.load(Ordering::SeqCst)), (2, 2));
    assert_eq!(tool_names(&weir.url, None).await.len(), 4);
}
