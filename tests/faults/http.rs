//! HTTP upstreams: broken streams, forgotten sessions, redirects, connections that end.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, call, modern, reason};
use crate::{EVENTS, failure, text};

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
async fn a_not_found_that_is_the_upstreams_answer_is_not_taken_for_a_lost_session() {
    let sessions = AtomicUsize::new(0);
    let up = Scripted::start(&[tool("write", false), tool("page", false)], move |a| {
        let json = ("content-type", "application/json".to_owned());
        if a.method() == "initialize" {
            let n = sessions.fetch_add(1, Ordering::SeqCst);
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}});
            return Some(Reply::Http(200, vec![json, ("mcp-session-id", format!("s-{n}"))], a.result(&result)));
        }
        Some(match a.tool()? {
            "write" => {
                let error = json!({"jsonrpc": "2.0", "id": a.message["id"], "error": {"code": 7, "message": "customer not found"}});
                Reply::Http(404, vec![json], error.to_string())
            }
            // A page of some proxy, in each session again.
            _ => Reply::Http(404, vec![], "not here".into()),
        })
    })
    .await;
    let weir = Weir::start(
        "",
        &up.section("up", "retry = { attempts = 3, budget = 1.0, backoff = \"1ms\" }"),
    );
    weir.ready(&["up"]).await;
    let answer = call(&weir.url, "up__write", json!({})).await;
    assert_eq!(answer["error"], json!({"code": 7, "message": "customer not found"}), "{answer}");
    assert_eq!((up.arrived("write"), up.asked("initialize")), (1, 1));
    // It may have been the session once, and never twice.
    let answer = call(&weir.url, "up__page", json!({})).await;
    assert_ne!(reason(&answer), "", "{answer}");
    assert_eq!(up.arrived("page"), 2, "once more in a new session, and no oftener");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_error_that_names_our_request_is_an_answer_although_it_speaks_of_sessions() {
    let sessions = Arc::new(AtomicUsize::new(0));
    let count = sessions.clone();
    let up = Scripted::start(&[tool("pay", false)], move |a| {
        if a.method() == "initialize" {
            let n = count.fetch_add(1, Ordering::SeqCst);
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}}, "serverInfo": {"name": "s", "version": "1"}});
            let headers = vec![("content-type", "application/json".into()), ("mcp-session-id", format!("s-{n}"))];
            return Some(Reply::Http(200, headers, a.result(&result)));
        }
        a.tool()?;
        let status = a.message["params"]["arguments"]["status"].as_u64().unwrap();
        let body = json!({"jsonrpc": "2.0", "id": a.message["id"],
            "error": {"code": -32602, "message": "Checkout session cs_1 not found"}});
        let kind = vec![("content-type", "application/json".into())];
        Some(Reply::Http(u16::try_from(status).unwrap(), kind, body.to_string()))
    })
    .await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    for (n, status) in [404, 400].into_iter().enumerate() {
        let answer = call(&weir.url, "up__pay", json!({"status": status})).await;
        assert_eq!(answer["error"]["message"], "Checkout session cs_1 not found", "{answer}");
        assert_eq!(up.arrived("pay"), n + 1, "carried once");
    }
    assert_eq!(sessions.load(Ordering::SeqCst), 1);
    assert!(up.arrivals().iter().all(|a| a.verb != "DELETE"));
}
