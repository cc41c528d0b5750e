//! Changes of single resources, over both eras, and log messages of a call.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, modern_request, send};
use crate::{Old, text};

type Line = Arc<Mutex<Option<mpsc::Sender<String>>>>;

/// An upstream with two resources. What is sent into the line goes out on its stream of changes.
async fn upstream(modern: bool, line: Line) -> Scripted {
    let resources = json!({"resources": [{"uri": "file:///a", "name": "a"}, {"uri": "file:///b", "name": "b"}]});
    let capabilities =
        json!({"resources": {"subscribe": true, "listChanged": true}, "tools": {}, "logging": {}});
    Scripted::start(&[tool("fine", false)], move |a| {
        let complete = |mut result: Value| {
            if modern {
                result["resultType"] = json!("complete");
            }
            Some(Reply::Json(a.result(&result)))
        };
        match (a.verb.as_str(), a.method()) {
            (_, "initialize") if !modern => complete(json!({"protocolVersion": "2025-11-25", "capabilities": capabilities, "serverInfo": {"name": "r", "version": "1"}})),
            (_, "server/discover") if modern => complete(json!({"supportedVersions": ["2026-07-28"], "capabilities": capabilities, "ttlMs": 0, "cacheScope": "private"})),
            (_, "tools/list") if modern => complete(json!({"tools": [], "ttlMs": 0, "cacheScope": "private"})),
            (_, "resources/list") => complete(resources.clone()),
            (_, "resources/templates/list") => complete(json!({"resourceTemplates": []})),
            (_, "resources/subscribe" | "resources/unsubscribe" | "logging/setLevel") if !modern => complete(json!({})),
            ("GET", _) if !modern => {
                let (tx, rx) = mpsc::channel(16);
                *line.lock().unwrap() = Some(tx);
                Some(Reply::Live(rx))
            }
            (_, "subscriptions/listen") if modern => {
                let (tx, rx) = mpsc::channel(16);
                let ack = json!({"jsonrpc": "2.0", "method": "notifications/subscriptions/acknowledged", "params": {
                    "notifications": a.message["params"]["notifications"],
                    "_meta": {"io.modelcontextprotocol/subscriptionId": a.message["id"]}}});
                tx.try_send(ack.to_string()).unwrap();
                *line.lock().unwrap() = Some(tx);
                Some(Reply::Live(rx))
            }
            (_, "tools/call") if !modern => {
                let log = |level: &str, data: &str| json!({"jsonrpc": "2.0", "method": "notifications/message", "params": {"level": level, "logger": "l", "data": data}}).to_string();
                let done = a.result(&json!({"content": [{"type": "text", "text": "fine"}]}));
                Some(Reply::events(&[log("debug", "small"), log("warning", "big"), done]))
            }
            _ => None,
        }
    })
    .await
}

async fn told(line: &Line, uri: &str) {
    let message = json!({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}});
    let tx = line.lock().unwrap().clone().unwrap();
    tx.send(message.to_string()).await.unwrap();
}

/// The messages of a stream as they come.
fn messages(response: hyper::Response<hyper::body::Incoming>) -> mpsc::Receiver<Value> {
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        let (mut body, mut buffer) = (response.into_body(), String::new());
        while let Some(Ok(frame)) = body.frame().await {
            buffer.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((event, rest)) = buffer.split_once("\n\n") {
                if let Some(data) = event.lines().find_map(|l| l.strip_prefix("data: ")) {
                    tx.send(serde_json::from_str(data).unwrap()).await.unwrap();
                }
                buffer = String::from(rest);
            }
        }
    });
    rx
}

async fn next(rx: &mut mpsc::Receiver<Value>) -> Value {
    tokio::time::timeout(crate::harness::PATIENCE, rx.recv()).await.unwrap().unwrap()
}

async fn get(weir: &Weir, old: &Old) -> mpsc::Receiver<Value> {
    use hyper_util::client::legacy::Client;
    let request = hyper::Request::get(&weir.url)
        .header("accept", "text/event-stream")
        .header("mcp-session-id", &old.session)
        .body(http_body_util::Empty::<bytes::Bytes>::new())
        .unwrap();
    let client = Client::builder(hyper_util::rt::TokioExecutor::new()).build_http();
    let response = client.request(request).await.unwrap();
    assert_eq!(response.status(), 200);
    messages(response)
}

#[tokio::test(flavor = "multi_thread")]
async fn a_changed_resource_is_told_to_those_who_watch_it() {
    let (line1, line2) = (Line::default(), Line::default());
    let (old_up, new_up) =
        (upstream(false, line1.clone()).await, upstream(true, line2.clone()).await);
    let weir = Weir::start("", &(old_up.section("one", "") + &new_up.section("two", "")));
    weir.ready(&["one", "two"]).await;

    // An old client watches one of each, a modern one another.
    let old = Old::open(&weir.url, None, "2025-11-25", &json!({})).await;
    let mut stream = get(&weir, &old).await;
    let ask = |method: &str, uri: &str| json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": {"uri": uri}});
    for uri in ["one+file:///a", "two+file:///a"] {
        let got = old.post(&ask("resources/subscribe", uri)).await.answer();
        assert_eq!(got["result"], json!({}), "{got}");
    }
    let unknown = old.post(&ask("resources/subscribe", "three+file:///a")).await.answer();
    assert_eq!(unknown["error"]["code"], -32002, "{unknown}");
    let wish = json!({"notifications": {"resourceSubscriptions": ["one+file:///b", "two+file:///b", "three+file:///x"]}});
    let (headers, body) = modern_request(None, "subscriptions/listen", wish);
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut listener = messages(send(&weir.url, &headers, body).await);
    let ack = next(&mut listener).await;
    assert_eq!(
        ack["params"]["notifications"],
        json!({"resourceSubscriptions": ["one+file:///b", "two+file:///b"]}),
        "{ack}"
    );

    // The upstreams are asked for exactly these, each once.
    weir.until("subscribed", |_| {
        old_up.asked("resources/subscribe") == 2
            && new_up.arrivals().iter().any(|a| {
                a.message["params"]["notifications"]["resourceSubscriptions"]
                    == json!(["file:///a", "file:///b"])
            })
    })
    .await;
    for line in [&line1, &line2] {
        told(line, "file:///a").await;
        told(line, "file:///b").await;
        told(line, "file:///c").await;
    }
    let mut seen = [next(&mut stream).await, next(&mut stream).await];
    seen.sort_by_key(|m| m["params"]["uri"].as_str().unwrap().to_owned());
    for (m, uri) in seen.iter().zip(["one+file:///a", "two+file:///a"]) {
        assert_eq!(
            *m,
            json!({"jsonrpc": "2.0", "method": "notifications/resources/updated", "params": {"uri": uri}})
        );
    }
    let mut seen = [next(&mut listener).await, next(&mut listener).await];
    seen.sort_by_key(|m| m["params"]["uri"].as_str().unwrap().to_owned());
    assert_eq!(seen[0]["params"]["uri"], "one+file:///b");
    assert_eq!(seen[1]["params"]["_meta"]["io.modelcontextprotocol/subscriptionId"], 1);

    // Taken back: by the client, and by the end of the stream.
    assert_eq!(
        old.post(&ask("resources/unsubscribe", "one+file:///a")).await.answer()["result"],
        json!({})
    );
    drop(listener);
    weir.until("taken back", |_| old_up.asked("resources/unsubscribe") >= 1).await;
    // After a crash of the upstream the wishes that are left hold on the new link.
    assert!(stream.try_recv().is_err(), "nothing else was told");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_call_gets_its_own_log_messages_at_the_level_it_wants() {
    let up = upstream(false, Line::default()).await;
    let weir = Weir::start("", &up.section("up", ""));
    weir.ready(&["up"]).await;
    let call = |level: Option<&str>| {
        let mut params = json!({"name": "up__fine", "arguments": {}, "_meta": {}});
        if let Some(level) = level {
            params["_meta"]["io.modelcontextprotocol/logLevel"] = json!(level);
        }
        let url = weir.url.clone();
        async move { crate::harness::modern(&url, None, "tools/call", params).await.messages() }
    };
    assert_eq!(call(None).await.len(), 1, "who wants none gets none");
    assert_eq!(up.asked("logging/setLevel"), 0);
    let seen = call(Some("warning")).await;
    assert_eq!((seen.len(), &seen[0]["params"]["data"]), (2, &json!("big")), "{seen:?}");
    assert_eq!(seen[0]["params"]["logger"], "up/l");
    let seen = call(Some("debug")).await;
    assert_eq!(seen.len(), 3, "{seen:?}");
    call(Some("error")).await;
    let levels: Vec<_> = up
        .arrivals()
        .iter()
        .filter(|a| a.method() == "logging/setLevel")
        .map(|a| a.message["params"]["level"].clone())
        .collect();
    assert_eq!(levels, ["warning", "debug"], "raised when more is wanted, and no oftener");
    // An old client says it once for its session.
    let old = Old::open(&weir.url, None, "2025-06-18", &json!({})).await;
    let hello = old.call("up__fine", json!({}), |_| None).await;
    assert_eq!(hello.len(), 1);
    let set = json!({"jsonrpc": "2.0", "id": 5, "method": "logging/setLevel", "params": {"level": "debug"}});
    assert_eq!(old.post(&set).await.answer()["result"], json!({}));
    let seen = old.call("up__fine", json!({}), |_| None).await;
    assert_eq!((seen.len(), text(&seen[2])), (3, json!("fine")), "{seen:?}");
}
