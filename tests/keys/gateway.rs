//! `[gateway]`, views and consumers.

use std::time::Duration;

use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, new_key};

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, modern, modern_request, reason, send, tool_names};
use crate::{acting, over, text, until};

#[tokio::test(flavor = "multi_thread")]
async fn max_calls_bounds_what_is_in_flight() {
    let up = acting().await;
    for (max, wanted) in [(2, "overloaded"), (3, "")] {
        let weir = over(&up, &format!("max_calls = {max}"), "").await;
        let before = up.arrived("hang");
        let running: Vec<_> = (0..2)
            .map(|_| {
                let url = weir.url.clone();
                tokio::spawn(async move { call(&url, "up__hang", json!({})).await })
            })
            .collect();
        until("two in flight", || up.arrived("hang") == before + 2).await;
        let answer = call(&weir.url, "up__ok", json!({})).await;
        assert_eq!(reason(&answer), wanted, "{max}: {answer}");
        running.iter().for_each(tokio::task::JoinHandle::abort);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn instructions_are_handed_on_whole_cut_or_not_at_all() {
    let up = Scripted::start(&[], |a| {
        (a.method() == "initialize").then(|| {
            Reply::Json(a.result(&json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                "serverInfo": {"name": "i", "version": "1"}, "instructions": "Always knock before you enter the vault."})))
        })
    })
    .await;
    for (gateway, own, wanted) in [
        ("", "", Some("Always knock before you enter the vault.")),
        ("instructions_max = \"12B\"", "", Some("Always knock")),
        ("instructions = false", "", None),
        ("", "instructions = false", None),
    ] {
        let weir = over(&up, gateway, own).await;
        let found = modern(&weir.url, None, "server/discover", json!({})).await.answer();
        let told = found["result"]["instructions"].as_str().unwrap_or("");
        match wanted {
            Some(wanted) => assert!(told.contains(wanted), "{gateway} {own}: {told}"),
            None => assert!(!told.contains("knock"), "{gateway} {own}: {told}"),
        }
        assert_eq!(told.contains("vault"), wanted.is_some_and(|w| w.contains("vault")));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn list_changed_waits_for_quiet() {
    // Two changes shortly after one another are told as one, or as two.
    for (debounce, wanted) in [("3s", 1), ("10ms", 2)] {
        let line = format!("list_changed_debounce = \"{debounce}\"");
        let (one, two) = (Scripted::fine(&["a"]).await, Scripted::fine(&["b"]).await);
        let weir = Weir::start(&line, "");
        let wish = json!({"notifications": {"toolsListChanged": true}});
        let (headers, body) = modern_request(None, "subscriptions/listen", wish);
        let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
        let response = send(&weir.url, &headers, body).await;
        weir.rewrite(&line, &one.section("one", ""));
        weir.ready(&["one"]).await;
        tokio::time::sleep(Duration::from_millis(300)).await;
        weir.rewrite(&line, &(one.section("one", "") + &two.section("two", "")));
        weir.ready(&["one", "two"]).await;
        tokio::time::sleep(Duration::from_secs(4)).await;
        drop(weir);
        use http_body_util::BodyExt as _;
        let mut heard = Vec::new();
        let mut body = response.into_body();
        while let Some(Ok(frame)) = body.frame().await {
            heard.extend_from_slice(frame.data_ref().unwrap());
        }
        let heard = String::from_utf8(heard).unwrap();
        assert_eq!(heard.matches("tools/list_changed").count(), wanted, "{debounce}: {heard}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_notice_is_how_long_calls_are_still_taken() {
    let up = acting().await;
    for (notice, status) in [("60s", 200), ("0s", 503)] {
        let settings = format!("drain_timeout = \"60s\"\ndrain_notice = \"{notice}\"");
        let mut weir = over(&up, &settings, "").await;
        let (url, admin, before) = (weir.url.clone(), weir.admin.clone(), up.arrived("slow"));
        let running = tokio::spawn(async move { call(&url, "up__slow", json!({})).await });
        until("in flight", || up.arrived("slow") == before + 1).await;
        weir.terminate();
        until_not_ready(&admin).await;
        let params = json!({"name": "up__ok", "arguments": {}});
        let got = modern(&weir.url, None, "tools/call", params).await;
        assert_eq!(got.status, status, "{notice}: {}", got.body);
        assert_eq!(got.headers["connection"], "close");
        assert_eq!(running.await.unwrap()["result"]["content"][0]["text"], "slow");
        // Who asks again does not want to wait.
        weir.stop();
    }
}

async fn until_not_ready(admin: &str) {
    let ready = format!("{admin}/readyz");
    while crate::harness::get(&ready).await.0 != 503 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn drain_timeout_is_how_long_calls_may_take_to_finish() {
    let up = acting().await;
    for (patience, finished) in [("30s", true), ("100ms", false)] {
        let mut weir = over(&up, &format!("drain_timeout = \"{patience}\""), "").await;
        let (url, before) = (weir.url.clone(), up.arrived("slow"));
        let running = tokio::spawn(async move { call(&url, "up__slow", json!({})).await });
        until("in flight", || up.arrived("slow") == before + 1).await;
        tokio::task::spawn_blocking(move || weir.stop()).await.unwrap();
        // Cut off: the client sees a broken connection, or is told that the upstream is leaving.
        let answer = running.await.unwrap_or(Value::Null);
        assert_eq!(
            answer["result"]["content"][0]["text"] == "slow",
            finished,
            "{patience}: {answer}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn state_and_cache_are_where_they_should_be() {
    let up = Scripted::fine(&["a"]).await;
    let weir = over(&up, "", "").await;
    // The harness points both into the test's own folder.
    let kept = weir.dir.path().join("state/catalog");
    assert!(std::fs::read_dir(kept).unwrap().count() >= 1);
    let package = "[upstreams.p]\npackage = \"npm:no-such-package-of-weirkeeper@0.0.1\"\n";
    weir.rewrite("", package);
    let cache = weir.dir.path().join("cache/packages");
    until("something in the cache", || cache.is_dir()).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn views_and_quotas_are_each_teams_own() {
    let names = ["read", "write", "write_all"];
    let tools: Vec<_> = names.iter().map(|n| tool(n, false)).collect();
    let up = Scripted::start(&tools, |_| None).await;
    let keys: Vec<_> = (0..4).map(|_| new_key()).collect();
    let digest = |n: usize| ConsumerKey::of(keys[n].expose()).to_text();
    let (k0, k1, k2, k3) = (digest(0), digest(1), digest(2), digest(3));
    let toml = up.section("one", "")
        + &up.section("two", "")
        + &format!(
            "[views.only]\nupstreams = [\"one\"]\n[views.some]\nallow = [\"*__write*\"]\ndeny = [\"*_all\"]\n\
         [consumers.a]\nkey = {k0:?}\nview = \"only\"\nrate = {{ per_second = 0.001, burst = 2 }}\n\
         [consumers.b]\nkeys = [{k1:?}, {k2:?}]\nview = \"some\"\n[consumers.c]\nkey = {k3:?}\n\
         rate = {{ per_second = 50, burst = 1 }}\n"
        );
    let weir = Weir::start("builtin = false", &toml);
    weir.ready(&["one", "two"]).await;
    let seen = |n: usize| tool_names(&weir.url, Some(keys[n].expose()));
    assert_eq!(seen(0).await, ["one__read", "one__write", "one__write_all"]);
    assert_eq!(seen(1).await, ["one__write", "two__write"]);
    assert_eq!(seen(2).await, seen(1).await, "either key");
    assert_eq!(seen(3).await.len(), 6, "without a view: everything");
    let said = |n: usize| {
        let (url, key) = (weir.url.clone(), keys[n].expose().to_owned());
        async move {
            modern(&url, Some(&key), "tools/call", json!({"name": "one__write"})).await.answer()
        }
    };
    let first = said(0).await;
    assert_eq!(text(&first), "fine");
    let (second, third) = (said(0).await, said(0).await);
    assert_eq!((reason(&second), reason(&third)), ("", "quota_exceeded"), "{third}");
    assert_eq!(reason(&said(1).await), "", "another team's quota is its own");
}
