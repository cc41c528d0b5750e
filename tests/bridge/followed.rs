//! An upstream of the newest revision whose tools run as tasks, and callers that know no tasks.

use std::collections::HashMap;
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use crate::harness::scripted::{Arrival, Reply, Scripted, tool};
use crate::harness::{Weir, modern};
use crate::{Old, everything, extended, form, modern_call, modern_task, text, weir};

const EXTENSION: &str = "io.modelcontextprotocol/tasks";

fn error(a: &Arrival, code: i32, message: &str, data: &Value) -> Reply {
    let error = json!({"code": code, "message": message, "data": data});
    let body = json!({"jsonrpc": "2.0", "id": a.message["id"], "error": error}).to_string();
    let status = if code == -32021 || code == -32020 { 400 } else { 200 };
    Reply::Http(status, vec![("content-type", "application/json".into())], body)
}

#[derive(Default)]
struct Task {
    tool: String,
    arguments: Value,
    gets: usize,
    answers: HashMap<String, Value>,
    is_cancelled: bool,
}

/// `need` runs as a task only, and wants two things known; `end` fails as its argument says;
/// `still` never ends.
async fn upstream() -> Scripted {
    let tasks: Arc<Mutex<HashMap<String, Task>>> = Arc::default();
    Scripted::start(&[], move |a| {
        let complete = |mut result: Value| {
            result["resultType"] = json!("complete");
            Some(Reply::Json(a.result(&result)))
        };
        let params = &a.message["params"];
        let declared = &params["_meta"]["io.modelcontextprotocol/clientCapabilities"];
        let knows = declared["extensions"][EXTENSION].is_object();
        let needed = json!({"requiredCapabilities": {"extensions": {EXTENSION: {}}}});
        let mut tasks = tasks.lock().unwrap();
        let words = |id: &str, status: &str| {
            json!({"taskId": id, "status": status, "createdAt": "2026-11-21T00:00:00Z",
                "lastUpdatedAt": "2026-11-21T00:00:00Z", "ttlMs": null, "pollIntervalMs": 20})
        };
        match a.method() {
            "server/discover" => complete(json!({"supportedVersions": ["2026-07-28"], "ttlMs": 0,
                "cacheScope": "private", "capabilities": {"tools": {}, "extensions": {EXTENSION: {}}}})),
            "tools/list" => {
                let tools = [tool("need", false), tool("end", false), tool("still", false)];
                complete(json!({"tools": tools, "ttlMs": 0, "cacheScope": "private"}))
            }
            "tools/call" if !knows => Some(error(a, -32021, "tasks are needed", &needed)),
            "tools/call" => {
                let id = format!("native-{}", tasks.len() + 1);
                let (tool, arguments) = (a.tool().unwrap().to_owned(), params["arguments"].clone());
                let run = Task { tool, arguments, ..Task::default() };
                tasks.insert(id.clone(), run);
                let mut made = words(&id, "working");
                made["resultType"] = json!("task");
                Some(Reply::Json(a.result(&made)))
            }
            method if method.starts_with("tasks/") => {
                let id = params["taskId"].as_str().unwrap().to_owned();
                if a.headers.get("mcp-name") != Some(&id) {
                    return Some(error(a, -32020, "the header names another", &json!({})));
                }
                if !knows {
                    return Some(error(a, -32021, "tasks are needed", &needed));
                }
                let Some(task) = tasks.get_mut(&id) else {
                    return Some(error(a, -32602, "no such task", &json!({})));
                };
                if method == "tasks/cancel" {
                    task.is_cancelled = true;
                    return complete(json!({}));
                }
                if method == "tasks/update" {
                    for (key, answer) in params["inputResponses"].as_object().unwrap() {
                        let before = task.answers.insert(key.clone(), answer.clone());
                        assert!(before.is_none(), "{key} was answered before");
                    }
                    // It goes on naming its questions for a moment.
                    task.gets = 2;
                    return complete(json!({}));
                }
                task.gets += 1;
                let working = task.gets == 1 || task.tool == "still";
                let asks = task.tool == "need" && (task.answers.len() < 2 || task.gets == 3);
                let mut got = if task.is_cancelled {
                    words(&id, "cancelled")
                } else if working {
                    words(&id, "working")
                } else if asks {
                    let mut got = words(&id, "input_required");
                    got["inputRequests"] = json!({"a": form("first?"), "b": form("second?")});
                    got
                } else if task.tool == "need" {
                    let mut got = words(&id, "completed");
                    let said = serde_json::to_string(&task.answers["a"]).unwrap();
                    got["result"] = json!({"content": [{"type": "text", "text": said}]});
                    got
                } else {
                    let mut got = words(&id, task.arguments["status"].as_str().unwrap());
                    got.as_object_mut().unwrap().extend(task.arguments["with"].as_object().unwrap().clone());
                    got
                };
                got["resultType"] = json!("complete");
                Some(Reply::Json(a.result(&got)))
            }
            _ => None,
        }
    })
    .await
}

async fn until(up: &Scripted, weir: &Weir, method: &str, count: usize) {
    weir.until(method, |_| up.asked(method) >= count).await;
}

fn yes(request: &Value) -> Option<Value> {
    let message = request["params"]["message"].clone();
    Some(json!({"result": {"action": "accept", "content": {"to": message}}}))
}

#[tokio::test(flavor = "multi_thread")]
async fn an_old_caller_gets_what_comes_of_the_task() {
    let up = upstream().await;
    let weir = weir(&up, "").await;
    for revision in ["2025-06-18", "2025-11-25"] {
        let before = (up.asked("tools/call"), up.asked("tasks/update"));
        let old = Old::open(&weir.url, None, revision, &everything()).await;
        let seen = old.call("up__need", json!({}), yes).await;
        let asked: Vec<_> = seen.iter().filter_map(|m| m["method"].as_str()).collect();
        assert_eq!(asked, ["elicitation/create", "elicitation/create"], "{seen:?}");
        let last = seen.last().unwrap();
        assert_eq!(text(last), json!({"action": "accept", "content": {"to": "first?"}}));
        assert!(last["result"].get("resultType").is_none(), "{last}");
        // Refused once, then made with tasks declared; both answers in one update.
        assert_eq!(up.asked("tools/call"), before.0 + 2);
        assert_eq!(up.asked("tasks/update"), before.1 + 1);
    }
    assert_eq!(up.asked("tasks/cancel"), 0, "what has ended is not given up");
    // One that cannot be asked: the upstream was told so and asks all the same.
    let deaf = Old::open(&weir.url, None, "2025-06-18", &json!({})).await;
    let seen = deaf.call("up__need", json!({}), yes).await;
    assert_eq!(crate::harness::reason(&seen[0]), "capability_missing", "{seen:?}");
    until(&up, &weir, "tasks/cancel", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn every_end_of_a_task_is_told_as_the_end_of_the_call() {
    let up = upstream().await;
    let weir = weir(&up, "").await;
    let old = Old::open(&weir.url, None, "2025-06-18", &json!({})).await;
    let end = async |status: &str, with: Value| {
        let params = json!({"name": "up__end", "arguments": {"status": status, "with": with}});
        old.ask("tools/call", params).await
    };
    let failed = json!({"content": [{"type": "text", "text": "no"}], "isError": true});
    let told = end("completed", json!({"result": failed})).await;
    assert_eq!(told["result"], failed, "{told}");
    let told =
        end("failed", json!({"error": {"code": -7, "message": "broke", "data": 1.50}})).await;
    assert_eq!(told["error"], json!({"code": -7, "message": "broke", "data": 1.50}), "{told}");
    let told = end("cancelled", json!({})).await;
    assert_eq!(told["error"]["code"], -32603, "{told}");
    // What nobody can read is no end, and nothing of it is known.
    let told = end("resting", json!({})).await;
    let failure = &told["result"]["_meta"]["io.weirkeeper/failure"];
    assert_eq!(
        (&failure["reason"], &failure["outcome"]),
        (&json!("garbled"), &json!("unknown")),
        "{told}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_gives_up_the_call_gives_up_the_task() {
    let up = upstream().await;
    let weir = weir(&up, "").await;
    let old = Arc::new(Old::open(&weir.url, None, "2025-11-25", &everything()).await);
    let running = {
        let old = old.clone();
        tokio::spawn(async move { old.call("up__still", json!({}), |_| None).await })
    };
    until(&up, &weir, "tasks/get", 2).await;
    let cancel = json!({"jsonrpc": "2.0", "method": "notifications/cancelled", "params": {"requestId": "c"}});
    assert_eq!(old.post(&cancel).await.status, 202);
    until(&up, &weir, "tasks/cancel", 1).await;
    let told = up.arrivals().into_iter().find(|a| a.method() == "tasks/cancel").unwrap();
    assert_eq!(told.message["params"]["taskId"], "native-1");
    assert_eq!(told.headers["mcp-name"], "native-1");
    running.abort();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_caller_is_told_what_to_declare_or_has_the_task() {
    let up = upstream().await;
    let weir = weir(&up, "").await;
    let got = modern(&weir.url, None, "tools/call", json!({"name": "up__need"})).await;
    let needed = json!({"requiredCapabilities": {"extensions": {EXTENSION: {}}}});
    assert_eq!((got.status, &got.answer()["error"]["code"]), (400, &json!(-32021)), "{}", got.body);
    assert_eq!(got.answer()["error"]["data"], needed);
    let url = weir.url.as_str();
    let made = modern_call(url, None, &extended(), "up__need", json!({"arguments": {}})).await;
    let id = made["result"]["taskId"].as_str().unwrap();
    assert!(id.bytes().all(|b| b.is_ascii_graphic()), "it travels in a header: {id}");
    assert!(!id.contains("native"), "{id}");
    for status in ["working", "input_required"] {
        let got = modern_task(url, None, "tasks/get", id).await;
        assert_eq!(got["result"]["taskId"], id, "{got}");
        assert_eq!(got["result"]["status"], status, "{got}");
    }
    let meta = json!({"io.modelcontextprotocol/clientCapabilities": extended()});
    let answers = json!({"a": {"action": "decline"}, "b": {"action": "cancel"}});
    let params = json!({"taskId": id, "inputResponses": answers, "_meta": meta});
    let ack = modern(url, None, "tasks/update", params).await.answer();
    assert_eq!(ack["result"], json!({"resultType": "complete"}), "{ack}");
    modern_task(url, None, "tasks/get", id).await;
    let got = modern_task(url, None, "tasks/get", id).await;
    assert_eq!(text(&got["result"]), json!({"action": "decline"}), "{got}");
    // Upstream they carry its own name of the task, in the header too.
    let about: Vec<_> =
        up.arrivals().into_iter().filter(|a| a.method().starts_with("tasks/")).collect();
    assert_eq!(about.len(), 5);
    for a in about {
        assert_eq!(
            (&a.message["params"]["taskId"], &*a.headers["mcp-name"]),
            (&json!("native-1"), "native-1")
        );
        assert_eq!(a.headers["mcp-method"], a.method());
    }
    // Who declared nothing may not even ask.
    for method in ["tasks/get", "tasks/update", "tasks/cancel"] {
        let got = modern(url, None, method, json!({"taskId": id})).await;
        assert_eq!(
            (got.status, &got.answer()["error"]["code"]),
            (400, &json!(-32021)),
            "{}",
            got.body
        );
        assert_eq!(
            got.answer()["error"]["data"]["requiredCapabilities"],
            needed["requiredCapabilities"]
        );
    }
}
