//! What of an upstream's lists exists for us.

use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, reason, tool_names, upstream};
use crate::{acting, over, until};

#[tokio::test(flavor = "multi_thread")]
async fn a_prefix_can_be_left_out_once() {
    let up = Scripted::fine(&["a"]).await;
    let toml = up.section("one", "prefix = \"\"") + &up.section("two", "");
    let weir = Weir::start("builtin = false", &toml);
    weir.ready(&["one", "two"]).await;
    assert_eq!(tool_names(&weir.url, None).await, ["a", "two__a"]);
    assert_eq!(reason(&call(&weir.url, "a", json!({})).await), "");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_disabled_upstream_is_not_there() {
    let up = Scripted::fine(&["a"]).await;
    for (more, there) in [("enabled = false", false), ("enabled = true", true)] {
        let weir = Weir::start("builtin = false", &up.section("up", more));
        weir.until("decided", |s| (upstream(s, "up")["state"] == "ready") == there).await;
        assert_eq!(tool_names(&weir.url, None).await.len(), usize::from(there), "{more}");
        if !there {
            assert!(up.arrivals().is_empty(), "it is not even connected to");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn patterns_decide_what_exists_for_us() {
    let up = acting().await;
    for (more, wanted) in [
        ("allow = [\"s*\", \"ok\"]", vec!["up__ok", "up__slow"]),
        ("deny = [\"b*\", \"*a*\", \"progress\", \"slow\"]", vec!["up__ok"]),
        ("allow = [\"*o*\"]\ndeny = [\"*o\", \"b*\", \"pro*\"]", vec!["up__ok", "up__slow"]),
    ] {
        let weir = over(&up, "builtin = false", more).await;
        assert_eq!(tool_names(&weir.url, None).await, wanted, "{more}");
        assert_eq!(reason(&call(&weir.url, "up__hang", json!({})).await), "unknown_name");
    }
    assert_eq!(up.arrived("hang"), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn items_and_pages_are_bounded() {
    let up = Scripted::start(&[], |a| {
        (a.method() == "tools/list").then(|| {
            let n: usize = a.message["params"]["cursor"].as_str().map_or(0, |c| c.parse().unwrap());
            let tools = [tool(&format!("t{n}a"), false), tool(&format!("t{n}b"), false)];
            let mut result = json!({"tools": tools});
            if n < 4 {
                result["nextCursor"] = json!((n + 1).to_string());
            }
            Reply::Json(a.result(&result))
        })
    })
    .await;
    for (more, wanted) in [("", 10), ("max_items = 3", 3), ("max_pages = 2", 4)] {
        let weir = over(&up, "builtin = false", more).await;
        assert_eq!(tool_names(&weir.url, None).await.len(), wanted, "{more}");
        if wanted == 3 {
            let metrics = weir.metrics().await;
            assert!(
                metrics
                    .lines()
                    .any(|l| l.starts_with("weir_catalog_dropped_entries") && !l.ends_with(" 0")),
                "{metrics}"
            );
        }
        if wanted == 4 {
            weir.logged("more pages than max_pages").await;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_fetched_again() {
    let count = AtomicUsize::new(0);
    let up = Scripted::start(&[], move |a| {
        (a.method() == "tools/list").then(|| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            Reply::Json(a.result(&json!({"tools": [tool(&format!("v{n}"), false)]})))
        })
    })
    .await;
    let weir = over(&up, "builtin = false", "refresh = \"200ms\"").await;
    until("asked again, without being told", || up.asked("tools/list") > 3).await;
    drop(weir);
    let weir = over(&up, "builtin = false", "refresh = \"1h\"").await;
    let before = up.asked("tools/list");
    tokio::time::sleep(std::time::Duration::from_millis(700)).await;
    assert_eq!(up.asked("tools/list"), before);
    drop(weir);
}
