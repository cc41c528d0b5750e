//! Whatever belongs to a conversation stays with the replica that has it.

use serde_json::{Value, json};

use crate::harness::scripted::{Arrival, Reply, Scripted, tool};
use crate::harness::{Weir, modern, post};
use crate::{all_ready, over, said};

/// An old upstream with sessions, which it calls after itself.
async fn with_sessions(name: &'static str) -> Scripted {
    Scripted::start(&[tool("write", false)], move |a: &Arrival| match a.method() {
        "initialize" => {
            let result = json!({"protocolVersion": "2025-06-18", "capabilities": {"tools": {}},
                "serverInfo": {"name": name, "version": "1"}});
            let headers = vec![
                ("content-type", "application/json".to_owned()),
                ("mcp-session-id", format!("session-of-{name}")),
            ];
            Some(Reply::Http(200, headers, a.result(&result)))
        }
        "tools/call" => Some(a.text(name)),
        _ => None,
    })
    .await
}

/// Begin a session as an old client; its headers.
async fn hello(weir: &Weir, capabilities: Value) -> Vec<(&'static str, String)> {
    let hello = json!({"jsonrpc": "2.0", "id": 1, "method": "initialize", "params": {
        "protocolVersion": "2025-11-25", "capabilities": capabilities,
        "clientInfo": {"name": "test", "version": "1"}}});
    let got = post(&weir.url, &[], hello.to_string()).await;
    let session = got.headers["mcp-session-id"].to_str().unwrap().to_owned();
    vec![("mcp-session-id", session), ("mcp-protocol-version", "2025-11-25".to_owned())]
}

async fn ask(
    weir: &Weir,
    session: &[(&'static str, String)],
    method: &str,
    params: Value,
) -> Value {
    let headers: Vec<_> = session.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let message = json!({"jsonrpc": "2.0", "id": 2, "method": method, "params": params});
    post(&weir.url, &headers, message.to_string()).await.answer()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_session_is_one_replica_s() {
    let (a, b) = (with_sessions("a").await, with_sessions("b").await);
    let weir = over(&[&a.url, &b.url], "isolation = \"session\"").await;
    let mut homes = std::collections::BTreeSet::new();
    for _ in 0..8 {
        // A client that can be asked: its calls are in a conversation of its own.
        let session = hello(&weir, json!({"elicitation": {}})).await;
        let params = json!({"name": "up__write", "arguments": {}});
        let mut home = None;
        for _ in 0..4 {
            let answer = ask(&weir, &session, "tools/call", params.clone()).await;
            let now = said(&answer).to_owned();
            assert_eq!(*home.get_or_insert(now.clone()), now, "each call where the first was");
            homes.insert(now);
        }
    }
    assert_eq!(homes.len(), 2, "and not all at one");
    for (upstream, name) in [(&a, "a"), (&b, "b")] {
        for arrival in upstream.arrivals() {
            let session = arrival.headers.get("mcp-session-id");
            assert!(session.is_none_or(|s| *s == format!("session-of-{name}")), "{arrival:?}");
        }
    }
}

/// An upstream whose only tool runs as a task of 2025-11-25.
async fn with_tasks(name: &'static str) -> Scripted {
    let tool = json!({"name": "job", "inputSchema": {"type": "object"},
        "execution": {"taskSupport": "optional"}});
    let task = move || {
        json!({"taskId": "1", "status": "working", "createdAt": "2026-01-01T00:00:00Z",
            "lastUpdatedAt": "2026-01-01T00:00:00Z", "ttl": 60000, "statusMessage": name})
    };
    Scripted::start(&[tool], move |a: &Arrival| {
        Some(Reply::Json(a.result(&match a.method() {
            "initialize" => json!({"protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}},
                "serverInfo": {"name": name, "version": "1"}}),
            "tools/call" => json!({"task": task()}),
            "tasks/get" => task(),
            "tasks/cancel" => {
                let mut task = task();
                task["status"] = "cancelled".into();
                task
            }
            _ => return None,
        })))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_asked_for_where_it_runs() {
    let (a, b) = (with_tasks("a").await, with_tasks("b").await);
    let weir = over(&[&a.url, &b.url], "").await;
    let session = hello(&weir, json!({"tasks": {}})).await;
    let params = json!({"name": "up__job", "arguments": {}, "task": {}});
    let mut homes = std::collections::BTreeSet::new();
    let mut last = Value::Null;
    for _ in 0..4 {
        let made = ask(&weir, &session, "tools/call", params.clone()).await;
        let task = &made["result"]["task"];
        let home = task["statusMessage"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned();
        last = json!({"taskId": task["taskId"]});
        for _ in 0..3 {
            let got = ask(&weir, &session, "tasks/get", last.clone()).await;
            assert_eq!(got["result"]["statusMessage"], *home, "{got}");
        }
        let got = ask(&weir, &session, "tasks/cancel", last.clone()).await;
        assert_eq!(
            (&got["result"]["statusMessage"], &got["result"]["status"]),
            (&json!(home), &json!("cancelled"))
        );
        homes.insert(home);
    }
    assert_eq!(homes.len(), 2, "and not all at one");
    // The replica is taken out: nobody else is asked for its task.
    let (home, other) = if homes.contains("a") { (a, b) } else { (b, a) };
    let asked = |up: &Scripted| up.asked("tasks/get");
    let got = ask(&weir, &session, "tasks/get", last.clone()).await;
    let (left, gone) =
        if got["result"]["statusMessage"] == "a" { (&other, &home) } else { (&home, &other) };
    let third = with_tasks("c").await;
    weir.rewrite("", &format!("[upstreams.up]\nurls = [{:?}, {:?}]\n", left.url, third.url));
    weir.logged("the new instance has taken over").await;
    all_ready(&weir, 2).await;
    let before = (asked(left), asked(gone), asked(&third));
    let got = ask(&weir, &session, "tasks/get", last).await;
    assert_eq!(got["error"]["data"]["reason"], "retired", "{got}");
    assert_eq!((asked(left), asked(gone), asked(&third)), before);
}

/// An upstream of the newest revision that asks before it does anything.
async fn asking(name: &'static str) -> Scripted {
    let schema = json!({"type": "object", "properties": {"key": {"type": "string"}}});
    let tool = json!({"name": "create", "inputSchema": schema});
    Scripted::start(&[], move |a: &Arrival| {
        let complete = |mut result: Value| {
            result["resultType"] = "complete".into();
            result
        };
        Some(Reply::Json(a.result(&match a.method() {
            "server/discover" => complete(json!({"supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}}, "serverInfo": {"name": name, "version": "1"}})),
            "tools/list" => {
                complete(json!({"tools": [tool], "ttlMs": 1000, "cacheScope": "public"}))
            }
            "tools/call" if a.message["params"]["requestState"].is_null() => {
                json!({"resultType": "input_required", "requestState": name, "inputRequests": {
                    "sure": {"method": "elicitation/create", "params": {"message": "Sure?",
                        "requestedSchema": {"type": "object", "properties": {}}}}}})
            }
            "tools/call" => complete(json!({"content": [{"type": "text", "text": name}]})),
            _ => return None,
        })))
    })
    .await
}

#[tokio::test(flavor = "multi_thread")]
async fn the_next_round_of_a_call_goes_where_the_question_came_from_with_the_same_key() {
    let (a, b) = (asking("a").await, asking("b").await);
    let weir = over(&[&a.url, &b.url], "idempotency = { argument = \"key\" }").await;
    let mut homes = std::collections::BTreeSet::new();
    for _ in 0..4 {
        let params = json!({"name": "up__create", "arguments": {}, "_meta":
            {"io.modelcontextprotocol/clientCapabilities": {"elicitation": {"form": {}}}}});
        let first = modern(&weir.url, None, "tools/call", params.clone()).await.answer();
        let mut again = params;
        again["requestState"] = first["result"]["requestState"].clone();
        again["inputResponses"] = json!({"sure": {"action": "accept", "content": {}}});
        let second = modern(&weir.url, None, "tools/call", again).await.answer();
        let home = said(&second).to_owned();
        let up = if home == "a" { &a } else { &b };
        let calls: Vec<_> = up.arrivals().into_iter().filter(|a| a.tool().is_some()).collect();
        let [.., asked, done] = &calls[..] else { panic!("{calls:?}") };
        let key =
            |a: &Arrival| a.message["params"]["arguments"]["key"].as_str().unwrap().to_owned();
        assert_eq!(done.message["params"]["requestState"], *home, "its own state");
        assert_eq!(key(asked), key(done));
        homes.insert((home, key(done)));
    }
    assert_eq!(homes.len(), 4, "a key for each call");
    let names: std::collections::BTreeSet<_> = homes.iter().map(|(home, _)| home).collect();
    assert_eq!(names.len(), 2, "and not all at one");
}
