//! Whose a task is, and for whom there are tasks at all.

use std::collections::HashSet;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use weirkeeper::config::secret::{ConsumerKey, Secret, new_key};

use crate::harness::Weir;
use crate::harness::scripted::{Reply, Scripted, tool};
use crate::{Old, extended, modern_call, modern_task, text, weir};

fn run(name: &str, support: &str) -> Value {
    let mut tool = tool(name, false);
    tool["execution"] = json!({"taskSupport": support});
    tool
}

/// An upstream of 2025-11-25 whose tool `may` runs as a task if asked to, `must` only so, and
/// `never` not at all. A plain result tells the params of its call.
async fn upstream() -> Scripted {
    let known: Arc<Mutex<HashSet<String>>> = Arc::default();
    let tools = [
        run("may", "optional"),
        run("must", "required"),
        run("never", "forbidden"),
        tool("mute", false),
    ];
    Scripted::start(&tools, move |a| {
        let params = &a.message["params"];
        let mut known = known.lock().unwrap();
        let task = |id: &str| {
            json!({"taskId": id, "status": "completed", "createdAt": "2026-11-21T00:00:00Z",
                "lastUpdatedAt": "2026-11-21T00:00:00Z", "ttl": 60_000})
        };
        let result = match a.method() {
            "initialize" => json!({"protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}},
                "serverInfo": {"name": "tasks", "version": "1"}}),
            "tools/call" if params["task"].is_object() => {
                let id = format!("native-{}", known.len() + 1);
                known.insert(id.clone());
                json!({"task": task(&id)})
            }
            "tools/call" => json!({"content": [{"type": "text", "text": params.to_string()}]}),
            "tasks/get" | "tasks/cancel" | "tasks/result" => {
                let id = params["taskId"].as_str().unwrap();
                if !known.contains(id) {
                    let error = json!({"code": -32602, "message": "no such task"});
                    return Some(Reply::Json(json!({"jsonrpc": "2.0", "id": a.message["id"], "error": error}).to_string()));
                }
                if a.method() == "tasks/result" {
                    json!({"content": [{"type": "text", "text": "the end"}],
                        "_meta": {"io.modelcontextprotocol/related-task": {"taskId": id}}})
                } else {
                    task(id)
                }
            }
            _ => return None,
        };
        Some(Reply::Json(a.result(&result)))
    })
    .await
}

fn consumers(px: &Secret, sales: &Secret, more: &str) -> String {
    let key = |k: &Secret| ConsumerKey::of(k.expose()).to_text();
    format!(
        "[consumers.px]\nkey = {:?}\n[consumers.sales]\nkey = {:?}\n{more}",
        key(px),
        key(sales)
    )
}

async fn begun(old: &Old, tool: &str) -> String {
    let params = json!({"name": tool, "arguments": {}, "task": {"ttl": 60_000}});
    let made = old.ask("tools/call", params).await;
    made["result"]["task"]["taskId"].as_str().unwrap_or_else(|| panic!("{made}")).to_owned()
}

fn sent(up: &Scripted, tool: &str) -> Value {
    let all = up.arrivals();
    all.iter().rfind(|a| a.tool() == Some(tool)).unwrap().message["params"].clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_is_its_callers_and_nobody_elses() {
    let up = upstream().await;
    let (px, sales) = (new_key(), new_key());
    let section = up.section("up", "") + &consumers(&px, &sales, "");
    let weir = Weir::start("", &section);
    weir.ready(&["up"]).await;
    let (url, none) = (weir.url.as_str(), json!({}));
    let mine = Old::open(url, Some(px.expose()), "2025-11-25", &none).await;
    let theirs = Old::open(url, Some(sales.expose()), "2025-11-25", &none).await;
    let id = begun(&mine, "up__may").await;
    assert!(!id.contains("native"), "{id}");
    let methods = ["tasks/get", "tasks/result", "tasks/cancel"];
    let mut damaged = id.clone().into_bytes();
    damaged[30] ^= 1;
    let damaged = String::from_utf8(damaged).unwrap();
    let mut told = HashSet::new();
    for method in methods {
        for (who, id) in
            [(&theirs, &*id), (&mine, "made-up"), (&mine, "native-1"), (&mine, &*damaged)]
        {
            let refused = who.ask(method, json!({"taskId": id})).await;
            assert_eq!(refused["error"]["code"], -32602, "{method} {id}: {refused}");
            told.insert(refused["error"].to_string());
        }
    }
    for method in ["tasks/get", "tasks/cancel"] {
        let refused = modern_task(url, Some(sales.expose()), method, &id).await;
        assert_eq!(refused["error"]["code"], -32602, "{refused}");
        told.insert(refused["error"].to_string());
    }
    assert_eq!(told.len(), 1, "nothing tells one from the other: {told:?}");
    assert!(!up.arrivals().iter().any(|a| a.method().starts_with("tasks/")), "nothing was sent");
    // Its own, in whichever session, and by a modern client with the same key too.
    let again = Old::open(url, Some(px.expose()), "2025-11-25", &none).await;
    for who in [&mine, &again] {
        assert_eq!(who.ask("tasks/get", json!({"taskId": id})).await["result"]["taskId"], id);
        let end = who.ask("tasks/result", json!({"taskId": id})).await;
        assert_eq!(text(&end), "the end");
        let related = &end["result"]["_meta"]["io.modelcontextprotocol/related-task"];
        assert_eq!(related["taskId"], id, "{end}");
    }
    let got = modern_task(url, Some(px.expose()), "tasks/get", &id).await;
    assert_eq!(
        (&got["result"]["taskId"], text(&got["result"])),
        (&json!(id), json!("the end")),
        "{got}"
    );
    // Who may not call the tool any more has lost its tasks.
    let denied = consumers(&px, &sales, "view = \"few\"\n[views.few]\ndeny = [\"up__may\"]\n");
    let denied = denied.replace("[consumers.sales]", "view = \"few\"\n[consumers.sales]");
    weir.rewrite("", &(up.section("up", "") + &denied));
    weir.logged("configuration reloaded").await;
    let gone = mine.ask("tasks/get", json!({"taskId": id})).await;
    assert!(told.contains(&gone["error"].to_string()), "{gone}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_task_outlives_the_gateway() {
    let up = upstream().await;
    let section = up.section("up", "");
    let weir = weir(&up, "").await;
    let old = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let id = begun(&old, "up__must").await;
    let made =
        modern_call(&weir.url, None, &extended(), "up__must", json!({"arguments": {}})).await;
    let other = made["result"]["taskId"].as_str().unwrap();
    let weir = weir.again("", &section, &[]);
    weir.ready(&["up"]).await;
    let old = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let end = old.ask("tasks/result", json!({"taskId": id})).await;
    assert_eq!(text(&end), "the end", "{end}");
    let got = modern_task(&weir.url, None, "tasks/get", other).await;
    assert_eq!(text(&got["result"]), "the end", "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_wish_for_a_task_counts_where_it_was_offered() {
    let up = upstream().await;
    let weir = weir(&up, "").await;
    let url = weir.url.as_str();
    let wish = || json!({"name": "up__may", "arguments": {"a": 1}, "task": {"ttl": 1}});
    for revision in ["2025-03-26", "2025-06-18"] {
        let old = Old::open(url, None, revision, &json!({})).await;
        let told = text(&old.ask("tools/call", wish()).await);
        assert!(told.get("task").is_none() && told["arguments"] == json!({"a": 1}), "{told}");
        let got = old.ask("tasks/get", json!({"taskId": "x"})).await;
        assert_eq!(got["error"]["code"], -32601, "{got}");
    }
    for caps in [json!({}), extended()] {
        let told = text(&modern_call(url, None, &caps, "up__may", wish()).await);
        assert!(told.get("task").is_none() && told["arguments"] == json!({"a": 1}), "{told}");
    }
    // Offered: by revision, and not to others.
    let old = Old::open(url, None, "2025-11-25", &json!({})).await;
    begun(&old, "up__may").await;
    assert_eq!(sent(&up, "may")["task"], json!({"ttl": 60_000}), "as it came");
    let plain = old.ask("tools/call", json!({"name": "up__may", "arguments": {}})).await;
    assert!(text(&plain).get("task").is_none(), "{plain}");
    // Where no server has tasks, nobody can ask for one.
    let bare = Scripted::fine(&["may"]).await;
    let none = crate::weir(&bare, "").await;
    let old = Old::open(&none.url, None, "2025-11-25", &json!({})).await;
    assert_eq!(text(&old.ask("tools/call", wish()).await), "fine");
    assert!(sent(&bare, "may").get("task").is_none());
    let got = old.ask("tasks/get", json!({"taskId": "x"})).await;
    assert_eq!(got["error"]["code"], -32601, "{got}");
    let got = modern_task(&none.url, None, "tasks/get", "x").await;
    assert_eq!(got["error"]["code"], -32601, "{got}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tool_that_runs_as_no_task_refuses_to() {
    let up = upstream().await;
    let weir = weir(&up, "").await;
    let old = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    for tool in ["never", "mute"] {
        let params = json!({"name": format!("up__{tool}"), "arguments": {}, "task": {}});
        let refused = old.ask("tools/call", params).await;
        assert_eq!(refused["error"]["code"], -32601, "{refused}");
        assert_eq!(up.arrived(tool), 0, "{tool}");
        let plain = old.ask("tools/call", json!({"name": format!("up__{tool}")})).await;
        assert!(plain["result"]["content"].is_array(), "{plain}");
    }
    // Said no by us: the upstream has no share in it.
    let metrics = weir.metrics().await;
    let counted = |outcome: &str| {
        metrics.lines().any(|l| l.contains("reason=\"unknown_method\"") && l.contains(outcome))
    };
    assert!(counted("refused") && !counted("fault"), "{metrics}");
}
