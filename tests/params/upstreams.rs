//! What an upstream gets, whichever way its callers come, and what happens when it wants more.

use std::io::{BufRead as _, BufReader, Write as _};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::harness::scripted::{Arrival, Reply};
use crate::harness::{PATIENCE, call, modern, post, reason};
use crate::{call_with, fine, mirrored, mirroring, newest, pairs, weir};

fn arguments() -> Value {
    json!({"region": "São Paulo", "to": {"account": -7}, "now": false, "note": "n"})
}

fn wanted() -> std::collections::BTreeMap<String, String> {
    pairs(&[("region", "=?base64?U8OjbyBQYXVsbw==?="), ("account", "-7"), ("now", "false")])
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_caller_needs_no_headers_and_its_upstream_gets_them() {
    let up = fine().await;
    let weir = weir(&up).await;
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "old", "version": "1"}}});
    let got = post(&weir.url, &[], hello.to_string()).await;
    let session = got.headers["mcp-session-id"].to_str().unwrap();
    let call = json!({"jsonrpc": "2.0", "id": 2, "method": "tools/call",
        "params": {"name": "up__pay", "arguments": arguments()}});
    // Its headers mean nothing in its revision.
    let headers = [("mcp-session-id", session), ("mcp-param-region", "x"), ("mcp-param-own", "y")];
    let got = post(&weir.url, &headers, call.to_string()).await;
    assert_eq!(got.answer()["result"]["content"][0]["text"], "done", "{}", got.body);
    assert_eq!(mirrored(&up, "pay"), [wanted()]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_caller_over_stdio_has_no_headers_and_its_upstream_gets_them() {
    let up = fine().await;
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("upstreams.toml");
    let state = format!("[gateway]\nstate_dir = {:?}\n", dir.path().join("state"));
    std::fs::write(&path, state + &up.section("up", "")).unwrap();
    let mut child = Command::new(env!("CARGO_BIN_EXE_weir"))
        .arg("--config")
        .arg(&path)
        .arg("stdio")
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    let mut stdin = child.stdin.take().unwrap();
    let meta = json!({"io.modelcontextprotocol/protocolVersion": "2026-07-28",
        "io.modelcontextprotocol/clientCapabilities": {}});
    let mut ask = |id: u64| {
        let request = json!({"jsonrpc": "2.0", "id": id, "method": "tools/call",
            "params": {"name": "up__pay", "arguments": arguments(), "_meta": meta}});
        writeln!(stdin, "{request}").unwrap();
        loop {
            let line = lines.next().unwrap().unwrap();
            let message: Value = serde_json::from_str(&line).unwrap();
            if message["id"] == id {
                return message;
            }
        }
    };
    // The first ones may come before the upstream is known.
    let answer = (1..200)
        .map(|id| {
            std::thread::sleep(Duration::from_millis(if id > 1 { 50 } else { 0 }));
            ask(id)
        })
        .find(|answer| reason(answer).is_empty())
        .unwrap();
    assert_eq!(answer["result"]["content"][0]["text"], "done", "{answer}");
    assert_eq!(mirrored(&up, "pay"), [wanted()]);
    drop(stdin);
    child.wait().unwrap();
}

fn header_mismatch(a: &Arrival, status: u16) -> Option<Reply> {
    let error = json!({"jsonrpc": "2.0", "id": a.message["id"],
        "error": {"code": -32020, "message": "Mcp-Param-Region is missing"}});
    let json = vec![("content-type", "application/json".to_owned())];
    Some(Reply::Http(status, json, error.to_string()))
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refused_call_is_made_anew_once_with_what_the_newest_list_asks_for() {
    // The tool has got its annotations, and nobody has told the gateway.
    let changed = Arc::new(AtomicBool::new(false));
    let (lists, calls) = (changed.clone(), changed.clone());
    let tools = move || {
        let mut tool = mirroring();
        if !lists.load(Ordering::SeqCst) {
            tool["inputSchema"] = json!({"type": "object"});
        }
        vec![tool]
    };
    let up = newest(tools, move |a| {
        let misses = a.tool() == Some("pay") && !a.headers.contains_key("mcp-param-region");
        (misses && calls.load(Ordering::SeqCst)).then(|| header_mismatch(a, 400)).flatten()
    })
    .await;
    let weir = weir(&up).await;
    assert_eq!(reason(&call(&weir.url, "up__pay", arguments()).await), "");
    assert_eq!(mirrored(&up, "pay"), [pairs(&[])]);
    changed.store(true, Ordering::SeqCst);
    let answer = call(&weir.url, "up__pay", arguments()).await;
    assert_eq!(answer["result"]["content"][0]["text"], "done", "{answer}");
    assert_eq!(mirrored(&up, "pay"), [pairs(&[]), pairs(&[]), wanted()]);
    assert_eq!(up.asked("tools/list"), 2);
    // From now on the caller has to know them too.
    let end = Instant::now() + PATIENCE;
    loop {
        let listed = modern(&weir.url, None, "tools/list", json!({})).await;
        if listed.body.contains("x-mcp-header") {
            break;
        }
        assert!(Instant::now() < end, "the new list is not published: {}", listed.body);
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let got = call_with(&weir, "up__pay", arguments(), &[]).await;
    assert_eq!((got.status, &got.answer()["error"]["code"]), (400, &json!(-32020)), "{}", got.body);
    assert_eq!(up.arrived("pay"), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_that_no_list_explains_is_told_and_nothing_is_repeated() {
    let up = newest(
        || vec![mirroring()],
        |a| if a.tool().is_some() { header_mismatch(a, 400) } else { None },
    )
    .await;
    let weir = weir(&up).await;
    let with = [("mcp-param-region", "eu")];
    let got = call_with(&weir, "up__pay", json!({"region": "eu"}), &with).await;
    let answer = got.answer();
    // It was the gateway's request that was refused, and not the caller's.
    assert_eq!((got.status, reason(&answer)), (200, "header_mismatch"), "{answer}");
    let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
    assert_eq!(failure["outcome"], "no_effect", "{answer}");
    let text = answer["result"]["content"][0]["text"].as_str().unwrap();
    assert!(text.contains("did not carry out"), "{text}");
    assert_eq!(mirrored(&up, "pay"), [pairs(&[("region", "eu")])]);
    assert_eq!(up.asked("tools/list"), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_refusal_with_another_status_proves_nothing() {
    let up = newest(
        || vec![mirroring()],
        |a| if a.tool().is_some() { header_mismatch(a, 200) } else { None },
    )
    .await;
    let weir = weir(&up).await;
    let answer = call(&weir.url, "up__pay", json!({})).await;
    let failure = &answer["result"]["_meta"]["io.weirkeeper/failure"];
    assert_eq!((reason(&answer), &failure["outcome"]), ("header_mismatch", &json!("unknown")));
    assert_eq!((up.arrived("pay"), up.asked("tools/list")), (1, 1));
}
