//! Changes of single resources, over both eras, and log messages of a call.

use std::sync::{Arc, Mutex};

use http_body_util::BodyExt as _;
use serde_json::{Value, json};
use tokio::sync::mpsc;

use crate::harness::scripted::{Reply, Scripted, tool};
use crate::harness::{Weir, modern_request, send};
use crate::{Old, text};

pub type Line = Arc<Mutex<Option<mpsc::Sender<String>>>>;

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
pub fn messages(response: hyper::Response<hyper::body::Incoming>) -> mpsc::Receiver<Value> {
    let (tx, rx) = mpsc::channel(64);
    tokio::spawn(async move {
        let (mut body, mut buffer) = (response.into_body(), String::new());
        while let Some(Ok(frame)) = body.frame().await {
            buffer.push_str(std::str::from_utf8(frame.data_ref().unwrap()).unwrap());
            while let Some((event, rest)) = buffer.split_once("\n\n") {
                let data = event.lines().find_map(|l| l.strip_prefix("data: "));
                if let Some(data) = data.filter(|data| !data.is_empty()) {
                    tx.send(serde_json::from_str(data).unwrap()).await.unwrap();
                }
                buffer = String::from(rest);
            }
        }
    });
    rx
}

pub async fn next(rx: &mut mpsc::Receiver<Value>) -> Value {
    tokio::time::timeout(crate::harness::PATIENCE, rx.recv()).await.unwrap().unwrap()
}

pub async fn get(weir: &Weir, old: &Old) -> mpsc::Receiver<Value> {
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

/// A consumer's section.
fn consumer(name: &str, key: &weirkeeper::config::secret::Secret, view: &str) -> String {
    let digest = weirkeeper::config::secret::ConsumerKey::of(key.expose()).to_text();
    format!("[consumers.{name}]\nkey = {digest:?}\n{view}\n")
}

async fn listener(weir: &Weir, key: &str, uris: &[&str]) -> mpsc::Receiver<Value> {
    let wish = json!({"notifications": {"resourceSubscriptions": uris}});
    let (headers, body) = modern_request(Some(key), "subscriptions/listen", wish);
    let headers: Vec<_> = headers.iter().map(|(k, v)| (*k, v.as_str())).collect();
    let mut listener = messages(send(&weir.url, &headers, body).await);
    let ack = next(&mut listener).await;
    assert_eq!(ack["params"]["notifications"]["resourceSubscriptions"], json!(uris), "{ack}");
    listener
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_tells_only_what_is_still_seen_and_ends_with_its_key() {
    let (line1, line2) = (Line::default(), Line::default());
    let (one, two) = (upstream(false, line1.clone()).await, upstream(true, line2.clone()).await);
    let keys: Vec<_> = (0..3).map(|_| weirkeeper::config::secret::new_key()).collect();
    let upstreams = one.section("one", "") + &two.section("two", "");
    let narrow = "[views.narrow]\nupstreams = [\"two\"]\n";
    let before = upstreams.clone()
        + narrow
        + &consumer("px", &keys[0], "")
        + &consumer("sales", &keys[1], "")
        + &consumer("ops", &keys[2], "");
    let weir = Weir::start("", &before);
    weir.ready(&["one", "two"]).await;
    let uris = ["one+file:///a", "two+file:///a"];
    let mut px = listener(&weir, keys[0].expose(), &uris).await;
    let mut sales = listener(&weir, keys[1].expose(), &uris).await;
    let mut ops = listener(&weir, keys[2].expose(), &uris).await;
    weir.until("subscribed", |_| one.asked("resources/subscribe") == 1).await;
    // px sees less from now on, sales has another key, ops is as before.
    let other = weirkeeper::config::secret::new_key();
    let after = upstreams
        + narrow
        + &consumer("px", &keys[0], "view = \"narrow\"")
        + &consumer("sales", &other, "")
        + &consumer("ops", &keys[2], "");
    weir.rewrite("", &after);
    weir.logged("configuration reloaded").await;
    weir.logged("its key no longer lets in").await;
    let ended = tokio::time::timeout(crate::harness::PATIENCE, sales.recv()).await.unwrap();
    assert_eq!(ended, None, "the stream of the old key ends");
    told(&line1, "file:///a").await;
    let uri = async |rx: &mut mpsc::Receiver<Value>| next(rx).await["params"]["uri"].clone();
    assert_eq!(uri(&mut ops).await, "one+file:///a");
    told(&line2, "file:///a").await;
    assert_eq!(uri(&mut ops).await, "two+file:///a");
    assert_eq!(uri(&mut px).await, "two+file:///a", "and nothing of what it sees no more");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_part_of_what_is_watched_is_told_by_its_own_address() {
    let line = Line::default();
    let up = upstream(true, line.clone()).await;
    let key = weirkeeper::config::secret::new_key();
    let weir = Weir::start("", &(up.section("up", "") + &consumer("px", &key, "")));
    weir.ready(&["up"]).await;
    let mut told_of = listener(&weir, key.expose(), &["up+file:///a"]).await;
    weir.until("asked for", |_| {
        up.arrivals().iter().any(|a| {
            a.message["params"]["notifications"]["resourceSubscriptions"] == json!(["file:///a"])
        })
    })
    .await;
    for uri in ["file:///ab", "file:///a/b", "file:///a"] {
        told(&line, uri).await;
    }
    assert_eq!(next(&mut told_of).await["params"]["uri"], "up+file:///a/b");
    assert_eq!(next(&mut told_of).await["params"]["uri"], "up+file:///a");
}

#[tokio::test(flavor = "multi_thread")]
async fn after_a_gap_all_that_is_watched_may_have_changed() {
    let (line1, line2) = (Line::default(), Line::default());
    let (old_up, new_up) =
        (upstream(false, line1.clone()).await, upstream(true, line2.clone()).await);
    let key = weirkeeper::config::secret::new_key();
    let toml = old_up.section("one", "") + &new_up.section("two", "") + &consumer("px", &key, "");
    let weir = Weir::start("", &toml);
    weir.ready(&["one", "two"]).await;
    let mut heard = listener(&weir, key.expose(), &["one+file:///a", "two+file:///a"]).await;
    weir.until("subscribed", |_| {
        old_up.asked("resources/subscribe") == 1
            && new_up.arrivals().iter().any(|a| {
                a.message["params"]["notifications"]["resourceSubscriptions"]
                    == json!(["file:///a"])
            })
    })
    .await;
    let lists = |up: &Scripted| up.asked("resources/list");
    let before = (lists(&old_up), lists(&new_up));
    // Both streams of changes end; they are opened again, and nobody knows what was said between.
    line1.lock().unwrap().take();
    line2.lock().unwrap().take();
    let mut uris = [next(&mut heard).await, next(&mut heard).await]
        .map(|m| m["params"]["uri"].as_str().unwrap().to_owned());
    uris.sort();
    assert_eq!(uris, ["one+file:///a", "two+file:///a"]);
    weir.until("lists fetched again", |_| {
        lists(&old_up) == before.0 + 1 && lists(&new_up) == before.1 + 1
    })
    .await;
}
