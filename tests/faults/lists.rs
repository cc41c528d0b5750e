//! What a fault of one upstream does to the lists.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::scripted::{Arrival, Reply, Scripted, tool};
use crate::harness::{PATIENCE, Weir, call, modern, post, tool_names, upstream};
use crate::text;

#[tokio::test(flavor = "multi_thread")]
async fn every_page_is_followed_and_a_circle_is_named() {
    let page = |a: &Arrival, names: &[&str], next: Option<&str>| {
        let tools: Vec<_> = names.iter().map(|n| tool(n, false)).collect();
        let mut result = json!({"tools": tools});
        if let Some(next) = next {
            result["nextCursor"] = json!(next);
        }
        Some(Reply::Json(a.result(&result)))
    };
    let paged = Scripted::start(&[], move |a| {
        if a.method() != "tools/list" {
            return None;
        }
        match a.message["params"]["cursor"].as_str() {
            None => page(a, &["a", "b"], Some("")),
            Some("") => page(a, &[], Some("zwei")),
            Some("zwei") => page(a, &["c"], Some("drei")),
            Some(_) => page(a, &["d"], None),
        }
    })
    .await;
    let circle = Scripted::start(&[], move |a| {
        (a.method() == "tools/list").then(|| page(a, &["a"], Some("again")).unwrap())
    })
    .await;
    let weir = Weir::start(
        "builtin = false",
        &(paged.section("paged", "") + &circle.section("circle", "")),
    );
    weir.ready(&["paged"]).await;
    assert_eq!(tool_names(&weir.url, None).await, ["paged__a", "paged__b", "paged__c", "paged__d"]);
    let status =
        weir.until("the circle is named", |s| upstream(s, "circle")["state"] == "down").await;
    assert!(upstream(&status, "circle")["why"].as_str().unwrap().contains("circle"), "{status:#}");
    assert!(circle.asked("tools/list") < 20);
    let answer = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert_eq!(
        answer["result"]["_meta"]["io.weirkeeper/degraded"][0]["upstream"], "circle",
        "{answer}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn one_bad_tool_costs_only_itself() {
    // As text: no value of ours could hold 1e400.
    let up = Scripted::start(&[], |a| {
        (a.method() == "tools/list").then(|| {
            let mut answer = a.result(&json!({"tools": []}));
            let odd =
                r#"{"name":"also good","inputSchema":{"type":"object"},"later":[1.50,1e400]}"#;
            let rest = [
                r#"{"name":"good","inputSchema":{}}"#,
                r#"{"name":5}"#,
                r#"{"inputSchema":{}}"#,
                r#""text""#,
                r#"{"name":"","inputSchema":{}}"#,
                r#"{"name":"good","second":true}"#,
                odd,
            ]
            .join(",");
            answer = answer.replace("[]", &format!("[{rest}]"));
            Reply::Json(answer)
        })
    })
    .await;
    let weir = Weir::start("builtin = false", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let got = modern(&weir.url, None, "tools/list", json!({})).await;
    assert!(got.body.contains("\"later\":[1.50,1e400]"), "{}", got.body);
    assert!(
        got.body.contains("\"name\":\"up__good\"") && !got.body.contains("\"second\""),
        "{}",
        got.body
    );
    assert_eq!(got.body.matches("\"inputSchema\"").count(), 2, "{}", got.body);
    weir.logged("entry dropped from the catalog").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_restart_the_last_seen_catalog_serves_and_says_so() {
    let up = Scripted::fine(&["a"]).await;
    let answers = Arc::new(AtomicBool::new(true));
    let open = answers.clone();
    let gone = Scripted::start(&[tool("b", false)], move |_| {
        (!open.load(Ordering::SeqCst)).then(|| Reply::Hang(vec![]))
    })
    .await;
    let both = up.section("up", "") + &gone.section("gone", "");
    let mut weir = Weir::start("builtin = false", &both);
    weir.ready(&["up", "gone"]).await;
    let live = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    weir.kill();
    answers.store(false, Ordering::SeqCst);
    let dir = tempfile::tempdir().unwrap();
    copy(&weir.dir.path().join("state"), &dir.path().join("state"));
    let weir = Weir::start_in(dir, "builtin = false", &both, &[]).unwrap();
    let degraded = |page: &Value| page["result"]["_meta"]["io.weirkeeper/degraded"].clone();
    weir.ready(&["up"]).await;
    let page = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert_eq!(page["result"]["tools"], live["result"]["tools"]);
    let told = degraded(&page);
    assert_eq!(
        (&told[0]["upstream"], &told[0]["state"]),
        (&json!("gone"), &json!("stale")),
        "{page}"
    );
    assert!(told[0]["since"].is_string() && told[1].is_null(), "{page}");
    // It comes back: live, and nothing more is said.
    answers.store(true, Ordering::SeqCst);
    weir.ready(&["gone"]).await;
    let page = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert!(degraded(&page).is_null(), "live again: {page}");
}

fn copy(from: &std::path::Path, to: &std::path::Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.path().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_hanging_upstream_delays_no_list_and_no_neighbour() {
    let hang = Scripted::start(&[], |_| Some(Reply::Hang(vec![]))).await;
    let good = Scripted::fine(&["a"]).await;
    let weir = Weir::start(
        "",
        &(hang.section("hang", "connect_timeout = \"60s\"") + &good.section("good", "")),
    );
    weir.ready(&["good"]).await;
    let answers = tokio::time::timeout(Duration::from_secs(20), async {
        let page = modern(&weir.url, None, "tools/list", json!({})).await.answer();
        let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
            "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
        let hello = post(&weir.url, &[], hello.to_string()).await.answer();
        let found = modern(&weir.url, None, "server/discover", json!({})).await.answer();
        let called = call(&weir.url, "good__a", json!({})).await;
        (page, hello, found, called)
    });
    let (page, hello, found, called) = answers.await.expect("nobody waits for the hanging one");
    let degraded = &page["result"]["_meta"]["io.weirkeeper/degraded"][0];
    assert_eq!(
        (&degraded["upstream"], &degraded["state"]),
        (&json!("hang"), &json!("missing")),
        "{page}"
    );
    assert!(degraded["since"].is_string() && degraded["reason"].is_string());
    assert_eq!(hello["result"]["protocolVersion"], "2025-06-18");
    assert!(found["result"]["supportedVersions"].is_array(), "{found}");
    assert_eq!(text(&called), "fine");
    assert_eq!(upstream(&weir.status().await, "hang")["state"], "starting");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_ends_while_lists_are_fetched_costs_no_call() {
    let lists = Arc::new(AtomicUsize::new(0));
    let seen = lists.clone();
    let tools = [tool("cut", false), tool("fine", false)];
    let up = Scripted::start(&tools, move |a| {
        let second = a.method() == "tools/list" && seen.fetch_add(1, Ordering::SeqCst) == 1;
        (second || a.tool() == Some("cut")).then(|| Reply::Cut(vec![]))
    })
    .await;
    let weir = Weir::start("", &up.section("up", "breaker = { enabled = false }"));
    weir.ready(&["up"]).await;
    // It casts a doubt on the endpoint, so the lists are fetched again.
    call(&weir.url, "up__cut", json!({})).await;
    let end = std::time::Instant::now() + PATIENCE;
    while lists.load(Ordering::SeqCst) < 3 {
        assert!(std::time::Instant::now() < end, "not fetched again");
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    assert!(!weir.log().contains("upstream is down"), "{}", weir.log());
}
