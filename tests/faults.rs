//! Upstreams that fail in every way we know of, behind the whole gateway: what the caller reads,
//! what the upstream saw, and that the neighbours notice nothing.
#![allow(clippy::unwrap_used, missing_docs)]

mod harness;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use harness::scripted::{Arrival, Reply, Scripted, tool};
use harness::{
    PATIENCE, Weir, call, modern, modern_request, post, reason, send, tool_names, upstream,
};
use serde_json::{Value, json};

const EVENTS: &str = "HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n";

fn failure(answer: &Value) -> &Value {
    let told = &answer["result"]["_meta"]["io.weirkeeper/failure"];
    if told.is_null() { &answer["error"]["data"] } else { told }
}

fn text(answer: &Value) -> &str {
    answer["result"]["content"][0]["text"].as_str().unwrap_or("")
}

/// A stdio upstream in Python: `on_call(m)` decides what comes of `tools/call`.
fn child(dir: &tempfile::TempDir, name: &str, on_call: &str, more: &str) -> String {
    let script = format!(
        r#"
import json, os, sys, time
def out(x): sys.stdout.write(x + '\n'); sys.stdout.flush()
def result(m, r): out(json.dumps({{'jsonrpc': '2.0', 'id': m['id'], 'result': r}}))
def text(m, t): result(m, {{'content': [{{'type': 'text', 'text': t}}]}})
{on_call}
for line in sys.stdin:
    m = json.loads(line)
    k = m.get('method')
    if 'id' not in m or k is None: continue
    if k == 'initialize': result(m, {{'protocolVersion': '2025-06-18', 'capabilities': {{'tools': {{}}}}, 'serverInfo': {{'name': 'p', 'version': '1'}}}})
    elif k == 'tools/list': result(m, {{'tools': [{{'name': n, 'inputSchema': {{'type': 'object'}}}} for n in ('act', 'fine')]}})
    elif k == 'tools/call':
        if m['params']['name'] == 'fine': text(m, 'fine')
        else: on_call(m)
    else: out(json.dumps({{'jsonrpc': '2.0', 'id': m['id'], 'error': {{'code': -32601, 'message': 'no'}}}}))
"#
    );
    let path = dir.path().join(format!("{name}.py"));
    std::fs::write(&path, script).unwrap();
    format!("[upstreams.{name}]\ncommand = \"python3\"\nargs = [\"-u\", {path:?}]\n{more}\n")
}

#[tokio::test(flavor = "multi_thread")]
async fn half_a_stream_of_a_write_is_an_unknown_outcome() {
    let up = Scripted::start(&[tool("write", false), tool("read", true)], |a| {
        a.tool()?;
        let step = json!({"jsonrpc": "2.0", "method": "notifications/progress",
            "params": {"progressToken": a.message["params"]["_meta"]["progressToken"], "progress": 1}});
        Some(Reply::Cut(format!("{EVENTS}data: {step}\n\ndata: {{\"jsonr").into_bytes()))
    })
    .await;
    let weir = Weir::start(
        "",
        &up.section("up", "retry = { attempts = 1, budget = 1.0, backoff = \"1ms\" }"),
    );
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__write", json!({})).await;
    assert_eq!(reason(&answer), "connection_lost", "{answer}");
    assert_eq!(failure(&answer)["outcome"], "unknown");
    assert_eq!(up.arrived("write"), 1);
    let answer = call(&weir.url, "up__read", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("connection_lost", &json!("no_effect"))
    );
    assert_eq!(up.arrived("read"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_that_ended_at_an_id_is_gone_on_with() {
    // The answer comes on the third stream; the request is sent once.
    let asked = Arc::new(std::sync::Mutex::new(Value::Null));
    let seen = asked.clone();
    let up = Scripted::start(&[tool("write", false)], move |a| {
        if a.verb == "GET" {
            let from = a.headers.get("last-event-id")?.as_str();
            let id = seen.lock().unwrap().clone();
            return Some(match from {
                "e-1" => Reply::Http(
                    200,
                    vec![("content-type", "text/event-stream".into())],
                    "id: e-2\nretry: 10\ndata:\n\n".into(),
                ),
                "e-2" => Reply::events(&[json!({"jsonrpc": "2.0", "id": id, "result":
                    {"content": [{"type": "text", "text": "late"}]}})
                .to_string()]),
                _ => return None,
            });
        }
        a.tool()?;
        *seen.lock().unwrap() = a.message["id"].clone();
        Some(Reply::Cut(format!("{EVENTS}id: e-1\nretry: 10\ndata:\n\n").into_bytes()))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__write", json!({})).await;
    assert_eq!(text(&answer), "late", "{answer}");
    assert_eq!(up.arrived("write"), 1);
    let froms: Vec<_> =
        up.arrivals().iter().filter_map(|a| a.headers.get("last-event-id").cloned()).collect();
    assert_eq!(froms, ["e-1", "e-2"]);
    drop(asked);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_large_is_refused_and_costs_nobody_else() {
    let huge = Arc::new("x".repeat(3 << 20));
    let body = huge.clone();
    let up = Scripted::start(&[tool("json", false), tool("event", false), tool("endless", false), tool("fine", false)], move |a| {
        Some(match a.tool()? {
            "json" => a.text(&body),
            "event" => Reply::events(&[a.result(&json!({"content": [{"type": "text", "text": *body}]}))]),
            "endless" => {
                let head = "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: 99999999999\r\n\r\n";
                Reply::Hang(format!("{head}{{\"x\":\"{body}").into_bytes())
            }
            _ => return None,
        })
    })
    .await;
    let dir = tempfile::tempdir().unwrap();
    let line =
        child(&dir, "line", "def on_call(m): text(m, 'x' * (3 << 20))", "max_message = \"1MiB\"");
    let weir = Weir::start("", &(up.section("up", "max_message = \"1MiB\"") + &line));
    weir.ready(&["up", "line"]).await;
    for name in ["up__json", "up__event", "up__endless", "line__act"] {
        let answer = call(&weir.url, name, json!({})).await;
        assert_eq!(reason(&answer), "too_large", "{name}: {answer}");
        assert_eq!(failure(&answer)["outcome"], "unknown", "{name}");
    }
    // The pipe is whole again behind the long line, in the same process.
    assert_eq!(text(&call(&weir.url, "line__fine", json!({})).await), "fine");
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    assert_eq!(upstream(&weir.status().await, "line")["restarts"], 0);
}

/// Sessions that the upstream forgets when told to.
async fn forgetful(status: u16) -> (Scripted, Arc<AtomicBool>) {
    let forget = Arc::new(AtomicBool::new(false));
    let (flag, count) = (forget.clone(), AtomicUsize::new(0));
    let up = Scripted::start(&[tool("write", false)], move |a| {
        if a.method() == "initialize" {
            let n = count.fetch_add(1, Ordering::SeqCst);
            flag.store(false, Ordering::SeqCst);
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}});
            let headers = vec![("content-type", "application/json".into()), ("mcp-session-id", format!("s-{n}"))];
            return Some(Reply::Http(200, headers, a.result(&result)));
        }
        if a.verb == "POST" && flag.load(Ordering::SeqCst) {
            let body = json!({"jsonrpc": "2.0", "id": null, "error": {"code": -32001, "message": "Session not found"}});
            return Some(Reply::Http(status, vec![("content-type", "application/json".into())], body.to_string()));
        }
        None
    })
    .await;
    (up, forget)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_forgotten_session_is_renewed_and_the_caller_notices_nothing() {
    let (up, forget) = forgetful(404).await;
    // Without any retries: renewing is none.
    let weir = Weir::start("", &up.section("up", "retry = { attempts = 0 }"));
    weir.ready(&["up"]).await;
    for round in 1..4 {
        forget.store(true, Ordering::SeqCst);
        let answer = call(&weir.url, "up__write", json!({})).await;
        assert_eq!(text(&answer), "fine", "round {round}: {answer}\n{}", weir.log());
        let done = up
            .arrivals()
            .iter()
            .filter(|a| a.tool().is_some() && a.headers["mcp-session-id"] == format!("s-{round}"))
            .count();
        assert_eq!(done, 1, "the write was looked at once");
    }
    let page = modern(&weir.url, None, "tools/list", json!({})).await.answer();
    assert!(page["result"]["_meta"].is_null(), "never stale: {page}");
    assert!(!weir.log().contains("upstream is down"), "{}", weir.log());
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_request_that_speaks_of_the_session_is_renewed_but_a_write_not_repeated() {
    let (up, forget) = forgetful(400).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    forget.store(true, Ordering::SeqCst);
    let answer = call(&weir.url, "up__write", json!({})).await;
    assert_eq!(reason(&answer), "connection_lost", "{answer}");
    assert_eq!(up.arrived("write"), 1);
    assert_eq!(text(&call(&weir.url, "up__write", json!({})).await), "fine");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_with_a_bad_status_is_still_the_upstreams_own_answer() {
    let up = Scripted::start(&[tool("odd", false)], |a| {
        if a.method() == "initialize" {
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}});
            let headers = vec![("content-type", "application/json".into()), ("mcp-session-id", "s".into())];
            return Some(Reply::Http(200, headers, a.result(&result)));
        }
        a.tool()?;
        let error = json!({"jsonrpc": "2.0", "id": a.message["id"], "error":
            {"code": 1055, "message": "customer is blocked", "data": {"n": 1}}});
        Some(Reply::Http(400, vec![("content-type", "application/json".into())], error.to_string()))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__odd", json!({})).await;
    assert_eq!(
        answer["error"],
        json!({"code": 1055, "message": "customer is blocked", "data": {"n": 1}})
    );
    assert_eq!(up.asked("initialize"), 1, "the session goes on");
}

#[tokio::test(flavor = "multi_thread")]
async fn redirects_stay_at_the_origin() {
    let elsewhere = Scripted::fine(&["x"]).await;
    let target = elsewhere.url.clone();
    let up = Scripted::start(&[tool("away", false), tool("near", false)], move |a| {
        Some(match a.tool()? {
            "away" => Reply::Http(307, vec![("location", target.clone())], String::new()),
            "near" if !a.verb.is_empty() => {
                Reply::Http(307, vec![("location", "/other".into())], String::new())
            }
            _ => return None,
        })
    })
    .await;
    let weir = Weir::start_with(
        "",
        &up.section("up", "bearer = \"${UP_TOKEN}\""),
        &[("UP_TOKEN", "token-of-the-first")],
    );
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__away", json!({})).await;
    assert_eq!(reason(&answer), "upstream_status", "{answer}");
    assert!(elsewhere.arrivals().is_empty(), "nothing, and no token, went elsewhere");
    assert!(!answer.to_string().contains("127.0.0.1"), "an agent is shown no address: {answer}");
    // The same origin is followed, but not in a circle.
    let answer = call(&weir.url, "up__near", json!({})).await;
    assert_eq!(reason(&answer), "upstream_status", "{answer}");
    assert!((2..12).contains(&up.arrived("near")), "{}", up.arrived("near"));
}

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
async fn a_child_that_dies_in_the_middle_is_started_again_and_nothing_is_sent_twice() {
    let dir = tempfile::tempdir().unwrap();
    let arrivals = dir.path().join("arrivals");
    let on_call = format!(
        "def on_call(m):\n    open({arrivals:?}, 'a').write('x')\n    sys.stdout.write('{{\"jsonrpc\"'); sys.stdout.flush(); os._exit(9)"
    );
    let section = child(&dir, "up", &on_call, "restart_backoff = \"100ms\"");
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__act", json!({})).await;
    assert_eq!(
        (reason(&answer), &failure(&answer)["outcome"]),
        ("connection_lost", &json!("unknown")),
        "{answer}"
    );
    weir.until("started again", |s| {
        upstream(s, "up")["state"] == "ready" && upstream(s, "up")["restarts"] == 1
    })
    .await;
    assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    assert_eq!(std::fs::read_to_string(&arrivals).unwrap(), "x");
    assert!(weir.metrics().await.contains("weir_upstream_restarts_total{upstream=\"up\"} 1"));
    // Time and again: a crash loop, named as such.
    for _ in 0..3 {
        call(&weir.url, "up__act", json!({})).await;
        weir.until("up or known to crash", |s| {
            upstream(s, "up")["state"] == "ready" || upstream(s, "up")["crash_loop"] == true
        })
        .await;
    }
    weir.logged("\"crash_loop\":true").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn answers_that_nobody_waits_for_reach_nobody() {
    let dir = tempfile::tempdir().unwrap();
    let on_call = r"
def on_call(m):
    out('this is no message'); out('[1, 2'); out('{}')
    result({'id': 424242}, {'content': []})
    text(m, 'first'); text(m, 'second')
    out(json.dumps({'jsonrpc': '2.0', 'id': 'q-1', 'method': 'sampling/createMessage', 'params': {}}))
    out(json.dumps({'jsonrpc': '2.0', 'method': 'notifications/unheard/of', 'params': {}}))
";
    let weir = Weir::start("", &child(&dir, "up", on_call, ""));
    weir.ready(&["up"]).await;
    for _ in 0..5 {
        let answer = call(&weir.url, "up__act", json!({})).await;
        assert_eq!(text(&answer), "first", "{answer}");
        assert_eq!(text(&call(&weir.url, "up__fine", json!({})).await), "fine");
    }
    let metrics = weir.metrics().await;
    assert!(
        metrics.contains("weir_upstream_unmatched_answers_total{upstream=\"up\"} 10"),
        "{metrics}"
    );
    assert!(!metrics.contains("weir_upstream_stdout_noise_total{upstream=\"up\"} 0"), "{metrics}");
    assert_eq!(upstream(&weir.status().await, "up")["restarts"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_does_not_wait_any_more_cancels_upstream() {
    let up = Scripted::start(&[tool("slow", false)], |a| {
        a.tool()?;
        Some(Reply::Hang(vec![]))
    })
    .await;
    let weir = Weir::start("", &up.section("up", "call_timeout = \"1s\""));
    weir.ready(&["up"]).await;
    // By the deadline.
    let answer = call(&weir.url, "up__slow", json!({})).await;
    assert_eq!(reason(&answer), "deadline_exceeded");
    let cancelled = || {
        up.arrivals()
            .iter()
            .filter(|a| a.method() == "notifications/cancelled")
            .cloned()
            .collect::<Vec<_>>()
    };
    weir.until("told of the deadline", |_| cancelled().len() == 1).await;
    let call_id = |n: usize| {
        up.arrivals().iter().filter(|a| a.tool().is_some()).nth(n).unwrap().message["id"].clone()
    };
    assert_eq!(cancelled()[0].message["params"]["requestId"], call_id(0));
    // By a client that closes its stream (2026-07-28) …
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": "up__slow", "arguments": {}}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let early = tokio::time::timeout(Duration::from_millis(400), send(&weir.url, &headers, body));
    drop(early.await);
    weir.until("told of the closed stream", |_| cancelled().len() == 2).await;
    assert_eq!(cancelled()[1].message["params"]["requestId"], call_id(1));
    // … and by one that says so (any revision before).
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "t", "version": "1"}}});
    let got = post(&weir.url, &[], hello.to_string()).await;
    let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
    let url = weir.url.clone();
    let own = session.clone();
    let running = tokio::spawn(async move {
        let slow = json!({"jsonrpc": "2.0", "id": "own", "method": "tools/call", "params": {"name": "up__slow"}});
        post(&url, &[("mcp-session-id", &own)], slow.to_string()).await
    });
    while up.arrived("slow") < 3 {
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let stop = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "own"}});
    assert_eq!(
        post(&weir.url, &[("mcp-session-id", &session)], stop.to_string()).await.status,
        202
    );
    weir.until("told of the cancellation", |_| cancelled().len() == 3).await;
    assert_eq!(cancelled()[2].message["params"]["requestId"], call_id(2));
    let got = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap();
    assert!(got.messages().iter().all(|m| m["result"].is_null()), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn bytes_pass_as_they_are() {
    let answer_body = r#"{"content":[{"type":"text","text":"\u00e4 ä \/","extra":1.10}],"big":12345678901234567890123,"exp":1E5,"deep":{"a":[0.0,-0]},"_meta":{"vendor/x":2.50}}"#;
    let up = Scripted::start(&[tool("echo", false)], move |a| {
        a.tool()?;
        let result =
            format!(r#"{{"jsonrpc":"2.0","id":{},"result":{answer_body}}}"#, a.message["id"]);
        Some(Reply::Json(result))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let arguments = r#"{"n":1.0e2,"big":98765432109876543210,"text":"\u0041\/ ä","nested":{"zero":0.00,"list":[1,2.50 , -0]},"unknown":null}"#;
    let (headers, body) =
        modern_request(None, "tools/call", json!({"name": "up__echo", "arguments": {}}));
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let body =
        body.replace("\"arguments\":{}", &format!("\"later\":[1.0],\"arguments\":{arguments}"));
    let got = post(&weir.url, &headers, body).await;
    assert_eq!(got.status, 200);
    let arrived = up.arrivals().into_iter().find(|a| a.tool().is_some()).unwrap().body;
    assert!(arrived.contains(arguments) && arrived.contains("\"later\":[1.0]"), "{arrived}");
    for part in answer_body.trim_matches(['{', '}']).split(",\"_meta\"").take(1) {
        assert!(got.body.contains(part), "{}", got.body);
    }
    assert!(got.body.contains("\"vendor/x\":2.50"), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn our_own_words_hold_no_secret() {
    const TOKEN: &str = "sk_live_9f8e7d6c5b4a39281706";
    let up = Scripted::start(
        &[tool("page", false), tool("garbage", false), tool("away", false), tool("head", false)],
        |a| {
            let token = a.headers.get("authorization")?.trim_start_matches("Bearer ").to_owned();
            Some(match a.tool()? {
                "page" => Reply::Http(500, vec![], format!("your key {token} is bad")),
                "garbage" => Reply::Json(format!("key {token}")),
                "away" => Reply::Http(
                    302,
                    vec![("location", format!("http://127.0.0.2:1/{token}"))],
                    String::new(),
                ),
                "head" => Reply::Http(
                    401,
                    vec![("www-authenticate", format!("Bearer error={token}"))],
                    format!("{{\"key\":\"{token}\"}}"),
                ),
                _ => return None,
            })
        },
    )
    .await;
    let dir = tempfile::tempdir().unwrap();
    let chatty = child(
        &dir,
        "child",
        "sys.stderr.write('my key is ' + os.environ['KEY'] + '\\n'); sys.stderr.flush()\ndef on_call(m):\n    sys.stderr.write(os.environ['KEY'] + '\\n'); sys.stderr.flush(); os._exit(1)",
        "env = { KEY = \"${UP_TOKEN}\" }",
    );
    let weir = Weir::start_with(
        "",
        &(up.section("up", "bearer = \"${UP_TOKEN}\"") + &chatty + "[log]\nlevel = \"trace\"\n"),
        &[("UP_TOKEN", TOKEN)],
    );
    weir.ready(&["up", "child"]).await;
    let mut said = String::new();
    for name in ["up__page", "up__garbage", "up__away", "up__head", "child__act"] {
        let answer = call(&weir.url, name, json!({})).await;
        assert_ne!(reason(&answer), "", "{answer}");
        said += &answer.to_string();
    }
    said += &call(&weir.url, "weir__status", json!({})).await.to_string();
    said += &weir.status().await.to_string();
    said += &weir.metrics().await;
    weir.logged("my key is").await;
    said += &weir.log();
    assert!(
        !said.contains(TOKEN),
        "shown: {}",
        said.split(TOKEN)
            .next()
            .unwrap()
            .chars()
            .rev()
            .take(200)
            .collect::<String>()
            .chars()
            .rev()
            .collect::<String>()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_connection_that_the_upstream_closes_between_calls_loses_no_write() {
    // It keeps each connection for one request and does not say so.
    let up = Scripted::start(&[tool("write", false)], |a| {
        a.tool()?;
        let body = a.result(&json!({"content": [{"type": "text", "text": "fine"}]}));
        Some(Reply::Cut(format!("HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}", body.len()).into_bytes()))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    for n in 1..=200 {
        let answer = call(&weir.url, "up__write", json!({})).await;
        assert_eq!(text(&answer), "fine", "call {n}: {answer}");
        assert_eq!(up.arrived("write"), n, "once each");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_refusal_has_one_word_everywhere() {
    let up = Scripted::start(&[tool("slow", false), tool("fine", false)], |a| {
        (a.tool()? == "slow").then(|| Reply::Hang(vec![]))
    })
    .await;
    let weir = Weir::start(
        "",
        &(up.section("full", "concurrency = { max = 1, queue = 1 }\ncall_timeout = \"3s\"")
            + &up.section("dry", "rate = { per_second = 0.001, burst = 1, max_wait = \"0s\" }")
            + "[upstreams.later]\nurl = \"http://127.0.0.1:9/\"\nbearer = \"${NOT_SET_ANYWHERE}\"\n[upstreams.down]\nurl = \"http://127.0.0.1:9/mcp\"\n"),
    );
    weir.ready(&["full", "dry"]).await;
    let url = Arc::new(weir.url.clone());
    let mut waiting = Vec::new();
    for n in 0..2 {
        let url = url.clone();
        waiting.push(tokio::spawn(async move { call(&url, "full__slow", json!({})).await }));
        while n == 0 && up.arrived("slow") == 0 {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    weir.until("one waits", |s| upstream(s, "full")["queued"] == 1).await;
    let crowded = call(&weir.url, "full__fine", json!({})).await;
    assert_eq!(text(&call(&weir.url, "dry__fine", json!({})).await), "fine");
    let dry = call(&weir.url, "dry__fine", json!({})).await;
    assert!(failure(&dry)["retryAfterMs"].as_u64().unwrap() > 0, "{dry}");
    let mut words = vec![
        (reason(&crowded).to_owned(), "queue_full"),
        (reason(&dry).to_owned(), "rate_limited"),
    ];
    for one in waiting {
        let answer = one.await.unwrap();
        words.push((reason(&answer).to_owned(), "deadline_exceeded"));
        let never_sent =
            answer["result"]["content"][0]["text"].as_str().unwrap().contains("was not called");
        assert_eq!(failure(&answer)["outcome"], if never_sent { "no_effect" } else { "unknown" });
    }
    let (log, metrics) = (weir.log(), weir.metrics().await);
    for (told, wanted) in &words {
        assert_eq!(told, wanted);
        assert!(log.contains(&format!("\"reason\":\"{wanted}\"")), "{wanted}: {log}");
        assert!(
            metrics.lines().any(|l| l.contains(wanted) && !l.ends_with(" 0")),
            "{wanted}: {metrics}"
        );
    }
    let status = weir.status().await;
    assert!(upstream(&status, "later")["why"].as_str().unwrap().contains("NOT_SET_ANYWHERE"));
}
