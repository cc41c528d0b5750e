//! Endpoints that fail, refuse, or are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use serde_json::{Value, json};

use crate::Host;
use crate::harness::free_port;
use crate::harness::scripted::{Reply, Scripted, tool};

fn http(status: u16, body: &str) -> Reply {
    Reply::Http(status, vec![("content-type", "application/json".into())], body.into())
}

#[tokio::test(flavor = "multi_thread")]
async fn reads_wait_for_a_gateway_that_fails_and_writes_do_not() {
    let lists = Arc::new(AtomicUsize::new(0));
    let up = Scripted::start(&[tool("pay", false)], move |a| match a.method() {
        "tools/list" => match lists.fetch_add(1, Ordering::SeqCst) {
            0 => Some(Reply::Cut(Vec::new())),
            1 => Some(http(503, "")),
            2 => Some(http(502, "")),
            _ => None,
        },
        "tools/call" => Some(match a.tool() {
            Some("cut") => Reply::Cut(Vec::new()),
            Some("half") => Reply::Cut(b"HTTP/1.1 200 OK\r\ncontent-length: 99\r\n\r\n{".to_vec()),
            Some("bad gateway") => http(502, ""),
            // What a proxy makes of a time that ran out while the server worked.
            Some("busy proxy") => {
                Reply::Http(503, vec![("retry-after", "1".into())], "<html>busy</html>".into())
            }
            Some("other id") => Reply::Json(r#"{"jsonrpc":"2.0","id":"z","result":{}}"#.into()),
            _ => return None,
        }),
        _ => None,
    })
    .await;
    let mut host = Host::start(&up.url);
    assert!(host.modern(0, "tools/list", json!({})).await["result"]["tools"].is_array());
    assert_eq!(up.asked("tools/list"), 4);
    let mut told = Vec::new();
    for name in ["cut", "half", "bad gateway", "busy proxy", "other id"] {
        let answer = host.modern(name, "tools/call", json!({"name": name, "arguments": {}})).await;
        let data = &answer["error"]["data"];
        told.push(format!("{name}: {} {}", data["reason"], data["outcome"]));
        assert_eq!(up.arrived(name), 1, "{name}: sent once");
    }
    insta::assert_snapshot!(told.join("\n"), @r#"
    cut: "connection_lost" "unknown"
    half: "connection_lost" "unknown"
    bad gateway: "upstream_status" "unknown"
    busy proxy: "throttled" "unknown"
    other id: "garbled" "unknown"
    "#);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_gateway_that_is_stopping_or_full_is_waited_for_by_all() {
    let calls = Arc::new(AtomicUsize::new(0));
    let up = Scripted::start(&[tool("pay", false)], move |a| {
        // As a gateway says it: the error itself tells that nothing was done.
        let data = json!({"reason": "draining", "outcome": "no_effect", "retryable": true});
        let error = json!({"code": -32000, "message": "draining", "data": data});
        let no = json!({"jsonrpc": "2.0", "id": a.message["id"], "error": error}).to_string();
        let headers =
            vec![("retry-after", "1".into()), ("content-type", "application/json".into())];
        (a.tool().is_some() && calls.fetch_add(1, Ordering::SeqCst) < 2)
            .then(|| Reply::Http(503, headers, no))
    })
    .await;
    let mut host = Host::start(&up.url);
    let answer = host.modern(1, "tools/call", json!({"name": "pay", "arguments": {}})).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}\n{}", host.log());
    assert_eq!(up.arrived("pay"), 3, "it was refused twice, and ran once");
}

#[tokio::test(flavor = "multi_thread")]
async fn headers_say_what_the_message_says() {
    let mirrored = json!({"name": "wo ä", "inputSchema": {"type": "object", "properties":
        {"region": {"type": "string", "x-mcp-header": "Region"}}}});
    let refused = json!({"code": -32020, "message": "the header Mcp-Param-Region is missing"});
    let up = Scripted::start(&[mirrored], move |a| {
        let missing = a.tool() == Some("wo ä") && !a.headers.contains_key("mcp-param-region");
        let no = json!({"jsonrpc": "2.0", "id": a.message["id"], "error": refused});
        missing.then(|| http(400, &no.to_string()))
    })
    .await;
    let mut host = Host::start(&up.url);
    let call = json!({"name": "wo ä", "arguments": {"region": "zürich"}});
    // Never listed: refused, so the list is fetched and the call made as it asks.
    let answer = host.modern(1, "tools/call", call.clone()).await;
    assert_eq!(answer["result"]["content"][0]["text"], "fine", "{answer}");
    assert_eq!((up.arrived("wo ä"), up.asked("tools/list")), (2, 1));
    // Known now.
    host.modern(2, "tools/call", call.clone()).await;
    assert_eq!((up.arrived("wo ä"), up.asked("tools/list")), (3, 1));
    host.modern(3, "resources/read", json!({"uri": "a:1"})).await;
    let shown: Vec<_> = up
        .arrivals()
        .iter()
        .map(|a| {
            let mcp = a.headers.iter().filter(|(k, _)| k.starts_with("mcp-"));
            mcp.map(|(k, v)| format!("{k}={v}")).collect::<Vec<_>>().join(" ")
        })
        .collect();
    insta::assert_snapshot!(shown.join("\n"), @r"
    mcp-method=tools/call mcp-name==?base64?d28gw6Q=?= mcp-protocol-version=2026-07-28
    mcp-method=tools/list mcp-protocol-version=2026-07-28
    mcp-method=tools/call mcp-name==?base64?d28gw6Q=?= mcp-param-region==?base64?esO8cmljaA==?= mcp-protocol-version=2026-07-28
    mcp-method=tools/call mcp-name==?base64?d28gw6Q=?= mcp-param-region==?base64?esO8cmljaA==?= mcp-protocol-version=2026-07-28
    mcp-method=resources/read mcp-name=a:1 mcp-protocol-version=2026-07-28
    ");
    // A refusal that no list explains goes back as it is.
    let answer = host.modern(4, "tools/call", json!({"name": "wo ä", "arguments": {}})).await;
    assert_eq!(answer["error"]["code"], -32020, "{answer}");
    assert_eq!(up.arrived("wo ä"), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_no_gateway_is_told_with_the_remedy() {
    let up = Scripted::start(&[], |_| Some(http(404, "<html>"))).await;
    let nobody = free_port();
    for (url, reason, remedy) in [
        (up.url.clone(), "upstream_status", "http(s)://HOST/mcp"),
        (format!("http://127.0.0.1:{nobody}/mcp"), "connect_failed", "cannot be reached"),
        (up.url.replace("http:", "https:"), "connect_failed", "cannot be reached"),
        ("http://no-such-host.invalid/mcp".into(), "connect_failed", "cannot be reached"),
    ] {
        let mut host = Host::start_with(&url, &["--patience", "0"], &[]);
        let params = json!({"protocolVersion": "2025-11-25", "capabilities": {}, "clientInfo": {}});
        let answer = host.ask(1, "initialize", params).await;
        assert_eq!(answer["error"]["data"]["reason"], reason, "{url}: {answer}");
        host.logged(remedy).await;
        // It lives on.
        assert_eq!(host.ask(2, "ping", json!({})).await["result"], json!({}));
        let early = host.ask(3, "tools/list", json!({})).await;
        assert_eq!(early["error"]["data"]["reason"], "no_session");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_of_notices_is_opened_again_and_told_of_once() {
    let opened = Arc::new(AtomicUsize::new(0));
    let count = opened.clone();
    let up = Scripted::start(&[], move |a| {
        (a.method() == "subscriptions/listen").then(|| {
            let n = count.fetch_add(1, Ordering::SeqCst);
            let meta = json!({"io.modelcontextprotocol/subscriptionId": a.message["id"]});
            let ack = json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged",
                "params": {"notifications": {"toolsListChanged": true}, "_meta": meta}});
            let farewell = json!({"jsonrpc": "2.0", "id": a.message["id"], "result": {"resultType": "complete", "_meta": meta}});
            match n {
                // Ended in good order, ended without a word, then for good.
                0 => Reply::events(&[ack.to_string(), farewell.to_string()]),
                1 => Reply::events(&[ack.to_string()]),
                _ => http(401, ""),
            }
        })
    })
    .await;
    let mut host = Host::start(&up.url);
    let wish =
        json!({"notifications": {"toolsListChanged": true, "resourceSubscriptions": ["a:1"]}});
    host.write(&{
        let (_, body) = crate::harness::modern_request(None, "subscriptions/listen", wish);
        body.replace(r#""id":1"#, r#""id":1.50"#)
    })
    .await;
    let line = host.line("the end", |l| l.contains(r#""error""#)).await;
    assert!(line.contains(r#""id":1.50"#) && line.contains("credential_refused"), "{line}");
    let methods: Vec<_> = host
        .aside()
        .iter()
        .map(|line| {
            assert!(line.contains(r#""io.modelcontextprotocol/subscriptionId":1.50"#), "{line}");
            serde_json::from_str::<Value>(line).unwrap()["method"].as_str().unwrap().to_owned()
        })
        .collect();
    insta::assert_snapshot!(methods.join("\n"), @r"
    notifications/subscriptions/acknowledged
    notifications/tools/list_changed
    notifications/resources/updated
    ");
    assert_eq!(opened.load(Ordering::SeqCst), 3);
}
