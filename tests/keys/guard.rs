//! The guard, as the file sets it.

use std::time::{Duration, Instant};

use serde_json::json;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{call, reason, upstream};
use crate::{acting, over, reasons};

const QUIET: &str = "breaker = { enabled = false }\n";

#[tokio::test(flavor = "multi_thread")]
async fn places_and_the_line_before_them() {
    let up = acting().await;
    for (max, queue, wanted) in [(1, 1, "queue_full"), (1, 2, ""), (3, 1, "")] {
        let weir =
            over(&up, "", &format!("{QUIET}concurrency = {{ max = {max}, queue = {queue} }}"))
                .await;
        let before = up.arrived("slow");
        let mut running = Vec::new();
        for _ in 0..2 {
            let url = weir.url.clone();
            running.push(tokio::spawn(async move { call(&url, "up__slow", json!({})).await }));
        }
        weir.until("both there", |s| {
            let up = upstream(s, "up");
            up["in_flight"].as_u64().unwrap_or(0) + up["queued"].as_u64().unwrap_or(0) >= 2
        })
        .await;
        assert_eq!(reasons(&weir, &["ok"]).await, [wanted], "max {max}, queue {queue}");
        for one in running {
            assert_eq!(reason(&one.await.unwrap()), "");
        }
        assert_eq!(up.arrived("slow"), before + 2);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn tokens_are_spent_saved_and_waited_for() {
    let up = acting().await;
    for (rate, wanted) in [
        (
            "per_second = 0.001, burst = 1, max_wait = \"100ms\"",
            ["", "rate_limited", "rate_limited"],
        ),
        ("per_second = 0.001, burst = 2, max_wait = \"100ms\"", ["", "", "rate_limited"]),
        ("per_second = 5, burst = 1, max_wait = \"0s\"", ["", "rate_limited", "rate_limited"]),
        ("per_second = 5, burst = 1, max_wait = \"10s\"", ["", "", ""]),
    ] {
        let weir = over(&up, "", &format!("{QUIET}rate = {{ {rate} }}")).await;
        let began = Instant::now();
        assert_eq!(reasons(&weir, &["ok", "ok", "ok"]).await, wanted, "{rate}");
        if wanted == ["", "", ""] {
            assert!(began.elapsed() >= Duration::from_millis(350), "it waited");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_breaker_key_opens_or_keeps_closed_through_the_file() {
    let up = acting().await;
    let never = "open_for = \"1h\", consecutive = 1000";
    for (breaker, calls, opens) in [
        ("open_for = \"1h\", consecutive = 2, min_calls = 1000".to_owned(), ["fail", "fail"], true),
        (
            "open_for = \"1h\", consecutive = 3, min_calls = 1000".to_owned(),
            ["fail", "fail"],
            false,
        ),
        ("enabled = false, open_for = \"1h\", consecutive = 1".to_owned(), ["fail", "fail"], false),
        (format!("{never}, min_calls = 2, failure_share = 0.5"), ["ok", "fail"], true),
        (format!("{never}, min_calls = 3, failure_share = 0.5"), ["ok", "fail"], false),
        (format!("{never}, min_calls = 2, failure_share = 0.6"), ["ok", "fail"], false),
        (
            format!("{never}, min_calls = 2, slow_call = \"500ms\", slow_share = 0.5"),
            ["ok", "slow"],
            true,
        ),
        (
            format!("{never}, min_calls = 2, slow_call = \"5s\", slow_share = 0.5"),
            ["ok", "slow"],
            false,
        ),
        (
            format!("{never}, min_calls = 2, slow_call = \"500ms\", slow_share = 0.9"),
            ["ok", "slow"],
            false,
        ),
        // The tool's own errors are no failures.
        ("open_for = \"1h\", consecutive = 1".to_owned(), ["broke", "broke"], false),
    ] {
        let weir = over(&up, "", &format!("breaker = {{ {breaker} }}")).await;
        reasons(&weir, &calls).await;
        let wanted = if opens { "breaker_open" } else { "" };
        assert_eq!(reasons(&weir, &["ok"]).await, [wanted], "{breaker} {calls:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn failures_are_forgotten_after_the_window() {
    let up = acting().await;
    for (window, opens) in [("1s", false), ("10m", true)] {
        let breaker = format!(
            "breaker = {{ window = \"{window}\", min_calls = 2, failure_share = 0.6, consecutive = 1000, open_for = \"1h\" }}"
        );
        let weir = over(&up, "", &breaker).await;
        reasons(&weir, &["fail"]).await;
        tokio::time::sleep(Duration::from_millis(1600)).await;
        reasons(&weir, &["fail"]).await;
        assert_eq!(reasons(&weir, &["ok"]).await[0] == "breaker_open", opens, "{window}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_open_breaker_tries_again_and_closes_after_its_probes() {
    let up = acting().await;
    let breaker = |open_for: &str, probes: u32| {
        format!("breaker = {{ consecutive = 1, open_for = \"{open_for}\", probes = {probes} }}")
    };
    let weir = over(&up, "", &breaker("1h", 1)).await;
    assert_eq!(reasons(&weir, &["fail", "ok"]).await[1], "breaker_open");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert_eq!(reasons(&weir, &["ok"]).await, ["breaker_open"]);
    for probes in [1, 2] {
        let weir = over(&up, "", &breaker("200ms", probes)).await;
        assert_eq!(reasons(&weir, &["fail", "ok"]).await[1], "breaker_open");
        tokio::time::sleep(Duration::from_millis(300)).await;
        assert_eq!(reasons(&weir, &["ok"]).await, [""], "tried");
        let state = upstream(&weir.status().await, "up")["breaker"].clone();
        assert_eq!(state, if probes == 1 { "closed" } else { "half_open" });
        assert_eq!(reasons(&weir, &["ok"]).await, [""]);
        assert_eq!(upstream(&weir.status().await, "up")["breaker"], "closed");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_are_tried_again_within_their_budget() {
    for (retry, wanted) in [
        ("attempts = 0", 1),
        ("attempts = 3, budget = 1.0", 4),
        // A budget of nothing has no reserve either.
        ("attempts = 3, budget = 0.0", 1),
    ] {
        let up = Scripted::start(&[tool("read", true)], |a| {
            a.tool().map(|_| Reply::Http(500, vec![], String::new()))
        })
        .await;
        let weir = over(&up, "", &format!("{QUIET}retry = {{ backoff = \"1ms\", {retry} }}")).await;
        assert_eq!(reasons(&weir, &["read"]).await, ["upstream_status"]);
        assert_eq!(up.arrived("read"), wanted, "{retry}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn retries_pause_as_long_as_they_should() {
    // Pauses are drawn from nothing up to their bound: the bounds show over many.
    for (retry, long) in [
        ("backoff = \"1ms\", backoff_max = \"1ms\"", false),
        ("backoff = \"1s\", backoff_max = \"60s\"", true),
        ("backoff = \"10s\", backoff_max = \"2ms\"", false),
    ] {
        let up = Scripted::start(&[tool("read", true)], |a| {
            a.tool().map(|_| Reply::Http(500, vec![], String::new()))
        })
        .await;
        let more = format!(
            "{QUIET}call_timeout = \"2s\"\nretry = {{ attempts = 3, budget = 1.0, {retry} }}"
        );
        let toml = up.section("up", &more);
        let dir = tempfile::tempdir().unwrap();
        let started = crate::harness::Weir::start_in(dir, "", &toml, &[]);
        let weir = match started {
            Ok(weir) => weir,
            Err(log) => {
                // A first pause above the longest is a mistake in the file.
                assert!(retry.contains("10s") && log.contains("backoff_max"), "{log}");
                continue;
            }
        };
        weir.ready(&["up"]).await;
        let began = Instant::now();
        reasons(&weir, &["read"]).await;
        if long {
            // Pauses of up to 1 + 2 + 4 s: nearly always more than a tenth of a second together,
            // or cut short by the deadline.
            assert!(began.elapsed() > Duration::from_millis(20), "{retry}");
        } else {
            assert_eq!(up.arrived("read"), 4, "{retry}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn throttling_is_understood_and_pauses() {
    let up = acting().await;
    // A text in a tool's error, whatever its case.
    let weir = over(
        &up,
        "",
        "throttle = { texts = [\"quota exhausted\"], pause = \"1h\", pause_max = \"2h\" }",
    )
    .await;
    assert_eq!(reasons(&weir, &["broke", "ok"]).await, ["", "throttled"]);
    drop(weir);
    let weir = over(
        &up,
        "",
        "throttle = { texts = [\"something else\"], pause = \"1h\", pause_max = \"2h\" }",
    )
    .await;
    assert_eq!(reasons(&weir, &["broke", "ok"]).await, ["", ""]);
    drop(weir);
    // A status that names no time: as long as `pause`, at most `pause_max`.
    for (throttle, after) in [
        ("pause = \"30s\"", 30_000),
        ("pause = \"30s\", pause_max = \"30s\"", 30_000),
        ("pause = \"10ms\", pause_max = \"10ms\"", 10),
    ] {
        let weir = over(&up, "", &format!("{QUIET}throttle = {{ {throttle} }}")).await;
        let answer = call(&weir.url, "up__busy", json!({})).await;
        assert_eq!(reason(&answer), "throttled", "{answer}");
        let told =
            answer["result"]["_meta"]["io.weirkeeper/failure"]["retryAfterMs"].as_u64().unwrap();
        // Nobody is told to come again sooner than in 100 ms.
        let least = after.max(100);
        assert!(told <= least && told + 2000 > least, "{throttle}: {told}");
        tokio::time::sleep(Duration::from_millis(100)).await;
        assert_eq!(reasons(&weir, &["ok"]).await[0] == "throttled", after > 1000, "{throttle}");
    }
    // A server that asks for a day: its word is handed on, and `pause_max` is how long we obey.
    for (most, again) in [("300ms", true), ("1h", false)] {
        let day = Scripted::start(&[tool("ok", false)], |a| {
            a.tool().map(|_| Reply::Http(429, vec![("retry-after", "86400".into())], String::new()))
        })
        .await;
        let throttle = format!("{QUIET}throttle = {{ pause = \"100ms\", pause_max = \"{most}\" }}");
        let weir = over(&day, "", &throttle).await;
        let answer = call(&weir.url, "up__ok", json!({})).await;
        let told = &answer["result"]["_meta"]["io.weirkeeper/failure"]["retryAfterMs"];
        assert_eq!(*told, 86_400_000, "{answer}");
        tokio::time::sleep(Duration::from_millis(700)).await;
        reasons(&weir, &["ok"]).await;
        assert_eq!(day.arrived("ok"), if again { 2 } else { 1 }, "{most}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn slow_reads_are_sent_twice_as_soon_as_they_should() {
    let up = Scripted::start(&[tool("a", true), tool("b", true), tool("c", false)], |a| {
        a.tool().map(|_| Reply::After(Duration::from_millis(600), Box::new(a.text("slow"))))
    })
    .await;
    let of_b = |after: &str| format!("[upstreams.up.tools.b]\nhedge_after = {after:?}\n");
    for (more, wanted) in [
        (String::new(), [1, 1, 1]),
        ("hedge_after = \"100ms\"\n".into(), [2, 2, 1]),
        ("hedge_after = \"30s\"\n".into(), [1, 1, 1]),
        (of_b("100ms"), [1, 2, 1]),
        ("hedge_after = \"100ms\"\n".to_owned() + &of_b("30s"), [2, 1, 1]),
        ("hedge_after = \"100ms\"\n[upstreams.up.tools.c]\nread_only = true".into(), [2, 2, 2]),
    ] {
        let weir = over(&up, "", &more).await;
        let before = ["a", "b", "c"].map(|t| up.arrived(t));
        assert_eq!(reasons(&weir, &["a", "b", "c"]).await, ["", "", ""], "{more}");
        let now = ["a", "b", "c"].map(|t| up.arrived(t));
        assert_eq!(std::array::from_fn(|i| now[i] - before[i]), wanted, "{more}");
    }
}
