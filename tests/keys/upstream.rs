//! How an upstream over HTTP is reached, and how long it is waited for.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use serde_json::json;
use tokio::io::AsyncReadExt as _;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, reason, upstream};
use crate::{acting, over, reasons, text};

#[tokio::test(flavor = "multi_thread")]
async fn headers_and_bearer_are_sent() {
    let up = Scripted::fine(&["a"]).await;
    let more =
        "bearer = \"${UP_KEY}\"\nheaders = { X-Team = \"px-${TEAM:-none}\", X-Other = \"1\" }";
    let weir = Weir::start_with("", &up.section("up", more), &[("UP_KEY", "the-key")]);
    weir.ready(&["up"]).await;
    call(&weir.url, "up__a", json!({})).await;
    for a in up.arrivals() {
        assert_eq!(a.headers["authorization"], "Bearer the-key");
        assert_eq!((&*a.headers["x-team"], &*a.headers["x-other"]), ("px-none", "1"));
    }
    drop(weir);
    let plain = Scripted::fine(&["a"]).await;
    let _weir = over(&plain, "", "").await;
    assert!(plain.arrivals().iter().all(|a| !a.headers.contains_key("authorization")));
}

#[tokio::test(flavor = "multi_thread")]
async fn the_era_decides_what_is_asked_first() {
    for (more, first, ready) in [
        ("", "server/discover", true),
        ("era = \"legacy\"", "initialize", true),
        ("era = \"modern\"", "server/discover", false),
    ] {
        let up = Scripted::fine(&["a"]).await;
        let weir = Weir::start("", &up.section("up", more));
        weir.until("decided", |s| {
            upstream(s, "up")["state"] == if ready { "ready" } else { "down" }
        })
        .await;
        assert_eq!(up.arrivals()[0].method(), first, "{more}");
        assert_eq!(up.asked("initialize") > 0, ready, "{more}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn connect_and_list_timeouts_end_a_wait() {
    for (method, key) in [("initialize", "connect_timeout"), ("tools/list", "list_timeout")] {
        let up = Scripted::start(&[tool("a", false)], move |a| {
            (a.method() == method).then(|| Reply::Hang(vec![]))
        })
        .await;
        let weir = Weir::start("", &up.section("up", &format!("{key} = \"300ms\"")));
        let status = weir.until("given up", |s| upstream(s, "up")["state"] == "down").await;
        assert!(upstream(&status, "up")["why"].as_str().unwrap().contains("300ms"), "{status:#}");
        let patient = Weir::start("", &up.section("up", &format!("{key} = \"1m\"")));
        tokio::time::sleep(Duration::from_millis(900)).await;
        assert_eq!(upstream(&patient.status().await, "up")["state"], "starting", "{key}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn progress_extends_a_call_and_not_for_ever() {
    // It takes two seconds and says every quarter of one that it is at work.
    let up = acting().await;
    for (more, wanted) in [
        ("call_timeout = \"1s\"\nmax_call_timeout = \"30s\"", ""),
        ("call_timeout = \"1s\"\nmax_call_timeout = \"1200ms\"", "deadline_exceeded"),
        ("call_timeout = \"100ms\"\nmax_call_timeout = \"30s\"", "deadline_exceeded"),
    ] {
        let weir = over(&up, "", more).await;
        let meta = json!({"name": "up__progress", "arguments": {}, "_meta": {"progressToken": 1}});
        let answer = crate::harness::modern(&weir.url, None, "tools/call", meta).await.answer();
        assert_eq!(reason(&answer), wanted, "{more}: {answer}");
        if wanted.is_empty() {
            assert_eq!(text(&answer), "done");
        }
    }
}

/// An upstream that counts its connections and keeps each for as long as it is wanted.
async fn counting() -> (String, Arc<AtomicUsize>) {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/mcp", listener.local_addr().unwrap());
    let count = Arc::new(AtomicUsize::new(0));
    let connections = count.clone();
    let inner = Scripted::fine(&["a"]).await;
    tokio::spawn(async move {
        while let Ok((mut ours, _)) = listener.accept().await {
            connections.fetch_add(1, Ordering::SeqCst);
            let address =
                inner.url.trim_start_matches("http://").trim_end_matches("/mcp").to_owned();
            tokio::spawn(async move {
                let mut theirs = tokio::net::TcpStream::connect(address).await.unwrap();
                let _ = tokio::io::copy_bidirectional(&mut ours, &mut theirs).await;
            });
        }
    });
    (url, count)
}

#[tokio::test(flavor = "multi_thread")]
async fn idle_connections_are_kept_for_as_long_as_they_may() {
    for (idle, more) in [("100ms", true), ("1m", false)] {
        let (url, count) = counting().await;
        let weir =
            Weir::start("", &format!("[upstreams.up]\nurl = {url:?}\npool_idle = \"{idle}\"\n"));
        weir.ready(&["up"]).await;
        call(&weir.url, "up__a", json!({})).await;
        let before = count.load(Ordering::SeqCst);
        for _ in 0..2 {
            tokio::time::sleep(Duration::from_millis(600)).await;
            assert_eq!(text(&call(&weir.url, "up__a", json!({})).await), "fine");
        }
        assert_eq!(count.load(Ordering::SeqCst) > before, more, "{idle}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn dialling_gives_up() {
    // TLS that never begins is still dialling.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let tries = Arc::new(AtomicUsize::new(0));
    let seen = tries.clone();
    tokio::spawn(async move {
        let mut open = Vec::new();
        while let Ok((mut stream, _)) = listener.accept().await {
            seen.fetch_add(1, Ordering::SeqCst);
            let mut byte = [0u8; 1];
            let _ = stream.read(&mut byte).await;
            open.push(stream);
        }
    });
    let file = |dial: &str| {
        format!(
            "[upstreams.up]\nurl = \"https://{address}/mcp\"\ndial_timeout = \"{dial}\"\nconnect_timeout = \"1m\"\n"
        )
    };
    let weir = Weir::start("", &file("200ms"));
    weir.until("given up", |s| upstream(s, "up")["state"] == "down").await;
    weir.logged("connect_failed").await;
    drop(weir);
    let weir = Weir::start("", &file("50s"));
    let before = Instant::now();
    while before.elapsed() < Duration::from_secs(1) {
        assert_eq!(upstream(&weir.status().await, "up")["state"], "starting");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    assert!(tries.load(Ordering::SeqCst) >= 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn tools_have_rules_of_their_own() {
    let up = acting().await;
    let rules = "retry = { attempts = 1, backoff = \"1ms\", budget = 1.0 }\ncall_timeout = \"30s\"\n\
        breaker = { enabled = false }\n\
        [upstreams.up.tools.\"h*\"]\ncall_timeout = \"300ms\"\n\
        [upstreams.up.tools.fail]\nread_only = true\n\
        [upstreams.up.tools.\"s*\"]\nrate = { per_second = 0.001, burst = 1, max_wait = \"0s\" }\n";
    let weir = over(&up, "", rules).await;
    assert_eq!(reasons(&weir, &["hang"]).await, ["deadline_exceeded"]);
    assert_eq!(reasons(&weir, &["fail"]).await, ["upstream_status"]);
    assert_eq!(up.arrived("fail"), 2, "the operator says that it changes nothing");
    assert_eq!(reasons(&weir, &["slow", "slow", "ok", "ok"]).await, ["", "rate_limited", "", ""]);
    drop(weir);
    // Without them: no retry of what may write, no limit; and the rate waits where it may.
    let weir = over(&up, "", "breaker = { enabled = false }\n[upstreams.up.tools.ok]\nrate = { per_second = 5, burst = 1, max_wait = \"5s\" }").await;
    assert_eq!(reasons(&weir, &["fail"]).await, ["upstream_status"]);
    assert_eq!(up.arrived("fail"), 3);
    let began = Instant::now();
    assert_eq!(reasons(&weir, &["ok", "ok", "ok"]).await, ["", "", ""]);
    assert!(began.elapsed() >= Duration::from_millis(350), "two waits of a fifth of a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn calls_carry_keys_where_they_should() {
    let schema = json!({"type": "object", "properties": {"key": {"type": "string"}}});
    let tools = ["a", "b"].map(|name| json!({"name": name, "inputSchema": schema}));
    let key = |of: &str| format!("idempotency = {{ {of} }}\n");
    let (argument, header) = ("argument = \"key\"", "header = \"X-Once\"");
    for (all, of_b, wanted) in [
        ("", "", [(false, false), (false, false)]),
        (argument, "", [(true, false), (true, false)]),
        (header, argument, [(false, true), (true, false)]),
        ("", header, [(false, false), (false, true)]),
    ] {
        let up = Scripted::start(&tools, |_| None).await;
        let own = if all.is_empty() { String::new() } else { key(all) };
        let rule = format!("[upstreams.up.tools.b]\n{}", key(of_b));
        let more = own + if of_b.is_empty() { "" } else { &rule };
        let weir = over(&up, "", &more).await;
        for (tool, wanted) in ["a", "b"].iter().zip(wanted) {
            call(&weir.url, &format!("up__{tool}"), json!({})).await;
            let arrivals = up.arrivals();
            let call = arrivals.last().unwrap();
            let filled = call.message["params"]["arguments"]["key"].is_string();
            assert_eq!((filled, call.headers.contains_key("x-once")), wanted, "{more}: {tool}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn replicas_are_left_out_as_long_as_they_should() {
    let (well, bad) = (Scripted::fine(&["fail"]).await, acting().await);
    let urls = format!("urls = [{:?}, {:?}]\nbreaker = {{ enabled = false }}", bad.url, well.url);
    for (consecutive, first, longest, wanted) in [
        (2, "100ms", "1h", 400),
        (2, "100ms", "200ms", 200),
        (2, "1m", "1h", 60_000),
        (4, "1m", "1h", 60_000),
    ] {
        let ejection = format!(
            "ejection = {{ consecutive = {consecutive}, first = {first:?}, longest = {longest:?} }}"
        );
        let weir = Weir::start("", &format!("[upstreams.up]\n{urls}\n{ejection}\n"));
        let all_ready = |s: &serde_json::Value| {
            let all = upstream(s, "up")["replicas"].as_array().unwrap().clone();
            all.iter().all(|r| r["state"] == "ready")
        };
        weir.until("all ready", all_ready).await;
        let before = bad.arrived("fail");
        // Until it is out for the third time, or for long.
        let mut longest_seen = 0;
        for _ in 0..60 {
            call(&weir.url, "up__fail", json!({})).await;
            let left =
                upstream(&weir.status().await, "up")["replicas"][0]["ejected_for_ms"].as_u64();
            longest_seen = longest_seen.max(left.unwrap_or(0));
            if left.is_none() || left > Some(1000) {
                continue;
            }
            tokio::time::sleep(Duration::from_millis(left.unwrap() + 10)).await;
            if longest_seen > wanted * 3 / 4 {
                break;
            }
        }
        assert!(longest_seen <= wanted && longest_seen > wanted / 2, "{ejection}: {longest_seen}");
        if first == "1m" {
            assert_eq!(bad.arrived("fail") - before, consecutive, "{ejection}");
        }
    }
}
