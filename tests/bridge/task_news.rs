//! What upstreams tell of tasks unasked, in the words and with the ids of whose they are.

use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, modern, modern_request, post, send};
use crate::subscriptions::{Line, get, messages, next};
use crate::{Old, text};

const TASKS: &str = "io.modelcontextprotocol/tasks";

/// An upstream whose tool becomes the task `t/1`. What is sent into the line goes out on its
/// stream of changes.
async fn upstream(is_modern: bool, line: Line) -> Scripted {
    let mut long = tool("long", false);
    long["execution"] = json!({"taskSupport": "optional"});
    Scripted::start(&[long.clone()], move |a| {
        let complete = |result: Value| Some(Reply::Json(a.result(&result)));
        let open = || {
            let (tx, rx) = mpsc::channel(16);
            *line.lock().unwrap() = Some(tx.clone());
            (tx, rx)
        };
        match (a.verb.as_str(), a.method()) {
            (_, "initialize") if !is_modern => complete(json!({"protocolVersion": "2025-11-25",
                "capabilities": {"tools": {}, "tasks": {"cancel": {}, "requests": {"tools": {"call": {}}}}},
                "serverInfo": {"name": "t", "version": "1"}})),
            (_, "server/discover") if is_modern => complete(json!({"resultType": "complete", "supportedVersions": ["2026-07-28"],
                "capabilities": {"tools": {}, "extensions": {TASKS: {}}}, "ttlMs": 0, "cacheScope": "private"})),
            (_, "tools/list") if is_modern => complete(json!({"resultType": "complete", "tools": [long], "ttlMs": 0, "cacheScope": "private"})),
            (_, "tools/call") if is_modern => complete(json!({"resultType": "task", "taskId": "t/1", "status": "working", "ttlMs": null})),
            (_, "tools/call") if a.message["params"]["task"].is_object() => {
                complete(json!({"task": {"taskId": "t/1", "status": "working", "ttl": 1000}}))
            }
            ("GET", _) if !is_modern => Some(Reply::Live(open().1)),
            (_, "subscriptions/listen") if is_modern => {
                let (tx, rx) = open();
                let ack = json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {
                    "notifications": a.message["params"]["notifications"],
                    "_meta": {"io.modelcontextprotocol/subscriptionId": a.message["id"]}}});
                tx.try_send(ack.to_string()).unwrap();
                Some(Reply::Live(rx))
            }
            _ => None,
        }
    })
    .await
}

async fn tell(line: &Line, method: &str, params: Value) {
    let message = json!({"jsonrpc": "2.0", "method": method, "params": params}).to_string();
    let tx = line.lock().unwrap().clone().unwrap();
    tx.send(message).await.unwrap();
}

fn declared() -> Value {
    json!({"io.modelcontextprotocol/clientCapabilities": {"extensions": {TASKS: {}}}})
}

async fn begin(weir: &Weir) -> String {
    let made =
        modern(&weir.url, None, "tools/call", json!({"name": "up__long", "_meta": declared()}));
    let made = made.await.answer();
    assert_eq!(made["result"]["resultType"], "task", "{made}");
    made["result"]["taskId"].as_str().unwrap().to_owned()
}

async fn listen(weir: &Weir, ids: &[&str]) -> mpsc::Receiver<Value> {
    let wish = json!({"notifications": {"taskIds": ids}, "_meta": declared()});
    let (headers, body) = modern_request(None, "subscriptions/listen", wish);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    messages(send(&weir.url, &headers, body).await)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_modern_caller_hears_of_the_tasks_that_it_names() {
    let line = Line::default();
    let up = upstream(true, line.clone()).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let id = begin(&weir).await;
    assert_ne!(id, "t/1");
    let mut stream = listen(&weir, &[&id, "t/1", "nonsense"]).await;
    let ack = next(&mut stream).await;
    assert_eq!(ack["params"]["notifications"], json!({"taskIds": [id]}), "only its own");
    weir.until("asked for", |_| {
        let asked = up.arrivals();
        asked.iter().any(|a| a.message["params"]["notifications"]["taskIds"] == json!(["t/1"]))
    })
    .await;
    let link = json!({"type": "resource_link", "uri": "file:///a", "name": "a"});
    tell(&line, "notifications/tasks", json!({"taskId": "t/2", "status": "working"})).await;
    let params = json!({"taskId": "t/1", "status": "completed", "ttlMs": null, "result": {"content": [link], "n": 1.5}});
    tell(&line, "notifications/tasks", params).await;
    let told = next(&mut stream).await;
    assert_eq!(told["method"], "notifications/tasks");
    let said = &told["params"];
    assert_eq!((said["taskId"].as_str(), &said["status"]), (Some(&*id), &json!("completed")));
    assert_eq!(said["result"]["content"][0]["uri"], "up+file:///a", "{told}");
    assert_eq!(said["_meta"]["io.modelcontextprotocol/subscriptionId"], 1);

    // Who did not declare the extension cannot name tasks.
    let wish = json!({"notifications": {"taskIds": [id]}});
    let (headers, body) = modern_request(None, "subscriptions/listen", wish);
    let headers: Vec<(&str, &str)> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let got = post(&weir.url, &headers, body).await;
    assert_eq!((got.status, &got.answer()["error"]["code"]), (400, &json!(-32021)), "{}", got.body);
}

#[tokio::test(flavor = "multi_thread")]
async fn the_news_of_an_old_upstream_reach_either_era_and_only_whose_task_it_is() {
    let line = Line::default();
    let up = upstream(false, line.clone()).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let one = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let two = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let (mut first, mut second) = (get(&weir, &one).await, get(&weir, &two).await);
    let call = json!({"jsonrpc": "2.0", "id": 5, "method": "tools/call", "params": {"name": "up__long", "task": {"ttl": 5000}}});
    let made = one.post(&call).await.answer();
    let id = made["result"]["task"]["taskId"].as_str().unwrap_or_else(|| panic!("{made}"));
    // A caller that has the id may listen for it in its own words.
    let mut modern = listen(&weir, &[id]).await;
    assert_eq!(next(&mut modern).await["params"]["notifications"], json!({"taskIds": [id]}));
    let params = json!({"taskId": "t/1", "status": "working", "ttl": 1.0e3, "pollInterval": 5});
    tell(&line, "notifications/tasks/status", params).await;
    let told = next(&mut first).await;
    assert_eq!(told["method"], "notifications/tasks/status", "{told}");
    assert_eq!(
        (told["params"]["taskId"].as_str(), &told["params"]["pollInterval"]),
        (Some(id), &json!(5))
    );
    let told = next(&mut modern).await;
    assert_eq!(told["method"], "notifications/tasks", "{told}");
    assert_eq!(
        (told["params"]["taskId"].as_str(), &told["params"]["pollIntervalMs"]),
        (Some(id), &json!(5))
    );
    assert!(second.try_recv().is_err(), "the other session began no task");
    // One that did not ask for a task gets the result of the tool as ever.
    let plain = two.call("up__long", json!({}), |_| None).await;
    assert_eq!(text(plain.last().unwrap()), "fine");
}
